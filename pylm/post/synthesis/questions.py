"""What is asked about a function or an import, and the formats an answer can be asked in.

A *candidate* is a task on a piece of code with its right answer. A *prompt* words the question, names
one of the formats that suit the answer, and shows the code. The kind of a row is `TASK/FORMAT`.
"""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass

from pylm.post.synthesis.source_code import Function, Import

_TEXT_FORMATS = ("answer", "bracket", "json", "bullet")
_YES_NO_FORMATS = ("answer", "json", "upper", "lower")

_INSTRUCTIONS: dict[str, tuple[str, ...]] = {
    "answer": ("Reply as Answer: X.", "Start with Answer:."),
    "bracket": ("Reply in square brackets.", "Reply as [X]."),
    "json": ('Reply as JSON: {"answer": X}.', "Reply as a JSON object."),
    "bullet": ("Reply with one bullet.", "Reply as a list item: - X."),
    "upper": ("Reply YES or NO.", "Reply in capitals."),
    "lower": ("Reply yes or no.", "Reply in lower case."),
    "line": ("Reply with that line only.", "Reply with the line, nothing else."),
}


@dataclass(frozen=True)
class Task:
    """A question about a piece of code: its wordings, the formats of its answer, its share of the rows."""

    name: str
    questions: tuple[str, ...]
    formats: tuple[str, ...]
    weight: float


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            "function_name",
            ("What is the name of this function?", "Name this function.", "Which function is defined here?"),
            _TEXT_FORMATS,
            3.0,
        ),
        Task(
            "arguments",
            (
                "List the arguments of this function.",
                "What are the arguments?",
                "Which arguments does it take?",
            ),
            _TEXT_FORMATS,
            2.0,
        ),
        Task(
            "num_arguments",
            ("How many arguments does this function take?", "Count the arguments."),
            _TEXT_FORMATS,
            1.0,
        ),
        Task(
            "docstring",
            ("What does this function do?", "Say what this function does.", "What is this function for?"),
            _TEXT_FORMATS,
            2.5,
        ),
        Task(
            "name_for",
            ("Give a name for a function that does this.", "How would you name a function for this?"),
            _TEXT_FORMATS,
            1.0,
        ),
        Task(
            "is_method", ("Is this a method?", "Does this function take self or cls?"), _YES_NO_FORMATS, 1.0
        ),
        Task("has_docstring", ("Does it have a docstring?", "Is there a docstring?"), _YES_NO_FORMATS, 1.0),
        Task(
            "return_line",
            ("Write the missing return line.", "What is the last line of this function?"),
            ("line",),
            1.0,
        ),
        Task("module", ("Which module is imported?", "Name the imported module."), _TEXT_FORMATS, 1.0),
    )
}


@dataclass(frozen=True)
class Candidate:
    """A task on a piece of code, with its right answer."""

    task: str
    code: str
    answer: str


@dataclass(frozen=True)
class Prompt:
    """A candidate put into words.

    Attributes:
        text: what the user says.
        answer: the right answer, bare.
        format: the asked format.
        task: name of the task (or of the arithmetic operation).
        code: the code that `text` shows; empty for arithmetic.
        work: steps that the reply shows before the answer; none by default.
    """

    text: str
    answer: str
    format: str
    task: str
    code: str
    work: str = ""

    @property
    def kind(self) -> str:
        """Name of the row's family, `TASK/FORMAT`."""
        return f"{self.task}/{self.format}"

    @property
    def reply(self) -> str:
        """The right answer in the asked format, after the work."""
        answer = render(self.format, self.answer)
        return f"{self.work}\n{answer}" if self.work else answer


def render(form: str, answer: str) -> str:
    """Put a bare answer into a format.

    Args:
        form: a key of the formats: answer, free, bracket, json, bullet, upper, lower or line.
        answer: the bare answer, one line.

    Returns:
        The reply, one line.
    """
    if form in ("answer", "free"):  # free: anything may come before
        return f"Answer: {answer}"
    if form == "bracket":
        return f"[{answer}]"
    if form == "json":
        return json.dumps({"answer": int(answer) if answer.isdecimal() else answer}, ensure_ascii=False)
    if form == "bullet":
        return f"- {answer}"
    if form == "upper":
        return answer.upper()
    assert form in ("lower", "line"), form
    return answer


def instruct(form: str, rng: random.Random) -> str:
    """Word the wish for a format."""
    return rng.choice(_INSTRUCTIONS[form])


def ask(candidate: Candidate, rng: random.Random) -> Prompt:
    """Word a candidate: a question, a format that can hold its answer, the code."""
    task = TASKS[candidate.task]
    formats = [form for form in task.formats if _fits(form, candidate.answer)]
    form = rng.choice(formats)
    text = f"{rng.choice(task.questions)} {instruct(form, rng)}\n\n{candidate.code}"
    return Prompt(text=text, answer=candidate.answer, format=form, task=candidate.task, code=candidate.code)


def list_candidates(function: Function, *, max_answer_characters: int) -> Iterator[Candidate]:
    """Yield every question that can be asked about a function and has one right answer."""
    code = function.code
    yield Candidate("function_name", code, function.name)
    if function.arguments:
        yield Candidate("arguments", code, ", ".join(function.arguments))
    yield Candidate("num_arguments", code, str(len(function.arguments)))
    yield Candidate("is_method", code, "yes" if function.takes_self else "no")
    if function.docstring is not None or function.is_whole:
        yield Candidate("has_docstring", code, "no" if function.docstring is None else "yes")
    docstring = function.docstring
    if docstring is not None and function.is_summary and len(docstring) >= 12 and docstring in code:
        if len(docstring) <= max_answer_characters:
            yield Candidate("docstring", code, docstring)
        if not function.name.startswith("__") and len(function.name) >= 4:
            yield Candidate("name_for", docstring, function.name)
    body, _, last = code.rpartition("\n")
    if function.is_whole and body.count("\n") >= 1 and last.startswith("    return "):
        yield Candidate("return_line", body.rstrip(), last.strip())


def import_candidate(statement: Import) -> Candidate:
    """Ask which module an import names."""
    return Candidate("module", statement.line, statement.module)


def _fits(form: str, answer: str) -> bool:
    if form == "bracket":
        return "[" not in answer and "]" not in answer
    if form == "json":
        return json.dumps(answer) == f'"{answer}"'
    return True
