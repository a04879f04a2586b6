// Windows of old texts on disk, by which stretches of new texts that repeat them are found without the old texts.
//
// A window is `length` successive bytes of a text. Those at anchors are kept, by a hash alone. A place is an anchor
// if among some `gap` successive places of its text at which windows begin its next 8 bytes have the least hash, and
// it is the first of equal ones (winnowing: Schleimer, Wilkerson, Aiken 2003); also the first and the last place of
// a text at which a window begins. In texts with fewer such places that rule reads as if all of them were `gap`.
//
// Let a stretch of length + gap - 1 bytes or more occur in an old text and in a new one. It holds at least `gap`
// places at which its windows begin, and any `gap` successive ones of them name the same anchor in both texts, since
// they are followed by the same bytes. So the first window that is found begins at most gap - 1 bytes behind the
// stretch's beginning, the last one ends at most gap - 1 bytes before its end, and between them are no gaps, since
// successive anchors are at most `gap` <= length apart. With gap 1 all windows are kept, and all that repeat are found.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "dedup/key_table.hpp"
#include "dedup/segment_file.hpp"
#include "dedup/substring.hpp"

namespace pylm::dedup {

struct WindowFormat {
    std::uint64_t fingerprint = 0;
    std::size_t length = 100;  // 1 to 2^31 - 1
    std::size_t gap = 32;      // 1 to length
    bool wide = false;         // hashes of 128 bits, not 64
};

// All files of an index: a KeyTable each, of the hashes of windows. Immutable; safe to use from several threads. A
// file may be removed while it is mapped.
class SubstringIndex {
public:
    // Paths in the order in which they were written. Throws as NearIndex does, std::invalid_argument for a format
    // outside of its ranges.
    SubstringIndex(std::span<const std::string> paths, const WindowFormat& format);

    std::size_t num_windows() const noexcept { return num_windows_; }
    std::size_t num_bytes() const noexcept;
    void check(unsigned num_threads) const;

    // The bytes in windows at anchors of which an equal one is kept (or one with an equal hash). Ends inside a
    // well-formed character of UTF-8 move inward. O(bytes); memory: 32 bytes (48 if wide) for each
    // anchor in 32 MiB of texts, or in one text.
    Spans find(std::span<const std::string_view> texts, unsigned num_threads) const;

    // Write the windows at anchors that are not kept yet. Returns their number. Memory: 32 bytes (48 if wide) for
    // each anchor, of which there are about 2 / (gap + 1) a byte.
    std::size_t write(const std::string& path, std::span<const std::string_view> texts, unsigned num_threads) const;
    // Write files [begin, end) as one, after a check.
    void merge(const std::string& path, std::size_t begin, std::size_t end, unsigned num_threads) const;

private:
    template <typename Record>
    Spans find_as(std::span<const std::string_view> texts, unsigned num_threads) const;
    template <typename Record>
    std::size_t write_as(const std::string& path, std::span<const std::string_view> texts, unsigned num_threads) const;
    template <typename Record>
    void merge_as(SegmentWriter& file, std::span<const std::unique_ptr<SegmentFile>> files, unsigned num_threads) const;

    WindowFormat format_;
    std::vector<std::unique_ptr<SegmentFile>> files_;
    std::size_t num_windows_ = 0;
};

}  // namespace pylm::dedup
