"""The standard library of the Python that runs: a corpus that every machine has.

Source files are documents of code. Their docstrings, gathered module by module, and the topics of Python's
own help are documents of prose. Modules are parsed, never imported. A module's code and its docstrings
share a `group`, so that a split never puts one side of a module into training and the other aside.
"""

import ast
import gc
import json
import os
import sysconfig
import warnings
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import pyarrow as pa

from pylm.data.documents import SCHEMA, Piece, SourceConfig, is_unicode
from pylm.data.readers import Batch, Collector, read_pieces
from pylm.errors import InputError

LEFT_OUT = ("site-packages", "dist-packages", "__pycache__", "lib2to3/tests/data")
"""Folders of other packages, compiled files, and test data that is no module."""
MIN_DOCSTRING = 40
"""Characters of the shortest docstring that is taken."""
TOPICS = "pydoc_data/topics.py"
"""Module of the help topics. It is documents of prose only: as code, each topic in it would be in the group
of all others, with escapes that hide the overlap."""


@cache
def library_folder() -> Path:
    """Give the folder of the standard library."""
    return Path(sysconfig.get_paths()["stdlib"])


def list_files(source: SourceConfig) -> list[Path]:
    """List the modules that a source of either kind reads.

    Raises:
        InputError: the source has paths, or the library comes without its source files.
    """
    if source.paths:
        raise InputError(
            f"source {source.name}: {source.kind} reads the library of the Python that runs; "
            f"remove paths={list(source.paths)} or take another kind"
        )
    modules = list_modules()
    if source.kind == "python-source":
        modules = [path for path in modules if module_group(path) != TOPICS]
    if not modules:
        raise InputError(
            f"source {source.name}: no source files of the standard library in {library_folder()}"
        )
    return modules


def list_modules() -> list[Path]:
    """List the library's source files, sorted; tests are among them where they are installed."""
    root = library_folder()
    found = []
    for folder, subfolders, names in os.walk(root):
        place = Path(folder).relative_to(root)
        subfolders[:] = [x for x in subfolders if not _is_left_out(place / x)]
        found += [place / x for x in names if x.endswith(".py")]
    return [root / x for x in sorted(found)]


def _is_left_out(place: Path) -> bool:
    return any(f"/{place.as_posix()}".endswith(f"/{part}") for part in LEFT_OUT)


def module_group(path: Path) -> str:
    """Give the group of a module: its place in the library."""
    return path.relative_to(library_folder()).as_posix()


def group_meta(group: str) -> str:
    """Give the meta data of documents made of a module."""
    return json.dumps({"group": group})


def read_source(source: SourceConfig, pieces: Sequence[Piece]) -> Iterator[Batch]:
    """Read modules as documents of code; those that are not UTF-8 are set aside."""
    for batch in read_pieces(source, pieces):
        groups = [module_group(Path(x)) for x in batch.documents["id"].to_pylist()]
        columns = {name: batch.documents[name] for name in SCHEMA.names}
        columns["id"] = pa.array(groups, pa.string())
        columns["meta"] = pa.array([group_meta(x) for x in groups], pa.string())
        yield Batch(pa.RecordBatch.from_pydict(columns, schema=SCHEMA), batch.bad_rows)


def read_docs(source: SourceConfig, pieces: Sequence[Piece]) -> Iterator[Batch]:
    """Read the docstrings of modules, and the topics of Python's help with the module that holds them."""
    collector = Collector(source.name)
    for piece in pieces:
        group = module_group(Path(piece.path))
        if group == TOPICS:
            for name, text in help_topics(Path(piece.path)).items():
                topic = f"topic:{name}"
                yield from collector.add(doc_id=topic, text=text, meta=group_meta(topic))
        elif prose := docstrings(Path(piece.path).read_bytes()):
            yield from collector.add(doc_id=f"{group}:docstrings", text=prose, meta=group_meta(group))
    yield from collector.flush()


def docstrings(code: bytes) -> str | None:
    """Gather the docstrings of a module, its classes and functions, in order of the text.

    Args:
        code: source of a module, in the encoding that it declares.

    Returns:
        Each docstring under the name of what it documents, blank lines between; None where the code does
        not parse or has none of length.
    """
    was_collecting = gc.isenabled()
    gc.disable()  # a syntax tree has no cycles to collect: parsing takes a quarter less time
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    finally:
        if was_collecting:
            gc.enable()
    parts: list[str] = []
    if text := _docstring(module):
        parts.append(text)
    _collect(module, "", parts)
    return "\n\n".join(parts) + "\n" if parts else None


def _collect(node: ast.AST, prefix: str, parts: list[str]) -> None:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If | ast.Try | ast.ExceptHandler | ast.With):
            _collect(child, prefix, parts)
        elif isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            name = f"{prefix}{child.name}"
            if text := _docstring(child):
                parts.append(f"{name}\n\n{text}")
            if isinstance(child, ast.ClassDef):
                _collect(child, f"{name}.", parts)


def _docstring(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> str | None:
    text = ast.get_docstring(node)
    return text if text and len(text) >= MIN_DOCSTRING and is_unicode(text) else None


def help_topics(path: Path) -> dict[str, str]:
    """Read the topics of Python's help from their module: reference prose by name."""
    for node in ast.parse(path.read_bytes()).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            topics = ast.literal_eval(node.value)
            return {str(name): str(text) for name, text in topics.items()}
    return {}
