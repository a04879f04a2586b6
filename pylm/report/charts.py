"""Small charts: an SVG that stretches for the lines, HTML for every word and dot.

Lines live in an SVG of 1000 x 1000 units that fills its box in both directions without scaling its
strokes; labels are HTML at percentages of the same box. So a chart keeps its text size from a telephone
to a wide screen, and the text can be selected. Colours are classes (`tone-1`...) that the style sheet
maps for light and dark. Values are read by pointing: narrow columns over the plot show what they hold.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from pylm.report.html import Html, element, format_number, join, minus

_MAX_POINTS = 400
_NUM_COLUMNS = 60
_LABEL_HEIGHT_PX = 34
_FIXED = "non-scaling-stroke"


@dataclass(frozen=True)
class Series:
    """One curve.

    Attributes:
        name: label beside its end.
        x: increasing positions.
        y: values; not finite ones are gaps.
        tone: colour, 1 to 4.
        smooth: draw a running mean over a faint raw curve.
        low, high: bounds of an interval around each value, or empty.
        dots: mark each point, for curves of few points.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    tone: int = 1
    smooth: bool = False
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    dots: bool = False


@dataclass(frozen=True)
class Mark:
    """A vertical line with words at its top."""

    x: float
    label: str


@dataclass(frozen=True)
class Axis:
    """How one axis is drawn.

    Attributes:
        label: what it shows, with its unit.
        low, high: range; None takes it from the data.
        format: writes its values.
        ticks: writes its ticks; None for `format`.
    """

    label: str
    low: float | None = None
    high: float | None = None
    format: Callable[[float], str] = format_number
    ticks: Callable[[float], str] | None = None

    def tick(self, value: float) -> str:
        """Write a tick."""
        return minus((self.ticks or self.format)(value))


@dataclass
class _Frame:
    x_low: float
    x_high: float
    y_low: float
    y_high: float

    def x(self, value: float) -> float:
        return (value - self.x_low) / ((self.x_high - self.x_low) or 1.0)

    def y(self, value: float) -> float:
        """Distance from the top as a share of the height; below 0 for what is above the axis."""
        return 1.0 - (value - self.y_low) / ((self.y_high - self.y_low) or 1.0)


def line_chart(
    series: Sequence[Series],
    *,
    x_axis: Axis,
    y_axis: Axis,
    description: str,
    height_px: int = 260,
    marks: Sequence[Mark] = (),
    dots: Sequence[tuple[float, float, str]] = (),
    caption: Html | str | None = None,
) -> Html:
    """Draw curves over a common axis.

    Args:
        series: the curves; at least one finite point together.
        x_axis: horizontal axis.
        y_axis: vertical axis.
        description: what the chart shows, for those who do not see it.
        height_px: height of the whole chart.
        marks: vertical lines.
        dots: single points that stand out: x, y, what they are.
        caption: text below the chart.

    Returns:
        A `<figure>`.
    """
    frame = _make_frame(series, x_axis, y_axis)
    svg = element(
        "svg",
        *(_grid_line(frame.y(tick)) for tick in nice_ticks(frame.y_low, frame.y_high, 4)),
        *(_mark_line(frame.x(mark.x)) for mark in marks),
        *(path for curve in series for path in _draw(curve, frame)),
        viewBox="0 0 1000 1000",
        preserveAspectRatio="none",
        role="img",
        aria_label=description,
        class_="cut" if y_axis.high is not None else None,
    )
    words = [
        *_tick_words(frame, x_axis, y_axis),
        *(_mark_words(mark, frame) for mark in marks if mark.label),
        *(_dot(x, y, text, frame) for x, y, text in dots),
        *_end_words(series, frame, y_axis, height_px),
        _columns(series, frame, x_axis, y_axis),
    ]
    area = element("div", svg, *words, class_="area")
    return element(
        "figure",
        element("div", y_axis.label, class_="axis-label"),
        element("div", area, class_="plot", style=f"height:{height_px}px"),
        element("div", x_axis.label, class_="axis-label x"),
        element("figcaption", caption) if caption else None,
        class_="chart",
    )


