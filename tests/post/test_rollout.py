"""Rollouts against the model asked token by token without a cache."""

from pathlib import Path

import pytest
import torch

from pylm.data.chat import PYLM
from pylm.model.hf import load_model
from pylm.model.transformer import Transformer
from pylm.post.rollout import SamplingConfig, complete_greedily, roll_out

PROMPTS = [[256, 257, 97], [256, 257, 98, 99, 100, 101], [256]]
ROUNDING = 1e-4  # float32, cached keys against recomputed ones


@pytest.fixture(scope="module")
def model(model_dir: Path) -> Transformer:
    """A model sure enough of itself to stop now and then."""
    model, _ = load_model(model_dir)
    with torch.no_grad():
        model.output_weight.mul_(40.0)
    return model


def logprobs(
    model: Transformer, prompt: list[int], completion: list[int], temperature: float
) -> torch.Tensor:
    ids = prompt + completion
    with torch.no_grad():
        logits_TV = model(torch.tensor([ids[:-1]]))[0] @ model.output_weight.t() / temperature
    return torch.log_softmax(logits_TV, -1)[len(prompt) - 1 :]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_are_those_of_the_model(model: Transformer, temperature: float) -> None:
    config = SamplingConfig(max_new_tokens=6, temperature=temperature)
    rollouts = roll_out(model, PROMPTS, config, group_size=4, stop_ids=[260], seed=0, step=0)
    assert len(rollouts.completions) == 12
    for i, completion in enumerate(rollouts.completions):
        expected = logprobs(model, PROMPTS[i // 4], completion, temperature)
        chosen = expected.gather(1, torch.tensor(completion).unsqueeze(1)).squeeze(1)
        torch.testing.assert_close(torch.tensor(rollouts.logprobs[i]), chosen, rtol=0, atol=ROUNDING)
        assert rollouts.finished[i] == (completion[-1] == 260)
        assert 260 not in completion[:-1]
        assert len(completion) <= 6
    assert rollouts.num_tokens == sum(map(len, rollouts.completions))


def test_rollouts_are_a_function_of_seed_step_and_rank(model: Transformer) -> None:
    config = SamplingConfig(max_new_tokens=4)
    options = {"group_size": 4, "stop_ids": [260]}

    def sample(seed: int, step: int, rank: int = 0) -> list[list[int]]:
        return roll_out(model, PROMPTS, config, seed=seed, step=step, rank=rank, **options).completions

    torch.manual_seed(1)
    first = sample(0, 0)
    torch.manual_seed(2)
    assert sample(0, 0) == first
    others = [sample(1, 0), sample(0, 1), sample(0, 0, rank=1)]
    assert all(other != first for other in others)


def test_a_bound_on_memory_keeps_the_order(model: Transformer) -> None:
    config = SamplingConfig(max_new_tokens=4, max_sequences=4)
    rollouts = roll_out(model, PROMPTS, config, group_size=4, stop_ids=[260], seed=0, step=0)
    assert rollouts.prompts == PROMPTS
    for i, completion in enumerate(rollouts.completions):
        expected = logprobs(model, PROMPTS[i // 4], completion, 1.0)[0, completion[0]]
        assert rollouts.logprobs[i][0] == pytest.approx(expected.item(), abs=ROUNDING)


@pytest.mark.parametrize(("max_sequences", "at_once"), [(4, 1), (8, 2), (100, 3)])
def test_progress_counts_what_has_ended(model: Transformer, max_sequences: int, at_once: int) -> None:
    calls: list[tuple[int, int, int]] = []
    config = SamplingConfig(max_new_tokens=6, max_sequences=max_sequences)
    rollouts = roll_out(
        model, PROMPTS, config, group_size=4, stop_ids=list(range(200, 261)), seed=0, step=0,
        progress=lambda *call: calls.append(call),
    )  # fmt: skip
    lengths = [len(x) for x in rollouts.completions]
    assert min(lengths) < 6
    expected = []
    for start in range(0, 12, 4 * at_once):
        together = lengths[start : start + 4 * at_once]
        for num_tokens in range(1, max(together) + 1):
            expected.append((start + sum(x <= num_tokens for x in together), 12, num_tokens))
    assert calls == expected
    assert calls[-1][:2] == (12, 12)
    calls.clear()
    complete_greedily(model, PROMPTS, config, stop_ids=[260], progress=lambda *call: calls.append(call))
    assert calls[-1][:2] == (3, 3)


@pytest.mark.parametrize("max_sequences", [1, 2, 100])
def test_greedy_completions_take_the_likeliest_token(model: Transformer, max_sequences: int) -> None:
    config = SamplingConfig(max_new_tokens=5, max_sequences=max_sequences)
    rollouts = complete_greedily(model, PROMPTS, config, stop_ids=[260])
    for prompt, completion in zip(PROMPTS, rollouts.completions, strict=True):
        assert completion == logprobs(model, prompt, completion, 1.0).argmax(-1).tolist()


def test_the_template_names_the_tokens_that_end_a_completion(model_dir: Path) -> None:
    _, tokenizer = load_model(model_dir)
    special = tokenizer.special_tokens
    assert set(PYLM.stop_ids(tokenizer)) == {special["<|end|>"], special["<|endoftext|>"]}
