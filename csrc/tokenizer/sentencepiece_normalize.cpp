#include "tokenizer/sentencepiece_normalize.hpp"

#include <algorithm>
#include <stdexcept>

#include "text/unicode.hpp"
#include "tokenizer/sentencepiece_model.hpp"

namespace pylm {

namespace {

constexpr std::size_t kMostMatches = 32;  // SentencePiece asks the trie for this many rules at a place

std::uint32_t load_u32(std::string_view bytes, std::size_t place) noexcept {
    std::uint32_t value = 0;
    for (std::size_t i = 0; i < 4; ++i) {
        value |= std::uint32_t{static_cast<std::uint8_t>(bytes[place + i])} << (8 * i);
    }
    return value;
}

// A unit of darts-clone: bits 0-7 and 31 are the label (of a leaf: bits 0-30 are its value), bit 8 tells
// whether a leaf hangs below, bit 9 scales the offset in bits 10-30.
std::uint32_t offset_of(std::uint32_t unit) noexcept { return (unit >> 10) << ((unit & (1U << 9)) >> 6); }
std::uint32_t label_of(std::uint32_t unit) noexcept { return unit & ((1U << 31) | 0xFF); }
bool has_leaf(std::uint32_t unit) noexcept { return ((unit >> 8) & 1) != 0; }

}  // namespace

void PrefixMatcher::add(std::string_view text, std::uint32_t value) {
    const auto byte = [&](std::size_t i) { return static_cast<std::uint8_t>(text[i]); };
    for (std::size_t second = 0; second < 256; ++second) {
        if (text.size() == 1 || second == byte(1)) starts_[byte(0) | (second << 8)] = true;
    }
    std::uint32_t node = 0;
    for (std::size_t i = 0; i < text.size(); ++i) {
        const std::uint64_t key = (static_cast<std::uint64_t>(node) << 8) | byte(i);
        const auto [edge, is_new] = edges_.emplace(key, num_nodes_);
        if (is_new) ++num_nodes_;
        node = edge->second;
    }
    values_[node] = value;
}

PrefixMatcher::Match PrefixMatcher::walk(std::string_view text, std::size_t position) const noexcept {
    Match match;
    std::uint32_t node = 0;
    for (std::size_t i = position; i < text.size(); ++i) {
        const auto edge = edges_.find((static_cast<std::uint64_t>(node) << 8) | static_cast<std::uint8_t>(text[i]));
        if (edge == edges_.end()) break;
        node = edge->second;
        const auto value = values_.find(node);
        if (value != values_.end()) match = {i + 1 - position, value->second};
    }
    return match;
}

Charsmap::Charsmap(std::string blob) {
    if (blob.empty()) return;
    const std::size_t size = blob.size() < 4 ? 0 : load_u32(blob, 0);
    if (size == 0 || size % 4 != 0 || size > blob.size() - 4) {
        throw std::invalid_argument("precompiled_charsmap: the size of its trie does not fit its " +
                                    std::to_string(blob.size()) + " bytes");
    }
    for (std::size_t place = 4; place < 4 + size; place += 4) units_.push_back(load_u32(blob, place));
    replacements_ = blob.substr(4 + size);
    replacements_.push_back('\0');
}

Charsmap::Match Charsmap::longest(std::string_view text, std::size_t position) const noexcept {
    Match match;
    std::size_t node = offset_of(units_[0]);
    std::size_t found = 0;
    for (std::size_t i = position; i < text.size() && found < kMostMatches; ++i) {
        const auto byte = static_cast<std::uint8_t>(text[i]);
        node ^= byte;
        if (node >= units_.size() || label_of(units_[node]) != byte) break;
        const std::uint32_t unit = units_[node];
        node ^= offset_of(unit);
        if (!has_leaf(unit)) continue;
        const std::size_t value = node < units_.size() ? units_[node] & 0x7FFFFFFF : replacements_.size();
        if (value >= replacements_.size()) continue;
        ++found;
        match.size = i + 1 - position;
        match.replacement = std::string_view(replacements_.data() + value);
    }
    return match;
}

std::string spaces_for_marks(std::string_view text) {
    std::string spaced;
    while (!text.empty()) {
        const bool mark = text.starts_with(kSpaceMark);
        spaced.push_back(mark ? ' ' : text.front());
        text.remove_prefix(mark ? kSpaceMark.size() : 1);
    }
    return spaced;
}

std::string normalize(std::string_view text, const NormalizeRules& rules, const PrefixMatcher& keep) {
    std::string out;
    out.reserve(text.size() + 4);
    std::size_t place = 0;
    // What stands at `place`, normalized; advances it.
    const auto next = [&]() -> std::string_view {
        if (!keep.empty()) {
            if (const std::size_t size = keep.longest(text, place).size; size != 0) {
                place += size;
                return text.substr(place - size, size);
            }
        }
        if (!rules.charsmap.empty()) {
            if (const Charsmap::Match match = rules.charsmap.longest(text, place); match.size != 0) {
                place += match.size;
                return match.replacement;
            }
        }
        const Decoded decoded = decode_utf8(text, place);
        place += decoded.size;
        if (decoded.point == 0xFFFD && decoded.size == 1) return kReplacement;
        return text.substr(place - decoded.size, decoded.size);
    };
    if (rules.collapse_spaces) {
        while (place < text.size()) {
            const std::size_t start = place;
            if (next() == " ") continue;
            place = start;
            break;
        }
    }
    if (place == text.size()) return out;
    if (rules.add_prefix) out += ' ';
    bool after_space = rules.collapse_spaces;
    while (place < text.size()) {
        std::string_view piece = next();
        while (after_space && piece.starts_with(' ')) piece.remove_prefix(1);
        if (!piece.empty()) {
            out += piece;
            after_space = rules.collapse_spaces && piece.ends_with(' ');
        }
    }
    if (rules.space_is_mark && out.find(kSpaceMark) != std::string::npos) out = spaces_for_marks(out);
    if (rules.collapse_spaces) {
        while (out.ends_with(' ')) out.pop_back();
    }
    return out;
}

}  // namespace pylm
