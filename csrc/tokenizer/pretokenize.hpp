// Cutting text into the pieces that merges never cross, by hand-written machines for the patterns in use.
//
// A machine has no state but the position, which is the start of a piece: no pattern looks at what lies before
// it. So a text may be cut from any start of a piece, in blocks of any size, with the same pieces.
//
// Any bytes are text. A byte that is no part of valid UTF-8 is a character of its own that belongs to no
// Unicode class, as an unassigned code point does: most patterns take it for "everything else"; `kDeepSeek3`,
// which names all its classes, leaves it over as a gap (gaps are pieces too).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "text/simd.hpp"

namespace pylm {

// The patterns as regular expressions stand in pylm/text/patterns.py, by the same names.
enum class Pattern : std::uint8_t {
    kWhole,      // each text is one piece
    kGpt2,       // GPT-2, r50k, p50k, GPT-NeoX, plain byte-level
    kStarCoder,  // digits one by one, then GPT-2's: StarCoder, SmolLM
    kCl100k,     // GPT-4
    kLlama3,
    kQwen2,      // Qwen 2 and 3
    kQwen35,     // Qwen 3.5
    kO200k,      // GPT-4o, o200k_harmony
    kTekken,     // Mistral's Tekken: as o200k, without contractions, single digits
    kDeepSeek3,  // DeepSeek V3 and R1
};

// Pattern of a name. Throws std::invalid_argument.
Pattern parse_pattern(std::string_view name);

// Write the ends of the next pieces from `position`, the start of a piece, as distances from `position`.
// Returns their number: 0 only at the end of the text, or where the next piece has 2^32 bytes or more (then
// `end_of_piece` gives its end). May stop short of a full span; quickest with 256 entries and more.
using CutFunction = std::size_t (*)(std::string_view text, std::size_t position,
                                    std::span<std::uint32_t> ends) noexcept;

// The machine for a pattern at the best level of this machine, or at a given one. Throws
// std::invalid_argument for a level that this machine does not have.
CutFunction find_cut(Pattern pattern);
CutFunction find_cut(Pattern pattern, SimdLevel level);

// End of the piece that starts at `start` < text.size().
std::size_t end_of_piece(Pattern pattern, std::string_view text, std::size_t start) noexcept;

// The first border at or after `position`, 1 at least, where a text may be cut in two such that the pieces of
// both halves are those of the whole; text.size() if there is none. It lies between a letter or number and an
// ASCII space, tab or line feed (see pretokenize.cpp for why). Never inside a text for kWhole.
std::size_t next_safe_border(Pattern pattern, std::string_view text, std::size_t position) noexcept;

// Walks over a text piece by piece, for callers that look at one at a time. Holds a view: the text must
// outlive it. Linear in the text's size.
class Pretokenizer {
  public:
    Pretokenizer(Pattern pattern, std::string_view text)
        : cut_(find_cut(pattern)), pattern_(pattern), text_(text) {}

    // The next piece, never empty before the end of the text, empty there. Pieces concatenate to the text.
    std::string_view next() noexcept {
        if (taken_ == count_) fill();
        const std::size_t end = taken_ < count_ ? base_ + ends_[taken_++] : end_of_longest();
        const std::string_view piece = text_.substr(position_, end - position_);
        position_ = end;
        return piece;
    }

  private:
    void fill() noexcept;
    std::size_t end_of_longest() const noexcept;  // of a piece that `cut_` cannot give, or the text's end

    CutFunction cut_;
    Pattern pattern_;
    std::string_view text_;
    std::size_t position_ = 0;
    std::size_t base_ = 0;
    std::size_t taken_ = 0;
    std::size_t count_ = 0;
    std::array<std::uint32_t, 256> ends_;
};

}  // namespace pylm
