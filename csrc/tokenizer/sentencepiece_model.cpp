#include "tokenizer/sentencepiece_model.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <functional>
#include <map>
#include <stdexcept>
#include <unordered_map>
#include <unordered_set>

#include "text/unicode.hpp"

namespace pylm {

namespace {

[[noreturn]] void fail(const std::string& where, const std::string& what) {
    throw std::invalid_argument(where + ": " + what);
}

// The wire format of protocol buffers (https://protobuf.dev/programming-guides/encoding): fields one after
// another, each a number, a wire type and a value. Fields that nobody asks for are passed over.
class Message {
  public:
    Message(std::string_view bytes, std::string where) : rest_(bytes), where_(std::move(where)) {}

    // Go to the next field; false at the end.
    bool next() {
        if (rest_.empty()) return false;
        const std::uint64_t tag = varint();
        field_ = tag >> 3;
        wire_ = static_cast<unsigned>(tag & 7);
        if (field_ == 0 || field_ > (1U << 29) - 1) {
            fail(where_, "field number " + std::to_string(field_) + " is out of range");
        }
        switch (wire_) {
            case 0: number_ = varint(); break;
            case 1: take(8); break;
            case 2: {
                const std::uint64_t size = varint();
                if (size > rest_.size()) {
                    fail(where_, "field " + std::to_string(field_) + " has a length of " +
                                     std::to_string(size) + " bytes, but " + std::to_string(rest_.size()) +
                                     " are left");
                }
                take(static_cast<std::size_t>(size));
                break;
            }
            case 5: take(4); break;
            default:
                fail(where_, "field " + std::to_string(field_) + " has the unknown wire type " +
                                 std::to_string(wire_));
        }
        return true;
    }

    std::uint64_t field() const noexcept { return field_; }

    std::uint64_t number(const char* name) const {
        expect(0, name);
        return number_;
    }

    std::string_view bytes(const char* name) const {
        expect(2, name);
        return value_;
    }

    float real(const char* name) const {
        expect(5, name);
        std::uint32_t bits = 0;
        for (std::size_t i = 0; i < 4; ++i) bits |= std::uint32_t{static_cast<std::uint8_t>(value_[i])} << (8 * i);
        return std::bit_cast<float>(bits);
    }

  private:
    void expect(unsigned wire, const char* name) const {
        if (wire_ != wire) fail(where_, std::string(name) + " has the wire type " + std::to_string(wire_));
    }

    void take(std::size_t size) {
        if (size > rest_.size()) fail(where_, "field " + std::to_string(field_) + " is cut off");
        value_ = rest_.substr(0, size);
        rest_.remove_prefix(size);
    }

    std::uint64_t varint() {
        std::uint64_t value = 0;
        for (unsigned shift = 0; shift < 64; shift += 7) {
            if (rest_.empty()) fail(where_, "cut off within a number");
            const auto byte = static_cast<std::uint8_t>(rest_.front());
            rest_.remove_prefix(1);
            value |= static_cast<std::uint64_t>(byte & 0x7F) << shift;
            if (byte < 0x80) return value;
        }
        fail(where_, "a number of more than ten bytes");
    }

