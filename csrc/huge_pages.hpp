// Memory in large pages where the system has them: tables that are read all over miss the page tables' cache
// less, and the first touch of a large array costs less.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace pylm {

inline constexpr std::size_t kHugePage = std::size_t{1} << 21;

// Uninitialised memory on a cache line's border, to be freed with std::free. What takes half a large page gets a whole
// one. Throws std::bad_alloc.
inline void* allocate_huge(std::size_t size) {
    const bool is_large = size >= kHugePage / 2;
    if (is_large) size += (kHugePage - size % kHugePage) % kHugePage;
    void* memory = nullptr;
    if (::posix_memalign(&memory, is_large ? kHugePage : 64, size == 0 ? 1 : size) != 0) throw std::bad_alloc();
#if defined(__linux__)
    if (is_large) ::madvise(memory, size, MADV_HUGEPAGE);  // advice: a refusal changes speed only
#endif
    return memory;
}

// For std::vector.
template <typename T>
struct HugePageAllocator {
    using value_type = T;
    static_assert(alignof(T) <= 64);

    HugePageAllocator() noexcept = default;
    template <typename U>
    explicit HugePageAllocator(const HugePageAllocator<U>&) noexcept {}

    T* allocate(std::size_t count) {
        if (count > static_cast<std::size_t>(-1) / sizeof(T)) throw std::bad_alloc();
        return static_cast<T*>(allocate_huge(count * sizeof(T)));
    }
    void deallocate(T* memory, std::size_t) noexcept { std::free(memory); }
    bool operator==(const HugePageAllocator&) const noexcept { return true; }
};

}  // namespace pylm
