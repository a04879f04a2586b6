// Token ids for Python.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <memory>
#include <span>
#include <utility>

#include "bindings/buffers.hpp"
#include "tokenizer/bpe_encode.hpp"

namespace pylm::bindings {

// Hand the ids to NumPy without copying.
inline pybind11::array_t<TokenId> to_token_array(TokenBuffer&& ids) {
    auto owner = std::make_unique<TokenBuffer>(std::move(ids));
    const TokenId* data = owner->data();
    const auto size = static_cast<pybind11::ssize_t>(owner->size());
    pybind11::capsule capsule(owner.get(), [](void* p) { delete static_cast<TokenBuffer*>(p); });
    owner.release();
    return pybind11::array_t<TokenId>(size, data, capsule);
}

inline pybind11::tuple to_tuple(TokenBatch&& batch) {
    return pybind11::make_tuple(to_token_array(std::move(batch.ids)), to_array(std::move(batch.offsets)));
}

// A list of int, as tiktoken gives it.
inline pybind11::list to_list(std::span<const TokenId> ids) {
    pybind11::list list(ids.size());
    for (std::size_t i = 0; i < ids.size(); ++i) {
        PyObject* number = PyLong_FromUnsignedLong(ids[i]);
        if (number == nullptr) throw pybind11::error_already_set();
        PyList_SET_ITEM(list.ptr(), static_cast<pybind11::ssize_t>(i), number);
    }
    return list;
}

}  // namespace pylm::bindings
