"""Everything that is measured of a stage's model, in one file: `eval/STAGE.json`."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from pylm.config import Config
from pylm.data.chat import (
    END_OF_TEXT,
    ChatTemplate,
    get_template,
    read_chat_rows,
    read_preference_rows,
    read_verifiable_rows,
)
from pylm.errors import InputError
from pylm.eval.bits_per_byte import bits_per_byte, sample_texts
from pylm.eval.compare import bootstrap_ratio
from pylm.eval.compression import compress
from pylm.eval.preferences import prefers_chosen
from pylm.eval.tasks import Item, first_of_each, run_task, run_verifiable
from pylm.files import read_json, write_json
from pylm.model.generate import generate
from pylm.model.hf import load_model
from pylm.model.transformer import Transformer
from pylm.post.accuracy import Accuracy, accuracy_by_kind

if TYPE_CHECKING:
    from pylm.text import Tokenizer


class EvalConfig(Config):
    """What is measured, and on how much."""

    seq_len: int = Field(default=256, ge=1)
    """Longest context for bits per byte, in tokens: that of pretraining. No longer than the model's."""
    stride: int = Field(default=192, ge=1)
    """Advance of its windows: every token has at least `seq_len - stride` tokens of context."""
    max_bytes_pretrain: int | None = Field(default=600_000, ge=1)
    """Most held-out text for the stage `pretrain`, in bytes; None takes all. A sample is a part of any
    larger sample of the same seed."""
    max_bytes: int | None = Field(default=150_000, ge=1)
    """The same for every other stage."""
    batch_size: int = Field(default=64, ge=1)
    """Prompts, or a quarter as many windows, at a time. Changes speed and memory only."""
    template: str = "pylm"
    """Chat template of the prompts."""
    max_sft_rows: int | None = Field(default=400, ge=1)
    """Held-out instructions that are asked at most, the first of the file; None takes all."""
    max_sft_tokens: int = Field(default=40, ge=1)
    """Longest answer to an instruction, in tokens."""
    max_verifiable_rows: int | None = Field(default=1000, ge=1)
    """Held-out problems that are asked at most, the first of the file; None takes all."""
    max_verifiable_tokens: int = Field(default=12, ge=1)
    """Longest answer to a problem, in tokens."""
    max_preference_rows: int | None = Field(default=250, ge=1)
    """Held-out pairs that are compared at most, the first of the file; None takes all."""
    num_samples: int = Field(default=8, ge=0)
    """Answers to keep for the reader: the first held-out row of each task."""
    texts: tuple[str, ...] = ("def fibonacci(n):\n", 'class Stack:\n    """', "import os\nimport sys\n\n")
    """Beginnings that the model goes on with, for the reader."""
    text_tokens: int = Field(default=64, ge=1)
    """Tokens that each beginning is continued by."""
    text_temperature: float = Field(default=0.7, ge=0)
    """Temperature of these continuations; answers are greedy."""


