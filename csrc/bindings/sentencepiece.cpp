// Converts, releases the GIL, calls, hands buffers over. The doors with the checks are
// pylm/text/_sentencepiece_format.py and pylm/text/tokenizer.py.
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
#include "tokenizer/sentencepiece.hpp"

namespace py = pybind11;

namespace pylm::bindings {

namespace {

std::vector<MergeRule> rules_of(const py::array_t<std::uint32_t, py::array::c_style>& merges) {
    const auto rows = merges.unchecked<2>();
    if (rows.shape(1) != 4) throw py::value_error("merges must have the columns left, right, merged, rank");
    std::vector<MergeRule> rules;
    rules.reserve(static_cast<std::size_t>(rows.shape(0)));
    for (py::ssize_t i = 0; i < rows.shape(0); ++i) {
        rules.push_back({rows(i, 0), rows(i, 1), rows(i, 2), rows(i, 3)});
    }
    return rules;
}

std::vector<PieceKind> kinds_of(const py::array_t<std::uint8_t, py::array::c_style>& numbers) {
    std::vector<PieceKind> kinds;
    for (const std::uint8_t number : std::span(numbers.data(), static_cast<std::size_t>(numbers.size()))) {
        if (number < 1 || number > 6) throw py::value_error("kinds must be 1 to 6");
        kinds.push_back(static_cast<PieceKind>(number));
    }
    return kinds;
}

SpacePrefix prefix_of(const std::string& name) {
    if (name == "never") return SpacePrefix::kNever;
    if (name == "always") return SpacePrefix::kAlways;
    if (name == "unless_space") return SpacePrefix::kUnlessSpace;
    throw py::value_error("prefix must be never, always or unless_space");
}

py::dict read_model(std::string_view file) {
    SentencePieceModel model;
    {
        const py::gil_scoped_release release;
        model = parse_sentencepiece_model(file);
    }
    const std::size_t size = model.pieces.size();
    py::list pieces(size);
    std::vector<float> scores(size);
    std::vector<std::uint8_t> kinds(size);
    for (std::size_t i = 0; i < size; ++i) {
        pieces[i] = py::str(model.pieces[i].text);
        scores[i] = model.pieces[i].score;
        kinds[i] = static_cast<std::uint8_t>(model.pieces[i].kind);
    }
    py::dict parts;
    parts["pieces"] = pieces;
    parts["scores"] = to_array(std::move(scores));
    parts["kinds"] = to_array(std::move(kinds));
    parts["byte_fallback"] = model.byte_fallback;
    parts["add_dummy_prefix"] = model.add_dummy_prefix;
    parts["remove_extra_whitespaces"] = model.remove_extra_whitespaces;
    parts["escape_whitespaces"] = model.escape_whitespaces;
    parts["charsmap"] = py::bytes(model.charsmap);
    return parts;
}

}  // namespace

void bind_sentencepiece(py::module_& module) {
    module.def(
        "read_sentencepiece_model", [](const py::bytes& file) { return read_model(file); }, py::arg("file"));

    module.def(
        "merges_of_scores",
        [](const std::vector<std::string>& pieces, const py::array_t<std::uint8_t, py::array::c_style>& kinds,
           const py::array_t<float, py::array::c_style>& scores) {
            const auto size = static_cast<py::ssize_t>(pieces.size());
            if (kinds.size() != size || scores.size() != size)
                throw py::value_error("pieces, kinds and scores must have the same length");
            const ScoredMerges merges =
                merges_of_scores(pieces, kinds_of(kinds), std::span(scores.data(), pieces.size()));
            std::vector<std::uint32_t> rows;
            for (const MergeRule& rule : merges.rules) {
                rows.insert(rows.end(), {rule.left, rule.right, rule.merged, rule.rank});
            }
            const auto count = static_cast<py::ssize_t>(merges.rules.size());
            return py::make_tuple(to_array(std::move(rows), {count, 4}), merges.extra_characters);
        },
        py::arg("pieces"), py::arg("kinds"), py::arg("scores"));

    py::class_<SentencePieceEncoder>(module, "SentencePieceEncoder")
        .def(py::init([](std::vector<std::string> pieces,
                         const py::array_t<std::uint8_t, py::array::c_style>& kinds,
                         const std::vector<std::string>& extra_characters,
                         const py::array_t<std::uint32_t, py::array::c_style>& merges, bool byte_fallback,
                         bool fuse_unknown, const std::string& prefix, bool space_is_mark, bool collapse_spaces,
                         bool split_words, bool ignore_merges, const py::bytes& charsmap, bool simd) {
                 const std::vector<MergeRule> rules = rules_of(merges);
                 const std::vector<PieceKind> enums = kinds_of(kinds);
                 SentencePieceOptions options{byte_fallback,   fuse_unknown, prefix_of(prefix),
                                              space_is_mark,   collapse_spaces, split_words,
                                              ignore_merges,   std::string(charsmap),
                                              simd};
                 const py::gil_scoped_release release;
                 return std::make_unique<SentencePieceEncoder>(std::move(pieces), enums, extra_characters, rules,
                                                               std::move(options));
             }),
             py::arg("pieces"), py::arg("kinds"), py::arg("extra_characters"), py::arg("merges"), py::kw_only(),
             py::arg("byte_fallback"), py::arg("fuse_unknown"), py::arg("prefix"), py::arg("space_is_mark"),
             py::arg("collapse_spaces"), py::arg("split_words"), py::arg("ignore_merges"), py::arg("charsmap"),
             py::arg("simd") = true)
        .def_property_readonly("cuts_text", &SentencePieceEncoder::cuts_text)
        .def(
            "encode",
            [](const SentencePieceEncoder& encoder, const py::bytes& text, bool with_prefix) {
                const std::string_view view = text;
                TokenBuffer ids;
                {
                    const py::gil_scoped_release release;
                    ids = encoder.encode(view, with_prefix);
                }
                return to_list(ids.ids());
            },
            py::arg("text"), py::kw_only(), py::arg("with_prefix") = true)
        .def(
            "encode_texts",
            [](const SentencePieceEncoder& encoder, const py::object& texts, std::optional<TokenId> end_id,
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
            [](const SentencePieceEncoder& encoder, const std::string& path, const std::string& separator,
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
}

}  // namespace pylm::bindings
