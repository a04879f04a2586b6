// The tokenizer on hostile and on huge texts: ids decode to the text, every path gives the same ids, and so
// does every number of threads.
#include <algorithm>
#include <cstddef>
#include <limits>
#include <map>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "check.hpp"
#include "parallel.hpp"
#include "text/mapped_file.hpp"
#include "tokenizer/bpe_encode.hpp"
#include "tokenizer/bpe_train.hpp"
#include "tokenizer/pretokenize.hpp"

namespace pylm::tests {
namespace {

const std::vector<Pattern> kPatterns = {
    Pattern::kGpt2,   Pattern::kCl100k, Pattern::kLlama3, Pattern::kQwen2,     Pattern::kStarCoder,
    Pattern::kQwen35, Pattern::kO200k,  Pattern::kTekken, Pattern::kDeepSeek3, Pattern::kWhole};

using Words = std::vector<std::pair<std::string, std::uint64_t>>;

Words count_words(Pattern pattern, const std::vector<std::string>& texts, unsigned threads) {
    WordCounter counter(pattern);
    counter.add(views_of(texts), threads);
    counter.add({}, threads);
    return counter.sorted();
}

struct Vocabulary {
    std::vector<std::string> tokens;
    std::vector<MergeRule> merges;
};

// Merges of words that need no counting.
std::vector<TrainedMerge> train_words(const Words& words, const TrainOptions& options) {
    WordCounter counter(kPatterns[0]);
    for (const auto& [word, count] : words) counter.add_word(word, count);
    return train_bpe(counter, options);
}

Vocabulary train(const Words& words, std::size_t num_merges) {
    TrainOptions options;
    options.num_tokens = num_merges;
    Vocabulary vocabulary;
    for (std::uint32_t byte = 0; byte < 256; ++byte) {
        options.byte_ids.push_back(byte);
        vocabulary.tokens.push_back(std::string(1, static_cast<char>(byte)));
    }
    for (const auto& [left, right, merged] : train_words(words, options)) {
        check(merged == vocabulary.tokens.size(), "each merge makes the next id");
        vocabulary.merges.push_back({left, right, merged, merged});
        vocabulary.tokens.push_back(vocabulary.tokens[left] + vocabulary.tokens[right]);
    }
    return vocabulary;
}

using Ranks = std::map<std::pair<TokenId, TokenId>, TokenId>;  // result by pair; results are in order of rank

// The rule itself: the pair with the lowest rank, the leftmost of equal ones, until none is left.
std::vector<TokenId> merge_slowly(std::vector<TokenId> ids, const Ranks& ranks) {
    for (;;) {
        TokenId best = std::numeric_limits<TokenId>::max();
        std::size_t place = 0;
        for (std::size_t i = 0; i + 1 < ids.size(); ++i) {
            const auto found = ranks.find({ids[i], ids[i + 1]});
            if (found == ranks.end() || found->second >= best) continue;
            best = found->second;
            place = i;
        }
        if (best == std::numeric_limits<TokenId>::max()) return ids;
        ids[place] = best;
        ids.erase(ids.begin() + static_cast<std::ptrdiff_t>(place) + 1);
    }
}

std::vector<TokenId> byte_ids(std::string_view piece) {
    std::vector<TokenId> ids;
    for (const char byte : piece) ids.push_back(static_cast<std::uint8_t>(byte));
    return ids;
}

template <typename Start>
void check_merges(const BpeEncoder& encoder, const std::vector<MergeRule>& merges,
                  const std::vector<std::string>& texts, Start&& start) {
    Ranks ranks;
    for (const MergeRule& rule : merges) ranks.emplace(std::pair(rule.left, rule.right), rule.merged);
    for (const std::string& text : texts) {
        std::vector<TokenId> expected;
        Pretokenizer pieces(kPatterns[1], text);
        for (std::string_view piece = pieces.next(); !piece.empty(); piece = pieces.next()) {
            for (const TokenId id : merge_slowly(start(piece), ranks)) expected.push_back(id);
        }
        check(std::ranges::equal(encoder.encode(text), expected), "merges in the order of their ranks");
        check(std::ranges::equal(encoder.encode(text), expected), "known pieces give the same ids");
    }
}

// Some bytes have no token: they are left out, or unknown one by one or in runs.
void check_missing_bytes(Vocabulary vocabulary, const std::vector<std::string>& texts) {
    const auto is_missing = [](char c) { return c == 'e' || c == 'n' || static_cast<unsigned char>(c) >= 0xC0; };
    for (std::string& token : vocabulary.tokens) {
        if (std::ranges::any_of(token, is_missing)) token.clear();
    }
    std::erase_if(vocabulary.merges, [&](const MergeRule& rule) { return vocabulary.tokens[rule.merged].empty(); });
    const auto unknown = static_cast<TokenId>(vocabulary.tokens.size());
    vocabulary.tokens.emplace_back();
    for (const MissingBytes missing : {MissingBytes{}, MissingBytes{unknown, false}, MissingBytes{unknown, true}}) {
        const BpeEncoder encoder(vocabulary.tokens, vocabulary.merges, kPatterns[1], false, missing);
        check_merges(encoder, vocabulary.merges, texts, [&](std::string_view piece) {
            std::vector<TokenId> ids;
            for (std::size_t i = 0; i < piece.size(); ++i) {
                const bool is_fused = missing.fuse && i > 0 && is_missing(piece[i - 1]);
                if (!is_missing(piece[i])) {
                    ids.push_back(static_cast<std::uint8_t>(piece[i]));
                } else if (missing.unknown != kNoToken && !is_fused) {
                    ids.push_back(unknown);
                }
            }
            return ids;
        });
        const TokenBatch batch = encoder.encode_batch(views_of(texts), 2);
        for (std::size_t i = 0; i < texts.size(); ++i) {
            const auto begin = static_cast<std::size_t>(batch.offsets[i]);
            const auto size = static_cast<std::size_t>(batch.offsets[i + 1]) - begin;
            check(std::ranges::equal(batch.ids.ids().subspan(begin, size), encoder.encode(texts[i])),
                  "batches give the ids of single texts");
        }
    }
    check(throws<std::invalid_argument>(
              [&] { BpeEncoder(vocabulary.tokens, vocabulary.merges, kPatterns[1], false); }),
          "bytes without a token are refused unless it is said what becomes of them");
}

// Of equal merges the last one counts.
void check_equal_merges(std::vector<std::string> tokens) {
    tokens.resize(256);
    tokens.insert(tokens.end(), {"ab", "bc"});
    const std::vector<MergeRule> merges = {{'a', 'b', 256, 0}, {'b', 'c', 257, 1}, {'a', 'b', 256, 2}};
    const BpeEncoder encoder(std::move(tokens), merges, kPatterns[1], false);
    check(std::ranges::equal(encoder.encode("abc"), std::vector<TokenId>{'a', 257}) &&
              std::ranges::equal(encoder.encode("ab"), std::vector<TokenId>{256}),
          "the last of equal merges counts");
}

std::string decode(const BpeEncoder& encoder, std::span<const TokenId> ids) {
    std::string text;
    for (const TokenId id : ids) text += encoder.token(id);
    return text;
}

void check_pretokenizer(Pattern pattern, std::string_view text) {
    Pretokenizer pieces(pattern, text);
    std::size_t size = 0;
    for (std::string_view piece = pieces.next(); !piece.empty(); piece = pieces.next()) {
        check(piece.data() == text.data() + size, "pieces follow each other");
        size += piece.size();
    }
    check(size == text.size(), "pieces make up the text");
}

// Many threads share the encoder; every text is the text of its ids.
std::vector<TokenBuffer> encode_each(const BpeEncoder& encoder,
                                              const std::vector<std::string>& texts) {
    std::vector<TokenBuffer> ids(texts.size());
    parallel_for(texts.size(), 4, [&](std::size_t i) {
        ids[i] = encoder.encode(texts[i]);
        check(decode(encoder, ids[i].ids()) == texts[i], "ids decode to the text");
    });
    return ids;
}

void check_batch(const BpeEncoder& encoder, const std::vector<std::string>& texts) {
    const TokenBatch one = encoder.encode_batch(views_of(texts), 1);
    const TokenBatch four = encoder.encode_batch(views_of(texts), 4);
    check(one.ids == four.ids && one.offsets == four.offsets, "ids do not depend on the threads");
    const auto ids = encode_each(encoder, texts);
    for (std::size_t i = 0; i < texts.size(); ++i) {
        const auto begin = static_cast<std::size_t>(one.offsets[i]);
        const auto row =
            one.ids.ids().subspan(begin, static_cast<std::size_t>(one.offsets[i + 1]) - begin);
        check(std::ranges::equal(row, ids[i]), "batches give the ids of single texts");
    }
}

// Files: the texts between separators, however they fall into chunks.
void check_separated(const BpeEncoder& encoder, const std::vector<std::string>& texts) {
    for (const std::string& separator : {std::string(1, '\0'), std::string("<sep>"), std::string("aa")}) {
        std::string joined;
        for (std::size_t round = 0; round < 40; ++round) {
            for (const std::string& text : texts) joined += text.substr(0, 1 << 16) + separator;
        }
        const TokenBatch expected = encoder.encode_batch(split(joined, separator), 1);
        for (const unsigned threads : {1U, 4U}) {
            const TokenBatch batch = encoder.encode_separated(joined, separator, threads);
            check(batch.ids == expected.ids && batch.offsets == expected.offsets, "a file gives its texts' ids");
        }
    }
    const TokenBatch whole = encoder.encode_separated(texts[0], "", 2);
    check(whole.offsets.size() == 2 && whole.ids == encoder.encode(texts[0]), "without separators one text");
    check(encoder.encode_separated("", "x", 2).offsets.size() == 2, "an empty file is an empty text");
}

void check_errors(const Vocabulary& vocabulary) {
    const auto build = [&](std::vector<std::string> tokens, std::vector<MergeRule> merges) {
        return throws<std::invalid_argument>(
            [&] { BpeEncoder(std::move(tokens), merges, kPatterns[0], false); });
    };
    check(build({}, {}), "a vocabulary without bytes is refused");
    check(build(vocabulary.tokens, {{0, 1, 999'999, 0}}), "a merge out of range is refused");
    check(build(vocabulary.tokens, {{0, 1, 2, 0}}), "a merge that does not concatenate is refused");
    const BpeEncoder encoder(vocabulary.tokens, vocabulary.merges, kPatterns[0], false);
    check(throws<std::out_of_range>([&] { (void)encoder.token(999'999); }), "an unknown id is refused");
    const TokenBatch none = encoder.encode_batch({}, 4);
    check(none.ids.empty() && none.offsets.size() == 1, "no texts give no ids");
    TrainOptions options;
    options.byte_ids.assign(256, 0);
    options.num_tokens = std::numeric_limits<std::size_t>::max();
    check(throws<std::invalid_argument>([&] { (void)train_words({}, options); }),
          "ids past 32 bits are refused");
    options.num_tokens = 10;
    options.progress = [](std::size_t) { throw std::runtime_error("stop"); };
    const Words words = {{"abab", 3}};
    check(throws<std::runtime_error>([&] { (void)train_words(words, options); }), "training can be stopped");
}

// Different words of 1 to 20 letters, more than the cache keeps ids for, some of them twice.
std::string many_words() {
    Random random(11);
    std::string text;
    std::size_t before = 0;
    for (std::size_t i = 0; i < 600'000; ++i) {
        const std::size_t begin = text.size();
        text.append(1 + random.below(3), ' ');
        for (std::size_t size = 1 + random.below(20); size > 0; --size)
            text += static_cast<char>('a' + random.below(26));
        if (i % 4 == 0) text += std::string(text, begin);
        if (i % 4 == 1) text += std::string(text, before, begin - before);
        before = begin;
    }
    return text;
}

// A vocabulary of bytes alone.
void check_no_merges(const std::vector<std::string>& tokens, const std::vector<std::string>& texts) {
    const BpeEncoder encoder(std::vector<std::string>(tokens.begin(), tokens.begin() + 256), {}, kPatterns[0], false);
    const auto check_bytes = [&](std::string_view text) {
        const auto is_byte = [](TokenId id, char byte) { return id == static_cast<std::uint8_t>(byte); };
        check(std::ranges::equal(encoder.encode(text), text, is_byte), "without merges the ids are the bytes");
    };
    for (const std::string& text : texts) check_bytes(text);
    check_bytes(many_words());
}

// What is left where memory ends in the middle of handing buffers over.
void check_buffer() {
    TokenBuffer buffer;
    buffer.push_back(7);
    TokenBuffer taken = std::move(buffer);
    check(taken.size() == 1 && taken.data()[0] == 7, "moving takes the ids");
    check(buffer.empty() && buffer.capacity() == 0 && buffer.data() == nullptr, "and leaves none");  // NOLINT
    buffer.push_back(8);
    taken = std::move(buffer);
    check(buffer.empty() && taken.ids()[0] == 8, "into a buffer that has some, too");  // NOLINT
}

}  // namespace

void test_tokenizer() {
    check_buffer();
    const std::vector<std::string> hostile = hostile_texts();
    std::vector<std::string> corpus = hostile;
    Random random(3);
    for (std::size_t i = 0; i < 20; ++i) corpus.push_back(random_words(random, 10'000));  // several chunks
    for (const Pattern pattern : kPatterns) {
        for (const std::string& text : hostile) check_pretokenizer(pattern, text);
        for (const std::string& text : huge_texts(1 << 20)) check_pretokenizer(pattern, text);
    }
    const Words words = count_words(kPatterns[1], corpus, 1);
    check(words == count_words(kPatterns[1], corpus, 4), "counts do not depend on the threads");
    const Vocabulary vocabulary = train(words, 600);
    check(vocabulary.merges.size() == 600, "as many merges as asked for");
    const BpeEncoder encoder(vocabulary.tokens, vocabulary.merges, kPatterns[1], false);
    const BpeEncoder whole(vocabulary.tokens, vocabulary.merges, kPatterns[0], true);
    check_batch(encoder, corpus);
    check_batch(whole, hostile);
    check_separated(encoder, hostile);
    check_merges(encoder, vocabulary.merges, hostile, byte_ids);
    check_missing_bytes(vocabulary, hostile);
    check_no_merges(vocabulary.tokens, hostile);
    check_equal_merges(vocabulary.tokens);
    // Merges of the long pieces themselves, so that all of them take the heap many times over.
    const std::vector<std::string> huge = huge_texts(1 << 20);
    const Vocabulary repeats = train(count_words(kPatterns[1], huge_texts(1 << 17), 4), 30);
    encode_each(BpeEncoder(repeats.tokens, repeats.merges, kPatterns[1], false), huge);
    check_errors(vocabulary);
}

}  // namespace pylm::tests
