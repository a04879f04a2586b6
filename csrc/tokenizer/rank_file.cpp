#include "tokenizer/rank_file.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <charconv>
#include <stdexcept>
#include <unordered_map>

#include "parallel.hpp"

namespace pylm {

namespace {

constexpr std::string_view kAlphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

constexpr std::array<std::uint8_t, 256> make_values() {
    std::array<std::uint8_t, 256> values{};
    for (auto& value : values) value = 0xFF;
    for (std::size_t i = 0; i < kAlphabet.size(); ++i) {
        values[static_cast<std::uint8_t>(kAlphabet[i])] = static_cast<std::uint8_t>(i);
    }
    return values;
}

constexpr std::array<std::uint8_t, 256> kValues = make_values();

// The decoded bytes, in place of what was in `out`; false when `text` is no padded base64.
bool decode_base64(std::string_view text, std::string& out) {
    if (text.empty() || text.size() % 4 != 0) return false;
    const std::size_t padding = text.ends_with("==") ? 2 : text.ends_with("=") ? 1 : 0;
    out.resize(text.size() / 4 * 3);
    std::uint32_t invalid = 0;
    std::uint32_t bits = 0;
    for (std::size_t i = 0; i < text.size(); i += 4) {
        bits = 0;
        for (std::size_t k = 0; k < 4; ++k) {
            const std::uint32_t value = kValues[static_cast<std::uint8_t>(text[i + k])];
            const bool is_padding = i + k >= text.size() - padding;
            invalid |= is_padding ? 0 : value;
            bits = (bits << 6) | (is_padding ? 0 : value & 0x3F);
        }
        for (std::size_t k = 0; k < 3; ++k) out[i / 4 * 3 + k] = static_cast<char>(bits >> (16 - 8 * k));
    }
    out.resize(out.size() - padding);
    const std::uint32_t rest = bits & ((1U << (8 * padding)) - 1);  // bits that no byte takes
    return invalid < 0x40 && rest == 0;
}

[[noreturn]] void fail(std::size_t line, const std::string& what) {
    throw std::invalid_argument("line " + std::to_string(line) + ": " + what);
}

// Read one line into the tokens, which grow as ranks do.
void read_line(std::string_view text, std::size_t line, std::size_t left, std::vector<std::string>& tokens) {
    const std::size_t space = text.find(' ');
    const auto damaged = [&] { fail(line, "expected base64, a space and a rank, got " + quoted(text)); };
    if (space == std::string_view::npos) damaged();
    TokenId rank = 0;
    const char* const end = text.data() + text.size();
    const auto [stop, error] = std::from_chars(text.data() + space + 1, end, rank);
    if (error != std::errc{} || stop != end) damaged();
    // The lines left would only raise the bound, which guards memory against a damaged digit.
    if (rank > largest_id(left / 4 + line)) {
        fail(line, "rank " + std::to_string(rank) + " is too large for this many tokens");
    }
    if (rank >= tokens.size()) tokens.resize(std::size_t{rank} + 1);
    const std::string before = std::move(tokens[rank]);
    if (!decode_base64(text.substr(0, space), tokens[rank])) damaged();
    if (!before.empty()) {
        fail(line, "rank " + std::to_string(rank) + " is given twice, to " + quoted(before) + " and " +
                       quoted(tokens[rank]));
    }
}

// Tokens by their bytes. Those of up to seven bytes, which are most parts of tokens, are keys of 64 bits:
// one cache line a look-up. The others are found by their hash and compared.
class Parts {
  public:
    static constexpr std::size_t kShort = 7;

    explicit Parts(const std::vector<std::string>& tokens)
        : tokens_(tokens),
          slots_(std::bit_ceil(std::max<std::size_t>(16, count_short(tokens) * 2))),
          mask_(slots_.size() - 1),
          shift_(64 - static_cast<unsigned>(std::countr_zero(slots_.size()))),
          index_(tokens.size() - count_short(tokens)) {
        for (std::size_t id = 0; id < tokens.size(); ++id) {
            if (tokens[id].empty()) continue;
            const TokenId other = add(tokens[id], static_cast<TokenId>(id));
            if (other == TokenIndex::kNone) continue;
            throw std::invalid_argument("token " + quoted(tokens[id]) + " has the ids " +
                                        std::to_string(other) + " and " + std::to_string(id));
        }
    }

    void prefetch(std::uint64_t key) const noexcept { __builtin_prefetch(&slots_[slot_of(key)]); }

    TokenId find_short(std::uint64_t key) const noexcept {
        for (std::size_t slot = slot_of(key);; slot = (slot + 1) & mask_) {
            if (slots_[slot].key == key) return slots_[slot].id;
            if (slots_[slot].key == 0) return TokenIndex::kNone;
        }
    }
    TokenId find_long(std::string_view bytes, std::uint64_t hash) const noexcept {
        return index_.find(hash, [&](TokenId known) { return tokens_[known] == bytes; });
    }

