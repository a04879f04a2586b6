#include "tokenizer/bpe_train.hpp"

#include <algorithm>
#include <array>
#include <cassert>
#include <limits>
#include <span>
#include <stdexcept>
#include <string_view>
#include <unordered_map>

#include "parallel.hpp"
#include "tokenizer/pair_table.hpp"
#include "tokenizer/word_symbols.hpp"

namespace pylm {

namespace {

constexpr std::uint32_t kBorder = WordSymbols::kBorder;
constexpr std::uint32_t kNoId = TrainOptions::kNoId;
constexpr std::size_t kMergesBetweenChecks = 64;
constexpr std::size_t kPlacesBetweenChecks = 1 << 20;
constexpr std::size_t kAhead = 12;  // places whose symbols are fetched before they are needed

// Bytes of every id.
class Tokens {
public:
    void set(std::uint32_t id, std::string bytes) {
        if (id >= bytes_.size()) {
            bytes_.resize(std::max<std::size_t>(id + 1, 2 * bytes_.size()));
            sizes_.resize(bytes_.size());
        }
        sizes_[id] = static_cast<std::uint32_t>(bytes.size());
        bytes_[id] = std::move(bytes);
    }
    const std::string& operator[](std::uint32_t id) const noexcept { return bytes_[id]; }
    std::uint32_t size(std::uint32_t id) const noexcept { return sizes_[id]; }

private:
    std::vector<std::string> bytes_;
    std::vector<std::uint32_t> sizes_;  // of the same, for merging, which needs nothing else
};

// Pairs in the order in which they are merged. Counts only fall once a pair is known, so an entry may be out
// of date but never too low; and a pair whose count is below the bar need not be here until the bar is lowered.
class PairQueue {
public:
    PairQueue(const PairTable& pairs, const Tokens& tokens, Ties ties, std::int64_t least)
        : pairs_(pairs), tokens_(tokens), ties_(ties), least_(least) {
        std::int64_t most = 0;
        pairs_.visit([&](PairKey, std::int64_t count) { most = std::max(most, count); });
        bar_ = most;
        refill();
    }

    void push(PairKey pair, std::int64_t count) {
        if (count < bar_) return;
        heap_.push_back({count, pair});
        std::ranges::push_heap(heap_, [this](const Entry& a, const Entry& b) { return after(a, b); });
    }

    // The pair to merge next; false where none is left.
    bool pop(PairKey& pair) {
        const auto order = [this](const Entry& a, const Entry& b) { return after(a, b); };
        for (;;) {
            if (heap_.empty()) {
                if (bar_ <= least_ || pairs_.size() == 0) return false;
                bar_ = std::max(least_, bar_ / 2);
                refill();
                continue;
            }
            std::ranges::pop_heap(heap_, order);
            const Entry top = heap_.back();
            heap_.pop_back();
            const std::int64_t count = pairs_.count(top.pair);
            if (count == top.count) {
                pair = top.pair;
                return true;
            }
            push(top.pair, count);
        }
    }

private:
    struct Entry {
        std::int64_t count;
        PairKey pair;
    };

    bool after(const Entry& a, const Entry& b) const {
        if (a.count != b.count) return a.count < b.count;
        if (ties_ == Ties::kSmallestIds) return a.pair > b.pair;
        const int left = tokens_[left_of(a.pair)].compare(tokens_[left_of(b.pair)]);
        return left != 0 ? left < 0 : tokens_[right_of(a.pair)] < tokens_[right_of(b.pair)];
    }

    void refill() {
        pairs_.visit([&](PairKey pair, std::int64_t count) {
            if (count >= bar_) heap_.push_back({count, pair});
        });
        std::ranges::make_heap(heap_, [this](const Entry& a, const Entry& b) { return after(a, b); });
    }

    const PairTable& pairs_;
    const Tokens& tokens_;
    Ties ties_;
    std::int64_t least_;
    std::int64_t bar_ = 0;
    std::vector<Entry> heap_;
};

// The neighbours on one side of the occurrences of a pair that is being merged.
class Neighbours {
public:
    struct Tally {
        std::int64_t count = 0;
        std::uint32_t num_places = 0;
        std::uint32_t* next = nullptr;  // where the next place of a pair that is kept goes
    };
    struct Found {
        std::uint32_t id;
        std::uint32_t place;
    };

