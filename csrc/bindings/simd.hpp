// Names of SIMD levels in Python, for tests that force one.
#pragma once

#include <pybind11/pybind11.h>

#include <string>
#include <string_view>

#include "text/simd.hpp"

namespace pylm::bindings {

inline std::string_view name_of(SimdLevel level) noexcept {
    switch (level) {
        case SimdLevel::kNone: return "none";
        case SimdLevel::kWords: return "words";
        case SimdLevel::kAvx2: return "avx2";
        case SimdLevel::kAvx512: return "avx512";
        case SimdLevel::kNeon: return "neon";
    }
    return "";
}

// Throws ValueError for a level that this machine does not have.
inline SimdLevel level_of(std::string_view name) {
    for (const SimdLevel level : simd_levels()) {
        if (name_of(level) == name) return level;
    }
    throw pybind11::value_error("this machine has no SIMD level '" + std::string(name) + "'");
}

}  // namespace pylm::bindings
