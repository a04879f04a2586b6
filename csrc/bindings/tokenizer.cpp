// Converts, releases the GIL, calls, hands buffers over. The door with the checks is pylm/text/tokenizer.py.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "bindings/buffers.hpp"
#include "bindings/module.hpp"
#include "tokenizer/bpe_encode.hpp"
#include "tokenizer/pretokenize.hpp"

namespace py = pybind11;

namespace pylm::bindings {

namespace {

py::tuple to_tuple(TokenBatch&& batch) {
    return py::make_tuple(to_array(std::move(batch.ids)), to_array(std::move(batch.offsets)));
}

// Views of the UTF-8 that CPython keeps inside each str, or of bytes. Holds the items: a sequence may make
// them afresh at every access, or change while the interpreter lock is released.
class Items {
  public:
    explicit Items(const py::sequence& texts)
        : items_(py::reinterpret_steal<py::object>(PySequence_Tuple(texts.ptr()))) {
        if (!items_) throw py::error_already_set();
        const py::ssize_t size = PyTuple_GET_SIZE(items_.ptr());
        views_.reserve(static_cast<std::size_t>(size));
        for (py::ssize_t i = 0; i < size; ++i) add(PyTuple_GET_ITEM(items_.ptr(), i), i);
    }

    std::span<const std::string_view> views() const noexcept { return views_; }

  private:
    void add(PyObject* item, py::ssize_t index) {
        const auto place = [&] { return "texts[" + std::to_string(index) + "]"; };
        if (PyBytes_Check(item)) {
            views_.emplace_back(PyBytes_AS_STRING(item), static_cast<std::size_t>(PyBytes_GET_SIZE(item)));
            return;
        }
        if (!PyUnicode_Check(item))
            throw py::type_error(place() + " must be str or bytes, got " + Py_TYPE(item)->tp_name);
        py::ssize_t size = 0;
        const char* data = PyUnicode_AsUTF8AndSize(item, &size);
        if (data == nullptr) {
            PyErr_Clear();
            throw py::value_error(place() + " holds lone surrogates, which no UTF-8 can express");
        }
        views_.emplace_back(data, static_cast<std::size_t>(size));
    }

    py::object items_;
    std::vector<std::string_view> views_;
};

std::span<const char> bytes_of(const py::buffer_info& info) {
    if (info.ndim > 1 || (info.ndim == 1 && info.size > 1 && info.strides[0] != info.itemsize)) {
        throw py::value_error("data must be contiguous bytes");
    }
    return {static_cast<const char*>(info.ptr), static_cast<std::size_t>(info.size * info.itemsize)};
}

}  // namespace

void bind_tokenizer(py::module_& module) {
    py::class_<Pattern>(module, "Pattern")
        .def(py::init([](bool gpt2, unsigned max_digits, bool trailing_space_whole) {
                 return Pattern{gpt2, max_digits, trailing_space_whole};
             }),
             py::kw_only(), py::arg("gpt2"), py::arg("max_digits"), py::arg("trailing_space_whole"));

    module.def(
        "pretokenize",
        [](const py::bytes& text, const Pattern& pattern) {
            const std::string_view view = text;
            std::vector<std::int64_t> ends;
            Pretokenizer pieces(pattern, view);
            std::int64_t end = 0;
            for (std::string_view piece = pieces.next(); !piece.empty(); piece = pieces.next()) {
                end += static_cast<std::int64_t>(piece.size());
                ends.push_back(end);
            }
            return to_array(std::move(ends));
        },
        py::arg("text"), py::arg("pattern"));

    py::class_<BpeEncoder>(module, "BpeEncoder")
        .def(py::init([](const std::vector<py::bytes>& tokens,
                         const py::array_t<std::uint32_t, py::array::c_style>& merges, const Pattern& pattern,
                         bool ignore_merges) {
                 std::vector<std::string> bytes(tokens.begin(), tokens.end());
                 const auto rows = merges.unchecked<2>();
                 if (rows.shape(1) != 4)
                     throw py::value_error("merges must have the columns left, right, merged, rank");
                 std::vector<MergeRule> rules;
                 rules.reserve(static_cast<std::size_t>(rows.shape(0)));
                 for (py::ssize_t i = 0; i < rows.shape(0); ++i) {
                     rules.push_back({rows(i, 0), rows(i, 1), rows(i, 2), rows(i, 3)});
                 }
                 const py::gil_scoped_release release;
                 return std::make_unique<BpeEncoder>(std::move(bytes), rules, pattern, ignore_merges);
             }),
             py::arg("tokens"), py::arg("merges"), py::arg("pattern"), py::kw_only(),
             py::arg("ignore_merges"))
        .def(
            "encode",
            [](const BpeEncoder& encoder, const py::bytes& text) {
                const std::string_view view = text;
                std::vector<TokenId> ids;
                {
                    const py::gil_scoped_release release;
                    encoder.encode(view, ids);
                }
                return ids;
            },
            py::arg("text"))
        .def(
            "encode_texts",
            [](const BpeEncoder& encoder, const py::sequence& texts, unsigned num_threads) {
                const Items items(texts);
                TokenBatch batch;
                {
                    const py::gil_scoped_release release;
                    batch = encoder.encode_batch(items.views(), num_threads);
                }
                return to_tuple(std::move(batch));
            },
            py::arg("texts"), py::kw_only(), py::arg("num_threads"))
        .def(
            "encode_buffer",
            [](const BpeEncoder& encoder, const py::buffer& data,
               const py::array_t<std::int64_t, py::array::c_style>& offsets, unsigned num_threads) {
                const py::buffer_info info = data.request();
                const std::span<const char> bytes = bytes_of(info);
                const std::span<const std::int64_t> borders(offsets.data(),
                                                            static_cast<std::size_t>(offsets.size()));
                TokenBatch batch;
                {
                    const py::gil_scoped_release release;
                    batch = encoder.encode_batch(bytes, borders, num_threads);
                }
                return to_tuple(std::move(batch));
            },
            py::arg("data"), py::arg("offsets"), py::kw_only(), py::arg("num_threads"));
}

}  // namespace pylm::bindings
