"""HTML that is escaped unless it is known to be markup, and figures put into words."""

import html
import math
import re
from collections.abc import Iterable

_VOID = frozenset({"br", "hr", "link", "meta"})
_CLOSED = frozenset({"path"})  # parts of an SVG close themselves with a slash, also within HTML
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ud800-\udfff\ufeff]"
)


class Html(str):
    """Markup. A plain `str` is text and is escaped where it meets markup."""

    __slots__ = ()


Child = str | Html | None | Iterable["Child"]


def element(tag: str, *children: Child, **attributes: str | float | bool | None) -> Html:
    """Make an element.

    Args:
        tag: its name.
        children: text (escaped), markup (taken as it is), None (left out) or nested lists of these.
        attributes: names with `_` for `-` and a trailing `_` dropped (`class_`, `aria_label`); None and
            False leave the attribute out, True gives it no value.

    Returns:
        The markup.
    """
    parts = []
    for name, value in attributes.items():
        if value is None or value is False:
            continue
        name = name.rstrip("_").replace("_", "-")
        parts.append(f" {name}" if value is True else f' {name}="{escape(_plain(value))}"')
    if tag in _VOID:
        return Html(f"<{tag}{''.join(parts)}>")
    if tag in _CLOSED:
        return Html(f"<{tag}{''.join(parts)}/>")
    return Html(f"<{tag}{''.join(parts)}>{join(children)}</{tag}>")


def preformatted(text: str, **attributes: str | None) -> Html:
    """Make a `<pre>`. Browsers drop a line break right after the tag, so one is put there to be dropped."""
    return element("pre", "\n", text, **attributes)


def join(children: Iterable[Child]) -> Html:
    """Join children, escaping what is plain text."""
    parts: list[str] = []
    for child in children:
        if child is None:
            continue
        if isinstance(child, Html):
            parts.append(child)
        elif isinstance(child, str):
            parts.append(escape(child))
        else:
            parts.append(join(child))
    return Html("".join(parts))


def escape(text: str) -> Html:
    """Escape text for content and attributes; characters that cannot be seen are shown by their code."""
    return Html(
        html.escape(_UNSEEN.sub(lambda match: f"\u27e8U+{ord(match[0]):04X}\u27e9", text), quote=True)
    )


def _plain(value: str | float | bool) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def format_count(value: float) -> str:
    """Write a count in full up to a million and with three digits beyond: `12,345`, `2.10 M`."""
    if abs(value) < 1e6:
        return f"{value:,.0f}"
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if abs(value) >= size:
            return f"{value / size:.3g}\u202f{unit}"
    raise AssertionError(value)


def format_bytes(value: float) -> str:
    """Write a size in decimal units."""
    for size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(value) >= size:
            return f"{value / size:.1f}\u202f{unit}"
    return f"{value:.0f}\u202fB"


def format_percent(value: float) -> str:
    """Write a share with one decimal."""
    return f"{100 * value:.1f}\u202f%"


def format_duration(seconds: float) -> str:
    """Write a time with two units at most: `48.2 s`, `4 min 12 s`, `2 h 05 min`."""
    if seconds < 59.95:
        return f"{seconds:.1f}\u202fs"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}\u202fmin {whole % 60:02d}\u202fs"
    minutes = round(seconds / 60)
    return f"{minutes // 60}\u202fh {minutes % 60:02d}\u202fmin"


def format_number(value: float) -> str:
    """Write a figure with three to four significant digits."""
    if not math.isfinite(value):
        return "\u2013"
    if value == 0 or 0.001 <= abs(value) < 10:
        return f"{value:.3f}".rstrip("0").rstrip(".") if value else "0"
    if abs(value) < 0.001:
        return f"{value:.1e}".replace("e-0", "e-")
    if abs(value) < 100:
        return f"{value:.1f}"
    return format_count(value)


def minus(text: str) -> str:
    """Put a minus sign where a number has a hyphen."""
    return text.replace("-", "\u2212")
