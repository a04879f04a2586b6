#include "tokenizer/json_cursor.hpp"

#include <algorithm>
#include <charconv>
#include <stdexcept>

#include "text/unicode.hpp"

namespace pylm {

namespace {

constexpr unsigned kDeepest = 500;  // a tokenizer.json nests about ten levels

void append_utf8(char32_t point, std::string& out) {
    const auto put = [&](std::uint32_t byte) { out.push_back(static_cast<char>(byte)); };
    if (point < 0x80) {
        put(point);
    } else if (point < 0x800) {
        put(0xC0 | (point >> 6));
        put(0x80 | (point & 0x3F));
    } else if (point < 0x10000) {
        put(0xE0 | (point >> 12));
        put(0x80 | ((point >> 6) & 0x3F));
        put(0x80 | (point & 0x3F));
    } else {
        put(0xF0 | (point >> 18));
        put(0x80 | ((point >> 12) & 0x3F));
        put(0x80 | ((point >> 6) & 0x3F));
        put(0x80 | (point & 0x3F));
    }
}

}  // namespace

void JsonCursor::fail(const std::string& expected) const {
    const std::string_view before = text_.substr(0, at_);
    const auto line = 1 + std::count(before.begin(), before.end(), '\n');
    const std::size_t newline = before.rfind('\n');
    const std::size_t column = newline == std::string_view::npos ? at_ + 1 : at_ - newline;
    throw std::invalid_argument("line " + std::to_string(line) + ", column " + std::to_string(column) +
                                ": expected " + expected +
                                (at_ == text_.size() ? ", got the end of the file" : ""));
}

// Move to the end of a string or to an escape.
void JsonCursor::skip_characters() {
    while (at_ < text_.size()) {
        const auto byte = static_cast<std::uint8_t>(text_[at_]);
        if (byte == '"' || byte == '\\') return;
        if (byte < 0x20) fail("no control character in a string");
        if (byte < 0x80) {
            ++at_;
            continue;
        }
        const auto next = at_ + 1 < text_.size() ? static_cast<std::uint8_t>(text_[at_ + 1]) : 0;
        if (byte >= 0xC2 && byte < 0xE0 && (next & 0xC0) == 0x80) {
            at_ += 2;
            continue;
        }
        const Decoded decoded = decode_utf8(text_, at_);
        if (decoded.size == 1) fail("UTF-8");
        at_ += decoded.size;
    }
    fail("the end of a string");
}

std::string_view JsonCursor::view_string(std::string& out) {
    expect('"');
    std::size_t start = at_;
    skip_characters();
    if (text_[at_] == '"') return text_.substr(start, at_++ - start);
    for (;;) {
        out.append(text_, start, at_ - start);
        if (text_[at_++] == '"') return {};
        read_escape(out);
        start = at_;
        skip_characters();
    }
}

void JsonCursor::read_escape(std::string& out) {
    const char c = at_ < text_.size() ? text_[at_++] : '\0';
    switch (c) {
        case '"':
        case '\\':
        case '/': out.push_back(c); return;
        case 'b': out.push_back('\b'); return;
        case 'f': out.push_back('\f'); return;
        case 'n': out.push_back('\n'); return;
        case 'r': out.push_back('\r'); return;
        case 't': out.push_back('\t'); return;
        case 'u': break;
        default: fail("an escape");
    }
    char32_t point = read_hex4();
    if (point >= 0xD800 && point < 0xDC00) {
        if (text_.substr(at_, 2) != "\\u") fail("the second half of a surrogate pair");
        at_ += 2;
        const std::uint32_t low = read_hex4();
        if (low < 0xDC00 || low >= 0xE000) fail("the second half of a surrogate pair");
        point = 0x10000 + ((point - 0xD800) << 10) + (low - 0xDC00);
    } else if (point >= 0xDC00 && point < 0xE000) {
        fail("no lone surrogate");
    }
    append_utf8(point, out);
}

std::uint32_t JsonCursor::read_hex4() {
    std::uint32_t value = 0;
    const char* const begin = text_.data() + at_;
    if (text_.size() - at_ < 4) fail("four hexadecimal digits");
    const auto [stop, error] = std::from_chars(begin, begin + 4, value, 16);
    if (error != std::errc{} || stop != begin + 4) fail("four hexadecimal digits");
    at_ += 4;
    return value;
}

std::uint64_t JsonCursor::read_whole_number() {
    skip_space();
    std::uint64_t value = 0;
    const char* const begin = text_.data() + at_;
    const char* const end = text_.data() + text_.size();
    const auto [stop, error] = std::from_chars(begin, end, value);
    const bool more = stop != end && (*stop == '.' || *stop == 'e' || *stop == 'E');
    const bool leading_zero = stop - begin > 1 && *begin == '0';
    if (error != std::errc{} || more || leading_zero || value >> 63 != 0) fail("a whole number, not negative");
    at_ += static_cast<std::size_t>(stop - begin);
    return value;
}

void JsonCursor::skip_string() {
    for (++at_; at_ < text_.size(); ++at_) {
        if (text_[at_] == '\\') {
            ++at_;
        } else if (text_[at_] == '"') {
            ++at_;
            return;
        }
    }
    at_ = text_.size();
    fail("the end of a string");
}

void JsonCursor::skip_value() {
    std::string open;  // the brackets around the place
    do {
        const char c = peek();
        if (at_ == text_.size()) fail("a value");
        if (c == '"') {
            skip_string();
        } else if (c == '{' || c == '[') {
            if (open.size() == kDeepest) fail("fewer nested values");
            open.push_back(c == '{' ? '}' : ']');
            ++at_;
        } else if (c == '}' || c == ']') {
            if (open.empty() || open.back() != c) fail("a value");
            open.pop_back();
            ++at_;
        } else if ((c == ',' || c == ':') && open.empty()) {
            fail("a value");
        } else {  // a number, a word, a comma, a colon
            ++at_;
            if (c == ',' || c == ':') continue;
            while (at_ < text_.size() && std::string_view(" \t\r\n,:{}[]\"").find(text_[at_]) ==
                                             std::string_view::npos) {
                ++at_;
            }
        }
    } while (!open.empty());
}

}  // namespace pylm
