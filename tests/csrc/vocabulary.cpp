// Vocabularies from files, added tokens, decoding: damaged files end in an exception, and every search finds
// what a slow one finds. Meant for builds with sanitizers.
#include <algorithm>
#include <cstddef>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "check.hpp"
#include "text/properties.hpp"
#include "tokenizer/added_tokens.hpp"
#include "tokenizer/decode.hpp"
#include "tokenizer/hf_model.hpp"
#include "tokenizer/json_cursor.hpp"
#include "tokenizer/rank_file.hpp"

namespace pylm::tests {
namespace {

constexpr std::string_view kDocument = R"({"version": "1.0", "added_tokens": [{"id": 5, "content": "<\u0041>"}],
 "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "\u0120": 2, "ab": 3, "\u0120ab": 4, "\ud83d\ude00": 9},
 "merges": ["a b", ["\u0120", "ab"]]}, "last": [1e5, null, {"x": "}\\\""}]})";

std::string mutate(std::string text, Random& random) {
    constexpr std::string_view pieces = "\"{}[]:,\\ -9eu\n\xFF";
    for (std::size_t i = 1 + random.below(3); i > 0 && !text.empty(); --i) {
        const std::size_t place = random.below(text.size());
        switch (random.below(4)) {
            case 0: text[place] = static_cast<char>(random.below(256)); break;
            case 1: text.erase(place, 1 + random.below(9)); break;
            case 2: text.insert(place, 1, pieces[random.below(pieces.size())]); break;
            default: text.resize(place); break;
        }
    }
    return text;
}

void check_json() {
    const HfDocument document = HfModel::read(kDocument);
    const HfModel& model = document.model;
    check(model.size() == 6 && model.largest_id() == 9, "all entries are read");
    check(model.find("\xC4\xA0"
                     "ab") == TokenId{4} &&
              !model.find("nobody"),
          "tokens are found");
    check(document.rest.find("\"vocab\": {}") != std::string::npos &&
              document.rest.find("\"merges\": []") != std::string::npos &&
              document.rest.find("}\\\\\\\"") != std::string::npos,
          "the rest of the document stays");
    const TokenId hidden[] = {9, 3};
    const Vocabulary bytes = model.to_vocabulary(true, hidden);
    check(bytes.tokens[4] == " ab" && bytes.tokens[3] == "ab" && bytes.tokens.size() == 5,
          "hidden tokens have no bytes, unless they are merged");
    check(model.to_vocabulary(false, {}).tokens[9] == "\xF0\x9F\x98\x80", "surrogate pairs are one character");
    const auto beyond = model.beyond_alphabet(bytes.tokens);
    check(model.to_vocabulary(true, {}).tokens.size() == 5 && beyond.size() == 1 && beyond[0].first == 9,
          "a token beyond the alphabet has no bytes");
    check(throws<std::invalid_argument>([] {
              constexpr std::string_view merged =
                  R"({"model": {"vocab": {"a": 0, "\u65e5": 1, "a\u65e5": 2}, "merges": ["a \u65e5"]}})";
              (void)HfModel::read(merged).model.to_vocabulary(true, {});
          }),
          "unless it is merged");
    check(bytes.merges.size() == 2 && bytes.merges[1].left == 2 && bytes.merges[1].merged == 4,
          "both spellings of a merge are read");
    Random random(1);
    for (std::size_t i = 0; i < 20'000; ++i) {
        const std::string damaged = mutate(std::string(kDocument), random);
        try {
            (void)HfModel::read(damaged).model.to_vocabulary(random.below(2) == 0, {});
        } catch (const std::invalid_argument&) {
        }
    }
    for (std::size_t size = 0; size < kDocument.size(); ++size) {
        check(throws<std::invalid_argument>([&] { (void)HfModel::read(kDocument.substr(0, size)); }),
              "a truncated document is refused");
    }
}

