#include "tokenizer/bpe_encode.hpp"

#include <algorithm>
#include <bit>
#include <stdexcept>

#include "parallel.hpp"
#include "text/hash.hpp"

namespace pylm {

namespace {

constexpr TokenId kNone = std::numeric_limits<TokenId>::max();
constexpr std::size_t kLongestCached = 48;  // longer pieces seldom come again
constexpr std::size_t kChunkBytes = 1 << 18;

std::size_t table_size(std::size_t count) { return std::bit_ceil(std::max<std::size_t>(16, count * 2)); }

}  // namespace

// Ids of pieces seen before, for one thread. Bounded: it starts anew when full, which changes speed only.
class BpeEncoder::PieceCache {
  public:
    PieceCache() : slots_(kSlots) {}

    // The cached ids of `piece`, or nullptr.
    const std::vector<TokenId>* arena() const noexcept { return &ids_; }

    struct Found {
        std::uint32_t begin = 0;
        std::uint32_t size = 0;
        bool hit = false;
    };

    Found find(std::string_view piece, std::uint64_t hash) const noexcept {
        for (std::size_t i = 0; i < kProbes; ++i) {
            const Slot& slot = slots_[(hash + i) & (kSlots - 1)];
            if (slot.hash == hash && slot.bytes_size == piece.size() &&
                piece == std::string_view(bytes_).substr(slot.bytes_begin, slot.bytes_size)) {
                return {slot.ids_begin, slot.ids_size, true};
            }
        }
        return {};
    }

    void add(std::string_view piece, std::uint64_t hash, std::span<const TokenId> ids) {
        if (bytes_.size() + piece.size() > kMaxBytes || ids_.size() + ids.size() > kMaxIds) {
            bytes_.clear();
            ids_.clear();
            slots_.assign(kSlots, Slot{});
        }
        std::size_t place = hash & (kSlots - 1);
        for (std::size_t i = 0; i < kProbes; ++i) {
            if (slots_[(hash + i) & (kSlots - 1)].bytes_size == 0) {
                place = (hash + i) & (kSlots - 1);
                break;
            }
        }
        slots_[place] = {hash, static_cast<std::uint32_t>(bytes_.size()),
                         static_cast<std::uint32_t>(piece.size()), static_cast<std::uint32_t>(ids_.size()),
                         static_cast<std::uint32_t>(ids.size())};
        bytes_.append(piece);
        ids_.insert(ids_.end(), ids.begin(), ids.end());
    }

