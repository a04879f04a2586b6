#include "tokenizer/bpe_encode.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <stdexcept>

#include "parallel.hpp"
#include "text/hash.hpp"

namespace pylm {

namespace {

constexpr TokenId kNone = std::numeric_limits<TokenId>::max();
constexpr std::size_t kChunkBytes = 1 << 18;
constexpr std::size_t kBlock = 128;             // pieces that are cut before they are looked up
constexpr std::size_t kBytesPerToken = 3;       // a low guess, to reserve the output

// A share of the work: whole texts, or a part of a large one.
struct Chunk {
    std::size_t first, last;  // texts [first, last)
    std::size_t begin, end;   // bytes of the text, where it is a single one
};

PieceKey key_of(std::string_view bytes) noexcept {
    return PieceKey::of(bytes.data(), bytes.size(), bytes.data() + bytes.size());
}

// Cut by the sizes alone, so that chunks are the same for any number of threads.
std::vector<Chunk> cut_chunks(std::span<const std::string_view> texts, Pattern pattern) {
    std::vector<Chunk> chunks;
    std::size_t first = 0, bytes = 0;
    const auto close = [&](std::size_t last) {
        if (last > first) chunks.push_back({first, last, 0, last - first == 1 ? texts[first].size() : 0});
        first = last;
        bytes = 0;
    };
    for (std::size_t i = 0; i < texts.size(); ++i) {
        if (texts[i].size() >= 2 * kChunkBytes) {
            close(i);
            for (std::size_t begin = 0; begin < texts[i].size();) {
                const std::size_t end = next_safe_border(pattern, texts[i], begin + kChunkBytes);
                chunks.push_back({i, i + 1, begin, end});
                begin = end;
            }
            first = i + 1;
            continue;
        }
        bytes += texts[i].size();
        if (bytes >= kChunkBytes) close(i + 1);
    }
    close(texts.size());
    return chunks;
}

}  // namespace

BpeEncoder::BpeEncoder(std::vector<std::string> tokens, const std::vector<MergeRule>& merges,
                       Pattern pattern, bool ignore_merges)
    : tokens_(std::move(tokens)),
      pattern_(pattern),
      ignore_merges_(ignore_merges),
      merges_(tokens_, merges),
      whole_(std::make_unique<std::atomic<Whole>[]>(tokens_.size())) {
    std::size_t num_short = 0, num_long = 0;
    std::array<TokenId, 256> byte_ids;
    byte_ids.fill(kNone);
    for (std::size_t id = 0; id < tokens_.size(); ++id) {
        const std::size_t size = tokens_[id].size();
        ++(size <= PieceKey::kMaxBytes ? num_short : num_long);
        if (size == 1) byte_ids[static_cast<std::uint8_t>(tokens_[id][0])] = static_cast<TokenId>(id);
    }
    for (std::size_t byte = 0; byte < 256; ++byte) {
        if (byte_ids[byte] == kNone) {
            throw std::invalid_argument("the vocabulary has no token for byte " + std::to_string(byte));
        }
    }
    merges_.set_bytes(byte_ids);
    short_tokens_.resize(std::bit_ceil(2 * num_short));
    long_tokens_.resize(std::bit_ceil(2 * num_long + 1));
    for (std::size_t id = 0; id < tokens_.size(); ++id) {
        const std::string& bytes = tokens_[id];
        if (bytes.empty()) continue;
        if (bytes.size() <= PieceKey::kMaxBytes) {
            const PieceKey key = key_of(bytes);
            const std::size_t mask = short_tokens_.size() - 1;
            std::size_t slot = key.hash() & mask;
            while (short_tokens_[slot].id != kNone) slot = (slot + 1) & mask;
            short_tokens_[slot] = {key, static_cast<TokenId>(id)};
        } else {
            const std::uint64_t hash = hash_bytes(bytes);
            const std::size_t mask = long_tokens_.size() - 1;
            std::size_t slot = hash & mask;
            while (long_tokens_[slot].id != kNone) slot = (slot + 1) & mask;
            long_tokens_[slot] = {static_cast<std::uint32_t>(hash >> 32), static_cast<TokenId>(id)};
        }
    }
}

TokenId BpeEncoder::find_short(const PieceKey& key, std::uint64_t hash) const noexcept {
    const std::size_t mask = short_tokens_.size() - 1;
    std::size_t slot = hash & mask;
    while (short_tokens_[slot].id != kNone && short_tokens_[slot].key != key) slot = (slot + 1) & mask;
    return short_tokens_[slot].id;
}

TokenId BpeEncoder::find_long(std::string_view bytes, std::uint64_t hash) const noexcept {
    const std::size_t mask = long_tokens_.size() - 1;
    for (std::size_t slot = hash & mask;; slot = (slot + 1) & mask) {
        const LongToken& entry = long_tokens_[slot];
        if (entry.id == kNone) return kNone;
        if (entry.hash == static_cast<std::uint32_t>(hash >> 32) && tokens_[entry.id] == bytes)
            return entry.id;
    }
}

std::string_view BpeEncoder::token(TokenId id) const {
    if (id >= tokens_.size()) throw std::out_of_range("token id " + std::to_string(id));
    return tokens_[id];
}

// Whether merges make token `id` of its own bytes. Threads that ask at once find the same answer.
bool BpeEncoder::is_whole(TokenId id) const {
    const Whole known = whole_[id].load(std::memory_order_relaxed);
    if (known != kUnknown) return known == kMergesToItself;
    std::vector<TokenId> ids(tokens_[id].size());
    const bool whole = merges_.apply_bytes(tokens_[id], ids.data()) == 1 && ids[0] == id;
    whole_[id].store(whole ? kMergesToItself : kMergesToOthers, std::memory_order_relaxed);
    return whole;
}

// Write the ids of a piece, which is itself `token` or no token; `out` has room for one id a byte. Returns how
// many.
std::size_t BpeEncoder::encode_piece(std::string_view piece, TokenId token, TokenId* out) const {
    if (token != kNone && (ignore_merges_ || is_whole(token))) {
        *out = token;
        return 1;
    }
    return merges_.apply_bytes(piece, out);
}

TokenId* BpeEncoder::encode_unseen(std::string_view piece, const PieceKey& key, std::uint64_t hash,
                                   PieceCache& cache, TokenId* out) const {
    const std::size_t count = encode_piece(piece, find_short(key, hash), out);
    cache.add(key, hash, {out, count});
    return out + count;
}

TokenId* BpeEncoder::encode_long(std::string_view piece, PieceCache& cache, TokenId* out) const {
    const std::uint64_t hash = hash_bytes(piece);
    if (piece.size() > PieceCache::kMaxLong) return out + encode_piece(piece, find_long(piece, hash), out);
    if (const std::span<const TokenId> known = cache.find_long(piece, hash); !known.empty()) {
        return std::copy(known.begin(), known.end(), out);
    }
    const std::size_t count = encode_piece(piece, find_long(piece, hash), out);
    cache.add_long(piece, hash, {out, count});
    return out + count;
}

void BpeEncoder::encode_cached(std::string_view text, PieceCache& cache, TokenBuffer& buffer) const {
    // Never more ids than bytes; an entry's ids are written with the word behind them.
    buffer.reserve(buffer.size() + text.size() + PieceCache::kMaxInline + 1);
    TokenId* out = buffer.data() + buffer.size();
    const char* const text_end = text.data() + text.size();
    std::string_view pieces[kBlock];
    PieceKey keys[kBlock];
    std::uint64_t hashes[kBlock];
    Pretokenizer cutter(pattern_, text);
    for (;;) {
        std::size_t count = 0;
        for (; count < kBlock; ++count) {
            const std::string_view piece = cutter.next();
            if (piece.empty()) break;
            pieces[count] = piece;
            if (piece.size() > PieceKey::kMaxBytes) continue;
            keys[count] = PieceKey::of(piece.data(), piece.size(), text_end);
            hashes[count] = keys[count].hash();
            cache.prefetch(hashes[count]);
        }
        if (count == 0) break;
        for (std::size_t i = 0; i < count; ++i) {
            if (pieces[i].size() > PieceKey::kMaxBytes) [[unlikely]] {
                out = encode_long(pieces[i], cache, out);
                continue;
            }
            const PieceCache::Entry* entry = cache.find(keys[i], hashes[i]);
            if (entry == nullptr) [[unlikely]] {
                out = encode_unseen(pieces[i], keys[i], hashes[i], cache, out);
            } else if (entry->num_ids <= PieceCache::kMaxInline) [[likely]] {
                std::memcpy(out, &entry->ids, sizeof entry->ids);
                out += entry->num_ids;
            } else {
                out = std::copy_n(cache.more() + entry->ids[0], entry->num_ids, out);
            }
        }
    }
    buffer.resize(static_cast<std::size_t>(out - buffer.data()));
}

TokenBuffer BpeEncoder::encode(std::string_view text) const {
    std::unique_ptr<PieceCache> cache = caches_.take();
    TokenBuffer ids;
    encode_cached(text, *cache, ids);
    caches_.give(std::move(cache));
    return ids;
}

TokenBatch BpeEncoder::encode_batch(std::span<const std::string_view> texts, unsigned num_threads,
                                    std::optional<TokenId> end) const {
    const std::vector<Chunk> chunks = cut_chunks(texts, pattern_);
    std::size_t num_bytes = 0;
    for (const std::string_view text : texts) num_bytes += text.size();
    TokenBatch batch;
    batch.offsets.assign(texts.size() + 1, 0);
    OrderedOutput output(num_bytes / kBytesPerToken + 16);
    std::atomic<std::size_t> next_chunk{0};
    // One cache a worker; chunks go to whoever is free.
    const std::size_t num_workers = std::min<std::size_t>(resolve_threads(num_threads), chunks.size());
    parallel_for(num_workers, num_threads, [&](std::size_t) {
        std::unique_ptr<PieceCache> cache = caches_.take();
        for (;;) {
            const std::size_t index = next_chunk.fetch_add(1, std::memory_order_relaxed);
            if (index >= chunks.size()) break;
            const Chunk& chunk = chunks[index];
            TokenBuffer buffer = output.take_buffer();
            for (std::size_t i = chunk.first; i < chunk.last; ++i) {
                const bool is_single = chunk.last - chunk.first == 1;
                encode_cached(is_single ? texts[i].substr(chunk.begin, chunk.end - chunk.begin) : texts[i], *cache,
                              buffer);
                if (is_single && chunk.end != texts[i].size()) continue;
                if (end) buffer.push_back(*end);
                batch.offsets[i + 1] = static_cast<std::int64_t>(buffer.size());
            }
            output.commit(index, std::move(buffer), [&](std::size_t placed, std::size_t offset) {
                const Chunk& done = chunks[placed];
                const bool is_open = done.last - done.first == 1 && done.end != texts[done.first].size();
                if (is_open) return;
                for (std::size_t i = done.first; i < done.last; ++i)
                    batch.offsets[i + 1] += static_cast<std::int64_t>(offset);
            });
        }
        caches_.give(std::move(cache));
    });
    batch.ids = std::move(output).finish();
    return batch;
}

}  // namespace pylm
