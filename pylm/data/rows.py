"""Rows of post-training: conversations, preferences, prompts with a checkable answer, read from files.

Files are JSON lines, a JSON array, or Parquet, plain or compressed (.gz, .zst). The shape of a row is
recognised by its keys, and every row becomes one of three dataclasses. A row that cannot be used stops
the reading with its place and what was expected of it.
"""

import gzip
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NotRequired, TextIO, TypedDict, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from pylm.errors import InputError

Row = TypeVar("Row")


class Message(TypedDict):
    """One message of a conversation."""

    role: str
    """`system`, `user`, `assistant` or `tool`."""
    content: str
    """The text."""
    train: NotRequired[bool]
    """False keeps an assistant's message out of the loss."""


@dataclass(frozen=True)
class ChatRow:
    """A conversation to imitate.

    Attributes:
        messages: at least one of them the assistant's.
        kind: task family, for results by family; the file's name where the row names none.
    """

    messages: tuple[Message, ...]
    kind: str


@dataclass(frozen=True)
class PreferenceRow:
    """A prompt and two answers.

    Attributes:
        prompt: the conversation up to the answer.
        chosen: the better answer.
        rejected: the worse one.
        kind: task family.
    """

    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    kind: str


@dataclass(frozen=True)
class VerifiableRow:
    """A prompt whose answer a program can check.

    Attributes:
        messages: the prompt; the last message is not the assistant's.
        ground_truth: what the verifier compares with; JSON where the row holds more than text.
        dataset: which verifier it is for, and the family for results.
    """

    messages: tuple[Message, ...]
    ground_truth: str
    dataset: str


def read_chat_rows(paths: Sequence[Path]) -> list[ChatRow]:
    """Read conversations.

    Shapes: `messages`; `prompt` + `completion`; `conversations` (ShareGPT); `instruction`, `input`,
    `output` with `system` and `history` (Alpaca). A `tools` column is put before the conversation as part
    of the system's message.

    Args:
        paths: files, read in order.

    Raises:
        InputError: a file or a row cannot be used; names file and line.
    """
    return list(_read(paths, _chat_row))


def read_preference_rows(paths: Sequence[Path]) -> list[PreferenceRow]:
    """Read preferences.

    Shapes: `prompt` (or ShareGPT `conversations`) + `chosen` + `rejected`, where an answer is a string, a
    message, or a list of messages, which may repeat the prompt; `chosen` + `rejected` as whole
    conversations that differ in the last message.

    Args:
        paths: files, read in order.

    Raises:
        InputError: a file or a row cannot be used; names file and line.
    """
    return list(_read(paths, _preference_row))


def read_verifiable_rows(paths: Sequence[Path]) -> list[VerifiableRow]:
    """Read prompts with checkable answers.

    Shapes: `messages` (or `prompt`) + `ground_truth` + `dataset`.

    Args:
        paths: files, read in order.

    Raises:
        InputError: a file or a row cannot be used; names file and line.
    """
    return list(_read(paths, _verifiable_row))


def _read(paths: Sequence[Path], parse: "Callable[[_Fields], Row]") -> Iterator[Row]:
    for path in paths:
        for place, value in _values(Path(path)):
            if not isinstance(value, dict):
                raise InputError(f"{place}: expected a JSON object with named fields, got {_show(value)}")
            kind = Path(path).name.split(".")[0]
            yield parse(_Fields(place, {k: v for k, v in value.items() if v is not None}, kind))


