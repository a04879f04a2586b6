"""What a verifier says about a completion, and what counts as a verifier."""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Verdict:
    """A verifier's finding.

    Attributes:
        correct: the answer equals the ground truth.
        formatted: the completion has the asked form, whatever its answer.
        answer: the answer as the completion wrote it; None where none was found.
    """

    correct: bool
    formatted: bool
    answer: str | None


class Verifier(Protocol):
    """A pure function of its arguments: no state, no clock, no signals, so that threads may share it.

    A completion, which a model wrote, never makes it raise; a ground truth that it cannot read,
    which a person wrote, makes it raise `InputError`.
    """

    def verify(self, completion: str, ground_truth: str, *, finished: bool) -> Verdict:
        """Judge one completion.

        Args:
            completion: the model's text, without the token that ended it.
            ground_truth: the right answer as the row gives it.
            finished: whether the model ended the completion itself; false where it was cut off.

        Returns:
            The verdict.

        Raises:
            InputError: the ground truth is not an answer of this kind.
        """
        ...
