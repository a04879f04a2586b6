#include "dedup/parts.hpp"

#include <algorithm>
#include <cstddef>

namespace pylm::dedup {
namespace {

bool is_blank(std::string_view line) noexcept {
    return line.find_first_not_of(" \t\r\v\f") == std::string_view::npos;
}

// Calls line(start, end) for every line of a text, the end without LF or CR LF.
template <typename Line>
void for_each_line(std::string_view text, Line&& line) {
    for (std::size_t start = 0; start < text.size();) {
        const std::size_t feed = std::min(text.find('\n', start), text.size());
        line(start, feed > start && text[feed - 1] == '\r' ? feed - 1 : feed);
        start = feed + 1;
    }
}

void add(Parts& parts, std::size_t doc, std::string_view text, std::size_t start, std::size_t end) {
    parts.doc.push_back(static_cast<std::int64_t>(doc));
    parts.start.push_back(static_cast<std::int64_t>(start));
    parts.end.push_back(static_cast<std::int64_t>(end));
    parts.views.push_back(text.substr(start, end - start));
}

}  // namespace

Parts split_lines(std::span<const std::string_view> texts) {
    Parts parts;
    for (std::size_t doc = 0; doc < texts.size(); ++doc) {
        for_each_line(texts[doc], [&](std::size_t start, std::size_t end) {
            if (!is_blank(texts[doc].substr(start, end - start))) add(parts, doc, texts[doc], start, end);
        });
    }
    return parts;
}

Parts split_paragraphs(std::span<const std::string_view> texts) {
    Parts parts;
    for (std::size_t doc = 0; doc < texts.size(); ++doc) {
        std::size_t begin = 0;
        std::size_t last = 0;  // end of the last line that is not blank
        bool inside = false;
        for_each_line(texts[doc], [&](std::size_t start, std::size_t end) {
            const bool blank = is_blank(texts[doc].substr(start, end - start));
            if (blank && inside) add(parts, doc, texts[doc], begin, last);
            if (!blank && !inside) begin = start;
            if (!blank) last = end;
            inside = !blank;
        });
        if (inside) add(parts, doc, texts[doc], begin, last);
    }
    return parts;
}

}  // namespace pylm::dedup
