// Vocabularies from files, added tokens, decoding. The doors with the checks are in pylm/text.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <deque>
#include <functional>
#include <list>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "bindings/arrow.hpp"
#include "bindings/buffers.hpp"
#include "bindings/long_call.hpp"
#include "bindings/module.hpp"
#include "bindings/tokens.hpp"
#include "parallel.hpp"
#include "text/mapped_file.hpp"
#include "text/normal_form.hpp"
#include "text/properties.hpp"
#include "tokenizer/added_tokens.hpp"
#include "tokenizer/bpe_encode.hpp"
#include "tokenizer/decode.hpp"
#include "tokenizer/hf_model.hpp"
#include "tokenizer/rank_file.hpp"
#include "tokenizer/section_file.hpp"
#include "tokenizer/sentencepiece.hpp"
#include "tokenizer/vocabulary.hpp"

namespace py = pybind11;

namespace pylm::bindings {

namespace {

using Ids = py::array_t<std::uint32_t, py::array::c_style>;
using Views = std::span<const std::string_view>;

std::span<const TokenId> ids_of(const Ids& ids) {
    if (ids.ndim() != 1) throw py::value_error("ids must have one dimension");
    return {ids.data(), static_cast<std::size_t>(ids.size())};
}

Ids to_rows(std::span<const MergeRule> rules) {
    std::vector<std::uint32_t> rows;
    rows.reserve(rules.size() * 4);
    for (const MergeRule& rule : rules) rows.insert(rows.end(), {rule.left, rule.right, rule.merged, rule.rank});
    return to_array(std::move(rows), {static_cast<py::ssize_t>(rules.size()), 4});
}

std::vector<MergeRule> from_rows(const Ids& merges) {
    if (merges.ndim() != 2 || merges.shape(1) != 4)
        throw py::value_error("merges must have the columns left, right, merged, rank");
    const auto rows = merges.unchecked<2>();
    std::vector<MergeRule> rules;
    rules.reserve(static_cast<std::size_t>(rows.shape(0)));
    for (py::ssize_t i = 0; i < rows.shape(0); ++i)
        rules.push_back({rows(i, 0), rows(i, 1), rows(i, 2), rows(i, 3)});
    return rules;
}

py::bytes to_bytes(const SectionFile& file, Section section) {
    const auto bytes = file.array<char>(section);
    return {bytes.data(), bytes.size()};
}

std::span<const std::uint8_t> mask_of(const AddedTokens& tokens, std::string_view mask) {
    if (mask.size() != tokens.size()) throw py::value_error("expected a byte for each added token");
    return {reinterpret_cast<const std::uint8_t*>(mask.data()), mask.size()};
}

// The whole way of a text: tokens of the raw text, normalization, tokens of the normalized text, merges.
class AddedEncoder {
  public:
    using Flags = std::span<const std::uint8_t>;
    // Ids of texts; the flags say which of them begin one.
    using Merge = std::function<TokenBatch(Views, Flags, unsigned, std::optional<TokenId>)>;

    // The normalizer is a normal form or, where there is none, a function of Python.
    AddedEncoder(const AddedTokens& raw, const AddedTokens& normalized, std::optional<NormalForm> form,
                 std::optional<py::function> normalizer, bool keeps_ascii, std::optional<py::function> splitter,
                 Merge merge)
        : raw_(raw),
          normalized_(normalized),
          form_(form),
          normalizer_(std::move(normalizer)),
          keeps_ascii_(keeps_ascii),
          splitter_(std::move(splitter)),
          merge_(std::move(merge)) {}

    // Without the interpreter lock.
    TokenBatch encode(Views texts, std::string_view raw_enabled, std::string_view normalized_enabled,
                      std::optional<TokenId> end, unsigned num_threads) const {
        const auto raw_mask = mask_of(raw_, raw_enabled);
        const auto normalized_mask = mask_of(normalized_, normalized_enabled);
        const AddedTokens::Encode merge = [&](Views stretches, Flags begins, std::optional<TokenId> last) {
            return splitter_ ? merge_split(stretches, num_threads, last)
                             : merge_(stretches, begins, num_threads, last);
        };
        const AddedTokens::Encode inner = [&](Views stretches, Flags begins, std::optional<TokenId> last) {
            std::list<std::string> changed;
            std::vector<std::string_view> views;
            if (form_) {
                stretches = views = normalize_all(stretches, *form_, changed, num_threads);
            } else if (normalizer_) {
                stretches = views = call_normalizer(stretches, changed, num_threads);
            }
            return normalized_.encode_batch(stretches, begins, normalized_mask, merge, last, num_threads);
        };
        const std::vector<std::uint8_t> begins(texts.size(), 1);
        return raw_.encode_batch(texts, begins, raw_mask, inner, end, num_threads);
    }

