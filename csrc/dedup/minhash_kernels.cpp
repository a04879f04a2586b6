#include "dedup/minhash_kernels.hpp"

#include <stdexcept>

#include "dedup/minhash_kernels_block.hpp"

namespace pylm::dedup {
namespace {

// Registers of 16 bytes: SSE2 and NEON, which the compiler may take for granted.
void affine32(const Permuted<std::uint32_t>& job) noexcept { keep_least<16, std::uint32_t, Itself>(job); }
void affine64(const Permuted<std::uint64_t>& job) noexcept { keep_least<16, std::uint64_t, Itself>(job); }
void mersenne(const Permuted<std::uint64_t>& job) noexcept { keep_least<16, std::uint64_t, ModMersenne61>(job); }
void mersenne32(const Permuted<std::uint64_t>& job) noexcept {
    keep_least<16, std::uint64_t, ModMersenne61Low32>(job);
}

constexpr MinHashKernels kKernels = {affine32, affine64, mersenne, mersenne32};

// Value by value, for comparison.
template <typename Word, class Value>
void keep_least_plainly(const Permuted<Word>& job) noexcept {
    for (const Word x : job.shingles) {
        for (std::size_t k = 0; k < job.least.size(); ++k) {
            const Word value = Value::of(static_cast<Word>(job.multipliers[k] * x + job.increments[k]));
            job.least[k] = std::min(job.least[k], value);
        }
    }
}

constexpr MinHashKernels kPlain = {
    keep_least_plainly<std::uint32_t, Itself>, keep_least_plainly<std::uint64_t, Itself>,
    keep_least_plainly<std::uint64_t, ModMersenne61>, keep_least_plainly<std::uint64_t, ModMersenne61Low32>};

}  // namespace

const MinHashKernels& minhash_kernels(SimdLevel level) {
    if (!has_simd(level)) throw std::invalid_argument("this machine does not have the SIMD level asked for");
    switch (level) {
        case SimdLevel::kNone: return kPlain;
        case SimdLevel::kWords:
        case SimdLevel::kNeon: return kKernels;
        case SimdLevel::kAvx2: return *minhash_kernels_avx2();
        case SimdLevel::kAvx512: return *minhash_kernels_avx512();
    }
    throw std::invalid_argument("no such SIMD level");
}

}  // namespace pylm::dedup
