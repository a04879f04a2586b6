#include "tokenizer/sentencepiece.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <memory>
#include <queue>
#include <stdexcept>
#include <tuple>
#include <unordered_map>

#include "text/hash.hpp"
#include "text/mapped_file.hpp"
#include "text/unicode.hpp"

namespace pylm {

namespace {

constexpr std::size_t kChunkBytes = 1 << 18;
constexpr std::size_t kAhead = 1024;             // bytes that the text is asked for before it is read
constexpr std::size_t kLongWord = 24;            // symbols; longer rows are looked through for borders

}  // namespace

// Where ids go: a buffer that grows ahead of its end, so that a word's ids are written without a question.
class SentencePieceEncoder::Output {
  public:
    explicit Output(TokenBuffer& ids) : ids_(ids) {}

    void reserve(std::size_t more) {
        if (ids_.size() + more > ids_.capacity()) ids_.reserve(std::max(ids_.size() + more, 2 * ids_.capacity()));
    }
    TokenId* end() noexcept { return ids_.data() + ids_.size(); }
    void set_end(const TokenId* end) noexcept { ids_.resize(static_cast<std::size_t>(end - ids_.data())); }
    void add(TokenId id) { ids_.push_back(id); }
    void add(std::span<const TokenId> ids) {
        reserve(ids.size());
        set_end(std::ranges::copy(ids, end()).out);
    }
    std::size_t size() const noexcept { return ids_.size(); }
    std::span<const TokenId> since(std::size_t begin) const noexcept { return ids_.ids().subspan(begin); }

    // Make runs of `id` after `begin` one.
    void fuse(std::size_t begin, TokenId id) noexcept {
        set_end(std::unique(ids_.data() + begin, end(), [id](TokenId a, TokenId b) { return a == id && b == id; }));
    }

