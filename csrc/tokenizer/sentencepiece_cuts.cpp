#include "tokenizer/sentencepiece_cuts.hpp"

#include <algorithm>

#include "text/unicode.hpp"

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace pylm {

namespace {

constexpr std::array<std::uint8_t, 256> kClasses = [] {
    std::array<std::uint8_t, 256> classes{};
    for (std::size_t byte = 0; byte < 256; ++byte) {
        const bool letter = (byte >= 'a' && byte <= 'z') || (byte >= 'A' && byte <= 'Z');
        classes[byte] = byte >= 0x80                   ? CutTable::kHighByte
                        : byte < 0x20                  ? CutTable::kControlByte
                        : byte == ' '                  ? CutTable::kSpaceByte
                        : letter                       ? CutTable::kLetterByte
                        : byte >= '0' && byte <= '9' ? CutTable::kDigitByte
                                                       : CutTable::kPunctByte;
    }
    return classes;
}();

// The bit of each class, for a table lookup of 16 entries.
constexpr std::array<std::uint8_t, 16> kBits = {1, 2, 4, 8, 16, 32};

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))

__attribute__((target("avx2"))) inline __m256i is_between(__m256i x, char low, char high) noexcept {
    return _mm256_and_si256(_mm256_cmpgt_epi8(x, _mm256_set1_epi8(static_cast<char>(low - 1))),
                            _mm256_cmpgt_epi8(_mm256_set1_epi8(static_cast<char>(high + 1)), x));
}

__attribute__((target("avx2"))) inline __m256i keep(__m256i mask, std::uint8_t value) noexcept {
    return _mm256_and_si256(mask, _mm256_set1_epi8(static_cast<char>(value)));
}

__attribute__((target("avx2"))) inline __m256i classes_avx2(__m256i bytes) noexcept {
    const __m256i lower = _mm256_or_si256(bytes, _mm256_set1_epi8(0x20));
    // The masks exclude each other, so the numbers of the classes may be joined by "or".
    __m256i classes = keep(is_between(lower, 'a', 'z'), CutTable::kLetterByte);
    classes = _mm256_or_si256(classes, keep(is_between(bytes, '0', '9'), CutTable::kDigitByte));
    classes = _mm256_or_si256(classes, keep(_mm256_cmpgt_epi8(_mm256_setzero_si256(), bytes), CutTable::kHighByte));
    classes = _mm256_or_si256(classes, keep(is_between(bytes, 0, 0x1F), CutTable::kControlByte));
    return _mm256_or_si256(classes, keep(_mm256_cmpeq_epi8(bytes, _mm256_set1_epi8(' ')), CutTable::kSpaceByte));
}

__attribute__((target("avx2"))) std::uint64_t borders_avx2(const char* block, std::uint8_t before,
                                                           const std::uint8_t* cut) noexcept {
    const __m256i cut_table =
        _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(cut)));
    const __m256i bit_table =
        _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(kBits.data())));
    __m256i last = _mm256_set1_epi8(static_cast<char>(kClasses[before]));
    std::uint64_t result = 0;
    for (unsigned half = 0; half < 2; ++half) {
        const __m256i classes =
            classes_avx2(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(block + 32 * half)));
        const __m256i previous =
            _mm256_alignr_epi8(classes, _mm256_permute2x128_si256(last, classes, 0x21), 15);
        const __m256i joined = _mm256_cmpeq_epi8(
            _mm256_and_si256(_mm256_shuffle_epi8(cut_table, previous), _mm256_shuffle_epi8(bit_table, classes)),
            _mm256_setzero_si256());
        const auto mask = ~static_cast<std::uint32_t>(_mm256_movemask_epi8(joined));
        result |= static_cast<std::uint64_t>(mask) << (32 * half);
        last = classes;
    }
    return result;
}

#elif defined(__aarch64__)

inline uint8x16_t is_between(uint8x16_t x, std::uint8_t low, std::uint8_t high) noexcept {
    return vandq_u8(vcgeq_u8(x, vdupq_n_u8(low)), vcleq_u8(x, vdupq_n_u8(high)));
}

inline uint8x16_t keep(uint8x16_t mask, std::uint8_t value) noexcept { return vandq_u8(mask, vdupq_n_u8(value)); }

