import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dedup_corpora import contents, make_rows, read_all, same, write_jsonl, write_parquet

from pylm import dedup
from pylm.data import storage
from pylm.data.dedup import ExactDedupConfig, dedup_exact
from pylm.data.dedup.corpus import read_rows
from pylm.data.executors import LocalPool
from pylm.errors import InputError

ALONE = LocalPool(1)
SMALL: dict[str, Any] = {"split_bytes": 1, "num_partitions": 3}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "options",
    [{}, {"normalize": True}, {"normalize": True, "punctuation": False}, {"unit": "url"}],
    ids=["bytes", "folded", "bare", "url"],
)
def test_equals_one_call_on_the_whole_corpus(seed: int, options: dict[str, Any], tmp_path: Path) -> None:
    table = write_parquet(make_rows(seed), tmp_path / "in", num_files=3, group=20)
    config = ExactDedupConfig(**SMALL, **options)
    report = dedup_exact([str(tmp_path / "in")], str(tmp_path / "out"), config, execute=ALONE)
    column = table["url" if config.unit == "url" else "text"]
    first = dedup.exact(column, **options)
    keep = first == np.arange(len(table))
    assert 5 < report["removed"]["exact"]["documents"] == (~keep).sum()
    assert same(read_all(tmp_path / "out" / "documents"), table.filter(pa.array(keep)))
    removed = read_all(tmp_path / "out" / "removed")
    assert removed["document"].to_pylist() == np.flatnonzero(~keep).tolist()
    assert removed["kept_document"].to_pylist() == first[~keep].tolist()
    assert set(removed["reason"].to_pylist()) == {"exact"}
    assert [cluster["size"] for cluster in report["largest_clusters"]] == sorted(
        (np.unique(first[~keep], return_counts=True)[1] + 1).tolist(), reverse=True
    )[:20]


@pytest.mark.parametrize(
    ("priority", "keep"), [(("-date",), "first"), ((), "longest"), (("site=web",), "longest")]
)
def test_which_copy_stays(priority: tuple[str, ...], keep: str, tmp_path: Path) -> None:
    rows = make_rows(7)
    for row in rows:
        if row["text"]:
            row["text"] += " " * (len(row["id"]) % 2)  # copies of different lengths, the same when folded
    write_parquet(rows, tmp_path / "in", num_files=2, group=33)
    config = ExactDedupConfig(**SMALL, priority=priority, keep=keep, normalize=True)
    dedup_exact([str(tmp_path / "in")], str(tmp_path / "out"), config, execute=ALONE)
    best: dict[str, tuple[Any, int]] = {}
    for place, row in enumerate(rows):
        text = row["text"]
        if text is not None:
            key = (
                (row["date"] is None, row["date"] or "")
                if "-date" in priority
                else ("site=web" in priority and row["site"] != "web"),
                -len(text.encode()) if keep == "longest" else 0,
                place,
            )
            folded = " ".join(text.lower().split())
            best[folded] = min(best.get(folded, (key, place)), (key, place))
    kept = {place for _, place in best.values()} | {i for i, row in enumerate(rows) if row["text"] is None}
    left = read_all(tmp_path / "out" / "documents")
    assert left["id"].to_pylist() == [row["id"] for place, row in enumerate(rows) if place in kept]


def test_workers_partitions_and_formats(tmp_path: Path) -> None:
    rows = [row for row in make_rows(3) if row["text"] and not row["text"].isspace()]
    table = write_parquet(rows, tmp_path / "in", num_files=2, group=40)
    write_jsonl(rows, tmp_path / "in.jsonl")
    results = []
    for number, (workers, partitions) in enumerate([(1, 1), (2, 16), (3, 5)]):
        out = tmp_path / str(number)
        config = ExactDedupConfig(split_bytes=1, num_partitions=partitions, unit="url")
        with LocalPool(workers) as execute:
            dedup_exact([str(tmp_path / "in")], str(out), config, execute=execute)
        results.append(
            {k: v for k, v in contents(out).items() if k.startswith(("doc", "rem", "fun", "dropped"))}
        )
    assert results[1:] == [results[0]] * 2
    config = ExactDedupConfig(unit="url")
    dedup_exact([str(tmp_path / "in.jsonl")], str(tmp_path / "lines"), config, execute=ALONE)
    keep = dedup.exact(table["url"], unit="url") == np.arange(len(rows))
    ids = table.filter(pa.array(keep))["id"]
    assert read_all(tmp_path / "lines" / "documents")["id"].to_pylist() == ids.to_pylist()


