// A file of an index on disk: arrays that are written once, in order, and then mapped. Little-endian.
//
//   header   4,096 bytes: what the file is, where its arrays are, and a checksum of these
//   arrays   each from a multiple of 64 bytes on
//   tail     a checksum for every MiB of arrays
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "text/mapped_file.hpp"

namespace pylm::dedup {

static_assert(std::endian::native == std::endian::little, "arrays are written as they are in memory");

// A file that cannot be what an index has written; the message begins with its path.
class DamagedFile : public std::runtime_error {
public:
    DamagedFile(const std::string& path, const std::string& reason)
        : std::runtime_error(path + ": " + reason + "; restore the file, or build the index again") {}
};

inline constexpr std::size_t kMaxArrays = 16;

// What every file says about itself.
struct SegmentInfo {
    std::uint64_t fingerprint = 0;  // of the index's parameters
    std::uint64_t first = 0;        // documents, or texts, of the segments before this one
    std::uint64_t count = 0;        // and of this one
};

// Writes a file. Throws std::system_error naming the path, as when the disk is full.
class SegmentWriter {
public:
    SegmentWriter(std::string path, const SegmentInfo& info);
    ~SegmentWriter();
    SegmentWriter(const SegmentWriter&) = delete;
    SegmentWriter& operator=(const SegmentWriter&) = delete;

    // Append to the array at hand.
    template <typename T>
    void write(std::span<const T> values) {
        static_assert(std::is_trivially_copyable_v<T>);
        write_bytes(reinterpret_cast<const char*>(values.data()), values.size_bytes());
    }
    void end_array();
    // The file is complete then; the caller sees to it that it reaches the disk.
    void finish();

private:
    void write_bytes(const char* data, std::size_t size);
    void flush();
    void put(const char* data, std::size_t size, std::uint64_t offset) const;

    std::string path_;
    SegmentInfo info_;
    int file_ = -1;
    std::uint64_t offset_;  // of the buffer in the file
    std::uint64_t array_begin_;
    std::vector<char> buffer_;
    std::vector<std::array<std::uint64_t, 2>> arrays_;  // offset, size in bytes
    std::vector<std::uint64_t> checksums_;
};

// A mapped file. Safe to read from several threads.
class SegmentFile {
public:
    // Reads the header alone. Throws DamagedFile for another size, version or fingerprint than the header's and the
    // given one, std::system_error where there is no such file.
    SegmentFile(const std::string& path, std::uint64_t fingerprint);

    // Throws DamagedFile if any byte has changed since it was written. Reads the whole file.
    void check(unsigned num_threads) const;

    const std::string& path() const noexcept { return path_; }
    const SegmentInfo& info() const noexcept { return info_; }
    std::size_t num_bytes() const noexcept { return file_->bytes().size(); }

    // Array number `i`; empty where there is none. Throws DamagedFile for a size that is no multiple of T's.
    template <typename T>
    std::span<const T> array(std::size_t i) const {
        if (i >= arrays_.size()) return {};
        const auto [offset, size] = arrays_[i];
        if (size % sizeof(T) != 0) throw damaged("array " + std::to_string(i) + " has no whole number of items");
        return {reinterpret_cast<const T*>(file_->bytes().data() + offset), size / sizeof(T)};
    }
    DamagedFile damaged(const std::string& reason) const { return {path_, reason}; }

private:
    std::string path_;
    std::unique_ptr<MappedFile> file_;
    SegmentInfo info_;
    std::vector<std::array<std::uint64_t, 2>> arrays_;
    std::span<const std::uint64_t> checksums_;
};

}  // namespace pylm::dedup
