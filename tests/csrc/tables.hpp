// Small tokenizers of both kinds, written to files and read back.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "check.hpp"
#include "tokenizer/bpe_encode.hpp"
#include "tokenizer/decode.hpp"
#include "tokenizer/section_file.hpp"
#include "tokenizer/sentencepiece.hpp"
#include "tokenizer/vocabulary.hpp"

namespace pylm::tests {

// Tokens of random bytes with `num_merges` merges, a few of them given twice.
Vocabulary byte_vocabulary(Random& random, std::size_t num_merges);

// A vocabulary of characters, with what makes an encoder need each of its tables.
struct CharacterVocabulary {
    Vocabulary vocabulary;
    std::vector<PieceKind> kinds;
    std::vector<std::string> extra_characters;
};
CharacterVocabulary character_vocabulary(Random& random, std::size_t num_pieces, bool has_ties, bool has_unused);

// The bytes of a file, at an address that is a multiple of 8, with nothing behind them.
class FileBytes {
public:
    explicit FileBytes(std::string_view bytes);
    std::string_view view() const noexcept { return {reinterpret_cast<const char*>(words_.get()), size_}; }
    std::span<char> bytes() noexcept { return {reinterpret_cast<char*>(words_.get()), size_}; }
    SectionFile read() const { return {view(), words_}; }

private:
    std::shared_ptr<char[]> words_;
    std::size_t size_;
};

std::string write(const PackedVocabulary& vocabulary, const BpeEncoder& encoder);
std::string write(const PackedVocabulary& vocabulary, const SentencePieceEncoder& encoder,
                  std::span<const PieceKind> kinds);

// Throws std::invalid_argument as the door does.
std::vector<PieceKind> read_kinds(const SectionFile& file);

}  // namespace pylm::tests