def _make_frame(series: Sequence[Series], x_axis: Axis, y_axis: Axis) -> _Frame:
    xs = [x for curve in series for x in curve.x]
    ys = [y for curve in series for y in (*curve.y, *curve.low, *curve.high) if math.isfinite(y)]
    y_low = min(ys) if y_axis.low is None else y_axis.low
    y_high = max(ys) if y_axis.high is None else y_axis.high
    if y_low >= y_high:
        y_low, y_high = y_low - (abs(y_low) or 1.0) * 0.1, y_low + (abs(y_low) or 1.0) * 0.1
    margin = 0.06 * (y_high - y_low)
    return _Frame(
        x_low=min(xs) if x_axis.low is None else x_axis.low,
        x_high=max(xs) if x_axis.high is None else x_axis.high,
        y_low=y_low - margin if y_axis.low is None else y_low,
        y_high=y_high + margin if y_axis.high is None else y_high,
    )


def _grid_line(top: float) -> Html:
    return element("path", d=f"M0 {1000 * top:.1f}H1000", class_="grid", vector_effect=_FIXED)


def _mark_line(left: float) -> Html:
    return element("path", d=f"M{1000 * left:.1f} 0V1000", class_="mark", vector_effect=_FIXED)


def _tick_words(frame: _Frame, x_axis: Axis, y_axis: Axis) -> list[Html]:
    """Write the ticks; every second one of the x axis is left out on narrow screens."""
    words = [
        element("span", y_axis.tick(tick), class_="tick y", style=f"top:{100 * frame.y(tick):.2f}%")
        for tick in nice_ticks(frame.y_low, frame.y_high, 4)
    ]
    for k, tick in enumerate(nice_ticks(frame.x_low, frame.x_high, 5)):
        name = "tick x minor" if k % 2 else "tick x"
        words.append(
            element("span", x_axis.tick(tick), class_=name, style=f"left:{100 * frame.x(tick):.2f}%")
        )
    return words


def _mark_words(mark: Mark, frame: _Frame) -> Html:
    left = frame.x(mark.x)
    name = "mark-label left" if left > 0.6 else "mark-label"
    return element("span", mark.label, class_=name, style=f"left:{100 * left:.2f}%")


def _dot(x: float, y: float, text: str, frame: _Frame) -> Html:
    place = f"left:{100 * frame.x(x):.2f}%;top:{100 * max(0.0, frame.y(y)):.2f}%"
    return element("span", class_="dot alert", title=text, style=place)


def _draw(curve: Series, frame: _Frame) -> list[Html]:
    paths = []
    if curve.low and curve.high:
        there = [(x, y) for x, y in zip(curve.x, curve.high, strict=True) if math.isfinite(y)]
        back = [(x, y) for x, y in zip(curve.x, curve.low, strict=True) if math.isfinite(y)][::-1]
        paths.append(element("path", d=_path([*there, *back], frame) + "Z", class_=f"band tone-{curve.tone}"))
    points = list(zip(curve.x, curve.y, strict=True))
    if curve.smooth:
        raw = thin_out(points, _MAX_POINTS)
        paths.append(
            element("path", d=_path(raw, frame), class_=f"raw tone-{curve.tone}", vector_effect=_FIXED)
        )
        points = list(zip(curve.x, running_mean(curve.y), strict=True))
    line = thin_out(points, _MAX_POINTS)
    paths.append(
        element("path", d=_path(line, frame), class_=f"line tone-{curve.tone}", vector_effect=_FIXED)
    )
    if curve.dots:
        paths += [
            element(
                "path",
                d=f"M{1000 * frame.x(x):.1f} {1000 * frame.y(y):.1f}h0",
                class_=f"point tone-{curve.tone}",
                vector_effect=_FIXED,
            )
            for x, y in points
            if math.isfinite(y)
        ]
    return paths


def _path(points: Sequence[tuple[float, float]], frame: _Frame) -> str:
    commands = []
    pen_down = False
    for x, y in points:
        if not math.isfinite(y):
            pen_down = False
            continue
        commands.append(f"{'L' if pen_down else 'M'}{1000 * frame.x(x):.1f} {1000 * frame.y(y):.1f}")
        pen_down = True
    return "".join(commands)


