import errno
import gzip
import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from oracles import near_duplicates, overlap

from pylm import files
from pylm.data import pipeline
from pylm.data.documents import SCHEMA, group_of, keyed_fraction
from pylm.data.funnel import SAMPLES_PER_REASON, STEPS, Funnel
from pylm.data.pipeline import PrepareConfig, prepare
from pylm.errors import InputError

Rows = list[dict[str, str]]


@pytest.fixture(autouse=True)
def without_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_sync", lambda path: None)


def config(*sources: dict[str, object], **fields: object) -> PrepareConfig:
    return PrepareConfig.model_validate({"sources": sources, **fields})


def jsonl(name: str, *paths: Path, **fields: object) -> dict[str, object]:
    return {"name": name, "kind": "jsonl", "paths": [str(path) for path in paths], **fields}


def prose(rng: random.Random, num_words: int = 120) -> str:
    words = [rng.choice(["the", "and", "of", f"word{rng.randrange(500)}"]) for _ in range(num_words)]
    return "\n".join(" ".join(words[i : i + 12]) + "." for i in range(0, num_words, 12))


def write_corpus(folder: Path, *, seed: int = 0) -> PrepareConfig:
    """Two sources with copies, near copies, bad rows, rows that a filter drops, groups and overlaps."""
    rng = random.Random(seed)
    web: list[object] = []
    for i in range(120):
        text = prose(rng)
        web.append({"id": f"w{i}", "text": text, "group": f"g{i // 2}"})
        if i % 10 == 0:
            web.append({"id": f"copy{i}", "text": text})
        if i % 10 == 5:
            web.append({"id": f"near{i}", "text": text + " once more"})
        if i % 20 == 7:
            web.append({"id": f"short{i}", "text": "Too short."})
        if i % 10 == 3:  # quotes of it, long enough to overlap and too different to be near copies
            web.append({"id": f"quote{i}", "text": f"{prose(rng, 48)} {text[:300]}"})
    lines = [json.dumps(row) for row in web]
    lines[5:5] = ["{", '{"id": 1}']
    code = [f"def f{i}():\n    return {i}\n" * 9 for i in range(20)]
    code[7] = code[3]
    folder.mkdir(parents=True)
    (folder / "web.jsonl").write_text("\n".join(lines) + "\n")
    for i, text in enumerate(code):
        (folder / f"{i:02}.py").write_text(text)
    (folder / "bad.py").write_bytes(b"x = '\xff'\n")
    return config(
        jsonl("web", folder / "web.jsonl", filters=["gopher_quality"], max_bad_fraction=0.1),
        {"name": "code", "kind": "files", "paths": [str(folder)], "suffixes": [".py"]},
        heldout_fraction=0.3,
        dedup={"ngram": 5},
    )


def load(path: Path) -> Rows:
    table = pq.read_table(path)
    assert table.schema == SCHEMA
    return table.to_pylist()


def published(out: Path) -> dict[str, bytes]:
    names = ("train.parquet", "heldout.parquet", "funnel.json", "dropped.jsonl")
    files = [out / name for name in names] + sorted((out / "parts").iterdir())
    return {path.name: path.read_bytes() for path in files}


def size(rows: Rows) -> int:
    return sum(len(row["text"].encode()) for row in rows)


def check_adds_up(funnel: Funnel) -> None:
    assert [step.name for step in funnel.steps] == list(STEPS)
    for unit in ("documents", "bytes"):
        drops = Counter[str]()
        for drop in funnel.drops:
            drops[drop.step] += getattr(drop, unit)
        left = getattr(funnel.steps[0], unit)
        for step in funnel.steps:
            left -= drops[step.name]
            if step.name != "read":  # counts what was read; what it dropped is missing from the next
                assert getattr(step, unit) == left, (step, unit)


