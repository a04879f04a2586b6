#include "dedup/segment_file.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string_view>
#include <system_error>
#include <utility>

#include "dedup/xxhash.hpp"
#include "parallel.hpp"

namespace pylm::dedup {
namespace {

constexpr std::size_t kHeaderBytes = 4096;
constexpr std::size_t kChunk = std::size_t{1} << 20;
constexpr std::size_t kAlignment = 64;
constexpr std::uint64_t kMagic = 0x58444E494D4C5950ULL;  // "PYLMINDX"
constexpr std::uint64_t kVersion = 1;

struct Header {
    std::uint64_t magic;
    std::uint64_t version;
    SegmentInfo info;
    std::uint64_t file_bytes;
    std::uint64_t arrays_end;  // the checksums of chunks begin here
    std::uint64_t checksums;   // their own checksum
    std::uint64_t num_arrays;
    std::array<std::array<std::uint64_t, 2>, kMaxArrays> arrays;
    std::uint64_t checksum;    // of the header up to here
};
static_assert(sizeof(Header) <= kHeaderBytes);

std::uint64_t checksum_of(const Header& header) noexcept {
    return xxh3_64({reinterpret_cast<const char*>(&header), offsetof(Header, checksum)}, kVersion);
}

std::uint64_t checksum_of(std::span<const std::uint64_t> values) noexcept {
    return xxh3_64({reinterpret_cast<const char*>(values.data()), values.size_bytes()}, kVersion);
}

}  // namespace

SegmentWriter::SegmentWriter(std::string path, const SegmentInfo& info)
    : path_(std::move(path)), info_(info), offset_(kHeaderBytes), array_begin_(kHeaderBytes) {
    file_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (file_ < 0) throw std::system_error(errno, std::generic_category(), path_);
    buffer_.reserve(kChunk);
}

SegmentWriter::~SegmentWriter() {
    if (file_ >= 0) ::close(file_);
}

void SegmentWriter::put(const char* data, std::size_t size, std::uint64_t offset) const {
    while (size > 0) {
        const ssize_t done = ::pwrite(file_, data, size, static_cast<off_t>(offset));
        if (done < 0) {
            if (errno == EINTR) continue;
            throw std::system_error(errno, std::generic_category(), path_);
        }
        data += done;
        size -= static_cast<std::size_t>(done);
        offset += static_cast<std::uint64_t>(done);
    }
}

void SegmentWriter::flush() {
    if (buffer_.empty()) return;
    checksums_.push_back(xxh3_64({buffer_.data(), buffer_.size()}, kVersion));
    put(buffer_.data(), buffer_.size(), offset_);
    offset_ += buffer_.size();
    buffer_.clear();
}

void SegmentWriter::write_bytes(const char* data, std::size_t size) {
    while (size > 0) {
        const std::size_t part = std::min(size, kChunk - buffer_.size());
        buffer_.insert(buffer_.end(), data, data + part);
        if (buffer_.size() == kChunk) flush();
        data += part;
        size -= part;
    }
}

void SegmentWriter::end_array() {
    if (arrays_.size() == kMaxArrays) throw std::invalid_argument("too many arrays in a file");
    const std::uint64_t end = offset_ + buffer_.size();
    arrays_.push_back({array_begin_, end - array_begin_});
    const std::array<char, kAlignment> zeros{};
    write_bytes(zeros.data(), (kAlignment - end % kAlignment) % kAlignment);
    array_begin_ = offset_ + buffer_.size();
}

void SegmentWriter::finish() {
    flush();
    Header header{};
    header.magic = kMagic;
    header.version = kVersion;
    header.info = info_;
    header.file_bytes = offset_ + checksums_.size() * sizeof(std::uint64_t);
    header.arrays_end = offset_;
    header.checksums = checksum_of(checksums_);
    header.num_arrays = arrays_.size();
    std::copy(arrays_.begin(), arrays_.end(), header.arrays.begin());
    header.checksum = checksum_of(header);
    put(reinterpret_cast<const char*>(checksums_.data()), checksums_.size() * sizeof(std::uint64_t), offset_);
    std::vector<char> bytes(kHeaderBytes);
    std::memcpy(bytes.data(), &header, sizeof header);
    put(bytes.data(), bytes.size(), 0);
    const int file = std::exchange(file_, -1);
    if (::close(file) != 0) throw std::system_error(errno, std::generic_category(), path_);
}

SegmentFile::SegmentFile(const std::string& path, std::uint64_t fingerprint)
    : path_(path), file_(std::make_unique<MappedFile>(path, false)) {
    const std::string_view bytes = file_->bytes();
    Header header{};
    if (bytes.size() < kHeaderBytes) throw damaged("cut off within the header");
    std::memcpy(&header, bytes.data(), sizeof header);
    if (header.magic != kMagic) throw damaged("no file of an index");
    if (header.version != kVersion) {
        throw damaged("version " + std::to_string(header.version) + " of the format, and this is version " +
                      std::to_string(kVersion));
    }
    if (header.checksum != checksum_of(header)) throw damaged("the header is damaged");
    if (header.file_bytes != bytes.size()) {
        throw damaged("expected " + std::to_string(header.file_bytes) + " bytes, got " + std::to_string(bytes.size()));
    }
    if (header.info.fingerprint != fingerprint) throw damaged("a file of another index");
    bool fits = header.num_arrays <= kMaxArrays && header.arrays_end <= bytes.size();
    for (std::size_t i = 0; fits && i < header.num_arrays; ++i) {
        const auto [offset, size] = header.arrays[i];
        fits = offset % kAlignment == 0 && offset <= header.arrays_end && size <= header.arrays_end - offset;
    }
    if (!fits) throw damaged("arrays lie outside of the file");
    info_ = header.info;
    arrays_.assign(header.arrays.begin(), header.arrays.begin() + static_cast<std::ptrdiff_t>(header.num_arrays));
    checksums_ = {reinterpret_cast<const std::uint64_t*>(bytes.data() + header.arrays_end),
                  (header.file_bytes - header.arrays_end) / sizeof(std::uint64_t)};
    if (header.checksums != checksum_of(checksums_)) throw damaged("the checksums are damaged");
}

void SegmentFile::check(unsigned num_threads) const {
    const std::string_view all = file_->bytes();
    const std::string_view arrays =
        all.substr(kHeaderBytes, all.size() - kHeaderBytes - checksums_.size_bytes());
    parallel_for(checksums_.size(), num_threads, [&](std::size_t i) {
        if (xxh3_64(arrays.substr(i * kChunk, kChunk), kVersion) != checksums_[i]) {
            throw damaged("damaged between bytes " + std::to_string(kHeaderBytes + i * kChunk) + " and " +
                          std::to_string(std::min(kHeaderBytes + (i + 1) * kChunk, all.size())));
        }
    });
}

}  // namespace pylm::dedup
