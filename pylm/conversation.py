"""A model at the terminal: it continues texts, answers messages, talks."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import torch

from pylm.data.chat import END_OF_TEXT, ChatTemplate, Message, get_template, recognise_template
from pylm.errors import InputError
from pylm.model.generate import generate, stream
from pylm.model.hf import load_model
from pylm.model.transformer import Transformer
from pylm.text import Tokenizer

_STAGES = ("rlvr", "dpo", "sft", "pretrain")


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
        max_new_tokens: most tokens of an answer, its end included.
        temperature: divides the logits; 0 takes the likeliest token.
        top_p: sample among the fewest likeliest tokens that hold this share of the mass.
        seed: decides the samples.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Speaker:
    """A model with what it needs to read and write.

    Attributes:
        model: in evaluation mode, on the GPU where there is one.
        tokenizer: its tokenizer.
        template: how conversations are laid out.
    """

    model: Transformer
    tokenizer: Tokenizer
    template: ChatTemplate

    def encode_text(self, text: str) -> list[int]:
        """Encode the beginning of a document: it follows an end of text."""
        return [self.tokenizer.special_tokens[END_OF_TEXT], *self.tokenizer.encode_ordinary(text)]

    def encode_messages(self, messages: Sequence[Message]) -> list[int]:
        """Encode a conversation up to the model's next message."""
        return self.template.render(messages, self.tokenizer, add_generation_prompt=True).ids


def open_speaker(path: Path, *, template: str | None = None) -> Speaker:
    """Load a model for use.

    Args:
        path: folder of a model, or of a run, whose last trained model is taken.
        template: name of a chat template; None for the one that the model was saved with.

    Raises:
        InputError: there is no model, or no such template.
    """
    folders = [path, *(path / stage / "model" for stage in _STAGES)]
    found = next((x for x in folders if (x / "config.json").is_file()), None)
    if found is None:
        raise InputError(f"{path}: no model there; give the folder of a run (runs/NAME) or of a model")
    model, tokenizer = load_model(found, device="cuda" if torch.cuda.is_available() else "cpu")
    if template is not None:
        return Speaker(model, tokenizer, get_template(template))
    return Speaker(model, tokenizer, recognise_template(tokenizer.chat_template))


def continue_texts(speaker: Speaker, texts: Sequence[str], sampling: Sampling) -> list[str]:
    """Go on with beginnings of documents.

    Returns:
        Each text with its continuation.
    """
    prompts = [speaker.encode_text(text) for text in texts]
    # A tuned model ends what it says as it ends a message.
    known = speaker.tokenizer.special_tokens
    stops = [known[name] for name in (END_OF_TEXT, speaker.template.end) if name in known]
    return [text + end for text, end in zip(texts, _complete(speaker, prompts, stops, sampling), strict=True)]


def answer_messages(speaker: Speaker, messages: Sequence[str], sampling: Sampling) -> list[str]:
    """Answer messages, each as a conversation of its own.

    Returns:
        The answers.
    """
    prompts = [speaker.encode_messages([{"role": "user", "content": text}]) for text in messages]
    return _complete(speaker, prompts, speaker.template.stop_ids(speaker.tokenizer), sampling)


def _complete(
    speaker: Speaker, prompts: Sequence[list[int]], stop_ids: Sequence[int], sampling: Sampling
) -> list[str]:
    made = generate(
        speaker.model,
        prompts,
        max_new_tokens=sampling.max_new_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        stop_ids=stop_ids,
        seed=sampling.seed,
    )
    return [
        speaker.tokenizer.decode(ids[:-1] if finished else ids)
        for ids, finished in zip(made.ids, made.finished, strict=True)
    ]


def talk(
    speaker: Speaker,
    sampling: Sampling,
    *,
    system: str | None = None,
    source: TextIO | None = None,
    out: TextIO | None = None,
) -> None:
    """Hold a conversation: a line in, an answer out as it is written, until an empty line or the end.

    When the model's context is full the oldest turns are forgotten.

    Args:
        speaker: the model.
        sampling: how it answers; every turn has its own noise.
        system: a system message to start with.
        source: where lines are read from; standard input by default, with a prompt on a terminal.
        out: where answers are written; standard output by default.
    """
    source, out = source or sys.stdin, out or sys.stdout
    opening: list[Message] = [{"role": "system", "content": system}] if system else []
    turns: list[Message] = []
    for number in range(sys.maxsize):
        if source.isatty():
            out.write("> ")
            out.flush()
        line = source.readline().strip()
        if not line:
            return
        turns.append({"role": "user", "content": line})
        room = speaker.model.config.max_seq_len - sampling.max_new_tokens
        while len(prompt := speaker.encode_messages([*opening, *turns])) > room and len(turns) > 1:
            turns = turns[2:]
            out.write("(the oldest turn no longer fits and is forgotten)\n")
        answer = ""
        for part in _stream_text(speaker, prompt, sampling, seed=sampling.seed + number):
            answer += part
            out.write(part)
            out.flush()
        out.write("\n")
        out.flush()
        turns.append({"role": "assistant", "content": answer})


def _stream_text(speaker: Speaker, prompt: list[int], sampling: Sampling, *, seed: int) -> Iterator[str]:
    """Write an answer piece by piece, never half a character."""
    text = speaker.tokenizer.stream()
    tokens = stream(
        speaker.model,
        prompt,
        max_new_tokens=sampling.max_new_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        stop_ids=speaker.template.stop_ids(speaker.tokenizer),
        seed=seed,
    )
    for token in tokens:
        yield text.push(token)
    yield text.flush()
