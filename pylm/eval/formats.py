"""Strict checks that a reply has the asked format, by the kind of its row.

A kind is `TASK/FORMAT` (`docstring/json`). A reply is well-formed only if it is the format and nothing
else, on one line, around an answer of the sort that the task asks for (a number, a name, yes or no). Where no
format was named (`free`) the last line is that, and work may stand before it. A well-formed reply may still
be wrong: being right is a comparison of the answers.
"""

import json
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType

_NAME = r"[^\W\d]\w*"
_ANYTHING = re.compile(r"\S(?:.*\S)?")
_ANSWERS: Mapping[str, re.Pattern[str]] = MappingProxyType(
    {
        "function_name": re.compile(_NAME),
        "name_for": re.compile(_NAME),
        "module": re.compile(rf"{_NAME}(?:\.{_NAME})*"),
        "arguments": re.compile(rf"{_NAME}(?:, {_NAME})*"),
        "num_arguments": re.compile(r"[0-9]+"),
        "is_method": re.compile(r"yes|no"),
        "has_docstring": re.compile(r"yes|no"),
        "return_line": re.compile(r"return\b.*"),
        "docstring": _ANYTHING,
        "add": re.compile(r"-?[0-9]+"),
        "subtract": re.compile(r"-?[0-9]+"),
        "multiply": re.compile(r"-?[0-9]+"),
    }
)
_NUMERIC = frozenset({"num_arguments", "add", "subtract", "multiply"})


def _unwrap(before: str, after: str = "") -> Callable[[str, str], str | None]:
    def unwrap(reply: str, task: str) -> str | None:
        if len(reply) >= len(before) + len(after) and reply.startswith(before) and reply.endswith(after):
            return reply[len(before) : len(reply) - len(after)]
        return None

    return unwrap


def _unwrap_json(reply: str, task: str) -> str | None:
    try:
        value = json.loads(reply)
    except (ValueError, RecursionError):  # no JSON, or a number too long to read
        return None
    if not isinstance(value, dict) or list(value) != ["answer"]:
        return None
    answer = value["answer"]
    if task in _NUMERIC:
        return str(answer) if isinstance(answer, int) and not isinstance(answer, bool) else None
    return answer if isinstance(answer, str) else None


_FORMATS: Mapping[str, Callable[[str, str], str | None]] = MappingProxyType(
    {
        "answer": _unwrap("Answer: "),
        "free": _unwrap("Answer: "),
        "bracket": _unwrap("[", "]"),
        "bullet": _unwrap("- "),
        "json": _unwrap_json,
        "upper": lambda reply, task: reply.lower() if reply.isupper() else None,
        "lower": lambda reply, task: reply if reply.islower() else None,
        "line": lambda reply, task: reply,
    }
)


def is_known(kind: str) -> bool:
    """Whether `kind` names a task and a format that this module can check."""
    task, _, form = kind.partition("/")
    return task in _ANSWERS and form in _FORMATS


def read_answer(kind: str, reply: str) -> str | None:
    """Take the answer out of a reply.

    Args:
        kind: `TASK/FORMAT` of the row; must be known (`is_known`).
        reply: what the model wrote, without the token that ended it.

    Returns:
        The bare answer; None where the reply does not have the asked format.

    Example:
        >>> read_answer("num_arguments/json", '{"answer": 3}')
        '3'
        >>> read_answer("num_arguments/json", "Answer: 3") is None
        True
    """
    task, _, form = kind.partition("/")
    if form == "free" and reply == reply.strip():
        reply = reply.split("\n")[-1]
    if reply != reply.strip() or len(reply.splitlines()) != 1:
        return None
    answer = _FORMATS[form](reply, task)
    return answer if answer is not None and _ANSWERS[task].fullmatch(answer) else None
