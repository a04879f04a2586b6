// Suffix arrays and common prefixes against sorting and counting, for every type of symbol and index.
#include "dedup/suffix_array.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "check.hpp"

namespace pylm::tests {
namespace {

template <typename Symbol, typename Index>
std::vector<Index> sorted_suffixes(const std::vector<Symbol>& text) {
    std::vector<Index> order(text.size());
    std::iota(order.begin(), order.end(), Index{0});
    std::sort(order.begin(), order.end(), [&](Index a, Index b) {
        // Not lexicographical_compare: sanitizers take all of what it hands to memcmp for read.
        const auto longer = text.begin() + std::min(a, b);
        const auto [x, y] = std::mismatch(text.begin() + std::max(a, b), text.end(), longer);
        return x == text.end() ? a > b : (a > b ? *x < *y : *y < *x);
    });
    return order;
}

template <typename Symbol, typename Index>
std::vector<Index> common_prefixes(const std::vector<Symbol>& text, const std::vector<Index>& order) {
    std::vector<Index> lcp(text.size());
    for (std::size_t i = 1; i < text.size(); ++i) {
        const auto begin = text.begin() + order[i];
        const auto end = std::mismatch(begin, text.end(), text.begin() + order[i - 1], text.end()).first;
        lcp[i] = static_cast<Index>(end - begin);
    }
    return lcp;
}

template <typename Symbol, typename Index>
std::vector<Index> check_text(const std::vector<Symbol>& text, bool is_short = true) {
    std::vector<Index> order(text.size());
    std::vector<Index> lcp(text.size());
    for (const unsigned num_threads : {1U, 3U}) {
        std::fill(order.begin(), order.end(), Index{-1});
        std::fill(lcp.begin(), lcp.end(), Index{-1});
        dedup::suffix_array<Symbol, Index>(text, order, num_threads);
        dedup::lcp_array<Symbol, Index>(text, order, lcp, num_threads);
        if (is_short) check(order == sorted_suffixes<Symbol, Index>(text), "suffixes in their order");
        check(lcp == common_prefixes<Symbol, Index>(text, order), "common prefixes of neighbours");
    }
    return order;
}

void check_all(const std::vector<std::uint8_t>& bytes) {
    check_text<std::uint8_t, std::int32_t>(bytes);
    check_text<std::uint8_t, std::int64_t>(bytes);
    // Symbols in the same order, which large values and large distances do not change.
    std::vector<std::uint16_t> pairs(bytes.begin(), bytes.end());
    for (auto& symbol : pairs) symbol = static_cast<std::uint16_t>(symbol * 257);
    check_text<std::uint16_t, std::int32_t>(pairs);
    check_text<std::uint16_t, std::int64_t>(pairs);
    std::vector<std::uint32_t> ids(bytes.begin(), bytes.end());
    check_text<std::uint32_t, std::int32_t>(ids);
    check_text<std::uint32_t, std::int64_t>(ids);
    for (auto& symbol : ids) symbol *= 0x01010101;
    check_text<std::uint32_t, std::int32_t>(ids);
    check_text<std::uint32_t, std::int64_t>(ids);
}

std::vector<std::uint8_t> bytes_of(const std::string& text) { return {text.begin(), text.end()}; }

void check_errors() {
    const std::vector<std::uint8_t> text(4);
    std::vector<std::int32_t> order(3);
    std::vector<std::int32_t> lcp(4);
    check(throws<std::invalid_argument>(
              [&] { dedup::suffix_array<std::uint8_t, std::int32_t>(text, order, 1); }),
          "a result of another size");
    for (const std::int32_t entry : {-1, 4}) {
        order = {0, 1, 2, entry};
        check(throws<std::invalid_argument>([&] {
                  dedup::lcp_array<std::uint8_t, std::int32_t>(text, order, lcp, 2);
              }),
              "a suffix outside of the text");
    }
    order = {3, 3, 0, 0};  // no suffix array: any result, but no crash
    dedup::lcp_array<std::uint8_t, std::int32_t>(text, order, lcp, 2);
}

}  // namespace

void test_suffix_array() {
    for (const char* text : {"", "a", "aa", "ab", "ba", "banana", "mississippi", "abab", "\xff\xff\xfe\xff"}) {
        check_all(bytes_of(text));
    }
    std::string a = "b";
    for (std::string b = "a"; b.size() < 700; a.swap(b)) {
        check_all(bytes_of(b));
        a = b + a;
    }
    check_all(std::vector<std::uint8_t>(500, 255));
    Random random(11);
    for (std::size_t round = 0; round < 60; ++round) {
        const std::size_t num_symbols = round % 5 + 1;
        std::vector<std::uint8_t> text(random.below(round % 10 == 0 ? 400 : 60));
        for (auto& symbol : text) {
            symbol = static_cast<std::uint8_t>(random.below(num_symbols));
            if (random.below(8) == 0) symbol = static_cast<std::uint8_t>(255 - symbol);
        }
        check_all(text);
    }
    for (const std::string& text : hostile_texts()) check_all(bytes_of(text.substr(0, 400)));
    // Large enough for every way in which pieces are named, sorted and shared among threads.
    check_text<std::uint8_t, std::int32_t>(bytes_of(random_words(random, 60'000)));
    std::vector<std::uint8_t> noise(300'000);
    for (auto& symbol : noise) symbol = static_cast<std::uint8_t>(random());
    check_text<std::uint8_t, std::int32_t>(noise);
    // Two long pieces that differ at their ends only.
    std::string runs;
    for (const char last : {'c', 'd', 'c'}) runs += "b" + std::string(5'000, 'a') + last;
    check(check_text<std::uint8_t, std::int32_t>(bytes_of(runs), false) ==
              [&] {
                  const std::vector<std::uint8_t> bytes = bytes_of(runs);
                  const std::vector<std::uint16_t> pairs(bytes.begin(), bytes.end());
                  return check_text<std::uint16_t, std::int32_t>(pairs, false);
              }(),
          "long pieces as bytes and as pairs of bytes");
    check_errors();
}

}  // namespace pylm::tests
