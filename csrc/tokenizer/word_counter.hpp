// Counting the pieces of texts and files: the first half of training, and all that it keeps of a corpus.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tokenizer/pretokenize.hpp"
#include "tokenizer/word_table.hpp"

namespace pylm {

// Calls `visit` for every different word once, in any order. The view lives as long as the call.
using WordVisit = std::function<void(std::string_view word, std::uint64_t count)>;

// How a file is cut into texts.
struct FileFormat {
    std::string separator;        // texts end here; empty: the file is one text
    bool keep_separator = false;  // the separator belongs to the text before it
};

// Counts pieces of text. Holds each different piece once for each thread, never the text. Use it from one
// thread at a time.
class WordCounter {
public:
    explicit WordCounter(Pattern pattern) : pattern_(pattern), tables_(1) {}

    // Count the pieces of these texts, in parallel; long texts are cut at safe places. The result does not
    // depend on the threads. `check` is called now and then on the calling thread and may throw to stop; then
    // part of the texts has been counted.
    void add(std::span<const std::string_view> texts, unsigned num_threads,
             const std::function<void()>& check = {});

    // Count texts of a file from byte `offset`, which must be 0 or what an earlier call returned: about
    // `max_bytes`, at least one text or one part of a text between safe places. Returns where to go on, the
    // file's size at its end. Throws std::runtime_error where the file cannot be read; then, and where `check`
    // throws, as in `add`.
    std::uint64_t add_file(const std::string& path, std::uint64_t offset, std::size_t max_bytes,
                           const FileFormat& format, unsigned num_threads,
                           const std::function<void()>& check = {});

    // Add to the count of a piece that was counted elsewhere.
    void add_word(std::string_view word, std::uint64_t count);

    std::size_t num_words();
    // How often each byte occurs, in all occurrences of all words.
    std::array<std::uint64_t, 256> byte_counts();
    // Visit all words; with `release`, memory is given back on the way and the counter is empty afterwards.
    void visit(const WordVisit& call, bool release = false);

    // Different pieces with their counts, sorted by bytes.
    std::vector<std::pair<std::string, std::uint64_t>> sorted();

private:
    void count_text(WordTable& table, std::string_view text, const char* end,
                    const std::function<void()>* check) const;
    void count_texts(WordTable& table, std::string_view texts, const FileFormat& format,
                     const std::function<void()>* check) const;
    void add_parts(std::span<const std::string_view> parts, const FileFormat& format, unsigned num_threads,
                   const std::function<void()>& check);
    void gather();

    Pattern pattern_;
    std::vector<WordTable> tables_;  // one a thread; empty but for the first one after gather()
    std::vector<char> buffer_;  // of the file being read
};

}  // namespace pylm
