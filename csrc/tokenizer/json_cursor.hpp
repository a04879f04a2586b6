// Reading JSON in one pass, strictly (RFC 8259), without building a tree.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace pylm {

// A place in a JSON text. Holds a view: the text must outlive it. Every member throws std::invalid_argument
// with line and column where the text is not what was expected; none reads past the end.
class JsonCursor {
  public:
    explicit JsonCursor(std::string_view text) noexcept : text_(text) {}

    std::size_t position() const noexcept { return at_; }
    bool at_end() noexcept { return skip_space(), at_ == text_.size(); }

    // The next character after white space, '\0' at the end. Does not move past it.
    char peek() noexcept { return skip_space(), at_ < text_.size() ? text_[at_] : '\0'; }

    // Move past `c`, after white space.
    void expect(char c) {
        if (!take_if(c)) fail(std::string("'") + c + "'");
    }

    // Read the members of an object: `member(key)` must move past the value. Keys may repeat.
    template <typename Member>
    void read_object(Member&& member) {
        expect('{');
        if (take_if('}')) return;
        std::string key;
        do {
            key.clear();
            read_string(key);
            expect(':');
            member(key);
        } while (take_if(','));
        expect('}');
    }

    // Read the elements of an array: `element()` must move past one.
    template <typename Element>
    void read_array(Element&& element) {
        expect('[');
        if (take_if(']')) return;
        do element();
        while (take_if(','));
        expect(']');
    }

    // Append a string's characters as UTF-8. Refuses invalid UTF-8, control characters, lone surrogates.
    void read_string(std::string& out) {
        const std::string_view whole = view_string(out);
        if (whole.data() != nullptr) out.append(whole);
    }

    // The same, but a string without escapes is given as a view of the text, and nothing appended. The view of
    // one that was appended is null.
    std::string_view view_string(std::string& out);

    // Read a whole number below 2^63.
    std::uint64_t read_whole_number();

    // Move past any value. Strings and brackets are checked; the words between them are not.
    void skip_value();

    [[noreturn]] void fail(const std::string& expected) const;

  private:
    bool take_if(char c) noexcept {
        if (peek() != c || at_ == text_.size()) return false;
        ++at_;
        return true;
    }
    void skip_characters();
    void skip_space() noexcept {
        while (at_ < text_.size()) {
            const char c = text_[at_];
            if (c != ' ' && c != '\n' && c != '\r' && c != '\t') return;
            ++at_;
        }
    }
    void read_escape(std::string& out);
    std::uint32_t read_hex4();
    void skip_string();

    std::string_view text_;
    std::size_t at_ = 0;
};

}  // namespace pylm
