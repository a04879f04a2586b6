#include "tokenizer/bpe_train.hpp"

#include <algorithm>
#include <limits>
#include <queue>
#include <stdexcept>

#include "parallel.hpp"
#include "text/hash.hpp"

namespace pylm {

namespace {

constexpr std::size_t kChunkBytes = 1 << 20;
constexpr std::size_t kChecksEvery = 64;

using Pair = std::uint64_t;  // left << 32 | right: the order of pairs is the order of numbers

Pair make_pair_key(std::uint32_t left, std::uint32_t right) noexcept {
    return (static_cast<Pair>(left) << 32) | right;
}

struct PairHash {
    std::size_t operator()(Pair pair) const noexcept { return static_cast<std::size_t>(mix64(pair)); }
};

struct PairState {
    std::int64_t count = 0;
    std::vector<std::uint32_t> words;  // that held the pair when it was formed; may repeat
};

struct Candidate {
    std::int64_t count;
    Pair pair;
    bool operator<(const Candidate& other) const noexcept {
        return count != other.count ? count < other.count : pair > other.pair;
    }
};

}  // namespace

std::size_t WordCounter::Hash::operator()(std::string_view text) const noexcept {
    return static_cast<std::size_t>(hash_bytes(text));
}

void WordCounter::add(std::span<const std::string_view> texts, unsigned num_threads) {
    std::vector<std::size_t> borders{0};
    std::size_t bytes = 0;
    for (std::size_t i = 0; i < texts.size(); ++i) {
        bytes += texts[i].size();
        if (bytes >= kChunkBytes) {
            borders.push_back(i + 1);
            bytes = 0;
        }
    }
    if (borders.back() != texts.size()) borders.push_back(texts.size());
    const std::size_t num_chunks = borders.size() - 1;
    const std::size_t num_workers =
        std::min<std::size_t>(resolve_threads(num_threads), std::max<std::size_t>(1, num_chunks));
    std::vector<Counts> parts(num_workers);
    parallel_for(num_workers, num_threads, [&](std::size_t worker) {
        Counts& counts = parts[worker];
        for (std::size_t chunk = num_chunks * worker / num_workers;
             chunk < num_chunks * (worker + 1) / num_workers; ++chunk) {
            for (std::size_t i = borders[chunk]; i < borders[chunk + 1]; ++i) {
                Pretokenizer pieces(pattern_, texts[i]);
                for (std::string_view piece = pieces.next(); !piece.empty(); piece = pieces.next()) {
                    const auto found = counts.find(piece);
                    if (found != counts.end()) {
                        ++found->second;
                    } else {
                        counts.emplace(piece, 1);
                    }
                }
            }
        }
    });
    for (const Counts& part : parts) {
        for (const auto& [word, count] : part) counts_[word] += count;
    }
}

std::vector<std::pair<std::string, std::uint64_t>> WordCounter::sorted() const {
    std::vector<std::pair<std::string, std::uint64_t>> words(counts_.begin(), counts_.end());
    std::sort(words.begin(), words.end());
    return words;
}

std::vector<std::pair<std::uint32_t, std::uint32_t>> train_bpe(
    std::span<const std::pair<std::string, std::uint64_t>> words, const TrainOptions& options) {
    constexpr std::uint64_t most = std::numeric_limits<std::uint32_t>::max();
    if (words.size() > most)
        throw std::invalid_argument("more than 2^32 - 1 different pieces; train on a sample");
    if (options.num_merges > most - options.first_id) throw std::invalid_argument("ids would pass 2^32 - 1");
    std::vector<std::vector<std::uint32_t>> symbols(words.size());
    std::unordered_map<Pair, PairState, PairHash> pairs;
    for (std::size_t w = 0; w < words.size(); ++w) {
        for (const char byte : words[w].first)
            symbols[w].push_back(options.byte_ids[static_cast<std::uint8_t>(byte)]);
        for (std::size_t i = 0; i + 1 < symbols[w].size(); ++i) {
            PairState& state = pairs[make_pair_key(symbols[w][i], symbols[w][i + 1])];
            state.count += static_cast<std::int64_t>(words[w].second);
            if (state.words.empty() || state.words.back() != w)
                state.words.push_back(static_cast<std::uint32_t>(w));
        }
    }
    std::priority_queue<Candidate> queue;
    for (const auto& [pair, state] : pairs) queue.push({state.count, pair});

    std::vector<std::pair<std::uint32_t, std::uint32_t>> merges;
    std::vector<Pair> raised;  // pairs that the current merge has made more frequent
    while (merges.size() < options.num_merges && !queue.empty()) {
        if (options.check && merges.size() % kChecksEvery == 0) options.check();
        const Candidate top = queue.top();
        queue.pop();
        PairState& state = pairs[top.pair];
        if (state.count != top.count) {  // outdated; counts that rose were pushed anew
            if (state.count > 0 && state.count < top.count) queue.push({state.count, top.pair});
            continue;
        }
        if (top.count < 1 || static_cast<std::uint64_t>(top.count) < options.min_frequency) break;
        const auto left = static_cast<std::uint32_t>(top.pair >> 32);
        const auto right = static_cast<std::uint32_t>(top.pair);
        const auto merged = static_cast<std::uint32_t>(options.first_id + merges.size());
        merges.emplace_back(left, right);
        std::vector<std::uint32_t> where = std::move(state.words);
        state.count = 0;
        std::sort(where.begin(), where.end());
        where.erase(std::unique(where.begin(), where.end()), where.end());
        raised.clear();
        for (const std::uint32_t w : where) {
            std::vector<std::uint32_t>& word = symbols[w];
            const auto weight = static_cast<std::int64_t>(words[w].second);
            const auto change = [&](std::uint32_t a, std::uint32_t b, std::int64_t sign) {
                const Pair pair = make_pair_key(a, b);
                if (pair == top.pair) return;  // this pair is done with
                PairState& other = pairs[pair];
                other.count += sign * weight;
                if (sign > 0) {
                    if (other.words.empty() || other.words.back() != w) other.words.push_back(w);
                    raised.push_back(pair);
                }
            };
            std::size_t out = 0;
            for (std::size_t i = 0; i < word.size(); ++i, ++out) {
                if (i + 1 >= word.size() || word[i] != left || word[i + 1] != right) {
                    word[out] = word[i];
                    continue;
                }
                if (out > 0) {
                    change(word[out - 1], left, -1);
                    change(word[out - 1], merged, +1);
                }
                if (i + 2 < word.size()) {
                    change(right, word[i + 2], -1);
                    change(merged, word[i + 2], +1);
                }
                word[out] = merged;
                ++i;
            }
            word.resize(out);
        }
        std::sort(raised.begin(), raised.end());
        raised.erase(std::unique(raised.begin(), raised.end()), raised.end());
        for (const Pair pair : raised) {
            const PairState& other = pairs[pair];
            if (other.count > 0) queue.push({other.count, pair});
        }
    }
    return merges;
}

}  // namespace pylm
