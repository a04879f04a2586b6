// The Arrow C data and stream interfaces (the published ABI,
// https://arrow.apache.org/docs/format/CDataInterface.html) and a zero-copy view of a column of text.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace pylm::arrow {

// Layouts fixed by the specification; producers and consumers need share no header.
struct Schema {
    const char* format;
    const char* name;
    const char* metadata;
    std::int64_t flags;
    std::int64_t n_children;
    Schema** children;
    Schema* dictionary;
    void (*release)(Schema*);
    void* private_data;
};

struct Array {
    std::int64_t length;
    std::int64_t null_count;
    std::int64_t offset;
    std::int64_t n_buffers;
    std::int64_t n_children;
    const void** buffers;
    Array** children;
    Array* dictionary;
    void (*release)(Array*);
    void* private_data;
};

struct Stream {
    int (*get_schema)(Stream*, Schema*);
    int (*get_next)(Stream*, Array*);
    const char* (*get_last_error)(Stream*);
    void (*release)(Stream*);
    void* private_data;
};

// Owns one of the structs above: takes it from its producer (which then holds a released one) and releases
// it.
template <typename T>
class Owned {
public:
    Owned() noexcept : value_{} {}
    explicit Owned(T& producer) noexcept : value_(producer) { producer.release = nullptr; }
    Owned(Owned&& other) noexcept : value_(other.value_) { other.value_.release = nullptr; }
    Owned& operator=(Owned&& other) noexcept {
        std::swap(value_, other.value_);
        return *this;
    }
    Owned(const Owned&) = delete;
    Owned& operator=(const Owned&) = delete;
    ~Owned() {
        if (value_.release != nullptr) value_.release(&value_);
    }
    T& get() noexcept { return value_; }
    bool released() const noexcept { return value_.release == nullptr; }

private:
    T value_;
};

// What a null becomes in a list of views: a view without data, different from the empty text.
inline constexpr std::string_view null_text{};
inline bool is_null(std::string_view text) noexcept { return text.data() == nullptr; }

namespace detail {

// A value of an array that need not be aligned (the interface only recommends it).
template <typename T>
T load(const void* array, std::int64_t index) noexcept {
    T value;
    std::memcpy(&value, static_cast<const char*>(array) + index * static_cast<std::int64_t>(sizeof value),
                sizeof value);
    return value;
}

template <typename Offset>
void append_offsets(const Array& array, std::vector<std::string_view>& texts) {
    const auto* valid = static_cast<const std::uint8_t*>(array.buffers[0]);
    const void* offsets = array.buffers[1];
    const auto* bytes = static_cast<const char*>(array.buffers[2]);
    for (std::int64_t i = array.offset; i < array.offset + array.length; ++i) {
        const auto begin = static_cast<std::size_t>(load<Offset>(offsets, i));
        const auto end = static_cast<std::size_t>(load<Offset>(offsets, i + 1));
        const bool null = valid != nullptr && ((valid[i >> 3] >> (i & 7)) & 1) == 0;
        texts.push_back(null           ? null_text
                        : begin == end ? std::string_view("")
                                       : std::string_view(bytes + begin, end - begin));
    }
}

// The view layout: 16 bytes a value, the length first; up to 12 bytes stand in the view itself, longer ones
// in data buffer number [8, 12) at offset [12, 16).
inline void append_views(const Array& array, std::vector<std::string_view>& texts) {
    const auto* valid = static_cast<const std::uint8_t*>(array.buffers[0]);
    const auto* views = static_cast<const char*>(array.buffers[1]);
    for (std::int64_t i = array.offset; i < array.offset + array.length; ++i) {
        const char* view = views + 16 * i;
        std::int32_t fields[4];
        std::memcpy(fields, view, 16);
        const auto size = static_cast<std::size_t>(fields[0]);
        const bool null = valid != nullptr && ((valid[i >> 3] >> (i & 7)) & 1) == 0;
        if (null) {
            texts.push_back(null_text);
        } else if (size <= 12) {
            texts.emplace_back(view + 4, size);
        } else {
            texts.emplace_back(static_cast<const char*>(array.buffers[2 + fields[2]]) + fields[3], size);
        }
    }
}

}  // namespace detail

// Append one view a value of a string or binary array (plain, large or view layout; nulls and slices) to
// `texts`. The views live as long as `array` is not released. Throws std::invalid_argument for any other
// type.
inline void append_texts(const Schema& schema, const Array& array, std::vector<std::string_view>& texts) {
    static_assert(std::endian::native == std::endian::little, "Arrow buffers are read as little-endian");
    const std::string_view format = schema.format;
    if (schema.dictionary != nullptr) {
        throw std::invalid_argument(
            "expected an Arrow string or binary array, got dictionary-encoded values; cast to string");
    }
    const bool plain = format == "u" || format == "z";
    const bool large = format == "U" || format == "Z";
    const bool view = format == "vu" || format == "vz";
    if (!plain && !large && !view) {
        throw std::invalid_argument("expected an Arrow string or binary array, got Arrow format '" +
                                    std::string(format) +
                                    (format == "+s" ? "' (a table or struct); pass its text column" : "'"));
    }
    if (array.length == 0) return;  // buffers of empty arrays may be missing
    texts.reserve(texts.size() + static_cast<std::size_t>(array.length));
    if (plain) {
        detail::append_offsets<std::int32_t>(array, texts);
    } else if (large) {
        detail::append_offsets<std::int64_t>(array, texts);
    } else {
        detail::append_views(array, texts);
    }
}

}  // namespace pylm::arrow
