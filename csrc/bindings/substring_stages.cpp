// Converts, releases the GIL, calls, hands buffers over. The caller is pylm/data/dedup/substring_stages.py.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "bindings/arrow.hpp"
#include "bindings/buffers.hpp"
#include "bindings/long_call.hpp"
#include "bindings/module.hpp"
#include "dedup/substring_stages.hpp"

namespace py = pybind11;

namespace pylm::bindings {
namespace {

using Places = py::array_t<std::int64_t, py::array::c_style | py::array::forcecast>;

dedup::Ranges ranges_of(const Places& text, const Places& begin, const Places& end) {
    const auto view = [](const Places& array) {
        return std::span(array.data(), static_cast<std::size_t>(array.size()));
    };
    return {view(text), view(begin), view(end)};
}

py::tuple to_arrays(dedup::WindowRuns&& runs) {
    return py::make_tuple(to_array(std::move(runs.text)), to_array(std::move(runs.begin)),
                          to_array(std::move(runs.end)));
}

py::tuple repeated_windows(const py::object& object, const std::optional<py::object>& against, std::size_t length,
                           const std::string& keep, unsigned num_threads) {
    if (keep != "first" && keep != "none") throw std::invalid_argument("unknown keep " + keep);
    const Texts texts(object);
    std::optional<Texts> sources;
    if (against) sources.emplace(*against, "against");
    const dedup::SubstringOptions options{
        .length = length, .first_stays = keep == "first", .num_threads = num_threads};
    dedup::RepeatedWindows found;
    {
        const LongCall call;
        found = sources ? dedup::repeated_windows(texts.views(), sources->views(), options)
                        : dedup::repeated_windows(texts.views(), options);
    }
    const bool has_later = keep == "none" && !against;
    py::object later = py::none();
    if (has_later) later = to_arrays(std::move(found.later));
    return py::make_tuple(to_arrays(std::move(found.removed)), later);
}

py::tuple window_keys(const py::object& object, std::size_t length, const Places& text, const Places& begin,
                      const Places& end, const py::array_t<std::uint64_t, py::array::c_style>& divided,
                      std::size_t least_level) {
    const Texts texts(object);
    const dedup::Ranges known = ranges_of(text, begin, end);
    const std::span keys(divided.data(), static_cast<std::size_t>(divided.size()));
    dedup::KeyedRuns found;
    {
        const LongCall call;
        found = dedup::window_keys(texts.views(), length, known, keys, least_level);
    }
    py::array_t<std::uint64_t> key = to_array(std::move(found.key));
    return py::make_tuple(key, to_arrays(std::move(found.windows)));
}

py::tuple spans_of_windows(const py::object& object, std::size_t length, const Places& text, const Places& begin,
                           const Places& end) {
    const Texts texts(object);
    const dedup::Ranges windows = ranges_of(text, begin, end);
    dedup::Spans spans;
    {
        const LongCall call;
        spans = dedup::spans_of_windows(texts.views(), length, windows, true);
    }
    return to_arrays({std::move(spans.text), std::move(spans.start), std::move(spans.end)});
}

py::tuple copy_windows(const py::object& object, std::size_t length, const Places& text, const Places& begin,
                       const Places& end) {
    const Texts texts(object);
    const dedup::Ranges windows = ranges_of(text, begin, end);
    std::vector<std::int64_t> offsets = dedup::window_offsets(texts.views(), length, windows);
    const auto size = static_cast<std::size_t>(offsets.back());
    py::array_t<std::uint8_t> bytes(static_cast<py::ssize_t>(size));
    {
        char* data = reinterpret_cast<char*>(bytes.mutable_data());
        const LongCall call;
        dedup::copy_windows(texts.views(), windows, offsets, {data, size});
    }
    return py::make_tuple(to_array(std::move(offsets)), bytes);
}

}  // namespace

void bind_substring_stages(py::module_& module) {
    module.def("repeated_windows", &repeated_windows, py::arg("texts"), py::arg("against"), py::arg("length"),
               py::arg("keep"), py::arg("num_threads"));
    module.def("window_keys", &window_keys, py::arg("texts"), py::arg("length"), py::arg("doc"), py::arg("begin"),
               py::arg("end"), py::arg("divided"), py::arg("least_level"));
    module.def("spans_of_windows", &spans_of_windows, py::arg("texts"), py::arg("length"), py::arg("doc"),
               py::arg("begin"), py::arg("end"));
    module.def("copy_windows", &copy_windows, py::arg("texts"), py::arg("length"), py::arg("doc"),
               py::arg("begin"), py::arg("end"));
}

}  // namespace pylm::bindings