inline uint8x16_t classes_neon(uint8x16_t bytes) noexcept {
    const uint8x16_t lower = vorrq_u8(bytes, vdupq_n_u8(0x20));
    uint8x16_t classes = keep(is_between(lower, 'a', 'z'), CutTable::kLetterByte);
    classes = vorrq_u8(classes, keep(is_between(bytes, '0', '9'), CutTable::kDigitByte));
    classes = vorrq_u8(classes, keep(vcgeq_u8(bytes, vdupq_n_u8(0x80)), CutTable::kHighByte));
    classes = vorrq_u8(classes, keep(vcltq_u8(bytes, vdupq_n_u8(0x20)), CutTable::kControlByte));
    return vorrq_u8(classes, keep(vceqq_u8(bytes, vdupq_n_u8(' ')), CutTable::kSpaceByte));
}

std::uint64_t borders_neon(const char* block, std::uint8_t before, const std::uint8_t* cut) noexcept {
    const uint8x16_t cut_table = vld1q_u8(cut);
    const uint8x16_t bit_table = vld1q_u8(kBits.data());
    constexpr std::uint8_t places[16] = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    const uint8x16_t weights = vld1q_u8(places);
    uint8x16_t last = vdupq_n_u8(kClasses[before]);
    std::uint64_t result = 0;
    for (unsigned part = 0; part < 4; ++part) {
        const uint8x16_t classes =
            classes_neon(vld1q_u8(reinterpret_cast<const std::uint8_t*>(block) + 16 * part));
        const uint8x16_t previous = vextq_u8(last, classes, 15);
        const uint8x16_t mask =
            vandq_u8(vtstq_u8(vqtbl1q_u8(cut_table, previous), vqtbl1q_u8(bit_table, classes)), weights);
        const std::uint64_t bits =
            vaddv_u8(vget_low_u8(mask)) | (static_cast<std::uint64_t>(vaddv_u8(vget_high_u8(mask))) << 8);
        result |= bits << (16 * part);
        last = classes;
    }
    return result;
}

#endif

}  // namespace

CutTable::CutTable(std::span<const std::uint8_t, 16> table) noexcept : any_(true) {
    std::ranges::copy(table, cut_.begin());
}

CutTable::CutTable(std::span<const std::string_view> results, bool split_words) : any_(true) {
    std::array<std::uint8_t, 16> joined{};
    const auto classes = [](char32_t point) -> unsigned {
        if (point == 0x2581) return (1U << kHighByte) | (1U << kSpaceByte);
        return 1U << (point < 0x80 ? kClasses[point] : static_cast<std::uint8_t>(kHighByte));
    };
    for (const std::string_view text : results) {
        unsigned before = 0;
        for (std::size_t i = 0; i < text.size();) {
            const Decoded decoded = decode_utf8(text, i);
            const unsigned here = classes(decoded.point);
            for (unsigned c = 0; c < kNumClasses; ++c) {
                if (((before >> c) & 1) != 0) joined[c] = static_cast<std::uint8_t>(joined[c] | here);
            }
            before = here;
            i += decoded.size;
        }
    }
    joined[kHighByte] |= 1U << kHighByte;  // the bytes of one character
    for (std::size_t c = 0; c < kNumClasses; ++c) {
        unsigned cut = ~static_cast<unsigned>(joined[c]) & ((1U << kNumClasses) - 1);
        if (split_words) cut |= 1U << kSpaceByte;
        cut_[c] = static_cast<std::uint8_t>(cut);
    }
}

CutTable::Class CutTable::class_of(std::uint8_t byte) noexcept { return static_cast<Class>(kClasses[byte]); }

std::uint64_t CutTable::borders_scalar(const char* block, std::uint8_t before) const noexcept {
    std::uint64_t result = 0;
    for (unsigned i = 0; i < 64; ++i) {
        const auto byte = static_cast<std::uint8_t>(block[i]);
        result |= static_cast<std::uint64_t>(cuts(before, byte)) << i;
        before = byte;
    }
    return result;
}

std::uint64_t CutTable::borders(const char* block, std::uint8_t before, bool simd) const noexcept {
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
    static const bool has_avx2 = __builtin_cpu_supports("avx2") != 0;
    if (simd && has_avx2) return borders_avx2(block, before, cut_.data());
#elif defined(__aarch64__)
    if (simd) return borders_neon(block, before, cut_.data());
#endif
    static_cast<void>(simd);
    return borders_scalar(block, before);
}

}  // namespace pylm
