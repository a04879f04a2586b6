"""Tokenizer training against gigabpe and Hugging Face: time, CPU time and peak memory of whole processes.

    python bench/tokenizer_training.py --mib 200 --out bench/results/NAME

Each measurement is a process of its own, so that its peak memory is its own; the merges of all must be equal
before anything is reported. Where the system allows it, a process is bound to as many cores as it has
threads. The corpus is source and documentation that the machine has (the running Python's library and
packages, /usr/include, /usr/share/doc), each text once, in the order of its hash; `--corpus` names a file
instead. All read it line by line with GPT-2's pattern, which is what the peers can do. A peer that is not
installed is left out, with a line that says so; `--peer-python` names an interpreter that has them.
"""

import argparse
import gzip
import hashlib
import importlib
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import sysconfig
import time
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SUFFIXES = {".py", ".pyi", ".h", ".hpp", ".c", ".md", ".rst", ".txt", ".html", ".js", ".json", ".gz", ""}
MIN_FREQUENCY = 2


def main() -> None:
    """Measure and write the report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mib", type=int, default=200, help="size of the corpus that is put together")
    parser.add_argument("--corpus", type=Path, help="a text file to use instead")
    parser.add_argument("--vocab-sizes", type=int, nargs="+", default=[32_000, 128_000])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--hf-mib", type=int, default=20, help="Hugging Face gets the first part only; 0: none"
    )
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--out", type=Path, help="folder for training.json and training.md")
    parser.add_argument(
        "--one", nargs=4, metavar=("LIBRARY", "CORPUS", "NUM_MERGES", "THREADS"), help=argparse.SUPPRESS
    )
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure_here(*args.one)))
        return
    corpus = args.corpus or build_corpus(args.mib << 20)
    machine = platform.processor() or platform.machine()
    lines = [f"{machine}, {os.cpu_count()} cores; {corpus.stat().st_size:,} bytes"]
    lines += [
        "",
        "| task | library | wall s (median, range) | CPU s | peak MiB | MB/s | pylm is |",
        "|---|---|---|---|---|---|---|",
    ]
    results: list[dict[str, Any]] = []
    for vocab_size in args.vocab_sizes:
        for num_threads in args.threads:
            task = f"{vocab_size}, {num_threads} thread{'s' if num_threads > 1 else ''}"
            rows = compare(["pylm", "gigabpe"], corpus, vocab_size, num_threads, args)
            results += rows
            lines += format_rows(task, rows, corpus)
    if args.hf_mib:
        part = corpus.with_name(f"{corpus.name}.{args.hf_mib}")
        with corpus.open("rb") as source:
            part.write_bytes(
                source.read(args.hf_mib << 20).rpartition(b"\n")[0].decode("utf-8", "ignore").encode()
            )
        rows = compare(["pylm", "gigabpe", "tokenizers"], part, args.vocab_sizes[0], max(args.threads), args)
        results += rows
        lines += format_rows(
            f"{args.vocab_sizes[0]}, {max(args.threads)} threads, {args.hf_mib} MiB", rows, part
        )
    report = "\n".join(lines) + "\n"
    print(report)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "training.md").write_text(report, encoding="utf-8")
        (args.out / "training.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def compare(
    libraries: list[str], corpus: Path, vocab_size: int, num_threads: int, args: argparse.Namespace
) -> list[dict[str, Any]]:
    """Measure libraries by turns; stop where merges differ."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for _ in range(args.rounds):
        for library in libraries:
            if library in runs and runs[library] == []:
                continue
            python = sys.executable if library == "pylm" else args.peer_python
            command = [
                python,
                __file__,
                "--one",
                library,
                str(corpus),
                str(vocab_size - 256),
                str(num_threads),
            ]
            environment = {
                **os.environ,
                "RAYON_NUM_THREADS": str(num_threads),
                "TOKENIZERS_PARALLELISM": "true",
            }
            done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
            if done.returncode == 3:
                print(f"{library} is not installed in {python}: left out", file=sys.stderr)
                runs[library] = []
                continue
            if done.returncode:
                raise SystemExit(f"{library} failed:\n{done.stderr}")
            runs.setdefault(library, []).append(json.loads(done.stdout))
    digests = {run["digest"] for each in runs.values() for run in each}
    if len(digests) != 1:
        raise SystemExit(
            f"merges differ: { {library: [r['digest'] for r in each] for library, each in runs.items()} }"
        )
    return [
        {"library": library, "vocab_size": vocab_size, "num_threads": num_threads, "runs": each}
        for library, each in runs.items()
        if each
    ]


def format_rows(task: str, rows: list[dict[str, Any]], corpus: Path) -> Iterator[str]:
    """Give a line of the table for each library."""
    medians = {row["library"]: statistics.median(run["wall_s"] for run in row["runs"]) for row in rows}
    for row in rows:
        walls = [run["wall_s"] for run in row["runs"]]
        median = medians[row["library"]]
        cpu = statistics.median(run["cpu_s"] for run in row["runs"])
        peak = max(run["peak_mib"] for run in row["runs"])
        faster = "" if row["library"] == "pylm" else f"{median / medians['pylm']:.2f} times as fast"
        rate = corpus.stat().st_size / median / 1e6
        yield (
            f"| {task} | {row['library']} | {median:.2f} ({min(walls):.2f} to {max(walls):.2f}) | {cpu:.2f} "
            f"| {peak:.0f} | {rate:.0f} | {faster} |"
        )


