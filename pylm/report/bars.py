"""Horizontal bars, in HTML alone: they take any width and keep their words readable."""

from collections.abc import Sequence
from dataclasses import dataclass

from pylm.report.html import Html, element


@dataclass(frozen=True)
class Bar:
    """One row of a bar chart.

    Attributes:
        label: its name.
        value: its length.
        text: its value in words.
        tone: colour; 0 is neutral.
        low, high: bounds of an interval, drawn as a whisker; None for none.
        lost: a second, pale length after the first (what a step dropped).
        note: small text below the label.
    """

    label: str
    value: float
    text: str
    tone: int = 0
    low: float | None = None
    high: float | None = None
    lost: float = 0.0
    note: Html | str | None = None


def bar_chart(
    bars: Sequence[Bar],
    *,
    description: str,
    is_direct: bool = True,
    caption: Html | str | None = None,
) -> Html:
    """Draw horizontal bars from zero, each with its name before it and its value behind it.

    Args:
        bars: the rows, in order.
        description: what the chart shows, for those who do not see it.
        is_direct: put each value at the end of its bar, else in a column of its own.
        caption: text below the chart.

    Returns:
        A `<figure>`.
    """
    widest = max((max(bar.value + bar.lost, bar.high or 0.0) for bar in bars), default=0.0) or 1.0
    rows = []
    for bar in bars:
        track = [
            element("span", class_=f"fill tone-{bar.tone}", style=f"width:{100 * bar.value / widest:.2f}%"),
            element("span", class_="lost", style=f"width:{100 * bar.lost / widest:.2f}%")
            if bar.lost
            else None,
        ]
        if bar.low is not None and bar.high is not None:
            left, right = 100 * bar.low / widest, 100 * bar.high / widest
            track.append(
                element("span", class_="whisker", style=f"left:{left:.2f}%;width:{right - left:.2f}%")
            )
        end = 100 * max(bar.value + bar.lost, bar.high or 0.0) / widest
        value = element("span", bar.text, class_="value", style=f"left:{end:.2f}%" if is_direct else None)
        note = element("small", bar.note) if bar.note else None
        rows.append(
            element(
                "div",
                element("span", bar.label, note, class_="name"),
                element("span", *track, value if is_direct else None, class_="track"),
                None if is_direct else value,
                class_="bar",
                role="listitem",
            )
        )
    return element(
        "figure",
        element(
            "div",
            *rows,
            class_="bars direct" if is_direct else "bars",
            role="list",
            aria_label=description,
        ),
        element("figcaption", caption) if caption else None,
        class_="chart",
    )
