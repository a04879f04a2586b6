"""Make a function call another one in place of a global name, for one copy of the function only.

Attention modules of transformers rotate by a function of their module, `apply_rotary_pos_emb`, so there is
no method to override. The copy made here has the same byte code, but for the name that it looks up, and the
same globals, so whatever else is changed in that module (attention backends, say) is seen by it too.
"""

import dis
import re
from types import CellType, CodeType, FunctionType
from typing import Any


def _looks_up(code: CodeType, name: str) -> bool:
    """Tell whether `name` is a global here, and nothing else of that name is used."""
    uses = [i.opname for i in dis.get_instructions(code) if i.argval == name and i.opcode in dis.hasname]
    return bool(uses) and all(opname == "LOAD_GLOBAL" for opname in uses)


def _wrapped(function: FunctionType) -> list[tuple[int, FunctionType]]:
    """List the functions that a decorator's wrapper holds, with the places of their cells."""
    found = []
    for index, cell in enumerate(function.__closure__ or ()):
        try:
            content = cell.cell_contents
        except ValueError:  # not filled yet
            continue
        if isinstance(content, FunctionType) and content is not function:
            found.append((index, content))
    return found


def find_global(function: Any, pattern: str) -> tuple[str, dict[str, Any]] | None:
    """Find a global that a function, or one that its decorators wrap, calls.

    Args:
        function: a plain function; anything else has none.
        pattern: a regular expression that the start of the name must match.

    Returns:
        The name and the globals it is looked up in, or None.
    """
    if not isinstance(function, FunctionType):
        return None
    for name in function.__code__.co_names:
        if re.match(pattern, name) and name in function.__globals__ and _looks_up(function.__code__, name):
            return name, function.__globals__
    for _, inner in _wrapped(function):
        found = find_global(inner, pattern)
        if found is not None:
            return found
    return None


def rebind_global(function: FunctionType, name: str, other: str) -> FunctionType:
    """Copy a function so that it, or what its decorators wrap, looks up `other` where it looked up `name`.

    Args:
        function: one in which `find_global` finds `name`.
        name: the global to look past.
        other: the global to take instead; must be in the globals of the function that uses it.
    """
    code, cells = function.__code__, list(function.__closure__ or ())
    replaced = {}
    if name in code.co_names and _looks_up(code, name):
        code = code.replace(co_names=tuple(other if n == name else n for n in code.co_names))
    else:
        for index, inner in _wrapped(function):
            if find_global(inner, re.escape(name) + "$") is not None:
                replaced[inner] = rebind_global(inner, name, other)
                cells[index] = CellType(replaced[inner])
    copy = FunctionType(code, function.__globals__, function.__name__, function.__defaults__, tuple(cells))
    copy.__kwdefaults__ = function.__kwdefaults__
    copy.__dict__.update(function.__dict__)
    copy.__qualname__, copy.__doc__, copy.__module__ = (
        function.__qualname__,
        function.__doc__,
        function.__module__,
    )
    copy.__annotations__ = function.__annotations__
    wrapped = function.__dict__.get("__wrapped__")
    if wrapped in replaced:
        copy.__dict__["__wrapped__"] = replaced[wrapped]
    return copy
