// Parts of a collection, each on its own, and what they hold in common by keys: the spans of the whole collection.
#include "dedup/substring_stages.hpp"

#include <algorithm>
#include <map>
#include <set>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "check.hpp"

namespace pylm::tests {
namespace {

using namespace dedup;
using Texts = std::vector<std::string>;

Ranges ranges_of(const WindowRuns& runs) { return {runs.text, runs.begin, runs.end}; }

void append(WindowRuns& to, const WindowRuns& from, std::int64_t first_text) {
    for (std::size_t i = 0; i < from.text.size(); ++i) {
        to.text.push_back(from.text[i] + first_text);
        to.begin.push_back(from.begin[i]);
        to.end.push_back(from.end[i]);
    }
}

std::vector<char> windows_of(const WindowRuns& runs, std::size_t text, std::size_t size) {
    std::vector<char> is_in(size);
    for (std::size_t i = 0; i < runs.text.size(); ++i) {
        if (static_cast<std::size_t>(runs.text[i]) != text) continue;
        for (auto j = runs.begin[i]; j < runs.end[i]; ++j) is_in[static_cast<std::size_t>(j)] = 1;
    }
    return is_in;
}

// Every window that is not known is in one run, whose key is the same for equal windows.
void check_keys(const std::vector<std::string_view>& texts, std::size_t length, const WindowRuns& known,
                const std::vector<std::uint64_t>& divided, std::map<std::string_view, std::uint64_t>& key_of) {
    const KeyedRuns found = window_keys(texts, length, ranges_of(known), divided, 0);
    for (std::size_t i = 0; i < texts.size(); ++i) {
        if (texts[i].size() < length) continue;
        const std::size_t num_windows = texts[i].size() - length + 1;
        const std::vector<char> is_known = windows_of(known, i, num_windows);
        const std::vector<char> has_key = windows_of(found.windows, i, num_windows);
        for (std::size_t j = 0; j < num_windows; ++j) check(is_known[j] != 0 || has_key[j] != 0, "a window without key");
    }
    std::set<std::pair<std::int64_t, std::int64_t>> seen;
    for (std::size_t i = 0; i < found.key.size(); ++i) {
        const auto text = static_cast<std::size_t>(found.windows.text[i]);
        for (auto j = found.windows.begin[i]; j < found.windows.end[i]; ++j) {
            check(seen.insert({found.windows.text[i], j}).second, "a window with two keys");
            const auto entry = key_of.emplace(texts[text].substr(static_cast<std::size_t>(j), length), found.key[i]);
            check(entry.first->second == found.key[i], "equal windows with different keys");
        }
    }
}

void check_parts(const Texts& texts, std::size_t length, std::size_t num_parts) {
    const std::vector<std::string_view> all = views_of(texts);
    for (const bool first_stays : {true, false}) {
        const SubstringOptions options{.length = length, .first_stays = first_stays, .num_threads = 1};
        WindowRuns removed;
        std::vector<std::string> contexts;
        WindowRuns places;
        std::vector<std::uint64_t> divided;
        std::map<std::uint64_t, std::size_t> counts;
        for (const std::string_view text : all) {
            const std::vector<std::string_view> one = {text};
            for (const std::uint64_t key : window_keys(one, length, {}, {}, 0).key) ++counts[key];
        }
        for (const auto& [key, count] : counts) {
            if (count > 2) divided.push_back(key);
        }
        std::map<std::string_view, std::uint64_t> key_of;
        for (std::size_t part = 0; part < num_parts; ++part) {
            const std::size_t begin = part * all.size() / num_parts;
            const std::size_t end = (part + 1) * all.size() / num_parts;
            const std::vector<std::string_view> own(all.begin() + static_cast<std::ptrdiff_t>(begin),
                                                    all.begin() + static_cast<std::ptrdiff_t>(end));
            const RepeatedWindows found = repeated_windows(own, options);
            const WindowRuns& later = first_stays ? found.removed : found.later;
            append(removed, found.removed, static_cast<std::int64_t>(begin));
            check_keys(own, length, later, {}, key_of = {});
            check_keys(own, length, later, divided, key_of = {});
            const KeyedRuns keyed = window_keys(own, length, ranges_of(later), divided, 0);
            append(places, keyed.windows, static_cast<std::int64_t>(begin));
            const auto offsets = window_offsets(own, length, ranges_of(keyed.windows));
            std::string bytes(static_cast<std::size_t>(offsets.back()), ' ');
            copy_windows(own, ranges_of(keyed.windows), offsets, bytes);
            for (std::size_t i = 0; i < keyed.key.size(); ++i) {
                const auto from = static_cast<std::size_t>(offsets[i]);
                contexts.push_back(bytes.substr(from, static_cast<std::size_t>(offsets[i + 1]) - from));
            }
        }
        // Contexts of a text rise already, but for parts of one anchor.
        std::vector<std::size_t> order(contexts.size());
        for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
        std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
            return std::tie(places.text[a], places.begin[a]) < std::tie(places.text[b], places.begin[b]);
        });
        std::vector<std::string_view> views;
        for (const std::size_t i : order) views.push_back(contexts[i]);
        const WindowRuns hits = repeated_windows(views, options).removed;
        for (std::size_t i = 0; i < hits.text.size(); ++i) {
            const std::size_t context = order[static_cast<std::size_t>(hits.text[i])];
            removed.text.push_back(places.text[context]);
            removed.begin.push_back(places.begin[context] + hits.begin[i]);
            removed.end.push_back(places.begin[context] + hits.end[i]);
        }
        for (const bool on_characters : {true, false}) {
            SubstringOptions whole = options;
            whole.on_characters = on_characters;
            const Spans expected = repeated_substrings(all, whole);
            const Spans spans = spans_of_windows(all, length, ranges_of(removed), on_characters);
            check(spans.text == expected.text && spans.start == expected.start && spans.end == expected.end,
                  "spans of parts");
        }
    }
}

