"""Near-duplicates against rensa, datasketch and datatrove, from texts to clusters, on one core.

    python bench/near_duplicates.py --text FILE [--json OUT]

`FILE` holds documents with NUL bytes between them; those that are not all ASCII are left out, so that every
tool sees the same words. 5-grams of words, 128 permutations in 16 bands of 8; datatrove with its own 14 bands
of 8. A competitor's result is compared with pylm's before a line is printed for it: all clusters of datatrove
must be equal; the others draw other permutations, so they must flag what has a partner of similarity 0.9 and
nothing without one of 0.4. Peers that are not installed are left out. pylm and a peer take turns on the same
head of the text; the ratio is that of their best times.

Then the sizes: the same call for heads of 1 MB and up (the file repeated where it is too short, each time
with other words), and on two threads.
"""

import argparse
import json
import os
import re
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ["RAYON_NUM_THREADS"] = "1"  # rensa's threads, before it is loaded

import numpy as np
import pyarrow as pa
import xxhash

from pylm import dedup

NGRAM, NUM_PERM, BANDS, ROWS = 5, 128, 16, 8
# The bytes that each peer gets: seconds, not minutes.
HEADS = {"rensa": 30_000_000, "datasketch": 12_000_000, "datatrove": 3_000_000}
Flags = np.ndarray


def head_of(texts: list[str], num_bytes: int) -> list[str]:
    """As many of the first texts as fit."""
    total = np.cumsum([len(text) for text in texts])
    return texts[: int(np.searchsorted(total, num_bytes, "right"))]


def shingles(text: str) -> set[str]:
    """What pylm takes for shingles, of ASCII."""
    words = re.findall("[a-z0-9]+", text.lower())
    if not words:
        return set()
    return {" ".join(words[i : i + NGRAM]) for i in range(max(1, len(words) - NGRAM + 1))}


def flag_members(cluster: np.ndarray) -> Flags:
    """Documents that are not alone."""
    sizes = np.bincount(cluster, minlength=len(cluster))
    return sizes[cluster] > 1


def by_pylm(texts: list[str]) -> Flags:
    found = dedup.near(
        texts, ngram=NGRAM, num_perm=NUM_PERM, bands=BANDS, rows=ROWS, verify=False, num_threads=1
    )
    return flag_members(found.cluster)


def by_rensa(texts: list[str]) -> Flags:
    import rensa

    matrix = rensa.RMinHash.digest_matrix_from_token_sets([list(shingles(t)) for t in texts], NUM_PERM, 42)
    index = rensa.RMinHashLSH(threshold=0.8, num_perm=NUM_PERM, num_bands=BANDS)
    return np.asarray(index.query_duplicate_flags_matrix_one_shot(matrix), bool)


def by_datasketch(texts: list[str]) -> Flags:
    import datasketch

    sets = ([s.encode() for s in shingles(text)] for text in texts)
    index = datasketch.MinHashLSH(num_perm=NUM_PERM, params=(BANDS, ROWS))
    flags = np.zeros(len(texts), bool)
    for i, signature in enumerate(datasketch.MinHash.generator(sets, num_perm=NUM_PERM)):
        others = index.query(signature)
        flags[[i, *others]] |= bool(others)
        index.insert(i, signature)
    return flags


def by_pylm_as_datatrove(texts: list[str]) -> np.ndarray:
    return dedup.near(
        texts, scheme="datatrove", seed=1, num_perm=112, bands=14, rows=8, verify=False, num_threads=1
    ).cluster


class _SpacedWords:
    """Words at white space, as pylm has them, in place of spaCy, which is slower still."""

    def word_tokenize(self, text: str) -> list[str]:
        return text.split()


def by_datatrove(texts: list[str]) -> np.ndarray:
    from datatrove.data import Document
    from datatrove.pipeline.dedup.minhash import (
        MinhashConfig,
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupSignature,
    )

    config = MinhashConfig()
    with tempfile.TemporaryDirectory() as folder:
        step = MinhashDedupSignature(f"{folder}/signatures", config)
        step.word_tokenizer = _SpacedWords()
        step._hash_func = lambda text: xxhash.xxh64_intdigest(text.encode())  # xxhash 4 takes bytes only
        step.run(Document(text=text, id=str(i)) for i, text in enumerate(texts))
        for rank in range(config.num_buckets):
            buckets = MinhashDedupBuckets(f"{folder}/signatures", f"{folder}/buckets", config=config)
            buckets.run(None, rank, config.num_buckets)
        MinhashDedupCluster(
            f"{folder}/buckets", f"{folder}/removed", config=config, save_cluster_id=True
        ).run()
        return _read_clusters(Path(folder) / "removed", len(texts))


def _read_clusters(folder: Path, num_texts: int) -> np.ndarray:
    """Cluster of each document, named by its first one."""
    cluster = np.arange(num_texts)
    first: dict[int, int] = {}
    for path in folder.glob("*.clusters"):
        for document, name in np.fromfile(path, "<u4").reshape(-1, 2).tolist():
            cluster[document] = first.setdefault(name, document)
    return cluster


