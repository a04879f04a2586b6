"""Which of two answers a model would rather write."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from pylm.data.chat import ChatTemplate, PreferenceRow, encode_preference
from pylm.errors import InputError
from pylm.model.transformer import Transformer
from pylm.ops import linear_logprob

if TYPE_CHECKING:
    from pylm.text import Tokenizer

_IGNORED = -100


def prefers_chosen(
    model: Transformer,
    tokenizer: "Tokenizer",
    rows: Sequence[PreferenceRow],
    template: ChatTemplate,
    *,
    batch_size: int = 64,
) -> list[bool]:
    """Tell for each pair whether the chosen answer is the likelier one.

    Compares the log-probabilities of the whole answers, each with the token that ends it. Unlike the
    implicit reward of preference tuning this needs no reference, so that every stage can be asked.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        rows: pairs.
        template: how conversations are laid out.
        batch_size: answers at a time.

    Returns:
        One outcome a pair, in order; a tie is false.

    Raises:
        InputError: a pair is too long for the model, or does not fit the template.
    """
    sequences: list[tuple[list[int], int]] = []
    for number, row in enumerate(rows):
        prompt, chosen, rejected = encode_preference(row, tokenizer, template)
        for reply in (chosen, rejected):
            if len(prompt) + len(reply) - 1 > model.config.max_seq_len:
                raise InputError(
                    f"pair {number} of kind {row.kind!r} has {len(prompt) + len(reply)} tokens, more than "
                    f"the model's max_seq_len={model.config.max_seq_len} allows; shorten it"
                )
            sequences.append(([*prompt, *reply], len(prompt)))
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i][0]))
    logprobs = [0.0] * len(sequences)
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        for i, logprob in zip(batch, _score(model, [sequences[i] for i in batch]), strict=True):
            logprobs[i] = logprob
    return [logprobs[i] > logprobs[i + 1] for i in range(0, len(logprobs), 2)]


def _score(model: Transformer, sequences: Sequence[tuple[list[int], int]]) -> list[float]:
    """Sum the log-probabilities of the tokens of each sequence from its border on."""
    num_columns = max(len(ids) for ids, _ in sequences) - 1
    ids_BT = torch.zeros((len(sequences), num_columns), dtype=torch.int64)
    targets_BT = torch.full((len(sequences), num_columns), _IGNORED, dtype=torch.int64)
    for row, (ids, border) in enumerate(sequences):
        ids_BT[row, : len(ids) - 1] = torch.tensor(ids[:-1])
        targets_BT[row, border - 1 : len(ids) - 1] = torch.tensor(ids[border:])
    device = model.output_weight.device
    targets_BT = targets_BT.to(device)
    with torch.inference_mode():
        hidden_BTD = model(ids_BT.to(device))
        logprob_BT = linear_logprob(hidden_BTD, model.output_weight, targets_BT).logprob
    return [float(total) for total in logprob_BT.double().sum(dim=1)]
