// Equal windows stand side by side in the suffix array, without less than `length` common symbols between them.
// Suffixes run on into the next text, so those with less than `length` symbols of their own text left are
// passed over: what comes behind decides about the order of equal windows only, which does not matter.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <span>
#include <vector>

#include "dedup/substring_windows.hpp"
#include "dedup/suffix_array.hpp"
#include "huge_pages.hpp"

namespace pylm::dedup {
namespace {

template <typename T>
using HugeVector = std::vector<T, HugePageAllocator<T>>;

template <typename Symbol, typename Index>
void mark(const Documents& documents, bool has_sources, unsigned num_threads, WindowMarks& marks) {
    const std::size_t size = documents.num_places();
    const std::size_t length = documents.length();
    HugeVector<Symbol> text(size);
    WindowBits windows(size);
    for (std::size_t i = 0; i < documents.count(); ++i) {
        std::memcpy(text.data() + documents.start(i), documents.data(i),
                    (documents.end(i) - documents.start(i)) * sizeof(Symbol));
        windows.set(documents.start(i), documents.windows_end(i) - 1);
    }
    HugeVector<Index> order(size);
    HugeVector<Index> lcp(size);
    suffix_array<Symbol, Index>(text, order, num_threads);
    lcp_array<Symbol, Index>(text, order, lcp, num_threads);
    for (std::size_t begin = 0, end = 0; begin < size; begin = end) {
        std::size_t earliest = size;
        for (end = begin; end == begin || (end < size && static_cast<std::size_t>(lcp[end]) >= length); ++end) {
            const auto place = static_cast<std::size_t>(order[end]);
            if (windows.all(place, place)) earliest = std::min(earliest, place);
        }
        if (end - begin == 1 || earliest == size) continue;
        if (has_sources && earliest >= documents.sources_end()) continue;
        for (std::size_t i = begin; i < end; ++i) {
            const auto place = static_cast<std::size_t>(order[i]);
            if (place != earliest && windows.all(place, place)) marks.set_equal(place, earliest, 1);
        }
    }
}

template <typename Symbol>
void mark_symbols(const Documents& documents, bool has_sources, const SubstringOptions& options,
                  WindowMarks& marks) {
    const bool wide = options.wide || documents.num_places() > std::numeric_limits<std::int32_t>::max();
    (wide ? mark<Symbol, std::int64_t> : mark<Symbol, std::int32_t>)(documents, has_sources,
                                                                    options.num_threads, marks);
}

}  // namespace

void mark_by_suffix_array(const Documents& documents, bool has_sources, const SubstringOptions& options,
                          WindowMarks& marks) {
    switch (options.symbol_bytes) {
        case 1: return mark_symbols<std::uint8_t>(documents, has_sources, options, marks);
        case 2: return mark_symbols<std::uint16_t>(documents, has_sources, options, marks);
        default: return mark_symbols<std::uint32_t>(documents, has_sources, options, marks);
    }
}

}  // namespace pylm::dedup
