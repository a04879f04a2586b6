"""Preference losses pair by pair in Python floats, straight from the papers' formulas."""

import math


def _log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x)) if x > -30.0 else x


def loss(
    policy: tuple[float, float],
    reference: tuple[float, float],
    length: tuple[int, int],
    *,
    kind: str,
    beta: float,
    label_smoothing: float,
    gamma: float,
) -> float:
    """Loss of one pair; each argument is (chosen, rejected), log-probabilities summed over tokens."""
    if kind in ("length-normalised", "simpo"):
        policy = (policy[0] / length[0], policy[1] / length[1])
        reference = (reference[0] / length[0], reference[1] / length[1])
    policy_ratio = policy[0] - policy[1]
    reference_ratio = reference[0] - reference[1]
    if kind == "ipo":
        return (policy_ratio - reference_ratio - 1.0 / (2.0 * beta)) ** 2
    argument = beta * (policy_ratio - reference_ratio)
    if kind == "simpo":
        argument = beta * policy_ratio - gamma
    right, wrong = -_log_sigmoid(argument), -_log_sigmoid(-argument)
    if kind == "robust":
        return ((1.0 - label_smoothing) * right - label_smoothing * wrong) / (1.0 - 2.0 * label_smoothing)
    return (1.0 - label_smoothing) * right + label_smoothing * wrong


def kto(policy: float, reference: float, is_desirable: bool, kl: float, beta: float) -> float:
    """Loss of one answer whose log-probabilities are summed over its tokens."""
    sign = 1.0 if is_desirable else -1.0
    value = 1.0 / (1.0 + math.exp(-beta * sign * (policy - reference - max(kl, 0.0))))
    return 1.0 - value
