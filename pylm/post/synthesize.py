"""Rows for post-training, made from source code and generated arithmetic.

Three kinds of rows, each with a train and a held-out file: questions about functions with the answer in
an asked format (SFT), right against spoilt answers (preference), arithmetic with a checkable result
(verifiable). Held-out rows come from held-out documents and held-out problems only: no code, docstring
or problem that is asked about in a held-out file is asked about in a training file.
"""

import gc
import json
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
from pydantic import Field

from pylm.config import Config
from pylm.errors import InputError
from pylm.files import atomic_path
from pylm.post.synthesis.arithmetic import (
    ArithmeticConfig,
    Operation,
    Problem,
    Question,
    sample_questions,
    split_problems,
    work_out,
)
from pylm.post.synthesis.faults import FAULTS, spoil
from pylm.post.synthesis.questions import (
    TASKS,
    Candidate,
    Prompt,
    ask,
    import_candidate,
    instruct,
    list_candidates,
)
from pylm.post.synthesis.source_code import find_functions, find_imports, parse_source

Row = dict[str, object]


class SynthesizeConfig(Config):
    """How many rows to make and how long they may be."""

    sft_train: int = Field(default=12_000, ge=1)
    """SFT rows for training, arithmetic included."""
    sft_heldout: int = Field(default=500, ge=1)
    """Held-out SFT rows, arithmetic included."""
    preference_train: int = Field(default=4_000, ge=1)
    """Preference pairs for training."""
    preference_heldout: int = Field(default=500, ge=1)
    """Held-out preference pairs."""
    verifiable_train: int = Field(default=4_000, ge=1)
    """Arithmetic prompts for training by reinforcement."""
    verifiable_heldout: int = Field(default=1_000, ge=1)
    """Held-out arithmetic prompts."""
    arithmetic_share: float = Field(default=0.12, ge=0, le=1)
    """Share of arithmetic among the SFT rows: enough to learn the form, so that reinforcement has
    something left to teach."""
    named_format_share: float = Field(default=0.5, ge=0, le=1)
    """Share of the arithmetic prompts that name the format of the answer."""
    worked_share: float = Field(default=0.0, ge=0, le=1)
    """Of the arithmetic SFT rows whose prompt names no format, the share that works the problem out before it
    answers, as far as no held-out problem is solved on the way. Above 0, verifiable prompts name no format
    and are judged by their last answer, so that reinforcement can find out that work pays."""
    preference_arithmetic_share: float = Field(default=0.1, ge=0, le=1)
    """Share of arithmetic among the preference pairs (faults of form only)."""
    arithmetic: ArithmeticConfig = ArithmeticConfig()
    """Which problems there are."""
    max_code_characters: int = Field(default=240, ge=40)
    """Longest piece of code in a prompt; functions are cut at a line's end."""
    max_answer_characters: int = Field(default=72, ge=12)
    """Longest answer that is asked for (a docstring's first line, a return line)."""
    max_same_name: int = Field(default=20, ge=1)
    """Functions of one name that are used at most, lest `__init__` be the answer to everything."""


@dataclass(frozen=True)
class _Split:
    """What one side of the split offers: questions about code by task, arithmetic problems."""

    candidates: dict[str, list[Candidate]]
    codes: frozenset[str]
    problems: dict[Operation, list[Problem]]
    hidden: frozenset[Problem]
    num_documents: int
    num_parsed: int
    num_functions: int


def synthesize(
    config: SynthesizeConfig, *, documents: Path, heldout_documents: Path, out: Path, seed: int
) -> dict[str, int]:
    """Write the six row files.

    The same configuration, documents and seed give the same bytes.

    Args:
        config: counts and lengths.
        documents: Parquet file of training documents (column `text`); those that are not Python source
            are passed over.
        heldout_documents: Parquet file of held-out documents.
        out: folder to write `{sft,preference,verifiable}.{train,heldout}.jsonl` into.
        seed: decides everything that is left to chance.

    Returns:
        Counts: rows by file (`sft.train`), rows by file and kind (`sft.train/docstring/json`), and of
        both splits the documents, those that are Python source, and the functions used.

    Raises:
        InputError: a file cannot be read, or holds too little Python source for the counts asked for.
    """
    train_problems, heldout_problems = split_problems(config.arithmetic, random.Random(f"{seed}/problems"))
    train = _read_split(
        config,
        documents,
        train_problems,
        random.Random(f"{seed}/train"),
        known=frozenset(),
        hidden=frozenset(problem for pool in heldout_problems.values() for problem in pool),
    )
    heldout = _read_split(
        config,
        heldout_documents,
        heldout_problems,
        random.Random(f"{seed}/heldout"),
        known=train.codes,
        hidden=frozenset(),
    )
    counts: Counter[str] = Counter()
    plans = (
        ("train", train, documents, config.sft_train, config.preference_train, config.verifiable_train),
        (
            "heldout",
            heldout,
            heldout_documents,
            config.sft_heldout,
            config.preference_heldout,
            config.verifiable_heldout,
        ),
    )
    for name, split, source, num_sft, num_preference, num_verifiable in plans:
        for part in ("sft", "preference", "verifiable"):
            rng = random.Random(f"{seed}/{name}/{part}")
            if part == "sft":
                rows = _sft_rows(config, split, num_sft, rng, source=source)
            elif part == "preference":
                rows = _preference_rows(config, split, num_preference, rng, source=source)
            else:
                rows = _verifiable_rows(config, split, num_verifiable, rng)
            _write_rows(out / f"{part}.{name}.jsonl", rows)
            counts[f"{part}.{name}"] = len(rows)
            counts.update(f"{part}.{name}/{row.get('kind', row.get('dataset'))}" for row in rows)
        counts[f"documents.{name}"] = split.num_documents
        counts[f"documents.{name}/python"] = split.num_parsed
        counts[f"functions.{name}"] = split.num_functions
    return dict(sorted(counts.items()))


