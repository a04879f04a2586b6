"""Counting and merging against a slow trainer, Hugging Face's, the CS336 reference and `regex`."""

import json
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import regex
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import bpe_training
from tokenizers import pre_tokenizers

from pylm import _core
from pylm.errors import InputError
from pylm.text import Tokenizer, WordCounter, word_counter
from pylm.text._byte_alphabet import CHAR_TO_BYTE
from pylm.text.patterns import PATTERNS, find_pattern

END = "<|endoftext|>"


def _counter_of(words: Mapping[bytes, int]) -> _core.WordCounter:
    counter = _core.WordCounter(find_pattern("gpt2").machine())
    offsets = np.cumsum([0, *map(len, words)], dtype=np.int64)
    data = np.frombuffer(b"".join(words), np.uint8)
    counter.add_words(data, offsets, np.array(list(words.values()), np.uint64))
    return counter


def _learn(words: Mapping[bytes, int], num_tokens: int, **options: Any) -> list[bpe_training.Merge]:
    """Merges as bytes; the ids of bytes are their values."""
    known = options.pop("known", [])
    settings = {
        "min_frequency": 2, "byte_ids": list(range(256)), "first_id": 256, "max_token_length": 0,
        "ties": "hf", "release_words": False, "num_threads": 1, "progress": None, **options,
    }  # fmt: skip
    rows = _counter_of(words).train(num_tokens=num_tokens, known=known, **settings)
    tokens = {byte: bytes([byte]) for byte in range(256)}
    merges = []
    for left, right, merged in rows.tolist():
        merges.append((tokens[left], tokens[right]))
        tokens[merged] = tokens[left] + tokens[right]
    return merges


def _merges_of(tokenizer: Tokenizer, folder: Path) -> list[bpe_training.Merge]:
    tokenizer.save(folder / "tokenizer.json")
    rows = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["merges"]
    return [(_bytes(left), _bytes(right)) for left, right in rows]


def _bytes(written: str) -> bytes:
    return bytes(CHAR_TO_BYTE[c] for c in written)


def _train_peer(texts: Sequence[str], pattern: str = "gpt2", **options: Any) -> tokenizers.Tokenizer:
    peer = tokenizers.Tokenizer(tokenizers.models.BPE())
    splits = [pre_tokenizers.Split(tokenizers.Regex(e), "isolated") for e in PATTERNS[pattern].expressions]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    peer.pre_tokenizer = pre_tokenizers.Sequence([*splits, byte_level])
    options = {"initial_alphabet": pre_tokenizers.ByteLevel.alphabet(), **options}
    trainer = tokenizers.trainers.BpeTrainer(show_progress=False, **options)
    peer.train_from_iterator(texts, trainer)
    return peer


def _model(tokenizer: Any, folder: Path) -> dict[str, Any]:
    tokenizer.save(str(folder / "model.json"))
    model: dict[str, Any] = json.loads((folder / "model.json").read_text(encoding="utf-8"))["model"]
    return model


@pytest.fixture(scope="module")
def texts(shared_data: Path) -> list[str]:
    corpus = (shared_data / "bpe_reference/corpus.en").read_text(encoding="utf-8")
    plans = (shared_data / "tokenizers/openai/TestPlans.txt").read_text(encoding="utf-8")
    return (corpus + plans).split("\n\n")


# Few letters and short words: runs, overlaps, ties.
WORDS = st.sampled_from([b"a", b"ab", b"abc"]).flatmap(
    lambda letters: st.dictionaries(
        st.lists(st.sampled_from(letters), min_size=1, max_size=24).map(bytes),
        st.integers(1, 5),
        min_size=1,
        max_size=12,
    )
)


@given(words=WORDS, min_frequency=st.integers(0, 4), lexicographic=st.booleans())
@settings(max_examples=600, deadline=None)
def test_merges_equal_a_slow_trainer(
    words: dict[bytes, int], min_frequency: int, lexicographic: bool
) -> None:
    expected = bpe_training.learn(words, 40, min_frequency=min_frequency, lexicographic=lexicographic)
    ties = "lexicographic" if lexicographic else "hf"
    assert _learn(words, 40, min_frequency=min_frequency, ties=ties) == expected


