// SentencePiece-style encoding and its normalizer against the rules themselves: with vocabularies of a
// tokenizer.model (scores, pieces of the user, unused ones) and of a tokenizer.json (merges in order), all
// options, any text; with and without vector instructions, for any number of threads.
#include <array>
#include <iterator>
#include <limits>
#include <map>
#include <optional>
#include <set>
#include <stdexcept>
#include <utility>
#include <vector>

#include "fuzz_input.hpp"
#include "text/unicode.hpp"
#include "tokenizer/sentencepiece.hpp"
#include "tokenizer/sentencepiece_model.hpp"
#include "tokenizer/sentencepiece_normalize.hpp"

namespace pylm::tests {
namespace {

using Ids = std::vector<TokenId>;
using Texts = std::vector<std::string>;
using Replacements = std::map<std::string, std::string>;

struct Model {
    bool scored = false;  // merges follow from scores, else they are given
    Texts pieces;
    std::vector<PieceKind> kinds;
    std::vector<float> scores;
    std::vector<MergeRule> merges;
    Texts extra_characters;
    SentencePieceOptions options;
    Replacements replacements;

    TokenId add(const std::string& piece, PieceKind kind, float score) {
        pieces.push_back(piece);
        kinds.push_back(kind);
        scores.push_back(score);
        return static_cast<TokenId>(pieces.size() - 1);
    }
};

// The characters of a text; of bytes that are no UTF-8, U+FFFD each.
Texts characters_of(std::string_view text) {
    Texts characters;
    for (std::size_t i = 0; i < text.size();) {
        const Decoded decoded = decode_utf8(text, i);
        const bool valid = decoded.point != 0xFFFD || decoded.size != 1;
        characters.emplace_back(valid ? text.substr(i, decoded.size) : kReplacement);
        i += decoded.size;
    }
    return characters;
}

std::string replace_all(std::string_view text, std::string_view from, std::string_view to) {
    std::string out;
    for (std::size_t i = 0; i < text.size();) {
        const bool found = text.substr(i).starts_with(from);
        found ? out += to : out += text[i];
        i += found ? from.size() : 1;
    }
    return out;
}

// A double array in the layout of darts-clone, children put wherever there is room.
class DoubleArray {
public:
    explicit DoubleArray(const Replacements& replacements) {
        for (const auto& [key, value] : replacements) {
            values_.push_back(static_cast<std::uint32_t>(texts_.size()));
            keys_.push_back(key);
            texts_ += value + '\0';
        }
        units_.resize(1);
        taken_.resize(1, true);
        place_children(0, 0, keys_.size(), 0);
    }

    std::string blob() const {
        std::string out;
        const auto put = [&](std::uint32_t word) {
            for (int i = 0; i < 4; ++i) out += static_cast<char>(word >> (8 * i));
        };
        put(static_cast<std::uint32_t>(4 * units_.size()));
        // What is free looks like a leaf, which no byte leads to: its label must not pass for a null byte.
        for (std::size_t i = 0; i < units_.size(); ++i) put(taken_[i] ? units_[i] : 1U << 31);
        return out + texts_;
    }

private:
    // Children of `node`, whose keys are [begin, end) and agree in `depth` bytes.
    void place_children(std::size_t node, std::size_t begin, std::size_t end, std::size_t depth) {
        std::vector<std::pair<std::uint8_t, std::size_t>> labels;  // and the first key that has it; 0: a key ends
        for (std::size_t i = begin; i < end; ++i) {
            const auto label = static_cast<std::uint8_t>(depth < keys_[i].size() ? keys_[i][depth] : '\0');
            if (labels.empty() || labels.back().first != label) labels.emplace_back(label, i);
        }
        std::size_t offset = 1;
        const auto is_free = [&](const auto& label) {
            const std::size_t place = node ^ offset ^ label.first;
            return place != 0 && (place >= taken_.size() || !taken_[place]);
        };
        // A child is known by its label alone, so no two nodes may count from one place.
        while (bases_.contains(node ^ offset) || !std::all_of(labels.begin(), labels.end(), is_free)) ++offset;
        bases_.insert(node ^ offset);
        check(offset < 1 << 21, "the double array of a test fits");
        units_[node] |= static_cast<std::uint32_t>(offset << 10);
        for (const auto& [label, first] : labels) {
            const std::size_t place = node ^ offset ^ label;
            if (place >= units_.size()) {
                units_.resize(place + 1);
                taken_.resize(place + 1);
            }
            taken_[place] = true;
            units_[place] = label;
            if (label == 0) {
                units_[place] = values_[first] | 1U << 31;
                units_[node] |= 1U << 8;
            }
        }
        for (std::size_t i = 0; i < labels.size(); ++i) {
            const auto [label, first] = labels[i];
            if (label == 0) continue;
            place_children(node ^ offset ^ label, first, i + 1 < labels.size() ? labels[i + 1].second : end, depth + 1);
        }
    }

