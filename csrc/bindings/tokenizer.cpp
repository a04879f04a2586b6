// Converts, releases the GIL, calls, hands buffers over. The door with the checks is pylm/text/tokenizer.py.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "bindings/arrow.hpp"
#include "bindings/buffers.hpp"
#include "bindings/module.hpp"
#include "bindings/tokens.hpp"
#include "text/mapped_file.hpp"
#include "tokenizer/bpe_encode.hpp"
#include "tokenizer/bpe_train.hpp"
#include "tokenizer/vocabulary.hpp"

namespace py = pybind11;

namespace pylm::bindings {

namespace {

// A list of int, as tiktoken gives it.
py::list to_list(std::span<const TokenId> ids) {
    py::list list(ids.size());
    for (std::size_t i = 0; i < ids.size(); ++i) {
        PyObject* number = PyLong_FromUnsignedLong(ids[i]);
        if (number == nullptr) throw py::error_already_set();
        PyList_SET_ITEM(list.ptr(), static_cast<py::ssize_t>(i), number);
    }
    return list;
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
        .def(py::init([](const Vocabulary& vocabulary, const Pattern& pattern, bool ignore_merges) {
                 const py::gil_scoped_release release;
                 return std::make_unique<BpeEncoder>(vocabulary.tokens, vocabulary.merges, pattern,
                                                     ignore_merges);
             }),
             py::arg("vocabulary"), py::arg("pattern"), py::kw_only(), py::arg("ignore_merges"))
        .def(
            "encode",
            [](const BpeEncoder& encoder, const py::bytes& text) {
                const std::string_view view = text;
                TokenBuffer ids;
                {
                    const py::gil_scoped_release release;
                    ids = encoder.encode(view);
                }
                return to_list(ids.ids());
            },
            py::arg("text"))
        .def(
            "encode_texts",
            [](const BpeEncoder& encoder, const py::object& texts, std::optional<TokenId> end_id,
               unsigned num_threads) {
                const Texts read(texts, "texts", Texts::Items::kStrOrBytes);
                TokenBatch batch;
                {
                    const py::gil_scoped_release release;
                    batch = encoder.encode_batch(read.views(), num_threads, end_id);
                }
                return to_tuple(std::move(batch));
            },
            py::arg("texts"), py::kw_only(), py::arg("end_id"), py::arg("num_threads"))
        .def(
            "encode_file",
            [](const BpeEncoder& encoder, const std::string& path, const std::string& separator,
               unsigned num_threads) {
                TokenBatch batch;
                {
                    const py::gil_scoped_release release;
                    const MappedFile file(path);
                    batch = encoder.encode_batch(split(file.bytes(), separator), num_threads);
                }
                return to_tuple(std::move(batch));
            },
            py::arg("path"), py::arg("separator"), py::kw_only(), py::arg("num_threads"));

    py::class_<WordCounter>(module, "WordCounter")
        .def(py::init<const Pattern&>(), py::arg("pattern"))
        .def(
            "add",
            [](WordCounter& counter, const py::object& texts, unsigned num_threads) {
                const Texts read(texts, "texts", Texts::Items::kStrOrBytes);
                const py::gil_scoped_release release;
                counter.add(read.views(), num_threads);
            },
            py::arg("texts"), py::kw_only(), py::arg("num_threads"))
        .def("sorted",
             [](const WordCounter& counter) {
                 std::vector<std::pair<py::bytes, std::uint64_t>> words;
                 for (auto& [word, count] : counter.sorted()) words.emplace_back(py::bytes(word), count);
                 return words;
             })
        .def(
            "train",
            [](const WordCounter& counter, std::size_t num_merges, std::uint64_t min_frequency,
               const std::vector<std::uint32_t>& byte_ids, std::uint32_t first_id) {
                if (byte_ids.size() != 256) throw py::value_error("byte_ids must have 256 entries");
                TrainOptions options{num_merges, min_frequency, byte_ids, first_id, [] {
                                         const py::gil_scoped_acquire acquire;
                                         if (PyErr_CheckSignals() != 0) throw py::error_already_set();
                                     }};
                const py::gil_scoped_release release;
                return train_bpe(counter.sorted(), options);
            },
            py::kw_only(), py::arg("num_merges"), py::arg("min_frequency"), py::arg("byte_ids"),
            py::arg("first_id"));
}

}  // namespace pylm::bindings
