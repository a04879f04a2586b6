// Windows in one AVX-512 register.
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "dedup/word_runs.hpp"

#if defined(__x86_64__)
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,bmi,bmi2,popcnt,lzcnt,avx512f,avx512bw,avx512vl,avx512vbmi2"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,bmi,bmi2,popcnt,lzcnt,avx512f,avx512bw,avx512vl,avx512vbmi2")
#endif

#include "dedup/word_runs_block.hpp"

namespace pylm::dedup {
namespace {

struct Avx512 {
    [[gnu::always_inline]] static Bits in_range(__m512i bytes, char first, char last) noexcept {
        return _mm512_cmple_epu8_mask(_mm512_sub_epi8(bytes, _mm512_set1_epi8(first)),
                                      _mm512_set1_epi8(static_cast<char>(last - first)));
    }
    [[gnu::always_inline]] static Bits word_bits(const char* p) noexcept {
        const __m512i bytes = _mm512_loadu_si512(p);
        const __m512i lower = _mm512_or_si512(bytes, _mm512_set1_epi8(0x20));
        return in_range(lower, 'a', 'z') | in_range(bytes, '0', '9') | _mm512_movepi8_mask(bytes);
    }
    [[gnu::always_inline]] static std::size_t write(Bits bits, std::size_t base, std::uint32_t* out) noexcept {
        const __m512i numbers = _mm512_set_epi8(
            63, 62, 61, 60, 59, 58, 57, 56, 55, 54, 53, 52, 51, 50, 49, 48, 47, 46, 45, 44, 43, 42, 41, 40, 39,
            38, 37, 36, 35, 34, 33, 32, 31, 30, 29, 28, 27, 26, 25, 24, 23, 22, 21, 20, 19, 18, 17, 16, 15, 14,
            13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
        const auto count = static_cast<std::size_t>(std::popcount(bits));
        const __m512i places = _mm512_maskz_compress_epi8(bits, numbers);
        const __m512i bases = _mm512_set1_epi32(static_cast<int>(base));
        store(out, bases, _mm512_maskz_extracti32x4_epi32(0xF, places, 0));
        if (count > 16) {
            store(out + 16, bases, _mm512_maskz_extracti32x4_epi32(0xF, places, 1));
            if (count > 32) [[unlikely]] {
                store(out + 32, bases, _mm512_maskz_extracti32x4_epi32(0xF, places, 2));
                store(out + 48, bases, _mm512_maskz_extracti32x4_epi32(0xF, places, 3));
            }
        }
        return count;
    }
    [[gnu::always_inline]] static void store(std::uint32_t* out, __m512i bases, __m128i places) noexcept {
        _mm512_storeu_si512(out, _mm512_add_epi32(bases, _mm512_maskz_cvtepu8_epi32(0xFFFF, places)));
    }
};

std::size_t find_avx512(const char* text, std::size_t size, std::uint32_t* borders) noexcept {
    return find_runs_in_windows<Avx512>(text, size, borders);
}

}  // namespace

FindRuns find_runs_avx512() noexcept { return find_avx512; }

}  // namespace pylm::dedup

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#else

#include "dedup/word_runs_block.hpp"

namespace pylm::dedup {
FindRuns find_runs_avx512() noexcept { return nullptr; }
}  // namespace pylm::dedup

#endif
