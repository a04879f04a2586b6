"""Token ids of many texts without a Python object for each."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class TokenArray:
    """Token ids of many texts, end to end.

    Attributes:
        ids: uint32 (N,) ids of all texts.
        offsets: int64 (num_docs + 1,); text i is `ids[offsets[i] : offsets[i + 1]]`.
    """

    ids: NDArray[np.uint32]
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        """Number of texts."""
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> NDArray[np.uint32]:
        """Ids of one text, a view."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"text {index} of {len(self)}")
        index %= len(self)
        return self.ids[self.offsets[index] : self.offsets[index + 1]]

    def __iter__(self) -> Iterator[NDArray[np.uint32]]:
        return (self[i] for i in range(len(self)))


def join_arrays(arrays: list[TokenArray]) -> TokenArray:
    """Put arrays one behind the other."""
    if len(arrays) == 1:
        return arrays[0]
    offsets = [np.zeros(1, np.int64)]
    total = 0
    for array in arrays:
        offsets.append(array.offsets[1:] + total)
        total += len(array.ids)
    ids = [array.ids for array in arrays]
    return TokenArray(np.concatenate(ids) if ids else np.zeros(0, np.uint32), np.concatenate(offsets))
