"""The page: its head, its sections in order, its foot."""

from importlib.resources import files
from pathlib import Path

from pylm.files import atomic_path
from pylm.report.evaluations import compression_section, evaluation_section, samples_section
from pylm.report.headline import headline
from pylm.report.html import Html, element, join
from pylm.report.provenance import data_section, recipe_section, time_section
from pylm.report.run_folder import RunFolder, read_run
from pylm.report.training import dpo_section, pretrain_section, rlvr_section, sft_section

_SECTIONS = (
    ("data", "Data", data_section),
    ("pretraining", "Pretraining", pretrain_section),
    ("compression", "Compression", compression_section),
    ("sft", "Instruction tuning", sft_section),
    ("preferences", "Preference tuning", dpo_section),
    ("reinforcement", "Reinforcement", rlvr_section),
    ("evaluation", "Evaluation", evaluation_section),
    ("samples", "Samples", samples_section),
    ("time", "Time", time_section),
    ("recipe", "Recipe", recipe_section),
)


def write_report(run: Path, out: Path | None = None) -> Path:
    """Write the report of a run as one HTML file that needs nothing else.

    Shows what the folder holds and names what it lacks. The same folder gives the same bytes.

    Args:
        run: folder of the run.
        out: file to write; None writes `report.html` into the folder.

    Returns:
        The file.

    Raises:
        InputError: there is no such folder, or a file in it is not what its name says.
    """
    path = out or run / "report.html"
    page = render_page(read_run(run))
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8", newline="\n")
    return path


def render_page(run: RunFolder) -> Html:
    """Make the whole document."""
    sections = [
        (anchor, title, content) for anchor, title, make in _SECTIONS if (content := make(run)) is not None
    ]
    style = files("pylm.report").joinpath("style.css").read_text(encoding="utf-8")
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", f"{run.name} \u00b7 pylm"),
        element("style", Html(style)),
    )
    navigation = element(
        "nav",
        *(element("a", title, href=f"#{anchor}") for anchor, title, _ in sections),
        aria_label="Sections",
    )
    body = element(
        "body",
        element("header", headline(run), navigation),
        element(
            "main",
            _missing(run),
            *(
                element(
                    "section",
                    element("h2", title, id=f"{anchor}-title"),
                    content,
                    id=anchor,
                    aria_labelledby=f"{anchor}-title",
                )
                for anchor, title, content in sections
            ),
        ),
        element("footer", "Written by ", element("code", "pylm report"), " from the files of the run alone."),
    )
    return join([Html("<!doctype html>\n"), element("html", head, body, lang="en"), Html("\n")])


def _missing(run: RunFolder) -> Html | None:
    if not run.missing:
        return None
    names = [join([element("code", name), ", "]) for name in run.missing[:-1]]
    return element(
        "p",
        "This run is not complete. Missing: ",
        *names,
        element("code", run.missing[-1]),
        ".",
        class_="notice",
    )
