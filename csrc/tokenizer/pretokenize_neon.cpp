// Windows in four NEON registers, which every 64-bit Arm has.
#include "tokenizer/pretokenize_rules.hpp"

#if defined(__aarch64__)
#include <arm_neon.h>

#include <cstring>

#include "tokenizer/pretokenize_block.hpp"

namespace pylm::pretokenize {
namespace {

struct Neon {
    uint8x16_t part[4];

    static Neon load(const char* data) noexcept {
        const auto* bytes = reinterpret_cast<const std::uint8_t*>(data);
        return {{vld1q_u8(bytes), vld1q_u8(bytes + 16), vld1q_u8(bytes + 32), vld1q_u8(bytes + 48)}};
    }
    static Neon load(const char* data, std::size_t size) noexcept {
        char padded[kWindow] = {};
        std::memcpy(padded, data, size);
        return load(padded);
    }
    // One bit of each byte, which is all ones or zero: each keeps the bit of its place in eight, and three
    // rounds of adding neighbours leave eight bits a byte.
    static Bits mask(uint8x16_t a, uint8x16_t b, uint8x16_t c, uint8x16_t d) noexcept {
        const uint8x16_t place = vreinterpretq_u8_u64(vdupq_n_u64(0x8040201008040201ULL));
        const uint8x16_t ab = vpaddq_u8(vandq_u8(a, place), vandq_u8(b, place));
        const uint8x16_t cd = vpaddq_u8(vandq_u8(c, place), vandq_u8(d, place));
        const uint8x16_t all = vpaddq_u8(ab, cd);
        return vgetq_lane_u64(vreinterpretq_u64_u8(vpaddq_u8(all, all)), 0);
    }
    Bits high() const noexcept {
        const uint8x16_t bound = vdupq_n_u8(0x80);
        return mask(vcgeq_u8(part[0], bound), vcgeq_u8(part[1], bound), vcgeq_u8(part[2], bound),
                    vcgeq_u8(part[3], bound));
    }
    Bits equals(char byte) const noexcept {
        const uint8x16_t all = vdupq_n_u8(static_cast<std::uint8_t>(byte));
        return mask(vceqq_u8(part[0], all), vceqq_u8(part[1], all), vceqq_u8(part[2], all),
                    vceqq_u8(part[3], all));
    }
    Bits in_range(char first, char last) const noexcept {
        const uint8x16_t low = vdupq_n_u8(static_cast<std::uint8_t>(first));
        const uint8x16_t width = vdupq_n_u8(static_cast<std::uint8_t>(last - first));
        return mask(vcleq_u8(vsubq_u8(part[0], low), width), vcleq_u8(vsubq_u8(part[1], low), width),
                    vcleq_u8(vsubq_u8(part[2], low), width), vcleq_u8(vsubq_u8(part[3], low), width));
    }
    Neon lower_case() const noexcept {
        const uint8x16_t bit = vdupq_n_u8(0x20);
        return {{vorrq_u8(part[0], bit), vorrq_u8(part[1], bit), vorrq_u8(part[2], bit),
                 vorrq_u8(part[3], bit)}};
    }
    static std::size_t write(Bits bits, std::uint32_t base, std::uint32_t* out) noexcept {
        return write_bits<Neon>(bits, base, out);
    }
};

template <Pattern P>
struct Machine {
    static std::size_t cut(std::string_view text, std::size_t position,
                           std::span<std::uint32_t> ends) noexcept {
        return cut_windows<P, Neon>(text, position, ends);
    }
};

}  // namespace

CutFunction find_cut_neon(Pattern pattern) noexcept { return select<Machine>(pattern); }

}  // namespace pylm::pretokenize

#else

namespace pylm::pretokenize {
CutFunction find_cut_neon(Pattern) noexcept { return nullptr; }
}  // namespace pylm::pretokenize

#endif
