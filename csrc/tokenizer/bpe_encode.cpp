#include "tokenizer/bpe_encode.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <stdexcept>

#include "text/hash.hpp"
#include "text/mapped_file.hpp"
#include "tokenizer/section_file.hpp"

namespace pylm {

namespace {

constexpr TokenId kNone = std::numeric_limits<TokenId>::max();
constexpr std::size_t kChunkBytes = 1 << 18;
constexpr std::size_t kBlock = 256;             // pieces that are cut before they are looked up

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

BpeEncoder::BpeEncoder(TokenTexts tokens, std::span<const MergeRule> merges, Pattern pattern, bool ignore_merges,
                       std::optional<MissingBytes> missing)
    : tokens_(std::move(tokens)),
      pattern_(pattern),
      cut_(find_cut(pattern)),
      ignore_merges_(ignore_merges),
      merges_(tokens_, merges) {
    set_bytes(missing);
    if (ignore_merges) whole_tokens_ = WholeTokens(tokens_, std::vector<std::uint8_t>(tokens_.size(), 1));
}

BpeEncoder::BpeEncoder(const SectionFile& file, TokenTexts tokens, Pattern pattern, bool ignore_merges,
                       std::optional<MissingBytes> missing)
    : tokens_(std::move(tokens)),
      pattern_(pattern),
      cut_(find_cut(pattern)),
      ignore_merges_(ignore_merges),
      merges_(file, tokens_.size()) {
    set_bytes(missing);
    if (ignore_merges) whole_tokens_ = WholeTokens(file, tokens_.size());
}

void BpeEncoder::write(SectionWriter& out, std::span<const MergeRule> merges) const {
    merges_.write(out, merges);
    if (ignore_merges_) whole_tokens_.write(out);
}

void BpeEncoder::set_bytes(std::optional<MissingBytes> missing) {
    std::array<TokenId, 256> byte_ids;
    byte_ids.fill(kNone);
    for (std::size_t id = 0; id < tokens_.size(); ++id) {
        if (tokens_[id].size() == 1) byte_ids[static_cast<std::uint8_t>(tokens_[id][0])] = static_cast<TokenId>(id);
    }
    for (std::size_t byte = 0; byte < 256; ++byte) {
        if (byte_ids[byte] == kNone && !missing) {
            throw std::invalid_argument("the vocabulary has no token for byte " + std::to_string(byte));
        }
    }
    merges_.set_bytes(byte_ids, missing.value_or(MissingBytes{}));
}

BpeEncoder::~BpeEncoder() = default;

// Rows that are tokens become these, and nothing is left to merge.
void BpeEncoder::take_whole(std::span<MergeTable::Row> rows) const noexcept {
    constexpr std::size_t kAtOnce = 64;  // rows whose slots are asked for before they are looked at
    std::array<std::uint64_t, kAtOnce> hashes;
    for (; !rows.empty(); rows = rows.subspan(std::min(kAtOnce, rows.size()))) {
        const std::span<MergeTable::Row> some = rows.first(std::min(kAtOnce, rows.size()));
        for (std::size_t i = 0; i < some.size(); ++i) {
            hashes[i] = hash_bytes({some[i].bytes, some[i].size});
            whole_tokens_.prefetch(hashes[i]);
        }
        for (std::size_t i = 0; i < some.size(); ++i) {
            const TokenId token = whole_tokens_.find({some[i].bytes, some[i].size}, hashes[i], tokens_);
            if (token == kNone) continue;
            some[i].ids[0] = token;
            some[i] = {nullptr, 1, some[i].ids};
        }
    }
}

std::string_view BpeEncoder::token(TokenId id) const {
    if (id >= tokens_.size()) throw std::out_of_range("token id " + std::to_string(id));
    return tokens_[id];
}

// Write the ids of a piece; `out` has room for one id a byte. Returns how many.
std::size_t BpeEncoder::encode_piece(std::string_view piece, TokenId* out) const {
    if (ignore_merges_) {
        const TokenId token = whole_tokens_.find(piece, hash_bytes(piece), tokens_);
        if (token != kNone) {
            *out = token;
            return 1;
        }
    }
    return merges_.apply_bytes(piece, out);
}

// What a thread encodes with: the pieces it knows, and the block of pieces that it cuts and looks up together.
// Rows are merged faster the more there are at once, so pieces that nobody knows yet leave gaps in the output until
// there are enough of them.
struct BpeEncoder::Worker {
    struct Unknown {
        std::string_view piece;
        PieceKey key;  // where it is short
        std::uint64_t hash;
        std::size_t begin;  // of its first gap
    };
    struct Gap {
        std::size_t begin, size;  // in the output
        std::uint32_t unknown;    // the piece whose ids belong there
    };
    static constexpr std::size_t kManyUnknown = 256;
    static constexpr std::size_t kManyGaps = 2048;

    struct Query {
        PieceKey key;  // none() where the piece is long
        std::uint64_t hash;
    };

