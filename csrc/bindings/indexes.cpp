// Converts, releases the GIL, calls, hands buffers over. The doors with the checks are pylm/text/_near_index.py and
// pylm/text/_substring_index.py.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstddef>
#include <cstdint>
#include <exception>
#include <numeric>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "bindings/arrow.hpp"
#include "bindings/buffers.hpp"
#include "bindings/hasher.hpp"
#include "bindings/long_call.hpp"
#include "bindings/module.hpp"
#include "bindings/normalized.hpp"
#include "dedup/near.hpp"
#include "dedup/near_index.hpp"
#include "dedup/segment_file.hpp"
#include "dedup/substring_index.hpp"

namespace py = pybind11;

namespace pylm::bindings {
namespace {

void translate_damaged_file(std::exception_ptr pointer) {
    try {
        if (pointer) std::rethrow_exception(pointer);
    } catch (const dedup::DamagedFile& error) {
        PyErr_SetString(py::module_::import("pylm.errors").attr("InputError").ptr(), error.what());
    }
}

using Ids = py::array_t<std::int64_t, py::array::c_style>;

// Representatives, ids of documents of the index and similarities.
py::tuple to_tuple(const dedup::NearIndex& index, dedup::NearAgainst&& found) {
    for (std::int64_t& document : found.document) {
        if (document >= 0) document = index.id_of(static_cast<std::uint32_t>(document));
    }
    return py::make_tuple(to_array(std::move(found.representative)), to_array(std::move(found.document)),
                          to_array(std::move(found.similarity)));
}

py::tuple find_near(const dedup::NearIndex& index, const Hasher& hasher, const py::object& object,
                    const NormalizedTexts* normalized, double threshold, std::size_t bands, std::size_t rows,
                    const std::string& keep, const Priority& priority, bool among, unsigned num_threads) {
    const Texts texts(object);
    const auto source = normalized != nullptr ? normalized->views() : texts.views();
    const dedup::NearOptions options =
        near_options(hasher, texts.size(), threshold, bands, rows, keep, priority, num_threads);
    dedup::NearAgainst found;
    {
        const LongCall call;
        found = dedup::near_against(texts.views(), source, hasher.minhash, options, index, among);
    }
    return to_tuple(index, std::move(found));
}

py::tuple add_near(const dedup::NearIndex& index, const Hasher& hasher, const py::object& object,
                   const NormalizedTexts* normalized, double threshold, std::size_t bands, std::size_t rows,
                   const std::string& keep, const Priority& priority, const std::optional<Ids>& ids,
                   std::int64_t first_id, const std::string& path, unsigned num_threads) {
    const Texts texts(object);
    const auto source = normalized != nullptr ? normalized->views() : texts.views();
    const dedup::NearOptions options =
        near_options(hasher, texts.size(), threshold, bands, rows, keep, priority, num_threads);
    std::vector<std::int64_t> given(texts.size());
    std::iota(given.begin(), given.end(), first_id);
    if (ids) {
        given.assign(ids->data(), ids->data() + ids->size());
        if (given.size() != texts.size()) {
            throw_input_error("ids must hold one number for each of " + std::to_string(texts.size()) +
                              " texts, got " + std::to_string(given.size()));
        }
    }
    dedup::NearAgainst found;
    {
        const LongCall call;
        found = dedup::near_against(texts.views(), source, hasher.minhash, options, index, true);
        index.write(path, found, source, given, hasher.minhash, hasher.rule, num_threads);
    }
    const bool is_empty = found.hashes.empty();
    return py::make_tuple(to_tuple(index, std::move(found)), texts.size(), is_empty);
}

dedup::NearIndex open_near(const std::vector<std::string>& paths, std::uint64_t fingerprint, unsigned shingle_bits,
                           bool low_shingles, std::size_t num_perm, bool wide) {
    return {paths, {fingerprint, shingle_bits, low_shingles, num_perm, wide}};
}

// Documents of the index in the buckets of ascending keys: index of the key, id of the document.
py::tuple find_keys(const dedup::NearIndex& index, const py::array_t<std::uint64_t, py::array::c_style>& keys) {
    std::vector<std::int64_t> key;
    std::vector<std::int64_t> id;
    const std::span<const std::uint64_t> given(keys.data(), static_cast<std::size_t>(keys.size()));
    {
        const LongCall call;
        for (const auto& hit : index.find_keys(given)) {
            key.push_back(static_cast<std::int64_t>(hit.key));
            id.push_back(index.id_of(hit.document));
        }
    }
    return py::make_tuple(to_array(std::move(key)), to_array(std::move(id)));
}

py::tuple find_substrings(const dedup::SubstringIndex& index, const py::object& object, unsigned num_threads) {
    const Texts texts(object);
    dedup::Spans spans;
    {
        const LongCall call;
        spans = index.find(texts.views(), num_threads);
    }
    return py::make_tuple(texts.size(), to_array(std::move(spans.text)), to_array(std::move(spans.start)),
                          to_array(std::move(spans.end)));
}

py::tuple add_substrings(const dedup::SubstringIndex& index, const py::object& object, const std::string& path,
                         unsigned num_threads) {
    const Texts texts(object);
    std::size_t num_windows = 0;
    {
        const LongCall call;
        num_windows = index.write(path, texts.views(), num_threads);
    }
    return py::make_tuple(texts.size(), num_windows);
}

template <typename Index>
void merge_files(const Index& index, const std::string& path, std::size_t begin, std::size_t end, unsigned num_threads) {
    const LongCall call;
    index.merge(path, begin, end, num_threads);
}

template <typename Index>
void check_files(const Index& index, unsigned num_threads) {
    const LongCall call;
    index.check(num_threads);
}

}  // namespace

void bind_indexes(py::module_& module) {
    py::register_local_exception_translator(&translate_damaged_file);
    py::class_<dedup::NearIndex>(module, "NearIndex")
        .def(py::init(&open_near), py::arg("paths"), py::arg("fingerprint"), py::arg("shingle_bits"),
             py::arg("low_shingles"), py::arg("num_perm"), py::arg("wide"))
        .def("__len__", &dedup::NearIndex::size)
        .def_property_readonly("num_bytes", &dedup::NearIndex::num_bytes)
        .def("check", &check_files<dedup::NearIndex>, py::arg("num_threads"))
        .def("find", &find_near, py::arg("hasher"), py::arg("texts"), py::arg("normalized"), py::arg("threshold"),
             py::arg("bands"), py::arg("rows"), py::arg("keep"), py::arg("priority"), py::arg("among"),
             py::arg("num_threads"))
        .def("add", &add_near, py::arg("hasher"), py::arg("texts"), py::arg("normalized"), py::arg("threshold"),
             py::arg("bands"), py::arg("rows"), py::arg("keep"), py::arg("priority"), py::arg("ids"), py::arg("first_id"),
             py::arg("path"), py::arg("num_threads"))
        .def("find_keys", &find_keys, py::arg("keys"))
        .def("merge", &merge_files<dedup::NearIndex>, py::arg("path"), py::arg("begin"), py::arg("end"),
             py::arg("num_threads"));
    py::class_<dedup::SubstringIndex>(module, "SubstringIndex")
        .def(py::init([](const std::vector<std::string>& paths, std::uint64_t fingerprint, std::size_t length,
                         std::size_t gap, bool wide) {
                 return dedup::SubstringIndex(paths, {fingerprint, length, gap, wide});
             }),
             py::arg("paths"), py::arg("fingerprint"), py::arg("length"), py::arg("gap"), py::arg("wide"))
        .def_property_readonly("num_windows", &dedup::SubstringIndex::num_windows)
        .def_property_readonly("num_bytes", &dedup::SubstringIndex::num_bytes)
        .def("check", &check_files<dedup::SubstringIndex>, py::arg("num_threads"))
        .def("find", &find_substrings, py::arg("texts"), py::arg("num_threads"))
        .def("add", &add_substrings, py::arg("texts"), py::arg("path"), py::arg("num_threads"))
        .def("merge", &merge_files<dedup::SubstringIndex>, py::arg("path"), py::arg("begin"), py::arg("end"),
             py::arg("num_threads"));
}

}  // namespace pylm::bindings
