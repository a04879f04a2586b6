"""Where the data went, where the time went, and with what it was all made."""

import json
from collections.abc import Iterator, Mapping

from pylm.report.bars import Bar, bar_chart
from pylm.report.funnel import read_funnel
from pylm.report.html import (
    Html,
    element,
    format_bytes,
    format_duration,
    format_number,
    format_percent,
    join,
    preformatted,
)
from pylm.report.run_folder import Json, RunFolder, number

_MAX_FACTS = 40
_TRAINING = frozenset({"pretrain", "sft", "dpo", "rlvr"})


def data_section(run: RunFolder) -> Html | None:
    """What each step of preparation kept and dropped."""
    steps = read_funnel(run.funnel)
    if not steps:
        return None
    first, last = steps[0].num_in, steps[-1].num_out
    bars = []
    for step in steps:
        reasons = ", ".join(
            f"{reason} {count:,}"
            for reason, count in sorted(step.reasons.items(), key=lambda item: -item[1])[:4]
            if reason != step.name
        )
        share = (
            f" (\u2212{format_percent((step.num_in - step.num_out) / step.num_in)})"
            if step.num_in > step.num_out
            else ""
        )
        bars.append(
            Bar(
                step.name,
                step.num_out,
                f"{step.num_out:,}{share}",
                tone=3,
                lost=step.num_in - step.num_out,
                note=reasons or None,
            )
        )
    worst = max(steps, key=lambda step: step.num_in - step.num_out)
    dropped = worst.num_in - worst.num_out
    finding: list[Html | str] = [
        element("b", f"{last:,} of {first:,} documents"),
        f" were kept ({format_percent(last / first) if first else '0'})",
        _size_words(steps[-1].bytes_out),
        f"; {worst.name} dropped most, {dropped:,}." if dropped else ".",
    ]
    chart = bar_chart(
        bars,
        description="Documents left after each step of preparation.",
        is_direct=False,
        caption=join(
            [
                element("span", class_="swatch tone-3"),
                " kept \u2002",
                element("span", class_="swatch"),
                " dropped in this step, by reason below its name",
            ]
        ),
    )
    return join([element("p", *finding, class_="finding"), chart])


def _size_words(num_bytes: int | None) -> str:
    return f", {format_bytes(num_bytes)}" if num_bytes else ""


def time_section(run: RunFolder) -> Html | None:
    """How long each stage took."""
    times = {
        name: seconds
        for name, stage in run.stages.items()
        if (seconds := number(stage.get("elapsed_s"))) is not None
    }
    if not times:
        return None
    total = sum(times.values())
    bars = [
        Bar(name, seconds, f"{format_duration(seconds)}", tone=1 if name in _TRAINING else 0)
        for name, seconds in times.items()
    ]
    longest = max(times, key=lambda name: times[name])
    finding = [
        element("b", format_duration(total)),
        f" from the first stage to the last; {longest} took {format_percent(times[longest] / total)}."
        if total
        else ".",
    ]
    chart = bar_chart(
        bars,
        description="Time of each stage.",
        caption=join(
            [
                element("span", class_="swatch tone-1"),
                " training \u2002",
                element("span", class_="swatch tone-0"),
                " everything else",
            ]
        ),
    )
    return join([element("p", *finding, class_="finding"), chart])


def recipe_section(run: RunFolder) -> Html | None:
    """Versions, what each stage said of itself, and the resolved recipe."""
    versions = [pair for name, value in run.versions.items() for pair in _fact(name, value)]
    stages = []
    for name, stage in run.stages.items():
        summary = stage.get("summary")
        facts = list(_flatten(summary)) if isinstance(summary, Mapping) else []
        shown = [pair for key, value in facts[:_MAX_FACTS] for pair in _fact(key, value)]
        if len(facts) > _MAX_FACTS:
            shown += _fact("\u2026", f"and {len(facts) - _MAX_FACTS:,} more in {name}/stage.json")
        shown += _fact("fingerprint", stage.get("fingerprint")) if stage.get("fingerprint") else []
        if shown:
            stages.append(join([element("h3", name), element("dl", *shown, class_="facts")]))
    parts = [
        element("dl", *versions, class_="facts") if versions else None,
        _folded("What each stage reports", stages) if stages else None,
        _folded("The resolved recipe", [preformatted(run.recipe, tabindex="0")]) if run.recipe else None,
    ]
    return join(parts) if any(parts) else None


def _flatten(record: Mapping[str, Json], prefix: str = "") -> Iterator[tuple[str, Json]]:
    """Yield the plain values of nested objects under dotted names; lists are left to the file."""
    for name, value in record.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        elif not isinstance(value, list):
            yield f"{prefix}{name}", value


def _folded(title: str, content: list[Html]) -> Html:
    return element("details", element("summary", title), element("div", *content, class_="body"))


def _fact(name: str, value: Json) -> list[Html]:
    if isinstance(value, float):
        text = format_number(value)
    elif isinstance(value, int) and not isinstance(value, bool):
        text = f"{value:,}"
    else:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return [element("dt", name), element("dd", text)]
