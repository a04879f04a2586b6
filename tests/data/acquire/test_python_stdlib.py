import gc
import json
import re
import textwrap
from pathlib import Path

import pytest
from oracles.overlap import ngrams

from pylm.data.acquire import python_stdlib
from pylm.data.documents import Piece, SourceConfig, group_of
from pylm.data.readers import Batch
from pylm.errors import InputError

SOURCE = SourceConfig(name="code", kind="python-source")
DOCS = SourceConfig(name="docs", kind="python-docs")


def code(text: str) -> bytes:
    return textwrap.dedent(text).lstrip("\n").encode()


LONG = "Words enough for a docstring that is taken, {}."


def test_docstrings_in_order_of_the_text() -> None:
    module = f'''
        """{LONG.format("of the module")}"""
        import sys
        def first():
            """
            {LONG.format("of a function")}

                Indented.
            """
            def inner():
                """{LONG.format("of no interest")}"""
        class Outer:
            "{LONG.format("of a class")}"
            async def method(self):
                """{LONG.format("of a method")}"""
            class Inner:
                def short(self):
                    """Too short."""
                def deep(self):
                    """{LONG.format("deep inside")}"""
        try:
            import fast
        except ImportError:
            if sys.maxsize:
                def fallback():
                    """{LONG.format("of a fallback")}"""
    '''
    assert python_stdlib.docstrings(code(module)) == "\n\n".join(
        [
            LONG.format("of the module"),
            f"first\n\n{LONG.format('of a function')}\n\n    Indented.",
            f"Outer\n\n{LONG.format('of a class')}",
            f"Outer.method\n\n{LONG.format('of a method')}",
            f"Outer.Inner.deep\n\n{LONG.format('deep inside')}",
            f"fallback\n\n{LONG.format('of a fallback')}\n",
        ]
    )


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"x = 1\n",
        b'"""Short."""\n',
        b"def f(:\n",
        b"x = '\0'\n",
        b"# coding: no-such-coding\n",
        b'"\xff' + b"x" * 50 + b'"\n',
        b"(" * 1000 + b")" * 1000,
        b'"\\ud800' + b"x" * 50 + b'"\n',
    ],
)
def test_modules_without_docstrings(text: bytes) -> None:
    assert gc.isenabled()
    assert python_stdlib.docstrings(text) is None
    assert gc.isenabled()


def test_declared_encodings_are_read() -> None:
    text = "# coding: latin-1\n'''" + "é" * 40 + "'''\n"
    assert python_stdlib.docstrings(text.encode("latin-1")) == "é" * 40 + "\n"


def test_help_topics(tmp_path: Path) -> None:
    path = tmp_path / "topics.py"
    path.write_text("# made\nx = 1\ntopics = {'a': 'one\\n'\n 'two', 'b': r'''three'''}\n")
    assert python_stdlib.help_topics(path) == {"a": "one\ntwo", "b": "three"}
    path.write_text("x = 1\n")
    assert python_stdlib.help_topics(path) == {}


def make_library(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    files = {
        "a.py": f'"""{LONG.format("of a")}"""\n'.encode(),
        "email/b.py": f'"""{LONG.format("of b")}"""\nx = 1\n'.encode(),
        "email/__pycache__/c.py": b"x\n",
        "site-packages/d/e.py": b"x\n",
        "dist-packages/f.py": b"x\n",
        "lib2to3/tests/data/g.py": b"x\n",
        "lib2to3/tests/data_h.py": b"y = 1\n",
        "latin.py": b"# coding: latin-1\nx = '\xe9'\n",
        "pydoc_data/topics.py": b"topics = {'assert': 'The assert statement', 'for': 'The for statement'}\n",
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    monkeypatch.setattr(python_stdlib, "library_folder", lambda: folder)
    return [folder / name for name in files]


def pieces(source: SourceConfig) -> list[Piece]:
    return [Piece(str(path)) for path in python_stdlib.list_files(source)]


def rows(batches: list[Batch]) -> list[dict[str, object]]:
    return [row for batch in batches for row in batch.documents.to_pylist()]


def test_a_small_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_library(tmp_path, monkeypatch)
    listed = [path.relative_to(tmp_path).as_posix() for path in python_stdlib.list_modules()]
    modules = ["a.py", "email/b.py", "latin.py", "lib2to3/tests/data_h.py", "pydoc_data/topics.py"]
    assert listed == modules
    read = list(python_stdlib.read_source(SOURCE, pieces(SOURCE)))
    names = ["a.py", "email/b.py", "lib2to3/tests/data_h.py"]
    assert [(row["id"], json.loads(str(row["meta"]))) for row in rows(read)] == [
        (name, {"group": name}) for name in names
    ]
    assert [row["text"] for row in rows(read)] == [(tmp_path / name).read_text() for name in names]
    assert [(Path(x.place).name, x.reason) for batch in read for x in batch.bad_rows] == [
        ("latin.py", "not_utf8")
    ]
    documents = rows(list(python_stdlib.read_docs(DOCS, pieces(DOCS))))
    assert [(row["id"], group_of(str(row["id"]), str(row["meta"]))) for row in documents] == [
        ("a.py:docstrings", "a.py"),
        ("email/b.py:docstrings", "email/b.py"),
        ("topic:assert", "topic:assert"),
        ("topic:for", "topic:for"),
    ]
    assert documents[2]["text"] == "The assert statement"


def test_a_library_without_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(python_stdlib, "library_folder", lambda: tmp_path)
    with pytest.raises(
        InputError, match=f"source code: no source files of the standard library in {tmp_path}"
    ):
        python_stdlib.list_files(SOURCE)


def test_paths_are_refused() -> None:
    source = SourceConfig(name="code", kind="python-source", paths=("x",))
    with pytest.raises(InputError, match=r"python-source reads the library .*; remove paths=\['x'\]"):
        python_stdlib.list_files(source)


def test_the_library_that_runs() -> None:
    """The help's topics are prose only: no document of code holds the words of one."""
    library = python_stdlib.library_folder()
    assert (library / "json" / "decoder.py") in python_stdlib.list_modules()
    assert library / python_stdlib.TOPICS not in python_stdlib.list_files(SOURCE)
    chosen = [Piece(str(library / name)) for name in ("json/decoder.py", python_stdlib.TOPICS, "heapq.py")]
    documents = {
        str(row["id"]): str(row["text"]) for row in rows(list(python_stdlib.read_docs(DOCS, chosen)))
    }
    assert "Simple JSON <https://json.org> decoder" in documents["json/decoder.py:docstrings"]
    assert re.match(r"Heap queue algorithm", documents["heapq.py:docstrings"])
    topics = [name for name in documents if name.startswith("topic:")]
    assert len(topics) > 50
    assert len(ngrams(documents["topic:assert"], 13)) > 50
