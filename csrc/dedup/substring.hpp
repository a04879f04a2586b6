// Stretches of texts that occur elsewhere, exactly.
//
// A window is any `length` successive symbols of one text; a symbol has 1, 2 or 4 bytes. Windows never cross
// from one text to the next. Places are ordered by text, then by offset.
//
// The functions are safe to call from several threads at the same time, give the same result for any
// `num_threads` (0: all cores), and throw std::invalid_argument, named below, or std::bad_alloc.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace pylm::dedup {

enum class SubstringMethod { kSampled, kSuffixArray };

struct SubstringOptions {
    std::size_t length;               // symbols of a window, at least 1 and less than 2^31
    std::size_t symbol_bytes = 1;     // 1, 2 or 4; sizes of texts are multiples
    bool first_stays = true;          // of equal windows; otherwise none
    bool on_characters = false;       // ends inside a character of UTF-8 move inward; symbols of one byte only
    SubstringMethod method = SubstringMethod::kSampled;
    bool wide = false;                // for tests: 64-bit suffix arrays for any text
    std::size_t anchor_bytes = 0;     // of anchors in memory at a time; 0: half of the texts' size, 64 MiB at least
    unsigned num_threads = 0;
};

// Half-open ranges of symbols, by text, then by offset; those of a text neither overlap nor touch.
struct Spans {
    std::vector<std::int64_t> text;
    std::vector<std::int64_t> start;
    std::vector<std::int64_t> end;
};

// The symbols that are covered by a window of which an equal one begins
// - at an earlier place of `texts`, with `first_stays`;
// - at another place of `texts`, without it;
// - anywhere in `sources`, when those are given (even when empty); `first_stays` then says nothing.
// An end inside a well-formed character then moves to that character's border on the inside, and spans of
// which nothing is left go. Both methods give the same. Throws std::invalid_argument for options outside of
// their ranges.
//
// kSampled reads the texts once, or more often where the anchors outgrow `anchor_bytes`, and takes these
// anchors, an eighth of the texts' symbols in bytes (a quarter without `first_stays`) and about 32 bytes a
// text. Time is linear in the texts for real ones. Texts with many anchors of one fingerprint, all in one
// group, take up to 70 bytes more for each of these. kSuffixArray copies the texts and takes 9 to 18 times
// as many bytes as there are symbols.
Spans repeated_substrings(std::span<const std::string_view> texts, const SubstringOptions& options);
Spans repeated_substrings(std::span<const std::string_view> texts, std::span<const std::string_view> sources,
                          const SubstringOptions& options);

// Where the texts begin when ranges of bytes are cut out and the rest is put end to end: texts.size() + 1
// offsets. Throws std::invalid_argument unless the ranges are as in Spans and lie in the texts, and with
// `on_characters` cut no well-formed character of UTF-8.
struct Ranges {
    std::span<const std::int64_t> text;
    std::span<const std::int64_t> start;
    std::span<const std::int64_t> end;
};
std::vector<std::int64_t> cut_offsets(std::span<const std::string_view> texts, const Ranges& ranges,
                                      bool on_characters);

// Write that rest; `ranges` as for cut_offsets, which gave `offsets`, and `rest` has offsets.back() bytes.
void cut(std::span<const std::string_view> texts, const Ranges& ranges, std::span<const std::int64_t> offsets,
         std::span<char> rest, unsigned num_threads);

}  // namespace pylm::dedup
