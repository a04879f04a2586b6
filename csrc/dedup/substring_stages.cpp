#include "dedup/substring_stages.hpp"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "dedup/substring_anchors.hpp"
#include "dedup/substring_windows.hpp"
#include "dedup/xxhash.hpp"

namespace pylm::dedup {
namespace {

constexpr std::size_t kMostWindows = std::size_t{1} << 24;  // looked through at a time: places are 32 bits
constexpr std::size_t kParts = 4;                           // of a divided key's windows

void append(WindowRuns& runs, std::size_t text, std::size_t begin, std::size_t end) {
    runs.text.push_back(static_cast<std::int64_t>(text));
    runs.begin.push_back(static_cast<std::int64_t>(begin));
    runs.end.push_back(static_cast<std::int64_t>(end));
}

WindowRuns runs_of(const Documents& documents, const WindowBits& bits) {
    WindowRuns runs;
    for (std::size_t i = documents.first_text(); i < documents.count(); ++i) {
        const std::size_t base = documents.start(i);
        const std::size_t end = documents.windows_end(i);
        for (std::size_t place = bits.next(base, end, true); place < end;) {
            const std::size_t behind = bits.next(place, end, false);
            append(runs, documents.index(i), place - base, behind - base);
            place = bits.next(behind, end, true);
        }
    }
    return runs;
}

void check_length(std::size_t length) {
    if (length == 0 || length >> 31 != 0) {
        throw std::invalid_argument("length must lie in [1, 2^31), got " + std::to_string(length));
    }
}

void check_windows(std::span<const std::string_view> texts, std::size_t length, const Ranges& windows) {
    if (windows.start.size() != windows.text.size() || windows.end.size() != windows.text.size()) {
        throw std::invalid_argument("runs need as many beginnings and ends as texts");
    }
    for (std::size_t i = 0; i < windows.text.size(); ++i) {
        const std::int64_t text = windows.text[i];
        const bool is_text = text >= 0 && static_cast<std::size_t>(text) < texts.size();
        const std::size_t size = is_text ? texts[static_cast<std::size_t>(text)].size() : 0;
        const auto num_windows = static_cast<std::int64_t>(size < length ? 0 : size - length + 1);
        if (windows.start[i] < 0 || windows.end[i] <= windows.start[i] || windows.end[i] > num_windows) {
            throw std::invalid_argument("run " + std::to_string(i) + " is [" + std::to_string(windows.start[i]) +
                                        ", " + std::to_string(windows.end[i]) + ") of text " +
                                        std::to_string(text) + ", which has " + std::to_string(num_windows) +
                                        " windows");
        }
    }
}

// Bits of the windows of the runs.
class RunBits {
public:
    RunBits(std::span<const std::string_view> texts, const Documents& documents, const Ranges& windows)
        : bits_(documents.num_places()) {
        std::vector<std::size_t> starts(texts.size());
        for (std::size_t i = 0; i < documents.count(); ++i) starts[documents.index(i)] = documents.start(i);
        for (std::size_t i = 0; i < windows.text.size(); ++i) {
            const std::size_t base = starts[static_cast<std::size_t>(windows.text[i])];
            bits_.set(base + static_cast<std::size_t>(windows.start[i]),
                      base + static_cast<std::size_t>(windows.end[i]) - 1);
        }
    }
    const WindowBits& bits() const noexcept { return bits_; }

private:
    WindowBits bits_;
};

RepeatedWindows find(std::span<const std::string_view> texts, std::span<const std::string_view> sources,
                     bool has_sources, const SubstringOptions& options) {
    check_length(options.length);
    const Documents documents(sources, texts, options.length, 1);
    if (documents.first_text() == documents.count()) return {};
    WindowMarks marks(documents, options.first_stays || has_sources);
    mark_by_anchors(documents, has_sources, options, marks);
    RepeatedWindows found;
    found.removed = runs_of(documents, marks.removed());
    if (&marks.removed() != &marks.later()) found.later = runs_of(documents, marks.later());
    return found;
}

class Keys {
public:
    Keys(const Documents& documents, const WindowBits& known, std::span<const std::uint64_t> divided,
         std::size_t least_level)
        : documents_(documents), known_(known), divided_(divided), least_level_(least_level),
          sampling_(documents.length()) {}

