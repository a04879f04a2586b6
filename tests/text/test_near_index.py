"""Deduplication against an index, against `near` over all texts at once and against all pairs."""

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracles import near_duplicates as oracle

from pylm.errors import InputError
from pylm.text import _index_folder, dedup

SCHEMES: list[dedup.Scheme] = ["fast", "classic", "datatrove", "text-dedup"]


def _corpus(seed: int, size: int) -> list[str]:
    """Texts of a few families, some changed in one word or more, some copied, some without words."""
    draw = random.Random(seed)
    families = [["".join(draw.choices("abcdef", k=4)) for _ in range(30)] for _ in range(max(1, size // 8))]
    texts = []
    for _ in range(size):
        words = list(draw.choice(families))
        for _ in range(draw.choice([0, 0, 1, 1, 2, 5])):
            words[draw.randrange(len(words))] = "".join(draw.choices("abcdef", k=4))
        texts.append(draw.choice([" ".join(words)] * 30 + ["", "..."]))
    return texts


def _batches(seed: int, size: int, num_batches: int) -> list[tuple[int, int]]:
    cuts = [0, *sorted(random.Random(seed).choices(range(size + 1), k=num_batches - 1)), size]
    return list(pairwise(cuts))


def _add_all(
    index: dedup.NearIndex, texts: Any, batches: Sequence[tuple[int, int]], **options: Any
) -> tuple[list[int], list[float]]:
    """Cluster and similarity of every text, numbered as in one collection."""
    cluster: list[int] = []
    similarity: list[float] = []
    for begin, end in batches:
        given = {name: value[begin:end] for name, value in options.items()}
        expected = index.deduplicate(texts[begin:end], **given, num_threads=3)
        found = index.add(texts[begin:end], **given, num_threads=1)
        for name in ("keep", "document", "cluster", "similarity"):
            assert np.array_equal(getattr(found, name), getattr(expected, name))
        known = found.document >= 0
        assert np.array_equal(known, found.cluster < 0)
        assert np.array_equal(found.keep, found.cluster == np.arange(end - begin))
        cluster += np.where(known, found.document, found.cluster + begin).tolist()
        similarity += found.similarity.tolist()
    return cluster, similarity


def _expected(found: dedup.NearDuplicates) -> tuple[list[int], list[float]]:
    similarity = np.ones(len(found.cluster))
    similarity[found.pairs[:, 1]] = found.similarity
    return found.cluster.tolist(), similarity.tolist()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("shingle_bits", [64, 32])
@pytest.mark.parametrize("seed", range(3))
def test_batches_give_what_all_texts_give(
    tmp_path: Path, scheme: dedup.Scheme, shingle_bits: dedup.ShingleBits, seed: int
) -> None:
    texts = _corpus(seed, 400)
    options: dict[str, Any] = {"threshold": 0.6, "ngram": 2, "scheme": scheme}
    index = dedup.NearIndex.create(tmp_path / "index", **options, shingle_bits=shingle_bits)
    expected = dedup.near(texts, **options)
    assert 0 < expected.keep.sum() < len(texts)
    assert _add_all(index, texts, _batches(seed, len(texts), 12)) == _expected(expected)
    assert (index.bands, index.rows) == (expected.bands, expected.rows)
    assert index.num_texts == len(texts)
    words = np.array([bool(text.strip(". ")) for text in texts])
    assert len(index) == (expected.keep & words).sum()
    again = dedup.NearIndex(tmp_path / "index").query(texts)
    assert again.document[words].tolist() == expected.cluster[words].tolist()
    assert (again.document[~words] == -1).all()


@pytest.mark.parametrize("keep", ["longest", "priority"])
def test_preferences(tmp_path: Path, keep: str) -> None:
    texts = _corpus(5, 300)
    texts = [text + " x" * (i % 4) for i, text in enumerate(texts)]
    batches = _batches(5, len(texts), 6)
    draw = random.Random(9)
    if keep == "longest":
        preference = [float(len(text)) for text in texts]
    else:
        preference = [float(draw.randrange(5)) for _ in texts]
    batch_of = np.concatenate([np.full(end - begin, i) for i, (begin, end) in enumerate(batches)])
    index = dedup.NearIndex.create(tmp_path / "index", threshold=0.6, ngram=2)
    expected = dedup.near(texts, threshold=0.6, ngram=2, priority=np.array(preference) - 1e6 * batch_of)
    if keep == "priority":
        found = _add_all(index, texts, batches, priority=preference)
    else:
        clusters = []
        for begin, end in batches:
            part = index.add(texts[begin:end], keep="longest")
            clusters += np.where(part.document >= 0, part.document, part.cluster + begin).tolist()
        found = clusters, _expected(expected)[1]
    assert found == _expected(expected)


def test_units_and_columns(tmp_path: Path) -> None:
    texts = _corpus(6, 120)
    index = dedup.NearIndex.create(tmp_path / "char", threshold=0.7, unit="char")
    assert _add_all(index, texts, _batches(1, 120, 4)) == _expected(
        dedup.near(texts, threshold=0.7, unit="char")
    )
    names = sorted({word for text in texts for word in text.split()})
    ids = [np.array([names.index(word) for word in text.split()], np.uint32) for text in texts]
    index = dedup.NearIndex.create(tmp_path / "token", threshold=0.7, ngram=3, unit="token", bits=64)
    assert _add_all(index, ids, _batches(2, 120, 4))[0] == (
        dedup.near(ids, threshold=0.7, ngram=3, unit="token").cluster.tolist()
    )
    rough = [
        None if i % 10 == 0 else text.encode()[:-1] + (b"\xff" if i % 3 == 0 else b"\xe2\x82")
        for i, text in enumerate(texts)
    ]
    column = pa.array(rough, pa.binary())
    index = dedup.NearIndex.create(tmp_path / "bytes", threshold=0.7)
    assert _add_all(index, column, _batches(3, 120, 4)) == _expected(dedup.near(column, threshold=0.7))
    with pytest.raises(InputError, match=r"texts\[1\] holds a lone surrogate"):
        index.add(["a", "\ud800"])
    with pytest.raises(TypeError, match="texts must be a list"):
        index.query("text")  # type: ignore[arg-type]


SMALL = st.lists(st.sampled_from(["a", "b", "c", "d", "e"]), max_size=8).map(" ".join)


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(batches=st.lists(st.lists(SMALL, max_size=6), max_size=6), threshold=st.sampled_from([0.3, 0.5, 1.0]))
def test_all_pairs(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[str]], threshold: float
) -> None:
    """With a band for every value no pair is missed that shares much."""
    folder = tmp_path_factory.mktemp("index") / "index"
    index = dedup.NearIndex.create(folder, threshold=threshold, ngram=2, num_perm=256, bands=256, rows=1)
    kept: list[tuple[int, set[tuple[str, ...]]]] = []
    place = 0
    for batch in batches:
        sets = [oracle.shingles(text, 2) for text in batch]
        queried = index.query(batch)
        for i, own in enumerate(sets):
            match = next((n for n, other in kept if oracle.similarity(own, other) >= threshold), -1)
            assert queried.document[i] == match
            other = dict(kept).get(match)
            assert queried.similarity[i] == (0 if other is None else oracle.similarity(own, other))
        found = index.add(batch)
        now: list[tuple[int, set[tuple[str, ...]]]] = []
        for i, own in enumerate(sets):
            resembles = any(oracle.similarity(own, other) >= threshold for _, other in kept + now)
            assert found.keep[i] == (not resembles)
            if not resembles:
                now.append((place + i, own))
        kept += now
        place += len(batch)


def test_estimates(tmp_path: Path) -> None:
    """Signatures in place of shingles: similarities within five standard errors of the true ones."""
    texts = _corpus(7, 600)
    sets = [oracle.shingles(text, 2) for text in texts]
    index = dedup.NearIndex.create(
        tmp_path / "index", threshold=0.6, ngram=2, num_perm=256, bands=64, rows=4, shingle_bits=0
    )
    index.add(texts[:300])
    found = index.deduplicate(texts[300:])
    matched = np.flatnonzero(found.document >= 0)
    assert len(matched) > 150
    errors = []
    for i in matched:
        true = oracle.similarity(sets[300 + i], sets[found.document[i]])
        errors.append(found.similarity[i] - true)
        assert abs(errors[-1]) <= 5 * (true * (1 - true) / 256) ** 0.5
        assert found.similarity[i] >= 0.6
    assert abs(np.mean(errors)) < 0.01
    wide = dedup.NearIndex.create(tmp_path / "wide", threshold=0.6, ngram=2, shingle_bits=0, bits=64)
    wide.add(texts[:300])
    again = wide.query(texts[:300])  # equal texts are found by their hashes
    assert (again.document[[bool(own) for own in sets[:300]]] >= 0).all()


@pytest.mark.parametrize("shingle_bits", [64, 32])
@pytest.mark.parametrize("threshold", [0.5, 0.8])
def test_templates(tmp_path: Path, threshold: float, shingle_bits: dedup.ShingleBits) -> None:
    """Texts that share bands with hundreds of documents in vain: their rarest shingles find the same ones."""
    draw = random.Random(9)
    template = [f"w{i}" for i in range(60)]
    texts: list[str] = []
    for i in range(1000):
        words = list(template[: draw.choice([60, 60, 60, 45])])
        for place in draw.sample(range(len(words)), 10):
            words[place] = f"x{i}y{place}"
        texts.append(" ".join(words))
        if i % 9 == 8:
            texts.append(" ".join([*words, "more"]) if i % 2 else draw.choice(texts) + " tail")
    options: dict[str, Any] = {"threshold": threshold, "ngram": 1, "bands": 64, "rows": 2}
    index = dedup.NearIndex.create(tmp_path / "seen", **options, shingle_bits=shingle_bits)
    cluster, similarity = _add_all(index, texts, [(0, 500), (500, 500), (500, 900), (900, len(texts))])
    expected = dedup.near(texts, **options)
    assert (cluster, similarity) == _expected(expected)
    assert len(expected.pairs) > 80
    later = expected.pairs[expected.pairs[:, 1] >= 900]
    assert (later[:, 0] < 900).sum() > 5
    sets = [set(text.split()) for text in texts]
    for kept, removed in expected.pairs[::10].tolist():
        common = len(sets[kept] & sets[removed])
        assert similarity[removed] == common / (len(sets[kept]) + len(sets[removed]) - common)


def test_what_an_index_says_of_itself(tmp_path: Path) -> None:
    index = dedup.NearIndex.create(tmp_path / "seen", threshold=0.7, shingle_bits=32)
    index.add(["the quick brown fox jumps", "The quick brown fox jumps!", "a lazy dog"])
    shown = repr(index)
    assert shown.startswith(
        f"NearIndex({str(tmp_path / 'seen')!r}: 2 documents of 3 texts, 0.0 MB in 1 files;"
    )
    assert "threshold=0.7" in shown
    assert "shingle_bits=32)" in shown


def test_ids(tmp_path: Path) -> None:
    index = dedup.NearIndex.create(tmp_path / "index")
    ids = [7, 1 << 40, 0]
    assert index.add(["a b c d e f", "x y z u v w", "A b c d e f!"], ids=ids).document.tolist() == [-1] * 3
    assert index.query(["a b c d e f", "X y z u v w", "new", ""]).document.tolist() == [7, 1 << 40, -1, -1]
    assert index.query(["a b c d e f", "new"]).similarity.tolist() == [1, 0]
    index.add(["p q r s t"])  # its place, 3
    assert index.query(["p q r s t"]).document.tolist() == [3]
    for wrong, message in [
        ([1], "ids must hold one number for each of 2 texts, got 1"),
        ([1.5, 2], "ids must be whole numbers"),
        ([-1, 2], r"ids must lie in \[0, 2\^63\), got -1 to 2"),
    ]:
        with pytest.raises(InputError, match=message):
            index.add(["a", "b"], ids=wrong)  # type: ignore[arg-type]
    assert index.num_texts == 4
    assert sorted(path.name for path in (tmp_path / "index").iterdir()) == (
        ["00000000.segment", "00000001.segment", "index.json", "lock"]
    )


def test_empty(tmp_path: Path) -> None:
    index = dedup.NearIndex.create(tmp_path / "index")
    for _ in range(2):
        assert (len(index), index.num_texts, index.num_bytes, index.num_files) == (0, 0, 0, 0)
        assert index.query(["a", ""]).document.tolist() == [-1, -1]
        assert index.deduplicate([]).keep.tolist() == []
        assert index.add([]).keep.tolist() == []
        index = dedup.NearIndex(tmp_path / "index")
    assert index.add(pa.array([None, "", "...", None], pa.string())).keep.tolist() == [True] * 4
    assert (len(index), index.num_texts, index.num_files) == (0, 4, 0)
    index.merge()


def test_many_copies(tmp_path: Path) -> None:
    index = dedup.NearIndex.create(tmp_path / "index")
    texts = ["one text that was copied again and again"] * 100_000
    begin = time.process_time()
    assert index.add(texts).keep.sum() == 1
    size = index.num_bytes
    found = index.add([*texts, "One text that was copied again and again!"] * 2)
    assert (found.document == 0).all()
    assert (len(index), index.num_texts) == (1, 300_002)
    assert index.num_bytes < 3 * size
    assert time.process_time() - begin < 30
    many = [
        f"one text that was copied again and again and again and again and again {i}" for i in range(20_000)
    ]
    assert index.add(many).keep.sum() == dedup.near([texts[0], *many]).keep.sum() - 1


def test_merges(tmp_path: Path) -> None:
    """Few files, the same answers, and nothing is lost."""
    texts = _corpus(11, 800)
    index = dedup.NearIndex.create(tmp_path / "index", threshold=0.6, ngram=2)
    single = dedup.NearIndex.create(tmp_path / "single", threshold=0.6, ngram=2)
    single.add(texts)
    for begin in range(0, 800, 10):
        index.add(texts[begin : begin + 10])
        assert index.num_files <= 9
    reader = dedup.NearIndex(tmp_path / "index")
    files = set((tmp_path / "index").glob("*.segment"))
    index.merge()
    assert index.num_files == 1
    assert not files & set((tmp_path / "index").glob("*.segment"))
    for each in (index, reader, dedup.NearIndex(tmp_path / "index")):  # the reader has its files still
        found, expected = each.query(texts), single.query(texts)
        assert np.array_equal(found.document, expected.document)
        assert np.array_equal(found.similarity, expected.similarity)
    reader.refresh()
    assert reader.num_files == 1
    merged = next((tmp_path / "index").glob("*.segment")).read_bytes()
    whole = next((tmp_path / "single").glob("*.segment")).read_bytes()
    assert merged == whole


@pytest.mark.parametrize("shingle_bits", [0, 32, 64])
def test_threads(tmp_path: Path, shingle_bits: dedup.ShingleBits) -> None:
    texts = _corpus(12, 3000)
    files = []
    for num_threads in (1, 2, 5):
        index = dedup.NearIndex.create(tmp_path / f"{num_threads}", threshold=0.6, shingle_bits=shingle_bits)
        for begin in range(0, 3000, 500):
            index.add(texts[begin : begin + 500], num_threads=num_threads)
        files.append({path.name: path.read_bytes() for path in (tmp_path / f"{num_threads}").iterdir()})
    assert files[0] == files[1] == files[2]


def test_keys(tmp_path: Path) -> None:
    """The documents of a key are those that stand for the texts that have it."""
    texts = _corpus(14, 300)
    index = dedup.NearIndex.create(tmp_path / "index", threshold=0.6, ngram=2)
    cluster, _ = _add_all(index, texts, _batches(14, 300, 7))
    keys, has_shingles = index.hasher.band_keys(texts, bands=index.bands, rows=index.rows)
    owners: dict[int, set[int]] = {}
    for i in np.flatnonzero(has_shingles):
        for key in keys[i].tolist():
            owners.setdefault(key, set()).add(cluster[i])
    wanted = np.array([*owners, 1, 2], np.uint64)
    found: dict[int, list[int]] = {}
    for key, document in zip(*index.find_keys(wanted), strict=True):
        found.setdefault(int(wanted[key]), []).append(int(document))
    assert found == {key: sorted(documents) for key, documents in owners.items()}
    with pytest.raises(InputError, match="keys must have dtype uint64"):
        index.find_keys(wanted.astype(np.int64))  # type: ignore[arg-type]


def test_readers_and_writers(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    reader = dedup.NearIndex.create(folder)
    writer = dedup.NearIndex(folder)
    writer.add(["a b c d e f g"])
    assert reader.query(["a b c d e f g"]).document.tolist() == [-1]
    reader.refresh()
    assert reader.query(["a b c d e f g"]).document.tolist() == [0]
    reader.add(["x y z u v w"])  # two writers take turns
    assert writer.add(["X y z u v w", "new words"]).document.tolist() == [1, -1]
    with _index_folder.writing(folder, "near"):
        for call in (lambda: writer.add(["other"]), writer.merge):
            with pytest.raises(InputError, match="is being written to by another process"):
                call()
        assert writer.query(["new words"]).document.tolist() == [3]
    script = f"from pylm import dedup; dedup.NearIndex({str(folder)!r}).add(['one more'])"
    with _index_folder.writing(folder, "near"):
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "InputError" in done.stderr
    subprocess.run([sys.executable, "-c", script], check=True)
    writer.refresh()
    assert writer.num_texts == 5


WORKER = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from pylm.text import _index_folder, dedup
from text.test_near_index import _corpus
texts = _corpus(13, 600)
index = dedup.NearIndex({folder!r}, check=False)
{before}
for begin in range(index.num_texts, 600, 20):
    index.add(texts[begin : begin + 20])
"""


def _run_worker(folder: Path, before: str = "") -> subprocess.Popen[bytes]:
    script = WORKER.format(tests=str(Path(__file__).parents[1]), folder=str(folder), before=before)
    return subprocess.Popen([sys.executable, "-c", script])


def _check_state(folder: Path, texts: list[str]) -> int:
    """Whatever was killed, the index is that of the first batches, in full."""
    index = dedup.NearIndex(folder)
    assert index.num_texts % 20 == 0
    if index.num_texts:
        expected = dedup.near(texts[: index.num_texts], threshold=0.6, ngram=2)
        found = index.query(texts[: index.num_texts])
        words = [bool(text.strip(". ")) for text in texts[: index.num_texts]]
        assert found.document[words].tolist() == expected.cluster[words].tolist()
    return index.num_texts


KILL = """
calls = 0
def kill(function):
    def run(*arguments, **options):
        global calls
        calls += 1
        if calls == {call} and {early}:
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*arguments, **options)
        if calls == {call}:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return run
{target} = kill({target})
"""


@pytest.mark.parametrize("early", [True, False])
@pytest.mark.parametrize(
    "target", ["_index_folder._write", "_index_folder.commit", "_index_folder.commit_merge", "os.replace"]
)
def test_killed_between_steps(tmp_path: Path, target: str, early: bool) -> None:
    folder = tmp_path / "index"
    dedup.NearIndex.create(folder, threshold=0.6, ngram=2)
    before = KILL.format(call=3, early=early, target=target)
    if target == "os.replace":
        before = before.replace("os.replace", "__import__('pathlib').Path.replace")
        before = before.replace(
            "__import__('pathlib').Path.replace =", "import pathlib; pathlib.Path.replace ="
        )
    worker = _run_worker(folder, before)
    assert worker.wait(timeout=120) == -signal.SIGKILL
    texts = _corpus(13, 600)
    num_texts = _check_state(folder, texts)
    assert num_texts >= 20
    dedup.NearIndex(folder).add(texts[num_texts : num_texts + 20])
    _check_state(folder, texts)
    names = {segment.name for segment in _index_folder.read(folder, "near").segments}
    assert {path.name for path in folder.iterdir()} == names | {"index.json", "lock"}


def test_killed_at_any_time(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    dedup.NearIndex.create(folder, threshold=0.6, ngram=2)
    texts, draw, num_texts = _corpus(13, 600), random.Random(1), 0
    for _ in range(8):
        worker = _run_worker(folder)
        deadline = time.monotonic() + 60
        while dedup.NearIndex(folder).num_texts <= num_texts and worker.poll() is None:
            assert time.monotonic() < deadline
        time.sleep(draw.random() / 20)
        worker.kill()
        worker.wait()
        now = _check_state(folder, texts)
        assert now >= num_texts
        num_texts = now
    assert _run_worker(folder).wait(timeout=120) == 0
    assert _check_state(folder, texts) == 600


def test_full_disk(tmp_path: Path) -> None:
    """A file that cannot grow: an error, and the index as it was."""
    folder = tmp_path / "index"
    index = dedup.NearIndex.create(folder)
    index.add(["a b c d e f"])
    script = f"""
import resource, signal
from pylm import dedup
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
index = dedup.NearIndex({str(folder)!r})
try:
    index.add([" ".join(str(n * i) for n in range(50)) for i in range(1000)])
except OSError as error:
    print(type(error).__name__, error.filename is not None)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["OSError", "True"], done.stderr
    assert dedup.NearIndex(folder).num_texts == 1
    assert sorted(path.name for path in folder.iterdir()) == ["00000000.segment", "index.json", "lock"]


def _flip(place: int) -> Callable[[bytes], bytes]:
    return lambda data: data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:-1], "expected .* bytes, got"),
        (lambda data: data + b"\0", "expected .* bytes, got"),
        (lambda data: data[:100], "cut off within the header"),
        (lambda data: b"", "cut off within the header"),
        (_flip(0), "no file of an index"),
        (_flip(8), "version 0 of the format"),
        (_flip(40), "the header is damaged"),
        (_flip(-1 + 4096 + 1), "damaged between bytes 4096 and"),
        (lambda data: _flip(len(data) - 1)(data), "the checksums are damaged"),
        (lambda data: _flip(len(data) // 2)(data), "damaged between bytes 4096 and"),
    ],
)
def test_damaged_files(tmp_path: Path, change: Callable[[bytes], bytes], message: str) -> None:
    folder = tmp_path / "index"
    index = dedup.NearIndex.create(folder)
    index.add(_corpus(1, 50))
    index.add(_corpus(2, 50))
    file = folder / "00000001.segment"
    data = file.read_bytes()
    file.write_bytes(change(data))
    with pytest.raises(InputError, match=f"{file}: {message}.*restore the file, or build the index again"):
        dedup.NearIndex(folder)
    file.unlink()
    with pytest.raises(InputError, match=f"{file}: missing from the index"):
        dedup.NearIndex(folder)
    file.write_bytes(data)
    (folder / "00000000.segment").write_bytes(data)
    with pytest.raises(InputError, match="documents of another file are missing before it"):
        dedup.NearIndex(folder)


