// Learning merges from counted words: the most frequent pair becomes a token, again and again.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "tokenizer/pair_queue.hpp"
#include "tokenizer/word_counter.hpp"

namespace pylm {

// A token that has its id before training and that merges may arrive at.
struct KnownToken {
    std::string bytes;
    std::uint32_t id = 0;
};

struct TrainOptions {
    static constexpr std::uint32_t kNoId = 0xFFFFFFFF;

    std::size_t num_tokens = 0;           // most new tokens to make
    std::uint64_t min_frequency = 2;      // a pair seen less often is not merged
    std::vector<std::uint32_t> byte_ids;  // id of each of the 256 bytes; kNoId: the byte is left out of words
    std::uint32_t first_id = 256;         // id of the first new token; later ones count up
    std::vector<KnownToken> known;        // merges that make one of these make no new token
    std::size_t max_token_length = 0;     // merges of merges stay shorter than this; 0: any length
    Ties ties = Ties::kSmallestIds;
    bool release_words = false;           // empty the counter when its words have been taken over
    unsigned num_threads = 1;             // 0: all cores; the merges do not depend on it
    // Called now and then with the number of new tokens; may throw to stop.
    std::function<void(std::size_t)> progress;
};

struct TrainedMerge {
    std::uint32_t left;
    std::uint32_t right;
    std::uint32_t merged;
    bool operator==(const TrainedMerge&) const = default;
};

// Learn merges, in order. Work is proportional to the occurrences merged, whatever the length of words; memory
// is about 8 bytes for each byte of different words, and 32 for each pair that is frequent enough. Throws
// std::invalid_argument where ids or the bytes of different words pass 2^32 - 3, and what progress throws.
std::vector<TrainedMerge> train_bpe(WordCounter& words, const TrainOptions& options);

}  // namespace pylm