  private:
    // Views of what the normalizer makes of the texts; those that it changes are kept in `changed`.
    std::vector<std::string_view> call_normalizer(Views texts, std::list<std::string>& changed,
                                                  unsigned num_threads) const {
        std::vector<std::uint8_t> may_change(texts.size());
        parallel_for(texts.size(), texts.size() < 64 ? 1 : num_threads, [&](std::size_t i) {
            const bool is_kept = texts[i].empty() || (keeps_ascii_ && skip_ascii(texts[i], 0) == texts[i].size());
            may_change[i] = is_kept ? 0 : 1;
        });
        std::vector<std::string_view> views(texts.begin(), texts.end());
        const py::gil_scoped_acquire acquire;
        for (std::size_t i = 0; i < views.size(); ++i) {
            if (may_change[i] == 0) continue;
            const py::bytes text = (*normalizer_)(py::bytes(views[i].data(), views[i].size()));
            views[i] = changed.emplace_back(text);
        }
        return views;
    }

    // Texts whose pattern the core does not know: Python cuts them, and each piece is a text for the core.
    TokenBatch merge_split(Views texts, unsigned num_threads, std::optional<TokenId> end) const {
        std::deque<std::string> pieces;
        std::vector<std::size_t> borders{0};
        {
            const py::gil_scoped_acquire acquire;
            for (const std::string_view text : texts) {
                const py::list cut = (*splitter_)(py::bytes(text.data(), text.size()));
                for (const py::handle piece : cut) pieces.emplace_back(piece.cast<py::bytes>());
                borders.push_back(pieces.size());
            }
        }
        const std::vector<std::string_view> views(pieces.begin(), pieces.end());
        TokenBatch merged = merge_(views, {}, num_threads, std::nullopt);
        TokenBatch batch;
        batch.ids.reserve(merged.ids.size() + texts.size());
        batch.offsets.push_back(0);
        for (std::size_t i = 0; i < texts.size(); ++i) {
            for (std::int64_t k = merged.offsets[borders[i]]; k < merged.offsets[borders[i + 1]]; ++k) {
                batch.ids.push_back(merged.ids.data()[k]);
            }
            if (end) batch.ids.push_back(*end);
            batch.offsets.push_back(static_cast<std::int64_t>(batch.ids.size()));
        }
        return batch;
    }

