// The machines of every level against the one that goes character by character, on hostile and huge texts;
// borders where a text may be cut; blocks of any size.
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "check.hpp"
#include "tokenizer/pretokenize.hpp"

namespace pylm::tests {
namespace {

const std::vector<std::string_view> kNames = {"gpt2",   "starcoder", "cl100k", "llama3", "qwen2",
                                              "qwen35", "o200k",     "tekken", "deepseek3"};

using Ends = std::vector<std::size_t>;

Ends cut_all(CutFunction cut, std::string_view text, std::size_t capacity) {
    Ends ends;
    std::vector<std::uint32_t> block(capacity);
    for (std::size_t position = 0; position < text.size(); position = ends.back()) {
        const std::size_t count = cut(text, position, block);
        check(count > 0 && count <= capacity, "a block holds a piece at least and its capacity at most");
        for (std::size_t i = 0; i < count; ++i) {
            check(block[i] > (i == 0 ? 0 : block[i - 1]), "no piece is empty");
            ends.push_back(position + block[i]);
        }
    }
    check(ends.empty() ? text.empty() : ends.back() == text.size(), "pieces make up the text");
    return ends;
}

Ends walk(Pattern pattern, std::string_view text) {
    Ends ends;
    Pretokenizer pieces(pattern, text);
    for (std::string_view piece = pieces.next(); !piece.empty(); piece = pieces.next()) {
        check(piece.data() == text.data() + (ends.empty() ? 0 : ends.back()), "pieces follow each other");
        ends.push_back(static_cast<std::size_t>(piece.data() - text.data()) + piece.size());
    }
    return ends;
}

// Texts of characters that the patterns tell apart, in all neighbourhoods.
std::string random_text(Random& random, std::size_t num_parts) {
    const std::vector<std::string_view> parts = {
        "a", "Z", "s", "LL", "'", "'s", "'Re", "7", "123", " ", "  ", "\n", "\r\n", "\t", "!", "/", "(", ".",
        "\xc3\xa9", "\xc3\x89", "\xc5\xbf", "\xd0\x96", "\xd0\xb6", "\xd1\xa0", "\xd9\xa4", "\xc2\xa0", "\xc2\x85",
        "\xcc\x81", "\xe2\x80\x8d", "\xe2\x80\xa8", "\xe3\x80\x80", "\xe2\x80\x9c", "\xe4\xb8\xad", "\xe5\xad\x97",
        "\xe9\xbe\xa6", "\xe3\x82\xa2", "\xe3\x83\xbb", "\xe3\x82\x99", "\xeb\x82\x98", "\xe0\xb8\xb4", "\xef\xbc\x95",
        "\xf0\x9f\x98\x80", "\xf0\x90\x90\x80", "\xff", "\x80", "\xe4\xb8", "\xed\xa0\x80", "\xe0\x80\x80", "\xf0\x9f"};
    std::string text;
    const std::size_t variety = 1 + random.below(parts.size());
    const std::size_t shift = random.below(parts.size());
    for (std::size_t i = 0; i < num_parts; ++i)
        text += parts[(shift + random.below(variety)) % parts.size()];
    return text;
}

void check_text(Pattern pattern, std::string_view text) {
    const Ends expected = cut_all(find_cut(pattern, SimdLevel::kNone), text, 1000);
    for (const SimdLevel level : simd_levels()) {
        // Capacities below and above a window, and such as end in the midst of one.
        for (const std::size_t capacity : {1, 63, 64, 100, 1000})
            check(cut_all(find_cut(pattern, level), text, capacity) == expected, "all levels give the same");
    }
    check(walk(pattern, text) == expected, "next() gives the same");
    std::size_t start = 0;
    for (const std::size_t end : expected) {
        check(end_of_piece(pattern, text, start) == end, "end_of_piece gives the same");
        start = end;
    }
}

void check_borders(Pattern pattern, std::string_view text, Random& random) {
    const CutFunction cut = find_cut(pattern);
    const Ends whole = cut_all(cut, text, 256);
    const std::size_t border = next_safe_border(pattern, text, random.below(text.size() + 1));
    Ends halves = cut_all(cut, text.substr(0, border), 256);
    for (const std::size_t end : cut_all(cut, text.substr(border), 256)) halves.push_back(border + end);
    check(halves == whole, "pieces of both halves are those of the whole");
}

}  // namespace

void test_pretokenize() {
    check(!simd_levels().empty() && simd_levels().front() == SimdLevel::kNone, "there is always a plain level");
    check(throws<std::invalid_argument>([] { (void)parse_pattern("nothing"); }), "an unknown name is refused");
    Random random(5);
    for (const std::string_view name : kNames) {
        const Pattern pattern = parse_pattern(name);
        for (const std::string& text : hostile_texts()) {
            check_text(pattern, text);
            check_borders(pattern, text, random);
        }
        for (std::size_t i = 0; i < 500; ++i) {
            const std::string text = random_text(random, random.below(120));
            check_text(pattern, text);
            check_borders(pattern, text, random);
        }
        for (const std::string& text : huge_texts(1 << 18)) {
            const Ends expected = cut_all(find_cut(pattern, SimdLevel::kNone), text, 1000);
            for (const SimdLevel level : simd_levels())
                check(cut_all(find_cut(pattern, level), text, 1000) == expected, "all levels give the same");
        }
    }
    const Pattern whole = parse_pattern("whole");
    for (const SimdLevel level : simd_levels())
        check(cut_all(find_cut(whole, level), "a b\nc", 1) == Ends{5}, "a text is one piece");
    check(next_safe_border(whole, "a b\nc", 0) == 5, "and has no border inside");
}

}  // namespace pylm::tests
