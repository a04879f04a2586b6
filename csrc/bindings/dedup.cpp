// Converts, releases the GIL, calls, hands buffers over. The door with the checks is pylm/text/dedup.py.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "bindings/arrow.hpp"
#include "bindings/buffers.hpp"
#include "bindings/hasher.hpp"
#include "bindings/long_call.hpp"
#include "bindings/module.hpp"
#include "bindings/normalized.hpp"
#include "bindings/simd.hpp"
#include "dedup/lsh.hpp"
#include "dedup/minhash.hpp"
#include "dedup/near.hpp"
#include "dedup/normalize.hpp"
#include "dedup/shingle.hpp"
#include "dedup/substring.hpp"
#include "dedup/suffix_array.hpp"
#include "parallel.hpp"
#include "text/arrow.hpp"

namespace py = pybind11;

namespace pylm::bindings {
namespace {

Hasher make_hasher(const std::string& scheme, std::size_t num_perm, std::size_t ngram,
                   const std::string& unit, std::uint64_t seed, bool wide,
                   std::vector<std::uint64_t> multipliers, std::vector<std::uint64_t> increments,
                   const std::optional<std::string>& level_name) {
    using dedup::Scheme;
    using dedup::ShingleKind;
    ShingleKind shingles = ShingleKind::kWord;
    if (unit == "char") {
        shingles = ShingleKind::kCharacter;
    } else if (unit == "token") {
        shingles = ShingleKind::kToken;
    } else if (unit != "word") {
        throw std::invalid_argument("unknown unit " + unit);
    }
    Scheme kind = Scheme::kFast;
    if (scheme == "classic") {
        kind = Scheme::kClassic;
    } else if (scheme == "text-dedup") {
        kind = Scheme::kTextDedup;
        shingles = ShingleKind::kJoined32;
    } else if (scheme == "datatrove") {
        kind = Scheme::kDatatrove;
        shingles = ShingleKind::kJoined64;
    } else if (scheme != "fast") {
        throw std::invalid_argument("unknown scheme " + scheme);
    }
    const SimdLevel level = level_name ? level_of(*level_name) : best_simd_level();
    return {{shingles, ngram, seed},
            dedup::MinHasher(kind, num_perm, seed, {std::move(multipliers), std::move(increments)}, wide, level),
            level};
}

dedup::CharacterTable make_table(const py::array_t<std::uint32_t, py::array::c_style>& actions,
                                 std::vector<std::string> replacements, bool numbers) {
    return {std::vector<std::uint32_t>(actions.data(), actions.data() + actions.size()), std::move(replacements),
            numbers};
}

template <typename Value>
std::vector<Value> sign_all(const Hasher& hasher, std::span<const std::string_view> texts,
                            unsigned num_threads) {
    constexpr std::size_t block = 128;
    const std::size_t width = hasher.minhash.num_perm();
    std::vector<Value> values(texts.size() * width);
    parallel_for((texts.size() + block - 1) / block, num_threads, [&](std::size_t task) {
        dedup::Shingler shingler(hasher.rule, hasher.level);
        dedup::MinHasher::Scratch scratch;
        std::vector<std::uint64_t> signature(width);
        const std::size_t end = std::min(texts.size(), (task + 1) * block);
        for (std::size_t i = task * block; i < end; ++i) {
            hasher.minhash.sign(shingler(texts[i]), signature, scratch);
            std::transform(signature.begin(), signature.end(),
                           values.begin() + static_cast<std::ptrdiff_t>(i * width),
                           [](std::uint64_t value) { return static_cast<Value>(value); });
        }
    });
    return values;
}

template <typename Value>
py::array signatures_as(const Hasher& hasher, std::span<const std::string_view> texts, unsigned num_threads) {
    std::vector<Value> values;
    {
        const LongCall call;
        values = sign_all<Value>(hasher, texts, num_threads);
    }
    return to_array(std::move(values), {static_cast<py::ssize_t>(texts.size()),
                                        static_cast<py::ssize_t>(hasher.minhash.num_perm())});
}

template <typename Collection>
py::array signatures_of(const Hasher& hasher, const Collection& collection, unsigned num_threads) {
    const auto texts = collection.views();
    return hasher.minhash.wide() ? signatures_as<std::uint64_t>(hasher, texts, num_threads)
                                 : signatures_as<std::uint32_t>(hasher, texts, num_threads);
}

py::array signatures(const Hasher& hasher, const py::object& texts, unsigned num_threads) {
    return signatures_of(hasher, Texts(texts), num_threads);
}

// Keys of the bands (num_texts, bands) as `near` makes them, and whether there are shingles; without any, and of
// nulls, the keys are 0.
template <typename Collection>
py::tuple band_keys_of(const Hasher& hasher, const Collection& collection, std::size_t bands, std::size_t rows,
                       unsigned num_threads) {
    constexpr std::size_t block = 128;
    if (bands == 0 || rows == 0 || bands * rows > hasher.minhash.num_perm())
        throw std::invalid_argument("bands and rows must be at least 1 and bands * rows at most num_perm");
    const auto texts = collection.views();
    std::vector<std::uint64_t> keys(texts.size() * bands, 0);
    std::vector<std::uint8_t> has_shingles(texts.size(), 0);
    {
        const LongCall call;
        parallel_for((texts.size() + block - 1) / block, num_threads, [&](std::size_t task) {
            dedup::Shingler shingler(hasher.rule, hasher.level);
            dedup::MinHasher::Scratch scratch;
            std::vector<std::uint64_t> signature(hasher.minhash.num_perm());
            const std::size_t end = std::min(texts.size(), (task + 1) * block);
            for (std::size_t i = task * block; i < end; ++i) {
                if (arrow::is_null(texts[i])) continue;
                const auto shingles = shingler(texts[i]);
                has_shingles[i] = !shingles.empty();
                if (shingles.empty()) continue;
                hasher.minhash.sign(shingles, signature, scratch);
                dedup::band_keys(signature, rows, std::span(keys).subspan(i * bands, bands));
            }
        });
    }
    const auto num_texts = static_cast<py::ssize_t>(texts.size());
    return py::make_tuple(to_array(std::move(keys), {num_texts, static_cast<py::ssize_t>(bands)}),
                          to_array(std::move(has_shingles)));
}

py::tuple band_keys(const Hasher& hasher, const py::object& texts, std::size_t bands, std::size_t rows,
                    unsigned num_threads) {
    return band_keys_of(hasher, Texts(texts), bands, rows, num_threads);
}

using Items = py::array_t<std::int64_t, py::array::c_style>;

template <typename Index>
using Parents = py::array_t<Index, py::array::c_style>;

template <typename Index>
void unite_pairs(Parents<Index>& parents, const Items& a, const Items& b) {
    const std::span<Index> sets(parents.mutable_data(), static_cast<std::size_t>(parents.size()));
    const std::span left(a.data(), static_cast<std::size_t>(a.size()));
    const std::span right(b.data(), static_cast<std::size_t>(b.size()));
    const LongCall call;
    dedup::unite_pairs(sets, left, right);
}

template <typename Index>
void find_roots(Parents<Index>& parents) {
    const std::span<Index> sets(parents.mutable_data(), static_cast<std::size_t>(parents.size()));
    const LongCall call;
    dedup::find_roots(sets);
}

template <typename Index>
void bind_sets(py::module_& module) {
    module.def("unite_pairs", &unite_pairs<Index>, py::arg("parents").noconvert(), py::arg("a"), py::arg("b"));
    module.def("find_roots", &find_roots<Index>, py::arg("parents").noconvert());
}

py::tuple near(const Hasher& hasher, const py::object& object, const NormalizedTexts* normalized,
               double threshold, std::size_t bands, std::size_t rows, bool verify, const std::string& keep,
               const Priority& priority, unsigned num_threads) {
    const Texts texts(object);
    const auto source = normalized != nullptr ? normalized->views() : texts.views();
    dedup::NearOptions options =
        near_options(hasher, texts.size(), threshold, bands, rows, keep, priority, num_threads);
    options.verify = verify;
    dedup::NearDuplicates found;
    {
        const LongCall call;
        found = dedup::near_duplicates(texts.views(), source, hasher.minhash, options);
    }
    return py::make_tuple(to_array(std::move(found.representative)), to_array(std::move(found.similarity)));
}

// Symbols of an array of one dimension without gaps, of 1, 2 or 4 bytes.
template <typename Call>
py::array with_symbols(const py::array& data, Call&& call) {
    const auto symbols = [&]<typename Symbol>(Symbol) {
        return call(std::span(static_cast<const Symbol*>(data.data()), static_cast<std::size_t>(data.size())));
    };
    switch (data.itemsize()) {
        case 1: return symbols(std::uint8_t{});
        case 2: return symbols(std::uint16_t{});
        case 4: return symbols(std::uint32_t{});
        default: throw std::invalid_argument("data: symbols of 1, 2 or 4 bytes expected");
    }
}

template <typename Index>
py::array suffix_array(const py::array& data, unsigned num_threads) {
    return with_symbols(data, [&](auto symbols) {
        py::array_t<Index> suffixes = huge_array<Index>(symbols.size());
        const std::span<Index> out(suffixes.mutable_data(), symbols.size());
        const LongCall call;
        dedup::suffix_array(symbols, out, num_threads);
        return suffixes;
    });
}

template <typename Index>
py::array lcp_array(const py::array& data, const py::array& order, unsigned num_threads) {
    return with_symbols(data, [&](auto symbols) {
        const std::span suffixes(static_cast<const Index*>(order.data()),
                                 static_cast<std::size_t>(order.size()));
        py::array_t<Index> lcp = huge_array<Index>(symbols.size());
        const std::span<Index> out(lcp.mutable_data(), symbols.size());
        const LongCall call;
        dedup::lcp_array(symbols, suffixes, out, num_threads);
        return lcp;
    });
}

py::array suffix_array_of(const py::array& data, bool wide, unsigned num_threads) {
    return wide ? suffix_array<std::int64_t>(data, num_threads) : suffix_array<std::int32_t>(data, num_threads);
}

py::array lcp_array_of(const py::array& data, const py::array& suffixes, unsigned num_threads) {
    return suffixes.itemsize() == 8 ? lcp_array<std::int64_t>(data, suffixes, num_threads)
                                    : lcp_array<std::int32_t>(data, suffixes, num_threads);
}

py::tuple find_spans(std::span<const std::string_view> texts,
                     const std::optional<std::span<const std::string_view>>& sources,
                     const dedup::SubstringOptions& options) {
    dedup::Spans spans;
    {
        const LongCall call;
        spans = sources ? dedup::repeated_substrings(texts, *sources, options)
                        : dedup::repeated_substrings(texts, options);
    }
    return py::make_tuple(to_array(std::move(spans.text)), to_array(std::move(spans.start)),
                          to_array(std::move(spans.end)));
}

dedup::SubstringOptions substring_options(std::size_t length, const std::string& keep, const std::string& method,
                                          bool wide, std::size_t anchor_bytes, unsigned num_threads) {
    if (keep != "first" && keep != "none") throw std::invalid_argument("unknown keep " + keep);
    if (method != "sampled" && method != "suffix_array") throw std::invalid_argument("unknown method " + method);
    return {.length = length,
            .first_stays = keep == "first",
            .method = method == "sampled" ? dedup::SubstringMethod::kSampled
                                          : dedup::SubstringMethod::kSuffixArray,
            .wide = wide,
            .anchor_bytes = anchor_bytes,
            .num_threads = num_threads};
}

py::tuple repeated_substrings(const py::object& object, const std::optional<py::object>& against,
                              std::size_t length, const std::string& keep, const std::string& method, bool wide,
                              std::size_t anchor_bytes, unsigned num_threads) {
    const Texts texts(object);
    std::optional<Texts> sources;
    if (against) sources.emplace(*against, "against");
    dedup::SubstringOptions options = substring_options(length, keep, method, wide, anchor_bytes, num_threads);
    options.on_characters = true;
    const py::tuple spans =
        find_spans(texts.views(), sources ? std::optional(sources->views()) : std::nullopt, options);
    return py::make_tuple(texts.size(), spans[0], spans[1], spans[2]);
}

// Ids end to end, as bytes.
std::vector<std::string_view> views_of_ids(const py::array& ids, const py::array_t<std::int64_t>& offsets) {
    const auto* bytes = static_cast<const char*>(ids.data());
    const auto width = static_cast<std::size_t>(ids.itemsize());
    std::vector<std::string_view> views;
    views.reserve(static_cast<std::size_t>(std::max<py::ssize_t>(offsets.size(), 1) - 1));
    for (py::ssize_t i = 1; i < offsets.size(); ++i) {
        const auto begin = static_cast<std::size_t>(offsets.at(i - 1));
        const auto end = static_cast<std::size_t>(offsets.at(i));
        if (end < begin || end > static_cast<std::size_t>(ids.size())) {
            throw std::invalid_argument("offsets must rise from 0 to the number of ids");
        }
        views.emplace_back(bytes + begin * width, (end - begin) * width);
    }
    return views;
}

py::tuple repeated_tokens(const py::array& ids, const py::array_t<std::int64_t>& offsets,
                          const std::optional<py::array>& against_ids,
                          const std::optional<py::array_t<std::int64_t>>& against_offsets, std::size_t length,
                          const std::string& keep, const std::string& method, bool wide,
                          std::size_t anchor_bytes, unsigned num_threads) {
    const std::vector<std::string_view> texts = views_of_ids(ids, offsets);
    std::optional<std::vector<std::string_view>> sources;
    if (against_ids && against_offsets) sources = views_of_ids(*against_ids, *against_offsets);
    dedup::SubstringOptions options = substring_options(length, keep, method, wide, anchor_bytes, num_threads);
    options.symbol_bytes = static_cast<std::size_t>(ids.itemsize());
    return find_spans(texts, sources ? std::optional(std::span<const std::string_view>(*sources)) : std::nullopt,
                      options);
}

py::tuple cut_spans(const py::object& object, std::size_t num_texts, const py::array_t<std::int64_t>& text,
                    const py::array_t<std::int64_t>& start, const py::array_t<std::int64_t>& end,
                    unsigned num_threads) {
    const Texts texts(object);
    if (texts.size() != num_texts) {
        throw_input_error("texts must be the " + std::to_string(num_texts) + " texts that the spans are of, got " +
                          std::to_string(texts.size()));
    }
    const auto view = [](const py::array_t<std::int64_t>& array) {
        return std::span(array.data(), static_cast<std::size_t>(array.size()));
    };
    const dedup::Ranges ranges{view(text), view(start), view(end)};
    std::vector<std::int64_t> offsets = dedup::cut_offsets(texts.views(), ranges, !texts.is_binary());
    const auto size = static_cast<std::size_t>(offsets.back());
    py::array_t<std::uint8_t> rest = huge_array<std::uint8_t>(size);
    std::vector<std::uint8_t> valid((texts.size() + 7) / 8);  // a bit a text, as in Arrow
    {
        char* data = reinterpret_cast<char*>(rest.mutable_data());
        const LongCall call;
        dedup::cut(texts.views(), ranges, offsets, {data, size}, num_threads);
        for (std::size_t i = 0; i < texts.size(); ++i) {
            valid[i / 8] |= static_cast<std::uint8_t>(!arrow::is_null(texts.views()[i]) << (i % 8));
        }
    }
    return py::make_tuple(to_array(std::move(offsets)), rest, to_array(std::move(valid)), texts.is_binary());
}

}  // namespace

void bind_dedup(py::module_& module) {
    module.def("suffix_array", &suffix_array_of, py::arg("data"), py::arg("wide"), py::arg("num_threads"));
    module.def("lcp_array", &lcp_array_of, py::arg("data"), py::arg("suffix_array"), py::arg("num_threads"));
    py::class_<dedup::CharacterTable>(module, "CharacterTable")
        .def(py::init(&make_table), py::arg("actions"), py::arg("replacements"), py::arg("numbers"));
    py::class_<NormalizedTexts>(module, "NormalizedTexts")
        .def(py::init([](const py::object& texts, const dedup::CharacterTable& table, unsigned num_threads) {
                 return NormalizedTexts(Texts(texts).views(), table, num_threads);
             }),
             py::arg("texts"), py::arg("table"), py::arg("num_threads"))
        .def("__len__", &NormalizedTexts::size)
        .def("__getitem__", [](const NormalizedTexts& texts, std::size_t index) {
            const auto views = texts.views();
            if (index >= views.size()) throw py::index_error();
            return py::bytes(views[index].data(), views[index].size());
        })
        .def_property_readonly("unknown", &NormalizedTexts::unknown)
        .def("set", &NormalizedTexts::set, py::arg("index"), py::arg("text"));
    module.def("repeated_substrings", &repeated_substrings, py::arg("texts"), py::arg("against"), py::arg("length"),
               py::arg("keep"), py::arg("method"), py::arg("wide"), py::arg("anchor_bytes"),
               py::arg("num_threads"));
    module.def("repeated_tokens", &repeated_tokens, py::arg("ids"), py::arg("offsets"), py::arg("against_ids"),
               py::arg("against_offsets"), py::arg("length"), py::arg("keep"), py::arg("method"),
               py::arg("wide"), py::arg("anchor_bytes"), py::arg("num_threads"));
    module.def("cut_spans", &cut_spans, py::arg("texts"), py::arg("num_docs"), py::arg("text"), py::arg("start"), py::arg("end"),
               py::arg("num_threads"));
    bind_sets<std::uint32_t>(module);
    bind_sets<std::uint64_t>(module);
    py::class_<Hasher>(module, "MinHasher")
        .def(py::init(&make_hasher), py::arg("scheme"), py::arg("num_perm"), py::arg("ngram"),
             py::arg("unit"), py::arg("seed"), py::arg("wide"), py::arg("multipliers"),
             py::arg("increments"), py::arg("level") = py::none())
        .def("signatures", &signatures_of<NormalizedTexts>, py::arg("texts"), py::arg("num_threads"))
        .def("signatures", &signatures, py::arg("texts"), py::arg("num_threads"))
        .def("band_keys", &band_keys_of<NormalizedTexts>, py::arg("texts"), py::arg("bands"), py::arg("rows"),
             py::arg("num_threads"))
        .def("band_keys", &band_keys, py::arg("texts"), py::arg("bands"), py::arg("rows"), py::arg("num_threads"))
        .def("near", &near, py::arg("texts"), py::arg("normalized"), py::arg("threshold"), py::arg("bands"),
             py::arg("rows"), py::arg("verify"), py::arg("keep"), py::arg("priority"), py::arg("num_threads"));
}

}  // namespace pylm::bindings
