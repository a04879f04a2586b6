// Suffix arrays and longest common prefixes, in linear time.
//
// Symbols are std::uint8_t, std::uint16_t or std::uint32_t of any value; indices are std::int32_t for texts of
// at most 2^31 - 1 symbols, std::int64_t for all others. Every function is safe to call at the same time from
// several threads on outputs of their own, gives the same result for any `num_threads` (0: all cores), and
// throws std::invalid_argument, named below, or std::bad_alloc.
#pragma once

#include <cstdint>
#include <span>

namespace pylm::dedup {

// Write the starts of all suffixes of `text` in their order; the end of the text comes before every symbol.
// `suffixes` has the size of the text, which must be one that Index can hold; both checked.
//
// Induced sorting (Nong, Zhang, Chan 2009). Beside text and result it takes less than half of the
// result's memory for real text and at most about twice as much. Texts with 32-bit symbols larger than the text
// is long are copied, twice for a while.
template <typename Symbol, typename Index>
void suffix_array(std::span<const Symbol> text, std::span<Index> suffixes, unsigned num_threads);

// Write to lcp[i] how many symbols suffixes[i - 1] and suffixes[i] have in common at their beginnings, and 0 to
// lcp[0]. All sizes are equal and all suffixes lie in the text, which is checked; that they are the text's
// suffix array is not. Takes one index a symbol more. Permuted LCP (Kärkkäinen, Manzini, Puglisi 2009).
template <typename Symbol, typename Index>
void lcp_array(std::span<const Symbol> text, std::span<const Index> suffixes, std::span<Index> lcp,
               unsigned num_threads);

}  // namespace pylm::dedup
