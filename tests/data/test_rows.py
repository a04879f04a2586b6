import gzip
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from pylm.data.rows import (
    ChatRow,
    PreferenceRow,
    VerifiableRow,
    read_chat_rows,
    read_preference_rows,
    read_verifiable_rows,
)
from pylm.errors import InputError

USER = {"role": "user", "content": "Q"}
ANSWER = {"role": "assistant", "content": "A"}
CHAT = ChatRow((USER, ANSWER), "rows")  # type: ignore[arg-type]


def write_lines(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER, ANSWER]},
        {"messages": [USER, {"role": "assistant", "content": [{"type": "text", "text": "A"}]}], "kind": None},
        {"messages": [USER, {"role": "assistant", "content": "A", "loss_weight": 1.0, "name": "bot"}]},
        {"prompt": "Q", "completion": "A"},
        {"prompt": [USER], "completion": [ANSWER]},
        {"prompt": "Q", "completion": ANSWER},
        {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]},
        {"instruction": "Q", "input": "", "output": "A"},
        {"instruction": "Q", "output": "A", "history": []},
    ],
)
def test_one_conversation_in_many_shapes(tmp_path: Path, row: object) -> None:
    assert read_chat_rows([write_lines(tmp_path / "rows.jsonl", row)]) == [CHAT]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (
            {"instruction": "I", "input": "N", "output": "O", "system": "S", "history": [["h", "i"]]},
            [("system", "S"), ("user", "h"), ("assistant", "i"), ("user", "I\n\nN"), ("assistant", "O")],
        ),
        (
            {
                "conversations": [
                    {"from": "human", "value": "Q"},
                    {"from": "function_call", "value": "{}"},
                    {"from": "observation", "value": "42"},
                    {"from": "gpt", "value": "A"},
                ],
                "tools": '[{"name": "f"}]',
                "system": "S",
            },
            [
                ("system", 'S\n\nYou can call these functions:\n[{"name": "f"}]'),
                ("user", "Q"),
                ("assistant", "{}"),
                ("tool", "42"),
                ("assistant", "A"),
            ],
        ),
        (
            {"messages": [USER, ANSWER], "tools": [{"name": "f"}]},
            [
                ("system", 'You can call these functions:\n[{"name": "f"}]'),
                ("user", "Q"),
                ("assistant", "A"),
            ],
        ),
    ],
)
def test_longer_shapes(tmp_path: Path, row: object, expected: list[tuple[str, str]]) -> None:
    (read,) = read_chat_rows([write_lines(tmp_path / "rows.jsonl", row)])
    assert [(m["role"], m["content"]) for m in read.messages] == expected


def test_loss_weight_zero_is_kept(tmp_path: Path) -> None:
    row = {"messages": [USER, {**ANSWER, "loss_weight": 0.0}, USER, {**ANSWER, "train": True}]}
    (read,) = read_chat_rows([write_lines(tmp_path / "rows.jsonl", row)])
    assert [m.get("train", True) for m in read.messages] == [True, False, True, True]


@pytest.mark.parametrize(
    ("row", "kind"),
    [({"kind": "a", "dataset": "b"}, "a"), ({"dataset": "b"}, "b"), ({}, "some")],
)
def test_kind(tmp_path: Path, row: dict[str, str], kind: str) -> None:
    path = write_lines(tmp_path / "some.train.jsonl", {"messages": [USER, ANSWER], **row})
    assert read_chat_rows([path])[0].kind == kind


def as_array(rows: list[object]) -> str:
    return "\ufeff" + json.dumps(rows, indent=2)


def as_lines(rows: list[object]) -> str:
    return "\n\n".join(json.dumps(row) for row in rows)


@pytest.mark.parametrize("layout", [as_array, as_lines])
@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_files(tmp_path: Path, layout: Callable[[list[object]], str], suffix: str, name: str) -> None:
    rows: list[object] = [{"messages": [USER, {**ANSWER, "content": f"{i}é"}]} for i in range(3)]
    data = layout(rows).encode()
    compress = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}[suffix]
    path = tmp_path / (name + suffix)
    path.write_bytes(compress(data))
    assert [row.messages[1]["content"] for row in read_chat_rows([path, path])] == ["0é", "1é", "2é"] * 2


