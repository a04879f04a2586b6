"""Spans that an index finds: nothing beyond those of `substrings`, and all that is promised."""

import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pylm.errors import InputError
from pylm.text import _index_folder, dedup

ROOT = Path(__file__).resolve().parents[2]


def _covered(spans: dedup.Spans) -> list[set[int]]:
    places: list[set[int]] = [set() for _ in range(spans.num_docs)]
    for doc, start, end in zip(spans.doc.tolist(), spans.start.tolist(), spans.end.tolist(), strict=True):
        places[doc].update(range(start, end))
    return places


def _stretches(old: bytes, new: bytes) -> list[tuple[int, int, int]]:
    """Where old and new agree and agree no further, by comparing all places: place in old, in new, bytes."""
    found = []
    for shift in range(-len(old) + 1, len(new)):
        size = 0
        for place in range(max(0, shift), min(len(new), len(old) + shift) + 1):
            if place < len(new) and place - shift < len(old) and new[place] == old[place - shift]:
                size += 1
                continue
            if size:
                found.append((place - shift - size, place - size, size))
            size = 0
    return found


def _promised(olds: list[bytes], new: bytes, min_bytes: int, gap: int, slack: int = 0) -> set[int]:
    """Bytes of `new` that must be found."""
    places: set[int] = set()
    for old in olds:
        for in_old, in_new, size in _stretches(old, new):
            whole = len(old) == len(new) == size >= min_bytes
            if size < min_bytes + gap - 1 and not whole:
                continue
            first, last = in_new, in_new + size
            if in_old != 0 or in_new != 0:
                first += gap - 1 + slack
            if in_old + size != len(old) or last != len(new):
                last -= gap - 1 + slack
            places.update(range(first, last))
    return places


def _texts(draw: random.Random, parts: list[bytes], most: int) -> list[bytes]:
    alphabet = draw.choice([b"a", b"ab", b"abc", b"abcdefgh"])

    def noise() -> bytes:
        return bytes(draw.choices(alphabet, k=draw.choice([0, 1, 3, 10, 40])))

    return [
        draw.choice([b"", noise()]) + b"".join(draw.choice(parts) + noise() for _ in range(draw.randrange(4)))
        for _ in range(draw.randrange(most))
    ]


@pytest.mark.parametrize("seed", range(150))
def test_promise(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    min_bytes = draw.choice([1, 2, 3, 7, 8, 9, 12, 20])
    gap = draw.choice([1, min_bytes, draw.randint(1, min_bytes)])
    parts = [bytes(draw.choices(b"abcd", k=draw.choice([1, 8, 30, 90]))) for _ in range(4)]
    old, new = _texts(draw, parts, 5), _texts(draw, parts, 6)
    if old and draw.random() < 0.3:
        new.append(draw.choice(old))
    index = dedup.SubstringIndex.create(
        tmp_path / "index", min_bytes=min_bytes, gap=gap, hash_bits=draw.choice([64, 128])
    )
    for begin in range(0, len(old), 2):
        index.add(pa.array(old[begin : begin + 2], pa.binary()))
    column = pa.array([*new, None], pa.binary())
    found = index.find(column, num_threads=draw.choice([1, 3]))
    exact = dedup.substrings(column, min_bytes=min_bytes, against=pa.array(old, pa.binary()))
    if gap == 1:
        for name in ("doc", "start", "end"):
            assert np.array_equal(getattr(found, name), getattr(exact, name))
    for text, some, all_ in zip(new, _covered(found), _covered(exact), strict=False):
        assert some <= all_
        assert _promised(old, text, min_bytes, gap) <= some
    assert found.apply(column).null_count == 1


def test_real_text(tmp_path: Path) -> None:
    """Documents of this project with pieces of each other, in windows of the usual size."""
    pages = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))]
    draw = random.Random(3)
    new = []
    for _ in range(40):
        text = ""
        for _ in range(6):
            page = draw.choice(pages[:4])
            begin = draw.randrange(len(page))
            text += page[begin : begin + draw.choice([50, 110, 131, 140, 400])] + draw.choice(
                ["", "é漢", "\n"]
            )
        new.append(text)
    index = dedup.SubstringIndex.create(tmp_path / "index")
    index.add(pages[:4])
    found, exact = index.find(new), dedup.substrings(new, against=pages[:4])
    assert 0.75 * exact.size < found.size <= exact.size
    olds = [page.encode() for page in pages[:4]]
    for text, some, all_ in zip(new[:4], _covered(found)[:4], _covered(exact)[:4], strict=True):
        assert some <= all_
        assert _promised([olds[0]], text.encode(), 100, 32, slack=3) <= some
    left = found.apply(new).to_pylist()
    assert sum(len(text.encode()) for text in left) == sum(len(text.encode()) for text in new) - found.size
    whole = index.find(pages)
    for i in range(4):
        assert (whole.doc == i).sum() == 1
        at = int(np.flatnonzero(whole.doc == i)[0])
        assert (whole.start[at], whole.end[at]) == (0, len(olds[i]))


