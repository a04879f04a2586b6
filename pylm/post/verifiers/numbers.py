"""Exact numbers in text: read without `eval`, compared without rounding."""

import re
from fractions import Fraction

NUMBER = r"-?[0-9]+(?:,[0-9]+)*(?:\.[0-9]+)?(?:/[0-9]+)?"
"""Pattern of an integer, a decimal or a fraction: `-1,234`, `0.5`, `3/4`."""

NUMBER_END = r"(?![0-9A-Za-z_/]|[.,][0-9])"
"""Lookahead that refuses to stop inside a longer word or number: `12` is not read out of `12a` or `1.2.3`."""

MAX_DIGITS = 100
"""Longer strings are not taken for answers: reading digits costs quadratic time, and Python refuses 4,300."""

_NUMBER = re.compile(r"(-?)([0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.([0-9]+))?(?:/([0-9]+))?")


def parse_number(text: str) -> Fraction | None:
    """Read an integer, decimal or fraction exactly.

    Args:
        text: the number and nothing else; commas are accepted where they separate thousands.

    Returns:
        Its value; None where `text` is no number, divides by zero or has more than `MAX_DIGITS` characters.

    Example:
        >>> parse_number("-1,250.50/2")
        Fraction(-2501, 4)
    """
    if len(text) > MAX_DIGITS:
        return None
    match = _NUMBER.fullmatch(text)
    if match is None:
        return None
    sign, whole, decimals, divisor = match.groups()
    denominator = int(divisor or 1)
    if denominator == 0:
        return None
    decimals = decimals or ""
    numerator = int(whole.replace(",", "") + decimals)
    return Fraction(-numerator if sign else numerator, 10 ** len(decimals) * denominator)
