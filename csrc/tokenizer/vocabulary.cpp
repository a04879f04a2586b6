#include "tokenizer/vocabulary.hpp"

#include <algorithm>
#include <bit>
#include <stdexcept>

#include "text/unicode.hpp"

namespace pylm {

PackedVocabulary::PackedVocabulary(const SectionFile& file)
    : tokens_(file, Section::kTokenBegins, Section::kTokenBytes), file_(file) {
    // They are read when somebody asks for the merges; that they can be is known now.
    (void)file.array<std::uint32_t>(Section::kRanks);
    (void)file.array<MergeRule>(Section::kMerges);
}

SharedArray<MergeRule> PackedVocabulary::merges() const {
    if (!file_) return merges_;
    const std::size_t with_extra = file_->array<std::uint32_t>(Section::kPieceBegins).size();
    const std::size_t num_ids = with_extra == 0 ? tokens_.size() : with_extra - 1;
    std::vector<MergeRule> merges = MergeTable::read_given(*file_, num_ids);
    for (const MergeRule& rule : merges) {
        if (rule.merged >= tokens_.size()) throw std::invalid_argument("its list of merges is damaged");
    }
    return SharedArray<MergeRule>(std::move(merges));
}

Vocabulary PackedVocabulary::unpacked() const {
    const SharedArray<MergeRule> rules = merges();
    return {tokens_.to_strings(), {rules.begin(), rules.end()}};
}

TokenIndex::TokenIndex(std::size_t count)
    : slots_(std::bit_ceil(std::max<std::size_t>(16, count * 2))), mask_(slots_.size() - 1) {}

std::string quoted(std::string_view bytes) {
    constexpr std::string_view digits = "0123456789abcdef";
    constexpr std::size_t longest = 60;
    std::string out = "'";
    for (std::size_t i = 0; i < bytes.size();) {
        if (i >= longest) return out + "'...";
        const Decoded c = decode_utf8(bytes, i);
        if (c.size > 1 || (c.point >= 0x20 && c.point < 0x7F)) {
            out += bytes.substr(i, c.size);
        } else {
            const auto byte = static_cast<std::uint8_t>(bytes[i]);
            out += {'\\', 'x', digits[byte >> 4], digits[byte & 15]};
        }
        i += c.size;
    }
    return out + "'";
}

}  // namespace pylm
