"""The curves of the four training stages."""

import math
from collections.abc import Sequence

from pylm.report.charts import Axis, Mark, Series, join_charts, line_chart, running_mean
from pylm.report.figures import ARITHMETIC, arithmetic_baseline, change_of, last_value
from pylm.report.headline import HELDOUT_PREFERENCE, change_text, interval_text
from pylm.report.html import Html, element, format_count, format_number, format_percent, join
from pylm.report.run_folder import TITLES, Record, RunFolder, column, number

_STEP = Axis("step", format=format_count)


def pretrain_section(run: RunFolder) -> Html | None:
    """Loss with its spikes and the switches of the curriculum; learning rate below."""
    records = run.metrics.get("pretrain")
    if not records:
        return None
    steps, losses = column(records, "loss")
    if not steps:
        return None
    smooth = running_mean(losses)
    spikes = [
        (step, loss, f"step {step:,.0f}: loss {format_number(loss)}")
        for record in records
        if record.get("spike") is True
        and (step := number(record.get("step"))) is not None
        and (loss := number(record.get("loss"))) is not None
    ]
    marks = _switches(records)
    top = _top_of(smooth, losses)
    heldout = next((name for name in ("heldout/loss", "heldout_loss") if column(records, name)[0]), None)
    series = [Series("loss", steps, losses, tone=1, smooth=True)]
    if heldout:
        held_steps, held_losses = column(records, heldout)
        series.append(Series("held out", held_steps, held_losses, tone=2, dots=len(held_steps) <= 40))
    charts = [
        line_chart(
            series,
            x_axis=_STEP,
            y_axis=Axis("loss, nats per token", high=top),
            description=f"Pretraining loss by step, from {losses[0]:.2f} to {smooth[-1]:.2f}.",
            height_px=320,
            marks=marks,
            dots=[(step, loss, text) for step, loss, text in spikes],
            caption=_loss_caption(losses, top, len(spikes)),
        )
    ]
    rate_steps, rates = column(records, "learning_rate")
    if rate_steps:
        charts.append(
            line_chart(
                [Series("rate", rate_steps, rates, tone=3)],
                x_axis=_STEP,
                y_axis=Axis("learning rate", low=0.0),
                description=f"Learning rate by step, peak {max(rates):.2g}.",
                height_px=150,
                marks=[Mark(mark.x, "") for mark in marks],
            )
        )
    tokens = last_value(run, "pretrain", ("tokens",))
    finding = [
        "Loss went from ",
        element("b", f"{losses[0]:.2f}"),
        " to ",
        element("b", f"{smooth[-1]:.2f}"),
        f" nats per token in {len(steps):,} steps",
        f" and {format_count(tokens)} tokens" if tokens else "",
        ". ",
        _spike_words(len(spikes), sum(record.get("skipped") is True for record in records)),
    ]
    return join([element("p", *finding, class_="finding"), element("div", *charts, class_="stack")])


def _switches(records: Sequence[Record]) -> list[Mark]:
    marks = []
    previous: float | None = None
    for record in records:
        stage, step = number(record.get("stage")), number(record.get("step"))
        if stage is None or step is None:
            continue
        if previous is not None and stage != previous:
            marks.append(Mark(step, f"curriculum stage {stage + 1:.0f}"))
        previous = stage
    return marks


def _top_of(smooth: Sequence[float], losses: Sequence[float]) -> float:
    """Cut the axis where 8 % of the run has passed: the first steps would flatten all that follows."""
    finite = [value for value in smooth if math.isfinite(value)]
    early = finite[min(len(finite) - 1, max(1, round(0.08 * len(finite))))]
    return min(max(losses), early + 0.25 * (early - finite[-1])) if early > finite[-1] else max(losses)


def _loss_caption(losses: Sequence[float], top: float, num_spikes: int) -> Html:
    parts: list[Html | str] = ["Faint: every step. Strong: running mean over 3 % of the run."]
    if max(losses) > top:
        parts.append(f" The axis is cut: the first step is at {losses[0]:.2f}.")
    if num_spikes:
        parts += [" ", element("span", class_="swatch ring"), " spike"]
    return join(parts)


def _spike_words(num_spikes: int, num_skipped: int) -> str:
    counted = {0: "No step was a spike", 1: "One step was a spike"}
    words = counted.get(num_spikes, f"{num_spikes:,} steps were spikes")
    return f"{words}; {num_skipped:,} updates were skipped." if num_skipped else f"{words}."


def sft_section(run: RunFolder) -> Html | None:
    """Loss on the answers."""
    records = run.metrics.get("sft")
    if not records:
        return None
    series = _curves(records, (("loss", "train", 1), ("heldout/loss", "held out", 2)))
    if not series:
        return None
    chart = line_chart(
        series,
        x_axis=_STEP,
        y_axis=Axis("loss, nats per answer token"),
        description="Loss of supervised fine-tuning by step.",
        height_px=240,
    )
    finding = element(
        "p", "Loss counts the tokens of the answers only, averaged over all of a step's.", class_="finding"
    )
    return join([finding, chart])


