#include "dedup/shingle.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <numeric>
#include <stdexcept>

#include "dedup/xxhash.hpp"
#include "text/words.hpp"

namespace pylm::dedup {
namespace {

// Shingles are values of the polynomial sum(h_k * kBase^(n-1-k)) mod 2^64 over the hashes h of their items
// (Karp, Rabin 1987): two different shingles are equal with probability 2^-64 over the items' hashes.
constexpr std::uint64_t kBase = 0xA24BAED4963EE407ULL;  // odd, so that powers keep all bits

constexpr std::size_t kTextDedupMinWords = 5;

constexpr std::size_t kFewShingles = 16;  // are sorted one by one
constexpr int kMostSortBits = 16;

void make_room(std::vector<std::uint64_t>& values, std::size_t size) {
    if (values.size() < size) values.resize(std::max(size, 2 * values.size()));
}

bool is_ascii_word(char c) noexcept {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

// Masks of the first `size` <= 16 bytes of a pair of words.
constexpr std::array<std::array<std::uint64_t, 2>, 17> kFirstBytes = [] {
    std::array<std::array<std::uint64_t, 2>, 17> masks{};
    for (std::size_t size = 0; size <= 16; ++size) {
        for (std::size_t byte = 0; byte < size; ++byte) masks[size][byte / 8] |= std::uint64_t{0xFF} << byte % 8 * 8;
    }
    return masks;
}();

}  // namespace

Shingler::Shingler(ShingleRule rule, SimdLevel level) : rule_(rule), find_runs_(find_runs(level)) {
    if (rule.ngram == 0) throw std::invalid_argument("ngram must be at least 1, got 0");
    for (std::size_t i = 0; i < rule.ngram; ++i) leaving_factor_ *= kBase;
}

std::span<const std::uint64_t> Shingler::operator()(std::string_view text) {
    num_shingles_ = 0;
    switch (rule_.kind) {
        case ShingleKind::kWord:
            hash_words(text);
            roll();
            break;
        case ShingleKind::kCharacter:
            hash_characters(text);
            roll();
            break;
        case ShingleKind::kToken:
            hash_tokens(text);
            roll();
            break;
        case ShingleKind::kJoined32:
        case ShingleKind::kJoined64:
            hash_joined(text);
            break;
    }
    return {shingles_.data(), num_shingles_};
}

std::span<const std::uint64_t> Shingler::distinct(std::string_view text) {
    (*this)(text);
    sort_shingles();
    std::uint64_t* const begin = shingles_.data();
    return {begin, std::unique(begin, begin + num_shingles_)};
}

void Shingler::hash_words(std::string_view text) {
    num_items_ = 0;
    std::array<std::uint32_t, kRunsSpace> borders;
    const char* const end = text.data() + text.size();
    for (const char* block = text.data(); block < end;) {
        const std::size_t size = std::min(kRunsBlock, static_cast<std::size_t>(end - block));
        std::size_t count = find_runs_(block, size, borders.data());
        const char* next = block + size;
        if (next < end && count > 0 && borders[count - 1] == size) {  // the last run may go on
            count -= 2;
            next = block + borders[count];
        }
        const bool fills = next == block;  // a run of the whole block, and maybe more
        if (fills) {
            next = std::find_if(block + size, end, [](char c) {
                return static_cast<std::uint8_t>(c) < 0x80 && !is_ascii_word(c);
            });
        }
        make_room(items_, num_items_ + static_cast<std::size_t>(next - block));
        std::uint64_t* out = items_.data() + num_items_;
        for (std::size_t i = 0; i < count; i += 2)
            out = hash_run(block + borders[i], borders[i + 1] - borders[i], end, out);
        if (fills) out = hash_run(block, static_cast<std::size_t>(next - block), end, out);
        num_items_ = static_cast<std::size_t>(out - items_.data());
        block = next;
    }
}

// One run of letters, digits and bytes beyond ASCII: a word, if all of it is ASCII. Writes at most one item a
// byte to `out` and returns their end.
inline std::uint64_t* Shingler::hash_run(const char* begin, std::size_t size, const char* limit,
                                         std::uint64_t* out) {
    constexpr std::uint64_t high = 0x8080808080808080ULL;
    std::uint64_t state = words::kMultiplier2 * size;
    std::uint64_t seen = 0;
    const char* p = begin;
    std::size_t left = size;
    for (; left > 16; p += 8, left -= 8) {
        const std::uint64_t bytes = words::detail::load8(p);
        seen |= bytes;
        state = words::fold_multiply(state ^ words::detail::fold_case(bytes), words::kMultiplier1);
    }
    // The rest without a branch on its size, which could not be predicted; as words::hash_word.
    std::array<std::uint64_t, 2> tail{};
    if (static_cast<std::size_t>(limit - p) >= 16) [[likely]] {
        tail = {words::detail::load8(p) & kFirstBytes[left][0], words::detail::load8(p + 8) & kFirstBytes[left][1]};
    } else {
        std::memcpy(tail.data(), p, left);
    }
    if (((seen | tail[0] | tail[1]) & high) != 0) [[unlikely]] return hash_wide_run(begin, begin + size, out);
    const std::uint64_t first = words::detail::fold_case(tail[0]);
    const std::uint64_t second = words::detail::fold_case(tail[1]);
    const bool longer = left > 8;
    const std::uint64_t before = longer ? words::fold_multiply(state ^ first, words::kMultiplier1) : state;
    *out = words::fold_multiply(before ^ (longer ? second : first) ^ words::kMultiplier1, words::kMultiplier2);
    return out + 1;
}

// The words of a run that holds, or may hold, characters beyond ASCII.
std::uint64_t* Shingler::hash_wide_run(const char* begin, const char* end, std::uint64_t* out) {
    const std::string_view run(begin, static_cast<std::size_t>(end - begin));
    lowered_.clear();
    const auto end_word = [&] {
        if (lowered_.empty()) return;
        *out++ = words::hash_word(lowered_.data(), lowered_.size(), lowered_.data() + lowered_.size());
        lowered_.clear();
    };
    for (std::size_t i = 0; i < run.size();) {
        const Decoded decoded = decode_utf8(run, i);
        const std::uint8_t flags = words::flags(decoded.point);
        i += decoded.size;
        const bool unspaced = (flags & words::kUnspaced) != 0;
        if ((flags & words::kWord) == 0 || unspaced) end_word();
        if ((flags & words::kWord) == 0) continue;
        words::append_utf8(words::lower(decoded.point), lowered_);
        if (unspaced) end_word();
    }
    end_word();
    return out;
}

void Shingler::hash_characters(std::string_view text) {
    make_room(items_, text.size());
    std::uint64_t* out = items_.data();
    const auto add = [&](char32_t point) {
        *out++ = words::fold_multiply(words::kMultiplier1 ^ point, words::kMultiplier2);
    };
    bool space = false;
    for (std::size_t i = 0; i < text.size();) {
        const Decoded decoded = decode_utf8(text, i);
        i += decoded.size;
        if ((words::flags(decoded.point) & words::kSpace) != 0) {
            space = out != items_.data();
            continue;
        }
        if (space) add(U' ');
        space = false;
        add(words::lower(decoded.point));
    }
    num_items_ = static_cast<std::size_t>(out - items_.data());
}

void Shingler::hash_tokens(std::string_view ids) {
    num_items_ = ids.size() / sizeof(std::uint32_t);
    make_room(items_, num_items_);
    for (std::size_t i = 0; i < num_items_; ++i) {
        std::uint32_t id;
        std::memcpy(&id, ids.data() + i * sizeof id, sizeof id);
        items_[i] = words::fold_multiply(words::kMultiplier1 ^ id, words::kMultiplier2);
    }
}

void Shingler::roll() {
    const std::size_t n = std::min(rule_.ngram, num_items_);
    if (n == 0) return;
    num_shingles_ = num_items_ - n + 1;
    make_room(shingles_, num_shingles_);
    std::uint64_t value = 0;
    for (std::size_t i = 0; i < n; ++i) value = value * kBase + items_[i];
    shingles_[0] = value;
    for (std::size_t i = n; i < num_items_; ++i) {
        value = value * kBase + (items_[i] - items_[i - n] * leaving_factor_);
        shingles_[i - n + 1] = value;
    }
}

// Shingles are random numbers: their upper bits part them into runs of a few, which takes a fourth of the time of a
// sort by comparisons.
void Shingler::sort_shingles() {
    if (num_shingles_ < kFewShingles) {
        std::sort(shingles_.begin(), shingles_.begin() + static_cast<std::ptrdiff_t>(num_shingles_));
        return;
    }
    const int bits = std::min(kMostSortBits, static_cast<int>(std::bit_width(num_shingles_ / kFewShingles * 4)));
    const int shift = (rule_.kind == ShingleKind::kJoined32 ? 32 : 64) - bits;
    ends_.assign((std::size_t{1} << bits) + 1, 0);
    for (std::size_t i = 0; i < num_shingles_; ++i) ++ends_[(shingles_[i] >> shift) + 1];
    std::partial_sum(ends_.begin(), ends_.end(), ends_.begin());
    make_room(parted_, num_shingles_);
    for (std::size_t i = 0; i < num_shingles_; ++i) parted_[ends_[shingles_[i] >> shift]++] = shingles_[i];
    std::swap(shingles_, parted_);
    std::size_t begin = 0;  // `ends_` has moved on by one run
    for (std::size_t run = 0; run + 1 < ends_.size(); ++run) {
        std::uint64_t* const first = shingles_.data() + begin;
        const std::size_t size = ends_[run] - begin;
        if (size > kFewShingles) {
            std::sort(first, first + size);
        } else {
            for (std::size_t i = 1; i < size; ++i) {
                const std::uint64_t moved = first[i];
                std::size_t j = i;
                for (; j > 0 && first[j - 1] > moved; --j) first[j] = first[j - 1];
                first[j] = moved;
            }
        }
        begin = ends_[run];
    }
}

void Shingler::hash_joined(std::string_view text) {
    borders_.clear();  // begin of every word, and one past the space after the last
    if (!text.empty()) borders_.push_back(0);
    for (std::size_t i = 0; i < text.size(); ++i) {
        if (text[i] == ' ') borders_.push_back(i + 1);
    }
    if (!text.empty()) borders_.push_back(text.size() + 1);
    const std::size_t num_words = borders_.empty() ? 0 : borders_.size() - 1;
    const bool short_forms = rule_.kind == ShingleKind::kJoined32;
    if (num_words == 0 || (short_forms ? num_words < kTextDedupMinWords : num_words < rule_.ngram)) return;
    const std::size_t n = std::min(rule_.ngram, num_words);
    num_shingles_ = num_words - n + 1;
    make_room(shingles_, num_shingles_);
    for (std::size_t i = 0; i < num_shingles_; ++i) {
        const std::string_view joined = text.substr(borders_[i], borders_[i + n] - 1 - borders_[i]);
        shingles_[i] = short_forms ? xxh3_64(joined, rule_.seed) & 0xFFFFFFFF : xxh64(joined, 0);
    }
}

}  // namespace pylm::dedup
