// Pieces of 64 bytes at once. A window of 64 bytes begins at the start of a piece. Its characters become
// bitmaps by class, one bit a byte; from these a few dozen word operations make the bitmap of all starts of
// pieces. Starts near the window's end that depend on what follows are not taken; the next window begins at
// the last one taken, so nothing is carried over. What bitmaps do not decide (pieces longer than a window,
// white space up to its end, a few rare sequences) is left to `end_piece`.
//
// Everything here is a template over V, the registers of one level: each level compiles it in a file of its
// own, for its own instructions, and no function may be shared between such files. Include the headers below
// before switching instructions on.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string_view>

#include "tokenizer/pretokenize_rules.hpp"

namespace pylm::pretokenize {

using Bits = std::uint64_t;  // bit i speaks of byte i of the window

inline constexpr std::size_t kWindow = 64;

// Text is asked for this many bytes before it is read: by itself, the processor reads no further ahead than a page.
inline constexpr std::size_t kAhead = 1024;

// A hint only; the place may lie behind the text.
[[gnu::always_inline]] inline void ask_for(std::string_view text, std::size_t position) noexcept {
    __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<std::uintptr_t>(text.data()) + position));
}

// Classes by byte: a character's bytes all have its class.
template <class V>
struct Classes {
    Bits upper = 0, lower = 0, caseless = 0, mark = 0, number = 0, symbol = 0, space = 0;  // symbol: P or S
    Bits newline = 0, blank = 0, apostrophe = 0, slash = 0;                                // single characters
    Bits han_kana = 0;
    Bits continuation = 0;  // bytes of a character after its first
    Bits high = 0;          // not ASCII
};

// Classes of ASCII characters. V is 64 bytes in the registers of one level:
//   Bits in_range(first, last) of unsigned bytes, both ASCII or neither, equals(byte), high();
//   V lower_case() sets bit 5 of each byte.
template <Rules R, class V>
[[gnu::always_inline]] inline Classes<V> classify_ascii_block(const V& bytes) noexcept {
    Classes<V> c;
    c.high = bytes.high();
    c.blank = bytes.equals(' ');
    c.space = c.blank | bytes.in_range('\t', '\r');
    c.number = bytes.in_range('0', '9');
    if constexpr (R.cased) {
        c.upper = bytes.in_range('A', 'Z');
        c.lower = bytes.in_range('a', 'z');
    } else {
        c.lower = bytes.lower_case().in_range('a', 'z');
    }
    if constexpr (!R.gpt2) c.newline = bytes.equals('\n') | bytes.equals('\r');
    if constexpr (R.contractions != Contractions::kNone) c.apostrophe = bytes.equals('\'');
    if constexpr (R.slashes) c.slash = bytes.equals('/');
    if constexpr (R.deepseek) c.symbol = bytes.in_range('!', '~') & ~(c.lower | c.number);
    return c;
}

// All ones if the class is one of these; no branch, which would be hard to predict.
template <class V>
[[gnu::always_inline]] inline Bits if_any(std::uint8_t kind, std::uint8_t kinds) noexcept {
    return Bits{0} - static_cast<Bits>((kind & kinds) != 0);
}

// Note the class of a character that has these bytes. Where case does not matter, `lower` has all of a word's.
template <Rules R, class V>
[[gnu::always_inline]] inline void add_character(char32_t point, std::uint8_t kind, Bits bytes,
                                                 Classes<V>& c) noexcept {
    if constexpr (R.cased) {
        c.upper |= bytes & if_any<V>(kind, kUpper);
        c.lower |= bytes & if_any<V>(kind, kLower);
        c.caseless |= bytes & if_any<V>(kind, kCaseless);
        c.mark |= bytes & if_any<V>(kind, kMark);
    } else {
        c.lower |= bytes & if_any<V>(kind, R.word);
    }
    c.number |= bytes & if_any<V>(kind, kNumber);
    c.space |= bytes & if_any<V>(kind, kSpace);
    if constexpr (R.deepseek) {
        c.symbol |= bytes & if_any<V>(kind, kPunctuation | kSymbol);
        c.han_kana |= bytes & (Bits{0} - static_cast<Bits>(is_han_or_kana(point)));
    }
}

