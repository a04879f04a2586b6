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
      merges_(tokens_, merges) {
    std::array<TokenId, 256> byte_ids;
    byte_ids.fill(kNone);
    for (std::size_t id = 0; id < tokens_.size(); ++id) {
        if (tokens_[id].size() == 1) byte_ids[static_cast<std::uint8_t>(tokens_[id][0])] = static_cast<TokenId>(id);
    }
    for (std::size_t byte = 0; byte < 256; ++byte) {
        if (byte_ids[byte] == kNone) {
            throw std::invalid_argument("the vocabulary has no token for byte " + std::to_string(byte));
        }
    }
    merges_.set_bytes(byte_ids);
    if (ignore_merges) add_whole_tokens();
}

// What is needed to look pieces up as tokens.
void BpeEncoder::add_whole_tokens() {
    whole_tokens_.resize(std::bit_ceil(2 * tokens_.size() + 1));
    const std::size_t mask = whole_tokens_.size() - 1;
    for (std::size_t id = 0; id < tokens_.size(); ++id) {
        if (tokens_[id].empty()) continue;
        const std::uint64_t hash = hash_bytes(tokens_[id]);
        std::size_t slot = hash & mask;
        while (whole_tokens_[slot].id != kNone) slot = (slot + 1) & mask;
        whole_tokens_[slot] = {static_cast<std::uint32_t>(hash >> 32), static_cast<TokenId>(id)};
    }
}

BpeEncoder::~BpeEncoder() = default;

TokenId BpeEncoder::find_whole(std::string_view piece) const noexcept {
    const std::uint64_t hash = hash_bytes(piece);
    const std::size_t mask = whole_tokens_.size() - 1;
    for (std::size_t slot = hash & mask;; slot = (slot + 1) & mask) {
        const WholeToken& entry = whole_tokens_[slot];
        if (entry.id == kNone) return kNone;
        if (entry.hash == static_cast<std::uint32_t>(hash >> 32) && tokens_[entry.id] == piece) return entry.id;
    }
}

std::string_view BpeEncoder::token(TokenId id) const {
    if (id >= tokens_.size()) throw std::out_of_range("token id " + std::to_string(id));
    return tokens_[id];
}

// Write the ids of a piece; `out` has room for one id a byte. Returns how many.
std::size_t BpeEncoder::encode_piece(std::string_view piece, TokenId* out) const {
    if (const TokenId token = ignore_merges_ ? find_whole(piece) : kNone; token != kNone) {
        *out = token;
        return 1;
    }
    return merges_.apply_bytes(piece, out);
}

// What a thread encodes with: the pieces it knows, and the block of pieces that it cuts, looks up and writes
// together.
struct BpeEncoder::Worker {
    // A piece that is not in the cache's table: its ids are elsewhere, or not known yet.
    struct Other {
        std::uint32_t piece;
        std::uint32_t row;          // in `rows`, or kKnown or kVast
        const TokenId* ids;         // where known
        std::size_t num_ids;
    };
    static constexpr std::uint32_t kKnown = ~std::uint32_t{0};
    static constexpr std::uint32_t kVast = kKnown - 1;  // too long to be kept

    PieceCache cache;
    const char* base = nullptr;
    std::array<std::uint32_t, kBlock> ends;
    std::array<PieceKey, kBlock> keys;
    std::array<std::uint64_t, kBlock> hashes;
    std::array<const PieceCache::Entry*, kBlock> entries;  // null for the others
    std::array<Other, kBlock> others;
    std::size_t num_others = 0;
    std::array<MergeTable::Row, kBlock> rows;  // of unknown pieces
    std::array<MergeTable::Row*, kBlock> open;
    std::size_t num_rows = 0;
    std::vector<TokenId> ids;  // of these

    std::string_view piece(std::size_t i) const noexcept {
        const std::uint32_t start = i == 0 ? 0 : ends[i - 1];
        return {base + start, ends[i] - start};
    }
};

