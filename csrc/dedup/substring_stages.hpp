// Repeated substrings of texts that are never in memory together: what is found in a part of them, the keys
// under which windows of different parts meet, and spans of windows. pylm/data/dedup/substring_stages.py puts these
// together and says why the result is exact.
//
// Symbols are bytes. The functions are safe to call from several threads at the same time and throw
// std::invalid_argument for options outside their ranges and for runs that lie outside the texts.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "dedup/substring.hpp"

namespace pylm::dedup {

// Windows of `text` that begin in [begin, end), by text, then by offset; those of a text do not overlap.
struct WindowRuns {
    std::vector<std::int64_t> text;
    std::vector<std::int64_t> begin;
    std::vector<std::int64_t> end;
};

// The windows that repeated_substrings would remove, and those that equal an earlier one (`later`, without
// sources and without `first_stays` only: otherwise the same).
struct RepeatedWindows {
    WindowRuns removed;
    WindowRuns later;
};
RepeatedWindows repeated_windows(std::span<const std::string_view> texts, const SubstringOptions& options);
RepeatedWindows repeated_windows(std::span<const std::string_view> texts, std::span<const std::string_view> sources,
                                 const SubstringOptions& options);

// Keys of all windows but those in `known`, a key for a run of them; equal windows have equal keys, whatever
// the texts around them.
//
// On level 0 the key of a window is the fingerprint of its anchor's core, and windows of one anchor have one key.
// Where that key is among `divided`, windows are told apart by their distance from the anchor, in four parts, and
// the key of a part is the hash of all that its windows share; and so on for these, down to single windows. Runs may
// hold known windows between others. Only runs of `least_level` or deeper ones are given. `divided` rises.
// O(size of the texts), with a hash of each core, and of up to four times as many bytes for each level below.
struct KeyedRuns {
    std::vector<std::uint64_t> key;
    WindowRuns windows;
};
KeyedRuns window_keys(std::span<const std::string_view> texts, std::size_t length, const Ranges& known,
                      std::span<const std::uint64_t> divided, std::size_t least_level);

// The spans that windows cover: as in repeated_substrings, whatever the order and overlap of `windows`.
Spans spans_of_windows(std::span<const std::string_view> texts, std::size_t length, const Ranges& windows,
                       bool on_characters);

// Where the bytes of the runs' windows begin and end when they are put end to end: offsets, one more than runs.
std::vector<std::int64_t> window_offsets(std::span<const std::string_view> texts, std::size_t length,
                                         const Ranges& windows);
// Write them; `offsets` as window_offsets gives them, and `bytes` has offsets.back() of them.
void copy_windows(std::span<const std::string_view> texts, const Ranges& windows,
                  std::span<const std::int64_t> offsets, std::span<char> bytes);

}  // namespace pylm::dedup
