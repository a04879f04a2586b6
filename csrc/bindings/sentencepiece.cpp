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

#include "bindings/buffers.hpp"
#include "bindings/module.hpp"
#include "bindings/tokens.hpp"
#include "tokenizer/section_file.hpp"
#include "tokenizer/sentencepiece.hpp"
#include "tokenizer/vocabulary.hpp"

namespace py = pybind11;

namespace pylm::bindings {

namespace {

using Kinds = py::array_t<std::uint8_t, py::array::c_style>;

std::vector<PieceKind> kinds_of(const Kinds& numbers) {
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
    std::optional<PackedVocabulary> vocabulary;
    std::vector<std::string> extra_characters;
    std::vector<std::uint8_t> kinds;
    {
        const py::gil_scoped_release release;
        model = parse_sentencepiece_model(file);
        std::vector<PieceKind> enums;
        std::vector<float> scores;
        Vocabulary pieces;
        for (auto& piece : model.pieces) {
            pieces.tokens.push_back(std::move(piece.text));
            enums.push_back(piece.kind);
            kinds.push_back(static_cast<std::uint8_t>(piece.kind));
            scores.push_back(piece.score);
        }
        ScoredMerges merges = merges_of_scores(pieces.tokens, enums, scores);
        pieces.merges = std::move(merges.rules);
        extra_characters = std::move(merges.extra_characters);
        vocabulary.emplace(std::move(pieces));
    }
    py::dict parts;
    parts["vocabulary"] = std::move(*vocabulary);
    parts["kinds"] = to_array(std::move(kinds));
    parts["extra_characters"] = extra_characters;
    parts["byte_fallback"] = model.byte_fallback;
    parts["add_dummy_prefix"] = model.add_dummy_prefix;
    parts["remove_extra_whitespaces"] = model.remove_extra_whitespaces;
    parts["escape_whitespaces"] = model.escape_whitespaces;
    parts["charsmap"] = py::bytes(model.charsmap);
    return parts;
}

// What each piece is in a text.
PackedVocabulary decoded_pieces(const PackedVocabulary& vocabulary, std::span<const PieceKind> kinds,
                                bool space_is_mark) {
    if (kinds.size() != vocabulary.tokens().size()) throw py::value_error("kinds must have an entry for every piece");
    Vocabulary pieces;
    for (std::size_t id = 0; id < kinds.size(); ++id) {
        const std::string_view text = vocabulary.tokens()[id];
        if (const auto byte = kinds[id] == PieceKind::kByte ? byte_of_piece(text) : std::nullopt) {
            pieces.tokens.emplace_back(1, static_cast<char>(*byte));
        } else {
            pieces.tokens.push_back(space_is_mark ? spaces_for_marks(text) : std::string(text));
        }
    }
    return PackedVocabulary(std::move(pieces));
}

}  // namespace

void bind_sentencepiece(py::module_& module) {
    module.def(
        "read_sentencepiece_model", [](const py::bytes& file) { return read_model(file); }, py::arg("file"));
    module.def(
        "decoded_pieces",
        [](const PackedVocabulary& vocabulary, const Kinds& kinds, bool space_is_mark) {
            return decoded_pieces(vocabulary, kinds_of(kinds), space_is_mark);
        },
        py::arg("vocabulary"), py::arg("kinds"), py::kw_only(), py::arg("space_is_mark"));

    py::class_<SentencePieceEncoder> encoder(module, "SentencePieceEncoder");
    encoder
        .def(py::init([](const PackedVocabulary& vocabulary, const Kinds& kinds,
                         const std::vector<std::string>& extra_characters, bool byte_fallback,
                         bool fuse_unknown, const std::string& prefix, bool prefix_everywhere,
                         bool space_is_mark, bool collapse_spaces, bool split_words, bool ignore_merges,
                         const py::bytes& charsmap, bool simd, const SectionFile* file) {
                 const std::vector<PieceKind> enums = kinds_of(kinds);
                 SentencePieceOptions options{byte_fallback, fuse_unknown,    prefix_of(prefix), prefix_everywhere,
                                              space_is_mark, collapse_spaces, split_words,       ignore_merges,
                                              std::string(charsmap), simd};
                 const py::gil_scoped_release release;
                 if (file != nullptr) {
                     return std::make_unique<SentencePieceEncoder>(*file, vocabulary.tokens(), enums,
                                                                   std::move(options));
                 }
                 return std::make_unique<SentencePieceEncoder>(vocabulary.tokens(), enums, extra_characters,
                                                               vocabulary.merges().items(), std::move(options));
             }),
             py::arg("vocabulary"), py::arg("kinds"), py::arg("extra_characters"), py::kw_only(),
             py::arg("byte_fallback"), py::arg("fuse_unknown"), py::arg("prefix"), py::arg("prefix_everywhere"),
             py::arg("space_is_mark"), py::arg("collapse_spaces"), py::arg("split_words"),
             py::arg("ignore_merges"), py::arg("charsmap"), py::arg("simd") = true, py::arg("file") = py::none())
        .def_property_readonly("cuts_text", &SentencePieceEncoder::cuts_text)
        .def(
            "encode",
            [](const SentencePieceEncoder& self, const py::bytes& text, bool begins) {
                const std::string_view view = text;
                TokenBuffer ids;
                {
                    const py::gil_scoped_release release;
                    ids = self.encode(view, begins);
                }
                return to_list(ids.ids());
            },
            py::arg("text"), py::kw_only(), py::arg("begins") = true);
    def_encode_many(encoder);
    module.def(
        "write_tokenizer_file",
        [](const py::bytes& description, const PackedVocabulary& vocabulary, const SentencePieceEncoder& made,
           const TokenDecoder& decoder, const Kinds& kinds, const py::bytes& charsmap) {
            SectionWriter out;
            const std::string_view rules = charsmap;
            out.add(Section::kKinds, std::span(kinds.data(), static_cast<std::size_t>(kinds.size())));
            out.add(Section::kCharsmap, std::span<const char>(rules));
            return write_parts(description, vocabulary, made, decoder, std::move(out));
        },
        py::arg("description"), py::arg("vocabulary"), py::arg("encoder"), py::arg("decoder"), py::kw_only(),
        py::arg("kinds"), py::arg("charsmap"));
}

}  // namespace pylm::bindings