// Add the classes of all other characters. Most Han, Hangul and Cyrillic letters show theirs in the first
// byte, in all characters of the window at once. Valid characters of two or three bytes are looked up, as
// many at a time as the processor can, since bitmaps say beforehand where they are; the rest is decoded.
template <Rules R, class V>
[[gnu::always_inline]] inline void classify_others(const V& bytes, std::string_view text, std::size_t position,
                                                   Classes<V>& c) noexcept {
    const Bits trail = bytes.in_range('\x80', '\xBF');
    const Bits trails = (trail >> 1) & (trail >> 2);
    const Bits han = bytes.in_range('\xE5', '\xE8') & trails;             // U+5000-U+8FFF
    const Bits hangul = bytes.in_range('\xEB', '\xEC') & trails;          // U+B000-U+CFFF
    Bits cyrillic = bytes.in_range('\xD0', '\xD1') & (trail >> 1);        // U+0400-U+047F
    if constexpr (R.cased) {
        if (cyrillic != 0) {
            const Bits second = bytes.equals('\xD1') << 1;  // U+0440-U+045F are lower case, U+0460 on mixed
            const Bits first = (cyrillic << 1) & ~second;    // U+0400-U+042F are upper case
            const Bits upper = first & bytes.in_range('\x80', '\xAF');
            const Bits lower = (first & ~upper) | (second & bytes.in_range('\x80', '\x9F'));
            c.upper |= upper | (upper >> 1);
            c.lower |= lower | (lower >> 1);
            cyrillic = (upper | lower) >> 1;
        }
    } else {
        c.lower |= cyrillic | (cyrillic << 1);
    }
    const Bits known = han | hangul;
    const Bits letters = known | (known << 1) | (known << 2);
    if constexpr (R.cased) {
        c.caseless |= letters;
    } else {
        c.lower |= letters;
    }
    if constexpr (R.deepseek) c.han_kana = han | (han << 1) | (han << 2);

    const auto byte = [&](int i) {
        return static_cast<std::uint32_t>(static_cast<std::uint8_t>(text[position + static_cast<std::size_t>(i)]));
    };
    const Bits two = bytes.in_range('\xC2', '\xDF') & (trail >> 1);
    for (Bits left = two & ~cyrillic; left != 0; left &= left - 1) {
        const int i = std::countr_zero(left);
        const char32_t point = ((byte(i) & 0x1FU) << 6) | (byte(i + 1) & 0x3FU);
        add_character<R, V>(point, classify(point), Bits{3} << i, c);
    }
    // Three bytes: no overlong forms (E0 80-9F), no surrogates (ED A0-BF).
    const Bits later = bytes.in_range('\xA0', '\xBF') >> 1;
    const Bits three = bytes.in_range('\xE0', '\xEF') & trails & ~(bytes.equals('\xE0') & ~later) &
                       ~(bytes.equals('\xED') & later);
    for (Bits left = three & ~known; left != 0; left &= left - 1) {
        const int i = std::countr_zero(left);
        const char32_t point =
            ((byte(i) & 0x0FU) << 12) | ((byte(i + 1) & 0x3FU) << 6) | (byte(i + 2) & 0x3FU);
        add_character<R, V>(point, classify(point), Bits{7} << i, c);
    }
    c.continuation = ((two | three) << 1) | (three << 2);
    // Four bytes, invalid bytes, and what the window cuts off.
    for (Bits left = c.high & ~(two | three | c.continuation); left != 0;) {
        const int i = std::countr_zero(left);
        const Decoded decoded = decode_utf8(text, position + static_cast<std::size_t>(i));
        const Bits all = ((Bits{1} << decoded.size) - 1) << i;
        left &= ~all;
        c.continuation |= all & ~(Bits{1} << i);
        const std::uint8_t kind = decoded.size == 1 ? std::uint8_t{0} : classify(decoded.point);
        add_character<R, V>(decoded.point, kind, all, c);
    }
}

// All classes of the characters of a window.
template <Rules R, class V>
[[gnu::always_inline]] inline Classes<V> classify_block(std::string_view text, std::size_t position,
                                                     std::size_t size) noexcept {
    const V bytes = size == kWindow ? V::load(text.data() + position) : V::load(text.data() + position, size);
    Classes<V> classes = classify_ascii_block<R>(bytes);
    if (classes.high != 0) classify_others<R>(bytes, text, position, classes);
    return classes;
}

// Characters that, once a window has none but these to its end, go on with the same piece: those of words.
// Where case matters only those without, and of DeepSeek's pattern only Han and kana.
template <Rules R, class V>
[[gnu::always_inline]] inline Bits row_of(const Classes<V>& c) noexcept {
    if constexpr (R.cased) return c.caseless | c.mark;
    return R.deepseek ? c.lower & c.han_kana : c.lower;
}

struct Starts {
    Bits starts;      // of pieces, as far as certain, but for the window's first byte
    std::size_t row;  // if there are none: from where `row_of` shows the end of the piece, or 0
};

