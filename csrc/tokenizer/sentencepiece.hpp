// Byte-pair encoding as SentencePiece does it: the symbols are characters, a space is one of them, and a
// character without a piece becomes its bytes or <unk>. For vocabularies of `tokenizer.model` and for those of
// a tokenizer.json with byte fallback.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_set>
#include <utility>
#include <vector>

#include "text/hash.hpp"
#include "text/shared_array.hpp"
#include "tokenizer/bpe_encode.hpp"
#include "tokenizer/merges.hpp"
#include "tokenizer/piece_cache.hpp"
#include "tokenizer/pool.hpp"
#include "tokenizer/section_file.hpp"
#include "tokenizer/sentencepiece_cuts.hpp"
#include "tokenizer/sentencepiece_model.hpp"
#include "tokenizer/sentencepiece_normalize.hpp"
#include "tokenizer/token_output.hpp"
#include "tokenizer/token_texts.hpp"
#include "tokenizer/whole_tokens.hpp"

namespace pylm {

// When a space is put before a text (that is not empty).
enum class SpacePrefix : std::uint8_t {
    kNever,
    kAlways,       // as SentencePiece does, also before a space
    kUnlessSpace,  // as the "Metaspace" of Hugging Face does
};

struct SentencePieceOptions {
    bool byte_fallback = true;
    bool fuse_unknown = true;      // a run of unknown characters is one <unk>
    SpacePrefix prefix = SpacePrefix::kAlways;
    bool prefix_everywhere = true;  // before a stretch of text behind an added token too
    bool space_is_mark = true;     // a space is "▁" in pieces
    bool collapse_spaces = false;  // drop spaces at both ends and after spaces
    bool split_words = false;      // no merge crosses the border before a space
    bool ignore_merges = false;    // take a word (the text, unless words are split) that is a piece whole
    std::string charsmap;
    bool simd = true;  // vector instructions; they change no id
};

// Immutable after construction; all const members may be called from many threads at once.
class SentencePieceEncoder {
  public:
    // Ids are places in `pieces`, which may hold empty strings where an id is not in use; those of
    // `extra_characters` follow: symbols that merge but have no id. Rules of equal rank are applied from left
    // to right. Throws std::invalid_argument naming the entry: a damaged rule or charsmap, more than one
    // piece of kind kUnknown; and for options that contradict each other.
    SentencePieceEncoder(TokenTexts pieces, std::span<const PieceKind> kinds,
                         std::span<const std::string> extra_characters, std::span<const MergeRule> merges,
                         SentencePieceOptions options);

    // The encoder that `write` has put there, with the same options. `merges` are those that it was made of.
    // Throws std::invalid_argument for tables that no such encoder has.
    SentencePieceEncoder(const SectionFile& file, TokenTexts pieces, std::span<const PieceKind> kinds,
                         SentencePieceOptions options);
    void write(SectionWriter& out, std::span<const MergeRule> merges) const;

    // Ids of a text. `begins`: whether it begins a text, or stands behind an added token. O(n log n) for n
    // bytes, and near linear where the vocabulary lets text be cut.
    TokenBuffer encode(std::string_view text, bool begins) const;

    // Encode many texts; a large one is cut where no merge can cross. Neither the result nor the cuts depend
    // on the threads. `end` comes after each text and belongs to it. `begins` has a byte a text, not 0 where
    // it begins one; all do where it is empty.
    TokenBatch encode_batch(std::span<const std::string_view> texts, unsigned num_threads,
                            std::optional<TokenId> end = std::nullopt,
                            std::span<const std::uint8_t> begins = {}) const;

    // Encode the texts between separators, n + 1 for n of them; a single one where `separator` is empty.
    TokenBatch encode_separated(std::string_view texts, std::string_view separator, unsigned num_threads) const;

    std::size_t vocab_size() const noexcept { return num_pieces_; }

    // Whether text is cut into words that are remembered.
    bool cuts_text() const noexcept { return cuts_.any(); }

  private:
    using Symbols = std::vector<TokenId>;

    // Pairs of symbols, as left << 32 | right; open addressing.
    class PairSet {
      public:
        PairSet() = default;
        explicit PairSet(const std::unordered_set<std::uint64_t>& pairs) {
            std::vector<std::uint64_t> slots(std::bit_ceil(2 * pairs.size() + 2), kEmpty);
            for (const std::uint64_t pair : pairs) slots[place_of(slots, pair)] = pair;
            slots_ = SharedArray<std::uint64_t>(std::move(slots));
        }
        // Throws std::invalid_argument unless every look-up ends.
        PairSet(const SectionFile& file, Section section);
        void write(SectionWriter& out, Section section) const { out.add(section, slots_.items()); }

