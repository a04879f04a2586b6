"""Quality signals against their definitions, and words against spaCy's."""

import json
import math
import random
import sys
import unicodedata

import oracles.signals as oracle
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pylm import _core, signals
from pylm.data import filters
from pylm.errors import InputError

# Both sides divide whole numbers below 2^53 once, correctly rounded: results are equal, not close.


def words_of(text: str) -> list[str]:
    return [token.decode() for token in _core.signal_tokens(text)]


def assert_same(texts: list[str]) -> None:
    rows = signals.compute(texts).to_pylist()
    assert len(rows) == len(texts)
    for text, row in zip(texts, rows, strict=True):
        assert row == oracle.compute(text, words_of(text)), repr(text[:200])


def make_text(rng: random.Random, vocabulary: list[str]) -> str:
    """Words and marks, with lines, paragraphs and runs of words that return."""
    parts: list[str] = []
    for _ in range(rng.randrange(60)):
        kind = rng.random()
        if kind < 0.25 and parts:
            start = rng.randrange(len(parts))
            parts += parts[start : start + rng.randrange(1, 40)]
        else:
            parts += [rng.choice(vocabulary), rng.choice([" ", " ", " ", "\n", "\n\n", "  ", "\t", ". "])]
    return "".join(parts)


EDGES = [
    "",
    " ",
    "\n",
    "\n\n",
    "\n\n\na\n\n\na\n",
    "a\n",
    "\na",
    "a\n\nb\n\na\n\n\nb",
    "a\r\nb\rc\vd\fe\x1cf\x85g\u2028h\u2029i",
    "\r\n\r\n",
    " \n \n x\n x",
    "\u00a0- bullet\n\u2003• bullet\n-\n•\n—",
    "one...\ntwo… \nthree....\n...\n… …\nfour.. .",
    "......#...#",
    "...........",
    "{ lorem ipsum LOREM Ipsum lorem\nipsum } {{",
    "JavaScript javascript\njava script\nTERMS OF USE and privacy policy\nuses cookies.\nUse cookies",
    "javascrip",
    "a b c d e f g h i j k l a b c d e f g h i j k l a b",
    "a b c d e a b c d e a b c d e a b c d e",
    "ab c d e f g " + "a bc d e f g",  # equal 5-grams and up once joined, though cut elsewhere
    "x " * 500,
    "end? “Yes!” (no.) ... “…” Again。そう。",
    "ÀÉ ß ǅ İ ١٢٣ ½ Ⅷ 漢字 かな เธอ \U0001d518 é",
    "\ud7ff\ue000\U0010ffff\ufffd",
    "The the be to of and that have with The",
    "a" * 31 + "\n" + "b" * 30,
    "៖\nក៕\nល។",
]


@pytest.mark.parametrize("text", EDGES)
def test_edge(text: str) -> None:
    assert_same([text])


def test_random_texts() -> None:
    rng = random.Random(1)
    vocabulary = [
        "the",
        "and",
        "a",
        "cat",
        "sat.",
        "dog!",
        "don't",
        "state-of-the-art",
        "#",
        "{",
        "…",
        "Ünï",
        "1,000",
    ]
    assert_same([make_text(rng, rng.sample(vocabulary, rng.randrange(1, 13))) for _ in range(400)])


def test_long_repetitive_text() -> None:
    rng = random.Random(2)
    assert_same(
        [" ".join(rng.choices("ab", k=3000)), " ".join(rng.choices(["x1", "yy", "zzzzzzzzz"], k=3000))]
    )


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(exclude_categories=("Cs", "Cn", "Co")), max_size=200))
def test_any_text(text: str) -> None:
    assert_same([text])


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="ab .-#\n\r'…•A1é{", max_size=120))
def test_any_text_of_few_characters(text: str) -> None:
    assert_same([text])


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="abn't.,-:;()[]{}'\u2019\"$%+=/*°…—mskg 1²A\u00a0", max_size=60))
def test_tokens_are_the_text_without_white_space(text: str) -> None:
    assert "".join(words_of(text)) == "".join(text.split())


