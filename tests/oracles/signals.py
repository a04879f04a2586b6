"""Quality signals by their definitions, slow and obvious. Words are given."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache

import regex

STOP_WORDS = ["the", "be", "to", "of", "and", "that", "have", "with"]
POLICIES = [
    "terms of use",
    "privacy policy",
    "cookie policy",
    "uses cookies",
    "use of cookies",
    "use cookies",
]

# Sentence ends: Unicode 15's, with three Khmer signs. Punctuation: those, ASCII's, control characters but tab
# and line feed, and a list of others.
NEWER = (
    "\u1b4e\u1b4f\u1b7f\u2024\u2cf9\u2cfa\u2cfb\u2e60\u2e61\ufe12\ufe15\ufe16"
    "\U000113d4\U000113d5\U00016d6e\U00016d6f"
)
LISTED = (
    "«´»–—’“”„…∶━►、。〈〉《》「」【】！％（），．１：；？～"  # noqa: RUF001
    "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"
)


@lru_cache(None)
def is_terminal(char: str) -> bool:
    if char in NEWER:
        return False
    return char in "\u17d6\u17d9\u17da" or regex.match(r"\p{Sentence_Terminal}", char) is not None


@lru_cache(None)
def is_punctuation(char: str) -> bool:
    control = ord(char) < 32 or 127 <= ord(char) < 160
    return (control and char not in "\t\n") or char in LISTED or is_terminal(char)


def ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def repeats(items: Sequence[str]) -> tuple[int, int]:
    """Number of items that stood before, and their characters."""
    seen: set[str] = set()
    count = chars = 0
    for item in items:
        if item in seen:
            count, chars = count + 1, chars + len(item)
        seen.add(item)
    return count, chars


def top_ngram(words: list[str], n: int) -> int:
    """Characters of the most frequent n-gram, the first of equals, in all its occurrences."""
    grams = [" ".join(words[i : i + n]) for i in range(len(words) - n + 1)]
    if not grams:
        return 0
    counts = Counter(grams)
    best = max(grams, key=lambda gram: counts[gram])
    return len(best) * counts[best]


def duplicate_ngrams(words: list[str], n: int) -> int:
    """Characters of n-grams that stood before; one that did is skipped whole."""
    seen: set[str] = set()
    chars = i = 0
    while i + n <= len(words):
        gram = "".join(words[i : i + n])
        if gram in seen:
            chars += len(gram)
            i += n
        else:
            seen.add(gram)
            i += 1
    return chars


def num_sentences(words: list[str]) -> int:
    """Runs of words; one ends at a word or mark that is one terminal mark, once a word follows."""
    sentences = 0
    begins = True
    for word in words:
        if not all(map(is_punctuation, word)) and begins:
            sentences += 1
            begins = False
        begins = begins or (len(word) == 1 and is_terminal(word))
    return sentences


def compute(text: str, tokens: list[str]) -> dict[str, float]:
    """All signals of a text that consists of these words and punctuation marks."""
    words = [token for token in tokens if not all(map(is_punctuation, token))]
    lines = text.splitlines()
    filled = [line for line in text.split("\n") if line.strip()]
    gopher_lines = re.split("\n+", text) if text else []
    paragraphs = re.split("\n{2,}", text.strip()) if text.strip() else []
    line_repeats, line_repeat_chars = repeats(gopher_lines)
    paragraph_repeats, paragraph_repeat_chars = repeats(paragraphs)
    lower_lines = [re.sub("[A-Z]", lambda match: match[0].lower(), line) for line in lines]

    def share(items: Sequence[str], holds: Callable[[str], bool]) -> float:
        return ratio(sum(1 for item in items if holds(item)), len(items))

    return {
        "num_bytes": len(text.encode()),
        "num_chars": len(text),
        "num_lines": len(lines),
        "num_paragraphs": len(paragraphs),
        "num_words": len(words),
        "num_marks": len(tokens) - len(words),
        "num_sentences": num_sentences(tokens),
        "num_stop_words": sum(word in tokens for word in STOP_WORDS),
        "max_line_length": max(map(len, lines), default=0),
        "max_part_length": max(map(len, text.split()), default=0),
        "num_curly_brackets": text.count("{"),
        "num_lorem_ipsum": sum(line.count("lorem ipsum") for line in lower_lines),
        "num_javascript_lines": sum("javascript" in line for line in lower_lines),
        "num_policy_lines": sum(any(policy in line for policy in POLICIES) for line in lower_lines),
        "mean_word_length": ratio(sum(map(len, words)), len(words)),
        "unique_word_ratio": ratio(len(set(words)), len(words)),
        "hash_word_ratio": ratio(text.count("#"), len(tokens)),
        "ellipsis_word_ratio": ratio(text.count("...") + text.count("…"), len(tokens)),
        "alpha_word_ratio": share(tokens, lambda token: any(map(str.isalpha, token))),
        "newline_word_ratio": ratio(text.count("\n"), len(tokens)),
        "mean_line_length": ratio(sum(map(len, lines)), len(lines)),
        "bullet_line_ratio": share(lines, lambda line: line.lstrip().startswith(("•", "-"))),
        "ellipsis_line_ratio": share(lines, lambda line: line.rstrip().endswith(("...", "…"))),
        "terminal_line_ratio": share(
            lines,
            lambda line: (
                line.rstrip().endswith((".", "?", "!", '"', "'")) and not line.rstrip().endswith("...")
            ),
        ),
        "line_punctuation_ratio": share(filled, lambda line: is_terminal(line[-1])),
        "short_line_ratio": share(filled, lambda line: len(line) <= 30),
        "alphanumeric_ratio": share(text, str.isalnum),
        "uppercase_ratio": share(text, lambda char: char.isalpha() and char.lower() != char),
        "digit_ratio": share(text, lambda char: char in "0123456789"),
        "whitespace_ratio": share(text, str.isspace),
        "punctuation_ratio": share(text, is_punctuation),
        "duplicate_line_ratio": ratio(line_repeats, len(gopher_lines)),
        "duplicate_line_char_ratio": ratio(line_repeat_chars, len(text)),
        "duplicate_nonblank_line_char_ratio": ratio(repeats(filled)[1], len(text.replace("\n", ""))),
        "duplicate_paragraph_ratio": ratio(paragraph_repeats, len(paragraphs)),
        "duplicate_paragraph_char_ratio": ratio(paragraph_repeat_chars, len(text)),
        **{f"top_{n}gram_char_ratio": ratio(top_ngram(tokens, n), len(text)) for n in (2, 3, 4)},
        **{
            f"duplicate_{n}gram_char_ratio": ratio(duplicate_ngrams(tokens, n), len(text))
            for n in range(5, 11)
        },
    }
