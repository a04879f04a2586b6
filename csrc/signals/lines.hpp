// Signals of characters, lines and paragraphs.
#pragma once

#include <string>
#include <string_view>

#include "signals/signals.hpp"
#include "signals/table.hpp"

namespace pylm::signals {

class LineSignals {
public:
    struct Wanted {
        bool duplicates;  // of lines and paragraphs
        bool phrases;     // lorem ipsum, javascript, policies
    };

    explicit LineSignals(Wanted wanted) : wanted_(wanted) {}

    // Fill every signal that needs no tokens, and the numerators (counts, not yet ratios) of those that do:
    // kHashWordRatio, kEllipsisWordRatio, kNewlineWordRatio.
    void operator()(std::string_view text, Row& row);

private:
    void count_lines(std::string_view text, Row& row);
    void count_newline_lines(std::string_view text, Row& row);
    void count_paragraphs(std::string_view text, Row& row);
    void count_phrases(std::string_view text, Row& row);

    Wanted wanted_;
    Numbering numbering_;
    std::string lower_;
};

}  // namespace pylm::signals