    KeyedRuns find() {
        for (std::size_t i = documents_.first_text(); i < documents_.count(); ++i) {
            const std::size_t end = documents_.windows_end(i);
            for (std::size_t base = documents_.start(i); base < end; base += kMostWindows) {
                find(i, base, std::min(end, base + kMostWindows));
            }
        }
        return std::move(found_);
    }

private:
    void find(std::size_t document, std::size_t base, std::size_t windows_end) {
        if (known_.all(base, windows_end - 1)) return;
        const std::size_t offset = base - documents_.start(document);
        const std::string_view data(documents_.data(document) + offset, documents_.end(document) - base);
        const auto visit = [&](std::uint64_t, std::size_t anchor, std::size_t first, std::size_t last) {
            begin_ = base + first;
            end_ = base + last + 1;
            if (trim(begin_, end_)) find_part(document, base + anchor, 0, 0, sampling_.spread);
        };
        const std::size_t num_windows = windows_end - base;
        if (sampling_.core < 8) {
            select_anchors<0>(sampling_.spread, ShortKey{sampling_.core}, data, num_windows, least_, visit);
        } else {
            select_anchors<0>(sampling_.spread, WholeKey(), data, num_windows, least_, visit);
        }
    }

    // To the first and last windows that are not known. Returns whether there are any.
    bool trim(std::size_t& begin, std::size_t& end) const noexcept {
        begin = known_.next(begin, end, false);
        if (begin >= end) return false;
        while (known_.all(end - 1, end - 1)) --end;
        return true;
    }

    // Windows of the anchor that begin `least` to `most` - 1 bytes before it; these share `length` bytes less
    // the differences of their beginnings.
    void find_part(std::size_t document, std::size_t anchor, std::size_t level, std::size_t least,
                   std::size_t most) {
        std::size_t begin = std::max(begin_ + most, anchor + 1) - most;
        std::size_t end = std::min(end_ + least, anchor + 1);
        if (end < least + begin + 1) return;
        end -= least;
        if (!trim(begin, end)) return;
        const std::size_t start = documents_.start(document);
        const char* shared = documents_.data(document) + (anchor - least - start);
        const std::size_t size = sampling_.length - (most - 1 - least);
        const std::size_t hashed = level == 0 ? std::min(size, kFingerprintBytes) : size;
        const std::uint64_t key = xxh3_64({shared, hashed}, std::uint64_t{least} << 32 | most);
        const std::size_t num_parts = std::min(kParts, most - least);
        if (num_parts > 1 && std::binary_search(divided_.begin(), divided_.end(), key)) {
            for (std::size_t part = 0; part < num_parts; ++part) {
                find_part(document, anchor, level + 1, least + part * (most - least) / num_parts,
                          least + (part + 1) * (most - least) / num_parts);
            }
        } else if (level >= least_level_) {
            found_.key.push_back(key);
            append(found_.windows, documents_.index(document), begin - start, end - start);
        }
    }

    const Documents& documents_;
    const WindowBits& known_;
    std::span<const std::uint64_t> divided_;
    std::size_t least_level_;
    Sampling sampling_;
    std::size_t begin_ = 0;  // windows of the anchor at hand
    std::size_t end_ = 0;
    std::vector<std::uint64_t> least_;
    KeyedRuns found_;
};

}  // namespace

RepeatedWindows repeated_windows(std::span<const std::string_view> texts, const SubstringOptions& options) {
    return find(texts, {}, false, options);
}

RepeatedWindows repeated_windows(std::span<const std::string_view> texts, std::span<const std::string_view> sources,
                                 const SubstringOptions& options) {
    return find(texts, sources, true, options);
}

KeyedRuns window_keys(std::span<const std::string_view> texts, std::size_t length, const Ranges& known,
                      std::span<const std::uint64_t> divided, std::size_t least_level) {
    check_length(length);
    check_windows(texts, length, known);
    const Documents documents({}, texts, length, 1);
    const RunBits bits(texts, documents, known);
    return Keys(documents, bits.bits(), divided, least_level).find();
}

Spans spans_of_windows(std::span<const std::string_view> texts, std::size_t length, const Ranges& windows,
                       bool on_characters) {
    check_length(length);
    check_windows(texts, length, windows);
    const Documents documents({}, texts, length, 1);
    return spans_of(documents, RunBits(texts, documents, windows).bits(), on_characters);
}

std::vector<std::int64_t> window_offsets(std::span<const std::string_view> texts, std::size_t length,
                                         const Ranges& windows) {
    check_length(length);
    check_windows(texts, length, windows);
    std::vector<std::int64_t> offsets{0};
    offsets.reserve(windows.text.size() + 1);
    for (std::size_t i = 0; i < windows.text.size(); ++i) {
        offsets.push_back(offsets.back() + windows.end[i] - windows.start[i] - 1 + static_cast<std::int64_t>(length));
    }
    return offsets;
}

void copy_windows(std::span<const std::string_view> texts, const Ranges& windows,
                  std::span<const std::int64_t> offsets, std::span<char> bytes) {
    for (std::size_t i = 0; i < windows.text.size(); ++i) {
        const char* from = texts[static_cast<std::size_t>(windows.text[i])].data() + windows.start[i];
        std::copy_n(from, offsets[i + 1] - offsets[i], bytes.data() + offsets[i]);
    }
}

}  // namespace pylm::dedup
