#include "dedup/substring.hpp"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "dedup/substring_windows.hpp"
#include "parallel.hpp"
#include "text/unicode.hpp"

namespace pylm::dedup {

Character character_around(std::string_view text, std::size_t place) noexcept {
    const auto continues = [&](std::size_t i) { return (static_cast<std::uint8_t>(text[i]) & 0xC0) == 0x80; };
    if (place == 0 || place >= text.size() || !continues(place)) return {place, place};
    std::size_t lead = place - 1;
    while (lead > 0 && place - lead < 3 && continues(lead)) --lead;
    const std::size_t end = lead + decode_utf8(text, lead).size;
    return end > place ? Character{lead, end} : Character{place, place};
}

namespace {

void check(std::span<const std::string_view> texts, const SubstringOptions& options) {
    if (options.length == 0 || options.length >> 31 != 0) {
        throw std::invalid_argument("length must lie in [1, 2^31), got " + std::to_string(options.length));
    }
    const std::size_t width = options.symbol_bytes;
    if (width != 1 && width != 2 && width != 4) {
        throw std::invalid_argument("symbol_bytes must be 1, 2 or 4, got " + std::to_string(width));
    }
    if (width != 1 && options.on_characters) throw std::invalid_argument("characters have symbols of one byte");
    for (std::size_t i = 0; i < texts.size(); ++i) {
        if (texts[i].size() % width != 0) {
            throw std::invalid_argument("text " + std::to_string(i) + " must be whole symbols of " +
                                        std::to_string(width) + " bytes, got " +
                                        std::to_string(texts[i].size()) + " bytes");
        }
    }
}

Spans find(std::span<const std::string_view> texts, std::span<const std::string_view> sources, bool has_sources,
           const SubstringOptions& options) {
    check(texts, options);
    check(sources, options);
    const Documents documents(sources, texts, options.length, options.symbol_bytes);
    if (documents.first_text() == documents.count()) return {};
    WindowMarks marks(documents, options.first_stays || has_sources);
    (options.method == SubstringMethod::kSampled ? mark_by_anchors : mark_by_suffix_array)(
        documents, has_sources, options, marks);
    return spans_of(documents, marks.removed(), options.on_characters);
}

}  // namespace

Spans spans_of(const Documents& documents, const WindowBits& removed, bool on_characters) {
    Spans spans;
    for (std::size_t i = documents.first_text(); i < documents.count(); ++i) {
        const std::size_t base = documents.start(i);
        const std::size_t end = documents.windows_end(i);
        const std::string_view text(documents.data(i), (documents.end(i) - base) << documents.shift());
        for (std::size_t first = removed.next(base, end, true); first < end;) {
            std::size_t last = 0;  // the place behind the span
            std::size_t next = first;
            do {
                const std::size_t behind = removed.next(next, end, false);
                last = behind - 1 + documents.length();
                next = removed.next(behind, end, true);
            } while (next < end && next <= last);
            std::size_t from = first - base;
            std::size_t to = last - base;
            if (on_characters) {
                from = character_around(text, from).end;
                to = character_around(text, to).begin;
            }
            if (from < to) {
                spans.text.push_back(static_cast<std::int64_t>(documents.index(i)));
                spans.start.push_back(static_cast<std::int64_t>(from));
                spans.end.push_back(static_cast<std::int64_t>(to));
            }
            first = next;
        }
    }
    return spans;
}

Spans repeated_substrings(std::span<const std::string_view> texts, const SubstringOptions& options) {
    return find(texts, {}, false, options);
}

Spans repeated_substrings(std::span<const std::string_view> texts, std::span<const std::string_view> sources,
                          const SubstringOptions& options) {
    return find(texts, sources, true, options);
}

std::vector<std::int64_t> cut_offsets(std::span<const std::string_view> texts, const Ranges& ranges,
                                      bool on_characters) {
    const std::size_t count = ranges.text.size();
    if (ranges.start.size() != count || ranges.end.size() != count) {
        throw std::invalid_argument("ranges need as many starts and ends as texts");
    }
    std::vector<std::int64_t> offsets(texts.size() + 1);
    for (std::size_t i = 0; i < texts.size(); ++i) offsets[i + 1] = static_cast<std::int64_t>(texts[i].size());
    for (std::size_t i = 0; i < count; ++i) {
        const std::int64_t text = ranges.text[i];
        const std::int64_t start = ranges.start[i];
        const std::int64_t end = ranges.end[i];
        const auto fail = [&](const std::string& reason) {
            throw std::invalid_argument("span " + std::to_string(i) + " is [" + std::to_string(start) + ", " +
                                        std::to_string(end) + ") of text " + std::to_string(text) + ", " + reason);
        };
        if (text < 0 || static_cast<std::size_t>(text) >= texts.size()) {
            fail("but there are " + std::to_string(texts.size()) + " texts");
        }
        const std::size_t size = texts[static_cast<std::size_t>(text)].size();
        if (start < 0 || end <= start || static_cast<std::size_t>(end) > size) {
            fail("which has " + std::to_string(size) + " bytes");
        }
        if (i > 0 && (text < ranges.text[i - 1] || (text == ranges.text[i - 1] && start <= ranges.end[i - 1]))) {
            fail("which is not behind the span before it");
        }
        const auto cuts = [&](std::int64_t place) {
            const auto here = static_cast<std::size_t>(place);
            return character_around(texts[static_cast<std::size_t>(text)], here).end != here;
        };
        if (on_characters && (cuts(start) || cuts(end))) fail("which cuts a character");
        offsets[static_cast<std::size_t>(text) + 1] -= end - start;
    }
    for (std::size_t i = 0; i < texts.size(); ++i) offsets[i + 1] += offsets[i];
    return offsets;
}

void cut(std::span<const std::string_view> texts, const Ranges& ranges, std::span<const std::int64_t> offsets,
         std::span<char> rest, unsigned num_threads) {
    constexpr std::size_t kBlock = 1024;
    parallel_for((texts.size() + kBlock - 1) / kBlock, num_threads, [&](std::size_t block) {
        const std::size_t end = std::min(texts.size(), (block + 1) * kBlock);
        auto range = static_cast<std::size_t>(
            std::lower_bound(ranges.text.begin(), ranges.text.end(),
                             static_cast<std::int64_t>(block * kBlock)) -
            ranges.text.begin());
        for (std::size_t i = block * kBlock; i < end; ++i) {
            char* out = rest.data() + offsets[i];
            std::size_t kept = 0;  // the place behind the last range
            for (; range < ranges.text.size() && ranges.text[range] == static_cast<std::int64_t>(i); ++range) {
                const auto start = static_cast<std::size_t>(ranges.start[range]);
                out = std::copy_n(texts[i].data() + kept, start - kept, out);
                kept = static_cast<std::size_t>(ranges.end[range]);
            }
            if (kept < texts[i].size()) std::copy_n(texts[i].data() + kept, texts[i].size() - kept, out);
        }
    });
}

}  // namespace pylm::dedup