def _values(path: Path) -> Iterator[tuple[str, object]]:
    """Yield (place, value) of every row."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected rows as .jsonl, .json or .parquet")
    suffixes = [suffix for suffix in path.suffixes if suffix not in (".gz", ".zst")]
    suffix = suffixes[-1] if suffixes else ""
    if suffix == ".parquet":
        yield from _parquet_values(path)
    elif suffix in (".jsonl", ".ndjson", ".json"):
        yield from _json_values(path)
    else:
        raise InputError(f"{path}: expected .jsonl, .json (also with .gz or .zst) or .parquet")


def _parquet_values(path: Path) -> Iterator[tuple[str, object]]:
    try:
        number = 0
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for value in batch.to_pylist():
                    number += 1
                    yield f"{path}: row {number}", value
    except pa.ArrowException as error:
        raise InputError(f"{path}: not a readable Parquet file: {_first_line(error)}") from error


def _json_values(path: Path) -> Iterator[tuple[str, object]]:
    number = 0
    try:
        with _open(path) as stream:
            for number, line in enumerate(stream, start=1):
                if number == 1 and line.lstrip("\ufeff \t\r\n").startswith("["):
                    yield from _array_values(path, line.lstrip("\ufeff") + stream.read())
                    return
                if line.strip():
                    yield f"{path}:{number}", json.loads(line.lstrip("\ufeff") if number == 1 else line)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{number}: not JSON at column {error.colno}: {error.msg}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}:{number + 1}: not UTF-8: {error.reason}; convert the file") from error
    except (OSError, EOFError, zstandard.ZstdError) as error:
        raise InputError(f"{path}: cannot be read to its end: {_first_line(error)}") from error


def _array_values(path: Path, text: str) -> Iterator[tuple[str, object]]:
    """Yield the elements of a JSON array one by one, each with the line it starts on."""
    decoder = json.JSONDecoder()
    line, counted = 1, 0
    place = _skip_space(text, text.index("[") + 1)
    while text[place : place + 1] != "]":
        line += text.count("\n", counted, place)
        counted = place
        try:
            value, place = decoder.raw_decode(text, place)
        except json.JSONDecodeError as error:
            raise InputError(
                f"{path}:{error.lineno}: not JSON at column {error.colno}: {error.msg}"
            ) from error
        yield f"{path}:{line}", value
        place = _skip_space(text, place)
        if text[place : place + 1] == ",":
            place = _skip_space(text, place + 1)
        elif text[place : place + 1] != "]":
            line += text.count("\n", counted, place)
            raise InputError(f"{path}:{line}: expected ',' or ']' after a row of the array; is it cut off?")


def _skip_space(text: str, place: int) -> int:
    while place < len(text) and text[place] in " \t\r\n":
        place += 1
    return place


def _open(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return io.TextIOWrapper(gzip.open(path, "rb"), encoding="utf-8")
    if path.suffix == ".zst":
        return io.TextIOWrapper(zstandard.open(path, "rb"), encoding="utf-8")
    return path.open(encoding="utf-8")


def _first_line(error: BaseException) -> str:
    return str(error).split("\n", maxsplit=1)[0]


def _show(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "..."


_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "function_response": "tool",
}


@dataclass(frozen=True)
class _Fields:
    """The fields of one row, with its place for messages."""

    place: str
    values: Mapping[str, object]
    default_kind: str

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def fail(self, message: str) -> InputError:
        return InputError(f"{self.place}: {message}")

    def text(self, key: str) -> str:
        value = self.values.get(key, "")
        if not isinstance(value, str):
            raise self.fail(f"{key} must be a string, got {_show(value)}")
        return value

    @property
    def kind(self) -> str:
        return self.text("kind") or self.text("dataset") or self.default_kind

    def keys(self) -> str:
        return ", ".join(sorted(self.values)) or "none"

    def messages(self, key: str) -> tuple[Message, ...]:
        """Read a list of messages, one message, or a string, which is the user's."""
        value = self.values[key]
        if isinstance(value, str):
            return ({"role": "user", "content": value},)
        if isinstance(value, dict):
            value = [value]
        if not isinstance(value, list) or not value:
            raise self.fail(f"{key} must be a list of messages, got {_show(value)}")
        return tuple(self._message(f"{key}[{number}]", item) for number, item in enumerate(value))

    def _message(self, name: str, value: object) -> Message:
        if not isinstance(value, dict):
            raise self.fail(f'{name} must be {{"role": ..., "content": ...}}, got {_show(value)}')
        role = value.get("role", value.get("from"))
        content = value.get("content", value.get("value"))
        if not isinstance(role, str) or role not in _ROLES:
            raise self.fail(f"{name} has role {_show(role)}; expected one of {', '.join(_ROLES)}")
        message = Message(role=_ROLES[role], content=self._content(name, content))
        weight = value.get("loss_weight", value.get("train"))
        if weight not in (None, 0, 1):
            raise self.fail(f"{name} has loss weight {_show(weight)}; expected 0 or 1")
        if weight == 0 and message["role"] == "assistant":
            message["train"] = False
        return message

    def _content(self, name: str, value: object) -> str:
        if isinstance(value, str):
            return value
        if not isinstance(value, list):
            raise self.fail(f"{name} has content {_show(value)}; expected a string or a list of text parts")
        texts = []
        for part in value:
            text = part.get("text", part.get("value")) if isinstance(part, dict) else None
            if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(text, str):
                raise self.fail(f"{name} has the part {_show(part)}; only text parts can be used")
            texts.append(text)
        return "".join(texts)