    PieceCache cache;
    const char* base = nullptr;
    std::array<std::uint32_t, kBlock> ends;
    std::array<Query, kBlock> queries;
    std::vector<Unknown> unknown;
    std::vector<MergeTable::Row> rows;  // of these
    std::vector<Gap> gaps;
    std::vector<std::size_t> text_ends;  // in the output, of the texts of a chunk
    std::size_t num_settled = 0;         // text ends that gaps will not move

    std::string_view piece(std::size_t i) const noexcept {
        const std::uint32_t start = i == 0 ? 0 : ends[i - 1];
        return {base + start, ends[i] - start};
    }

    void begin_chunk() {
        if (!unknown.empty()) {  // an error came before their ids: the cache must not hand out their places
            cache.clear();
            unknown.clear();
            gaps.clear();
        }
        text_ends.clear();
        num_settled = 0;
    }
};

// Write the ids of a piece whose entry does not have them, or leave a gap. Returns the end of `out`, which is
// place `begin` of the output.
TokenId* BpeEncoder::write_other(Worker& worker, std::size_t i, TokenId* out, std::size_t begin) const {
    PieceCache& cache = worker.cache;
    const std::string_view piece = worker.piece(i);
    const auto& [key, hash] = worker.queries[i];
    const auto leave_gap = [&](std::uint32_t unknown) {
        worker.gaps.push_back({begin, piece.size(), unknown});
        return out + piece.size();
    };
    if (piece.size() > PieceCache::kMaxLong) return out + encode_piece(piece, out);
    const bool is_short = piece.size() <= PieceKey::kMaxBytes;
    if (is_short) {
        if (const PieceCache::Entry* const known = cache.find(key, hash)) {
            if (known->is_open()) return leave_gap(known->words[0]);
            return std::ranges::copy(cache.ids_of(*known), out).out;
        }
    } else {
        if (const PieceCache::LongEntry* const known = cache.find_long(piece, hash)) {
            if (known->is_open()) return leave_gap(known->ids);
            return std::ranges::copy(cache.ids_of(*known), out).out;
        }
    }
    if (piece.size() <= MergeTable::Row::kMaxSize && !merges_.lacks_byte(piece)) {
        const auto place = static_cast<std::uint32_t>(worker.unknown.size());
        worker.unknown.push_back({piece, is_short ? key : PieceKey{}, hash, begin});
        is_short ? cache.add_open(key, hash, place) : cache.add_long_open(piece, hash, place);
        return leave_gap(place);
    }
    const std::size_t num_ids = encode_piece(piece, out);
    if (is_short) {
        cache.make_room(1);
        cache.add(key, hash, {out, num_ids});
    } else {
        cache.add_long(piece, hash, {out, num_ids});
    }
    return out + num_ids;
}

// Merge the unknown pieces, and close the gaps.
void BpeEncoder::close_gaps(Worker& worker, TokenBuffer& buffer) const {
    std::vector<Worker::Unknown>& unknown = worker.unknown;
    std::vector<Worker::Gap>& gaps = worker.gaps;
    std::vector<MergeTable::Row>& rows = worker.rows;
    TokenId* const ids = buffer.data();
    rows.clear();
    for (const auto& one : unknown) rows.push_back({one.piece.data(), one.piece.size(), ids + one.begin});
    if (ignore_merges_) take_whole(rows);
    merges_.apply(rows);
    std::size_t end = gaps.empty() ? buffer.size() : gaps.front().begin;
    const auto settle = [&](std::size_t border, std::size_t moved_by) {
        std::vector<std::size_t>& ends = worker.text_ends;
        for (std::size_t& i = worker.num_settled; i < ends.size() && ends[i] <= border; ++i) ends[i] -= moved_by;
    };
    settle(end, 0);
    for (std::size_t g = 0; g < gaps.size(); ++g) {
        MergeTable::Row& row = rows[gaps[g].unknown];
        std::memmove(ids + end, row.ids, row.size * sizeof(TokenId));
        row.ids = ids + end;  // whence later gaps take them
        end += row.size;
        const std::size_t begin = gaps[g].begin + gaps[g].size;
        const std::size_t next = g + 1 < gaps.size() ? gaps[g + 1].begin : buffer.size();
        settle(next, begin - end);
        std::memmove(ids + end, ids + begin, (next - begin) * sizeof(TokenId));
        end += next - begin;
    }
    buffer.resize(end);
    worker.cache.make_room(rows.size());
    for (std::size_t i = 0; i < rows.size(); ++i) {
        const std::span<const TokenId> found(rows[i].ids, rows[i].size);
        if (unknown[i].piece.size() <= PieceKey::kMaxBytes) {
            worker.cache.add(unknown[i].key, unknown[i].hash, found);
        } else {
            worker.cache.add_long(unknown[i].piece, unknown[i].hash, found);
        }
    }
    unknown.clear();
    gaps.clear();
}

// Append the ids of a text, with gaps.
void BpeEncoder::encode(std::string_view text, Worker& worker, TokenBuffer& buffer) const {
    PieceCache& cache = worker.cache;
    // Never more ids than bytes; an entry's ids are written with the words behind them.
    buffer.reserve(buffer.size() + text.size() + PieceCache::kMaxMany);
    TokenId* out = buffer.data() + buffer.size();
    const char* const text_end = text.data() + text.size();
    const char* const last_word = text.size() < 16 ? nullptr : text_end - 16;  // where 16 bytes can be read
    for (std::size_t position = 0; position < text.size();) {
        const std::size_t count = cut_(text, position, worker.ends);
        if (count == 0) {  // a piece of 4 GiB
            const std::size_t end = end_of_piece(pattern_, text, position);
            out += encode_piece(text.substr(position, end - position), out);
            position = end;
            continue;
        }
        const char* const base = worker.base = text.data() + position;
        PieceCache::Lines lines = cache.lines();
        Worker::Query* const queries = worker.queries.data();
        Worker::Query* const last_query = queries + count;
        const std::uint32_t* ends = worker.ends.data();
        const char* begin = base;
        for (Worker::Query* query = queries; query != last_query; ++query) {
            const char* const end = base + *ends++;
            const auto size = static_cast<std::size_t>(end - begin);
            if (size > PieceKey::kMaxBytes) [[unlikely]] {
                *query = {PieceKey::none(), 0};
                if (size <= PieceCache::kMaxLong) {
                    query->hash = hash_bytes({begin, size});
                    cache.prefetch_long(query->hash);
                }
            } else {
                const bool is_inside = begin <= last_word;
                query->key = is_inside ? PieceKey::of(begin, size) : PieceKey::of(begin, size, text_end);
                query->hash = query->key.hash();
                lines.prefetch(query->hash);
            }
            begin = end;
        }
        for (const Worker::Query* query = queries; query != last_query; ++query) {
            const PieceCache::Entry* const entry = lines.find(query->key, query->hash);
            if (entry != nullptr) [[likely]] {
                if (entry->is_plain()) [[likely]] {
                    std::memcpy(out, entry->words.data(), sizeof entry->words);  // with the word behind
                    out += entry->num_ids();
                    continue;
                }
                if (entry->is_plain_many()) {
                    std::memcpy(out, lines.many_of(*entry), PieceCache::kMaxMany * sizeof(TokenId));
                    out += entry->num_ids();
                    continue;
                }
            }
            out = write_other(worker, static_cast<std::size_t>(query - queries), out,
                              static_cast<std::size_t>(out - buffer.data()));
            lines = cache.lines();
        }
        position += worker.ends[count - 1];
        if (worker.unknown.size() >= Worker::kManyUnknown || worker.gaps.size() >= Worker::kManyGaps) {
            buffer.resize(static_cast<std::size_t>(out - buffer.data()));
            close_gaps(worker, buffer);
            out = buffer.data() + buffer.size();
        }
    }
    buffer.resize(static_cast<std::size_t>(out - buffer.data()));
}

TokenBuffer BpeEncoder::encode(std::string_view text) const {
    TokenBuffer ids;
    const auto worker = workers_.take();
    worker->begin_chunk();
    encode(text, *worker, ids);
    close_gaps(*worker, ids);
    return ids;
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
        worker.begin_chunk();
        for (std::size_t i = chunk.first; i < chunk.last; ++i) {
            const bool single = is_single(chunk);
            encode(single ? texts[i].substr(chunk.begin, chunk.end - chunk.begin) : texts[i], worker, buffer);
            if (single && chunk.end != texts[i].size()) continue;
            if (end) buffer.push_back(*end);
            worker.text_ends.push_back(buffer.size());
        }
        close_gaps(worker, buffer);
        for (std::size_t i = 0; i < worker.text_ends.size(); ++i)
            batch.offsets[chunk.first + i + 1] = static_cast<std::int64_t>(worker.text_ends[i] - before);
    };
    const auto placed = [&](std::size_t index, std::size_t offset) {
        const Chunk& chunk = chunks[index];
        if (is_single(chunk) && chunk.end != texts[chunk.first].size()) return;  // its text goes on
        for (std::size_t i = chunk.first; i < chunk.last; ++i)
            batch.offsets[i + 1] += static_cast<std::int64_t>(offset);
    };
    batch.ids = encode_chunks(workers_, chunks.size(), num_bytes, num_threads, encode_chunk, placed);
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
    batch.ids = encode_chunks(
        workers_, chunks.size(), texts.size(), num_threads,
        [&](std::size_t index, Worker& worker, TokenBuffer& buffer) {
            const std::size_t before = buffer.size();
            worker.begin_chunk();
            for (const std::string_view text : split(chunks[index], separator)) {
                encode(text, worker, buffer);
                worker.text_ends.push_back(buffer.size());
            }
            close_gaps(worker, buffer);
            for (const std::size_t end : worker.text_ends)
                ends[index].push_back(static_cast<std::int64_t>(end - before));
        },
        [&](std::size_t index, std::size_t offset) { starts[index] = static_cast<std::int64_t>(offset); });
    batch.offsets.push_back(0);
    for (std::size_t i = 0; i < chunks.size(); ++i) {
        for (const std::int64_t end : ends[i]) batch.offsets.push_back(starts[i] + end);
    }
    return batch;
}

}  // namespace pylm
