#include "signals/tokens.hpp"

#include <algorithm>
#include <array>

#include "text/unicode.hpp"
#include "text/words.hpp"

namespace pylm::signals {
namespace {

enum ByteKind : std::uint8_t { kLetter = 1, kDigit = 2, kSpace = 4, kMark = 8, kHigh = 16 };

constexpr std::array<std::uint8_t, 256> kByteKind = [] {
    std::array<std::uint8_t, 256> kinds{};
    for (std::size_t c = 0; c < 256; ++c) {
        const bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
        const bool digit = c >= '0' && c <= '9';
        const bool space = c == ' ' || (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x1F);
        kinds[c] = c >= 0x80 ? kHigh : letter ? kLetter : digit ? kDigit : space ? kSpace : kMark;
    }
    return kinds;
}();

constexpr std::array<std::string_view, 8> kStopWords = {"the", "be",   "to",   "of",
                                                         "and", "that", "have", "with"};

constexpr std::uint8_t kLoose = english::kPunctuation | english::kQuote;

}  // namespace

void Tokenizer::note_stop_word(std::string_view token) {
    if (token.size() < 2 || token.size() > 4) return;
    for (std::size_t i = 0; i < kStopWords.size(); ++i) {
        if (token == kStopWords[i]) list_.stop_words |= 1U << i;
    }
}

void Tokenizer::push(std::string_view bytes, Token token) {
    list_.tokens.push_back(token);
    list_.joined.append(bytes);
    list_.begins.push_back(list_.joined.size());
}

void Tokenizer::add_plain(const char* p, std::size_t size, std::uint64_t hash) {
    note_stop_word({p, size});
    const bool letters = kByteKind[static_cast<std::uint8_t>(*p)] == kLetter;
    push({p, size}, {.hash = hash,
                     .num_chars = static_cast<std::uint32_t>(size),
                     .is_symbol = false,
                     .has_letter = letters,
                     .ends_sentence = false});
}

void Tokenizer::add(std::string_view token) {
    if (token.empty()) return;
    note_stop_word(token);
    Token found{.hash = words::hash_word(token.data(), token.size(), token.data() + token.size()),
                .num_chars = 0,
                .is_symbol = true,
                .has_letter = false,
                .ends_sentence = false};
    for (std::size_t i = 0; i < token.size();) {
        const Decoded decoded = decode_utf8(token, i);
        const std::uint8_t flags = words::flags(decoded.point);
        found.is_symbol = found.is_symbol && (flags & words::kPunctuation) != 0;
        found.has_letter = found.has_letter || (flags & words::kLetter) != 0;
        ++found.num_chars;
        i += decoded.size;
        found.ends_sentence = found.num_chars == 1 && (flags & words::kTerminal) != 0;
    }
    push(token, found);
}

const TokenList& Tokenizer::operator()(std::string_view text) {
    list_.tokens.clear();
    list_.joined.clear();
    list_.begins.assign(1, 0);
    list_.stop_words = 0;
    const char* p = text.data();
    const char* const end = p + text.size();
    const auto kind = [](const char* c) { return kByteKind[static_cast<std::uint8_t>(*c)]; };
    while (p < end) {
        if (kind(p) == kSpace) {
            ++p;
            continue;
        }
        const char* const begin = p;
        unsigned kinds = 0;
        unsigned last = 0;
        const char* first_other = nullptr;  // first byte that is no letter
        for (; p < end && kind(p) != kSpace; ++p) {
            last = kind(p);
            kinds |= last;
            if (last != kLetter && first_other == nullptr) first_other = p;
        }
        const auto size = static_cast<std::size_t>(p - begin);
        const auto is_loose = [&](char c) { return (rules_.classes(static_cast<char32_t>(c)) & kLoose) != 0; };
        const auto hash_of = [&](std::size_t bytes) { return words::hash_word(begin, bytes, end); };
        if (kinds == kLetter || kinds == kDigit) {
            const std::uint64_t hash = hash_of(size);
            rules_.may_be_exception(hash) ? add_part({begin, size}) : add_plain(begin, size, hash);
        } else if (last == kMark && first_other == p - 1 && first_other != begin &&
                   (is_loose(p[-1]) || (p[-1] == '.' && p[-2] >= 'a'))) {
            const std::uint64_t hash = hash_of(size - 1);
            if (rules_.may_be_exception(hash) || rules_.may_be_exception(hash_of(size))) {
                add_part({begin, size});
            } else {  // a word and one mark
                add_plain(begin, size - 1, hash);
                add({p - 1, 1});
            }
        } else if ((kinds & kHigh) == 0) {
            add_part({begin, size});
        } else {  // white space beyond ASCII parts as well
            const std::string_view part(begin, size);
            std::size_t from = 0;
            for (std::size_t i = 0; i < part.size();) {
                const Decoded decoded = decode_utf8(part, i);
                if (decoded.point >= 0x80 && (words::flags(decoded.point) & words::kSpace) != 0) {
                    add_part(part.substr(from, i - from));
                    from = i + decoded.size;
                }
                i += decoded.size;
            }
            add_part(part.substr(from));
        }
    }
    return list_;
}

void Tokenizer::add_part(std::string_view part) {
    if (part.empty()) return;
    cuts_.clear();
    cut_part(part, true);
    if (cuts_.size() > 1) merge_exceptions(part);
    std::size_t begin = 0;
    for (const std::size_t end : cuts_) {
        add(part.substr(begin, end - begin));
        begin = end;
    }
}

void Tokenizer::cut_part(std::string_view part, bool with_exceptions) {
    points_.clear();
    begins_.clear();
    suffixes_.clear();
    for (std::size_t i = 0; i < part.size();) {
        const Decoded decoded = decode_utf8(part, i);
        points_.push_back(decoded.point);
        begins_.push_back(i);
        i += decoded.size;
    }
    begins_.push_back(part.size());
    std::size_t low = 0;
    std::size_t high = points_.size();
    const auto is_exception = [&](std::size_t from, std::size_t to) {
        return with_exceptions && from < to &&
               rules_.find_exception(part.substr(begins_[from], begins_[to] - begins_[from])) != nullptr;
    };
    while (low < high && !is_exception(low, high)) {
        const std::u32string_view points = std::u32string_view(points_).substr(0, high);
        const std::size_t prefix = rules_.prefix_size(points.substr(low));
        const bool front = prefix > 0 && is_exception(low + prefix, high);
        const std::size_t suffix = front ? 0 : rules_.suffix_size(points.substr(low + prefix));
        const bool back = suffix > 0 && is_exception(low, high - suffix);
        if (suffix > 0) suffixes_.push_back(begins_[high]);
        high -= suffix;
        if (back) break;
        if (prefix > 0) cuts_.push_back(begins_[low + prefix]);
        low += prefix;
        if (front || prefix + suffix == 0) break;
    }
    if (low < high) cut_core(part, low, high, with_exceptions);
    cuts_.insert(cuts_.end(), suffixes_.rbegin(), suffixes_.rend());
}

// What is left between the marks: an exception, an address, or cut inside.
void Tokenizer::cut_core(std::string_view part, std::size_t low, std::size_t high, bool with_exceptions) {
    const std::size_t begin = begins_[low];
    const english::Rules::Exception* exception =
        with_exceptions ? rules_.find_exception(part.substr(begin, begins_[high] - begin)) : nullptr;
    if (exception != nullptr) {
        std::size_t end = begin;
        for (const std::uint8_t size : exception->sizes) {
            if (size > 0) cuts_.push_back(end += size);
        }
        return;
    }
    const std::u32string_view core = std::u32string_view(points_).substr(low, high - low);
    if (!rules_.is_url(core)) {
        std::size_t from = 0;
        for (english::Rules::Infix infix = rules_.next_infix(core, 0); infix.size > 0;
             infix = rules_.next_infix(core, infix.begin + infix.size)) {
            if (infix.begin > from) cuts_.push_back(begins_[low + infix.begin]);
            from = infix.begin + infix.size;
            cuts_.push_back(begins_[low + from]);
        }
        if (from == core.size()) return;
    }
    cuts_.push_back(begins_[high]);
}

// Neighbouring tokens that together are what the rules alone make of an exception become that exception's
// pieces: the longest runs of tokens first, of equally long ones the first.
void Tokenizer::merge_exceptions(std::string_view part) {
    matches_.clear();
    const auto begin_of = [&](std::size_t token) { return token == 0 ? 0 : cuts_[token - 1]; };
    for (std::size_t first = 0; first < cuts_.size(); ++first) {
        const std::size_t begin = begin_of(first);
        for (std::size_t last = first + 1; last < cuts_.size(); ++last) {
            if (cuts_[last] - begin > english::Rules::kMaxExceptionBytes) break;
            const auto* exception = rules_.find_exception(part.substr(begin, cuts_[last] - begin));
            if (exception == nullptr) continue;
            part_cuts_.swap(cuts_);
            cuts_.clear();
            cut_part(exception->text, false);
            const bool same = std::equal(cuts_.begin(), cuts_.end(), part_cuts_.begin() + first,
                                         part_cuts_.begin() + last + 1,
                                         [&](std::size_t a, std::size_t b) { return a == b - begin; });
            part_cuts_.swap(cuts_);
            if (same) matches_.push_back({first, last, exception});
        }
    }
    if (matches_.empty()) return;
    std::stable_sort(matches_.begin(), matches_.end(),
                     [](const Match& a, const Match& b) { return a.last - a.first > b.last - b.first; });
    std::vector<bool> taken(cuts_.size());
    std::vector<const Match*> replaced(cuts_.size());
    for (const Match& match : matches_) {
        if (!taken[match.first] && !taken[match.last]) replaced[match.first] = &match;
        for (std::size_t token = match.first; token <= match.last; ++token) taken[token] = true;
    }
    part_cuts_.clear();
    for (std::size_t token = 0; token < cuts_.size(); ++token) {
        if (replaced[token] == nullptr) {
            part_cuts_.push_back(cuts_[token]);
            continue;
        }
        std::size_t end = begin_of(token);
        for (const std::uint8_t size : replaced[token]->exception->sizes) {
            if (size > 0) part_cuts_.push_back(end += size);
        }
        token = replaced[token]->last;
    }
    part_cuts_.swap(cuts_);
}

}  // namespace pylm::signals