def test_every_character() -> None:
    """Characters that this Python's Unicode knows too have the classes that Python gives them."""
    points = [p for p in range(sys.maxunicode + 1) if unicodedata.category(chr(p)) not in ("Cs", "Cn", "Co")]
    chars = [chr(p) for p in points]
    batch = signals.compute(chars, names=["alphanumeric_ratio", "whitespace_ratio", "punctuation_ratio"])
    assert batch["alphanumeric_ratio"].to_pylist() == [float(char.isalnum()) for char in chars]
    assert batch["whitespace_ratio"].to_pylist() == [float(char.isspace()) for char in chars]
    assert batch["punctuation_ratio"].to_pylist() == [float(oracle.is_punctuation(char)) for char in chars]
    lines = signals.compute([char + "x" for char in chars], names=["num_lines"])["num_lines"].to_pylist()
    assert lines == [len((char + "x").splitlines()) for char in chars]


def test_invalid_utf8_counts_byte_by_byte() -> None:
    column = pa.array([b"\xff\xfe ab", b"\xe2\x82", b"\xc3\xa9\xc3", b"\x80\n\x80"], pa.binary())
    batch = signals.compute(column, names=["num_bytes", "num_chars", "num_lines", "num_words"])
    assert batch.to_pydict() == {
        "num_bytes": [5, 2, 3, 3],
        "num_chars": [5, 2, 2, 3],
        "num_lines": [1, 1, 1, 2],
        "num_words": [3, 2, 2, 2],  # as U+FFFD, a symbol that words are cut at
    }
    assert len(signals.compute(column)) == 4


def test_real_text(shared_data) -> None:  # type: ignore[no-untyped-def]
    texts = [json.loads(line)["text"] for line in (shared_data / "text/c4_demo.jsonl").open()][::3]
    texts.append((shared_data / "cs336_a4/high_quality_wiki_reference.txt").read_text())
    assert_same(texts)


def test_names_choose_columns_and_change_no_value() -> None:
    rng = random.Random(3)
    texts = [make_text(rng, ["the", "cat", "sat.", "on"]) for _ in range(20)]
    everything = signals.compute(texts)
    assert everything.schema.names == list(signals.NAMES)
    for name in signals.NAMES:
        alone = signals.compute(texts, names=[name])
        assert alone.schema.names == [name]
        assert alone[name].equals(everything[name])
    assert signals.compute(texts, names=["num_words", "num_chars"]).schema.names == ["num_words", "num_chars"]
    assert signals.compute(texts, names=[]).num_columns == 0


def test_types() -> None:
    schema = signals.compute([]).schema
    counts = [name for name in signals.NAMES if name.startswith(("num_", "max_"))]
    assert all(
        schema.field(name).type == (pa.int64() if name in counts else pa.float64()) for name in signals.NAMES
    )


@pytest.mark.parametrize("num_threads", [1, 2, 3, 8])
def test_threads_change_nothing(num_threads: int) -> None:
    rng = random.Random(4)
    texts = [make_text(rng, ["the", "cat", "sat.", "on", "é"]) for _ in range(300)]
    assert signals.compute(texts, num_threads=num_threads).equals(signals.compute(texts, num_threads=1))
    assert signals.compute(texts, num_threads=num_threads).to_pylist()[7] == oracle.compute(
        texts[7], words_of(texts[7])
    )


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view(), pa.large_binary()])
def test_arrow_columns(kind: pa.DataType) -> None:
    texts = ["not this", "one two", None, "", "three four five\n"]
    expected = [oracle.compute(text, words_of(text)) if text is not None else None for text in texts]
    column = pa.array(texts, kind).slice(1)
    for form in (column, pa.chunked_array([column.slice(0, 1), column.slice(1)])):
        rows = signals.compute(form).to_pylist()
        assert rows[1] == dict.fromkeys(signals.NAMES)
        assert [rows[0], *rows[2:]] == [expected[1], *expected[3:]]


