// Deduplication of hostile texts: against slow versions, for every scheme, with any number of threads.
#include <algorithm>
#include <cstddef>
#include <map>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "check.hpp"
#include "dedup/exact.hpp"
#include "dedup/lsh.hpp"
#include "dedup/minhash.hpp"
#include "dedup/near.hpp"
#include "dedup/normalize.hpp"
#include "dedup/prefix_index.hpp"
#include "dedup/shingle.hpp"
#include "text/arrow.hpp"

namespace pylm::tests {
namespace {

using namespace dedup;

struct Setting {
    Scheme scheme;
    ShingleKind kind;
};

const std::vector<Setting> kSettings = {
    {Scheme::kFast, ShingleKind::kWord},         {Scheme::kFast, ShingleKind::kCharacter},
    {Scheme::kClassic, ShingleKind::kWord},      {Scheme::kClassic, ShingleKind::kCharacter},
    {Scheme::kFast, ShingleKind::kToken},        {Scheme::kClassic, ShingleKind::kToken},
    {Scheme::kTextDedup, ShingleKind::kJoined32}, {Scheme::kDatatrove, ShingleKind::kJoined64},
};

MinHasher make_hasher(Scheme scheme, std::size_t num_perm, bool wide = false,
                      SimdLevel level = best_simd_level()) {
    Permutations given;
    Random random(4);
    const bool foreign = scheme == Scheme::kTextDedup || scheme == Scheme::kDatatrove;
    for (std::size_t i = 0; foreign && i < num_perm; ++i) {
        given.multipliers.push_back(1 + random() % ((std::uint64_t{1} << 61) - 2));
        given.increments.push_back(random() % ((std::uint64_t{1} << 61) - 1));
    }
    return MinHasher(scheme, num_perm, 42, std::move(given), wide, level);
}

std::vector<std::string_view> corpus_of(const std::vector<std::string>& texts) {
    std::vector<std::string_view> views = views_of(texts);
    views.push_back(arrow::null_text);
    views.push_back(arrow::null_text);
    return views;
}

void check_exact(const std::vector<std::string_view>& texts) {
    const auto first = exact_duplicates(texts, 1);
    check(first == exact_duplicates(texts, 4), "equal texts do not depend on the threads");
    std::map<std::string_view, std::int64_t> seen;
    for (std::size_t i = 0; i < texts.size(); ++i) {
        const auto index = static_cast<std::int64_t>(i);
        const auto expected = arrow::is_null(texts[i]) ? index : seen.emplace(texts[i], index).first->second;
        check(first[i] == expected, "the first equal text stands for all");
    }
    check(exact_duplicates({}, 4).empty(), "no texts, no duplicates");
}

void check_signatures(const Setting& setting, const std::vector<std::string_view>& texts) {
    for (const std::size_t num_perm : {std::size_t{1}, std::size_t{7}, std::size_t{64}}) {
        const MinHasher hasher = make_hasher(setting.scheme, num_perm);
        Shingler shingler({setting.kind, 3, 42});
        MinHasher::Scratch scratch;
        std::vector<std::uint64_t> signature(num_perm);
        std::vector<std::uint64_t> again(num_perm);
        for (const std::string_view text : texts) {
            const auto view = shingler(text);
            std::vector<std::uint64_t> shingles(view.begin(), view.end());
            hasher.sign(shingles, signature, scratch);
            const std::uint64_t most = hasher.wide() ? (std::uint64_t{1} << 61) - 2 : 0xFFFFFFFF;
            for (const std::uint64_t value : signature) {
                check(shingles.empty() ? value == hasher.no_value() : value <= most, "values fit their type");
            }
            const auto distinct = shingler.distinct(text);
            check(std::set<std::uint64_t>(shingles.begin(), shingles.end()) ==
                      std::set<std::uint64_t>(distinct.begin(), distinct.end()),
                  "distinct shingles are the shingles");
            hasher.sign(distinct, again, scratch);
            check(signature == again, "repeats and order of the shingles do not matter");
            for (const bool wide : {false, true}) {
                make_hasher(setting.scheme, num_perm, wide, SimdLevel::kNone).sign(distinct, signature, scratch);
                for (const SimdLevel level : simd_levels()) {
                    check(std::ranges::equal(Shingler({setting.kind, 3, 42}, level)(text), shingles),
                          "shingles do not depend on the level");
                    make_hasher(setting.scheme, num_perm, wide, level).sign(distinct, again, scratch);
                    check(signature == again, "signatures do not depend on the level");
                }
            }
        }
    }
}

// Values at the edges of the field, which no text is likely to reach.
void check_arithmetic() {
    constexpr std::uint64_t prime = (std::uint64_t{1} << 61) - 1;
    MinHasher::Scratch scratch;
    for (const std::uint64_t a : {std::uint64_t{1}, std::uint64_t{2}, prime - 1}) {
        for (const std::uint64_t b : {std::uint64_t{0}, std::uint64_t{1}, prime - 1}) {
            for (const std::uint64_t x : {std::uint64_t{0}, prime - 1, prime, prime + 1, ~std::uint64_t{0}}) {
                std::vector<std::uint64_t> value(1);
                MinHasher(Scheme::kDatatrove, 1, 0, {{a}, {b}}).sign(std::span(&x, 1), value, scratch);
                check(value[0] == (a * x + b) % prime, "datatrove: remainder of the wrapped sum");
                MinHasher(Scheme::kTextDedup, 1, 0, {{a}, {b}}).sign(std::span(&x, 1), value, scratch);
                check(value[0] == ((a * x + b) % prime & 0xFFFFFFFF), "text-dedup: its low 32 bits");
            }
        }
    }
}

void check_near(const Setting& setting, const std::vector<std::string_view>& texts, bool verify, Keep keep) {
    const MinHasher hasher = make_hasher(setting.scheme, 48);
    NearOptions options{.rule = {setting.kind, 3, 42},
                        .bands = 16,
                        .rows = 3,
                        .threshold = 0.5,
                        .verify = verify,
                        .keep = keep,
                        .num_threads = 1};
    const NearDuplicates one = near_duplicates(texts, texts, hasher, options);
    options.num_threads = 4;
    const NearDuplicates four = near_duplicates(texts, texts, hasher, options);
    check(one.representative == four.representative && one.similarity == four.similarity,
          "clusters do not depend on the threads");
    Shingler shingler(options.rule);
    const auto set_of = [&](std::size_t i) {
        const auto shingles = shingler.distinct(texts[i]);
        return std::vector<std::uint64_t>(shingles.begin(), shingles.end());
    };
    for (std::size_t i = 0; i < texts.size(); ++i) {
        const auto kept = static_cast<std::size_t>(one.representative[i]);
        check(one.representative[kept] == one.representative[i], "a kept text stands for itself");
        if (kept == i) continue;
        check(!arrow::is_null(texts[i]), "a null duplicates nothing");
        check(keep == Keep::kFirst ? kept < i : texts[kept].size() >= texts[i].size(),
              "the preferred text is kept");
        if (!verify) continue;
        const auto a = set_of(i);
        const auto b = set_of(kept);
        std::vector<std::uint64_t> both;
        std::set_intersection(a.begin(), a.end(), b.begin(), b.end(), std::back_inserter(both));
        const double expected =
            static_cast<double>(both.size()) / static_cast<double>(a.size() + b.size() - both.size());
        check(one.similarity[i] == expected && expected >= options.threshold,
              "removed texts match the kept one");
        check(jaccard(a, b, 0.5) == expected && jaccard(b, a, 0.1) == expected,
              "the threshold does not change a match");
    }
}

void check_errors() {
    const MinHasher hasher = make_hasher(Scheme::kFast, 8);
    const std::vector<std::string_view> texts = {"a b", "c d"};
    const auto refuses = [&](std::size_t bands, std::size_t rows,
                             std::span<const std::string_view> shingled) {
        const NearOptions options{.rule = {}, .bands = bands, .rows = rows, .threshold = 0.5};
        return throws<std::invalid_argument>(
            [&] { (void)near_duplicates(texts, shingled, hasher, options); });
    };
    check(refuses(0, 1, texts) && refuses(1, 0, texts) && refuses(3, 3, texts), "bands and rows must fit");
    check(refuses(2, 2, std::span(texts).first(1)), "one normalised form a text");
    const NearOptions unranked{.rule = {}, .bands = 2, .rows = 2, .threshold = 0.5, .keep = Keep::kPriority};
    check(throws<std::invalid_argument>([&] { (void)near_duplicates(texts, texts, hasher, unranked); }),
          "one priority a text");
    check(throws<std::invalid_argument>([] { CharacterTable({CharacterTable::kReplace}, {}, false); }),
          "a replacement is needed");
    check(throws<std::invalid_argument>([] { Shingler({ShingleKind::kWord, 0, 0}); }), "ngram 0 is refused");
    check(throws<std::invalid_argument>([] { MinHasher(Scheme::kFast, 0, 1); }), "num_perm 0 is refused");
    check(throws<std::invalid_argument>([] { MinHasher(Scheme::kDatatrove, 4, 1); }),
          "missing permutations are refused");
}

// Sets of three kinds: copies of templates with a few other members, members of few, members of many.
std::vector<std::vector<std::uint64_t>> random_sets(Random& random, std::size_t count) {
    std::vector<std::uint64_t> frequent;
    for (std::size_t i = 0; i < 90; ++i) frequent.push_back(random());
    std::vector<std::vector<std::uint64_t>> sets;
    for (std::size_t i = 0; i < count; ++i) {
        std::set<std::uint64_t> set;
        if (i % 3 == 0) {
            set.insert(frequent.begin(), frequent.begin() + static_cast<std::ptrdiff_t>(random.below(90)));
            for (std::size_t k = random.below(30); k > 0; --k) set.insert(random());
        } else {
            const std::uint64_t most = i % 3 == 1 ? 12 : 100'000;
            for (std::size_t k = random.below(40); k > 0; --k) set.insert(random.below(most));
        }
        sets.emplace_back(set.begin(), set.end());
    }
    return sets;
}

// No set that reaches the threshold is missed, whether it was there when the index was built or not.
void check_prefix_index() {
    Random random(9);
    const auto sets = random_sets(random, 300);
    for (const double threshold : {0.01, 0.3, 0.5, 0.75, 0.8, 0.95, 1.0}) {
        PrefixIndex index;
        check(index.is_empty(), "an index is empty at first");
        index.build(std::span(sets).first(100), threshold);
        for (std::size_t i = 100; i < 200; ++i) index.add(sets[i]);
        for (const auto& set : sets) {
            std::set<std::size_t> found;
            index.find(set, [&](std::uint32_t number) { found.insert(number); });
            for (std::size_t i = 0; i < 200; ++i) {
                const double similarity = jaccard(sets[i], set, 0);
                check(similarity < threshold || similarity == 0 || found.contains(i), "a similar set is found");
            }
        }
    }
    // What the index is for: sets that share three quarters of their members, and none of the others.
    std::vector<std::vector<std::uint64_t>> filled;
    for (std::size_t i = 0; i < 1000; ++i) {
        filled.emplace_back();
        for (std::uint64_t k = 0; k < 87; ++k) filled.back().push_back(k * k * k);
        for (std::size_t k = 0; k < 13; ++k) filled.back().push_back(random() | std::uint64_t{1} << 63);
        std::sort(filled.back().begin(), filled.back().end());
    }
    PrefixIndex index;
    index.build(filled, 0.8);
    std::size_t visited = 0;
    for (const auto& set : filled) index.find(set, [&](std::uint32_t) { ++visited; });
    check(visited < 20 * filled.size(), "templates that are filled in are told apart");
}

}  // namespace

void test_dedup() {
    const std::vector<std::string> hostile = hostile_texts();
    const std::vector<std::string> huge = huge_texts(1 << 18);
    std::vector<std::string> many;  // several blocks: a few templates with single words changed
    Random random(5);
    std::vector<std::string> templates;
    for (std::size_t i = 0; i < 20; ++i) templates.push_back(random_words(random, 40));
    for (std::size_t i = 0; i < 1000; ++i) {
        std::string text = templates[random.below(templates.size())];
        for (std::size_t changes = random.below(8); changes > 0; --changes)
            text[random.below(text.size())] = 'x';
        many.push_back(std::move(text));
    }
    check_exact(corpus_of(hostile));
    check_exact(corpus_of(many));
    check_exact(std::vector<std::string_view>(20'000, hostile.back()));
    for (const Setting& setting : kSettings) {
        check_signatures(setting, corpus_of(hostile));
        for (const bool verify : {true, false}) {
            check_near(setting, corpus_of(hostile), verify, Keep::kLongest);
            check_near(setting, corpus_of(many), verify, Keep::kFirst);
        }
        check_near(setting, {}, true, Keep::kFirst);
        check_near(setting, std::vector<std::string_view>(2'000, many[0]), true, Keep::kFirst);
    }
    check_signatures(kSettings[0], corpus_of(huge));
    check_near(kSettings[0], corpus_of(huge), true, Keep::kFirst);
    check_near(kSettings[1], corpus_of(huge), true, Keep::kFirst);
    check_arithmetic();
    check_prefix_index();
    check_errors();
}

}  // namespace pylm::tests
