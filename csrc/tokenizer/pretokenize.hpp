// Cutting text into the pieces that merges never cross, by hand-written machines for the patterns in use.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "text/unicode.hpp"

namespace pylm {

// What the patterns differ in. All use Unicode classes; a byte that is no UTF-8 counts as "other".
struct Pattern {
    bool gpt2 = false;              // ` ?\p{L}+| ?\p{N}+` and lower-case contractions only
    unsigned max_digits = 3;        // \p{N}{1,max_digits}; not used by gpt2
    bool trailing_space_whole = true;  // white space at the end of the text is one piece (\s++$)
};

// Walks over a text piece by piece. Holds a view: the text must outlive it. Linear in the text's size.
class Pretokenizer {
  public:
    Pretokenizer(const Pattern& pattern, std::string_view text) noexcept : pattern_(pattern), text_(text) {}

    // The next piece, never empty before the end of the text, empty there. Pieces concatenate to the text.
    std::string_view next() noexcept {
        if (position_ >= text_.size()) return {};
        const std::size_t start = position_;
        position_ = pattern_.gpt2 ? end_gpt2(start) : end_cl100k(start);
        return text_.substr(start, position_ - start);
    }

  private:
    struct Char {
        char32_t point;
        std::uint32_t size;
        CharClass kind;
    };

    Char at(std::size_t position) const noexcept {
        const auto byte = static_cast<std::uint8_t>(text_[position]);
        if (byte < 0x80) return {byte, 1, classify(byte)};
        const Decoded decoded = decode_utf8(text_, position);
        // U+FFFD itself is a symbol, so invalid bytes get the class of "other" without a special case.
        return {decoded.point, decoded.size, classify(decoded.point)};
    }

    std::size_t skip(std::size_t position, CharClass kind) const noexcept {
        while (position < text_.size()) {
            const Char c = at(position);
            if (c.kind != kind) break;
            position += c.size;
        }
        return position;
    }

    // End of a contraction ('s 't 'm 'd 'll 've 're) whose apostrophe is at `start`, or `start` if there is
    // none.
    std::size_t end_contraction(std::size_t start, bool any_case) const noexcept;
    std::size_t end_space(std::size_t start, bool stop_at_newline) const noexcept;
    std::size_t end_gpt2(std::size_t start) const noexcept;
    std::size_t end_cl100k(std::size_t start) const noexcept;

    Pattern pattern_;
    std::string_view text_;
    std::size_t position_ = 0;
};

}  // namespace pylm