    Texts keys_;
    std::vector<std::uint32_t> values_, units_;
    std::vector<bool> taken_;
    std::set<std::size_t> bases_{0};  // from which a null byte would lead to the root
    std::string texts_;
};

void read_options(FuzzInput& input, Model& model) {
    model.scored = input.flip();
    SentencePieceOptions& options = model.options;
    options.byte_fallback = input.flip();
    options.space_is_mark = input.below(4) != 0;
    options.prefix = static_cast<SpacePrefix>(input.below(3));
    options.prefix_everywhere = input.flip();
    if (model.scored) {
        if (options.prefix == SpacePrefix::kUnlessSpace) options.prefix = SpacePrefix::kAlways;
        options.collapse_spaces = input.flip();
        for (std::size_t i = input.below(4) == 0 ? input.below(8) : 0; i > 0; --i) {
            const std::string key = replace_all(input.text(3), std::string_view("\0", 1), "");
            const std::string value = replace_all(input.text(2), std::string_view("\0", 1), "");
            if (!key.empty()) model.replacements.emplace(key, value);
        }
        if (!model.replacements.empty()) options.charsmap = DoubleArray(model.replacements).blob();
    } else {
        options.fuse_unknown = input.flip();
        options.split_words = input.flip();
        options.ignore_merges = input.flip();
        options.collapse_spaces = options.prefix != SpacePrefix::kUnlessSpace && input.below(4) == 0;
        // As a tokenizer.json can ask for: spaces are marks where a space may be put before a text.
        options.space_is_mark = options.space_is_mark || options.prefix != SpacePrefix::kNever || options.split_words;
    }
}

// Pieces of neighbours in `text`, so that they are met.
Model read_model(FuzzInput& input, std::string_view text) {
    Model model;
    read_options(input, model);
    if (model.scored || input.below(4) != 0) model.add("<unk>", PieceKind::kUnknown, 0);
    const std::size_t without = model.scored || input.below(8) != 0 ? 256 : input.below(256);
    constexpr std::string_view digits = "0123456789ABCDEF";
    for (std::size_t byte = 0; byte < 256 && model.options.byte_fallback; ++byte) {
        const std::string piece = std::string("<0x") + digits[byte / 16] + digits[byte % 16] + '>';
        if (byte != without) model.add(piece, PieceKind::kByte, 0);
    }
    std::map<std::string, TokenId> ids;
    const auto add = [&](const std::string& piece, PieceKind kind) {
        const auto [known, is_new] = ids.emplace(piece, static_cast<TokenId>(model.pieces.size()));
        if (is_new) model.add(piece, kind, input.flip() ? -static_cast<float>(model.pieces.size()) : -300);
        return known->second;
    };
    const auto read_kind = [&] {
        if (!model.scored) return PieceKind::kNormal;
        const std::size_t kind = input.below(16);
        return kind == 0 ? PieceKind::kUnused : kind == 1 ? PieceKind::kUserDefined : PieceKind::kNormal;
    };
    const std::string marked = model.options.space_is_mark ? replace_all(text, " ", kSpaceMark) : std::string(text);
    Texts row = characters_of(marked);
    const std::size_t absent = input.below(8);
    for (const std::string& one : std::set<std::string>(row.begin(), row.end())) {
        if (absent != 0 || input.below(4) != 0) add(one, read_kind());
    }
    for (std::size_t left = input.below(48); left > 0 && row.size() > 1; --left) {
        const std::size_t place = input.below(std::min<std::size_t>(row.size() - 1, 65536));
        const std::string a = row[place], b = row[place + 1];
        const bool known = ids.contains(a) && ids.contains(b);
        const bool is_reserved = (a + b).starts_with("<0x") || a + b == "<unk>";
        if (is_reserved || (!model.scored && !known)) continue;
        const TokenId merged = add(a + b, read_kind());
        if (!model.scored) {
            model.merges.push_back({ids.at(a), ids.at(b), merged, static_cast<std::uint32_t>(model.merges.size())});
        }
        Texts rest;
        for (std::size_t i = 0; i < row.size(); ++i) {
            const bool is_pair = i + 1 < row.size() && row[i] == a && row[i + 1] == b;
            rest.push_back(is_pair ? a + b : row[i]);
            i += is_pair ? 1 : 0;
        }
        row = std::move(rest);
    }
    if (model.scored) {
        ScoredMerges scored = merges_of_scores(model.pieces, model.kinds, model.scores);
        model.merges = std::move(scored.rules);
        model.extra_characters = std::move(scored.extra_characters);
    } else if (input.flip()) {
        for (MergeRule& rule : model.merges)
            rule.rank = static_cast<std::uint32_t>(model.merges.size() - 1 - rule.rank);
    }
    return model;
}

// What `normalize` does, by its words: chunks that are kept, replaced or single characters, then spaces.
std::string normalize_slowly(std::string_view text, const Model& model, bool prefix) {
    Texts chunks;
    while (!text.empty()) {
        std::size_t kept = 0, replaced = 0;
        for (std::size_t id = 0; id < model.pieces.size(); ++id) {
            if (model.kinds[id] == PieceKind::kUserDefined && text.starts_with(model.pieces[id]))
                kept = std::max(kept, model.pieces[id].size());
        }
        for (const auto& [key, value] : model.replacements) {
            if (text.starts_with(key)) replaced = std::max(replaced, key.size());
        }
        const std::size_t size = kept != 0 ? kept : replaced != 0 ? replaced : decode_utf8(text, 0).size;
        const std::string chunk(text.substr(0, size));
        chunks.push_back(kept != 0       ? chunk
                         : replaced != 0 ? model.replacements.at(chunk)
                                         : characters_of(chunk).front());
        text.remove_prefix(size);
    }
    const bool collapse = model.options.collapse_spaces;
    while (collapse && !chunks.empty() && chunks.front() == " ") chunks.erase(chunks.begin());
    if (chunks.empty()) return "";
    std::string out = prefix ? " " : "";
    bool after_space = collapse;
    for (std::string chunk : chunks) {
        while (after_space && chunk.starts_with(' ')) chunk.erase(0, 1);
        out += chunk;
        if (!chunk.empty()) after_space = collapse && chunk.ends_with(' ');
    }
    const std::string_view space = model.options.space_is_mark ? kSpaceMark : " ";
    if (model.options.space_is_mark) out = replace_all(out, " ", kSpaceMark);
    while (collapse && out.ends_with(space)) out.resize(out.size() - space.size());
    return out;
}

struct Symbol {
    std::string text;
    bool is_user = false;
};

// SentencePiece: any two neighbours whose texts join to a piece, the one of highest score first.
class ScoredRule {
public:
    explicit ScoredRule(const Model& model) : model_(model) {
        for (std::size_t id = 0; id < model.pieces.size(); ++id) {
            const PieceKind kind = model.kinds[id];
            if (kind == PieceKind::kUnknown) unknown_ = static_cast<TokenId>(id);
            if (kind != PieceKind::kUnknown && kind != PieceKind::kControl)
                ids_.emplace(model.pieces[id], static_cast<TokenId>(id));
        }
    }