def test_rules_name_signals() -> None:
    assert {rule.signal for rules in filters.RULES.values() for rule in rules} <= set(signals.NAMES)


def test_null_breaks_no_rule() -> None:
    batch = pa.record_batch({"text": pa.array([None, "too short"], pa.string())})
    assert filters.drop_reasons(batch, ["gopher_quality"]).to_pylist() == [None, "gopher_quality/num_words"]


def test_unknown_name() -> None:
    with pytest.raises(
        InputError, match="no signal is named 'num_word'; the nearest known one is 'num_words'"
    ):
        signals.compute(["a"], names=["num_chars", "num_word"])


def test_bad_arguments() -> None:
    with pytest.raises(InputError, match="'num_words' twice"):
        signals.compute(["a"], names=["num_words", "num_words"])
    with pytest.raises(TypeError, match=r"pass \['num_words'\]"):
        signals.compute(["a"], names="num_words")
    with pytest.raises(TypeError, match=r"texts\[1\] must be str, got int"):
        signals.compute(["a", 1])  # type: ignore[list-item]
    with pytest.raises(InputError, match=r"texts\[0\] holds a lone surrogate"):
        signals.compute(["\ud800"])
    with pytest.raises(InputError, match="expected an Arrow string or binary array"):
        signals.compute(pa.array([1, 2]))
    with pytest.raises(InputError, match="num_threads must lie in"):
        signals.compute(["a"], num_threads=-1)


# Words as spaCy 3.8's blank English pipeline cuts them.
SPACY_WORDS = [
    ("Hello, world! (Yes.)", "Hello|,|world|!|(|Yes|.|)"),
    ("don't I'll we've she's John's can't", "do|n't|I|'ll|we|'ve|she|'s|John|'s|ca|n't"),
    ("look'd CAN'T ValueError(\"can't help\")", "look'd|CAN'T|ValueError(\"can't|help|\"|)"),
    ("cannot, gonna. Wed id dont", "can|not|,|gon|na|.|We|d|i|d|do|nt"),
    (
        "e.g. Dr. Ltd. a.m., 8am vs. z. etc. No. U.S. U.K.-based",
        "e.g.|Dr.|Ltd.|a.m.|,|8|am|vs.|z.|etc|.|No|.|U.S.|U.K.-based",
    ),
    (
        "and/or w/o he/she state-of-the-art 10-20 x=y a:b 9:30",
        "and/or|w/o|he|/|she|state|-|of|-|the|-|art|10|-|20|x|=|y|a|:|b|9:30",
    ),
    (
        "3km 5kg. 20% $5 5$ US$1 5US$ 7km/h 100m² 3px",
        "3|km|5|kg|.|20|%|$|5|5|$|US$|1|5|US$|7|km/h|100|m²|3px",
    ),
    (":) :-( foo): (;) ^_^ '' 'em", ":)|:-(|foo|):|(|;)|^_^|''|'em"),
    ("end... wait…what so... .5 ..x a--b a---b", "end|...|wait|…|what|so|...|.5|..|x|a|--|b|a|---|b"),
    ("\"quoted\" 'single' “curly” «guillemets»", "\"|quoted|\"|'|single|'|“|curly|”|«|guillemets|»"),
    (
        "one.Two three,four 1,000.50 #tag @user x+y 1+2",
        "one|.|Two|three|,|four|1,000.50|#|tag|@user|x+y|1|+|2",
    ),
    (
        "http://a-b.example.com/x-y?z=1, <www.c-d.org> e-f@g-h.net",
        "http://a-b.example.com/x-y?z=1|,|<|www.c-d.org|>|e-f@g-h.net",
    ),
    (
        "http://8.8.8.8:80/a-b http://10.0.0.1/a-b x-y.com:8",
        "http://8.8.8.8:80/a-b|http://10.0.0.1|/|a|-|b|x|-|y.com:8",
    ),
    ("naïve café—bar \u2013 dash 20°C. 20°F", "naïve|café|—|bar|\u2013|dash|20|°|C|.|20|°|F"),
    ("☃snow A☃b 漢字。かな क-ख", "☃|snow|A|☃|b|漢字。かな|क|-|ख"),
    (
        "1.2.3.4/a-b 223.255.255.254/a-b 224.1.1.1/a-b 1.256.1.1/a-b 1.1.1.255/a-b",
        "1.2.3.4/a-b|223.255.255.254/a-b|224.1.1.1|/|a|-|b|1.256.1.1|/|a|-|b|1.1.1.255|/|a|-|b",
    ),
    (
        "172.15.0.1/a-b 172.16.0.1/a-b 192.168.0.1/a-b 169.254.1.1/a-b 1.1.1.1:1/a-b a@b.cd/e-f",
        "172.15.0.1/a-b|172.16.0.1|/|a|-|b|192.168.0.1|/|a|-|b|169.254.1.1|/|a|-|b|1.1.1.1:1|/|a|-|b|a@b.cd/e-f",
    ),
    ("it's\tit\u2019s\u00a0its\n\n.\u3000!", "it|'s|it|\u2019s|its|.|!"),
]


