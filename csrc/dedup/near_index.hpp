// Documents on disk against which new texts are deduplicated: files of an index, each mapped, that hold what
// near_against needs of them.
//
// Arrays of a file: keys of bands with their documents (a KeyTable: two arrays), hashes of texts with their documents
// (a KeyTable), the callers' ids, and either the signatures or the sets of shingles and where each begins.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "dedup/key_table.hpp"
#include "dedup/minhash.hpp"
#include "dedup/near.hpp"
#include "dedup/segment_file.hpp"
#include "dedup/shingle.hpp"

namespace pylm::dedup {

// How a file keeps documents. Shingles of 32 bits are the upper halves, or the lower ones where only these are used.
struct NearFormat {
    std::uint64_t fingerprint = 0;
    unsigned shingle_bits = 64;  // 0 (signatures instead), 32 or 64
    bool low_shingles = false;   // for kJoined32
    std::size_t num_perm = 0;
    bool wide = false;           // signatures of 64 bits
};

// As on disk; 12 bytes.
struct KeyRecord {
    std::uint32_t low;
    std::uint32_t high;
    std::uint32_t document;

    std::uint64_t key() const noexcept { return std::uint64_t{high} << 32 | low; }
    bool operator<(const KeyRecord& other) const noexcept {
        return key() != other.key() ? key() < other.key() : document < other.document;
    }
};
struct HashRecord {
    std::uint64_t low;
    std::uint64_t high;
    std::uint32_t document;
    std::uint32_t is_own;

    std::uint64_t key() const noexcept { return high; }
    bool operator<(const HashRecord& other) const noexcept {
        return high != other.high ? high < other.high : low < other.low;
    }
};

// One mapped file.
class NearSegment {
public:
    // Arrays by number.
    enum : std::size_t { kKeys = 0, kHashes = 2, kIds = 4, kSignatures = 5, kShingles = 6, kShingleStarts = 7 };

    // Throws as SegmentFile does, and DamagedFile for arrays that do not fit together.
    NearSegment(const std::string& path, const NearFormat& format);

    const SegmentFile& file() const noexcept { return file_; }
    const KeyTable<KeyRecord>& keys() const noexcept { return keys_; }
    const KeyTable<HashRecord>& hashes() const noexcept { return hashes_; }
    std::size_t first() const noexcept { return file_.info().first; }
    std::size_t count() const noexcept { return ids_.size(); }
    std::span<const std::int64_t> ids() const noexcept { return ids_; }

    // Of document number `i` of the file; the signature in bytes. Throws DamagedFile.
    std::span<const char> signature(std::size_t i) const noexcept;
    template <typename Word>
    std::span<const Word> shingles(std::size_t i) const {
        const std::uint64_t begin = shingle_starts_[i];
        const std::uint64_t end = shingle_starts_[i + 1];
        const std::span<const Word> all = file_.array<Word>(kShingles);
        if (begin > end || end > all.size()) throw file_.damaged("shingles lie outside of the file");
        return all.subspan(begin, end - begin);
    }
    std::span<const std::uint64_t> shingle_starts() const noexcept { return shingle_starts_; }

private:
    SegmentFile file_;
    KeyTable<KeyRecord> keys_;
    KeyTable<HashRecord> hashes_;
    std::span<const std::int64_t> ids_;
    std::size_t signature_bytes_;
    std::span<const char> signatures_;
    std::span<const std::uint64_t> shingle_starts_;
};

// All files of an index. Immutable; safe to use from several threads. A file may be removed while it is mapped.
class NearIndex : public KnownDocuments {
public:
    // Paths in the order of their documents. Throws DamagedFile when a file does not begin where the one before ends.
    NearIndex(std::span<const std::string> paths, const NearFormat& format);

    std::size_t size() const noexcept override;
    std::vector<KnownText> find_texts(std::span<const Hash128> hashes, unsigned num_threads) const override;
    std::vector<Hit> find_keys(std::span<const std::uint64_t> keys) const override;
    bool compares_signatures() const noexcept override { return format_.shingle_bits == 0; }
    double similarity(std::uint32_t document, std::span<const std::uint64_t> set,
                      std::span<const std::uint64_t> signature, double threshold) const override;
    std::size_t num_members(std::uint32_t document) const override;
    std::vector<std::uint64_t> members(std::uint32_t document) const override;
    std::vector<std::uint64_t> members(std::span<const std::uint64_t> set) const override;

    const NearFormat& format() const noexcept { return format_; }
    std::size_t num_bytes() const noexcept;
    std::int64_t id_of(std::uint32_t document) const;
    // Throws DamagedFile if a file has changed since it was written.
    void check(unsigned num_threads) const;

    // Write the documents that `found` adds: texts number found.kept[i], with ids[found.kept[i]]. Memory: 24 bytes for
    // each key. Throws as SegmentWriter does.
    void write(const std::string& path, const NearAgainst& found, std::span<const std::string_view> shingled,
               std::span<const std::int64_t> ids, const MinHasher& hasher, const ShingleRule& rule,
               unsigned num_threads) const;
    // Write files [begin, end) as one, after a check.
    void merge(const std::string& path, std::size_t begin, std::size_t end, unsigned num_threads) const;

private:
    const NearSegment& segment_of(std::uint32_t document) const;

    NearFormat format_;
    std::vector<std::unique_ptr<NearSegment>> segments_;
};

}  // namespace pylm::dedup
