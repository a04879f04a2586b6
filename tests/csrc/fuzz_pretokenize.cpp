// Every pattern's machine at every level gives the pieces of the plain one, from any place, in blocks of any
// size, and a safe border is safe.
#include "fuzz_input.hpp"
#include "pieces.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    using namespace pylm::tests;
    FuzzInput input(data, size);
    const std::size_t capacity = 1 + input.below(256);
    const std::size_t position = input.below(1024);
    const std::string written = input.rest();
    const ExactText text(written);
    for (const pylm::Pattern pattern : all_patterns()) {
        check_pieces(pattern, text.view(), capacity, position);
        check_borders(pattern, text.view(), std::min(position, written.size()));
    }
    return 0;
}
