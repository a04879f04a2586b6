"""The stages of a run: what each needs, when it is complete, how it is started.

Every stage owns one folder of the run and leaves `stage.json` in it: `running` with a fingerprint while
it works, `complete` with a summary and the time of all attempts at the end. The fingerprint covers the
stage's part of the recipe, the seed, the files it reads and the fingerprints of the stages it needs. So a
stage is redone exactly when something that it depends on has changed, and continued when it was cut off. What
it had completed stays beside it until the new output is complete, and comes back when the new input is
refused.
"""

import errno
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import xxhash

from pylm import __version__
from pylm.config import Config
from pylm.errors import InputError
from pylm.files import atomic_path, lock_folder, read_json, write_json
from pylm.recipe import Recipe, load_recipe
from pylm.train.clock import StageClock
from pylm.train.parallel import World, barrier, start_world
from pylm.train.progress import Progress

Summary = Mapping[str, object]

FORMAT = 1
"""Raised when a stage's output changes for the same recipe, so that older folders are redone."""


@dataclass(frozen=True)
class Run:
    """What a stage gets to work with.

    Attributes:
        recipe: all of it.
        folder: of the run.
        world: ranks.
        input_files: by stage, path, size and time of change of the files that its configuration names; a
            call lists them once.
    """

    recipe: Recipe
    folder: Path
    world: World
    input_files: dict[str, list[tuple[str, int, int]]] = field(default_factory=dict)

    @property
    def train_documents(self) -> Path:
        """Prepared documents to train on."""
        return self.folder / "prepare" / "train.parquet"

    @property
    def heldout_documents(self) -> Path:
        """Prepared documents that no training sees."""
        return self.folder / "prepare" / "heldout.parquet"

    @property
    def tokenizer(self) -> Path:
        """The trained tokenizer."""
        return self.folder / "tokenizer" / "tokenizer.json"

    def model(self, stage: str) -> Path:
        """The model that a stage left."""
        return self.folder / STAGES[stage].folder / "model"

    def rows(self, given: Sequence[Path], kind: str, split: str) -> list[Path]:
        """The rows that the recipe names, or those that were synthesized."""
        return list(given) or [self.folder / "rows" / f"{kind}.{split}.jsonl"]


@dataclass(frozen=True)
class Stage:
    """One step of a run.

    Attributes:
        name: of the command.
        folder: below the run's folder; the stage owns all in it.
        needs: the stages whose output it reads.
        config: the recipe's part that decides it.
        work: does it and returns its summary.
        all_ranks: every rank works; otherwise rank 0 does and the others wait.
    """

    name: str
    folder: str
    needs: Callable[[Recipe], Sequence[str]]
    config: Callable[[Recipe], Config | None]
    work: Callable[[Run], Summary]
    all_ranks: bool = False


def _prepare(run: Run) -> Summary:
    from pylm.data.funnel import format_funnel
    from pylm.data.pipeline import prepare

    with Progress(1, "prepare", enabled=run.world.is_main) as progress:

        def show(done: int, total: int) -> None:
            progress.total = total
            progress.update(done)

        funnel = prepare(
            run.recipe.prepare,
            run.folder / "prepare",
            seed=run.recipe.seed,
            num_workers=run.recipe.num_threads,
            progress=show,
        )
    _say(run, format_funnel(funnel))
    return {"funnel": funnel.to_dict()}