def expected_split(
    folder: Path, recipe: PrepareConfig, seed: int
) -> tuple[list[str], list[str], Counter[str]]:
    """Prepare the corpus of `write_corpus` slowly."""
    drops = Counter[str]()
    documents: list[tuple[str, str, str]] = []
    for number, line in enumerate((folder / "web.jsonl").read_text().splitlines()):
        if number in (5, 6):
            drops["read"] += 1
            continue
        row = json.loads(line)
        if len(row["text"].split()) < 50:
            drops["filter"] += 1
        else:
            documents.append((row["id"], row["text"], row.get("group", row["id"])))
    drops["read"] += 1
    for path in sorted(folder.glob("[0-9]*.py")):
        documents.append((str(path), path.read_text(), str(path)))
    seen: set[str] = set()
    rest = []
    for document in documents:
        drops["exact duplicates"] += document[1] in seen
        if document[1] not in seen:
            rest.append(document)
        seen.add(document[1])
    near = near_duplicates.near_duplicates([text for _, text, _ in rest], 5, recipe.dedup.threshold)
    drops["near duplicates"] = sum(near)
    rest = [x for x, is_near in zip(rest, near, strict=True) if not is_near]
    heldout = [x for x in rest if keyed_fraction(x[2], seed) < recipe.heldout_fraction]
    training = [x for x in rest if x not in heldout]
    drops["held out"] = len(heldout)
    texts = [[text for _, text, _ in side] for side in (training, heldout)]
    overlaps = overlap.find_overlaps(*texts, recipe.overlap.ngram, recipe.overlap.max_fraction)
    drops["held-out overlap"] = sum(overlaps)
    kept = [x for x, is_seen in zip(training, overlaps, strict=True) if not is_seen]
    return [x[0] for x in kept], [x[0] for x in heldout], drops


def test_against_a_slow_preparation(tmp_path: Path) -> None:
    recipe = write_corpus(tmp_path / "in")
    funnel = prepare(recipe, tmp_path / "out", seed=1, num_workers=1)
    train, heldout, drops = expected_split(tmp_path / "in", recipe, seed=1)
    rows, held = load(tmp_path / "out" / "train.parquet"), load(tmp_path / "out" / "heldout.parquet")
    assert [row["id"] for row in rows] == train
    assert [row["id"] for row in held] == heldout
    assert min(drops.values()) > 0
    assert len(drops) == len(STEPS)
    found = Counter[str]()
    for drop in funnel.drops:
        found[drop.step] += drop.documents
    assert found == drops
    check_adds_up(funnel)
    assert funnel.steps[0].documents == sum(drops.values()) + len(rows)
    assert funnel.steps[-1].bytes == size(rows)
    assert sum(drop.bytes for drop in funnel.drops if drop.step == "held out") == size(held)
    assert json.loads((tmp_path / "out" / "funnel.json").read_text()) == json.loads(
        json.dumps(funnel.to_dict())
    )


def test_groups_stay_on_one_side(tmp_path: Path) -> None:
    recipe = write_corpus(tmp_path / "in")
    sides: list[dict[str, str]] = []
    for seed, fields in ((3, {}), (3, {"sources": recipe.sources[:1]}), (4, {})):
        out = tmp_path / f"out{len(sides)}"
        prepare(recipe.model_copy(update=fields), out, seed=seed, num_workers=1)
        rows = {name: load(out / f"{name}.parquet") for name in ("train", "heldout")}
        groups = {k: {group_of(row["id"], row["meta"]) for row in v} for k, v in rows.items()}
        assert not groups["train"] & groups["heldout"]
        sides.append({group: name for name, members in groups.items() for group in members})
    first, fewer, other = sides
    assert {first[group] for group in fewer if group in first} == {"train", "heldout"}
    assert all(first[group] == side for group, side in fewer.items() if group in first)
    assert any(first[group] != side for group, side in other.items() if group in first)


def test_samples_of_drops(tmp_path: Path) -> None:
    recipe = write_corpus(tmp_path / "in")
    funnel = prepare(recipe, tmp_path / "out", seed=1, num_workers=1)
    samples = [json.loads(line) for line in (tmp_path / "out" / "dropped.jsonl").read_text().splitlines()]
    counts = Counter((x["step"], x["reason"], x["source"]) for x in samples)
    assert list(counts) == [(x.step, x.reason, x.source) for x in funnel.drops]
    assert list(counts.values()) == [min(x.documents, SAMPLES_PER_REASON) for x in funnel.drops]
    assert [x["id"] for x in samples if x["reason"] == "near duplicates"] == ["near5", "near15", "near25"]
    assert next(x for x in samples if x["step"] == "filter")["text"] == "Too short."


