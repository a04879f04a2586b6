// libFuzzer: any bytes as a tokenizer.json or as a rank file are read, or refused with std::invalid_argument.
// Built by -DPYLM_BUILD_FUZZERS=ON with clang; run as `fuzz_vocabulary -max_len=2000`.
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string_view>
#include <vector>

#include "tokenizer/hf_model.hpp"
#include "tokenizer/rank_file.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    // A copy of its own, so that reading past the end is found.
    const std::vector<char> copy(data, data + size);
    const std::string_view content(copy.data(), copy.size());
    try {
        (void)pylm::HfModel::read(content).model.to_vocabulary(size % 2 == 0, {});
    } catch (const std::invalid_argument&) {
    }
    try {
        (void)pylm::canonical_merges(pylm::read_rank_file(content));
    } catch (const std::invalid_argument&) {
    }
    return 0;
}
