// Converts, releases the GIL, calls, hands buffers over. The door with the checks is pylm/text/_exact.py.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "bindings/arrow.hpp"
#include "bindings/buffers.hpp"
#include "bindings/long_call.hpp"
#include "bindings/module.hpp"
#include "bindings/normalized.hpp"
#include "dedup/bloom.hpp"
#include "dedup/exact.hpp"
#include "dedup/parts.hpp"
#include "parallel.hpp"

namespace py = pybind11;

namespace pylm::bindings {
namespace {

constexpr std::size_t kBlock = 256;  // texts a task

py::array exact_of(std::span<const std::string_view> texts, unsigned num_threads) {
    std::vector<std::int64_t> first;
    {
        const LongCall call;
        first = dedup::exact_duplicates(texts, num_threads);
    }
    return to_array(std::move(first));
}

// Lines or paragraphs, and what their texts live in.
class TextParts {
public:
    TextParts(const py::object& object, bool paragraphs) : texts_(object) {
        const LongCall call;
        parts_ = paragraphs ? dedup::split_paragraphs(texts_.views()) : dedup::split_lines(texts_.views());
    }
    std::span<const std::string_view> views() const noexcept { return parts_.views; }
    py::bytes at(std::size_t index) const {
        if (index >= parts_.views.size()) throw py::index_error();
        return {parts_.views[index].data(), parts_.views[index].size()};
    }
    py::tuple places() const {
        const auto copy = [](std::vector<std::int64_t> values) { return to_array(std::move(values)); };
        return py::make_tuple(copy(parts_.doc), copy(parts_.start), copy(parts_.end));
    }

private:
    Texts texts_;
    dedup::Parts parts_;
};

// (num_texts, 2); nulls have hash 0, 0, and are listed.
template <typename Collection>
py::tuple hashes_of(const Collection& collection, unsigned num_threads) {
    const auto texts = collection.views();
    std::vector<std::uint64_t> hashes(2 * texts.size(), 0);
    std::vector<std::uint8_t> null(texts.size(), 0);
    {
        const LongCall call;
        parallel_for((texts.size() + kBlock - 1) / kBlock, num_threads, [&](std::size_t task) {
            for (std::size_t i = task * kBlock; i < std::min(texts.size(), (task + 1) * kBlock); ++i) {
                null[i] = arrow::is_null(texts[i]);
                if (null[i] != 0) continue;
                const auto [low, high] = dedup::hash128(texts[i]);
                hashes[2 * i] = low;
                hashes[2 * i + 1] = high;
            }
        });
    }
    const auto rows = static_cast<py::ssize_t>(texts.size());
    return py::make_tuple(to_array(std::move(hashes), {rows, 2}), to_array(std::move(null)));
}

using Words = py::array_t<std::uint64_t, py::array::c_style>;

py::array visit_bloom(Words& words, std::size_t num_hashes, const Words& hashes, bool add) {
    std::span<std::uint64_t> bits;
    if (add) {
        bits = {words.mutable_data(), static_cast<std::size_t>(words.size())};
    } else {
        bits = {const_cast<std::uint64_t*>(words.data()), static_cast<std::size_t>(words.size())};
    }
    const std::span given(hashes.data(), static_cast<std::size_t>(hashes.size()));
    std::vector<std::uint8_t> member(given.size() / 2);
    {
        const py::gil_scoped_release release;
        for (std::size_t i = 0; i < member.size(); ++i)
            member[i] = dedup::visit_bloom(bits, num_hashes, {given[2 * i], given[2 * i + 1]}, add);
    }
    return to_array(std::move(member));
}

}  // namespace

void bind_exact(py::module_& module) {
    module.def(
        "exact_duplicates",
        [](const NormalizedTexts& texts, unsigned num_threads) { return exact_of(texts.views(), num_threads); },
        py::arg("texts"), py::arg("num_threads"));
    module.def(
        "exact_duplicates",
        [](const TextParts& texts, unsigned num_threads) { return exact_of(texts.views(), num_threads); },
        py::arg("texts"), py::arg("num_threads"));
    module.def(
        "exact_duplicates",
        [](const py::object& object, unsigned num_threads) {
            const Texts texts(object);
            return exact_of(texts.views(), num_threads);
        },
        py::arg("texts"), py::arg("num_threads"));
    module.def("hash128", &hashes_of<NormalizedTexts>, py::arg("texts"), py::arg("num_threads"));
    module.def(
        "hash128",
        [](const py::object& object, unsigned num_threads) { return hashes_of(Texts(object), num_threads); },
        py::arg("texts"), py::arg("num_threads"));
    module.def("visit_bloom", &visit_bloom, py::arg("words"), py::arg("num_hashes"), py::arg("hashes"),
               py::arg("add"));
    py::class_<TextParts>(module, "TextParts")
        .def(py::init<const py::object&, bool>(), py::arg("texts"), py::arg("paragraphs"))
        .def("__getitem__", &TextParts::at)
        .def("places", &TextParts::places)
        .def("normalized", [](const TextParts& parts, const dedup::CharacterTable& table, unsigned num_threads) {
            return NormalizedTexts(parts.views(), table, num_threads);
        }, py::arg("table"), py::arg("num_threads"));
}

}  // namespace pylm::bindings
