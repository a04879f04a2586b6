#include "dedup/substring_index.hpp"

#include <algorithm>
#include <stdexcept>
#include <utility>

#include "dedup/bloom.hpp"
#include "dedup/substring_anchors.hpp"
#include "dedup/substring_windows.hpp"
#include "dedup/xxhash.hpp"
#include "parallel.hpp"

namespace pylm::dedup {
namespace {

constexpr std::size_t kPiece = std::size_t{1} << 20;  // places of a text that are one task
constexpr std::size_t kBatch = std::size_t{1} << 25;  // bytes of texts that are looked up at a time
constexpr std::size_t kRunBits = 11;                  // of hashes, by which they are put in order for that
constexpr std::size_t kSortBits = 16;
constexpr std::size_t kLookups = 1 << 14;             // a task

// Hashes of windows as they are kept.
struct Narrow {
    std::uint64_t hash;

    static Narrow of(std::string_view window) noexcept { return {xxh3_64(window, 0)}; }
    std::uint64_t key() const noexcept { return hash; }
    bool operator<(const Narrow& other) const noexcept { return hash < other.hash; }
    bool operator==(const Narrow&) const noexcept = default;
};
struct Wide {
    std::uint64_t low;
    std::uint64_t high;

    static Wide of(std::string_view window) noexcept {
        const auto [first, second] = hash128(window);
        return {first, second};
    }
    std::uint64_t key() const noexcept { return high; }
    bool operator<(const Wide& other) const noexcept {
        return high != other.high ? high < other.high : low < other.low;
    }
    bool operator==(const Wide&) const noexcept = default;
};

// A window of the texts at hand.
template <typename Record>
struct Query {
    Record record;
    std::uint64_t place;  // where it begins, in the texts end to end