@pytest.mark.parametrize(("text", "words"), SPACY_WORDS)
def test_words_of_spacy(text: str, words: str) -> None:
    assert words_of(text) == words.split("|")


def test_words_of_spacy_itself(shared_data) -> None:  # type: ignore[no-untyped-def]
    """Cut real text and random parts as spaCy does, where it is installed (it is heavy)."""
    nlp = pytest.importorskip("spacy").blank("en")
    texts = [json.loads(line)["text"] for line in (shared_data / "text/c4_demo.jsonl").open()]
    rng = random.Random(5)
    pieces = [
        *nlp.tokenizer.rules,
        *"aB1.,:;!?-'\"()[]/@$%+=_°²é漢क☃",
        "US$",
        "km",
        "www.",
        ".com",
        "http://",
        "--",
    ]
    texts += ["".join(rng.choices(pieces, k=rng.randrange(1, 6))) for _ in range(20_000)]
    for text in texts:
        expected = [word.text.strip() for word in nlp.make_doc(text)]
        assert words_of(text) == [word for word in expected if word], repr(text[:200])


@pytest.mark.slow
def test_decisions_of_datatrove(shared_data) -> None:  # type: ignore[no-untyped-def]
    """Decide as datatrove's own filters do, where it is installed (it is heavy)."""
    pipeline = pytest.importorskip("datatrove.pipeline.filters")
    pytest.importorskip("spacy")
    from datatrove.data import Document

    texts = [json.loads(line)["text"] for line in (shared_data / "text/c4_demo.jsonl").open()]
    texts += [text for text in (shared_data / "text/wiki_demo.txt").read_text().split("\n") if text.strip()]
    texts.append((shared_data / "cs336_a4/low_quality_cc.txt").read_text())
    batch = pa.record_batch({"text": pa.array(texts)})
    for name, theirs in (
        ("gopher_quality", pipeline.GopherQualityFilter()),
        ("gopher_repetition", pipeline.GopherRepetitionFilter()),
        ("fineweb", pipeline.FineWebQualityFilter()),
    ):
        kept = [reason is None for reason in filters.drop_reasons(batch, [name]).to_pylist()]
        assert kept == [theirs.filter(Document(text=text, id="")) is True for text in texts], name


def test_ratios_are_finite() -> None:
    for row in signals.compute(EDGES).to_pylist():
        assert all(math.isfinite(value) for value in row.values())
