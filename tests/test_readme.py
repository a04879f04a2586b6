"""What the README and the guide say: their Python runs, their commands exist, their links lead somewhere."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from pylm.cli import app
from pylm.recipe import find_recipe

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMES = [page.name for page in PAGES]


def blocks(page: Path, language: str) -> list[str]:
    """Give the fenced blocks of a page that are marked with a language ("" for none), but for doctests."""
    parts = re.split(r"^```(.*)\n", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    fenced = zip(parts[1::4], parts[2::4], strict=True)  # text, opening mark, content, closing mark, text ...
    return [content for mark, content in fenced if mark == language and not content.startswith(">>>")]


def shell_lines() -> list[tuple[str, str]]:
    return [
        (page.name, line.split("#")[0].strip())
        for page in PAGES
        for block in blocks(page, "console")
        for line in block.splitlines()
        if line.strip()
    ]


@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.name
)
def test_python_runs(page: Path, tmp_path: Path) -> None:
    code = "\n".join(blocks(page, "python"))
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_commands_of_the_shell_exist() -> None:
    commands = get_command(app).commands  # type: ignore[attr-defined]
    found = set()
    for page, line in shell_lines():
        words = line.split()
        if "pylm" in words[:1] or ("-m" in words and words[words.index("-m") + 1] == "pylm"):
            name, *rest = words[words.index("pylm") + 1 :]
            assert name in commands, f"{page}: {line}"
            found.add(name)
            if rest and rest[0] == "quickstart":
                assert find_recipe("quickstart").is_file()
    assert {"run", "prepare", "pretrain", "report", "generate", "chat"} <= found


def test_targets_of_make_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    named = {line.split()[1] for _, line in shell_lines() if line.startswith("make ")}
    assert {"quickstart", "test"} <= named <= targets


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_to_files(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_tree_of_the_readme_is_there() -> None:
    tree = next(block for block in blocks(ROOT / "README.md", "") if block.startswith("csrc/"))
    parent = ROOT
    for line in tree.splitlines():
        name = line.split()[0]
        if name.endswith("/") and (name == "pylm/" or not line.startswith(" ")):
            parent = ROOT / name
            assert parent.is_dir(), name
        elif name.endswith("/"):
            assert (ROOT / "pylm" / name).is_dir(), name
