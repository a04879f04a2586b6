// The kernels of minhash_kernels.hpp as templates over the bytes of a register. Each level compiles them in a file
// of its own, for its own instructions. Include the headers below before switching instructions on.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "dedup/minhash_kernels.hpp"

namespace pylm::dedup {

// Values in two registers at a time: enough to hide the time of a product. `Value` maps register vectors.
template <std::size_t kBytes, typename Word, class Value>
[[gnu::always_inline]] inline void keep_least(const Permuted<Word>& job) noexcept {
    typedef Word Vector [[gnu::vector_size(kBytes)]];
    constexpr std::size_t width = kBytes / sizeof(Word);
    constexpr std::size_t group = 2 * width;
    for (std::size_t begin = 0; begin < job.least.size(); begin += group) {
        const std::size_t count = std::min(group, job.least.size() - begin);
        Vector a[2] = {}, b[2] = {}, least[2] = {};
        std::memcpy(a, job.multipliers.data() + begin, count * sizeof(Word));
        std::memcpy(b, job.increments.data() + begin, count * sizeof(Word));
        std::memcpy(least, job.least.data() + begin, count * sizeof(Word));
        for (const Word x : job.shingles) {
            const Vector first = Value::of(a[0] * x + b[0]);
            const Vector second = Value::of(a[1] * x + b[1]);
            least[0] = first < least[0] ? first : least[0];
            least[1] = second < least[1] ? second : least[1];
        }
        std::memcpy(job.least.data() + begin, least, count * sizeof(Word));
    }
}

struct Itself {
    template <typename Vector>
    [[gnu::always_inline]] static Vector of(Vector x) noexcept {
        return x;
    }
};

// 2^61 = 1: the upper three bits are added; what is then not below the prime is at most 7 above it.
struct ModMersenne61 {
    template <typename Vector>
    [[gnu::always_inline]] static Vector of(Vector x) noexcept {
        constexpr std::uint64_t prime = (std::uint64_t{1} << 61) - 1;
        const Vector sum = (x & prime) + (x >> 61);
        const Vector less = sum - prime;  // wraps around where the sum is below the prime
        return less < sum ? less : sum;
    }
};

struct ModMersenne61Low32 {
    template <typename Vector>
    [[gnu::always_inline]] static Vector of(Vector x) noexcept {
        return ModMersenne61::of(x) & 0xFFFFFFFF;
    }
};

// Defined by the file of each level; null where the compiler does not know its instructions.
const MinHashKernels* minhash_kernels_avx2() noexcept;
const MinHashKernels* minhash_kernels_avx512() noexcept;

}  // namespace pylm::dedup
