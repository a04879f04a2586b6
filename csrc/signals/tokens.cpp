#include "signals/tokens.hpp"

#include <algorithm>
#include <array>
#include <span>
#include <utility>

#include "text/unicode.hpp"
#include "text/words.hpp"

namespace pylm::signals {
namespace {

enum ByteKind : std::uint8_t { kLetter = 1, kDigit = 2, kSpace = 4, kMark = 8, kHigh = 16 };

constexpr std::array<std::uint8_t, 256> kByteKind = [] {
    std::array<std::uint8_t, 256> kinds{};
    for (std::size_t c = 0; c < 256; ++c) {
        const bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
        const bool digit = c >= '0' && c <= '9';
        const bool space = c == ' ' || (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x1F);
        kinds[c] = c >= 0x80 ? kHigh : letter ? kLetter : digit ? kDigit : space ? kSpace : kMark;
    }
    return kinds;
}();

constexpr std::array<std::string_view, 8> kStopWords = {"the", "be", "to", "of", "and", "that", "have", "with"};

// Sorted. Units that are cut off a number.
constexpr std::array<std::u32string_view, 34> kUnits = {
    U"G",  U"GB", U"K",  U"KB", U"M",   U"MB", U"Pa", U"T",  U"TB", U"cm", U"dm",   U"ft",
    U"g",  U"gb", U"ha", U"hPa", U"in", U"kb", U"kg", U"km", U"kmh", U"lb", U"m",   U"mb",
    U"mbar", U"mg", U"mm", U"mph", U"nm", U"oz", U"t", U"tb", U"yd", U"μg"};

bool is_digit(char32_t c) { return c >= U'0' && c <= U'9'; }
bool is_upper(char32_t c) { return (words::flags(c) & words::kLetter) != 0 && words::lower(c) != c; }
bool is_letter(char32_t c) { return (words::flags(c) & words::kLetter) != 0; }
bool is_lower(char32_t c) { return is_letter(c) && words::lower(c) == c; }
bool is_currency(char32_t c) {
    return c == U'$' || c == U'£' || c == U'€' || c == U'¥' || c == U'฿' || (c >= 0x20A0 && c <= 0x20BF);
}
bool is_quote(char32_t c) {
    constexpr std::u32string_view quotes = U"'\"”“`‘´’‚„»«「」『』（）〔〕【】《》〈〉⟦⟧";
    return quotes.find(c) != std::u32string_view::npos;
}
bool is_icon(char32_t c) {  // most of \p{So}
    return c == U'©' || c == U'®' || c == U'°' || c == U'¦' || (c >= 0x2300 && c < 0x2800 && c != 0x2329 && c != 0x232A) ||
           (c >= 0x1F000 && c < 0x1FB00);
}
// Marks that are cut off both ends of a part.
bool is_loose(char32_t c) {
    if (c < 0x80) return std::string_view(",:;!?()[]{}<>_#*&'\"`").find(static_cast<char>(c)) != std::string_view::npos;
    constexpr std::u32string_view marks = U"…¿؟¡。？！，、；：～·।،۔؛٪—–";
    return marks.find(c) != std::u32string_view::npos || is_quote(c) || is_icon(c);
}
bool is_hyphen(char32_t c) { return c == U'-' || c == U'–' || c == U'—' || c == U'~'; }

}  // namespace

void Tokenizer::note_stop_word(std::string_view token) {
    if (token.size() < 2 || token.size() > 4) return;
    for (std::size_t i = 0; i < kStopWords.size(); ++i) {
        if (token == kStopWords[i]) list_.stop_words |= 1U << i;
    }
}

void Tokenizer::push(std::string_view bytes, Token token) {
    list_.tokens.push_back(token);
    list_.joined.append(bytes);
    list_.begins.push_back(list_.joined.size());
}

void Tokenizer::add_plain(const char* p, std::size_t size, const char* limit) {
    note_stop_word({p, size});
    const bool letters = kByteKind[static_cast<std::uint8_t>(*p)] == kLetter;
    push({p, size}, {.hash = words::hash_word<false>(p, size, limit),
                     .num_chars = static_cast<std::uint32_t>(size),
                     .is_symbol = false,
                     .has_letter = letters,
                     .ends_sentence = false});
}

void Tokenizer::add(std::string_view token) {
    if (token.empty()) return;
    note_stop_word(token);
    Token found{.hash = words::hash_word<false>(token.data(), token.size(), token.data() + token.size()),
                .num_chars = 0,
                .is_symbol = true,
                .has_letter = false,
                .ends_sentence = false};
    for (std::size_t i = 0; i < token.size();) {
        const Decoded decoded = decode_utf8(token, i);
        const std::uint8_t flags = words::flags(decoded.point);
        found.is_symbol = found.is_symbol && (flags & words::kPunctuation) != 0;
        found.has_letter = found.has_letter || (flags & words::kLetter) != 0;
        ++found.num_chars;
        i += decoded.size;
        found.ends_sentence = found.num_chars == 1 && (flags & words::kTerminal) != 0;
    }
    push(token, found);
}

const TokenList& Tokenizer::operator()(std::string_view text) {
    list_.tokens.clear();
    list_.joined.clear();
    list_.begins.assign(1, 0);
    list_.stop_words = 0;
    const char* p = text.data();
    const char* const end = p + text.size();
    const auto kind = [](const char* c) { return kByteKind[static_cast<std::uint8_t>(*c)]; };
    while (p < end) {
        if (kind(p) == kSpace) {
            ++p;
            continue;
        }
        const char* const begin = p;
        unsigned kinds = 0;
        unsigned last = 0;
        const char* first_other = nullptr;  // first byte that is no letter
        for (; p < end && kind(p) != kSpace; ++p) {
            last = kind(p);
            kinds |= last;
            if (last != kLetter && first_other == nullptr) first_other = p;
        }
        const auto size = static_cast<std::size_t>(p - begin);
        if (kinds == kLetter || kinds == kDigit) {
            add_plain(begin, size, end);
        } else if (last == kMark && first_other == p - 1 && first_other != begin &&
                   (is_loose(static_cast<char32_t>(p[-1])) || (p[-1] == '.' && p[-2] >= 'a'))) {
            add_plain(begin, size - 1, end);  // a word and one mark
            add({p - 1, 1});
        } else if ((kinds & kHigh) == 0) {
            add_part({begin, size});
        } else {  // white space beyond ASCII parts as well
            const std::string_view part(begin, size);
            std::size_t from = 0;
            for (std::size_t i = 0; i < part.size();) {
                const Decoded decoded = decode_utf8(part, i);
                if (decoded.point >= 0x80 && (words::flags(decoded.point) & words::kSpace) != 0) {
                    add_part(part.substr(from, i - from));
                    from = i + decoded.size;
                }
                i += decoded.size;
            }
            add_part(part.substr(from));
        }
    }
    return list_;
}

std::string_view Tokenizer::slice(std::string_view part, std::size_t low, std::size_t high) const {
    return part.substr(chars_[low].begin, chars_[high].begin - chars_[low].begin);
}

// Characters of the mark at the front of [low, high), 0 where there is none.
std::size_t Tokenizer::prefix_size(std::size_t low, std::size_t high) const {
    const char32_t c = chars_[low].point;
    if (c == U'.') {
        std::size_t i = low;
        while (i < high && chars_[i].point == U'.') ++i;
        return i - low >= 2 ? i - low : 0;
    }
    if (c == U'+') return low + 1 == high || !is_digit(chars_[low + 1].point) ? 1 : 0;
    return is_loose(c) || is_currency(c) || c == U'§' || c == U'%' || c == U'=' ? 1 : 0;
}

// Characters of the mark at the end of [low, high), 0 where there is none.
std::size_t Tokenizer::suffix_size(std::size_t low, std::size_t high) const {
    const std::size_t size = high - low;
    const auto back = [&](std::size_t i) { return i <= size ? chars_[high - i].point : 0; };
    const char32_t c = back(1);
    if (c == U'.') {
        std::size_t dots = 0;
        while (dots < size && back(dots + 1) == U'.') ++dots;
        if (dots >= 2) return dots;
        const char32_t before = back(2);
        const bool sentence = is_digit(before) || is_lower(before) || is_loose(before) || before == U'%' ||
                              before == U'²' || before == U'-' || before == U'+';
        return before != 0 && (sentence || (is_upper(before) && is_upper(back(3)))) ? 1 : 0;
    }
    if (is_loose(c)) return 1;
    if ((c == U's' || c == U'S') && (back(2) == U'\'' || back(2) == U'’')) return 2;
    if (c == U'+' || c == U'%' || is_currency(c)) return is_digit(back(2)) ? 1 : 0;
    if (is_letter(c)) {  // a unit after a number
        std::size_t letters = 1;
        while (letters < 5 && is_letter(back(letters + 1))) ++letters;
        if (letters < 5 && is_digit(back(letters + 1))) {
            std::array<char32_t, 4> unit{};
            for (std::size_t i = 0; i < letters; ++i) unit[i] = back(letters - i);
            return std::binary_search(kUnits.begin(), kUnits.end(), std::u32string_view(unit.data(), letters)) ? letters : 0;
        }
    }
    return 0;
}

void Tokenizer::add_part(std::string_view part) {
    if (part.empty()) return;
    chars_.clear();
    for (std::size_t i = 0; i < part.size();) {
        const Decoded decoded = decode_utf8(part, i);
        chars_.push_back({decoded.point, static_cast<std::uint32_t>(i)});
        i += decoded.size;
    }
    chars_.push_back({0, static_cast<std::uint32_t>(part.size())});
    std::size_t low = 0;
    std::size_t high = chars_.size() - 1;
    std::vector<std::pair<std::size_t, std::size_t>> suffixes;
    for (;;) {
        if (low == high) break;
        const std::size_t prefix = prefix_size(low, high);
        if (prefix > 0) add(slice(part, low, low + prefix));
        low += prefix;
        if (low == high) break;
        const std::size_t suffix = suffix_size(low, high);
        if (suffix > 0) suffixes.emplace_back(high - suffix, high);
        high -= suffix;
        if (prefix + suffix == 0) break;
    }
    if (low < high) add_core(part, low, high);
    for (std::size_t i = suffixes.size(); i-- > 0;) add(slice(part, suffixes[i].first, suffixes[i].second));
}

// What is left between the marks: cut inside.
void Tokenizer::add_core(std::string_view part, std::size_t low, std::size_t high) {
    const auto at = [&](std::size_t i) { return i >= low && i < high ? chars_[i].point : 0; };
    const auto apostrophe = [&](std::size_t i) { return at(i) == U'\'' || at(i) == U'’'; };
    if (high - low > 3 && words::lower(at(high - 1)) == U't' && apostrophe(high - 2) && words::lower(at(high - 3)) == U'n') {
        add(slice(part, low, high - 3));
        add(slice(part, high - 3, high));
        return;
    }
    std::size_t from = low;
    const auto cut = [&](std::size_t begin, std::size_t end) {  // [begin, end) is a mark between two words
        if (begin > from) add(slice(part, from, begin));
        if (end > begin) add(slice(part, begin, end));
        from = end;
    };
    for (std::size_t i = low + 1; i + 1 < high; ++i) {
        const char32_t c = at(i);
        const char32_t before = at(i - 1);
        const char32_t after = at(i + 1);
        if (i < from || is_letter(c) || is_digit(c)) continue;
        const bool word_before = is_letter(before) || is_digit(before);
        if (c == U'.' && after == U'.') {
            std::size_t end = i;
            while (at(end) == U'.') ++end;
            cut(i, end);
        } else if (c == U'…' || is_icon(c)) {
            cut(i, i + 1);
        } else if (is_hyphen(c) && word_before) {
            std::size_t end = i;
            while (end < i + 3 && at(end) == c) ++end;
            if (is_letter(at(end)) && (c == U'-' || end == i + 1 || (c == U'—' && end == i + 2))) {
                cut(i, end);
            } else if (c == U'-' && is_digit(before) && (is_digit(after) || after == U'-')) {
                cut(i, i + 1);
            }
        } else if ((c == U'+' || c == U'*' || c == U'^') && is_digit(before) && (is_digit(after) || after == U'-')) {
            cut(i, i + 1);
        } else if (c == U'.' && (is_lower(before) || is_quote(before)) && (is_upper(after) || is_quote(after))) {
            cut(i, i + 1);
        } else if (c == U',' && is_letter(before) && is_letter(after)) {
            cut(i, i + 1);
        } else if ((c == U':' || c == U'<' || c == U'>' || c == U'=' || c == U'/') && word_before && is_letter(after)) {
            cut(i, i + 1);
        } else if (apostrophe(i) && is_letter(before) && high - i <= 3) {
            const char32_t first = words::lower(after);
            const char32_t second = words::lower(at(i + 2));
            const bool contraction = high - i == 2 ? first == U'm' || first == U'd'
                                                   : (first == U'r' && second == U'e') || (first == U'v' && second == U'e') ||
                                                         (first == U'l' && second == U'l');
            if (contraction) cut(i, i);
        }
    }
    if (from < high) add(slice(part, from, high));
}

}  // namespace pylm::signals
