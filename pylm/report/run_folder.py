"""Read what a run left in its folder; every file may be missing."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from pylm.errors import InputError
from pylm.train.clock import read_clock
from pylm.train.metrics import read_metrics

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
Record = Mapping[str, Json]

TRAINED = ("pretrain", "sft", "dpo", "rlvr")
"""Stages that end in a model, in order."""

_FOLDERS = ("prepare", "tokenizer", "tokens", "rows", *TRAINED, "eval")

TITLES = {"pretrain": "Pretrained", "sft": "SFT", "dpo": "DPO", "rlvr": "RLVR"}


@dataclass(frozen=True)
class RunFolder:
    """The parts of a run that the report shows.

    Attributes:
        path: the folder.
        funnel: `prepare/funnel.json`, or empty.
        stages: `stage.json` of every stage by its folder's name, in the order of the work.
        metrics: training records by stage.
        evaluations: `eval/STAGE.json` by stage.
        recipe: text of the resolved recipe, or empty.
        versions: versions and machine of the last stage.
        missing: files that a complete run has and this one lacks.
    """

    path: Path
    funnel: Record = field(default_factory=dict)
    stages: Mapping[str, Record] = field(default_factory=dict)
    metrics: Mapping[str, Sequence[Record]] = field(default_factory=dict)
    evaluations: Mapping[str, Record] = field(default_factory=dict)
    recipe: str = ""
    versions: Record = field(default_factory=dict)
    missing: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Name of the run: its folder's."""
        return self.path.resolve().name

    @property
    def elapsed_s(self) -> float:
        """Seconds that all stages took together, attempts that were cut off included."""
        return sum(number(stage.get("elapsed_s")) or 0.0 for stage in self.stages.values())


def read_run(path: Path) -> RunFolder:
    """Read a run's folder.

    Raises:
        InputError: there is no such folder, or a file in it is not what its name says.
    """
    if not path.is_dir():
        raise InputError(f"{path}: expected the folder of a run, found none; give runs/NAME")
    wanted = ["prepare/funnel.json"]
    wanted += [f"{stage}/metrics.jsonl" for stage in TRAINED] + [f"eval/{stage}.json" for stage in TRAINED]
    stages = _read_stages(path)
    return RunFolder(
        path=path,
        funnel=_read_object(path / "prepare/funnel.json"),
        stages=stages,
        metrics={
            stage: records
            for stage in TRAINED
            if (file := path / stage / "metrics.jsonl").is_file() and (records := read_metrics(file))
        },
        evaluations={
            stage: value for stage in TRAINED if (value := _read_object(path / "eval" / f"{stage}.json"))
        },
        recipe=_read_recipe(path),
        versions=next(
            (found for stage in reversed(stages.values()) if (found := child(stage, "versions"))), {}
        ),
        missing=tuple(name for name in wanted if not (path / name).is_file()),
    )


def number(value: Json) -> float | None:
    """Return a number as a float and anything else as None."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def child(record: Record, *names: str) -> Record:
    """Follow names into nested objects; an empty object where one is missing."""
    for name in names:
        value = record.get(name)
        if not isinstance(value, Mapping):
            return {}
        record = value
    return record


def column(records: Sequence[Record], name: str) -> tuple[list[float], list[float]]:
    """Return steps and values of one metric, from the records that have it."""
    steps, values = [], []
    for record in records:
        step, value = number(record.get("step")), number(record.get(name))
        if step is not None and value is not None:
            steps.append(step)
            values.append(value)
    return steps, values


def _read_stages(path: Path) -> dict[str, Record]:
    """Read every stage's file, the known stages in order and others after them by name.

    What a stage had completed before the recipe changed lies in a hidden folder and is no part of this run.
    """
    folders = {file.parent.name for file in path.glob("[!.]*/stage.json")}
    names = [name for name in _FOLDERS if name in folders] + sorted(folders - set(_FOLDERS))
    stages = {name: _read_object(path / name / "stage.json") for name in names}
    for name, stage in stages.items():
        if stage.get("status") == "running" and (elapsed_s := read_clock(path / name)):
            stage["elapsed_s"] = elapsed_s
    return dict(stages)


def _read_recipe(path: Path) -> str:
    for name in ("recipe.json", "recipe.toml"):
        if (path / name).is_file():
            return (path / name).read_text(encoding="utf-8", errors="replace")
    return ""


def _read_object(path: Path) -> dict[str, Json]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: expected JSON, got {error}; run the stage again") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a JSON object, got {type(value).__name__}; run the stage again")
    return value
