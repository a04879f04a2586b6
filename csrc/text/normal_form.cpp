#include "text/normal_form.hpp"

#include <algorithm>
#include <array>
#include <stdexcept>
#include <utility>

#include "parallel.hpp"
#include "text/normal_form_table.hpp"
#include "text/properties.hpp"
#include "text/unicode.hpp"

namespace pylm {

namespace {

namespace table = normal_form_table;

constexpr std::size_t kBlock = 128;
constexpr std::size_t kChunkBytes = std::size_t{1} << 20;

// Hangul syllables are made of two or three letters by arithmetic (the Unicode Standard, section 3.12).
constexpr char32_t kSyllables = 0xAC00, kLeads = 0x1100, kVowels = 0x1161, kTails = 0x11A7;
constexpr char32_t kNumLeads = 19, kNumVowels = 21, kNumTails = 28;
constexpr char32_t kNumSyllables = kNumLeads * kNumVowels * kNumTails;

template <typename Blocks, typename Values>
auto value_at(const Blocks& blocks, const Values& values, char32_t point) noexcept {
    return values[std::size_t{blocks[point / kBlock]} * kBlock + point % kBlock];
}

std::uint32_t combining_class(std::uint32_t properties) noexcept { return properties & 0xFF; }

std::uint32_t properties_of(char32_t point) noexcept {
    return value_at(table::block_of, table::properties_of, point);
}

// In the properties: the quick check of the form does not say yes.
std::uint32_t check_bit(NormalForm form) noexcept { return 1U << (8 + static_cast<unsigned>(form)); }

bool is_invalid(Decoded c) noexcept { return c.size == 1 && c.point == 0xFFFD; }

// Whether a character with these properties joins nothing before it, nor changes places with it.
bool is_border(std::uint32_t properties, NormalForm form) noexcept {
    return (properties & (check_bit(form) | 0xFF)) == 0;
}

char32_t compose(char32_t first, char32_t second) noexcept {
    if (first - kLeads < kNumLeads && second - kVowels < kNumVowels) {
        return kSyllables + ((first - kLeads) * kNumVowels + (second - kVowels)) * kNumTails;
    }
    if (first - kSyllables < kNumSyllables && (first - kSyllables) % kNumTails == 0 && second > kTails &&
        second < kTails + kNumTails) {
        return first + (second - kTails);
    }
    const auto [low, high] = std::ranges::equal_range(table::pair_firsts, first);
    const auto begin = table::pair_seconds.begin() + (low - table::pair_firsts.begin());
    const auto end = begin + (high - low);
    const auto found = std::lower_bound(begin, end, second);
    if (found == end || *found != second) return 0;
    return table::pair_wholes[static_cast<std::size_t>(found - table::pair_seconds.begin())];
}

// The encoding of a code point that is no surrogate.
void append_utf8(std::string& out, char32_t point) {
    const auto add = [&](char32_t byte) { out.push_back(static_cast<char>(byte)); };
    if (point < 0x80) return add(point);
    if (point < 0x800) {
        add(0xC0 | (point >> 6));
    } else {
        if (point < 0x10000) {
            add(0xE0 | (point >> 12));
        } else {
            add(0xF0 | (point >> 18));
            add(0x80 | ((point >> 12) & 0x3F));
        }
        add(0x80 | ((point >> 6) & 0x3F));
    }
    add(0x80 | (point & 0x3F));
}

// Normalizes stretches of valid UTF-8, one after the other, in memory that it keeps.
class Stretch {
  public:
    explicit Stretch(NormalForm form) noexcept
        : composes_(form == NormalForm::kNfc || form == NormalForm::kNfkc),
          compatible_(form == NormalForm::kNfkc || form == NormalForm::kNfkd) {}

