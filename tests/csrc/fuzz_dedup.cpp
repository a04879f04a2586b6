// Shingles at every level are those of the rule written slowly; signatures do not depend on the level, nor
// clusters on the threads; what is removed resembles what is kept; parts lie where they say.
#include <algorithm>
#include <set>
#include <vector>

#include "dedup/minhash.hpp"
#include "dedup/near.hpp"
#include "dedup/normalize.hpp"
#include "dedup/parts.hpp"
#include "dedup/shingle.hpp"
#include "fuzz_input.hpp"
#include "text/words.hpp"

namespace {

using namespace pylm;
using namespace pylm::dedup;
using tests::check;

using Hashes = std::vector<std::uint64_t>;

// Hashes of the words of a text, character by character.
Hashes slow_words(std::string_view text) {
    Hashes hashes;
    std::string word;
    const auto end_word = [&] {
        if (!word.empty()) hashes.push_back(words::hash_word(word.data(), word.size(), word.data() + word.size()));
        word.clear();
    };
    for (std::size_t i = 0; i < text.size();) {
        const Decoded decoded = decode_utf8(text, i);
        i += decoded.size;
        const std::uint8_t flags = words::flags(decoded.point);
        if ((flags & words::kWord) == 0 || (flags & words::kUnspaced) != 0) end_word();
        if ((flags & words::kWord) == 0) continue;
        words::append_utf8(words::lower(decoded.point), word);
        if ((flags & words::kUnspaced) != 0) end_word();
    }
    end_word();
    return hashes;
}

Hashes slow_shingles(std::string_view text, std::size_t ngram) {
    const Hashes items = slow_words(text);
    Hashes shingles;
    if (items.empty()) return shingles;
    const std::size_t n = std::min(ngram, items.size());
    for (std::size_t i = 0; i + n <= items.size(); ++i) {
        std::uint64_t value = 0;
        for (std::size_t k = 0; k < n; ++k) value = value * 0xA24BAED4963EE407ULL + items[i + k];
        shingles.push_back(value);
    }
    return shingles;
}

double slow_jaccard(std::string_view one, std::string_view other, std::size_t ngram) {
    const Hashes a = slow_shingles(one, ngram);
    const Hashes b = slow_shingles(other, ngram);
    const std::set<std::uint64_t> left(a.begin(), a.end());
    std::set<std::uint64_t> all(b.begin(), b.end());
    const auto common = std::ranges::count_if(left, [&](std::uint64_t x) { return all.contains(x); });
    all.insert(left.begin(), left.end());
    return all.empty() ? 0 : static_cast<double>(common) / static_cast<double>(all.size());
}

void check_text(std::string_view text, std::size_t ngram, std::size_t num_perm, bool wide) {
    const Hashes expected = slow_shingles(text, ngram);
    const std::set<std::uint64_t> distinct(expected.begin(), expected.end());
    MinHasher::Scratch scratch;
    Hashes signature(num_perm), first(num_perm);
    MinHasher(Scheme::kFast, num_perm, 1, {}, wide, SimdLevel::kNone).sign(expected, first, scratch);
    for (const SimdLevel level : simd_levels()) {
        Shingler shingler({ShingleKind::kWord, ngram, 0}, level);
        const auto shingles = shingler(text);
        check(std::ranges::equal(shingles, expected), "shingles are those of the rule");
        const MinHasher hasher(Scheme::kFast, num_perm, 1, {}, wide, level);
        hasher.sign(shingles, signature, scratch);
        check(signature == first, "signatures do not depend on the level");
        check(std::ranges::equal(shingler.distinct(text), distinct), "distinct shingles ascend");
        Shingler(ShingleRule{ShingleKind::kCharacter, ngram, 0}, level)(text);
        Shingler(ShingleRule{ShingleKind::kToken, ngram, 0}, level)(text);
    }
}

void check_clusters(std::span<const std::string_view> texts, std::size_t ngram, bool verify) {
    const MinHasher hasher(Scheme::kFast, 16, 1);
    std::vector<std::int64_t> priority;
    for (std::size_t i = 0; i < texts.size(); ++i) priority.push_back(static_cast<std::int64_t>(i * 7 % 5));
    for (const Keep keep : {Keep::kFirst, Keep::kLongest, Keep::kPriority}) {
        NearOptions options{.rule = {ShingleKind::kWord, ngram, 0},
                            .bands = 8,
                            .rows = 2,
                            .threshold = 0.5,
                            .verify = verify,
                            .keep = keep,
                            .priority = priority,
                            .num_threads = 1};
        const NearDuplicates one = near_duplicates(texts, texts, hasher, options);
        options.num_threads = 3;
        const NearDuplicates three = near_duplicates(texts, texts, hasher, options);
        check(one.representative == three.representative && one.similarity == three.similarity,
              "clusters do not depend on the threads");
        for (std::size_t i = 0; i < texts.size(); ++i) {
            const auto kept = static_cast<std::size_t>(one.representative[i]);
            check(one.representative[kept] == one.representative[i], "a kept text stands for itself");
            if (kept == i) continue;
            check(!verify || one.similarity[i] >= 0.5, "what goes resembles what stays");
            check(!verify || one.similarity[i] == slow_jaccard(texts[i], texts[kept], ngram), "as much as is said");
            check(keep != Keep::kFirst || kept < i, "the first stays");
            check(keep != Keep::kLongest || texts[kept].size() >= texts[i].size(), "the longest stays");
            check(keep != Keep::kPriority || priority[kept] >= priority[i], "the preferred one stays");
        }
    }
}

void check_parts(std::span<const std::string_view> texts) {
    for (const Parts& parts : {split_lines(texts), split_paragraphs(texts)}) {
        for (std::size_t i = 0; i < parts.views.size(); ++i) {
            const auto start = static_cast<std::size_t>(parts.start[i]);
            const auto end = static_cast<std::size_t>(parts.end[i]);
            const std::string_view text = texts[static_cast<std::size_t>(parts.doc[i])];
            check(start < end && end <= text.size() && text.substr(start, end - start) == parts.views[i],
                  "a part lies where it says");
            check(i == 0 || parts.doc[i - 1] < parts.doc[i] || parts.end[i - 1] < parts.start[i], "parts ascend");
        }
    }
}

void check_normalized(std::string_view text, bool numbers) {
    std::vector<std::uint32_t> actions(0x2000, CharacterTable::kKeep);
    for (const char space : {' ', '\t', '\n', '.', ','}) actions[static_cast<unsigned char>(space)] = CharacterTable::kSpace;
    for (char digit = '0'; digit <= '9'; ++digit) actions[static_cast<unsigned char>(digit)] = CharacterTable::kDigit;
    actions['A'] = CharacterTable::kReplace;
    actions['B'] = CharacterTable::kReplace + 1;
    actions['-'] = CharacterTable::kDrop;
    const CharacterTable table(std::move(actions), {"a", "a long replacement"}, numbers);
    std::string out;
    if (!normalize(text, table, out)) return;
    check(out.find("  ") == std::string::npos, "spaces stand alone");
    check(out.empty() || (out.front() != ' ' && out.back() != ' '), "spaces stand between words");
    check(out.find_first_of("\t\n.,-A") == std::string::npos, "what is replaced is gone");
    if (numbers) check(out.find_first_of("123456789") == std::string::npos, "numbers are 0");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    tests::FuzzInput input(data, size);
    const std::size_t ngram = 1 + input.below(6);
    const std::size_t num_perm = 1 + input.below(300);
    const bool wide = input.flip();
    std::vector<std::string> written;
    for (std::size_t i = input.below(8); i > 0; --i) written.push_back(input.text(200));
    written.push_back(input.rest());
    for (std::size_t i = input.flip() ? written.size() : 0; i > 0; --i) {  // nearly the same once more
        written.push_back(written[i - 1] + " b");
        written.push_back(written[i - 1]);
    }
    std::vector<tests::ExactText> exact(written.begin(), written.end());
    std::vector<std::string_view> texts;
    for (const tests::ExactText& text : exact) {
        texts.push_back(text.view());
        check_text(text.view(), ngram, num_perm, wide);
        check_normalized(text.view(), wide);
    }
    check_clusters(texts, ngram, wide);
    check_parts(texts);
    return 0;
}
