"""Rows made from source code: right answers, strict formats, nothing held out in any training file."""

import ast
import itertools
import json
import random
import re
import textwrap
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pylm.errors import InputError
from pylm.post.synthesis.arithmetic import (
    ArithmeticConfig,
    Problem,
    list_problems,
    sample_questions,
    split_problems,
)
from pylm.post.synthesis.faults import FAULTS, spoil
from pylm.post.synthesis.questions import TASKS, Prompt, list_candidates, render
from pylm.post.synthesis.source_code import find_functions, find_imports, parse_source
from pylm.post.synthesize import SynthesizeConfig, synthesize

CONFIG = SynthesizeConfig(
    sft_train=600,
    sft_heldout=120,
    preference_train=300,
    preference_heldout=60,
    verifiable_train=400,
    verifiable_heldout=100,
)
FILES = [f"{part}.{split}" for part in ("sft", "preference", "verifiable") for split in ("train", "heldout")]
PROBLEM = re.compile(r"(\d+) ([-+*]) (\d+)")


def write_documents(path: Path, texts: list[str]) -> Path:
    table = pa.table({"id": [str(i) for i in range(len(texts))], "text": texts})
    pq.write_table(table, path)
    return path


def module_texts(names: list[str]) -> list[str]:
    library = Path(ast.__file__).parent
    return [(library / f"{name}.py").read_text(encoding="utf-8") for name in names]


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Modules of the standard library; one held-out module holds a copy of a training function."""
    folder = tmp_path_factory.mktemp("documents")
    train = module_texts(["ast", "argparse", "zipfile", "calendar", "textwrap", "shutil", "datetime"])
    prose = "This is prose, not Python: it is passed over.\n"
    heldout = module_texts(["tarfile", "statistics", "mailbox", "configparser"])
    copied = textwrap.dedent("""
        def indent(text, prefix, predicate=None):
            \"\"\"Adds 'prefix' to the beginning of selected lines in 'text'.\"\"\"
            return prefix + text
    """)
    return (
        write_documents(folder / "train.parquet", [*train, copied, prose]),
        write_documents(folder / "heldout.parquet", [*heldout, copied]),
    )


@pytest.fixture(scope="module")
def rows(documents: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict]]:
    out = tmp_path_factory.mktemp("rows")
    counts = synthesize(CONFIG, documents=documents[0], heldout_documents=documents[1], out=out, seed=7)
    read = {}
    for name in FILES:
        read[name] = [json.loads(line) for line in (out / f"{name}.jsonl").read_text().splitlines()]
        assert counts[name] == len(read[name])
    assert counts["documents.train"] == 9
    assert counts["documents.train/python"] == 8
    return read


def user_text(row: dict) -> str:
    [message] = [message for message in row.get("messages") or row["prompt"] if message["role"] == "user"]
    return message["content"]


def code_of(row: dict) -> str:
    return user_text(row).partition("\n\n")[2]


def problem_of(row: dict) -> tuple[str, frozenset[int]] | None:
    """The problem of an arithmetic row, without the order of its operands."""
    match = PROBLEM.search(user_text(row))
    if "\n\n" in user_text(row) or match is None:
        return None
    return match[2], frozenset({int(match[1]), int(match[3])})


def test_the_files_hold_what_was_asked_for(rows: dict[str, list[dict]]) -> None:
    assert {name: len(rows[name]) for name in FILES} == {
        "sft.train": 600,
        "sft.heldout": 120,
        "preference.train": 300,
        "preference.heldout": 60,
        "verifiable.train": 400,
        "verifiable.heldout": 100,
    }
    assert sum(problem_of(row) is not None for row in rows["sft.train"]) == 72


def test_rows_have_the_agreed_form(rows: dict[str, list[dict]]) -> None:
    for row in rows["sft.train"]:
        assert list(row) == ["messages", "kind"]
        assert [message["role"] for message in row["messages"]] == ["user", "assistant"]
    for row in rows["preference.train"]:
        assert list(row) == ["prompt", "chosen", "rejected", "kind"]
        assert [row[side][0]["role"] for side in ("chosen", "rejected")] == ["assistant", "assistant"]
    for row in rows["verifiable.train"]:
        assert list(row) == ["messages", "ground_truth", "dataset"]


def test_answers_are_those_of_an_independent_reading(rows: dict[str, list[dict]]) -> None:
    """Compare the replies with what `inspect`-like regular expressions read out of the shown code."""
    num_checked: Counter[str] = Counter()
    for row in rows["sft.train"] + rows["sft.heldout"]:
        task, form = row["kind"].split("/")
        reply = row["messages"][1]["content"]
        code = code_of(row)
        answer = {
            "answer": lambda reply=reply: reply.removeprefix("Answer: "),
            "free": lambda reply=reply: reply.removeprefix("Answer: "),
            "bracket": lambda reply=reply: reply[1:-1],
            "bullet": lambda reply=reply: reply.removeprefix("- "),
            "json": lambda reply=reply: str(json.loads(reply)["answer"]),
            "upper": lambda reply=reply: reply.lower(),
            "lower": lambda reply=reply: reply,
            "line": lambda reply=reply: reply,
        }[form]()
        if task == "function_name":
            expected = re.match(r"(?:@.*\n)*(?:async )?def (\w+)", code)[1]
        elif task == "is_method":
            expected = "yes" if re.match(r"(?:async )?def \w+\(\s*(self|cls)\b", code) else "no"
        elif task == "has_docstring":
            expected = "yes" if re.search(r":[^\n]*\n(\s*\n)*\s+[rR]?('''|\"\"\"|\"|')", code) else "no"
        elif task == "docstring":
            expected = answer if answer in code else None
        elif task == "module":
            expected = re.match(r"(?:from|import) ([\w.]+)", code)[1]
        elif task in ("add", "subtract", "multiply"):
            left, sign, right = PROBLEM.search(user_text(row)).groups()
            expected = str(
                {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}[sign](int(left), int(right))
            )
        else:
            continue
        assert answer == expected, row
        num_checked[task] += 1
    assert min(num_checked.values()) >= 8, num_checked
    assert len(num_checked) == 8


def test_arguments_are_those_of_the_signature() -> None:
    text = "async def f(a, /, b: int = 3, *rest: str, c, d=(1, 2), **more):\n    return a\n"
    [function] = find_functions(ast.parse(text), text, max_characters=200)
    assert function.arguments == ("a", "b", "rest", "c", "d", "more")
    assert function.name == "f"


def test_nothing_held_out_is_trained_on(rows: dict[str, list[dict]]) -> None:
    train = [row for name in FILES if name.endswith("train") for row in rows[name]]
    heldout = [row for name in FILES if name.endswith("heldout") for row in rows[name]]
    train_problems = {problem_of(row) for row in train} - {None}
    heldout_problems = {problem_of(row) for row in heldout} - {None}
    assert len(heldout_problems) >= 100
    assert not train_problems & heldout_problems
    train_codes = {code_of(row) for row in train} - {""}
    heldout_codes = {code_of(row) for row in heldout} - {""}
    assert len(heldout_codes) > 100
    for one, other in itertools.product(train_codes, heldout_codes):
        assert one != other
    assert "beginning of selected lines in 'text'" not in "\n".join(heldout_codes)


def test_verifiable_problems_are_asked_once(rows: dict[str, list[dict]]) -> None:
    for name in ("verifiable.train", "verifiable.heldout"):
        problems = Counter(problem_of(row) for row in rows[name])
        assert max(problems.values()) == 1
        for row in rows[name]:
            left, sign, right = PROBLEM.search(user_text(row)).groups()
            result = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}[sign](int(left), int(right))
            assert row["ground_truth"] == str(result)
            names = {"+": "arithmetic/add", "-": "arithmetic/subtract", "*": "arithmetic/multiply"}
            assert row["dataset"] == names[sign]


def value_of(sum_text: str) -> int:
    """Compute `a`, `a op b` or `a op b op c` with one kind of sign, from the left."""
    first, *rest = sum_text.split()
    total = int(first)
    for sign, number in zip(rest[::2], rest[1::2], strict=True):
        total = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}[sign](total, int(number))
    return total


def test_work_is_right_and_shows_no_heldout_problem(documents: tuple[Path, Path], tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"worked_share": 1.0, "arithmetic_share": 0.9})
    synthesize(config, documents=documents[0], heldout_documents=documents[1], out=tmp_path, seed=3)
    read = {
        name: [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        for name in FILES
    }
    hidden = {problem_of(row) for name in FILES if "heldout" in name for row in read[name]} - {None}
    worked: Counter[str] = Counter()
    num_steps: Counter[int] = Counter()
    for row in read["sft.train"]:
        work, _, answer = row["messages"][1]["content"].rpartition("\n")
        if not work:
            continue
        task, form = row["kind"].split("/")
        assert form == "free"
        assert not any(words in user_text(row) for words in ("Answer", "Reply"))
        sides = work.split(" = ")
        assert len(sides) >= 2
        num_steps[len(sides)] += 1
        assert sides[0] == PROBLEM.search(user_text(row))[0]
        assert {value_of(side) for side in sides} == {int(answer.removeprefix("Answer: "))}
        shown = [PROBLEM.fullmatch(side) for side in sides] + [PROBLEM.match(side) for side in sides]
        problems = {(m[2], frozenset({int(m[1]), int(m[3])})) for m in shown if m}
        assert not problems & hidden
        worked[task] += 1
    assert min(worked["add"], worked["subtract"]) > 50
    assert worked["multiply"] >= 3
    assert min(num_steps[sides] for sides in (2, 3, 4)) >= 2  # one step; a long product; by tens and ones
    for row in read["verifiable.train"]:
        assert PROBLEM.search(user_text(row))
        assert "Reply" not in user_text(row)
        assert row["dataset"].startswith("arithmetic-free/")


def test_prompts_are_short_and_different(rows: dict[str, list[dict]]) -> None:
    for name in ("sft.train", "sft.heldout"):
        assert max(sum(len(m["content"]) for m in row["messages"]) for row in rows[name]) <= 450
        assert len({user_text(row) for row in rows[name]}) == len(rows[name])


def test_yes_and_no_are_equally_frequent(rows: dict[str, list[dict]]) -> None:
    replies = Counter(
        "yes" in row["messages"][1]["content"].lower()
        for row in rows["sft.train"]
        if row["kind"].split("/")[0] in ("is_method", "has_docstring")
    )
    assert 0.35 < replies[True] / replies.total() < 0.65


def test_rejected_replies_are_faulty_and_length_does_not_tell(rows: dict[str, list[dict]]) -> None:
    pairs = rows["preference.train"]
    longer = 0
    faults: Counter[str] = Counter()
    for row in pairs:
        chosen, rejected = row["chosen"][0]["content"], row["rejected"][0]["content"]
        assert chosen != rejected
        assert rejected.strip()
        longer += len(rejected) > len(chosen)
        faults[row["kind"].split("/")[0]] += 1
    assert 0.35 < longer / len(pairs) < 0.65
    assert set(faults) == set(FAULTS)
    assert min(faults.values()) >= 0.15 * len(pairs)


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    train = write_documents(tmp_path / "train.parquet", module_texts(["shutil", "calendar"]))
    heldout = write_documents(tmp_path / "heldout.parquet", module_texts(["textwrap", "csv"]))
    config = CONFIG.model_copy(
        update={"sft_train": 100, "sft_heldout": 20, "preference_train": 50, "preference_heldout": 10}
    )
    for folder, seed in (("a", 7), ("b", 7), ("c", 8)):
        synthesize(config, documents=train, heldout_documents=heldout, out=tmp_path / folder, seed=seed)
    for name in FILES:
        a, b, c = ((tmp_path / folder / f"{name}.jsonl").read_bytes() for folder in "abc")
        assert a == b
        assert a != c


def test_too_few_documents_are_refused(documents: tuple[Path, Path], tmp_path: Path) -> None:
    few = write_documents(tmp_path / "few.parquet", ["def f(x):\n    return x\n"])
    with pytest.raises(InputError, match=r"few\.parquet: sft rows need .* give more documents"):
        synthesize(CONFIG, documents=few, heldout_documents=documents[1], out=tmp_path / "out", seed=1)
    with pytest.raises(InputError, match=r"missing\.parquet"):
        synthesize(
            CONFIG,
            documents=tmp_path / "missing.parquet",
            heldout_documents=documents[1],
            out=tmp_path / "out",
            seed=1,
        )
    pq.write_table(pa.table({"body": ["x"]}), tmp_path / "other.parquet")
    with pytest.raises(InputError, match=r"other\.parquet: expected a column 'text'"):
        synthesize(
            CONFIG,
            documents=tmp_path / "other.parquet",
            heldout_documents=documents[1],
            out=tmp_path / "out",
            seed=1,
        )


def test_too_few_problems_are_refused(documents: tuple[Path, Path], tmp_path: Path) -> None:
    config = CONFIG.model_copy(
        update={"arithmetic": ArithmeticConfig(add_max=3, subtract_max=3, multiply_max=3)}
    )
    with pytest.raises(InputError, match=r"different arithmetic questions"):
        synthesize(config, documents=documents[0], heldout_documents=documents[1], out=tmp_path, seed=1)


def test_problems_are_listed_once() -> None:
    config = ArithmeticConfig(add_max=12, subtract_max=9, multiply_max=7)
    additions = list_problems(config, "add")
    brute = {tuple(sorted(pair)) for pair in itertools.product(range(13), repeat=2)}
    assert {tuple(sorted((p.left, p.right))) for p in additions} == brute
    assert len(additions) == len(brute)
    assert all(p.answer >= 0 for p in list_problems(config, "subtract"))
    assert len(list_problems(config, "subtract")) == sum(a >= b for a in range(10) for b in range(10))
    assert {p.answer for p in list_problems(config, "multiply")} == {
        a * b for a in range(2, 8) for b in range(2, 8)
    }


def test_an_operation_without_weight_is_not_asked() -> None:
    config = ArithmeticConfig(add_weight=1, subtract_weight=0, multiply_weight=0, add_max=9)
    train, heldout = split_problems(config, random.Random(0))
    assert list(train) == list(heldout) == ["add"]
    assert not set(train["add"]) & set(heldout["add"])
    assert len(train["add"]) + len(heldout["add"]) == 55
    questions = sample_questions(config, train, 44, random.Random(0))
    assert len({question.problem for question in questions}) == 44  # each problem once before any twice
    everything = sample_questions(config, train, 10**6, random.Random(0))
    assert len({question.text for question in everything}) == len(everything)
    orders = sum(1 if p.left == p.right else 2 for p in train["add"])
    assert len(everything) == 4 * orders


def test_source_is_parsed_and_never_run(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    text = f"import pathlib\npathlib.Path({str(canary)!r}).touch()\ndef f(a):\n    return a\n"
    tree = parse_source(text)
    assert tree is not None
    assert [function.name for function in find_functions(tree, text, max_characters=99)] == ["f"]
    assert not canary.exists()


@pytest.mark.parametrize(
    "text",
    [
        "not python at all",
        "def broken(:\n",
        "x = \0",
        "(" * 5000,
        "\ud800",
    ],
)
def test_what_does_not_parse_is_passed_over(text: str) -> None:
    assert parse_source(text) is None


def test_code_is_dedented_and_cut_at_a_line() -> None:
    text = textwrap.dedent('''
        class C:
            @property
            def first(self):
                """Give the first.

                More."""
                value = 1
                return value

            def second(self): return 2
    ''')
    tree = ast.parse(text)
    [whole] = find_functions(tree, text, max_characters=200)
    assert whole.code == (
        'def first(self):\n    """Give the first.\n\n    More."""\n    value = 1\n    return value'
    )
    assert whole.is_whole
    assert whole.is_summary
    assert whole.docstring == "Give the first."
    assert whole.takes_self
    [cut] = find_functions(tree, text, max_characters=60)
    assert cut.code == 'def first(self):\n    """Give the first.\n\n    More."""'
    assert not cut.is_whole
    assert find_functions(tree, text, max_characters=10) == []


def test_a_form_feed_does_not_shift_the_lines() -> None:
    text = "x = 1\r\n\x0c\r\ndef f(a):\r    b = a\n    return b\n"
    [function] = find_functions(ast.parse(text), text, max_characters=99)
    assert function.code == "def f(a):\n    b = a\n    return b"


def test_questions_that_have_no_one_answer_are_not_asked() -> None:
    text = 'def f(a):\n    """Say a thing\n    over two lines."""\n    b = a\n    return b\n'
    [function] = find_functions(ast.parse(text), text, max_characters=99)
    tasks = {candidate.task: candidate for candidate in list_candidates(function, max_answer_characters=72)}
    assert "docstring" not in tasks  # its first line is half a sentence
    assert tasks["return_line"].answer == "return b"
    assert tasks["return_line"].code.endswith("    b = a")
    assert tasks["num_arguments"].answer == "1"


def test_imports_name_their_module() -> None:
    text = "import os.path\nfrom a.b import (c,\n   d)\nfrom . import e\nimport f, g\n"
    imports = find_imports(ast.parse(text), text, max_characters=99)
    assert [(found.line, found.module) for found in imports] == [
        ("import os.path", "os.path"),
        ("from a.b import c, d", "a.b"),
    ]


@pytest.mark.parametrize(
    ("form", "answer", "reply"),
    [
        ("answer", "run", "Answer: run"),
        ("bracket", "a, b", "[a, b]"),
        ("json", "run", '{"answer": "run"}'),
        ("json", "3", '{"answer": 3}'),
        ("bullet", "run", "- run"),
        ("upper", "yes", "YES"),
        ("lower", "no", "no"),
        ("line", "return x", "return x"),
    ],
)
def test_formats(form: str, answer: str, reply: str) -> None:
    assert render(form, answer) == reply


def test_each_fault_is_what_its_name_says() -> None:
    prompt = Prompt(
        text="Name this function. Reply as [X].\n\ndef parse_header(self):\n    return self.header",
        answer="parse_header",
        format="bracket",
        task="function_name",
        code="def parse_header(self):\n    return self.header",
    )
    others = ["read_line", "parse_header"]
    for seed in range(50):
        made = {fault: spoil(prompt, fault, others, random.Random(seed)) for fault in FAULTS}
        assert made["other_answer"] == "[read_line]"
        assert made["wrong_format"] != "[parse_header]"
        assert "parse_header" in made["wrong_format"]
        assert "[parse_header]".startswith(made["truncated"])
        assert len(made["truncated"]) >= 3
        assert made["ramble"].startswith("[parse_header]\n")
        assert made["echo"] == "return self.header"
    number = Prompt(text="2 + 2 = ?", answer="4", format="answer", task="add", code="")
    assert spoil(number, "other_answer", ["5"], random.Random(0)) is None
    assert spoil(number, "echo", [], random.Random(0)) is None
    assert spoil(number, "truncated", [], random.Random(0)) is None


def test_an_answer_that_no_other_code_offers_is_not_borrowed() -> None:
    prompt = Prompt(text="", answer="run", format="answer", task="function_name", code="def run(): ...")
    assert spoil(prompt, "other_answer", ["run", "runner"], random.Random(0)) is None


def test_tasks_have_weights_and_wordings() -> None:
    for task in TASKS.values():
        assert task.weight > 0
        assert len(set(task.questions)) == len(task.questions) >= 2


def test_a_problem_knows_its_answer() -> None:
    assert Problem("add", 27, 8).answer == 35
    assert Problem("subtract", 27, 8).answer == 19
    assert Problem("multiply", 12, 7).answer == 84
