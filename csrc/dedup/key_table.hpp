// Records in the order of 64-bit keys that are hashes, and so lie evenly: on disk with a table of where the keys
// with the same first bits begin.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

#include "dedup/segment_file.hpp"
#include "parallel.hpp"

namespace pylm::dedup {

// Records by the first bits of their keys, in runs of one such prefix each; in the order given within a run. `parts`
// are emptied. O(n).
template <typename Record>
class KeyRuns {
public:
    KeyRuns(std::span<std::vector<Record>> parts, std::size_t most_bits) {
        std::size_t total = 0;
        for (const auto& part : parts) total += part.size();
        bits_ = std::min(most_bits, static_cast<std::size_t>(std::bit_width(total / kRun)));
        ends_.assign((std::size_t{1} << bits_) + 1, 0);
        for (const auto& part : parts) {
            for (const Record& record : part) ++ends_[run_of(record) + 1];
        }
        std::partial_sum(ends_.begin(), ends_.end(), ends_.begin());
        records_.resize(total);
        for (auto& part : parts) {
            for (const Record& record : part) records_[ends_[run_of(record)]++] = record;
            std::vector<Record>().swap(part);
        }
    }

    // The records, sorted, which are handed over. The same for any number of threads.
    std::vector<Record> sort(unsigned num_threads) {
        constexpr std::size_t kTask = 64;  // runs
        const std::size_t num_runs = ends_.size() - 1;
        parallel_for((num_runs + kTask - 1) / kTask, num_threads, [&](std::size_t task) {
            for (std::size_t run = task * kTask; run < std::min(num_runs, (task + 1) * kTask); ++run) {
                // `ends_` has moved on: a run lies between the ends of the one before and itself.
                const auto begin = static_cast<std::ptrdiff_t>(run == 0 ? 0 : ends_[run - 1]);
                std::sort(records_.begin() + begin, records_.begin() + static_cast<std::ptrdiff_t>(ends_[run]));
            }
        });
        return std::move(records_);
    }
    std::span<const Record> records() const noexcept { return records_; }

private:
    static constexpr std::size_t kRun = 32;  // records that are left to a sort

    std::size_t run_of(const Record& record) const noexcept { return bits_ == 0 ? 0 : record.key() >> (64 - bits_); }

    std::size_t bits_;
    std::vector<std::size_t> ends_;
    std::vector<Record> records_;
};

// Sort records, which have key() and are ordered by it first. O(n) but for the sorts of short runs.
template <typename Record>
void sort_by_key(std::vector<Record>& records, unsigned num_threads) {
    records = KeyRuns<Record>({&records, 1}, 16).sort(num_threads);
}

// A table in a file: an array of records and one of where those with the same first bits begin.
template <typename Record>
class KeyTable {
public:
    KeyTable() = default;
    // Arrays `i` and `i + 1`. Throws DamagedFile when their sizes are not of a table.
    KeyTable(const SegmentFile& file, std::size_t i)
        : records_(file.array<Record>(i)), starts_(file.array<std::uint64_t>(i + 1)) {
        if (starts_.size() < 2 || !std::has_single_bit(starts_.size() - 1)) throw file.damaged("no table of keys");
        bits_ = static_cast<unsigned>(std::bit_width(starts_.size() - 1)) - 1;
    }

    std::span<const Record> records() const noexcept { return records_; }

    // Call found(i, record) for every record with key `keys[i]`. Memory is fetched ahead; where keys ascend, if only
    // by their first bits, the file is read from its beginning to its end.
    template <typename Found>
    void find(std::span<const std::uint64_t> keys, Found&& found) const {
        constexpr std::size_t kAhead = 16;  // keys
        constexpr std::size_t kLine = 64;   // bytes
        for (std::size_t i = 0; i < keys.size(); ++i) {
            if (i + 2 * kAhead < keys.size()) __builtin_prefetch(&starts_[slot(keys[i + 2 * kAhead])]);
            if (i + kAhead < keys.size()) {
                const auto [begin, end] = range(keys[i + kAhead]);
                const char* const first = reinterpret_cast<const char*>(begin);
                const std::size_t bytes = std::min(4 * kLine, static_cast<std::size_t>(end - begin) * sizeof(Record));
                for (std::size_t at = 0; at < bytes; at += kLine) __builtin_prefetch(first + at);
            }
            // All of the few records: a search among them could not be predicted, and took longer.
            const auto [begin, end] = range(keys[i]);
            for (const Record* at = begin; at != end; ++at) {
                if (at->key() == keys[i]) found(i, *at);
            }
        }
    }

