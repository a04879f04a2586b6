"""From rows on disk to token ids: conversations, preference pairs, prompts, none of them too long.

What does not fit is cut or left out by a stated rule, and counted by reason.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from pylm.data.chat import ChatTemplate, read_chat_rows, read_preference_rows, read_verifiable_rows
from pylm.data.chat import encode_preference as encode_pair
from pylm.errors import InputError
from pylm.text import Tokenizer

Counts = dict[str, int]


@dataclass(frozen=True)
class Example:
    """One tokenised row.

    Attributes:
        ids: int64 (length,) token ids.
        mask: bool (length,) true at tokens that are trained, which are never the first.
        kind: task family, for results by family.
    """

    ids: NDArray[np.int64]
    mask: NDArray[np.bool_]
    kind: str = ""

    def __post_init__(self) -> None:
        assert self.ids.shape == self.mask.shape
        assert self.mask.any(), "an example without trained tokens"
        assert not self.mask[0], "nothing predicts the first token"

    @property
    def length(self) -> int:
        """Number of tokens."""
        return len(self.ids)

    @property
    def num_trained(self) -> int:
        """Number of trained tokens."""
        return int(self.mask.sum())


@dataclass(frozen=True)
class Pair:
    """A prompt with a better and a worse answer, whose tokens are trained.

    Attributes:
        chosen: prompt and better answer.
        rejected: prompt and worse answer.
        kind: task family.
    """

    chosen: Example
    rejected: Example
    kind: str


@dataclass(frozen=True)
class Prompt:
    """A prompt whose completion a verifier can judge.

    Attributes:
        ids: token ids, up to where the model goes on.
        text: the last message, for people.
        ground_truth: the right answer.
        dataset: names the verifier, and the family for results.
    """

    ids: list[int]
    text: str
    ground_truth: str
    dataset: str


def join(prompt: Sequence[int], answer: Sequence[int], kind: str = "") -> Example:
    """Make the example in which `answer` is trained and `prompt`, not empty, is not."""
    ids = np.array([*prompt, *answer], dtype=np.int64)
    return Example(ids, np.arange(len(ids)) >= len(prompt), kind)


def read_conversations(
    paths: Sequence[Path], tokenizer: Tokenizer, template: ChatTemplate, *, max_length: int
) -> tuple[list[Example], Counts]:
    """Read and tokenise conversations.

    Args:
        paths: files, in order.
        tokenizer: with the template's special tokens.
        template: layout.
        max_length: longest example in tokens. A longer one loses its end; it is dropped if no trained
            token is left then.

    Returns:
        Examples in the order of the rows, and how many were `truncated` or dropped.

    Raises:
        InputError: a file or a row cannot be used, or there are files and no example is left.
    """
    examples: list[Example] = []
    counts: Counter[str] = Counter()
    for row in read_chat_rows(paths):
        rendered = template.render(row.messages, tokenizer)
        mask = np.array(rendered.mask[:max_length])
        if not mask.any():
            counts["dropped: no assistant token within max_length"] += 1
            continue
        counts["truncated"] += len(rendered.ids) > max_length
        examples.append(Example(np.array(rendered.ids[:max_length], dtype=np.int64), mask, row.kind))
    _check_any(examples, paths, counts)
    return examples, _nonzero(counts)


def read_pairs(
    paths: Sequence[Path], tokenizer: Tokenizer, template: ChatTemplate, *, max_length: int
) -> tuple[list[Pair], Counts]:
    """Read and tokenise preferences.

    Args:
        paths: files, in order.
        tokenizer: with the template's special tokens.
        template: layout.
        max_length: longest prompt and answer together, in tokens. A longer answer loses its end; a pair is
            dropped if its prompt alone is that long, or if both answers are the same then.

    Returns:
        Pairs in the order of the rows, and how many were `truncated` or dropped.

    Raises:
        InputError: a file or a row cannot be used, or there are files and no pair is left.
    """
    pairs: list[Pair] = []
    counts: Counter[str] = Counter()
    for row in read_preference_rows(paths):
        prompt, *answers = encode_pair(row, tokenizer, template)
        room = max_length - len(prompt)
        if room < 1:
            counts["dropped: prompt fills max_length"] += 1
            continue
        chosen, rejected = (answer[:room] for answer in answers)
        if chosen == rejected:
            counts["dropped: both answers are the same"] += 1
            continue
        counts["truncated"] += max(map(len, answers)) > room
        pairs.append(Pair(join(prompt, chosen), join(prompt, rejected), row.kind))
    _check_any(pairs, paths, counts)
    return pairs, _nonzero(counts)


def read_prompts(
    paths: Sequence[Path], tokenizer: Tokenizer, template: ChatTemplate, *, max_length: int
) -> tuple[list[Prompt], Counts]:
    """Read and tokenise prompts with checkable answers.

    Args:
        paths: files, in order.
        tokenizer: with the template's special tokens.
        template: layout.
        max_length: longest prompt in tokens; a longer one is dropped.

    Returns:
        Prompts in the order of the rows, and how many were dropped.

    Raises:
        InputError: a file or a row cannot be used, or there are files and no prompt is left.
    """
    prompts: list[Prompt] = []
    counts: Counter[str] = Counter()
    for row in read_verifiable_rows(paths):
        ids = template.render(row.messages, tokenizer, add_generation_prompt=True).ids
        if len(ids) > max_length:
            counts["dropped: prompt longer than max_length"] += 1
            continue
        prompts.append(Prompt(ids, row.messages[-1]["content"], row.ground_truth, row.dataset))
    _check_any(prompts, paths, counts)
    return prompts, _nonzero(counts)


def fingerprint(ids: Iterable[Sequence[int] | NDArray[np.int64]]) -> str:
    """Hash sequences of token ids, borders included."""
    digest = xxhash.xxh3_128()
    for sequence in ids:
        array = np.asarray(sequence, dtype="<i8")
        digest.update(len(array).to_bytes(8, "little"))
        digest.update(array.tobytes())
    return digest.hexdigest()


def _check_any(kept: Sequence[object], paths: Sequence[Path], counts: Counter[str]) -> None:
    if paths and not kept:
        reasons = ", ".join(f"{count} {reason}" for reason, count in counts.items()) or "no rows"
        raise InputError(
            f"{', '.join(map(str, paths))}: no row can be used ({reasons}); "
            f"give more rows, or raise max_length"
        )


def _nonzero(counts: Counter[str]) -> Counts:
    return {reason: count for reason, count in sorted(counts.items()) if count}
