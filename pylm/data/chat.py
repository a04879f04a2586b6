"""Conversations as token ids: special tokens, chat templates, what is trained and what is not.

A template encodes a conversation piece by piece (marker, text, marker ...) and joins the ids, never the
text. Three things follow. What a user types stays text: `<|end|>` inside a message is a handful of
ordinary tokens. The ids of a prompt are a prefix of the ids of prompt and answer, always. And the mask of
trained tokens is exact, since the border of an answer is a border between pieces.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pylm.data.rows import (
    ChatRow,
    Message,
    PreferenceRow,
    VerifiableRow,
    read_chat_rows,
    read_preference_rows,
    read_verifiable_rows,
)
from pylm.errors import InputError

if TYPE_CHECKING:
    from pylm.text import Tokenizer

__all__ = [
    "ASSISTANT",
    "CHATML",
    "END",
    "END_OF_TEXT",
    "PYLM",
    "SPECIAL_TOKENS",
    "SYSTEM",
    "TEMPLATES",
    "USER",
    "ChatRow",
    "ChatTemplate",
    "Message",
    "PreferenceRow",
    "Rendered",
    "VerifiableRow",
    "encode_preference",
    "get_template",
    "read_chat_rows",
    "read_preference_rows",
    "read_verifiable_rows",
    "recognise_template",
]

END_OF_TEXT = "<|endoftext|>"
"""Stands between documents: ends one, opens the next; also fills up rows."""
USER = "<|user|>"
"""Opens a user's message."""
ASSISTANT = "<|assistant|>"
"""Opens the model's message."""
SYSTEM = "<|system|>"
"""Opens the system's message."""
END = "<|end|>"
"""Closes any message; a model that has learned it stops there."""
SPECIAL_TOKENS = (END_OF_TEXT, USER, ASSISTANT, SYSTEM, END)
"""What a tokenizer of pylm carries besides its byte-level vocabulary."""


@dataclass(frozen=True)
class Rendered:
    """A conversation as ids.

    Attributes:
        ids: token ids, (length,).
        mask: true at tokens that the model is to produce: the assistant's text and its end marker; never
            the first token.
    """

    ids: list[int]
    mask: list[bool]


@dataclass(frozen=True)
class ChatTemplate:
    """How a conversation is laid out.

        opening, then for every message: header of its role, content, end, separator

    Attributes:
        name: for recipes and messages.
        opening: special token at the start of a conversation, or "". A conversation is a document, and a
            document follows an end of text (see `pylm.data.pack`).
        headers: role -> (special token, text after it).
        end: special token after the content of a message.
        separator: text between `end` and the next header.
    """

    name: str
    opening: str
    headers: Mapping[str, tuple[str, str]]
    end: str
    separator: str

    def __post_init__(self) -> None:
        """Refuse a layout in which the border of an answer cannot be told.

        Raises:
            InputError: there is no assistant, or a marker is empty.
        """
        if "assistant" not in self.headers:
            raise InputError(f"chat template {self.name!r} has no header for the assistant; give one")
        for place, marker in (
            ("end", self.end),
            *((role, header[0]) for role, header in self.headers.items()),
        ):
            if not marker:
                raise InputError(
                    f"chat template {self.name!r} has no special token for {place}, so that text could be "
                    f"taken for a border; give one"
                )

    def render(
        self,
        messages: Sequence[Message],
        tokenizer: "Tokenizer",
        *,
        add_generation_prompt: bool = False,
    ) -> Rendered:
        """Encode a conversation.

        Args:
            messages: `{"role": ..., "content": ...}` in order; an assistant's message with `"train": False`
                is left out of the mask.
            tokenizer: has the template's special tokens.
            add_generation_prompt: end with the header of an assistant's message, for the model to go on.

        Returns:
            Ids and mask. Without `add_generation_prompt`, at least one token is trained.

        Raises:
            InputError: no messages, a role that the template lacks, a special token that the tokenizer
                lacks, or nothing to train on.

        Example:
            >>> PYLM.render([{"role": "user", "content": "Hi"}], tokenizer, add_generation_prompt=True)
        """
        if not messages:
            raise InputError("a conversation needs at least one message, got none")
        special = self._special_ids(tokenizer)
        encode = tokenizer.encode_ordinary
        separator = encode(self.separator) if self.separator else []
        ids = [special[self.opening]] if self.opening else []
        mask = [False] * len(ids)
        for message in messages:
            marker, text = self._header(message["role"])
            if message["role"] == "assistant":
                header = [special[marker], *(encode(text) if text else ())]
                content = [*encode(message["content"]), special[self.end]]
                trained = message.get("train", True)
            else:
                # As one text, as Hugging Face tokenizers do it: "user\n" and "\nHi" share a token.
                header = [special[marker], *encode(text + message["content"]), special[self.end]]
                content, trained = [], False
            ids += [*header, *content, *separator]
            mask += [False] * len(header) + [trained] * len(content) + [False] * len(separator)
        if add_generation_prompt:
            marker, text = self._header("assistant")
            ids += [special[marker], *(encode(text) if text else ())]
            mask += [False] * (len(ids) - len(mask))
        elif not any(mask):
            roles = ", ".join(message["role"] for message in messages)
            raise InputError(
                f"nothing to train on in a conversation of {roles}: expected an assistant's message; "
                f"drop the row, or pass add_generation_prompt=True for a prompt"
            )
        return Rendered(ids, mask)

    def stop_ids(self, tokenizer: "Tokenizer") -> tuple[int, ...]:
        """Name the ids at which generation ends: the end of a message and, where known, of the text."""
        known = tokenizer.special_tokens
        ids = (self._special_ids(tokenizer)[self.end], known.get(END_OF_TEXT))
        return tuple(sorted({id for id in ids if id is not None}))

    @property
    def jinja(self) -> str:
        """The template in Jinja, for the `chat_template` of a tokenizer_config.json.

        It renders text, in which a tokenizer takes markers for markers whoever wrote them. So that no message
        passes for several, one that holds a marker is refused; `render` takes it, as ordinary text.
        """
        opening = "{{ " + _quote(self.opening) + " }}" if self.opening else ""
        markers = sorted({END_OF_TEXT, self.end, *(marker for marker, _ in self.headers.values())})
        guard = (
            "{% if message['content'] is not string %}"
            "{{ raise_exception('the content of a message must be a text') }}{% endif %}"
            "{% for marker in ["
            + ", ".join(map(_quote, markers))
            + "] %}{% if marker in message['content'] %}"
            + "{{ raise_exception('a message holds the special token ' + marker) }}{% endif %}{% endfor %}"
        )
        branches = "".join(
            "{% "
            + ("if" if number == 0 else "elif")
            + f" message['role'] == '{role}' %}}"
            + "{{ "
            + _quote(marker + text)
            + " + message['content'] + "
            + _quote(self.end + self.separator)
            + " }}"
            for number, (role, (marker, text)) in enumerate(self.headers.items())
        )
        refusal = "{% else %}{{ raise_exception('unknown role ' + message['role']) }}{% endif %}"
        prompt = "{{ " + _quote("".join(self.headers["assistant"])) + " }}"
        return (
            opening
            + "{% for message in messages %}"
            + guard
            + branches
            + refusal
            + "{% endfor %}{% if add_generation_prompt %}"
            + prompt
            + "{% endif %}"
        )

    def _header(self, role: str) -> tuple[str, str]:
        if role not in self.headers:
            raise InputError(
                f"role {role!r} has no place in chat template {self.name!r}, which knows "
                f"{', '.join(self.headers)}; rename the role, or choose another template"
            )
        return self.headers[role]

    def _special_ids(self, tokenizer: "Tokenizer") -> dict[str, int]:
        wanted = {self.opening, self.end, *(marker for marker, _ in self.headers.values())} - {""}
        known = tokenizer.special_tokens
        if missing := sorted(wanted - known.keys()):
            raise InputError(
                f"chat template {self.name!r} needs the special tokens {', '.join(missing)}, which the "
                f"tokenizer lacks; choose a template that fits, or train the tokenizer with them"
            )
        return {token: known[token] for token in wanted}