    Ids encode(std::string_view original, bool prefix) {
        const std::string text = normalize_slowly(original, model_, prefix && !original.empty());
        symbols_.clear();
        made_of_.clear();
        for (std::string_view rest = text; !rest.empty();) {
            std::string symbol = characters_of(rest.substr(0, decode_utf8(rest, 0).size)).front();
            std::size_t size = decode_utf8(rest, 0).size;
            bool is_user = false;
            for (std::size_t id = 0; id < model_.pieces.size(); ++id) {
                const std::string& piece = model_.pieces[id];
                if (model_.kinds[id] != PieceKind::kUserDefined || !rest.starts_with(piece)) continue;
                if (is_user && piece.size() <= size) continue;
                symbol = piece;
                size = piece.size();
                is_user = true;
            }
            symbols_.push_back({symbol, is_user});
            rest.remove_prefix(size);
        }
        merge();
        Ids out;
        for (const Symbol& symbol : symbols_) emit(symbol.text, out);
        return out;
    }

private:
    // The place in `pieces` that two neighbours merge to.
    std::optional<TokenId> joined(std::size_t i) const {
        if (i + 1 >= symbols_.size() || symbols_[i].is_user || symbols_[i + 1].is_user) return std::nullopt;
        const auto found = ids_.find(symbols_[i].text + symbols_[i + 1].text);
        if (found == ids_.end()) return std::nullopt;
        const PieceKind kind = model_.kinds[found->second];
        const bool merges = kind == PieceKind::kNormal || kind == PieceKind::kUnused;
        return merges ? std::optional(found->second) : std::nullopt;
    }