def test_merges_of_many_words_equal_a_slow_trainer() -> None:
    random = np.random.default_rng(1)
    words = {
        random.integers(97, 101, size).astype(np.uint8).tobytes(): int(random.zipf(1.3) % 10_000 + 1)
        for size in random.integers(1, 30, 1500)
    }
    assert _learn(words, 150) == bpe_training.learn(words, 150)


@pytest.mark.parametrize(
    "unit", [b"a", b"ab", b"aab", bytes(np.random.default_rng(0).integers(65, 91, 5000, dtype=np.uint8))]
)
def test_long_words_equal_a_slow_trainer(unit: bytes) -> None:
    words = {(unit * 20_000)[:20_000]: 1, unit[:7]: 3}
    assert _learn(words, 40) == bpe_training.learn(words, 40)


def test_huge_words_cost_their_occurrences_only() -> None:
    """Merges of one word of 4 MB; work of length times merges would take minutes."""
    line = np.random.default_rng(2).integers(43, 123, 4 << 20, dtype=np.uint8).tobytes()
    assert len(_learn({line: 1}, 3000)) == 3000
    run = _learn({b"a" * (4 << 20): 1}, 3000)
    assert run[:3] == [(b"a", b"a"), (b"aa", b"aa"), (b"aaaa", b"aaaa")]
    assert len(run) == 21  # 2 to the 22nd letters, and a pair must occur twice


@pytest.mark.parametrize("pattern", sorted(PATTERNS))
def test_vocabulary_equals_hugging_face(pattern: str, texts: list[str], tmp_path: Path) -> None:
    special = [END, "<|user|>"]
    ours = Tokenizer.train(texts, vocab_size=1200, pattern=pattern, special_tokens=special, num_threads=2)
    peer = _train_peer(texts, pattern, vocab_size=1200, min_frequency=2, special_tokens=special)
    model, expected = _model(ours, tmp_path), _model(peer, tmp_path)
    assert model["merges"] == expected["merges"]
    assert model["vocab"] == expected["vocab"]


@pytest.mark.parametrize(
    "options",
    [
        {"min_frequency": 0},
        {"min_frequency": 30},
        {"max_token_length": 1},
        {"max_token_length": 4},
        {"max_token_length": 7, "min_frequency": 0},
        # Merges arrive at special tokens, and one is a byte.
        {"special_tokens": [END, "and", "the", "er", "x"]},
        {"special_tokens": ["the"], "max_token_length": 4},
    ],
    ids=str,
)
def test_options_equal_hugging_face(options: dict[str, Any], texts: list[str], tmp_path: Path) -> None:
    options = {"vocab_size": 900, **options}
    ours = Tokenizer.train(texts, pattern="gpt2", **{"min_frequency": 0, **options})
    peer = _train_peer(texts, **options)
    model, expected = _model(ours, tmp_path), _model(peer, tmp_path)
    assert model["merges"] == expected["merges"]
    assert model["vocab"] == expected["vocab"]
    sample = "an other then ander error"
    ids = ours.encode_ordinary(sample)
    assert ours.decode(ids) == sample
    if not options.get("special_tokens"):  # which the peer cuts out of any text
        assert ids == peer.encode(sample).ids


@pytest.mark.parametrize(("limit", "initial"), [(20, b""), (30, b"zZ~"), (255, b"")])
def test_limited_alphabets_give_the_merges_of_hugging_face(
    limit: int, initial: bytes, texts: list[str], tmp_path: Path
) -> None:
    ours = Tokenizer.train(
        texts, vocab_size=700, pattern="gpt2", limit_alphabet=limit, initial_alphabet=initial
    )
    peer = _train_peer(
        texts, vocab_size=700, min_frequency=2, limit_alphabet=limit, initial_alphabet=list(initial.decode())
    )
    expected = [(_bytes(a), _bytes(b)) for a, b in _model(peer, tmp_path)["merges"]]
    merges = _merges_of(ours, tmp_path)
    # Bytes left out keep their ids here, so there is room for fewer merges.
    assert len(merges) == 700 - 256
    assert merges == expected[: len(merges)]
    assert ours.decode(ours.encode("Ünïcode ~ \x07")) == "Ünïcode ~ \x07"


