import json
import math
from pathlib import Path

import pyarrow as pa
import pytest

from pylm.data.documents import SCHEMA, FilterName
from pylm.data.filters import RULES, Rule, drop_reasons
from pylm.errors import InputError
from pylm.text import signals

# The thresholds as the papers and datatrove's filters state them, apart from the code.
LIMITS = {
    "gopher_quality": {
        "num_words": (50, 100_000),
        "mean_word_length": (3, 10),
        "hash_word_ratio": (None, 0.1),
        "ellipsis_word_ratio": (None, 0.1),
        "bullet_line_ratio": (None, 0.9),
        "ellipsis_line_ratio": (None, 0.3),
        "alpha_word_ratio": (0.8, None),
        "num_stop_words": (2, None),
    },
    "gopher_repetition": {
        "duplicate_line_ratio": (None, 0.3),
        "duplicate_paragraph_ratio": (None, 0.3),
        "duplicate_line_char_ratio": (None, 0.2),
        "duplicate_paragraph_char_ratio": (None, 0.2),
        "top_2gram_char_ratio": (None, 0.2),
        "top_3gram_char_ratio": (None, 0.18),
        "top_4gram_char_ratio": (None, 0.16),
        "duplicate_5gram_char_ratio": (None, 0.15),
        "duplicate_6gram_char_ratio": (None, 0.14),
        "duplicate_7gram_char_ratio": (None, 0.13),
        "duplicate_8gram_char_ratio": (None, 0.12),
        "duplicate_9gram_char_ratio": (None, 0.11),
        "duplicate_10gram_char_ratio": (None, 0.1),
    },
    "fineweb": {
        "line_punctuation_ratio": (0.12, None),
        "short_line_ratio": (None, 0.67),
        "duplicate_nonblank_line_char_ratio": (None, 0.01),
        "newline_word_ratio": (None, 0.3),
    },
    "code": {
        "num_chars": (100, 1_000_000),
        "max_line_length": (None, 1000),
        "mean_line_length": (None, 100),
        "alphanumeric_ratio": (0.25, None),
    },
}

PROSE = (
    "The river was low that summer, and the boats of the ferrymen lay with their keels in the mud.\n"
    "Nobody in the village could remember a season when so little rain had fallen upon the hills.\n"
    "Children walked to the other bank and came back with their shoes full of sand and small shells.\n"
    "In the evenings old men sat by the bridge to tell each other about floods of long ago.\n"
)


def documents(*texts: str) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist([{"id": str(i), "text": text} for i, text in enumerate(texts)], SCHEMA)


def expected_reason(text: str, names: list[str]) -> str | None:
    values = signals.compute([text]).to_pylist()[0]
    for name in names:
        for signal, (least, most) in LIMITS[name].items():
            if (least is not None and values[signal] < least) or (most is not None and values[signal] > most):
                return f"{name}/{signal}"
    return None


def test_rules_are_the_published_ones() -> None:
    assert list(RULES) == list(LIMITS) == list(FilterName.__args__)
    for name, rules in RULES.items():
        stated = {
            rule.signal: tuple(None if math.isinf(x) else x for x in (rule.at_least, rule.at_most))
            for rule in rules
        }
        assert list(stated.items()) == list(LIMITS[name].items())
        assert {rule.signal for rule in rules} <= set(signals.NAMES)


EXAMPLES = {
    "gopher_quality": {
        "too few": ("Just the few words that are in here.", "num_words"),
        "short words": ("a b c d the and " * 20, "mean_word_length"),
        "long words": ("incomprehensibilities the and " + "incomprehensibilities " * 60, "mean_word_length"),
        "hashes": (PROSE + "# " * 12, "hash_word_ratio"),
        "bullets": ("".join(f"- {line}\n" for line in PROSE.splitlines()), "bullet_line_ratio"),
        "ellipses": (PROSE.replace(".\n", "...\n"), "ellipsis_line_ratio"),
        "numbers": (PROSE + "1234 " * 40, "alpha_word_ratio"),
        "no prose": ("alpha beta gamma delta " * 20, "num_stop_words"),
    },
    "gopher_repetition": {
        "lines": (PROSE + "Again and again.\n" * 4, "duplicate_line_ratio"),
        "paragraphs": ("one two three\n\nfour five six\n\nfour five six\n\n" * 2, "duplicate_line_ratio"),
        "phrases": (PROSE.replace("\n", " ") * 3, "duplicate_5gram_char_ratio"),
    },
    "fineweb": {
        "no ends": (PROSE.replace(".\n", "\n"), "line_punctuation_ratio"),
        "short lines": (PROSE + "Yes.\n" + "No.\nMaybe.\n" * 8, "short_line_ratio"),
        "repeats": (PROSE + PROSE, "duplicate_nonblank_line_char_ratio"),
        "list": (PROSE + "\n" * 40, "newline_word_ratio"),
    },
    "code": {
        "short": ("x = 1\n", "num_chars"),
        "long line": ("x = 1\n" * 20 + "y" * 1001, "max_line_length"),
        "long lines": (("y" * 101 + "\n") * 3, "mean_line_length"),
        "symbols": ("(((((((((((((\n" * 20, "alphanumeric_ratio"),
    },
}


@pytest.mark.parametrize("name", LIMITS)
def test_reasons(name: str) -> None:
    cases = EXAMPLES[name]
    batch = documents(PROSE, *(text for text, _ in cases.values()))
    reasons = drop_reasons(batch, [name])
    assert reasons.type == pa.string()
    assert reasons.to_pylist() == [None, *(f"{name}/{signal}" for _, signal in cases.values())]


def test_the_first_broken_rule_is_the_reason() -> None:
    names = ["code", "gopher_quality", "fineweb", "gopher_repetition"]
    texts = [
        PROSE,
        *(text for cases in EXAMPLES.values() for text, _ in cases.values()),
        "",
        " \n",
        "é" * 3000,
    ]
    for order in (names, names[::-1], names[1:3]):
        assert drop_reasons(documents(*texts), order).to_pylist() == [
            expected_reason(x, order) for x in texts
        ]


def test_bounds_belong_to_what_passes() -> None:
    rule = Rule("num_chars", at_least=100, at_most=1000)
    texts = ["x " * 50, ("x " * 50)[:-1], "x" * 100, "x" * 101]
    reasons = drop_reasons(documents(*texts), ["code"]).to_pylist()
    assert reasons == [None, "code/num_chars", None, "code/mean_line_length"]
    values = pa.array([99, 100, 1000, 1001, math.nan, math.inf]).to_numpy()
    assert rule.fails(values).tolist() == [True, False, False, True, False, True]


def test_no_rules_and_no_documents() -> None:
    assert drop_reasons(documents("a", "b"), []).to_pylist() == [None, None]
    empty = drop_reasons(documents(), ["code", "fineweb"])
    assert empty.to_pylist() == []
    assert empty.type == pa.string()


def test_unknown_filter() -> None:
    with pytest.raises(InputError, match="no filter 'gopher'; there are gopher_quality, gopher_repetition"):
        drop_reasons(documents("a"), ["gopher"])


def test_real_rows(shared_data: Path) -> None:
    lines = (shared_data / "text" / "c4_demo.jsonl").read_text("utf-8").splitlines()[:150]
    texts = [json.loads(line)["text"] for line in lines]
    names = ["gopher_quality", "gopher_repetition", "fineweb"]
    expected = [expected_reason(text, names) for text in texts]
    assert len(set(expected)) > 5
    assert drop_reasons(documents(*texts), names).to_pylist() == expected