def test_options_that_contradict(tmp_path: Path) -> None:
    write_parquet(make_rows(0, 3), tmp_path / "in", num_files=1, group=100)
    for options, message in [
        ({"unit": "url", "normalize": True}, "addresses have rules of their own"),
        ({"punctuation": False}, "add normalize=True"),
        ({"unit": "url", "url_column": "link"}, "no column 'link'"),
    ]:
        config = ExactDedupConfig(**options)
        with pytest.raises(InputError, match=message):
            dedup_exact([str(tmp_path / "in")], str(tmp_path / "out"), config, execute=ALONE)


def test_addresses_in_a_field_of_ones_own(tmp_path: Path) -> None:
    links = ["http://a.org/x", "https://a.org/x/", "http://b.org"]
    rows = [{"text": f"text {number}", "link": link} for number, link in enumerate(links)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = ExactDedupConfig(unit="url", url_column="link")
    report = dedup_exact([str(tmp_path / "a.jsonl")], str(tmp_path / "out"), config)
    assert report["left"]["documents"] == 2


def test_bad_lines_count_whatever_the_name_of_the_input(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.jsonl").write_text('{"text": "a"}\nno json\n')
    for name in (folder, folder / "a.jsonl"):
        with pytest.raises(InputError, match="are no documents"):
            dedup_exact([str(name)], str(tmp_path / "out"), ExactDedupConfig())


def test_folders_of_a_store_are_read_to_their_ground(tmp_path: Path) -> None:
    for name in ("a", "2024/b", "2024/05/c"):
        with storage.publish(f"memory://deep/{name}.parquet") as temporary:
            pq.write_table(pa.table({"text": [name]}), temporary)
    for given, number in (("memory://deep", 3), ("memory://deep/20*", 2), ("memory://deep/[a]*", 1)):
        report = dedup_exact([given], str(tmp_path / f"{number}"), ExactDedupConfig())
        assert report["documents"] == number
    with pytest.raises(InputError, match="holds other files"):
        dedup_exact([str(tmp_path / "3" / "documents")], "memory://deep", ExactDedupConfig())
    storage.remove_folder("memory://deep")


def test_results_that_a_glob_of_inputs_would_match(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "a.jsonl").write_text('{"text": "a"}\n')
    for out in ("raw/clean", "raw/clean/deeper"):
        with pytest.raises(InputError, match=r"lies in the input .*raw/\*, and would be read"):
            dedup_exact([str(tmp_path / "raw" / "*")], str(tmp_path / out), ExactDedupConfig())
    dedup_exact([str(tmp_path / "raw" / "*.jsonl")], str(tmp_path / "raw" / "clean"), ExactDedupConfig())


def test_long_texts_of_a_dictionary_are_read_in_parts(tmp_path: Path) -> None:
    """4,096 equal texts of 100 kB are a file of a few kB."""
    path = tmp_path / "a.parquet"
    texts = pa.DictionaryArray.from_arrays(np.zeros(4096, np.int32), ["x" * 100_000])
    pq.write_table(pa.table({"text": texts.cast(pa.string())}), path)
    assert path.stat().st_size < 1 << 20
    sizes = []
    rows = 0
    for first, batch in read_rows(str(path), 0, None):
        assert first == rows
        rows += len(batch)
        sizes.append(batch.nbytes)
    assert rows == 4096
    assert max(sizes) < 32 << 20
    report = dedup_exact([str(path)], str(tmp_path / "out"), ExactDedupConfig())
    assert report["left"]["documents"] == 1
