// The bytes of every token of a vocabulary, end to end.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "text/shared_array.hpp"

namespace pylm {

class SectionFile;
class SectionWriter;
enum class Section : std::uint32_t;

// Immutable; copies share the bytes, and views of them last as long as the last copy.
class TokenTexts {
  public:
    // Bytes that may be read past a token, so that short ones can be copied sixteen bytes at once.
    static constexpr std::size_t kPadding = 16;

    TokenTexts() : TokenTexts(std::span<const std::string_view>()) {}
    // Throws std::invalid_argument for 4 GiB and more.
    TokenTexts(const std::vector<std::string>& texts);  // NOLINT: the same, packed
    explicit TokenTexts(std::span<const std::string_view> texts);

    // What `write` has put into these two sections. Throws std::invalid_argument unless every token lies in the
    // bytes.
    TokenTexts(const SectionFile& file, Section begins, Section bytes);
    void write(SectionWriter& out, Section begins, Section bytes) const;

    std::size_t size() const noexcept { return begins_.size() - 1; }
    std::string_view operator[](std::size_t id) const noexcept {
        return {bytes_.data() + begins_[id], begins_[id + 1] - begins_[id]};
    }
    std::vector<std::string> to_strings() const;

  private:
    SharedArray<std::uint32_t> begins_;  // one more than there are tokens
    SharedArray<char> bytes_;            // with the padding
};

}  // namespace pylm