    void add(std::uint32_t id, std::uint32_t place, std::int64_t weight) {
        if (id >= tallies_.size()) tallies_.resize(std::max<std::size_t>(id + 1, 2 * tallies_.size()));
        Tally& tally = tallies_[id];
        if (tally.num_places++ == 0) ids_.push_back(id);
        tally.count += weight;
        found_.push_back({id, place});
    }

    std::int64_t count(std::uint32_t id) const noexcept {
        return id < tallies_.size() ? tallies_[id].count : 0;
    }
    Tally& tally(std::uint32_t id) noexcept { return tallies_[id]; }
    std::span<const std::uint32_t> ids() const noexcept { return ids_; }
    std::span<const Found> found() const noexcept { return found_; }

    void clear() {
        for (const std::uint32_t id : ids_) tallies_[id] = Tally();
        ids_.clear();
        found_.clear();
    }

private:
    std::vector<Tally> tallies_;  // by id
    std::vector<std::uint32_t> ids_;
    std::vector<Found> found_;
};

class Trainer {
public:
    Trainer(WordCounter& words, const TrainOptions& options)
        : options_(options),
          least_(static_cast<std::int64_t>(std::clamp<std::uint64_t>(
              options.min_frequency, 1, std::numeric_limits<std::int64_t>::max()))),
          symbols_(words, options.byte_ids, options.release_words) {
        for (const KnownToken& token : options.known) {
            ids_.emplace(token.bytes, token.id);
            tokens_.set(token.id, token.bytes);
        }
        for (std::size_t byte = 0; byte < 256; ++byte) {
            if (options.byte_ids[byte] == kNoId) continue;
            tokens_.set(options.byte_ids[byte], std::string(1, static_cast<char>(byte)));
        }
        count_first_pairs();
    }

    std::vector<TrainedMerge> run() {
        PairQueue queue(pairs_, tokens_, options_.ties, least_);
        std::vector<TrainedMerge> merges;
        PairKey pair = 0;
        for (std::size_t made = 0; made < options_.num_tokens && queue.pop(pair);) {
            if (merges.size() % kMergesBetweenChecks == 0) check(made);
            const auto left = left_of(pair);
            const auto right = right_of(pair);
            std::string bytes = tokens_[left] + tokens_[right];
            const auto known = ids_.find(bytes);
            const auto merged = known != ids_.end() ? known->second
                                                    : static_cast<std::uint32_t>(options_.first_id + made++);
            if (known == ids_.end()) tokens_.set(merged, std::move(bytes));
            merges.push_back({left, right, merged});
            merge(pair, merged, made, queue);
        }
        return merges;
    }

private:
    void check(std::size_t made) const {
        if (options_.progress) options_.progress(made);
    }

    std::uint32_t length(std::uint32_t id) const noexcept {
        return tokens_.size(id);
    }

    void count_first_pairs() {
        // Ids of bytes are few but may lie anywhere: count by the bytes themselves.
        std::vector<std::uint8_t> byte_of(options_.first_id);
        for (std::size_t byte = 0; byte < 256; ++byte) {
            const std::uint32_t id = options_.byte_ids[byte];
            if (id != kNoId) byte_of[id] = static_cast<std::uint8_t>(byte);
        }
        struct Cell {
            std::int64_t count = 0;
            std::uint32_t num_places = 0;
            std::uint32_t* next = nullptr;
        };
        std::vector<Cell> cells(1 << 16);
        const auto each = [&](auto&& visit) {
            for (std::size_t i = 1; i + 1 < symbols_.size(); ++i) {
                if (symbols_[i] == kBorder || symbols_[i + 1] == kBorder) continue;
                visit(cells[(byte_of[symbols_[i]] << 8) | byte_of[symbols_[i + 1]]], i);
            }
        };
        each([&](Cell& cell, std::size_t i) {
            cell.count += symbols_.weight(i);
            ++cell.num_places;
        });
        std::vector<PairPlaces> places(cells.size());
        for (std::size_t i = 0; i < cells.size(); ++i) {
            if (cells[i].count < least_) continue;
            places[i] = PairPlaces(cells[i].num_places);
            cells[i].next = places[i].view().data();
        }
        each([](Cell& cell, std::size_t i) {
            if (cell.next != nullptr) *cell.next++ = static_cast<std::uint32_t>(i);
        });
        for (std::size_t i = 0; i < cells.size(); ++i) {
            if (cells[i].count < least_) continue;
            const PairKey key = make_pair_key(options_.byte_ids[i >> 8], options_.byte_ids[i & 255]);
            pairs_.insert(key, {cells[i].count, std::move(places[i])});
        }
    }

