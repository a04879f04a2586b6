// Repeated substrings against a map of all windows, in texts made to repeat; cutting against erasing.
#include "dedup/substring.hpp"

#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "check.hpp"
#include "spans.hpp"
#include "text/arrow.hpp"

namespace pylm::tests {
namespace {

using namespace dedup;
using Texts = std::vector<std::string>;

std::string fibonacci(std::size_t size) {
    std::string a = "b";
    std::string b = "a";
    while (b.size() < size) a = std::exchange(b, b + a);
    return b.substr(0, size);
}

std::string thue_morse(std::size_t size) {
    std::string text(size, 'a');
    for (std::size_t i = 1; i < size; ++i) text[i] = static_cast<char>('a' + ((text[i / 2] - 'a') ^ (i & 1)));
    return text;
}

void check_lengths(const Texts& texts, const Texts& sources) {
    for (const std::size_t length : {1U, 2U, 3U, 5U, 8U, 13U, 16U, 17U, 31U, 64U, 100U, 300U}) {
        check_spans(texts, sources, length, 1, true);
    }
    check_spans(texts, sources, 7, 2, false);
    check_spans(texts, sources, 4, 4, false);
}

void check_random(Random& random) {
    for (std::size_t round = 0; round < 120; ++round) {
        const std::size_t num_symbols = 1 + random.below(4);
        Texts texts[2];
        std::string all;
        for (std::size_t i = 1 + random.below(12); i > 0; --i) {
            std::string text(random.below(50), 'a');
            for (char& symbol : text) symbol = static_cast<char>('a' + random.below(num_symbols));
            while (!all.empty() && random.below(3) != 0) {
                const std::string part = all.substr(random.below(all.size()), random.below(80));
                for (std::size_t copies = 1 + random.below(4); copies > 0; --copies) text += part;
            }
            all += text;
            texts[random.below(2)].push_back(text);
        }
        check_spans(texts[0], texts[1], 1 + random.below(round % 2 == 0 ? 12 : 60), 1 << random.below(3), true);
    }
}

// Groups of many members that differ close to their cores only.
void check_large_groups(Random& random) {
    Texts texts;
    const std::string core = random_words(random, 40).substr(0, 60);
    for (std::size_t i = 0; i < 60; ++i) {
        std::string text;
        for (std::size_t j = 0; j < 3; ++j) {
            text += std::string(random.below(30), static_cast<char>('a' + random.below(2))) + core.substr(random.below(3)) +
                    std::string(random.below(30), static_cast<char>('a' + random.below(2)));
        }
        texts.push_back(text);
    }
    const Texts sources(texts.begin(), texts.begin() + 20);
    for (const std::size_t length : {40U, 70U, 80U, 90U}) {
        check_spans(texts, sources, length, 1, false);
        check_spans(Texts(texts.begin() + 20, texts.end()), sources, length, 1, false);
    }
}

void check_cut() {
    const Texts texts = {"abcdef", "", "xyz"};
    std::vector<std::string_view> views = views_of(texts);
    views.push_back(arrow::null_text);
    const std::vector<std::int64_t> text = {0, 0, 2};
    const std::vector<std::int64_t> start = {0, 3, 0};
    const std::vector<std::int64_t> end = {1, 5, 3};
    const Ranges ranges{text, start, end};
    const std::vector<std::int64_t> offsets = cut_offsets(views, ranges, true);
    check(offsets == std::vector<std::int64_t>{0, 3, 3, 3, 3}, "offsets behind cuts");
    for (const unsigned num_threads : {1U, 2U}) {
        std::string rest(3, ' ');
        cut(views, ranges, offsets, rest, num_threads);
        check(rest == "bcf", "what cuts leave");
    }
    const std::vector<std::vector<std::int64_t>> wrong = {{-1, 0, 1}, {4, 0, 1}, {0, -1, 1}, {0, 1, 1}, {0, 2, 7}, {3, 0, 1}};
    for (const auto& span : wrong) {
        const std::span<const std::int64_t> all(span);
        check(throws<std::invalid_argument>([&] {
                  (void)cut_offsets(views, {all.first(1), all.subspan(1, 1), all.last(1)}, false);
              }),
              "a span outside of its text");
    }
    const std::vector<std::string_view> accents = {"a\xC3\xA9z"};
    const std::vector<std::int64_t> zero = {0};
    const std::vector<std::int64_t> two = {2};
    check(cut_offsets(accents, {zero, zero, two}, false) == std::vector<std::int64_t>{0, 2}, "a cut in bytes");
    check(throws<std::invalid_argument>([&] { (void)cut_offsets(accents, {zero, zero, two}, true); }), "a cut in a character");
    const std::vector<std::int64_t> same = {0, 0};
    for (const std::int64_t second : {0, 1}) {
        const std::vector<std::int64_t> from = {0, second};
        const std::vector<std::int64_t> to = {1, 2};
        check(throws<std::invalid_argument>([&] { (void)cut_offsets(views, {same, from, to}, false); }),
              "spans that overlap or touch");
    }
    check(throws<std::invalid_argument>([&] { (void)cut_offsets(views, {same, same, text}, false); }), "lists of two sizes");
}

void check_errors() {
    const std::vector<std::string_view> texts = {"abc"};
    for (const SubstringOptions& options :
         {SubstringOptions{.length = 0}, SubstringOptions{.length = std::size_t{1} << 31},
          SubstringOptions{.length = 1, .symbol_bytes = 3}, SubstringOptions{.length = 1, .symbol_bytes = 2},
          SubstringOptions{.length = 1, .symbol_bytes = 4, .on_characters = true}}) {
        check(throws<std::invalid_argument>([&] { (void)repeated_substrings(texts, options); }), "wrong options");
    }
}

}  // namespace

void test_substring() {
    Random random(23);
    check_lengths({}, {});
    check_lengths({""}, {"a"});
    check_lengths({"a", "", "a"}, {"", "b"});
    check_lengths({std::string(300, 'a'), "b" + std::string(120, 'a') + "c", std::string(99, 'a')}, {"aaaa"});
    check_lengths({fibonacci(700), fibonacci(300)}, {fibonacci(90)});
    check_lengths({thue_morse(600)}, {thue_morse(40)});
    std::string periods;
    for (std::size_t i = 0; i < 30; ++i) periods += std::string(i, 'a') + "b" + std::string(i % 7, 'c');
    check_lengths({periods, periods.substr(100), std::string(periods.rbegin(), periods.rend())}, {periods.substr(50, 90)});
    check_lengths(hostile_texts(), {"\xE6\xBC\xA2\xE5\xAD\x97"});
    check_lengths(Texts(40, random_words(random, 40)), Texts(20, random_words(random, 10)));
    check_lengths({"caf\xC3\xA9 caf\xC3\xA8", "\xC3\xA9\xC3\xA9\xC3\xA8", "\xA9\xA9\xA9\xA9\xA9\xA9"}, {"\xA9 \xC3\xA9"});
    check_random(random);
    check_large_groups(random);
    check_cut();
    check_errors();
}

}  // namespace pylm::tests