    // A pair that has come to be may say what a piece that is not given out is made of.
    void propose(std::size_t i) {
        const auto piece = joined(i);
        if (piece && model_.kinds[*piece] == PieceKind::kUnused)
            made_of_[model_.pieces[*piece]] = {symbols_[i].text, symbols_[i + 1].text};
    }

    void merge() {
        for (std::size_t i = 0; i < symbols_.size(); ++i) propose(i);
        for (;;) {
            std::optional<std::size_t> best;
            float score = 0;
            for (std::size_t i = 0; i < symbols_.size(); ++i) {
                const auto piece = joined(i);
                if (!piece || (best && model_.scores[*piece] <= score)) continue;
                best = i;
                score = model_.scores[*piece];
            }
            if (!best) return;
            symbols_[*best].text += symbols_[*best + 1].text;
            symbols_.erase(symbols_.begin() + static_cast<std::ptrdiff_t>(*best) + 1);
            if (*best > 0) propose(*best - 1);
            propose(*best);
        }
    }

    void emit(const std::string& text, Ids& out) const {
        const auto found = ids_.find(text);
        const bool unused = found != ids_.end() && model_.kinds[found->second] == PieceKind::kUnused;
        const auto parts = made_of_.find(text);
        if (unused && parts != made_of_.end()) {
            emit(parts->second.first, out);
            emit(parts->second.second, out);
        } else if (found != ids_.end() && !unused) {
            out.push_back(found->second);
        } else if (model_.options.byte_fallback) {
            constexpr std::string_view digits = "0123456789ABCDEF";
            for (const char c : text) {
                const auto byte = static_cast<std::uint8_t>(c);
                out.push_back(ids_.at(std::string("<0x") + digits[byte / 16] + digits[byte % 16] + '>'));
            }
        } else if (out.empty() || out.back() != unknown_) {
            out.push_back(unknown_);
        }
    }

