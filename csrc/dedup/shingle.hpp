// Shingles: the n-grams of a text, as 64-bit hashes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "dedup/word_runs.hpp"
#include "text/simd.hpp"

namespace pylm::dedup {

enum class ShingleKind {
    kWord,       // n words (text/words.hpp)
    kCharacter,  // n characters in lower case, white space collapsed to one space and cut off at both ends
    kToken,      // n ids of four bytes each, little-endian; bytes left over at the end are no part of any
    kJoined32,   // n words of a text that is already normalised (words parted by one space each), joined by a
                 // space, as the low 32 bits of XXH3 with the seed; under 5 words none (text-dedup)
    kJoined64,   // the same as XXH64 with seed 0; under n words none (datatrove)
};

struct ShingleRule {
    ShingleKind kind = ShingleKind::kWord;
    std::size_t ngram = 5;
    std::uint64_t seed = 0;  // of kJoined32 alone
};

// Hashes the shingles of one text after another. Holds scratch memory: one object a thread.
//
// A text of fewer than n words (characters), but at least one, is a single shingle, except where the rule
// above says otherwise. A text without words has none.
class Shingler {
public:
    // Throws std::invalid_argument when rule.ngram is 0, and for a level that this machine does not have. The
    // level changes nothing but the time.
    explicit Shingler(ShingleRule rule, SimdLevel level = best_simd_level());

    // Shingles in order, repeats included; valid until the next call. O(text.size()).
    std::span<const std::uint64_t> operator()(std::string_view text);

    // Distinct shingles in ascending order; valid until the next call of either operator or distinct.
    std::span<const std::uint64_t> distinct(std::string_view text);

private:
    void hash_words(std::string_view text);
    std::uint64_t* hash_run(const char* begin, std::size_t size, const char* limit, std::uint64_t* out);
    std::uint64_t* hash_wide_run(const char* begin, const char* end, std::uint64_t* out);
    void hash_characters(std::string_view text);
    void hash_tokens(std::string_view ids);
    void roll();
    void sort_shingles();
    void hash_joined(std::string_view text);

    ShingleRule rule_;
    FindRuns find_runs_;
    std::uint64_t leaving_factor_ = 1;  // kBase^n: weight of the item that leaves the window
    // Vectors of this class never shrink, so that memory is not cleared for every text; beside each its use.
    std::vector<std::uint64_t> items_;  // hashes of words or characters
    std::size_t num_items_ = 0;
    std::vector<std::uint64_t> shingles_;
    std::size_t num_shingles_ = 0;
    std::vector<std::uint64_t> parted_;
    std::vector<std::size_t> ends_;
    std::vector<std::size_t> borders_;
    std::string lowered_;
};

}  // namespace pylm::dedup