def flags_agree(texts: list[str], ours: Flags, theirs: Flags) -> tuple[bool, str]:
    """Whether nothing clear is missed or invented; what lies near the threshold is found by chance."""
    alike = flag_members(dedup.near(texts, threshold=0.9, ngram=NGRAM, bands=16, rows=8).cluster)
    strange = ~flag_members(dedup.near(texts, threshold=0.4, ngram=NGRAM, bands=64, rows=2).cluster)
    missed = [int((alike & ~flags).sum()) for flags in (ours, theirs)]
    invented = [int((strange & flags).sum()) for flags in (ours, theirs)]
    message = (
        f"flagged {ours.sum()} and {theirs.sum()}, missed {missed} of {alike.sum()}, invented {invented}"
    )
    if min(alike.sum(), strange.sum()) < 0.02 * len(texts):
        return False, f"too few texts to tell: {alike.sum()} alike, {strange.sum()} strange"
    # Some have their partner of 0.4 only in a text that went in favour of a third one.
    return max(missed) <= 0.01 * alike.sum() and max(invented) <= 0.05 * theirs.sum(), message


def clusters_agree(_: list[str], ours: np.ndarray, theirs: np.ndarray) -> tuple[bool, str]:
    return bool((ours == theirs).all()), f"{len(np.unique(ours[flag_members(ours)]))} clusters equal"


Competitor = tuple[
    str, Callable[[Any], Any], Callable[[Any], Any], Callable[[list[str], Any, Any], tuple[bool, str]]
]
COMPETITORS: list[Competitor] = [
    ("rensa", by_pylm, by_rensa, flags_agree),
    ("datasketch", by_pylm, by_datasketch, flags_agree),
    ("datatrove", by_pylm_as_datatrove, by_datatrove, clusters_agree),
]


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def edited(texts: list[str]) -> list[str]:
    """Copies with a word changed in the middle, so that there are duplicates to be found and to be missed."""
    words = [text.split(" ") for text in texts]
    return [" ".join([*x[: len(x) // 2], "changed", *x[len(x) // 2 + 1 :]]) for x in words]


def race(name: str, ours: Any, theirs: Any, agree: Any, texts: list[str], rounds: int) -> dict[str, Any]:
    size = sum(map(len, texts))
    checked = texts + edited(texts[::20])
    same, agreement = agree(checked, ours(checked), theirs(checked))
    if not same:
        raise SystemExit(f"{name} disagrees: {agreement}")
    pairs = [(seconds(lambda: ours(texts)), seconds(lambda: theirs(texts))) for _ in range(rounds)]
    best, best_peer = (min(times) for times in zip(*pairs, strict=True))
    result = {
        "peer": name,
        "bytes": size,
        "documents": len(texts),
        "agreement": agreement,
        "pylm_mb_s": size / best / 1e6,
        "peer_mb_s": size / best_peer / 1e6,
        "ratio": best_peer / best,
    }
    speeds = f"{size / best_peer / 1e6:8.2f} MB/s   pylm {size / best / 1e6:6.1f} MB/s"
    print(
        f"{name:10} {size / 1e6:6.1f} MB {speeds}   {best_peer / best:6.1f} times   {agreement}", flush=True
    )
    return result


def grow(texts: list[str], num_bytes: int) -> pa.Array:
    """Texts of so many bytes; every repetition has its own number before every tenth word."""
    parts, total, round_ = [], 0, 0
    while total < num_bytes:
        for text in texts:
            if round_:
                words = text.split(" ")
                words[::10] = [f"{round_}{word}" for word in words[::10]]
                text = " ".join(words)
            parts.append(text)
            total += len(text)
            if total >= num_bytes:
                break
        round_ += 1
    return pa.array(parts, pa.large_string())


def scale(texts: list[str], sizes: list[int], rounds: int) -> list[dict[str, Any]]:
    rows = []
    for size in sizes:
        column = grow(texts, size)
        times: dict[int, list[float]] = {1: [], 2: []}
        for _ in range(rounds):
            for threads in times:
                times[threads].append(seconds(partial(dedup.near, column, num_threads=threads)))
        one, two = min(times[1]), min(times[2])
        rows.append({"bytes": size, "documents": len(column), "one_thread_s": one, "two_threads_s": two})
        print(
            f"{size / 1e6:7.0f} MB {len(column):8} documents   {one:7.3f} s {size / one / 1e6:6.1f} MB/s"
            f"   two threads {one / two:.2f} times",
            flush=True,
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--megabytes", type=int, nargs="*", default=[1, 10, 100, 1000])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    texts = [t.decode("ascii") for t in args.text.read_bytes().split(b"\0") if t.isascii()]
    races = []
    for name, ours, theirs, agree in COMPETITORS:
        try:
            __import__(name)
        except ImportError:
            print(f"{name} is not installed")
            continue
        races.append(race(name, ours, theirs, agree, head_of(texts, HEADS[name]), args.rounds))
    sizes = scale(texts, [size * 1_000_000 for size in args.megabytes], args.rounds)
    if args.json:
        args.json.write_text(json.dumps({"races": races, "sizes": sizes}, indent=1))


if __name__ == "__main__":
    main()