    // The bytes from the lowest on, their number at the top; never 0 for a token. At most seven bytes.
    static std::uint64_t key_of(std::string_view bytes) noexcept {
        return word_of(bytes) | (static_cast<std::uint64_t>(bytes.size()) << 56);
    }
    // Keys of the first and of the last bytes of up to eight, which `word` holds; 0 < size < 8.
    static std::uint64_t key_of_first(std::uint64_t word, std::size_t size) noexcept {
        return (word & ~(~std::uint64_t{0} << (8 * size))) | (static_cast<std::uint64_t>(size) << 56);
    }
    static std::uint64_t key_of_last(std::uint64_t word, std::size_t word_size, std::size_t size) noexcept {
        return (word >> (8 * (word_size - size))) | (static_cast<std::uint64_t>(size) << 56);
    }
    // At most eight bytes, the first one lowest.
    static std::uint64_t word_of(std::string_view bytes) noexcept {
        std::uint64_t word = 0;
        for (std::size_t i = 0; i < bytes.size(); ++i) {
            word |= static_cast<std::uint64_t>(static_cast<std::uint8_t>(bytes[i])) << (8 * i);
        }
        return word;
    }

  private:
    static std::size_t count_short(const std::vector<std::string>& tokens) noexcept {
        return static_cast<std::size_t>(
            std::ranges::count_if(tokens, [](const std::string& token) { return token.size() <= kShort; }));
    }

    std::size_t slot_of(std::uint64_t key) const noexcept {
        return static_cast<std::size_t>((key * RollingHash::kBase) >> shift_);
    }

    struct Slot {
        std::uint64_t key = 0;
        TokenId id = TokenIndex::kNone;
    };

    // The id of an equal token, or kNone when this one was added.
    TokenId add(std::string_view token, TokenId id) noexcept {
        if (token.size() > kShort) {
            return index_.add(RollingHash::of(token), id,
                              [&](TokenId known) { return tokens_[known] == token; });
        }
        const std::uint64_t key = key_of(token);
        std::size_t slot = slot_of(key);
        for (; slots_[slot].key != 0; slot = (slot + 1) & mask_) {
            if (slots_[slot].key == key) return slots_[slot].id;
        }
        slots_[slot] = {key, id};
        return TokenIndex::kNone;
    }

    const std::vector<std::string>& tokens_;
    std::vector<Slot> slots_;
    std::size_t mask_;
    unsigned shift_;
    TokenIndex index_;
};

// Finds the pairs of many tokens. Look-ups miss the processor's caches, so they are announced a block of tokens
// before they are made.
class PairFinder {
  public:
    static constexpr std::size_t kBlock = 32;

    PairFinder(const std::vector<std::string>& tokens, const Parts& parts) : tokens_(tokens), parts_(parts) {}

    // Append all pairs that make up the tokens [begin, end), in order of the token and of the cut.
    void append(std::size_t begin, std::size_t end, std::vector<MergeRule>& rules) {
        for (std::size_t block = begin; block < end; block += kBlock) {
            const std::size_t last = std::min(block + kBlock, end);
            cuts_.clear();
            for (std::size_t id = block; id < last; ++id) {
                if (is_short(tokens_[id])) announce(tokens_[id]);
            }
            const Cut* cut = cuts_.data();
            for (std::size_t id = block; id < last; ++id) {
                const auto merged = static_cast<TokenId>(id);
                if (!is_short(tokens_[id])) {
                    append_long(tokens_[id], merged, rules);
                    continue;
                }
                for (std::size_t i = 1; i < tokens_[id].size(); ++i, ++cut) {
                    const TokenId left = parts_.find_short(cut->head);
                    if (left == TokenIndex::kNone) continue;
                    const TokenId right = parts_.find_short(cut->tail);
                    if (right != TokenIndex::kNone) rules.push_back({left, right, merged, merged});
                }
            }
        }
    }

  private:
    struct Cut {
        std::uint64_t head, tail;  // keys of Parts
    };

    // Both sides of every cut are short.
    static bool is_short(std::string_view token) noexcept { return token.size() <= Parts::kShort + 1; }

    // The cuts of a short token, by shifts of its bytes.
    void announce(std::string_view token) {
        const std::size_t size = token.size();
        const std::uint64_t word = Parts::word_of(token);
        for (std::size_t i = 1; i < size; ++i) {
            const Cut cut{Parts::key_of_first(word, i), Parts::key_of_last(word, size, size - i)};
            parts_.prefetch(cut.head);
            parts_.prefetch(cut.tail);
            cuts_.push_back(cut);
        }
    }

    void append_long(std::string_view token, TokenId merged, std::vector<MergeRule>& rules) {
        prefixes_.assign(1, 0);
        for (const char byte : token) prefixes_.push_back(RollingHash::extend(prefixes_.back(), byte));
        const std::uint64_t first = Parts::word_of(token.substr(0, 8));
        const std::uint64_t last = Parts::word_of(token.substr(token.size() - 8));
        for (std::size_t cut = 1; cut < token.size(); ++cut) {
            const std::size_t rest = token.size() - cut;
            const TokenId left = cut <= Parts::kShort
                                     ? parts_.find_short(Parts::key_of_first(first, cut))
                                     : parts_.find_long(token.substr(0, cut), prefixes_[cut]);
            if (left == TokenIndex::kNone) continue;
            const TokenId right =
                rest <= Parts::kShort
                    ? parts_.find_short(Parts::key_of_last(last, 8, rest))
                    : parts_.find_long(token.substr(cut),
                                       prefixes_.back() - prefixes_[cut] * rolling_.power(rest));
            if (right != TokenIndex::kNone) rules.push_back({left, right, merged, merged});
        }
    }

