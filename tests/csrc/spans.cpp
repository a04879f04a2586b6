#include "spans.hpp"

#include <map>
#include <string_view>
#include <utility>

#include "check.hpp"
#include "text/unicode.hpp"

namespace pylm::tests {
namespace {

using namespace dedup;
using Place = std::pair<std::size_t, std::size_t>;  // text and offset in symbols

// Marks the bytes of characters' insides: offsets at which a text must not be cut.
std::vector<bool> insides(std::string_view text) {
    std::vector<bool> inside(text.size() + 1);
    for (std::size_t i = 0; i < text.size();) {
        const std::size_t size = decode_utf8(text, i).size;
        for (std::size_t j = 1; j < size; ++j) inside[i + j] = true;
        i += size;
    }
    return inside;
}

Spans expected_spans(const std::vector<std::string>& texts, const std::vector<std::string>* sources,
                     const SubstringOptions& options) {
    const std::size_t width = options.symbol_bytes;
    const std::size_t length = options.length;
    struct Seen {
        Place first;
        std::size_t count = 0;
    };
    std::map<std::string_view, Seen> windows;
    const auto for_windows = [&](const std::vector<std::string>& all, auto&& call) {
        for (std::size_t text = 0; text < all.size(); ++text) {
            for (std::size_t i = 0; i + length <= all[text].size() / width; ++i) {
                call(Place{text, i}, std::string_view(all[text]).substr(i * width, length * width));
            }
        }
    };
    for_windows(sources != nullptr ? *sources : texts, [&](Place place, std::string_view window) {
        Seen& seen = windows[window];
        if (seen.count++ == 0) seen.first = place;
    });
    std::vector<std::vector<bool>> removed;
    for (const std::string& text : texts) removed.emplace_back(text.size() / width);
    for_windows(texts, [&](Place place, std::string_view window) {
        const auto found = windows.find(window);
        if (found == windows.end()) return;
        const bool goes = sources != nullptr || (options.first_stays ? found->second.first < place
                                                                     : found->second.count > 1);
        for (std::size_t i = 0; goes && i < length; ++i) removed[place.first][place.second + i] = true;
    });
    Spans spans;
    for (std::size_t text = 0; text < texts.size(); ++text) {
        const std::vector<bool> inside = insides(texts[text]);
        for (std::size_t i = 0; i < removed[text].size();) {
            std::size_t end = i;
            while (end < removed[text].size() && removed[text][end]) ++end;
            std::size_t start = i;
            i = end + 1;
            while (options.on_characters && start < end && inside[start]) ++start;
            while (options.on_characters && end > start && inside[end]) --end;
            if (start == end) continue;
            spans.text.push_back(static_cast<std::int64_t>(text));
            spans.start.push_back(static_cast<std::int64_t>(start));
            spans.end.push_back(static_cast<std::int64_t>(end));
        }
    }
    return spans;
}

bool equal(const Spans& a, const Spans& b) {
    return a.text == b.text && a.start == b.start && a.end == b.end;
}

}  // namespace

void check_spans(std::vector<std::string> texts, std::vector<std::string> sources, std::size_t length,
                 std::size_t symbol_bytes, bool on_characters) {
    for (auto* all : {&texts, &sources}) {
        for (std::string& text : *all) text.resize(text.size() / symbol_bytes * symbol_bytes);
    }
    const std::vector<std::string_view> views = views_of(texts);
    const std::vector<std::string_view> source_views = views_of(sources);
    for (const bool first_stays : {true, false}) {
        for (const bool has_sources : {false, true}) {
            SubstringOptions options{.length = length,
                                     .symbol_bytes = symbol_bytes,
                                     .first_stays = first_stays,
                                     .on_characters = on_characters && symbol_bytes == 1};
            const Spans expected = expected_spans(texts, has_sources ? &sources : nullptr, options);
            const auto find = [&] {
                return has_sources ? repeated_substrings(views, source_views, options)
                                   : repeated_substrings(views, options);
            };
            for (const unsigned num_threads : {1U, 3U}) {
                for (const std::size_t anchor_bytes : {std::size_t{0}, std::size_t{1}}) {
                    options.num_threads = num_threads;
                    options.anchor_bytes = anchor_bytes;
                    check(equal(find(), expected), "spans by anchors");
                }
            }
            options.method = SubstringMethod::kSuffixArray;
            for (const bool wide : {false, true}) {
                options.wide = wide;
                check(equal(find(), expected), "spans by a suffix array");
            }
        }
    }
}

}  // namespace pylm::tests