  private:
    TokenBuffer& ids_;
};

std::string_view SentencePieceEncoder::prepare(std::string_view text, bool with_prefix, bool& prefix,
                                               std::string& buffer) const {
    prefix = with_prefix && !text.empty() && options_.prefix != SpacePrefix::kNever;
    if (options_.prefix == SpacePrefix::kUnlessSpace && (text.starts_with(' ') || text.starts_with(kSpaceMark))) {
        prefix = false;
    }
    if (rules_of_text_.charsmap.empty() && !options_.collapse_spaces) {
        const bool is_matched = options_.split_words || !user_defined_.empty();  // before words are encoded
        const bool marked = is_matched && options_.space_is_mark && text.find(kSpaceMark) != std::string_view::npos;
        const bool is_cut = options_.split_words && text.starts_with(' ');  // from the space before it
        if (!marked && !replaces_invalid_ && (!prefix || (user_defined_.empty() && !is_cut))) return text;
        buffer.assign(prefix ? 1 : 0, ' ');
        buffer += text;
        if (marked) buffer = spaces_for_marks(buffer);
        if (replaces_invalid_) buffer = normalize(buffer, {}, {});
        prefix = false;
        return buffer;
    }
    NormalizeRules rules = rules_of_text_;
    rules.add_prefix = prefix;
    buffer = normalize(text, rules, user_defined_raw_);
    prefix = false;
    return buffer;
}

void SentencePieceEncoder::append_symbols(std::string_view text, Symbols& symbols) const {
    bool pending = false;  // an unknown character waits for the next known one, as in `tokenizers`
    for (std::size_t i = 0; i < text.size();) {
        const Decoded decoded = decode_utf8(text, i);
        i += decoded.size;
        const TokenId symbol = symbol_of(decoded.point);
        if (symbol != kNone) {
            if (pending) symbols.push_back(unknown_);
            pending = false;
            symbols.push_back(symbol);
            continue;
        }
        char bytes[4];
        std::size_t size = 0;
        if (decoded.point == 0xFFFD) {
            std::memcpy(bytes, kReplacement.data(), size = kReplacement.size());
        } else if (decoded.point == ' ' && options_.space_is_mark) {
            std::memcpy(bytes, kSpaceMark.data(), size = kSpaceMark.size());
        } else {
            std::memcpy(bytes, text.data() + i - decoded.size, size = decoded.size);
        }
        const auto id = [&](std::size_t k) { return byte_ids_[static_cast<std::uint8_t>(bytes[k])]; };
        bool known = options_.byte_fallback;
        for (std::size_t k = 0; known && k < size; ++k) known = id(k) != kNone;
        if (known) {
            for (std::size_t k = 0; k < size; ++k) symbols.push_back(id(k));
        } else if (unknown_ != kNone) {
            if (pending && !options_.fuse_unknown) symbols.push_back(unknown_);
            pending = true;
        }
    }
    if (pending) symbols.push_back(unknown_);
}

void SentencePieceEncoder::emit(std::span<const TokenId> symbols, Output& out) const {
    for (const TokenId symbol : symbols) {
        if (symbol < num_pieces_ && !(whole_in_order_ && unused_[symbol])) {
            out.add(symbol);
        } else if (has_all_bytes_) {
            for (const char byte : pieces_[symbol]) out.add(byte_ids_[static_cast<std::uint8_t>(byte)]);
        } else {
            out.add(unknown_);
        }
    }
}

bool SentencePieceEncoder::needs_order(std::span<const TokenId> symbols) const {
    if (in_order_.empty()) return false;
    for (std::size_t i = 1; i < symbols.size(); ++i) {
        if (in_order_[symbols[i]] && ordered_pairs_.contains(pair_of(symbols[i - 1], symbols[i]))) return true;
    }
    return false;
}

// The algorithm of SentencePiece to the letter: candidates by rank, then by place, and what a piece that is
// not given out was last proposed to be made of.
void SentencePieceEncoder::merge_in_order(Symbols& symbols) const {
    struct Node {
        TokenId id;
        std::size_t previous, next;
    };
    struct Candidate {
        std::uint32_t rank;
        std::size_t place;
        TokenId left, right, merged;
        bool operator>(const Candidate& other) const noexcept {
            return std::tie(rank, place) > std::tie(other.rank, other.place);
        }
    };
    constexpr auto end = std::numeric_limits<std::size_t>::max();
    std::vector<Node> nodes;
    for (std::size_t i = 0; i < symbols.size(); ++i) {
        nodes.push_back({symbols[i], i == 0 ? end : i - 1, i + 1 < symbols.size() ? i + 1 : end});
    }
    std::unordered_map<TokenId, std::pair<TokenId, TokenId>> made_of;
    std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> queue;
    const auto propose = [&](std::size_t place) {
        if (place == end || nodes[place].next == end) return;
        const TokenId left = nodes[place].id;
        const TokenId right = nodes[nodes[place].next].id;
        const MergeRule* const rule = rules_.find(left, right);
        if (rule == nullptr) return;
        queue.push({rule->rank, place, left, right, rule->merged});
        if (unused_[rule->merged]) made_of[rule->merged] = {left, right};
    };
    for (std::size_t i = 0; i < nodes.size(); ++i) propose(i);
    while (!queue.empty()) {
        const Candidate top = queue.top();
        queue.pop();
        Node& left = nodes[top.place];
        if (left.id != top.left || left.next == end || nodes[left.next].id != top.right) continue;  // outdated
        const std::size_t removed = left.next;
        left.id = top.merged;
        left.next = nodes[removed].next;
        if (left.next != end) nodes[left.next].previous = top.place;
        nodes[removed].id = kNone;
        propose(left.previous);
        propose(top.place);
    }
    std::vector<TokenId> stack;
    const std::size_t first = 0;
    symbols.clear();
    for (std::size_t i = nodes.empty() ? end : first; i != end; i = nodes[i].next) {
        stack.push_back(nodes[i].id);
        while (!stack.empty()) {
            const TokenId id = stack.back();
            stack.pop_back();
            const auto parts = made_of.find(id);
            if (parts == made_of.end() || !unused_[id]) {
                symbols.push_back(id);
            } else {
                stack.push_back(parts->second.second);
                stack.push_back(parts->second.first);
            }
        }
    }
}

void SentencePieceEncoder::encode_word_uncached(std::string_view word, Symbols& symbols, Output& out) const {
    if (options_.ignore_merges && options_.split_words && word.size() <= 3 * longest_whole_) {
        std::string text;
        for (const char byte : word) byte == ' ' ? text += kSpaceMark : text += byte;
        if (const TokenId found = whole_.find(text, hash_bytes(text), pieces_); found != kNone) return out.add(found);
    }
    symbols.clear();
    append_symbols(word, symbols);
    if (needs_order(symbols)) {
        merge_in_order(symbols);
        return emit(symbols, out);
    }
    if (symbols.size() <= kLongWord || !cuts_.any()) {
        const std::size_t size = merges_.apply(symbols);
        return emit(std::span(symbols).first(size), out);
    }
    for (std::size_t begin = 0; begin < symbols.size();) {
        std::size_t end = begin + 1;
        while (end < symbols.size() && joined_.contains(pair_of(symbols[end - 1], symbols[end]))) ++end;
        const std::span<TokenId> row = std::span(symbols).subspan(begin, end - begin);
        emit(row.first(merges_.apply(row)), out);
        begin = end;
    }
}

void SentencePieceEncoder::encode_word(std::string_view word, Scratch& scratch, Output& out) const {
    PieceCache& cache = scratch.cache;
    const std::size_t before = out.size();
    if (word.size() <= PieceKey::kMaxBytes) {
        const PieceKey key = PieceKey::of(word.data(), word.size(), word.data() + word.size());
        const std::uint64_t hash = key.hash();
        const PieceCache::Entry* entry = cache.find(key, hash);
        if (entry == nullptr) {
            encode_word_uncached(word, scratch.symbols, out);
            cache.make_room(1);
            cache.add(key, hash, out.since(before));
        } else {
            out.add(cache.ids_of(*entry));
        }
        return;
    }
    if (word.size() > PieceCache::kMaxLong) return encode_long_word(word, scratch, out);
    const std::uint64_t hash = hash_bytes(word);
    if (const auto* const known = cache.find_long(word, hash)) return out.add(cache.ids_of(*known));
    encode_word_uncached(word, scratch.symbols, out);
    if (const auto ids = out.since(before); !ids.empty()) cache.add_long(word, hash, ids);
}

// A word that is too long to be remembered, as a sentence of Chinese: its rows of characters that pieces may
// hold side by side are words of their own.
void SentencePieceEncoder::encode_long_word(std::string_view word, Scratch& scratch, Output& out) const {
    if (is_word_whole_) return encode_word_uncached(word, scratch.symbols, out);
    std::size_t begin = 0;
    TokenId before = kNone;
    for (std::size_t i = 0; i <= word.size();) {
        const Decoded decoded = i < word.size() ? decode_utf8(word, i) : Decoded{0, 1};
        const TokenId here = i < word.size() ? symbol_of(decoded.point) : kNone;
        if (i > begin && (i == word.size() || !joined_.contains(pair_of(before, here)))) {
            const std::string_view row = word.substr(begin, i - begin);
            if (row.size() <= PieceCache::kMaxLong) {
                encode_word(row, scratch, out);
            } else {
                encode_word_uncached(row, scratch.symbols, out);
            }
            begin = i;
        }
        before = here;
        i += decoded.size;
    }
}

void SentencePieceEncoder::encode_first(std::string_view word, Scratch& scratch, Output& out) const {
    if (word.size() < PieceKey::kMaxBytes) {
        std::array<char, PieceKey::kMaxBytes> spaced;
        spaced[0] = ' ';
        std::copy(word.begin(), word.end(), spaced.begin() + 1);
        return encode_word({spaced.data(), word.size() + 1}, scratch, out);
    }
    scratch.word.assign(1, ' ');
    scratch.word += word;
    encode_word(scratch.word, scratch, out);
}

void SentencePieceEncoder::encode_cut(std::string_view text, bool prefix, Scratch& scratch, Output& out) const {
    constexpr std::size_t kWindow = 64;
    constexpr std::size_t kBlock = 256;  // words that are cut, then hashed, then looked up, or a window's more
    PieceCache& cache = scratch.cache;
    const char* const text_end = text.data() + text.size();
    std::array<char, kWindow> padded;
    std::array<std::size_t, kBlock + kWindow + 1> ends;
    std::array<PieceKey, kBlock + kWindow + 1> keys;
    std::array<std::uint64_t, kBlock + kWindow + 1> hashes;
    std::size_t start = 0;  // of the words of a block
    std::uint8_t before = 0;
    for (std::size_t base = 0; base < text.size();) {
        std::size_t count = 0;
        for (; base < text.size() && count < kBlock; base += kWindow) {
            const std::size_t size = std::min(kWindow, text.size() - base);
            const char* window = text.data() + base;
            __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<std::uintptr_t>(window) + kAhead));
            if (size < kWindow) {
                padded.fill(0);
                std::memcpy(padded.data(), window, size);
                window = padded.data();
            }
            std::uint64_t borders = cuts_.borders(window, before, options_.simd);
            before = static_cast<std::uint8_t>(window[kWindow - 1]);
            if (size < kWindow) borders &= ~(~std::uint64_t{0} << size);
            if (base == 0) borders &= ~std::uint64_t{1};
            if (prefix && borders != 0) {  // the first word, with a space before it
                start = base + static_cast<std::size_t>(std::countr_zero(borders));
                encode_first(text.substr(0, start), scratch, out);
                borders &= borders - 1;
                prefix = false;
            }
            for (; borders != 0; borders &= borders - 1)
                ends[count++] = base + static_cast<std::size_t>(std::countr_zero(borders));
        }
        if (base >= text.size() && !prefix) ends[count++] = text.size();
        PieceCache::Lines lines = cache.lines();
        for (std::size_t i = 0, begin = start; i < count; begin = ends[i++]) {
            if (ends[i] - begin > PieceKey::kMaxBytes) continue;
            keys[i] = PieceKey::of(text.data() + begin, ends[i] - begin, text_end);
            hashes[i] = keys[i].hash();
            lines.prefetch(hashes[i]);
        }
        out.reserve(count * PieceCache::kMaxMany);  // ids are written with the words behind them
        TokenId* at = out.end();
        for (std::size_t i = 0; i < count; start = ends[i++]) {
            if (ends[i] - start <= PieceKey::kMaxBytes) [[likely]] {
                const PieceCache::Entry* const entry = lines.find(keys[i], hashes[i]);
                if (entry != nullptr && entry->is_plain()) [[likely]] {
                    std::memcpy(at, entry->words.data(), sizeof entry->words);
                    at += entry->num_ids();
                    continue;
                }
                if (entry != nullptr && entry->is_plain_many()) {
                    std::memcpy(at, lines.many_of(*entry), PieceCache::kMaxMany * sizeof(TokenId));
                    at += entry->num_ids();
                    continue;
                }
            }
            out.set_end(at);
            encode_word(text.substr(start, ends[i] - start), scratch, out);
            out.reserve((count - i) * PieceCache::kMaxMany);
            at = out.end();
            lines = cache.lines();
        }
        out.set_end(at);
    }
    if (prefix) encode_first(text, scratch, out);
}

