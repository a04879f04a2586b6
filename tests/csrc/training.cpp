// Counting and merging: against maps and a slow trainer, for any number of threads, any block, huge words.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <map>
#include <random>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "check.hpp"
#include "tokenizer/bpe_train.hpp"
#include "tokenizer/pretokenize.hpp"
#include "tokenizer/word_counter.hpp"
#include "tokenizer/word_table.hpp"

namespace pylm::tests {
namespace {

constexpr Pattern kPattern = Pattern::kCl100k;

using Words = std::vector<std::pair<std::string, std::uint64_t>>;

Words count_slowly(const std::vector<std::string>& texts) {
    std::map<std::string, std::uint64_t> counts;
    for (const std::string& text : texts) {
        Pretokenizer pieces(kPattern, text);
        for (std::string_view piece = pieces.next(); !piece.empty(); piece = pieces.next())
            ++counts[std::string(piece)];
    }
    return {counts.begin(), counts.end()};
}

void check_table() {
    Random random(11);
    std::map<std::string, std::uint64_t> expected;
    WordTable table;
    for (std::size_t i = 0; i < 200'000; ++i) {
        std::string word(1 + random.below(34), 'a');
        for (char& c : word) c = static_cast<char>("ab\0\xff"[random.below(4)]);
        if (i % 3 != 0) word.resize(std::min<std::size_t>(word.size(), 4));
        const std::uint64_t count = 1 + random.below(3);
        expected[word] += count;
        // The exact end, so that a sanitizer sees a read past it.
        const std::vector<char> exact(word.begin(), word.end());
        table.add({exact.data(), exact.size()}, exact.data() + exact.size(), count);
    }
    std::map<std::string, std::uint64_t> got;
    for (std::size_t i = 0; i < WordTable::kShards; ++i)
        table.shard(i).visit([&](std::string_view word, std::uint64_t, std::uint64_t count) {
            check(got.emplace(word, count).second, "a word stands once in a table");
        });
    check(got == expected, "a table counts as a map does");
}

void check_counting(const std::vector<std::string>& texts) {
    const Words expected = count_slowly(texts);
    for (const unsigned threads : {1U, 2U, 4U}) {
        WordCounter counter(kPattern);
        counter.add(views_of(texts), threads);
        counter.add({}, threads);
        check(counter.sorted() == expected, "counts are those of single pieces");
        check(counter.num_words() == expected.size(), "each word is held once");
    }
}

void check_files(const std::vector<std::string>& texts) {
    const std::filesystem::path path = std::filesystem::temp_directory_path() /
                                       ("pylm_training_" + std::to_string(std::random_device()()));
    const std::string mark = "<|>";
    std::string content;
    std::vector<std::string> kept;
    for (const std::string& text : texts) {
        kept.push_back(text + (kept.size() + 1 < texts.size() ? mark : ""));
        content += kept.back();
    }
    std::ofstream(path, std::ios::binary) << content;
    for (const auto& [format, expected] : {std::pair(FileFormat{mark, false}, count_slowly(texts)),
                                           std::pair(FileFormat{mark, true}, count_slowly(kept)),
                                           std::pair(FileFormat{}, count_slowly({content}))}) {
        for (const std::size_t block : {std::size_t{1000}, std::size_t{4} << 20}) {
            WordCounter counter(kPattern);
            std::uint64_t offset = 0;
            while (offset < content.size())
                offset = counter.add_file(path.string(), offset, block, format, 4);
            check(counter.sorted() == expected, "blocks of a file give the words of its texts");
        }
    }
    std::filesystem::remove(path);
    WordCounter counter(kPattern);
    check(throws<std::runtime_error>([&] { counter.add_file(path.string(), 0, 1, {}, 1); }),
          "a missing file is named");
}

using Merges = std::vector<TrainedMerge>;

Merges train(const Words& words, std::size_t num_tokens, Ties ties, unsigned threads, bool release) {
    WordCounter counter(kPattern);
    for (const auto& [word, count] : words) counter.add_word(word, count);
    TrainOptions options;
    options.num_tokens = num_tokens;
    options.ties = ties;
    options.num_threads = threads;
    options.release_words = release;
    for (std::uint32_t byte = 0; byte < 256; ++byte) options.byte_ids.push_back(byte);
    Merges merges = train_bpe(counter, options);
    check(counter.num_words() == (release ? 0 : words.size()), "words are given up only when asked for");
    return merges;
}

// All pairs counted anew for every merge.
Merges train_slowly(const Words& words, std::size_t num_tokens, Ties ties) {
    std::vector<std::vector<std::uint32_t>> rows;
    std::vector<std::string> tokens;
    for (std::size_t byte = 0; byte < 256; ++byte) tokens.emplace_back(1, static_cast<char>(byte));
    for (const auto& [word, count] : words) {
        rows.emplace_back();
        for (const char byte : word) rows.back().push_back(static_cast<std::uint8_t>(byte));
    }
    Merges merges;
    while (merges.size() < num_tokens) {
        std::map<std::pair<std::uint32_t, std::uint32_t>, std::uint64_t> pairs;
        for (std::size_t w = 0; w < rows.size(); ++w)
            for (std::size_t i = 0; i + 1 < rows[w].size(); ++i)
                pairs[{rows[w][i], rows[w][i + 1]}] += words[w].second;
        std::uint64_t most = 1;  // a pair must occur twice
        std::pair<std::uint32_t, std::uint32_t> best;
        for (const auto& [pair, count] : pairs) {
            const bool greater =
                ties == Ties::kGreatestBytes && std::pair(tokens[pair.first], tokens[pair.second]) >
                                                    std::pair(tokens[best.first], tokens[best.second]);
            if (count > most || (most > 1 && count == most && greater)) best = pair;
            most = std::max(most, count);
        }
        if (most < 2) break;
        const auto merged = static_cast<std::uint32_t>(tokens.size());
        merges.push_back({best.first, best.second, merged});
        tokens.push_back(tokens[best.first] + tokens[best.second]);
        for (auto& row : rows) {
            std::size_t out = 0;
            for (std::size_t i = 0; i < row.size(); ++i, ++out) {
                const bool joins = i + 1 < row.size() && row[i] == best.first && row[i + 1] == best.second;
                row[out] = joins ? merged : row[i];
                i += joins ? 1 : 0;
            }
            row.resize(out);
        }
    }
    return merges;
}

void check_merging() {
    Random random(12);
    for (std::size_t round = 0; round < 60; ++round) {
        std::map<std::string, std::uint64_t> words;
        for (std::size_t i = 0; i < 1 + random.below(30); ++i) {
            std::string word(1 + random.below(round % 10 == 0 ? 400 : 16), 'a');
            for (char& c : word) c = static_cast<char>('a' + random.below(1 + round % 3));
            words[word] += 1 + random.below(4) * random.below(5000);
        }
        const Words list(words.begin(), words.end());
        for (const Ties ties : {Ties::kSmallestIds, Ties::kGreatestBytes}) {
            const Merges expected = train_slowly(list, 60, ties);
            check(train(list, 60, ties, 1, false) == expected, "merges are those of a slow trainer");
            check(train(list, 60, ties, 4, true) == expected, "merges do not depend on the threads");
        }
    }
}

// Long enough for every merge of the beginning to be shared among threads.
void check_sharing() {
    Random random(13);
    Words words;
    for (std::size_t i = 0; i < 3; ++i) {
        std::string word(400'000, 'a');
        for (char& c : word) c = static_cast<char>('a' + random.below(2 + i));
        words.emplace_back(std::move(word), 1 + i);
    }
    words.emplace_back(std::string(500'000, 'b'), 2);
    const Merges one = train(words, 500, Ties::kSmallestIds, 1, true);
    check(one.size() == 500, "as many merges as asked for");
    for (const unsigned threads : {2U, 3U, 8U})
        check(train(words, 500, Ties::kSmallestIds, threads, true) == one, "merges do not depend on the threads");
}

}  // namespace

void test_training() {
    std::vector<std::string> texts = hostile_texts();
    Random random(10);
    for (std::size_t i = 0; i < 10; ++i) texts.push_back(random_words(random, 30'000));
    check_table();
    check_counting(texts);
    check_counting(huge_texts(1 << 20));
    check_files(texts);
    check_merging();
    check_sharing();
}

}  // namespace pylm::tests
