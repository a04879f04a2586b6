"""What each format accepts and refuses."""

import pytest

from pylm.eval.formats import is_known, read_answer

ACCEPTED = [
    ("function_name/answer", "Answer: run", "run"),
    ("function_name/bracket", "[__init__]", "__init__"),
    ("function_name/bullet", "- größe", "größe"),
    ("function_name/json", '{"answer": "run"}', "run"),
    ("function_name/json", '{ "answer" : "run" }', "run"),
    ("arguments/answer", "Answer: self, a, b", "self, a, b"),
    ("arguments/bracket", "[self]", "self"),
    ("num_arguments/json", '{"answer": 3}', "3"),
    ("num_arguments/bullet", "- 0", "0"),
    ("docstring/answer", "Answer: Say it, e.g. [so].", "Say it, e.g. [so]."),
    ("docstring/json", '{"answer": "Say it."}', "Say it."),
    ("module/bullet", "- os.path", "os.path"),
    ("is_method/upper", "YES", "yes"),
    ("is_method/lower", "no", "no"),
    ("has_docstring/json", '{"answer": "yes"}', "yes"),
    ("has_docstring/answer", "Answer: no", "no"),
    ("return_line/line", "return", "return"),
    ("return_line/line", "return a + b", "return a + b"),
    ("add/answer", "Answer: 35", "35"),
    ("subtract/answer", "Answer: -3", "-3"),
    ("add/free", "Answer: 35", "35"),
    ("add/free", "12 + 23 = 12 + 20 + 3 = 32 + 3 = 35\nAnswer: 35", "35"),
    ("add/free", "Answer: 34\nAnswer: 35", "35"),
]

REFUSED = [
    ("add/free", "12 + 23 = 35"),
    ("add/free", "Answer: 35\nor so"),
    ("add/free", "12 + 23 = 35 Answer: 35"),
    ("add/free", "\nAnswer: 35"),
    ("add/answer", "12 + 23 = 35\nAnswer: 35"),
    ("function_name/answer", "run"),
    ("function_name/answer", "answer: run"),
    ("function_name/answer", "Answer:run"),
    ("function_name/answer", "Answer: "),
    ("function_name/answer", "Answer:  run"),
    ("function_name/answer", "Answer: run\nAnswer: run"),
    ("function_name/answer", "Answer: run "),
    ("function_name/answer", " Answer: run"),
    ("function_name/answer", "Answer: run it"),
    ("function_name/answer", ""),
    ("function_name/bracket", "[run"),
    ("function_name/bracket", "["),
    ("function_name/bracket", "[]"),
    ("function_name/bracket", "Answer: [run]"),
    ("function_name/bullet", "* run"),
    ("function_name/json", '{"answer": run}'),
    ("function_name/json", '{"answer": "run"'),
    ("function_name/json", '{"answer": "run"} '),
    ("function_name/json", '{"name": "run"}'),
    ("function_name/json", '{"answer": "run", "why": "so"}'),
    ("function_name/json", '["run"]'),
    ("function_name/json", '{"answer": 3}'),
    ("function_name/json", "{" * 100_000),
    ("num_arguments/json", '{"answer": "3"}'),
    ("num_arguments/json", '{"answer": true}'),
    ("num_arguments/json", '{"answer": ' + "9" * 5000 + "}"),
    ("num_arguments/answer", "Answer: three"),
    ("arguments/answer", "Answer: self,a"),
    ("arguments/answer", "Answer: *args"),
    ("is_method/upper", "yes"),
    ("is_method/upper", "Yes"),
    ("is_method/upper", "YES."),
    ("is_method/lower", "YES"),
    ("is_method/lower", "maybe"),
    ("is_method/answer", "Answer: maybe"),
    ("return_line/line", "returned"),
    ("return_line/line", "    return a"),
    ("return_line/line", "Answer: return a"),
    ("docstring/bracket", "[ ]"),
    ("add/answer", "Answer: 35."),
    ("add/answer", "35"),
    ("add/answer", "Answer: 3 5"),
    ("docstring/answer", "Answer: one\u2028Answer: two"),
]


@pytest.mark.parametrize(("kind", "reply", "answer"), ACCEPTED)
def test_accepted(kind: str, reply: str, answer: str) -> None:
    assert read_answer(kind, reply) == answer


@pytest.mark.parametrize(("kind", "reply"), REFUSED)
def test_refused(kind: str, reply: str) -> None:
    assert read_answer(kind, reply) is None


@pytest.mark.parametrize(
    ("kind", "known"),
    [
        ("docstring/json", True),
        ("docstring", False),
        ("docstring/xml", False),
        ("", False),
        ("x/json", False),
    ],
)
def test_known_kinds(kind: str, known: bool) -> None:
    assert is_known(kind) is known
