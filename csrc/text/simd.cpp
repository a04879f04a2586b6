#include "text/simd.hpp"

#include <array>

namespace pylm {
namespace {

constexpr std::array kSlowestFirst = {SimdLevel::kNone, SimdLevel::kWords, SimdLevel::kAvx2,
                                      SimdLevel::kAvx512, SimdLevel::kNeon};

}  // namespace

bool has_simd(SimdLevel level) noexcept {
    switch (level) {
        case SimdLevel::kNone:
        case SimdLevel::kWords: return true;
        case SimdLevel::kAvx2:
#if defined(__x86_64__)
            return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") &&
                   __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("popcnt");
#else
            return false;
#endif
        case SimdLevel::kAvx512:
#if defined(__x86_64__)
            return has_simd(SimdLevel::kAvx2) && __builtin_cpu_supports("avx512f") &&
                   __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                   __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                   __builtin_cpu_supports("avx512vbmi2");
#else
            return false;
#endif
        case SimdLevel::kNeon:
#if defined(__aarch64__)
            return true;
#else
            return false;
#endif
    }
    return false;
}

std::vector<SimdLevel> simd_levels() {
    std::vector<SimdLevel> levels;
    for (const SimdLevel level : kSlowestFirst) {
        if (has_simd(level)) levels.push_back(level);
    }
    return levels;
}

SimdLevel best_simd_level() noexcept {
    SimdLevel best = SimdLevel::kNone;
    for (const SimdLevel level : kSlowestFirst) {
        if (has_simd(level)) best = level;
    }
    return best;
}

}  // namespace pylm
