#include "dedup/shingle.hpp"

#include <algorithm>
#include <array>
#include <stdexcept>

#include "dedup/xxhash.hpp"
#include "text/words.hpp"

namespace pylm::dedup {
namespace {

// Shingles are values of the polynomial sum(h_k * kBase^(n-1-k)) mod 2^64 over the hashes h of their items
// (Karp, Rabin 1987): two different shingles are equal with probability 2^-64 over the items' hashes.
constexpr std::uint64_t kBase = 0xA24BAED4963EE407ULL;  // odd, so that powers keep all bits

constexpr std::size_t kTextDedupMinWords = 5;

// 1 for ASCII letters and digits, 2 for bytes of other characters.
constexpr std::array<std::uint8_t, 256> kByteKind = [] {
    std::array<std::uint8_t, 256> kinds{};
    for (std::size_t c = 0; c < 256; ++c) {
        const bool word = (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
        kinds[c] = c >= 0x80 ? 2 : word ? 1 : 0;
    }
    return kinds;
}();

std::uint8_t kind_of(char byte) noexcept { return kByteKind[static_cast<std::uint8_t>(byte)]; }

}  // namespace

Shingler::Shingler(ShingleRule rule) : rule_(rule) {
    if (rule.ngram == 0) throw std::invalid_argument("ngram must be at least 1, got 0");
    for (std::size_t i = 0; i < rule.ngram; ++i) leaving_factor_ *= kBase;
}

std::span<const std::uint64_t> Shingler::operator()(std::string_view text) {
    shingles_.clear();
    switch (rule_.kind) {
        case ShingleKind::kWord:
            hash_words(text);
            roll();
            break;
        case ShingleKind::kCharacter:
            hash_characters(text);
            roll();
            break;
        case ShingleKind::kJoined32:
        case ShingleKind::kJoined64:
            hash_joined(text);
            break;
    }
    return shingles_;
}

std::span<const std::uint64_t> Shingler::distinct(std::string_view text) {
    (*this)(text);
    std::sort(shingles_.begin(), shingles_.end());
    shingles_.erase(std::unique(shingles_.begin(), shingles_.end()), shingles_.end());
    return shingles_;
}

void Shingler::hash_words(std::string_view text) {
    items_.clear();
    const char* p = text.data();
    const char* const end = p + text.size();
    while (p < end) {
        const std::uint8_t kind = kind_of(*p);
        if (kind == 0) {
            ++p;
            continue;
        }
        const char* const begin = p;
        if (kind == 1) {
            do ++p;
            while (p < end && kind_of(*p) == 1);
            if (p == end || kind_of(*p) == 0) {
                items_.push_back(words::hash_word<true>(begin, static_cast<std::size_t>(p - begin), end));
                continue;
            }
        }
        p = hash_wide_word(begin, end);
    }
}

// One word that holds, or may hold, characters beyond ASCII; returns its end.
const char* Shingler::hash_wide_word(const char* begin, const char* end) {
    const std::string_view text(begin, static_cast<std::size_t>(end - begin));
    lowered_.clear();
    std::size_t i = 0;
    while (i < text.size()) {
        const Decoded decoded = decode_utf8(text, i);
        const std::uint8_t flags = words::flags(decoded.point);
        const bool unspaced = (flags & words::kUnspaced) != 0;
        if ((flags & words::kWord) == 0 || (unspaced && !lowered_.empty())) break;
        words::append_utf8(words::lower(decoded.point), lowered_);
        i += decoded.size;
        if (unspaced) break;
    }
    if (lowered_.empty()) return begin + decode_utf8(text, 0).size;  // no word here
    items_.push_back(
        words::hash_word<false>(lowered_.data(), lowered_.size(), lowered_.data() + lowered_.size()));
    return begin + i;
}

void Shingler::hash_characters(std::string_view text) {
    items_.clear();
    bool space = false;
    for (std::size_t i = 0; i < text.size();) {
        const Decoded decoded = decode_utf8(text, i);
        i += decoded.size;
        if ((words::flags(decoded.point) & words::kSpace) != 0) {
            space = !items_.empty();
            continue;
        }
        if (space) items_.push_back(words::fold_multiply(words::kMultiplier1 ^ U' ', words::kMultiplier2));
        space = false;
        items_.push_back(
            words::fold_multiply(words::kMultiplier1 ^ words::lower(decoded.point), words::kMultiplier2));
    }
}

void Shingler::roll() {
    const std::size_t n = std::min(rule_.ngram, items_.size());
    if (n == 0) return;
    shingles_.resize(items_.size() - n + 1);
    std::uint64_t value = 0;
    for (std::size_t i = 0; i < n; ++i) value = value * kBase + items_[i];
    shingles_[0] = value;
    for (std::size_t i = n; i < items_.size(); ++i) {
        value = value * kBase + (items_[i] - items_[i - n] * leaving_factor_);
        shingles_[i - n + 1] = value;
    }
}

void Shingler::hash_joined(std::string_view text) {
    borders_.clear();  // begin of every word, and one past the space after the last
    if (!text.empty()) borders_.push_back(0);
    for (std::size_t i = 0; i < text.size(); ++i) {
        if (text[i] == ' ') borders_.push_back(i + 1);
    }
    if (!text.empty()) borders_.push_back(text.size() + 1);
    const std::size_t num_words = borders_.empty() ? 0 : borders_.size() - 1;
    const bool short_forms = rule_.kind == ShingleKind::kJoined32;
    if (num_words == 0 || (short_forms ? num_words < kTextDedupMinWords : num_words < rule_.ngram)) return;
    const std::size_t n = std::min(rule_.ngram, num_words);
    for (std::size_t i = 0; i + n <= num_words; ++i) {
        const std::string_view joined = text.substr(borders_[i], borders_[i + n] - 1 - borders_[i]);
        shingles_.push_back(short_forms ? xxh3_64(joined, rule_.seed) & 0xFFFFFFFF : xxh64(joined, 0));
    }
}

}  // namespace pylm::dedup