    const Model& model_;
    std::map<std::string, TokenId> ids_;
    TokenId unknown_ = 0;
    std::vector<Symbol> symbols_;
    std::map<std::string, std::pair<std::string, std::string>> made_of_;
};

// Hugging Face: words, characters or their bytes, merges by rank.
class MergeRules {
public:
    explicit MergeRules(const Model& model) : model_(model) {
        for (std::size_t id = 0; id < model.pieces.size(); ++id) {
            if (model.kinds[id] == PieceKind::kUnknown) unknown_ = static_cast<TokenId>(id);
            ids_.emplace(model.pieces[id], static_cast<TokenId>(id));
        }
        for (const MergeRule& rule : model.merges) {
            auto& known = rules_[{rule.left, rule.right}];
            known = std::max(known, std::pair(rule.rank, rule.merged));  // of equal pairs the last one counts
        }
    }

    Ids encode(std::string_view original, bool with_prefix) const {
        const SentencePieceOptions& options = model_.options;
        const std::string_view space = options.space_is_mark ? kSpaceMark : " ";
        std::string text = normalize_slowly(original, model_, false);
        const bool spaced = options.prefix == SpacePrefix::kUnlessSpace && text.starts_with(space);
        if (with_prefix && !text.empty() && options.prefix != SpacePrefix::kNever && !spaced)
            text.insert(0, space);
        Ids ids;
        std::string word;
        const auto flush = [&] {
            if (!word.empty()) append_word(word, ids);
            word.clear();
        };
        for (const std::string& one : characters_of(text)) {
            if (options.split_words && one == space) flush();
            word += one;
        }
        flush();
        return ids;
    }

private:
    void append_word(const std::string& word, Ids& out) const {
        const auto whole = ids_.find(word);
        if (model_.options.ignore_merges && whole != ids_.end()) return out.push_back(whole->second);
        Ids ids;
        bool waits = false;  // an unknown character, for the next known one
        for (const std::string& one : characters_of(word)) {
            if (const auto known = ids_.find(one); known != ids_.end()) {
                if (waits) ids.push_back(*unknown_);
                waits = false;
                ids.push_back(known->second);
            } else if (const auto bytes = bytes_of(one)) {
                ids.insert(ids.end(), bytes->begin(), bytes->end());
            } else if (unknown_) {
                if (waits && !model_.options.fuse_unknown) ids.push_back(*unknown_);
                waits = true;
            }
        }
        if (waits) ids.push_back(*unknown_);
        for (;;) {
            std::pair best(std::numeric_limits<std::uint32_t>::max(), TokenId{0});
            std::size_t place = 0;
            for (std::size_t i = 0; i + 1 < ids.size(); ++i) {
                const auto found = rules_.find({ids[i], ids[i + 1]});
                if (found == rules_.end() || found->second.first >= best.first) continue;
                best = found->second;
                place = i;
            }
            if (best.first == std::numeric_limits<std::uint32_t>::max()) break;
            ids[place] = best.second;
            ids.erase(ids.begin() + static_cast<std::ptrdiff_t>(place) + 1);
        }
        out.insert(out.end(), ids.begin(), ids.end());
    }

    std::optional<Ids> bytes_of(const std::string& text) const {
        if (!model_.options.byte_fallback) return std::nullopt;
        constexpr std::string_view digits = "0123456789ABCDEF";
        Ids ids;
        for (const char c : text) {
            const auto byte = static_cast<std::uint8_t>(c);
            const auto found = ids_.find(std::string("<0x") + digits[byte / 16] + digits[byte % 16] + '>');
            if (found == ids_.end()) return std::nullopt;
            ids.push_back(found->second);
        }
        return ids;
    }

