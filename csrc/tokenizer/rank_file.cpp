#include "tokenizer/rank_file.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <charconv>
#include <stdexcept>
#include <unordered_map>

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

// Append the decoded bytes; false when `text` is no padded base64.
bool decode_base64(std::string_view text, std::string& out) {
    if (text.empty() || text.size() % 4 != 0) return false;
    const std::size_t padding = text.ends_with("==") ? 2 : text.ends_with("=") ? 1 : 0;
    const std::size_t size = text.size() - padding;
    std::uint32_t bits = 0;
    std::uint32_t invalid = 0;
    for (std::size_t i = 0; i < size; ++i) {
        const std::uint32_t value = kValues[static_cast<std::uint8_t>(text[i])];
        invalid |= value;
        bits = (bits << 6) | (value & 0x3F);
        if (i % 4 != 0) out.push_back(static_cast<char>(bits >> (6 - 2 * (i % 4))));
    }
    const std::uint32_t rest = padding == 2 ? bits & 0xF : padding == 1 ? bits & 0x3 : 0;
    return invalid < 0x40 && rest == 0;
}

[[noreturn]] void fail(std::size_t line, const std::string& what) {
    throw std::invalid_argument("line " + std::to_string(line) + ": " + what);
}

struct Entry {
    std::string token;
    TokenId rank;
};

Entry read_line(std::string_view text, std::size_t line) {
    const std::size_t space = text.find(' ');
    const auto damaged = [&] { fail(line, "expected base64, a space and a rank, got " + quoted(text)); };
    Entry entry{};
    if (space == std::string_view::npos || !decode_base64(text.substr(0, space), entry.token)) damaged();
    const char* const end = text.data() + text.size();
    const auto [stop, error] = std::from_chars(text.data() + space + 1, end, entry.rank);
    if (error != std::errc{} || stop != end) damaged();
    return entry;
}

std::vector<Entry> read_lines(std::string_view content) {
    std::vector<Entry> entries;
    entries.reserve(content.size() / 16);
    for (std::size_t line = 1; !content.empty(); ++line) {
        const std::size_t size = std::min(content.find('\n'), content.size());
        std::string_view text = content.substr(0, size);
        content.remove_prefix(std::min(size + 1, content.size()));
        if (text.ends_with('\r')) text.remove_suffix(1);
        if (text.empty()) continue;
        entries.push_back(read_line(text, line));
        // Any later line would only raise the bound, which guards memory against a damaged digit.
        if (entries.back().rank > largest_id(content.size() / 4 + entries.size())) {
            fail(line, "rank " + std::to_string(entries.back().rank) + " is too large for this many tokens");
        }
    }
    return entries;
}

// Tokens by their bytes. Those of up to seven bytes, which are most parts of tokens, are keys of 64 bits:
// one cache line a look-up. The others are found by their hash and compared.
class Parts {
  public:
    static constexpr std::size_t kShort = 7;

    explicit Parts(const std::vector<std::string>& tokens)
        : tokens_(tokens), slots_(std::bit_ceil(std::max<std::size_t>(16, tokens.size() * 2))),
          mask_(slots_.size() - 1), index_(tokens.size()) {
        for (std::size_t id = 0; id < tokens.size(); ++id) {
            if (tokens[id].empty()) continue;
            const TokenId other = add(tokens[id], static_cast<TokenId>(id));
            if (other == TokenIndex::kNone) continue;
            throw std::invalid_argument("token " + quoted(tokens[id]) + " has the ids " +
                                        std::to_string(other) + " and " + std::to_string(id));
        }
    }

    TokenId find_short(std::uint64_t key) const noexcept {
        for (std::size_t slot = mix64(key) & mask_;; slot = (slot + 1) & mask_) {
            if (slots_[slot].key == key) return slots_[slot].id;
            if (slots_[slot].key == 0) return TokenIndex::kNone;
        }
    }
    TokenId find_long(std::string_view bytes, std::uint64_t hash) const noexcept {
        return index_.find(hash, [&](TokenId known) { return tokens_[known] == bytes; });
    }

    // The bytes from the lowest on, their number at the top; never 0 for a token. At most seven bytes.
    static std::uint64_t key_of(std::string_view bytes) noexcept {
        std::uint64_t key = static_cast<std::uint64_t>(bytes.size()) << 56;
        for (std::size_t i = 0; i < bytes.size(); ++i) {
            key |= static_cast<std::uint64_t>(static_cast<std::uint8_t>(bytes[i])) << (8 * i);
        }
        return key;
    }

