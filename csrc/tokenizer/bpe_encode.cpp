#include "tokenizer/bpe_encode.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <stdexcept>

#include "parallel.hpp"
#include "text/hash.hpp"
#include "text/mapped_file.hpp"

namespace pylm {

namespace {

constexpr TokenId kNone = std::numeric_limits<TokenId>::max();
constexpr std::size_t kChunkBytes = 1 << 18;
constexpr std::size_t kBlock = 256;             // pieces that are cut before they are looked up
constexpr std::size_t kBytesPerToken = 3;       // a low guess, to reserve the output

// A share of the work: whole texts, or a part of a large one.
struct Chunk {
    std::size_t first, last;  // texts [first, last)
    std::size_t begin, end;   // bytes of the text, where it is a single one
};

PieceKey key_of(std::string_view bytes) noexcept {
    return PieceKey::of(bytes.data(), bytes.size(), bytes.data() + bytes.size());
}

// Whether some end of it is also a beginning, so that occurrences may overlap.
bool overlaps_itself(std::string_view text) noexcept {
    for (std::size_t size = 1; size < text.size(); ++size) {
        if (text.ends_with(text.substr(0, size))) return true;
    }
    return false;
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
      cut_(find_cut(pattern)),
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

BpeEncoder::~BpeEncoder() = default;

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

// What a thread encodes with: the pieces it knows, and the block of pieces that it cuts, looks up and writes
// together.
struct BpeEncoder::Worker {
    PieceCache cache;
    const char* base = nullptr;
    std::array<std::uint32_t, kBlock> ends;
    std::array<PieceKey, kBlock> keys;
    std::array<std::uint64_t, kBlock> hashes;
    std::array<const PieceCache::Entry*, kBlock> entries;  // null for long pieces
    std::array<std::uint16_t, kBlock> unseen;              // pieces that the cache does not know
    std::size_t num_unseen = 0;
    std::array<PieceCache::Entry, kBlock> new_entries;  // of those
    std::array<MergeTable::Row, kBlock> rows;

    std::string_view piece(std::size_t i) const noexcept {
        const std::uint32_t start = i == 0 ? 0 : ends[i - 1];
        return {base + start, ends[i] - start};
    }
};

// Find the ids of all pieces that the cache does not know, and make their entries.
void BpeEncoder::solve_unseen(Worker& block) const {
    std::array<MergeTable::Row*, kBlock> open;
    std::size_t num_open = 0;
    for (std::size_t n = 0; n < block.num_unseen; ++n) {
        const std::size_t i = block.unseen[n];
        const std::string_view piece = block.piece(i);
        const TokenId token = find_short(block.keys[i], block.hashes[i]);
        block.rows[n].bytes = piece.data();
        block.rows[n].size = piece.size();
        if (token != kNone && (ignore_merges_ || is_whole(token))) {
            block.rows[n].ids[0] = token;
            block.rows[n].size = 1;
        } else {
            open[num_open++] = &block.rows[n];
        }
    }
    merges_.apply_bytes(std::span(open).first(num_open));
    for (std::size_t n = 0; n < block.num_unseen; ++n) {
        const std::size_t i = block.unseen[n];
        block.new_entries[n] = block.cache.make(block.keys[i], std::span(block.rows[n].ids).first(block.rows[n].size));
        block.entries[i] = &block.new_entries[n];
    }
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

void BpeEncoder::encode(std::string_view text, Worker& block, TokenBuffer& buffer) const {
    PieceCache& cache = block.cache;
    // Never more ids than bytes; an entry's ids are written with the word behind them.
    buffer.reserve(buffer.size() + text.size() + PieceCache::kMaxInline + 1);
    TokenId* out = buffer.data() + buffer.size();
    const char* const text_end = text.data() + text.size();
    for (std::size_t position = 0; position < text.size();) {
        const std::size_t count = cut_(text, position, block.ends);
        if (count == 0) {  // a piece of 4 GiB
            const std::size_t end = end_of_piece(pattern_, text, position);
            out = encode_long(text.substr(position, end - position), cache, out);
            position = end;
            continue;
        }
        block.base = text.data() + position;
        for (std::size_t i = 0; i < count; ++i) {
            const std::string_view piece = block.piece(i);
            if (piece.size() > PieceKey::kMaxBytes) [[unlikely]] continue;
            block.keys[i] = PieceKey::of(piece.data(), piece.size(), text_end);
            block.hashes[i] = block.keys[i].hash();
            cache.prefetch(block.hashes[i]);
        }
        block.num_unseen = 0;
        cache.make_room(count);
        for (std::size_t i = 0; i < count; ++i) {
            block.entries[i] = nullptr;
            if (block.piece(i).size() > PieceKey::kMaxBytes) [[unlikely]] continue;
            block.entries[i] = cache.find(block.keys[i], block.hashes[i]);
            if (block.entries[i] != nullptr) [[likely]] continue;
            __builtin_prefetch(&short_tokens_[block.hashes[i] & (short_tokens_.size() - 1)]);
            block.unseen[block.num_unseen++] = static_cast<std::uint16_t>(i);
        }
        if (block.num_unseen > 0) solve_unseen(block);
        for (std::size_t i = 0; i < count; ++i) {
            const PieceCache::Entry* entry = block.entries[i];
            if (entry == nullptr) [[unlikely]] {
                out = encode_long(block.piece(i), cache, out);
            } else if (const std::size_t num_ids = entry->num_ids(); num_ids <= PieceCache::kMaxInline) [[likely]] {
                std::memcpy(out, entry->words.data(), sizeof entry->words);
                out += num_ids;
            } else {
                out = std::copy_n(cache.more() + entry->words[0], num_ids, out);
            }
        }
        for (std::size_t n = 0; n < block.num_unseen; ++n)
            cache.insert(block.new_entries[n], block.hashes[block.unseen[n]]);
        position += block.ends[count - 1];
    }
    buffer.resize(static_cast<std::size_t>(out - buffer.data()));
}

TokenBuffer BpeEncoder::encode(std::string_view text) const {
    TokenBuffer ids;
    encode(text, *workers_.take(), ids);
    return ids;
}

// Encode chunks on several threads, one worker each; chunks go to whoever is free. `encode_chunk(index, worker,
// buffer)` appends the chunk's ids to the buffer, which may hold others; `placed(index, offset)` is told where the chunk's ids have come to lie.
template <typename EncodeChunk, typename Placed>
TokenBuffer BpeEncoder::run(std::size_t num_chunks, std::size_t num_bytes, unsigned num_threads,
                            EncodeChunk&& encode_chunk, Placed&& placed) const {
    const std::size_t num_workers = std::min<std::size_t>(resolve_threads(num_threads), num_chunks);
    if (num_workers == 1) {  // straight into the result, without a copy
        TokenBuffer ids;
        ids.reserve(num_bytes / kBytesPerToken + std::min(num_bytes, 2 * kChunkBytes) + 16);
        const auto worker = workers_.take();
        for (std::size_t index = 0; index < num_chunks; ++index) {
            const std::size_t offset = ids.size();
            encode_chunk(index, *worker, ids);
            placed(index, offset);
        }
        return ids;
    }
    OrderedOutput output(num_bytes / kBytesPerToken + 16);
    std::atomic<std::size_t> next_chunk{0};
    parallel_for(num_workers, num_threads, [&](std::size_t) {
        const auto worker = workers_.take();
        for (;;) {
            const std::size_t index = next_chunk.fetch_add(1, std::memory_order_relaxed);
            if (index >= num_chunks) break;
            try {
                TokenBuffer buffer = output.take_buffer();
                encode_chunk(index, *worker, buffer);
                output.commit(index, std::move(buffer), placed);
            } catch (...) {
                next_chunk.store(num_chunks, std::memory_order_relaxed);  // the others stop as well
                throw;
            }
        }
    });
    return std::move(output).finish();
}

TokenBatch BpeEncoder::encode_batch(std::span<const std::string_view> texts, unsigned num_threads,
                                    std::optional<TokenId> end) const {
    const std::vector<Chunk> chunks = cut_chunks(texts, pattern_);
    std::size_t num_bytes = 0;
    for (const std::string_view text : texts) num_bytes += text.size();
    TokenBatch batch;
    batch.offsets.assign(texts.size() + 1, 0);
    const auto is_single = [](const Chunk& chunk) { return chunk.last - chunk.first == 1; };
    const auto encode_chunk = [&](std::size_t index, Worker& worker, TokenBuffer& buffer) {
        const Chunk& chunk = chunks[index];
        const std::size_t before = buffer.size();
        for (std::size_t i = chunk.first; i < chunk.last; ++i) {
            const bool single = is_single(chunk);
            encode(single ? texts[i].substr(chunk.begin, chunk.end - chunk.begin) : texts[i], worker, buffer);
            if (single && chunk.end != texts[i].size()) continue;
            if (end) buffer.push_back(*end);
            batch.offsets[i + 1] = static_cast<std::int64_t>(buffer.size() - before);
        }
    };
    batch.ids = run(chunks.size(), num_bytes, num_threads, encode_chunk, [&](std::size_t index, std::size_t offset) {
        const Chunk& chunk = chunks[index];
        if (is_single(chunk) && chunk.end != texts[chunk.first].size()) return;  // its text goes on
        for (std::size_t i = chunk.first; i < chunk.last; ++i)
            batch.offsets[i + 1] += static_cast<std::int64_t>(offset);
    });
    return batch;
}

TokenBatch BpeEncoder::encode_separated(std::string_view texts, std::string_view separator,
                                        unsigned num_threads) const {
    // Chunks end at separators, so that each thread looks for those of its own chunks.
    std::vector<std::string_view> chunks;
    bool can_cut = !separator.empty() && !overlaps_itself(separator);
    for (std::size_t begin = 0; can_cut;) {
        const std::size_t from = begin + kChunkBytes;
        const std::size_t at = from < texts.size() ? texts.find(separator, from) : texts.npos;
        const std::size_t last = std::min(at, texts.size());
        can_cut = last - begin <= 4 * kChunkBytes;  // a larger text is itself shared between threads
        chunks.push_back(texts.substr(begin, last - begin));
        if (at == texts.npos) break;
        begin = at + separator.size();
    }
    if (!can_cut) return encode_batch(split(texts, separator), num_threads);
    std::vector<std::vector<std::int64_t>> ends(chunks.size());  // of a chunk's texts, within its ids
    std::vector<std::int64_t> starts(chunks.size());
    TokenBatch batch;
    batch.ids = run(
        chunks.size(), texts.size(), num_threads,
        [&](std::size_t index, Worker& worker, TokenBuffer& buffer) {
            const std::size_t before = buffer.size();
            for (const std::string_view text : split(chunks[index], separator)) {
                encode(text, worker, buffer);
                ends[index].push_back(static_cast<std::int64_t>(buffer.size() - before));
            }
        },
        [&](std::size_t index, std::size_t offset) { starts[index] = static_cast<std::int64_t>(offset); });
    batch.offsets.push_back(0);
    for (std::size_t i = 0; i < chunks.size(); ++i) {
        for (const std::int64_t end : ends[i]) batch.offsets.push_back(starts[i] + end);
    }
    return batch;
}

}  // namespace pylm
