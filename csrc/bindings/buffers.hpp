// Vectors of the core as NumPy arrays.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <utility>
#include <vector>

#include "huge_pages.hpp"

namespace pylm::bindings {

// Hand a vector to NumPy without copying; `shape` has as many elements as the vector.
template <typename T>
pybind11::array_t<T> to_array(std::vector<T>&& values, std::vector<pybind11::ssize_t> shape) {
    auto owner = std::make_unique<std::vector<T>>(std::move(values));
    T* data = owner->data();
    pybind11::capsule capsule(owner.get(), [](void* p) { delete static_cast<std::vector<T>*>(p); });
    owner.release();
    return pybind11::array_t<T>(std::move(shape), data, capsule);
}

template <typename T>
pybind11::array_t<T> to_array(std::vector<T>&& values) {
    const auto size = static_cast<pybind11::ssize_t>(values.size());
    return to_array(std::move(values), {size});
}

// An array of one dimension, not initialised, in large pages: for results that are written all over.
template <typename T>
pybind11::array_t<T> huge_array(std::size_t size) {
    std::unique_ptr<void, decltype(&std::free)> memory(allocate_huge(size * sizeof(T)), &std::free);
    T* data = static_cast<T*>(memory.get());
    pybind11::capsule owner(data, [](void* p) { std::free(p); });
    memory.release();
    return pybind11::array_t<T>({static_cast<pybind11::ssize_t>(size)}, data, owner);
}

}  // namespace pylm::bindings
