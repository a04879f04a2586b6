// Texts of few different symbols, of parts of each other and of hostile bytes: both methods find what looking
// at every window finds.
#include "fuzz_input.hpp"
#include "spans.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    using namespace pylm::tests;
    FuzzInput input(data, size);
    const std::size_t length = 1 + input.below(40);
    const std::size_t symbol_bytes = std::size_t{1} << input.below(3);
    const bool on_characters = input.flip();
    std::vector<std::string> texts[2];
    std::string all = input.text(200);
    for (std::size_t count = 1 + input.below(8); count > 0; --count) {
        std::string text = input.text(100);
        for (std::size_t copies = input.below(4); copies > 0 && !all.empty(); --copies) {
            const std::size_t begin = input.below(all.size());
            const std::string part = all.substr(begin, input.below(120));
            for (std::size_t repeats = input.below(6); repeats > 0; --repeats) text += part;
        }
        text.resize(std::min<std::size_t>(text.size(), 1000));
        all = text + all.substr(0, 1000);
        texts[input.below(3) == 0].push_back(std::move(text));
    }
    check_spans(std::move(texts[0]), std::move(texts[1]), length, symbol_bytes, on_characters);
    return 0;
}
