"""Encoding against gigatoken, tiktoken and tokenizers: each call in a fresh process, caches cold.

    python bench/encode.py --text FILE --vocabulary cl100k_base.tiktoken [--json OUT]

`FILE` holds documents with NUL bytes between them, and no text of a special token, which gigatoken always
recognises. Every competitor must give the ids of pylm before a line is printed for it. Peers that are not
installed are left out. User time leaves out the kernel's work for new pages, which differs from run to run.
"""

import argparse
import base64
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

SEPARATOR = b"\0"
# Those that reach a tenth of the others' speed get the head of the text only.
SLOW_BYTES = 24_000_000
Encode = Callable[[], Any]


def _pylm(args: argparse.Namespace) -> dict[str, Encode]:
    from pylm import Tokenizer

    tokenizer = Tokenizer.load(args.vocabulary, pattern=args.pattern)
    return {
        "files": lambda: tokenizer.encode_files([args.text], separator=SEPARATOR, num_threads=args.threads),
        "list": lambda: tokenizer.encode_batch(args.texts, num_threads=args.threads),
        "arrow": lambda: tokenizer.encode_batch(args.column, num_threads=args.threads),
    }


def _gigatoken(args: argparse.Namespace) -> dict[str, Encode]:
    import gigatoken

    path = str(args.vocabulary)
    is_ranks = path.endswith(".tiktoken")
    tokenizer = gigatoken.Tokenizer.from_tiktoken(path) if is_ranks else gigatoken.Tokenizer(path)
    source = gigatoken.TextFileSource([str(args.text)], separator=SEPARATOR)
    parallel = args.threads > 1
    return {
        "files": lambda: tokenizer.encode_files(source, parallel=parallel),
        "list": lambda: tokenizer.encode_batch(args.texts, parallel=parallel),
    }


def _tiktoken(args: argparse.Namespace) -> dict[str, Encode]:
    import tiktoken

    # tiktoken's own spelling: possessive quantifiers keep its engine from backtracking.
    expression = (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$"
        r"|\s*[\r\n]|\s+(?!\S)|\s"
    )
    if args.vocabulary.name != "cl100k_base.tiktoken":
        raise ImportError("tiktoken takes part with cl100k_base only")
    lines = [line.split() for line in args.vocabulary.read_bytes().splitlines()]
    ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
    encoding = tiktoken.Encoding("bench", pat_str=expression, mergeable_ranks=ranks, special_tokens={})
    return {"list": lambda: encoding.encode_ordinary_batch(args.texts, num_threads=args.threads)}


def _tokenizers(args: argparse.Namespace) -> dict[str, Encode]:
    os.environ["RAYON_NUM_THREADS"] = str(args.threads)
    import tokenizers

    from pylm import Tokenizer

    path = args.vocabulary
    if path.suffix == ".tiktoken":
        path = Path(args.scratch) / "tokenizer.json"
        Tokenizer.load(args.vocabulary, pattern=args.pattern).save(path)
    peer = tokenizers.Tokenizer.from_file(str(path))
    return {
        "list": lambda: [x.ids for x in peer.encode_batch_fast(args.texts, add_special_tokens=False)],
    }


LIBRARIES = {"pylm": _pylm, "gigatoken": _gigatoken, "tiktoken": _tiktoken, "tokenizers": _tokenizers}
SLOW = {"tiktoken", "tokenizers"}


def _digest(encoded: Any) -> tuple[int, str]:
    """Count and hash ids, whatever holds them."""
    if hasattr(encoded, "ids"):
        ids = encoded.ids
    elif hasattr(encoded, "layout"):  # an awkward array of rows
        import awkward

        ids = awkward.to_numpy(awkward.flatten(encoded))
    else:
        ids = np.fromiter((i for row in encoded for i in row), dtype=np.uint32)
    ids = np.ascontiguousarray(ids, dtype="<u4")
    return len(ids), xxhash.xxh3_128_hexdigest(ids)


def _work(args: argparse.Namespace) -> None:
    """Encode once, and print how long it took and what came out."""
    if hasattr(os, "sched_setaffinity"):  # gigatoken knows one thread or all cores
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
    # Only what is encoded stays in memory: a system that is short of clean pages makes the rest count.
    if args.container != "files":
        args.texts = [t.decode("utf-8", "replace") for t in args.text.read_bytes().split(SEPARATOR)]
    if args.container == "arrow":
        import pyarrow as pa

        args.column = pa.array(args.texts, pa.large_string())
        del args.texts
    started = time.perf_counter()
    encode = LIBRARIES[args.library](args)[args.container]
    before = os.times()
    loaded = time.perf_counter()
    encoded = encode()
    seconds = time.perf_counter() - loaded
    after = os.times()
    count, digest = _digest(encoded)
    print(
        json.dumps(
            {
                "load_s": loaded - started,
                "seconds": seconds,
                "user_s": after.user - before.user,
                "num_ids": count,
                "digest": digest,
            }
        ),
        flush=True,
    )