def _chat_row(fields: _Fields) -> ChatRow:
    if "label" in fields and "messages" in fields:
        raise fields.fail(
            "has a label beside its messages, as good and bad answers in one file do; keep the rows whose "
            "label is true, without the label"
        )
    if "messages" in fields:
        messages = fields.messages("messages")
    elif "conversations" in fields:
        messages = fields.messages("conversations")
        if "system" in fields and messages[0]["role"] != "system":
            messages = (Message(role="system", content=fields.text("system")), *messages)
    elif "prompt" in fields and "completion" in fields:
        messages = (
            *fields.messages("prompt"),
            Message(role="assistant", content=_answer(fields, "completion")),
        )
    elif "instruction" in fields and "output" in fields:
        messages = _alpaca(fields)
    else:
        raise fields.fail(
            "expected messages, prompt + completion, conversations, or instruction + output; "
            f"got the fields {fields.keys()}"
        )
    if not any(message["role"] == "assistant" for message in messages):
        raise fields.fail("the conversation has no assistant's message, so there is nothing to learn from")
    return ChatRow(_with_tools(fields, messages), fields.kind)


def _alpaca(fields: _Fields) -> tuple[Message, ...]:
    messages = [Message(role="system", content=fields.text("system"))] if fields.text("system") else []
    history = fields.values.get("history", [])
    if not isinstance(history, list) or not all(
        isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(x, str) for x in pair)
        for pair in history
    ):
        raise fields.fail(f"history must be a list of [user, assistant] pairs, got {_show(history)}")
    for question, answer in history:
        messages += [Message(role="user", content=question), Message(role="assistant", content=answer)]
    question = "\n\n".join(text for text in (fields.text("instruction"), fields.text("input")) if text)
    return (
        *messages,
        Message(role="user", content=question),
        Message(role="assistant", content=fields.text("output")),
    )


def _with_tools(fields: _Fields, messages: tuple[Message, ...]) -> tuple[Message, ...]:
    tools = fields.values.get("tools")
    if not tools or tools == "[]":
        return messages
    text = tools if isinstance(tools, str) else json.dumps(tools, ensure_ascii=False)
    offer = f"You can call these functions:\n{text}"
    if messages[0]["role"] == "system":
        system = Message(role="system", content=f"{messages[0]['content']}\n\n{offer}")
        return (system, *messages[1:])
    return (Message(role="system", content=offer), *messages)


def _answer(fields: _Fields, key: str) -> str:
    """Read an answer given as a string, as one message or as a list of one."""
    value = fields.values[key]
    if isinstance(value, str):
        return value
    messages = fields.messages(key)
    if len(messages) != 1 or messages[0]["role"] != "assistant":
        roles = ", ".join(message["role"] for message in messages)
        raise fields.fail(f"{key} must be one assistant's message, got messages of {roles}")
    return messages[0]["content"]


def _preference_row(fields: _Fields) -> PreferenceRow:
    names = ("chosen", "rejected") if "chosen" in fields else ("chosen_messages", "rejected_messages")
    if not all(name in fields for name in names):
        raise fields.fail(f"expected prompt + chosen + rejected, got the fields {fields.keys()}")
    key = next((key for key in ("prompt", "conversations", "messages") if key in fields), None)
    prompt = fields.messages(key) if key else ()
    answers = [_answer_after(fields, name, prompt, key or "") for name in names]
    (chosen_prompt, chosen), (rejected_prompt, rejected) = answers
    if chosen_prompt != rejected_prompt:
        raise fields.fail(f"{names[0]} and {names[1]} must differ in the last message only, and do so before")
    return PreferenceRow(chosen_prompt, chosen, rejected, fields.kind)


def _answer_after(
    fields: _Fields, name: str, prompt: tuple[Message, ...], prompt_key: str
) -> tuple[tuple[Message, ...], str]:
    """Split an answer that may repeat the prompt into prompt and answer."""
    value = fields.values[name]
    whole = isinstance(value, list) and len(value) > 1
    if not whole:
        if not prompt:
            raise fields.fail(f"no prompt: expected the field prompt, or {name} as a whole conversation")
        return prompt, _answer(fields, name)
    messages = fields.messages(name)
    start = len(messages) - 1 - len(prompt)
    if messages[-1]["role"] != "assistant":
        raise fields.fail(f"{name} must end with the assistant's message, ends with {messages[-1]['role']}'s")
    if prompt and (start < 0 or messages[start:-1] != prompt):
        raise fields.fail(f"{name} is a whole conversation, and the one in {prompt_key} is not its beginning")
    return messages[:-1], messages[-1]["content"]


def _verifiable_row(fields: _Fields) -> VerifiableRow:
    key = next((key for key in ("messages", "prompt") if key in fields), None)
    if key is None or "ground_truth" not in fields:
        raise fields.fail(f"expected messages + ground_truth + dataset, got the fields {fields.keys()}")
    messages = fields.messages(key)
    if messages[-1]["role"] == "assistant":
        raise fields.fail(f"{key} must end before the answer, and ends with an assistant's message")
    truth = fields.values["ground_truth"]
    text = truth if isinstance(truth, str) else json.dumps(truth, ensure_ascii=False)
    return VerifiableRow(messages, text, fields.text("dataset") or fields.kind)
