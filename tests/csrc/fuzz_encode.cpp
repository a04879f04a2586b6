// Byte-pair encoding with any vocabulary, and decoding: every way of encoding, with the cache of pieces cold and
// warm, gives the ids of the rule itself, for any number of threads; decoding gives the text.
#include <array>
#include <limits>
#include <map>
#include <optional>
#include <utility>
#include <vector>

#include "fuzz_input.hpp"
#include "pieces.hpp"
#include "tokenizer/bpe_encode.hpp"
#include "tokenizer/decode.hpp"
#include "tokenizer/rank_file.hpp"

namespace pylm::tests {
namespace {

using Ids = std::vector<TokenId>;
using Texts = std::vector<std::string>;

struct Model {
    Texts tokens;
    std::vector<MergeRule> merges;
    std::array<TokenId, 256> bytes;  // kNoToken where one has no token
    std::optional<MissingBytes> missing;
    Pattern pattern = Pattern::kWhole;
    bool ignore_merges = false;
};

struct Pair {
    std::size_t left, right, merged;
};

void merge_row(std::vector<std::size_t>& row, const Pair& pair) {
    std::size_t size = 0;
    for (std::size_t i = 0; i < row.size(); ++size) {
        const bool is_pair = i + 1 < row.size() && row[i] == pair.left && row[i + 1] == pair.right;
        row[size] = is_pair ? pair.merged : row[i];
        i += is_pair ? 2 : 1;
    }
    row.resize(size);
}

// Takes their tokens from some of the bytes that no merge is of.
void drop_bytes(FuzzInput& input, std::span<const Pair> pairs, Model& model) {
    if (input.below(4) != 1) return;
    std::array<bool, 256> is_kept{};
    is_kept['e'] = is_kept[0] = true;  // used by checks
    for (const Pair& pair : pairs) {
        if (pair.left < 256) is_kept[pair.left] = true;
        if (pair.right < 256) is_kept[pair.right] = true;
    }
    const std::size_t step = 1 + input.below(4);
    for (std::size_t byte = input.below(256); byte < 256; byte += step) {
        if (is_kept[byte]) continue;
        model.tokens[model.bytes[byte]].clear();
        model.bytes[byte] = kNoToken;
    }
    model.missing = MissingBytes{input.flip() ? model.bytes['e'] : kNoToken, input.flip()};
}

// Merges of neighbours in `text`, so that they are met, some of them twice; ranks and ids in one order or another.
Model read_model(FuzzInput& input, std::string_view text) {
    Texts symbols;
    for (std::size_t byte = 0; byte < 256; ++byte) symbols.emplace_back(1, static_cast<char>(byte));
    std::vector<std::size_t> row;
    for (const char byte : text) row.push_back(static_cast<std::uint8_t>(byte));
    std::vector<Pair> pairs;
    for (std::size_t left = input.below(64); left > 0 && row.size() > 1; --left) {
        const std::size_t place = input.below(std::min<std::size_t>(row.size() - 1, 65536));
        const std::string joined = symbols[row[place]] + symbols[row[place + 1]];
        const auto known = std::find(symbols.begin(), symbols.end(), joined);
        pairs.push_back({row[place], row[place + 1], static_cast<std::size_t>(known - symbols.begin())});
        if (known == symbols.end()) symbols.push_back(joined);
        merge_row(row, pairs.back());
    }
    for (std::size_t left = pairs.empty() ? 0 : input.below(4); left > 0; --left)
        pairs.push_back(pairs[input.below(pairs.size())]);
    Model model;
    const std::size_t order = input.below(4);
    const auto id = [&](std::size_t symbol) {
        const std::size_t num_new = symbols.size() - 256;
        const std::size_t shuffled[] = {symbol, symbols.size() - 1 - symbol, 2 * symbol,
                                        symbol < 256 ? num_new + symbol : symbol - 256};
        return static_cast<TokenId>(shuffled[order]);
    };
    model.tokens.resize(order == 2 ? 2 * symbols.size() : symbols.size());
    for (std::size_t i = 0; i < symbols.size(); ++i) model.tokens[id(i)] = symbols[i];
    for (std::size_t byte = 0; byte < 256; ++byte) model.bytes[byte] = id(byte);
    drop_bytes(input, pairs, model);
    const std::size_t ranks = input.below(4);
    if (ranks == 3) {
        model.merges = pairs_of(model.tokens);
    } else {
        for (std::size_t i = 0; i < pairs.size(); ++i) {
            const std::size_t rank = ranks == 0 ? i : ranks == 1 ? pairs.size() - 1 - i : i * 7919 % 1021;
            model.merges.push_back({id(pairs[i].left), id(pairs[i].right), id(pairs[i].merged),
                                    static_cast<std::uint32_t>(rank)});
        }
    }
    const std::size_t pattern = input.below(all_patterns().size() + 1);
    model.pattern = pattern < all_patterns().size() ? all_patterns()[pattern] : Pattern::kWhole;
    model.ignore_merges = input.flip();
    return model;
}

// The rule itself: of a piece's pairs the one of lowest rank, of equal ones the leftmost, until none is left.
class Slow {
public:
    explicit Slow(const Model& model) : model_(model) {
        for (const MergeRule& rule : model.merges) {
            Rule& known = rules_.try_emplace(std::pair(rule.left, rule.right), rule.rank, rule.merged).first->second;
            known = std::max(known, Rule(rule.rank, rule.merged));  // of equal pairs the last one counts
        }
        for (std::size_t id = 0; id < model.tokens.size(); ++id) {
            if (!model.tokens[id].empty()) ids_.emplace(model.tokens[id], static_cast<TokenId>(id));
        }
    }

