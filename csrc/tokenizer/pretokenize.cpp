#include "tokenizer/pretokenize.hpp"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>

#include "tokenizer/pretokenize_rules.hpp"

namespace pylm {

namespace {

constexpr std::array<std::pair<std::string_view, Pattern>, 10> kNames = {{
    {"whole", Pattern::kWhole},
    {"gpt2", Pattern::kGpt2},
    {"starcoder", Pattern::kStarCoder},
    {"cl100k", Pattern::kCl100k},
    {"llama3", Pattern::kLlama3},
    {"qwen2", Pattern::kQwen2},
    {"qwen35", Pattern::kQwen35},
    {"o200k", Pattern::kO200k},
    {"tekken", Pattern::kTekken},
    {"deepseek3", Pattern::kDeepSeek3},
}};

// Whether a letter or number ends at `position` > 0. Bytes in front of a valid character's first byte never
// reach into it, so reading backwards finds the characters that reading forwards does.
bool ends_word(std::string_view text, std::size_t position) noexcept {
    constexpr std::uint8_t kinds = kLetter | kNumber;
    const auto last = static_cast<std::uint8_t>(text[position - 1]);
    if (last < 0x80) return (classify_ascii(last) & kinds) != 0;
    std::size_t first = position - 1;
    while (first > 0 && position - first < 4 && (static_cast<std::uint8_t>(text[first]) & 0xC0U) == 0x80U)
        --first;
    const Decoded decoded = decode_utf8(text, first);
    return decoded.size > 1 && first + decoded.size == position && (classify(decoded.point) & kinds) != 0;
}

}  // namespace

Pattern parse_pattern(std::string_view name) {
    for (const auto& [known, pattern] : kNames) {
        if (known == name) return pattern;
    }
    throw std::invalid_argument("no machine for the pattern '" + std::string(name) + "'");
}

CutFunction find_cut(Pattern pattern, SimdLevel level) {
    using namespace pretokenize;
    if (!has_simd(level)) throw std::invalid_argument("this machine does not have the SIMD level asked for");
    if (pattern == Pattern::kWhole) return find_cut_none(pattern);
    switch (level) {
        case SimdLevel::kNone: return find_cut_none(pattern);
        case SimdLevel::kWords: return find_cut_words(pattern);
        case SimdLevel::kAvx2: return find_cut_avx2(pattern);
        case SimdLevel::kAvx512: return find_cut_avx512(pattern);
        case SimdLevel::kNeon: return find_cut_neon(pattern);
    }
    throw std::invalid_argument("no such SIMD level");
}

CutFunction find_cut(Pattern pattern) { return find_cut(pattern, best_simd_level()); }

std::size_t end_of_piece(Pattern pattern, std::string_view text, std::size_t start) noexcept {
    using namespace pretokenize;
    switch (pattern) {
        case Pattern::kWhole: return end_piece<Pattern::kWhole>(text, start);
        case Pattern::kGpt2: return end_piece<Pattern::kGpt2>(text, start);
        case Pattern::kStarCoder: return end_piece<Pattern::kStarCoder>(text, start);
        case Pattern::kCl100k: return end_piece<Pattern::kCl100k>(text, start);
        case Pattern::kLlama3: return end_piece<Pattern::kLlama3>(text, start);
        case Pattern::kQwen2: return end_piece<Pattern::kQwen2>(text, start);
        case Pattern::kQwen35: return end_piece<Pattern::kQwen35>(text, start);
        case Pattern::kO200k: return end_piece<Pattern::kO200k>(text, start);
        case Pattern::kTekken: return end_piece<Pattern::kTekken>(text, start);
        case Pattern::kDeepSeek3: return end_piece<Pattern::kDeepSeek3>(text, start);
    }
    return text.size();
}

// Why such a border is safe, for every pattern but kWhole. Call the letter or number x and the white space w.
// (1) A piece that holds x ends with it: a word takes white space only as its first character, so do numbers
// (GPT-2's), a contraction has none, symbols and white space do not take x, except that a symbol or white
// space may precede it. So w starts a piece, and since machines look at nothing before it, the right half's
// pieces are those of the whole. (2) The pieces up to x depend on what follows them only by the question
// whether the next character belongs to some set or to white space: `x` itself answers that for those before
// its own piece, and for that one w and the end of the text give the same answer, that nothing more fits.
// `\s+(?!\S)` and `\s++$` match white space only, which x is not.
std::size_t next_safe_border(Pattern pattern, std::string_view text, std::size_t position) noexcept {
    if (pattern == Pattern::kWhole) return text.size();
    for (std::size_t border = std::max<std::size_t>(position, 1); border < text.size(); ++border) {
        const char c = text[border];
        if ((c == ' ' || c == '\n' || c == '\t') && ends_word(text, border)) return border;
    }
    return text.size();
}

void Pretokenizer::fill() noexcept {
    base_ = position_;
    taken_ = 0;
    count_ = cut_(text_, position_, ends_);
}

std::size_t Pretokenizer::end_of_longest() const noexcept {
    return position_ < text_.size() ? end_of_piece(pattern_, text_, position_) : position_;
}

}  // namespace pylm
