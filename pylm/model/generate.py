"""Sampling with a key-value cache: many prompts of different length at once, or one as a stream.

Rows are aligned on the right: row r of length n stands in the last n columns of the prefill and counts its
positions from its own first token, so what a row gets does not depend on its neighbours. Noise is a
function of (seed, row, step), for the same reason. A prompt is computed once however many samples are
drawn from it, and rows that have stopped leave the batch.

Shapes: R rows, T time, D model, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pylm.errors import InputError
from pylm.model.attention import KVCache
from pylm.model.transformer import Transformer

SamplingProgress = Callable[[int, int, int], object]
"""Called with samples done, samples in all, and tokens of those that are not done."""


@dataclass(frozen=True)
class Generations:
    """Samples, prompt by prompt, `num_samples` of each.

    Attributes:
        ids: new tokens of each sample, the stop token included.
        logprobs: of each new token under softmax(logits / temperature), before top-k and top-p; for
            temperature 0 under softmax(logits).
        finished: whether a stop token ended the sample.
    """

    ids: list[list[int]]
    logprobs: list[list[float]]
    finished: list[bool]


@torch.no_grad()
def generate(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    stop_ids: Sequence[int] = (),
    seed: int = 0,
    num_samples: int = 1,
    progress: SamplingProgress | None = None,
) -> Generations:
    """Continue prompts.

    Args:
        model: on any device.
        prompts: token ids, at least one each.
        max_new_tokens: most tokens of a sample.
        temperature: divides the logits; 0 takes the likeliest token.
        top_k: sample among this many likeliest tokens; 0 among all.
        top_p: sample among the fewest likeliest tokens that hold this share of the mass.
        stop_ids: tokens that end a sample.
        seed: of the noise.
        num_samples: samples of each prompt.
        progress: called after each token.

    Returns:
        `len(prompts) * num_samples` samples; sample j of prompt i at i * num_samples + j.

    Raises:
        InputError: an empty prompt, an unknown token, a context longer than the model's, an option out of
            range.
    """
    _check(
        model, prompts, max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p,
        num_samples=num_samples,
    )  # fmt: skip
    num_rows = len(prompts) * num_samples
    ids: list[list[int]] = [[] for _ in range(num_rows)]
    logprobs: list[list[float]] = [[] for _ in range(num_rows)]
    finished = [False] * num_rows
    if not prompts:
        return Generations(ids, logprobs, finished)
    device = model.embedding.weight.device
    hidden_RD, cache = _prefill(model, prompts, max_new_tokens)
    rows = np.repeat(np.arange(len(prompts)), num_samples)
    if num_samples > 1:
        selected = torch.from_numpy(rows).to(device)
        cache.select_rows(selected)
        hidden_RD = hidden_RD[selected]
    positions = torch.tensor([len(prompts[i]) for i in rows.tolist()], device=device)
    active = np.arange(num_rows)
    stops = np.asarray(list(stop_ids), dtype=np.int64)
    for step in range(max_new_tokens):
        logits_RV = (hidden_RD @ model.output_weight.T).float()
        chosen_R, logprob_R = _choose(
            logits_RV, active, step, seed=seed, temperature=temperature, top_k=top_k, top_p=top_p
        )
        chosen, logprob = chosen_R.cpu().numpy(), logprob_R.cpu().numpy()
        stopped = np.isin(chosen, stops)
        for place, row in enumerate(active):
            ids[row].append(int(chosen[place]))
            logprobs[row].append(float(logprob[place]))
            finished[row] = bool(stopped[place])
        if progress is not None:
            is_last = step + 1 == max_new_tokens
            progress(num_rows if is_last else num_rows - int((~stopped).sum()), num_rows, step + 1)
        if stopped.all() or step + 1 == max_new_tokens:
            break
        if stopped.any():
            kept = torch.from_numpy(np.flatnonzero(~stopped)).to(device)
            cache.select_rows(kept)
            positions, chosen_R, active = positions[kept], chosen_R[kept], active[~stopped]
        cache.valid_BS[:, cache.length] = True
        hidden_RTD = model(chosen_R[:, None], positions_BT=positions[:, None], cache=cache)
        hidden_RD = hidden_RTD[:, -1]
        positions = positions + 1
    return Generations(ids, logprobs, finished)


@torch.no_grad()
def stream(
    model: Transformer,
    prompt: Sequence[int],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    stop_ids: Sequence[int] = (),
    seed: int = 0,
) -> Iterator[int]:
    """Continue one prompt token by token, for a display that follows; options as in `generate`.

    Yields:
        New tokens; a stop token ends the stream and is not given.
    """
    _check(model, [prompt], max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p)
    hidden_RD, cache = _prefill(model, [prompt], max_new_tokens)
    row = np.zeros(1, dtype=np.int64)
    for step in range(max_new_tokens):
        logits_RV = (hidden_RD @ model.output_weight.T).float()
        chosen_R, _ = _choose(
            logits_RV, row, step, seed=seed, temperature=temperature, top_k=top_k, top_p=top_p
        )
        token = int(chosen_R[0])
        if token in stop_ids:
            return
        yield token
        if step + 1 == max_new_tokens:
            return
        cache.valid_BS[:, cache.length] = True
        position_RT = torch.full((1, 1), len(prompt) + step, device=hidden_RD.device)
        hidden_RD = model(chosen_R[:, None], positions_BT=position_RT, cache=cache)[:, -1]


def _check(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    num_samples: int = 1,
) -> None:
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
    if num_samples < 1:
        raise InputError(f"num_samples must be at least 1, got {num_samples}")
    if not temperature >= 0:  # also refuses NaN
        raise InputError(f"temperature must be 0 or more, got {temperature}")
    if top_k < 0:
        raise InputError(f"top_k must be 0 (all tokens) or more, got {top_k}")
    if not 0 < top_p <= 1:
        raise InputError(f"top_p must be in (0, 1], got {top_p}")
    num_classes = len(model.output_weight)
    for index, prompt in enumerate(prompts):
        if not prompt:
            raise InputError(f"prompt {index} is empty; start it with a token, such as the end of text")
        if strange := [i for i in prompt if not 0 <= i < num_classes]:
            raise InputError(
                f"prompt {index} has the token {strange[0]}, but the model knows 0 to {num_classes - 1}; "
                "encode it with the model's own tokenizer"
            )
        if len(prompt) + max_new_tokens > model.config.max_seq_len:
            raise InputError(
                f"prompt {index} has {len(prompt)} tokens; with max_new_tokens={max_new_tokens} that is more "
                f"than the model's max_seq_len={model.config.max_seq_len}"
            )


def _prefill(
    model: Transformer, prompts: Sequence[Sequence[int]], max_new_tokens: int
) -> tuple[Tensor, KVCache]:
    """Compute all prompts at once, aligned on the right; give the last hidden states (R, D)."""
    device = model.embedding.weight.device
    lengths = np.array([len(p) for p in prompts])
    longest = int(lengths.max())
    ids_RT = np.zeros((len(prompts), longest), dtype=np.int64)
    for row, prompt in enumerate(prompts):
        ids_RT[row, longest - len(prompt) :] = prompt
    positions_RT = np.maximum(np.arange(longest) - (longest - lengths)[:, None], 0)
    valid_RT = np.arange(longest) >= (longest - lengths)[:, None]
    cache = KVCache(model.config, len(prompts), longest + max_new_tokens, like=model.embedding.weight)
    cache.valid_BS[:, :longest] = torch.from_numpy(valid_RT).to(device)
    hidden_RTD = model(
        torch.from_numpy(ids_RT).to(device),
        positions_BT=torch.from_numpy(positions_RT).to(device),
        cache=cache,
    )
    return hidden_RTD[:, -1], cache


def _choose(
    logits_RV: Tensor,
    rows: NDArray[np.int64],
    step: int,
    *,
    seed: int,
    temperature: float,
    top_k: int,
    top_p: float,
) -> tuple[Tensor, Tensor]:
    """Draw one token a row; give tokens (R,) and their log-probabilities (R,)."""
    if temperature == 0:
        chosen_R = logits_RV.argmax(dim=-1)
        logprob_RV = torch.log_softmax(logits_RV, dim=-1)
    else:
        logprob_RV = torch.log_softmax(logits_RV / temperature, dim=-1)
        allowed_RV = _truncate(logprob_RV, top_k=top_k, top_p=top_p)
        chosen_R = _sample(allowed_RV, rows, step, seed)
    return chosen_R, logprob_RV.gather(1, chosen_R[:, None])[:, 0]


def _truncate(logprob_RV: Tensor, *, top_k: int, top_p: float) -> Tensor:
    if 0 < top_k < logprob_RV.shape[1]:
        smallest_R1 = logprob_RV.topk(top_k, dim=-1).values[:, -1:]
        logprob_RV = logprob_RV.masked_fill(logprob_RV < smallest_R1, -torch.inf)
    if top_p < 1:
        sorted_RV, order_RV = torch.softmax(logprob_RV, dim=-1).sort(dim=-1, descending=True)
        before_RV = sorted_RV.cumsum(dim=-1) - sorted_RV
        removed_RV = torch.zeros_like(before_RV, dtype=torch.bool).scatter(1, order_RV, before_RV >= top_p)
        logprob_RV = logprob_RV.masked_fill(removed_RV, -torch.inf)
    return logprob_RV


def _sample(logprob_RV: Tensor, rows: NDArray[np.int64], step: int, seed: int) -> Tensor:
    """Invert the cumulative distribution at a uniform number that depends on (seed, row, step) alone."""
    uniform_R = torch.from_numpy(_uniform(seed, rows, step)).to(logprob_RV.device)
    cumulative_RV = logprob_RV.double().exp().cumsum(dim=-1)
    target_R1 = (uniform_R * cumulative_RV[:, -1])[:, None]
    chosen_R = torch.searchsorted(cumulative_RV, target_R1, right=True)[:, 0]
    # Rounding may put the target onto the total; the last token with any mass is meant then.
    last_R = (cumulative_RV < cumulative_RV[:, -1:]).sum(dim=-1)
    return torch.minimum(chosen_R, last_R)


def _uniform(seed: int, rows: NDArray[np.int64], step: int) -> NDArray[np.float64]:
    """Hash (seed, row, step) to [0, 1): SplitMix64's finaliser (Steele et al., 2014) over a counter."""
    key = np.random.SeedSequence([seed % (1 << 64), step]).generate_state(1, np.uint64)[0]
    with np.errstate(over="ignore"):
        x = key + (rows.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x = x ^ (x >> np.uint64(31))
    uniform: NDArray[np.float64] = (x >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return uniform
