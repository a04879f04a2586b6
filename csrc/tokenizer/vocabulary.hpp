// A vocabulary in memory, and looking its tokens up: what the readers of all file formats make.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "text/hash.hpp"
#include "text/shared_array.hpp"
#include "tokenizer/merges.hpp"
#include "tokenizer/section_file.hpp"
#include "tokenizer/token_texts.hpp"

namespace pylm {

struct Vocabulary {
    std::vector<std::string> tokens;  // bytes of each id, empty where an id has none
    std::vector<MergeRule> merges;    // in order of rank
};

// The same for those who use it. Immutable; copies share the bytes.
class PackedVocabulary {
  public:
    // Throws std::invalid_argument for tokens of 4 GiB and more.
    explicit PackedVocabulary(Vocabulary vocabulary)
        : tokens_(vocabulary.tokens), merges_(std::move(vocabulary.merges)) {}

    // Of a file that an encoder was written to. Throws std::invalid_argument for damaged tokens.
    explicit PackedVocabulary(const SectionFile& file);
    void write(SectionWriter& out) const { tokens_.write(out, Section::kTokenBegins, Section::kTokenBytes); }

    const TokenTexts& tokens() const noexcept { return tokens_; }

    // Those of a file are put together anew by every call. Throws std::invalid_argument where they are damaged.
    SharedArray<MergeRule> merges() const;

    Vocabulary unpacked() const;

  private:
    TokenTexts tokens_;
    SharedArray<MergeRule> merges_;
    std::optional<SectionFile> file_;  // that has the merges
};

// A hash that concatenates: that of a + b follows from those of a and b, so that all prefixes and suffixes of
// a string are hashed in one pass. A polynomial modulo 2^64: good for tables whose hits are verified, and no
// defence against chosen strings, which make a table slow but never wrong.
class RollingHash {
  public:
    static constexpr std::uint64_t kBase = 0x9E3779B97F4A7C15ULL;

    static constexpr std::uint64_t extend(std::uint64_t hash, char byte) noexcept {
        return hash * kBase + static_cast<std::uint8_t>(byte) + 1;
    }
    static constexpr std::uint64_t of(std::string_view bytes) noexcept {
        std::uint64_t hash = 0;
        for (const char byte : bytes) hash = extend(hash, byte);
        return hash;
    }
    // kBase to the power of `size`, remembered. Not for several threads at once.
    std::uint64_t power(std::size_t size) {
        while (powers_.size() <= size) powers_.push_back(powers_.back() * kBase);
        return powers_[size];
    }

  private:
    std::vector<std::uint64_t> powers_{1};
};

// From bytes to ids, by a RollingHash. Open addressing, half full; grows by no more than it was made for.
class TokenIndex {
  public:
    static constexpr TokenId kNone = std::numeric_limits<TokenId>::max();

    // Room for `count` tokens.
    explicit TokenIndex(std::size_t count);

    // Ask for the memory that `find` and `add` look at first.
    void prefetch(std::uint64_t hash) const noexcept { __builtin_prefetch(&slots_[mix64(hash) & mask_]); }

    // The id under `hash`, should it be the first one there, to ask for what `same` will look at; or kNone.
    TokenId peek(std::uint64_t hash) const noexcept { return slots_[mix64(hash) & mask_].id; }

    // The id under `hash` for which `same(id)` holds, or kNone.
    template <typename Same>
    TokenId find(std::uint64_t hash, Same&& same) const noexcept {
        const std::uint64_t mixed = mix64(hash);
        const auto tag = static_cast<std::uint32_t>(mixed >> 32);
        for (std::size_t slot = mixed & mask_;; slot = (slot + 1) & mask_) {
            const Slot& entry = slots_[slot];
            if (entry.id == kNone) return kNone;
            if (entry.tag == tag && same(entry.id)) return entry.id;
        }
    }

    // Add an id unless `same` finds an equal one, which is returned; kNone when it was added.
    template <typename Same>
    TokenId add(std::uint64_t hash, TokenId id, Same&& same) noexcept {
        const std::uint64_t mixed = mix64(hash);
        const auto tag = static_cast<std::uint32_t>(mixed >> 32);
        std::size_t slot = mixed & mask_;
        for (; slots_[slot].id != kNone; slot = (slot + 1) & mask_) {
            if (slots_[slot].tag == tag && same(slots_[slot].id)) return slots_[slot].id;
        }
        slots_[slot] = {tag, id};
        return kNone;
    }

  private:
    struct Slot {
        std::uint32_t tag = 0;
        TokenId id = kNone;
    };
    std::vector<Slot> slots_;
    std::size_t mask_;
};

// Largest id that a file of `count` entries may use: gaps are allowed, but memory grows with the largest id.
constexpr std::uint64_t largest_id(std::size_t count) noexcept {
    return (std::uint64_t{1} << 20) + 8 * static_cast<std::uint64_t>(count);
}

// Printable form of bytes for messages: quoted, cut after some 60 of them, control characters and bytes that
// are no UTF-8 as \xNN.
std::string quoted(std::string_view bytes);

}  // namespace pylm
