"""Arithmetic problems: listed, split into train and held out, put into words."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Literal

from pydantic import Field

from pylm.config import Config

Operation = Literal["add", "subtract", "multiply"]
OPERATIONS: tuple[Operation, ...] = ("add", "subtract", "multiply")
_SIGN = {"add": "+", "subtract": "-", "multiply": "*"}
_PHRASES = ("What is {}?", "Compute {}.", "How much is {}?", "{} = ?")


class ArithmeticConfig(Config):
    """Which problems exist and how often each operation is asked."""

    add_max: int = Field(default=99, ge=1, le=9999)
    """Largest operand of an addition; operands start at 0."""
    subtract_max: int = Field(default=99, ge=1, le=9999)
    """Largest operand of a subtraction; the result is never negative."""
    multiply_max: int = Field(default=12, ge=2, le=999)
    """Largest factor of a multiplication; factors start at 2."""
    add_weight: float = Field(default=0.45, ge=0)
    """Share of additions among the rows, relative to the other weights."""
    subtract_weight: float = Field(default=0.45, ge=0)
    """Share of subtractions among the rows, relative to the other weights."""
    multiply_weight: float = Field(default=0.1, ge=0)
    """Share of multiplications among the rows, relative to the other weights."""
    heldout_share: float = Field(default=0.2, gt=0, lt=1)
    """Share of the problems of each operation that no training file may hold."""


@dataclass(frozen=True)
class Problem:
    """`left OP right` with left >= right, so that 3 + 5 and 5 + 3 are one problem."""

    operation: Operation
    left: int
    right: int

    @property
    def answer(self) -> int:
        """The result."""
        if self.operation == "add":
            return self.left + self.right
        if self.operation == "subtract":
            return self.left - self.right
        return self.left * self.right


@dataclass(frozen=True)
class Question:
    """One wording of one problem, with its operands in the order in which they are asked."""

    problem: Problem
    text: str
    left: int
    right: int


def list_problems(config: ArithmeticConfig, operation: Operation) -> list[Problem]:
    """List every problem of one operation, once."""
    least = 2 if operation == "multiply" else 0
    most = {"add": config.add_max, "subtract": config.subtract_max, "multiply": config.multiply_max}[
        operation
    ]
    return [
        Problem(operation, left, right) for left in range(least, most + 1) for right in range(least, left + 1)
    ]


def split_problems(
    config: ArithmeticConfig, rng: random.Random
) -> tuple[dict[Operation, list[Problem]], dict[Operation, list[Problem]]]:
    """Split the problems of every operation with a weight above 0 at random.

    Returns:
        Train and held-out problems by operation, shuffled; no problem is in both.
    """
    train: dict[Operation, list[Problem]] = {}
    heldout: dict[Operation, list[Problem]] = {}
    for operation in OPERATIONS:
        if _weight(config, operation) == 0:
            continue
        problems = list_problems(config, operation)
        rng.shuffle(problems)
        num_heldout = max(1, round(config.heldout_share * len(problems)))
        heldout[operation] = problems[:num_heldout]
        train[operation] = problems[num_heldout:]
    return train, heldout


def sample_questions(
    config: ArithmeticConfig,
    problems: dict[Operation, list[Problem]],
    num_questions: int,
    rng: random.Random,
) -> list[Question]:
    """Draw different questions, by the operations' weights, every problem once before any twice.

    An operation that runs out of different questions leaves its share to the others.

    Args:
        config: the weights.
        problems: the problems to draw from.
        num_questions: how many; fewer come back where fewer exist.
        rng: source of chance.

    Returns:
        Questions in random order, no two with the same text.
    """
    counts = _share_out(
        num_questions,
        weights={operation: _weight(config, operation) for operation in problems},
        available={
            operation: sum(len(_orders(problem)) * len(_PHRASES) for problem in pool)
            for operation, pool in problems.items()
        },
    )
    questions = [
        question
        for operation, pool in problems.items()
        for question in islice(_word(pool, rng), counts[operation])
    ]
    rng.shuffle(questions)
    return questions


def _word(problems: list[Problem], rng: random.Random) -> Iterator[Question]:
    """Yield every wording of every problem: in each round each problem once, in a new order."""
    wordings: dict[Problem, list[Question]] = {}
    left = list(problems)
    while left:
        rng.shuffle(left)
        for problem in left:
            if problem not in wordings:
                sign = _SIGN[problem.operation]
                wordings[problem] = [
                    Question(problem, phrase.format(f"{a} {sign} {b}"), a, b)
                    for a, b in _orders(problem)
                    for phrase in _PHRASES
                ]
                rng.shuffle(wordings[problem])
            yield wordings[problem].pop()
        left = [problem for problem in left if wordings[problem]]


def _orders(problem: Problem) -> list[tuple[int, int]]:
    """List the orders of the operands that give the same result."""
    orders = [(problem.left, problem.right)]
    if problem.operation != "subtract" and problem.left != problem.right:
        orders.append((problem.right, problem.left))
    return orders


@dataclass(frozen=True)
class Work:
    """A problem worked out in steps.

    Attributes:
        text: the steps in one line.
        steps: the problems that the text solves on the way, besides the one that is asked.
    """

    text: str
    steps: tuple[Problem, ...]


def work_out(question: Question) -> Work:
    """Solve a problem by tens and ones, `47 + 38 = 47 + 30 + 8 = 77 + 8 = 85`; a small one in one step."""
    operation, answer = question.problem.operation, question.problem.answer
    left, right = question.left, question.right
    asked = f"{left} {_SIGN[operation]} {right}"
    if operation == "multiply":
        big, small = max(left, right), min(left, right)
        if big <= 10:
            return Work(f"{asked} = {answer}", ())
        tens, ones = 10 * small, (big - 10) * small
        parts = (_problem("multiply", 10, small), _problem("multiply", big - 10, small))
        return Work(f"{asked} = {tens} + {ones} = {answer}", (*parts, _problem("add", tens, ones)))
    tens, ones = right - right % 10, right % 10
    if not tens or not ones:
        return Work(f"{asked} = {answer}", ())
    sign = _SIGN[operation]
    middle = left + tens if operation == "add" else left - tens
    text = f"{asked} = {left} {sign} {tens} {sign} {ones} = {middle} {sign} {ones} = {answer}"
    return Work(text, (_problem(operation, left, tens), _problem(operation, middle, ones)))


def _problem(operation: Operation, left: int, right: int) -> Problem:
    """Put operands that may change places in order."""
    if operation != "subtract" and left < right:
        left, right = right, left
    return Problem(operation, left, right)


def _share_out(
    total: int, *, weights: dict[Operation, float], available: dict[Operation, int]
) -> dict[Operation, int]:
    """Split `total` by weight, never more than available, what is left over going to who has more."""
    counts: dict[Operation, int] = dict.fromkeys(weights, 0)
    open_names = [name for name in weights if available[name] > 0]
    left = min(total, sum(available.values()))
    while left > 0 and open_names:
        weight_sum = sum(weights[name] for name in open_names)
        granted = 0
        for name in open_names:
            share = min(available[name] - counts[name], max(1, int(left * weights[name] / weight_sum)))
            share = min(share, left - granted)
            counts[name] += share
            granted += share
        left -= granted
        open_names = [name for name in open_names if counts[name] < available[name]]
    return counts


def _weight(config: ArithmeticConfig, operation: Operation) -> float:
    return {
        "add": config.add_weight,
        "subtract": config.subtract_weight,
        "multiply": config.multiply_weight,
    }[operation]