def test_unchecked_damage(tmp_path: Path) -> None:
    """Whatever a file holds, reading it does not leave it; merging finds damage."""
    folder = tmp_path / "index"
    texts = _corpus(1, 200)
    index = dedup.NearIndex.create(folder, threshold=0.6, ngram=2)
    index.add(texts)
    index.add(_corpus(2, 10))
    file = folder / "00000000.segment"
    data = file.read_bytes()
    draw = random.Random(0)
    for _ in range(60):
        changed = bytearray(data)
        begin = draw.randrange(4096, len(data) - 600)
        for place in range(begin, begin + 500):
            changed[place] = draw.randrange(256)
        file.write_bytes(changed)
        try:
            damaged = dedup.NearIndex(folder, check=False)
            damaged.query(texts)
            damaged.deduplicate(texts)
        except InputError as error:
            assert str(file) in str(error)  # noqa: PT017
        with pytest.raises(InputError, match=str(file)):
            dedup.NearIndex(folder)
    with pytest.raises(InputError, match=str(file)):
        dedup.NearIndex(folder, check=False).merge()


def test_other_indexes(tmp_path: Path) -> None:
    first = dedup.NearIndex.create(tmp_path / "first")
    first.add(["a b c d e f"])
    second = dedup.NearIndex.create(tmp_path / "second", threshold=0.7)
    second.add(["a b c d e f"])
    (tmp_path / "first/00000000.segment").write_bytes((tmp_path / "second/00000000.segment").read_bytes())
    with pytest.raises(InputError, match=r"00000000.segment: a file of another index"):
        dedup.NearIndex(tmp_path / "first")
    with pytest.raises(InputError, match="holds an index already"):
        dedup.NearIndex.create(tmp_path / "first")
    with pytest.raises(InputError, match="holds no index; make one with create"):
        dedup.NearIndex(tmp_path / "none")
    dedup.SubstringIndex.create(tmp_path / "substring")
    with pytest.raises(InputError, match="holds an index of kind 'substring', expected 'near'"):
        dedup.NearIndex(tmp_path / "substring")
    manifest = tmp_path / "second/index.json"
    about = manifest.read_text()
    for text, message in [
        ("{", "expected the manifest of an index"),
        ("[]", "expected the manifest of an index"),
        ("{}", "expected the manifest of an index"),
        (about.replace('"version": 1', '"version": 2'), "version 2 of the format, and this is version 1"),
        (about.replace('"bands"', '"bonds"'), "a file of another index|lacks parameters"),
        (about.replace('"seed": 42', '"seed": 43'), "a file of another index"),
        (about.replace('"seed": 42', '"seed": "x"'), "lacks parameters"),
    ]:
        manifest.write_text(text)
        with pytest.raises(InputError, match=message):
            dedup.NearIndex(tmp_path / "second")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 0}, r"threshold must lie in \(0, 1\]"),
        ({"num_perm": 0}, "num_perm must lie in"),
        ({"ngram": 0}, "ngram must lie in"),
        ({"unit": "line"}, "unit must be one of"),
        ({"scheme": "slow"}, "scheme must be one of"),
        ({"shingle_bits": 16}, "shingle_bits must be 0, 32 or 64, got 16"),
        ({"bands": 3}, "bands and rows are given together"),
        ({"bands": 64, "rows": 3}, r"bands \* rows must be at most num_perm=128"),
        ({"bits": 16}, "bits must lie in"),
    ],
)
def test_wrong_parameters(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        dedup.NearIndex.create(tmp_path / "index", **options)
    assert not (tmp_path / "index").exists()


def test_wrong_arguments(tmp_path: Path) -> None:
    index = dedup.NearIndex.create(tmp_path / "index")
    with pytest.raises(InputError, match="keep must be one of"):
        index.add(["a"], keep="last")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="priority must hold one value for each of"):
        index.add(["a"], priority=[1, 2])
    with pytest.raises(InputError, match="num_threads must lie in"):
        index.query(["a"], num_threads=-1)
    with pytest.raises(TypeError, match="check must be True or False"):
        dedup.NearIndex(tmp_path / "index", check=1)  # type: ignore[arg-type]
    assert index.num_texts == 0
    assert {path.name for path in (tmp_path / "index").iterdir()} == {"index.json", "lock"}
