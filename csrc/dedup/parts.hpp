// Lines and paragraphs of texts.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace pylm::dedup {

// Parts in order; [start, end) are bytes of text number `doc`.
struct Parts {
    std::vector<std::int64_t> doc, start, end;
    std::vector<std::string_view> views;
};

// Lines that are not blank, without their ends (LF, or CR LF); a blank line has nothing but ASCII white space.
// O(bytes).
Parts split_lines(std::span<const std::string_view> texts);

// Paragraphs: what lies between blank lines, without the end of the last line. O(bytes).
Parts split_paragraphs(std::span<const std::string_view> texts);

}  // namespace pylm::dedup