void SentencePieceEncoder::encode_segment(std::string_view text, bool prefix, Scratch& scratch, Output& out) const {
    if (text.empty()) return;
    if (cuts_.any()) return encode_cut(text, prefix, scratch, out);
    if (!prefix) return encode_word_uncached(text, scratch.symbols, out);
    scratch.word.assign(1, ' ');
    scratch.word += text;
    encode_word_uncached(scratch.word, scratch.symbols, out);
}

void SentencePieceEncoder::encode_text(std::string_view original, bool with_prefix, Scratch& scratch,
                                       Output& out) const {
    const std::size_t before = out.size();
    bool prefix = false;
    const std::string_view text = prepare(original, with_prefix, prefix, scratch.normalized);
    if (options_.ignore_merges && !options_.split_words && text.size() <= 3 * longest_whole_) {
        std::string whole(prefix ? 1 : 0, ' ');
        whole += text;
        std::string marked;
        for (const char byte : whole) {
            byte == ' ' && options_.space_is_mark ? marked += kSpaceMark : marked += byte;
        }
        if (const TokenId found = whole_.find(marked, hash_bytes(marked), pieces_); found != kNone) return out.add(found);
    }
    if (user_defined_.empty()) {
        encode_segment(text, prefix, scratch, out);
    } else if (whole_in_order_) {
        // One row, in which nothing merges with a symbol of the user.
        Symbols symbols;
        std::size_t begin = 0;
        for (std::size_t i = 0; i < text.size();) {
            const PrefixMatcher::Match match = user_defined_.longest(text, i);
            if (match.size != 0) {
                append_symbols(text.substr(begin, i - begin), symbols);
                symbols.push_back(match.value);
                begin = i + match.size;
            }
            i += std::max<std::size_t>(match.size, 1);
        }
        append_symbols(text.substr(begin), symbols);
        merge_in_order(symbols);
        emit(symbols, out);
    } else {
        std::size_t begin = 0;
        for (std::size_t i = 0; i < text.size();) {
            const PrefixMatcher::Match match = user_defined_.longest(text, i);
            if (match.size == 0) {
                ++i;
                continue;
            }
            encode_segment(text.substr(begin, i - begin), false, scratch, out);
            out.add(match.value);
            i += match.size;
            begin = i;
        }
        encode_segment(text.substr(begin), false, scratch, out);
    }
    if (options_.fuse_unknown && unknown_ != kNone && !has_all_bytes_ && !options_.split_words) {
        out.fuse(before, unknown_);
    }
}