// The starts of pieces in a window of `size` bytes; with fewer than 64 the text ends there, and bit `size`
// stands for its end.
template <Rules R, bool Ascii, class V>
class Window {
  public:
    [[gnu::always_inline]] Window(const Classes<V>& classes, std::string_view text, std::size_t position,
                                  std::size_t size) noexcept
        : c_(classes), text_(text), position_(position), valid_(size < kWindow ? (Bits{1} << size) - 1 : ~Bits{0}),
          size_(size) {
        word_ = c_.lower;
        if constexpr (R.cased) word_ |= c_.upper | c_.caseless | c_.mark;
        other_ = valid_ & ~(word_ | c_.number | c_.space);
        if constexpr (R.deepseek) {
            hard_ = other_ & ~c_.symbol;  // gaps
            other_ = c_.symbol & ~word_;
        }
    }

    [[gnu::always_inline]] Starts find() noexcept {
        if constexpr (R.gpt2) {
            find_gpt2();
        } else {
            find_words();
        }
        if constexpr (R.max_digits == 1) starts_ |= c_.number & ~c_.continuation;
        if constexpr (R.max_digits > 1) split_numbers();
        const Bits known = this->known();
        const Bits starts = starts_ & known & ~Bits{1};
        return {starts, starts == 0 ? row(known) : 0};
    }

  private:
    [[gnu::always_inline]] static Bits run_starts(Bits set) noexcept { return set & ~(set << 1); }

    // The character after each of those that start at these bits.
    [[gnu::always_inline]] Bits next(Bits characters) const noexcept {
        if constexpr (Ascii) return characters << 1;
        return ((characters << 1) + c_.continuation) & ~c_.continuation;  // the carry runs along them
    }

    // First bytes of the characters whose last bytes these are; at most three bytes each, as white space has.
    [[gnu::always_inline]] Bits first_bytes(Bits last) const noexcept {
        if constexpr (Ascii) return last;
        const Bits second = (last & c_.continuation) >> 1;
        const Bits third = (second & c_.continuation) >> 1;
        return (last & ~c_.continuation) | (second & ~c_.continuation) | third;
    }

    // Last characters of white space before anything but white space: they start a piece, which they share
    // with what follows or not.
    [[gnu::always_inline]] Bits last_spaces(Bits spaces) const noexcept {
        Bits last = spaces & ~(c_.space >> 1);
        if constexpr (R.lone_numbers) last &= ~(c_.number >> 1);
        if constexpr (R.deepseek && !Ascii) last &= ~(c_.han_kana >> 1);
        return first_bytes(last);
    }

    // ` ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+` and contractions
    [[gnu::always_inline]] void find_gpt2() noexcept {
        const Bits own = ~(c_.blank << 1);
        const Bits others = run_starts(other_) & own;
        starts_ = (run_starts(word_) & own) | others | run_starts(c_.space) | last_spaces(c_.space);
        if constexpr (R.max_digits == 0) starts_ |= run_starts(c_.number) & own;
        add_contractions(others & c_.apostrophe & (word_ >> 1), false);
    }

    [[gnu::always_inline]] void find_words() noexcept {
        // Newlines (and slashes) directly behind symbols belong to these. Adding the first of each row to
        // the row clears it up to its end; firsts inside a row stay set and are put back.
        const Bits row = c_.newline | c_.slash;
        Bits before = other_;
        if constexpr (R.deepseek && !Ascii) before &= ~c_.han_kana;
        const Bits first = c_.newline & (before << 1);
        const Bits absorbed = (row & ~(row + first)) | first;
        const Bits space = c_.space & ~absorbed;
        const Bits other = other_ & ~absorbed;
        const Bits inline_space = c_.space & ~c_.newline;

        Bits others = run_starts(other);
        if constexpr (R.deepseek && !Ascii) {
            const Bits borders = run_starts(c_.han_kana) | (~c_.han_kana & (c_.han_kana << 1));
            others |= other & borders;
            starts_ |= borders;
        }
        others &= ~(c_.blank << 1);
        // A symbol alone takes the word behind it.
        Bits joined = next(others) & word_;
        if constexpr (R.deepseek) {  // only ASCII to ASCII, where the first other character ends it
            const Bits ascii = c_.lower & ~c_.high;
            joined = next(others & ~c_.high) & ascii;
            starts_ |= (ascii + joined) & ~ascii & word_;
        }
        starts_ |= run_starts(word_) & ~(inline_space << 1) & ~joined;
        starts_ |= others | run_starts(space) | last_spaces(inline_space) | after_newlines(inline_space);
        if constexpr (R.contractions == Contractions::kAnyCase)
            add_contractions(others & c_.apostrophe & (word_ >> 1), true);
        if constexpr (R.cased) {
            starts_ |= c_.upper & (c_.lower << 1);
            if constexpr (!Ascii) {
                // What is both upper and lower case before upper case asks how the word ends, and a mark
                // behind a symbol how the symbols began.
                hard_ |= (c_.upper & ((c_.caseless | c_.mark) << 1)) | (c_.mark & (other_ << 1));
            }
            if constexpr (R.contractions == Contractions::kSuffix)
                add_suffixes(c_.apostrophe & (word_ << 1) & (word_ >> 1));
        }
    }

