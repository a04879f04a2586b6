#include "tokenizer/section_file.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "dedup/xxhash.hpp"
#include "text/mapped_file.hpp"

namespace pylm {

namespace {

constexpr std::size_t kAlignment = 64;
// Not UTF-8, so that no text begins with it, and with the line ends that a copy in text mode would change.
constexpr std::array<char, 8> kMagic = {'\x89', 'P', 'Y', 'L', 'M', '\r', '\n', '\x1A'};
constexpr std::uint32_t kByteOrder = 0x01020304;

struct Header {
    std::array<char, 8> magic;
    std::uint32_t version;
    std::uint32_t byte_order;
    std::uint64_t file_bytes;
    std::uint64_t num_sections;
    std::uint64_t list_checksum;
    std::array<std::uint64_t, 2> unused;
    std::uint64_t checksum;  // of the header up to here
};
static_assert(sizeof(Header) == 64);

struct ListEntry {
    std::uint64_t section;
    std::uint64_t begin, size;
    std::uint64_t checksum;  // of the section with the padding behind it
};
static_assert(sizeof(ListEntry) == 32);

constexpr std::size_t rounded_up(std::size_t size) noexcept {
    return (size + kAlignment - 1) / kAlignment * kAlignment;  // 0 for sizes near the largest
}

std::uint64_t checksum_of(std::string_view bytes) noexcept { return xxh3_64(bytes, SectionFile::kVersion); }

std::uint64_t checksum_of(const Header& header) noexcept {
    return checksum_of({reinterpret_cast<const char*>(&header), offsetof(Header, checksum)});
}

Header header_of(std::string_view bytes) noexcept {
    Header header{};
    std::memcpy(&header, bytes.data(), sizeof header);
    return header;
}

std::span<const ListEntry> entries_of(std::string_view bytes) noexcept {
    return {reinterpret_cast<const ListEntry*>(bytes.data() + sizeof(Header)), header_of(bytes).num_sections};
}

constexpr std::size_t list_end(std::size_t num_sections) noexcept {
    return rounded_up(sizeof(Header) + num_sections * sizeof(ListEntry));
}

// Whether the list that the header speaks of fits into the file.
bool has_list(std::string_view bytes) noexcept {
    const std::uint64_t num_sections = header_of(bytes).num_sections;
    return num_sections <= bytes.size() / sizeof(ListEntry) && list_end(num_sections) <= bytes.size();
}

// With padding, as in `section_of`, so that no byte of the file is without a checksum.
std::string_view list_of(std::string_view bytes) noexcept {
    return bytes.substr(0, list_end(header_of(bytes).num_sections)).substr(sizeof(Header));
}

std::string_view section_of(std::string_view bytes, const ListEntry& entry) noexcept {
    return bytes.substr(entry.begin, rounded_up(entry.size));
}

}  // namespace

void SectionWriter::add_bytes(Section section, std::string_view bytes) {
    entries_.push_back({section, body_.size(), bytes.size()});
    body_ += bytes;
    body_.resize(rounded_up(body_.size()));
}

std::string SectionWriter::finish() && {
    const std::size_t body = list_end(entries_.size());
    std::string bytes(body, '\0');
    Header header{};
    header.magic = kMagic;
    header.version = SectionFile::kVersion;
    header.byte_order = kByteOrder;
    header.file_bytes = body + body_.size();
    header.num_sections = entries_.size();
    std::memcpy(bytes.data(), &header, sizeof header);
    for (std::size_t i = 0; i < entries_.size(); ++i) {
        const ListEntry entry{static_cast<std::uint64_t>(entries_[i].section), body + entries_[i].begin,
                              entries_[i].size, 0};
        std::memcpy(bytes.data() + sizeof header + i * sizeof entry, &entry, sizeof entry);
    }
    bytes += body_;
    SectionFile::seal(bytes);
    return bytes;
}

void SectionFile::seal(std::span<char> file) {
    const std::string_view bytes(file.data(), file.size());
    Header header = header_of(bytes);
    if (!has_list(bytes)) return;
    for (std::size_t i = 0; i < header.num_sections; ++i) {
        char* const place = file.data() + sizeof header + i * sizeof(ListEntry);
        ListEntry entry;
        std::memcpy(&entry, place, sizeof entry);
        if (entry.begin > bytes.size()) continue;
        entry.checksum = checksum_of(section_of(bytes, entry));
        std::memcpy(place, &entry, sizeof entry);
    }
    header.list_checksum = checksum_of(list_of(bytes));
    header.checksum = checksum_of(header);
    std::memcpy(file.data(), &header, sizeof header);
}

bool SectionFile::is_one(std::string_view bytes) noexcept {
    return bytes.starts_with(std::string_view(kMagic.data(), kMagic.size()));
}

SectionFile SectionFile::open(const std::string& path) {
    const auto file = std::make_shared<const MappedFile>(path, false);
    return {file->bytes(), file};
}

SectionFile::SectionFile(std::string_view bytes, std::shared_ptr<const void> owner)
    : bytes_(bytes), owner_(std::move(owner)) {
    const auto fail = [](const std::string& reason) { throw std::invalid_argument(reason); };
    if (!is_one(bytes)) fail("it does not begin as a file of pylm's binary form does");
    if (bytes.size() < sizeof(Header)) fail("it is cut off within the header");
    const Header header = header_of(bytes);
    if (header.byte_order != kByteOrder) fail("it was written on a machine with another order of bytes");
    if (header.version != kVersion) {
        fail("it has version " + std::to_string(header.version) + " of the form, and this pylm reads version " +
             std::to_string(kVersion));
    }
    if (header.checksum != checksum_of(header)) fail("its header is damaged");
    if (header.file_bytes != bytes.size()) {
        fail("expected " + std::to_string(header.file_bytes) + " bytes, got " + std::to_string(bytes.size()));
    }
    if (!has_list(bytes)) fail("its list of sections is cut off");
    if (header.list_checksum != checksum_of(list_of(bytes))) fail("its list of sections is damaged");
    std::size_t end = list_end(header.num_sections);
    for (const ListEntry& entry : entries_of(bytes)) {
        if (entry.begin != end || end > bytes.size() || entry.size > bytes.size() - end ||
            rounded_up(entry.size) > bytes.size() - end) {
            fail("its sections do not fill it");
        }
        end += rounded_up(entry.size);
    }
    if (end != bytes.size()) fail("its sections do not fill it");
    for (const ListEntry& entry : entries_of(bytes)) {
        if (checksum_of(section_of(bytes, entry)) != entry.checksum) {
            fail("it is damaged between the bytes " + std::to_string(entry.begin) + " and " +
                 std::to_string(entry.begin + rounded_up(entry.size)));
        }
    }
}

std::string_view SectionFile::find(Section section) const noexcept {
    for (const ListEntry& entry : entries_of(bytes_)) {
        if (entry.section == static_cast<std::uint64_t>(section)) return bytes_.substr(entry.begin, entry.size);
    }
    return {};
}

}  // namespace pylm