def _call(args: argparse.Namespace, library: str, container: str, threads: int, text: Path) -> dict[str, Any]:
    command = [sys.executable, __file__, "--vocabulary", str(args.vocabulary)]
    command += ["--pattern", args.pattern] if args.pattern else []
    command += [
        "--text",
        str(text),
        "--library",
        library,
        "--container",
        container,
        "--threads",
        str(threads),
    ]
    command += ["--scratch", str(args.scratch)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(f"{library} from {container}: {last}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _compare(args: argparse.Namespace) -> list[dict[str, Any]]:
    head = Path(args.scratch) / "head.txt"
    content = args.text.read_bytes()[:SLOW_BYTES]
    head.write_bytes(content[: content.rfind(SEPARATOR)] if SEPARATOR in content else content)
    rows = []
    libraries = ["pylm", *args.peers]
    plan = [(lib, c) for c in ("files", "arrow", "list") for lib in libraries if c in CONTAINERS[lib]]
    expected: dict[Path, str] = {}
    for threads in args.num_threads:
        calls: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for _ in range(args.repeat):  # round by round, so that all see the same state of the machine
            for library, container in plan:
                text = head if library in SLOW else args.text
                if text not in expected:
                    expected[text] = _call(args, "pylm", "files", threads, text)["digest"]
                try:
                    result = _call(args, library, container, threads, text)
                except RuntimeError as error:
                    print(f"left out: {error}", file=sys.stderr)
                    plan = [p for p in plan if p != (library, container)]
                    continue
                if result["digest"] != expected[text]:
                    raise SystemExit(f"{library} from {container} gives other ids than pylm")
                result["bytes"] = text.stat().st_size
                calls.setdefault((library, container), []).append(result)
        for (library, container), results in calls.items():
            rates = sorted(r["bytes"] / 1e6 / r["seconds"] for r in results)
            rows.append(
                {
                    "library": library,
                    "container": container,
                    "threads": threads,
                    "mb_per_s": round(statistics.median(rates), 1),
                    "slowest": round(rates[0], 1),
                    "fastest": round(rates[-1], 1),
                    "user_ns_per_byte": round(
                        statistics.median(1e9 * r["user_s"] / r["bytes"] for r in results), 2
                    ),
                    "load_ms": round(1000 * statistics.median(r["load_s"] for r in results)),
                }
            )
    return rows


CONTAINERS = {
    "pylm": ("files", "arrow", "list"),
    "gigatoken": ("files", "list"),
    "tiktoken": ("list",),
    "tokenizers": ("list",),
}


def _print_table(rows: Sequence[dict[str, Any]]) -> None:
    print("| threads | library | from | MB/s | slowest to fastest | pylm / it | user ns/byte | load, ms |")
    print("|---|---|---|---|---|---|---|---|")
    ours = {(r["threads"], r["container"]): r["mb_per_s"] for r in rows if r["library"] == "pylm"}
    for row in rows:
        ratio = ours[row["threads"], row["container"]] / row["mb_per_s"]
        print(
            f"| {row['threads']} | {row['library']} | {row['container']} | {row['mb_per_s']} "
            f"| {row['slowest']} to {row['fastest']} | {ratio:.2f} | {row['user_ns_per_byte']} "
            f"| {row['load_ms']} |"
        )


def main() -> None:
    """Compare, or be one of the compared processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--text", type=Path, required=True, help="documents with NUL bytes between them")
    parser.add_argument("--vocabulary", type=Path, required=True, help="a .tiktoken or tokenizer.json file")
    parser.add_argument("--pattern", help="of a rank file that pylm does not know; default: the file's own")
    parser.add_argument("--num-threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeat", type=int, default=3, help="rounds; the median counts")
    peers = [name for name in LIBRARIES if name != "pylm"]
    parser.add_argument("--peers", nargs="+", choices=peers, default=peers, help="default: all installed")
    parser.add_argument("--json", type=Path, help="write the rows there as well")
    parser.add_argument("--library", choices=LIBRARIES, help=argparse.SUPPRESS)
    parser.add_argument("--container", help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--scratch", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.library:
        _work(args)
        return
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        args.scratch = scratch
        rows = _compare(args)
    _print_table(rows)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