void check_errors() {
    const std::vector<std::string_view> texts = {"abcde", ""};
    const std::vector<std::int64_t> zero = {0};
    const auto fails = [&](std::int64_t text, std::int64_t begin, std::int64_t end) {
        const std::vector<std::int64_t> run[3] = {{text}, {begin}, {end}};
        const Ranges ranges{run[0], run[1], run[2]};
        check(throws<std::invalid_argument>([&] { (void)window_offsets(texts, 3, ranges); }), "runs to copy");
        check(throws<std::invalid_argument>([&] { (void)window_keys(texts, 3, ranges, {}, 0); }), "known runs");
        check(throws<std::invalid_argument>([&] { (void)spans_of_windows(texts, 3, ranges, false); }), "runs to cover");
    };
    fails(-1, 0, 1);
    fails(2, 0, 1);
    fails(1, 0, 1);
    fails(0, -1, 1);
    fails(0, 1, 1);
    fails(0, 2, 4);
    check(throws<std::invalid_argument>([&] { (void)window_offsets(texts, 3, {zero, zero, {}}); }), "lists of two sizes");
    check(throws<std::invalid_argument>([&] { (void)repeated_windows(texts, {.length = 0}); }), "no length");
    check(throws<std::invalid_argument>([&] { (void)window_keys(texts, 0, {}, {}, 0); }), "no length");
}

}  // namespace

void test_substring_stages() {
    Random random(31);
    std::string fibonacci = "ab";
    for (std::string last = "a"; fibonacci.size() < 300;) {
        std::string next = fibonacci + last;
        last = std::move(fibonacci);
        fibonacci = std::move(next);
    }
    Texts words(12, random_words(random, 30));
    for (std::string& text : words) text += random_words(random, 10);
    const std::string licence = random_words(random, 20);
    Texts licences;
    for (std::size_t i = 0; i < 20; ++i) {
        licences.push_back(random_words(random, random.below(6)) + licence + random_words(random, random.below(6)));
    }
    const std::vector<Texts> collections = {
        {},
        {""},
        {"a", "", "a"},
        {std::string(200, 'a'), "b" + std::string(120, 'a') + "c", std::string(99, 'a')},
        {fibonacci, fibonacci.substr(7, 200), "x" + fibonacci},
        hostile_texts(),
        words,
        licences,
    };
    for (const Texts& texts : collections) {
        for (const std::size_t length : {1U, 2U, 5U, 13U, 16U, 40U, 100U, 290U}) {
            for (const std::size_t num_parts : {1U, 2U, 5U}) check_parts(texts, length, num_parts);
        }
    }
    for (std::size_t round = 0; round < 60; ++round) {
        Texts texts;
        for (std::size_t i = random.below(9); i > 0; --i) {
            std::string text(random.below(60), 'a');
            for (char& symbol : text) symbol = static_cast<char>('a' + random.below(1 + round % 3));
            texts.push_back(text);
        }
        check_parts(texts, 1 + random.below(20), 1 + random.below(4));
    }
    check_errors();
}

}  // namespace pylm::tests