def test_training_equals_the_reference_of_cs336(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "bpe_reference"
    ours = Tokenizer.train(
        [folder / "corpus.en"], vocab_size=500, pattern="gpt2", special_tokens=[END], separator=END,
        ties="lexicographic",
    )  # fmt: skip
    rows = (folder / "train-bpe-reference-merges.txt").read_text(encoding="utf-8").splitlines()
    assert _merges_of(ours, tmp_path) == [tuple(_bytes(part) for part in row.split(" ")) for row in rows]
    vocab = json.loads((folder / "train-bpe-reference-vocab.json").read_text(encoding="utf-8"))
    # Ids differ: the reference numbers bytes by value.
    expected = {word.encode() if word == END else _bytes(word) for word in vocab}
    assert {ours.token_bytes(i) for i in range(ours.vocab_size)} == expected


def test_the_most_frequent_pair_comes_first(shared_data: Path) -> None:
    text = (shared_data / "bpe_reference/address.txt").read_text(encoding="utf-8")
    tokenizer = Tokenizer.train([text], vocab_size=257, pattern="gpt2")
    counts: Counter[bytes] = Counter()
    for piece in regex.findall(PATTERNS["gpt2"].expression, text):
        content = piece.encode()
        counts.update(content[i : i + 2] for i in range(len(content) - 1))
    assert counts[tokenizer.token_bytes(256)] == max(counts.values())


# --- counting


def _count(texts: Sequence[bytes], pattern: str = "gpt2") -> dict[bytes, int]:
    """Pieces of valid UTF-8: each expression cuts what the one before has left."""
    counts: Counter[bytes] = Counter()
    for text in texts:
        rest, pieces = [text.decode()], []
        for expression in map(regex.compile, PATTERNS[pattern].expressions):
            parts = [p for t in rest for p in regex.splititer(f"({expression.pattern})", t)]
            pieces += [p for p in parts if p and expression.fullmatch(p)]
            rest = [p for p in parts if p and not expression.fullmatch(p)]
        counts.update(piece.encode() for piece in [*pieces, *rest])
    return dict(sorted(counts.items()))


def _read_in_blocks(
    path: Path, pattern: str, max_bytes: int, separator: bytes = b"", keep: bool = False, num_threads: int = 1
) -> dict[bytes, int]:
    counter = WordCounter(pattern)
    offset, size = 0, path.stat().st_size
    while offset < size:
        after = counter._core.add_file(
            str(path), offset=offset, max_bytes=max_bytes, separator=separator, keep_separator=keep,
            num_threads=num_threads,
        )  # fmt: skip
        assert after > offset
        offset = after
    return counter.counts()


def test_words_of_every_length_and_many_of_them() -> None:
    random = np.random.default_rng(3)
    words = Counter(
        random.integers(97, 100, size).astype(np.uint8).tobytes() for size in random.integers(1, 40, 60_000)
    )
    words[b"z" * 200_000] = 2
    counter = WordCounter("gpt2")
    counter.add([" ".join(["", *(w.decode() for w in words.elements())])], num_threads=3)
    assert counter.counts() == {b" " + word: words[word] for word in sorted(words)}
    assert len(counter) == len(words)
    assert counter.byte_counts()[97] == sum(w.count(b"a") * n for w, n in words.items())


def test_every_container_gives_the_same_counts(texts: list[str], tmp_path: Path) -> None:
    expected = _count([t.encode() for t in texts])
    array = pa.array(texts)
    paths = []
    for i, text in enumerate(texts):
        paths.append(tmp_path / str(i))
        paths[-1].write_bytes(text.encode())
    corpora: dict[str, Callable[[], Any]] = {
        "list": lambda: texts,
        "iterator": lambda: iter(texts),
        "string": lambda: array,
        "large": lambda: pa.array(texts, pa.large_string()),
        "view": lambda: pa.array(texts, pa.string_view()),
        "binary": lambda: pa.array([t.encode() for t in texts]),
        "chunked": lambda: pa.chunked_array([array[:10], array[10:10], array[10:]]),
        "slice and nulls": lambda: pa.array(["x", None, *texts, None, "y"])[1:-1],
        "columns": lambda: (array[i : i + 7] for i in range(0, len(array), 7)),
        "paths": lambda: paths,
        "iterator of paths": lambda: iter(paths),
    }
    for name, corpus in corpora.items():
        for num_threads in (1, 2, 5):
            counter = WordCounter("gpt2")
            counter.add_batches(corpus(), num_threads=num_threads)
            assert counter.counts() == expected, (name, num_threads)


@pytest.mark.parametrize("pattern", sorted(PATTERNS))
def test_cutting_files_anywhere_gives_the_pieces_of_the_whole(
    pattern: str, texts: list[str], tmp_path: Path
) -> None:
    whole = "\n\n".join(texts)[:150_000] + " \n x's  y\n/z 12345 日本\n日本 \u3000\nend\x85\nx \u2028\nY\n"
    path = tmp_path / "text"
    path.write_text(whole, encoding="utf-8", newline="")
    expected = _count([whole.encode()], pattern)
    for max_bytes in (1, 100, 5000, 1 << 20):
        for num_threads in (1, 3):
            assert _read_in_blocks(path, pattern, max_bytes, num_threads=num_threads) == expected


TRICKY = st.lists(
    st.sampled_from(["a", "bc", "'s", "'ll", " ", "  ", "\n", "\r\n", "\t", "1", "234", "!", "/", "é", "日",
                     "\u3000", "\u0301", "a b", "z\nq"])
).map("".join)  # fmt: skip


@pytest.mark.parametrize("pattern", sorted(PATTERNS))
@given(text=TRICKY)
@settings(max_examples=150, deadline=None)
def test_cutting_tricky_text_gives_its_pieces(
    pattern: str, tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "tricky"
    path.write_bytes(text.encode())
    assert _read_in_blocks(path, pattern, 1) == _count([text.encode()], pattern)


@given(text=st.text("ab \n", max_size=60), separator=st.sampled_from(["\n", "\n\n", "aba", " "]))
@settings(max_examples=200, deadline=None)
def test_separators_cut_as_split_does(
    tmp_path_factory: pytest.TempPathFactory, text: str, separator: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "separated"
    path.write_text(text, encoding="utf-8", newline="")
    parts = text.split(separator)
    kept = [*(part + separator for part in parts[:-1]), parts[-1]]
    for max_bytes in (1, 7, 1000):
        for keep, expected in ((False, parts), (True, kept)):
            got = _read_in_blocks(path, "gpt2", max_bytes, separator.encode(), keep)
            assert got == _count([part.encode() for part in expected])


def test_large_files_with_separators(tmp_path: Path) -> None:
    """Several parts a block, which threads share."""
    text = "one two\n\n\n\nthree\n\n\nfour\n" * 100_000
    path = tmp_path / "text"
    path.write_text(text, encoding="utf-8", newline="")
    for separator in ("\n", "\n\n"):
        expected = Counter[bytes]()
        for part, times in Counter(text.split(separator)).items():
            for piece, count in _count([part.encode()]).items():
                expected[piece] += count * times
        for num_threads in (1, 2, 4):
            counter = WordCounter("gpt2")
            counter.add_files([path], separator=separator, num_threads=num_threads)
            assert counter.counts() == dict(sorted(expected.items()))


def test_bytes_that_are_no_text_are_counted(tmp_path: Path) -> None:
    content = np.random.default_rng(4).integers(0, 256, 300_000, dtype=np.uint8).tobytes()
    path = tmp_path / "bytes"
    path.write_bytes(content)
    counts = _read_in_blocks(path, "cl100k", 1 << 30)
    assert _read_in_blocks(path, "cl100k", 1000, num_threads=2) == counts
    assert sum(len(word) * count for word, count in counts.items()) == len(content)


# --- saving, going on, stopping


def test_saved_counts_are_the_same_file_and_the_same_counts(texts: list[str], tmp_path: Path) -> None:
    first, second = WordCounter("llama3"), WordCounter("llama3")
    first.add(texts, num_threads=1)
    second.add(texts[::-1], num_threads=4)
    first.note = second.note = {"batches": 3}
    first.save(tmp_path / "a")
    second.save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    loaded = WordCounter.load(tmp_path / "a")
    assert loaded.counts() == first.counts()
    assert (loaded.pattern, loaded.note, len(loaded)) == ("llama3", {"batches": 3}, len(first))
    trained = Tokenizer.train(loaded, vocab_size=400)
    assert trained.fingerprint == Tokenizer.train(texts, vocab_size=400, pattern="llama3").fingerprint
    assert Tokenizer.train(loaded, vocab_size=400).fingerprint == trained.fingerprint  # it is not used up
    WordCounter().save(tmp_path / "empty")
    assert len(WordCounter.load(tmp_path / "empty")) == 0


def test_counting_goes_on_where_it_was_cut_off(
    texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(word_counter, "_BLOCK_BYTES", 4000)
    monkeypatch.setattr(word_counter, "_SAVE_INTERVAL_S", -1.0)
    monkeypatch.setattr(word_counter, "_MAX_SAVE_SHARE", 1e9)
    paths = []
    whole = "".join(texts)
    for i in range(6):
        paths.append(tmp_path / f"{i}.txt")
        paths[-1].write_text(whole[i * 2000 : (i + 1) * 2000] * 10, encoding="utf-8")
    options: dict[str, Any] = {"vocab_size": 350, "pattern": "gpt2", "num_threads": 1}
    expected = Tokenizer.train(paths, **options)
    counts = tmp_path / "counts.npz"
    calls = []

    def stop(phase: str, done: int, total: int | None) -> None:
        calls.append(done)
        if len(calls) % 5 == 0:
            raise KeyboardInterrupt

    for _ in range(100):
        try:
            got = Tokenizer.train(paths, **options, counts=counts, progress=stop)
            break
        except KeyboardInterrupt:
            continue
    assert len(calls) > 20
    assert got.fingerprint == expected.fingerprint
    # All is counted: nothing is read again.
    for path in paths:
        path.chmod(0)
    phases = []
    again = Tokenizer.train(paths, **options, counts=counts, progress=lambda *call: phases.append(call))
    assert again.fingerprint == expected.fingerprint
    assert {phase for phase, _, _ in phases} == {"merge"}
    with pytest.raises(InputError, match="counted with pattern 'gpt2'"):
        Tokenizer.train(paths, **{**options, "pattern": "qwen2"}, counts=counts)
    with pytest.raises(InputError, match=r"holds .*\.txt, which is not in the corpus"):
        Tokenizer.train(paths[:2], **options, counts=counts)
    with pytest.raises(InputError, match="counted before with separator ''"):
        Tokenizer.train(paths, **options, counts=counts, separator="\n")
    paths[0].chmod(0o600)
    paths[0].write_text("other", encoding="utf-8")
    with pytest.raises(InputError, match=r"0\.txt: counted before with size"):
        Tokenizer.train(paths, **options, counts=counts)


@pytest.fixture
def alarm() -> Iterator[Callable[[float], None]]:
    """Raise KeyboardInterrupt in the main thread after some seconds, as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        pytest.skip("signals reach the main thread only")

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    yield lambda seconds: signal.setitimer(signal.ITIMER_REAL, seconds)
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def test_counting_can_be_interrupted(alarm: Callable[[float], None]) -> None:
    counter = WordCounter("gpt2")
    texts = ["some words and more\n" * 500_000] * 500  # 5 GB, were they all read
    alarm(0.05)
    with pytest.raises(KeyboardInterrupt):
        counter.add(texts, num_threads=2)
    with pytest.raises(InputError, match="interrupted"):
        counter.save("never")
    with pytest.raises(InputError, match="interrupted"):
        Tokenizer.train(counter, vocab_size=300)
    alarm(0.05)
    with pytest.raises(KeyboardInterrupt):  # one text that cannot be cut
        WordCounter("gpt2").add(["!" * 4 + "1" * 50_000_000 + "?1" * 300_000_000], num_threads=1)


def test_merging_can_be_interrupted(alarm: Callable[[float], None]) -> None:
    line = np.random.default_rng(5).integers(0, 256, 8 << 20, dtype=np.uint8).tobytes()
    alarm(0.5)
    with pytest.raises(KeyboardInterrupt):
        _learn({line: 1}, 100_000_000, min_frequency=1)


def test_progress_tells_how_far_it_is(texts: list[str], tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_text("".join(texts), encoding="utf-8")
    calls: list[tuple[str, int, int | None]] = []
    Tokenizer.train([path], vocab_size=800, progress=lambda *call: calls.append(call))
    size = path.stat().st_size
    assert [c for c in calls if c[0] == "count"] == [("count", size, size)]
    merging = [c for c in calls if c[0] == "merge"]
    assert merging[-1] == ("merge", 544, 544)
    assert [done for _, done, _ in merging] == sorted(done for _, done, _ in merging)
    calls.clear()
    Tokenizer.train(iter(texts), vocab_size=800, progress=lambda *call: calls.append(call))
    assert calls[0] == ("count", sum(map(len, texts)), None)


def test_bad_arguments_are_named(tmp_path: Path) -> None:
    def train(corpus: Any = ("a b",), **options: Any) -> None:
        Tokenizer.train(corpus, **{"vocab_size": 300, **options})

    with pytest.raises(InputError, match="did you mean 'cl100k'"):
        train(pattern="cl100")
    with pytest.raises(InputError, match=r"at least 257 \(256 bytes and 1 special"):
        train(vocab_size=256, special_tokens=[END])
    with pytest.raises(InputError, match="different and not empty"):
        train(special_tokens=[END, END])
    with pytest.raises(InputError, match="min_frequency must not be negative, got -1"):
        train(min_frequency=-1)
    with pytest.raises(InputError, match="max_token_length must be at least 1, got 0"):
        train(max_token_length=0)
    with pytest.raises(InputError, match="limit_alphabet must be at least 1 and the 2 bytes"):
        train(limit_alphabet=1, initial_alphabet=b"ab")
    with pytest.raises(InputError, match="ties must be 'hf' or 'lexicographic', got 'first'"):
        train(ties="first")
    with pytest.raises(InputError, match="special token 'é' is how the byte-level alphabet writes"):
        train(special_tokens=["é"])
    with pytest.raises(InputError, match="no text"):
        train([])
    with pytest.raises(TypeError, match="got a single one"):
        train("text")
    with pytest.raises(TypeError, match=r"texts\[1\] must be str or bytes, got int"):
        WordCounter().add(["a", 1])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="list of paths"):
        train(counts=tmp_path / "counts")
    with pytest.raises(InputError, match=r"texts\[0\] holds a lone surrogate"):
        train(["\ud800"])
    with pytest.raises(InputError, match="absent: no such file"):
        train([tmp_path / "absent"])
    with pytest.raises(InputError, match="a folder, expected a file"):
        train([tmp_path])
    with pytest.raises(InputError, match="absent: no such file"):
        WordCounter.load(tmp_path / "absent")
    broken = tmp_path / "broken"
    for content in (b"", b"not a zip", b"PK\x03\x04broken"):
        broken.write_bytes(content)
        with pytest.raises(InputError, match="broken: not a saved WordCounter"):
            WordCounter.load(broken)
    with broken.open("wb") as file:
        np.savez(file, about=np.frombuffer(b'{"format": 99}', np.uint8))
    with pytest.raises(InputError, match="saved by another version"):
        WordCounter.load(broken)
    about = np.frombuffer(
        json.dumps({"format": 1, "pattern": "gpt2", "note": {}, "files": []}).encode(), np.uint8
    )
    for offsets, counts in (
        ([0, 3], [1]),
        ([0, 0, 2], [1, 1]),
        ([0, 1, 2], [1, 0]),
        ([0, 5, 2], [1, 1]),
        ([0, 2], []),
    ):
        with broken.open("wb") as file:
            np.savez(
                file, about=about, data=np.frombuffer(b"ab", np.uint8), offsets=np.array(offsets, np.int64),
                counts=np.array(counts, np.uint64),
            )  # fmt: skip
        with pytest.raises(InputError, match="broken: not a saved WordCounter"):
            WordCounter.load(broken)


def test_names_of_files_are_no_corpus(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("some text")
    for corpus in ([str(tmp_path / "a.txt")], [str(tmp_path)], (str(tmp_path / "a.txt"),) * 2):
        with pytest.raises(InputError, match=r"is the name of a file or folder, .* give pathlib\.Path"):
            Tokenizer.train(corpus, vocab_size=260)
    for texts in (["."], ["/"], ["a.txt"], [str(tmp_path / "a.txt"), "a text"], ["a/" * 5000]):
        Tokenizer.train(texts, vocab_size=260)
