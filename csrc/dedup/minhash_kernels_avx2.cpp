// Registers of 32 bytes.
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "dedup/minhash_kernels.hpp"

#if defined(__x86_64__)

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,bmi,bmi2,popcnt"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,bmi,bmi2,popcnt")
#endif

#include "dedup/minhash_kernels_block.hpp"

namespace pylm::dedup {
namespace {

void affine32(const Permuted<std::uint32_t>& job) noexcept { keep_least<32, std::uint32_t, Itself>(job); }
void affine64(const Permuted<std::uint64_t>& job) noexcept { keep_least<32, std::uint64_t, Itself>(job); }
void mersenne(const Permuted<std::uint64_t>& job) noexcept { keep_least<32, std::uint64_t, ModMersenne61>(job); }
void mersenne32(const Permuted<std::uint64_t>& job) noexcept {
    keep_least<32, std::uint64_t, ModMersenne61Low32>(job);
}

constexpr MinHashKernels kKernels = {affine32, affine64, mersenne, mersenne32};

}  // namespace

const MinHashKernels* minhash_kernels_avx2() noexcept { return &kKernels; }

}  // namespace pylm::dedup

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#else

#include "dedup/minhash_kernels_block.hpp"

namespace pylm::dedup {
const MinHashKernels* minhash_kernels_avx2() noexcept { return nullptr; }
}  // namespace pylm::dedup

#endif
