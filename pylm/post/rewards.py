"""Rewards: a verifier's verdict turned into the number that reinforcement learning raises."""

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import Field

from pylm.config import Config
from pylm.post.verifiers import VERIFIERS, Verdict, Verifier, find_verifier


class RewardConfig(Config):
    """What a completion earns.

    Tulu 3 pays 10 for a correct answer and -10 for one that never ends (Lambert et al. 2024, section 6).
    """

    correct: float = 1.0
    """Reward of a correct answer."""

    wrong: float = 0.0
    """Reward of a wrong or missing answer."""

    formatted: float = 0.0
    """Added when the completion has the asked form, right or wrong. Worth a little where a fresh model
    is seldom right; too much of it teaches form alone."""

    unfinished: float | None = None
    """Reward, in place of all others, of a completion that was cut off before it ended. Without it such
    a completion is judged like any other."""

    verifiers: dict[str, str] = Field(default_factory=dict)
    """Verifier's name by data set, for data sets that are not called after their verifier."""


@dataclass(frozen=True)
class Judgement:
    """What one completion earned and why.

    Attributes:
        reward: the number to raise.
        verdict: the verifier's finding.
    """

    reward: float
    verdict: Verdict


def judge(
    completion: str,
    *,
    ground_truth: str,
    dataset: str,
    finished: bool,
    config: RewardConfig,
    verifiers: Mapping[str, Verifier] = VERIFIERS,
) -> Judgement:
    """Verify one completion and reward it. Pure, so threads may share it.

    Args:
        completion: the model's text, without the token that ended it.
        ground_truth: the right answer.
        dataset: the row's data set, which picks the verifier.
        finished: whether the model ended the completion itself; false where it was cut off.
        config: what a completion earns.
        verifiers: the verifiers to pick from.

    Returns:
        Reward and verdict.

    Raises:
        InputError: the data set has no verifier, or the ground truth cannot be read.
    """
    verifier = find_verifier(dataset, assigned=config.verifiers, verifiers=verifiers)
    verdict = verifier.verify(completion, ground_truth, finished=finished)
    if not finished and config.unfinished is not None:
        return Judgement(config.unfinished, verdict)
    reward = config.correct if verdict.correct else config.wrong
    if verdict.formatted:
        reward += config.formatted
    return Judgement(reward, verdict)
