// Words and punctuation marks of a text, as the tokenizer cuts them that datatrove's filters run (spaCy's blank
// English pipeline; white space left out): parts between white space lose marks at both ends one by one, then
// are cut inside, unless they are addresses or exceptions such as "don't" and "e.g.".
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "signals/english.hpp"

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
    struct Match {
        std::size_t first, last;  // tokens
        const english::Rules::Exception* exception;
    };

    void push(std::string_view bytes, Token token);
    void add(std::string_view token);             // any token
    void add_plain(const char* p, std::size_t size, std::uint64_t hash);  // ASCII letters, or digits
    void add_part(std::string_view part);         // what stands between white space
    void cut_part(std::string_view part, bool with_exceptions);
    void cut_core(std::string_view part, std::size_t low, std::size_t high, bool with_exceptions);
    void merge_exceptions(std::string_view part);
    void note_stop_word(std::string_view token);

    const english::Rules& rules_ = english::Rules::instance();
    TokenList list_;
    // The part at hand:
    std::u32string points_;
    std::vector<std::size_t> begins_;    // first byte of every character, and one past the last
    std::vector<std::size_t> cuts_;      // byte past the end of every token
    std::vector<std::size_t> part_cuts_;
    std::vector<Match> matches_;
    std::vector<std::size_t> suffixes_;  // byte past the end of every mark cut off the end, the last first
};

}  // namespace pylm::signals
