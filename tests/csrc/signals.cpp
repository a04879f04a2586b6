// Quality signals of hostile and huge texts: finite, ratios between 0 and 1, the same from every object.
#include "signals/signals.hpp"

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "check.hpp"
#include "parallel.hpp"

namespace pylm::tests {

void test_signals() {
    std::vector<signals::Signal> all;
    for (std::size_t i = 0; i < signals::kNumSignals; ++i) all.push_back(static_cast<signals::Signal>(i));
    std::vector<std::string> texts = hostile_texts();
    for (std::string& text : huge_texts(1 << 18)) texts.push_back(std::move(text));
    const auto compute = [&](unsigned threads) {
        constexpr std::size_t block = 16;
        std::vector<signals::Row> rows(texts.size());
        parallel_for((texts.size() + block - 1) / block, threads, [&](std::size_t task) {
            signals::Analyzer analyzer(all);
            const std::size_t end = std::min(texts.size(), (task + 1) * block);
            for (std::size_t i = task * block; i < end; ++i) rows[i] = analyzer(texts[i]);
        });
        return rows;
    };
    const auto rows = compute(1);
    check(rows == compute(4), "signals do not depend on the threads");
    for (std::size_t i = 0; i < texts.size(); ++i) {
        signals::Analyzer fresh(all);
        check(fresh(texts[i]) == rows[i], "a text's signals do not depend on those before it");
        check(rows[i][signals::kNumBytes] == static_cast<double>(texts[i].size()), "bytes are counted");
        for (std::size_t signal = 0; signal < signals::kNumSignals; ++signal) {
            check(std::isfinite(rows[i][signal]) && rows[i][signal] >= 0, "a signal is finite");
        }
    }
}

}  // namespace pylm::tests
