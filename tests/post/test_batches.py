"""Order, cut and padding of a step's rows, against what they must never do."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pylm.data.pack import IGNORE
from pylm.post.batches import collate, cut, step_rows
from pylm.post.examples import Example


def example(length: int, first_trained: int) -> Example:
    return Example(np.arange(1, length + 1), np.arange(length) >= first_trained)


@given(st.integers(1, 20), st.integers(1, 7), st.integers(0, 5))
def test_every_epoch_visits_every_row_once(num_rows: int, batch_size: int, seed: int) -> None:
    places = 3 * num_rows
    stream = [
        row
        for step in range(-(-places // batch_size))
        for row in step_rows(num_rows, seed=seed, step=step, batch_size=batch_size)
    ]
    for epoch in range(3):
        assert sorted(stream[epoch * num_rows : (epoch + 1) * num_rows]) == list(range(num_rows))


def test_epochs_and_seeds_differ() -> None:
    first, second = (step_rows(100, seed=0, step=step, batch_size=100) for step in (0, 1))
    assert first != second
    assert first != step_rows(100, seed=1, step=0, batch_size=100)


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 200), st.integers(1, 4))
def test_a_cut_deals_every_row_once_within_the_budget(
    lengths: list[int], max_tokens: int, world_size: int
) -> None:
    shares = [
        cut(lengths, max_tokens=max_tokens, rank=rank, world_size=world_size) for rank in range(world_size)
    ]
    assert len({len(parts) for parts in shares}) == 1
    rows = [i for parts in shares for part in parts for i in part]
    assert sorted(rows) == list(range(len(lengths)))
    for part in (part for parts in shares for part in parts if part):
        assert len(part) == 1 or len(part) * max(lengths[i] for i in part) <= max_tokens


def test_sorting_pads_little() -> None:
    lengths = np.random.default_rng(0).integers(10, 200, size=256).tolist()
    padded = sum(len(part) * max(lengths[i] for i in part) for part in cut(lengths, max_tokens=2048))
    assert padded < 1.1 * sum(lengths)


def test_collate_pads_on_the_right_and_shifts() -> None:
    batch = collate([example(4, 2), example(2, 1)])
    assert batch.ids_BT.tolist() == [[1, 2, 3], [1, 0, 0]]
    assert batch.targets_BT.tolist() == [[IGNORE, 3, 4], [2, IGNORE, IGNORE]]
    assert torch.equal(batch.mask_BT, batch.targets_BT != IGNORE)


def test_an_example_needs_something_to_train() -> None:
    with pytest.raises(AssertionError, match="without trained tokens"):
        Example(np.arange(3), np.zeros(3, dtype=bool))
    with pytest.raises(AssertionError, match="first token"):
        Example(np.arange(3), np.ones(3, dtype=bool))
