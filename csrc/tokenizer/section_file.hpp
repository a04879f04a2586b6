// A tokenizer in one file, ready to use: the tables that encoding and decoding look at, as they are in memory.
// The file is mapped, so that processes that have loaded it share its pages. Little-endian.
//
//   header    64 bytes: what the file is, its size, a checksum of itself and of the list
//   list      32 bytes a section: which one, where it begins, its size in bytes, a checksum
//   sections  each from a multiple of 64 bytes on
//
// The hashes that tables are built with (of MergeTable, of text/hash.hpp) belong to the format: when one of them
// changes, so does kVersion.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "text/shared_array.hpp"

namespace pylm {

static_assert(std::endian::native == std::endian::little, "sections are written as they are in memory");

// The numbers belong to the format; they are not given out again.
enum class Section : std::uint32_t {
    kDescription = 1,    // what Python has to say, as JSON
    kTokenBegins = 2,    // of the vocabulary
    kTokenBytes = 3,
    kMerges = 4,         // its merges; where kRules says the same, how their ranks follow from it
    kRanks = 5,
    kRules = 6,          // of MergeTable
    kPairSlots = 7,
    kHiddenPairs = 8,
    kBytePairs = 9,
    kWholeTokens = 10,   // of WholeTokens
    kDecodedBegins = 11, // of TokenDecoder
    kDecodedBytes = 12,
    kSpecial = 13,
    kKinds = 14,         // of SentencePieceEncoder
    kCharsmap = 15,
    kPieceBegins = 16,   // with the extra characters
    kPieceBytes = 17,
    kJoinedPairs = 18,
    kOrderedPairs = 19,
    kOrderedRules = 20,
    kCuts = 21,
};

// Puts a file together in memory.
class SectionWriter {
  public:
    // Each section once.
    template <typename T>
    void add(Section section, std::span<const T> items) {
        static_assert(std::has_unique_object_representations_v<T>, "no byte is left to chance");
        add_bytes(section, {reinterpret_cast<const char*>(items.data()), items.size_bytes()});
    }
    // The bytes of the file.
    std::string finish() &&;

  private:
    struct Entry {
        Section section;
        std::size_t begin, size;
    };

    void add_bytes(Section section, std::string_view bytes);

    std::vector<Entry> entries_;
    std::string body_;
};

// A file that was read. Immutable; safe to read from several threads.
class SectionFile {
  public:
    static constexpr std::uint32_t kVersion = 1;

    // Whether bytes begin as such a file does.
    static bool is_one(std::string_view bytes) noexcept;

    // Map a file. Throws std::system_error naming the path where it cannot be read, else as below. It must not be
    // written to while it is in use; a new file that takes its name does no harm.
    static SectionFile open(const std::string& path);

    // Bytes that `owner` keeps, from a multiple of 8 on. Throws std::invalid_argument with the reason: no such
    // file, another version, too few or too many bytes, a byte that has changed.
    SectionFile(std::string_view bytes, std::shared_ptr<const void> owner);

    // The items of a section; none where there is no such section. Throws std::invalid_argument for a size that
    // is no multiple of T's.
    template <typename T>
    SharedArray<T> array(Section section) const {
        static_assert(std::is_trivially_copyable_v<T>);
        const std::string_view bytes = find(section);
        if (bytes.size() % sizeof(T) != 0) throw std::invalid_argument("a section has no whole number of items");
        return {std::span(reinterpret_cast<const T*>(bytes.data()), bytes.size() / sizeof(T)), owner_};
    }

    std::size_t num_bytes() const noexcept { return bytes_.size(); }

    // Write the checksums anew, for tests of what lies behind them.
    static void seal(std::span<char> bytes);

  private:
    std::string_view find(Section section) const noexcept;

    std::string_view bytes_;
    std::shared_ptr<const void> owner_;
};

}  // namespace pylm
