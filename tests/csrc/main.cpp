// Runs the tests of the C++ core named on the command line, all without names. Meant for builds with
// sanitizers.
#include <exception>
#include <iostream>
#include <string_view>
#include <utility>
#include <vector>

#include "check.hpp"

int main(int argc, char** argv) {
    using namespace pylm::tests;
    const std::vector<std::pair<std::string_view, void (*)()>> tests = {
        {"parallel", test_parallel},     {"arrow", test_arrow},           {"pretokenize", test_pretokenize},
        {"merges", test_merges},         {"tokenizer", test_tokenizer},   {"vocabulary", test_vocabulary},
        {"training", test_training},     {"dedup", test_dedup},           {"signals", test_signals},
        {"sentencepiece", test_sentencepiece}, {"shards", test_shards}, {"suffix_array", test_suffix_array},
        {"substring", test_substring},   {"index", test_index},           {"substring_stages", test_substring_stages},
        {"section_file", test_section_file}, {"normal_form", test_normal_form},
    };
    const std::vector<std::string_view> wanted(argv + 1, argv + argc);
    int failed = 0;
    int ran = 0;
    for (const auto& [name, test] : tests) {
        bool skip = !wanted.empty();
        for (const std::string_view one : wanted) skip = skip && one != name;
        if (skip) continue;
        ++ran;
        try {
            test();
            std::cout << name << ": ok" << std::endl;
        } catch (const std::exception& error) {
            ++failed;
            std::cout << name << ": FAILED: " << error.what() << std::endl;
        }
    }
    return failed == 0 && ran > 0 ? 0 : 1;
}
