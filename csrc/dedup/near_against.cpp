#include <algorithm>
#include <numeric>
#include <stdexcept>
#include <utility>

#include "dedup/exact.hpp"
#include "dedup/near.hpp"
#include "dedup/near_stages.hpp"
#include "dedup/shingle.hpp"
#include "parallel.hpp"

namespace pylm::dedup {
namespace {

// Results of texts in order of preference, which come after known documents.
class AgainstResult {
public:
    AgainstResult(std::size_t num_texts, const KnownDocuments& known, bool among)
        : known_(known), among_(among), own_(num_texts), has_shingles_(num_texts, 0) {
        result_.representative.resize(num_texts);
        std::iota(result_.representative.begin(), result_.representative.end(), std::int64_t{0});
        result_.document.assign(num_texts, -1);
        result_.similarity.assign(num_texts, 1.0);
    }

    void join(std::size_t text, std::uint32_t document, double similarity) {
        result_.representative[text] = -1;
        result_.document[text] = document;
        result_.similarity[text] = similarity;
    }

    void assign(const Ranked& ranked, const Assignment& assignment) {
        const std::size_t num_known = assignment.touched.size();
        for (std::size_t rank = 0; rank < ranked.text.size(); ++rank) {
            const std::size_t text = ranked.text[rank];
            has_shingles_[text] = 1;
            const std::size_t owner = assignment.owner[num_known + rank];
            const double similarity = assignment.similarity[num_known + rank];
            if (owner < num_known) {
                join(text, assignment.touched.documents[owner], similarity);
                own_[text] = assignment.touched.documents[owner];
            } else {
                const std::size_t kept = ranked.text[owner - num_known];
                result_.representative[text] = static_cast<std::int64_t>(kept);
                result_.similarity[text] = similarity;
                own_[text] = kept == text ? next_document() : own_[kept];
            }
            if (kept_now(text)) result_.kept.push_back(text);
        }
    }

    // Texts that equal an earlier one.
    void copy(std::span<const std::int64_t> first) {
        for (std::size_t i = 0; i < first.size(); ++i) {
            const auto equal = static_cast<std::size_t>(first[i]);
            const bool is_known = result_.document[equal] >= 0;
            if (equal == i || (!is_known && has_shingles_[equal] == 0)) continue;
            result_.representative[i] = result_.representative[equal];
            result_.document[i] = result_.document[equal];
            result_.similarity[i] = result_.similarity[equal];
        }
    }

    // What makes the ranked texts known.
    void remember(const Ranked& ranked, const Assignment& assignment, std::span<const Hash128> hashes,
                  std::size_t bands) {
        for (std::size_t rank = 0; rank < ranked.text.size(); ++rank) {
            const std::size_t text = ranked.text[rank];
            const auto document = static_cast<std::uint32_t>(own_[text]);
            for (std::size_t place = rank * bands; place < (rank + 1) * bands; ++place) {
                if (assignment.is_new[place] != 0) result_.keys.push_back({ranked.keys[place], document});
            }
            result_.hashes.push_back({hashes[text], {document, kept_now(text)}});
        }
    }

    NearAgainst take() { return std::move(result_); }

private:
    bool kept_now(std::size_t text) const {
        return among_ && result_.representative[text] == static_cast<std::int64_t>(text);
    }
    std::uint64_t next_document() const {
        const std::size_t document = known_.size() + result_.kept.size();
        if (among_ && document >= KnownText::none)
            throw std::invalid_argument("an index holds at most 2^32 - 1 documents");
        return document;
    }

    const KnownDocuments& known_;
    bool among_;
    std::vector<std::uint64_t> own_;      // the document that stands for a text, one that is known or a new one
    std::vector<std::uint8_t> has_shingles_;
    NearAgainst result_;
};

// Of texts in order of preference.
NearAgainst find_near_against(std::span<const std::string_view> texts, std::span<const std::string_view> shingled,
                              const MinHasher& hasher, const NearOptions& options, const Against& against) {
    const KnownDocuments& known = *against.known;
    const std::vector<std::int64_t> first = exact_duplicates(texts, options.num_threads);
    const std::vector<std::size_t> distinct = list_distinct(texts, first);
    std::vector<Hash128> hashes(texts.size());
    const auto in_blocks = [&](std::size_t count, auto&& call) {
        parallel_for((count + kNearBlock - 1) / kNearBlock, options.num_threads,
                     [&](std::size_t task) { call(task * kNearBlock, std::min(count, (task + 1) * kNearBlock)); });
    };
    std::vector<Hash128> distinct_hashes(distinct.size());
    in_blocks(distinct.size(), [&](std::size_t begin, std::size_t end) {
        for (std::size_t i = begin; i < end; ++i)
            hashes[distinct[i]] = distinct_hashes[i] = hash128(texts[distinct[i]]);
    });
    const std::vector<KnownText> equal = known.find_texts(distinct_hashes, options.num_threads);

    AgainstResult result(texts.size(), known, against.among);
    std::vector<std::size_t> strangers;
    std::vector<std::size_t> stood_for;  // equal a text that is no document itself
    for (std::size_t i = 0; i < distinct.size(); ++i) {
        if (equal[i].document == KnownText::none) {
            strangers.push_back(distinct[i]);
        } else {
            result.join(distinct[i], equal[i].document, 1.0);
            if (!equal[i].is_own) stood_for.push_back(i);
        }
    }
    std::vector<double> similarities(stood_for.size());
    in_blocks(stood_for.size(), [&](std::size_t begin, std::size_t end) {
        Shingler shingler(options.rule, options.level);
        MinHasher::Scratch scratch;
        std::vector<std::uint64_t> signature(hasher.num_perm());
        for (std::size_t i = begin; i < end; ++i) {
            const auto set = shingler.distinct(shingled[distinct[stood_for[i]]]);
            if (known.compares_signatures()) hasher.sign(set, signature, scratch);
            similarities[i] = known.similarity(equal[stood_for[i]].document, set, signature, options.threshold);
        }
    });
    for (std::size_t i = 0; i < stood_for.size(); ++i)
        result.join(distinct[stood_for[i]], equal[stood_for[i]].document, similarities[i]);

    const Ranked ranked = rank_and_sign(strangers, shingled, hasher, options);
    const Assignment assignment = assign(shingled, ranked, hasher, options, against);
    result.assign(ranked, assignment);
    result.copy(first);
    if (against.among) result.remember(ranked, assignment, hashes, options.bands);
    return result.take();
}

}  // namespace

NearAgainst near_against(std::span<const std::string_view> texts, std::span<const std::string_view> shingled,
                         const MinHasher& hasher, const NearOptions& options, const KnownDocuments& known, bool among) {
    check_near(texts, shingled, hasher, options);
    if (!options.verify) throw std::invalid_argument("texts are verified against known documents");
    if (options.keep == Keep::kFirst) return find_near_against(texts, shingled, hasher, options, {&known, among});

    const Ordered ordered(texts, shingled, options);
    const NearAgainst found = find_near_against(ordered.texts(), ordered.shingled(), hasher, options, {&known, among});
    NearAgainst result = found;
    for (std::size_t i = 0; i < texts.size(); ++i) {
        const std::int64_t kept = found.representative[i];
        const std::size_t index = ordered.index(i);
        result.representative[index] =
            kept < 0 ? kept : static_cast<std::int64_t>(ordered.index(static_cast<std::size_t>(kept)));
        result.document[index] = found.document[i];
        result.similarity[index] = found.similarity[i];
    }
    for (std::size_t& text : result.kept) text = ordered.index(text);
    return result;
}

}  // namespace pylm::dedup
