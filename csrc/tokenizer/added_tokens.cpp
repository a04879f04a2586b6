#include "tokenizer/added_tokens.hpp"

#include <algorithm>
#include <cstring>
#include <map>
#include <stdexcept>

#include "parallel.hpp"
#include "text/properties.hpp"

namespace pylm {

namespace {

constexpr std::size_t kChunkBytes = std::size_t{1} << 20;

bool word_before(std::string_view text, std::size_t end) noexcept {
    return end > 0 && has_property(decode_utf8(text, previous_start(text, end)).point, kWordChar);
}

bool word_after(std::string_view text, std::size_t begin) noexcept {
    return begin < text.size() && has_property(decode_utf8(text, begin).point, kWordChar);
}

// Not back beyond `least`.
std::size_t strip_before(std::string_view text, std::size_t end, std::size_t least) noexcept {
    while (end > least) {
        const std::size_t start = previous_start(text, end);
        if (classify(decode_utf8(text, start).point) != kSpace) break;
        end = start;
    }
    return end;
}

std::size_t strip_after(std::string_view text, std::size_t begin) noexcept {
    while (begin < text.size()) {
        const Decoded c = decode_utf8(text, begin);
        if (classify(c.point) != kSpace) break;
        begin += c.size;
    }
    return begin;
}

}  // namespace

AddedTokens::AddedTokens(std::vector<AddedToken> tokens) : tokens_(std::move(tokens)) {
    std::vector<std::map<std::uint8_t, std::uint32_t>> children(1);
    std::vector<std::uint32_t> ends(1, kNone);
    for (std::size_t token = 0; token < tokens_.size(); ++token) {
        if (tokens_[token].content.empty()) {
            throw std::invalid_argument("added token " + std::to_string(tokens_[token].id) + " is empty");
        }
        std::uint32_t node = 0;
        for (const char c : tokens_[token].content) {
            const auto next = static_cast<std::uint32_t>(children.size());
            const auto [edge, is_new] = children[node].emplace(static_cast<std::uint8_t>(c), next);
            node = edge->second;
            if (is_new) {
                children.emplace_back();
                ends.push_back(kNone);
            }
        }
        if (ends[node] == kNone) ends[node] = static_cast<std::uint32_t>(token);
    }
    for (std::size_t node = 0; node < children.size(); ++node) {
        nodes_.push_back({static_cast<std::uint32_t>(edges_.size()),
                          static_cast<std::uint32_t>(children[node].size()), ends[node]});
        edges_.insert(edges_.end(), children[node].begin(), children[node].end());
    }
    for (const auto& [byte, node] : children[0]) {
        is_first_[byte] = 1;
        if (num_first_ < kFewFirst) first_[num_first_] = byte;
        ++num_first_;
    }
    // Unused places repeat the first, so that comparing with all of them is right for any number.
    for (std::size_t i = num_first_; i < kFewFirst; ++i) first_[i] = first_[0];
}

std::size_t AddedTokens::next_candidate(std::string_view text, std::size_t begin) const noexcept {
    if (num_first_ == 0 || begin >= text.size()) return text.size();
    if (num_first_ == 1) {
        const void* found = std::memchr(text.data() + begin, first_[0], text.size() - begin);
        return found == nullptr ? text.size()
                                : static_cast<std::size_t>(static_cast<const char*>(found) - text.data());
    }
    if (num_first_ <= kFewFirst) {
        constexpr std::size_t kBlock = 32;
        const auto [a, b, c, d] = first_;
        while (text.size() - begin >= kBlock) {
            std::uint8_t any = 0;  // a loop without branches, which compilers turn into vector code
            for (std::size_t i = 0; i < kBlock; ++i) {
                const auto byte = static_cast<std::uint8_t>(text[begin + i]);
                any |= static_cast<std::uint8_t>((byte == a) | (byte == b) | (byte == c) | (byte == d));
            }
            if (any != 0) break;
            begin += kBlock;
        }
    }
    while (begin < text.size() && is_first_[static_cast<std::uint8_t>(text[begin])] == 0) ++begin;
    return begin;
}

std::uint32_t AddedTokens::longest_at(std::string_view text, std::size_t begin,
                                      std::span<const std::uint8_t> enabled) const noexcept {
    std::uint32_t longest = kNone;
    std::size_t node = 0;
    for (std::size_t i = begin; i < text.size(); ++i) {
        const auto byte = static_cast<std::uint8_t>(text[i]);
        const auto first = edges_.begin() + nodes_[node].first_edge;
        const auto last = first + nodes_[node].num_edges;
        const auto edge =
            std::lower_bound(first, last, byte, [](const auto& e, std::uint8_t b) { return e.first < b; });
        if (edge == last || edge->first != byte) break;
        node = edge->second;
        const std::uint32_t token = nodes_[node].token;
        if (token != kNone && enabled[token] != 0) longest = token;
    }
    return longest;
}

std::vector<AddedMatch> AddedTokens::find(std::string_view text,
                                          std::span<const std::uint8_t> enabled) const {
    std::vector<AddedMatch> matches;
    std::size_t taken = 0;  // what the matches so far have taken of the text
    std::size_t space_begin = 0, space_end = 0;  // white space that was looked through, for tokens that are some
    std::size_t place = 0;
    while ((place = next_candidate(text, place)) < text.size()) {
        const std::uint32_t index = longest_at(text, place, enabled);
        if (index == kNone) {
            ++place;
            continue;
        }
        const AddedToken& token = tokens_[index];
        AddedMatch match{place, place + token.content.size(), index};
        place = match.end;  // white space that a token takes along may itself hold the next token
        if (token.single_word && (word_before(text, match.begin) || word_after(text, match.end))) continue;
        if (token.lstrip) match.begin = std::max(strip_before(text, match.begin, taken), taken);
        if (token.rstrip) {
            if (match.end < space_begin || match.end > space_end) {
                space_begin = match.end;
                space_end = strip_after(text, match.end);
            }
            match.end = space_end;
        }
        if (match.begin >= match.end) continue;  // white space that the token before it has all of
        taken = match.end;
        matches.push_back(match);
    }
    return matches;
}

TokenBatch AddedTokens::encode_batch(std::span<const std::string_view> texts,
                                     std::span<const std::uint8_t> begins,
                                     std::span<const std::uint8_t> enabled, const Encode& encode,
                                     std::optional<TokenId> end, unsigned num_threads) const {
    if (std::ranges::all_of(enabled, [](std::uint8_t on) { return on == 0; })) return encode(texts, begins, end);
    const std::vector<Place> places = find_all(texts, enabled, num_threads);
    if (places.empty()) return encode(texts, begins, end);

    std::vector<std::string_view> stretches;
    std::vector<std::uint8_t> stretch_begins;
    stretches.reserve(texts.size() + places.size());
    stretch_begins.reserve(texts.size() + places.size());
    auto next = places.begin();
    for (std::size_t i = 0; i < texts.size(); ++i) {
        std::size_t begin = 0;
        const auto add = [&](std::size_t last) {
            stretches.push_back(texts[i].substr(begin, last - begin));
            stretch_begins.push_back(begin == 0 ? begins[i] : 0);
        };
        for (; next != places.end() && next->text == i; ++next) {
            // A token may begin in white space that the one before it took along.
            add(std::max(next->match.begin, begin));
            begin = next->match.end;
        }
        add(texts[i].size());
    }
    const TokenBatch between = encode(stretches, stretch_begins, std::nullopt);
    TokenBatch batch;
    batch.ids.reserve(between.ids.size() + places.size() + (end ? texts.size() : 0));
    batch.offsets.assign(1, 0);
    batch.offsets.reserve(texts.size() + 1);
    std::size_t stretch = 0;
    const auto take_stretch = [&] {
        const auto first = static_cast<std::size_t>(between.offsets[stretch]);
        const auto count = static_cast<std::size_t>(between.offsets[stretch + 1]) - first;
        const std::size_t before = batch.ids.size();
        batch.ids.resize(before + count);
        std::copy_n(between.ids.data() + first, count, batch.ids.data() + before);
        ++stretch;
    };
    next = places.begin();
    for (std::size_t i = 0; i < texts.size(); ++i) {
        for (; next != places.end() && next->text == i; ++next) {
            take_stretch();
            batch.ids.push_back(tokens_[next->match.token].id);
        }
        take_stretch();
        if (end) batch.ids.push_back(*end);
        batch.offsets.push_back(static_cast<std::int64_t>(batch.ids.size()));
    }
    return batch;
}

// Tokens of all texts, in order. Texts are shared out whole.
std::vector<AddedTokens::Place> AddedTokens::find_all(std::span<const std::string_view> texts,
                                                      std::span<const std::uint8_t> enabled,
                                                      unsigned num_threads) const {
    std::vector<std::size_t> borders{0};
    std::size_t bytes = 0;
    for (std::size_t i = 0; i < texts.size(); ++i) {
        bytes += texts[i].size();
        if (bytes >= kChunkBytes || i + 1 == texts.size()) {
            borders.push_back(i + 1);
            bytes = 0;
        }
    }
    std::vector<std::vector<Place>> parts(borders.size() - 1);
    parallel_for(parts.size(), num_threads, [&](std::size_t part) {
        for (std::size_t i = borders[part]; i < borders[part + 1]; ++i) {
            for (const AddedMatch& match : find(texts[i], enabled)) parts[part].push_back({i, match});
        }
    });
    std::vector<Place> places;
    for (const auto& part : parts) places.insert(places.end(), part.begin(), part.end());
    return places;
}

}  // namespace pylm