    Ids encode(std::string_view text) const {
        Ids ids;
        for (std::size_t start = 0; start < text.size();) {
            const std::size_t end = end_of_piece(model_.pattern, text, start);
            const std::string piece(text.substr(start, end - start));
            const auto whole = ids_.find(piece);
            const Ids merged = model_.ignore_merges && whole != ids_.end() ? Ids{whole->second} : merge(piece);
            ids.insert(ids.end(), merged.begin(), merged.end());
            start = end;
        }
        return ids;
    }

private:
    using Rule = std::pair<std::uint32_t, TokenId>;  // rank, result
    static constexpr Rule kNoRule{std::numeric_limits<std::uint32_t>::max(), 0};

    Ids merge(std::string_view piece) const {
        Ids ids;
        for (std::size_t i = 0; i < piece.size(); ++i) {
            const TokenId id = model_.bytes[static_cast<std::uint8_t>(piece[i])];
            if (id != kNoToken) {
                ids.push_back(id);
            } else if (model_.missing->unknown != kNoToken) {
                const bool goes_on = i > 0 && model_.bytes[static_cast<std::uint8_t>(piece[i - 1])] == kNoToken;
                if (!goes_on || !model_.missing->fuse) ids.push_back(model_.missing->unknown);
            }
        }
        if (ids.empty()) return ids;
        std::vector<Rule> rules(ids.size(), kNoRule);  // of each id and the next
        const auto look_up = [&](std::size_t i) {
            const auto found = i + 1 < ids.size() ? rules_.find({ids[i], ids[i + 1]}) : rules_.end();
            rules[i] = found == rules_.end() ? kNoRule : found->second;
        };
        for (std::size_t i = 0; i < ids.size(); ++i) look_up(i);
        for (;;) {
            std::size_t place = 0;
            for (std::size_t i = 1; i < ids.size(); ++i) {
                if (rules[i].first < rules[place].first) place = i;
            }
            if (rules[place] == kNoRule) return ids;
            ids[place] = rules[place].second;
            ids.erase(ids.begin() + static_cast<std::ptrdiff_t>(place) + 1);
            rules.erase(rules.begin() + static_cast<std::ptrdiff_t>(place) + 1);
            look_up(place);
            if (place > 0) look_up(place - 1);
        }
    }