    std::uint64_t key() const noexcept { return record.key(); }
};

// The part of a text that is one task: the runs of `gap` places that begin in [begin, end).
struct Piece {
    std::string_view text;
    std::size_t begin;
    std::size_t end;
    std::size_t base;  // of the text, in the texts end to end
};

std::vector<Piece> cut_pieces(std::span<const std::string_view> texts, const WindowFormat& format) {
    std::vector<Piece> pieces;
    std::size_t base = 0;
    for (const std::string_view text : texts) {
        if (text.size() >= format.length) {
            const std::size_t places = text.size() - format.length + 1;
            const std::size_t runs = places - std::min(places, format.gap) + 1;
            for (std::size_t begin = 0; begin < runs; begin += kPiece)
                pieces.push_back({text, begin, std::min(runs, begin + kPiece), base});
        }
        base += text.size();
    }
    return pieces;
}

// Calls visit(place) for the anchors of a piece, each once.
template <typename Key, typename Visit>
void visit_anchors(const Piece& piece, const WindowFormat& format, const Key key, std::vector<std::uint64_t>& least,
                   Visit&& visit) {
    const std::size_t places = piece.text.size() - format.length + 1;
    std::size_t previous = places;  // none
    const auto visit_new = [&](std::size_t place) {
        if (place != previous) visit(place);
        previous = place;
    };
    if (piece.begin == 0) visit_new(0);
    const auto visit_anchor = [&](std::uint64_t, std::size_t anchor, std::size_t, std::size_t) {
        visit_new(piece.begin + anchor);
    };
    select_anchors<0>(std::min(format.gap, places), key, piece.text.substr(piece.begin), piece.end - piece.begin, least,
                      visit_anchor);
    if (piece.end + std::min(format.gap, places) - 1 == places) visit_new(places - 1);
}

// Windows at anchors, in any order, by task; some of them twice, where texts are cut into pieces.
// Record(window, place).
template <typename Item, typename Make>
std::vector<std::vector<Item>> collect(std::span<const std::string_view> texts, const WindowFormat& format,
                                       unsigned num_threads, Make&& make) {
    const std::vector<Piece> pieces = cut_pieces(texts, format);
    // About as many places in each task.
    std::vector<std::size_t> tasks{0};
    std::size_t size = 0;
    for (std::size_t i = 0; i < pieces.size(); ++i) {
        size += pieces[i].end - pieces[i].begin + format.length;
        if (size >= kPiece || i + 1 == pieces.size()) {
            tasks.push_back(i + 1);
            size = 0;
        }
    }
    std::vector<std::vector<Item>> found(tasks.size() - 1);
    parallel_for(found.size(), num_threads, [&](std::size_t task) {
        std::vector<std::uint64_t> least;
        for (std::size_t i = tasks[task]; i < tasks[task + 1]; ++i) {
            const Piece& piece = pieces[i];
            const auto add = [&](std::size_t place) {
                found[task].push_back(make(piece.text.substr(place, format.length), piece.base + place));
            };
            if (format.length < 8) {
                visit_anchors(piece, format, ShortKey{format.length}, least, add);
            } else {
                visit_anchors(piece, format, WholeKey(), least, add);
            }
        }
    });
    return found;
}

// Marks items whose window is kept in one of the tables. record_of(item).
template <typename Record, typename Item, typename RecordOf>
std::vector<std::uint8_t> find_kept(std::span<const std::unique_ptr<SegmentFile>> files, std::span<const Item> items,
                                    unsigned num_threads, RecordOf&& record_of) {
    std::vector<std::uint8_t> kept(items.size(), 0);
    parallel_for((items.size() + kLookups - 1) / kLookups, num_threads, [&](std::size_t task) {
        const std::size_t begin = task * kLookups;
        const auto part = items.subspan(begin, std::min(kLookups, items.size() - begin));
        std::vector<std::uint64_t> keys(part.size());
        for (std::size_t i = 0; i < part.size(); ++i) keys[i] = part[i].key();
        for (const auto& file : files) {
            KeyTable<Record>(*file, 0).find(keys, [&](std::size_t i, const Record& record) {
                if (record == record_of(part[i])) kept[begin + i] = 1;
            });
        }
    });
    return kept;
}

// Ranges that windows at `places`, ascending, cover in the texts end to end.
void add_spans(std::span<const std::string_view> texts, std::size_t first_text, std::span<const std::uint64_t> places,
               std::size_t length, Spans& spans) {
    std::size_t base = 0;
    std::size_t i = 0;
    for (std::size_t t = 0; t < texts.size(); base += texts[t].size(), ++t) {
        const std::size_t end = base + texts[t].size();
        while (i < places.size() && places[i] < end) {
            const std::size_t begin = places[i] - base;
            std::size_t last = begin;
            for (; i < places.size() && places[i] < end && places[i] - base <= last + length; ++i)
                last = places[i] - base;
            const std::size_t from = character_around(texts[t], begin).end;
            const std::size_t to = character_around(texts[t], last + length).begin;
            if (from >= to) continue;
            spans.text.push_back(static_cast<std::int64_t>(first_text + t));
            spans.start.push_back(static_cast<std::int64_t>(from));
            spans.end.push_back(static_cast<std::int64_t>(to));
        }
    }
}

}  // namespace

SubstringIndex::SubstringIndex(std::span<const std::string> paths, const WindowFormat& format) : format_(format) {
    if (format.length == 0 || format.length >> 31 != 0 || format.gap == 0 || format.gap > format.length)
        throw std::invalid_argument("length must lie in [1, 2^31) and gap in [1, length]");
    for (const std::string& path : paths) {
        auto file = std::make_unique<SegmentFile>(path, format.fingerprint);
        const std::size_t count = format.wide ? KeyTable<Wide>(*file, 0).records().size()
                                              : KeyTable<Narrow>(*file, 0).records().size();
        if (file->info().count != count) throw file->damaged("arrays do not fit together");
        if (file->info().first != num_windows_) throw file->damaged("windows of another file are missing before it");
        num_windows_ += count;
        files_.push_back(std::move(file));
    }
}

std::size_t SubstringIndex::num_bytes() const noexcept {
    std::size_t bytes = 0;
    for (const auto& file : files_) bytes += file->num_bytes();
    return bytes;
}

void SubstringIndex::check(unsigned num_threads) const {
    for (const auto& file : files_) file->check(num_threads);
}

Spans SubstringIndex::find(std::span<const std::string_view> texts, unsigned num_threads) const {
    return format_.wide ? find_as<Wide>(texts, num_threads) : find_as<Narrow>(texts, num_threads);
}

template <typename Record>
Spans SubstringIndex::find_as(std::span<const std::string_view> texts, unsigned num_threads) const {
    Spans spans;
    for (std::size_t begin = 0; begin < texts.size();) {
        std::size_t end = begin;
        for (std::size_t bytes = 0; end < texts.size() && (end == begin || bytes + texts[end].size() <= kBatch); ++end)
            bytes += texts[end].size();
        const auto batch = texts.subspan(begin, end - begin);
        const auto make = [](std::string_view window, std::size_t place) {
            return Query<Record>{Record::of(window), place};
        };
        auto parts = collect<Query<Record>>(batch, format_, num_threads, make);
        const KeyRuns<Query<Record>> runs(parts, kRunBits);
        const auto queries = runs.records();
        const auto kept = find_kept<Record>(std::span(files_), queries, num_threads,
                                            [](const Query<Record>& query) { return query.record; });
        std::vector<std::uint64_t> places;
        for (std::size_t i = 0; i < queries.size(); ++i) {
            if (kept[i] != 0) places.push_back(queries[i].place);
        }
        std::sort(places.begin(), places.end());
        add_spans(batch, begin, places, format_.length, spans);
        begin = end;
    }
    return spans;
}

std::size_t SubstringIndex::write(const std::string& path, std::span<const std::string_view> texts,
                                  unsigned num_threads) const {
    return format_.wide ? write_as<Wide>(path, texts, num_threads) : write_as<Narrow>(path, texts, num_threads);
}

template <typename Record>
std::size_t SubstringIndex::write_as(const std::string& path, std::span<const std::string_view> texts,
                                     unsigned num_threads) const {
    auto parts = collect<Record>(texts, format_, num_threads,
                                 [](std::string_view window, std::size_t) { return Record::of(window); });
    std::vector<Record> records = KeyRuns<Record>(parts, kSortBits).sort(num_threads);
    records.erase(std::unique(records.begin(), records.end()), records.end());
    const auto kept = find_kept<Record>(std::span(files_), std::span<const Record>(records), num_threads,
                                        [](const Record& record) { return record; });
    std::size_t count = 0;
    for (std::size_t i = 0; i < records.size(); ++i) {
        if (kept[i] == 0) records[count++] = records[i];
    }
    records.resize(count);
    SegmentWriter file(path, {format_.fingerprint, num_windows_, count});
    KeyTableWriter<Record> table(file, count);
    table.write(records);
    table.finish();
    file.finish();
    return count;
}

void SubstringIndex::merge(const std::string& path, std::size_t begin, std::size_t end, unsigned num_threads) const {
    if (begin >= end || end > files_.size()) throw std::invalid_argument("no such files to merge");
    const auto files = std::span(files_).subspan(begin, end - begin);
    SegmentInfo info{format_.fingerprint, files.front()->info().first, 0};
    for (const auto& file : files) {
        file->check(num_threads);
        info.count += file->info().count;
    }
    SegmentWriter file(path, info);
    if (format_.wide) {
        merge_as<Wide>(file, files, num_threads);
    } else {
        merge_as<Narrow>(file, files, num_threads);
    }
    file.finish();
}

template <typename Record>
void SubstringIndex::merge_as(SegmentWriter& file, std::span<const std::unique_ptr<SegmentFile>> files,
                              unsigned num_threads) const {
    std::vector<KeyTable<Record>> tables;
    for (const auto& one : files) tables.emplace_back(*one, 0);
    merge_tables<Record>(tables, file, num_threads);
}

}  // namespace pylm::dedup
