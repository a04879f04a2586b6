// Any bytes as a tokenizer.json, a rank file or a tokenizer.model are read, or refused with
// std::invalid_argument; what is read holds together and can be used.
#include <stdexcept>
#include <utility>
#include <vector>

#include "fuzz_input.hpp"
#include "text/unicode.hpp"
#include "tokenizer/bpe_encode.hpp"
#include "tokenizer/hf_model.hpp"
#include "tokenizer/json_cursor.hpp"
#include "tokenizer/rank_file.hpp"
#include "tokenizer/sentencepiece.hpp"
#include "tokenizer/sentencepiece_model.hpp"

namespace pylm::tests {
namespace {

// Each byte is the place of a part, or, where there is none, itself.
std::string of_parts(std::string_view bytes, std::span<const std::string_view> parts) {
    std::string text;
    for (const char byte : bytes) {
        const auto place = static_cast<std::uint8_t>(byte);
        if (place < parts.size()) {
            text += parts[place];
        } else {
            text += byte;
        }
    }
    return text;
}

void check_merges(const Vocabulary& vocabulary) {
    for (const MergeRule& rule : vocabulary.merges) {
        const auto& tokens = vocabulary.tokens;
        check(rule.left < tokens.size() && rule.right < tokens.size() && rule.merged < tokens.size(),
              "merges are of known tokens");
        check(tokens[rule.left] + tokens[rule.right] == tokens[rule.merged], "merges concatenate");
    }
}

// With the bytes that a vocabulary lacks behind it, any text can be encoded.
void check_encodes(Vocabulary vocabulary, std::string_view text) {
    std::vector<bool> has(256);
    for (const std::string& token : vocabulary.tokens) {
        if (token.size() == 1) has[static_cast<std::uint8_t>(token[0])] = true;
    }
    for (std::size_t byte = 0; byte < 256; ++byte) {
        if (!has[byte]) vocabulary.tokens.emplace_back(1, static_cast<char>(byte));
    }
    if (vocabulary.tokens.size() > 1 << 16) return;  // an id far away: allowed, but slow
    const BpeEncoder encoder(vocabulary.tokens, vocabulary.merges, Pattern::kWhole, text.size() % 2 == 0);
    std::string decoded;
    for (const TokenId id : encoder.encode(text)) decoded += encoder.token(id);
    check(decoded == text, "ids decode to the text");
}

void read_json(std::string_view content) {
    const HfDocument document = HfModel::read(content);
    JsonCursor rest(document.rest);
    rest.skip_value();
    check(rest.at_end(), "what is left of a document is one value");
    const HfModel again = HfModel::read(document.rest).model;
    check(again.size() == 0, "what is left has an empty vocabulary");
    const Vocabulary plain = document.model.to_vocabulary(false, {});
    check_merges(plain);
    for (std::size_t id = 0; id < plain.tokens.size(); ++id) {
        const std::string& token = plain.tokens[id];
        check(token.empty() || document.model.find(token) == static_cast<TokenId>(id), "tokens have their ids");
        for (std::size_t i = 0; i < token.size();) {
            const Decoded decoded = decode_utf8(token, i);
            check(decoded.point != 0xFFFD || decoded.size == 3, "tokens are UTF-8");
            i += decoded.size;
        }
    }
    const std::vector<TokenId> hidden{0, 3, 7};
    check_merges(document.model.to_vocabulary(false, hidden));
    const Vocabulary bytes = document.model.to_vocabulary(true, {});
    check_merges(bytes);
    for (std::size_t id = 0; id < bytes.tokens.size(); ++id)
        check(bytes.tokens[id].empty() || to_byte_alphabet(bytes.tokens[id]) == plain.tokens[id],
              "bytes are those of the alphabet");
    check_encodes(bytes, content);
    check_encodes(document.model.to_vocabulary(true, hidden), content);
}

void read_ranks(std::string_view content) {
    const Vocabulary vocabulary = read_rank_file(content);
    check_merges(vocabulary);
    const std::string written = write_rank_file(vocabulary.tokens);
    check(read_rank_file(written).tokens == vocabulary.tokens, "a rank file is read as it was written");
    check(canonical_merges(vocabulary).size() <= vocabulary.merges.size(), "merges are among all pairs");
    check_encodes(vocabulary, content);
}

void read_sentencepiece(std::string_view content) {
    const SentencePieceModel model = parse_sentencepiece_model(content);
    std::vector<std::string> texts;
    std::vector<PieceKind> kinds;
    std::vector<float> scores;
    for (const auto& piece : model.pieces) {
        texts.push_back(piece.text);
        kinds.push_back(piece.kind);
        scores.push_back(piece.score);
    }
    const ScoredMerges merges = merges_of_scores(texts, kinds, scores);
    for (const MergeRule& rule : merges.rules) {
        const auto text = [&](TokenId id) {
            return id < texts.size() ? texts[id] : merges.extra_characters.at(id - texts.size());
        };
        check(text(rule.left) + text(rule.right) == text(rule.merged), "merges concatenate");
    }
    SentencePieceOptions options;
    options.byte_fallback = model.byte_fallback;
    options.prefix = model.add_dummy_prefix ? SpacePrefix::kAlways : SpacePrefix::kNever;
    options.collapse_spaces = model.remove_extra_whitespaces;
    options.space_is_mark = model.escape_whitespaces;
    options.charsmap = model.charsmap;
    const SentencePieceEncoder encoder(texts, kinds, merges.extra_characters, merges.rules, options);
    for (const TokenId id : encoder.encode(content, true)) check(id < texts.size(), "ids are those of pieces");
}

// A model in the wire format, some of it damaged.
std::string make_sentencepiece(FuzzInput& input) {
    const auto field = [](int number, std::string_view bytes) {
        std::string out(1, static_cast<char>(number * 8 + 2));
        out += static_cast<char>(bytes.size() % 128);
        return out.append(bytes.substr(0, bytes.size() % 128));
    };
    const auto number = [](int place, std::size_t value) {
        return std::string{static_cast<char>(place * 8), static_cast<char>(value)};
    };
    std::string file = field(1, field(1, "<unk>") + number(3, 2));
    const bool has_bytes = input.flip();
    for (std::size_t byte = 0; byte < 256 && has_bytes; ++byte) {
        constexpr std::string_view digits = "0123456789ABCDEF";
        file += field(1, field(1, std::string("<0x") + digits[byte / 16] + digits[byte % 16] + '>') + number(3, 6));
    }
    for (std::size_t i = input.below(16); i > 0; --i) {
        const std::string score = std::string("\x15\0\0", 3) + static_cast<char>(input.below(256)) + '\xC1';
        file += field(1, field(1, input.text(8)) + score + number(3, 1 + input.below(7) % 6));
    }
    std::string trainer("\x18\x02");
    if (has_bytes) trainer += "\x98\x02\x01";
    std::string normalizer;
    if (input.flip()) normalizer += field(2, input.text(60));
    for (int place = 3; place < 6; ++place) normalizer += number(place, input.below(2));
    file += field(2, trainer) + field(3, normalizer);
    for (std::size_t i = input.below(8); i > 0; --i) file[input.below(65536) % file.size()] = static_cast<char>(input.below(256));
    return file;
}

void read(FuzzInput& input) {
    static constexpr std::string_view kJson[] = {
        "{\"model\":{\"vocab\":{", "}", "\"merges\":[", "]", "}}", ",", ":", "\"", "\\", "\\u", "0120", "d83d", "\\ude00",
        "\"a\":0", "\"b\":1", "\"ab\":2", "\"\\u0120\":3", "[\"a\",\"b\"]", "\"a b\"", "\"model\":", "\"vocab\":", "null",
        "true", "1e5", "-1", "4294967296", "18446744073709551616", "\"\\u0144\":4", "[", "{", " ", "\n"};
    static constexpr std::string_view kRanks[] = {"\n", "\r\n", " ", "YQ==", "YWI=", "YWJj", "Yg==", "=", "A", "/", "+",
                                                  "0", "1", "2", "3", "9", "YQ== 0\n", "Yg== 1\n", "YWI= 2\n", "\t", "-"};
    switch (input.below(6)) {
        case 0: return read_json(ExactText(input.raw_rest()).view());
        case 1: return read_json(ExactText(of_parts(input.raw_rest(), kJson)).view());
        case 2: return read_ranks(ExactText(input.raw_rest()).view());
        case 3: return read_ranks(ExactText(of_parts(input.raw_rest(), kRanks)).view());
        case 4: return read_sentencepiece(ExactText(input.raw_rest()).view());
        default: return read_sentencepiece(ExactText(make_sentencepiece(input)).view());
    }
}

}  // namespace
}  // namespace pylm::tests

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    pylm::tests::FuzzInput input(data, size);
    try {
        pylm::tests::read(input);
    } catch (const std::invalid_argument&) {
        return 0;  // said what is wrong with it
    }
    return 0;
}
