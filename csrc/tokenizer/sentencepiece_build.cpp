// Making an encoder of a vocabulary: symbols of characters, ranks, and where text may be cut.
#include <algorithm>
#include <bit>
#include <stdexcept>
#include <tuple>
#include <unordered_map>

#include "text/unicode.hpp"
#include "tokenizer/sentencepiece.hpp"

namespace pylm {

namespace {

TokenTexts joined(TokenTexts pieces, std::span<const std::string> more) {
    if (more.empty()) return pieces;
    std::vector<std::string_view> all;
    for (std::size_t id = 0; id < pieces.size(); ++id) all.push_back(pieces[id]);
    all.insert(all.end(), more.begin(), more.end());
    return TokenTexts(all);
}

// Those of a file: without extra characters they are the vocabulary's.
TokenTexts with_extra_characters(TokenTexts pieces, const SectionFile& file) {
    if (file.array<std::uint32_t>(Section::kPieceBegins).empty()) return pieces;
    TokenTexts all(file, Section::kPieceBegins, Section::kPieceBytes);
    if (all.size() < pieces.size()) throw std::invalid_argument("its extra characters are damaged");
    return all;
}

// The same rules with a rank for every result. Of equal ranks the longest result comes first.
std::vector<MergeRule> with_own_ranks(const TokenTexts& pieces, std::span<const MergeRule> rules) {
    std::vector<MergeRule> ordered(rules.begin(), rules.end());
    const auto size_of = [&](const MergeRule& rule) {
        return rule.merged < pieces.size() ? pieces[rule.merged].size() : 0;
    };
    std::stable_sort(ordered.begin(), ordered.end(), [&](const MergeRule& a, const MergeRule& b) {
        return std::tuple(a.rank, size_of(b), a.merged) < std::tuple(b.rank, size_of(a), b.merged);
    });
    std::uint32_t next = 0;
    MergeRule last{};
    for (MergeRule& rule : ordered) {
        if (&rule != ordered.data() && std::tie(rule.rank, rule.merged) != std::tie(last.rank, last.merged)) ++next;
        last = rule;
        rule.rank = next;
    }
    return ordered;
}

// Whether merging the longest result first does the same as merging from left to right for all rules of
// `rank`: if they make runs of one character (of spaces, in practice) of every length to the longest, and
// that character follows no other one in any result. Then a run stands alone on its left, and grows from its
// left end in either order.
bool are_runs(const TokenTexts& pieces, std::span<const MergeRule> rules, std::uint32_t rank) {
    std::string_view unit;
    std::vector<bool> grows;  // by length: made of a run one shorter and the character
    std::size_t longest = 0;
    for (const MergeRule& rule : rules) {
        if (rule.rank != rank) continue;
        const std::string_view text = pieces[rule.merged];
        if (unit.empty()) unit = text.substr(0, decode_utf8(text, 0).size);
        for (std::size_t i = 0; i < text.size(); i += unit.size()) {
            if (text.substr(i, unit.size()) != unit) return false;
        }
        longest = std::max(longest, text.size() / unit.size());
        grows.resize(longest + 1);
        if (pieces[rule.right] == unit) grows[text.size() / unit.size()] = true;
    }
    for (std::size_t size = 2; size <= longest; ++size) {
        if (!grows[size]) return false;
    }
    for (const MergeRule& rule : rules) {
        const std::string_view text = pieces[rule.merged];
        for (std::size_t i = text.find(unit, 1); i != std::string_view::npos; i = text.find(unit, i + 1)) {
            if (i < unit.size() || text.substr(i - unit.size(), unit.size()) != unit) return false;
        }
    }
    return true;
}

}  // namespace

SentencePieceEncoder::SentencePieceEncoder(TokenTexts pieces, std::span<const PieceKind> kinds,
                                           std::span<const std::string> extra_characters,
                                           std::span<const MergeRule> merges, SentencePieceOptions options)
    : options_(std::move(options)),
      num_pieces_(pieces.size()),
      pieces_(joined(std::move(pieces), extra_characters)),
      merges_(pieces_, with_own_ranks(pieces_, merges)) {
    add_pieces(kinds);
    add_rules(merges, kinds);
    if (!options_.ignore_merges) return;
    std::vector<std::uint8_t> is_found_whole(pieces_.size());
    for (std::size_t id = 0; id < num_pieces_; ++id) is_found_whole[id] = this->is_found_whole(kinds[id]);
    whole_ = WholeTokens(pieces_, is_found_whole);
}

SentencePieceEncoder::SentencePieceEncoder(const SectionFile& file, TokenTexts pieces,
                                           std::span<const PieceKind> kinds, SentencePieceOptions options)
    : options_(std::move(options)),
      num_pieces_(pieces.size()),
      pieces_(with_extra_characters(std::move(pieces), file)),
      merges_(file, pieces_.size()) {
    add_pieces(kinds);
    if (const auto cuts = file.array<std::uint8_t>(Section::kCuts); !cuts.empty()) {
        if (cuts.size() != 16) throw std::invalid_argument("its table of cuts is damaged");
        cuts_ = CutTable(cuts.items().first<16>());
        joined_ = PairSet(file, Section::kJoinedPairs);
    }
    if (!file.array<char>(Section::kOrderedPairs).empty()) {
        ordered_pairs_ = PairSet(file, Section::kOrderedPairs);
        rules_ = PairRules(file, pieces_);
    }
    set_order(kinds);
    if (whole_in_order_ && ordered_pairs_.empty()) throw std::invalid_argument("it has no table of ordered pairs");
    if (options_.ignore_merges) whole_ = WholeTokens(file, pieces_.size());
}

void SentencePieceEncoder::write(SectionWriter& out, std::span<const MergeRule> merges) const {
    merges_.write(out, merges);
    if (pieces_.size() > num_pieces_) pieces_.write(out, Section::kPieceBegins, Section::kPieceBytes);
    if (cuts_.any()) {
        out.add(Section::kCuts, std::span<const std::uint8_t>(cuts_.table()));
        joined_.write(out, Section::kJoinedPairs);
    }
    if (!ordered_pairs_.empty()) {
        ordered_pairs_.write(out, Section::kOrderedPairs);
        rules_.write(out);
    }
    if (options_.ignore_merges) whole_.write(out);
}

bool SentencePieceEncoder::is_found_whole(PieceKind kind) const noexcept {
    return options_.ignore_merges && kind != PieceKind::kControl && kind != PieceKind::kUserDefined;
}

void SentencePieceEncoder::add_pieces(std::span<const PieceKind> kinds) {
    if (kinds.size() != num_pieces_) throw std::invalid_argument("kinds must have an entry for every piece");
    if (options_.collapse_spaces && options_.prefix == SpacePrefix::kUnlessSpace) {
        throw std::invalid_argument("spaces that are dropped before a text cannot keep a space from being put there");
    }
    byte_ids_.fill(kNone);
    for (std::size_t id = 0; id < num_pieces_; ++id) {
        const std::string_view text = pieces_[id];
        if (text.empty()) continue;
        if (is_found_whole(kinds[id])) longest_whole_ = std::max(longest_whole_, text.size());
        // U+FFFD alone is found whole where it is found as a character.
        if (kinds[id] == PieceKind::kUserDefined || (is_found_whole(kinds[id]) && text != kReplacement)) {
            replaces_invalid_ = replaces_invalid_ || text.find(kReplacement) != text.npos;
        }
        if (kinds[id] == PieceKind::kUnknown) {
            if (unknown_ != kNone) throw std::invalid_argument("a second piece of kind unknown: " + std::string(text));
            unknown_ = static_cast<TokenId>(id);
        } else if (kinds[id] == PieceKind::kByte) {
            const auto byte = byte_of_piece(text);
            if (!byte) throw std::invalid_argument("a piece of kind byte is not <0xXX>: " + std::string(text));
            byte_ids_[*byte] = static_cast<TokenId>(id);
        } else if (kinds[id] == PieceKind::kUserDefined) {
            user_defined_raw_.add(text, static_cast<std::uint32_t>(id));
            // Once spaces are marks, a piece with a space in it is found nowhere.
            if (!options_.space_is_mark) {
                user_defined_.add(text, static_cast<std::uint32_t>(id));
            } else if (text.find(' ') == text.npos) {
                user_defined_.add(spaces_for_marks(text), static_cast<std::uint32_t>(id));
            }
        } else if (kinds[id] == PieceKind::kNormal || kinds[id] == PieceKind::kUnused) {
            const Decoded first = decode_utf8(text, 0);
            if (first.size == text.size()) character(first.point) = static_cast<TokenId>(id);
        }
    }
    has_all_bytes_ = options_.byte_fallback && std::find(byte_ids_.begin(), byte_ids_.end(), kNone) == byte_ids_.end();
    if (pieces_.size() > num_pieces_ && !has_all_bytes_ && unknown_ == kNone) {
        throw std::invalid_argument("extra characters need a piece for what is unknown");
    }
    add_characters();
    if (options_.space_is_mark) character(U' ') = symbol_of(0x2581);
    // A word could be a piece, or end in a run of unknown characters that begins in another part of it.
    is_word_whole_ =
        options_.split_words && (options_.ignore_merges || (options_.fuse_unknown && !has_all_bytes_));
    rules_of_text_.charsmap = Charsmap(options_.charsmap);
    rules_of_text_.collapse_spaces = options_.collapse_spaces;
    rules_of_text_.space_is_mark = options_.space_is_mark;
}

TokenId& SentencePieceEncoder::character(char32_t point) {
    std::uint16_t& page = page_of_[point >> 8];
    if (page == 0) {
        page = static_cast<std::uint16_t>(pages_.size() / 256);
        pages_.resize(pages_.size() + 256, kNone);
    }
    return pages_[page * std::size_t{256} + (point & 0xFF)];
}

void SentencePieceEncoder::add_characters() {
    for (std::size_t id = num_pieces_; id < pieces_.size(); ++id) {
        const std::string_view text = pieces_[id];
        if (text.empty() || decode_utf8(text, 0).size != text.size()) {
            throw std::invalid_argument("extra character " + std::to_string(id - num_pieces_) +
                                        " is not one character");
        }
        character(decode_utf8(text, 0).point) = static_cast<TokenId>(id);
    }
}

// What follows from `kinds` and `ordered_pairs_`.
void SentencePieceEncoder::set_order(std::span<const PieceKind> kinds) {
    unused_.resize(pieces_.size());
    for (std::size_t id = 0; id < num_pieces_; ++id) unused_[id] = kinds[id] == PieceKind::kUnused;
    whole_in_order_ = std::find(unused_.begin(), unused_.end(), true) != unused_.end();
    if (ordered_pairs_.empty()) return;
    in_order_.resize(pieces_.size());
    ordered_pairs_.visit([&](std::uint64_t pair) {
        const auto right = static_cast<TokenId>(pair);
        if (right == kNone) return;
        if (right >= in_order_.size()) throw std::invalid_argument("its table of ordered pairs is damaged");
        in_order_[right] = true;
    });
}

SentencePieceEncoder::PairSet::PairSet(const SectionFile& file, Section section)
    : slots_(file.array<std::uint64_t>(section)) {
    if (!std::has_single_bit(slots_.size()) || std::ranges::find(slots_, kEmpty) == slots_.end()) {
        throw std::invalid_argument("its table of pairs is damaged");
    }
}

SentencePieceEncoder::PairRules::PairRules(std::span<const MergeRule> rules) {
    std::vector<MergeRule> slots(std::bit_ceil(2 * rules.size() + 2), MergeRule{kNone, kNone, 0, 0});
    for (const MergeRule& rule : rules) {
        MergeRule& slot = slots[place_of(slots, rule.left, rule.right)];
        if (slot.left == kNone) slot = rule;
    }
    slots_ = SharedArray<MergeRule>(std::move(slots));
}

SentencePieceEncoder::PairRules::PairRules(const SectionFile& file, const TokenTexts& pieces)
    : slots_(file.array<MergeRule>(Section::kOrderedRules)) {
    bool is_sound = std::has_single_bit(slots_.size());
    std::size_t num_free = 0;
    for (const MergeRule& rule : slots_) {
        if (rule.left == kNone) {
            ++num_free;
            continue;
        }
        is_sound = is_sound && std::max({rule.left, rule.right, rule.merged}) < pieces.size();
        if (!is_sound) break;
        const std::size_t left = pieces[rule.left].size(), right = pieces[rule.right].size();
        is_sound = left != 0 && right != 0 && left + right == pieces[rule.merged].size();
    }
    if (!is_sound || num_free == 0) throw std::invalid_argument("its table of ordered merges is damaged");
}

std::size_t SentencePieceEncoder::PairRules::place_of(std::span<const MergeRule> slots, TokenId left,
                                                      TokenId right) noexcept {
    const std::size_t mask = slots.size() - 1;
    std::size_t place = static_cast<std::size_t>(mix64(pair_of(left, right))) & mask;
    while (slots[place].left != kNone && (slots[place].left != left || slots[place].right != right)) {
        place = (place + 1) & mask;
    }
    return place;
}

const MergeRule* SentencePieceEncoder::PairRules::find(TokenId left, TokenId right) const noexcept {
    const MergeRule& slot = slots_[place_of(slots_.items(), left, right)];
    return slot.left == kNone ? nullptr : &slot;
}

void SentencePieceEncoder::add_rules(std::span<const MergeRule> merges, std::span<const PieceKind> kinds) {
    // Ids that stand for parts of characters, or for any: their neighbours in text are not those in texts of
    // pieces, so that borders cannot be told.
    bool is_regular = has_all_bytes_ || (!options_.byte_fallback && unknown_ != kNone);
    set_order(kinds);
    const bool has_unused = whole_in_order_;
    std::unordered_map<std::uint32_t, TokenId> result_of_rank;
    std::unordered_set<std::uint32_t> tied;
    for (const MergeRule& rule : merges) {
        const auto found = result_of_rank.emplace(rule.rank, rule.merged).first;
        if (found->second != rule.merged) tied.insert(rule.rank);
        for (const TokenId id : {rule.left, rule.right, rule.merged}) {
            if (id >= num_pieces_) continue;
            is_regular = is_regular && kinds[id] != PieceKind::kByte && kinds[id] != PieceKind::kUnknown;
        }
    }
    if (tied.size() == 1 && are_runs(pieces_, merges, *tied.begin())) tied.clear();
    for (const MergeRule& rule : merges) {
        if (unused_[rule.merged]) tied.insert(rule.rank);
    }
    const auto add_pairs = [&](const MergeRule& rule, std::unordered_set<std::uint64_t>& pairs) {
        const std::string_view text = pieces_[rule.merged];
        TokenId before = kNone;
        for (std::size_t i = 0; i < text.size();) {
            const Decoded decoded = decode_utf8(text, i);
            const TokenId here = symbol_of(decoded.point);
            if (i > 0) pairs.insert(pair_of(before, here));
            before = here;
            i += decoded.size;
        }
    };
    if (!tied.empty() || has_unused) {
        std::unordered_set<std::uint64_t> ordered;
        for (const MergeRule& rule : merges) {
            if (tied.contains(rule.rank)) add_pairs(rule, ordered);
        }
        ordered_pairs_ = PairSet(ordered);
        rules_ = PairRules(merges);
        set_order(kinds);
    }
    if (!is_regular || has_unused) {
        if (options_.split_words) throw std::invalid_argument("words cannot be split with this vocabulary");
        return;
    }
    std::vector<std::string_view> results;
    std::unordered_set<std::uint64_t> pairs;
    std::unordered_set<TokenId> seen;
    for (const MergeRule& rule : merges) {
        if (!seen.insert(rule.merged).second) continue;
        results.push_back(pieces_[rule.merged]);
        add_pairs(rule, pairs);
    }
    joined_ = PairSet(pairs);
    std::string all;
    if (is_word_whole_) {
        for (int before = 0; before < 0x80; ++before) {
            for (int after = 0; after < 0x80; ++after) {
                if (after != ' ') all += {static_cast<char>(before), static_cast<char>(after)};
            }
            all += "\xC2\x80";
            all += static_cast<char>(before);
            all += "\xC2\x80";
        }
        results.push_back(all);
    }
    cuts_ = CutTable(results, options_.split_words);
}

}  // namespace pylm
