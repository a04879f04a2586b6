# ruff: noqa: RUF001 (the punctuation of a published rule)
"""Duplicates the slow way: sets of shingles, signatures value by value, all pairs."""

import re
import unicodedata
from collections.abc import Callable, Hashable, Sequence

import regex
import xxhash

_64 = (1 << 64) - 1
_32 = (1 << 32) - 1
PRIME = (1 << 61) - 1
M1, M2, BASE = 0xD6E8FEB86659FD93, 0x9E3779B97F4A7C15, 0xA24BAED4963EE407

_UNSPACED = "".join(
    rf"\p{{Script={name}}}"
    for name in (
        *("Han", "Hiragana", "Katakana", "Bopomofo", "Yi", "Thai", "Lao", "Khmer", "Myanmar"),
        *("Tai_Le", "New_Tai_Lue", "Tai_Tham", "Tai_Viet"),
    )
)
_WORD = r"[\p{L}\p{M}\p{N}\u200c\u200d]"
_WORDS = regex.compile(rf"(?=[{_UNSPACED}]){_WORD}|(?:(?![{_UNSPACED}]){_WORD})+")


def _lower(text: str) -> str:
    """Lower case of one character each: no final sigma, no character becomes two."""
    return "".join("i" if c == "\u0130" else c.lower() for c in text)


def words(text: str) -> list[str]:
    """Words as the schemes `fast` and `classic` see them."""
    return [_lower(word) for word in _WORDS.findall(text)]


def tokens(text: str) -> list[str]:
    """Code points as ids of tokens."""
    return list(text)


def characters(text: str) -> list[str]:
    """Characters in lower case, white space collapsed and cut off at both ends."""
    return list(_lower(" ".join(text.split())))


def text_dedup_words(text: str) -> list[str]:
    r"""Lower case, split at `\W` of the `regex` package; texts under five words have none."""
    found = [word for word in regex.split(r"\W", text.lower()) if word]
    return found if len(found) >= 5 else []


_DATATROVE_PUNCTUATION = (
    "!/—”:％１〈&(、━\\【#%「」，】；+^]~“《„';’{|∶´[=-`*．（–？！：$～«〉,><》)?）。…@_.\"}►»"
    + "".join(chr(c) for a, b in ((0, 9), (11, 13), (13, 32), (127, 160)) for c in range(a, b))
)


def datatrove_words(text: str) -> list[str]:
    """Lower case, numbers to 0, punctuation to spaces, no marks, split at white space."""
    text = regex.sub(r"\p{Nd}+([.,،٫⎖⎗⎘]{1}\p{Nd}+)?", "0", text.lower())
    text = "".join(" " if c in _DATATROVE_PUNCTUATION else c for c in text)
    text = re.sub(r"\s+", " ", text.strip())
    return "".join(c for c in unicodedata.normalize("NFD", text) if unicodedata.category(c) != "Mn").split()


ITEMS: dict[tuple[str, str], Callable[[str], list[str]]] = {
    ("fast", "word"): words,
    ("classic", "word"): words,
    ("fast", "char"): characters,
    ("classic", "char"): characters,
    ("fast", "token"): tokens,
    ("classic", "token"): tokens,
    ("text-dedup", "word"): text_dedup_words,
    ("datatrove", "word"): datatrove_words,
}


def shingles(text: str, scheme: str, unit: str, ngram: int) -> set[tuple[str, ...]]:
    """The set that similarities are about."""
    items = ITEMS[scheme, unit](text)
    if not items or (scheme == "datatrove" and len(items) < ngram):
        return set()
    ngram = min(ngram, len(items))
    return {tuple(items[i : i + ngram]) for i in range(len(items) - ngram + 1)}


def _fold(a: int, b: int) -> int:
    product = a * b
    return (product ^ (product >> 64)) & _64


def _hash_item(item: str, unit: str) -> int:
    if unit != "word":
        return _fold(M1 ^ ord(item), M2)
    data = item.encode()
    state = M2 * len(data) & _64
    while len(data) > 8:
        state = _fold(state ^ int.from_bytes(data[:8], "little"), M1)
        data = data[8:]
    return _fold(state ^ int.from_bytes(data, "little") ^ M1, M2)


def _hash_shingle(shingle: tuple[str, ...], scheme: str, unit: str, seed: int) -> int:
    joined = " ".join(shingle).encode()
    if scheme == "text-dedup":
        return xxhash.xxh3_64_intdigest(joined, seed) & _32
    if scheme == "datatrove":
        return xxhash.xxh64_intdigest(joined)
    value = 0
    for item in shingle:
        value = (value * BASE + _hash_item(item, unit)) & _64
    return value


def _split_mix(seed: int, count: int) -> list[int]:
    values = []
    for number in range(1, count + 1):
        x = (seed + number * 0x9E3779B97F4A7C15) & _64
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _64
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _64
        values.append(x ^ (x >> 31))
    return values