  private:
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
        std::size_t slot = mix64(key) & mask_;
        for (; slots_[slot].key != 0; slot = (slot + 1) & mask_) {
            if (slots_[slot].key == key) return slots_[slot].id;
        }
        slots_[slot] = {key, id};
        return TokenIndex::kNone;
    }

    const std::vector<std::string>& tokens_;
    std::vector<Slot> slots_;
    std::size_t mask_;
    TokenIndex index_;
};

// Append all pairs that make up the token `id`, in order of the cut.
void append_pairs(const std::vector<std::string>& tokens, std::size_t id, const Parts& parts,
                  RollingHash& rolling, std::vector<std::uint64_t>& prefixes, std::vector<MergeRule>& rules) {
    constexpr std::uint64_t all = ~std::uint64_t{0};
    const std::string_view token = tokens[id];
    const std::size_t size = token.size();
    const auto merged = static_cast<TokenId>(id);
    const auto keep = [&](TokenId left, TokenId right) { rules.push_back({left, right, merged, merged}); };
    if (size <= Parts::kShort + 1) {  // both sides are short: shifts of the token's own bytes
        std::uint64_t bytes = 0;
        for (std::size_t i = 0; i < size; ++i) {
            bytes |= static_cast<std::uint64_t>(static_cast<std::uint8_t>(token[i])) << (8 * i);
        }
        for (std::size_t cut = 1; cut < size; ++cut) {
            const std::uint64_t head = (bytes & ~(all << (8 * cut))) | (std::uint64_t{cut} << 56);
            const TokenId left = parts.find_short(head);
            if (left == TokenIndex::kNone) continue;
            const TokenId right = parts.find_short((bytes >> (8 * cut)) | (std::uint64_t{size - cut} << 56));
            if (right != TokenIndex::kNone) keep(left, right);
        }
        return;
    }
    prefixes.assign(1, 0);
    for (const char byte : token) prefixes.push_back(RollingHash::extend(prefixes.back(), byte));
    for (std::size_t cut = 1; cut < size; ++cut) {
        const std::string_view head = token.substr(0, cut);
        const TokenId left = cut <= Parts::kShort ? parts.find_short(Parts::key_of(head))
                                                  : parts.find_long(head, prefixes[cut]);
        if (left == TokenIndex::kNone) continue;
        const std::string_view tail = token.substr(cut);
        const TokenId right =
            tail.size() <= Parts::kShort
                ? parts.find_short(Parts::key_of(tail))
                : parts.find_long(tail, prefixes.back() - prefixes[cut] * rolling.power(tail.size()));
        if (right != TokenIndex::kNone) keep(left, right);
    }
}

std::uint64_t pair_key(TokenId left, TokenId right) noexcept {
    return (static_cast<std::uint64_t>(left) << 32) | right;
}

}  // namespace

Vocabulary read_rank_file(std::string_view content) {
    std::vector<Entry> entries = read_lines(content);
    if (entries.empty()) throw std::invalid_argument("the rank file is empty");
    TokenId largest = 0;
    for (const Entry& entry : entries) largest = std::max(largest, entry.rank);
    Vocabulary vocabulary;
    vocabulary.tokens.resize(static_cast<std::size_t>(largest) + 1);
    for (Entry& entry : entries) {
        std::string& token = vocabulary.tokens[entry.rank];
        if (!token.empty()) {
            throw std::invalid_argument("rank " + std::to_string(entry.rank) + " is given twice, to " +
                                        quoted(token) + " and " + quoted(entry.token));
        }
        token = std::move(entry.token);
    }
    vocabulary.merges = pairs_of(vocabulary.tokens);
    return vocabulary;
}

std::vector<MergeRule> pairs_of(const std::vector<std::string>& tokens) {
    const Parts parts(tokens);
    RollingHash rolling;
    std::vector<std::uint64_t> prefixes;
    std::vector<MergeRule> rules;
    rules.reserve(tokens.size() * 5 / 2);
    for (std::size_t id = 0; id < tokens.size(); ++id) {
        append_pairs(tokens, id, parts, rolling, prefixes, rules);
    }
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
