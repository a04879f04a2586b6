// Ids of chosen documents, one after the other, as token shards hold them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <stdexcept>

#include "tokenizer/merges.hpp"

namespace pylm {

// Number of ids of the documents `docs`; document d has ids[offsets[d], offsets[d + 1]). Throws
// std::invalid_argument for offsets that are no rising places in the ids, and for documents that are not there.
inline std::size_t count_ids(std::span<const TokenId> ids, std::span<const std::int64_t> offsets,
                             std::span<const std::int64_t> docs) {
    std::size_t count = 0;
    for (const std::int64_t doc : docs) {
        if (doc < 0 || static_cast<std::size_t>(doc) + 1 >= offsets.size())
            throw std::invalid_argument("a document is not among the offsets");
        const std::int64_t begin = offsets[static_cast<std::size_t>(doc)];
        const std::int64_t end = offsets[static_cast<std::size_t>(doc) + 1];
        if (begin < 0 || begin > end || static_cast<std::size_t>(end) > ids.size())
            throw std::invalid_argument("offsets must be rising places in the ids");
        count += static_cast<std::size_t>(end - begin);
    }
    return count;
}

// Copy the ids of the documents `docs` to `out`, which has room for `count_ids` of them, as Id: uint16 or uint32. Adds
// one to counts[id] for each. Throws std::invalid_argument for an id beyond `counts` (whose size must fit Id), having
// written some.
template <typename Id>
void gather_ids(std::span<const TokenId> ids, std::span<const std::int64_t> offsets,
                std::span<const std::int64_t> docs, std::span<std::int64_t> counts, Id* out) {
    for (const std::int64_t doc : docs) {
        const auto begin = static_cast<std::size_t>(offsets[static_cast<std::size_t>(doc)]);
        const auto end = static_cast<std::size_t>(offsets[static_cast<std::size_t>(doc) + 1]);
        for (const TokenId id : ids.subspan(begin, end - begin)) {
            if (id >= counts.size()) throw std::invalid_argument("an id is beyond the vocabulary");
            ++counts[id];
            *out++ = static_cast<Id>(id);
        }
    }
}

}  // namespace pylm