    // White space behind a newline starts a piece unless another newline follows in the same white space.
    [[gnu::always_inline]] Bits after_newlines(Bits inline_space) const noexcept {
        Bits begins = inline_space & (c_.newline << 1);
        if ((((inline_space + begins) & ~inline_space) & c_.newline) == 0) return begins;
        Bits kept = 0;
        for (; begins != 0; begins &= begins - 1) {
            const Bits begin = begins & (~begins + 1);
            if ((((inline_space + begin) & ~inline_space) & c_.newline) == 0) kept |= begin;
        }
        return kept;
    }

    // Every third number of a run starts a piece.
    [[gnu::always_inline]] void split_numbers() noexcept {
        const Bits number = c_.number;
        Bits begins = run_starts(number);
        while (begins != 0) {
            starts_ |= begins;
            for (unsigned i = 0; i < R.max_digits; ++i) begins = next(begins) & number;
        }
    }

    // A contraction is a piece of its own: none starts inside it, one starts behind it.
    [[gnu::always_inline]] void add_contractions(Bits candidates, bool any_case) noexcept {
        for (; candidates != 0; candidates &= candidates - 1) {
            const auto i = static_cast<std::size_t>(std::countr_zero(candidates));
            const std::size_t end = end_of_contraction(text_, position_ + i, any_case) - position_;
            if (end > i) join(i + 1, end);
        }
    }

    // The same where contractions end words: they start no piece, and none follows another.
    [[gnu::always_inline]] void add_suffixes(Bits candidates) noexcept {
        std::size_t last_end = 0;
        for (; candidates != 0; candidates &= candidates - 1) {
            const auto i = static_cast<std::size_t>(std::countr_zero(candidates));
            if (i == last_end) continue;
            const std::size_t end = end_of_contraction(text_, position_ + i, true) - position_;
            if (end == i) continue;
            join(i, end);
            last_end = end;
        }
    }

    // No piece starts in [begin, end), one does at `end`.
    [[gnu::always_inline]] void join(std::size_t begin, std::size_t end) noexcept {
        const Bits before = (Bits{1} << begin) - 1;  // begin < 64: a letter of the window follows
        const Bits behind = end < kWindow ? ~Bits{0} << end : Bits{0};
        starts_ = (starts_ & (before | behind)) | (end < kWindow ? Bits{1} << end : Bits{0});
    }

    // Bytes whose start or not is certain. A start asks for its own character, at most three bytes, and the
    // next; white space, for all of its run.
    [[gnu::always_inline]] Bits known() noexcept {
        Bits known = Ascii ? ~Bits{0} >> 1 : ~Bits{0} >> 3;
        if (size_ < kWindow) {
            known = (valid_ << 1) | 1;
            const Bits at_end = c_.space << (kWindow - size_);
            if ((at_end >> 63) != 0) {
                known >>= std::countl_one(at_end);
            } else {
                starts_ |= Bits{1} << size_;
            }
        } else if ((c_.space >> 63) != 0) {
            known &= ~Bits{0} >> (std::countl_one(c_.space) - 1);
        }
        if (hard_ != 0) known &= (hard_ & (~hard_ + 1)) - 1;
        return known;
    }

    // The last character of the known part, if it is one that goes on with the piece.
    [[gnu::always_inline]] std::size_t row(Bits known) const noexcept {
        const Bits row = row_of<R, V>(c_);
        if (size_ < kWindow || hard_ != 0) return 0;
        if constexpr (R.cased) {
            if (((c_.upper | c_.lower) & ~Bits{1}) != 0) return 0;
        }
        const auto last = static_cast<std::size_t>(std::bit_width(known & ~c_.continuation)) - 1;
        return (row >> last & 1) != 0 ? last : 0;
    }

