#include "tokenizer/hf_model.hpp"

#include <algorithm>
#include <array>
#include <stdexcept>

#include "text/unicode.hpp"
#include "tokenizer/json_cursor.hpp"

namespace pylm {

namespace {

constexpr char32_t kAlphabetEnd = 0x144;
constexpr std::uint16_t kNoByte = 0x100;

constexpr bool stands_for_itself(char32_t point) noexcept {
    return (point >= 0x21 && point < 0x7F) || (point >= 0xA1 && point < 0xAD) ||
           (point >= 0xAE && point < 0x100);
}

// Bytes that are visible in Latin-1 stand for themselves, the others are U+0100 and on, in order.
constexpr std::array<char32_t, 256> make_alphabet() noexcept {
    std::array<char32_t, 256> points{};
    char32_t next = 0x100;
    for (char32_t byte = 0; byte < 256; ++byte) points[byte] = stands_for_itself(byte) ? byte : next++;
    return points;
}

constexpr std::array<std::uint16_t, kAlphabetEnd> make_bytes() noexcept {
    std::array<std::uint16_t, kAlphabetEnd> bytes{};
    for (auto& byte : bytes) byte = kNoByte;
    const auto alphabet = make_alphabet();
    for (std::size_t byte = 0; byte < 256; ++byte) bytes[alphabet[byte]] = static_cast<std::uint16_t>(byte);
    return bytes;
}

constexpr auto kAlphabet = make_alphabet();
constexpr auto kBytes = make_bytes();

bool from_byte_alphabet(std::string_view text, std::string& out) {
    for (std::size_t i = 0; i < text.size();) {
        const Decoded c = decode_utf8(text, i);
        if (c.point >= kAlphabetEnd || kBytes[c.point] == kNoByte) return false;
        out.push_back(static_cast<char>(kBytes[c.point]));
        i += c.size;
    }
    return true;
}

std::uint32_t checked_size(std::size_t size) {
    if (size >> 31 != 0) throw std::invalid_argument("the vocabulary takes more than 2 GiB");
    return static_cast<std::uint32_t>(size);
}

}  // namespace

std::string to_byte_alphabet(std::string_view bytes) {
    std::string out;
    for (const char byte : bytes) {
        const char32_t point = kAlphabet[static_cast<std::uint8_t>(byte)];
        if (point < 0x80) {
            out.push_back(static_cast<char>(point));
        } else {
            out.push_back(static_cast<char>(0xC0 | (point >> 6)));
            out.push_back(static_cast<char>(0x80 | (point & 0x3F)));
        }
    }
    return out;
}

HfDocument HfModel::read(std::string_view content) {
    HfModel model;
    std::string rest;
    std::size_t copied = 0;
    bool has_vocabulary = false;
    bool has_merges = false;
    JsonCursor cursor(content);
    const auto replace = [&](bool& seen, const char* name, std::string_view empty, auto&& read) {
        if (seen) cursor.fail(std::string("one ") + name + ", not two");
        seen = true;
        cursor.peek();
        rest.append(content, copied, cursor.position() - copied).append(empty);
        read();
        copied = cursor.position();
    };
    cursor.read_object([&](const std::string& section) {
        if (section != "model" || cursor.peek() != '{') return cursor.skip_value();
        cursor.read_object([&](const std::string& key) {
            if (key == "vocab" && cursor.peek() == '{') {
                replace(has_vocabulary, "vocab", "{}", [&] { model.read_vocabulary(cursor); });
            } else if (key == "merges" && cursor.peek() == '[') {
                replace(has_merges, "merges", "[]", [&] { model.read_merges(cursor); });
            } else {
                cursor.skip_value();
            }
        });
    });
    if (!cursor.at_end()) cursor.fail("nothing after the document");
    if (!has_vocabulary || !has_merges) {
        throw std::invalid_argument("expected a BPE model with vocab and merges");
    }
    rest.append(content, copied);
    model.index_entries();
    model.resolve_merges();
    return {std::move(model), std::move(rest)};
}

void HfModel::read_vocabulary(JsonCursor& cursor) {
    // Entries are some 25 bytes of JSON; a guess for reserve, not a bound.
    cursor.expect('{');
    if (cursor.peek() == '}') return cursor.expect('}');
    for (;;) {
        const std::size_t begin = text_.size();
        cursor.read_string(text_);
        cursor.expect(':');
        const std::uint64_t id = cursor.read_whole_number();
        if (id >= TokenIndex::kNone) cursor.fail("an id below 2^32");
        entries_.push_back({checked_size(begin), checked_size(text_.size() - begin), static_cast<TokenId>(id)});
        if (cursor.peek() != ',') break;
        cursor.expect(',');
    }
    cursor.expect('}');
}

void HfModel::read_merges(JsonCursor& cursor) {
    cursor.read_array([&] {
        const std::size_t begin = merge_text_.size();
        std::size_t middle = begin;
        if (cursor.peek() == '[') {
            std::size_t sides = 0;
            cursor.read_array([&] {
                cursor.read_string(merge_text_);
                if (++sides == 1) middle = merge_text_.size();
            });
            if (sides != 2) cursor.fail("a merge of two tokens");
        } else {
            cursor.read_string(merge_text_);
            const std::string_view both = std::string_view(merge_text_).substr(begin);
            const std::size_t space = both.find(' ');
            if (space == std::string_view::npos || both.find(' ', space + 1) != std::string_view::npos) {
                cursor.fail("two tokens with a space between in merge " + std::to_string(merge_sizes_.size()));
            }
            middle = begin + space;
            merge_text_.erase(middle, 1);
        }
        merge_sizes_.emplace_back(checked_size(middle - begin), checked_size(merge_text_.size() - middle));
    });
}

void HfModel::index_entries() {
    index_ = TokenIndex(entries_.size());
    const std::uint64_t bound = pylm::largest_id(entries_.size());
    for (std::size_t place = 0; place < entries_.size(); ++place) {
        const Entry& entry = entries_[place];
        const std::string_view text = text_of(entry);
        if (entry.id > bound) {
            throw std::invalid_argument("vocabulary entry " + quoted(text) + " has the id " +
                                        std::to_string(entry.id) + ", too large for " +
                                        std::to_string(entries_.size()) + " entries");
        }
        largest_id_ = std::max<std::size_t>(largest_id_, entry.id);
        const TokenId other = index_.add(RollingHash::of(text), static_cast<TokenId>(place),
                                         [&](TokenId known) { return text_of(entries_[known]) == text; });
        if (other != TokenIndex::kNone) {
            throw std::invalid_argument("vocabulary entry " + quoted(text) + " is given twice");
        }
    }
    std::vector<TokenId> owner(entries_.empty() ? 0 : largest_id_ + 1, TokenIndex::kNone);
    for (std::size_t place = 0; place < entries_.size(); ++place) {
        TokenId& first = owner[entries_[place].id];
        if (first != TokenIndex::kNone) {
            throw std::invalid_argument("vocabulary entries " + quoted(text_of(entries_[first])) + " and " +
                                        quoted(text_of(entries_[place])) + " have the same id " +
                                        std::to_string(entries_[place].id));
        }
        first = static_cast<TokenId>(place);
    }
}

TokenId HfModel::find_entry(std::uint64_t hash, std::string_view text) const noexcept {
    return index_.find(hash, [&](TokenId place) { return text_of(entries_[place]) == text; });
}

TokenId HfModel::find_joined(std::uint64_t hash, std::string_view left,
                             std::string_view right) const noexcept {
    return index_.find(hash, [&](TokenId place) {
        const std::string_view text = text_of(entries_[place]);
        return text.size() == left.size() + right.size() && text.starts_with(left) && text.ends_with(right);
    });
}

void HfModel::resolve_merges() {
    RollingHash rolling;
    merges_.reserve(merge_sizes_.size());
    std::size_t begin = 0;
    for (std::size_t rank = 0; rank < merge_sizes_.size(); ++rank) {
        const auto [left_size, right_size] = merge_sizes_[rank];
        const std::string_view left = std::string_view(merge_text_).substr(begin, left_size);
        const std::string_view right = std::string_view(merge_text_).substr(begin + left_size, right_size);
        begin += left_size + right_size;
        const std::uint64_t left_hash = RollingHash::of(left);
        const std::uint64_t right_hash = RollingHash::of(right);
        const TokenId a = find_entry(left_hash, left);
        const TokenId b = find_entry(right_hash, right);
        const TokenId c = find_joined(left_hash * rolling.power(right.size()) + right_hash, left, right);
        if (a == TokenIndex::kNone || b == TokenIndex::kNone || c == TokenIndex::kNone) {
            throw std::invalid_argument("merge " + std::to_string(rank) + " (" + quoted(left) + ", " +
                                        quoted(right) + ") does not join two tokens to a third");
        }
        merges_.push_back(
            {entries_[a].id, entries_[b].id, entries_[c].id, static_cast<std::uint32_t>(rank)});
    }
    std::string().swap(merge_text_);
}

std::optional<TokenId> HfModel::find(std::string_view text) const noexcept {
    const TokenId place = find_entry(RollingHash::of(text), text);
    return place == TokenIndex::kNone ? std::nullopt : std::optional(entries_[place].id);
}

Vocabulary HfModel::to_vocabulary(bool byte_level, std::span<const TokenId> hidden) const {
    Vocabulary vocabulary;
    vocabulary.merges = merges_;
    vocabulary.tokens.resize(entries_.empty() ? 0 : largest_id_ + 1);
    std::vector<bool> is_hidden(vocabulary.tokens.size());
    for (const TokenId id : hidden) {
        if (id < is_hidden.size()) is_hidden[id] = true;
    }
    std::vector<bool> is_merged(vocabulary.tokens.size());
    for (const MergeRule& rule : merges_) {
        for (const TokenId id : {rule.left, rule.right, rule.merged}) is_merged[id] = true;
    }
    for (const Entry& entry : entries_) {
        std::string& token = vocabulary.tokens[entry.id];
        if (!byte_level) {
            if (!is_hidden[entry.id] || is_merged[entry.id]) token = text_of(entry);
            continue;
        }
        const bool is_known = from_byte_alphabet(text_of(entry), token);
        if (!is_known && is_merged[entry.id]) {
            throw std::invalid_argument("vocabulary entry " + quoted(text_of(entry)) +
                                        " is merged, but is not in the byte-level alphabet");
        }
        if (!is_known || (is_hidden[entry.id] && !is_merged[entry.id] && token.size() != 1)) token.clear();
    }
    while (!vocabulary.tokens.empty() && vocabulary.tokens.back().empty()) vocabulary.tokens.pop_back();
    return vocabulary;
}

std::vector<std::pair<TokenId, std::string>> HfModel::beyond_alphabet() const {
    std::vector<std::pair<TokenId, std::string>> found;
    std::string bytes;
    for (const Entry& entry : entries_) {
        bytes.clear();
        if (!from_byte_alphabet(text_of(entry), bytes)) found.emplace_back(entry.id, text_of(entry));
    }
    return found;
}

}  // namespace pylm
