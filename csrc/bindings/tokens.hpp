// Token ids for Python.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>

#include "bindings/arrow.hpp"
#include "bindings/buffers.hpp"
#include "bindings/long_call.hpp"
#include "text/mapped_file.hpp"
#include "tokenizer/bpe_encode.hpp"
#include "tokenizer/decode.hpp"
#include "tokenizer/section_file.hpp"
#include "tokenizer/vocabulary.hpp"

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

// The bytes of a file that gives these parts back; `out` may have others already.
template <typename Encoder>
pybind11::bytes write_parts(const pybind11::bytes& description, const PackedVocabulary& vocabulary,
                            const Encoder& encoder, const TokenDecoder& decoder, SectionWriter out = {}) {
    const std::string_view text = description;
    out.add(Section::kDescription, std::span<const char>(text));
    vocabulary.write(out);
    encoder.write(out, vocabulary.merges().items());
    decoder.write(out);
    return std::move(out).finish();
}

// What all encoders have for many texts: `encode_texts` and `encode_file`.
template <typename Encoder>
void def_encode_many(pybind11::class_<Encoder>& cls) {
    namespace py = pybind11;
    cls.def(
        "encode_texts",
        [](const Encoder& encoder, const py::object& texts, std::optional<TokenId> end_id, unsigned num_threads) {
            const Texts read(texts, "texts", Texts::Items::kStrOrBytes);
            TokenBatch batch;
            {
                const LongCall call;
                batch = encoder.encode_batch(read.views(), num_threads, end_id);
            }
            return to_tuple(std::move(batch));
        },
        py::arg("texts"), py::kw_only(), py::arg("end_id"), py::arg("num_threads"));
    cls.def(
        "encode_file",
        [](const Encoder& encoder, const std::string& path, const std::string& separator, unsigned num_threads) {
            TokenBatch batch;
            {
                const LongCall call;
                const MappedFile file(path);
                batch = encoder.encode_separated(file.bytes(), separator, num_threads);
            }
            return to_tuple(std::move(batch));
        },
        py::arg("path"), py::arg("separator"), py::kw_only(), py::arg("num_threads"));
}

}  // namespace pylm::bindings
