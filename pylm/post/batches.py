"""From tokenised rows to the batches of a step: order, cut into micro-batches, padding.

Rows of a step are sorted by length before they are cut, so that rows of a micro-batch are nearly equally
long and little is padded. Padding stands on the right, where causal attention never looks, so no mask
is needed and the fast causal path of attention applies. Since every loss is divided by a count over the
whole step, the cut changes nothing but rounding.

Shapes: B rows, T time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pylm.data.pack import IGNORE, pad_rows
from pylm.post.examples import Example


@dataclass(frozen=True)
class MicroBatch:
    """Padded inputs and targets of one forward pass.

    Attributes:
        ids_BT: int64 inputs, 0 where padded.
        targets_BT: int64 next tokens, `IGNORE` where padded or not trained.
        mask_BT: bool, true at positions whose next token is trained.
    """

    ids_BT: Tensor
    targets_BT: Tensor
    mask_BT: Tensor


@lru_cache(maxsize=4)
def _permutation(num_rows: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(num_rows)


def step_rows(num_rows: int, *, seed: int, step: int, batch_size: int) -> list[int]:
    """Name the rows of a step: a pure function of its arguments.

    Every epoch visits all rows once in an order of its own; a batch may run on into the next epoch.

    Args:
        num_rows: rows there are, >= 1.
        seed: of the run.
        step: from 0.
        batch_size: rows of a step, all ranks together.

    Returns:
        `batch_size` row numbers.
    """
    places = range(step * batch_size, (step + 1) * batch_size)
    return [int(_permutation(num_rows, seed, place // num_rows)[place % num_rows]) for place in places]


def cut(lengths: Sequence[int], *, max_tokens: int, rank: int = 0, world_size: int = 1) -> list[list[int]]:
    """Cut a step's rows into micro-batches of nearly equal length, and deal them to the ranks.

    Args:
        lengths: of the rows.
        max_tokens: most tokens of a rank's micro-batch, padding included; a longer row goes alone.
        rank: which share to return.
        world_size: number of ranks.

    Returns:
        Indices into `lengths`, longest rows first. Every rank gets the same number of micro-batches (the
        last may be empty), since collectives inside the model need all ranks.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    parts: list[list[int]] = []
    start = 0
    while start < len(order):
        num_rows = max(1, max_tokens // max(1, lengths[order[start]])) * world_size
        parts.append(order[start : start + num_rows][rank::world_size])
        start += num_rows
    return parts


def collate(examples: Sequence[Example], *, device: torch.device | str = "cpu") -> MicroBatch:
    """Pad examples on the right and shift the targets.

    Args:
        examples: the rows, at least one.
        device: where the tensors go.

    Returns:
        The micro-batch, T one less than the longest row.
    """
    rows = pad_rows([(example.ids.tolist(), example.mask.tolist()) for example in examples], multiple_of=1)
    arrays = (rows.ids_BT, rows.targets_BT, rows.targets_BT != IGNORE)
    return MicroBatch(*(torch.from_numpy(array).to(device) for array in arrays))