def _read_split(
    config: SynthesizeConfig,
    path: Path,
    problems: dict[Operation, list[Problem]],
    rng: random.Random,
    *,
    known: frozenset[str],
    hidden: frozenset[Problem],
) -> _Split:
    """Collect the questions that a file's documents allow, each once, none about code that is `known`.

    No row may show the result of a `hidden` problem, not even on the way.
    """
    candidates: dict[str, list[Candidate]] = {task: [] for task in TASKS}
    seen: set[tuple[str, str]] = set()
    num_by_name: Counter[str] = Counter()
    num_documents = num_parsed = num_functions = 0
    for text in _read_texts(path):
        num_documents += 1
        with _paused_collector():
            tree = parse_source(text)
        if tree is None:
            continue
        num_parsed += 1
        found: list[Candidate] = [
            import_candidate(statement)
            for statement in find_imports(tree, text, max_characters=config.max_code_characters)
        ]
        for function in find_functions(tree, text, max_characters=config.max_code_characters):
            num_by_name[function.name] += 1
            if num_by_name[function.name] <= config.max_same_name:
                num_functions += 1
                found += list_candidates(function, max_answer_characters=config.max_answer_characters)
        for candidate in found:
            key = (candidate.task, candidate.code)
            if key in seen or candidate.code in known:
                continue
            if len(candidate.answer) <= config.max_answer_characters:
                seen.add(key)
                candidates[candidate.task].append(candidate)
    for task in ("is_method", "has_docstring"):
        candidates[task] = _balance(candidates[task], rng)
    for pool in candidates.values():
        rng.shuffle(pool)
    codes = frozenset(code for _, code in seen)
    return _Split(candidates, codes, problems, hidden, num_documents, num_parsed, num_functions)