def test_long_texts_and_threads(tmp_path: Path) -> None:
    """Texts of several tasks; files and spans do not depend on the threads."""
    draw = np.random.default_rng(1)
    long = draw.integers(97, 123, 3_000_000, np.uint8).tobytes()[:-1] + b"." + b"x" * 1_500_000
    texts = pa.array([long, b"short " * 30, *(long[i : i + 500] for i in range(0, 50_000, 500))], pa.binary())
    old = pa.array([b"p" + long[1_000_000:2_500_000] + b"q", long[-700_000:]], pa.binary())
    files, spans = [], []
    for num_threads in (1, 2, 5):
        index = dedup.SubstringIndex.create(tmp_path / str(num_threads))
        index.add(old, num_threads=num_threads)
        files.append({path.name: path.read_bytes() for path in (tmp_path / str(num_threads)).iterdir()})
        spans.append(index.find(texts, num_threads=num_threads))
    assert files[0] == files[1] == files[2]
    for other in spans[1:]:
        assert np.array_equal(spans[0].start, other.start)
        assert np.array_equal(spans[0].end, other.end)
    assert spans[0].doc.tolist() == [0, 0]
    assert 1_000_000 <= spans[0].start[0] <= 1_000_031
    assert 2_500_000 - 31 <= spans[0].end[0] <= 2_500_000
    assert 3_000_000 <= spans[0].start[1] <= 3_000_031
    assert spans[0].end[1] == 4_500_000


