// Runs a fuzzer without libFuzzer: on the files, and on those in the folders, that the command line names, then on
// inputs at random. For compilers that have no libFuzzer, and to look at what it has found.
#include <algorithm>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <string>
#include <vector>

#include "check.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace {

using Bytes = std::vector<std::uint8_t>;

bool holds(const std::string& name, const Bytes& bytes) {
    try {
        (void)LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
    } catch (const std::exception& error) {
        std::cout << name << ": FAILED: " << error.what() << std::endl;
        return false;
    }
    return true;
}

Bytes read(const std::filesystem::path& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

}  // namespace

int main(int argc, char** argv) {
    constexpr std::size_t kRandomInputs = 400;
    bool all_hold = true;
    std::size_t num_files = 0;
    for (const std::string& path : std::vector<std::string>(argv + 1, argv + argc)) {
        std::vector<std::filesystem::path> files{path};
        if (std::filesystem::is_directory(path)) files.assign(std::filesystem::directory_iterator(path), {});
        std::sort(files.begin(), files.end());
        for (const std::filesystem::path& file : files) all_hold = holds(file.string(), read(file)) && all_hold;
        num_files += files.size();
    }
    pylm::tests::Random random(1);
    for (std::size_t i = 0; i < kRandomInputs; ++i) {
        Bytes bytes(random.below(300));
        for (std::uint8_t& byte : bytes) byte = static_cast<std::uint8_t>(random());
        all_hold = holds("random input " + std::to_string(i), bytes) && all_hold;
    }
    if (all_hold) std::cout << num_files << " files: ok" << std::endl;
    return all_hold ? 0 : 1;
}
