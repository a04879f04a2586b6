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
#include "text/mapped_file.hpp"
#include "tokenizer/bpe_encode.hpp"
#include "tokenizer/bpe_train.hpp"
#include "tokenizer/sentencepiece.hpp"

namespace py = pybind11;

namespace pylm::bindings {

namespace {

// Hand the ids to NumPy without copying.
py::array_t<TokenId> to_token_array(TokenBuffer&& ids) {
    auto owner = std::make_unique<TokenBuffer>(std::move(ids));
    const TokenId* data = owner->data();
    const auto size = static_cast<py::ssize_t>(owner->size());
    py::capsule capsule(owner.get(), [](void* p) { delete static_cast<TokenBuffer*>(p); });
    owner.release();
    return py::array_t<TokenId>(size, data, capsule);
}

py::tuple to_tuple(TokenBatch&& batch) {
    return py::make_tuple(to_token_array(std::move(batch.ids)), to_array(std::move(batch.offsets)));
}

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

    bind_sentencepiece(module);
}

}  // namespace pylm::bindings