    const Classes<V>& c_;
    std::string_view text_;
    std::size_t position_;
    Bits valid_;
    std::size_t size_;
    Bits word_ = 0;
    Bits other_ = 0;
    Bits hard_ = 0;
    Bits starts_ = 0;
};

template <Pattern P, class V>
[[gnu::always_inline]] inline Starts find_starts(std::string_view text, std::size_t position) noexcept {
    static constexpr Rules rules = rules_of(P);
    const std::size_t size = std::min(kWindow, text.size() - position);
    const Classes<V> classes = classify_block<rules, V>(text, position, size);
    if (classes.high == 0) return Window<rules, true, V>(classes, text, position, size).find();
    return Window<rules, false, V>(classes, text, position, size).find();
}

// The end of a piece that goes on with `row_of` at `position`, or 0 if its end asks for more.
template <Pattern P, class V>
std::size_t find_row_end(std::string_view text, std::size_t position) noexcept {
    static constexpr Rules rules = rules_of(P);
    while (position < text.size()) {
        const std::size_t size = std::min(kWindow, text.size() - position);
        const Classes<V> classes = classify_block<rules, V>(text, position, size);
        const auto ones = static_cast<std::size_t>(std::countr_one(row_of<rules, V>(classes)));
        if (ones < size) {
            Bits asks = 0;
            if constexpr (rules.cased) asks = classes.upper | classes.lower | classes.apostrophe;
            return (asks >> ones & 1) != 0 ? 0 : position + ones;
        }
        if (size < kWindow) break;
        position += static_cast<std::size_t>(std::bit_width(~classes.continuation)) - 1;
    }
    return text.size();
}

// A CutFunction. V::write(bits, base, out) writes base + i for every set bit i, may write up to out[63], and
// returns how many bits there are.
template <Pattern P, class V>
[[gnu::always_inline]] inline std::size_t cut_windows(std::string_view text, std::size_t position,
                                                      std::span<std::uint32_t> ends) noexcept {
    constexpr std::size_t most = std::numeric_limits<std::uint32_t>::max() - kWindow;
    const std::size_t base = position;
    std::size_t count = 0;
    while (position < text.size() && position - base <= most) {
        std::size_t end = 0;
        if (ends.size() - count >= kWindow) {
            ask_for(text, position + kAhead);
            const Starts found = find_starts<P, V>(text, position);
            if (found.starts != 0) {
                count += V::write(found.starts, static_cast<std::uint32_t>(position - base), ends.data() + count);
                position += static_cast<std::size_t>(std::bit_width(found.starts)) - 1;
                continue;
            }
            if (found.row != 0) end = find_row_end<P, V>(text, position + found.row);
        } else if (count > 0) {
            break;
        }
        if (count == ends.size()) break;
        if (end == 0) end = end_piece<P>(text, position);
        if (end - base > most + kWindow) break;
        ends[count++] = static_cast<std::uint32_t>(end - base);
        position = end;
    }
    return count;
}

// Ends by one bit after another, for levels without better. Eight at a time: how many there are is hard to
// predict, so a few too many are written.
template <class V>
[[gnu::always_inline]] inline std::size_t write_bits(Bits bits, std::uint32_t base,
                                                     std::uint32_t* out) noexcept {
    const auto count = static_cast<std::size_t>(std::popcount(bits));
    for (std::size_t done = 0; done < count; done += 8) {
        for (std::size_t i = 0; i < 8; ++i) {
            out[done + i] = base + static_cast<std::uint32_t>(std::countr_zero(bits));
            bits &= bits - 1;
        }
    }
    return count;
}

// The table of one level's machines; none for kWhole, which needs no windows.
template <template <Pattern> class Machine>
constexpr CutFunction select(Pattern pattern) noexcept {
    switch (pattern) {
        case Pattern::kWhole: return nullptr;
        case Pattern::kGpt2: return Machine<Pattern::kGpt2>::cut;
        case Pattern::kStarCoder: return Machine<Pattern::kStarCoder>::cut;
        case Pattern::kCl100k: return Machine<Pattern::kCl100k>::cut;
        case Pattern::kLlama3: return Machine<Pattern::kLlama3>::cut;
        case Pattern::kQwen2: return Machine<Pattern::kQwen2>::cut;
        case Pattern::kQwen35: return Machine<Pattern::kQwen35>::cut;
        case Pattern::kO200k: return Machine<Pattern::kO200k>::cut;
        case Pattern::kTekken: return Machine<Pattern::kTekken>::cut;
        case Pattern::kDeepSeek3: return Machine<Pattern::kDeepSeek3>::cut;
    }
    return nullptr;
}

}  // namespace pylm::pretokenize
