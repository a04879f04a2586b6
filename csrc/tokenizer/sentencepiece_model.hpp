// Models of SentencePiece: what a `tokenizer.model` file holds, and the merges that its scores mean.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/merges.hpp"

namespace pylm {

// What a piece is for; the numbers are those of the file.
enum class PieceKind : std::uint8_t {
    kNormal = 1,
    kUnknown = 2,      // stands for characters without a piece
    kControl = 3,      // never found in text
    kUserDefined = 4,  // found in text before anything else
    kUnused = 5,       // merged through, but given out as the parts that it was made of
    kByte = 6,         // <0x00> to <0xFF>
};

// "▁", which stands for a space in pieces.
inline constexpr std::string_view kSpaceMark = "\xE2\x96\x81";

// The byte of "<0x41>" and its like.
std::optional<std::uint8_t> byte_of_piece(std::string_view text) noexcept;

struct SentencePieceModel {
    struct Piece {
        std::string text;
        float score = 0;
        PieceKind kind = PieceKind::kNormal;
    };
    std::vector<Piece> pieces;
    bool byte_fallback = false;
    bool add_dummy_prefix = true;
    bool remove_extra_whitespaces = true;
    bool escape_whitespaces = true;
    std::string charsmap;  // rules of normalization, empty for none
};

// Read the protocol buffer of a `tokenizer.model`. Linear in its size. Throws std::invalid_argument naming the
// field or the piece: damaged data, a piece that is empty, doubled or no UTF-8, a score that is not finite, a
// missing <unk> or byte, and whatever is not BPE with spaces before words.
SentencePieceModel parse_sentencepiece_model(std::string_view file);

struct ScoredMerges {
    std::vector<MergeRule> rules;  // in order of rank; pieces of equal score have equal rank
    // Characters that occur in pieces but are none, in order; their ids follow those of the pieces.
    std::vector<std::string> extra_characters;
};

// Every pair of symbols (pieces, or single characters) whose texts concatenate to a piece: merging goes by
// text here, the piece with the highest score first. `texts` must be valid UTF-8, not empty and distinct, and
// `kinds` and `scores` have as many entries.
ScoredMerges merges_of_scores(std::span<const std::string> texts, std::span<const PieceKind> kinds,
                              std::span<const float> scores);

}  // namespace pylm
