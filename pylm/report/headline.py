"""The head of the page: the run in a sentence and in five figures."""

from pylm.eval.compare import Estimate
from pylm.report.figures import (
    ARITHMETIC,
    BITS,
    FORMAT,
    arithmetic_baseline,
    change_of,
    count_of,
    estimate_of,
    evaluated_stages,
    last_value,
)
from pylm.report.html import (
    Child,
    Html,
    element,
    format_count,
    format_duration,
    format_percent,
    join,
    minus,
)
from pylm.report.run_folder import TITLES, RunFolder, child, number

HELDOUT_PREFERENCE = ("heldout/rewards/accuracies", "heldout/accuracy")
"""Names under which DPO's metrics may hold the accuracy on held-out pairs."""


def headline(run: RunFolder) -> Html:
    """Make title, lead and tiles."""
    tiles = [
        tile for tile in (_bits(run), _format(run), _preference(run), _arithmetic(run), _time(run)) if tile
    ]
    return join(
        [
            element("p", "pylm run", class_="kicker"),
            element("h1", run.name),
            element("p", _lead(run), class_="lead"),
            element("dl", *tiles, class_="tiles") if tiles else None,
        ]
    )


def interval_text(estimate: Estimate, *, scale: float = 100.0, digits: int = 1) -> str:
    """Write the bounds of an interval: `[49.2, 55.4]`."""
    return minus(f"[{scale * estimate.low:.{digits}f}, {scale * estimate.high:.{digits}f}]")


def change_text(estimate: Estimate, *, scale: float = 100.0, digits: int = 1) -> str:
    """Write a change with its sign: `+37.2`."""
    return minus(f"{scale * estimate.value:+.{digits}f}")


def _lead(run: RunFolder) -> str:
    stages = evaluated_stages(run)
    size = number(child(run.evaluations[stages[0]], "model").get("num_params")) if stages else None
    tokens = last_value(run, "pretrain", ("tokens",))
    size_text = f"A language model of {format_count(size)} parameters" if size else "A language model"
    token_text = f", pretrained on {format_count(tokens)} tokens" if tokens else ""
    later = [
        TITLES[name] for name in ("sft", "dpo", "rlvr") if name in run.metrics or name in run.evaluations
    ]
    later_text = f" and aligned by {_listed(later)}" if later else ""
    return f"{size_text}{token_text}{later_text}."


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _tile(name: str, figure: Child, note: Child) -> Html:
    return element(
        "div",
        element("dt", name),
        element("dd", figure, class_="figure"),
        element("dd", note, class_="note"),
        class_="tile",
    )


def _bits(run: RunFolder) -> Html | None:
    bits = estimate_of(run, "pretrain", BITS)
    if bits is None:
        return None
    best = number(child(run.evaluations["pretrain"], "compression").get("xz"))
    note = f"xz \u22129 needs {best:.2f}" if best else ""
    figure = [f"{bits.value:.3f}", element("small", " bits/byte")]
    return _tile("Held-out text", figure, f"{interval_text(bits, scale=1, digits=2)} \u00b7 {note}")


def _format(run: RunFolder) -> Html | None:
    share = estimate_of(run, "sft", FORMAT)
    if share is None:
        return None
    note = f"{interval_text(share)} after SFT, {count_of(run, 'sft', FORMAT) or 0:,} held-out prompts"
    return _tile("In the asked format", format_percent(share.value), note)


def _preference(run: RunFolder) -> Html | None:
    accuracy = last_value(run, "dpo", HELDOUT_PREFERENCE)
    if accuracy is None:
        return None
    return _tile("Preferences ranked right", format_percent(accuracy), "after DPO, on held-out pairs")


def _arithmetic(run: RunFolder) -> Html | None:
    last = [stage for stage in evaluated_stages(run) if estimate_of(run, stage, ARITHMETIC)]
    share = estimate_of(run, last[-1], ARITHMETIC) if last else None
    if share is None:
        return None
    before = arithmetic_baseline(run, last[-1])
    change = change_of(run, before, last[-1], ARITHMETIC) if before else None
    note = (
        f"{change_text(change)} points {interval_text(change)} over {TITLES[before or '']}"
        if change
        else f"after {TITLES[last[-1]]}"
    )
    return _tile("Arithmetic right", format_percent(share.value), note)


def _time(run: RunFolder) -> Html | None:
    if not run.elapsed_s:
        return None
    threads, device = run.versions.get("threads"), run.versions.get("device")
    note = f"all stages; {threads} threads, {device}" if threads and device else "all stages"
    return _tile("Raw text to model", format_duration(run.elapsed_s), note)
