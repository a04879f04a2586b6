#include "signals/english.hpp"

#include <algorithm>

#include "signals/english_table.hpp"
#include "text/words.hpp"

namespace pylm::signals::english {
namespace {

constexpr char32_t kBmpSize = 0x10000;
constexpr std::u32string_view kDegrees = U"FfCcKk";

bool is_digit(char32_t c) noexcept { return c >= U'0' && c <= U'9'; }

bool is_apostrophe(char32_t c) noexcept { return c == U'\'' || c == U'’'; }

// Length of the run of `c` at the front.
std::size_t run_size(std::u32string_view part, char32_t c) noexcept {
    const std::size_t end = part.find_first_not_of(c);
    return end == std::u32string_view::npos ? part.size() : end;
}

// Host names are made of ASCII letters, digits, and everything from U+00A1 to U+FFFF.
bool is_host_char(char32_t c) noexcept {
    return is_digit(c) || (c >= U'a' && c <= U'z') || (c >= U'A' && c <= U'Z') || (c >= 0xA1 && c <= 0xFFFF);
}

// Four numbers that can be the address of a machine on the public network.
bool is_ip_address(std::u32string_view part) noexcept {
    std::array<unsigned, 4> numbers{};
    for (std::size_t i = 0; i < 4; ++i) {
        std::size_t size = 0;
        while (size < part.size() && is_digit(part[size])) ++size;
        if (size == 0 || size > 3) return false;
        for (std::size_t k = 0; k < size; ++k) numbers[i] = numbers[i] * 10 + (part[k] - U'0');
        const bool edge = i == 0 || i == 3;
        if (edge && part[0] == U'0') return false;
        if (!edge && size == 3 && part[0] == U'0') return false;
        part.remove_prefix(size);
        if (i == 3) break;
        if (part.empty() || part[0] != U'.') return false;
        part.remove_prefix(1);
    }
    const auto [a, b, c, d] = numbers;
    const bool is_private = a == 10 || a == 127 || (a == 169 && b == 254) || (a == 192 && b == 168) ||
                            (a == 172 && b >= 16 && b <= 31);
    return part.empty() && !is_private && a <= 223 && b <= 255 && c <= 255 && d <= 254;
}

// The port and the path of an address, or nothing.
bool is_address_end(std::u32string_view part) noexcept {
    if (!part.empty() && part[0] == U':') {
        std::size_t size = 1;
        while (size < part.size() && is_digit(part[size])) ++size;
        if (size < 3 || size > 6) return false;
        part.remove_prefix(size);
    }
    return part.empty() || part[0] == U'/' || part[0] == U'?' || part[0] == U'#';
}

}  // namespace

const Rules& Rules::instance() {
    static const Rules rules;
    return rules;
}

Rules::Rules() : classes_(kBmpSize) {
    for (std::size_t i = 0; i < kRuns.size(); ++i) {
        const char32_t end = i + 1 < kRuns.size() ? std::min(kRuns[i + 1].first, kBmpSize) : kBmpSize;
        for (char32_t point = kRuns[i].first; point < end; ++point) classes_[point] = kRuns[i].classes;
    }
    std::size_t bytes = 0;
    std::string_view rest = kExceptions;
    texts_.reserve(rest.size());  // views into it stay good
    while (!rest.empty()) {
        const std::size_t end = rest.find('\n');
        Exception exception{.text = {}, .sizes = {}};
        std::size_t piece = 0;
        for (const char c : rest.substr(0, end)) {
            if (c == ' ') {
                ++piece;
            } else {
                texts_.push_back(c);
                ++exception.sizes[piece];
            }
        }
        exception.text = std::string_view(texts_.data() + bytes, texts_.size() - bytes);
        bytes = texts_.size();
        const char* begin = exception.text.data();
        const std::size_t size = exception.text.size();
        const std::uint64_t high = words::hash_word(begin, size, begin + size) >> 48;
        filter_[high / 64] |= std::uint64_t{1} << high % 64;
        numbers_.emplace(exception.text, exceptions_.size());
        exceptions_.push_back(exception);
        rest.remove_prefix(end + 1);
    }
}

std::uint8_t Rules::classes(char32_t point) const noexcept {
    if (point < kBmpSize) return classes_[point];
    const auto next = std::upper_bound(kRuns.begin(), kRuns.end(), point,
                                       [](char32_t value, const Run& run) { return value < run.first; });
    return point > 0x10FFFF ? std::uint8_t{0} : (next - 1)->classes;
}

const Rules::Exception* Rules::find_exception(std::string_view text) const noexcept {
    if (text.empty() || text.size() > kMaxExceptionBytes) return nullptr;
    const char* begin = text.data();
    if (!may_be_exception(words::hash_word(begin, text.size(), begin + text.size()))) return nullptr;
    const auto found = numbers_.find(text);
    return found == numbers_.end() ? nullptr : &exceptions_[found->second];
}

std::size_t Rules::prefix_size(std::u32string_view part) const noexcept {
    const char32_t c = part[0];
    if (c == U'.') {
        const std::size_t dots = run_size(part, U'.');
        return dots >= 2 ? dots : 0;
    }
    if (c == U'+') return part.size() == 1 || !is_digit(part[1]) ? 1 : 0;
    if (c == U'U' && part.starts_with(U"US$")) return 3;
    if ((c == U'C' || c == U'A') && part.size() > 1 && part[1] == U'$') return 2;
    if (c == U'§' || c == U'%' || c == U'=' || c == U'—' || c == U'–') return 1;
    return is(c, kPunctuation | kQuote | kCurrency | kIcon) ? 1 : 0;
}

std::size_t Rules::suffix_size(std::u32string_view part) const noexcept {
    const std::size_t size = part.size();
    if (size == 0) return 0;
    const auto back = [&](std::size_t i) { return i <= size ? part[size - i] : char32_t{0}; };
    const char32_t c = back(1);
    if (c == U'.') {
        std::size_t dots = 1;
        while (back(dots + 1) == U'.') ++dots;
        if (dots >= 2) return dots;
        const bool capitals = is(back(2), kUpper) && is(back(3), kUpper);
        const bool degrees = back(3) == U'°' && kDegrees.find(back(2)) != std::u32string_view::npos;
        return size > 1 && (is(back(2), kBeforePeriod) || capitals || degrees) ? 1 : 0;
    }
    if (c == U'…' && back(2) == U'…') return 2;
    if ((c == U's' || c == U'S') && is_apostrophe(back(2))) return 2;
    if (c == U'$' && size > 3 && part.ends_with(U"US$") && is_digit(back(4))) return 3;
    if (c == U'$' && size > 2 && (back(2) == U'C' || back(2) == U'A') && is_digit(back(3))) return 2;
    for (std::size_t letters = std::min<std::size_t>(5, size - 1); letters > 0; --letters) {
        if (is_digit(back(letters + 1)) &&
            std::binary_search(kUnits.begin(), kUnits.end(), part.substr(size - letters))) {
            return letters;
        }
    }
    if (is(c, kPunctuation | kQuote | kIcon) || c == U'—' || c == U'–') return 1;
    return (c == U'+' || is(c, kCurrency)) && is_digit(back(2)) ? 1 : 0;
}

// Characters of the mark inside a part that begins at `at`; 0 where none does.
std::size_t Rules::infix_size(std::u32string_view part, std::size_t at) const noexcept {
    const auto point = [&](std::size_t i) { return i < part.size() ? part[i] : char32_t{0}; };
    const char32_t c = part[at];
    const char32_t before = at > 0 ? part[at - 1] : char32_t{0};
    const char32_t after = point(at + 1);
    if (c == U'.' && after == U'.') return run_size(part.substr(at), U'.');
    if (c == U'…' || is(c, kIcon)) return 1;
    const bool sum = c == U'+' || c == U'-' || c == U'*' || c == U'^';
    if (sum && is_digit(before) && (is_digit(after) || after == U'-')) return 1;
    if (c == U'.') return is(before, kLower | kQuote) && is(after, kUpper | kQuote) ? 1 : 0;
    if (c == U',') return is(before, kAlpha) && is(after, kAlpha) ? 1 : 0;
    if (!is(before, kAlpha) && !is_digit(before)) return 0;
    if (c == U'-' || c == U'–' || c == U'—' || c == U'~') {
        if (is(after, kAlpha)) return 1;
        if (c == U'-' && after == U'-') {
            if (is(point(at + 2), kAlpha)) return 2;
            return point(at + 2) == U'-' && is(point(at + 3), kAlpha) ? 3 : 0;
        }
        return c == U'—' && after == U'—' && is(point(at + 2), kAlpha) ? 2 : 0;
    }
    const bool joint = c == U':' || c == U'<' || c == U'>' || c == U'=' || c == U'/';
    return joint && is(after, kAlpha) ? 1 : 0;
}

Rules::Infix Rules::next_infix(std::u32string_view part, std::size_t from) const noexcept {
    for (std::size_t i = from; i < part.size(); ++i) {
        const char32_t c = part[i];
        if (is_digit(c) || (c < 0x80 && is(c, kAlpha))) continue;
        const std::size_t size = infix_size(part, i);
        if (size > 0) return {i, size};
    }
    return {part.size(), 0};
}

// Labels that end in a period each, then a name of lower-case letters.
bool Rules::is_host(std::u32string_view part) const noexcept {
    const std::size_t last = part.rfind(U'.');
    if (last == std::u32string_view::npos || part.size() - last < 3 || part.size() - last > 64) return false;
    for (std::size_t i = last + 1; i < part.size(); ++i) {
        if (!is(part[i], kLower)) return false;
    }
    std::size_t begin = 0;
    for (std::size_t i = 0; i <= last; ++i) {
        if (part[i] == U'.') {
            if (i == begin || i - begin > 64 || !is_host_char(part[i - 1])) return false;
            begin = i + 1;
        } else if (!is_host_char(part[i]) && (i == begin || (part[i] != U'-' && part[i] != U'_'))) {
            return false;
        }
    }
    return true;
}

bool Rules::is_url(std::u32string_view part) const noexcept {
    if (part.find(U'.') == std::u32string_view::npos) return false;
    const auto in_name = [](char32_t c) { return is_host_char(c) || c == U'.' || c == U'-' || c == U'_'; };
    const auto is_machine = [&](std::size_t begin) {
        std::size_t end = begin;
        while (end < part.size() && in_name(part[end])) ++end;
        const std::u32string_view name = part.substr(begin, end - begin);
        return is_address_end(part.substr(end)) && (is_host(name) || is_ip_address(name));
    };
    if (is_machine(0)) return true;
    std::size_t scheme = 0;  // characters before "://"
    while (scheme < part.size()) {
        const char32_t c = part[scheme];
        const bool word = (words::flags(c) & words::kAlphanumeric) != 0 || c == U'_';
        if (!word && c != U'+' && c != U'-' && c != U'.') break;
        ++scheme;
    }
    if (scheme >= 2 && part.substr(scheme).starts_with(U"://") && is_machine(scheme + 3)) return true;
    for (std::size_t at = part.find(U'@', 1); at != std::u32string_view::npos; at = part.find(U'@', at + 1)) {
        if (is_machine(at + 1)) return true;
    }
    return false;
}

}  // namespace pylm::signals::english
