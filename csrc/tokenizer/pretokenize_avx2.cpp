// Windows in two AVX2 registers.
#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <span>
#include <string_view>

#include "tokenizer/pretokenize_rules.hpp"

#if defined(__x86_64__)
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,bmi,bmi2,popcnt"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,bmi,bmi2,popcnt")
#endif

#include "tokenizer/pretokenize_block.hpp"

namespace pylm::pretokenize {
namespace {

struct Avx2 {
    __m256i low, high_half;

    [[gnu::always_inline]] static Avx2 load(const char* data) noexcept {
        return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(data)),
                _mm256_loadu_si256(reinterpret_cast<const __m256i*>(data + 32))};
    }
    [[gnu::always_inline]] static Avx2 load(const char* data, std::size_t size) noexcept {
        char padded[kWindow] = {};
        std::memcpy(padded, data, size);
        return load(padded);
    }
    [[gnu::always_inline]] static Bits mask(__m256i low, __m256i high) noexcept {
        return static_cast<std::uint32_t>(_mm256_movemask_epi8(low)) |
               static_cast<Bits>(static_cast<std::uint32_t>(_mm256_movemask_epi8(high))) << 32;
    }
    [[gnu::always_inline]] Bits high() const noexcept { return mask(low, high_half); }
    [[gnu::always_inline]] Bits equals(char byte) const noexcept {
        const __m256i all = _mm256_set1_epi8(byte);
        return mask(_mm256_cmpeq_epi8(low, all), _mm256_cmpeq_epi8(high_half, all));
    }
    // There is only a signed comparison: the range is moved to the smallest numbers.
    [[gnu::always_inline]] Bits in_range(char first, char last) const noexcept {
        const __m256i move = _mm256_set1_epi8(static_cast<char>(-128 - first));
        const __m256i bound = _mm256_set1_epi8(static_cast<char>(-128 + (last - first) + 1));
        return mask(_mm256_cmpgt_epi8(bound, _mm256_add_epi8(low, move)),
                    _mm256_cmpgt_epi8(bound, _mm256_add_epi8(high_half, move)));
    }
    [[gnu::always_inline]] Avx2 lower_case() const noexcept {
        const __m256i bit = _mm256_set1_epi8(0x20);
        return {_mm256_or_si256(low, bit), _mm256_or_si256(high_half, bit)};
    }
    [[gnu::always_inline]] static std::size_t write(Bits bits, std::uint32_t base,
                                                    std::uint32_t* out) noexcept {
        return write_bits<Avx2>(bits, base, out);
    }
};

template <Pattern P>
struct Machine {
    static std::size_t cut(std::string_view text, std::size_t position,
                           std::span<std::uint32_t> ends) noexcept {
        return cut_windows<P, Avx2>(text, position, ends);
    }
};

}  // namespace

CutFunction find_cut_avx2(Pattern pattern) noexcept { return select<Machine>(pattern); }

}  // namespace pylm::pretokenize

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#else

namespace pylm::pretokenize {
CutFunction find_cut_avx2(Pattern) noexcept { return nullptr; }
}  // namespace pylm::pretokenize

#endif
