#include "tokenizer/bpe_train.hpp"

#include <algorithm>
#include <limits>
#include <span>
#include <stdexcept>
#include <unordered_map>
#include <utility>

#include "parallel.hpp"
#include "tokenizer/neighbours.hpp"
#include "tokenizer/pair_queue.hpp"
#include "tokenizer/pair_table.hpp"
#include "tokenizer/word_symbols.hpp"

namespace pylm {

namespace {

constexpr std::uint32_t kBorder = WordSymbols::kBorder;
constexpr std::uint32_t kNoId = TrainOptions::kNoId;
constexpr std::size_t kMergesBetweenChecks = 64;
constexpr std::size_t kPlacesBetweenChecks = 1 << 20;
constexpr std::size_t kPlacesOfALane = 1 << 14;  // fewer are not worth a thread
constexpr std::size_t kAhead = 12;               // places whose symbols are fetched before they are needed

class Trainer {
public:
    Trainer(WordCounter& words, const TrainOptions& options)
        : options_(options),
          num_threads_(resolve_threads(options.num_threads)),
          least_(static_cast<std::int64_t>(std::clamp<std::uint64_t>(
              options.min_frequency, 1, std::numeric_limits<std::int64_t>::max()))),
          symbols_(words, options.byte_ids, options.release_words),
          lanes_(num_threads_) {
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
            if (options_.progress && (merges.size() % kMergesBetweenChecks == 0 || work_ > kPlacesBetweenChecks)) {
                work_ = 0;
                options_.progress(made);
            }
            const std::uint32_t left = left_of(pair);
            const std::uint32_t right = right_of(pair);
            std::string bytes = tokens_[left] + tokens_[right];
            const auto known = ids_.find(bytes);
            const auto merged = known != ids_.end() ? known->second
                                                    : static_cast<std::uint32_t>(options_.first_id + made++);
            if (known == ids_.end()) tokens_.set(merged, std::move(bytes));
            merges.push_back({left, right, merged});
            merge(pair, merged, queue);
        }
        return merges;
    }

private:
    // A thread's share of a merge.
    struct Lane {
        Neighbours before;
        Neighbours after;
    };

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
            std::uint32_t* next = nullptr;  // where the next place goes, if the pair is kept
        };
        const std::size_t size = symbols_.size();
        const std::size_t num_lanes = std::clamp<std::size_t>(size / kPlacesOfALane, 1, num_threads_);
        std::vector<std::vector<Cell>> lanes(num_lanes, std::vector<Cell>(1 << 16));
        const auto each = [&](std::size_t lane, auto&& visit) {
            const std::size_t end = (size - 1) * (lane + 1) / num_lanes;
            symbols_.visit_weights((size - 1) * lane / num_lanes, end, [&](std::size_t i, std::int64_t weight) {
                if (symbols_[i] == kBorder || symbols_[i + 1] == kBorder) return;
                visit(lanes[lane][(byte_of[symbols_[i]] << 8) | byte_of[symbols_[i + 1]]], i, weight);
            });
        };
        parallel_for(num_lanes, num_threads_, [&](std::size_t lane) {
            each(lane, [](Cell& cell, std::size_t, std::int64_t weight) {
                cell.count += weight;
                ++cell.num_places;
            });
        });
        std::vector<std::pair<std::size_t, PairState>> kept;
        for (std::size_t pair = 0; pair < 1 << 16; ++pair) {
            std::int64_t count = 0;
            std::uint32_t num_places = 0;
            for (const auto& cells : lanes) {
                count += cells[pair].count;
                num_places += cells[pair].num_places;
            }
            if (count >= least_) kept.emplace_back(pair, PairState{count, PairPlaces(num_places)});
        }
        for (auto& [pair, state] : kept) {
            std::uint32_t* next = state.places.view().data();
            for (auto& cells : lanes) {
                cells[pair].next = next;
                next += cells[pair].num_places;
            }
        }
        parallel_for(num_lanes, num_threads_, [&](std::size_t lane) {
            each(lane, [](Cell& cell, std::size_t i, std::int64_t) {
                if (cell.next != nullptr) *cell.next++ = static_cast<std::uint32_t>(i);
            });
        });
        for (auto& [pair, state] : kept)
            pairs_.insert(make_pair_key(options_.byte_ids[pair >> 8], options_.byte_ids[pair & 255]),
                          std::move(state));
    }

    // Where to cut places for threads: the same tokens are never touched from two sides.
    std::vector<std::size_t> share(std::span<const std::uint32_t> places, std::uint32_t size) const {
        const std::size_t num_lanes =
            std::clamp<std::size_t>(places.size() / kPlacesOfALane, 1, num_threads_);
        std::vector<std::size_t> borders{0};
        for (std::size_t lane = 1; lane < num_lanes; ++lane) {
            std::size_t i = std::max(places.size() * lane / num_lanes, borders.back() + 1);
            while (i < places.size() && places[i] - places[i - 1] <= size) ++i;
            if (i < places.size()) borders.push_back(i);
        }
        borders.push_back(places.size());
        return borders;
    }

    // Join the pair at these places, from left to right, and tally what stands beside it.
    void join(std::span<const std::uint32_t> places, PairKey pair, std::uint32_t merged, Lane& lane) {
        const std::uint32_t left = left_of(pair);
        const std::uint32_t right = right_of(pair);
        const std::uint32_t left_size = tokens_.size(left);
        const std::uint32_t size = left_size + tokens_.size(right);
        std::uint32_t* const symbols = symbols_.data();
        for (std::size_t i = 0; i < places.size(); ++i) {
            if (i + kAhead < places.size()) __builtin_prefetch(symbols + places[i + kAhead], 1);
            const std::uint32_t at = places[i];
            // An occurrence is gone where another merge has taken one of its tokens.
            if (symbols[at] != left || symbols[at + left_size] != right) continue;
            const std::int64_t weight = symbols_.weight(at);
            const std::uint32_t before = symbols[at - 1];
            const std::uint32_t after = symbols[at + size];
            symbols[at + left_size] = WordSymbols::kInside;
            symbols[at] = merged;
            symbols[at + size - 1] = merged;
            if (before != kBorder) lane.before.add(before, at - tokens_.size(before), weight);
            if (after != kBorder) lane.after.add(after, at, weight);
        }
    }

    // Make a token of a pair wherever it stands, and pairs of the token and what stands beside it.
    void merge(PairKey pair, std::uint32_t merged, PairQueue& queue) {
        const std::uint32_t left = left_of(pair);
        const std::uint32_t right = right_of(pair);
        const std::uint32_t size = tokens_.size(left) + tokens_.size(right);
        PairPlaces taken = pairs_.take(pair);
        const std::span<const std::uint32_t> places = taken.view();
        work_ += places.size();
        const std::vector<std::size_t> borders = share(places, size);
        const std::size_t num_lanes = borders.size() - 1;
        parallel_for(num_lanes, num_threads_, [&](std::size_t i) {
            join(places.subspan(borders[i], borders[i + 1] - borders[i]), pair, merged, lanes_[i]);
        });
        Neighbours& before = lanes_[0].before;
        Neighbours& after = lanes_[0].after;
        for (std::size_t i = 1; i < num_lanes; ++i) {
            before.absorb(lanes_[i].before);
            after.absorb(lanes_[i].after);
        }
        // Where two occurrences touch, the second one's neighbour is already the new token; the pair of the
        // new token and `left` that the first one seemed to make is not there.
        const std::int64_t touching = before.count(merged);
        if (touching > 0) after.tally(left).count -= touching;
        for (const std::uint32_t id : before.ids())
            if (id != merged) pairs_.lower(make_pair_key(id, left), before.count(id), least_);
        for (const std::uint32_t id : after.ids()) {
            const std::int64_t count = after.count(id) + (id == left ? touching : 0);
            pairs_.lower(make_pair_key(right, id), count, least_);
        }
        const std::span<Lane> used(lanes_.data(), num_lanes);
        add_pairs(used, &Lane::before, size, queue,
                  [&](std::uint32_t id) { return make_pair_key(id, merged); });
        add_pairs(used, &Lane::after, size, queue,
                  [&](std::uint32_t id) { return make_pair_key(merged, id); });
        for (Lane& lane : used) {
            lane.before.clear();
            lane.after.clear();
        }
    }

    // Keep the new pairs that are frequent enough: no pair ever becomes more frequent than it is when made.
    template <typename KeyOf>
    void add_pairs(std::span<Lane> lanes, Neighbours Lane::* side, std::uint32_t size, PairQueue& queue,
                   KeyOf&& key_of) {
        Neighbours& all = lanes[0].*side;
        const std::size_t most = options_.max_token_length;
        kept_.clear();
        for (const std::uint32_t id : all.ids()) {
            const Neighbours::Tally& tally = all.tally(id);
            if (tally.count < least_ || (most > 0 && size + tokens_.size(id) >= most)) continue;
            kept_.emplace_back(id, PairPlaces(tally.num_places));
        }
        for (auto& [id, places] : kept_) all.tally(id).next = places.view().data();
        for (const Lane& lane : lanes) {
            for (const auto& [id, place] : (lane.*side).found()) {
                Neighbours::Tally& tally = all.tally(id);
                if (tally.next != nullptr) *tally.next++ = place;
            }
        }
        for (auto& [id, places] : kept_) {
            const PairKey key = key_of(id);
            const std::int64_t count = all.count(id);
            pairs_.insert(key, {count, std::move(places)});
            queue.push(key, count);
        }
    }

    const TrainOptions& options_;
    unsigned num_threads_;
    std::int64_t least_;
    WordSymbols symbols_;
    TokenBytes tokens_;
    std::unordered_map<std::string, std::uint32_t> ids_;  // of tokens that are known beforehand
    PairTable pairs_;
    std::vector<Lane> lanes_;
    std::size_t work_ = 0;  // places gone through since the last call of progress
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
