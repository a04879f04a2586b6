"""Generation against the model asked again for every token, without a cache."""

import math
from collections import Counter

import pytest
import torch

from pylm.errors import InputError
from pylm.model.generate import generate, stream
from pylm.model.transformer import Transformer

ROUNDING = 1e-5  # log-probabilities are float32 after the last product
PROMPTS = [[4, 9, 2], [7], [1, 2, 3, 4, 5, 6, 7, 8], [30, 30]]


@pytest.fixture(scope="module")
def model(make_model) -> Transformer:
    """A model that is neither sure nor undecided."""
    model = make_model(num_kv_heads=2, embedding_norm=True)
    with torch.no_grad():
        model.output_weight.mul_(1.5)
    return model.eval()


@torch.no_grad()
def next_logits(model: Transformer, ids: list[int]) -> torch.Tensor:
    return model(torch.tensor([ids]))[0, -1] @ model.output_weight.T


def greedy(model: Transformer, prompt: list[int], count: int) -> tuple[list[int], list[float]]:
    ids, logprobs = list(prompt), []
    for _ in range(count):
        logits_V = next_logits(model, ids)
        ids.append(int(logits_V.argmax()))
        logprobs.append(float(torch.log_softmax(logits_V, -1).max()))
    return ids[len(prompt) :], logprobs


def test_greedy_equals_asking_again(model: Transformer) -> None:
    samples = generate(model, PROMPTS, max_new_tokens=20, temperature=0)
    for prompt, ids, logprobs in zip(PROMPTS, samples.ids, samples.logprobs, strict=True):
        expected_ids, expected_logprobs = greedy(model, prompt, 20)
        assert ids == expected_ids
        assert logprobs == pytest.approx(expected_logprobs, abs=ROUNDING)
    assert samples.finished == [False] * 4


