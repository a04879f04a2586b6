// Words between white space and gathered ids against plain loops.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "check.hpp"
#include "text/spaced_words.hpp"
#include "text/unicode.hpp"
#include "tokenizer/gather_ids.hpp"

namespace pylm::tests {
namespace {

std::size_t count_plainly(std::string_view text) {
    std::size_t count = 0;
    bool after_space = true;
    for (std::size_t i = 0; i < text.size();) {
        const Decoded decoded = decode_utf8(text, i);
        const bool is_space =
            classify(decoded.point) == kSpace || (decoded.point >= 0x1C && decoded.point <= 0x1F);
        count += after_space && !is_space ? 1 : 0;
        after_space = is_space;
        i += decoded.size;
    }
    return count;
}

void test_words() {
    for (const std::string& text : hostile_texts())
        check(count_spaced_words(text) == count_plainly(text), "words of a hostile text");
    const std::vector<std::string> parts = {" ", "\n", "\x1c", "\x1f", "\x1b", "a", "bc", "\xc2\x85", "\xc2\xa0", "\xc2\xa1",
                                            "\xe1\x9a\x80", "\xe1\x9a\x81", "\xe2\x80\x80", "\xe2\x80\x8a", "\xe2\x80\x8b",
                                            "\xe2\x80\xa8", "\xe2\x80\xaf", "\xe2\x81\x9f", "\xe3\x80\x80", "\xe3\x80",
                                            "\xe2", "\xc2", "\xf0\x9f\x99\x82", "\xd0\xb6", "\xff", "long-ascii-word and another"};
    Random random(7);
    for (int round = 0; round < 2000; ++round) {
        const std::size_t num_kinds = 1 + random.below(parts.size());
        std::string text;
        for (std::size_t k = random.below(200); k > 0; --k) text += parts[random.below(num_kinds)];
        check(count_spaced_words(text) == count_plainly(text), "words of a random text");
    }
}

void test_gathering() {
    Random random(8);
    const std::size_t vocab_size = 1 << 16;
    std::vector<TokenId> ids(5000);
    for (TokenId& id : ids) id = static_cast<TokenId>(random.below(vocab_size));
    std::vector<std::int64_t> offsets = {0};
    while (static_cast<std::size_t>(offsets.back()) < ids.size()) {
        const std::size_t end = static_cast<std::size_t>(offsets.back()) + random.below(50);
        offsets.push_back(static_cast<std::int64_t>(std::min(ids.size(), end)));
    }
    std::vector<std::int64_t> docs;
    for (std::size_t d = 0; d + 1 < offsets.size(); ++d)
        if (random.below(3) == 0) docs.push_back(static_cast<std::int64_t>(d));
    std::vector<TokenId> expected;
    std::vector<std::int64_t> expected_counts(vocab_size);
    for (const std::int64_t doc : docs) {
        const auto d = static_cast<std::size_t>(doc);
        for (auto i = static_cast<std::size_t>(offsets[d]); i < static_cast<std::size_t>(offsets[d + 1]); ++i) {
            expected.push_back(ids[i]);
            ++expected_counts[ids[i]];
        }
    }
    check(count_ids(ids, offsets, docs) == expected.size(), "number of gathered ids");
    std::vector<std::int64_t> counts(vocab_size);
    std::vector<std::uint16_t> narrow(expected.size());
    gather_ids(ids, offsets, docs, counts, narrow.data());
    check(std::vector<TokenId>(narrow.begin(), narrow.end()) == expected, "gathered ids as uint16");
    check(counts == expected_counts, "counts of ids");
    std::vector<std::uint32_t> wide(expected.size());
    gather_ids(ids, offsets, docs, counts, wide.data());
    check(wide == expected, "gathered ids as uint32");
}

void test_refusals() {
    const std::vector<TokenId> ids = {1, 2, 3};
    const auto refuses = [&](const std::vector<std::int64_t>& offsets, const std::vector<std::int64_t>& docs) {
        return throws<std::invalid_argument>([&] { (void)count_ids(ids, offsets, docs); });
    };
    check(refuses({}, {0}) && refuses({0}, {0}) && refuses({0, 3}, {1}) && refuses({0, 3}, {-1}),
          "documents that are not there");
    check(refuses({0, 4}, {0}) && refuses({2, 1}, {0}) && refuses({-1, 1}, {0}), "bad offsets");
    std::vector<std::int64_t> counts(3);
    std::vector<std::uint32_t> out(3);
    check(throws<std::invalid_argument>([&] {
              const std::vector<std::int64_t> offsets = {0, 3};
              const std::vector<std::int64_t> docs = {0};
              gather_ids(ids, offsets, docs, counts, out.data());
          }),
          "an id beyond the vocabulary");
}

}  // namespace

void test_shards() {
    test_words();
    test_gathering();
    test_refusals();
}

}  // namespace pylm::tests