def measure_here(library: str, corpus: str, num_merges: str, num_threads: str) -> dict[str, Any]:
    """Train once in this process."""
    train = {"pylm": _train_pylm, "gigabpe": _train_gigabpe, "tokenizers": _train_tokenizers}[library]
    try:
        importlib.import_module("pylm.text.tokenizer" if library == "pylm" else library)
    except ImportError:
        raise SystemExit(3) from None
    if hasattr(os, "sched_setaffinity"):  # gigabpe takes more cores than the threads it is told to
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(num_threads)])
    num_bytes = _count_bytes(Path(corpus)) if library == "gigabpe" else 0
    start_s, start_cpu_s = time.perf_counter(), time.process_time()
    finish = train(corpus, int(num_merges), int(num_threads), num_bytes)
    wall_s, cpu_s = time.perf_counter() - start_s, time.process_time() - start_cpu_s
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
        1 << 20 if sys.platform == "darwin" else 1024
    )
    digest = hashlib.sha256(repr([tuple(merge) for merge in finish()]).encode()).hexdigest()
    return {"wall_s": wall_s, "cpu_s": cpu_s, "peak_mib": peak, "digest": digest}


def _peak_mib() -> float:
    """Peak memory of this process; on Linux not from getrusage, which begins with that of the parent."""
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (row for row in status.read_text(encoding="ascii").splitlines() if row.startswith("VmHWM:"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
        1 << 20 if sys.platform == "darwin" else 1024
    )


def _count_bytes(path: Path) -> int:
    """Number of different bytes in a file, read block by block so that peak memory stays low."""
    found: set[int] = set()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return len(found)


def _train_pylm(corpus: str, num_merges: int, num_threads: int, _: int) -> Any:
    from pylm import Tokenizer
    from pylm.text._byte_alphabet import BYTE_TO_CHAR

    trained = Tokenizer.train(
        [Path(corpus)],
        vocab_size=256 + num_merges,
        pattern="gpt2",
        min_frequency=MIN_FREQUENCY,
        separator="\n",
        keep_separator=True,
        num_threads=num_threads,
    )

    def written(token_id: int) -> str:
        return "".join(BYTE_TO_CHAR[byte] for byte in trained.token_bytes(token_id))

    return lambda: [
        (written(left), written(right)) for left, right, *_ in trained._vocabulary.merges().tolist()
    ]


def _train_gigabpe(corpus: str, num_merges: int, num_threads: int, num_bytes: int) -> Any:
    import gigabpe

    _, merges = gigabpe.train_bpe(
        [corpus],
        num_bytes + num_merges,  # its alphabet holds the bytes that occur
        pretokenizer="bytelevel",
        min_frequency=MIN_FREQUENCY,
        threads=num_threads,
    )
    return lambda: merges


def _train_tokenizers(corpus: str, num_merges: int, _: int, __: int) -> Any:
    import tokenizers

    peer = tokenizers.Tokenizer(tokenizers.models.BPE())
    peer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=256 + num_merges,
        min_frequency=MIN_FREQUENCY,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    peer.train([corpus], trainer)
    return lambda: json.loads(peer.to_str())["model"]["merges"]


def build_corpus(num_bytes: int) -> Path:
    """Put text files of this machine together, each content once, in the order of their hashes."""
    path = Path(os.environ.get("TMPDIR", "/tmp")) / f"pylm_training_corpus_{num_bytes}.txt"
    if path.exists():
        return path
    roots = [sysconfig.get_paths()[name] for name in ("stdlib", "purelib")] + [
        "/usr/include",
        "/usr/share/doc",
    ]
    texts: dict[bytes, Path] = {}
    for root in dict.fromkeys(roots):
        for file in sorted(Path(root).rglob("*")):
            if file.suffix not in SUFFIXES or file.is_symlink() or not file.is_file():
                continue
            if (content := _read_text(file)) is not None:
                texts.setdefault(hashlib.sha256(content).digest(), file)
    size = 0
    with path.with_suffix(".part").open("wb") as out:
        for _, file in sorted(texts.items()):
            content = _read_text(file) or b""
            out.write(content if content.endswith(b"\n") else content + b"\n")
            size += len(content)
            if size >= num_bytes:
                break
    path.with_suffix(".part").replace(path)
    print(f"{path}: {size:,} bytes of {len(texts)} files", file=sys.stderr)
    return path


def _read_text(file: Path) -> bytes | None:
    """Read a file of up to 8 MB, or None where it is no text that all libraries cut alike."""
    try:
        if file.stat().st_size > 8_000_000:
            return None
        content = file.read_bytes()
        content = gzip.decompress(content) if file.suffix == ".gz" else content
        characters = set(content.decode())
    except (OSError, UnicodeDecodeError, EOFError):
        return None
    # Characters newer than this Python, which the peers' tables may not know.
    is_new = any(unicodedata.category(character) == "Cn" for character in characters)
    return None if is_new or "\0" in characters else content


if __name__ == "__main__":
    main()
