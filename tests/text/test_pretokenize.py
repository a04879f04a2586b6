"""Pre-tokenization against the `regex` package, tiktoken and Hugging Face tokenizers."""

import base64
import json
import logging
import unicodedata
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import regex
import tiktoken
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from pylm import _core
from pylm.errors import InputError
from pylm.text import TokenArray, Tokenizer, patterns
from pylm.text.patterns import PATTERNS, find_pattern, find_splits, split

pytestmark = pytest.mark.skipif(
    regex.match(r"\p{L}", "\U0003d000") is None,
    reason="the tables are of Unicode 18; this regex package, their oracle, has an older version",
)

# As tiktoken's and the models' own files write them.
_CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+%s"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*%s"
    r"|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TAIL = r"[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_HF = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
EXPRESSIONS = {
    "gpt2": [_GPT2],
    "starcoder": [r"\p{N}", _GPT2],
    "cl100k": [
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
        r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
    ],
    "llama3": [_HF + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+" + _TAIL],
    "qwen2": [_HF + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+" + _TAIL],
    "qwen35": [_HF + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+" + _TAIL],
    "o200k": [_CASED % (_HF + "?", _HF + "?", "{1,3}")],
    "tekken": [_CASED % ("", "", "")],
    "deepseek3": [
        r"\p{N}{1,3}",
        "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
        "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
        "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
    ],
}
CLASSES = {
    1: r"[\p{Lu}\p{Lt}]",
    2: r"\p{Ll}",
    4: r"[\p{Lm}\p{Lo}]",
    8: r"\p{M}",
    16: r"\p{N}",
    32: r"\p{P}",
    64: r"\p{S}",
    128: r"\p{White_Space}",
}
# tiktoken's and tokenizers' engines know Unicode 16 and older; the table has 18.
RECENT = regex.compile(
    r"[\u0295\u0558\u058b\u058c\u05c8\u05c9\u088f\u0b53\u0b54\u0c5c\u0cdc\u1ac0-\u1af0\u1c89\u1c8a\u208f"
    r"\u209d-\u209f\u20c1-\u20c4\u2b96\u2e60-\u2e63\u2fff\u31e4-\u31ef\ua7ce-\ua7dd\ua7e2\ua7f1\uab6c\uab6d"
    r"\ufbc3-\ufd91\ufdc8-\ufdce\U00010000-\U0010ffff]"
)

# Few characters of a kind, so that they meet: what the patterns tell apart, and what implementations mix up.
KINDS = [
    "abcXYZ",
    "'sStTmMdDlLvVeErR\u017f\u212a",
    "0123\u0664\u00bd\u2167\uff15",
    " \t\n\r\x0b\x0c\x1c\x85\xa0\u1680\u2003\u2028\u3000",
    "  \n\n",
    "!/.-_()\u201c\u2026\u20ac\U0001f600",
    "\u200b\u200d\u0301\ufe0f\x00\x7f\ue000\u0378\U0010ffff",
    "\u4e2d\u6587\u30a2\u30fb\u3099\u3040\u309b\u30fc\uac00\u0e01\u0e34\u05d0",
    "\u5000\u8fff\u9000\u9fa5\u9fa6\ub000\ucfff\u5b57\u041f\u0450\u045f\u0460\u0461\u0430",
    "\u00e9\u00c9\u0416\u0436\u01c5\u02b0\U00010400\U00010428",
]
HOSTILE = st.lists(st.sampled_from(KINDS), min_size=1, max_size=4).flatmap(
    lambda kinds: st.text(
        st.one_of(st.sampled_from(list("".join(kinds))), st.characters(exclude_categories=["Cs"])),
        max_size=200,
    )
)


def _expected(pattern: str, text: str) -> list[str]:
    """Cut by the expressions, one after another; what none matches is a piece."""
    pieces = [text] if text else []
    for expression in EXPRESSIONS[pattern]:
        parts = []
        for piece in pieces:
            end = 0
            for match in regex.finditer(expression.replace("++$", r"++\z"), piece):
                parts += [piece[end : match.start()], match.group()]
                end = match.end()
            parts.append(piece[end:])
        pieces = [part for part in parts if part]
    return pieces


def _pieces(pattern: str, content: bytes, level: str | None = None) -> list[bytes]:
    ends = [0, *_core.pretokenize(content, _core.Pattern(pattern), level=level).tolist()]
    return [content[a:b] for a, b in pairwise(ends)]


def _check(pattern: str, text: str) -> None:
    """Compare every level with the expressions; surrogates stand for bytes that are no UTF-8."""
    content = text.encode("utf-8", "surrogateescape")
    expected = [piece.encode("utf-8", "surrogateescape") for piece in _expected(pattern, text)]
    assert b"".join(expected) == content
    for level in _core.simd_levels():
        assert _pieces(pattern, content, level) == expected, level
    assert _pieces(pattern, content) == expected


def test_classes_of_every_code_point() -> None:
    classes = _core.char_classes()
    assert classes.shape == (0x110000,)
    text = "".join(map(chr, range(0x110000)))
    expected = np.zeros(0x110000, np.uint8)
    for value, expression in CLASSES.items():
        for match in regex.finditer(f"{expression}+", text):
            expected[match.start() : match.end()] += value
    assert np.array_equal(classes, expected)
    assert classes[0x1CCF0] == 16  # outlined digits: Unicode 16
    assert classes[0x16EA0] == 1  # a letter of Beria Erfe: Unicode 17
    assert classes[0x3D000] == 4  # a seal character: Unicode 18


@pytest.mark.parametrize("pattern", sorted(EXPRESSIONS))
@given(text=HOSTILE)
@settings(max_examples=150, deadline=None)
def test_pieces_equal_the_regular_expression(pattern: str, text: str) -> None:
    _check(pattern, text)


@pytest.mark.parametrize("pattern", sorted(EXPRESSIONS))
@given(content=st.one_of(st.binary(max_size=150), HOSTILE.map(lambda text: text.encode()[1:-1])))
@settings(max_examples=100, deadline=None)
def test_invalid_bytes_are_characters_of_no_class(pattern: str, content: bytes) -> None:
    _check(pattern, content.decode("utf-8", "surrogateescape"))


@pytest.mark.parametrize("pattern", sorted(EXPRESSIONS))
def test_code_points_alone_and_between_letters(pattern: str) -> None:
    # All patterns share one table, which is compared whole above.
    points = [chr(p) for p in [*range(0x3400), *range(0xA000, 0xB000), *range(0xF900, 0x10000), 0x10FFFF]]
    for template in ("{}1", "a{}b ", "!{}B\n"):
        _check(pattern, "".join(template.format(point) for point in points))


@pytest.mark.slow
@pytest.mark.parametrize("pattern", sorted(EXPRESSIONS))
def test_every_code_point_alone_and_between_letters(pattern: str) -> None:
    points = [chr(p) for p in range(0x110000) if not 0xD800 <= p < 0xE000]
    for template in ("{}1", "a{}b ", "!{}B\n", "{}"):
        for start in range(0, len(points), 65536):
            _check(pattern, "".join(template.format(p) for p in points[start : start + 65536]))


@pytest.mark.parametrize("pattern", sorted(EXPRESSIONS))
def test_every_size_and_place_in_a_window(pattern: str) -> None:
    # Ends of texts and of windows of 64 bytes fall on every character of each.
    samples = [
        "It's 12345 o'clock!\n\n  if (x):\r\n\t return\u3000'ABCdef' \u00e9t\u00e9  \n \n ",
        "\u4e2d\u6587ABC\u30ab\u30fb\u30bf 1\uff12\u06633\u00bd '\u017f\u2028\u2029 !\u0301a/\n/\n//b",
        "\u041f\u0440\u0438\u0432\u0435\u0442 \u0301x\u200d\U0001f469\u200d\U0001f680 \udcff'LLwe'RE's't",
    ]
    for sample in samples:
        for size in range(len(sample) + 1):
            _check(pattern, sample[:size])
        for pad in range(70):
            _check(pattern, "x" * pad + sample + " " * (pad % 3) + sample[pad % 40 :])


@pytest.mark.parametrize("pattern", sorted(EXPRESSIONS))
@pytest.mark.parametrize(
    "unit",
    [
        "a",
        "A",
        " ",
        "\n",
        " \n",
        "7",
        "!",
        "\u5b57",
        "\u30a2",
        "\u0416",
        "\u0301",
        "'s",
        "\udcff",
        "\U0001f600",
        "\u5b57A",
    ],
)
def test_long_pieces(pattern: str, unit: str) -> None:
    _check(pattern, unit * 700)
    _check(pattern, f"x{unit * 700}y 1")


@pytest.mark.parametrize("pattern", sorted(EXPRESSIONS))
def test_real_text(pattern: str, shared_data: Path) -> None:
    _check(pattern, (shared_data / "tokenizers/openai/TestPlans.txt").read_text(encoding="utf-8"))
    _check(pattern, (shared_data / "text/wiki_demo.txt").read_text(encoding="utf-8")[:200_000])
    _check(pattern, Path(regex.__file__).with_name("_main.py").read_text(encoding="utf-8")[:100_000])


@pytest.mark.parametrize("pattern", sorted(PATTERNS))
@given(text=HOSTILE)
@settings(max_examples=60, deadline=None)
def test_pieces_equal_hugging_face(pattern: str, text: str) -> None:
    text = RECENT.sub("", text)
    peer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(tokenizers.Regex(e), "isolated") for e in PATTERNS[pattern].expressions]
    )
    expected = [piece for piece, _ in peer.pre_tokenize_str(text)] if text else []
    assert [piece.decode() for piece in _pieces(pattern, text.encode())] == expected
    assert split(pattern, text) == expected


@pytest.mark.parametrize("pattern", sorted(EXPRESSIONS))
@given(text=HOSTILE, position=st.integers(0, 220))
@settings(max_examples=100, deadline=None)
def test_safe_borders(pattern: str, text: str, position: int) -> None:
    content = text.encode()
    machine = _core.Pattern(pattern)
    border = _core.next_safe_border(content, position, machine)
    assert border >= min(max(position, 1), len(content))
    whole = _pieces(pattern, content)
    assert _pieces(pattern, content[:border]) + _pieces(pattern, content[border:]) == whole
    assert _core.next_safe_border(content, position, _core.Pattern("whole")) == len(content)


def test_safe_borders_are_common() -> None:
    machine = _core.Pattern("o200k")
    assert _core.next_safe_border(b"one two", 0, machine) == 3
    assert _core.next_safe_border("字字\n字字 字".encode(), 1, machine) == 6
    assert _core.next_safe_border(b"! ! \xff ", 0, machine) == 6


def _rank_pair(path: Path, pattern: str, expression: str) -> tuple[Tokenizer, tiktoken.Encoding]:
    lines = [line.split() for line in path.read_bytes().splitlines() if line]
    ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
    peer = tiktoken.Encoding("peer", pat_str=expression, mergeable_ranks=ranks, special_tokens={})
    return Tokenizer.load(path, pattern=pattern), peer


OFFICIAL = {
    "gpt2": "openai/r50k_base.tiktoken",
    "cl100k": "openai/cl100k_base.tiktoken",
    "o200k": "openai/o200k_base.tiktoken",
    "llama3": "llama3/tokenizer.model",
}


def _official_pair(pattern: str, shared_data: Path, folder: Path) -> tuple[Tokenizer, tiktoken.Encoding]:
    """An official vocabulary: ours and tiktoken's."""
    path = folder / f"{pattern}.tiktoken"
    path.write_bytes((shared_data / "tokenizers" / OFFICIAL[pattern]).read_bytes())
    return _rank_pair(path, pattern, EXPRESSIONS[pattern][0])


@pytest.fixture(scope="module", params=["o200k", "llama3"])
def ranked(
    request: pytest.FixtureRequest, shared_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Tokenizer, tiktoken.Encoding]:
    return _official_pair(request.param, shared_data, tmp_path_factory.mktemp("ranked"))


def test_ids_equal_tiktoken(ranked: tuple[Tokenizer, tiktoken.Encoding], shared_data: Path) -> None:
    ours, peer = ranked
    for name in ("tokenizers/openai/TestPlans.txt", "text/c4_demo.jsonl", "bpe_reference/german.txt"):
        text = (shared_data / name).read_text(encoding="utf-8")[:400_000]
        assert ours.encode_ordinary(text) == peer.encode_ordinary(text)


@given(text=HOSTILE)
@settings(max_examples=150, deadline=None)
def test_ids_equal_tiktoken_on_hostile_text(ranked: tuple[Tokenizer, tiktoken.Encoding], text: str) -> None:
    ours, peer = ranked
    text = RECENT.sub("", text)
    assert ours.encode_ordinary(text) == peer.encode_ordinary(text)


def _hostile_strings(seed: int, count: int) -> list[str]:
    """Draw strings of 1 to 24 characters: of `KINDS`, or any whose class all versions of Unicode agree on."""
    old = [c for c in map(chr, range(0x110000)) if not "\ud800" <= c <= "\udfff"]
    is_new = regex.compile(r"\P{Cn}").match
    old = [c for c in old if unicodedata.category(c) != "Cn" or not is_new(c)]
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 25, count)
    kinds = np.array([ord(c) for kind in KINDS for c in kind], np.uint32)
    points = rng.choice(np.array([ord(c) for c in old], np.uint32), sizes.sum())
    common = rng.random(sizes.sum()) < np.repeat(rng.random(count), sizes)
    points[common] = rng.choice(kinds, common.sum())
    text = points.astype("<u4").tobytes().decode("utf-32-le")
    return [text[a:b] for a, b in pairwise([0, *np.cumsum(sizes).tolist()])]


def _check_all(seed: int, texts: list[str], ours: TokenArray, theirs: list[list[int]]) -> None:
    wrong = [t for t, a, b in zip(texts, ours, theirs, strict=True) if a.tolist() != b]
    assert not wrong, f"seed {seed}: {len(wrong)} strings, the shortest {min(wrong, key=len)!r}"


@pytest.mark.slow
@pytest.mark.parametrize("pattern", OFFICIAL)
def test_ids_equal_tiktoken_on_a_million_hostile_strings(
    pattern: str, shared_data: Path, tmp_path: Path
) -> None:
    ours, peer = _official_pair(pattern, shared_data, tmp_path)
    for seed in range(10):
        texts = _hostile_strings(seed, 100_000)
        _check_all(seed, texts, ours.encode_batch(texts), peer.encode_ordinary_batch(texts, num_threads=2))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama3", "qwen3"])
def test_ids_equal_hugging_face_on_many_hostile_strings(name: str, shared_data: Path, tmp_path: Path) -> None:
    path = shared_data / "tokenizers/qwen3/tokenizer.json"
    if name == "llama3":  # its official vocabulary has no such file
        path = tmp_path / "tokenizer.json"
        _official_pair(name, shared_data, tmp_path)[0].save(path)
    ours, peer = Tokenizer.load(path), tokenizers.Tokenizer.from_file(str(path))
    # Its normalizer, of Unicode 9, does not know that these change places.
    marks = [point for point in range(0x10000, 0x110000) if unicodedata.combining(chr(point))]
    without_marks = dict.fromkeys(marks)
    for seed in range(3):
        texts = [text.translate(without_marks) for text in _hostile_strings(seed, 100_000)]
        encoded = peer.encode_batch_fast(texts, add_special_tokens=False)
        _check_all(seed, texts, ours.encode_batch(texts), [one.ids for one in encoded])


@pytest.mark.slow
@pytest.mark.parametrize("pattern", sorted(EXPRESSIONS))
def test_pieces_of_many_hostile_strings(pattern: str) -> None:
    rng = np.random.default_rng(0)
    for text in _hostile_strings(0, 50_000):
        damaged = list(text)
        damaged[rng.integers(len(text))] = chr(rng.integers(0xDC80, 0xDD00))  # a byte that is no UTF-8
        for one in (text, "".join(damaged)):
            content = one.encode("utf-8", "surrogateescape")
            pieces = [p.encode("utf-8", "surrogateescape") for p in _expected(pattern, one)]
            assert _pieces(pattern, content) == pieces, repr(one)


def test_smollm2_ids_equal_hugging_face(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "tokenizers/smollm2"
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
    merges = [tuple(line.split(" ")) for line in lines if not line.startswith("#version")]
    model = tokenizers.models.BPE(vocab=vocabulary, merges=merges)
    peer = tokenizers.Tokenizer(model)
    peer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    peer.save(str(tmp_path / "tokenizer.json"))
    ours = Tokenizer.load(tmp_path)
    assert ours.pattern == "starcoder"
    text = (shared_data / "tokenizers/openai/TestPlans.txt").read_text(encoding="utf-8")
    text += "a  1 22  333 x\n\n4  \u0664\u0665 5\u00bd it's 'LL\u2167 "
    text += "\x04\x06 a\x13b\x14 \x16\x1d\x1d \U00040000!\U00080000"  # bytes without a token
    assert ours.encode(text) == peer.encode(text, add_special_tokens=False).ids


@pytest.fixture(scope="module")
def custom() -> tuple[Tokenizer, Tokenizer]:
    """The same vocabulary, with cl100k's machine and with its expression written in another way."""
    text = Path(__file__).read_text(encoding="utf-8")
    return tuple(
        Tokenizer.train(text.split("\n\n"), vocab_size=600, pattern=pattern, special_tokens=["<|end|>"])
        for pattern in ("cl100k", EXPRESSIONS["cl100k"][0].replace("++$", r"++\z"))
    )


def test_custom_patterns_give_the_same_ids(custom: tuple[Tokenizer, Tokenizer], tmp_path: Path) -> None:
    machine, slow = custom
    assert [slow.token_bytes(i) for i in range(600)] == [machine.token_bytes(i) for i in range(600)]
    assert slow.pattern.startswith("'(?i:[sdmt]")
    assert slow.fingerprint != machine.fingerprint
    texts = ["It's 2026\n\n  now", "", "\u5b57 \u0301!", b"\xff 12345 \xc3", Path(__file__).read_text()]
    for num_threads in (1, 3):
        for end_id in (None, 7):
            got = slow.encode_batch(texts, end_id=end_id, num_threads=num_threads)
            expected = machine.encode_batch(texts, end_id=end_id)
            assert got.ids.tolist() == expected.ids.tolist()
            assert got.offsets.tolist() == expected.offsets.tolist()
    assert [slow.encode_ordinary(t) for t in texts] == [machine.encode_ordinary(t) for t in texts]
    assert slow.encode("a<|end|>b", allowed_special="all") == machine.encode(
        "a<|end|>b", allowed_special="all"
    )
    (tmp_path / "text").write_bytes(b"It's\0 12345 \xff\0")
    for separator in (None, "\0"):
        files = [t.encode_files([tmp_path / "text"], separator=separator) for t in (slow, machine)]
        assert files[0].ids.tolist() == files[1].ids.tolist()
        assert files[0].offsets.tolist() == files[1].offsets.tolist()


def test_custom_patterns_are_saved(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patterns, "_noted", set())
    with caplog.at_level(logging.WARNING):
        ours = Tokenizer.train(["one two, 3 four" * 9], vocab_size=270, pattern=r"\w+|\W+")
        assert [r.levelname for r in caplog.records] == ["WARNING"], "once"
        assert r"'\\w+|\\W+' is none of pylm's own patterns" in caplog.text
    ours.save(tmp_path / "tokenizer.json")
    peer = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    again = Tokenizer.load(tmp_path)
    text = "one two, three 3 four \u00e9t\u00e9"
    assert ours.encode(text) == again.encode(text) == peer.encode(text).ids
    assert again.fingerprint == ours.fingerprint
    document = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    splits = document["pre_tokenizer"]["pretokenizers"]
    splits.insert(0, {**splits[0], "pattern": {"Regex": "o"}})
    (tmp_path / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    peer = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    twice = Tokenizer.load(tmp_path)
    assert twice.pattern == "custom"
    assert twice.encode(text) == peer.encode(text).ids != ours.encode(text)


def test_find_pattern() -> None:
    for name, pattern in PATTERNS.items():
        assert find_pattern(name) is pattern
        assert find_splits(pattern.expressions) is pattern
        assert isinstance(pattern.machine(), _core.Pattern)
    assert find_pattern(PATTERNS["gpt2"].expression) is PATTERNS["gpt2"]
    custom = find_pattern(r"\d|\D+")
    assert custom.machine() is None
    assert find_pattern(custom) is custom
    assert custom.split("a1b22") == ["a", "1", "b", "2", "2"]
    assert find_pattern(r"b*").split("abba") == ["a", "bb", "a"]
    assert find_pattern(r"[\p{L}&&[^\p{Lu}]]+").split("abCd") == ["ab", "C", "d"]
    assert custom.split_bytes(b"\xff1\xc3") == [b"\xff", b"1", b"\xc3"]
    pieces, borders = custom.split_all(["a1", b"", "2"])
    assert (pieces, borders.tolist()) == ([b"a", b"1", b"2"], [0, 2, 2, 3])
    with pytest.raises(InputError, match="did you mean 'o200k'"):
        find_pattern("o200")
    with pytest.raises(InputError, match="nor a regular expression: missing"):
        find_pattern("(a|b")
    with pytest.raises(InputError, match=r"texts\[1\] holds lone surrogates"):
        custom.split_all(["a", "\ud800"])
    with pytest.raises(TypeError, match=r"texts\[0\] must be str or bytes, got int"):
        custom.split_all([3])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="no machine for the pattern 'x'"):
        _core.Pattern("x")
    with pytest.raises(ValueError, match="no SIMD level 'x'"):
        _core.pretokenize(b"", _core.Pattern("gpt2"), level="x")
