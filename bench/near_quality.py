"""What near-duplicate tools find and invent, against all pairs, on real documents with planted edits.

    python bench/near_quality.py --text FILE [--clough FOLDER]

`FILE` holds documents with NUL bytes between them. 5,000 of them that are all ASCII, so that every tool sees
the same words, and an edited copy of every eighth: words are replaced until a similarity drawn from 0.5 to 1
is reached. The truth is the Jaccard similarity of the sets of 5-grams, of all pairs. A document counts as
found when it is in a cluster or flagged, and as right when some other one has a similarity of 0.8 with it.

`FOLDER` holds the corpus of Clough and Stevenson: short answers, some copied from five articles. A threshold
is swept; an answer counts as found when it goes in favour of its article.
"""

import argparse
import csv
import random
from pathlib import Path

import numpy as np
from near_duplicates import by_datasketch, by_rensa, flag_members, shingles
from scipy import sparse

from pylm import dedup

NUM_DOCUMENTS, COPIES_EACH, THRESHOLD = 5000, 8, 0.8
BUCKETS = [(0.5, 0.6), (0.6, 0.7), (0.7, 0.8), (0.8, 0.85), (0.85, 0.9), (0.9, 1.01)]


def edit(text: str, similarity: float, draw: random.Random) -> str:
    """Replace words, one after another, until the copy is no more alike than that."""
    original, words = shingles(text), text.split(" ")
    while True:
        copy = shingles(" ".join(words))
        if not original | copy or len(original & copy) <= similarity * len(original | copy):
            return " ".join(words)
        for _ in range(1 + len(words) // 200):
            words[draw.randrange(len(words))] = f"edit{draw.randrange(10**6)}"


def plant(texts: list[str]) -> list[str]:
    draw = random.Random(1)
    chosen = [t for t in texts if 400 <= len(t) <= 20_000][:NUM_DOCUMENTS]
    copies = [edit(text, draw.uniform(0.5, 1.0), draw) for text in chosen[::COPIES_EACH]]
    together = chosen + copies
    draw.shuffle(together)
    return together


def best_similarities(texts: list[str]) -> np.ndarray:
    """Of every document to the most similar other one; all pairs by a product of sparse matrices."""
    sets = [shingles(text) for text in texts]
    numbers: dict[str, int] = {}
    columns = [numbers.setdefault(s, len(numbers)) for one in sets for s in one]
    sizes = np.array([len(one) for one in sets])
    rows = np.repeat(np.arange(len(sets)), sizes)
    holds = sparse.csr_matrix((np.ones(len(rows), np.int32), (rows, columns)), (len(sets), len(numbers)))
    best = np.zeros(len(sets))
    for start in range(0, len(sets), 500):
        shared = (holds[start : start + 500] @ holds.T).tocoo()
        row = shared.row + start
        other = row != shared.col
        common = shared.data[other]
        similarity = common / (sizes[row[other]] + sizes[shared.col[other]] - common)
        np.maximum.at(best, row[other], similarity)
    return best


def found_by(texts: list[str]) -> dict[str, np.ndarray]:
    """Flags of every tool."""
    flags = {
        "pylm": flag_members(dedup.near(texts).cluster),
        "pylm, 256 values": flag_members(dedup.near(texts, num_perm=256).cluster),
        "pylm, not verified, 9 x 13": flag_members(dedup.near(texts, verify=False).cluster),
        "text-dedup's values, 9 x 13": flag_members(
            dedup.near(texts, verify=False, scheme="text-dedup").cluster
        ),
        "datatrove's values, 14 x 8": flag_members(
            dedup.near(
                texts, verify=False, scheme="datatrove", num_perm=112, bands=14, rows=8, seed=1
            ).cluster
        ),
    }
    for name, call in {"rensa, 16 x 8": by_rensa, "datasketch, 16 x 8": by_datasketch}.items():
        try:
            flags[name] = call(texts)
        except ImportError:
            print(f"{name} is not installed")
    return flags


def report(texts: list[str]) -> None:
    best = best_similarities(texts)
    right = best >= THRESHOLD
    inside = [(best >= low) & (best < high) for low, high in BUCKETS]
    heads = [f"{low:.2f}-{min(high, 1):.2f}" for low, high in BUCKETS]
    print(f"{len(texts)} documents, {right.sum()} with a partner of similarity {THRESHOLD}")
    print("| tool | precision | recall | " + " | ".join(f"found of {head}" for head in heads) + " |")
    print("|---" * (3 + len(heads)) + "|")
    print("| documents | | | " + " | ".join(str(int(mask.sum())) for mask in inside) + " |")
    for name, flags in found_by(texts).items():
        shares = [f"{flags[mask].mean():.3f}" for mask in inside]
        precision, recall = right[flags].mean(), flags[right].mean()
        print(f"| {name} | {precision:.3f} | {recall:.3f} | " + " | ".join(shares) + " |", flush=True)


def sweep_clough(folder: Path) -> None:
    """Precision and recall of copied answers by threshold, 3-grams of words."""
    (table,) = folder.rglob("file_information.csv")
    with table.open(newline="") as rows:
        files = [(row["File"], row["Task"], row["Category"]) for row in csv.DictReader(rows)]
    texts = [(table.parent / name).read_text("utf-8", "replace") for name, _, _ in files]
    originals = {task: i for i, (_, task, kind) in enumerate(files) if kind == "orig"}
    answers = [i for i, (_, _, kind) in enumerate(files) if kind != "orig"]
    copied = np.array([files[i][2] != "non" for i in answers])
    print("| threshold | precision | recall | F1 |\n|---|---|---|---|")
    for threshold in (0.01, 0.02, 0.03, 0.05, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5):
        found = np.zeros(len(answers), bool)
        for k, i in enumerate(answers):
            pair = [texts[originals[files[i][1]]], texts[i]]
            found[k] = not dedup.near(
                pair, threshold=threshold, ngram=3, num_perm=1024, bands=1024, rows=1
            ).keep[1]
        precision = copied[found].mean() if found.any() else 1.0
        recall = found[copied].mean()
        f1 = 2 * precision * recall / (precision + recall)
        print(f"| {threshold} | {precision:.3f} | {recall:.3f} | {f1:.3f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--text", type=Path)
    parser.add_argument("--clough", type=Path)
    args = parser.parse_args()
    if args.text:
        report(plant([t.decode("ascii") for t in args.text.read_bytes().split(b"\0") if t.isascii()]))
    if args.clough:
        sweep_clough(args.clough)


if __name__ == "__main__":
    main()