    const Model& model_;
    std::map<std::pair<TokenId, TokenId>, Rule> rules_;
    std::map<std::string, TokenId> ids_;
};

void check_batch(const TokenBatch& batch, const std::vector<Ids>& expected, const char* what) {
    check(batch.offsets.size() == expected.size() + 1 && batch.offsets[0] == 0, what);
    std::size_t begin = 0;
    for (std::size_t i = 0; i < expected.size(); ++i) {
        const auto end = static_cast<std::size_t>(batch.offsets[i + 1]);
        check(end >= begin && end <= batch.ids.size(), what);
        check(std::ranges::equal(batch.ids.ids().subspan(begin, end - begin), expected[i]), what);
        begin = end;
    }
    check(begin == batch.ids.size(), what);
}

Texts split_slowly(std::string_view text, std::string_view separator) {
    Texts parts(1);
    for (std::size_t i = 0; i < text.size();) {
        if (!separator.empty() && text.substr(i).starts_with(separator)) {
            parts.emplace_back();
            i += separator.size();
        } else {
            parts.back() += text[i++];
        }
    }
    return parts;
}

void check_decoder(const TokenDecoder& decoder, const Model& model, std::span<const TokenId> ids,
                   const std::vector<TokenId>& special) {
    std::string all, ordinary;
    std::vector<std::uint32_t> sizes;
    for (const TokenId id : ids) {
        all += model.tokens[id];
        sizes.push_back(static_cast<std::uint32_t>(model.tokens[id].size()));
        if (std::find(special.begin(), special.end(), id) == special.end()) ordinary += model.tokens[id];
    }
    std::string text = "before";
    decoder.decode(ids, false, text);
    check(text == "before" + all, "decoding joins the bytes of tokens");
    text.clear();
    decoder.decode(ids, true, text);
    check(text == ordinary, "special tokens are left out");
    check(decoder.lengths(ids) == sizes, "lengths are those of tokens");
}

// Many different pieces, or enough text that it is cut for threads.
std::string make_large(std::string_view text, std::size_t size, std::size_t seed) {
    Random random(seed);
    std::string large;
    while (large.size() < size) {
        large += text.substr(0, random.below(text.size() + 1));
        large += std::to_string(random.below(100'000)) + "abc de\n"[random.below(7)];
    }
    return large;
}

void check_large(const BpeEncoder& encoder, const Slow& slow, std::string_view text, std::size_t size) {
    const std::string words = make_large(text.substr(0, 40), 1 << 15, size);
    if (size % 2 == 0) {
        check(std::ranges::equal(encoder.encode(words), slow.encode(words)), "many pieces are merged by the rule");
        return;
    }
    const std::string large = make_large(text, 600'000, size);
    const std::vector<std::string_view> texts{large, words, "", large};
    std::vector<Ids> expected;
    for (const std::string_view one : texts) {
        const TokenBuffer ids = encoder.encode(one);
        expected.emplace_back(ids.begin(), ids.end());
    }
    for (const unsigned threads : {1U, 3U})
        check_batch(encoder.encode_batch(texts, threads), expected, "shares of a text give the ids of the whole");
    check_batch(encoder.encode_separated(large, "", 3), {expected[0]}, "one text without a separator");
}

// How a text is encoded besides all at once.
struct Choices {
    unsigned threads;
    std::size_t border;
    std::size_t large;
    std::string separator;
};

void check_encoder(const Model& model, const Texts& texts, const Choices& choices) {
    const BpeEncoder encoder(model.tokens, model.merges, model.pattern, model.ignore_merges, model.missing);
    const Slow slow(model);
    const std::vector<TokenId> special{model.bytes['e'], model.bytes[0]};
    const TokenDecoder decoder(model.tokens, {}, special);
    std::vector<Ids> expected;
    for (const std::string& text : texts) {
        const ExactText exact(text);
        expected.push_back(slow.encode(text));
        for (int round = 0; round < 2; ++round)
            check(std::ranges::equal(encoder.encode(exact.view()), expected.back()), "pieces are merged by the rule");
        check_decoder(decoder, model, expected.back(), special);
        std::string decoded;
        decoder.decode(expected.back(), false, decoded);
        check(model.missing || decoded == text, "ids decode to the text");
    }
    const std::string_view whole = texts[0];
    const std::size_t border = next_safe_border(model.pattern, whole, std::min(choices.border, whole.size()));
    const std::vector<std::string_view> halves{whole.substr(0, border), whole.substr(border)};
    check(std::ranges::equal(encoder.encode_batch(halves, choices.threads).ids, expected[0]),
          "halves give the ids of the whole");
    std::string joined;
    for (const std::string& text : texts) joined += text + choices.separator;
    std::vector<Ids> parts;
    for (const std::string& text : split_slowly(joined, choices.separator)) parts.push_back(slow.encode(text));
    check_batch(encoder.encode_separated(joined, choices.separator, choices.threads), parts,
                "a file gives its texts' ids");
    if (choices.large >= 62) check_large(encoder, slow, joined, choices.large);
    check_batch(encoder.encode_batch(views_of(texts), choices.threads), expected, "a batch gives its texts' ids");
    for (Ids& ids : expected) ids.push_back(model.bytes['e']);
    check_batch(encoder.encode_batch(views_of(texts), choices.threads, model.bytes['e']), expected,
                "an end follows each text");
}

}  // namespace
}  // namespace pylm::tests

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    using namespace pylm::tests;
    FuzzInput input(data, size);
    const std::string learnt = input.text(100).substr(0, 1000);
    const Model model = read_model(input, learnt);
    const Choices choices{static_cast<unsigned>(1 + input.below(3)), input.below(1024), input.below(64), input.text(2)};
    const std::string last = input.rest().substr(0, 1000);
    check_encoder(model, {last + learnt, last, learnt, "", last}, choices);
    return 0;
}