def evaluate(
    config: EvalConfig,
    *,
    model_dir: Path,
    heldout_documents: Path,
    rows: Path,
    out_json: Path,
    stage: str,
    seed: int,
) -> dict[str, float]:
    """Measure one stage's model and write the figures.

    Bits per byte and the compressors on the same text; answers in the asked format and right answers to
    held-out instructions; right answers to held-out problems; how often the better answer of a held-out
    pair is the likelier one; what the model writes for fixed prompts. Each figure stands with its 95 %
    interval, and each share with its parts and with the outcome of every item, a string of 0 and 1 in the
    order of the row file, so that stages can be compared item by item.

    Args:
        config: what is measured.
        model_dir: folder of the model.
        heldout_documents: Parquet file of documents (columns `id`, `text`).
        rows: folder with `{sft,verifiable,preference}.heldout.jsonl`; what is not there is not asked.
        out_json: file to write.
        stage: name of the stage.
        seed: of the text sample, the resampling and the continuations.

    Returns:
        The figures without their intervals: `bits_per_byte`, and the shares `format` (answers in the asked
        format), `exact_match` (right answers in the asked format), `arithmetic` and `preference`.

    Raises:
        InputError: a file cannot be read, or a setting does not fit the model.
    """
    template = get_template(config.template)
    model, tokenizer = load_model(model_dir)
    model.eval()
    longest = model.config.max_seq_len
    if config.seq_len > longest or config.stride > config.seq_len:
        raise InputError(
            f"eval.seq_len must be in [stride={config.stride}, {longest}] (the model's max_seq_len), "
            f"got {config.seq_len}"
        )
    clock = _Clock()
    with clock.part("bits_per_byte"):
        measured = _measure_text(config, model, tokenizer, heldout_documents, stage=stage, seed=seed)
    with clock.part("sft"):
        instructions = _ask_instructions(config, model, tokenizer, template, rows)
    with clock.part("arithmetic"):
        problems = _ask_problems(config, model, tokenizer, template, rows)
    with clock.part("preference"):
        preferred = _ask_preferences(config, model, tokenizer, template, rows)
    with clock.part("texts"):
        texts = _continue_texts(config, model, tokenizer, template, seed=seed)
    shown = first_of_each(problems, max_items=2, by_format=True)
    shown += first_of_each(instructions, max_items=max(0, config.num_samples - len(shown)))
    result: dict[str, object] = {
        "stage": stage,
        "seed": seed,
        "model": {
            "num_params": model.num_params(),
            "num_params_non_embedding": model.num_params(non_embedding=True),
            "vocab_size": tokenizer.vocab_size,
        },
        **measured,
        **_summarize_instructions(instructions),
        **(
            {"arithmetic": _share([(item.kind, item.correct) for item in problems], by_family=1)}
            if problems
            else {}
        ),
        **({"preference": _share(preferred, by_fault=0)} if preferred else {}),
        "samples": [*texts, *map(_show, shown[: config.num_samples])],
        "elapsed_s": clock.elapsed_s,
    }
    write_json(out_json, result)
    return read_figures(out_json)


def read_figures(path: Path) -> dict[str, float]:
    """Read the figures of `eval/STAGE.json` without their intervals."""
    return {
        name: value["value"]
        for name, value in read_json(path).items()
        if isinstance(value, dict) and "value" in value
    }


class _Clock:
    """Takes the time of the parts."""

    def __init__(self) -> None:
        self.elapsed_s: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.elapsed_s[name] = round(time.perf_counter() - start, 3)