// Enough entries for several threads. Each token is made of two that come before it.
void check_large_json() {
    std::vector<std::string> tokens;
    std::vector<std::pair<std::size_t, std::size_t>> merges;
    for (char c = 'a'; c <= 'z'; ++c) tokens.push_back(std::string(1, c));
    for (std::size_t left = 0; tokens.size() < 60'000; ++left) {
        for (std::size_t right = 0; right < 26; ++right) {
            merges.emplace_back(left, right);
            tokens.push_back(tokens[left] + tokens[right]);
        }
    }
    const auto write = [&](std::size_t damaged) {
        std::string text = "{\"model\": {\"vocab\": {";
        for (std::size_t id = 0; id < tokens.size(); ++id)
            text += (id == 0 ? "\"" : ", \"") + tokens[id] + "\": " + std::to_string(id);
        text += "}, \"merges\": [";
        for (std::size_t rank = 0; rank < merges.size(); ++rank) {
            const auto [left, right] = merges[rank];
            text += (rank == 0 ? "\"" : ", \"") + tokens[left] + (rank < damaged ? " " : " 0") + tokens[right] + "\"";
        }
        return text + "]}}";
    };
    const std::string good = write(merges.size());
    const Vocabulary one = HfModel::read(good, 1).model.to_vocabulary(true, {}, 1);
    const Vocabulary four = HfModel::read(good, 4).model.to_vocabulary(true, {}, 4);
    check(one.tokens == tokens && four.tokens == tokens, "all tokens, for any number of threads");
    const auto is_same = [&](const Vocabulary& vocabulary) {
        if (vocabulary.merges.size() != merges.size()) return false;
        for (std::size_t rank = 0; rank < merges.size(); ++rank) {
            const MergeRule& rule = vocabulary.merges[rank];
            if (rule.left != merges[rank].first || rule.right != merges[rank].second || rule.rank != rank ||
                rule.merged != rank + 26)
                return false;
        }
        return true;
    };
    check(is_same(one) && is_same(four), "all merges, for any number of threads");
    for (const unsigned threads : {1U, 4U}) {
        std::string message;
        try {
            (void)HfModel::read(write(20'000), threads);
        } catch (const std::invalid_argument& error) {
            message = error.what();
        }
        check(message.starts_with("merge 20000 ('"), "the first damaged merge is named");
    }
}

void check_ranks() {
    std::vector<std::string> tokens;
    for (std::size_t byte = 0; byte < 256; ++byte) tokens.push_back(std::string(1, static_cast<char>(byte)));
    Random random(2);
    for (std::size_t i = 0; i < 500; ++i) {
        const std::string joined = tokens[random.below(tokens.size())] + tokens[random.below(tokens.size())];
        if (std::ranges::find(tokens, joined) == tokens.end()) tokens.push_back(joined);
    }
    const std::string file = write_rank_file(tokens);
    const Vocabulary vocabulary = read_rank_file(file);
    check(vocabulary.tokens == tokens, "a rank file is read as it was written");
    std::size_t next = 0;
    for (std::size_t id = 0; id < tokens.size(); ++id) {
        for (std::size_t cut = 1; cut < tokens[id].size(); ++cut) {
            const auto left = std::ranges::find(tokens, tokens[id].substr(0, cut));
            const auto right = std::ranges::find(tokens, tokens[id].substr(cut));
            if (left == tokens.end() || right == tokens.end()) continue;
            check(next < vocabulary.merges.size() && vocabulary.merges[next].merged == id &&
                      vocabulary.merges[next].left == static_cast<TokenId>(left - tokens.begin()) &&
                      vocabulary.merges[next].right == static_cast<TokenId>(right - tokens.begin()),
                  "all pairs, in order");
            ++next;
        }
    }
    check(next == vocabulary.merges.size(), "no other pairs");
    for (std::size_t i = 0; i < 5'000; ++i) {
        try {
            (void)read_rank_file(mutate(file.substr(0, 200 + random.below(2000)), random));
        } catch (const std::invalid_argument&) {
        }
    }
}

// Leftmost, then longest: every place tried with every token.
std::vector<AddedMatch> find_slowly(const std::vector<std::string>& contents, std::string_view text) {
    std::vector<AddedMatch> matches;
    for (std::size_t place = 0; place < text.size();) {
        std::size_t best = contents.size();
        for (std::size_t i = 0; i < contents.size(); ++i) {
            if (!text.substr(place).starts_with(contents[i])) continue;
            if (best == contents.size() || contents[i].size() > contents[best].size()) best = i;
        }
        if (best == contents.size()) {
            ++place;
            continue;
        }
        matches.push_back({place, place + contents[best].size(), best});
        place += contents[best].size();
    }
    return matches;
}

void check_added() {
    Random random(3);
    for (std::size_t round = 0; round < 300; ++round) {
        std::vector<std::string> contents;
        for (std::size_t i = 1 + random.below(8); i > 0; --i) {
            std::string content;
            for (std::size_t k = 1 + random.below(4); k > 0; --k) content += "<a|>b\xE6\x97\xA5"[random.below(8)];
            if (std::ranges::find(contents, content) == contents.end()) contents.push_back(content);
        }
        std::vector<AddedToken> tokens;
        for (std::size_t i = 0; i < contents.size(); ++i) {
            tokens.push_back({contents[i], static_cast<TokenId>(i), false, false, false});
        }
        const AddedTokens added(tokens);
        const std::vector<std::uint8_t> enabled(contents.size(), 1);
        std::vector<std::string> texts = {""};
        for (std::size_t i = 0; i < 5; ++i) {
            std::string text(random.below(100), 'x');
            for (std::size_t k = random.below(40); k > 0; --k) text += "<a|>b\xE6\x97\xA5xy"[random.below(10)];
            texts.push_back(text);
        }
        for (const std::string& text : texts) {
            check(added.find(text, enabled) == find_slowly(contents, text), "the leftmost, longest tokens");
        }
    }
    // Flags on text that is no UTF-8, at both ends.
    const AddedTokens flagged({{"<s>", 7, true, true, true}});
    const std::uint8_t on[] = {1};
    for (const std::string& text : hostile_texts()) {
        for (const std::string& whole : {text + "<s>", "<s>" + text, text + "<s>" + text}) {
            for (const AddedMatch& match : flagged.find(whole, on)) {
                check(match.begin < match.end && match.end <= whole.size(), "a token lies within its text");
            }
        }
    }
    const auto found = flagged.find("a \xE3\x80\x80<s>\n\xC2\xA0<s>\xFF<s>x", on);
    check(found.size() == 2 && found[0] == AddedMatch{1, 11, 0} && found[1] == AddedMatch{11, 14, 0},
          "white space is taken along once, words beside a token keep it out");
    check(throws<std::invalid_argument>([] { AddedTokens({{"", 1, false, false, false}}); }),
          "an empty token is refused");
}

void check_decoder() {
    const std::vector<std::string> tokens = {"a", "", "a token of more than sixteen bytes", "b"};
    const std::vector<std::pair<TokenId, std::string>> added = {{6, "<end>"}};
    const TokenId special[] = {6};
    const TokenDecoder decoder(tokens, added, special);
    const TokenId ids[] = {2, 0, 6, 3, 2};
    std::string text = "x";
    decoder.decode(ids, false, text);
    check(text == "x" + tokens[2] + "a<end>b" + tokens[2], "bytes follow each other");
    text.clear();
    decoder.decode(ids, true, text);
    check(text == tokens[2] + "ab" + tokens[2], "special tokens are left out");
    for (const TokenId bad : {TokenId{1}, TokenId{5}, TokenId{7}, ~TokenId{0}}) {
        const TokenId one[] = {bad};
        check(throws<std::out_of_range>([&] { decoder.decode(one, true, text); }), "unknown ids are refused");
    }
    const std::vector<std::pair<TokenId, std::string>> far = {{1U << 31, "x"}};
    check(throws<std::invalid_argument>([&] { TokenDecoder(tokens, far, {}); }), "ids far away are refused");
}

void check_properties() {
    for (const std::string& text : hostile_texts()) {
        std::size_t end = text.size();
        std::vector<std::size_t> backwards;
        while (end > 0) backwards.push_back(end = previous_start(text, end));
        check(backwards.empty() || backwards.back() == 0, "going back ends at the beginning");
    }
}

}  // namespace

void test_vocabulary() {
    check_json();
    check_large_json();
    check_ranks();
    check_added();
    check_decoder();
    check_properties();
}

}  // namespace pylm::tests
