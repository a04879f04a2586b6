"""Verifiers: programs that tell whether a completion gives the right answer.

`VERIFIERS` maps a name to a verifier; a row's `dataset` picks one (`find_verifier`).
"""

from collections.abc import Mapping
from types import MappingProxyType

from pylm.errors import InputError
from pylm.post.verifiers.arithmetic import Arithmetic
from pylm.post.verifiers.gsm8k import GSM8K
from pylm.post.verifiers.verdict import Verdict, Verifier

__all__ = ["GSM8K", "VERIFIERS", "Arithmetic", "Verdict", "Verifier", "find_verifier"]

VERIFIERS: Mapping[str, Verifier] = MappingProxyType(
    {
        "arithmetic": Arithmetic(strict=True),
        "arithmetic-free": Arithmetic(strict=False),
        "gsm8k": GSM8K(strict=True),
        "gsm8k-flexible": GSM8K(strict=False),
    }
)
"""Every verifier that a row or a recipe can name."""


def find_verifier(
    dataset: str,
    *,
    assigned: Mapping[str, str] | None = None,
    verifiers: Mapping[str, Verifier] = VERIFIERS,
) -> Verifier:
    """Pick the verifier of a row's `dataset`.

    Args:
        dataset: the row's field: a verifier's name, or `NAME/FAMILY` for one family of its problems.
        assigned: verifier's name by data set, for data sets that are called otherwise; goes before that rule.
        verifiers: the verifiers to pick from.

    Returns:
        The verifier.

    Raises:
        InputError: no verifier has this name.
    """
    name = (assigned or {}).get(dataset, dataset)
    verifier = verifiers.get(name) or verifiers.get(name.split("/", 1)[0])
    if verifier is None:
        raise InputError(
            f"no verifier for dataset {dataset!r}: expected one of {', '.join(verifiers)}, or one of these "
            f"followed by /FAMILY; rename the data set or assign it a verifier in rewards.verifiers"
        )
    return verifier
