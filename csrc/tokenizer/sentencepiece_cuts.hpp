// Where text for a SentencePiece vocabulary may be cut without changing an id.
//
// A merge whose result holds the characters a, b side by side is the only kind that can cross a border a|b. So
// a border between two characters that no result holds side by side is never crossed, and the text on its two
// sides can be encoded apart. Bytes are put into six classes, so that borders are found by vector
// instructions; a pair of classes is a border if no two of their characters are held side by side.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace pylm {

class CutTable {
  public:
    enum Class : std::uint8_t { kPunctByte, kLetterByte, kDigitByte, kHighByte, kControlByte, kSpaceByte, kNumClasses };

    // No border anywhere.
    CutTable() noexcept = default;

    // `results` are the texts that merges make; "▁" in them counts as a space too. With `split_words`, there
    // is a border before every space whatever the vocabulary holds.
    CutTable(std::span<const std::string_view> results, bool split_words);

    // What `table` gave of one that is not without borders; any bytes make one.
    explicit CutTable(std::span<const std::uint8_t, 16> table) noexcept;
    std::span<const std::uint8_t, 16> table() const noexcept { return cut_; }

    static Class class_of(std::uint8_t byte) noexcept;

    bool cuts(std::uint8_t before, std::uint8_t after) const noexcept {
        return ((cut_[class_of(before)] >> class_of(after)) & 1) != 0;
    }

    bool any() const noexcept { return any_; }

    // Bit i is set if there is a border before byte i of the 64 of `block`; `before` is the byte that precedes it. With
    // or without vector instructions the bits are the same.
    std::uint64_t borders(const char* block, std::uint8_t before, bool simd) const noexcept;

  private:
    std::uint64_t borders_scalar(const char* block, std::uint8_t before) const noexcept;

    std::array<std::uint8_t, 16> cut_{};  // by class of the byte before: a bit a class of the byte after
    bool any_ = false;
};

}  // namespace pylm