TokenBuffer SentencePieceEncoder::encode(std::string_view text, bool begins) const {
    const auto scratch = scratches_.take();
    TokenBuffer ids;
    Output output(ids);
    encode_text(text, begins || options_.prefix_everywhere, *scratch, output);
    return ids;
}

TokenBatch SentencePieceEncoder::encode_separated(std::string_view texts, std::string_view separator,
                                                  unsigned num_threads) const {
    return encode_batch(split(texts, separator), num_threads);
}

// A large text in shares that can be encoded apart: cut between bytes of ASCII where that is a border.
std::vector<std::string_view> SentencePieceEncoder::cut_large(std::string_view text) const {
    std::vector<std::string_view> shares;
    const bool can_cut = cuts_.any() && user_defined_.empty() && rules_of_text_.charsmap.empty() &&
                         !options_.collapse_spaces && !options_.ignore_merges &&
                         (has_all_bytes_ || !options_.fuse_unknown);
    std::size_t begin = 0;
    for (std::size_t i = kChunkBytes; can_cut && i < text.size(); ++i) {
        const auto before = static_cast<std::uint8_t>(text[i - 1]);
        const auto after = static_cast<std::uint8_t>(text[i]);
        if ((before | after) >= 0x80 || !cuts_.cuts(before, after)) continue;
        shares.push_back(text.substr(begin, i - begin));
        begin = i;
        i += kChunkBytes;
    }
    shares.push_back(text.substr(begin));
    return shares;
}

