"""Rewards by hand: every combination of right, formatted and finished."""

import pytest

from pylm.post.rewards import RewardConfig, judge

CONFIG = RewardConfig(correct=1.0, wrong=-0.5, formatted=0.25)


@pytest.mark.parametrize(
    ("completion", "finished", "reward"),
    [
        ("Answer: 4", True, 1.25),
        ("Answer: 5", True, -0.25),
        ("four", True, -0.5),
        ("Answer: 4", False, -0.5),
    ],
)
def test_rewards(completion: str, finished: bool, reward: float) -> None:
    judgement = judge(completion, ground_truth="4", dataset="arithmetic", finished=finished, config=CONFIG)
    assert judgement.reward == reward


def test_the_price_of_not_ending_goes_before_all_others() -> None:
    config = RewardConfig(correct=10.0, unfinished=-10.0, formatted=1.0)
    arguments = {"ground_truth": "4", "dataset": "arithmetic-free", "config": config}
    assert judge("Answer: 4", finished=True, **arguments).reward == 11.0
    cut = judge("Answer: 4", finished=False, **arguments)
    assert cut.reward == -10.0
    assert cut.verdict.correct
