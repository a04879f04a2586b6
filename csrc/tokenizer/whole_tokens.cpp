#include "tokenizer/whole_tokens.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <stdexcept>
#include <utility>

#include "huge_pages.hpp"
#include "text/hash.hpp"
#include "tokenizer/section_file.hpp"

namespace pylm {

namespace {

std::size_t slots_for(std::size_t num_tokens) noexcept { return std::bit_ceil(2 * num_tokens + 1); }

}  // namespace

WholeTokens::WholeTokens(const TokenTexts& tokens, const std::vector<std::uint8_t>& has) {
    std::vector<Slot, HugePageAllocator<Slot>> slots(slots_for(tokens.size()));
    const std::size_t mask = slots.size() - 1;
    constexpr std::size_t kAhead = 16;  // tokens whose slot is asked for before it is looked at
    std::array<std::uint64_t, kAhead> hashes;
    const auto hash_ahead = [&](std::size_t id) {
        hashes[id % kAhead] = hash_bytes(tokens[id]);
        __builtin_prefetch(&slots[hashes[id % kAhead] & mask], 1);
    };
    for (std::size_t id = 0; id < std::min(kAhead, tokens.size()); ++id) hash_ahead(id);
    for (std::size_t id = 0; id < tokens.size(); ++id) {
        const std::uint64_t hash = hashes[id % kAhead];
        if (id + kAhead < tokens.size()) hash_ahead(id + kAhead);
        if (tokens[id].empty() || has[id] == 0) continue;
        std::size_t slot = hash & mask;
        while (slots[slot].id != kNoToken) slot = (slot + 1) & mask;
        slots[slot] = {static_cast<std::uint32_t>(hash >> 32), static_cast<TokenId>(id)};
    }
    slots_ = SharedArray<Slot>(std::move(slots));
}

WholeTokens::WholeTokens(const SectionFile& file, std::size_t num_tokens)
    : slots_(file.array<Slot>(Section::kWholeTokens)) {
    // Numbers instead of conditions, which compilers turn into vector instructions.
    std::uint32_t is_outside = 0, is_free = 0;
    const auto limit = static_cast<std::uint32_t>(num_tokens);
    for (const Slot& slot : slots_) {
        const std::uint32_t next = slot.id + 1;  // 0 where free
        is_outside |= next > limit ? 1U : 0U;
        is_free |= next == 0 ? 1U : 0U;
    }
    if (slots_.size() != slots_for(num_tokens) || is_outside != 0 || is_free == 0) {
        throw std::invalid_argument("its table of whole tokens is damaged");
    }
}

void WholeTokens::write(SectionWriter& out) const { out.add(Section::kWholeTokens, slots_.items()); }

TokenId WholeTokens::find(std::string_view piece, std::uint64_t hash, const TokenTexts& tokens) const noexcept {
    const std::size_t mask = slots_.size() - 1;
    for (std::size_t slot = hash & mask;; slot = (slot + 1) & mask) {
        const Slot& entry = slots_[slot];
        if (entry.id == kNoToken) return kNoToken;
        if (entry.hash == static_cast<std::uint32_t>(hash >> 32) && tokens[entry.id] == piece) return entry.id;
    }
}

}  // namespace pylm
