// What the C++ tests share: a check, random numbers that are the same everywhere, hostile texts.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace pylm::tests {

// Throws std::runtime_error with the message when the condition does not hold.
void check(bool condition, std::string_view message);

// True when the call throws an `Error`.
template <typename Error, typename Call>
bool throws(Call&& call) {
    try {
        call();
    } catch (const Error&) {
        return true;
    }
    return false;
}

// SplitMix64 (Steele, Lea, Flood 2014).
class Random {
public:
    explicit Random(std::uint64_t seed) noexcept : state_(seed) {}
    std::uint64_t operator()() noexcept;
    std::size_t below(std::size_t bound) noexcept { return static_cast<std::size_t>((*this)() % bound); }

private:
    std::uint64_t state_;
};

// `num_words` words of one to nine letters, single spaces between them.
std::string random_words(Random& random, std::size_t num_words);

// Texts that have broken such code before: empty, one byte, truncated and overlong UTF-8, surrogates, the
// last code points, words around the border between short and long, separators of every kind, random bytes.
std::vector<std::string> hostile_texts();

// One text of `size` bytes each: one letter, spaces, newlines, digits, marks, emoji, invalid bytes, random
// bytes, one word again and again.
std::vector<std::string> huge_texts(std::size_t size);

// Characters, words, runs and damaged UTF-8 that tokenizers tell apart, to make texts of in which they meet.
std::span<const std::string_view> text_parts();

std::vector<std::string_view> views_of(const std::vector<std::string>& texts);

void test_parallel();
void test_arrow();
void test_pretokenize();
void test_merges();
void test_tokenizer();
void test_sentencepiece();
void test_training();
void test_vocabulary();
void test_dedup();
void test_index();
void test_signals();
void test_shards();
void test_suffix_array();
void test_substring();
void test_substring_stages();
void test_section_file();
void test_normal_form();

}  // namespace pylm::tests