def _end_words(series: Sequence[Series], frame: _Frame, y_axis: Axis, height_px: int) -> list[Html]:
    """Put each curve's name and last value beside its end, pushed apart where they would touch."""
    ends = []
    for curve in series:
        values = [y for y in (running_mean(curve.y) if curve.smooth else curve.y) if math.isfinite(y)]
        if values:
            ends.append((frame.y(values[-1]), curve, values[-1]))
    ends.sort(key=lambda end: end[0])
    gap = _LABEL_HEIGHT_PX / max(1, height_px - 32)
    tops = [end[0] for end in ends]
    for i in range(1, len(tops)):
        tops[i] = max(tops[i], tops[i - 1] + gap)
    overflow = max(0.0, tops[-1] - 1.0) if tops else 0.0
    return [
        element(
            "span",
            element("b", minus(y_axis.format(value))),
            curve.name,
            class_=f"end tone-{curve.tone}",
            style=f"top:{100 * (top - overflow):.2f}%",
        )
        for top, (_, curve, value) in zip(tops, ends, strict=True)
    ]


def _columns(series: Sequence[Series], frame: _Frame, x_axis: Axis, y_axis: Axis) -> Html:
    """Lay columns over the plot that show the values under the pointer; no script needed."""
    longest = max(series, key=lambda curve: len(curve.x))
    num_columns = min(_NUM_COLUMNS, len(longest.x))
    smoothed = [(curve, running_mean(curve.y) if curve.smooth else list(curve.y)) for curve in series]
    columns = []
    for k in range(num_columns):
        x = longest.x[round(k * (len(longest.x) - 1) / max(1, num_columns - 1))]
        rows = []
        for curve, values in smoothed:
            nearest = min(range(len(curve.x)), key=lambda i: abs(curve.x[i] - x))
            if math.isfinite(values[nearest]):
                rows.append(
                    element(
                        "span",
                        f"{curve.name} {minus(y_axis.format(values[nearest]))}",
                        class_=f"tone-{curve.tone}",
                    )
                )
        share = frame.x(x)
        tip = element(
            "span",
            element("b", f"{x_axis.label} {x_axis.format(x)}"),
            *rows,
            class_="tip" + (" left" if share > 0.6 else ""),
        )
        columns.append(
            element("i", tip, style=f"left:{100 * share:.2f}%;width:{100 / max(1, num_columns):.2f}%")
        )
    return element("div", *columns, class_="columns", aria_hidden="true")


def nice_ticks(low: float, high: float, target: int) -> list[float]:
    """List about `target` round numbers (1, 2 or 5 times a power of ten apart) between two bounds."""
    if not high > low:
        return [low]
    raw = (high - low) / target
    power = 10.0 ** math.floor(math.log10(raw))
    step = min((1.0, 2.0, 5.0, 10.0), key=lambda factor: abs(math.log(factor * power / raw))) * power
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(k * step, 12) + 0.0 for k in range(first, last + 1)]


def running_mean(values: Sequence[float], *, share: float = 0.03) -> list[float]:
    """Average each value with its neighbours, `share` of the curve and 9 points wide at least.

    Gaps are left out of the mean. Near an end the average is over what lies within the curve.
    """
    half = max(4, round(share * len(values) / 2))
    sums, counts = [0.0], [0]
    for value in values:
        is_finite = math.isfinite(value)
        sums.append(sums[-1] + (value if is_finite else 0.0))
        counts.append(counts[-1] + is_finite)
    means = []
    for i in range(len(values)):
        start, stop = max(0, i - half), min(len(values), i + half + 1)
        count = counts[stop] - counts[start]
        means.append((sums[stop] - sums[start]) / count if count else math.nan)
    return means


def thin_out(points: Sequence[tuple[float, float]], max_points: int) -> list[tuple[float, float]]:
    """Keep the lowest and the highest point of each stretch, so that no peak is lost."""
    if len(points) <= max_points:
        return list(points)
    num_stretches = max(1, max_points // 2)
    borders = [round(k * len(points) / num_stretches) for k in range(num_stretches + 1)]
    kept = []
    for start, stop in pairwise(borders):
        finite = [i for i in range(start, stop) if math.isfinite(points[i][1])]
        if finite:
            ends = {min(finite, key=lambda i: points[i][1]), max(finite, key=lambda i: points[i][1])}
            kept += [points[i] for i in sorted(ends)]
        elif start < stop:
            kept.append(points[start])
    return kept


def join_charts(*charts: Html) -> Html:
    """Put charts side by side where there is room."""
    return element("div", join(charts), class_="pair")
