// Items that nobody changes any more: of its own, or in memory that somebody else keeps, such as a mapped file.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <utility>
#include <vector>

namespace pylm {

// Copies share the items.
template <typename T>
class SharedArray {
  public:
    SharedArray() = default;

    template <typename Allocator>
    explicit SharedArray(std::vector<T, Allocator> items) {
        auto owned = std::make_shared<const std::vector<T, Allocator>>(std::move(items));
        items_ = *owned;
        owner_ = std::move(owned);
    }

    // `owner` keeps the memory of `items`.
    SharedArray(std::span<const T> items, std::shared_ptr<const void> owner)
        : items_(items), owner_(std::move(owner)) {}

    const T& operator[](std::size_t i) const noexcept { return items_[i]; }
    const T* data() const noexcept { return items_.data(); }
    std::size_t size() const noexcept { return items_.size(); }
    bool empty() const noexcept { return items_.empty(); }
    std::span<const T> items() const noexcept { return items_; }
    auto begin() const noexcept { return items_.begin(); }
    auto end() const noexcept { return items_.end(); }

  private:
    std::span<const T> items_;
    std::shared_ptr<const void> owner_;
};

}  // namespace pylm
