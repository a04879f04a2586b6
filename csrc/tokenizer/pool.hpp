// Objects that threads borrow, one each, and that keep what they have learnt for the next one.
#pragma once

#include <memory>
#include <mutex>
#include <utility>
#include <vector>

namespace pylm {

// Holds as many objects as were ever in use at once. Safe for many threads.
template <typename T>
class Pool {
  public:
    // One's own until the pointer ends, which gives it back. The pool must outlive it.
    auto take() {
        std::unique_ptr<T> object;
        {
            const std::scoped_lock lock(mutex_);
            if (!idle_.empty()) {
                object = std::move(idle_.back());
                idle_.pop_back();
            }
        }
        if (object == nullptr) object = std::make_unique<T>();
        const auto give = [this](T* returned) {
            std::unique_ptr<T> owned(returned);
            try {
                const std::scoped_lock lock(mutex_);
                idle_.push_back(std::move(owned));
            } catch (...) {
                // No memory to keep it: the object ends here, what it has learnt is learnt again.
            }
        };
        return std::unique_ptr<T, decltype(give)>(object.release(), give);
    }

  private:
    std::mutex mutex_;
    std::vector<std::unique_ptr<T>> idle_;
};

}  // namespace pylm
