"""The wheel: what is in it, and that it works on its own, away from the checkout."""

import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = folder / "build"
    subprocess.run(
        [
            sys.executable, "-m", "pip", "wheel", str(ROOT), "--no-deps", "--no-build-isolation", "-q",
            "-w", str(folder), f"--config-settings=build-dir={build}",
        ],
        check=True,
    )  # fmt: skip
    [path] = folder.glob("*.whl")
    return path


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for name in (
        "py.typed",
        "_core.pyi",
        "kernels/rms_norm.py",
        "recipes/quickstart.toml",
        "report/style.css",
    ):
        assert f"pylm/{name}" in names
    assert any(name.startswith("pylm/_core.") and name.endswith(".so") for name in names)
    assert {name.split("/")[0] for name in names} == {
        "pylm",
        next(n for n in names if "dist-info" in n).split("/")[0],
    }
    metadata = next(name for name in names if name.endswith("METADATA"))
    text = zipfile.ZipFile(wheel).read(metadata).decode()
    assert "Name: pylm-llm\n" in text
    assert "License-Expression: Apache-2.0" in text


def test_the_wheel_works_in_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    install = ["install", "-q", "--no-deps", "--target", str(site), str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", *install], check=True)
    code = (
        f"import sys; sys.path[:0] = [{str(site)!r}, {sysconfig.get_paths()['purelib']!r}]\n"
        "import pylm, pylm.kernels\n"
        f"assert pylm.__file__.startswith({str(site)!r}), pylm.__file__\n"
        "assert pylm.dedup.exact(['a', 'b', 'a']).tolist() == [0, 1, 0]\n"
        "from pylm.recipe import find_recipe\n"
        "print(find_recipe('quickstart'))\n"
    )
    # -S: no .pth files, so that the editable install of the checkout is out of the way.
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(site / "pylm/recipes/quickstart.toml")


@pytest.mark.skipif(sys.platform != "linux", reason="auditwheel is for Linux")
def test_auditwheel_accepts_the_wheel(wheel: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "auditwheel", "show", str(wheel)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "manylinux" in done.stdout
