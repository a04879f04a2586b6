// Arrow columns: every layout, slices, nulls, buffers that are missing or not aligned.
#include "text/arrow.hpp"

#include <array>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "check.hpp"

namespace pylm::tests {
namespace {

arrow::Schema schema_of(const char* format) {
    arrow::Schema schema{};
    schema.format = format;
    return schema;
}

// Reads the rows [offset, offset + length) of a column in three buffers.
std::vector<std::string_view> read(const char* format, std::vector<const void*> buffers, std::int64_t offset,
                                   std::int64_t length) {
    arrow::Array array{};
    array.length = length;
    array.offset = offset;
    array.n_buffers = static_cast<std::int64_t>(buffers.size());
    array.buffers = buffers.data();
    std::vector<std::string_view> texts;
    arrow::append_texts(schema_of(format), array, texts);
    return texts;
}

template <typename Offset>
void check_offsets(const char* format) {
    const std::string bytes = "onethree\xff";
    const std::array<Offset, 6> offsets = {0, 3, 3, 3, 8, 9};
    const std::uint8_t valid = 0b11011;  // row 2 is null
    // One byte before the offsets, so that they are not aligned.
    std::vector<char> shifted(1 + sizeof offsets);
    std::memcpy(shifted.data() + 1, offsets.data(), sizeof offsets);
    const auto texts = read(format, {&valid, shifted.data() + 1, bytes.data()}, 0, 5);
    check(texts.size() == 5 && texts[0] == "one" && texts[3] == "three" && texts[4] == "\xff",
          "values of a column");
    check(texts[1].empty() && !arrow::is_null(texts[1]), "an empty text is no null");
    check(arrow::is_null(texts[2]), "a null is a null");
    const auto slice = read(format, {&valid, shifted.data() + 1, bytes.data()}, 2, 2);
    check(slice.size() == 2 && arrow::is_null(slice[0]) && slice[1] == "three",
          "a slice starts at its offset");
    const std::array<Offset, 2> nothing = {0, 0};
    const auto empty = read(format, {nullptr, nothing.data(), nullptr}, 0, 1);
    check(empty.size() == 1 && !arrow::is_null(empty[0]), "an empty text needs no data buffer");
    check(read(format, {nullptr, nullptr, nullptr}, 0, 0).empty(), "an empty column needs no buffers");
}

void check_views() {
    const std::string far = "a text of more than twelve bytes";
    std::vector<char> views(1 + 3 * 16, '\0');
    const auto put = [&](std::size_t row, std::size_t at, auto value) {
        std::memcpy(views.data() + 1 + 16 * row + at, &value, sizeof value);
    };
    put(0, 0, std::int32_t{3});
    std::memcpy(views.data() + 1 + 4, "one", 3);
    put(1, 0, static_cast<std::int32_t>(far.size() - 2));
    put(1, 12, std::int32_t{2});
    const auto texts = read("vu", {nullptr, views.data() + 1, far.data()}, 0, 3);
    check(texts[0] == "one" && texts[1] == far.substr(2) && texts[2].empty(), "values of a view column");
    check(!arrow::is_null(texts[2]), "an empty view is no null");
}

}  // namespace

void test_arrow() {
    check_offsets<std::int32_t>("u");
    check_offsets<std::int32_t>("z");
    check_offsets<std::int64_t>("U");
    check_offsets<std::int64_t>("Z");
    check_views();
    check(throws<std::invalid_argument>([] { read("l", {nullptr, nullptr}, 0, 0); }),
          "a column of numbers is refused");
    arrow::Schema dictionary = schema_of("i");
    arrow::Schema values = schema_of("u");
    dictionary.dictionary = &values;
    std::vector<std::string_view> texts;
    check(throws<std::invalid_argument>([&] { arrow::append_texts(dictionary, arrow::Array{}, texts); }),
          "dictionaries are refused");
}

}  // namespace pylm::tests
