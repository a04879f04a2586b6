// Ids on their way from many threads into one array, in the order of the text.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <span>
#include <utility>
#include <vector>

#include "huge_pages.hpp"
#include "interrupt.hpp"
#include "parallel.hpp"
#include "tokenizer/merges.hpp"
#include "tokenizer/pool.hpp"

namespace pylm {

// A growing array of ids whose new places are not written to: memory that is never used costs nothing. Empty
// once it is moved from.
class TokenBuffer {
  public:
    TokenBuffer() = default;
    TokenBuffer(TokenBuffer&& other) noexcept
        : data_(std::move(other.data_)),
          size_(std::exchange(other.size_, 0)),
          capacity_(std::exchange(other.capacity_, 0)) {}
    TokenBuffer& operator=(TokenBuffer&& other) noexcept {
        data_ = std::move(other.data_);
        size_ = std::exchange(other.size_, 0);
        capacity_ = std::exchange(other.capacity_, 0);
        return *this;
    }

    TokenId* data() noexcept { return data_.get(); }
    const TokenId* data() const noexcept { return data_.get(); }
    std::size_t size() const noexcept { return size_; }
    std::size_t capacity() const noexcept { return capacity_; }
    bool empty() const noexcept { return size_ == 0; }
    const TokenId* begin() const noexcept { return data(); }
    const TokenId* end() const noexcept { return data() + size_; }
    std::span<const TokenId> ids() const noexcept { return {data(), size_}; }
    bool operator==(const TokenBuffer& other) const noexcept { return std::ranges::equal(*this, other); }

    // Room for `capacity` ids in all, and more where it grows again and again; keeps what is there. Throws
    // std::bad_alloc.
    void reserve(std::size_t capacity) {
        if (capacity <= capacity_) return;
        capacity = std::max(capacity, size_ + size_ / 2);
        std::unique_ptr<TokenId[], Free> grown(static_cast<TokenId*>(allocate_huge(capacity * sizeof(TokenId))));
        if (size_ > 0) std::memcpy(grown.get(), data_.get(), size_ * sizeof(TokenId));
        data_ = std::move(grown);
        capacity_ = capacity;
    }
    void push_back(TokenId id) {
        if (size_ == capacity_) reserve(std::max<std::size_t>(16, 2 * capacity_));
        data_[size_++] = id;
    }
    // The first `size` <= capacity() ids count; new ones have no certain value.
    void resize(std::size_t size) noexcept { size_ = size; }

  private:
    struct Free {
        void operator()(TokenId* data) const noexcept { std::free(data); }
    };

    std::unique_ptr<TokenId[], Free> data_;
    std::size_t size_ = 0;
    std::size_t capacity_ = 0;
};

// Puts numbered parts, finished in any order by several threads, one behind the other. A part's place is
// known when all before it are finished; until then its buffer waits.
class OrderedOutput {
  public:
    // `num_parts` parts in all, about as large as each other; `expected` ids: a guess.
    OrderedOutput(std::size_t num_parts, std::size_t expected) : num_parts_(num_parts) { out_.reserve(expected); }

    // An empty buffer to write a part into.
    TokenBuffer take_buffer() {
        const std::scoped_lock lock(mutex_);
        if (spare_.empty()) return {};
        TokenBuffer buffer = std::move(spare_.back());
        spare_.pop_back();
        return buffer;
    }

    // Part `index` is finished. Each index of 0, 1, 2, ... is given once. Calls `placed(index, offset)` for
    // every part whose place in the output is now known, from one of the threads.
    template <typename Placed>
    void commit(std::size_t index, TokenBuffer&& buffer, Placed&& placed) {
        std::vector<Ready> ready;
        {
            const std::scoped_lock lock(mutex_);
            waiting_.emplace(index, std::move(buffer));
            for (auto it = waiting_.begin(); it != waiting_.end() && it->first == next_; ++next_) {
                const std::size_t size = it->second.size();
                ready.push_back({it->first, total_, std::move(it->second)});
                total_ += size;
                it = waiting_.erase(it);
            }
            if (total_ > out_.capacity()) {
                const std::unique_lock grow(growth_);
                out_.resize(out_.capacity());  // parts lie anywhere in it
                out_.reserve(std::max(total_, total_ / next_ * num_parts_ + total_ / 8));
            }
        }
        for (Ready& part : ready) {
            if (part.buffer.size() > 0) {
                const std::shared_lock copy(growth_);
                std::memcpy(out_.data() + part.offset, part.buffer.data(), part.buffer.size() * sizeof(TokenId));
            }
            placed(part.index, part.offset);
            part.buffer.resize(0);
        }
        const std::scoped_lock lock(mutex_);
        for (Ready& part : ready) spare_.push_back(std::move(part.buffer));
    }

    // All ids, once every part has been committed and no thread is left.
    TokenBuffer finish() && {
        out_.resize(total_);
        return std::move(out_);
    }

  private:
    struct Ready {
        std::size_t index;
        std::size_t offset;
        TokenBuffer buffer;
    };
    const std::size_t num_parts_;
    std::mutex mutex_;
    std::shared_mutex growth_;  // held while ids are copied, alone while the array may move
    TokenBuffer out_;
    std::size_t next_ = 0;
    std::size_t total_ = 0;
    std::map<std::size_t, TokenBuffer> waiting_;
    std::vector<TokenBuffer> spare_;
};

// Encode numbered chunks of a text of `num_bytes` on several threads, one of the pool's workers each; chunks go
// to whoever is free. `encode(index, worker, buffer)` appends a chunk's ids to the buffer, which may hold others;
// `placed(index, offset)` is told where they have come to lie.
template <typename Worker, typename Encode, typename Placed>
TokenBuffer encode_chunks(Pool<Worker>& workers, std::size_t num_chunks, std::size_t num_bytes, unsigned num_threads,
                          Encode&& encode, Placed&& placed) {
    const std::size_t expected = num_bytes / 2 + 16;  // rarely more; what is not written to costs nothing
    const std::size_t num_workers = std::min<std::size_t>(resolve_threads(num_threads), num_chunks);
    if (num_workers <= 1) {  // straight into the result, without a copy
        TokenBuffer ids;
        ids.reserve(expected);
        const auto worker = workers.take();
        for (std::size_t index = 0; index < num_chunks; ++index) {
            check_interrupt();
            const std::size_t offset = ids.size();
            encode(index, *worker, ids);
            placed(index, offset);
        }
        return ids;
    }
    OrderedOutput output(num_chunks, expected);
    std::atomic<std::size_t> next_chunk{0};
    parallel_for(num_workers, num_threads, [&](std::size_t) {
        const auto worker = workers.take();
        for (;;) {
            const std::size_t index = next_chunk.fetch_add(1, std::memory_order_relaxed);
            if (index >= num_chunks) break;
            try {
                check_interrupt();
                TokenBuffer buffer = output.take_buffer();
                encode(index, *worker, buffer);
                output.commit(index, std::move(buffer), placed);
            } catch (...) {
                next_chunk.store(num_chunks, std::memory_order_relaxed);  // the others stop as well
                throw;
            }
        }
    });
    return std::move(output).finish();
}

}  // namespace pylm