// Note that the table does not have a piece, and find out who has it.
void BpeEncoder::note_other(Worker& block, std::size_t i) const {
    const std::string_view piece = block.piece(i);
    Worker::Other& other = block.others[block.num_others++];
    other.piece = static_cast<std::uint32_t>(i);
    if (piece.size() > PieceKey::kMaxBytes) {
        if (piece.size() > PieceCache::kMaxLong) {
            other.row = Worker::kVast;
            return;
        }
        const std::span<const TokenId> known = block.cache.find_long(piece, block.hashes[i]);
        if (!known.empty()) {
            other.row = Worker::kKnown;
            other.ids = known.data();
            other.num_ids = known.size();
            return;
        }
    }
    other.row = static_cast<std::uint32_t>(block.num_rows);
    block.rows[block.num_rows++] = {piece.data(), piece.size(), nullptr};
}

// Find the ids of all pieces that the cache does not know.
void BpeEncoder::solve_rows(Worker& block) const {
    std::size_t num_ids = 0, num_open = 0;
    for (std::size_t n = 0; n < block.num_rows; ++n) num_ids += block.rows[n].size;
    block.ids.resize(std::max(block.ids.size(), num_ids));
    TokenId* ids = block.ids.data();
    for (std::size_t n = 0; n < block.num_rows; ++n) {
        MergeTable::Row& row = block.rows[n];
        row.ids = ids;
        ids += row.size;
        if (ignore_merges_ || row.size > MergeTable::Row::kMaxSize) {
            const std::string_view piece(row.bytes, row.size);
            if (const TokenId token = ignore_merges_ ? find_whole(piece) : kNone; token != kNone) {
                *row.ids = token;
                row.size = 1;
                continue;
            }
            if (row.size > MergeTable::Row::kMaxSize) {
                row.size = merges_.apply_bytes(piece, row.ids);
                continue;
            }
        }
        block.open[num_open++] = &row;
    }
    merges_.apply(std::span(block.open).first(num_open));
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
            out += encode_piece(text.substr(position, end - position), out);
            position = end;
            continue;
        }
        block.base = text.data() + position;
        for (std::size_t i = 0; i < count; ++i) {
            const std::string_view piece = block.piece(i);
            if (piece.size() > PieceKey::kMaxBytes) [[unlikely]] {
                if (piece.size() > PieceCache::kMaxLong) continue;
                block.hashes[i] = hash_bytes(piece);
                cache.prefetch_long(block.hashes[i]);
                continue;
            }
            block.keys[i] = PieceKey::of(piece.data(), piece.size(), text_end);
            block.hashes[i] = block.keys[i].hash();
            cache.prefetch(block.hashes[i]);
        }
        block.num_others = block.num_rows = 0;
        cache.make_room(count);
        for (std::size_t i = 0; i < count; ++i) {
            block.entries[i] = nullptr;
            if (block.piece(i).size() <= PieceKey::kMaxBytes) [[likely]] {
                block.entries[i] = cache.find(block.keys[i], block.hashes[i]);
                if (block.entries[i] != nullptr) [[likely]] continue;
            }
            note_other(block, i);
        }
        if (block.num_rows > 0) solve_rows(block);
        const Worker::Other* other = block.others.data();
        for (std::size_t i = 0; i < count; ++i) {
            const PieceCache::Entry* entry = block.entries[i];
            if (entry == nullptr) [[unlikely]] {
                if (other->row == Worker::kVast) {
                    out += encode_piece(block.piece(i), out);
                } else if (other->row == Worker::kKnown) {
                    out = std::copy_n(other->ids, other->num_ids, out);
                } else {
                    out = std::copy_n(block.rows[other->row].ids, block.rows[other->row].size, out);
                }
                ++other;
            } else if (const std::size_t num_ids = entry->num_ids(); num_ids <= PieceCache::kMaxInline) [[likely]] {
                std::memcpy(out, entry->words.data(), sizeof entry->words);
                out += num_ids;
            } else {
                out = std::copy_n(cache.more() + entry->words[0], num_ids, out);
            }
        }
        for (std::size_t n = 0; n < block.num_others; ++n) {
            const auto& [piece, row, ids, num_ids] = block.others[n];
            if (row >= Worker::kVast) continue;
            const std::span<const TokenId> found(block.rows[row].ids, block.rows[row].size);
            if (const std::string_view bytes = block.piece(piece); bytes.size() > PieceKey::kMaxBytes) {
                cache.add_long(bytes, block.hashes[piece], found);
            } else {
                cache.add(block.keys[piece], block.hashes[piece], found);
            }
        }
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
