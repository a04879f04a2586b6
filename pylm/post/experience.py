"""What a step of reinforcement learns from: completions, their rewards, and the rows that carry a gradient.

Shapes: P prompts of this rank, G samples of a prompt, N rows that are computed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pylm.errors import InputError
from pylm.ops import group_advantages
from pylm.ops.policy import AdvantageKind
from pylm.post.batches import cut
from pylm.post.examples import Example, Prompt, join
from pylm.post.rewards import Judgement, RewardConfig, judge
from pylm.post.rollout import Rollouts
from pylm.post.trainer import sum_over_ranks
from pylm.post.verifiers import VERIFIERS, Verifier
from pylm.text import Tokenizer
from pylm.train.parallel import World


class Examiner:
    """Reads completions as text and judges them."""

    def __init__(
        self,
        config: RewardConfig,
        tokenizer: Tokenizer,
        verifiers: Mapping[str, Verifier] = VERIFIERS,
    ) -> None:
        """Remember what a completion earns, how it is read, and who judges it."""
        self.config = config
        self.tokenizer = tokenizer
        self.verifiers = verifiers

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Make sure that every prompt can be judged, before any time is spent on sampling.

        Raises:
            InputError: a data set has no verifier, or a ground truth cannot be read; names the prompt.
        """
        for prompt in prompts:
            try:
                self._judge(prompt, "", finished=True)
            except InputError as error:
                raise InputError(f"prompt {prompt.text[:60]!r}: {error}") from error

    def read(self, completion: Sequence[int], *, finished: bool) -> str:
        """Decode a completion, without the token that ended it."""
        text: str = self.tokenizer.decode(list(completion[:-1] if finished else completion))
        return text

    def judge(self, prompts: Sequence[Prompt], rollouts: Rollouts) -> list[Judgement]:
        """Judge every completion.

        Args:
            prompts: as they were sampled from.
            rollouts: their completions.

        Returns:
            One judgement a completion, in their order.
        """
        samples = zip(rollouts.completions, rollouts.finished, strict=True)
        return [
            self._judge(
                prompts[i // rollouts.group_size], self.read(completion, finished=finished), finished=finished
            )
            for i, (completion, finished) in enumerate(samples)
        ]

    def _judge(self, prompt: Prompt, completion: str, *, finished: bool) -> Judgement:
        return judge(
            completion,
            ground_truth=prompt.ground_truth,
            dataset=prompt.dataset,
            finished=finished,
            config=self.config,
            verifiers=self.verifiers,
        )


@dataclass
class Experience:
    """The rows of one step that carry a gradient, on this rank, with the counts that divide the loss.

    Attributes:
        examples: prompt and completion, completions trained; each different one once.
        advantage_N: of every row.
        copies_N: how many of the samples each row stands for.
        sampler_logprobs: of every completion token, as the sampler saw it.
        num_sequences: completions that the loss is divided by, over all ranks.
        num_tokens: their tokens, over all ranks.
        parts: rows of every micro-batch; as many on every rank, empty ones at the end.
        metrics: what the step's completions were like, over all ranks.
        old_logprobs: by micro-batch, under the policy before the step's first update; filled by it.
        reference_logprobs: by micro-batch, under the reference; filled at the first use.
    """

    examples: list[Example]
    advantage_N: Tensor
    copies_N: Tensor
    sampler_logprobs: list[list[float]]
    num_sequences: int
    num_tokens: int
    parts: list[list[int]]
    metrics: dict[str, float]
    old_logprobs: dict[int, Tensor] = field(default_factory=dict)
    reference_logprobs: dict[int, Tensor] = field(default_factory=dict)


def collect_experience(
    rollouts: Rollouts,
    judgements: Sequence[Judgement],
    *,
    advantage: AdvantageKind,
    skip_zero_variance: bool,
    has_divergence: bool,
    micro_batch_tokens: int,
    world: World,
) -> Experience:
    """Compare completions within their groups and keep what carries a gradient; all ranks call this.

    Rewards must be a function of prompt and completion, as verifiers promise.

    Args:
        rollouts: this rank's completions.
        judgements: of each of them.
        advantage: how rewards are compared.
        skip_zero_variance: leave groups of equal rewards out of the denominators.
        has_divergence: every counted row carries a gradient, that of the divergence from the reference;
            otherwise those without advantage do not, and are not computed.
        micro_batch_tokens: most tokens of a micro-batch.
        world: ranks.

    Returns:
        Rows, denominators, metrics.
    """
    group_size = rollouts.group_size
    shape = (len(rollouts.prompts), group_size)
    reward_PG = torch.tensor([x.reward for x in judgements], dtype=torch.float64).view(shape)
    advantage_PG = group_advantages(reward_PG, kind=advantage)
    is_varied_P1 = (reward_PG != reward_PG[:, :1]).any(1, keepdim=True)
    is_counted_PG = (is_varied_P1 | (not skip_zero_variance)).expand_as(reward_PG)
    is_computed_PG = is_counted_PG & (advantage_PG.ne(0) | has_divergence)
    length_PG = torch.tensor([len(x) for x in rollouts.completions]).view(shape)
    # A sure policy says the same again and again: equal completions of a prompt have equal rewards, hence
    # equal gradients, and are computed once.
    copies: dict[tuple[int, ...], list[int]] = {}
    for i in is_computed_PG.flatten().nonzero().flatten().tolist():
        copies.setdefault((i // group_size, *rollouts.completions[i]), []).append(i)
    rows = [same[0] for same in copies.values()]
    examples = [join(rollouts.prompts[i // group_size], rollouts.completions[i]) for i in rows]
    parts = cut([example.length for example in examples], max_tokens=micro_batch_tokens)
    num_parts = [0.0] * world.size
    num_parts[world.rank] = float(len(parts))
    names = ("samples", "groups", "tokens", "sequences", "counted_tokens", "reward", "reward_std",
             "uniform", "correct", "formatted", "cut_off", "logprob")  # fmt: skip
    sums = sum_over_ranks(
        world,
        [
            reward_PG.numel(),
            len(reward_PG),
            int(length_PG.sum()),
            int(is_counted_PG.sum()),
            int(length_PG[is_counted_PG].sum()),
            float(reward_PG.sum()),
            float(reward_PG.std(1).sum()),
            int((~is_varied_P1).sum()),
            sum(x.verdict.correct for x in judgements),
            sum(x.verdict.formatted for x in judgements),
            sum(not x for x in rollouts.finished),
            sum(sum(x) for x in rollouts.logprobs),
            *num_parts,
        ],
    )
    total = dict(zip(names, sums, strict=False))
    parts += [[] for _ in range(int(max(sums[len(names) :])) - len(parts))]
    return Experience(
        examples=examples,
        advantage_N=advantage_PG.flatten()[rows].float().to(world.device),
        copies_N=torch.tensor(
            [len(same) for same in copies.values()], dtype=torch.int64, device=world.device
        ),
        sampler_logprobs=[rollouts.logprobs[i] for i in rows],
        num_sequences=int(total["sequences"]),
        num_tokens=int(total["counted_tokens"]),
        parts=parts,
        metrics={
            "reward": total["reward"] / total["samples"],
            "reward_std": total["reward_std"] / total["groups"],
            "frac_reward_zero_std": total["uniform"] / total["groups"],
            "accuracy": total["correct"] / total["samples"],
            "formatted": total["formatted"] / total["samples"],
            "entropy": -total["logprob"] / total["tokens"],
            "completions/mean_length": total["tokens"] / total["samples"],
            "completions/clipped_ratio": total["cut_off"] / total["samples"],
        },
    )