def _fast_values(hashes: list[int], num_perm: int, seed: int, bits: int) -> list[int]:
    """For every bin the least (round, value) over all shingles; see csrc/dedup/minhash.hpp."""
    most = (1 << bits) - 1
    num_rounds = 1 + num_perm // 256
    drawn = _split_mix(seed, num_rounds + 2 * num_perm)
    pairs = list(zip(drawn[num_rounds::2], drawn[num_rounds + 1 :: 2], strict=True))

    def value(h: int) -> int:
        return min(h & _32 if bits == 32 else (h >> 32) | ((h & _32) << 32), most - 1)

    first = [value(_fold(x ^ drawn[0], M1)) for x in hashes]
    best = [(num_rounds, min([most - 1, *((a | 1) * y + b & most for y in first)])) for a, b in pairs]
    for number in range(num_rounds):
        for x in hashes:
            h = _fold(x ^ drawn[number], M1)
            place = (h >> 32) * num_perm >> 32
            best[place] = min(best[place], (number, value(h)))
    return [least for _, least in best]


def signature(
    text: str,
    scheme: str,
    *,
    unit: str,
    ngram: int,
    num_perm: int,
    seed: int,
    permutations: tuple[Sequence[int], Sequence[int]],
    bits: int = 32,
) -> list[int]:
    """One signature from the formulas; `permutations` as the tools draw them, for their schemes."""
    hashes = [_hash_shingle(s, scheme, unit, seed) for s in shingles(text, scheme, unit, ngram)]
    if not hashes:
        return [(1 << bits) - 1] * num_perm
    if scheme == "fast":
        return _fast_values(hashes, num_perm, seed, bits)
    if scheme == "classic":
        drawn = _split_mix(seed, 2 * num_perm)
        pairs = [(1 + a % (PRIME - 1), b % PRIME) for a, b in zip(drawn[::2], drawn[1::2], strict=True)]
        shift = 0 if bits == 64 else 29
        return [min((a * (x % PRIME) + b) % PRIME >> shift for x in hashes) for a, b in pairs]
    mask = _32 if scheme == "text-dedup" else _64
    return [
        min(((a * x + b) & _64) % PRIME & mask for x in hashes) for a, b in zip(*permutations, strict=True)
    ]


def exact(texts: Sequence[str | None]) -> list[int]:
    """For every text the first equal one; a null equals nothing."""
    return [i if text is None else list(texts).index(text) for i, text in enumerate(texts)]


def jaccard(a: set[Hashable], b: set[Hashable]) -> float:
    """Size of the intersection over size of the union."""
    return len(a & b) / len(a | b)


Linked = Callable[[int, int], bool]


def stars(
    order: Sequence[int], sets: Sequence[set[Hashable]], threshold: float, linked: Linked
) -> tuple[dict[int, int], dict[int, float]]:
    """Clusters with verification: the first kept text that matches, among those linked to it.

    A kept text is linked to a text when the text shares a bucket with it or with one that it stands for.
    """
    clusters: dict[int, list[int]] = {}
    owner, similarity = {}, {}
    for i in order:
        for kept, members in clusters.items():
            if any(linked(i, j) for j in members) and jaccard(sets[i], sets[kept]) >= threshold:
                members.append(i)
                owner[i], similarity[i] = kept, jaccard(sets[i], sets[kept])
                break
        else:
            clusters[i] = [i]
            owner[i], similarity[i] = i, 1.0
    return owner, similarity


def components(order: Sequence[int], linked: Linked) -> dict[int, int]:
    """Clusters without verification: all that is connected, under the first of each in order."""
    owner: dict[int, int] = {}
    for i in order:
        if i in owner:
            continue
        owner[i] = i
        reached = [i]
        for j in reached:
            for other in order:
                if other not in owner and linked(j, other):
                    owner[other] = i
                    reached.append(other)
    return owner


def near(
    texts: Sequence[str | None],
    sets: Sequence[set[Hashable]],
    *,
    threshold: float,
    linked: Linked,
    verify: bool = True,
    keep: str = "first",
    preference: Sequence[int] | None = None,
) -> tuple[list[int], dict[int, float]]:
    """Representative of every text, and similarities to it of those that were compared.

    `preference` lists all texts from the one that stays most surely on.
    """
    chosen: dict[str, int] = {}
    places = range(len(texts)) if preference is None else preference
    for i in places:
        if (text := texts[i]) is not None:
            chosen.setdefault(text, i)
    first = [i if text is None else chosen[text] for i, text in enumerate(texts)]
    order = [i for i in places if texts[i] is not None and first[i] == i and sets[i]]
    if keep == "longest":
        order.sort(key=lambda i: -len((texts[i] or "").encode()))
    similarity: dict[int, float] = {}
    if verify:
        owner, similarity = stars(order, sets, threshold, linked)
    else:
        owner = components(order, linked)
    for i in range(len(texts)):
        if first[i] != i and first[i] in owner:
            owner[i] = owner[first[i]]
            if verify:
                similarity[i] = similarity[first[i]]
    return [owner.get(i, i) for i in range(len(texts))], similarity
