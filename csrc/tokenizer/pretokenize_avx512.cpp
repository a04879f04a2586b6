// Windows in one AVX-512 register.
#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string_view>

#include "tokenizer/pretokenize_rules.hpp"

#if defined(__x86_64__)
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(                                                                    \
    __attribute__((target("avx2,bmi,bmi2,popcnt,lzcnt,avx512f,avx512bw,avx512vl,avx512vbmi2"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,bmi,bmi2,popcnt,lzcnt,avx512f,avx512bw,avx512vl,avx512vbmi2")
#endif

#include "tokenizer/pretokenize_block.hpp"

namespace pylm::pretokenize {
namespace {

struct Avx512 {
    __m512i bytes;

    [[gnu::always_inline]] static Avx512 load(const char* data) noexcept {
        return {_mm512_loadu_si512(data)};
    }
    [[gnu::always_inline]] static Avx512 load(const char* data, std::size_t size) noexcept {
        return {_mm512_maskz_loadu_epi8((Bits{1} << size) - 1, data)};
    }
    [[gnu::always_inline]] Bits high() const noexcept { return _mm512_movepi8_mask(bytes); }
    [[gnu::always_inline]] Bits equals(char byte) const noexcept {
        return _mm512_cmpeq_epi8_mask(bytes, _mm512_set1_epi8(byte));
    }
    [[gnu::always_inline]] Bits in_range(char first, char last) const noexcept {
        return _mm512_cmple_epu8_mask(_mm512_sub_epi8(bytes, _mm512_set1_epi8(first)),
                                      _mm512_set1_epi8(static_cast<char>(last - first)));
    }
    [[gnu::always_inline]] Avx512 lower_case() const noexcept {
        return {_mm512_or_si512(bytes, _mm512_set1_epi8(0x20))};
    }
    [[gnu::always_inline]] static std::size_t write(Bits bits, std::uint32_t base,
                                                    std::uint32_t* out) noexcept {
        const __m512i numbers = _mm512_set_epi8(
            63, 62, 61, 60, 59, 58, 57, 56, 55, 54, 53, 52, 51, 50, 49, 48, 47, 46, 45, 44, 43, 42, 41, 40, 39,
            38, 37, 36, 35, 34, 33, 32, 31, 30, 29, 28, 27, 26, 25, 24, 23, 22, 21, 20, 19, 18, 17, 16, 15, 14,
            13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
        const auto count = static_cast<std::size_t>(std::popcount(bits));
        const __m512i places = _mm512_maskz_compress_epi8(bits, numbers);
        const __m512i bases = _mm512_set1_epi32(static_cast<int>(base));
        store(out, bases, _mm512_maskz_extracti32x4_epi32(0xF, places, 0));
        if (count > 16) [[unlikely]] {
            store(out + 16, bases, _mm512_maskz_extracti32x4_epi32(0xF, places, 1));
            store(out + 32, bases, _mm512_maskz_extracti32x4_epi32(0xF, places, 2));
            store(out + 48, bases, _mm512_maskz_extracti32x4_epi32(0xF, places, 3));
        }
        return count;
    }
    [[gnu::always_inline]] static void store(std::uint32_t* out, __m512i bases, __m128i places) noexcept {
        _mm512_storeu_si512(out, _mm512_add_epi32(bases, _mm512_maskz_cvtepu8_epi32(0xFFFF, places)));
    }
};

template <Pattern P>
struct Machine {
    static std::size_t cut(std::string_view text, std::size_t position,
                           std::span<std::uint32_t> ends) noexcept {
        return cut_windows<P, Avx512>(text, position, ends);
    }
};

}  // namespace

CutFunction find_cut_avx512(Pattern pattern) noexcept { return select<Machine>(pattern); }

}  // namespace pylm::pretokenize

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#else

namespace pylm::pretokenize {
CutFunction find_cut_avx512(Pattern) noexcept { return nullptr; }
}  // namespace pylm::pretokenize

#endif
