// Texts after normalisation, which other calls take in place of the texts.
#pragma once

#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "bindings/long_call.hpp"
#include "dedup/normalize.hpp"
#include "parallel.hpp"
#include "text/arrow.hpp"

namespace pylm::bindings {

// Normalised texts: those that the table can do, and those that Python sets.
class NormalizedTexts {
public:
    // Nulls stay null. Releases the interpreter lock.
    NormalizedTexts(std::span<const std::string_view> given, const dedup::CharacterTable& table,
                    unsigned num_threads) {
        constexpr std::size_t block = 128;
        const LongCall call;
        views_.resize(given.size());
        parts_.resize((given.size() + block - 1) / block);
        std::vector<std::uint8_t> done(given.size(), 0);
        parallel_for(parts_.size(), num_threads, [&](std::size_t task) {
            const std::size_t begin = task * block;
            const std::size_t end = std::min(given.size(), begin + block);
            std::string& part = parts_[task];
            std::string out;
            std::vector<std::size_t> sizes;
            std::size_t bytes = 0;
            for (std::size_t i = begin; i < end; ++i) bytes += given[i].size();
            part.reserve(bytes);
            for (std::size_t i = begin; i < end; ++i) {
                done[i] = dedup::normalize(given[i], table, out);
                if (done[i] == 0) out.clear();
                part += out;
                sizes.push_back(out.size());
            }
            for (std::size_t i = begin, at = 0; i < end; at += sizes[i - begin], ++i)
                views_[i] = arrow::is_null(given[i]) ? arrow::null_text
                                                     : std::string_view(part).substr(at, sizes[i - begin]);
        });
        for (std::size_t i = 0; i < done.size(); ++i) {
            if (done[i] == 0) unknown_.push_back(static_cast<std::int64_t>(i));
        }
    }

    std::span<const std::string_view> views() const noexcept { return views_; }
    std::size_t size() const noexcept { return views_.size(); }
    const std::vector<std::int64_t>& unknown() const noexcept { return unknown_; }
    void set(std::size_t index, std::string text) {
        own_.push_back(std::move(text));
        views_.at(index) = own_.back();
    }

private:
    std::vector<std::string> parts_;
    std::deque<std::string> own_;
    std::vector<std::string_view> views_;
    std::vector<std::int64_t> unknown_;
};

}  // namespace pylm::bindings
