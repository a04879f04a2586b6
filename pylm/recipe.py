"""A recipe: everything that decides a run, read from TOML and overridden by `key=value`."""

import difflib
import tomllib
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError, field_validator

from pylm.config import Config
from pylm.data.pipeline import PrepareConfig
from pylm.data.vocabulary import TokenizerConfig
from pylm.errors import InputError
from pylm.eval.evaluate import EvalConfig
from pylm.post.dpo import DPOConfig
from pylm.post.rlvr import RLVRConfig
from pylm.post.sft import SFTConfig
from pylm.post.synthesize import SynthesizeConfig
from pylm.train.pretrain import PretrainConfig


class Recipe(Config):
    """The whole of a run. A stage whose table is absent is left out."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run; its folder is `runs/NAME` unless `out` says otherwise."""
    seed: int = Field(0, ge=0, lt=1 << 63)
    """Decides every draw: splits, order of batches, initial weights, samples."""
    out: Path | None = None
    """Folder of the run."""
    num_threads: int = Field(0, ge=0)
    """Threads for tensors and text; 0 takes all cores."""
    prepare: PrepareConfig
    """Sources, filters, deduplication, held-out split."""
    tokenizer: TokenizerConfig = Field(default_factory=TokenizerConfig)
    """Byte-level BPE."""
    synthesize: SynthesizeConfig | None = None
    """Rows for post-training made from the documents."""
    pretrain: PretrainConfig
    """Model, data mixture, schedule."""
    sft: SFTConfig | None = None
    """Instruction tuning."""
    dpo: DPOConfig | None = None
    """Preference tuning."""
    rlvr: RLVRConfig | None = None
    """Reinforcement on verifiable rewards."""
    eval: EvalConfig = Field(default_factory=EvalConfig)
    """What is measured on each stage's model."""

    @field_validator("out", mode="before")
    @classmethod
    def _refuse_empty(cls, value: object) -> object:
        if value == "":
            raise ValueError("out must name a folder; leave it away for runs/NAME")
        return value

    @property
    def folder(self) -> Path:
        """The folder of the run."""
        return self.out or Path("runs") / self.name


def find_recipe(name: str) -> Path:
    """Find a recipe: a path, or the name of one that comes with pylm (such as `quickstart`).

    Raises:
        InputError: there is no such file; names the recipes there are.
    """
    path = Path(name)
    if path.is_file():
        return path
    package = Path(__file__).parent
    shipped = {x.stem: x for root in (package, package.parent) for x in sorted(root.glob("recipes/*.toml"))}
    if path.stem in shipped and path.suffix in ("", ".toml") and len(path.parts) == 1:
        return shipped[path.stem]
    raise InputError(
        f"no recipe at {name}; give the path of a TOML file, or one of: {', '.join(sorted(shipped))}"
    )


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply overrides.

    Args:
        name: path or shipped name, see `find_recipe`.
        overrides: `dotted.key=value`; the value is TOML (`3`, `0.1`, `true`, `[1, 2]`), or else a string.

    Raises:
        InputError: not TOML, an unknown key (with the nearest known one), a value of the wrong kind.

    Example:
        >>> load_recipe("quickstart", ["pretrain.num_steps=10"]).pretrain.num_steps
        10
    """
    path = find_recipe(name)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start}; recipes are UTF-8 TOML") from error
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path}: not TOML: {error}") from error
    for override in overrides:
        _apply(values, override)
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{path}: {_explain(error)}") from error


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise InputError(
            f"override {override!r} is not of the form key=value, such as pretrain.num_steps=100"
        )
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *parents, last = key.split(".")
    table: Any = values
    for name in parents:
        if isinstance(table, list) and name.isdigit():
            if int(name) >= len(table):
                raise InputError(
                    f"override {override!r}: there is no entry {name}; they count from 0 to {len(table) - 1}"
                )
            table = table[int(name)]
        else:
            table = _child(table, name, override)
    if isinstance(table, list) and last.isdigit() and int(last) < len(table):
        table[int(last)] = value
    elif isinstance(table, dict):
        table[last] = value
    else:
        raise InputError(f"override {override!r}: {'.'.join(parents)} is not a table")


def _child(table: Any, name: str, override: str) -> Any:
    if not isinstance(table, dict):
        raise InputError(f"override {override!r}: what holds {name!r} is not a table")
    return table.setdefault(name, {})


def _explain(error: ValidationError) -> str:
    """Put the first fault into one line, with the nearest known key for an unknown one."""
    fault = error.errors()[0]
    place = ".".join(str(x) for x in fault["loc"])
    if fault["type"] == "extra_forbidden":
        names = _known_keys(fault["loc"][:-1])
        near = difflib.get_close_matches(str(fault["loc"][-1]), names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(names)}"
        return f"unknown key {place}; {hint}"
    if fault["type"] == "missing":
        return f"missing key {place}"
    return f"{place}: {fault['msg'].removeprefix('Value error, ')}, got {str(fault['input'])[:80]!r}"


def _known_keys(location: Sequence[int | str]) -> list[str]:
    models: list[type[BaseModel]] = [Recipe]
    for name in location:
        fields = [m.model_fields[str(name)] for m in models if str(name) in m.model_fields]
        if fields:
            models = [m for f in fields for m in _models_in(f.annotation)]
    return sorted({key for m in models for key in m.model_fields})


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if isinstance(annotation, types.GenericAlias | types.UnionType) or typing.get_origin(annotation):
        return [m for x in typing.get_args(annotation) for m in _models_in(x)]
    return []
