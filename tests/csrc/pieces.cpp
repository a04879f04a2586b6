#include "pieces.hpp"

#include <algorithm>
#include <cstdint>

#include "check.hpp"

namespace pylm::tests {
namespace {

using Ends = std::vector<std::size_t>;

void check_walk(Pattern pattern, std::string_view text, const Ends& expected) {
    Pretokenizer pieces(pattern, text);
    std::size_t start = 0;
    for (const std::size_t end : expected) {
        check(end_of_piece(pattern, text, start) == end, "end_of_piece gives the same");
        const std::string_view piece = pieces.next();
        check(piece.data() == text.data() + start && piece.size() == end - start, "next() gives the same");
        start = end;
    }
    check(pieces.next().empty() && pieces.next().empty(), "next() ends with the text");
}

}  // namespace

std::span<const Pattern> all_patterns() {
    static constexpr Pattern kPatterns[] = {Pattern::kGpt2,   Pattern::kStarCoder, Pattern::kCl100k,
                                            Pattern::kLlama3, Pattern::kQwen2,     Pattern::kQwen35,
                                            Pattern::kO200k,  Pattern::kTekken,    Pattern::kDeepSeek3};
    return kPatterns;
}

Ends cut_all(CutFunction cut, std::string_view text, std::size_t start, std::size_t capacity) {
    Ends ends;
    std::vector<std::uint32_t> block(capacity);
    std::size_t position = start;
    while (position < text.size()) {
        const std::size_t count = cut(text, position, block);
        check(count > 0 && count <= capacity, "a block holds a piece at least and its capacity at most");
        for (std::size_t i = 0; i < count; ++i) {
            check(block[i] > (i == 0 ? 0 : block[i - 1]), "no piece is empty");
            ends.push_back(position + block[i]);
        }
        position = ends.back();
    }
    check(position == text.size(), "pieces make up the text");
    check(cut(text, text.size(), block) == 0, "nothing follows the text");
    return ends;
}

void check_pieces(Pattern pattern, std::string_view text, std::size_t capacity, std::size_t first) {
    const Ends expected = cut_all(find_cut(pattern, SimdLevel::kNone), text, 0, 1000);
    check_walk(pattern, text, expected);
    const std::size_t skipped = expected.empty() ? 0 : first % expected.size();
    const std::size_t start = skipped == 0 ? 0 : expected[skipped - 1];
    const Ends rest(expected.begin() + static_cast<std::ptrdiff_t>(skipped), expected.end());
    for (const SimdLevel level : simd_levels()) {
        const CutFunction cut = find_cut(pattern, level);
        // Below and above a window, and such as end in the midst of one.
        for (const std::size_t size : {std::size_t{1}, std::size_t{64}, std::size_t{256}, capacity})
            check(cut_all(cut, text, 0, size) == expected, "all levels give the same");
        check(cut_all(cut, text, start, 256) == rest, "pieces do not depend on those before");
    }
}

void check_borders(Pattern pattern, std::string_view text, std::size_t position) {
    const CutFunction cut = find_cut(pattern);
    const Ends whole = cut_all(cut, text, 0, 256);
    const auto check_cuts = [&](const Ends& borders) {
        Ends ends;
        std::size_t start = 0;
        for (const std::size_t border : borders) {
            for (const std::size_t end : cut_all(cut, text.substr(start, border - start), 0, 256))
                ends.push_back(start + end);
            start = border;
        }
        check(ends == whole, "pieces between safe borders are those of the whole");
    };
    const std::size_t border = next_safe_border(pattern, text, position);
    check(border == text.size() || border >= std::max<std::size_t>(position, 1), "a border lies ahead");
    check_cuts({border, text.size()});
    Ends borders;
    for (std::size_t at = 0; at < text.size();) borders.push_back(at = next_safe_border(pattern, text, at + 1));
    check_cuts(borders);
}

}  // namespace pylm::tests
