// What SentencePiece does to text before it looks for pieces.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace pylm {

// Finds the longest of a set of strings at a place. Immutable after construction.
class PrefixMatcher {
  public:
    struct Match {
        std::size_t size = 0;  // 0: none
        std::uint32_t value = 0;
    };

    void add(std::string_view text, std::uint32_t value);  // `text` is not empty
    bool empty() const noexcept { return values_.empty(); }

    // The longest string that `text` has at `position`. O(its size), quick where none begins.
    Match longest(std::string_view text, std::size_t position) const noexcept {
        const auto first = static_cast<std::uint8_t>(text[position]);
        const std::size_t second = position + 1 < text.size() ? static_cast<std::uint8_t>(text[position + 1]) : 0;
        return starts_[first | (second << 8)] ? walk(text, position) : Match{};
    }

  private:
    Match walk(std::string_view text, std::size_t position) const noexcept;

    std::vector<bool> starts_ = std::vector<bool>(1 << 16);  // of strings, by their first two bytes
    std::unordered_map<std::uint64_t, std::uint32_t> edges_;   // node << 8 | byte to node; node 0 is the root
    std::unordered_map<std::uint32_t, std::uint32_t> values_;  // by node
    std::uint32_t num_nodes_ = 1;
};

// The rules of a model's `precompiled_charsmap`: a double-array trie (Aoe 1989, in the layout of darts-clone)
// from character sequences to their replacements. Immutable after construction.
class Charsmap {
  public:
    Charsmap() = default;

    // Throws std::invalid_argument if the size that `blob` states is not its own. Wrong links within are
    // harmless: a lookup never reads outside.
    explicit Charsmap(std::string blob);

    bool empty() const noexcept { return units_.empty(); }

    struct Match {
        std::size_t size = 0;  // bytes replaced; 0: no rule
        std::string_view replacement;
    };
    Match longest(std::string_view text, std::size_t position) const noexcept;

  private:
    std::vector<std::uint32_t> units_;
    std::string replacements_;  // each ends with a null byte
};

// What stands for each byte that is no UTF-8: U+FFFD.
inline constexpr std::string_view kReplacement = "\xEF\xBF\xBD";

// `text` with a space for every "▁".
std::string spaces_for_marks(std::string_view text);

struct NormalizeRules {
    Charsmap charsmap;
    bool collapse_spaces = false;  // drop spaces at both ends and after spaces
    bool add_prefix = false;       // put a space before text that is not empty
    bool space_is_mark = false;    // "▁" and a space are the same from here on
};

// Apply the rules: charsmap, collapse, prefix. Strings of `keep` are found first and stay as they are. Bytes
// that are no UTF-8 become U+FFFD, one each. A space stays a space. Linear in the size of the text.
std::string normalize(std::string_view text, const NormalizeRules& rules, const PrefixMatcher& keep);

}  // namespace pylm
