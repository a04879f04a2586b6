"""Batches as a pure function of recipe, seed and step.

Sample i of a run comes from the source that the mixture names for i, and is that source's n-th sample. A
source of W windows gives them all once before it gives one again: its n-th sample is window
`permutation(n mod W)` under a key of its own for every epoch `n // W`. Nothing is kept between batches,
so the loader's state is the step: a resumed run, on any number of ranks, reads what it would have read.

Shapes: B rows, T time.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import xxhash
from numpy.typing import NDArray

from pylm.data.mixture import Mixture, MixtureConfig
from pylm.data.pack import IGNORE, cut_windows, num_windows, number_documents
from pylm.data.permutation import mix, permute
from pylm.data.shards import DocumentRef, Shard
from pylm.errors import InputError

if TYPE_CHECKING:
    import torch

__all__ = ["IGNORE", "Batch", "BatchDocument", "Loader", "Sample"]


@dataclass(frozen=True, eq=False)
class Batch:
    """One rank's rows of a step.

    Attributes:
        ids_BT: int64 inputs.
        targets_BT: int64 next ids; `IGNORE` behind the end of a shard, in its last window.
        positions_BT: int64, from 0 in each document; None where `documents_BT` is.
        documents_BT: int64, number of the document within the row, from 0; None where no row holds a
            border. Attention must stay within a number.
        sources: source of each row.
        samples: number of each row's sample in the run.
    """

    ids_BT: NDArray[np.int64]
    targets_BT: NDArray[np.int64]
    positions_BT: NDArray[np.int64] | None
    documents_BT: NDArray[np.int64] | None
    sources: list[str]
    samples: list[int]

    def tensors(
        self, device: "torch.device | str" = "cpu"
    ) -> "tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None]":
        """Give ids, targets, positions and documents as tensors on a device."""
        import torch

        ids_BT, targets_BT = (torch.from_numpy(x).to(device) for x in (self.ids_BT, self.targets_BT))
        if self.positions_BT is None or self.documents_BT is None:
            return ids_BT, targets_BT, None, None
        positions_BT, documents_BT = (
            torch.from_numpy(x).to(device) for x in (self.positions_BT, self.documents_BT)
        )
        return ids_BT, targets_BT, positions_BT, documents_BT


@dataclass(frozen=True)
class Sample:
    """Where a sample comes from.

    Attributes:
        source: name of the shard.
        epoch: passes over the source that were complete before it.
        window: number of the window in the shard.
        start: first id of the window.
        stop: end of its ids, the last target included.
    """

    source: str
    epoch: int
    window: int
    start: int
    stop: int


@dataclass(frozen=True)
class BatchDocument:
    """A document, or a part of one, in a batch.

    Attributes:
        document: id, source, url.
        sample: number of the sample in the run.
        row: row of the global batch.
        num_tokens: how many of the row's ids, the last target included, are its own.
    """

    document: DocumentRef
    sample: int
    row: int
    num_tokens: int


class Loader:
    """Reads a run's batches from its shards.

    Attributes:
        num_samples: samples of the whole run.
        mixture: the laid out mixture.
        epochs: for each source, how often the run reads it.
    """

    def __init__(
        self,
        shards: Mapping[str, Shard],
        mixture: MixtureConfig,
        *,
        seq_len: int,
        batch_size: int,
        num_steps: int,
        seed: int,
    ) -> None:
        """Lay out a run.

        Args:
            shards: sources by name; those that the mixture does not draw from are not read.
            mixture: shares of the sources.
            seq_len: T.
            batch_size: rows of a step, over all ranks.
            num_steps: steps of the run, on which the stages of the mixture are laid out.
            seed: decides the order of windows.

        Raises:
            InputError: a source of the mixture is missing or too short, or a number is below 1.
        """
        for name, value in (("seq_len", seq_len), ("batch_size", batch_size), ("num_steps", num_steps)):
            if value < 1:
                raise InputError(f"{name} must be 1 or more, got {value}")
        self.seq_len, self.batch_size, self.num_steps = seq_len, batch_size, num_steps
        self.num_samples = num_steps * batch_size
        sizes = {name: len(shard.tokens) for name, shard in shards.items()}
        self.mixture = Mixture(mixture, num_samples=self.num_samples, sizes=sizes)
        self._shards = [shards[name] for name in self.mixture.sources]
        for name, shard in zip(self.mixture.sources, self._shards, strict=True):
            if len(shard.tokens) < 2:
                raise InputError(
                    f"source {name} has {len(shard.tokens)} tokens, at least 2 are needed; "
                    f"leave it out of the mixture"
                )
        self._tokens = [shard.tokens.view(np.ndarray) for shard in self._shards]
        self._num_windows_S = np.array([num_windows(len(tokens), seq_len) for tokens in self._tokens])
        keys = [
            xxhash.xxh3_64_intdigest(name.encode(), seed & (1 << 64) - 1) for name in self.mixture.sources
        ]
        self._key_S = np.array(keys, dtype=np.uint64)
        self.epochs = {
            name: self.mixture.num_draws[name] / int(count)
            for name, count in zip(self.mixture.sources, self._num_windows_S, strict=True)
        }

    def batch(self, step: int, *, rank: int = 0, world_size: int = 1) -> Batch:
        """Read a rank's part of a step.

        The parts of all ranks, one after the other, are the rows of the whole batch.

        Args:
            step: from 0.
            rank: which part.
            world_size: number of parts.

        Returns:
            `batch_size / world_size` rows.

        Raises:
            InputError: no such step or rank, or ranks that cannot share a batch evenly.
        """
        sample_B = self._samples(step, rank, world_size)
        source_B, _, window_B = self._locate(sample_B)
        sources = source_B.tolist()
        ids_BT, targets_BT = cut_windows(
            [(self._tokens[s], w) for s, w in zip(sources, window_B.tolist(), strict=True)],
            seq_len=self.seq_len,
            eos_ids=[self._shards[s].meta.eos_id for s in sources],
        )
        eos_B1 = np.array([self._shards[s].meta.eos_id for s in sources])[:, None]
        positions_BT, documents_BT = number_documents(ids_BT == eos_B1)
        return Batch(
            ids_BT,
            targets_BT,
            positions_BT,
            documents_BT,
            sources=[self.mixture.sources[s] for s in sources],
            samples=sample_B.tolist(),
        )

    def stage(self, step: int) -> int:
        """Name the mixture's stage at the first sample of a step, from 0."""
        return self.mixture.stage(step * self.batch_size)

    def sample(self, number: int) -> Sample:
        """Name the place that a sample of the run is read from."""
        source, epoch, window = (int(x[0]) for x in self._locate(np.array([number], dtype=np.int64)))
        start = window * self.seq_len
        stop = min(start + self.seq_len + 1, len(self._tokens[source]))
        return Sample(self.mixture.sources[source], epoch, window, start, stop)

    def documents_behind(self, step: int, *, rank: int = 0, world_size: int = 1) -> list[BatchDocument]:
        """Name the documents that a step was trained on.

        Args:
            step: from 0.
            rank: which part of the batch.
            world_size: number of parts; one by default, so all of it.

        Returns:
            Documents in the order of rows, and of text within a row. An end of text counts to the
            document that it ends.

        Raises:
            InputError: as for `batch`.
        """
        by_name = dict(zip(self.mixture.sources, self._shards, strict=True))
        found: list[tuple[int, Sample, int]] = []
        for number in self._samples(step, rank, world_size).tolist():
            sample = self.sample(number)
            between = by_name[sample.source].documents_between(sample.start, sample.stop)
            found += [(number, sample, index) for index in between]
        references = {
            name: dict(zip(indices, shard.documents(indices), strict=True))
            for name, shard in by_name.items()
            if (indices := sorted({index for _, sample, index in found if sample.source == name}))
        }
        return [
            BatchDocument(
                document=references[sample.source][index],
                sample=number,
                row=number - step * self.batch_size,
                num_tokens=_overlap(by_name[sample.source].offsets, index, sample),
            )
            for number, sample, index in found
        ]

    def _samples(self, step: int, rank: int, world_size: int) -> NDArray[np.int64]:
        if not 0 <= step < self.num_steps:
            raise InputError(f"step must be in 0..{self.num_steps - 1}, got {step}")
        if world_size < 1 or self.batch_size % world_size:
            raise InputError(
                f"batch_size={self.batch_size} cannot be shared evenly by {world_size} ranks; "
                f"choose a batch_size that is a multiple of {world_size}"
            )
        if not 0 <= rank < world_size:
            raise InputError(f"rank must be in 0..{world_size - 1}, got {rank}")
        num_rows = self.batch_size // world_size
        start = step * self.batch_size + rank * num_rows
        return np.arange(start, start + num_rows, dtype=np.int64)

    def _locate(
        self, sample_N: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Find source, epoch and window of samples."""
        source_N, index_N = self.mixture.draw(sample_N)
        size_N = self._num_windows_S[source_N]
        epoch_N, place_N = np.divmod(index_N, size_N)
        key_N = mix(self._key_S[source_N] + mix(epoch_N.astype(np.uint64)))
        return source_N, epoch_N, permute(place_N, size_N, key_N)


def _overlap(offsets: NDArray[np.int64], index: int, sample: Sample) -> int:
    return int(min(offsets[index + 1], sample.stop) - max(offsets[index], sample.start))
