"""Ask a model the rows of a task and judge each answer: its format, and whether it is right."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from pylm.data.chat import ChatRow, ChatTemplate, Message, VerifiableRow
from pylm.errors import InputError
from pylm.eval.formats import is_known, read_answer
from pylm.model.generate import generate
from pylm.model.transformer import Transformer
from pylm.post.verifiers import find_verifier

if TYPE_CHECKING:
    from pylm.text import Tokenizer


@dataclass(frozen=True)
class Reply:
    """What a model wrote.

    Attributes:
        text: without the token that ended it.
        finished: whether the model ended it itself.
    """

    text: str
    finished: bool


@dataclass(frozen=True)
class Item:
    """One row, answered and judged.

    Attributes:
        kind: task family.
        prompt: the last message of the prompt.
        expected: the right reply.
        reply: the model's.
        finished: whether the model ended its reply.
        formatted: whether the reply has the asked format and ends; None where the kind has no format.
        correct: whether the answer is right and in the asked format.
    """

    kind: str
    prompt: str
    expected: str
    reply: str
    finished: bool
    formatted: bool | None
    correct: bool


def answer(
    model: Transformer,
    tokenizer: "Tokenizer",
    prompts: Sequence[Sequence[Message]],
    template: ChatTemplate,
    *,
    max_new_tokens: int,
    batch_size: int = 64,
) -> list[Reply]:
    """Answer prompts greedily.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        prompts: conversations up to the answer.
        template: how they are laid out.
        max_new_tokens: longest answer, the token that ends it included.
        batch_size: prompts at a time; they are batched by length, so little is padded.

    Returns:
        One reply a prompt, in order.

    Raises:
        InputError: a prompt is too long for the model, or does not fit the template.
    """
    encoded = [template.render(prompt, tokenizer, add_generation_prompt=True).ids for prompt in prompts]
    stop_ids = template.stop_ids(tokenizer)
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))
    replies: dict[int, Reply] = {}
    with torch.inference_mode():
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            made = generate(
                model,
                [encoded[i] for i in batch],
                max_new_tokens=max_new_tokens,
                temperature=0.0,
                stop_ids=stop_ids,
            )
            for i, ids, finished in zip(batch, made.ids, made.finished, strict=True):
                replies[i] = Reply(tokenizer.decode(ids[:-1] if finished else ids), finished)
    return [replies[i] for i in range(len(encoded))]


def run_task(
    model: Transformer,
    tokenizer: "Tokenizer",
    rows: Sequence[ChatRow],
    template: ChatTemplate,
    *,
    max_new_tokens: int,
    batch_size: int = 64,
) -> list[Item]:
    """Ask for the last message of each conversation and compare with it.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        rows: conversations that end with the assistant's message. A kind `TASK/FORMAT` has its format
            checked and its bare answer compared; of any other kind the whole reply has to be equal.
        template: how conversations are laid out.
        max_new_tokens: longest answer, the token that ends it included.
        batch_size: prompts at a time.

    Returns:
        One item a row, in order.

    Raises:
        InputError: a conversation that does not end with the assistant, or a prompt too long.
    """
    for row in rows:
        if row.messages[-1]["role"] != "assistant" or len(row.messages) < 2:
            raise InputError(
                f"a row of kind {row.kind!r} must end with the assistant's message after a prompt, got "
                f"{', '.join(message['role'] for message in row.messages)}"
            )
    prompts = [row.messages[:-1] for row in rows]
    replies = answer(
        model, tokenizer, prompts, template, max_new_tokens=max_new_tokens, batch_size=batch_size
    )
    return [_judge(row, reply) for row, reply in zip(rows, replies, strict=True)]


def run_verifiable(
    model: Transformer,
    tokenizer: "Tokenizer",
    rows: Sequence[VerifiableRow],
    template: ChatTemplate,
    *,
    max_new_tokens: int,
    batch_size: int = 64,
) -> list[Item]:
    """Ask problems and let their verifier judge the answers.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        rows: prompts with their ground truth; `dataset` picks the verifier.
        template: how conversations are laid out.
        max_new_tokens: longest answer, the token that ends it included.
        batch_size: prompts at a time.

    Returns:
        One item a row, in order; `kind` is the row's data set.

    Raises:
        InputError: no verifier for a data set, or a prompt too long.
    """
    verifiers = [find_verifier(row.dataset) for row in rows]
    replies = answer(
        model,
        tokenizer,
        [row.messages for row in rows],
        template,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
    )
    items = []
    for row, verifier, reply in zip(rows, verifiers, replies, strict=True):
        verdict = verifier.verify(reply.text, row.ground_truth, finished=reply.finished)
        items.append(
            Item(
                kind=row.dataset,
                prompt=row.messages[-1]["content"],
                expected=row.ground_truth,
                reply=reply.text,
                finished=reply.finished,
                formatted=verdict.formatted,
                correct=verdict.correct,
            )
        )
    return items


def first_of_each(items: Iterable[Item], *, max_items: int, by_format: bool = False) -> list[Item]:
    """Take the first item of each task, in order; `by_format` takes each kind as one of its own."""
    first: dict[str, Item] = {}
    for item in items:
        first.setdefault(item.kind if by_format else item.kind.partition("/")[0], item)
    return list(first.values())[:max_items]


def _judge(row: ChatRow, reply: Reply) -> Item:
    expected = row.messages[-1]["content"]
    formatted: bool | None = None
    if is_known(row.kind):
        given = read_answer(row.kind, reply.text)
        formatted = given is not None and reply.finished
        correct = formatted and given == read_answer(row.kind, expected)
    else:
        correct = reply.finished and reply.text == expected
    return Item(
        kind=row.kind,
        prompt=row.messages[-2]["content"],
        expected=expected,
        reply=reply.text,
        finished=reply.finished,
        formatted=formatted,
        correct=correct,
    )
