#include "signals/ngrams.hpp"

#include <algorithm>
#include <limits>

#include "text/hash.hpp"

namespace pylm::signals {
namespace {

constexpr std::uint32_t kNone = std::numeric_limits<std::uint32_t>::max();

}  // namespace

void NgramSignals::count_top(std::span<const Token> tokens, std::span<const std::uint32_t> ids, Row& row) {
    grams_.assign(ids.begin(), ids.end());
    for (std::size_t n = 2; n <= 4; ++n) {
        const Signal signal = static_cast<Signal>(kTop2 + (n - 2));
        row[signal] = 0;
        if (tokens.size() < n) continue;
        const std::size_t size = tokens.size() - n + 1;
        numbering_.reset(size);
        counts_.clear();
        firsts_.clear();
        // An n-gram repeats only where both (n-1)-grams in it do. (gram at i, token at i + n - 1) is exact.
        for (std::size_t i = 0; i < size; ++i) {
            if (grams_[i] == kNone || grams_[i + 1] == kNone) {
                grams_[i] = kNone;
                continue;
            }
            const std::uint32_t number = numbering_((std::uint64_t{grams_[i]} << 32) | ids[i + n - 1]);
            if (number == counts_.size()) {
                counts_.push_back(0);
                firsts_.push_back(static_cast<std::uint32_t>(i));
            }
            ++counts_[number];
            grams_[i] = number;
        }
        const auto most = std::max_element(counts_.begin(), counts_.end());
        const bool repeats = most != counts_.end() && *most > 1;
        const std::size_t first = repeats ? firsts_[static_cast<std::size_t>(most - counts_.begin())] : 0;
        std::size_t chars = n - 1;
        for (std::size_t i = first; i < first + n; ++i) chars += tokens[i].num_chars;
        row[signal] = static_cast<double>(chars) * (repeats ? *most : 1);
        for (std::size_t i = 0; i < size; ++i) {
            if (grams_[i] != kNone && counts_[grams_[i]] == 1) grams_[i] = kNone;
        }
        grams_.resize(size);
    }
}

void NgramSignals::count_duplicates(std::span<const Token> tokens, std::string_view joined,
                                    std::span<const std::size_t> begins, Row& row) {
    constexpr std::size_t least = 5, most = 10, head = 16;
    for (std::size_t n = least; n <= most; ++n) row[kDuplicate5 + (n - least)] = 0;
    if (tokens.size() < least) return;
    // An n-gram of `head` bytes or more repeats only where its first `head` bytes do, however they are cut.
    const std::size_t size = tokens.size() - least + 1;
    repeated_.assign(size, 0);
    numbering_.reset(size);
    firsts_.clear();
    for (std::size_t i = 0; i < size; ++i) {
        const std::uint32_t number = numbering_(hash_bytes(joined.substr(begins[i], head)));
        if (number == firsts_.size()) {
            firsts_.push_back(static_cast<std::uint32_t>(i));
        } else {
            repeated_[i] = repeated_[firsts_[number]] = 1;
        }
    }
    for (std::size_t n = least; n <= most && n <= tokens.size(); ++n) {
        std::size_t chars = 0;
        numbering_.reset(tokens.size() - n + 1);
        for (std::size_t i = 0; i + n <= tokens.size();) {
            const std::size_t bytes = begins[i + n] - begins[i];
            if (repeated_[i] == 0 && bytes >= head) {
                ++i;
                continue;
            }
            const std::uint32_t known = numbering_.size();
            if (numbering_(hash_bytes(joined.substr(begins[i], bytes))) == known) {
                ++i;
                continue;
            }
            for (std::size_t end = i + n; i < end; ++i) chars += tokens[i].num_chars;
        }
        row[kDuplicate5 + (n - least)] = static_cast<double>(chars);
    }
}

}  // namespace pylm::signals
