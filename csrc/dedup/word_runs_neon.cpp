// Windows in four NEON registers, which every 64-bit Arm has.
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "dedup/word_runs.hpp"

#if defined(__aarch64__)
#include <arm_neon.h>

#include "dedup/word_runs_block.hpp"

namespace pylm::dedup {
namespace {

struct Neon {
    static uint8x16_t in_run(uint8x16_t bytes) noexcept {
        const auto in_range = [](uint8x16_t x, char first, char last) {
            return vcleq_u8(vsubq_u8(x, vdupq_n_u8(static_cast<std::uint8_t>(first))),
                            vdupq_n_u8(static_cast<std::uint8_t>(last - first)));
        };
        const uint8x16_t lower = vorrq_u8(bytes, vdupq_n_u8(0x20));
        return vorrq_u8(vorrq_u8(in_range(lower, 'a', 'z'), in_range(bytes, '0', '9')),
                        vcgeq_u8(bytes, vdupq_n_u8(0x80)));
    }
    // Each byte keeps the bit of its place in eight, and three rounds of adding neighbours leave eight bits a
    // byte.
    static Bits word_bits(const char* p) noexcept {
        const auto* bytes = reinterpret_cast<const std::uint8_t*>(p);
        const uint8x16_t place = vreinterpretq_u8_u64(vdupq_n_u64(0x8040201008040201ULL));
        const auto part = [&](std::size_t i) { return vandq_u8(in_run(vld1q_u8(bytes + 16 * i)), place); };
        const uint8x16_t all = vpaddq_u8(vpaddq_u8(part(0), part(1)), vpaddq_u8(part(2), part(3)));
        return vgetq_lane_u64(vreinterpretq_u64_u8(vpaddq_u8(all, all)), 0);
    }
    static std::size_t write(Bits bits, std::size_t base, std::uint32_t* out) noexcept {
        return write_bits<Neon>(bits, base, out);
    }
};

std::size_t find_neon(const char* text, std::size_t size, std::uint32_t* borders) noexcept {
    return find_runs_in_windows<Neon>(text, size, borders);
}

}  // namespace

FindRuns find_runs_neon() noexcept { return find_neon; }

}  // namespace pylm::dedup

#else

#include "dedup/word_runs_block.hpp"

namespace pylm::dedup {
FindRuns find_runs_neon() noexcept { return nullptr; }
}  // namespace pylm::dedup

#endif
