// The rules of spaCy's English tokenizer: what is cut off the ends of a part between white space, where its
// inside is cut, and which parts are exceptions.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace pylm::signals::english {

enum Class : std::uint8_t {
    kAlpha = 1,
    kLower = 2,
    kUpper = 4,
    kIcon = 8,
    kQuote = 16,
    kPunctuation = 32,
    kCurrency = 64,
    kBeforePeriod = 128,
};

// Immutable and shared by all threads.
class Rules {
public:
    // Built on first use (about a millisecond).
    static const Rules& instance();

    // Classes of a code point; 0 beyond U+10FFFF. O(1) in the Basic Multilingual Plane.
    std::uint8_t classes(char32_t point) const noexcept;

    // Characters of the mark at the front or at the end of a part that is not empty; 0 where there is none.
    std::size_t prefix_size(std::u32string_view part) const noexcept;
    std::size_t suffix_size(std::u32string_view part) const noexcept;

    struct Infix {
        std::size_t begin;
        std::size_t size;  // 0: no further one
    };
    // First mark inside a part at `from` or later.
    Infix next_infix(std::u32string_view part, std::size_t from) const noexcept;

    // Whether a part as a whole is an address of a web page, of a mailbox, or of a machine.
    bool is_url(std::u32string_view part) const noexcept;

    struct Exception {
        std::string_view text;
        std::array<std::uint8_t, 4> sizes;  // bytes of its pieces, 0 past the last
    };
    static constexpr std::size_t kMaxExceptionBytes = 32;

    // False where no exception has this hash (words::hash_word). One load.
    bool may_be_exception(std::uint64_t hash) const noexcept {
        return ((filter_[(hash >> 48) / 64] >> (hash >> 48) % 64) & 1) != 0;
    }
    // The exception that equals these bytes, or null.
    const Exception* find_exception(std::string_view text) const noexcept;

    Rules(const Rules&) = delete;
    Rules& operator=(const Rules&) = delete;

private:
    Rules();
    bool is(char32_t point, unsigned wanted) const noexcept { return (classes(point) & wanted) != 0; }
    std::size_t infix_size(std::u32string_view part, std::size_t at) const noexcept;
    bool is_host(std::u32string_view part) const noexcept;

    std::vector<std::uint8_t> classes_;  // of the Basic Multilingual Plane
    std::vector<char> texts_;  // of the exceptions, without spaces between their pieces
    std::vector<Exception> exceptions_;
    std::unordered_map<std::string_view, std::size_t> numbers_;
    std::array<std::uint64_t, 1024> filter_{};
};

}  // namespace pylm::signals::english