def dpo_section(run: RunFolder) -> Html | None:
    """Margins between chosen and rejected answers, and how often the chosen one wins."""
    records = run.metrics.get("dpo")
    if not records:
        return None
    charts = []
    margins = _curves(
        records,
        (
            ("rewards/margins", "margin", 1),
            ("rewards/chosen", "chosen", 3),
            ("rewards/rejected", "rejected", 2),
        ),
    )
    if margins:
        charts.append(
            line_chart(
                margins,
                x_axis=_STEP,
                y_axis=Axis("implicit reward, \u03b2 \u00b7 log-ratio to the reference"),
                description="Implicit rewards of chosen and rejected answers and their margin by step.",
            )
        )
    accuracies = _curves(records, (("rewards/accuracies", "train", 1),))
    for name in HELDOUT_PREFERENCE:
        accuracies += _curves(records, ((name, "held out", 2),)) if len(accuracies) < 2 else []
    if accuracies:
        charts.append(
            line_chart(
                accuracies,
                x_axis=_STEP,
                y_axis=Axis(
                    "pairs with the chosen answer ahead",
                    high=1.0,
                    format=format_percent,
                    ticks=_whole_percent,
                ),
                description="Share of pairs in which the chosen answer has the higher reward, by step.",
            )
        )
    if not charts:
        return None
    accuracy = last_value(run, "dpo", HELDOUT_PREFERENCE)
    finding = (
        [
            "At the end the chosen answer is ahead in ",
            element("b", format_percent(accuracy)),
            " of held-out pairs.",
        ]
        if accuracy is not None
        else ["How far the model has moved from its reference, and in favour of which answers."]
    )
    return join([element("p", *finding, class_="finding"), join_charts(*charts)])


def rlvr_section(run: RunFolder) -> Html | None:
    """Reward on training problems, accuracy on held-out ones, distance from the reference."""
    records = run.metrics.get("rlvr")
    if not records:
        return None
    charts = []
    reward = _curves(records, (("reward", "reward", 1),))
    if reward:
        charts.append(
            line_chart(
                reward,
                x_axis=_STEP,
                y_axis=Axis("mean reward of sampled answers"),
                description="Mean reward of sampled answers to training problems by step.",
            )
        )
    heldout = _heldout_accuracy(records)
    if heldout:
        charts.append(
            line_chart(
                [heldout],
                x_axis=_STEP,
                y_axis=Axis("held-out problems right, greedy", format=format_percent, ticks=_whole_percent),
                description="Share of held-out problems that the model solves by step.",
                caption="Band: 95 % interval (Wilson)." if heldout.low else None,
            )
        )
    for name, label in (
        ("kl", "KL to the reference, nats per token"),
        ("entropy", "entropy, nats per token"),
    ):
        curve = _curves(records, ((name, name if name == "entropy" else "KL", 3),))
        if curve:
            charts.append(
                line_chart(
                    curve,
                    x_axis=_STEP,
                    y_axis=Axis(label, low=0.0 if name == "kl" else None),
                    description=f"{label} by step.",
                    height_px=180,
                )
            )
    if not charts:
        return None
    before = arithmetic_baseline(run, "rlvr")
    change = change_of(run, before, "rlvr", ARITHMETIC) if before else None
    finding = (
        [
            "Held-out accuracy changed by ",
            element("b", f"{change_text(change)} points"),
            f" over {TITLES[before or '']}, 95\u202f% interval {interval_text(change)}, "
            "paired over the same problems.",
        ]
        if change
        else ["Reward comes from a program that checks the answer."]
    )
    return join([element("p", *finding, class_="finding"), join_charts(*charts)])


def _heldout_accuracy(records: Sequence[Record]) -> Series | None:
    for prefix in ("heldout/", "heldout_"):
        steps, values = column(records, f"{prefix}accuracy")
        if steps:
            low_steps, low = column(records, f"{prefix}low")
            high_steps, high = column(records, f"{prefix}high")
            has_band = low_steps == high_steps == steps
            return Series(
                "held out",
                steps,
                values,
                tone=2,
                low=low if has_band else (),
                high=high if has_band else (),
                dots=len(steps) <= 40,
            )
    return None


def _whole_percent(value: float) -> str:
    return f"{100 * value:.4g}\u202f%"


def _curves(records: Sequence[Record], wanted: Sequence[tuple[str, str, int]]) -> list[Series]:
    curves = []
    for name, label, tone in wanted:
        steps, values = column(records, name)
        if steps:
            is_dense = len(steps) > 60
            curves.append(Series(label, steps, values, tone=tone, smooth=is_dense, dots=len(steps) <= 40))
    return curves
