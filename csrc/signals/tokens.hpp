// Words and punctuation marks of a text, for quality signals.
//
// The rules follow the English tokenizer that datatrove's filters run (spaCy's blank pipeline), without its list
// of exceptions: parts between white space lose punctuation marks at both ends one by one (brackets, quotes,
// commas, final periods, runs of two periods or more, "'s", currency and units after a digit), then are cut at
// hyphens, dashes, colons and the like between letters, and before "n't" and the other contractions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace pylm::signals {

struct Token {
    std::uint64_t hash;       // of the bytes, case kept
    std::uint32_t num_chars;
    bool is_symbol;           // nothing but punctuation and control characters
    bool has_letter;
    bool ends_sentence;       // one terminal punctuation mark
};

// Bit of a stop word of the Gopher rules (the, be, to, of, and, that, have, with) in TokenList::stop_words.
struct TokenList {
    std::vector<Token> tokens;
    std::string joined;                 // bytes of all tokens
    std::vector<std::size_t> begins;    // tokens.size() + 1 places in `joined`
    std::uint32_t stop_words = 0;
};

// Cuts one text after another. Holds scratch memory: one object a thread.
class Tokenizer {
public:
    // Tokens in order; valid until the next call. O(text.size()).
    const TokenList& operator()(std::string_view text);

private:
    struct Char {
        char32_t point;
        std::uint32_t begin;  // byte in the part
    };

    void push(std::string_view bytes, Token token);
    void add(std::string_view token);             // any token
    void add_plain(const char* p, std::size_t size, const char* limit);  // ASCII letters, or digits
    void add_part(std::string_view part);         // what stands between white space
    void add_core(std::string_view part, std::size_t low, std::size_t high);
    std::size_t prefix_size(std::size_t low, std::size_t high) const;
    std::size_t suffix_size(std::size_t low, std::size_t high) const;
    std::string_view slice(std::string_view part, std::size_t low, std::size_t high) const;
    void note_stop_word(std::string_view token);

    TokenList list_;
    std::vector<Char> chars_;  // of the part at hand, with one past its end
};

}  // namespace pylm::signals
