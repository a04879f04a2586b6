"""One screen about a run of gpu.sh: tests, each op against its best peer and its goals, steps, tuning.

    python bench/gpu_summary.py FOLDER [--note TEXT]

Reads what is in the folder, writes it to summary.md, and needs nothing but Python. The goals are those on an
H100: shares of the ceiling, a copy or the bare products, measured in the same run.
"""

import argparse
import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MISSED = "MISSED"
LONGEST_LIST = 12


@dataclass(frozen=True)
class Goals:
    """What an op should reach at a size; None where there is no goal.

    Attributes:
        forward, backward, both: shares of the ceiling, at least.
        flops: of the forward and of the backward pass a second, at least.
        peak_bytes: beyond the inputs, at most.
        host_us: that a call takes the host, at most.
    """

    forward: float | None = None
    backward: float | None = None
    both: float | None = None
    flops: tuple[float, float] | None = None
    peak_bytes: int | None = None
    host_us: float | None = None


GOALS = {
    "rms_norm 8192 x 4096": Goals(0.95, 0.90),
    "rms_norm 32768 x 2048": Goals(0.95, 0.90),
    "add_rms_norm 8192 x 4096": Goals(0.95, 0.90),
    "rope 8192 x 32 + 8 x 128": Goals(0.92, 0.92),
    "rope interleaved 8192 x 32 + 8 x 128": Goals(0.92, 0.92),
    "swiglu 8192 x 14336": Goals(0.98, 0.95),
    "swiglu_packed 8192 x 28672": Goals(0.98, 0.95),
    "linear_cross_entropy 8192 x 4096 x 151936": Goals(both=1 / 1.15, peak_bytes=7 << 30),
    "moe_experts 32768 x 2048 x 768, 8 of 128": Goals(flops=(500e12, 450e12)),
    "rms_norm 16 x 4096": Goals(host_us=15.0),
    "swiglu 16 x 14336": Goals(host_us=15.0),
    "rope 16 x 32 + 8 x 128": Goals(host_us=15.0),
}
MFU = 0.55


def summarize_tests(text: str) -> list[str]:
    """Return lines about the output of `pytest -v`, of which parts may be missing."""
    pattern = r"^(tests/\S+::.*?)(?: (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b.*| *)$"
    found = re.findall(pattern, text, re.M)
    verdicts = {name: verdict for name, verdict in found if verdict}
    errors = set(re.findall(r"^ERROR (tests/.*?)(?: - .*)?$", text, re.M)) - verdicts.keys()
    counts = Counter(verdicts.values())
    num_failed = counts["FAILED"] + counts["ERROR"] + counts["XPASS"] + len(errors)
    if unrun := re.match(r"collected \d+ tests, which are not run here", text):
        return [f"tests: {unrun[0]}", *(f"  failed: {name}" for name in sorted(errors))]
    collected = re.match(r"collected (\d+) tests$", text, re.M)
    num_missing = max(0, int(collected[1]) - len(verdicts)) if collected else 0
    line = f"tests: {counts['PASSED']} passed, {num_failed} failed, {counts['SKIPPED']} skipped"
    lines = [line + (f", {num_missing} did not end" if num_missing else "")]
    failed = [name for name, verdict in verdicts.items() if verdict not in ("PASSED", "SKIPPED", "XFAIL")]
    failed += sorted(errors)
    lines += [f"  failed: {name}" for name in failed[:LONGEST_LIST]]
    if len(failed) > LONGEST_LIST:
        lines.append(f"  and {len(failed) - LONGEST_LIST} more")
    # A test that was begun and has no verdict is the one that hung, or ended its process.
    begun = [name for name in dict.fromkeys(name for name, _ in found) if name not in verdicts]
    lines += [f"  began and did not end: {name}" for name in begun[:LONGEST_LIST]]
    reasons: Counter[str] = Counter()
    for number, reason in re.findall(r"^SKIPPED \[(\d+)\] \S+ (.*)$", text, re.M):
        reasons[reason] += int(number)
    return lines + [f"  skipped: {number} x {reason}" for reason, number in reasons.items()]


def _judge(value: float, goal: float | None, *, at_most: bool = False) -> str:
    """Return the goal and whether it is missed."""
    if goal is None:
        return ""
    return "" if (value <= goal if at_most else value >= goal) else f" {MISSED}"


def _judge_case(row: dict[str, Any]) -> str:
    """Return the figures of pylm at a size, with marks."""
    goals, parts = GOALS.get(row["case"], Goals()), []
    for part in ("forward", "backward", "both"):
        share, goal = row.get(f"{part}_share"), getattr(goals, part)
        if share is not None and (part != "both" or goal is not None or "backward_share" not in row):
            figure = f"{100 * share:.0f}" if goal is None else f"{100 * share:.1f}/{100 * goal:.0f}"
            parts.append(f"{part} {figure} %{_judge(share, goal)}")
    for part, goal in zip(("forward", "backward"), goals.flops or (), strict=False):
        if flops := row.get(f"{part}_flops_per_s"):
            parts.append(f"{part} {flops / 1e12:.0f}/{goal / 1e12:.0f} TFLOP/s{_judge(flops, goal)}")
    peak, limit = row.get("peak_extra_bytes"), goals.peak_bytes
    if peak is not None and limit is not None:
        missed = _judge(peak, limit, at_most=True)
        parts.append(f"{peak / 2**30:.1f}/{limit / 2**30:.0f} GiB{missed}")
    if (us := row.get("host_us")) is not None:
        wanted = "" if goals.host_us is None else f"/{goals.host_us:.0f}"
        parts.append(f"host {us:.1f}{wanted} us{_judge(us, goals.host_us, at_most=True)}")
    return ", ".join(parts)


