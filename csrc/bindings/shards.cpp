// What writing token shards takes beside the encoder: counts of words, and the ids of a source in their type.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <span>
#include <stdexcept>
#include <utility>
#include <vector>

#include "bindings/arrow.hpp"
#include "bindings/buffers.hpp"
#include "bindings/module.hpp"
#include "text/spaced_words.hpp"
#include "tokenizer/gather_ids.hpp"

namespace py = pybind11;

namespace pylm::bindings {
namespace {

py::array_t<std::int64_t> count_words(const py::object& object) {
    const Texts texts(object);
    std::vector<std::int64_t> counts(texts.size());
    {
        const py::gil_scoped_release release;
        for (std::size_t i = 0; i < counts.size(); ++i)
            counts[i] = static_cast<std::int64_t>(count_spaced_words(texts.views()[i]));
    }
    return to_array(std::move(counts));
}

template <typename T>
using Input = py::array_t<T, py::array::c_style>;

template <typename T>
std::span<const T> span_of(const Input<T>& array) {
    return {array.data(), static_cast<std::size_t>(array.size())};
}

template <typename Id>
py::tuple gather_as(const Input<TokenId>& ids, const Input<std::int64_t>& offsets,
                    const Input<std::int64_t>& docs, std::size_t vocab_size) {
    const std::span<const TokenId> ids_span = span_of(ids);
    const std::span<const std::int64_t> offsets_span = span_of(offsets);
    const std::span<const std::int64_t> docs_span = span_of(docs);
    py::array_t<Id> out(static_cast<py::ssize_t>(count_ids(ids_span, offsets_span, docs_span)));
    Id* data = out.mutable_data();
    std::vector<std::int64_t> counts(vocab_size);
    {
        const py::gil_scoped_release release;
        gather_ids(ids_span, offsets_span, docs_span, counts, data);
    }
    return py::make_tuple(std::move(out), to_array(std::move(counts)));
}

py::tuple gather(const Input<TokenId>& ids, const Input<std::int64_t>& offsets, const Input<std::int64_t>& docs,
                 std::size_t vocab_size, bool narrow) {
    if (!narrow) return gather_as<std::uint32_t>(ids, offsets, docs, vocab_size);
    if (vocab_size > std::size_t{1} << 16) throw std::invalid_argument("the vocabulary does not fit uint16");
    return gather_as<std::uint16_t>(ids, offsets, docs, vocab_size);
}

}  // namespace

void bind_shards(py::module_& module) {
    module.def("count_words", &count_words, py::arg("texts"));
    module.def("gather_ids", &gather, py::arg("ids"), py::arg("offsets"), py::arg("docs"), py::kw_only(),
               py::arg("vocab_size"), py::arg("narrow"));
}

}  // namespace pylm::bindings
