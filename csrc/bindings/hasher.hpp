// What a MinHasher of Python stands for, for every binding that takes one.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>

#include "bindings/arrow.hpp"
#include "dedup/minhash.hpp"
#include "dedup/near.hpp"
#include "dedup/shingle.hpp"
#include "text/simd.hpp"

namespace pylm::bindings {

struct Hasher {
    dedup::ShingleRule rule;
    dedup::MinHasher minhash;
    SimdLevel level;
};

using Priority = std::optional<pybind11::array_t<std::int64_t, pybind11::array::c_style>>;

// Options with verification, for `num_texts` texts; `priority` must outlive them.
inline dedup::NearOptions near_options(const Hasher& hasher, std::size_t num_texts, double threshold, std::size_t bands,
                                       std::size_t rows, const std::string& keep, const Priority& priority,
                                       unsigned num_threads) {
    dedup::NearOptions options{.rule = hasher.rule,
                               .bands = bands,
                               .rows = rows,
                               .threshold = threshold,
                               .num_threads = num_threads,
                               .level = hasher.level};
    if (priority) {
        if (static_cast<std::size_t>(priority->size()) != num_texts) {
            throw_input_error("priority must hold one value for each of " + std::to_string(num_texts) +
                              " texts, got " + std::to_string(priority->size()));
        }
        options.keep = dedup::Keep::kPriority;
        options.priority = {priority->data(), static_cast<std::size_t>(priority->size())};
    } else if (keep == "longest") {
        options.keep = dedup::Keep::kLongest;
    } else if (keep != "first") {
        throw std::invalid_argument("unknown keep " + keep);
    }
    return options;
}

}  // namespace pylm::bindings
