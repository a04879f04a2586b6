"""The tokenizer against tiktoken, Hugging Face tokenizers and the `regex` package."""

import base64
import json
import os
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import regex
import tiktoken
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from pylm import _core
from pylm.errors import InputError
from pylm.text import TokenArray, Tokenizer
from pylm.text.patterns import PATTERNS

# As tiktoken writes them; possessive quantifiers keep its engine from backtracking.
CL100K = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)
GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"

# Letters, numbers and symbols of the table (Unicode 18) that the engine of tiktoken 0.14 has no class for.
NEW_CHARACTERS = regex.compile(
    "[\u0558\u058b-\u058c\u088f\u0c5c\u0cdc\u208f\u209d-\u209f\ua7ce-\ua7cf\ua7d2\ua7d4\ua7dd\ua7e2"
    "\ua7f1\uab6c-\uab6d\U000107bb-\U000107bf\U00010940-\U00010959\U00010ec5-\U00010ec7"
    "\U00010ed9-\U00010eee\U00011b0a\U00011db0-\U00011ddb\U00011de0-\U00011de9\U00011df1\U0001246f"
    "\U00012475-\U0001247f\U00012550-\U00012686\U00016ea0-\U00016eb8\U00016ebb-\U00016ed3"
    "\U00016ff2-\U00016ff6\U000187f8-\U000187ff\U00018cd6-\U00018cda\U00018d09-\U00018d20"
    "\U00018d80-\U00018df2\U00018e00-\U00019191\U000191a0-\U000191d2\U0001b123-\U0001b128\U0001b168"
    "\U0001d6a6\U0001df1f-\U0001df24\U0001df2b-\U0001df81\U0001df90-\U0001df96\U0001dfcd-\U0001dfff"
    "\U0001e6c0-\U0001e6de\U0001e6e0-\U0001e6e2\U0001e6e4-\U0001e6e5\U0001e6e7-\U0001e6ed"
    "\U0001e6f0-\U0001e6f4\U0001e6fe-\U0001e6ff\U0002b73a-\U0002b73f\U0002b81e\U0002cea2-\U0002cead"
    "\U000323b0-\U00033479\U0003d000-\U0003fc3f]"
)

HOSTILE = st.text(
    alphabet=st.one_of(
        st.characters(exclude_categories=["Cs"]),
        st.sampled_from(list(" \t\n\r\x0b\x0c\x1c\x1f\x85\xa0\u1680\u2003\u2028\u2029\u3000")),
        st.sampled_from(list("'sStTmMdDlLvVeErR\u017f\u212a")),
        st.sampled_from(list("0123\u0664\u00bd\u2167\u200b\u200d\u0301\ufe0f\U0001f600")),
    ),
    max_size=40,
)


@pytest.fixture(scope="module")
def small() -> Tokenizer:
    text = Path(__file__).read_text(encoding="utf-8")
    return Tokenizer.train(
        text.split("\n"), vocab_size=500, pattern="cl100k", special_tokens=["<|end|>", "<|endoftext|>"]
    )


@pytest.fixture(scope="module")
def cl100k(shared_data: Path) -> tuple[Tokenizer, tiktoken.Encoding]:
    return _rank_pair(shared_data / "tokenizers/openai/cl100k_base.tiktoken", "cl100k", CL100K)


@pytest.fixture(scope="module")
def r50k(shared_data: Path) -> tuple[Tokenizer, tiktoken.Encoding]:
    return _rank_pair(shared_data / "tokenizers/openai/r50k_base.tiktoken", "gpt2", GPT2)


def _rank_pair(path: Path, pattern: str, expression: str) -> tuple[Tokenizer, tiktoken.Encoding]:
    lines = [line.split() for line in path.read_bytes().splitlines() if line]
    ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
    peer = tiktoken.Encoding("peer", pat_str=expression, mergeable_ranks=ranks, special_tokens={})
    return Tokenizer.load(path, pattern=pattern), peer


