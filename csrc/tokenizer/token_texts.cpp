#include "tokenizer/token_texts.hpp"

#include <limits>
#include <stdexcept>
#include <utility>

#include "tokenizer/section_file.hpp"

namespace pylm {

TokenTexts::TokenTexts(const std::vector<std::string>& texts)
    : TokenTexts(std::vector<std::string_view>(texts.begin(), texts.end())) {}

TokenTexts::TokenTexts(std::span<const std::string_view> texts) {
    std::vector<std::uint32_t> begins;
    begins.reserve(texts.size() + 1);
    std::size_t total = 0;
    begins.push_back(0);
    for (const std::string_view text : texts) {
        total += text.size();
        if (total > std::numeric_limits<std::uint32_t>::max() - kPadding) {
            throw std::invalid_argument("the tokens of the vocabulary take 4 GiB or more");
        }
        begins.push_back(static_cast<std::uint32_t>(total));
    }
    std::vector<char> bytes;
    bytes.reserve(total + kPadding);
    for (const std::string_view text : texts) bytes.insert(bytes.end(), text.begin(), text.end());
    bytes.insert(bytes.end(), kPadding, '\0');
    begins_ = SharedArray<std::uint32_t>(std::move(begins));
    bytes_ = SharedArray<char>(std::move(bytes));
}

TokenTexts::TokenTexts(const SectionFile& file, Section begins, Section bytes)
    : begins_(file.array<std::uint32_t>(begins)), bytes_(file.array<char>(bytes)) {
    bool fits = !begins_.empty() && begins_[0] == 0 && bytes_.size() >= kPadding &&
                begins_[begins_.size() - 1] <= bytes_.size() - kPadding;
    std::uint32_t falls = 0;
    for (std::size_t i = 1; i < begins_.size(); ++i) falls |= begins_[i] < begins_[i - 1] ? 1U : 0U;
    if (!fits || falls != 0) throw std::invalid_argument("its tokens lie outside of their bytes");
}

void TokenTexts::write(SectionWriter& out, Section begins, Section bytes) const {
    out.add(begins, begins_.items());
    out.add(bytes, bytes_.items());
}

std::vector<std::string> TokenTexts::to_strings() const {
    std::vector<std::string> texts;
    texts.reserve(size());
    for (std::size_t id = 0; id < size(); ++id) texts.emplace_back((*this)[id]);
    return texts;
}

}  // namespace pylm
