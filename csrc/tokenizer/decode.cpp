#include "tokenizer/decode.hpp"

#include <algorithm>
#include <cstring>
#include <limits>
#include <stdexcept>

#include "tokenizer/vocabulary.hpp"

namespace pylm {

TokenDecoder::TokenDecoder(std::span<const std::string> tokens,
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
    std::vector<std::string_view> views(tokens.begin(), tokens.end());
    views.resize(count);
    for (const auto& [id, text] : added) views[id] = text;
    std::size_t total = 0;
    for (const std::string_view view : views) total += view.size();
    if (total > std::numeric_limits<std::uint32_t>::max()) {
        throw std::invalid_argument("the tokens of the vocabulary take 4 GiB or more");
    }
    bytes_.reserve(total + kPadding);
    begins_.reserve(count + 1);
    begins_.push_back(0);
    for (const std::string_view view : views) {
        bytes_.append(view);
        begins_.push_back(static_cast<std::uint32_t>(bytes_.size()));
    }
    bytes_.append(kPadding, '\0');
    special_.assign(count, 0);
    for (const TokenId id : special) {
        if (id < count) special_[id] = 1;
    }
}

void TokenDecoder::check(TokenId id) const {
    if (id >= size() || begins_[id] == begins_[id + 1]) {
        throw std::out_of_range("token id " + std::to_string(id) + " is not in the vocabulary of " +
                                std::to_string(size()));
    }
}

void TokenDecoder::decode(std::span<const TokenId> ids, bool skip_special, std::string& out) const {
    std::size_t total = 0;
    for (const TokenId id : ids) {
        check(id);
        if (!skip_special || special_[id] == 0) total += begins_[id + 1] - begins_[id];
    }
    const std::size_t before = out.size();
    out.resize(before + total + kPadding);
    char* place = out.data() + before;
    for (const TokenId id : ids) {
        if (skip_special && special_[id] != 0) continue;
        const std::size_t begin = begins_[id];
        const std::size_t size = begins_[id + 1] - begin;
        // Nearly all tokens are short: sixteen bytes at once, the rest of them overwritten by the next token.
        std::memcpy(place, bytes_.data() + begin, kPadding);
        if (size > kPadding) {
            std::memcpy(place + kPadding, bytes_.data() + begin + kPadding, size - kPadding);
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
