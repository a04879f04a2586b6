// Quality signals of a document: figures that filter rules compare with thresholds. docs/signals.md has the
// definitions.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

namespace pylm::signals {

enum Signal : std::uint8_t {
    kNumBytes,
    kNumChars,
    kNumLines,
    kNumParagraphs,
    kNumWords,
    kNumMarks,
    kNumSentences,
    kNumStopWords,
    kMaxLineLength,
    kMaxPartLength,
    kNumCurlyBrackets,
    kNumLoremIpsum,
    kNumJavascriptLines,
    kNumPolicyLines,
    kNumCounts,  // those before are counts, those after ratios or means
    kMeanWordLength = kNumCounts,
    kUniqueWordRatio,
    kHashWordRatio,
    kEllipsisWordRatio,
    kAlphaWordRatio,
    kNewlineWordRatio,
    kMeanLineLength,
    kBulletLineRatio,
    kEllipsisLineRatio,
    kTerminalLineRatio,
    kLinePunctuationRatio,
    kShortLineRatio,
    kAlphanumericRatio,
    kUppercaseRatio,
    kDigitRatio,
    kWhitespaceRatio,
    kPunctuationRatio,
    kDuplicateLineRatio,
    kDuplicateLineCharRatio,
    kDuplicateNonblankLineCharRatio,
    kDuplicateParagraphRatio,
    kDuplicateParagraphCharRatio,
    kTop2,
    kTop3,
    kTop4,
    kDuplicate5,
    kDuplicate6,
    kDuplicate7,
    kDuplicate8,
    kDuplicate9,
    kDuplicate10,
    kNumSignals,
};

// Names by number.
extern const std::array<std::string_view, kNumSignals> kNames;

using Row = std::array<double, kNumSignals>;

// Computes signals of one document after another. Holds scratch memory: one object a thread.
class Analyzer {
public:
    // Only `wanted` signals (all below kNumSignals) are sure to be computed.
    explicit Analyzer(std::span<const Signal> wanted);
    ~Analyzer();
    Analyzer(const Analyzer&) = delete;
    Analyzer& operator=(const Analyzer&) = delete;

    // Signals of a text; those not wanted hold anything. Bytes that are no UTF-8 count as one character each.
    // Valid until the next call. O(text.size()) expected.
    const Row& operator()(std::string_view text);

private:
    struct State;
    std::unique_ptr<State> state_;
};

}  // namespace pylm::signals