def in_small_splits(monkeypatch: pytest.MonkeyPatch, size_bytes: int = 20_000) -> None:
    monkeypatch.setattr(pipeline, "SPLIT_BYTES", size_bytes)


def test_the_result_does_not_depend_on_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_small_splits(monkeypatch)
    recipe = write_corpus(tmp_path / "in")
    for num_workers in (1, 2):
        prepare(recipe, tmp_path / f"out{num_workers}", seed=1, num_workers=num_workers)
    one, two = published(tmp_path / "out1"), published(tmp_path / "out2")
    assert len(one) > 12
    assert one == two


@pytest.mark.parametrize("size_bytes", [2_000, 9_000])
def test_the_result_does_not_depend_on_splits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size_bytes: int
) -> None:
    recipe = write_corpus(tmp_path / "in")
    prepare(recipe, tmp_path / "a", seed=1, num_workers=1)
    in_small_splits(monkeypatch, size_bytes)
    prepare(recipe, tmp_path / "b", seed=1, num_workers=1)
    for name in ("train.parquet", "heldout.parquet"):
        assert load(tmp_path / "a" / name) == load(tmp_path / "b" / name)
    for name in ("funnel.json", "dropped.jsonl"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_progress_counts_finished_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_small_splits(monkeypatch)
    recipe = write_corpus(tmp_path / "in")
    calls: list[tuple[int, int]] = []

    def note(done: int, total: int) -> None:
        calls.append((done, total))

    prepare(recipe, tmp_path / "out", seed=1, num_workers=1, progress=note)
    total = calls[0][1]
    assert total > 4
    assert calls == [(done, total) for done in range(total + 1)]
    calls.clear()
    prepare(recipe, tmp_path / "out", seed=1, num_workers=1, progress=note)
    assert calls == [(total, total)]


class StopError(Exception):
    """Ends a preparation midway."""


def stop_after(num_splits: int) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        if done == num_splits:
            raise StopError

    return progress


@pytest.mark.parametrize("num_workers", [1, 2])
def test_finished_splits_are_never_redone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_workers: int
) -> None:
    in_small_splits(monkeypatch)
    recipe = write_corpus(tmp_path / "in")
    out = tmp_path / "out"
    prepare(recipe, tmp_path / "whole", seed=1, num_workers=1)
    with pytest.raises(StopError):
        prepare(recipe, out, seed=1, num_workers=num_workers, progress=stop_after(3))
    assert not list((out / "parts").glob(".*"))
    before = {path.name: path.stat().st_mtime_ns for path in (out / "parts").iterdir()}
    assert len(before) >= 6
    prepare(recipe, out, seed=1, num_workers=1)
    after = {path.name: path.stat().st_mtime_ns for path in (out / "parts").iterdir()}
    finished = {x for x in before if {f"{Path(x).stem}.json", f"{Path(x).stem}.parquet"} <= set(before)}
    assert {name: after[name] for name in finished} == {name: before[name] for name in finished}
    assert published(out) == published(tmp_path / "whole")


KILLED = """
import os, signal, sys
from pathlib import Path
from pylm import files
from pylm.data import pipeline
from pylm.files import read_json

pipeline.SPLIT_BYTES = 20_000
recipe = pipeline.PrepareConfig.model_validate(read_json(Path(sys.argv[1])))
written = 0

class Writer(pipeline.pq.ParquetWriter):
    def write_batch(self, batch):
        global written
        super().write_batch(batch)
        written += 1
        if written == int(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGKILL)

pipeline.pq.ParquetWriter = Writer
pipeline.prepare(recipe, Path(sys.argv[2]), seed=1, num_workers=1)
"""