    const AddedTokens& raw_;
    const AddedTokens& normalized_;
    std::optional<NormalForm> form_;
    std::optional<py::function> normalizer_;
    bool keeps_ascii_;
    std::optional<py::function> splitter_;
    Merge merge_;
};

// Whether the memory is that of a `bytes` object, seen through a memoryview or not: another one may be read-only
// here and written to elsewhere.
bool is_immutable(const py::buffer_info& info) {
    PyObject* owner = info.view()->obj;
    if (owner != nullptr && PyMemoryView_Check(owner)) owner = PyMemoryView_GET_BUFFER(owner)->obj;
    return owner != nullptr && PyBytes_Check(owner);
}

// In place, unless somebody could change the bytes, or numbers in them would lie across words.
SectionFile of_buffer(const py::buffer& buffer) {
    auto request = std::make_unique<py::buffer_info>(buffer.request());
    if (PyBuffer_IsContiguous(request->view(), 'C') == 0) throw py::value_error("expected contiguous bytes");
    const std::string_view bytes(static_cast<const char*>(request->ptr),
                                 static_cast<std::size_t>(request->size * request->itemsize));
    if (!is_immutable(*request) || reinterpret_cast<std::uintptr_t>(bytes.data()) % alignof(std::uint64_t) != 0) {
        const auto copy = std::make_shared<const std::vector<char>>(bytes.begin(), bytes.end());
        return {{copy->data(), copy->size()}, copy};
    }
    const std::shared_ptr<const py::buffer_info> info(request.release(), [](const py::buffer_info* released) {
        const py::gil_scoped_acquire acquire;
        delete released;
    });
    return {bytes, info};
}

void bind_tokenizer_file(py::module_& module) {
    py::class_<SectionFile>(module, "TokenizerFile")
        .def(py::init([](const std::string& path) {
                 const py::gil_scoped_release release;
                 return SectionFile::open(path);
             }),
             py::arg("path"))
        .def_static("of_buffer", &of_buffer, py::arg("buffer"))
        .def_static(
            "is_one", [](const py::bytes& content) { return SectionFile::is_one(std::string_view(content)); },
            py::arg("content"))
        .def_property_readonly("description", [](const SectionFile& file) { return to_bytes(file, Section::kDescription); })
        .def_property_readonly("charsmap", [](const SectionFile& file) { return to_bytes(file, Section::kCharsmap); })
        .def_property_readonly("kinds", [](const SectionFile& file) {
            const auto kinds = file.array<std::uint8_t>(Section::kKinds);
            return to_array(std::vector<std::uint8_t>(kinds.begin(), kinds.end()));
        });
}

void bind_vocabulary_files(py::module_& module) {
    py::class_<PackedVocabulary>(module, "Vocabulary")
        .def(py::init([](const std::vector<py::bytes>& tokens, const Ids& merges) {
                 return PackedVocabulary({{tokens.begin(), tokens.end()}, from_rows(merges)});
             }),
             py::arg("tokens"), py::arg("merges"))
        .def_static("of_file", [](const SectionFile& file) { return PackedVocabulary(file); }, py::arg("file"))
        .def_static(
            "from_rank_file",
            [](const py::bytes& content) {
                const std::string_view view = content;
                const py::gil_scoped_release release;
                return PackedVocabulary(read_rank_file(view));
            },
            py::arg("content"))
        .def("__len__", [](const PackedVocabulary& vocabulary) { return vocabulary.tokens().size(); })
        .def("tokens",
             [](const PackedVocabulary& vocabulary) {
                 py::list out(vocabulary.tokens().size());
                 for (std::size_t i = 0; i < out.size(); ++i) {
                     const std::string_view token = vocabulary.tokens()[i];
                     out[i] = py::bytes(token.data(), token.size());
                 }
                 return out;
             })
        .def(
            "token",
            [](const PackedVocabulary& vocabulary, TokenId id) {
                if (id >= vocabulary.tokens().size()) throw py::index_error("token id " + std::to_string(id));
                const std::string_view token = vocabulary.tokens()[id];
                return py::bytes(token.data(), token.size());
            },
            py::arg("id"))
        .def("alphabet_tokens",
             [](const PackedVocabulary& vocabulary) {
                 py::list out(vocabulary.tokens().size());
                 for (std::size_t i = 0; i < out.size(); ++i) {
                     out[i] = py::str(to_byte_alphabet(vocabulary.tokens()[i]));
                 }
                 return out;
             })
        .def("packed",
             [](const PackedVocabulary& vocabulary) {
                 std::string out;
                 for (std::size_t i = 0; i < vocabulary.tokens().size(); ++i) {
                     const std::string_view token = vocabulary.tokens()[i];
                     for (unsigned shift = 0; shift < 32; shift += 8)
                         out.push_back(static_cast<char>(token.size() >> shift));
                     out += token;
                 }
                 return py::bytes(out);
             })
        .def("merges", [](const PackedVocabulary& vocabulary) { return to_rows(vocabulary.merges().items()); })
        .def("canonical_merges",
             [](const PackedVocabulary& vocabulary) { return to_rows(canonical_merges(vocabulary.unpacked())); })
        .def("rank_merges",
             [](const PackedVocabulary& vocabulary) { return to_rows(pairs_of(vocabulary.tokens().to_strings())); })
        .def("rank_file", [](const PackedVocabulary& vocabulary) {
            return py::bytes(write_rank_file(vocabulary.tokens().to_strings()));
        });

    py::class_<HfDocument>(module, "HfModel")
        .def(py::init([](const py::bytes& content) {
                 const std::string_view view = content;
                 const py::gil_scoped_release release;
                 return std::make_unique<HfDocument>(HfModel::read(view, 0));
             }),
             py::arg("content"))
        .def("__len__", [](const HfDocument& document) { return document.model.size(); })
        .def_property_readonly("rest", [](const HfDocument& document) { return py::bytes(document.rest); })
        .def(
            "find", [](const HfDocument& document, const std::string& text) { return document.model.find(text); },
            py::arg("text"))
        .def(
            "beyond_alphabet",
            [](const HfDocument& document, const PackedVocabulary& vocabulary) {
                return document.model.beyond_alphabet(vocabulary.tokens());
            },
            py::arg("vocabulary"))
        .def(
            "vocabulary",
            [](const HfDocument& document, bool byte_level, const std::vector<TokenId>& hidden) {
                const py::gil_scoped_release release;
                return PackedVocabulary(document.model.to_vocabulary(byte_level, hidden, 0));
            },
            py::kw_only(), py::arg("byte_level"), py::arg("hidden"));
}

void bind_decoder(py::module_& module) {
    py::class_<TokenDecoder>(module, "TokenDecoder")
        .def(py::init([](const PackedVocabulary& vocabulary,
                         const std::vector<std::pair<TokenId, std::string>>& added,
                         const std::vector<TokenId>& special) {
                 return std::make_unique<TokenDecoder>(vocabulary.tokens(), added, special);
             }),
             py::arg("vocabulary"), py::kw_only(), py::arg("added"), py::arg("special"))
        .def_static(
            "of_file", [](const SectionFile& file) { return std::make_unique<TokenDecoder>(file); }, py::arg("file"))
        .def("__len__", &TokenDecoder::size)
        .def(
            "token", [](const TokenDecoder& decoder, TokenId id) { return py::bytes(decoder.token(id)); },
            py::arg("id"))
        .def(
            "decode",
            [](const TokenDecoder& decoder, const Ids& ids, bool skip_special) {
                const auto view = ids_of(ids);
                std::string out;
                {
                    const py::gil_scoped_release release;
                    decoder.decode(view, skip_special, out);
                }
                return py::bytes(out);
            },
            py::arg("ids"), py::kw_only(), py::arg("skip_special"))
        .def(
            "decode_batch",
            [](const TokenDecoder& decoder, const Ids& ids,
               const py::array_t<std::int64_t, py::array::c_style>& offsets, bool skip_special,
               unsigned num_threads) {
                const auto all = ids_of(ids);
                const auto border = offsets.unchecked<1>();
                const auto count = static_cast<std::size_t>(std::max<py::ssize_t>(border.shape(0) - 1, 0));
                for (std::size_t i = 0; i < count; ++i) {
                    const auto at = static_cast<py::ssize_t>(i);
                    if (border(at) < 0 || border(at + 1) < border(at) ||
                        static_cast<std::size_t>(border(at + 1)) > all.size()) {
                        throw py::value_error("offsets must rise and stay within the ids, at text " +
                                              std::to_string(i));
                    }
                }
                std::vector<std::string> texts(count);
                {
                    const py::gil_scoped_release release;
                    parallel_for(count, count < 64 ? 1 : num_threads, [&](std::size_t i) {
                        const auto at = static_cast<py::ssize_t>(i);
                        decoder.decode(all.subspan(static_cast<std::size_t>(border(at)),
                                                   static_cast<std::size_t>(border(at + 1) - border(at))),
                                       skip_special, texts[i]);
                    });
                }
                py::list out(count);
                for (std::size_t i = 0; i < count; ++i) out[i] = py::bytes(texts[i]);
                return out;
            },
            py::arg("ids"), py::arg("offsets"), py::kw_only(), py::arg("skip_special"),
            py::arg("num_threads"))
        .def(
            "lengths",
            [](const TokenDecoder& decoder, const Ids& ids) { return to_array(decoder.lengths(ids_of(ids))); },
            py::arg("ids"));
}

template <typename Encoder>
void def_init(py::class_<AddedEncoder>& cls) {
    cls.def(py::init([](const Encoder& encoder, const AddedTokens& raw, const AddedTokens& normalized,
                        const std::optional<std::string>& form, std::optional<py::function> normalizer,
                        bool keeps_ascii, std::optional<py::function> splitter) {
                const AddedEncoder::Merge merge = [&encoder](Views texts, AddedEncoder::Flags begins,
                                                             unsigned num_threads, std::optional<TokenId> end) {
                    if constexpr (std::is_same_v<Encoder, SentencePieceEncoder>) {
                        return encoder.encode_batch(texts, num_threads, end, begins);
                    } else {
                        return encoder.encode_batch(texts, num_threads, end);
                    }
                };
                return std::make_unique<AddedEncoder>(
                    raw, normalized, form ? std::optional(parse_normal_form(*form)) : std::nullopt,
                    std::move(normalizer), keeps_ascii, std::move(splitter), merge);
            }),
            py::arg("encoder"), py::kw_only(), py::arg("raw"), py::arg("normalized"), py::arg("form"),
            py::arg("normalizer"), py::arg("keeps_ascii"), py::arg("splitter"), py::keep_alive<1, 2>(),
            py::keep_alive<1, 3>(), py::keep_alive<1, 4>());
}

void bind_added_tokens(py::module_& module) {
    py::class_<AddedTokens>(module, "AddedTokens")
        .def(py::init(
                 [](const std::vector<std::tuple<std::string, TokenId, bool, bool, bool>>& tokens) {
                     std::vector<AddedToken> added;
                     for (const auto& [content, id, single_word, lstrip, rstrip] : tokens) {
                         added.push_back({content, id, single_word, lstrip, rstrip});
                     }
                     return std::make_unique<AddedTokens>(std::move(added));
                 }),
             py::arg("tokens"))
        .def("__len__", &AddedTokens::size)
        .def(
            "find",
            [](const AddedTokens& tokens, const py::bytes& text, const py::bytes& enabled) {
                py::list out;
                for (const AddedMatch& match : tokens.find(text, mask_of(tokens, enabled))) {
                    out.append(py::make_tuple(match.begin, match.end, match.token));
                }
                return out;
            },
            py::arg("text"), py::arg("enabled"))
        .def(
            "find_first",
            [](const AddedTokens& tokens, const py::object& texts,
               const py::bytes& enabled) -> std::optional<py::tuple> {
                const Texts items(texts, "texts", Texts::Items::kStrOrBytes);
                const auto mask = mask_of(tokens, enabled);
                const auto views = items.views();
                for (std::size_t i = 0; i < views.size(); ++i) {
                    const auto matches = tokens.find(views[i], mask);
                    if (!matches.empty()) return py::make_tuple(i, matches[0].begin, matches[0].token);
                }
                return std::nullopt;
            },
            py::arg("texts"), py::arg("enabled"));

    py::class_<AddedEncoder> cls(module, "AddedEncoder");
    def_init<BpeEncoder>(cls);
    def_init<SentencePieceEncoder>(cls);
    cls
        .def(
            "encode_texts",
            [](const AddedEncoder& encoder, const py::object& texts, const py::bytes& raw_enabled,
               const py::bytes& normalized_enabled, std::optional<TokenId> end_id, unsigned num_threads) {
                const Texts read(texts, "texts", Texts::Items::kStrOrBytes);
                const std::string_view raw = raw_enabled;
                const std::string_view normalized = normalized_enabled;
                TokenBatch batch;
                {
                    const LongCall call;
                    batch = encoder.encode(read.views(), raw, normalized, end_id, num_threads);
                }
                return to_tuple(std::move(batch));
            },
            py::arg("texts"), py::kw_only(), py::arg("raw_enabled"), py::arg("normalized_enabled"),
            py::arg("end_id"), py::arg("num_threads"))
        .def(
            "encode_file",
            [](const AddedEncoder& encoder, const std::string& path, const std::string& separator,
               const py::bytes& raw_enabled, const py::bytes& normalized_enabled, unsigned num_threads) {
                const std::string_view raw = raw_enabled;
                const std::string_view normalized = normalized_enabled;
                TokenBatch batch;
                {
                    const LongCall call;
                    const MappedFile file(path);
                    batch = encoder.encode(split(file.bytes(), separator), raw, normalized, std::nullopt,
                                           num_threads);
                }
                return to_tuple(std::move(batch));
            },
            py::arg("path"), py::arg("separator"), py::kw_only(), py::arg("raw_enabled"),
            py::arg("normalized_enabled"), py::arg("num_threads"));

    module.def(
        "normalize",
        [](const py::bytes& text, const std::string& form) {
            const std::string_view view = text;
            std::optional<std::string> changed;
            {
                const py::gil_scoped_release release;
                changed = normalize(view, parse_normal_form(form));
            }
            return changed ? py::bytes(*changed) : text;
        },
        py::arg("text"), py::arg("form"));
}

}  // namespace

void bind_vocabulary(py::module_& module) {
    bind_tokenizer_file(module);
    bind_vocabulary_files(module);
    bind_decoder(module);
    bind_added_tokens(module);
}

}  // namespace pylm::bindings
