"""Loading tokenizers: each call in a fresh process, interleaved, with the file as it is and as `.pylm`.

    python bench/loading.py VOCABULARY... [--rounds 7] [--text FILE] [--one-core]

Each must give the same ids as the file it was made of before a line is printed. Processor time is that of all
threads; memory is what the process alone holds after the first text, without the pages of files.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TEXT = "How loading pays: héllo wörld, 日本語 12345.\n"


def _private_mebibytes() -> float:
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty")) / 1024


def _measure(path: str, text: str, core: int | None) -> None:
    """Print what one load takes, as JSON."""
    if core is not None:
        os.sched_setaffinity(0, {core})
    from pylm import Tokenizer

    memory, cpu, wall = _private_mebibytes(), time.process_time(), time.perf_counter()
    tokenizer = Tokenizer.load(path)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    ids = tokenizer.encode_ordinary(text)
    row = {"cpu_ms": 1e3 * cpu, "wall_ms": 1e3 * wall, "memory_mib": _private_mebibytes() - memory}
    sys.stdout.write(json.dumps({**row, "ids": hash(tuple(ids))}))


def main() -> None:
    """Measure and print a line a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("vocabularies", nargs="+", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--text", type=Path, help="encoded after loading")
    parser.add_argument("--one-core", action="store_true", help="no other thread can help")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    text = args.text.read_text(encoding="utf-8") if args.text else TEXT
    if args.measure:
        _measure(str(args.vocabularies[0]), text, 0 if args.one_core else None)
        return
    from pylm import Tokenizer

    with tempfile.TemporaryDirectory() as folder:
        paths: list[Path] = []
        for number, vocabulary in enumerate(args.vocabularies):
            mapped = Path(folder) / f"{number}.pylm"
            Tokenizer.load(vocabulary).save(mapped)
            paths += [vocabulary, mapped]
        rows: dict[Path, list[dict[str, float]]] = {path: [] for path in paths}
        options = ["--measure", *(["--text", str(args.text)] if args.text else [])]
        options += ["--one-core"] if args.one_core else []
        for _ in range(args.rounds):
            for path in paths:
                command = [sys.executable, __file__, str(path), *options]
                rows[path].append(json.loads(subprocess.check_output(command)))
        for plain, mapped in zip(paths[::2], paths[1::2], strict=True):
            assert len({row["ids"] for path in (plain, mapped) for row in rows[path]}) == 1, plain
            for path in (plain, mapped):
                name = plain.name if path == plain else "  as .pylm"
                cpu, wall, memory = (
                    statistics.median(row[key] for row in rows[path])
                    for key in ("cpu_ms", "wall_ms", "memory_mib")
                )
                sys.stdout.write(
                    f"{name:28} {path.stat().st_size / 1e6:7.1f} MB  processor {cpu:7.1f} ms  "
                    f"wall {wall:7.1f} ms  of its own {memory:6.1f} MiB\n"
                )


if __name__ == "__main__":
    main()
