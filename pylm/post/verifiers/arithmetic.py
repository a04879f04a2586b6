"""Answers that are one number on a line `Answer: N`."""

import re
from dataclasses import dataclass

from pylm.errors import InputError
from pylm.post.verifiers.numbers import NUMBER, NUMBER_END, parse_number
from pylm.post.verifiers.verdict import Verdict

_ANYWHERE = re.compile(rf"Answer:[ \t]*({NUMBER}){NUMBER_END}")
_WHOLE = re.compile(rf"Answer: ({NUMBER})")


@dataclass(frozen=True)
class Arithmetic:
    """Judge the number on the answer line, exactly: integers, decimals and fractions as rationals.

    Attributes:
        strict: the whole completion must be `Answer: N`. Otherwise the last `Answer: N` of the text
            counts, so that a model may work before it answers.
    """

    strict: bool = True

    def verify(self, completion: str, ground_truth: str, *, finished: bool) -> Verdict:
        """Compare the completion's number with the ground truth; see `Verifier.verify`.

        A strict verdict is well-formed only if the model also ended its answer: a number that was cut
        off is not the number that the model wrote.

        Raises:
            InputError: `ground_truth` is no number.

        Example:
            >>> Arithmetic().verify("Answer: 0.50", "1/2", finished=True)
            Verdict(correct=True, formatted=True, answer='0.50')
        """
        truth = parse_number(ground_truth.strip())
        if truth is None:
            raise InputError(
                f"ground_truth must be an integer, decimal or fraction such as -3, 0.5 or 1/2, "
                f"got {ground_truth!r}; correct the row"
            )
        whole = _WHOLE.fullmatch(completion)
        if self.strict:
            answer = whole[1] if whole and finished else None
        else:
            answers = _ANYWHERE.findall(completion)
            answer = answers[-1] if answers else None
        return Verdict(
            correct=answer is not None and parse_number(answer) == truth,
            formatted=answer is not None,
            answer=answer,
        )
