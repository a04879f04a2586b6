#include "tables.hpp"

#include <algorithm>
#include <cstring>
#include <map>
#include <stdexcept>
#include <utility>

namespace pylm::tests {

Vocabulary byte_vocabulary(Random& random, std::size_t num_merges) {
    Vocabulary vocabulary;
    std::map<std::string, TokenId> ids;
    for (std::size_t byte = 0; byte < 256; ++byte) vocabulary.tokens.emplace_back(1, static_cast<char>(byte));
    constexpr std::string_view letters = " etaoinsr\n";
    std::vector<TokenId> parts;
    for (const char letter : letters) parts.push_back(static_cast<std::uint8_t>(letter));
    while (vocabulary.merges.size() < num_merges) {
        const TokenId left = parts[random.below(parts.size())], right = parts[random.below(parts.size())];
        std::string merged = vocabulary.tokens[left] + vocabulary.tokens[right];
        const auto next = static_cast<TokenId>(vocabulary.tokens.size());
        const auto [known, is_new] = ids.emplace(merged, next);
        if (merged.size() > 24 || (!is_new && random.below(8) != 0)) {
            if (is_new) ids.erase(known);
            continue;
        }
        const auto rank = static_cast<std::uint32_t>(vocabulary.merges.size());
        vocabulary.merges.push_back({left, right, known->second, rank});
        if (!is_new) continue;
        vocabulary.tokens.push_back(std::move(merged));
        parts.push_back(next);
    }
    return vocabulary;
}

CharacterVocabulary character_vocabulary(Random& random, std::size_t num_pieces, bool has_ties, bool has_unused) {
    CharacterVocabulary made;
    std::vector<float> scores;
    std::map<std::string, bool> known;
    const auto add = [&](const std::string& text, PieceKind kind, float score) {
        if (!known.emplace(text, true).second) return;
        made.vocabulary.tokens.push_back(text);
        made.kinds.push_back(kind);
        scores.push_back(score);
    };
    add("<unk>", PieceKind::kUnknown, 0);
    add("<s>", PieceKind::kControl, 0);
    constexpr std::string_view digits = "0123456789ABCDEF";
    for (std::size_t byte = 0; byte < 256; ++byte)
        add(std::string("<0x") + digits[byte / 16] + digits[byte % 16] + '>', PieceKind::kByte, 0);
    std::vector<std::string> parts{"e", "t", "a", "o", "n", "\xE2\x96\x81", "\xC3\xA9", "."};
    for (const std::string& part : parts) add(part, PieceKind::kNormal, -1000);
    parts.emplace_back("x");  // an extra character: it has no piece
    if (random.below(2) == 0) add("<user>", PieceKind::kUserDefined, 0);
    for (std::size_t i = 0; i < num_pieces; ++i) {
        const std::string text = parts[random.below(parts.size())] + parts[random.below(parts.size())];
        if (text.size() > 24) continue;
        parts.push_back(text);
        const bool is_unused = has_unused && random.below(8) == 0;
        const auto rank = static_cast<float>(has_ties ? i / 4 : i);
        add(text, is_unused ? PieceKind::kUnused : PieceKind::kNormal, -rank);
    }
    ScoredMerges merges = merges_of_scores(made.vocabulary.tokens, made.kinds, scores);
    made.vocabulary.merges = std::move(merges.rules);
    made.extra_characters = std::move(merges.extra_characters);
    return made;
}

FileBytes::FileBytes(std::string_view bytes) : words_(new char[bytes.size()]), size_(bytes.size()) {
    if (!bytes.empty()) std::memcpy(words_.get(), bytes.data(), bytes.size());
}

std::string write(const PackedVocabulary& vocabulary, const BpeEncoder& encoder) {
    SectionWriter out;
    vocabulary.write(out);
    encoder.write(out, vocabulary.merges().items());
    const std::vector<TokenId> special{300};
    const std::vector<std::pair<TokenId, std::string>> added{{300, "<end>"}};
    TokenDecoder(vocabulary.tokens(), added, special).write(out);
    return std::move(out).finish();
}

std::string write(const PackedVocabulary& vocabulary, const SentencePieceEncoder& encoder,
                  std::span<const PieceKind> kinds) {
    SectionWriter out;
    std::vector<std::uint8_t> numbers;
    for (const PieceKind kind : kinds) numbers.push_back(static_cast<std::uint8_t>(kind));
    out.add(Section::kKinds, std::span<const std::uint8_t>(numbers));
    vocabulary.write(out);
    encoder.write(out, vocabulary.merges().items());
    TokenDecoder(vocabulary.tokens(), {}, {}).write(out);
    return std::move(out).finish();
}

std::vector<PieceKind> read_kinds(const SectionFile& file) {
    std::vector<PieceKind> kinds;
    for (const std::uint8_t number : file.array<std::uint8_t>(Section::kKinds)) {
        if (number < 1 || number > 6) throw std::invalid_argument("kinds must be 1 to 6");
        kinds.push_back(static_cast<PieceKind>(number));
    }
    return kinds;
}

}  // namespace pylm::tests
