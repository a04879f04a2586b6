"""Equal documents of a corpus larger than memory, in stages over splits and partitions.

    work/signed/        128-bit hashes of every split (`signing`)
    work/RECIPE/
        parts.json              the splits, and the number of the first document of each
        verdicts/PPPPP.blocks   a partition's copies, and what stays in the place of each; a block a split

No text is compared: texts count as equal when their hashes are, as in `dedup.exact_batches`.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

from pylm.data import storage
from pylm.data.dedup.run import Progress, Run, run_dedup
from pylm.data.dedup.signing import CorpusConfig, Signing, load_parts, match_hashes
from pylm.data.dedup.survivors import STEPS, remove_documents
from pylm.data.dedup.verdicts import NUM_LARGEST, exact_verdicts, largest_clusters, write_verdicts
from pylm.data.executors import Executor
from pylm.data.funnel import Tally
from pylm.errors import InputError


class ExactDedupConfig(CorpusConfig):
    """Which documents count as equal."""

    unit: Literal["document", "url"] = "document"
    """Compare texts, or the addresses in `url_column` as `dedup.normalize_url` gives them."""
    url_column: str = "url"
    """Column with addresses, for `unit="url"`; rows without one are kept."""
    normalize: bool = False
    """Compare texts in lower case with white space collapsed."""
    punctuation: bool = True
    """False leaves punctuation out of normalised texts."""

    def columns(self) -> list[str]:
        """List the columns that are read, that of the texts first."""
        return [*super().columns(), *([self.url_column] if self.unit == "url" else [])]

    def signing(self, num_partitions: int, work: str) -> Signing:
        """Say how documents are hashed."""
        if self.unit == "url" and (self.normalize or not self.punctuation):
            raise InputError("addresses have rules of their own; leave out normalize and punctuation")
        if not self.punctuation and not self.normalize:
            raise InputError("punctuation=False leaves it out of normalised texts; add normalize=True")
        column = self.url_column if self.unit == "url" else self.text_column
        exact = {"unit": self.unit, "normalize": self.normalize, "punctuation": self.punctuation}
        return Signing(self, num_partitions, work, column, exact=exact)


def dedup_exact(
    inputs: Sequence[str],
    out: str,
    config: ExactDedupConfig,
    *,
    execute: Executor | None = None,
    progress: Progress | None = None,
    dry_run: bool = False,
    keep_work: bool = False,
) -> dict[str, Any]:
    """Remove equal documents, or those with equal addresses, from a corpus in files; otherwise as
    `dedup_near`.

    Hashes of 128 bits decide, as in `dedup.exact_batches`.
    """

    def work(run: Run, tally: Tally) -> tuple[Sequence[str], dict[str, Any]]:
        if config.unit == "url":
            _check_addresses(run, config)
        verdicts = find_exact(run, config)
        clusters = count_found(run.folder, run.num_partitions)
        return STEPS[:1], remove_documents(run, tally, verdicts, clusters, dry_run=dry_run)

    return run_dedup(
        "exact",
        inputs,
        out,
        config,
        work,
        execute=execute,
        progress=progress,
        dry_run=dry_run,
        keep_work=keep_work,
    )


def _check_addresses(run: Run, config: ExactDedupConfig) -> None:
    """Say how many documents have no address, and stay for that.

    Raises:
        InputError: none has one.
    """
    parts = load_parts(run.parts_path)
    num_docs = sum(part.num_docs for part in parts)
    missing = num_docs - sum(part.num_compared for part in parts)
    if missing == num_docs:
        raise InputError(
            f"{', '.join(run.inputs)}: no document has an address in {config.url_column!r}; name another "
            "column, or field of JSON lines, with --url-column"
        )
    if missing:
        run.warnings.append(
            f"{missing:,} of {num_docs:,} documents have no address in {config.url_column!r}, and stay"
        )


def find_exact(run: Run, config: ExactDedupConfig) -> list[str]:
    """Find what goes, through all stages but the last.

    Returns:
        Paths of the verdicts, files with a block a split.

    Raises:
        InputError: an input or a file of an earlier stage cannot be read.
    """
    verdicts = [_file(run.folder, i) for i in range(run.num_partitions)]
    match = partial(_match, folder=run.folder, parts_path=run.parts_path, num_keys=config.num_keys)
    run.stage("match", match, [f"{path}.json" for path in verdicts])
    return verdicts


def count_found(folder: str, num_partitions: int) -> list[dict[str, Any]]:
    """Collect the largest clusters."""
    largest: list[dict[str, Any]] = []
    for number in range(num_partitions):
        largest += storage.read_json(f"{_file(folder, number)}.json")["largest"]
    largest.sort(key=lambda cluster: (-cluster["size"], cluster["kept"]))
    return largest[:NUM_LARGEST]


def _file(folder: str, number: int) -> str:
    return storage.join(folder, "verdicts", f"{number:05d}.blocks")


def _match(partition: int, *, folder: str, parts_path: str, num_keys: int) -> None:
    parts = load_parts(parts_path)
    copies, stays = match_hashes(parts, partition, num_keys)
    path = _file(folder, partition)
    write_verdicts(path, parts, exact_verdicts(copies, stays))
    storage.write_json(f"{path}.json", {"largest": largest_clusters(copies, stays)})
