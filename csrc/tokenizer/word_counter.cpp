#include "tokenizer/word_counter.hpp"

#include <algorithm>
#include <atomic>
#include <fstream>
#include <stdexcept>
#include <thread>

#include "parallel.hpp"

namespace pylm {

namespace {

constexpr std::size_t kPartBytes = 1 << 19;      // what a thread takes at a time
constexpr std::size_t kRoundBytes = 8 << 20;     // a thread's share between two checks
constexpr std::size_t kPiecesBetweenChecks = 1 << 20;

// Last safe cut of the text after its start, or 0.
std::size_t find_last_safe_cut(Pattern pattern, std::string_view text) noexcept {
    for (std::size_t step = 4096;; step *= 4) {
        std::size_t from = text.size() > step ? text.size() - step : 1;
        std::size_t last = 0;
        for (std::size_t cut = next_safe_border(pattern, text, from); cut < text.size();
             cut = next_safe_border(pattern, text, cut + 1))
            last = cut;
        if (last > 0 || from == 1) return last;
    }
}

// End of the first text that ends at or after kPartBytes from `start`, its separator included. Separators count
// from left to right, as they may overlap themselves; those of one byte do not, so what lies between is skipped.
std::size_t end_of_text(std::string_view texts, std::size_t start, std::string_view mark) noexcept {
    const std::size_t least = start + kPartBytes;
    std::size_t end = mark.size() == 1 ? least : start;
    do {
        const std::size_t at = texts.find(mark, end);
        if (at == texts.npos) return texts.size();
        end = at + mark.size();
    } while (end < least);
    return end;
}

}  // namespace

void WordCounter::count_text(WordTable& table, std::string_view text, const char* end,
                             const std::function<void()>* check) const {
    // The one place that knows how pieces are found.
    Pretokenizer pieces(pattern_, text);
    std::size_t until_check = kPiecesBetweenChecks;
    for (std::string_view piece = pieces.next(); !piece.empty(); piece = pieces.next()) {
        table.add(piece, end, 1);
        if (--until_check == 0) {
            until_check = kPiecesBetweenChecks;
            if (check != nullptr) (*check)();
        }
    }
}

void WordCounter::count_texts(WordTable& table, std::string_view texts, const FileFormat& format,
                              const std::function<void()>* check) const {
    const char* const end = texts.data() + texts.size();
    const std::string& mark = format.separator;
    if (mark.empty()) return count_text(table, texts, end, check);
    for (std::size_t start = 0; start < texts.size();) {
        const std::size_t at = std::min(texts.find(mark, start), texts.size());
        const std::size_t next = std::min(at + mark.size(), texts.size());
        count_text(table, texts.substr(start, (format.keep_separator ? next : at) - start), end, check);
        start = next;
    }
}

void WordCounter::add(std::span<const std::string_view> texts, unsigned num_threads,
                      const std::function<void()>& check) {
    std::vector<std::string_view> parts;
    const std::size_t round = kRoundBytes * resolve_threads(num_threads);
    std::size_t bytes = 0;
    const auto flush = [&] {
        add_parts(parts, {}, num_threads, check);
        parts.clear();
        bytes = 0;
    };
    for (const std::string_view text : texts) {
        for (std::size_t start = 0; start < text.size();) {
            const std::size_t end = next_safe_border(pattern_, text, start + kPartBytes);
            parts.push_back(text.substr(start, end - start));
            bytes += end - start;
            start = end;
            if (bytes >= round) flush();
        }
    }
    flush();
}

void WordCounter::add_parts(std::span<const std::string_view> parts, const FileFormat& format,
                            unsigned num_threads, const std::function<void()>& check) {
    std::vector<std::size_t> borders{0};
    std::size_t bytes = 0;
    for (std::size_t i = 0; i < parts.size(); ++i) {
        bytes += parts[i].size();
        if (bytes >= kPartBytes || i + 1 == parts.size()) {
            borders.push_back(i + 1);
            bytes = 0;
        }
    }
    const std::size_t num_tasks = borders.size() - 1;
    const std::size_t num_workers = std::min<std::size_t>(resolve_threads(num_threads), num_tasks);
    if (tables_.size() < num_workers) tables_.resize(num_workers);
    std::atomic<std::size_t> next{0};
    const std::thread::id caller = std::this_thread::get_id();
    parallel_for(num_workers, num_threads, [&](std::size_t worker) {
        const auto* own = check && std::this_thread::get_id() == caller ? &check : nullptr;
        // Which thread counts which part makes no difference to the sums.
        for (std::size_t task = next.fetch_add(1); task < num_tasks; task = next.fetch_add(1)) {
            for (std::size_t i = borders[task]; i < borders[task + 1]; ++i)
                count_texts(tables_[worker], parts[i], format, own);
        }
    });
    if (check) check();
}

std::uint64_t WordCounter::add_file(const std::string& path, std::uint64_t offset, std::size_t max_bytes,
                                    const FileFormat& format, unsigned num_threads,
                                    const std::function<void()>& check) {
    std::ifstream file(path, std::ios::binary);
    if (!file.seekg(static_cast<std::streamoff>(offset)))
        throw std::runtime_error(path + ": cannot be opened at byte " + std::to_string(offset));
    const std::string& mark = format.separator;
    std::vector<std::string_view> parts;
    std::size_t size = 0;
    std::size_t start = 0;    // of the part that has not ended yet
    std::size_t scanned = 0;  // up to here separators have been looked for
    for (std::size_t wanted = std::max<std::size_t>(max_bytes, 1);; wanted *= 2) {
        if (buffer_.size() < wanted) buffer_.resize(wanted);
        file.read(buffer_.data() + size, static_cast<std::streamsize>(wanted - size));
        size += static_cast<std::size_t>(file.gcount());
        if (file.bad()) throw std::runtime_error(path + ": reading failed after byte " + std::to_string(offset));
        const bool at_end = size < wanted;
        std::size_t end = size;  // of the last text that is whole
        const std::string_view read(buffer_.data(), size);
        if (!at_end) {
            if (mark.empty()) {
                end = find_last_safe_cut(pattern_, read);
            } else if (mark.size() == 1) {
                const std::size_t last = read.rfind(mark);
                end = last == read.npos ? 0 : last + 1;
            } else {
                // From left to right, since separators such as two line feeds may overlap.
                end = 0;
                for (std::size_t at = read.find(mark, scanned); at != read.npos; at = read.find(mark, end))
                    end = at + mark.size();
                scanned = std::max(end, size - std::min(size, mark.size() - 1));
            }
            if (end == 0) continue;  // longer than what has been read
        }
        while (start < end) {
            std::size_t next = end;
            if (end - start > kPartBytes) {
                next = mark.empty() ? next_safe_border(pattern_, read.substr(0, end), start + kPartBytes)
                                    : end_of_text(read.substr(0, end), start, mark);
            }
            parts.push_back(read.substr(start, next - start));
            start = next;
        }
        break;
    }
    add_parts(parts, format, num_threads, check);
    return offset + start;
}

void WordCounter::add_word(std::string_view word, std::uint64_t count) {
    tables_[0].add(word, word.data() + word.size(), count);
}

void WordCounter::gather() {
    if (tables_.size() == 1) return;
    parallel_for(WordTable::kShards, static_cast<unsigned>(tables_.size()), [&](std::size_t i) {
        for (std::size_t t = 1; t < tables_.size(); ++t) {
            tables_[0].shard(i).add_all(tables_[t].shard(i));
            tables_[t].shard(i) = WordShard();
        }
    });
    tables_.resize(1);
}

std::size_t WordCounter::num_words() {
    gather();
    std::size_t sum = 0;
    for (std::size_t i = 0; i < WordTable::kShards; ++i) sum += tables_[0].shard(i).size();
    return sum;
}

std::array<std::uint64_t, 256> WordCounter::byte_counts() {
    std::array<std::uint64_t, 256> counts{};
    visit([&](std::string_view word, std::uint64_t count) {
        for (const char byte : word) counts[static_cast<std::uint8_t>(byte)] += count;
    });
    return counts;
}

void WordCounter::visit(const WordVisit& call, bool release) {
    gather();
    if (release) buffer_ = std::vector<char>();
    for (std::size_t i = 0; i < WordTable::kShards; ++i) {
        tables_[0].shard(i).visit(
            [&](std::string_view word, std::uint64_t, std::uint64_t count) { call(word, count); });
        if (release) tables_[0].shard(i) = WordShard();
    }
}

std::vector<std::pair<std::string, std::uint64_t>> WordCounter::sorted() {
    std::vector<std::pair<std::string, std::uint64_t>> words;
    words.reserve(num_words());
    visit([&](std::string_view word, std::uint64_t count) { words.emplace_back(word, count); });
    std::sort(words.begin(), words.end());
    return words;
}

}  // namespace pylm
