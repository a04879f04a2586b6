#include "tokenizer/pretokenize.hpp"

namespace pylm {

namespace {

constexpr char32_t kLongS = 0x017F;  // folds to "s", so (?i:s) matches it

bool is_newline(char32_t point) noexcept { return point == '\n' || point == '\r'; }

char32_t lower(char32_t point, bool any_case) noexcept {
    if (!any_case) return point;
    if (point >= 'A' && point <= 'Z') return point + 32;
    return point == kLongS ? U's' : point;
}

}  // namespace

std::size_t Pretokenizer::end_contraction(std::size_t start, bool any_case) const noexcept {
    const std::size_t first_at = start + 1;
    if (first_at >= text_.size()) return start;
    const Char first = at(first_at);
    const char32_t a = lower(first.point, any_case);
    const std::size_t second_at = first_at + first.size;
    if (a == 's' || a == 'd' || a == 'm' || a == 't') return second_at;
    if (second_at >= text_.size() || (a != 'l' && a != 'v' && a != 'r')) return start;
    const Char second = at(second_at);
    const char32_t b = lower(second.point, any_case);
    return (a == 'l' && b == 'l') || (a != 'l' && b == 'e') ? second_at + second.size : start;
}

// White space from `start`: up to its last newline, or all but the last character before a non-space.
std::size_t Pretokenizer::end_space(std::size_t start, bool stop_at_newline) const noexcept {
    std::size_t end = start;
    std::size_t last = start;          // start of the run's last character
    std::size_t after_newline = start; // end of the run's last newline
    while (end < text_.size()) {
        const Char c = at(end);
        if (c.kind != kSpace) break;
        last = end;
        end += c.size;
        if (is_newline(c.point)) after_newline = end;
    }
    const bool at_end = end == text_.size();
    if (at_end && (pattern_.trailing_space_whole || !stop_at_newline)) return end;
    if (stop_at_newline && after_newline > start) return after_newline;
    return at_end || last == start ? end : last;
}

std::size_t Pretokenizer::end_gpt2(std::size_t start) const noexcept {
    const Char c = at(start);
    if (c.point == '\'') {
        const std::size_t end = end_contraction(start, false);
        if (end > start) return end;
    }
    const std::size_t next = start + c.size;
    if (c.kind != kSpace) return skip(next, c.kind);
    if (c.point == ' ' && next < text_.size()) {
        const Char following = at(next);
        if (following.kind != kSpace) return skip(next + following.size, following.kind);
    }
    return end_space(start, false);
}

std::size_t Pretokenizer::end_cl100k(std::size_t start) const noexcept {
    const Char c = at(start);
    const std::size_t next = start + c.size;
    if (c.kind == kLetter) return skip(next, kLetter);
    if (c.kind == kNumber) {
        std::size_t end = next;
        for (unsigned digits = 1; digits < pattern_.max_digits && end < text_.size(); ++digits) {
            const Char digit = at(end);
            if (digit.kind != kNumber) break;
            end += digit.size;
        }
        return end;
    }
    if (c.point == '\'') {
        const std::size_t end = end_contraction(start, true);
        if (end > start) return end;
    }
    std::size_t symbols = start;
    if (next < text_.size()) {
        const Char following = at(next);
        if (following.kind == kLetter && !is_newline(c.point)) return skip(next + following.size, kLetter);
        if (c.point == ' ' && following.kind == kOther) symbols = next;
    }
    if (c.kind == kOther || symbols > start) {
        std::size_t end = skip(symbols, kOther);
        while (end < text_.size() && is_newline(static_cast<unsigned char>(text_[end]))) ++end;
        return end;
    }
    return end_space(start, true);
}

}  // namespace pylm
