"""Repeated substrings by looking every window up in a dictionary, symbol by symbol."""

from collections.abc import Hashable, Sequence

Span = tuple[int, int, int]


def spans(
    texts: Sequence[Sequence[Hashable] | None],
    length: int,
    *,
    keep: str,
    against: Sequence[Sequence[Hashable] | None] | None = None,
) -> list[Span]:
    """What windows cover that occur earlier ("first"), elsewhere ("none") or in `against`."""
    places: dict[tuple[Hashable, ...], list[tuple[int, int]]] = {}
    for i, text in enumerate(texts if against is None else against):
        for start, window in _windows(text, length):
            places.setdefault(window, []).append((i, start))
    found = []
    for i, text in enumerate(texts):
        covered: set[int] = set()
        for start, window in _windows(text, length):
            equal = places.get(window, [])
            if against is not None:
                goes = bool(equal)
            else:
                goes = any(p < (i, start) if keep == "first" else p != (i, start) for p in equal)
            if goes:
                covered.update(range(start, start + length))
        found += [(i, min(run), max(run) + 1) for run in _runs(sorted(covered))]
    return found


def on_characters(found: Sequence[Span], texts: Sequence[bytes | None]) -> list[Span]:
    """The same with ends inside of a character moved inward."""
    moved = []
    for i, start, end in found:
        inside = _insides(texts[i] or b"")
        while start < end and start in inside:
            start += 1
        while end > start and end in inside:
            end -= 1
        if start < end:
            moved.append((i, start, end))
    return moved


def cut(texts: Sequence[bytes | None], found: Sequence[Span]) -> list[bytes | None]:
    """The texts without the spans."""
    left = list(texts)
    for i, start, end in reversed(found):
        text = left[i]
        assert text is not None
        left[i] = text[:start] + text[end:]
    return left


def _windows(text: Sequence[Hashable] | None, length: int) -> list[tuple[int, tuple[Hashable, ...]]]:
    text = text if text is not None else ()
    return [(i, tuple(text[i : i + length])) for i in range(len(text) - length + 1)]


def _runs(places: Sequence[int]) -> list[list[int]]:
    runs: list[list[int]] = []
    for place in places:
        if runs and runs[-1][-1] == place - 1:
            runs[-1].append(place)
        else:
            runs.append([place])
    return runs


def _insides(text: bytes) -> set[int]:
    """Offsets inside of a well-formed character."""
    inside = set()
    for start in range(len(text)):
        for size in (2, 3, 4):
            try:
                character = text[start : start + size].decode()
            except UnicodeDecodeError:
                continue
            if len(character) == 1 and len(character.encode()) == size:
                inside.update(range(start + 1, start + size))
    return inside