def test_ids_equal_tiktoken_on_real_text(
    cl100k: tuple[Tokenizer, tiktoken.Encoding], r50k: tuple[Tokenizer, tiktoken.Encoding], shared_data: Path
) -> None:
    paths = [
        "tokenizers/openai/TestPlans.txt",
        "text/wiki_demo.txt",
        "text/c4_demo.jsonl",
        "bpe_reference/german.txt",
    ]
    texts = [(shared_data / p).read_text(encoding="utf-8") for p in paths]
    texts += [f"{a} {b}" for a in texts[0].splitlines()[:300] for b in ("", "'S", "\n \n")]
    for tokenizer, peer in (cl100k, r50k):
        batch = tokenizer.encode_batch(texts)
        for index, text in enumerate(texts):
            assert batch[index].tolist() == peer.encode_ordinary(text)


@given(text=HOSTILE)
@settings(max_examples=500, deadline=None)
def test_ids_equal_tiktoken_on_hostile_text(
    cl100k: tuple[Tokenizer, tiktoken.Encoding], r50k: tuple[Tokenizer, tiktoken.Encoding], text: str
) -> None:
    text = NEW_CHARACTERS.sub("", text)
    for tokenizer, peer in (cl100k, r50k):
        ids = tokenizer.encode_ordinary(text)
        assert ids == peer.encode_ordinary(text)
        assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("unit", ["a", " ", "\n", "😀", "ab", "=", "é", "\xff"])
