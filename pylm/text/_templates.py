"""Post-processors: the special tokens that go before and after a text."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pylm.errors import InputError
from pylm.text._added_tokens import AddedToken


@dataclass(frozen=True)
class Template:
    """What is put around the ids of a text.

    Attributes:
        before: ids before those of the text.
        after: ids after them.
        spec: the entry `post_processor` of the tokenizer.json that it was read from, or None.
    """

    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    spec: Mapping[str, Any] | None = None

    def to_spec(self, tokens: Sequence[AddedToken]) -> Mapping[str, Any] | None:
        """Give the entry for a tokenizer.json."""
        if self.spec is not None or not (self.before or self.after):
            return self.spec
        names = {t.id: t.content for t in tokens}
        before, after = ([names[i] for i in ids] for ids in (self.before, self.after))

        def items(letters: str) -> list[dict[str, object]]:
            row: list[dict[str, object]] = []
            for type_id, letter in enumerate(letters):
                row += [{"SpecialToken": {"id": name, "type_id": type_id}} for name in before]
                row.append({"Sequence": {"id": letter, "type_id": type_id}})
                row += [{"SpecialToken": {"id": name, "type_id": type_id}} for name in after]
            return row

        return {
            "type": "TemplateProcessing",
            "single": items("A"),
            "pair": items("AB"),
            "special_tokens": {
                names[i]: {"id": names[i], "ids": [i], "tokens": [names[i]]} for i in self.before + self.after
            },
        }


def read_template(spec: object) -> Template:
    """Read the entry `post_processor` of a tokenizer.json.

    Raises:
        InputError: a post-processor of another kind than TemplateProcessing, BertProcessing,
            RobertaProcessing, ByteLevel and a Sequence of them, or a damaged one; names it.
    """
    if spec is None:
        return Template()
    before, after = _around(spec)
    return Template(before, after, dict(spec) if isinstance(spec, Mapping) else None)


def _around(spec: object) -> tuple[tuple[int, ...], tuple[int, ...]]:
    match spec:
        case {"type": "ByteLevel"}:  # changes offsets only
            return (), ()
        case {"type": "Sequence", "processors": list(processors)}:
            before: tuple[int, ...] = ()
            after: tuple[int, ...] = ()
            for processor in processors:
                outer = _around(processor)
                before, after = outer[0] + before, after + outer[1]
            return before, after
        case {"type": "BertProcessing" | "RobertaProcessing", "cls": [_, int(start)], "sep": [_, int(end)]}:
            return (start,), (end,)
        case {"type": "TemplateProcessing", "single": list(items), "special_tokens": dict(tokens)}:
            return _template(items, tokens, spec)
    raise InputError(
        f"unsupported post-processor: {json.dumps(spec, ensure_ascii=False)[:160]}; expected "
        "TemplateProcessing, BertProcessing, RobertaProcessing, ByteLevel or a Sequence of them"
    )


def _template(
    items: list[object], tokens: Mapping[str, Any], spec: object
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    sides: list[list[int]] = [[]]
    for item in items:
        match item:
            case {"Sequence": {"id": "A"}} if len(sides) == 1:
                sides.append([])
            case {"SpecialToken": {"id": str(name)}}:
                match tokens.get(name):
                    case {"ids": [*ids]} if all(isinstance(i, int) and i >= 0 for i in ids):
                        sides[-1] += ids
                    case _:
                        raise InputError(f"post-processor: special token {name!r} has no ids")
            case _:
                raise InputError(f"unsupported post-processor: part {item!r} of {str(spec)[:120]}")
    if len(sides) != 2:
        raise InputError("unsupported post-processor: its template has no place for the text")
    return tuple(sides[0]), tuple(sides[1])