    // The first record with a key of `key` or more.
    std::size_t lower_bound(std::uint64_t key) const noexcept {
        const auto less = [](const Record& record, std::uint64_t k) { return record.key() < k; };
        const auto place = std::lower_bound(records_.begin(), records_.end(), key, less);
        return static_cast<std::size_t>(place - records_.begin());
    }

private:
    std::size_t slot(std::uint64_t key) const noexcept { return bits_ == 0 ? 0 : key >> (64 - bits_); }
    // Inside the records whatever a damaged file says.
    std::pair<const Record*, const Record*> range(std::uint64_t key) const noexcept {
        const std::size_t end = std::min<std::size_t>(starts_[slot(key) + 1], records_.size());
        const std::size_t begin = std::min<std::size_t>(starts_[slot(key)], end);
        return {records_.data() + begin, records_.data() + end};
    }

    std::span<const Record> records_;
    std::span<const std::uint64_t> starts_;
    unsigned bits_ = 0;
};

// Writes both arrays of a table; records come in order.
template <typename Record>
class KeyTableWriter {
public:
    KeyTableWriter(SegmentWriter& file, std::size_t num_records)
        : file_(file),
          bits_(std::min(34U, static_cast<unsigned>(std::bit_width(num_records / kRecordsASlot)))),
          starts_((std::size_t{1} << bits_) + 1, 0) {}

    void write(std::span<const Record> records) {
        for (const Record& record : records) ++starts_[(bits_ == 0 ? 0 : record.key() >> (64 - bits_)) + 1];
        file_.write(records);
    }
    void finish() {
        file_.end_array();
        std::partial_sum(starts_.begin(), starts_.end(), starts_.begin());
        file_.write(std::span<const std::uint64_t>(starts_));
        file_.end_array();
    }

private:
    static constexpr std::size_t kRecordsASlot = 16;
    SegmentWriter& file_;
    unsigned bits_;
    std::vector<std::uint64_t> starts_;
};

// Write the records of several tables as one, in O(n log tables), in memory a part at a time.
template <typename Record>
void merge_tables(std::span<const KeyTable<Record>> tables, SegmentWriter& file, unsigned num_threads) {
    constexpr std::size_t kPart = std::size_t{1} << 18;  // records
    std::size_t total = 0;
    for (const auto& table : tables) total += table.records().size();
    KeyTableWriter<Record> writer(file, total);
    const auto bits = static_cast<unsigned>(std::bit_width(total / kPart));
    const std::size_t num_parts = std::size_t{1} << bits;
    const std::size_t at_once = 2 * static_cast<std::size_t>(resolve_threads(num_threads));
    std::vector<std::vector<Record>> parts(at_once);
    for (std::size_t first = 0; first < num_parts; first += at_once) {
        const std::size_t count = std::min(at_once, num_parts - first);
        parallel_for(count, num_threads, [&](std::size_t i) {
            std::vector<Record>& part = parts[i];
            part.clear();
            for (const auto& table : tables) {
                const auto border = [&](std::size_t p) {
                    if (p == num_parts) return table.records().size();
                    return p == 0 ? std::size_t{0} : table.lower_bound(std::uint64_t{p} << (64 - bits));
                };
                const std::size_t begin = border(first + i);
                const auto records = table.records().subspan(begin, std::max(begin, border(first + i + 1)) - begin);
                const auto middle = static_cast<std::ptrdiff_t>(part.size());
                part.insert(part.end(), records.begin(), records.end());
                std::inplace_merge(part.begin(), part.begin() + middle, part.end());
            }
        });
        for (std::size_t i = 0; i < count; ++i) writer.write(std::span<const Record>(parts[i]));
    }
    writer.finish();
}

}  // namespace pylm::dedup
