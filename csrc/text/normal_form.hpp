// The four normal forms of Unicode Standard Annex 15, for Unicode 18.0.0.
#pragma once

#include <cstddef>
#include <cstdint>
#include <list>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace pylm {

enum class NormalForm : std::uint8_t { kNfc, kNfd, kNfkc, kNfkd };

// "NFC" and so on; throws std::invalid_argument for another name.
NormalForm parse_normal_form(std::string_view name);

// The normal form of UTF-8 where it is not the text itself, else nothing. A byte that is no UTF-8 stays and joins
// nothing. Only stretches that may change are decoded: from a character that no normalization joins with what
// stands before it to the next one. Linear, but for the order of marks in one stretch, n log n.
std::optional<std::string> normalize(std::string_view text, NormalForm form);

// The first place at or after `begin` where a text may be cut: the forms of both parts are the form of the whole.
std::size_t next_normal_border(std::string_view text, std::size_t begin, NormalForm form) noexcept;

// Many texts in a normal form: views of the texts themselves, or of what `kept` gets, where they change. Long
// texts are cut and shared out; the result does not depend on the threads.
std::vector<std::string_view> normalize_all(std::span<const std::string_view> texts, NormalForm form,
                                            std::list<std::string>& kept, unsigned num_threads);

}  // namespace pylm