def test_killed_and_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_small_splits(monkeypatch)
    recipe = write_corpus(tmp_path / "in")
    (tmp_path / "recipe.json").write_text(recipe.model_dump_json())
    prepare(recipe, tmp_path / "whole", seed=1, num_workers=1)
    out = tmp_path / "out"
    for at in (3, 2):  # in its third split, then in its second, which is the fourth
        command = [sys.executable, "-c", KILLED, str(tmp_path / "recipe.json"), str(out), str(at)]
        assert subprocess.run(command, check=False).returncode == -9
        assert [path.name for path in out.iterdir()] == ["parts"]
        assert len(list((out / "parts").glob(".*.tmp-*"))) == 1
    assert len(list((out / "parts").glob("*.json"))) == 3
    prepare(recipe, out, seed=1, num_workers=1)
    assert published(out) == published(tmp_path / "whole")


def test_parts_of_another_recipe_are_not_mixed_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_small_splits(monkeypatch)
    recipe = write_corpus(tmp_path / "in")
    web = recipe.sources[0].model_copy(update={"filters": ()})
    changed = recipe.model_copy(update={"sources": (web, recipe.sources[1])})
    prepare(recipe, tmp_path / "whole", seed=1, num_workers=1)
    prepare(changed, tmp_path / "changed", seed=1, num_workers=1)
    assert published(tmp_path / "whole") != published(tmp_path / "changed")
    out = tmp_path / "out"
    for stopped in (recipe, changed, recipe):
        with pytest.raises(StopError):
            prepare(stopped, out, seed=1, num_workers=1, progress=stop_after(4))
    prepare(changed, out, seed=1, num_workers=1)
    assert published(out) == published(tmp_path / "changed")
    prepare(recipe, out, seed=1, num_workers=1)
    assert published(out) == published(tmp_path / "whole")


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    recipe = write_corpus(tmp_path / "in")
    prepare(recipe, tmp_path / "out", seed=1, num_workers=1)
    path = tmp_path / "in" / "00.py"
    text = path.read_text().replace("f0", "g0")
    path.write_text(text)
    os.utime(path, ns=(1, 1))
    prepare(recipe, tmp_path / "out", seed=1, num_workers=1)
    rows = load(tmp_path / "out" / "train.parquet") + load(tmp_path / "out" / "heldout.parquet")
    assert next(row["text"] for row in rows if row["id"] == str(path)) == text


@pytest.mark.parametrize("num_workers", [1, 2])
def test_errors_of_workers_arrive_whole(tmp_path: Path, num_workers: int) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n')
    path = tmp_path / "b.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "x"}\n' * 1000)[:-10])
    recipe = config(jsonl("a", tmp_path / "a.jsonl"), jsonl("b", path))
    with pytest.raises(
        InputError, match=rf"^{path}: damaged or truncated gz stream \(.*\); fetch the file again$"
    ):
        prepare(recipe, tmp_path / "out", seed=1, num_workers=num_workers)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["parts"]


def refuse(tmp_path: Path, lines: list[str], **fields: object) -> str:
    (tmp_path / "x.jsonl").write_text("".join(f"{line}\n" for line in lines))
    with pytest.raises(InputError) as caught:
        prepare(config(jsonl("x", tmp_path / "x.jsonl", **fields)), tmp_path / "out", seed=1, num_workers=1)
    return str(caught.value)


def test_too_many_bad_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(0)
    good = [json.dumps({"text": prose(rng)}) for _ in range(98)]
    lines = [*good[:50], '{"body": "x"}', *good[50:], "{"]
    assert refuse(tmp_path, lines) == (
        f"{tmp_path}/x.jsonl:100: expected a JSON object, got '{{\\n' "
        "(2 of 100 rows of source x are bad; max_bad_fraction=0.01 sets such aside)"
    )
    for size_bytes in (1000, 1 << 20):
        in_small_splits(monkeypatch, size_bytes)
        message = refuse(tmp_path, [*lines[:-1], '{"body": "y"}'], max_bad_fraction=0.019)
        assert message.startswith(
            f"{tmp_path}/x.jsonl:51: expected text, not blank, in the field 'text', got '{{\"body\""
        )
    funnel = prepare(config(jsonl("x", tmp_path / "x.jsonl", max_bad_fraction=0.02)), tmp_path / "o", seed=1)
    assert (funnel.drops[0].step, funnel.drops[0].reason, funnel.drops[0].documents) == ("read", "no_text", 2)
    check_adds_up(funnel)


