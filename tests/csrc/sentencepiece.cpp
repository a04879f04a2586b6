// SentencePiece-style models: cut text gives the ids of whole text, at every SIMD level and for any number of
// threads; damaged files are refused or load, and never more.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "check.hpp"
#include "tokenizer/sentencepiece.hpp"
#include "tokenizer/sentencepiece_cuts.hpp"
#include "tokenizer/sentencepiece_model.hpp"
#include "tokenizer/sentencepiece_normalize.hpp"

namespace pylm::tests {
namespace {

struct Model {
    std::vector<std::string> texts;
    std::vector<PieceKind> kinds;
    std::vector<float> scores;

    void add(std::string text, PieceKind kind = PieceKind::kNormal) {
        scores.push_back(-static_cast<float>(texts.size()));
        texts.push_back(std::move(text));
        kinds.push_back(kind);
    }
};

Model byte_model() {
    Model model;
    model.add("<unk>", PieceKind::kUnknown);
    constexpr std::string_view digits = "0123456789ABCDEF";
    for (std::size_t byte = 0; byte < 256; ++byte) {
        std::string text = "<0x00>";
        text[3] = digits[byte / 16];
        text[4] = digits[byte % 16];
        model.add(text, PieceKind::kByte);
    }
    for (const char* text : {"\xE2\x96\x81", "a", "b", "c", "\xC3\xA9", "\xE2\x96\x81" "a", "ab", "abc", "a\xC3\xA9",
                             "\xE2\x96\x81\xE2\x96\x81", "\xE2\x96\x81" "ab", "..", "1", "aa", "aaaa"}) {
        model.add(text);
    }
    return model;
}

SentencePieceEncoder make_encoder(const Model& model, const SentencePieceOptions& options) {
    const ScoredMerges merges = merges_of_scores(model.texts, model.kinds, model.scores);
    return SentencePieceEncoder(model.texts, model.kinds, merges.extra_characters, merges.rules, options);
}

void check_encoder() {
    const Model model = byte_model();
    Model joining = model;  // a piece across every border forbids all cuts, and is in no text
    const std::string mark(kSpaceMark);
    joining.add("x" + mark + "x1x.x\x01x\xC3\xA9" "1" + mark + "1.1\x01" "1\xC3\xA9." + mark + ".\x01.\xC3\xA9\x01" + mark +
                "\x01\xC3\xA9" + mark + mark + "\x01\x01..11xx");
    SentencePieceOptions scalar;
    scalar.simd = false;
    const SentencePieceEncoder encoder = make_encoder(model, {});
    const SentencePieceEncoder slow = make_encoder(model, scalar);
    const SentencePieceEncoder whole = make_encoder(joining, {});
    check(encoder.cuts_text(), "a regular vocabulary lets text be cut");
    std::vector<std::string> texts = hostile_texts();
    Random random(7);
    for (std::size_t i = 0; i < 200; ++i) {
        std::string text;
        const std::vector<std::string> parts = {"a", "b", "ab", " ", "  ", mark, "\xC3\xA9", ".", "1", "\n", "\xFF", "\xE2"};
        for (std::size_t k = random.below(300); k > 0; --k) text += parts[random.below(parts.size())];
        texts.push_back(text);
    }
    for (const std::string& text : texts) {
        const TokenBuffer ids = encoder.encode(text, true);
        check(ids == slow.encode(text, true), "scalar and vector code agree");
        check(ids == whole.encode(text, true), "cut text gives the ids of whole text");
    }
    for (std::string& text : huge_texts(1 << 20)) texts.push_back(std::move(text));
    texts.push_back(random_words(random, 200000));
    const TokenBatch one = encoder.encode_batch(views_of(texts), 1);
    const TokenBatch four = encoder.encode_batch(views_of(texts), 4);
    check(one.ids == four.ids && one.offsets == four.offsets, "ids do not depend on the threads");
    for (std::size_t i = 0; i < texts.size(); ++i) {
        const auto begin = static_cast<std::size_t>(one.offsets[i]);
        const auto row = one.ids.ids().subspan(begin, static_cast<std::size_t>(one.offsets[i + 1]) - begin);
        check(std::ranges::equal(row, encoder.encode(texts[i], true)), "batches give the ids of single texts");
    }
}

void check_borders() {
    const std::vector<std::string_view> results = {"ab", " a", "..", "1."};
    const CutTable table(results, false);
    Random random(3);
    for (std::size_t i = 0; i < 2000; ++i) {
        char block[64];
        for (char& byte : block) byte = static_cast<char>(random() % (i % 2 == 0 ? 256 : 128));
        const auto before = static_cast<std::uint8_t>(random());
        const std::uint64_t bits = table.borders(block, before, false);
        check(bits == table.borders(block, before, true), "borders are the same at all levels");
        std::uint8_t last = before;
        for (std::size_t k = 0; k < 64; ++k) {
            const auto byte = static_cast<std::uint8_t>(block[k]);
            check(((bits >> k) & 1) == (table.cuts(last, byte) ? 1U : 0U), "borders are those of the table");
            last = byte;
        }
    }
    check(table.cuts('a', ' ') && table.cuts('a', '1') && table.cuts('.', '1'), "pairs that no result holds");
    check(!table.cuts(' ', 'z') && !table.cuts('1', '!') && !table.cuts(0xC3, 0xA9), "pairs that one may hold");
}

void check_damage() {
    // A model in the wire format: pieces (field 1: text, score, kind), trainer (2), normalizer (3).
    std::string file;
    const auto field = [](int number, std::string_view bytes) {
        std::string out(1, static_cast<char>(number * 8 + 2));
        out += static_cast<char>(bytes.size());
        return out.append(bytes);
    };
    const auto piece = [&](std::string_view text, char kind) {
        return field(1, field(1, text) + std::string("\x15\x00\x00\x80\xBF\x18", 6) + kind);
    };
    file += piece("<unk>", 2) + piece("a", 1) + piece("aa", 1) + piece("b", 4) + piece("aaa", 5);
    file += field(2, "\x18\x02");
    file += field(3, field(2, std::string("\x08\0\0\0\0\x14\0\0\x41\0\0\0x\0", 14)) + "\x20\x01");
    Random random(11);
    std::size_t num_loaded = 0;
    for (std::size_t i = 0; i < 20000; ++i) {
        std::string damaged = i < file.size() ? file.substr(0, i) : file;
        for (std::size_t k = i < file.size() ? 0 : random.below(4); k > 0; --k) {
            damaged[random.below(damaged.size())] = static_cast<char>(random());
        }
        try {
            const SentencePieceModel read = parse_sentencepiece_model(damaged);
            Model model;
            for (const auto& one : read.pieces) {
                model.texts.push_back(one.text);
                model.kinds.push_back(one.kind);
                model.scores.push_back(one.score);
            }
            SentencePieceOptions options;
            options.byte_fallback = read.byte_fallback;
            options.collapse_spaces = read.remove_extra_whitespaces;
            options.charsmap = read.charsmap;
            const SentencePieceEncoder encoder = make_encoder(model, options);
            encoder.encode(std::string_view("aaaa b A \xE2\x96\x81\0\xFF", 13), true);
            ++num_loaded;
        } catch (const std::invalid_argument&) {
            continue;
        }
    }
    check(num_loaded > 0 && num_loaded < 20000, "some damage is refused, some is none");
}

void check_errors() {
    const Model model = byte_model();
    const std::vector<MergeRule> rules = {{258, 259, 9999, 0}};
    check(throws<std::invalid_argument>([&] { SentencePieceEncoder(model.texts, model.kinds, {}, rules, {}); }),
          "a merge of an unknown id is refused");
    SentencePieceOptions options;
    options.charsmap = "abc";
    check(throws<std::invalid_argument>([&] { make_encoder(model, options); }), "a damaged charsmap is refused");
    options = {};
    options.collapse_spaces = true;
    options.prefix = SpacePrefix::kUnlessSpace;
    check(throws<std::invalid_argument>([&] { make_encoder(model, options); }), "contradicting options are refused");
}

}  // namespace

void test_sentencepiece() {
    check_borders();
    check_encoder();
    check_damage();
    check_errors();
}

}  // namespace pylm::tests