    // Valid until the next call.
    std::string_view normalize(std::string_view text) {
        marks_.clear();
        for (std::size_t i = 0; i < text.size();) {
            const Decoded c = decode_utf8(text, i);
            take_apart(c.point);
            i += c.size;
        }
        put_in_order();
        if (composes_) put_together();
        bytes_.clear();
        for (const Mark& mark : marks_) append_utf8(bytes_, mark.point);
        return bytes_;
    }

  private:
    struct Mark {
        char32_t point;
        std::uint32_t order;  // its combining class
    };

    void add(char32_t point) { marks_.push_back({point, combining_class(properties_of(point))}); }

    void take_apart(char32_t point) {
        if (point - kSyllables < kNumSyllables) {
            const char32_t index = point - kSyllables;
            add(kLeads + index / (kNumVowels * kNumTails));
            add(kVowels + index / kNumTails % kNumVowels);
            if (index % kNumTails != 0) add(kTails + index % kNumTails);
            return;
        }
        std::size_t number = compatible_ ? value_at(table::compatible_block_of, table::compatible_number_of, point) : 0;
        if (number == 0) number = value_at(table::canonical_block_of, table::canonical_number_of, point);
        if (number == 0) return add(point);
        for (std::size_t i = table::begin_of[number - 1]; i < table::begin_of[number]; ++i) add(table::pool[i]);
    }

    void put_in_order() {
        const auto is_mark = [](const Mark& mark) { return mark.order != 0; };
        for (auto begin = marks_.begin(); begin != marks_.end();) {
            begin = std::find_if(begin, marks_.end(), is_mark);
            const auto end = std::find_if_not(begin, marks_.end(), is_mark);
            if (!std::ranges::is_sorted(begin, end, {}, &Mark::order)) {
                std::ranges::stable_sort(begin, end, {}, &Mark::order);
            }
            begin = end;
        }
    }

    // A mark joins the last starter unless one of its own class, or of a higher one, stands between.
    void put_together() {
        constexpr std::size_t kNone = static_cast<std::size_t>(-1);
        std::size_t starter = kNone;
        std::size_t size = 0;
        std::uint32_t between = 0;  // class of the last mark between, 0 where there is none
        for (const Mark mark : marks_) {
            if (starter != kNone && (between == 0 || between < mark.order)) {
                if (const char32_t whole = compose(marks_[starter].point, mark.point); whole != 0) {
                    marks_[starter].point = whole;
                    continue;
                }
            }
            if (mark.order == 0) starter = size;
            between = mark.order;
            marks_[size++] = mark;
        }
        marks_.resize(size);
    }