def test_long_pieces_end_and_equal_short_ones(small: Tokenizer, unit: str) -> None:
    content = unit.encode("latin-1") if unit == "\xff" else unit.encode()
    long = small.encode_ordinary(content * (300_000 // len(content)))
    assert small.decode_bytes(long) == content * (300_000 // len(content))
    # The heap and the array give the same merges on either side of their border.
    for count in (46, 47, 48, 49, 50, 97):
        ids = small.encode_ordinary(content * count)
        assert ids == _slow_encode(small, content * count)


def _slow_encode(tokenizer: Tokenizer, content: bytes) -> list[int]:
    """Apply the merges of the saved file one by one to each piece."""
    tokens = {tokenizer.token_bytes(i): i for i in range(2, tokenizer.vocab_size)}
    ranks = {token: i for token, i in tokens.items() if len(token) > 1}
    ends = [0, *_core.pretokenize(content, PATTERNS[tokenizer.pattern].machine()).tolist()]
    ids = []
    for start, end in pairwise(ends):
        parts = [content[i : i + 1] for i in range(start, end)]
        while len(parts) > 1:
            joined = [ranks.get(a + b, 1 << 30) for a, b in pairwise(parts)]
            best = min(range(len(joined)), key=joined.__getitem__)
            if joined[best] == 1 << 30:
                break
            parts[best : best + 2] = [parts[best] + parts[best + 1]]
        ids += [tokens[p] for p in parts]
    return ids


@given(content=st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_any_bytes_round_trip(small: Tokenizer, content: bytes) -> None:
    ids = small.encode_ordinary(content)
    assert small.decode_bytes(ids) == content
    assert ids == _slow_encode(small, content)
    assert small.decode(ids) == content.decode("utf-8", "replace")


def test_trained_tokenizers_are_read_by_hugging_face(shared_data: Path, tmp_path: Path) -> None:
    text = (shared_data / "bpe_reference/corpus.en").read_text(encoding="utf-8")
    special = ["<|endoftext|>", "<|user|>"]
    for pattern in PATTERNS:
        ours = Tokenizer.train(text.split("\n\n"), vocab_size=1200, pattern=pattern, special_tokens=special)
        ours.save(tmp_path / "ours.json")
        loaded = tokenizers.Tokenizer.from_file(str(tmp_path / "ours.json"))
        again = Tokenizer.load(tmp_path / "ours.json")
        sample = text[:20_000] + "<|user|> tail \n \n "
        ids = ours.encode(sample, allowed_special="all")
        assert ids == loaded.encode(sample, add_special_tokens=False).ids
        assert ids == again.encode(sample, allowed_special="all")
        assert again.fingerprint == ours.fingerprint
        assert again.special_tokens == {"<|endoftext|>": 0, "<|user|>": 1}


def test_min_frequency_and_threads(small: Tokenizer) -> None:
    text = Path(__file__).read_text(encoding="utf-8")
    once = Tokenizer.train(["abab cdcd"], vocab_size=600, min_frequency=2, pattern="gpt2")
    assert [once.token_bytes(i) for i in range(256, once.vocab_size)] == [b"ab", b"cd"]
    many = Tokenizer.train(
        text.split("\n"), vocab_size=500, special_tokens=["<|end|>", "<|endoftext|>"], num_threads=3
    )
    assert many.fingerprint == small.fingerprint


def test_qwen3_ids_equal_hugging_face(shared_data: Path) -> None:
    folder = shared_data / "tokenizers/qwen3"
    ours = Tokenizer.load(folder)
    peer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    text = (shared_data / "tokenizers/openai/TestPlans.txt").read_text(
        encoding="utf-8"
    ) + "e\u0301 A\u030a 1234"
    assert ours.encode(text) == peer.encode(text, add_special_tokens=False).ids
    assert ours.encode_batch([text])[0].tolist() == ours.encode(text)
    chat = "<|im_start|>user\nhello<|im_end|>"
    assert ours.encode(chat, allowed_special="all") == peer.encode(chat, add_special_tokens=False).ids


def test_rank_file_saved_as_json_keeps_its_ids(
    r50k: tuple[Tokenizer, tiktoken.Encoding], shared_data: Path, tmp_path: Path
) -> None:
    ours, peer = r50k
    ours.save(tmp_path / "t.json")
    loaded = tokenizers.Tokenizer.from_file(str(tmp_path / "t.json"))
    text = (shared_data / "tokenizers/openai/TestPlans.txt").read_text(encoding="utf-8")
    assert loaded.encode(text).ids == peer.encode_ordinary(text)
    assert Tokenizer.load(tmp_path / "t.json").encode(text) == peer.encode_ordinary(text)


def test_every_container_and_thread_count_gives_the_same_ids(small: Tokenizer, tmp_path: Path) -> None:
    lines = Path(__file__).read_text(encoding="utf-8").split("\n") * 40
    texts = [line if i % 7 else "" for i, line in enumerate(lines)]
    expected = [small.encode_ordinary(t) for t in texts]
    array = pa.array(texts)
    containers = {
        "list": texts,
        "bytes": [t.encode() for t in texts],
        "string": array,
        "large": pa.array(texts, pa.large_string()),
        "binary": pa.array([t.encode() for t in texts]),
        "chunked": pa.chunked_array([array[:100], array[100:100], array[100:]]),
        "slice": pa.array(["x", *texts, "y"])[1:-1],
        "null": pa.array([t if t else None for t in texts]),
        "view": pa.array(texts, pa.string_view()),
        "tuple": tuple(texts),
        "numpy": np.array(texts),
        "numpy objects": np.array(texts, dtype=object),
    }
    for name, container in containers.items():
        for num_threads in (1, 2, 5):
            got = small.encode_batch(container, num_threads=num_threads)
            assert [x.tolist() for x in got] == expected, (name, num_threads)
    path = tmp_path / "text"
    path.write_bytes(b"\0".join(t.encode() for t in texts))
    assert [x.tolist() for x in small.encode_files([path, path], separator="\0")] == expected * 2


def test_a_large_text_is_cut_between_pieces_only(
    cl100k: tuple[Tokenizer, tiktoken.Encoding], r50k: tuple[Tokenizer, tiktoken.Encoding], tmp_path: Path
) -> None:
    """Texts beyond half a megabyte are shared between threads, at borders that no piece crosses."""
    lines = Path(__file__).read_text(encoding="utf-8").split("\n")
    text = "\n".join(f"{line}{' ' * (i % 3)}\n{' ' * (i % 5)}\r\n{i}" for i, line in enumerate(lines * 60))
    assert len(text) > 1 << 20
    path = tmp_path / "text"
    path.write_text(text, encoding="utf-8", newline="")
    for tokenizer, peer in (cl100k, r50k):
        expected = peer.encode_ordinary(text)
        for num_threads in (1, 2, 3):
            assert tokenizer.encode_batch([text], num_threads=num_threads).ids.tolist() == expected
        assert tokenizer.encode_files([path]).ids.tolist() == expected
        assert tokenizer.encode_ordinary(text) == expected


def test_an_end_after_each_text(small: Tokenizer) -> None:
    line = "a line of a text beyond the size that threads share\n"
    texts = ["one", "", line * 20_000, "four"]
    end = small.special_tokens["<|endoftext|>"]
    expected = [[*small.encode_ordinary(t), end] for t in texts]
    for container in (texts, pa.array(texts)):
        assert [x.tolist() for x in small.encode_batch(container, end_id=end)] == expected


def test_files(small: Tokenizer, tmp_path: Path) -> None:
    empty, pipe = tmp_path / "empty", tmp_path / "pipe"
    empty.touch()
    assert [x.tolist() for x in small.encode_files([empty, empty])] == [[], []]
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=("from a pipe",))
    writer.start()
    assert small.encode_files([pipe])[0].tolist() == small.encode("from a pipe")
    writer.join()
    with pytest.raises(FileNotFoundError, match="absent"):
        small.encode_files([tmp_path / "absent"])
    with pytest.raises(IsADirectoryError, match=tmp_path.name):
        small.encode_files([tmp_path])


def test_empty_inputs(small: Tokenizer) -> None:
    assert small.encode("") == []
    assert small.decode([]) == ""
    for empty in ([], pa.array([], pa.string()), pa.chunked_array([], pa.string())):
        got = small.encode_batch(empty)
        assert len(got) == 0
        assert got.ids.dtype == np.uint32
    assert [x.tolist() for x in small.encode_batch(["", ""])] == [[], []]


def test_token_array_indexing() -> None:
    array = TokenArray(np.arange(5, dtype=np.uint32), np.array([0, 2, 2, 5]))
    assert [x.tolist() for x in array] == [[0, 1], [], [2, 3, 4]]
    assert array[-1].tolist() == [2, 3, 4]
    with pytest.raises(IndexError, match="text 3 of 3"):
        array[3]


def test_special_tokens(small: Tokenizer) -> None:
    end, text_end = small.special_tokens["<|end|>"], small.special_tokens["<|endoftext|>"]
    with pytest.raises(InputError, match=r"'<\|end\|>' at character 2.*encode_ordinary"):
        small.encode("ab<|end|>")
    assert small.encode("ab<|end|>c<|endoftext|>", allowed_special="all") == [
        *small.encode("ab"), end, *small.encode("c"), text_end,
    ]  # fmt: skip
    ordinary = small.encode_ordinary("ab<|end|>")
    assert end not in ordinary
    assert small.decode(ordinary) == "ab<|end|>"
    assert small.encode_batch(["ab<|end|>"])[0].tolist() == ordinary
    with pytest.raises(InputError, match="no special token"):
        small.encode("x", allowed_special={"<|nobody|>"})


def test_bad_input_is_named(small: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="token id 99999"):
        small.decode([99999])
    with pytest.raises(InputError, match="lone surrogate at character 1"):
        small.encode("a\ud800")
    with pytest.raises(InputError, match=r"texts\[1\] holds a lone surrogate"):
        small.encode_batch(["a", "\udfff"])
    with pytest.raises(TypeError, match=r"texts\[1\] must be str or bytes, got int"):
        small.encode_batch(["a", 3])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="single one"):
        small.encode_batch("abc")
    with pytest.raises(InputError, match="did you mean 'cl100k'"):
        Tokenizer.train(["a"], vocab_size=300, pattern="cl100")
    with pytest.raises(InputError, match="at least 256"):
        Tokenizer.train(["a"], vocab_size=200)
    with pytest.raises(InputError, match="no text"):
        Tokenizer.train([], vocab_size=300)
    with pytest.raises(InputError, match="no tokenizer at"):
        Tokenizer.load(tmp_path / "absent.json")
    broken = tmp_path / "x.tiktoken"
    broken.write_bytes(b"YQ== 0\nnot base64\n")
    with pytest.raises(InputError, match=r"x\.tiktoken:2"):
        Tokenizer.load(broken, pattern="gpt2")
    broken.write_bytes(b"YQ== 0\n")
    with pytest.raises(InputError, match="no token for byte 0"):
        Tokenizer.load(broken, pattern="gpt2")
    with pytest.raises(InputError, match="give pattern="):
        Tokenizer.load(broken)


def test_arguments_of_another_kind_are_named(small: Tokenizer, tmp_path: Path) -> None:
    any_: Any = small
    for text in (5, None, ["a"]):
        for call in (any_.encode, any_.encode_ordinary, any_.encode_with_offsets):
            with pytest.raises(TypeError, match=f"text must be a str, got {type(text).__name__}"):
                call(text)
    with pytest.raises(TypeError, match="encode_ordinary takes bytes"):
        any_.encode(b"a")
    with pytest.raises(InputError, match=r"num_threads must lie in \[0, 65536\], got -1"):
        small.encode_batch(["a"], num_threads=-1)
    with pytest.raises(InputError, match=r"end_id must lie in \[0, 4294967295\], got -1"):
        small.encode_batch(["a"], end_id=-1)
    with pytest.raises(TypeError, match="a list of paths, got a single one"):
        any_.encode_files("corpus.txt")
    with pytest.raises(TypeError, match="separator must be str or bytes, got int"):
        any_.encode_files([tmp_path / "corpus.txt"], separator=5)
    with pytest.raises(TypeError, match="ids must be whole numbers in one dimension, got int"):
        any_.decode(5)
    with pytest.raises(InputError, match="errors must be 'replace', 'strict' or 'ignore', got 'drop'"):
        any_.decode(small.encode("é")[:1], errors="drop")
    with pytest.raises(TypeError, match="special_tokens must be a list of str, got '<s>'"):
        Tokenizer.train(["a"], vocab_size=300, special_tokens="<s>")
    with pytest.raises(TypeError, match="vocab_size must be an int, got float"):
        Tokenizer.train(["a"], vocab_size=any_.vocab_size + 0.5)


def test_options_are_looked_at_before_the_corpus(small: Tokenizer) -> None:
    def corpus() -> Iterator[str]:
        raise AssertionError("the corpus is read")
        yield ""

    for options in ({"vocab_size": 255}, {"min_frequency": -1}, {"limit_alphabet": 0}, {"num_threads": -1}):
        with pytest.raises(InputError, match=min(options)):
            Tokenizer.train(corpus(), **{"vocab_size": 300, **options})


def test_an_existing_folder_may_have_any_name(small: Tokenizer, tmp_path: Path) -> None:
    for name in ("a.pylm", "b.tiktoken", "c"):
        (tmp_path / name).mkdir()
        small.save(tmp_path / name)
        assert Tokenizer.load(tmp_path / name).fingerprint == small.fingerprint
        assert {file.name for file in (tmp_path / name).iterdir()} == {
            "tokenizer.json",
            "tokenizer_config.json",
        }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["model"]["merges"].append(["Ā", "nope"]), "merge .* does not join"),
        (lambda d: d.update(normalizer={"type": "BertNormalizer"}), "unsupported normalizer.*BertNormalizer"),
        (lambda d: d.update(pre_tokenizer={"type": "Whitespace"}), "unsupported pre-tokenizer.*Whitespace"),
        (lambda d: d["model"].update(type="WordPiece"), "unsupported model"),
        (
            lambda d: d.update(model={"type": "Unigram", "vocab": [["a", 0.0]]}),
            "its model is of type Unigram; expected BPE",
        ),
        (lambda d: d.update(decoder={"type": "WordPiece"}), "unsupported decoder.*WordPiece"),
        (lambda d: d["model"].pop("vocab"), "expected a BPE model"),
    ],
)
def test_damaged_json_is_named(small: Tokenizer, tmp_path: Path, change: object, message: str) -> None:
    path = tmp_path / "tokenizer.json"
    small.save(path)
    document = json.loads(path.read_text(encoding="utf-8"))
    change(document)  # type: ignore[operator]
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(InputError, match=message):
        Tokenizer.load(path)
