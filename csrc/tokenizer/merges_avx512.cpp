// Sixteen rows at once, one to a lane, for machines with AVX-512.
#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>

#include "tokenizer/merges.hpp"

#if defined(__x86_64__)
#if defined(__GNUC__) && !defined(__clang__)
// GCC 12 warns of its own headers: what _mm512_undefined_epi32 gives is undefined (bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(                                                                       \
    __attribute__((target("avx2,bmi,bmi2,popcnt,lzcnt,avx512f,avx512bw,avx512cd,avx512dq,avx512vl"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,bmi,bmi2,popcnt,lzcnt,avx512f,avx512bw,avx512cd,avx512dq,avx512vl")
#endif

namespace pylm {
namespace {

constexpr std::size_t kLanes = 16;
constexpr unsigned kLaneBits = 4;
constexpr std::size_t kPlaces = MergeTable::Row::kMaxWide;
static_assert(kPlaces <= 32, "a lane says which places are left");
constexpr unsigned kPlaceBits = 6;
constexpr std::uint32_t kNothing = static_cast<std::uint32_t>(MergeTable::kLimit) << kPlaceBits;

using Lanes = __m512i;

[[gnu::always_inline]] inline Lanes all(std::uint32_t value) noexcept {
    return _mm512_set1_epi32(static_cast<int>(value));
}
[[gnu::always_inline]] inline Lanes lane_numbers() noexcept {
    return _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
}
[[gnu::always_inline]] inline Lanes gather(__mmask16 lanes, Lanes at, const void* from) noexcept {
    return _mm512_mask_i32gather_epi32(_mm512_setzero_si512(), lanes, at, from, 4);
}
[[gnu::always_inline]] inline Lanes lowest_bit(Lanes bits) noexcept {
    return _mm512_and_si512(bits, _mm512_sub_epi32(_mm512_setzero_si512(), bits));
}
// The place of the highest bit; of none, anything.
[[gnu::always_inline]] inline Lanes highest_place(Lanes bits) noexcept {
    return _mm512_sub_epi32(all(31), _mm512_lzcnt_epi32(bits));
}
// Where a lane's place stands in a table of places.
[[gnu::always_inline]] inline Lanes entry_of(Lanes place) noexcept {
    return _mm512_or_si512(_mm512_slli_epi32(place, kLaneBits), lane_numbers());
}

}  // namespace

// Sixteen rows between two of their merges: a line of the tables holds one place of all of them.
struct alignas(64) MergeTable::WideState {
    std::array<std::uint32_t, kPlaces * kLanes> candidates;
    std::array<std::uint32_t, kPlaces * kLanes> ids;
    std::array<std::uint32_t, kLanes> alive;           // a bit for each place that is left
    std::array<std::uint32_t, kLanes> best;            // candidates
    std::array<std::uint64_t, 2 * kLanes + 8> hashes;  // of pairs to look up, and a register's worth
    std::array<std::uint32_t, 2 * kLanes + 16> entries;  // where their candidates belong
    std::array<Row*, kLanes> rows;
    std::size_t num_rows, num_places, num_pairs;
};

void MergeTable::start(WideState& state, std::span<Row* const> rows) const noexcept {
    state.num_rows = rows.size();
    state.num_places = rows.back()->size;  // they come in order of size
    for (std::size_t place = 0; place < state.num_places; ++place) {
        _mm512_store_si512(&state.candidates[place * kLanes], all(kNothing | static_cast<std::uint32_t>(place)));
    }
    state.alive.fill(0);
    for (std::size_t lane = 0; lane < rows.size(); ++lane) {
        const Row& row = *rows[lane];
        state.rows[lane] = rows[lane];
        state.alive[lane] = ~std::uint32_t{0} >> (32 - row.size);
        std::size_t before = static_cast<std::uint8_t>(row.bytes[0]);
        state.ids[lane] = byte_ids_[before];
        for (std::size_t i = 1; i < row.size; ++i) {
            const std::size_t after = static_cast<std::uint8_t>(row.bytes[i]);
            state.ids[i * kLanes + lane] = byte_ids_[after];
            state.candidates[(i - 1) * kLanes + lane] =
                (byte_pairs_[before * 256 + after] << kPlaceBits) | static_cast<std::uint32_t>(i - 1);
            before = after;
        }
    }
}

// Which pair of each row is the next to be merged; false where none has any left.
bool MergeTable::find_best(WideState& state) const noexcept {
    Lanes best = _mm512_load_si512(state.candidates.data());
    for (std::size_t place = 1; place < state.num_places; ++place)
        best = _mm512_min_epu32(best, _mm512_load_si512(&state.candidates[place * kLanes]));
    _mm512_store_si512(state.best.data(), best);
    return _mm512_cmplt_epu32_mask(best, all(kNothing)) != 0;
}

void MergeTable::merge_best(WideState& state) const noexcept {
    const Lanes best = _mm512_load_si512(state.best.data());
    __mmask16 active = _mm512_cmplt_epu32_mask(best, all(kNothing));
    const Lanes place = _mm512_and_si512(best, all((1U << kPlaceBits) - 1));
    const Lanes rank = _mm512_srli_epi32(best, kPlaceBits);
    static_assert(sizeof(Rule) == 12);
    const Lanes rule = _mm512_add_epi32(_mm512_add_epi32(rank, rank), rank);
    const auto* const words = reinterpret_cast<const char*>(rules_.data());
    const Lanes left = gather(active, rule, words + offsetof(Rule, left));
    const Lanes right = gather(active, rule, words + offsetof(Rule, right));
    const Lanes merged = gather(active, rule, words + offsetof(Rule, merged));

    const Lanes alive = _mm512_load_si512(state.alive.data());
    const Lanes here = _mm512_sllv_epi32(all(1), place);
    const Lanes below = _mm512_sub_epi32(here, all(1));
    const Lanes behind = _mm512_andnot_si512(_mm512_or_si512(below, here), alive);
    const Lanes removed = lowest_bit(behind);
    const Lanes after = _mm512_xor_si512(behind, removed);
    const Lanes before = _mm512_and_si512(alive, below);
    const Lanes entry = entry_of(place);
    const Lanes removed_entry = entry_of(highest_place(removed));

    const Lanes place_id = gather(active, entry, state.ids.data());
    const Lanes removed_id = gather(active, removed_entry, state.ids.data());
    const auto wrong = static_cast<__mmask16>(_mm512_mask_cmpneq_epi32_mask(active, place_id, left) |
                                              _mm512_mask_cmpneq_epi32_mask(active, removed_id, right));
    if (wrong != 0) [[unlikely]] {  // another pair's rank: put the right one there, and look again
        std::array<std::uint32_t, kLanes> entries, lefts, rights;
        _mm512_storeu_si512(entries.data(), entry);
        _mm512_storeu_si512(lefts.data(), place_id);
        _mm512_storeu_si512(rights.data(), removed_id);
        for (unsigned lane = 0; lane < kLanes; ++lane) {
            if ((wrong >> lane & 1) == 0) continue;
            const Rank hidden = find_hidden(pair_of(lefts[lane], rights[lane]));
            state.candidates[entries[lane]] = (hidden << kPlaceBits) | (entries[lane] >> kLaneBits);
        }
        active = static_cast<__mmask16>(active & ~wrong);
    }
    const __mmask16 has_next = _mm512_mask_test_epi32_mask(active, after, after);
    const __mmask16 has_previous = _mm512_mask_test_epi32_mask(active, before, before);
    const Lanes previous_entry = entry_of(highest_place(before));
    const Lanes next_id = gather(has_next, entry_of(highest_place(lowest_bit(after))), state.ids.data());
    const Lanes previous_id = gather(has_previous, previous_entry, state.ids.data());

    _mm512_store_si512(state.alive.data(), _mm512_mask_xor_epi32(alive, active, alive, removed));
    _mm512_mask_i32scatter_epi32(state.ids.data(), active, entry, merged, 4);
    // No pair begins at the place that went; one may not begin at the merged one any more.
    _mm512_mask_i32scatter_epi32(state.candidates.data(), active, removed_entry, all(kNothing), 4);
    const auto is_last = static_cast<__mmask16>(active & ~has_next);
    _mm512_mask_i32scatter_epi32(state.candidates.data(), is_last, entry, all(kNothing), 4);

    std::size_t count = 0;
    const auto add = [&](__mmask16 lanes, Lanes first, Lanes second, Lanes entries) {
        const auto add_half = [&](__mmask8 half, __m256i low, __m256i high) {
            const Lanes pairs = _mm512_or_si512(_mm512_slli_epi64(_mm512_cvtepu32_epi64(low), kIdBits),
                                                _mm512_cvtepu32_epi64(high));
            const Lanes hashes = _mm512_mullo_epi64(pairs, _mm512_set1_epi64(static_cast<long long>(hash_of(1))));
            _mm512_storeu_si512(&state.hashes[count], _mm512_maskz_compress_epi64(half, hashes));
            count += static_cast<std::size_t>(std::popcount(static_cast<unsigned>(half)));
        };
        _mm512_storeu_si512(&state.entries[count], _mm512_maskz_compress_epi32(lanes, entries));
        add_half(static_cast<__mmask8>(lanes), _mm512_castsi512_si256(first), _mm512_castsi512_si256(second));
        add_half(static_cast<__mmask8>(lanes >> 8), _mm512_extracti64x4_epi64(first, 1),
                 _mm512_extracti64x4_epi64(second, 1));
    };
    add(has_next, merged, next_id, entry);
    add(has_previous, previous_id, merged, previous_entry);
    state.num_pairs = count;
    for (std::size_t i = 0; i < count; ++i) __builtin_prefetch(&slots_[bucket_of(state.hashes[i])]);
}

void MergeTable::look_up(WideState& state) const noexcept {
    const std::size_t mask = slots_.size() - 1;
    const __m128i bits = _mm_cvtsi32_si128(static_cast<int>(rank_bits_));
    for (std::size_t i = 0; i < state.num_pairs; ++i) {
        const std::uint64_t hash = state.hashes[i];
        const __m256i tags = _mm256_set1_epi32(static_cast<int>(tag_of(hash)));
        std::uint32_t found;
        for (std::size_t bucket = bucket_of(hash);; bucket = (bucket + kBucket) & mask) {
            const std::uint32_t* const slots = &slots_[bucket];
            const __m256i all_slots = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(slots));
            const std::uint32_t same = _mm256_cmpeq_epi32_mask(_mm256_srl_epi32(all_slots, bits), tags);
            // At most one has the tag, and a free place has that of rank 0, too.
            found = slots[std::countr_zero(same | 0x80)] & (std::uint32_t{0} - std::uint32_t{same != 0});
            found &= (1U << rank_bits_) - 1;
            if (((found == 0) & (slots[kBucket - 1] != 0)) == 0) [[likely]] break;
        }
        const std::uint32_t entry = state.entries[i];
        state.candidates[entry] = (((found - 1) & kNoRank) << kPlaceBits) | (entry >> kLaneBits);
    }
}

void MergeTable::finish(WideState& state) noexcept {
    for (std::size_t lane = 0; lane < state.num_rows; ++lane) {
        Row& row = *state.rows[lane];
        row.size = 0;
        for (std::uint32_t alive = state.alive[lane]; alive != 0; alive &= alive - 1)
            row.ids[row.size++] = state.ids[static_cast<std::size_t>(std::countr_zero(alive)) * kLanes + lane];
    }
}

// Four times sixteen rows, turn by turn, for the reason that `apply_few` has.
void MergeTable::apply_wide(std::span<Row* const> rows) const noexcept {
    constexpr std::size_t kStates = 4;
    std::array<WideState, kStates> states;
    for (std::size_t next = 0; next < rows.size();) {
        std::size_t num_open = 0;
        for (; num_open < kStates && next < rows.size(); ++num_open) {
            const std::size_t count = std::min(kLanes, rows.size() - next);
            start(states[num_open], rows.subspan(next, count));
            next += count;
        }
        const std::size_t num_started = num_open;
        std::array<WideState*, kStates> open;
        for (std::size_t i = 0; i < num_open; ++i) open[i] = &states[i];
        for (;;) {
            std::size_t num_left = 0;
            for (std::size_t i = 0; i < num_open; ++i) {
                if (find_best(*open[i])) open[num_left++] = open[i];
            }
            num_open = num_left;
            if (num_open == 0) break;
            for (std::size_t i = 0; i < num_open; ++i) merge_best(*open[i]);
            for (std::size_t i = 0; i < num_open; ++i) look_up(*open[i]);
        }
        for (std::size_t i = 0; i < num_started; ++i) finish(states[i]);
    }
}

}  // namespace pylm

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#else

namespace pylm {
void MergeTable::apply_wide(std::span<Row* const>) const noexcept {}
}  // namespace pylm

#endif
