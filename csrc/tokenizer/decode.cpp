#include "tokenizer/decode.hpp"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <utility>

#include "tokenizer/section_file.hpp"
#include "tokenizer/vocabulary.hpp"

namespace pylm {

TokenDecoder::TokenDecoder(const TokenTexts& tokens,
                           std::span<const std::pair<TokenId, std::string>> added,
                           std::span<const TokenId> special) {
    std::size_t count = tokens.size();
    for (const auto& [id, text] : added) {
        if (id > largest_id(tokens.size() + added.size())) {
            throw std::invalid_argument("added token " + quoted(text) + " has the id " + std::to_string(id) +
                                        ", too large for a vocabulary of " + std::to_string(tokens.size()));
        }
        count = std::max<std::size_t>(count, std::size_t{id} + 1);
    }
    std::vector<std::string_view> views(count);
    for (std::size_t id = 0; id < tokens.size(); ++id) views[id] = tokens[id];
    for (const auto& [id, text] : added) views[id] = text;
    texts_ = TokenTexts(views);
    std::vector<std::uint8_t> is_special(count);
    for (const TokenId id : special) {
        if (id < count) is_special[id] = 1;
    }
    special_ = SharedArray<std::uint8_t>(std::move(is_special));
}

TokenDecoder::TokenDecoder(const SectionFile& file)
    : texts_(file, Section::kDecodedBegins, Section::kDecodedBytes),
      special_(file.array<std::uint8_t>(Section::kSpecial)) {
    if (special_.size() != texts_.size()) throw std::invalid_argument("its table of special tokens is damaged");
}

void TokenDecoder::write(SectionWriter& out) const {
    texts_.write(out, Section::kDecodedBegins, Section::kDecodedBytes);
    out.add(Section::kSpecial, special_.items());
}

void TokenDecoder::check(TokenId id) const {
    if (id >= size() || texts_[id].empty()) {
        throw std::out_of_range("token id " + std::to_string(id) + " is not in the vocabulary of " +
                                std::to_string(size()));
    }
}

void TokenDecoder::decode(std::span<const TokenId> ids, bool skip_special, std::string& out) const {
    std::size_t total = 0;
    for (const TokenId id : ids) {
        check(id);
        if (!skip_special || special_[id] == 0) total += texts_[id].size();
    }
    constexpr std::size_t kPadding = TokenTexts::kPadding;
    const std::size_t before = out.size();
    out.resize(before + total + kPadding);
    char* place = out.data() + before;
    for (const TokenId id : ids) {
        if (skip_special && special_[id] != 0) continue;
        const std::string_view text = texts_[id];
        const std::size_t size = text.size();
        // Nearly all tokens are short: sixteen bytes at once, the rest of them overwritten by the next token.
        std::memcpy(place, text.data(), kPadding);
        if (size > kPadding) {
            std::memcpy(place + kPadding, text.data() + kPadding, size - kPadding);
        }
        place += size;
    }
    out.resize(before + total);
}

std::vector<std::uint32_t> TokenDecoder::lengths(std::span<const TokenId> ids) const {
    std::vector<std::uint32_t> sizes;
    sizes.reserve(ids.size());
    for (const TokenId id : ids) sizes.push_back(static_cast<std::uint32_t>(token(id).size()));
    return sizes;
}

}  // namespace pylm