@contextmanager
def _paused_collector() -> Iterator[None]:
    """Keep the garbage collector from walking all that is held, again and again, while a tree is built.

    A tree has no cycles, so nothing is left for the collector. Reading the standard library's questions
    takes a third of the time.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _read_texts(path: Path) -> Iterator[str]:
    try:
        file = pq.ParquetFile(path)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read documents from {path}: {error}; run `pylm prepare` first") from error
    with file:
        if "text" not in file.schema_arrow.names:
            raise InputError(
                f"{path}: expected a column 'text', got {file.schema_arrow.names}; give a file of documents"
            )
        for batch in file.iter_batches(columns=["text"]):
            yield from batch.column(0).to_pylist()


def _balance(candidates: list[Candidate], rng: random.Random) -> list[Candidate]:
    """Keep as many questions with the answer yes as with the answer no."""
    yes = [candidate for candidate in candidates if candidate.answer == "yes"]
    no = [candidate for candidate in candidates if candidate.answer == "no"]
    size = min(len(yes), len(no))
    return rng.sample(yes, size) + rng.sample(no, size)


def _sft_rows(
    config: SynthesizeConfig, split: _Split, num_rows: int, rng: random.Random, *, source: Path
) -> list[Row]:
    num_arithmetic = round(config.arithmetic_share * num_rows)
    prompts = _arithmetic_prompts(config, split, num_arithmetic, rng, worked_share=config.worked_share)
    weights = {task.name: task.weight for task in TASKS.values()}
    prompts += _code_prompts(split, num_rows - num_arithmetic, weights, rng, source=source, field="sft")
    rng.shuffle(prompts)
    return [
        {"messages": [_user(prompt), {"role": "assistant", "content": prompt.reply}], "kind": prompt.kind}
        for prompt in prompts
    ]


def _preference_rows(
    config: SynthesizeConfig, split: _Split, num_rows: int, rng: random.Random, *, source: Path
) -> list[Row]:
    """Pair right replies with spoilt ones, going round the faults so that each has its share."""
    num_arithmetic = round(config.preference_arithmetic_share * num_rows)
    num_code = num_rows - num_arithmetic
    prompts = _arithmetic_prompts(config, split, num_arithmetic, rng)
    weights = {
        task.name: 0.0 if task.name in ("is_method", "has_docstring") else task.weight
        for task in TASKS.values()
    }
    prompts += _code_prompts(split, num_code, weights, rng, source=source, field="preference")
    rng.shuffle(prompts)
    answers = {task: [candidate.answer for candidate in pool] for task, pool in split.candidates.items()}
    rows: list[Row] = []
    num_by_fault: Counter[str] = Counter()
    for prompt in prompts:
        others = answers.get(prompt.task, [])
        for fault in sorted(FAULTS, key=lambda fault: num_by_fault[fault]):
            reply = spoil(prompt, fault, others, rng)
            if reply is not None and reply != prompt.reply:
                num_by_fault[fault] += 1
                rows.append(
                    {
                        "prompt": [_user(prompt)],
                        "chosen": [{"role": "assistant", "content": prompt.reply}],
                        "rejected": [{"role": "assistant", "content": reply}],
                        "kind": f"{fault}/{prompt.task}",
                    }
                )
                break
    return rows


def _verifiable_rows(config: SynthesizeConfig, split: _Split, num_rows: int, rng: random.Random) -> list[Row]:
    is_free = config.worked_share > 0
    verifier = "arithmetic-free" if is_free else "arithmetic"
    return [
        {
            "messages": [
                {
                    "role": "user",
                    "content": question.text if is_free else _word_question(config, question, rng)[0],
                }
            ],
            "ground_truth": str(question.problem.answer),
            "dataset": f"{verifier}/{question.problem.operation}",
        }
        for question in _questions(config, split, num_rows, rng, field="verifiable")
    ]


def _questions(
    config: SynthesizeConfig, split: _Split, num_questions: int, rng: random.Random, *, field: str
) -> list[Question]:
    questions = sample_questions(config.arithmetic, split.problems, num_questions, rng)
    if len(questions) < num_questions:
        raise InputError(
            f"{field}: expected {num_questions} different arithmetic questions, the problems allow "
            f"{len(questions)}; raise arithmetic.add_max or ask for fewer rows"
        )
    return questions


def _arithmetic_prompts(
    config: SynthesizeConfig,
    split: _Split,
    num_prompts: int,
    rng: random.Random,
    *,
    worked_share: float = 0.0,
) -> list[Prompt]:
    prompts = []
    for question in _questions(config, split, num_prompts, rng, field="arithmetic_share"):
        text, form = _word_question(config, question, rng)
        work = work_out(question)
        is_worked = form == "free" and rng.random() < worked_share and split.hidden.isdisjoint(work.steps)
        prompts.append(
            Prompt(
                text=text,
                answer=str(question.problem.answer),
                format=form,
                task=question.problem.operation,
                code="",
                work=work.text if is_worked else "",
            )
        )
    return prompts


def _word_question(config: SynthesizeConfig, question: Question, rng: random.Random) -> tuple[str, str]:
    """Name the format in some of the questions; where none is named, the last line is to be `Answer: X`."""
    if rng.random() < config.named_format_share:
        return f"{question.text} {instruct('answer', rng)}", "answer"
    return question.text, "free"


def _code_prompts(
    split: _Split,
    num_prompts: int,
    weights: Mapping[str, float],
    rng: random.Random,
    *,
    source: Path,
    field: str,
) -> list[Prompt]:
    """Draw candidates without repetition by the tasks' weights; tasks that run dry leave their share."""
    pools = {
        task: rng.sample(split.candidates[task], len(split.candidates[task]))
        for task in weights
        if weights[task]
    }
    available = sum(map(len, pools.values()))
    if available < num_prompts:
        raise InputError(
            f"{source}: {field} rows need {num_prompts} questions about Python functions, its "
            f"{split.num_parsed} Python documents (of {split.num_documents}) allow {available}; "
            f"give more documents or lower the counts"
        )
    prompts: list[Prompt] = []
    while len(prompts) < num_prompts:
        tasks = [task for task, pool in pools.items() if pool]
        task = rng.choices(tasks, weights=[weights[task] for task in tasks])[0]
        prompts.append(ask(pools[task].pop(), rng))
    return prompts


def _user(prompt: Prompt) -> dict[str, str]:
    return {"role": "user", "content": prompt.text}


def _write_rows(path: Path, rows: Sequence[Row]) -> None:
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