def test_a_wrong_field_ends_the_first_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_small_splits(monkeypatch, 100)
    message = refuse(tmp_path, ['{"content": "x"}'] * 1000, max_bad_fraction=0.9)
    assert "x.jsonl:1: expected text, not blank, in the field 'text', got" in message
    assert len(list((tmp_path / "out" / "parts").glob("*.json"))) == 1


def test_nothing_to_train_on(tmp_path: Path) -> None:
    assert refuse(tmp_path, []) == "the sources hold no documents; check prepare.sources"
    message = refuse(tmp_path, ['{"text": "x"}'] * 5, filters=["code"])
    dropped = tmp_path / "out" / "dropped.jsonl"
    assert (
        message
        == f"every document was set aside or dropped by the filters; {dropped} shows samples by reason"
    )
    assert [json.loads(line)["reason"] for line in dropped.read_text().splitlines()] == ["code/num_chars"] * 3
    (tmp_path / "x.jsonl").write_text('{"text": "x", "id": "a"}\n')
    fraction = keyed_fraction("a", 1) + 0.001
    with pytest.raises(InputError, match="no documents are left to train on; "):
        prepare(config(jsonl("x", tmp_path / "x.jsonl"), heldout_fraction=fraction), tmp_path / "o", seed=1)


def test_sources_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"text": "x"}\n')
    twice = config(jsonl("x", tmp_path / "x.jsonl"), jsonl("x", tmp_path / "x.jsonl"))
    with pytest.raises(InputError, match=r"prepare\.sources must have different names, got x, x"):
        prepare(twice, tmp_path / "out", seed=1)
    with pytest.raises(InputError, match=r"source y: nothing at '.*/y\.jsonl'"):
        prepare(config(jsonl("y", tmp_path / "y.jsonl")), tmp_path / "out", seed=1)
    assert not (tmp_path / "out").exists()


def test_input_files(tmp_path: Path) -> None:
    recipe = write_corpus(tmp_path / "in")
    names = [path.name for path in recipe.input_files()]
    assert names == ["web.jsonl", *(f"{i:02}.py" for i in range(20)), "bad.py"]


@pytest.mark.parametrize("failing", ["parts", "train.parquet", "dropped.jsonl", "funnel.json"])
def test_a_full_disk_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    recipe = write_corpus(tmp_path / "in")
    out = tmp_path / "out"
    prepare(recipe, tmp_path / "whole", seed=1, num_workers=1)

    def fail_into(path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    with monkeypatch.context() as patch:
        if failing == "parts":
            patch.setattr(pq.ParquetWriter, "write_batch", lambda *_: fail_into(out / "parts" / ".x.tmp-1"))
        elif failing == "train.parquet":
            patch.setattr(pq, "write_table", lambda _, path, **__: fail_into(path))
        else:
            write_text = Path.write_text

            def write_or_fail(path: Path, text: str, **options: object) -> int:
                if path.name.startswith(f".{failing}"):
                    fail_into(path)
                return write_text(path, text, **options)

            patch.setattr(Path, "write_text", write_or_fail)
        with pytest.raises(OSError, match="No space left"):
            prepare(recipe, out, seed=1, num_workers=1)
    names = {path.name for path in out.rglob("*") if path.is_file()}
    assert failing not in names
    assert not [name for name in names if name.startswith(".")]
    prepare(recipe, out, seed=1, num_workers=1)
    assert published(out) == published(tmp_path / "whole")


def test_a_folder_that_looks_like_a_partition(tmp_path: Path) -> None:
    recipe = write_corpus(tmp_path / "in")
    prepare(recipe, tmp_path / "lr=0.1" / "text=5", seed=1, num_workers=1)
    prepare(recipe, tmp_path / "out", seed=1, num_workers=1)
    assert published(tmp_path / "lr=0.1" / "text=5") == published(tmp_path / "out")


def test_nothing_is_held_out(tmp_path: Path) -> None:
    recipe = write_corpus(tmp_path / "in").model_copy(update={"heldout_fraction": 0.0})
    funnel = prepare(recipe, tmp_path / "out", seed=1, num_workers=1)
    assert load(tmp_path / "out" / "heldout.parquet") == []
    assert not [drop for drop in funnel.drops if drop.step.startswith("held")]
    check_adds_up(funnel)
