// Files of tokenizers with any bytes changed and the checksums made anew, as nobody but an attacker would: they are
// refused with std::invalid_argument, or give some ids for any text, and never read what is not theirs.
#include <array>
#include <cstring>
#include <stdexcept>
#include <utility>
#include <vector>

#include "fuzz_input.hpp"
#include "tables.hpp"

namespace pylm::tests {
namespace {

struct Base {
    std::string bytes;
    SentencePieceOptions options;
    bool of_characters = false;
    bool ignore_merges = false;
};

Base make_base(FuzzInput& input) {
    Base base;
    base.of_characters = input.flip();
    base.ignore_merges = base.options.ignore_merges = input.flip();
    const bool has_ties = input.flip(), has_unused = input.flip();
    Random random(input.below(4));
    if (!base.of_characters) {
        const PackedVocabulary vocabulary(byte_vocabulary(random, 40));
        base.bytes = write(vocabulary, BpeEncoder(vocabulary.tokens(), vocabulary.merges().items(), Pattern::kCl100k,
                                                  base.ignore_merges));
        return base;
    }
    base.options.prefix = static_cast<SpacePrefix>(input.below(3));
    base.options.split_words = !has_unused && input.flip();
    const CharacterVocabulary made = character_vocabulary(random, 60, has_ties, has_unused);
    const PackedVocabulary vocabulary(made.vocabulary);
    const SentencePieceEncoder encoder(vocabulary.tokens(), made.kinds, made.extra_characters,
                                       vocabulary.merges().items(), base.options);
    base.bytes = write(vocabulary, encoder, made.kinds);
    return base;
}

// Change numbers within a section, or, where `section` is that of the header and the list, there.
void change(FuzzInput& input, std::span<char> bytes) {
    constexpr std::size_t kHeader = 64, kEntry = 32;
    std::uint64_t num_sections, place[2];
    std::memcpy(&num_sections, bytes.data() + 24, sizeof num_sections);
    if (num_sections > 32) return;  // changed before
    const std::size_t section = input.below(static_cast<std::size_t>(num_sections) + 1);
    std::size_t begin = 0, size = kHeader + kEntry * static_cast<std::size_t>(num_sections);
    if (section < num_sections) {
        std::memcpy(place, bytes.data() + kHeader + section * kEntry + 8, sizeof place);
        begin = static_cast<std::size_t>(place[0]);
        size = static_cast<std::size_t>(place[1]);
    }
    constexpr std::array<std::size_t, 4> kWidths = {1, 4, 4, 8};
    const std::size_t width = kWidths[input.below(kWidths.size())];
    if (size < width || begin > bytes.size() || size > bytes.size() - begin) return;
    const std::size_t at = begin + (input.below(65536) << (input.flip() ? 4 : 0)) % (size / width) * width;
    std::uint64_t value = 0;
    switch (input.below(4)) {
        case 0: value = input.below(256); break;
        case 1: value = ~std::uint64_t{0} - input.below(256); break;
        case 2: value = std::uint64_t{1} << input.below(64); break;
        default:
            std::memcpy(&value, bytes.data() + at, width);
            value += input.flip() ? 1 : ~std::uint64_t{0};
    }
    std::memcpy(bytes.data() + at, &value, width);
}

void use(const Base& base, const SectionFile& file, const std::string& text) {
    const PackedVocabulary vocabulary(file);
    try {
        vocabulary.unpacked();
    } catch (const std::invalid_argument&) {  // is not looked at before
    }
    const TokenDecoder decoder(file);
    std::string decoded;
    for (std::size_t id = 0; id < decoder.size(); ++id) {
        const std::vector<TokenId> ids{static_cast<TokenId>(id)};
        if (!throws<std::out_of_range>([&] { (void)decoder.lengths(ids); })) decoder.decode(ids, id % 2 == 0, decoded);
    }
    const auto encode = [&]() -> TokenBuffer {
        if (base.of_characters) {
            const std::vector<PieceKind> kinds = read_kinds(file);
            return SentencePieceEncoder(file, vocabulary.tokens(), kinds, base.options).encode(text, true);
        }
        return BpeEncoder(file, vocabulary.tokens(), Pattern::kCl100k, base.ignore_merges).encode(text);
    };
    const TokenBuffer ids = encode();
    for (const TokenId id : ids) check(id < vocabulary.tokens().size(), "ids are of the vocabulary");
}

}  // namespace
}  // namespace pylm::tests

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    using namespace pylm;
    using namespace pylm::tests;
    FuzzInput input(data, size);
    const Base base = make_base(input);
    FileBytes bytes(base.bytes);
    const bool is_sealed = input.below(8) != 0;
    for (std::size_t left = input.below(6); left > 0; --left) change(input, bytes.bytes());
    try {
        if (is_sealed) SectionFile::seal(bytes.bytes());
        use(base, bytes.read(), input.rest());
    } catch (const std::invalid_argument&) {
        return 0;
    }
    return 0;
}