def test_parquet(tmp_path: Path) -> None:
    rows = [
        {"messages": [{**USER, "train": None}, {**ANSWER, "train": False}, ANSWER], "kind": "k"},
        {"messages": [USER, ANSWER], "kind": None},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    first, second = read_chat_rows([tmp_path / "rows.parquet"])
    assert first == ChatRow((USER, {**ANSWER, "train": False}, ANSWER), "k")  # type: ignore[arg-type]
    assert second == CHAT


def test_empty_files(tmp_path: Path) -> None:
    for name, text in (("a.jsonl", ""), ("b.jsonl", "\n \n"), ("c.json", "[]"), ("d.json", " [\n]\n")):
        (tmp_path / name).write_text(text, encoding="utf-8")
        assert read_chat_rows([tmp_path / name]) == []


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Q", "chosen": "A", "rejected": "B"},
        {"prompt": [USER], "chosen": [ANSWER], "rejected": [{"role": "assistant", "content": "B"}]},
        {"prompt": "Q", "chosen": [USER, ANSWER], "rejected": [USER, {"role": "assistant", "content": "B"}]},
        {"chosen": [USER, ANSWER], "rejected": [USER, {"role": "assistant", "content": "B"}]},
        {"chosen_messages": [USER, ANSWER], "rejected_messages": [USER, {**ANSWER, "content": "B"}]},
        {
            "conversations": [{"from": "human", "value": "Q"}],
            "chosen": {"from": "gpt", "value": "A"},
            "rejected": {"from": "gpt", "value": "B"},
        },
    ],
)
def test_one_preference_in_many_shapes(tmp_path: Path, row: object) -> None:
    expected = PreferenceRow((USER,), "A", "B", "rows")  # type: ignore[arg-type]
    assert read_preference_rows([write_lines(tmp_path / "rows.jsonl", row)]) == [expected]


def test_whole_conversation_keeps_its_system_message(tmp_path: Path) -> None:
    system = {"role": "system", "content": "S"}
    row = {"prompt": "Q", "chosen": [system, USER, ANSWER], "rejected": [system, USER, ANSWER]}
    (read,) = read_preference_rows([write_lines(tmp_path / "rows.jsonl", row)])
    assert read.prompt == (system, USER)


@pytest.mark.parametrize(
    ("truth", "expected"), [("72", "72"), (72, "72"), ({"a": ["é"]}, '{"a": ["é"]}'), (1.5, "1.5")]
)
def test_verifiable(tmp_path: Path, truth: object, expected: str) -> None:
    path = tmp_path / "rows.jsonl"
    write_lines(path, {"messages": [USER], "ground_truth": truth, "dataset": "gsm8k"})
    assert read_verifiable_rows([path]) == [VerifiableRow((USER,), expected, "gsm8k")]  # type: ignore[arg-type]
    write_lines(path, {"prompt": "Q", "ground_truth": truth})
    assert read_verifiable_rows([path]) == [VerifiableRow((USER,), expected, "rows")]  # type: ignore[arg-type]


GOOD = {"messages": [USER, ANSWER]}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([1], r"expected a JSON object with named fields, got \[1\]"),
        ({"text": "x"}, "expected messages, prompt . completion, .*; got the fields text"),
        ({"messages": []}, r"messages must be a list of messages, got \[\]"),
        ({"messages": ["Q"]}, r'messages\[0\] must be .*, got "Q"'),
        (
            {"messages": [{"role": "robot", "content": "x"}]},
            r'messages\[0\] has role "robot"; expected one of',
        ),
        ({"messages": [USER, {"role": "assistant"}]}, r"messages\[1\] has content null; expected a string"),
        ({"messages": [USER]}, "no assistant's message"),
        ({**GOOD, "kind": 3}, "kind must be a string, got 3"),
        ({**GOOD, "label": True}, "has a label beside its messages"),
        ({"messages": [USER, {**ANSWER, "loss_weight": 0.5}]}, "loss weight 0.5; expected 0 or 1"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}, ANSWER]}, "only text parts"),
        ({"instruction": "Q", "output": "A", "history": [["x"]]}, "history must be a list of"),
        ({"prompt": "Q", "completion": [USER]}, "completion must be one assistant's message"),
    ],
)
def test_bad_chat_rows(tmp_path: Path, row: object, message: str) -> None:
    path = write_lines(tmp_path / "rows.jsonl", GOOD, GOOD, row)
    with pytest.raises(InputError, match=f"rows.jsonl:3: .*{message}"):
        read_chat_rows([path])
    path = tmp_path / "rows.json"
    path.write_text(f"[{json.dumps(GOOD, indent=1)},\n\n{json.dumps(row)}\n]", encoding="utf-8")
    line = json.dumps(GOOD, indent=1).count("\n") + 3
    with pytest.raises(InputError, match=f"rows.json:{line}: .*{message}"):
        read_chat_rows([path])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"prompt": "Q", "chosen": "A"},
            r"expected prompt . chosen . rejected, got the fields chosen, prompt",
        ),
        ({"chosen": "A", "rejected": "B"}, "no prompt: expected the field prompt"),
        ({"prompt": "Q", "chosen": [USER, USER], "rejected": "B"}, "chosen must end with the assistant's"),
        (
            {"prompt": "X", "chosen": [USER, ANSWER], "rejected": "B"},
            "the one in prompt is not its beginning",
        ),
        ({"prompt": [USER, USER], "chosen": [USER, ANSWER], "rejected": "B"}, "is not its beginning"),
        (
            {"prompt": "Q", "chosen": [ANSWER, USER, ANSWER], "rejected": "B"},
            "must differ in the last message",
        ),
        ({"prompt": "Q", "chosen": USER, "rejected": "B"}, "chosen must be one assistant's message"),
    ],
)
def test_bad_preference_rows(tmp_path: Path, row: object, message: str) -> None:
    with pytest.raises(InputError, match=f"rows.jsonl:1: .*{message}"):
        read_preference_rows([write_lines(tmp_path / "rows.jsonl", row)])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": [USER]}, r"expected messages . ground_truth . dataset, got the fields messages"),
        ({"messages": [USER, ANSWER], "ground_truth": "1"}, "ends with an assistant's message"),
    ],
)
def test_bad_verifiable_rows(tmp_path: Path, row: object, message: str) -> None:
    with pytest.raises(InputError, match=f"rows.jsonl:1: .*{message}"):
        read_verifiable_rows([write_lines(tmp_path / "rows.jsonl", row)])