def _tokenizer(run: Run) -> Summary:
    from pylm.data.vocabulary import train_tokenizer

    with Progress(1, "tokenizer", enabled=run.world.is_main) as progress:

        def show(phase: str, done: int, total: int | None) -> None:
            unit = 1 << 20 if phase == "count" else 1  # MiB of text, then tokens
            progress.total = -(-(total or done) // unit)
            progress.update(-(-done // unit), now="counting MiB" if phase == "count" else "merging")

        tokenizer = train_tokenizer(
            run.recipe.tokenizer,
            run.train_documents,
            run.tokenizer,
            seed=run.recipe.seed,
            num_threads=run.recipe.num_threads,
            progress=show,
        )
    return {"vocab_size": tokenizer.vocab_size}


def _tokenize(run: Run) -> Summary:
    from pylm.data.token_statistics import format_table
    from pylm.data.tokenization import tokenize
    from pylm.text import Tokenizer

    tokenizer = Tokenizer.load(run.tokenizer)
    tokens = run.folder / "tokens"
    statistics = {}
    splits = {"train": (run.train_documents, tokens), "heldout": (run.heldout_documents, tokens / "heldout")}
    for split, (documents, out) in splits.items():
        with Progress(1, f"tokenize {split}", enabled=run.world.is_main) as progress:

            def show(done: int, total: int, num_tokens: int, progress: Progress = progress) -> None:
                progress.total = total
                progress.update(done, tokens=num_tokens)

            statistics[split] = tokenize(
                documents,
                tokenizer,
                out,
                num_threads=run.recipe.num_threads,
                progress=show,
                note=lambda line: _say(run, f"tokenize: {line}"),
                allow_empty=split == "heldout",
            )
    _say(run, format_table({name: split for name, split in statistics.items() if split.total.num_docs}))
    return {name: s.to_dict() for name, s in statistics["train"].sources.items()}


def _synthesize(run: Run) -> Summary:
    from pylm.post.synthesize import synthesize

    assert run.recipe.synthesize is not None
    return synthesize(
        run.recipe.synthesize,
        documents=run.train_documents,
        heldout_documents=run.heldout_documents,
        out=run.folder / "rows",
        seed=run.recipe.seed,
    )


def _pretrain(run: Run) -> Summary:
    from pylm.train.pretrain import pretrain

    return pretrain(
        run.recipe.pretrain,
        tokens=run.folder / "tokens",
        tokenizer_path=run.tokenizer,
        out=run.folder / "pretrain",
        seed=run.recipe.seed,
        world=run.world,
    ).to_dict()


def _sft(run: Run) -> Summary:
    from pylm.post.sft import sft

    assert run.recipe.sft is not None
    return sft(
        run.recipe.sft,
        model_dir=run.model("pretrain"),
        rows=run.rows(run.recipe.sft.rows, "sft", "train"),
        heldout_rows=run.rows(run.recipe.sft.heldout_rows, "sft", "heldout"),
        out=run.folder / "sft",
        seed=run.recipe.seed,
        world=run.world,
    ).to_dict()


def _dpo(run: Run) -> Summary:
    from pylm.post.dpo import dpo

    assert run.recipe.dpo is not None
    return dpo(
        run.recipe.dpo,
        model_dir=run.model(_model_before(run.recipe, "dpo")),
        rows=run.rows(run.recipe.dpo.rows, "preference", "train"),
        heldout_rows=run.rows(run.recipe.dpo.heldout_rows, "preference", "heldout"),
        out=run.folder / "dpo",
        seed=run.recipe.seed,
        world=run.world,
    ).to_dict()


def _rlvr(run: Run) -> Summary:
    from pylm.post.rlvr import rlvr

    assert run.recipe.rlvr is not None
    return rlvr(
        run.recipe.rlvr,
        model_dir=run.model(_model_before(run.recipe, "rlvr")),
        rows=run.rows(run.recipe.rlvr.rows, "verifiable", "train"),
        heldout_rows=run.rows(run.recipe.rlvr.heldout_rows, "verifiable", "heldout"),
        out=run.folder / "rlvr",
        seed=run.recipe.seed,
        world=run.world,
    ).to_dict()


def _eval(run: Run) -> Summary:
    from pylm.eval.evaluate import evaluate, read_figures

    figures = {}
    for name in _trained(run.recipe):
        out_json = run.folder / "eval" / f"{name}.json"
        if not out_json.exists():  # measured before this stage was cut off
            _say(run, f"eval: the model of {name}")
            evaluate(
                run.recipe.eval,
                model_dir=run.model(name),
                heldout_documents=run.heldout_documents,
                rows=run.folder / "rows",
                out_json=out_json,
                stage=name,
                seed=run.recipe.seed,
            )
        figures[name] = read_figures(out_json)
    return figures


_MODEL_STAGES = ("pretrain", "sft", "dpo", "rlvr")


def _trained(recipe: Recipe) -> list[str]:
    """Name the stages of a recipe that leave a model, in order."""
    return [name for name in _MODEL_STAGES if getattr(recipe, name) is not None]


def _model_before(recipe: Recipe, name: str) -> str:
    trained = _trained(recipe)
    return trained[trained.index(name) - 1]


def _post_needs(name: str) -> Callable[[Recipe], Sequence[str]]:
    def needs(recipe: Recipe) -> Sequence[str]:
        synthesized = ["synthesize"] if recipe.synthesize is not None else []
        return [_model_before(recipe, name), *synthesized]

    return needs


STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage("prepare", "prepare", lambda r: (), lambda r: r.prepare, _prepare),
        Stage("tokenizer", "tokenizer", lambda r: ("prepare",), lambda r: r.tokenizer, _tokenizer),
        Stage("tokenize", "tokens", lambda r: ("prepare", "tokenizer"), lambda r: r.tokenizer, _tokenize),
        Stage("synthesize", "rows", lambda r: ("prepare",), lambda r: r.synthesize, _synthesize),
        Stage("pretrain", "pretrain", lambda r: ("tokenize",), lambda r: r.pretrain, _pretrain, True),
        Stage("sft", "sft", _post_needs("sft"), lambda r: r.sft, _sft, True),
        Stage("dpo", "dpo", _post_needs("dpo"), lambda r: r.dpo, _dpo, True),
        Stage("rlvr", "rlvr", _post_needs("rlvr"), lambda r: r.rlvr, _rlvr, True),
        Stage("eval", "eval", _trained, lambda r: r.eval, _eval),
    )
}


def run_stages(
    recipe_name: str, overrides: Sequence[str] = (), *, only: str | None = None, redo: bool = False
) -> Path:
    """Bring a run up to date: all stages and the report, or one stage.

    Args:
        recipe_name: path or shipped name.
        overrides: `key=value`.
        only: a stage's name; what it needs must be complete.
        redo: run again what is complete.

    Returns:
        The run's folder.

    Raises:
        InputError: the recipe or an input cannot be used, a needed stage is not complete, or the folder
            is in use by another process.
    """
    recipe = load_recipe(recipe_name, overrides)
    if recipe.num_threads:
        torch.set_num_threads(recipe.num_threads)
    names = [only] if only else [x for x in STAGES if STAGES[x].config(recipe) is not None]
    if only and STAGES[only].config(recipe) is None:
        raise InputError(f"the recipe has no [{only}] table; add one to run this stage")
    changed: list[str] = []  # stages that this call has completed or brought back
    with ExitStack() as stack:
        world = stack.enter_context(start_world())
        run = Run(recipe, recipe.folder, world)
        if world.is_main:
            stack.enter_context(lock_folder(run.folder))
            stack.enter_context(_recipe_file(run, changed))
        barrier()
        for name in names:
            if _bring_up_to_date(run, STAGES[name], redo=redo, explicit=only is not None):
                changed.append(name)
        if only is None and world.is_main:
            from pylm.report import print_summary, write_report

            path = write_report(run.folder)
            print_summary(run.folder, path)
    return run.folder


def _bring_up_to_date(run: Run, stage: Stage, *, redo: bool, explicit: bool) -> bool:
    """Complete a stage; say whether there was anything to do."""
    folder = run.folder / stage.folder
    fingerprint = _fingerprint(run, stage)
    marker = folder / "stage.json"
    known: dict[str, Any] = read_json(marker) if marker.exists() else {}
    same = known.get("fingerprint") == fingerprint
    if same and known["status"] == "complete" and not redo:
        _say(run, f"{stage.name}: complete" + (" (--redo runs it again)" if explicit else ""))
        return False
    previous = run.folder / f".{stage.folder}.previous"
    if not same and not redo and _is_complete(previous, fingerprint):
        barrier()
        if run.world.is_main:
            _restore(previous, folder)
        barrier()
        _say(run, f"{stage.name}: complete, as it was before the recipe changed")
        return True
    _say(run, f"{stage.name}: {'goes on' if same and not redo else 'starts'}")
    barrier()
    # Whether nothing has been begun since: what has, is worth keeping.
    set_aside = not known and previous.exists()
    if run.world.is_main:
        if folder.exists() and (redo or not same):
            if known.get("status") == "complete":
                _discard(previous)
                folder.rename(previous)
                set_aside = True
            else:
                _discard(folder)
        folder.mkdir(parents=True, exist_ok=True)
        resumed = int(known.get("resumed", 0)) + 1 if same and not redo else 0
        write_json(marker, {"status": "running", "fingerprint": fingerprint, "resumed": resumed})
    barrier()
    summary: Summary = {}
    clock = StageClock(folder, goes_on=same and not redo)
    try:
        if run.world.is_main:
            with clock:
                summary = stage.work(run)
        elif stage.all_ranks:
            stage.work(run)
    except (InputError, OSError) as error:
        if run.world.is_main and _is_refusal(error) and (set_aside or _is_complete(previous, fingerprint)):
            _restore(previous, folder)
        raise
    barrier()
    if run.world.is_main:
        elapsed_s = clock.elapsed_s
        done = {
            "status": "complete",
            "stage": stage.name,
            "fingerprint": fingerprint,
            "resumed": resumed,
            "elapsed_s": round(elapsed_s, 3),
            "finished_at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "versions": _versions(run),
            "summary": dict(summary),
        }
        write_json(marker, done)
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        clock.remove()
        attempts = f", in {resumed + 1} attempts" if resumed else ""
        _say(run, f"{stage.name}: complete in {elapsed_s:.1f} s{attempts}")
        _discard(previous)
    barrier()
    return True


def _is_complete(folder: Path, fingerprint: str) -> bool:
    marker = folder / "stage.json"
    known: dict[str, Any] = read_json(marker) if marker.exists() else {}
    return known.get("status") == "complete" and known.get("fingerprint") == fingerprint


def _discard(folder: Path) -> None:
    """Delete a stage's output; the marker first, so that no remains of it pass for complete."""
    if folder.exists():
        (folder / "stage.json").unlink(missing_ok=True)
        shutil.rmtree(folder)


def _restore(previous: Path, folder: Path) -> None:
    _discard(folder)
    previous.rename(folder)


def _is_refusal(error: Exception) -> bool:
    """Whether the input is at fault. After a full disk the same command goes on."""
    return not (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT))


