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

// Classes by byte: a character's bytes all have its class.
struct Classes {
    Bits upper = 0, lower = 0, caseless = 0, mark = 0, number = 0, symbol = 0, space = 0;  // symbol: P or S
    Bits newline = 0, blank = 0, apostrophe = 0, slash = 0;                                // single characters
    Bits han_kana = 0;
    Bits continuation = 0;  // bytes of a character after its first
    Bits high = 0;          // not ASCII
};

// Classes of ASCII characters. V is 64 bytes in the registers of one level:
//   Bits in_range(low, high), equals(byte), high(); V lower_case() sets bit 5 of each byte.
template <Rules R, class V>
[[gnu::always_inline]] inline Classes classify_ascii_block(const V& bytes) noexcept {
    Classes c;
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

// Add the classes of all other characters.
template <Rules R, class V>
[[gnu::always_inline]] inline void classify_others(std::string_view text, std::size_t position,
                                                   Classes& c) noexcept {
    Bits by_class[9] = {};
    Bits run = 0;  // bytes of neighbours of one class, not yet added
    std::uint32_t run_class = 0;
    for (Bits left = c.high; left != 0;) {
        const int i = std::countr_zero(left);
        const Decoded decoded = decode_utf8(text, position + static_cast<std::size_t>(i));
        const std::uint32_t kind = decoded.size == 1 ? 0U : classify(decoded.point);
        const Bits bytes = ((Bits{1} << decoded.size) - 1) << i;
        left &= ~bytes;
        c.continuation |= bytes & ~(Bits{1} << i);
        if constexpr (R.deepseek) {
            if (is_han_or_kana(decoded.point)) c.han_kana |= bytes;
        }
        if (kind != run_class) {
            by_class[std::countr_zero(run_class | 256U)] |= run;
            run = 0;
            run_class = kind;
        }
        run |= bytes;
    }
    by_class[std::countr_zero(run_class | 256U)] |= run;
    c.upper |= by_class[0];
    c.lower |= by_class[1];
    c.caseless = by_class[2];
    c.mark = by_class[3];
    c.number |= by_class[4];
    c.symbol |= by_class[5] | by_class[6];
    c.space |= by_class[7];
}

struct Starts {
    Bits starts;  // of pieces; the window's first byte is one
    Bits known;   // bytes of which that is certain
};

// The starts of pieces in a window of `size` bytes; with fewer than 64 the text ends there, and bit `size`
// stands for its end.
template <Rules R, bool Ascii, class V>
class Window {
  public:
    [[gnu::always_inline]] Window(const Classes& classes, std::string_view text, std::size_t position,
                                  std::size_t size) noexcept
        : c_(classes), text_(text), position_(position), valid_(size < kWindow ? (Bits{1} << size) - 1 : ~Bits{0}),
          size_(size) {
        word_ = c_.upper | c_.lower;
        if constexpr (!Ascii) {
            word_ |= c_.caseless;
            if constexpr ((R.word & kMark) != 0) word_ |= c_.mark;
        }
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
        return {starts_ | 1, known()};
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

    const Classes& c_;
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
    const V bytes = size == kWindow ? V::load(text.data() + position) : V::load(text.data() + position, size);
    Classes classes = classify_ascii_block<rules>(bytes);
    if (classes.high == 0) return Window<rules, true, V>(classes, text, position, size).find();
    classify_others<rules, V>(text, position, classes);
    return Window<rules, false, V>(classes, text, position, size).find();
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
        if (ends.size() - count >= kWindow) {
            const Starts found = find_starts<P, V>(text, position);
            const Bits bits = found.starts & found.known & ~Bits{1};
            if (bits != 0) {
                count += V::write(bits, static_cast<std::uint32_t>(position - base), ends.data() + count);
                position += static_cast<std::size_t>(std::bit_width(bits)) - 1;
                continue;
            }
        } else if (count > 0) {
            break;
        }
        if (count == ends.size()) break;
        const std::size_t end = end_piece<P>(text, position);
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
