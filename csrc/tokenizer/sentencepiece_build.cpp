// Making an encoder of a vocabulary: symbols of characters, ranks, and where text may be cut.
#include <algorithm>
#include <stdexcept>
#include <tuple>

#include "text/unicode.hpp"
#include "tokenizer/sentencepiece.hpp"

namespace pylm {

namespace {

std::vector<std::string> joined(std::vector<std::string> pieces, std::span<const std::string> more) {
    pieces.insert(pieces.end(), more.begin(), more.end());
    return pieces;
}

// The same rules with a rank for every result. Of equal ranks the longest result comes first.
std::vector<MergeRule> with_own_ranks(std::span<const std::string> pieces, std::span<const MergeRule> rules) {
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
bool are_runs(std::span<const std::string> pieces, std::span<const MergeRule> rules, std::uint32_t rank) {
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

SentencePieceEncoder::SentencePieceEncoder(std::vector<std::string> pieces, std::span<const PieceKind> kinds,
                                           std::span<const std::string> extra_characters,
                                           std::span<const MergeRule> merges, SentencePieceOptions options)
    : options_(std::move(options)),
      num_pieces_(pieces.size()),
      pieces_(joined(std::move(pieces), extra_characters)),
      merges_(pieces_, with_own_ranks(pieces_, merges)) {
    if (kinds.size() != num_pieces_) throw std::invalid_argument("kinds must have an entry for every piece");
    if (options_.collapse_spaces && options_.prefix == SpacePrefix::kUnlessSpace) {
        throw std::invalid_argument("spaces that are dropped before a text cannot keep a space from being put there");
    }
    byte_ids_.fill(kNone);
    for (std::size_t id = 0; id < num_pieces_; ++id) {
        const std::string& text = pieces_[id];
        if (text.empty()) continue;
        const bool is_found_whole = options_.ignore_merges && kinds[id] != PieceKind::kControl &&
                                    kinds[id] != PieceKind::kUserDefined;
        if (is_found_whole) {
            whole_.emplace(text, static_cast<TokenId>(id));
            longest_whole_ = std::max(longest_whole_, text.size());
        }
        // U+FFFD alone is found whole where it is found as a character.
        if (kinds[id] == PieceKind::kUserDefined || (is_found_whole && text != kReplacement)) {
            replaces_invalid_ = replaces_invalid_ || text.find(kReplacement) != text.npos;
        }
        if (kinds[id] == PieceKind::kUnknown) {
            if (unknown_ != kNone) throw std::invalid_argument("a second piece of kind unknown: " + text);
            unknown_ = static_cast<TokenId>(id);
        } else if (kinds[id] == PieceKind::kByte) {
            const auto byte = byte_of_piece(text);
            if (!byte) throw std::invalid_argument("a piece of kind byte is not <0xXX>: " + text);
            byte_ids_[*byte] = static_cast<TokenId>(id);
        } else if (kinds[id] == PieceKind::kUserDefined) {
            user_defined_raw_.add(text, static_cast<std::uint32_t>(id));
            // Once spaces are marks, a piece with a space in it is found nowhere.
            if (!options_.space_is_mark) {
                user_defined_.add(text, static_cast<std::uint32_t>(id));
            } else if (text.find(' ') == std::string::npos) {
                user_defined_.add(spaces_for_marks(text), static_cast<std::uint32_t>(id));
            }
        } else if (kinds[id] == PieceKind::kNormal || kinds[id] == PieceKind::kUnused) {
            const Decoded first = decode_utf8(text, 0);
            if (first.size == text.size()) character(first.point) = static_cast<TokenId>(id);
        }
    }
    has_all_bytes_ = options_.byte_fallback && std::find(byte_ids_.begin(), byte_ids_.end(), kNone) == byte_ids_.end();
    if (!extra_characters.empty() && !has_all_bytes_ && unknown_ == kNone) {
        throw std::invalid_argument("extra characters need a piece for what is unknown");
    }
    add_characters(extra_characters);
    if (options_.space_is_mark) character(U' ') = symbol_of(0x2581);
    add_rules(merges, kinds);
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

void SentencePieceEncoder::add_characters(std::span<const std::string> extra_characters) {
    for (std::size_t i = 0; i < extra_characters.size(); ++i) {
        const std::string& text = extra_characters[i];
        if (text.empty() || decode_utf8(text, 0).size != text.size()) {
            throw std::invalid_argument("extra character " + std::to_string(i) + " is not one character");
        }
        character(decode_utf8(text, 0).point) = static_cast<TokenId>(num_pieces_ + i);
    }
}

void SentencePieceEncoder::add_rules(std::span<const MergeRule> merges, std::span<const PieceKind> kinds) {
    // Ids that stand for parts of characters, or for any: their neighbours in text are not those in texts of
    // pieces, so that borders cannot be told.
    bool is_regular = has_all_bytes_ || (!options_.byte_fallback && unknown_ != kNone);
    unused_.resize(pieces_.size());
    for (std::size_t id = 0; id < num_pieces_; ++id) unused_[id] = kinds[id] == PieceKind::kUnused;
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
    const bool has_unused = std::find(unused_.begin(), unused_.end(), true) != unused_.end();
    if (tied.size() == 1 && are_runs(pieces_, merges, *tied.begin())) tied.clear();
    for (const MergeRule& rule : merges) {
        if (unused_[rule.merged]) tied.insert(rule.rank);
    }
    const auto add_pairs = [&](const MergeRule& rule, std::unordered_set<std::uint64_t>& pairs) {
        const std::string& text = pieces_[rule.merged];
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
        in_order_.resize(pieces_.size());
        for (const MergeRule& rule : merges) {
            rules_.emplace(pair_of(rule.left, rule.right), rule);
            if (tied.contains(rule.rank)) add_pairs(rule, ordered_pairs_);
        }
        for (const std::uint64_t pair : ordered_pairs_) {
            if (static_cast<TokenId>(pair) != kNone) in_order_[static_cast<TokenId>(pair)] = true;
        }
    }
    whole_in_order_ = has_unused;
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
    // A word could be a piece, or end in a run of unknown characters that begins in another part of it.
    is_word_whole_ =
        options_.split_words && (options_.ignore_merges || (options_.fuse_unknown && !has_all_bytes_));
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
