// The model of a tokenizer.json: its vocabulary and merges, which make up almost all of the file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tokenizer/vocabulary.hpp"

namespace pylm {

// What HfModel::read leaves: the file's text with an empty vocabulary and no merges, for a reader of small
// JSON texts.
struct HfDocument;

// Vocabulary and merges as the file writes them. Immutable; O(1) to look a token up.
class HfModel {
  public:
    // Read "model": {"vocab": {...}, "merges": [...]} out of a tokenizer.json in one pass. Throws
    // std::invalid_argument with line and column, or naming the entry: text that is no JSON, no such model, an
    // id that is no whole number or too large for the number of entries, a token or an id given twice, a merge
    // that does not join two tokens to a third. The result does not depend on the threads, 0 for all cores.
    static HfDocument read(std::string_view content, unsigned num_threads = 1);

    std::size_t size() const noexcept { return entries_.size(); }
    std::size_t largest_id() const noexcept { return largest_id_; }

    // The id of a token in the file's alphabet.
    std::optional<TokenId> find(std::string_view text) const noexcept;

    // Tokens as bytes. With `byte_level`, each character stands for one byte (GPT-2's alphabet), else for its
    // UTF-8. The ids in `hidden`, those of added tokens, get no bytes, unless a merge makes or takes them or
    // they are single bytes; nor do tokens with a character beyond the alphabet, which no text comes to. Ends
    // with the last token that has bytes. Throws std::invalid_argument naming such a token that is merged.
    Vocabulary to_vocabulary(bool byte_level, std::span<const TokenId> hidden, unsigned num_threads = 1) const;

    // The tokens with a character beyond the alphabet, in the file's order; `tokens` are those that the model
    // gives for bytes.
    std::vector<std::pair<TokenId, std::string>> beyond_alphabet(const TokenTexts& tokens) const;

  private:
    struct Entry {
        std::uint32_t begin, size;  // in text_
        TokenId id;
    };

    struct MergeSide {
        std::uint32_t begin, size;  // in the file's text, or behind it in escaped_
    };

    HfModel() : index_(0) {}
    std::string_view text_of(const Entry& entry) const noexcept {
        return std::string_view(text_).substr(entry.begin, entry.size);
    }
    std::string_view text_of(const MergeSide& side, std::string_view content) const noexcept {
        return side.begin < content.size() ? content.substr(side.begin, side.size)
                                           : std::string_view(escaped_).substr(side.begin - content.size(), side.size);
    }
    TokenId find_entry(std::uint64_t hash, std::string_view text) const noexcept;  // place in entries_
    TokenId find_joined(std::uint64_t hash, std::string_view left, std::string_view right) const noexcept;
    void read_vocabulary(class JsonCursor& cursor);
    void read_merges(JsonCursor& cursor, std::string_view content);
    void index_entries();
    void resolve_merges(std::string_view content, unsigned num_threads);
    void resolve_merges(std::size_t first, std::size_t last, std::string_view content, RollingHash& rolling);

    std::string text_;            // all tokens, end to end
    std::vector<Entry> entries_;  // in the file's order
    std::vector<std::pair<MergeSide, MergeSide>> sides_;  // of the merges, while the file is read
    std::string escaped_;                                 // sides written with escapes
    std::vector<MergeRule> merges_;
    TokenIndex index_;
    std::size_t largest_id_ = 0;
};

struct HfDocument {
    HfModel model;
    std::string rest;
};

// GPT-2's alphabet: the character that stands for a byte, as UTF-8.
std::string to_byte_alphabet(std::string_view bytes);

}  // namespace pylm
