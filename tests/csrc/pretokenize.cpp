// The machines of every level against the one that goes character by character, on hostile and huge texts;
// borders where a text may be cut; blocks of any size.
#include <cstddef>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "check.hpp"
#include "pieces.hpp"
#include "tokenizer/pretokenize.hpp"

namespace pylm::tests {
namespace {

// Texts of characters that the patterns tell apart, in all neighbourhoods.
std::string random_text(Random& random, std::size_t num_parts) {
    const std::span<const std::string_view> parts = text_parts();
    std::string text;
    const std::size_t variety = 1 + random.below(parts.size());
    const std::size_t shift = random.below(parts.size());
    for (std::size_t i = 0; i < num_parts; ++i) text += parts[(shift + random.below(variety)) % parts.size()];
    return text;
}

}  // namespace

void test_pretokenize() {
    check(!simd_levels().empty() && simd_levels().front() == SimdLevel::kNone, "there is always a plain level");
    check(throws<std::invalid_argument>([] { (void)parse_pattern("nothing"); }), "an unknown name is refused");
    Random random(5);
    for (const Pattern pattern : all_patterns()) {
        const auto check_text = [&](const std::string& text) {
            check_pieces(pattern, text, 1 + random.below(200), random());
            check_borders(pattern, text, random.below(text.size() + 1));
        };
        for (const std::string& text : hostile_texts()) check_text(text);
        for (std::size_t i = 0; i < 500; ++i) check_text(random_text(random, random.below(120)));
        for (const std::string& text : huge_texts(1 << 18)) {
            const std::vector<std::size_t> expected = cut_all(find_cut(pattern, SimdLevel::kNone), text, 0, 1000);
            for (const SimdLevel level : simd_levels())
                check(cut_all(find_cut(pattern, level), text, 0, 1000) == expected, "all levels give the same");
        }
    }
    const Pattern whole = parse_pattern("whole");
    for (const SimdLevel level : simd_levels())
        check(cut_all(find_cut(whole, level), "a b\nc", 0, 1) == std::vector<std::size_t>{5}, "a text is one piece");
    check(next_safe_border(whole, "a b\nc", 0) == 5, "and has no border inside");
}

}  // namespace pylm::tests