def summarize_ops(result: dict[str, Any]) -> list[str]:
    """Return a line for each size: time over that of the fastest peer, shares of the ceiling, goals."""
    ceilings, rows = result["ceilings"], result["rows"]
    copy, matmul = ceilings["copy_bytes_per_s"] / 1e9, ceilings["matmul_flops_per_s"] / 1e12
    lines = [f"ops (copy {copy:.0f} GB/s, matmul {matmul:.0f} TFLOP/s; time / best peer; reached/goal):"]
    for case in dict.fromkeys(row["case"] for row in rows):
        own = [row for row in rows if row["case"] == case]
        ours = next((row for row in own if row["implementation"] == "pylm"), own[0])
        if "note" in ours:
            lines.append(f"  {case}: {ours['implementation']} {ours['note']}")
            continue
        peers = [(r["both_ms"], r["implementation"]) for r in own if r is not ours and "note" not in r]
        best = min(peers, default=None)
        ratio = f"{ours['both_ms'] / best[0]:.2f} {best[1]}" if best else "no peer"
        lines.append(f"  {case}: {ratio}; {_judge_case(ours)}")
    if left_out := result.get("cases_left_out"):
        lines.append(f"  {left_out} cases left out: the time was over")
    for name, key in (("not timed for lack of time", "the time was over"), ("failing peers", "fails")):
        peers = Counter(
            row["implementation"]
            for row in rows
            if row["implementation"] not in ("inputs", "torch", "pylm")
            and row.get("note", "").startswith(key)
        )
        if peers:
            lines.append(f"  {name}: " + ", ".join(f"{peer} {number} x" for peer, number in peers.items()))
    return lines


def summarize_train(result: dict[str, Any]) -> list[str]:
    """Return a line for each variant of the training step."""
    peak = result["bf16_peak_flops_per_s"]
    lines = [f"training step (MFU, goal {100 * MFU:.0f} %, over the peak of the data sheet):"]
    for row in result["rows"]:
        if "note" in row:
            lines.append(f"  {row['variant']}: {row['note']}")
            continue
        mfu = None if peak is None else row["flops_per_s"] / peak
        share = "peak unknown" if mfu is None else f"MFU {100 * mfu:.1f} %"
        # The goal is that of pylm's step, compiled or not.
        missed = _judge(mfu, MFU) if mfu is not None and row["variant"].startswith("pylm") else ""
        memory = f", {row['peak_bytes'] / 2**30:.1f} GiB" if "peak_bytes" in row else ""
        speed = f"{row['step_ms']:.1f} ms, {row['tokens_per_s']:.0f} tokens/s"
        lines.append(f"  {row['variant']}: {speed}, {share}{missed}{memory}")
    return lines


def summarize_tuning(result: dict[str, Any]) -> list[str]:
    """Return the kernels that another configuration makes faster by 2 % or more, and what is missing."""
    rows = result["rows"]
    timed = [row for row in rows if "note" not in row]
    gains = [row for row in timed if row["ratio"] is None or row["ratio"] < 0.98]
    lines = [f"tuning: {len(timed)} kernels, {len(gains)} gain 2 % or more"]
    for row in gains:
        ratio = "checked in does not fit" if row["ratio"] is None else f"{row['ratio']:.3f}"
        lines.append(f"  {row['case']}, {row['kernel']}: {ratio} with {row['best']}")
    lines += [f"  {row['case']}: {row['note']}" for row in rows if "note" in row]
    return lines + [f"  left out: {name}" for name in result.get("left_out", [])]


def summarize(folder: Path) -> list[str]:
    """Return all lines about what is in a folder."""
    lines: list[str] = []
    path = folder / "tests.txt"
    lines += summarize_tests(path.read_text(errors="replace")) if path.exists() else ["tests: none were run"]
    about = None
    parts = {"ops": summarize_ops, "train": summarize_train, "tune": summarize_tuning}
    for name, part in parts.items():
        path = folder / f"{name}.json"
        if not path.exists():
            lines.append(f"{name}: nothing was written")
            continue
        result = json.loads(path.read_text())
        about = about or result["about"]
        lines += part(result)
    if about is not None:
        versions = ", ".join(f"{key} {value}" for key, value in about["versions"].items())
        lines.insert(0, f"{about['hardware']}; {versions}; commit {about['checkout']}")
        if "H100" not in about["hardware"]:
            lines.insert(1, "The goals are those on an H100, which this is not.")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description="Print one screen about a run of gpu.sh.")
    parser.add_argument("folder", type=Path, help="where it wrote its results")
    parser.add_argument("--note", default="", help="a line to end with")
    options = parser.parse_args()
    lines = summarize(options.folder)
    if options.note:
        lines.append(options.note)
    text = "\n".join(lines) + "\n"
    (options.folder / "summary.md").write_text(f"# summary\n\n```\n{text}```\n")
    print(text, end="", flush=True)


if __name__ == "__main__":
    main()
