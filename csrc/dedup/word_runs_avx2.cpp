// Windows in two AVX2 registers.
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "dedup/word_runs.hpp"

#if defined(__x86_64__)
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,bmi,bmi2,popcnt"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,bmi,bmi2,popcnt")
#endif

#include "dedup/word_runs_block.hpp"

namespace pylm::dedup {
namespace {

struct Avx2 {
    // There is only a signed comparison: the ranges are moved to the smallest numbers.
    [[gnu::always_inline]] static __m256i in_range(__m256i bytes, char first, char last) noexcept {
        const __m256i move = _mm256_set1_epi8(static_cast<char>(-128 - first));
        const __m256i bound = _mm256_set1_epi8(static_cast<char>(-128 + (last - first) + 1));
        return _mm256_cmpgt_epi8(bound, _mm256_add_epi8(bytes, move));
    }
    [[gnu::always_inline]] static Bits half(const char* p) noexcept {
        const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
        const __m256i lower = _mm256_or_si256(bytes, _mm256_set1_epi8(0x20));
        const __m256i word = _mm256_or_si256(in_range(lower, 'a', 'z'), in_range(bytes, '0', '9'));
        return static_cast<std::uint32_t>(_mm256_movemask_epi8(_mm256_or_si256(word, bytes)));
    }
    [[gnu::always_inline]] static Bits word_bits(const char* p) noexcept {
        return half(p) | half(p + 32) << 32;
    }
    [[gnu::always_inline]] static std::size_t write(Bits bits, std::size_t base, std::uint32_t* out) noexcept {
        return write_bits<Avx2>(bits, base, out);
    }
};

std::size_t find_avx2(const char* text, std::size_t size, std::uint32_t* borders) noexcept {
    return find_runs_in_windows<Avx2>(text, size, borders);
}

}  // namespace

FindRuns find_runs_avx2() noexcept { return find_avx2; }

}  // namespace pylm::dedup

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#else

#include "dedup/word_runs_block.hpp"

namespace pylm::dedup {
FindRuns find_runs_avx2() noexcept { return nullptr; }
}  // namespace pylm::dedup

#endif
