// Indexes on disk: batches against all texts at once, spans against exact ones, damaged files, any number of threads.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <numeric>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "check.hpp"
#include "dedup/key_table.hpp"
#include "dedup/near.hpp"
#include "dedup/near_index.hpp"
#include "dedup/segment_file.hpp"
#include "dedup/substring.hpp"
#include "dedup/substring_index.hpp"
#include "text/arrow.hpp"

namespace pylm::tests {
namespace {

using namespace dedup;

// A folder that goes with the test.
class Folder {
public:
    Folder() : path_(std::filesystem::temp_directory_path() / ("pylm-index-" + std::to_string(Random(number())()))) {
        std::filesystem::create_directories(path_);
    }
    ~Folder() { std::filesystem::remove_all(path_); }
    Folder(const Folder&) = delete;
    Folder& operator=(const Folder&) = delete;
    std::string operator/(const std::string& name) const { return (path_ / name).string(); }

private:
    static std::uint64_t number() {
        static std::uint64_t count = static_cast<std::uint64_t>(
            std::filesystem::file_time_type::clock::now().time_since_epoch().count());
        return ++count;
    }
    std::filesystem::path path_;
};

std::string read_file(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

void write_file(const std::string& path, const std::string& bytes) {
    std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
}

std::vector<std::string> families(std::uint64_t seed, std::size_t size) {
    Random random(seed);
    std::vector<std::string> templates;
    for (std::size_t i = 0; i < size / 10 + 1; ++i) templates.push_back(random_words(random, 30));
    std::vector<std::string> texts;
    for (std::size_t i = 0; i < size; ++i) {
        std::string text = templates[random.below(templates.size())];
        for (std::size_t changes = random.below(6); changes > 0; --changes) text[random.below(text.size())] = 'x';
        texts.push_back(std::move(text));
    }
    return texts;
}

void check_segment_file() {
    const Folder folder;
    const std::string path = folder / "file";
    std::vector<std::uint32_t> numbers(700'000);
    std::iota(numbers.begin(), numbers.end(), 0U);
    {
        SegmentWriter writer(path, {7, 3, 2});
        writer.write(std::span<const std::uint32_t>(numbers).first(5));
        writer.write(std::span<const std::uint32_t>(numbers).subspan(5));
        writer.end_array();
        writer.end_array();
        writer.write(std::span<const std::uint32_t>(numbers).first(1));
        writer.end_array();
        writer.finish();
    }
    const SegmentFile file(path, 7);
    file.check(3);
    check(std::ranges::equal(file.array<std::uint32_t>(0), numbers), "an array is as it was written");
    check(file.array<std::uint32_t>(1).empty() && file.array<std::uint32_t>(2).size() == 1, "others too");
    check(file.array<std::uint32_t>(3).empty(), "there is no fourth array");
    check(file.info().first == 3 && file.info().count == 2, "and what the file says about itself");
    check(throws<DamagedFile>([&] { SegmentFile(path, 8); }), "another index's file is refused");
    check(throws<DamagedFile>([&] { (void)file.array<std::uint64_t>(2); }), "half an item is refused");
    const std::string bytes = read_file(path);
    for (const std::size_t place : {std::size_t{0}, std::size_t{9}, std::size_t{70}, std::size_t{4096},
                                    std::size_t{1} << 20, bytes.size() - 1}) {
        std::string damaged = bytes;
        damaged[place] = static_cast<char>(damaged[place] ^ 16);
        write_file(path, damaged);
        check(throws<DamagedFile>([&] { SegmentFile(path, 7).check(2); }), "a changed byte is found");
    }
    for (const std::size_t size : {std::size_t{0}, std::size_t{4095}, std::size_t{4096}, bytes.size() - 1}) {
        write_file(path, bytes.substr(0, size));
        check(throws<DamagedFile>([&] { SegmentFile(path, 7); }), "a cut file is found");
    }
    check(throws<std::system_error>([&] { SegmentFile(folder / "none", 7); }), "a missing file is an error");
    check(throws<std::system_error>([&] { SegmentWriter(folder / "no/file", {}); }), "a missing folder too");
}

void check_key_table() {
    struct Number {
        std::uint64_t value;
        std::uint64_t key() const noexcept { return value; }
        bool operator<(const Number& other) const noexcept { return value < other.value; }
    };
    const Folder folder;
    Random random(3);
    for (const std::size_t size : {std::size_t{0}, std::size_t{1}, std::size_t{40}, std::size_t{5'000}, std::size_t{700'000}}) {
        std::vector<std::vector<Number>> halves(2);
        std::multimap<std::uint64_t, int> all;
        for (std::size_t i = 0; i < size; ++i) {
            const std::uint64_t key = i % 3 == 0 && i > 0 ? halves[0].front().value : random();
            halves[random.below(10) == 0].push_back({key});
            if (halves[0].empty()) halves[0].push_back({key});
        }
        std::vector<std::string> paths;
        for (auto& half : halves) {
            for (const Number& number : half) all.emplace(number.value, 0);
            paths.push_back(folder / (std::to_string(size) + "-" + std::to_string(paths.size())));
            sort_by_key(half, 3);
            check(std::ranges::is_sorted(half, {}, &Number::value), "records are in order");
            SegmentWriter writer(paths.back(), {});
            KeyTableWriter<Number> table(writer, half.size());
            table.write(half);
            table.finish();
            writer.finish();
        }
        const SegmentFile a(paths[0], 0);
        const SegmentFile b(paths[1], 0);
        const std::vector<KeyTable<Number>> tables = {{a, 0}, {b, 0}};
        for (const unsigned num_threads : {1U, 4U}) {
            SegmentWriter writer(folder / "merged", {});
            merge_tables<Number>(tables, writer, num_threads);
            writer.finish();
            const SegmentFile file(folder / "merged", 0);
            const KeyTable<Number> merged(file, 0);
            std::vector<std::uint64_t> expected;
            for (const auto& [key, nothing] : all) expected.push_back(key);
            std::vector<std::uint64_t> got;
            for (const Number& number : merged.records()) got.push_back(number.value);
            check(got == expected, "a merged table holds all records in order");
            std::vector<std::uint64_t> keys = {0, ~std::uint64_t{0}};
            for (std::size_t i = 0; i < 100 && i < expected.size(); ++i) keys.push_back(expected[random.below(expected.size())]);
            for (int i = 0; i < 100; ++i) keys.push_back(random());
            std::sort(keys.begin(), keys.end());
            std::vector<std::size_t> counts(keys.size(), 0);
            merged.find(keys, [&](std::size_t i, const Number& number) {
                check(number.value == keys[i], "only equal keys are found");
                ++counts[i];
            });
            for (std::size_t i = 0; i < keys.size(); ++i) check(counts[i] == all.count(keys[i]), "and all of them");
        }
    }
}

// Texts that share most of their words with all others, and are still no duplicates, but for a few.
std::vector<std::string> templates(std::uint64_t seed, std::size_t count) {
    Random random(seed);
    std::vector<std::string> texts;
    for (std::size_t i = 0; i < count; ++i) {
        if (i % 20 == 19) {
            texts.push_back(texts[random.below(i)] + " more");
            continue;
        }
        std::string text;
        for (std::size_t k = 0; k < 60; ++k) {
            text += 'w';
            if (k % 12 == 5) text.append(std::to_string(i)).append("x");
            text.append(std::to_string(k)).append(" ");
        }
        texts.push_back(text);
    }
    return texts;
}

struct Setting {
    Scheme scheme;
    ShingleKind kind;
    unsigned shingle_bits;
    bool wide;
};

void check_near_index(const Setting& setting, const std::vector<std::string_view>& texts) {
    const Folder folder;
    const MinHasher hasher(setting.scheme, 48, 42, {}, setting.wide);
    const NearFormat format{5, setting.shingle_bits, false, 48, setting.wide};
    NearOptions options{.rule = {setting.kind, 3, 42}, .bands = 16, .rows = 3, .threshold = 0.5, .num_threads = 1};
    std::vector<std::string> paths;
    std::vector<std::int64_t> representative;
    std::vector<double> similarity;
    for (std::size_t begin = 0; begin < texts.size() || paths.size() < 3;) {
        const std::size_t end = std::min(texts.size(), begin + texts.size() / 5 + 1);
        const auto batch = std::span(texts).subspan(begin, end - begin);
        const NearIndex index(paths, format);
        options.num_threads = 1;
        const NearAgainst found = near_against(batch, batch, hasher, options, index, true);
        std::vector<std::int64_t> ids(batch.size());
        std::iota(ids.begin(), ids.end(), static_cast<std::int64_t>(begin));
        const std::string path = folder / std::to_string(begin);
        index.write(path, found, batch, ids, hasher, options.rule, 1);
        options.num_threads = 4;
        const NearAgainst again = near_against(batch, batch, hasher, options, index, true);
        index.write(folder / "again", again, batch, ids, hasher, options.rule, 4);
        check(found.representative == again.representative && found.document == again.document &&
                  found.similarity == again.similarity && read_file(path) == read_file(folder / "again"),
              "results and files do not depend on the threads");
        for (std::size_t i = 0; i < batch.size(); ++i) {
            const std::int64_t document = found.document[i];
            check((document >= 0) == (found.representative[i] < 0), "one or the other stands for a text");
            representative.push_back(document >= 0 ? index.id_of(static_cast<std::uint32_t>(document))
                                                   : static_cast<std::int64_t>(begin) + found.representative[i]);
            similarity.push_back(found.similarity[i]);
        }
        paths.push_back(path);
        begin = end;
    }
    const NearIndex index(paths, format);
    index.check(2);
    if (setting.shingle_bits == 64) {
        const NearDuplicates expected = near_duplicates(texts, texts, hasher, options);
        check(representative == expected.representative && similarity == expected.similarity,
              "batches give what all texts at once give");
    }
    const NearAgainst queried = near_against(texts, texts, hasher, options, index, false);
    for (const unsigned num_threads : {1U, 4U}) {
        index.merge(folder / "merged", 0, paths.size(), num_threads);
        const std::vector<std::string> merged = {folder / "merged"};
        const NearIndex one(merged, format);
        one.check(1);
        check(one.size() == index.size(), "a merge loses no document");
        const NearAgainst found = near_against(texts, texts, hasher, options, one, false);
        check(found.document == queried.document && found.similarity == queried.similarity,
              "a merge changes no answer");
    }
    index.merge(folder / "part", 1, 3, 1);
    std::vector<std::string> parts = {paths[0], folder / "part"};
    parts.insert(parts.end(), paths.begin() + 3, paths.end());
    check(near_against(texts, texts, hasher, options, NearIndex(parts, format), false).document == queried.document,
          "nor does a merge of some");
    const std::vector<std::string> missing(paths.begin() + 1, paths.end());
    check(index.size() == 0 || NearIndex(std::span(paths).first(1), format).size() == 0 ||
              throws<DamagedFile>([&] { NearIndex(missing, format); }),
          "a missing file is found");
    check(throws<std::invalid_argument>([&] { index.merge(folder / "none", 2, 2, 1); }), "nothing cannot be merged");
    options.verify = false;
    check(throws<std::invalid_argument>([&] { (void)near_against(texts, texts, hasher, options, index, true); }),
          "known documents are verified");
}

// A file of which any byte may be wrong is read within its borders.
void check_damage() {
    const Folder folder;
    const std::vector<std::string> texts = families(8, 60);
    const std::vector<std::string_view> views = views_of(texts);
    const MinHasher hasher(Scheme::kFast, 48, 42);
    const NearOptions options{.rule = {ShingleKind::kWord, 3, 42}, .bands = 16, .rows = 3, .threshold = 0.5, .num_threads = 1};
    const std::vector<std::string> near = {folder / "near"};
    const std::vector<std::string> windows = {folder / "windows"};
    for (const unsigned bits : {0U, 32U, 64U}) {
        const NearFormat format{5, bits, false, 48, false};
        const NearIndex empty({}, format);
        const NearAgainst found = near_against(views, views, hasher, options, empty, true);
        empty.write(near[0], found, views, std::vector<std::int64_t>(views.size()), hasher, options.rule, 1);
        const WindowFormat rule{5, 20, 4, bits == 0};
        SubstringIndex({}, rule).write(windows[0], views, 1);
        const std::string near_bytes = read_file(near[0]);
        const std::string window_bytes = read_file(windows[0]);
        Random random(bits);
        for (int round = 0; round < 40; ++round) {
            const auto damage = [&](std::string bytes) {
                const std::size_t begin = 4096 + random.below(bytes.size() - 4096 - 300);
                for (std::size_t i = begin; i < begin + 200; ++i) bytes[i] = static_cast<char>(random());
                return bytes;
            };
            write_file(near[0], damage(near_bytes));
            write_file(windows[0], damage(window_bytes));
            try {
                const NearIndex index(near, format);
                (void)near_against(views, views, hasher, options, index, true);
            } catch (const DamagedFile&) {
            }
            try {
                (void)SubstringIndex(windows, rule).find(views, 2);
            } catch (const DamagedFile&) {
            }
        }
    }
}

void check_substring_index(const std::vector<std::string_view>& texts) {
    for (const auto& [length, gap] : {std::pair<std::size_t, std::size_t>{1, 1}, {3, 2}, {8, 8}, {20, 1}, {20, 7}, {100, 32}}) {
        for (const bool wide : {false, true}) {
            const Folder folder;
            const WindowFormat format{9, length, gap, wide};
            const std::size_t half = texts.size() / 2;
            const auto old = std::span(texts).first(half);
            std::vector<std::string> paths;
            for (std::size_t begin = 0; begin < half; begin += half / 3 + 1) {
                const auto batch = old.subspan(begin, std::min(half / 3 + 1, half - begin));
                const SubstringIndex index(paths, format);
                const std::string path = folder / std::to_string(begin);
                const std::size_t count = index.write(path, batch, 1);
                check(count == index.write(folder / "again", batch, 4) && read_file(path) == read_file(folder / "again"),
                      "files do not depend on the threads");
                paths.push_back(path);
            }
            const SubstringIndex index(paths, format);
            const Spans found = index.find(texts, 1);
            const Spans again = index.find(texts, 4);
            check(found.text == again.text && found.start == again.start && found.end == again.end,
                  "spans do not depend on the threads");
            const Spans exact = repeated_substrings(
                texts, old, {.length = length, .first_stays = true, .on_characters = true, .num_threads = 2});
            if (gap == 1) check(found.text == exact.text && found.start == exact.start && found.end == exact.end,
                                "with a gap of 1 spans are exact");
            std::size_t j = 0;
            for (std::size_t i = 0; i < found.text.size(); ++i) {
                while (j < exact.text.size() &&
                       (exact.text[j] < found.text[i] || (exact.text[j] == found.text[i] && exact.end[j] < found.end[i])))
                    ++j;
                check(j < exact.text.size() && exact.text[j] == found.text[i] && exact.start[j] <= found.start[i] &&
                          found.end[i] <= exact.end[j],
                      "a span lies in an exact one");
            }
            std::vector<std::uint8_t> whole(texts.size(), 0);
            for (std::size_t i = 0; i < found.text.size(); ++i) {
                const auto text = static_cast<std::size_t>(found.text[i]);
                whole[text] = found.start[i] == 0 && static_cast<std::size_t>(found.end[i]) == texts[text].size();
            }
            for (std::size_t i = 0; i < half; ++i)
                check(texts[i].size() < length || whole[i] != 0, "a text that was added is found in full");
            if (paths.empty()) continue;
            index.merge(folder / "merged", 0, paths.size(), 3);
            const std::vector<std::string> merged = {folder / "merged"};
            const SubstringIndex one(merged, format);
            check(one.num_windows() == index.num_windows() && one.find(texts, 2).start == found.start,
                  "a merge changes nothing");
        }
    }
    for (const WindowFormat format : {WindowFormat{0, 0, 1, false}, WindowFormat{0, 5, 0, false}, WindowFormat{0, 5, 6, false}})
        check(throws<std::invalid_argument>([&] { SubstringIndex({}, format); }), "a gap lies within a window");
}

}  // namespace

void test_index() {
    check_segment_file();
    check_key_table();
    const std::vector<std::string> hostile = hostile_texts();
    const std::vector<std::string> many = families(6, 900);
    std::vector<std::string_view> mixed = views_of(hostile);
    mixed.push_back(arrow::null_text);
    for (const std::string& text : hostile) mixed.push_back(text);
    mixed.push_back(arrow::null_text);
    for (const Setting& setting : {Setting{Scheme::kFast, ShingleKind::kWord, 64, false},
                                   Setting{Scheme::kFast, ShingleKind::kCharacter, 32, false},
                                   Setting{Scheme::kClassic, ShingleKind::kWord, 0, true},
                                   Setting{Scheme::kFast, ShingleKind::kToken, 64, true},
                                   Setting{Scheme::kFast, ShingleKind::kWord, 0, false}}) {
        check_near_index(setting, mixed);
        check_near_index(setting, views_of(many));
    }
    check_near_index({Scheme::kFast, ShingleKind::kWord, 64, false}, std::vector<std::string_view>(2'000, many[0]));
    check_near_index({Scheme::kFast, ShingleKind::kWord, 64, false}, {});
    const std::vector<std::string> filled = templates(7, 900);
    for (const unsigned bits : {64U, 32U})
        check_near_index({Scheme::kFast, ShingleKind::kWord, bits, false}, views_of(filled));
    check_damage();
    check_substring_index(mixed);
    check_substring_index(views_of(many));
    check_substring_index({});
}

}  // namespace pylm::tests
