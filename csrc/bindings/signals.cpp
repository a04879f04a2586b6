// Converts, releases the GIL, calls, hands buffers over. The door with the checks is pylm/text/signals.py.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "bindings/arrow.hpp"
#include "bindings/buffers.hpp"
#include "bindings/long_call.hpp"
#include "bindings/module.hpp"
#include "parallel.hpp"
#include "signals/signals.hpp"
#include "signals/tokens.hpp"

namespace py = pybind11;

namespace pylm::bindings {
namespace {

using signals::Signal;

// Column i holds the signal wanted[i]: in `counts` or in `numbers`, the other is empty.
struct Columns {
    std::vector<std::vector<std::int64_t>> counts;
    std::vector<std::vector<double>> numbers;
    std::vector<std::uint8_t> null;  // by document
};

Columns compute_all(std::span<const std::string_view> texts, std::span<const Signal> wanted,
                    unsigned num_threads) {
    constexpr std::size_t block = 64;
    Columns columns{{}, {}, std::vector<std::uint8_t>(texts.size())};
    columns.counts.resize(wanted.size());
    columns.numbers.resize(wanted.size());
    for (std::size_t column = 0; column < wanted.size(); ++column) {
        if (wanted[column] < signals::kNumCounts) {
            columns.counts[column].resize(texts.size());
        } else {
            columns.numbers[column].resize(texts.size());
        }
    }
    parallel_for((texts.size() + block - 1) / block, num_threads, [&](std::size_t task) {
        signals::Analyzer analyzer(wanted);
        const std::size_t end = std::min(texts.size(), (task + 1) * block);
        for (std::size_t i = task * block; i < end; ++i) {
            columns.null[i] = arrow::is_null(texts[i]);
            if (columns.null[i] != 0) continue;
            const signals::Row& row = analyzer(texts[i]);
            for (std::size_t column = 0; column < wanted.size(); ++column) {
                const double value = row[wanted[column]];
                if (wanted[column] < signals::kNumCounts) {
                    columns.counts[column][i] = static_cast<std::int64_t>(value);
                } else {
                    columns.numbers[column][i] = value;
                }
            }
        }
    });
    return columns;
}

py::tuple compute(const py::object& object, const std::vector<std::string>& names, unsigned num_threads) {
    const Texts texts(object);
    std::vector<Signal> wanted;
    for (const std::string& name : names) {
        const auto found = std::find(signals::kNames.begin(), signals::kNames.end(), name);
        if (found == signals::kNames.end()) throw std::invalid_argument("unknown signal " + name);
        wanted.push_back(static_cast<Signal>(found - signals::kNames.begin()));
    }
    for (std::size_t i = 0; i < texts.size(); ++i) {
        const std::size_t bytes = texts.views()[i].size();
        if (bytes >= std::numeric_limits<std::uint32_t>::max()) {
            throw_input_error("texts[" + std::to_string(i) + "] must be shorter than 4 GiB, got " +
                              std::to_string(bytes) + " bytes; cut it into several documents");
        }
    }
    Columns columns;
    {
        const LongCall call;
        columns = compute_all(texts.views(), wanted, num_threads);
    }
    py::list arrays;
    for (std::size_t column = 0; column < wanted.size(); ++column) {
        if (wanted[column] < signals::kNumCounts) {
            arrays.append(to_array(std::move(columns.counts[column])));
        } else {
            arrays.append(to_array(std::move(columns.numbers[column])));
        }
    }
    return py::make_tuple(arrays, to_array(std::move(columns.null)));
}

std::vector<std::string> signal_names() { return {signals::kNames.begin(), signals::kNames.end()}; }

py::list signal_tokens(const std::string& text) {
    signals::Tokenizer tokenizer;
    const signals::TokenList& list = tokenizer(text);
    py::list tokens;
    for (std::size_t i = 0; i < list.tokens.size(); ++i) {
        tokens.append(py::bytes(list.joined.substr(list.begins[i], list.begins[i + 1] - list.begins[i])));
    }
    return tokens;
}

}  // namespace

void bind_signals(py::module_& module) {
    module.def("signal_names", &signal_names);
    module.def("signal_tokens", &signal_tokens, py::arg("text"));
    module.def("compute_signals", &compute, py::arg("texts"), py::arg("names"), py::arg("num_threads"));
}

}  // namespace pylm::bindings