def test_bad_files(tmp_path: Path) -> None:
    def check(name: str, content: bytes, message: str) -> None:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=message):
            read_chat_rows([tmp_path / name])

    good = json.dumps(GOOD).encode()
    check("a.jsonl", good + b'\n{"messages": oops}\n', r"a.jsonl:2: not JSON at column 14")
    check("b.json", b"[" + good + b",\n oops]", r"b.json:2: not JSON at column 2")
    check("c.json", b"[" + good + b"\n" + good + b"]", r"c.json:2: expected ',' or '\]'")
    check("d.json", b"[\n" + good, r"d.json:2: expected ',' or '\]'.*cut off")
    check("e.jsonl", good + b"\n\xff\xfe\n", r"e.jsonl:\d: not UTF-8")
    check("f.jsonl.gz", gzip.compress(good * 1000)[:-20], r"f.jsonl.gz: cannot be read to its end")
    check("g.jsonl.gz", good, r"g.jsonl.gz: cannot be read to its end")
    check("h.jsonl.zst", good, r"h.jsonl.zst: cannot be read to its end")
    check("i.parquet", good, r"i.parquet: not a readable Parquet file")
    check("j.csv", good, r"j.csv: expected .jsonl, .json")
    with pytest.raises(InputError, match=r"none.jsonl: no such file"):
        read_chat_rows([tmp_path / "none.jsonl"])


@pytest.mark.parametrize(
    ("name", "num_rows", "num_assistant"),
    [
        ("sft/alpaca_en_demo.json", 999, 999),
        ("sft/lima.json", 1029, 1000 + 29 * 2),
        ("sft/glaive_toolcall_en_demo.json", 300, None),
        ("sft/v1_sft_demo.jsonl", 500, 500),
    ],
)
def test_real_conversations(shared_data: Path, name: str, num_rows: int, num_assistant: int | None) -> None:
    rows = read_chat_rows([shared_data / name])
    assert len(rows) == num_rows
    roles = Counter(message["role"] for row in rows for message in row.messages)
    if num_assistant is not None:
        assert roles["assistant"] >= num_assistant
    assert {row.kind for row in rows} == {Path(name).stem}


@pytest.mark.parametrize(
    ("name", "num_rows"), [("pref/dpo_en_demo.json", 300), ("pref/v1_dpo_demo.jsonl", 10)]
)
def test_real_preferences(shared_data: Path, name: str, num_rows: int) -> None:
    rows = read_preference_rows([shared_data / name])
    assert len(rows) == num_rows
    assert all(row.prompt[-1]["role"] == "user" and row.chosen for row in rows)


def test_real_unpaired_preferences_are_refused(shared_data: Path) -> None:
    with pytest.raises(InputError, match=r"kto_en_demo.json:2: has a label"):
        read_chat_rows([shared_data / "pref" / "kto_en_demo.json"])