def _measure_text(
    config: EvalConfig, model: Transformer, tokenizer: "Tokenizer", path: Path, *, stage: str, seed: int
) -> dict[str, object]:
    names, texts = _read_documents(path)
    max_bytes = config.max_bytes_pretrain if stage == "pretrain" else config.max_bytes
    taken = [(i, text) for i, text in sample_texts(texts, max_bytes=max_bytes, seed=seed) if text]
    if not taken:
        raise InputError(
            f"{path}: no held-out document with text (of {len(texts)}); give more documents, or raise "
            "prepare.heldout_fraction"
        )
    chosen = [text for _, text in taken]
    measured = bits_per_byte(
        model,
        tokenizer,
        chosen,
        seq_len=config.seq_len,
        stride=config.stride,
        batch_size=max(1, config.batch_size // 4),
    )
    estimate = bootstrap_ratio(measured.bits, measured.num_bytes, seed=seed)
    return {
        "bits_per_byte": {
            **estimate.to_json(),
            "num_documents": len(chosen),
            "num_bytes": sum(measured.num_bytes),
            "num_tokens": sum(measured.num_tokens),
            "of_documents": len(texts),
            "of_bytes": sum(len(text.encode("utf-8")) for text in texts),
            "seq_len": config.seq_len,
            "stride": config.stride,
            "documents": [
                {"id": names[i], "bits": bits, "num_bytes": num_bytes}
                for (i, _), bits, num_bytes in zip(taken, measured.bits, measured.num_bytes, strict=True)
            ],
        },
        "compression": compress(chosen).to_json(),
    }


def _read_documents(path: Path) -> tuple[list[str], list[str]]:
    try:
        table = pq.read_table(path, columns=["id", "text"])
    except (OSError, pa.ArrowException) as error:
        reason = str(error).split("\n", maxsplit=1)[0]
        raise InputError(f"{path}: cannot read the columns id and text of documents: {reason}") from error
    return table.column("id").to_pylist(), table.column("text").to_pylist()


def _ask_instructions(
    config: EvalConfig, model: Transformer, tokenizer: "Tokenizer", template: ChatTemplate, rows: Path
) -> list[Item]:
    path = rows / "sft.heldout.jsonl"
    if not path.is_file():
        return []
    return run_task(
        model,
        tokenizer,
        read_chat_rows([path])[: config.max_sft_rows],
        template,
        max_new_tokens=config.max_sft_tokens,
        batch_size=config.batch_size,
    )


def _ask_problems(
    config: EvalConfig, model: Transformer, tokenizer: "Tokenizer", template: ChatTemplate, rows: Path
) -> list[Item]:
    path = rows / "verifiable.heldout.jsonl"
    if not path.is_file():
        return []
    return run_verifiable(
        model,
        tokenizer,
        read_verifiable_rows([path])[: config.max_verifiable_rows],
        template,
        max_new_tokens=config.max_verifiable_tokens,
        batch_size=config.batch_size,
    )


def _ask_preferences(
    config: EvalConfig, model: Transformer, tokenizer: "Tokenizer", template: ChatTemplate, rows: Path
) -> list[tuple[str, bool]]:
    path = rows / "preference.heldout.jsonl"
    if not path.is_file():
        return []
    pairs = read_preference_rows([path])[: config.max_preference_rows]
    outcomes = prefers_chosen(model, tokenizer, pairs, template, batch_size=config.batch_size)
    return [(pair.kind, outcome) for pair, outcome in zip(pairs, outcomes, strict=True)]


def _summarize_instructions(items: Sequence[Item]) -> dict[str, object]:
    """Count answers in the asked format, where the kind has one that can be checked, and right answers."""
    formats = [(item.kind, item.formatted) for item in items if item.formatted is not None]
    summary: dict[str, object] = {"format": _share(formats, by_task=0, by_format=1)} if formats else {}
    if items:
        exact = [(item.kind, item.correct) for item in items]
        summary["exact_match"] = _share(exact, by_task=0, by_format=1)
    return summary


def _share(outcomes: Sequence[tuple[str, bool]], **groups: int) -> dict[str, object]:
    """Count successes: of all items, and in groups by what is before (0) or after (1) the kind's slash."""
    return {
        **_estimate(Accuracy(sum(success for _, success in outcomes), len(outcomes))),
        **{
            name: {
                key: _estimate(accuracy)
                for key, accuracy in accuracy_by_kind(
                    (kind.partition("/")[2 * part], success) for kind, success in outcomes
                ).items()
            }
            for name, part in groups.items()
        },
        "outcomes": "".join("01"[success] for _, success in outcomes),
    }


def _estimate(accuracy: Accuracy) -> dict[str, float | int]:
    low, high = accuracy.interval
    return {
        "value": accuracy.value,
        "low": low,
        "high": high,
        "num_correct": accuracy.num_correct,
        "num_total": accuracy.num_total,
    }


def _continue_texts(
    config: EvalConfig, model: Transformer, tokenizer: "Tokenizer", template: ChatTemplate, *, seed: int
) -> list[dict[str, object]]:
    if not config.texts:
        return []
    end = tokenizer.special_tokens[END_OF_TEXT]
    made = generate(
        model,
        [[end, *tokenizer.encode_ordinary(text)] for text in config.texts],
        max_new_tokens=config.text_tokens,
        temperature=config.text_temperature,
        stop_ids=template.stop_ids(tokenizer),
        seed=seed,
    )
    return [
        {
            "kind": "text",
            "prompt": text,
            "completion": tokenizer.decode(ids[:-1] if finished else ids),
            "finished": finished,
        }
        for text, ids, finished in zip(config.texts, made.ids, made.finished, strict=True)
    ]


def _show(item: Item) -> dict[str, object]:
    return {
        "kind": item.kind,
        "prompt": item.prompt,
        "expected": item.expected,
        "completion": item.reply,
        "finished": item.finished,
        "formatted": item.formatted,
        "correct": item.correct,
    }