def test_files(tmp_path: Path) -> None:
    """Repeats are kept once, files are merged, and all that was added is found."""
    draw = random.Random(4)
    texts = ["".join(draw.choices("abcdefgh ", k=400)) for _ in range(120)]
    folder = tmp_path / "index"
    index = dedup.SubstringIndex.create(folder, min_bytes=40, gap=8)
    assert (index.num_windows, index.num_texts, index.num_bytes) == (0, 0, 0)
    assert len(index.find(texts)) == 0
    index.add([])
    index.add(["too short"])
    assert (index.num_files, index.num_texts) == (0, 1)
    for i, text in enumerate(texts):
        index.add([text, texts[i // 2]])
        assert index.num_files < 7
    assert index.num_texts == 241
    single = dedup.SubstringIndex.create(tmp_path / "single", min_bytes=40, gap=8)
    single.add(texts)
    assert index.num_windows == single.num_windows
    reader = dedup.SubstringIndex(folder)
    index.merge()
    assert [path.read_bytes() for path in folder.glob("*.segment")] == [
        path.read_bytes() for path in (tmp_path / "single").glob("*.segment")
    ]
    for each in (index, reader, dedup.SubstringIndex(folder)):
        assert each.find(texts).size == 120 * 400
    with _index_folder.writing(folder, "substring"):
        for call in (lambda: index.add(["x"]), index.merge):
            with pytest.raises(InputError, match="is being written to by another process"):
                call()


def test_many_copies(tmp_path: Path) -> None:
    index = dedup.SubstringIndex.create(tmp_path / "index", min_bytes=20, gap=5)
    text = "one text that was copied again and again"
    index.add([text] * 100_000)
    assert index.num_windows <= 21
    assert index.find([text] * 100_000).size == 100_000 * len(text)


def test_killed(tmp_path: Path) -> None:
    """Killed before or behind each step of an addition and of a merge, the index holds whole batches."""
    draw = random.Random(5)
    texts = ["".join(draw.choices("abcdefgh ", k=300)) for _ in range(12)]
    for number, (step, call) in enumerate(
        [(step, call) for step in ("_write", "commit", "commit_merge") for call in (1, 2, 4, 5)]
    ):
        folder = tmp_path / str(number)
        dedup.SubstringIndex.create(folder, min_bytes=30, gap=4)
        script = f"""
import os, signal
from pylm.text import _index_folder, dedup
calls, step = 0, _index_folder.{step}
def run(*arguments, **options):
    global calls
    calls += 1
    if calls == {call} and {number % 2}: os.kill(os.getpid(), signal.SIGKILL)
    result = step(*arguments, **options)
    if calls == {call}: os.kill(os.getpid(), signal.SIGKILL)
    return result
_index_folder.{step} = run
index = dedup.SubstringIndex({str(folder)!r})
for text in {texts!r}: index.add([text])
"""
        subprocess.run([sys.executable, "-c", script], check=False)
        index = dedup.SubstringIndex(folder)
        done = index.num_texts
        found = index.find(texts)
        assert found.doc.tolist() == list(range(done))
        assert found.size == 300 * done
        for text in texts[done:]:
            index.add([text])
        assert index.find(texts).size == 300 * 12


def test_damage(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    index = dedup.SubstringIndex.create(folder, min_bytes=30, gap=4)
    texts = ["".join(random.Random(6).choices("abcdefgh ", k=3000))]
    index.add(texts)
    file = folder / "00000000.segment"
    data = file.read_bytes()
    for change, message in [
        (data[:-8], "expected .* bytes, got"),
        (data[:5000] + b"?" + data[5001:], "damaged between bytes 4096 and"),
        (b"", "cut off within the header"),
    ]:
        file.write_bytes(change)
        with pytest.raises(InputError, match=f"{file}: {message}"):
            dedup.SubstringIndex(folder)
    draw = random.Random(7)
    for _ in range(60):
        changed = bytearray(data)
        begin = draw.randrange(4096, len(data) - 600)
        for place in range(begin, begin + 500):
            changed[place] = draw.randrange(256)
        file.write_bytes(changed)
        dedup.SubstringIndex(folder, check=False).find(texts)
        with pytest.raises(InputError, match=str(file)):
            dedup.SubstringIndex(folder)


def test_wrong_arguments(tmp_path: Path) -> None:
    for options, message in [
        ({"min_bytes": 0}, "min_bytes must lie in"),
        ({"min_bytes": 20}, r"gap must lie in \[1, 20\], got 32"),
        ({"gap": 0}, "gap must lie in"),
        ({"gap": 101}, r"gap must lie in \[1, 100\], got 101"),
        ({"hash_bits": 32}, "hash_bits must be 64 or 128, got 32"),
    ]:
        with pytest.raises(InputError, match=message):
            dedup.SubstringIndex.create(tmp_path / "index", **options)  # type: ignore[arg-type]
    index = dedup.SubstringIndex.create(tmp_path / "index")
    with pytest.raises(InputError, match="lone surrogate"):
        index.add(["\ud800" * 200])
    with pytest.raises(TypeError, match="texts must be a list"):
        index.find("text")  # type: ignore[arg-type]
    dedup.NearIndex.create(tmp_path / "near")
    with pytest.raises(InputError, match="expected 'substring'"):
        dedup.SubstringIndex(tmp_path / "near")
