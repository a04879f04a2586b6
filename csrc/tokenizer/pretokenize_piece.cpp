// One piece at a time: the patterns as their regular expressions state them.
#include "tokenizer/pretokenize_rules.hpp"

namespace pylm::pretokenize {

namespace {

constexpr char32_t kLongS = 0x017F;  // folds to "s", so (?i:s) matches it

bool is_newline(char32_t point) noexcept { return point == '\n' || point == '\r'; }

bool is_ascii_letter(char32_t point) noexcept {
    return (point >= 'a' && point <= 'z') || (point >= 'A' && point <= 'Z');
}

char32_t lower(char32_t point, bool any_case) noexcept {
    if (!any_case) return point;
    if (point >= 'A' && point <= 'Z') return point + 32;
    return point == kLongS ? U's' : point;
}

struct Char {
    char32_t point;
    std::uint32_t size;
    std::uint8_t kind;  // a CharClass or 0
};

Char at(std::string_view text, std::size_t position) noexcept {
    const auto byte = static_cast<std::uint8_t>(text[position]);
    if (byte < 0x80) return {byte, 1, classify_ascii(byte)};
    const Decoded decoded = decode_utf8(text, position);
    return {decoded.point, decoded.size, decoded.size == 1 ? std::uint8_t{0} : classify(decoded.point)};
}

// What a pattern calls "other": all but white space, words and numbers.
constexpr std::uint8_t kNotOther = kSpace | kLetter | kNumber;

class Walk {
  public:
    // The part of the text that the pattern sees: all of it, but for DeepSeek's a part that the first two
    // splits have left, which ends before the next number or change between Han or kana and others.
    Walk(const Rules& rules, std::string_view text, std::size_t start) noexcept
        : text_(text), parts_(rules.deepseek) {
        if (parts_) kana_ = is_han_or_kana(at(text, start).point);
    }

    // The character at `position`, or one of size 0 at the end of the part.
    Char peek(std::size_t position) const noexcept {
        if (position >= text_.size()) return {0, 0, 0};
        const Char c = at(text_, position);
        if (parts_ && (c.kind == kNumber || is_han_or_kana(c.point) != kana_)) return {0, 0, 0};
        return c;
    }

    std::size_t skip(std::size_t position, std::uint8_t kinds) const noexcept {
        for (Char c = peek(position); (c.kind & kinds) != 0; c = peek(position)) position += c.size;
        return position;
    }

    // Past all characters that are none of these.
    std::size_t skip_others(std::size_t position, std::uint8_t kinds) const noexcept {
        for (Char c = peek(position); c.size != 0 && (c.kind & kinds) == 0; c = peek(position))
            position += c.size;
        return position;
    }

    std::size_t skip_newlines(std::size_t position, bool slashes) const noexcept {
        for (Char c = peek(position); is_newline(c.point) || (slashes && c.point == '/'); c = peek(position))
            position += c.size;
        return position;
    }