def test_a_stop_token_ends_a_sample_and_no_other(model: Transformer) -> None:
    whole = generate(model, PROMPTS, max_new_tokens=20, temperature=0).ids
    stops = [whole[0][3], whole[2][0]]
    samples = generate(model, PROMPTS, max_new_tokens=20, temperature=0, stop_ids=stops)
    for ids, finished, everything in zip(samples.ids, samples.finished, whole, strict=True):
        places = [n for n, i in enumerate(everything) if i in stops]
        assert ids == everything[: places[0] + 1 if places else None]
        assert finished == bool(places)
    assert len(samples.ids[2]) == 1
    assert samples.finished[0]


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_logprobs_are_of_the_whole_distribution(model: Transformer, temperature: float) -> None:
    samples = generate(
        model, PROMPTS, max_new_tokens=6, temperature=temperature, top_k=5, top_p=0.8, num_samples=3, seed=1
    )
    assert len(samples.ids) == 12
    for number, (ids, logprobs) in enumerate(zip(samples.ids, samples.logprobs, strict=True)):
        context = list(PROMPTS[number // 3])
        for token, logprob in zip(ids, logprobs, strict=True):
            logprob_V = torch.log_softmax(next_logits(model, context) / temperature, -1)
            assert logprob == pytest.approx(float(logprob_V[token]), abs=ROUNDING)
            context.append(token)


def test_a_row_does_not_depend_on_its_neighbours(model: Transformer) -> None:
    options = {"max_new_tokens": 12, "temperature": 1.0, "seed": 5}
    together = generate(model, PROMPTS, stop_ids=[3, 8], **options)
    for number, prompt in enumerate(PROMPTS):
        others = [[1], [2, 2, 2], [3], [4]]
        others[number] = prompt
        alone = generate(model, others, stop_ids=[3, 8], **options)
        assert alone.ids[number] == together.ids[number]
        assert alone.logprobs[number] == pytest.approx(together.logprobs[number], abs=ROUNDING)


def test_samples_follow_the_distribution(model: Transformer) -> None:
    count = 6000
    samples = generate(model, [[4, 9]], max_new_tokens=1, temperature=0.9, num_samples=count, seed=2)
    seen = Counter(ids[0] for ids in samples.ids)
    probability_V = torch.softmax(next_logits(model, [4, 9]) / 0.9, -1).tolist()
    # Pearson's statistic over classes of 5 expected samples and more, the rest in one.
    large = [v for v, p in enumerate(probability_V) if p * count >= 5]
    rest = 1 - sum(probability_V[v] for v in large)
    pairs = [(seen[v], probability_V[v] * count) for v in large]
    pairs.append((count - sum(seen[v] for v in large), rest * count))
    pairs = [(observed, expected) for observed, expected in pairs if expected > 0]
    statistic = sum((observed - expected) ** 2 / expected for observed, expected in pairs)
    degrees = len(pairs) - 1
    assert degrees >= 10
    assert statistic < degrees + 4 * math.sqrt(2 * degrees)


def test_top_k_and_top_p_keep_the_likeliest(model: Transformer) -> None:
    probability_V = torch.softmax(next_logits(model, [4, 9]) / 2.0, -1)
    order = probability_V.argsort(descending=True).tolist()

    def kinds(**options: float) -> set[int]:
        samples = generate(
            model, [[4, 9]], max_new_tokens=1, temperature=2.0, num_samples=2000, seed=3, **options
        )
        return {ids[0] for ids in samples.ids}

    assert kinds(top_k=4) == set(order[:4])
    assert kinds(top_k=1) == {order[0]}
    mass, nucleus = 0.0, []
    for token in order:
        if mass >= 0.6:
            break
        mass += float(probability_V[token])
        nucleus.append(token)
    assert 2 < len(nucleus) < 31
    assert kinds(top_p=0.6) == set(nucleus)
    assert kinds(top_p=1e-9) == {order[0]}
    assert kinds(top_k=1000, top_p=1.0) >= set(order[:10])
    # The share is taken of what top-k leaves.
    kept = probability_V[order[:4]] / probability_V[order[:4]].sum()
    count = int((kept.cumsum(0) - kept < 0.5).sum())
    assert kinds(top_k=4, top_p=0.5) == set(order[:count])


def test_noise_is_a_function_of_the_seed(model: Transformer) -> None:
    options = {"max_new_tokens": 8, "num_samples": 4}
    torch.manual_seed(0)
    first = generate(model, PROMPTS, seed=7, **options)
    torch.manual_seed(1)
    assert generate(model, PROMPTS, seed=7, **options) == first
    assert generate(model, PROMPTS, seed=8, **options).ids != first.ids
    assert len({tuple(ids) for ids in first.ids[:4]}) > 1
    assert generate(model, PROMPTS, seed=-1, **options) != first


def test_a_stream_gives_the_same_tokens(model: Transformer) -> None:
    for options in ({"temperature": 0.0}, {"temperature": 1.3, "top_k": 9, "seed": 4}):
        (expected,) = generate(model, [PROMPTS[2]], max_new_tokens=15, **options).ids
        assert list(stream(model, PROMPTS[2], max_new_tokens=15, **options)) == expected
        stop = expected[5]
        streamed = list(stream(model, PROMPTS[2], max_new_tokens=15, stop_ids=[stop], **options))
        assert streamed == expected[: expected.index(stop)]


def test_nothing_to_continue_and_nothing_but_the_context(model: Transformer) -> None:
    nothing = generate(model, [], max_new_tokens=3)
    assert (nothing.ids, nothing.logprobs, nothing.finished) == ([], [], [])
    full = [1] * 63
    assert generate(model, [full], max_new_tokens=1, temperature=0).ids == [greedy(model, full, 1)[0]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        ({"temperature": -1.0}, "temperature must be 0 or more, got -1.0"),
        ({"temperature": math.nan}, "temperature must be 0 or more, got nan"),
        ({"top_k": -1}, "top_k must be 0 .* or more, got -1"),
        ({"top_p": 0.0}, "top_p must be in"),
        ({"top_p": 1.5}, "top_p must be in"),
        ({"num_samples": 0}, "num_samples must be at least 1, got 0"),
        ({"max_new_tokens": 62}, "prompt 0 has 3 tokens; with max_new_tokens=62"),
        ({"prompts": [[1], []]}, "prompt 1 is empty"),
        ({"prompts": [[1, 31]]}, "prompt 0 has the token 31"),
        ({"prompts": [[-1]]}, "prompt 0 has the token -1"),
    ],
)
def test_bad_arguments(model: Transformer, options: dict[str, object], message: str) -> None:
    arguments = {"prompts": [PROMPTS[0]], "max_new_tokens": 4, **options}
    with pytest.raises(InputError, match=message):
        generate(model, arguments.pop("prompts"), **arguments)
