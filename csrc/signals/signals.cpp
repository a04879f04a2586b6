#include "signals/signals.hpp"

#include <algorithm>
#include <bit>

#include "signals/lines.hpp"
#include "signals/ngrams.hpp"
#include "signals/table.hpp"
#include "signals/tokens.hpp"

namespace pylm::signals {
namespace {

double ratio(double part, double whole) { return whole == 0 ? 0.0 : part / whole; }

}  // namespace

const std::array<std::string_view, kNumSignals> kNames = {
    "num_bytes",
    "num_chars",
    "num_lines",
    "num_paragraphs",
    "num_words",
    "num_marks",
    "num_sentences",
    "num_stop_words",
    "max_line_length",
    "max_part_length",
    "num_curly_brackets",
    "num_lorem_ipsum",
    "num_javascript_lines",
    "num_policy_lines",
    "mean_word_length",
    "unique_word_ratio",
    "hash_word_ratio",
    "ellipsis_word_ratio",
    "alpha_word_ratio",
    "newline_word_ratio",
    "mean_line_length",
    "bullet_line_ratio",
    "ellipsis_line_ratio",
    "terminal_line_ratio",
    "line_punctuation_ratio",
    "short_line_ratio",
    "alphanumeric_ratio",
    "uppercase_ratio",
    "digit_ratio",
    "whitespace_ratio",
    "punctuation_ratio",
    "duplicate_line_ratio",
    "duplicate_line_char_ratio",
    "duplicate_nonblank_line_char_ratio",
    "duplicate_paragraph_ratio",
    "duplicate_paragraph_char_ratio",
    "top_2gram_char_ratio",
    "top_3gram_char_ratio",
    "top_4gram_char_ratio",
    "duplicate_5gram_char_ratio",
    "duplicate_6gram_char_ratio",
    "duplicate_7gram_char_ratio",
    "duplicate_8gram_char_ratio",
    "duplicate_9gram_char_ratio",
    "duplicate_10gram_char_ratio",
};

struct Analyzer::State {
    bool tokens = false;
    bool ids = false;
    bool top = false;
    bool duplicates = false;
    LineSignals lines;
    Tokenizer tokenizer;
    Numbering numbering;
    std::vector<std::uint32_t> numbers;
    NgramSignals ngrams;
    Row row{};

    explicit State(LineSignals::Wanted wanted) : lines(wanted) {}
    void count_tokens(const TokenList& list);
};

Analyzer::Analyzer(std::span<const Signal> wanted) {
    const auto any = [&](Signal first, Signal last) {
        return std::any_of(wanted.begin(), wanted.end(),
                           [&](Signal signal) { return signal >= first && signal <= last; });
    };
    state_ = std::make_unique<State>(LineSignals::Wanted{
        .duplicates = any(kDuplicateLineRatio, kDuplicateParagraphCharRatio),
        .phrases = any(kNumLoremIpsum, kNumPolicyLines),
    });
    state_->top = any(kTop2, kTop4);
    state_->duplicates = any(kDuplicate5, kDuplicate10);
    state_->ids = state_->top || any(kUniqueWordRatio, kUniqueWordRatio);
    state_->tokens = state_->ids || state_->duplicates || any(kNumWords, kNumStopWords) ||
                     any(kMeanWordLength, kNewlineWordRatio);
}

Analyzer::~Analyzer() = default;

const Row& Analyzer::operator()(std::string_view text) {
    Row& row = state_->row;
    row.fill(0);
    state_->lines(text, row);
    if (state_->tokens) state_->count_tokens(state_->tokenizer(text));
    return row;
}

void Analyzer::State::count_tokens(const TokenList& list) {
    double words = 0, chars = 0, alpha = 0, sentences = 0;
    bool between = true;  // nothing of the next sentence was seen yet
    bool closed = false;
    for (const Token& token : list.tokens) {
        words += !token.is_symbol;
        chars += token.is_symbol ? 0 : token.num_chars;
        alpha += token.has_letter;
        if (!token.is_symbol && (between || closed)) {
            ++sentences;
            between = closed = false;
        }
        closed = closed || token.ends_sentence;
    }
    const auto total = static_cast<double>(list.tokens.size());
    row[kNumWords] = words;
    row[kNumMarks] = total - words;
    row[kNumSentences] = sentences;
    row[kNumStopWords] = std::popcount(list.stop_words);
    row[kMeanWordLength] = ratio(chars, words);
    row[kAlphaWordRatio] = ratio(alpha, total);
    for (const Signal signal : {kHashWordRatio, kEllipsisWordRatio, kNewlineWordRatio}) {
        row[signal] = ratio(row[signal], total);
    }
    if (ids) {
        numbering.reset(list.tokens.size());
        numbers.clear();
        double distinct = 0;
        for (const Token& token : list.tokens) {
            const std::uint32_t known = numbering.size();
            numbers.push_back(numbering(token.hash));
            distinct += numbers.back() == known && !token.is_symbol;
        }
        row[kUniqueWordRatio] = ratio(distinct, words);
    }
    if (top) ngrams.count_top(list.tokens, numbers, row);
    if (duplicates) ngrams.count_duplicates(list.tokens, list.joined, list.begins, row);
    for (std::size_t signal = kTop2; signal <= kDuplicate10; ++signal) {
        row[signal] = ratio(row[signal], row[kNumChars]);
    }
}

}  // namespace pylm::signals
