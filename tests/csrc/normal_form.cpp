// Normal forms: what is known of single characters, invariants on hostile and huge texts, many texts at once.
// `tests/text/test_normalizers.py` compares them with those of Python.
#include "text/normal_form.hpp"

#include <array>
#include <list>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "check.hpp"

namespace pylm::tests {
namespace {

constexpr std::array kForms = {NormalForm::kNfc, NormalForm::kNfd, NormalForm::kNfkc, NormalForm::kNfkd};

std::string form_of(std::string_view text, NormalForm form) {
    return normalize(text, form).value_or(std::string(text));
}

void check_known() {
    check(!normalize("plain, \u00c9\u00c5, \u65e5\u672c\u8a9e, \uac00\uac01", NormalForm::kNfc), "stays");
    check(form_of("e\u0301\u0323", NormalForm::kNfc) == "\u1eb9\u0301", "marks are put in order, then joined");
    check(form_of("\u1100\u1161\u11a8\u11a8", NormalForm::kNfc) == "\uac01\u11a8", "letters make syllables");
    check(form_of("\uac01", NormalForm::kNfd) == "\u1100\u1161\u11a8", "and syllables come apart");
    check(form_of("\ufb01\u2460", NormalForm::kNfkc) == "fi1", "what is compatible is replaced");
    check(form_of("\ufb01\u2460", NormalForm::kNfkd) == "fi1", "in both forms");
    check(form_of("\u0344", NormalForm::kNfc) == "\u0308\u0301", "what is excluded comes apart");
    check(form_of("e\xff\u0301", NormalForm::kNfc) == "e\xff\u0301", "nothing joins across a damaged byte");
    check(form_of("\xff" "e\u0301\xed\xa0\x80", NormalForm::kNfc) == "\xff\u00e9\xed\xa0\x80", "which stays");
    check(throws<std::invalid_argument>([] { (void)parse_normal_form("NFX"); }), "unknown names are refused");
}

// Parts whose neighbours matter: marks of several classes, letters that join, what has several of each inside.
std::string random_text(Random& random, std::size_t num_parts) {
    static constexpr std::array<std::string_view, 24> kParts = {
        "a",      "e",      " ",      "<",      "\u0301", "\u0323", "\u0338", "\u0345",
        "\u0344", "\u1100", "\u1161", "\u11a8", "\uac00", "\u09c7", "\u09be", "\U00011131",
        "\u212b", "\ufb01", "\u1ec7", "\u0f73", "\xff",   "\xcc",   "\xe1\x85", "\U0001d160"};
    std::string text;
    for (std::size_t i = 0; i < num_parts; ++i) text += kParts[random.below(kParts.size())];
    return text;
}

void check_invariants(const std::string& text, Random& random) {
    for (const NormalForm form : kForms) {
        const std::string whole = form_of(text, form);
        check(!normalize(whole, form), "a normal form is its own");
        const std::size_t cut = next_normal_border(text, random.below(text.size() + 1), form);
        check(form_of(text.substr(0, cut), form) + form_of(text.substr(cut), form) == whole, "borders are safe");
    }
    check(form_of(form_of(text, NormalForm::kNfd), NormalForm::kNfc) == form_of(text, NormalForm::kNfc), "NFC");
    check(form_of(form_of(text, NormalForm::kNfc), NormalForm::kNfd) == form_of(text, NormalForm::kNfd), "NFD");
    check(form_of(form_of(text, NormalForm::kNfkd), NormalForm::kNfkc) == form_of(text, NormalForm::kNfkc), "NFKC");
}

void check_many(Random& random) {
    std::vector<std::string> texts = huge_texts((std::size_t{1} << 20) + 12345);
    for (std::size_t i = 0; i < 300; ++i) texts.push_back(random_text(random, random.below(40)));
    std::string& long_one = texts.emplace_back();
    while (long_one.size() < (std::size_t{5} << 19)) long_one += random_text(random, 1 + random.below(2000));
    texts.emplace_back((std::size_t{3} << 20), 'e').insert(std::size_t{1} << 21, "\u0301");
    std::string marks;
    while (marks.size() < (std::size_t{1} << 20) + 7) marks += "\u0323\u0301";
    texts.push_back("e" + marks);
    for (const NormalForm form : kForms) {
        for (const unsigned threads : {1U, 4U}) {
            std::list<std::string> kept;
            const std::vector<std::string> copies = texts;
            const auto views = normalize_all(views_of(copies), form, kept, threads);
            check(views.size() == texts.size(), "a view for each");
            for (std::size_t i = 0; i < texts.size(); ++i)
                check(views[i] == form_of(texts[i], form), "many texts are normalized as each alone");
        }
    }
}

}  // namespace

void test_normal_form() {
    check_known();
    Random random(11);
    for (const std::string& text : hostile_texts()) check_invariants(text, random);
    for (const std::string& text : huge_texts(1 << 12)) check_invariants(text, random);
    for (std::size_t i = 0; i < 5000; ++i) check_invariants(random_text(random, random.below(16)), random);
    check_many(random);
}

}  // namespace pylm::tests