def _fingerprint(run: Run, stage: Stage) -> str:
    """Hash all that a stage's output depends on.

    Raises:
        InputError: a stage that it needs is not complete, or was made from another recipe.
    """
    config = stage.config(run.recipe)
    assert config is not None
    needed = {}
    for name in stage.needs(run.recipe):
        marker = run.folder / STAGES[name].folder / "stage.json"
        known = read_json(marker) if marker.exists() else {}
        if known.get("status") != "complete":
            raise InputError(
                f"{stage.name} needs the output of {name}: run `pylm {name}` on this recipe first"
            )
        if known["fingerprint"] != _fingerprint(run, STAGES[name]):
            raise InputError(
                f"{stage.name} needs the output of {name}, which was made from another recipe, or "
                f"from files that have changed since: run `pylm {name}` on this one first"
            )
        needed[name] = known["fingerprint"]
    if stage.name not in run.input_files:  # many stages ask for those of the first
        run.input_files[stage.name] = _input_files(config)
    files = run.input_files[stage.name]
    parts = [FORMAT, stage.name, config.model_dump_json(), run.recipe.seed, needed, files]
    return xxhash.xxh3_128_hexdigest(repr(parts).encode())


def _input_files(config: Config) -> list[tuple[str, int, int]]:
    """List path, size and time of change of the files that a configuration names."""
    found: list[tuple[str, int, int]] = []
    list_files = getattr(config, "input_files", None)
    for path in list_files() if list_files is not None else ():
        status = Path(path).stat()
        found.append((str(path), status.st_size, status.st_mtime_ns))
    return found


@contextmanager
def _recipe_file(run: Run, changed: Sequence[str]) -> Iterator[None]:
    """Write the recipe into the folder; if it is refused and changed nothing, the old one comes back."""
    path = run.folder / "recipe.json"
    before = path.read_bytes() if path.exists() else None

    def write(content: bytes) -> None:
        with atomic_path(path) as temporary:
            temporary.write_bytes(content)

    write((run.recipe.model_dump_json(indent=2) + "\n").encode())
    try:
        yield
    except (InputError, OSError) as error:
        if before is not None and not changed and _is_refusal(error):
            write(before)
        raise


def _versions(run: Run) -> dict[str, str]:
    return {
        "pylm": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "device": str(run.world.device),
        "threads": str(torch.get_num_threads()),
        "ranks": str(run.world.size),
    }


def _say(run: Run, text: str) -> None:
    if run.world.is_main:
        sys.stderr.write(text + "\n")
        sys.stderr.flush()
