// Merges against the rule itself at every level, with so many of them that pairs share places in the table.
#include "tokenizer/merges.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <limits>
#include <map>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "check.hpp"

namespace pylm::tests {
namespace {

using Ids = std::vector<TokenId>;

constexpr std::string_view kLetters = "abcdefghijklmnop";

struct Model {
    std::vector<std::string> tokens;
    std::vector<MergeRule> rules;
    std::array<TokenId, 256> bytes;
};

// All pairs of letters, all pairs of what these give, and as many of longer tokens; ranks in random order.
Model make_model(Random& random) {
    Model model;
    for (std::size_t byte = 0; byte < 256; ++byte) {
        model.bytes[byte] = static_cast<TokenId>(byte);
        model.tokens.emplace_back(1, static_cast<char>(byte));
    }
    const auto add = [&](TokenId left, TokenId right) {
        model.rules.push_back({left, right, static_cast<TokenId>(model.tokens.size()), 0});
        model.tokens.push_back(model.tokens[left] + model.tokens[right]);
    };
    Ids some;
    for (const char letter : kLetters) some.push_back(static_cast<std::uint8_t>(letter));
    for (const TokenId left : Ids(some)) {
        for (const char right : kLetters) {
            some.push_back(static_cast<TokenId>(model.tokens.size()));
            add(left, static_cast<std::uint8_t>(right));
        }
    }
    for (const TokenId left : some) {
        for (const TokenId right : some) {
            if (std::max(left, right) > 255) add(left, right);
        }
    }
    for (std::size_t i = 0, num = model.tokens.size(); i < num; ++i)
        add(static_cast<TokenId>(random.below(num)), static_cast<TokenId>(random.below(num)));
    for (std::size_t i = 0; i < model.rules.size(); ++i) {
        model.rules[i].rank = static_cast<std::uint32_t>(i);
        std::swap(model.rules[i].rank, model.rules[random.below(i + 1)].rank);
    }
    std::ranges::sort(model.rules, {}, &MergeRule::rank);
    return model;
}

class Slow {
public:
    explicit Slow(const std::vector<MergeRule>& rules) {
        for (const MergeRule& rule : rules) rules_[{rule.left, rule.right}] = {rule.rank, rule.merged};
    }

    Ids merge(Ids ids) const {
        for (;;) {
            auto best = rules_.end();
            std::size_t place = 0;
            for (std::size_t i = 0; i + 1 < ids.size(); ++i) {
                const auto found = rules_.find({ids[i], ids[i + 1]});
                if (found == rules_.end() || (best != rules_.end() && found->second >= best->second)) continue;
                best = found;
                place = i;
            }
            if (best == rules_.end()) return ids;
            ids[place] = best->second.second;
            ids.erase(ids.begin() + static_cast<std::ptrdiff_t>(place) + 1);
        }
    }

private:
    std::map<std::pair<TokenId, TokenId>, std::pair<std::uint32_t, TokenId>> rules_;  // to rank and result
};

void check_rows(const MergeTable& table, const Model& model, Random& random, std::size_t num_rows) {
    const Slow slow(model.rules);
    std::vector<std::string> texts(num_rows);
    std::vector<Ids> expected, from_bytes(num_rows), from_ids;
    std::vector<MergeTable::Row> rows;
    for (std::size_t i = 0; i < num_rows; ++i) {
        const std::size_t size = 1 + (i < 300 ? i : random.below(MergeTable::Row::kMaxSize));
        for (std::size_t k = 0; k < size; ++k) texts[i] += kLetters[random.below(random.below(kLetters.size()) + 1)];
        Ids ids;
        for (const char c : texts[i]) ids.push_back(static_cast<std::uint8_t>(c));
        from_ids.push_back(ids);
        expected.push_back(slow.merge(ids));
        from_bytes[i].resize(size);
        from_bytes[i].resize(table.apply_bytes(texts[i], from_bytes[i].data()));
        check(from_bytes[i] == expected.back(), "a row of bytes is merged by the rule");
        ids.resize(table.apply(ids));
        check(ids == expected.back(), "a row of symbols is merged by the rule");
    }
    for (const SimdLevel level : simd_levels()) {
        std::vector<Ids> symbols = from_ids;
        rows.clear();
        for (std::size_t i = 0; i < num_rows; ++i) {
            if (texts[i].size() > MergeTable::Row::kMaxSize) continue;
            from_bytes[i].assign(texts[i].size(), 0);
            rows.push_back({texts[i].data(), texts[i].size(), from_bytes[i].data()});
            rows.push_back({nullptr, symbols[i].size(), symbols[i].data()});
        }
        // All at once, or few, of which some are merged side by side and some are not.
        for (std::size_t first = 0, size = 1; first < rows.size(); first += size, size = size < 300 ? size + 1 : 5'000)
            table.apply(std::span(rows).subspan(first, std::min(size, rows.size() - first)), level);
        for (std::size_t i = 0, row = 0; i < num_rows; ++i) {
            if (texts[i].size() > MergeTable::Row::kMaxSize) continue;
            for (int kind = 0; kind < 2; ++kind, ++row)
                check(std::ranges::equal(std::span(rows[row].ids, rows[row].size), expected[i]),
                      "so are rows together");
        }
    }
}

// Each pair alone: some have the place of another in the table.
void check_pairs(const MergeTable& table, const Model& model, Random& random) {
    std::map<std::pair<TokenId, TokenId>, TokenId> merged;
    for (const MergeRule& rule : model.rules) merged[{rule.left, rule.right}] = rule.merged;
    for (const auto& [pair, result] : merged) {
        Ids ids{pair.first, pair.second};
        check(table.apply(ids) == 1 && ids[0] == result, "a pair becomes its token");
    }
    for (std::size_t i = 0; i < 1'000'000; ++i) {
        Ids ids{static_cast<TokenId>(random.below(model.tokens.size())),
                static_cast<TokenId>(random.below(model.tokens.size()))};
        const bool is_rule = merged.contains({ids[0], ids[1]});
        check((table.apply(ids) == 1) == is_rule, "another pair stays");
    }
}

void check_equal_pairs() {
    Model model;
    model.tokens = {"a", "b", "ab", "ba"};
    model.rules = {{0, 1, 2, 5}, {1, 0, 3, 3}, {0, 1, 2, 1}};
    const MergeTable table(model.tokens, model.rules);
    Ids ids{1, 0, 1};
    ids.resize(table.apply(ids));
    check(ids == Ids{3, 1}, "of equal pairs the last one counts");
    model.rules[1].rank = 1;
    check(throws<std::invalid_argument>([&] { (void)MergeTable(model.tokens, model.rules); }),
          "a rank with two results is refused");
}

}  // namespace

void test_merges() {
    Random random(1);
    const Model model = make_model(random);
    MergeTable table(model.tokens, std::vector(model.rules.rbegin(), model.rules.rend()));
    table.set_bytes(model.bytes);
    check_rows(table, model, random, 20'000);
    check_pairs(table, model, random);
    check_equal_pairs();
}

}  // namespace pylm::tests
