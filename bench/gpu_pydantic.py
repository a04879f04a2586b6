"""As much of pydantic as the configurations of the model and the optimizer need, where it is not installed.

`gpu.sh` puts this file on the path as `pydantic` for the training step, and only there. Values are taken as
they are: limits and types are not checked, validators run.
"""

import inspect
from collections.abc import Callable
from typing import Any, ClassVar

_REQUIRED = object()

ConfigDict = dict


def Field(*, default: Any = _REQUIRED, **limits: Any) -> Any:  # noqa: N802
    """Return the default, which stays the attribute of the class."""
    return default


def model_validator(*, mode: str) -> Callable[[Any], Any]:
    """Mark a method that is called on a new model."""
    assert mode == "after"

    def mark(method: Any) -> Any:
        method.is_validator = True
        return method

    return mark


class BaseModel:
    """A model whose fields are the annotated names of its classes."""

    model_config: ClassVar[Any] = {}

    def __init__(self, **values: Any) -> None:
        classes = [c for c in reversed(type(self).__mro__) if issubclass(c, BaseModel) and c is not BaseModel]
        names = [name for c in classes for name in inspect.get_annotations(c)]
        unknown = values.keys() - set(names)
        if unknown:
            raise ValueError(f"{type(self).__name__} has no fields {sorted(unknown)}; it has {names}")
        for name in names:
            value = values.get(name, getattr(type(self), name, _REQUIRED))
            if value is _REQUIRED:
                raise ValueError(f"{type(self).__name__} needs {name}")
            self.__dict__[name] = value
        for c in classes:
            for member in list(c.__dict__.values()):
                if getattr(member, "is_validator", False):
                    member(self)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{type(self).__name__} is frozen: {name} cannot be set")

    def model_dump(self) -> dict[str, Any]:
        """Return the fields and their values."""
        return dict(self.__dict__)
