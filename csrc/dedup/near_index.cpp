#include "dedup/near_index.hpp"

#include <algorithm>
#include <cstring>

#include "parallel.hpp"

namespace pylm::dedup {
namespace {

constexpr std::size_t kBlock = 64;           // documents a task
constexpr std::size_t kBlocksAtOnce = 1024;  // whose shingles are in memory before they are written
constexpr std::size_t kBytesAtOnce = std::size_t{1} << 26;  // of texts, alike

// As jaccard(), for the shingles of a file.
template <typename Shorten>
double jaccard_short(std::span<const std::uint32_t> a, std::span<const std::uint64_t> b, Shorten&& shorten) noexcept {
    std::size_t common = 0;
    std::size_t i = 0;
    std::size_t j = 0;
    while (i < a.size() && j < b.size()) {
        const std::uint32_t x = a[i];
        const std::uint32_t y = shorten(b[j]);
        common += x == y;
        i += x <= y;
        j += y <= x;
    }
    const std::size_t all = a.size() + b.size() - common;
    return all == 0 ? 0 : static_cast<double>(common) / static_cast<double>(all);
}

template <typename Word>
double share_of_equal(const char* stored, std::span<const std::uint64_t> signature) noexcept {
    std::size_t equal = 0;
    for (std::size_t i = 0; i < signature.size(); ++i) {
        Word value;
        std::memcpy(&value, stored + i * sizeof value, sizeof value);
        equal += value == static_cast<Word>(signature[i]);
    }
    return static_cast<double>(equal) / static_cast<double>(signature.size());
}

// Texts that are shingled at a time: [begin, returned).
std::size_t end_of_batch(const std::vector<std::size_t>& texts, std::size_t begin,
                         std::span<const std::string_view> shingled) {
    std::size_t end = begin;
    const std::size_t most = std::min(texts.size(), begin + kBlock * kBlocksAtOnce);
    for (std::size_t bytes = 0; end < most && bytes < kBytesAtOnce; ++end)
        bytes += shingled[texts[end]].size();
    return end;
}

void write_signatures(SegmentWriter& file, const NearFormat& format, const std::vector<std::size_t>& texts,
                      std::span<const std::string_view> shingled, const MinHasher& hasher, const ShingleRule& rule,
                      unsigned num_threads) {
    const std::size_t value_bytes = format.wide ? 8 : 4;
    std::vector<char> batch;
    for (std::size_t begin = 0; begin < texts.size();) {
        const std::size_t end = end_of_batch(texts, begin, shingled);
        batch.resize((end - begin) * hasher.num_perm() * value_bytes);
        parallel_for((end - begin + kBlock - 1) / kBlock, num_threads, [&](std::size_t task) {
            Shingler shingler(rule);
            MinHasher::Scratch scratch;
            std::vector<std::uint64_t> signature(hasher.num_perm());
            const std::size_t first = begin + task * kBlock;
            for (std::size_t i = first; i < std::min(end, first + kBlock); ++i) {
                hasher.sign(shingler(shingled[texts[i]]), signature, scratch);
                char* out = batch.data() + (i - begin) * signature.size() * value_bytes;
                for (const std::uint64_t value : signature) {
                    std::memcpy(out, &value, value_bytes);  // the lower bytes come first
                    out += value_bytes;
                }
            }
        });
        file.write(std::span<const char>(batch));
        begin = end;
    }
    file.end_array();
    file.end_array();  // no shingles
    file.end_array();
}

template <typename Word>
void write_shingles(SegmentWriter& file, const NearFormat& format, const std::vector<std::size_t>& texts,
                    std::span<const std::string_view> shingled, const ShingleRule& rule, unsigned num_threads) {
    const unsigned shift = sizeof(Word) == 8 || format.low_shingles ? 0 : 32;
    std::vector<std::uint64_t> starts{0};
    file.end_array();  // no signatures
    for (std::size_t begin = 0; begin < texts.size();) {
        const std::size_t end = end_of_batch(texts, begin, shingled);
        std::vector<std::vector<Word>> sets(end - begin);
        parallel_for((end - begin + kBlock - 1) / kBlock, num_threads, [&](std::size_t task) {
            Shingler shingler(rule);
            const std::size_t first = begin + task * kBlock;
            for (std::size_t i = first; i < std::min(end, first + kBlock); ++i) {
                const auto set = shingler.distinct(shingled[texts[i]]);
                auto& out = sets[i - begin];
                out.reserve(set.size());
                for (const std::uint64_t shingle : set) out.push_back(static_cast<Word>(shingle >> shift));
            }
        });
        for (const auto& set : sets) {
            starts.push_back(starts.back() + set.size());
            file.write(std::span<const Word>(set));
        }
        begin = end;
    }
    file.end_array();
    file.write(std::span<const std::uint64_t>(starts));
    file.end_array();
}

}  // namespace

NearSegment::NearSegment(const std::string& path, const NearFormat& format)
    : file_(path, format.fingerprint),
      keys_(file_, kKeys),
      hashes_(file_, kHashes),
      ids_(file_.array<std::int64_t>(kIds)),
      signature_bytes_(format.num_perm * (format.wide ? 8 : 4)),
      signatures_(file_.array<char>(kSignatures)),
      shingle_starts_(file_.array<std::uint64_t>(kShingleStarts)) {
    const bool fits = format.shingle_bits == 0 ? signatures_.size() == ids_.size() * signature_bytes_
                                               : shingle_starts_.size() == ids_.size() + 1;
    if (!fits || ids_.size() != file_.info().count) throw file_.damaged("arrays do not fit together");
}

std::span<const char> NearSegment::signature(std::size_t i) const noexcept {
    return signatures_.subspan(i * signature_bytes_, signature_bytes_);
}

NearIndex::NearIndex(std::span<const std::string> paths, const NearFormat& format) : format_(format) {
    for (const std::string& path : paths) {
        auto segment = std::make_unique<NearSegment>(path, format);
        if (segment->first() != size())
            throw segment->file().damaged("documents of another file are missing before it");
        segments_.push_back(std::move(segment));
    }
    if (size() > KnownText::none) throw std::invalid_argument("an index holds at most 2^32 - 1 documents");
}

std::size_t NearIndex::size() const noexcept {
    return segments_.empty() ? 0 : segments_.back()->first() + segments_.back()->count();
}

std::size_t NearIndex::num_bytes() const noexcept {
    std::size_t bytes = 0;
    for (const auto& segment : segments_) bytes += segment->file().num_bytes();
    return bytes;
}

const NearSegment& NearIndex::segment_of(std::uint32_t document) const {
    const auto behind = std::upper_bound(segments_.begin(), segments_.end(), document,
                                         [](std::uint32_t d, const auto& segment) { return d < segment->first(); });
    return **(behind - 1);
}

std::int64_t NearIndex::id_of(std::uint32_t document) const {
    const NearSegment& segment = segment_of(document);
    return segment.ids()[document - segment.first()];
}

void NearIndex::check(unsigned num_threads) const {
    for (const auto& segment : segments_) segment->file().check(num_threads);
}

std::vector<KnownText> NearIndex::find_texts(std::span<const Hash128> hashes, unsigned num_threads) const {
    struct Query {
        std::uint64_t high;
        std::size_t text;
        std::uint64_t key() const noexcept { return high; }
        bool operator<(const Query& other) const noexcept {
            return high != other.high ? high < other.high : text < other.text;
        }
    };
    std::vector<KnownText> found(hashes.size());
    if (segments_.empty()) return found;
    std::vector<Query> queries(hashes.size());
    for (std::size_t i = 0; i < hashes.size(); ++i) queries[i] = {hashes[i].second, i};
    sort_by_key(queries, num_threads);
    constexpr std::size_t kTask = 1 << 14;
    parallel_for((queries.size() + kTask - 1) / kTask, num_threads, [&](std::size_t task) {
        const auto part = std::span(queries).subspan(task * kTask, std::min(kTask, queries.size() - task * kTask));
        std::vector<std::uint64_t> keys(part.size());
        for (std::size_t i = 0; i < part.size(); ++i) keys[i] = part[i].high;
        for (const auto& segment : segments_) {
            segment->hashes().find(keys, [&](std::size_t i, const HashRecord& record) {
                const std::size_t text = part[i].text;
                if (record.low != hashes[text].first) return;
                if (record.document >= size()) throw segment->file().damaged("a document that is not there");
                found[text] = {record.document, record.is_own != 0};
            });
        }
    });
    return found;
}

std::vector<KnownDocuments::Hit> NearIndex::find_keys(std::span<const std::uint64_t> keys) const {
    std::vector<Hit> hits;
    for (const auto& segment : segments_) {
        segment->keys().find(keys, [&](std::size_t i, const KeyRecord& record) {
            if (record.document >= size()) throw segment->file().damaged("a document that is not there");
            hits.push_back({i, record.document});
        });
    }
    std::sort(hits.begin(), hits.end(), [](const Hit& a, const Hit& b) {
        return a.key != b.key ? a.key < b.key : a.document < b.document;
    });
    return hits;
}

double NearIndex::similarity(std::uint32_t document, std::span<const std::uint64_t> set,
                             std::span<const std::uint64_t> signature, double threshold) const {
    const NearSegment& segment = segment_of(document);
    const std::size_t i = document - segment.first();
    if (format_.shingle_bits == 64) return jaccard(segment.shingles<std::uint64_t>(i), set, threshold);
    if (format_.shingle_bits == 32) {
        const unsigned shift = format_.low_shingles ? 0 : 32;
        return jaccard_short(segment.shingles<std::uint32_t>(i), set,
                             [shift](std::uint64_t shingle) { return static_cast<std::uint32_t>(shingle >> shift); });
    }
    const char* stored = segment.signature(i).data();
    return format_.wide ? share_of_equal<std::uint64_t>(stored, signature)
                        : share_of_equal<std::uint32_t>(stored, signature);
}

std::size_t NearIndex::num_members(std::uint32_t document) const {
    const NearSegment& segment = segment_of(document);
    const std::size_t i = document - segment.first();
    return format_.shingle_bits == 64 ? segment.shingles<std::uint64_t>(i).size()
                                      : segment.shingles<std::uint32_t>(i).size();
}

std::vector<std::uint64_t> NearIndex::members(std::uint32_t document) const {
    const NearSegment& segment = segment_of(document);
    const std::size_t i = document - segment.first();
    const auto copy = [](const auto& set) { return std::vector<std::uint64_t>(set.begin(), set.end()); };
    return format_.shingle_bits == 64 ? copy(segment.shingles<std::uint64_t>(i))
                                      : copy(segment.shingles<std::uint32_t>(i));
}

std::vector<std::uint64_t> NearIndex::members(std::span<const std::uint64_t> set) const {
    std::vector<std::uint64_t> members(set.begin(), set.end());
    if (format_.shingle_bits == 32 && !format_.low_shingles) {
        for (std::uint64_t& member : members) member >>= 32;
    }
    return members;
}

void NearIndex::write(const std::string& path, const NearAgainst& found, std::span<const std::string_view> shingled,
                      std::span<const std::int64_t> ids, const MinHasher& hasher, const ShingleRule& rule,
                      unsigned num_threads) const {
    SegmentWriter file(path, {format_.fingerprint, size(), found.kept.size()});
    {
        std::vector<KeyRecord> keys;
        keys.reserve(found.keys.size());
        for (const auto& [key, document] : found.keys)
            keys.push_back({static_cast<std::uint32_t>(key), static_cast<std::uint32_t>(key >> 32), document});
        sort_by_key(keys, num_threads);
        KeyTableWriter<KeyRecord> table(file, keys.size());
        table.write(keys);
        table.finish();
    }
    {
        std::vector<HashRecord> hashes;
        hashes.reserve(found.hashes.size());
        for (const auto& [hash, text] : found.hashes)
            hashes.push_back({hash.first, hash.second, text.document, text.is_own ? 1U : 0U});
        sort_by_key(hashes, num_threads);
        KeyTableWriter<HashRecord> table(file, hashes.size());
        table.write(hashes);
        table.finish();
    }
    std::vector<std::int64_t> kept_ids;
    kept_ids.reserve(found.kept.size());
    for (const std::size_t text : found.kept) kept_ids.push_back(ids[text]);
    file.write(std::span<const std::int64_t>(kept_ids));
    file.end_array();
    if (format_.shingle_bits == 0) {
        write_signatures(file, format_, found.kept, shingled, hasher, rule, num_threads);
    } else if (format_.shingle_bits == 32) {
        write_shingles<std::uint32_t>(file, format_, found.kept, shingled, rule, num_threads);
    } else {
        write_shingles<std::uint64_t>(file, format_, found.kept, shingled, rule, num_threads);
    }
    file.finish();
}

void NearIndex::merge(const std::string& path, std::size_t begin, std::size_t end, unsigned num_threads) const {
    if (begin >= end || end > segments_.size()) throw std::invalid_argument("no such files to merge");
    const auto segments = std::span(segments_).subspan(begin, end - begin);
    SegmentInfo info{format_.fingerprint, segments.front()->first(), 0};
    std::vector<KeyTable<KeyRecord>> keys;
    std::vector<KeyTable<HashRecord>> hashes;
    for (const auto& segment : segments) {
        segment->file().check(num_threads);
        info.count += segment->count();
        keys.push_back(segment->keys());
        hashes.push_back(segment->hashes());
    }
    SegmentWriter file(path, info);
    merge_tables<KeyRecord>(keys, file, num_threads);
    merge_tables<HashRecord>(hashes, file, num_threads);
    for (const auto& segment : segments) file.write(segment->ids());
    file.end_array();
    for (const std::size_t array : {NearSegment::kSignatures, NearSegment::kShingles}) {
        for (const auto& segment : segments) file.write(segment->file().array<char>(array));
        file.end_array();
    }
    std::uint64_t before = 0;
    std::vector<std::uint64_t> starts;
    if (format_.shingle_bits != 0) starts.push_back(0);
    for (const auto& segment : segments) {
        const auto part = segment->shingle_starts();
        for (std::size_t i = 1; i < part.size(); ++i) starts.push_back(before + part[i]);
        if (!part.empty()) before += part.back();
    }
    file.write(std::span<const std::uint64_t>(starts));
    file.end_array();
    file.finish();
}

}  // namespace pylm::dedup
