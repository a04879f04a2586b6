// What the patterns differ in, as constants that the machines are compiled for.
#pragma once

#include <cstdint>

#include "text/unicode.hpp"
#include "tokenizer/pretokenize.hpp"

namespace pylm::pretokenize {

enum class Contractions : std::uint8_t {
    kNone,
    kLowerCase,  // a piece of their own, lower case only
    kAnyCase,    // a piece of their own
    kSuffix,     // the end of a word, any case
};

struct Rules {
    bool gpt2 = false;           // only ' ' joins what follows; nothing about newlines
    bool cased = false;          // a lower-case letter before an upper-case one ends a word
    bool deepseek = false;       // kana and Han apart, gaps, ASCII punctuation joins ASCII letters only
    std::uint8_t word = kLetter; // classes of a word's characters
    Contractions contractions = Contractions::kAnyCase;
    unsigned max_digits = 3;     // 0: any number
    bool lone_numbers = false;   // numbers are cut out first: white space before one sees the end of a text
    bool slashes = false;        // symbols take '/' with the newlines behind them
    bool trailing_space_whole = false;  // white space at the end of the text is one piece (\s++$)
};

constexpr Rules rules_of(Pattern pattern) noexcept {
    constexpr std::uint8_t marked = kLetter | kMark;
    switch (pattern) {
        case Pattern::kWhole: return {};
        case Pattern::kGpt2:
            return {.gpt2 = true, .contractions = Contractions::kLowerCase, .max_digits = 0};
        case Pattern::kStarCoder:
            return {.gpt2 = true,
                    .contractions = Contractions::kLowerCase,
                    .max_digits = 1,
                    .lone_numbers = true};
        case Pattern::kCl100k: return {.trailing_space_whole = true};
        case Pattern::kLlama3: return {};
        case Pattern::kQwen2: return {.max_digits = 1};
        case Pattern::kQwen35: return {.word = marked, .max_digits = 1};
        case Pattern::kO200k:
            return {.cased = true, .word = marked, .contractions = Contractions::kSuffix, .slashes = true};
        case Pattern::kTekken:
            return {.cased = true,
                    .word = marked,
                    .contractions = Contractions::kNone,
                    .max_digits = 1,
                    .slashes = true};
        case Pattern::kDeepSeek3:
            return {.deepseek = true,
                    .word = marked,
                    .contractions = Contractions::kNone,
                    .lone_numbers = true};
    }
    return {};
}

// The characters that DeepSeek's second split cuts out: [U+4E00-U+9FA5 U+3040-U+30FF].
constexpr bool is_han_or_kana(char32_t point) noexcept {
    return (point >= 0x4E00 && point <= 0x9FA5) || (point >= 0x3040 && point <= 0x30FF);
}

// End of the contraction ('s 't 'm 'd 'll 've 're) whose apostrophe is at `start`, or `start` if there is none.
// In any case, U+017F folds to "s".
std::size_t end_of_contraction(std::string_view text, std::size_t start, bool any_case) noexcept;

// One piece, character by character: the plain statement of each pattern, for what blocks leave over.
template <Pattern P>
std::size_t end_piece(std::string_view text, std::size_t start) noexcept;

// The machines of one level; nullptr where this build does not have the level. kWhole is find_cut_none's.
CutFunction find_cut_none(Pattern pattern) noexcept;
CutFunction find_cut_words(Pattern pattern) noexcept;
CutFunction find_cut_avx2(Pattern pattern) noexcept;
CutFunction find_cut_avx512(Pattern pattern) noexcept;
CutFunction find_cut_neon(Pattern pattern) noexcept;

}  // namespace pylm::pretokenize