    const std::vector<std::string>& tokens_;
    const Parts& parts_;
    RollingHash rolling_;
    std::vector<std::uint64_t> prefixes_;
    std::vector<Cut> cuts_;
};

std::uint64_t pair_key(TokenId left, TokenId right) noexcept {
    return (static_cast<std::uint64_t>(left) << 32) | right;
}

}  // namespace

Vocabulary read_rank_file(std::string_view content) {
    Vocabulary vocabulary;
    vocabulary.tokens.reserve(content.size() / 16);
    for (std::size_t line = 1; !content.empty(); ++line) {
        const std::size_t size = std::min(content.find('\n'), content.size());
        std::string_view text = content.substr(0, size);
        content.remove_prefix(std::min(size + 1, content.size()));
        if (text.ends_with('\r')) text.remove_suffix(1);
        if (!text.empty()) read_line(text, line, content.size(), vocabulary.tokens);
    }
    if (vocabulary.tokens.empty()) throw std::invalid_argument("the rank file is empty");
    vocabulary.merges = pairs_of(vocabulary.tokens);
    return vocabulary;
}

std::vector<MergeRule> pairs_of(const std::vector<std::string>& tokens) {
    constexpr std::size_t kChunk = 8192;  // tokens
    const Parts parts(tokens);
    std::vector<std::vector<MergeRule>> chunks((tokens.size() + kChunk - 1) / kChunk);
    parallel_for(chunks.size(), 0, [&](std::size_t chunk) {
        chunks[chunk].reserve(3 * kChunk);
        PairFinder(tokens, parts).append(chunk * kChunk, std::min(tokens.size(), (chunk + 1) * kChunk),
                                         chunks[chunk]);
    });
    std::vector<MergeRule> rules;
    std::size_t total = 0;
    for (const auto& chunk : chunks) total += chunk.size();
    rules.reserve(total);
    for (const auto& chunk : chunks) rules.insert(rules.end(), chunk.begin(), chunk.end());
    return rules;
}

std::vector<MergeRule> canonical_merges(const Vocabulary& vocabulary) {
    std::unordered_map<std::uint64_t, const MergeRule*> by_pair;
    by_pair.reserve(vocabulary.merges.size() * 2);
    for (const MergeRule& rule : vocabulary.merges) by_pair.emplace(pair_key(rule.left, rule.right), &rule);
    std::array<TokenId, 256> bytes{};
    bytes.fill(TokenIndex::kNone);
    for (std::size_t id = 0; id < vocabulary.tokens.size(); ++id) {
        const std::string& token = vocabulary.tokens[id];
        if (token.size() == 1) bytes[static_cast<std::uint8_t>(token[0])] = static_cast<TokenId>(id);
    }
    std::vector<MergeRule> canonical;
    std::vector<TokenId> pieces;
    for (const MergeRule& rule : vocabulary.merges) {
        if (!canonical.empty() && canonical.back().rank == rule.rank) continue;
        pieces.clear();
        for (const char byte : vocabulary.tokens[rule.merged]) {
            pieces.push_back(bytes[static_cast<std::uint8_t>(byte)]);
        }
        while (pieces.size() > 1) {
            const MergeRule* best = nullptr;
            std::size_t place = 0;
            for (std::size_t i = 0; i + 1 < pieces.size(); ++i) {
                const auto found = by_pair.find(pair_key(pieces[i], pieces[i + 1]));
                if (found == by_pair.end() || found->second->rank >= rule.rank) continue;
                if (best != nullptr && found->second->rank >= best->rank) continue;
                best = found->second;
                place = i;
            }
            if (best == nullptr) break;
            pieces[place] = best->merged;
            pieces.erase(pieces.begin() + static_cast<std::ptrdiff_t>(place) + 1);
        }
        if (pieces.size() == 2 && rule.left == pieces[0] && rule.right == pieces[1]) canonical.push_back(rule);
    }
    return canonical;
}

std::string write_rank_file(const std::vector<std::string>& tokens) {
    std::string out;
    for (std::size_t rank = 0; rank < tokens.size(); ++rank) {
        const std::string& token = tokens[rank];
        if (token.empty()) continue;
        for (std::size_t i = 0; i < token.size(); i += 3) {
            std::uint32_t bits = 0;
            for (std::size_t k = 0; k < 3; ++k) {
                bits = (bits << 8) | (i + k < token.size() ? static_cast<std::uint8_t>(token[i + k]) : 0U);
            }
            for (std::size_t k = 0; k < 4; ++k) {
                out += i + k > token.size() ? '=' : kAlphabet[(bits >> (18 - 6 * k)) & 0x3F];
            }
        }
        out += ' ' + std::to_string(rank) + '\n';
    }
    return out;
}

}  // namespace pylm