    const Model& model_;
    std::map<std::string, TokenId> ids_;
    std::optional<TokenId> unknown_;
    std::map<std::pair<TokenId, TokenId>, std::pair<std::uint32_t, TokenId>> rules_;
};

void check_normalize(const Model& model, const std::string& text, bool prefix) {
    PrefixMatcher keep;
    for (std::size_t id = 0; id < model.pieces.size(); ++id) {
        if (model.kinds[id] == PieceKind::kUserDefined) keep.add(model.pieces[id], static_cast<std::uint32_t>(id));
    }
    NormalizeRules rules;
    rules.charsmap = Charsmap(model.options.charsmap);
    rules.collapse_spaces = model.options.collapse_spaces;
    rules.add_prefix = prefix;
    rules.space_is_mark = model.options.space_is_mark;
    std::string expected = normalize_slowly(text, model, prefix);
    if (rules.space_is_mark) expected = replace_all(expected, kSpaceMark, " ");  // a space stays one here
    check(normalize(text, rules, keep) == expected, "text is normalized by the rules");
}

void check_threads(const SentencePieceEncoder& encoder, const Texts& texts, const std::vector<Ids>& expected,
                   unsigned threads) {
    const TokenBatch batch = encoder.encode_batch(views_of(texts), threads, 7);
    std::size_t begin = 0;
    for (std::size_t i = 0; i < texts.size(); ++i) {
        const auto end = static_cast<std::size_t>(batch.offsets.at(i + 1));
        check(end > begin && end <= batch.ids.size() && batch.ids.ids()[end - 1] == 7, "an end follows each text");
        check(std::ranges::equal(batch.ids.ids().subspan(begin, end - 1 - begin), expected[i]),
              "a batch gives its texts' ids");
        begin = end;
    }
    check(begin == batch.ids.size() && batch.offsets.size() == texts.size() + 1, "a batch ends with its texts");
}

// A text that is shared between threads.
void check_large(const SentencePieceEncoder& encoder, std::string_view text, std::size_t seed) {
    Random random(seed);
    std::string large;
    while (large.size() < 600'000) {
        large += text.substr(0, random.below(text.size() + 1));
        large += "a b. c\n"[random.below(8)];
    }
    const Texts texts{large, "", std::string(text), large};
    std::vector<Ids> expected;
    for (const std::string& one : texts) {
        const TokenBuffer ids = encoder.encode(one, true);
        expected.emplace_back(ids.begin(), ids.end());
    }
    for (const unsigned threads : {1U, 3U}) check_threads(encoder, texts, expected, threads);
}

void check_encoder(const Model& model, const Texts& texts, unsigned threads, std::size_t large) {
    SentencePieceOptions scalar = model.options;
    scalar.simd = false;
    std::optional<SentencePieceEncoder> encoder, slow;
    try {
        encoder.emplace(model.pieces, model.kinds, model.extra_characters, model.merges, model.options);
        slow.emplace(model.pieces, model.kinds, model.extra_characters, model.merges, scalar);
    } catch (const std::invalid_argument&) {
        return;  // words that cannot be split
    }
    ScoredRule scored(model);
    const MergeRules merged(model);
    std::vector<Ids> expected;
    for (const std::string& text : texts) {
        const ExactText exact(text);
        for (const bool begins : {false, true}) {
            const bool prefix = begins || model.options.prefix_everywhere;
            const Ids ids = model.scored ? scored.encode(text, prefix && model.options.prefix != SpacePrefix::kNever)
                                         : merged.encode(text, prefix);
            for (int round = 0; round < 2; ++round) {
                check(std::ranges::equal(encoder->encode(exact.view(), begins), ids), "ids are those of the rule");
                check(std::ranges::equal(slow->encode(exact.view(), begins), ids), "and so without vectors");
            }
            check_normalize(model, text, prefix);
            if (begins) expected.push_back(ids);
        }
    }
    check_threads(*encoder, texts, expected, threads);
    if (large == 1) check_large(*encoder, texts[0], texts[0].size());
}

}  // namespace
}  // namespace pylm::tests

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    using namespace pylm::tests;
    FuzzInput input(data, size);
    const std::string learnt = input.text(60).substr(0, 300);
    const Model model = read_model(input, learnt);
    const auto threads = static_cast<unsigned>(1 + input.below(3));
    const std::size_t large = input.below(64);
    const std::string last = input.rest().substr(0, 400);
    check_encoder(model, {last + learnt, last, learnt, ""}, threads, large);
    return 0;
}
