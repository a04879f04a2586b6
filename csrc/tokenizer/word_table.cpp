#include "tokenizer/word_table.hpp"

#include <algorithm>

namespace pylm {

void WordShard::claim(std::uint64_t hash, const PieceKey& key, std::uint64_t count) {
    if (4 * (used_ + 1) > 3 * slots_.size()) grow();
    ++used_;
    put(hash, {key.low, key.high, count});
}

void WordShard::put(std::uint64_t hash, const Slot& slot) noexcept {
    std::size_t i = hash & mask_;
    while (slots_[i].count != 0) i = (i + 1) & mask_;
    slots_[i] = slot;
}

void WordShard::grow() {
    std::vector<Slot> old(2 * slots_.size());
    old.swap(slots_);
    mask_ = slots_.size() - 1;
    for (const Slot& slot : old) {
        if (slot.count == 0) continue;
        put(is_long(slot) ? hash_bytes(in_arena(slot.low)) : PieceKey{slot.low, slot.high}.hash(), slot);
    }
}

std::uint64_t WordShard::keep(std::string_view word) {
    const std::uint64_t size = word.size();
    const std::size_t needed = sizeof size + word.size();
    if (chunks_.empty() || chunk_used_ + needed > kChunkBytes) {
        // A word that no chunk would hold gets one of its own; the next word opens a new one.
        chunks_.push_back(std::make_unique_for_overwrite<char[]>(std::max(needed, kChunkBytes)));
        chunk_used_ = 0;
    }
    char* data = chunks_.back().get() + chunk_used_;
    std::memcpy(data, &size, sizeof size);
    std::memcpy(data + sizeof size, word.data(), word.size());
    const std::uint64_t place = (static_cast<std::uint64_t>(chunks_.size() - 1) << 32) | chunk_used_;
    chunk_used_ += needed;
    return place;
}

}  // namespace pylm
