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

#include "bindings/buffers.hpp"
#include "bindings/module.hpp"
#include "bindings/simd.hpp"
#include "bindings/tokens.hpp"
#include "text/unicode.hpp"
#include "tokenizer/bpe_encode.hpp"
#include "tokenizer/pretokenize.hpp"
#include "tokenizer/section_file.hpp"
#include "tokenizer/vocabulary.hpp"

namespace py = pybind11;

namespace pylm::bindings {

namespace {

std::vector<std::int64_t> all_ends(Pattern pattern, CutFunction cut, std::string_view text) {
    std::vector<std::int64_t> ends;
    std::vector<std::uint32_t> block(4096);
    for (std::size_t position = 0; position < text.size();) {
        const std::size_t count = cut(text, position, block);
        for (std::size_t i = 0; i < count; ++i) ends.push_back(static_cast<std::int64_t>(position + block[i]));
        if (count == 0) ends.push_back(static_cast<std::int64_t>(end_of_piece(pattern, text, position)));
        position = static_cast<std::size_t>(ends.back());
    }
    return ends;
}

}  // namespace

void bind_tokenizer(py::module_& module) {
    py::class_<Pattern>(module, "Pattern").def(py::init(&parse_pattern), py::arg("name"));

    module.def("simd_levels", [] {
        std::vector<std::string> names;
        for (const SimdLevel level : simd_levels()) names.emplace_back(name_of(level));
        return names;
    });
    module.def(
        "pretokenize",
        [](const py::bytes& text, Pattern pattern, const std::optional<std::string>& level) {
            const std::string_view view = text;
            std::vector<std::int64_t> ends;
            const CutFunction cut = level ? find_cut(pattern, level_of(*level)) : find_cut(pattern);
            {
                const py::gil_scoped_release release;
                ends = all_ends(pattern, cut, view);
            }
            return to_array(std::move(ends));
        },
        py::arg("text"), py::arg("pattern"), py::kw_only(), py::arg("level") = py::none());
    module.def(
        "next_safe_border",
        [](const py::bytes& text, std::size_t position, Pattern pattern) {
            return next_safe_border(pattern, text, position);
        },
        py::arg("text"), py::arg("position"), py::arg("pattern"));
    module.def("char_classes", [] {
        std::vector<std::uint8_t> classes(0x110000);
        for (std::size_t point = 0; point < classes.size(); ++point)
            classes[point] = classify(static_cast<char32_t>(point));
        return to_array(std::move(classes));
    });

    py::class_<BpeEncoder> encoder(module, "BpeEncoder");
    encoder
        .def(py::init([](const PackedVocabulary& vocabulary, Pattern pattern, bool ignore_merges, bool drop_missing,
                         std::optional<TokenId> unknown, bool fuse_unknown, const SectionFile* file) {
                 const py::gil_scoped_release release;
                 std::optional<MissingBytes> missing;
                 if (drop_missing || unknown) missing = {unknown.value_or(kNoToken), fuse_unknown};
                 if (file != nullptr) {
                     return std::make_unique<BpeEncoder>(*file, vocabulary.tokens(), pattern, ignore_merges, missing);
                 }
                 return std::make_unique<BpeEncoder>(vocabulary.tokens(), vocabulary.merges().items(), pattern,
                                                     ignore_merges, missing);
             }),
             py::arg("vocabulary"), py::arg("pattern"), py::kw_only(), py::arg("ignore_merges"),
             py::arg("drop_missing") = false, py::arg("unknown") = py::none(), py::arg("fuse_unknown") = false,
             py::arg("file") = py::none())
        .def(
            "encode",
            [](const BpeEncoder& self, const py::bytes& text) {
                const std::string_view view = text;
                TokenBuffer ids;
                {
                    const py::gil_scoped_release release;
                    ids = self.encode(view);
                }
                return to_list(ids.ids());
            },
            py::arg("text"));
    def_encode_many(encoder);
    module.def(
        "write_tokenizer_file",
        [](const py::bytes& description, const PackedVocabulary& vocabulary, const BpeEncoder& made,
           const TokenDecoder& decoder) { return write_parts(description, vocabulary, made, decoder); },
        py::arg("description"), py::arg("vocabulary"), py::arg("encoder"), py::arg("decoder"));
}

}  // namespace pylm::bindings
