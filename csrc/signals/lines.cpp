#include "signals/lines.hpp"

#include <algorithm>
#include <array>

#include "text/hash.hpp"
#include "text/unicode.hpp"
#include "text/words.hpp"

namespace pylm::signals {
namespace {

double ratio(double part, double whole) { return whole == 0 ? 0.0 : part / whole; }

std::size_t count_chars(std::string_view text) {
    std::size_t chars = 0;
    for (std::size_t i = 0; i < text.size(); ++chars) i += decode_utf8(text, i).size;
    return chars;
}

// Begin of the character that ends at `end` > 0.
std::size_t last_begin(std::string_view text, std::size_t end) {
    if (static_cast<std::uint8_t>(text[end - 1]) < 0x80) return end - 1;
    for (std::size_t size = 2; size <= std::min<std::size_t>(4, end); ++size) {
        if (decode_utf8(text.substr(0, end), end - size).size == size) return end - size;
    }
    return end - 1;
}

bool is_space(char32_t point) { return (words::flags(point) & words::kSpace) != 0; }

std::string_view strip_left(std::string_view text) {
    std::size_t begin = 0;
    while (begin < text.size()) {
        const Decoded decoded = decode_utf8(text, begin);
        if (!is_space(decoded.point)) break;
        begin += decoded.size;
    }
    return text.substr(begin);
}

std::string_view strip_right(std::string_view text) {
    std::size_t end = text.size();
    while (end > 0) {
        const std::size_t begin = last_begin(text, end);
        if (!is_space(decode_utf8(text, begin).point)) break;
        end = begin;
    }
    return text.substr(0, end);
}

bool ends_with_terminal(std::string_view text) {
    if (text.empty()) return false;
    const std::size_t begin = last_begin(text, text.size());
    return (words::flags(decode_utf8(text, begin).point) & words::kTerminal) != 0;
}

bool ends_with_ellipsis(std::string_view text) { return text.ends_with("...") || text.ends_with("…"); }

// Call visit(line) for every line as Python's str.splitlines cuts them.
template <typename Visit>
void for_each_line(std::string_view text, Visit&& visit) {
    std::size_t begin = 0;
    for (std::size_t i = 0; i < text.size();) {
        const Decoded decoded = decode_utf8(text, i);
        std::size_t next = i + decoded.size;
        if ((words::flags(decoded.point) & words::kLineEnd) != 0) {
            visit(text.substr(begin, i - begin));
            if (decoded.point == '\r' && next < text.size() && text[next] == '\n') ++next;
            begin = next;
        }
        i = next;
    }
    if (begin < text.size()) visit(text.substr(begin));
}

constexpr std::string_view kTerminalAscii = ".?!\"'";

constexpr std::array<std::string_view, 6> kPolicies = {"terms of use",   "privacy policy", "cookie policy",
                                                       "uses cookies", "use of cookies", "use cookies"};

}  // namespace

void LineSignals::operator()(std::string_view text, Row& row) {
    std::size_t chars = 0, alphanumeric = 0, upper = 0, digits = 0, spaces = 0, punctuation = 0;
    std::size_t hashes = 0, ellipses = 0, newlines = 0, curly = 0, part = 0, longest_part = 0, dots = 0;
    for (std::size_t i = 0; i < text.size();) {
        const Decoded decoded = decode_utf8(text, i);
        const char32_t c = decoded.point;
        const std::uint8_t flags = words::flags(c);
        ++chars;
        alphanumeric += (flags & words::kAlphanumeric) != 0;
        upper += (flags & words::kLetter) != 0 && words::lower(c) != c;
        digits += c >= '0' && c <= '9';
        punctuation += (flags & words::kPunctuation) != 0;
        hashes += c == '#';
        newlines += c == '\n';
        curly += c == '{';
        dots = c == '.' ? dots + 1 : 0;
        if (dots == 3) {
            ++ellipses;
            dots = 0;
        }
        ellipses += c == U'…';
        const bool space = (flags & words::kSpace) != 0;
        spaces += space;
        part = space ? 0 : part + 1;
        longest_part = std::max(longest_part, part);
        i += decoded.size;
    }
    const auto total = static_cast<double>(chars);
    row[kNumBytes] = static_cast<double>(text.size());
    row[kNumChars] = total;
    row[kNumCurlyBrackets] = static_cast<double>(curly);
    row[kMaxPartLength] = static_cast<double>(longest_part);
    row[kAlphanumericRatio] = ratio(static_cast<double>(alphanumeric), total);
    row[kUppercaseRatio] = ratio(static_cast<double>(upper), total);
    row[kDigitRatio] = ratio(static_cast<double>(digits), total);
    row[kWhitespaceRatio] = ratio(static_cast<double>(spaces), total);
    row[kPunctuationRatio] = ratio(static_cast<double>(punctuation), total);
    row[kHashWordRatio] = static_cast<double>(hashes);
    row[kEllipsisWordRatio] = static_cast<double>(ellipses);
    row[kNewlineWordRatio] = static_cast<double>(newlines);
    count_lines(text, row);
    count_newline_lines(text, row);
    count_paragraphs(text, row);
    if (wanted_.phrases) count_phrases(text, row);
}

// Lines as Python's str.splitlines cuts them.
void LineSignals::count_lines(std::string_view text, Row& row) {
    std::size_t lines = 0, bullets = 0, ellipses = 0, terminal = 0, longest = 0, chars = 0;
    for_each_line(text, [&](std::string_view line) {
        ++lines;
        const std::size_t length = count_chars(line);
        chars += length;
        longest = std::max(longest, length);
        const std::string_view left = strip_left(line);
        bullets += left.starts_with("•") || left.starts_with("-");
        const std::string_view right = strip_right(line);
        ellipses += ends_with_ellipsis(right);
        terminal += !right.empty() && kTerminalAscii.find(right.back()) != std::string_view::npos &&
                    !right.ends_with("...");
    });
    const auto total = static_cast<double>(lines);
    row[kNumLines] = total;
    row[kMaxLineLength] = static_cast<double>(longest);
    row[kMeanLineLength] = ratio(static_cast<double>(chars), total);
    row[kBulletLineRatio] = ratio(static_cast<double>(bullets), total);
    row[kEllipsisLineRatio] = ratio(static_cast<double>(ellipses), total);
    row[kTerminalLineRatio] = ratio(static_cast<double>(terminal), total);
}

// Lines cut at line feeds alone.
void LineSignals::count_newline_lines(std::string_view text, Row& row) {
    const auto newlines = static_cast<std::size_t>(row[kNewlineWordRatio]);
    const double chars = row[kNumChars];
    if (wanted_.duplicates) numbering_.reset(newlines + 1);
    std::size_t filled = 0, blank = 0, punctuated = 0, shorts = 0;
    std::size_t repeats = 0, repeat_chars = 0, nonblank_repeat_chars = 0;
    for (std::size_t begin = 0; begin < text.size();) {
        const std::size_t found = text.find('\n', begin);
        const std::size_t end = found == std::string_view::npos ? text.size() : found;
        const std::string_view line = text.substr(begin, end - begin);
        begin = end + 1;
        if (line.empty()) continue;
        const bool is_blank = strip_left(line).empty();
        const std::size_t length = count_chars(line);
        blank += is_blank;
        filled += !is_blank;
        punctuated += !is_blank && ends_with_terminal(line);
        shorts += !is_blank && length <= 30;
        if (wanted_.duplicates) {
            const std::uint32_t known = numbering_.size();
            if (numbering_(hash_bytes(line)) < known) {
                ++repeats;
                repeat_chars += length;
                nonblank_repeat_chars += is_blank ? 0 : length;
            }
        }
    }
    row[kLinePunctuationRatio] = ratio(static_cast<double>(punctuated), static_cast<double>(filled));
    row[kShortLineRatio] = ratio(static_cast<double>(shorts), static_cast<double>(filled));
    // Cutting at runs of line feeds leaves an empty line at either end that has one; two are a repeat.
    const std::size_t edges = text.empty() ? 0 : (text.front() == '\n') + (text.back() == '\n');
    row[kDuplicateLineRatio] =
        ratio(static_cast<double>(repeats + (edges == 2)), static_cast<double>(filled + blank + edges));
    row[kDuplicateLineCharRatio] = ratio(static_cast<double>(repeat_chars), chars);
    row[kDuplicateNonblankLineCharRatio] =
        ratio(static_cast<double>(nonblank_repeat_chars), chars - static_cast<double>(newlines));
}

// Paragraphs: what two line feeds or more part, in the text without white space around it.
void LineSignals::count_paragraphs(std::string_view text, Row& row) {
    const std::string_view body = strip_right(strip_left(text));
    if (wanted_.duplicates) numbering_.reset(static_cast<std::size_t>(row[kNewlineWordRatio]) / 2 + 1);
    std::size_t paragraphs = 0, repeats = 0, repeat_chars = 0;
    for (std::size_t begin = 0; begin < body.size();) {
        const std::size_t found = body.find("\n\n", begin);
        const std::size_t end = found == std::string_view::npos ? body.size() : found;
        const std::string_view paragraph = body.substr(begin, end - begin);
        ++paragraphs;
        if (wanted_.duplicates) {
            const std::uint32_t known = numbering_.size();
            if (numbering_(hash_bytes(paragraph)) < known) {
                ++repeats;
                repeat_chars += count_chars(paragraph);
            }
        }
        begin = end;
        while (begin < body.size() && body[begin] == '\n') ++begin;
    }
    row[kNumParagraphs] = static_cast<double>(paragraphs);
    row[kDuplicateParagraphRatio] = ratio(static_cast<double>(repeats), static_cast<double>(paragraphs));
    row[kDuplicateParagraphCharRatio] = ratio(static_cast<double>(repeat_chars), row[kNumChars]);
}

// Phrases of the C4 rules, whatever the case of their ASCII letters.
void LineSignals::count_phrases(std::string_view text, Row& row) {
    lower_.resize(text.size());
    std::transform(text.begin(), text.end(), lower_.begin(),
                   [](char c) { return static_cast<char>(c >= 'A' && c <= 'Z' ? c + 32 : c); });
    std::size_t lorem = 0, javascript = 0, policies = 0;
    for_each_line(lower_, [&](std::string_view line) {
        for (std::size_t at = line.find("lorem ipsum"); at != std::string_view::npos;
             at = line.find("lorem ipsum", at + 11)) {
            ++lorem;
        }
        javascript += line.find("javascript") != std::string_view::npos;
        policies += std::any_of(kPolicies.begin(), kPolicies.end(), [&](std::string_view phrase) {
            return line.find(phrase) != std::string_view::npos;
        });
    });
    row[kNumLoremIpsum] = static_cast<double>(lorem);
    row[kNumJavascriptLines] = static_cast<double>(javascript);
    row[kNumPolicyLines] = static_cast<double>(policies);
}

}  // namespace pylm::signals