TokenBatch SentencePieceEncoder::encode_batch(std::span<const std::string_view> texts, unsigned num_threads,
                                              std::optional<TokenId> end,
                                              std::span<const std::uint8_t> begins) const {
    const auto may_have_prefix = [&](std::size_t i) {
        return options_.prefix_everywhere || begins.empty() || begins[i] != 0;
    };
    struct Share {
        std::string_view text;
        std::size_t index;
        bool is_first, is_last;
    };
    std::vector<Share> shares;
    std::vector<std::size_t> borders{0};  // of chunks of shares, by the sizes alone
    shares.reserve(texts.size());
    std::size_t bytes = 0, all_bytes = 0;
    for (std::size_t i = 0; i < texts.size(); ++i) {
        const auto add = [&](const Share& share) {
            shares.push_back(share);
            bytes += share.text.size();
            if (bytes < kChunkBytes) return;
            borders.push_back(shares.size());
            all_bytes += bytes;
            bytes = 0;
        };
        if (texts[i].size() < 2 * kChunkBytes) {
            add({texts[i], i, true, true});
            continue;
        }
        const std::vector<std::string_view> parts = cut_large(texts[i]);
        for (std::size_t k = 0; k < parts.size(); ++k) add({parts[k], i, k == 0, k + 1 == parts.size()});
    }
    all_bytes += bytes;
    if (borders.back() != shares.size()) borders.push_back(shares.size());
    TokenBatch batch;
    batch.offsets.assign(texts.size() + 1, 0);
    batch.ids = encode_chunks(
        scratches_, borders.size() - 1, all_bytes, num_threads,
        [&](std::size_t chunk, Scratch& scratch, TokenBuffer& buffer) {
            const std::size_t before = buffer.size();
            Output ids(buffer);
            for (std::size_t i = borders[chunk]; i < borders[chunk + 1]; ++i) {
                const Share& share = shares[i];
                encode_text(share.text, share.is_first && may_have_prefix(share.index), scratch, ids);
                if (!share.is_last) continue;
                if (end) ids.add(*end);
                batch.offsets[share.index + 1] = static_cast<std::int64_t>(ids.size() - before);
            }
        },
        [&](std::size_t chunk, std::size_t offset) {
            for (std::size_t i = borders[chunk]; i < borders[chunk + 1]; ++i) {
                if (shares[i].is_last) batch.offsets[shares[i].index + 1] += static_cast<std::int64_t>(offset);
            }
        });
    return batch;
}

}  // namespace pylm
