// libFuzzer: every level gives the pieces of the plain machine, and a safe border is safe. Built by
// -DPYLM_BUILD_FUZZERS=ON with clang; run as `fuzz_pretokenize -max_len=400`.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>
#include <vector>

#include "tokenizer/pretokenize.hpp"

namespace {

constexpr std::string_view kNames[] = {"gpt2",   "starcoder", "cl100k", "llama3", "qwen2",
                                       "qwen35", "o200k",     "tekken", "deepseek3"};

std::vector<std::size_t> cut_all(pylm::CutFunction cut, std::string_view text) {
    std::vector<std::size_t> ends;
    std::vector<std::uint32_t> block(70);
    for (std::size_t position = 0; position < text.size();) {
        const std::size_t count = cut(text, position, block);
        if (count == 0) std::abort();
        for (std::size_t i = 0; i < count; ++i) ends.push_back(position + block[i]);
        position = ends.back();
    }
    return ends;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    if (size < 2) return 0;
    const pylm::Pattern pattern = pylm::parse_pattern(kNames[data[0] % std::size(kNames)]);
    // A copy of its own, so that reading past the end is found.
    const std::vector<char> copy(data + 2, data + size);
    const std::string_view text(copy.data(), copy.size());
    const auto expected = cut_all(pylm::find_cut(pattern, pylm::SimdLevel::kNone), text);
    for (const pylm::SimdLevel level : pylm::simd_levels()) {
        if (cut_all(pylm::find_cut(pattern, level), text) != expected) std::abort();
    }
    const std::size_t border = pylm::next_safe_border(pattern, text, data[1]);
    auto halves = cut_all(pylm::find_cut(pattern), text.substr(0, border));
    for (const std::size_t end : cut_all(pylm::find_cut(pattern), text.substr(border)))
        halves.push_back(border + end);
    if (halves != expected) std::abort();
    return 0;
}