    // Join the pair wherever it stands, from left to right.
    void merge(PairKey pair, std::uint32_t merged, std::size_t made, PairQueue& queue) {
        const auto left = left_of(pair);
        const auto right = right_of(pair);
        const std::uint32_t left_size = length(left);
        const std::uint32_t size = left_size + length(right);
        PairPlaces taken = pairs_.take(pair);
        const std::span<const std::uint32_t> places = taken.view();
        std::uint32_t* const symbols = symbols_.data();
        for (std::size_t i = 0; i < places.size(); ++i) {
            if (i + kAhead < places.size()) __builtin_prefetch(symbols + places[i + kAhead], 1);
            if (i % kPlacesBetweenChecks == kPlacesBetweenChecks - 1) check(made);
            const std::uint32_t at = places[i];
            // An occurrence is gone where another merge has taken one of its tokens.
            if (symbols[at] != left || symbols[at + left_size] != right) continue;
            const std::int64_t weight = symbols_.weight(at);
            const std::uint32_t before = symbols[at - 1];
            const std::uint32_t after = symbols[at + size];
            symbols[at + left_size] = WordSymbols::kInside;
            symbols[at] = merged;
            symbols[at + size - 1] = merged;
            if (before != kBorder) before_.add(before, at - length(before), weight);
            if (after != kBorder) after_.add(after, at, weight);
        }
        // Where two occurrences touch, the second one's neighbour is already the new token; the pair of the
        // new token and `left` that the first one seemed to make is not there.
        const std::int64_t touching = before_.count(merged);
        if (touching > 0) after_.tally(left).count -= touching;
        for (const std::uint32_t id : before_.ids())
            if (id != merged) pairs_.lower(make_pair_key(id, left), before_.count(id), least_);
        for (const std::uint32_t id : after_.ids()) {
            const std::int64_t count = after_.count(id) + (id == left ? touching : 0);
            pairs_.lower(make_pair_key(right, id), count, least_);
        }
        add_pairs(before_, size, queue, [&](std::uint32_t id) { return make_pair_key(id, merged); });
        add_pairs(after_, size, queue, [&](std::uint32_t id) { return make_pair_key(merged, id); });
        before_.clear();
        after_.clear();
    }

    // Keep the new pairs that are frequent enough: no pair ever becomes more frequent than it is when made.
    template <typename KeyOf>
    void add_pairs(Neighbours& side, std::uint32_t size, PairQueue& queue, KeyOf&& key_of) {
        const std::size_t most = options_.max_token_length;
        kept_.clear();
        for (const std::uint32_t id : side.ids()) {
            Neighbours::Tally& tally = side.tally(id);
            if (tally.count < least_ || (most > 0 && size + length(id) >= most)) continue;
            kept_.emplace_back(id, PairPlaces(tally.num_places));
        }
        for (auto& [id, places] : kept_) side.tally(id).next = places.view().data();
        for (const auto& [id, place] : side.found()) {
            Neighbours::Tally& tally = side.tally(id);
            if (tally.next != nullptr) *tally.next++ = place;
        }
        for (auto& [id, places] : kept_) {
            const PairKey key = key_of(id);
            const std::int64_t count = side.count(id);
            pairs_.insert(key, {count, std::move(places)});
            queue.push(key, count);
        }
    }

    const TrainOptions& options_;
    std::int64_t least_;
    WordSymbols symbols_;
    Tokens tokens_;
    std::unordered_map<std::string, std::uint32_t> ids_;  // of tokens that are known beforehand
    PairTable pairs_;
    Neighbours before_;
    Neighbours after_;
    std::vector<std::pair<std::uint32_t, PairPlaces>> kept_;
};

}  // namespace

std::vector<TrainedMerge> train_bpe(WordCounter& words, const TrainOptions& options) {
    if (options.byte_ids.size() != 256) throw std::invalid_argument("byte_ids must have 256 entries");
    if (options.num_tokens > WordSymbols::kInside - 1 - options.first_id)
        throw std::invalid_argument("ids would pass 2^32 - 3");
    for (const std::uint32_t id : options.byte_ids) {
        if (id >= options.first_id && id != kNoId)
            throw std::invalid_argument("the ids of bytes must be smaller than first_id");
    }
    return Trainer(words, options).run();
}

}  // namespace pylm