  private:
    std::string_view text_;
    bool parts_;
    bool kana_ = false;
};

std::size_t end_numbers(std::string_view text, std::size_t position, unsigned most) noexcept {
    for (unsigned count = 0; count < most && position < text.size(); ++count) {
        const Char c = at(text, position);
        if (c.kind != kNumber) break;
        position += c.size;
    }
    return position;
}

// White space from `start`: up to its last newline, or all but the last character before a non-space.
std::size_t end_space(const Rules& rules, const Walk& walk, std::string_view text, std::size_t start) noexcept {
    std::size_t end = start;
    std::size_t last = start;           // start of the run's last character
    std::size_t after_newline = start;  // end of the run's last newline
    Char c = walk.peek(end);
    for (; c.kind == kSpace; c = walk.peek(end)) {
        last = end;
        end += c.size;
        if (is_newline(c.point)) after_newline = end;
    }
    if (end == text.size() && rules.trailing_space_whole) return end;
    if (!rules.gpt2 && after_newline > start) return after_newline;
    const bool sees_end = c.size == 0 || (rules.lone_numbers && c.kind == kNumber);
    return sees_end || last == start ? end : last;
}

std::size_t end_gpt2(const Rules& rules, std::string_view text, std::size_t start) noexcept {
    const Walk walk(rules, text, start);
    const Char c = at(text, start);
    if (c.point == '\'') {
        const std::size_t end = end_of_contraction(text, start, false);
        if (end > start) return end;
    }
    const auto skip_same = [&](std::size_t position, std::uint8_t kind) {
        if ((kind & kLetter) != 0) return walk.skip(position, kLetter);
        return kind == kNumber ? walk.skip(position, kNumber) : walk.skip_others(position, kNotOther);
    };
    const std::size_t next = start + c.size;
    if (c.kind == kNumber && rules.max_digits == 1) return next;
    if (c.kind != kSpace) return skip_same(next, c.kind);
    const Char following = walk.peek(next);
    if (c.point == ' ' && following.size != 0 && following.kind != kSpace &&
        !(rules.lone_numbers && following.kind == kNumber)) {
        return skip_same(next + following.size, following.kind);
    }
    return end_space(rules, walk, text, start);
}

// A word whose first character is at `start`, of the patterns that look at case:
//   [Lu Lt Lm Lo M]* [Ll Lm Lo M]+ | [Lu Lt Lm Lo M]+ [Ll Lm Lo M]*
// The first takes all upper-case characters and goes on with the lower-case ones if there is any; otherwise
// it gives back characters until one fits both sets. The second takes what has upper case only.
std::size_t end_cased_word(const Rules& rules, const Walk& walk, std::string_view text,
                           std::size_t start) noexcept {
    std::size_t end = start;
    std::size_t after_both = start;  // end of the last character of both sets
    Char c = walk.peek(end);
    for (; (c.kind & (kUpper | kCaseless | kMark)) != 0; c = walk.peek(end)) {
        end += c.size;
        if (c.kind != kUpper) after_both = end;
    }
    if (c.kind == kLower) {
        end = walk.skip(end, kLower | kCaseless | kMark);
    } else if (after_both > start) {
        end = after_both;
    }
    if (rules.contractions == Contractions::kSuffix && end < text.size() && text[end] == '\'')
        return end_of_contraction(text, end, true);
    return end;
}

// cl100k and its kin. A mark in front of a word needs no thought: as the optional first character or as the
// word's own it gives the same piece.
std::size_t end_words(const Rules& rules, std::string_view text, std::size_t start) noexcept {
    const Walk walk(rules, text, start);
    const Char c = at(text, start);
    const std::size_t next = start + c.size;
    const auto end_word = [&](std::size_t position) {
        return rules.cased ? end_cased_word(rules, walk, text, position) : walk.skip(position, rules.word);
    };
    if ((c.kind & rules.word) != 0) return end_word(start);
    if (c.kind == kNumber) return end_numbers(text, start, rules.max_digits);
    if (c.point == '\'' && rules.contractions == Contractions::kAnyCase) {
        const std::size_t end = end_of_contraction(text, start, true);
        if (end > start) return end;
    }
    const Char following = walk.peek(next);
    if ((following.kind & rules.word) != 0 && !is_newline(c.point)) return end_word(next);
    // The cased patterns leave marks to symbols once these have begun; Qwen 3.5's never does.
    const std::uint8_t not_other = kNotOther | (rules.cased ? 0 : rules.word);
    const bool joined = c.point == ' ' && following.size != 0 && (following.kind & not_other) == 0;
    if ((c.kind & not_other) == 0 || joined)
        return walk.skip_newlines(walk.skip_others(next, not_other), rules.slashes);
    return end_space(rules, walk, text, start);
}

std::size_t end_deepseek(const Rules& rules, std::string_view text, std::size_t start) noexcept {
    constexpr std::uint8_t symbols = kPunctuation | kSymbol;
    const Char c = at(text, start);
    if (c.kind == kNumber) return end_numbers(text, start, rules.max_digits);
    const Walk walk(rules, text, start);
    const std::size_t next = start + c.size;
    const Char following = walk.peek(next);
    if ((c.kind & rules.word) != 0) return walk.skip(next, rules.word);
    if ((c.kind & symbols) != 0 && c.point < 0x80 && is_ascii_letter(following.point)) {
        std::size_t end = next;
        while (is_ascii_letter(walk.peek(end).point)) ++end;
        return end;
    }
    if ((c.kind & symbols) == 0 && (following.kind & rules.word) != 0 && !is_newline(c.point))
        return walk.skip(next, rules.word);
    if ((c.kind & symbols) != 0 || (c.point == ' ' && (following.kind & symbols) != 0))
        return walk.skip_newlines(walk.skip(next, symbols), false);
    if (c.kind == kSpace) return end_space(rules, walk, text, start);
    // A gap: characters of no class, but for one in front of a word.
    std::size_t end = start;
    std::size_t last = start;
    Char other = c;
    for (; other.size != 0 && other.kind == 0; other = walk.peek(end)) {
        last = end;
        end += other.size;
    }
    return (other.kind & rules.word) != 0 ? last : end;
}

}  // namespace

std::size_t end_of_contraction(std::string_view text, std::size_t start, bool any_case) noexcept {
    const std::size_t first_at = start + 1;
    if (first_at >= text.size()) return start;
    const Char first = at(text, first_at);
    const char32_t a = lower(first.point, any_case);
    const std::size_t second_at = first_at + first.size;
    if (a == 's' || a == 'd' || a == 'm' || a == 't') return second_at;
    if (second_at >= text.size() || (a != 'l' && a != 'v' && a != 'r')) return start;
    const char32_t b = lower(static_cast<std::uint8_t>(text[second_at]), any_case);
    return (a == 'l' && b == 'l') || (a != 'l' && b == 'e') ? second_at + 1 : start;
}

template <Pattern P>
std::size_t end_piece(std::string_view text, std::size_t start) noexcept {
    static constexpr Rules rules = rules_of(P);
    if constexpr (P == Pattern::kWhole) {
        (void)start;
        return text.size();
    } else if constexpr (rules.gpt2) {
        return end_gpt2(rules, text, start);
    } else if constexpr (rules.deepseek) {
        return end_deepseek(rules, text, start);
    } else {
        return end_words(rules, text, start);
    }
}

template std::size_t end_piece<Pattern::kWhole>(std::string_view, std::size_t) noexcept;
template std::size_t end_piece<Pattern::kGpt2>(std::string_view, std::size_t) noexcept;
template std::size_t end_piece<Pattern::kStarCoder>(std::string_view, std::size_t) noexcept;
template std::size_t end_piece<Pattern::kCl100k>(std::string_view, std::size_t) noexcept;
template std::size_t end_piece<Pattern::kLlama3>(std::string_view, std::size_t) noexcept;
template std::size_t end_piece<Pattern::kQwen2>(std::string_view, std::size_t) noexcept;
template std::size_t end_piece<Pattern::kQwen35>(std::string_view, std::size_t) noexcept;
template std::size_t end_piece<Pattern::kO200k>(std::string_view, std::size_t) noexcept;
template std::size_t end_piece<Pattern::kTekken>(std::string_view, std::size_t) noexcept;
template std::size_t end_piece<Pattern::kDeepSeek3>(std::string_view, std::size_t) noexcept;

}  // namespace pylm::pretokenize
