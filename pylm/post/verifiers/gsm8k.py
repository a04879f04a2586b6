"""Grade-school word problems: the final number behind `####`."""

import re
from dataclasses import dataclass

from pylm.errors import InputError
from pylm.post.verifiers.numbers import NUMBER, NUMBER_END, parse_number
from pylm.post.verifiers.verdict import Verdict

_FINAL = re.compile(rf"####\s*\$?({NUMBER}){NUMBER_END}")
_ANY = re.compile(rf"({NUMBER}){NUMBER_END}")


@dataclass(frozen=True)
class GSM8K:
    """Judge the number behind the last `####` of a worked solution.

    Attributes:
        strict: an answer counts only behind `####`. Otherwise the text's last number counts when the
            marker is missing.

    Source:
        Cobbe et al. 2021, Training Verifiers to Solve Math Word Problems (the `####` convention).
    """

    strict: bool = True

    def verify(self, completion: str, ground_truth: str, *, finished: bool) -> Verdict:
        """Compare the final number with the ground truth; see `Verifier.verify`.

        Args:
            completion: a worked solution.
            ground_truth: the number, or a whole reference solution that ends in `#### N`.
            finished: not asked for here; a cut-off text rarely reaches its final line.

        Raises:
            InputError: `ground_truth` holds no number.
        """
        truth = parse_number(ground_truth.rsplit("####", 1)[-1].strip())
        if truth is None:
            raise InputError(
                f"ground_truth must be a number or end in '#### N', got {ground_truth!r}; correct the row"
            )
        finals = _FINAL.findall(completion)
        numbers = finals if finals or self.strict else _ANY.findall(completion)
        answer = numbers[-1] if numbers else None
        return Verdict(
            correct=answer is not None and parse_number(answer) == truth,
            formatted=bool(finals),
            answer=answer,
        )