    std::string_view rest_, value_;
    std::string where_;
    std::uint64_t field_ = 0, number_ = 0;
    unsigned wire_ = 0;
};

bool is_utf8(std::string_view text) noexcept {
    for (std::size_t i = 0; i < text.size();) {
        const Decoded decoded = decode_utf8(text, i);
        if (decoded.point == 0xFFFD && decoded.size == 1) return false;
        i += decoded.size;
    }
    return true;
}

SentencePieceModel::Piece read_piece(std::string_view bytes, std::size_t index) {
    const std::string where = "piece " + std::to_string(index);
    SentencePieceModel::Piece piece;
    Message message(bytes, where);
    while (message.next()) {
        if (message.field() == 1) {
            piece.text = message.bytes("piece");
        } else if (message.field() == 2) {
            piece.score = message.real("score");
        } else if (message.field() == 3) {
            const std::uint64_t kind = message.number("type");
            if (kind < 1 || kind > 6) fail(where, "unknown type " + std::to_string(kind));
            piece.kind = static_cast<PieceKind>(kind);
        }
    }
    if (piece.text.empty()) fail(where, "the text is empty");
    if (!is_utf8(piece.text)) fail(where, "the text is not UTF-8");
    if (!std::isfinite(piece.score)) fail(where, "the score is not finite");
    return piece;
}

void read_trainer(std::string_view bytes, SentencePieceModel& model, std::uint64_t& type) {
    Message message(bytes, "trainer_spec");
    while (message.next()) {
        if (message.field() == 3) type = message.number("model_type");
        if (message.field() == 24 && message.number("treat_whitespace_as_suffix") != 0) {
            fail("trainer_spec", "treat_whitespace_as_suffix is not supported; expected spaces before words");
        }
        if (message.field() == 35) model.byte_fallback = message.number("byte_fallback") != 0;
    }
}

void read_normalizer(std::string_view bytes, SentencePieceModel& model) {
    Message message(bytes, "normalizer_spec");
    while (message.next()) {
        if (message.field() == 2) model.charsmap = message.bytes("precompiled_charsmap");
        if (message.field() == 3) model.add_dummy_prefix = message.number("add_dummy_prefix") != 0;
        if (message.field() == 4) {
            model.remove_extra_whitespaces = message.number("remove_extra_whitespaces") != 0;
        }
        if (message.field() == 5) model.escape_whitespaces = message.number("escape_whitespaces") != 0;
    }
}

void read_denormalizer(std::string_view bytes) {
    Message message(bytes, "denormalizer_spec");
    while (message.next()) {
        if (message.field() == 2 && !message.bytes("precompiled_charsmap").empty()) {
            fail("denormalizer_spec", "rules for decoding are not supported; expected none");
        }
    }
}

void check_pieces(const SentencePieceModel& model) {
    std::unordered_set<std::string_view> seen;
    std::array<bool, 256> bytes{};
    bool unknown = false;
    for (std::size_t i = 0; i < model.pieces.size(); ++i) {
        const auto& piece = model.pieces[i];
        const std::string where = "piece " + std::to_string(i) + " (" + piece.text.substr(0, 40) + ")";
        if (!seen.insert(piece.text).second) fail(where, "occurs twice");
        if (piece.kind == PieceKind::kUnknown) {
            if (unknown) fail(where, "a second piece of type UNKNOWN");
            unknown = true;
        }
        if (piece.kind != PieceKind::kByte) continue;
        const auto byte = byte_of_piece(piece.text);
        if (!byte) fail(where, "a piece of type BYTE must be written <0x00> to <0xFF>");
        if (!model.byte_fallback) fail(where, "a piece of type BYTE, but byte_fallback is off");
        bytes[*byte] = true;
    }
    if (model.pieces.empty()) fail("pieces", "there are none");
    if (!unknown) fail("pieces", "none is of type UNKNOWN");
    if (model.byte_fallback) {
        for (std::size_t byte = 0; byte < 256; ++byte) {
            if (!bytes[byte]) fail("pieces", "byte_fallback is on, but byte " + std::to_string(byte) + " has no piece");
        }
    }
}

}  // namespace

std::optional<std::uint8_t> byte_of_piece(std::string_view text) noexcept {
    if (text.size() != 6 || text.substr(0, 3) != "<0x" || text[5] != '>') return std::nullopt;
    unsigned value = 0;
    for (const char c : text.substr(3, 2)) {
        const bool digit = c >= '0' && c <= '9';
        if (!digit && (c < 'A' || c > 'F')) return std::nullopt;
        value = value * 16 + static_cast<unsigned>(digit ? c - '0' : c - 'A' + 10);
    }
    return static_cast<std::uint8_t>(value);
}

SentencePieceModel parse_sentencepiece_model(std::string_view file) {
    SentencePieceModel model;
    std::uint64_t type = 1;  // the default of the format: UNIGRAM
    Message message(file, "model");
    while (message.next()) {
        switch (message.field()) {
            case 1: model.pieces.push_back(read_piece(message.bytes("pieces"), model.pieces.size())); break;
            case 2: read_trainer(message.bytes("trainer_spec"), model, type); break;
            case 3: read_normalizer(message.bytes("normalizer_spec"), model); break;
            case 5: read_denormalizer(message.bytes("denormalizer_spec")); break;
            default: break;
        }
    }
    if (type != 2) {
        const char* names[] = {"UNIGRAM", "BPE", "WORD", "CHAR"};
        fail("trainer_spec", "model_type is " +
                                 (type >= 1 && type <= 4 ? std::string(names[type - 1]) : std::to_string(type)) +
                                 "; expected BPE");
    }
    check_pieces(model);
    return model;
}

ScoredMerges merges_of_scores(std::span<const std::string> texts, std::span<const PieceKind> kinds,
                              std::span<const float> scores) {
    const auto is_merged = [&](std::size_t id) {
        return kinds[id] == PieceKind::kNormal || kinds[id] == PieceKind::kUnused;
    };
    std::unordered_map<std::string_view, TokenId> ids;
    std::size_t longest = 0;
    for (std::size_t id = 0; id < texts.size(); ++id) {
        if (!is_merged(id)) continue;
        ids.emplace(texts[id], static_cast<TokenId>(id));
        longest = std::max(longest, texts[id].size());
    }
    std::vector<bool> has_length(longest + 1);  // keeps absurdly long pieces from costing their square
    for (const auto& [text, id] : ids) has_length[text.size()] = true;
    for (std::size_t size = 1; size <= std::min<std::size_t>(4, longest); ++size) has_length[size] = true;

    std::map<float, std::uint32_t, std::greater<>> ranks;
    for (std::size_t id = 0; id < texts.size(); ++id) {
        if (is_merged(id)) ranks.emplace(scores[id], 0);
    }
    std::uint32_t next_rank = 0;
    for (auto& [score, rank] : ranks) rank = next_rank++;

    ScoredMerges merges;
    std::map<std::string_view, TokenId> extra;
    const auto symbol = [&](std::string_view text) -> std::optional<TokenId> {
        if (!has_length[text.size()]) return std::nullopt;
        const auto found = ids.find(text);
        if (found != ids.end()) return found->second;
        if (decode_utf8(text, 0).size != text.size()) return std::nullopt;
        const auto id = static_cast<TokenId>(texts.size() + extra.size());
        return extra.emplace(text, id).first->second;
    };
    for (std::size_t id = 0; id < texts.size(); ++id) {
        if (!is_merged(id)) continue;
        const std::string_view text = texts[id];
        for (std::size_t cut = decode_utf8(text, 0).size; cut < text.size(); cut += decode_utf8(text, cut).size) {
            if (!has_length[cut] || !has_length[text.size() - cut]) continue;
            const auto left = symbol(text.substr(0, cut));
            if (!left) continue;
            const auto right = symbol(text.substr(cut));
            if (right) {
                merges.rules.push_back({*left, *right, static_cast<TokenId>(id), ranks.at(scores[id])});
            }
        }
    }
    std::stable_sort(merges.rules.begin(), merges.rules.end(),
                     [](const MergeRule& a, const MergeRule& b) { return a.rank < b.rank; });
    merges.extra_characters.resize(extra.size());
    for (const auto& [text, id] : extra) merges.extra_characters[id - texts.size()] = text;
    return merges;
}

}  // namespace pylm
