// Converts, releases the GIL, calls, hands buffers over. The doors with the checks are pylm/text/_training.py and
// pylm/text/word_counter.py.
#include <pybind11/functional.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "bindings/arrow.hpp"
#include "bindings/buffers.hpp"
#include "bindings/module.hpp"
#include "tokenizer/bpe_train.hpp"
#include "tokenizer/word_counter.hpp"

namespace py = pybind11;

namespace pylm::bindings {

namespace {

void check_signals() {
    const py::gil_scoped_acquire acquire;
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
}

template <typename T>
using Array = py::array_t<T, py::array::c_style>;

void add_words(WordCounter& counter, const Array<std::uint8_t>& data, const Array<std::int64_t>& offsets,
               const Array<std::uint64_t>& counts) {
    const auto bytes = data.unchecked<1>();
    const auto borders = offsets.unchecked<1>();
    const auto number = counts.unchecked<1>();
    if (borders.shape(0) != number.shape(0) + 1 || borders(0) != 0 ||
        borders(number.shape(0)) != bytes.shape(0))
        throw py::value_error("offsets must rise from 0 to the size of the data, one more than counts");
    const auto* text = reinterpret_cast<const char*>(data.data());
    for (py::ssize_t i = 0; i < number.shape(0); ++i) {
        if (borders(i) >= borders(i + 1) || borders(i + 1) > bytes.shape(0) || number(i) == 0)
            throw py::value_error("word " + std::to_string(i) + " is empty or has no count");
        counter.add_word({text + borders(i), static_cast<std::size_t>(borders(i + 1) - borders(i))},
                         number(i));
    }
}

py::tuple words_of(WordCounter& counter) {
    std::vector<std::uint8_t> data;
    std::vector<std::int64_t> offsets{0};
    std::vector<std::uint64_t> counts;
    {
        const py::gil_scoped_release release;
        for (const auto& [word, count] : counter.sorted()) {
            data.insert(data.end(), word.begin(), word.end());
            offsets.push_back(static_cast<std::int64_t>(data.size()));
            counts.push_back(count);
        }
    }
    return py::make_tuple(to_array(std::move(data)), to_array(std::move(offsets)), to_array(std::move(counts)));
}

py::array_t<std::uint32_t> train(WordCounter& counter, TrainOptions options,
                                 const std::vector<std::pair<py::bytes, std::uint32_t>>& known,
                                 const std::string& ties, const py::object& progress) {
    if (ties != "hf" && ties != "lexicographic") throw py::value_error("ties must be 'hf' or 'lexicographic'");
    options.ties = ties == "hf" ? Ties::kSmallestIds : Ties::kGreatestBytes;
    for (const auto& [bytes, id] : known) options.known.push_back({std::string(bytes), id});
    options.progress = [&](std::size_t made) {
        check_signals();
        if (progress.is_none()) return;
        const py::gil_scoped_acquire acquire;
        progress(made);
    };
    std::vector<std::uint32_t> rows;
    {
        const py::gil_scoped_release release;
        for (const TrainedMerge& merge : train_bpe(counter, options))
            rows.insert(rows.end(), {merge.left, merge.right, merge.merged});
    }
    const auto count = static_cast<py::ssize_t>(rows.size() / 3);
    return to_array(std::move(rows), {count, 3});
}

}  // namespace

void bind_training(py::module_& module) {
    py::class_<WordCounter>(module, "WordCounter")
        .def(py::init<Pattern>(), py::arg("pattern"))
        .def(
            "add",
            [](WordCounter& counter, const py::object& texts, unsigned num_threads) {
                const Texts converted(texts, "texts", Texts::Items::kStrOrBytes);
                const py::gil_scoped_release release;
                counter.add(converted.views(), num_threads, check_signals);
            },
            py::arg("texts"), py::kw_only(), py::arg("num_threads"))
        .def(
            "add_file",
            [](WordCounter& counter, const std::string& path, std::uint64_t offset, std::size_t max_bytes,
               const py::bytes& separator, bool keep_separator, unsigned num_threads) {
                const FileFormat format{separator, keep_separator};
                const py::gil_scoped_release release;
                return counter.add_file(path, offset, max_bytes, format, num_threads, check_signals);
            },
            py::arg("path"), py::kw_only(), py::arg("offset"), py::arg("max_bytes"), py::arg("separator"),
            py::arg("keep_separator"), py::arg("num_threads"))
        .def("add_words", add_words, py::arg("data"), py::arg("offsets"), py::arg("counts"))
        .def("words", words_of)
        .def("num_words",
             [](WordCounter& counter) {
                 const py::gil_scoped_release release;
                 return counter.num_words();
             })
        .def("byte_counts",
             [](WordCounter& counter) {
                 const py::gil_scoped_release release;
                 return counter.byte_counts();
             })
        .def(
            "train",
            [](WordCounter& counter, std::size_t num_tokens, std::uint64_t min_frequency,
               std::vector<std::uint32_t> byte_ids, std::uint32_t first_id,
               const std::vector<std::pair<py::bytes, std::uint32_t>>& known, std::size_t max_token_length,
               const std::string& ties, bool release_words, unsigned num_threads, const py::object& progress) {
                TrainOptions options;
                options.num_tokens = num_tokens;
                options.min_frequency = min_frequency;
                options.byte_ids = std::move(byte_ids);
                options.first_id = first_id;
                options.max_token_length = max_token_length;
                options.release_words = release_words;
                options.num_threads = num_threads;
                return train(counter, std::move(options), known, ties, progress);
            },
            py::kw_only(), py::arg("num_tokens"), py::arg("min_frequency"), py::arg("byte_ids"),
            py::arg("first_id"), py::arg("known"), py::arg("max_token_length"), py::arg("ties"),
            py::arg("release_words"), py::arg("num_threads"), py::arg("progress"));
}

}  // namespace pylm::bindings
