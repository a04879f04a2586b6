#include "tokenizer/hf_model.hpp"

#include <algorithm>
#include <array>
#include <future>
#include <stdexcept>
#include <system_error>

#include "parallel.hpp"
#include "tokenizer/json_cursor.hpp"

namespace pylm {

namespace {

constexpr char32_t kAlphabetEnd = 0x144;
constexpr std::uint16_t kNoByte = 0x100;
constexpr std::size_t kChunk = 1 << 14;  // entries that a thread takes at once
constexpr std::size_t kAhead = 16;  // entries whose memory is asked for before they are looked at

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

// Whether each character stands for a byte, which `put` is given. `text` is UTF-8; the alphabet's characters
// have one or two bytes of it.
template <typename Put>
bool read_byte_alphabet(std::string_view text, Put&& put) {
    for (std::size_t i = 0; i < text.size(); ++i) {
        std::uint32_t point = static_cast<std::uint8_t>(text[i]);
        if (point >= 0xE0) return false;
        if (point >= 0x80) point = ((point & 0x1F) << 6) | (static_cast<std::uint8_t>(text[++i]) & 0x3F);
        if (point >= kAlphabetEnd || kBytes[point] == kNoByte) return false;
        put(static_cast<char>(kBytes[point]));
    }
    return true;
}

bool is_of_byte_alphabet(std::string_view text) {
    return read_byte_alphabet(text, [](char) {});
}

// Leaves `out` empty where it is not.
bool from_byte_alphabet(std::string_view text, std::string& out) {
    out.resize(text.size());
    char* end = out.data();
    const bool is_known = read_byte_alphabet(text, [&](char byte) { *end++ = byte; });
    out.resize(is_known ? static_cast<std::size_t>(end - out.data()) : 0);
    return is_known;
}

bool is_joined(std::string_view text, std::string_view left, std::string_view right) noexcept {
    return text.size() == left.size() + right.size() && text.starts_with(left) && text.ends_with(right);
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

HfDocument HfModel::read(std::string_view content, unsigned num_threads) {
    HfModel model;
    std::string rest;
    std::size_t copied = 0;
    bool has_vocabulary = false;
    bool has_merges = false;
    JsonCursor cursor(content);
    std::future<void> indexed;  // while the merges are read
    const auto index = [&] {
        if (resolve_threads(num_threads) > 1 && model.entries_.size() > kChunk) {
            try {
                indexed = std::async(std::launch::async, [&] { model.index_entries(); });
                return;
            } catch (const std::system_error&) {  // no thread to be had
            }
        }
        indexed = std::async(std::launch::deferred, [&] { model.index_entries(); });
    };
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
                replace(has_vocabulary, "vocab", "{}", [&] {
                    model.read_vocabulary(cursor);
                    index();
                });
            } else if (key == "merges" && cursor.peek() == '[') {
                replace(has_merges, "merges", "[]", [&] { model.read_merges(cursor, content); });
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
    indexed.get();
    model.resolve_merges(content, num_threads);
    return {std::move(model), std::move(rest)};
}

void HfModel::read_vocabulary(JsonCursor& cursor) {
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

void HfModel::read_merges(JsonCursor& cursor, std::string_view content) {
    // A side lies in the file's text, or behind it where escapes had to be resolved.
    const auto read_side = [&]() -> MergeSide {
        const std::size_t begin = escaped_.size();
        const std::string_view text = cursor.view_string(escaped_);
        if (text.data() == nullptr) return {checked_size(content.size() + begin), checked_size(escaped_.size() - begin)};
        return {checked_size(static_cast<std::size_t>(text.data() - content.data())), checked_size(text.size())};
    };
    cursor.read_array([&] {
        MergeSide left, right;
        if (cursor.peek() == '[') {
            std::size_t sides = 0;
            cursor.read_array([&] { (++sides == 1 ? left : right) = read_side(); });
            if (sides != 2) cursor.fail("a merge of two tokens");
        } else {
            left = read_side();
            const std::string_view both = text_of(left, content);
            const std::size_t space = both.find(' ');
            if (space == std::string_view::npos || both.find(' ', space + 1) != std::string_view::npos) {
                cursor.fail("two tokens with a space between in merge " + std::to_string(sides_.size()));
            }
            const auto middle = static_cast<std::uint32_t>(space);
            right = {left.begin + middle + 1, left.size - middle - 1};
            left.size = middle;
        }
        sides_.emplace_back(left, right);
    });
}

void HfModel::index_entries() {
    index_ = TokenIndex(entries_.size());
    const std::uint64_t bound = pylm::largest_id(entries_.size());
    std::vector<std::uint64_t> hashes(entries_.size());
    for (std::size_t place = 0; place < entries_.size(); ++place)
        hashes[place] = RollingHash::of(text_of(entries_[place]));
    for (std::size_t place = 0; place < entries_.size(); ++place) {
        if (place + kAhead < hashes.size()) index_.prefetch(hashes[place + kAhead]);
        const Entry& entry = entries_[place];
        const std::string_view text = text_of(entry);
        if (entry.id > bound) {
            throw std::invalid_argument("vocabulary entry " + quoted(text) + " has the id " +
                                        std::to_string(entry.id) + ", too large for " +
                                        std::to_string(entries_.size()) + " entries");
        }
        largest_id_ = std::max<std::size_t>(largest_id_, entry.id);
        const TokenId other = index_.add(hashes[place], static_cast<TokenId>(place),
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
    return index_.find(hash, [&](TokenId place) { return is_joined(text_of(entries_[place]), left, right); });
}

void HfModel::resolve_merges(std::string_view content, unsigned num_threads) {
    RollingHash rolling;
    for (const auto& [left, right] : sides_) (void)rolling.power(right.size);  // from here on all of them are known
    merges_.resize(sides_.size());
    parallel_for((sides_.size() + kChunk - 1) / kChunk, num_threads, [&](std::size_t chunk) {
        resolve_merges(chunk * kChunk, std::min(sides_.size(), (chunk + 1) * kChunk), content, rolling);
    });
    sides_ = {};
    escaped_ = {};
}

// Most of the time goes into waiting for memory: it is asked for some merges ahead, the index first, then the
// entries that it names.
void HfModel::resolve_merges(std::size_t first, std::size_t last, std::string_view content, RollingHash& rolling) {
    struct Merge {
        std::string_view left, right;
        std::uint64_t left_hash, right_hash;
    };
    std::array<Merge, 2 * kAhead> ring;
    std::size_t read = first;
    const auto read_one = [&] {
        Merge& merge = ring[read % ring.size()];
        const auto& [left, right] = sides_[read++];
        merge.left = text_of(left, content);
        merge.right = text_of(right, content);
        merge.left_hash = RollingHash::of(merge.left);
        merge.right_hash = RollingHash::of(merge.right);
        for (const std::uint64_t hash : {merge.left_hash, merge.right_hash}) index_.prefetch(hash);
    };
    const auto prefetch_entries = [&](const Merge& merge) {
        for (const std::uint64_t hash : {merge.left_hash, merge.right_hash}) {
            const TokenId place = index_.peek(hash);
            if (place != TokenIndex::kNone) __builtin_prefetch(&entries_[place]);
        }
    };
    // Merges stand as a rule in the order of what they make.
    TokenId made = 0;
    const auto find_made = [&](std::string_view left, std::string_view right, std::uint64_t left_hash,
                               std::uint64_t right_hash) {
        for (const TokenId guess : {made, made + 1}) {
            if (guess < entries_.size() && is_joined(text_of(entries_[guess]), left, right)) return made = guess;
        }
        const TokenId found = find_joined(left_hash * rolling.power(right.size()) + right_hash, left, right);
        return found == TokenIndex::kNone ? found : made = found;
    };
    for (std::size_t rank = first; rank < last; ++rank) {
        while (read < last && read < rank + ring.size()) read_one();
        if (rank + kAhead < read) prefetch_entries(ring[(rank + kAhead) % ring.size()]);
        const auto& [left, right, left_hash, right_hash] = ring[rank % ring.size()];
        const TokenId a = find_entry(left_hash, left);
        const TokenId b = find_entry(right_hash, right);
        const TokenId c = find_made(left, right, left_hash, right_hash);
        if (a == TokenIndex::kNone || b == TokenIndex::kNone || c == TokenIndex::kNone) {
            throw std::invalid_argument("merge " + std::to_string(rank) + " (" + quoted(left) + ", " +
                                        quoted(right) + ") does not join two tokens to a third");
        }
        merges_[rank] = {entries_[a].id, entries_[b].id, entries_[c].id, static_cast<std::uint32_t>(rank)};
    }
}

std::optional<TokenId> HfModel::find(std::string_view text) const noexcept {
    const TokenId place = find_entry(RollingHash::of(text), text);
    return place == TokenIndex::kNone ? std::nullopt : std::optional(entries_[place].id);
}

Vocabulary HfModel::to_vocabulary(bool byte_level, std::span<const TokenId> hidden,
                                  unsigned num_threads) const {
    Vocabulary vocabulary;
    vocabulary.merges = merges_;
    vocabulary.tokens.resize(entries_.empty() ? 0 : largest_id_ + 1);
    std::vector<std::uint8_t> is_hidden(vocabulary.tokens.size());
    for (const TokenId id : hidden) {
        if (id < is_hidden.size()) is_hidden[id] = 1;
    }
    std::vector<std::uint8_t> is_merged(vocabulary.tokens.size());
    for (const MergeRule& rule : merges_) is_merged[rule.left] = is_merged[rule.right] = is_merged[rule.merged] = 1;
    const auto set = [&](const Entry& entry) {
        std::string& token = vocabulary.tokens[entry.id];
        const bool is_shown = is_hidden[entry.id] == 0 || is_merged[entry.id] != 0;
        if (!byte_level) {
            if (is_shown) token = text_of(entry);
            return;
        }
        const bool is_known = from_byte_alphabet(text_of(entry), token);
        if (!is_known && is_merged[entry.id] != 0) {
            throw std::invalid_argument("vocabulary entry " + quoted(text_of(entry)) +
                                        " is merged, but is not in the byte-level alphabet");
        }
        if (!is_known || (!is_shown && token.size() != 1)) token.clear();
    };
    const std::size_t num_chunks = (entries_.size() + kChunk - 1) / kChunk;
    parallel_for(num_chunks, num_threads, [&](std::size_t chunk) {
        const std::size_t last = std::min(entries_.size(), (chunk + 1) * kChunk);
        for (std::size_t place = chunk * kChunk; place < last; ++place) set(entries_[place]);
    });
    while (!vocabulary.tokens.empty() && vocabulary.tokens.back().empty()) vocabulary.tokens.pop_back();
    return vocabulary;
}

std::vector<std::pair<TokenId, std::string>> HfModel::beyond_alphabet(const TokenTexts& tokens) const {
    std::vector<std::pair<TokenId, std::string>> found;
    for (const Entry& entry : entries_) {
        if (entry.id < tokens.size() && !tokens[entry.id].empty()) continue;
        if (!is_of_byte_alphabet(text_of(entry))) found.emplace_back(entry.id, text_of(entry));
    }
    return found;
}

}  // namespace pylm
