#include "check.hpp"

#include <stdexcept>

namespace pylm::tests {

void check(bool condition, std::string_view message) {
    if (!condition) throw std::runtime_error(std::string(message));
}

std::uint64_t Random::operator()() noexcept {
    state_ += 0x9E3779B97F4A7C15ULL;
    std::uint64_t x = state_;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ULL;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBULL;
    return x ^ (x >> 31);
}

std::string random_words(Random& random, std::size_t num_words) {
    std::string text;
    for (std::size_t i = 0; i < num_words; ++i) {
        if (i > 0) text += ' ';
        for (std::size_t letters = 1 + random.below(9); letters > 0; --letters) {
            text += static_cast<char>('a' + random.below(26));
        }
    }
    return text;
}

std::vector<std::string> hostile_texts() {
    using namespace std::string_literals;
    std::vector<std::string> texts = {
        "",
        "a",
        " ",
        "\n",
        "\r\n",
        "\0"s,
        "'",
        "''s 'S 'll 'LL 'v 've'",
        "\xff",
        "\x80",
        "\xc3",
        "\xc3(",
        "\xe2\x82",
        "\xe2\x28\xa1",
        "\xf0\x9f\x98",
        "\xf0\x9f",
        "\xc0\x80",
        "\xed\xa0\x80",
        "\xf4\x90\x80\x80",
        "\xf4\x8f\xbf\xbf",
        "\xf0\x9f\x98\x80",
        "a\xcc\x81",
        "\xe2\x80\x8d",
        "  \n \t x",
        " \n\n  ",
        "1234567 12345 1",
        "\xef\xbb\xbf"
        "bom",
        "\xe6\xbc\xa2\xe5\xad\x97 kana \xe3\x81\x8b\xe3\x81\xaa",
        "\xc4\xb0\xc5\xbf\xe1\xba\x9e",
        "a-b_c.d/e\\f",
        "\xe0\xb8\xa0\xe0\xb8\xb2",
        "x\xc2\xa0y\xe2\x80\xa8z",
        "...",
        "\xe2\x80\xa6 \xe2\x80\xa2 - *",
    };
    for (std::size_t size = 1; size <= 70; ++size) {  // across 8-byte loads and the border of short pieces
        texts.push_back(std::string(size, 'Q'));
        texts.push_back(std::string(size, 'q') + "\xc3");
        texts.push_back(std::string(size - 1, 'q') + "\xc3\xa9" + std::string(size, ' '));
    }
    Random random(1);
    for (std::size_t i = 0; i < 200; ++i) {
        std::string bytes;
        for (std::size_t size = random.below(100); size > 0; --size) bytes += static_cast<char>(random());
        texts.push_back(std::move(bytes));
    }
    for (std::size_t i = 0; i < 100; ++i) texts.push_back(random_words(random, random.below(60)));
    for (std::size_t i = 0; i < 100; ++i) {  // copies, and copies with one byte changed
        std::string text = texts[random.below(texts.size())];
        if (i % 2 == 1 && !text.empty()) text[random.below(text.size())] = static_cast<char>(random());
        texts.push_back(std::move(text));
    }
    return texts;
}

std::vector<std::string> huge_texts(std::size_t size) {
    const auto repeat = [&](std::string_view part) {
        std::string text;
        while (text.size() + part.size() <= size) text += part;
        return text;
    };
    Random random(2);
    std::string bytes;
    while (bytes.size() < size) bytes += static_cast<char>(random());
    return {repeat("a"),  repeat(" "),    repeat("\n"),   repeat("7"),    repeat("!"),
            repeat("\xff"), repeat("\xf0\x9f\x98\x80"), repeat("word "), bytes};
}

std::span<const std::string_view> text_parts() {
    static constexpr std::string_view kParts[] = {
        "a", "b", "e", "Z", "s", "S", "t", "LL", "ab", "hello", " the", "The", "don't", "I'LL", "'", "'s", "'Re",
        "\xe2\x80\x99s", "7", "0", "123", "1234567", " ", "  ", "   ", "\n", "\r", "\r\n", "\n\n", "\t", "\v", "\f",
        "!", "/", "(", ".", "-", "_", "<s>", "<|end|>", "\x1c", "\x7f", std::string_view("\0", 1),
        // Letters with case, of no case, of titles; what folds to ASCII; letters of Unicode 17 and 18.
        "\xc3\xa9", "\xc3\x89", "\xc5\xbf", "\xe2\x84\xaa", "\xc4\xb0", "\xe1\xba\x9e", "\xd0\x96", "\xd0\xb6", "\xd1\x9d",
        "\xd1\xa0", "\xc7\x85", "\xca\xb0", "\xd7\x90", "\xe0\xb8\x81", "\xf0\x90\x90\x80", "\xf0\x90\x90\xa8",
        "\xf0\x96\xba\xa0", "\xf0\xbd\x80\x80",
        // Han and kana, and their neighbours in DeepSeek's ranges and in those known by their first bytes.
        "\xe4\xb8\xad", "\xe5\xad\x97", "\xe9\xbe\xa5", "\xe9\xbe\xa6", "\xe3\x90\x80", "\xe3\x82\xa2", "\xe3\x83\xbb",
        "\xe3\x83\xbc", "\xe3\x81\x80", "\xe3\x82\x99", "\xe3\x82\x9b", "\xeb\x82\x98", "\xef\xbf\xbd",
        // Numbers, white space, marks, symbols, format characters, private and unassigned ones.
        "\xd9\xa4", "\xc2\xbd", "\xe2\x85\xa7", "\xef\xbc\x95", "\xf0\x9d\x9f\x97", "\xc2\xa0", "\xc2\x85", "\xe1\x9a\x80",
        "\xe2\x80\x83", "\xe2\x80\xa8", "\xe3\x80\x80", "\xcc\x81", "\xcd\x85", "\xe0\xb8\xb4", "\xef\xb8\x8f",
        "\xe2\x80\x9c", "\xe2\x82\xac", "\xf0\x9f\x98\x80", "\xe2\x96\x81", "\xe2\x80\x8b", "\xe2\x80\x8d", "\xef\xbb\xbf",
        "\xee\x80\x80", "\xcd\xb8", "\xf4\x8f\xbf\xbf",
        // Damaged: lone, truncated, overlong, surrogates, beyond the last code point.
        "\xff", "\x80", "\xc3", "\xe4\xb8", "\xed\xa0\x80", "\xe0\x80\x80", "\xf0\x9f", "\xf0\x9f\x98", "\xc0\x80",
        "\xf4\x90\x80\x80",
        // Across the windows of 64 bytes and the border of short pieces.
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        "                                                                    ", "........................",
        "\xe5\xad\x97\xe5\xad\x97\xe5\xad\x97\xe5\xad\x97\xe5\xad\x97\xe5\xad\x97\xe5\xad\x97\xe5\xad\x97"};
    return kParts;
}

std::vector<std::string_view> views_of(const std::vector<std::string>& texts) {
    return {texts.begin(), texts.end()};
}

}  // namespace pylm::tests
