"""SentencePiece's BPE as its rule says it: slow, over strings, one merge at a time."""

import struct
from collections.abc import Sequence
from itertools import pairwise

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
MARK = "▁"

Piece = tuple[str, float, int]
"""Text, score, kind."""


def encode(
    text: str, pieces: Sequence[Piece], *, byte_fallback: bool, prefix: bool = True, collapse: bool = False
) -> list[int]:
    """Give the ids of a text under the identity normalization."""
    ids = {
        piece: i for i, (piece, _, kind) in enumerate(pieces) if kind in (NORMAL, UNUSED, USER_DEFINED, BYTE)
    }
    unknown = next(i for i, (_, _, kind) in enumerate(pieces) if kind == UNKNOWN)
    user_defined = sorted((p for p, _, kind in pieces if kind == USER_DEFINED), key=len, reverse=True)
    mergeable = {p: (score, kind) for p, score, kind in pieces if kind in (NORMAL, UNUSED)}
    text = _normalize(text, user_defined, prefix=prefix, collapse=collapse)

    symbols: list[tuple[str, bool]] = []  # and whether it is the user's
    while text:
        found = next((p for p in user_defined if text.startswith(p)), None)
        symbols.append((found or text[0], found is not None))
        text = text[len(symbols[-1][0]) :]

    made_of: dict[str, tuple[str, str]] = {}

    def propose(i: int) -> None:
        if 0 <= i < len(symbols) - 1 and not symbols[i][1] and not symbols[i + 1][1]:
            whole = symbols[i][0] + symbols[i + 1][0]
            if mergeable.get(whole, (0, 0))[1] == UNUSED:
                made_of[whole] = (symbols[i][0], symbols[i + 1][0])

    for i in range(len(symbols)):
        propose(i)
    while True:
        pairs = [
            (-mergeable[a + b][0], i)
            for i, ((a, a_frozen), (b, b_frozen)) in enumerate(pairwise(symbols))
            if not a_frozen and not b_frozen and a + b in mergeable
        ]
        if not pairs:
            break
        _, i = min(pairs)
        symbols[i : i + 2] = [(symbols[i][0] + symbols[i + 1][0], False)]
        propose(i - 1)
        propose(i)

    def parts(piece: str) -> list[str]:
        if piece in made_of and mergeable[piece][1] == UNUSED:
            left, right = made_of[piece]
            return parts(left) + parts(right)
        return [piece]

    out: list[int] = []
    for symbol, _ in symbols:
        for piece in parts(symbol):
            i = ids.get(piece, unknown)
            if i == unknown or pieces[i][2] == UNUSED:
                if byte_fallback:
                    out += [ids[f"<0x{byte:02X}>"] for byte in piece.encode()]
                elif not out or out[-1] != unknown:
                    out.append(unknown)
            else:
                out.append(i)
    return out


def _normalize(text: str, user_defined: Sequence[str], *, prefix: bool, collapse: bool) -> str:
    chunks = []
    while text:
        found = next((p for p in user_defined if text.startswith(p)), text[0])
        chunks.append(found)
        text = text[len(found) :]
    if collapse:
        while chunks and chunks[0] == " ":
            chunks.pop(0)
    if not chunks:
        return ""
    out, after_space = " " if prefix else "", collapse
    for chunk in chunks:
        kept = chunk.lstrip(" ") if after_space else chunk
        out += kept
        if kept:
            after_space = collapse and kept.endswith(" ")
    out = out.replace(" ", MARK)
    return out.rstrip(MARK) if collapse else out


def write_model(pieces: Sequence[Piece], *, byte_fallback: bool, prefix: bool = True, collapse: bool = False,
                model_type: int = 2, suffix: bool = False, escape: bool = True) -> bytes:  # fmt: skip
    """Give the protocol buffer of a `tokenizer.model`."""
    out = b""
    for text, score, kind in pieces:
        piece = _bytes(1, text.encode()) + b"\x15" + struct.pack("<f", score) + _number(3, kind)
        out += _bytes(1, piece)
    out += _bytes(2, _number(3, model_type) + _number(24, suffix) + _number(35, byte_fallback))
    return out + _bytes(3, _number(3, prefix) + _number(4, collapse) + _number(5, escape))


def _varint(value: int) -> bytes:
    out = b""
    while value >= 0x80:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(int(value))


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value