def _quote(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n") + "'"


PYLM = ChatTemplate(
    name="pylm",
    opening=END_OF_TEXT,
    headers={"system": (SYSTEM, ""), "user": (USER, ""), "assistant": (ASSISTANT, "")},
    end=END,
    separator="",
)
"""Two tokens a message: `<|endoftext|><|user|>Hi<|end|><|assistant|>Hello<|end|>`."""

CHATML = ChatTemplate(
    name="chatml",
    opening="",
    headers={role: ("<|im_start|>", f"{role}\n") for role in ("system", "user", "assistant", "tool")},
    end="<|im_end|>",
    separator="\n",
)
"""The layout of Qwen and many others: `<|im_start|>user\\nHi<|im_end|>\\n`."""

TEMPLATES: Mapping[str, ChatTemplate] = {template.name: template for template in (PYLM, CHATML)}
"""Templates by name."""


def get_template(name: str) -> ChatTemplate:
    """Find a template by its name.

    Raises:
        InputError: there is none of that name.
    """
    if name not in TEMPLATES:
        raise InputError(f"no chat template {name!r}; choose one of {', '.join(TEMPLATES)}")
    return TEMPLATES[name]


def recognise_template(source: str | None) -> ChatTemplate:
    """Find a template by the Jinja source that a model was saved with; `PYLM` where it has none.

    Raises:
        InputError: it is that of no template here.
    """
    if source is None:
        return PYLM
    for template in TEMPLATES.values():
        if source.strip() == template.jinja.strip():
            return template
    raise InputError(
        f"the model's chat template is none of {', '.join(TEMPLATES)}; name the one that is nearest to it"
    )


def encode_preference(
    row: PreferenceRow, tokenizer: "Tokenizer", template: ChatTemplate = PYLM
) -> tuple[list[int], list[int], list[int]]:
    """Encode a prompt and its two answers.

    Args:
        row: prompt, chosen and rejected answer.
        tokenizer: has the template's special tokens.
        template: layout.

    Returns:
        Ids of the prompt, generation header included; of the chosen and of the rejected answer, each with
        its end marker. Prompt and answer joined are the conversation as `render` gives it, up to the
        separator after the last message.
    """
    prompt = template.render(row.prompt, tokenizer, add_generation_prompt=True)
    end = tokenizer.special_tokens[template.end]
    chosen, rejected = ([*tokenizer.encode_ordinary(text), end] for text in (row.chosen, row.rejected))
    return prompt.ids, chosen, rejected
