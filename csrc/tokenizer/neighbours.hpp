// What stands beside the occurrences of a pair while it is merged.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace pylm {

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
        Tally& tally = tally_of(id);
        tally.count += weight;
        ++tally.num_places;
        found_.push_back({id, place});
    }

    // Take over the counts of the same side further on in the words, but not its places.
    void absorb(const Neighbours& other) {
        for (const std::uint32_t id : other.ids_) {
            Tally& tally = tally_of(id);
            tally.count += other.tallies_[id].count;
            tally.num_places += other.tallies_[id].num_places;
        }
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
    Tally& tally_of(std::uint32_t id) {
        if (id >= tallies_.size()) tallies_.resize(std::max<std::size_t>(id + 1, 2 * tallies_.size()));
        if (tallies_[id].num_places == 0) ids_.push_back(id);
        return tallies_[id];
    }

    std::vector<Tally> tallies_;  // by id
    std::vector<std::uint32_t> ids_;
    std::vector<Found> found_;
};

}  // namespace pylm
