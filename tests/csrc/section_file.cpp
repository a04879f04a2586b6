// Tokenizers written to a file and read back: ids and bytes are those of the original, for both kinds with every
// table; any byte that is changed, and any other length, is refused.
#include "tokenizer/section_file.hpp"

#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "check.hpp"
#include "tables.hpp"

namespace pylm::tests {
namespace {

std::vector<std::string> texts_of(Random& random) {
    std::vector<std::string> texts = hostile_texts();
    texts.push_back(random_words(random, 2000));
    for (std::string& text : huge_texts(3000)) texts.push_back(std::move(text));
    texts.emplace_back("tea <user> no\xC3\xA9 xx eat x\xE2\x96\x81tat. aaaa eeee\xFF");
    return texts;
}

template <typename Encoder, typename Encode>
void check_equal(const Encoder& original, const Encoder& again, Encode&& encode) {
    Random random(5);
    for (const std::string& text : texts_of(random))
        check(std::ranges::equal(encode(original, text), encode(again, text)), "a file gives the ids");
}

void check_given(const PackedVocabulary& original, const SectionFile& file) {
    const PackedVocabulary again(file);
    const Vocabulary expected = original.unpacked(), given = again.unpacked();
    check(given.tokens == expected.tokens, "a file gives the tokens");
    const auto is_same = [](const MergeRule& a, const MergeRule& b) { return std::memcmp(&a, &b, sizeof a) == 0; };
    check(std::ranges::equal(given.merges, expected.merges, is_same), "a file gives the merges");
}

FileBytes check_bytes(std::size_t num_merges, bool ignore_merges, bool ranked) {
    Random random(num_merges);
    Vocabulary made = byte_vocabulary(random, num_merges);
    if (ranked) {
        std::erase_if(made.merges, [before = TokenId{0}](const MergeRule& rule) mutable {
            return rule.merged <= std::exchange(before, std::max(before, rule.merged));
        });
        for (MergeRule& rule : made.merges) rule.rank = rule.merged;
    }
    const PackedVocabulary vocabulary(made);
    const BpeEncoder encoder(vocabulary.tokens(), vocabulary.merges().items(), Pattern::kCl100k, ignore_merges);
    FileBytes bytes(write(vocabulary, encoder));
    const SectionFile file = bytes.read();
    check_given(vocabulary, file);
    const PackedVocabulary again(file);
    check_equal(encoder, BpeEncoder(file, again.tokens(), Pattern::kCl100k, ignore_merges),
                [](const BpeEncoder& one, std::string_view text) { return one.encode(text); });
    const TokenDecoder decoder(file);
    check(decoder.token(300) == "<end>" && decoder.token('e') == "e", "a file gives the bytes of ids");
    std::string text;
    const std::vector<TokenId> ids{'n', 300, 'o'};
    decoder.decode(ids, true, text);
    check(text == "no", "a file says which tokens are special");
    return bytes;
}

void check_characters(bool has_ties, bool has_unused, SentencePieceOptions options) {
    Random random(has_ties ? 1 : 2);
    const CharacterVocabulary made = character_vocabulary(random, 300, has_ties, has_unused);
    const PackedVocabulary vocabulary(made.vocabulary);
    const SentencePieceEncoder encoder(vocabulary.tokens(), made.kinds, made.extra_characters,
                                       vocabulary.merges().items(), options);
    const FileBytes bytes(write(vocabulary, encoder, made.kinds));
    const SectionFile file = bytes.read();
    check_given(vocabulary, file);
    const PackedVocabulary again(file);
    const SentencePieceEncoder read(file, again.tokens(), read_kinds(file), options);
    check(read.cuts_text() == encoder.cuts_text(), "a file says whether text is cut");
    check_equal(encoder, read,
                [](const SentencePieceEncoder& one, std::string_view text) { return one.encode(text, true); });
    check(write(again, read, made.kinds) == bytes.view(), "what was read is written as it was");
}

void check_damage(FileBytes bytes) {
    const auto is_refused = [](const FileBytes& file) { return throws<std::invalid_argument>([&] { file.read(); }); };
    const std::string all(bytes.view());
    for (std::size_t i = 0; i < all.size(); i += i < 1024 ? 1 : 997) {
        bytes.bytes()[i] = static_cast<char>(bytes.bytes()[i] ^ (1 << i % 8));
        check(is_refused(bytes), "a changed byte is found");
        bytes.bytes()[i] = all[i];
    }
    for (std::size_t size = 0; size < all.size(); size += size < 1024 ? 1 : 997)
        check(is_refused(FileBytes(all.substr(0, size))), "a file that is cut off is found");
    check(is_refused(FileBytes(all + '\0')) && is_refused(FileBytes(all + all)), "a longer file is found");
    check(!is_refused(bytes), "the file itself is read");
}

}  // namespace

void test_section_file() {
    for (const bool ignore_merges : {false, true}) {
        for (const bool ranked : {false, true}) check_bytes(600, ignore_merges, ranked);
    }
    check_bytes(0, true, false);
    check_bytes(20'000, true, false);
    check_damage(check_bytes(300, true, true));
    for (const bool has_ties : {false, true}) {
        for (const bool has_unused : {false, true}) {
            SentencePieceOptions options;
            check_characters(has_ties, has_unused, options);
            options.prefix = SpacePrefix::kUnlessSpace;
            options.ignore_merges = true;
            options.split_words = !has_unused;
            check_characters(has_ties, has_unused, options);
            options = {};
            options.space_is_mark = false;
            options.collapse_spaces = true;
            check_characters(has_ties, has_unused, options);
        }
    }
}

}  // namespace pylm::tests
