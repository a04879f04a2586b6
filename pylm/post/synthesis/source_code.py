"""Read functions and imports out of Python source with `ast`; nothing is imported or executed."""

import ast
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Function:
    """One function definition and what can be asked about it.

    Attributes:
        name: its name.
        arguments: names of its parameters in order, `self` included, without stars.
        code: its dedented source from the `def` line, cut at a line's end when it is too long; the
            signature is always whole.
        is_whole: whether `code` holds the whole function.
        docstring: first line of its docstring, or None where it has none.
        is_summary: whether that line is a paragraph of its own, so that it says a whole thing.
    """

    name: str
    arguments: tuple[str, ...]
    code: str
    is_whole: bool
    docstring: str | None
    is_summary: bool

    @property
    def takes_self(self) -> bool:
        """Whether the first parameter is `self` or `cls`."""
        return bool(self.arguments) and self.arguments[0] in ("self", "cls")


@dataclass(frozen=True)
class Import:
    """One import statement on one line and the single module that it names."""

    line: str
    module: str


def parse_source(text: str) -> ast.Module | None:
    """Parse Python source.

    Args:
        text: anything; prose and broken source are fine.

    Returns:
        The tree, or None where `text` is not Python source that this interpreter can parse.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def find_functions(tree: ast.Module, text: str, *, max_characters: int) -> list[Function]:
    """List the functions of a module in source order.

    Args:
        tree: the parsed module.
        text: its source.
        max_characters: longest `code` of a function.

    Returns:
        Functions whose signature fits; methods and nested functions included.
    """
    lines = re.split("\r\n|\r|\n", text)  # as the parser counts them; str.splitlines also cuts at form feeds
    nodes = (node for node in _statements(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    functions = (_read_function(node, lines, max_characters) for node in nodes)
    return [function for function in functions if function is not None]


def find_imports(tree: ast.Module, text: str, *, max_characters: int) -> list[Import]:
    """List the one-line imports of a module that name a single module and fit `max_characters`."""
    imports = []
    for node in _statements(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            module = node.module
        elif isinstance(node, ast.Import) and len(node.names) == 1:
            module = node.names[0].name
        else:
            continue
        line = ast.unparse(node)
        if len(line) <= max_characters:
            imports.append(Import(line=line, module=module))
    return imports


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    """Walk the statements below `node` in source order; expressions, nine nodes in ten, are left aside."""
    for name in ("body", "handlers", "orelse", "finalbody", "cases"):
        for child in getattr(node, name, ()):
            yield child
            yield from _statements(child)


def _read_function(node: FunctionNode, lines: list[str], max_characters: int) -> Function | None:
    if node.body[0].lineno <= node.lineno:  # a body on the line of its `def`
        return None
    source = _dedent(lines[node.lineno - 1 : node.end_lineno])
    if source is None:
        return None
    signature_lines = node.body[0].lineno - node.lineno
    kept: list[str] = []
    num_characters = 0
    for line in source:
        num_characters += len(line) + 1
        if num_characters > max_characters:
            break
        kept.append(line)
    if len(kept) <= signature_lines:
        return None
    is_whole = len(kept) == len(source)
    while kept and not kept[-1]:
        kept.pop()
    docstring = (ast.get_docstring(node) or "").strip()
    docstring_lines = docstring.splitlines()
    return Function(
        name=node.name,
        arguments=tuple(_argument_names(node.args)),
        code="\n".join(kept),
        is_whole=is_whole,
        docstring=docstring_lines[0].strip() if docstring_lines else None,
        is_summary=len(docstring_lines) == 1 or (len(docstring_lines) > 1 and not docstring_lines[1].strip()),
    )


def _dedent(lines: list[str]) -> list[str] | None:
    """Take the first line's indent off every line; None where a line has less (or mixes tabs)."""
    first = lines[0]
    indent = first[: len(first) - len(first.lstrip())]
    dedented = []
    for line in lines:
        stripped = line.rstrip()
        if stripped and not line.startswith(indent):
            return None
        dedented.append(stripped[len(indent) :])
    return dedented


def _argument_names(arguments: ast.arguments) -> list[str]:
    names = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args)]
    if arguments.vararg:
        names.append(arguments.vararg.arg)
    names += [argument.arg for argument in arguments.kwonlyargs]
    if arguments.kwarg:
        names.append(arguments.kwarg.arg)
    return names