        bool empty() const noexcept { return slots_.empty(); }
        bool contains(std::uint64_t pair) const noexcept {
            return slots_[place_of(slots_.items(), pair)] == pair;
        }
        template <typename Visit>
        void visit(Visit&& call) const {
            for (const std::uint64_t pair : slots_) {
                if (pair != kEmpty) call(pair);
            }
        }

      private:
        static constexpr std::uint64_t kEmpty = std::numeric_limits<std::uint64_t>::max();
        static std::size_t place_of(std::span<const std::uint64_t> slots, std::uint64_t pair) noexcept {
            std::size_t place = static_cast<std::size_t>(mix64(pair)) & (slots.size() - 1);
            while (slots[place] != pair && slots[place] != kEmpty) place = (place + 1) & (slots.size() - 1);
            return place;
        }
        SharedArray<std::uint64_t> slots_;
    };

    // Rules by their pair; open addressing.
    class PairRules {
      public:
        PairRules() = default;
        // Of equal pairs the first counts.
        explicit PairRules(std::span<const MergeRule> rules);
        // Throws std::invalid_argument unless every look-up ends, and results are longer than their parts.
        PairRules(const SectionFile& file, const TokenTexts& pieces);
        void write(SectionWriter& out) const { out.add(Section::kOrderedRules, slots_.items()); }

        const MergeRule* find(TokenId left, TokenId right) const noexcept;

      private:
        static std::size_t place_of(std::span<const MergeRule> slots, TokenId left, TokenId right) noexcept;
        SharedArray<MergeRule> slots_;  // `left` is kNone where free
    };

    class Output;
    struct Scratch {  // what a thread encodes with
        PieceCache cache;
        std::string normalized, word;
        Symbols symbols;
    };

    static constexpr TokenId kNone = std::numeric_limits<TokenId>::max();

    static std::uint64_t pair_of(TokenId left, TokenId right) noexcept {
        return (static_cast<std::uint64_t>(left) << 32) | right;
    }

    bool is_found_whole(PieceKind kind) const noexcept;
    void add_pieces(std::span<const PieceKind> kinds);
    void add_characters();
    void set_order(std::span<const PieceKind> kinds);
    void add_rules(std::span<const MergeRule> merges, std::span<const PieceKind> kinds);
    TokenId& character(char32_t point);
    TokenId symbol_of(char32_t point) const noexcept {
        return pages_[page_of_[point >> 8] * std::size_t{256} + (point & 0xFF)];
    }

    // The text as merges see it, with a space for "▁" where they are the same.
    std::string_view prepare(std::string_view text, bool with_prefix, bool& prefix, std::string& buffer) const;
    void encode_text(std::string_view text, bool with_prefix, Scratch& scratch, Output& out) const;
    void encode_segment(std::string_view text, bool prefix, Scratch& scratch, Output& out) const;
    void encode_cut(std::string_view text, bool prefix, Scratch& scratch, Output& out) const;
    void encode_word(std::string_view word, Scratch& scratch, Output& out) const;
    void encode_long_word(std::string_view word, Scratch& scratch, Output& out) const;
    void encode_first(std::string_view word, Scratch& scratch, Output& out) const;  // with a space before it
    void encode_word_uncached(std::string_view word, Symbols& symbols, Output& out) const;
    void append_symbols(std::string_view text, Symbols& symbols) const;
    void emit(std::span<const TokenId> symbols, Output& out) const;
    bool needs_order(std::span<const TokenId> symbols) const;
    void merge_in_order(Symbols& symbols) const;
    std::vector<std::string_view> cut_large(std::string_view text) const;

    SentencePieceOptions options_;
    std::size_t num_pieces_;
    TokenId unknown_ = kNone;
    std::array<TokenId, 256> byte_ids_;
    bool has_all_bytes_ = true;
    bool is_word_whole_ = false;     // no border but that before a space counts
    bool replaces_invalid_ = false;  // U+FFFD is to be seen by what looks for pieces before characters do
    TokenTexts pieces_;              // with the extra characters
    std::vector<std::uint16_t> page_of_ = std::vector<std::uint16_t>(0x1100);
    std::vector<TokenId> pages_ = std::vector<TokenId>(256, kNone);  // symbol by code point
    WholeTokens whole_;                                              // for ignore_merges
    std::size_t longest_whole_ = 0;
    MergeTable merges_;
    // Only where the table will not do: pieces of equal rank, or some that are not given out. Rows that hold
    // one of the pairs are merged in order; `in_order_` has the symbols that a pair ends with.
    bool whole_in_order_ = false;
    std::vector<bool> in_order_;
    PairSet ordered_pairs_;
    PairRules rules_;
    std::vector<bool> unused_;
    PairSet joined_;  // pairs of symbols that results hold side by side
    CutTable cuts_;
    NormalizeRules rules_of_text_;
    PrefixMatcher user_defined_raw_, user_defined_;
    mutable Pool<Scratch> scratches_;
};

}  // namespace pylm