    bool composes_;
    bool compatible_;
    std::vector<Mark> marks_;
    std::string bytes_;
};

// Where the character that the byte at `place` belongs to begins.
std::size_t start_of(std::string_view text, std::size_t place) noexcept {
    for (std::size_t back = 1; back <= 3 && back <= place; ++back) {
        if (decode_utf8(text, place - back).size > back) return place - back;
    }
    return place;
}

}  // namespace

NormalForm parse_normal_form(std::string_view name) {
    constexpr std::array<std::string_view, 4> kNames = {"NFC", "NFD", "NFKC", "NFKD"};
    const auto found = std::ranges::find(kNames, name);
    if (found == kNames.end()) throw std::invalid_argument("no normal form is called " + std::string(name));
    return static_cast<NormalForm>(found - kNames.begin());
}

std::size_t next_normal_border(std::string_view text, std::size_t begin, NormalForm form) noexcept {
    if (begin >= text.size()) return text.size();
    for (std::size_t i = start_of(text, begin); i < text.size();) {
        const Decoded c = decode_utf8(text, i);
        if (i >= begin && (is_invalid(c) || is_border(properties_of(c.point), form))) return i;
        i += c.size;
    }
    return text.size();
}

std::optional<std::string> normalize(std::string_view text, NormalForm form) {
    std::optional<std::string> out;
    Stretch stretch(form);
    std::size_t taken = 0;   // what `out` has of the text
    std::size_t border = 0;  // the last one, which no stretch goes back beyond
    std::uint32_t last_class = 0;
    for (std::size_t i = 0; i < text.size();) {
        if (static_cast<std::uint8_t>(text[i]) < 0x80) {
            i = skip_ascii(text, i);
            border = i - 1;
            last_class = 0;
            continue;
        }
        const Decoded c = decode_utf8(text, i);
        const std::uint32_t properties = is_invalid(c) ? 0 : properties_of(c.point);
        const std::uint32_t own_class = combining_class(properties);
        if ((properties & check_bit(form)) == 0 && (own_class == 0 || own_class >= last_class)) {
            if (own_class == 0) border = is_invalid(c) ? i + 1 : i;
            last_class = own_class;
            i += c.size;
            continue;
        }
        const std::size_t end = next_normal_border(text, i + c.size, form);
        const std::string_view before = text.substr(border, end - border);
        const std::string_view after = stretch.normalize(before);
        if (after != before) {
            if (!out) out.emplace().reserve(text.size());
            out->append(text, taken, border - taken).append(after);
            taken = end;
        }
        i = border = end;
        last_class = 0;
    }
    if (out) out->append(text, taken);
    return out;
}

std::vector<std::string_view> normalize_all(std::span<const std::string_view> texts, NormalForm form,
                                            std::list<std::string>& kept, unsigned num_threads) {
    struct Part {
        std::size_t first, last;  // texts
        std::size_t begin, end;   // bytes, where it is one text or a part of one
    };
    std::vector<Part> parts;
    for (std::size_t i = 0, bytes = 0; i < texts.size(); ++i) {
        if (texts[i].size() > kChunkBytes) {
            for (std::size_t begin = 0; begin < texts[i].size();) {
                const std::size_t end = next_normal_border(texts[i], begin + kChunkBytes, form);
                parts.push_back({i, i + 1, begin, end});
                begin = end;
            }
            bytes = 0;
        } else if (bytes == 0 || bytes + texts[i].size() > kChunkBytes) {
            parts.push_back({i, i + 1, 0, texts[i].size()});
            bytes = texts[i].size() + 1;  // an empty text counts as well
        } else {
            parts.back().last = i + 1;
            bytes += texts[i].size() + 1;
        }
    }

    std::vector<std::string_view> views(texts.begin(), texts.end());
    std::vector<std::list<std::string>> changed(parts.size());
    parallel_for(parts.size(), num_threads, [&](std::size_t index) {
        const auto [first, last, begin, end] = parts[index];
        const bool is_part = texts[first].size() > kChunkBytes;
        for (std::size_t i = first; i < last; ++i) {
            const std::string_view text = is_part ? texts[i].substr(begin, end - begin) : texts[i];
            std::optional<std::string> form_of_it = normalize(text, form);
            if (!form_of_it) continue;
            const std::string& own = changed[index].emplace_back(std::move(*form_of_it));
            if (!is_part) views[i] = own;
        }
    });
    for (std::size_t index = 0; index < parts.size();) {
        const std::size_t text = parts[index].first;
        if (texts[text].size() <= kChunkBytes) {
            kept.splice(kept.end(), changed[index]);  // strings stay where the views see them
            ++index;
            continue;
        }
        std::size_t last = index;
        bool any = false;
        for (; last < parts.size() && parts[last].first == text; ++last) any = any || !changed[last].empty();
        if (any) {
            std::string& whole = kept.emplace_back();
            whole.reserve(texts[text].size());
            for (std::size_t i = index; i < last; ++i) {
                if (changed[i].empty()) {
                    whole.append(texts[text], parts[i].begin, parts[i].end - parts[i].begin);
                } else {
                    whole += changed[i].front();
                    changed[i].clear();
                }
            }
            views[text] = whole;
        }
        index = last;
    }
    return views;
}

}  // namespace pylm