  private:
    static constexpr std::size_t kSlots = 1 << 16;
    static constexpr std::size_t kProbes = 4;
    static constexpr std::size_t kMaxBytes = 1 << 21;
    static constexpr std::size_t kMaxIds = 1 << 20;
    struct Slot {
        std::uint64_t hash = 0;
        std::uint32_t bytes_begin = 0, bytes_size = 0;
        std::uint32_t ids_begin = 0, ids_size = 0;
    };
    std::vector<Slot> slots_;
    std::string bytes_;
    std::vector<TokenId> ids_;
};

BpeEncoder::BpeEncoder(std::vector<std::string> tokens, const std::vector<MergeRule>& merges,
                       Pattern pattern, bool ignore_merges)
    : tokens_(std::move(tokens)), pattern_(pattern), ignore_merges_(ignore_merges), merges_(tokens_, merges) {
    std::fill(std::begin(byte_ids_), std::end(byte_ids_), kNone);
    pieces_.resize(table_size(tokens_.size()));
    for (std::size_t id = 0; id < tokens_.size(); ++id) {
        const std::string& bytes = tokens_[id];
        if (bytes.empty()) continue;
        if (bytes.size() == 1) byte_ids_[static_cast<std::uint8_t>(bytes[0])] = static_cast<TokenId>(id);
        const std::uint64_t hash = hash_bytes(bytes);
        std::size_t slot = hash & (pieces_.size() - 1);
        while (pieces_[slot].id != kNone) slot = (slot + 1) & (pieces_.size() - 1);
        pieces_[slot] = {static_cast<std::uint32_t>(hash >> 32), static_cast<TokenId>(id)};
    }
    for (std::size_t byte = 0; byte < 256; ++byte) {
        if (byte_ids_[byte] == kNone) {
            throw std::invalid_argument("the vocabulary has no token for byte " + std::to_string(byte));
        }
    }
}

TokenId BpeEncoder::find_token(std::string_view bytes) const noexcept {
    const std::uint64_t hash = hash_bytes(bytes);
    const std::size_t mask = pieces_.size() - 1;
    for (std::size_t slot = hash & mask;; slot = (slot + 1) & mask) {
        const PieceSlot& entry = pieces_[slot];
        if (entry.id == kNone) return kNone;
        if (entry.hash == static_cast<std::uint32_t>(hash >> 32) && tokens_[entry.id] == bytes)
            return entry.id;
    }
}

std::string_view BpeEncoder::token(TokenId id) const {
    if (id >= tokens_.size()) throw std::out_of_range("token id " + std::to_string(id));
    return tokens_[id];
}

void BpeEncoder::encode_piece(std::string_view piece, std::vector<TokenId>& out) const {
    if (piece.size() == 1) {
        out.push_back(byte_ids_[static_cast<std::uint8_t>(piece[0])]);
        return;
    }
    if (ignore_merges_) {
        const TokenId whole = find_token(piece);
        if (whole != kNone) {
            out.push_back(whole);
            return;
        }
    }
    const std::size_t before = out.size();
    for (const char byte : piece) out.push_back(byte_ids_[static_cast<std::uint8_t>(byte)]);
    out.resize(before + merges_.apply(std::span(out).subspan(before)));
}

void BpeEncoder::encode_cached(std::string_view text, PieceCache& cache, std::vector<TokenId>& out) const {
    Pretokenizer pieces(pattern_, text);
    for (std::string_view piece = pieces.next(); !piece.empty(); piece = pieces.next()) {
        if (piece.size() == 1 || piece.size() > kLongestCached) {
            encode_piece(piece, out);
            continue;
        }
        const std::uint64_t hash = hash_bytes(piece);
        const PieceCache::Found found = cache.find(piece, hash);
        if (found.hit) {
            const auto begin = cache.arena()->begin() + found.begin;
            out.insert(out.end(), begin, begin + found.size);
            continue;
        }
        const std::size_t before = out.size();
        encode_piece(piece, out);
        cache.add(piece, hash, std::span(out).subspan(before));
    }
}

void BpeEncoder::encode(std::string_view text, std::vector<TokenId>& out) const {
    Pretokenizer pieces(pattern_, text);
    for (std::string_view piece = pieces.next(); !piece.empty(); piece = pieces.next())
        encode_piece(piece, out);
}

TokenBatch BpeEncoder::encode_batch(std::span<const char> data, std::span<const std::int64_t> offsets,
                                    unsigned num_threads) const {
    std::vector<std::string_view> texts;
    texts.reserve(offsets.size());
    for (std::size_t i = 0; i + 1 < offsets.size(); ++i) {
        const std::int64_t begin = offsets[i];
        const std::int64_t end = offsets[i + 1];
        if (begin < 0 || end < begin || static_cast<std::size_t>(end) > data.size()) {
            throw std::invalid_argument("offsets must rise and stay within the data, at text " +
                                        std::to_string(i));
        }
        texts.emplace_back(data.data() + begin, static_cast<std::size_t>(end - begin));
    }
    return encode_batch(texts, num_threads);
}

TokenBatch BpeEncoder::encode_batch(std::span<const std::string_view> texts, unsigned num_threads) const {
    // Whole texts, cut into chunks by size alone, so that chunks are the same for any number of threads.
    std::vector<std::size_t> borders{0};
    std::size_t bytes = 0;
    for (std::size_t i = 0; i < texts.size(); ++i) {
        bytes += texts[i].size();
        if (bytes >= kChunkBytes) {
            borders.push_back(i + 1);
            bytes = 0;
        }
    }
    if (borders.back() != texts.size()) borders.push_back(texts.size());
    const std::size_t num_chunks = borders.size() - 1;
    std::vector<std::vector<TokenId>> parts(num_chunks);
    TokenBatch batch;
    batch.offsets.assign(texts.size() + 1, 0);
    const std::size_t num_workers =
        std::min<std::size_t>(resolve_threads(num_threads), std::max<std::size_t>(1, num_chunks));
    // One cache a worker, each over a contiguous share of the chunks.
    parallel_for(num_workers, num_threads, [&](std::size_t worker) {
        PieceCache cache;
        const std::size_t begin = num_chunks * worker / num_workers;
        const std::size_t end = num_chunks * (worker + 1) / num_workers;
        for (std::size_t chunk = begin; chunk < end; ++chunk) {
            std::vector<TokenId>& out = parts[chunk];
            for (std::size_t i = borders[chunk]; i < borders[chunk + 1]; ++i) {
                const std::size_t before = out.size();
                encode_cached(texts[i], cache, out);
                batch.offsets[i + 1] = static_cast<std::int64_t>(out.size() - before);
            }
        }
    });
    std::size_t total = 0;
    for (const auto& part : parts) total += part.size();
    batch.ids.reserve(total);
    for (auto& part : parts) {
        batch.ids.insert(batch.ids.end(), part.begin(), part.end());
        std::vector<TokenId>().swap(part);
    }
    for (std::size_t i = 0; i < texts.size(); ++i) batch.offsets[i + 1] += batch.offsets[i];
    return batch;
}

}  // namespace pylm
