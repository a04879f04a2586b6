"""The architecture's rules, checked on the code itself."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

LAYERS = ["errors", "files", "config", "kernels", "text", "ops", "data", "model", "train", "post", "eval"]
TOP = ["recipe", "report", "conversation", "stages", "commands", "cli", "__main__"]
GROUNDS = {"text": {"ops", "kernels"}, "ops": {"text"}, "kernels": {"text", "errors", "files", "config"}}


def _modules() -> list[tuple[str, Path]]:
    pairs = [("pylm", ROOT / "pylm"), ("pylm.kernels", ROOT / "kernels")]
    found = []
    for package, folder in pairs:
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            name = ".".join((package, *parts)).removesuffix(".__init__")
            if not (package == "pylm" and parts[0] == "kernels"):
                found.append((name, path))
    return found


def _imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names.add(node.module or "")
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.startswith("pylm.")}


def _layer(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


@pytest.mark.parametrize(("module", "path"), _modules(), ids=lambda x: x if isinstance(x, str) else "")
def test_imports_point_one_way(module: str, path: Path) -> None:
    order = [*LAYERS, *TOP]
    layer = _layer(module)
    if not layer:
        return  # pylm/__init__.py imports the text core lazily
    for name in _imports(path):
        other = _layer(name)
        if other.startswith("_") or other == layer:
            continue
        assert other in order, f"{module} imports {name}, which is in no layer"
        assert order.index(other) <= order.index(layer), f"{module} imports {name}, which comes after it"
        assert other not in GROUNDS.get(layer, set()), f"{module} imports {name}: the grounds stand apart"


def _loaded_by(statement: str, *watched: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(*(m for m in {watched!r} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_text_loads_no_torch() -> None:
    assert _loaded_by("import pylm", "torch", "triton", "numpy") == set()
    assert _loaded_by("import pylm.text", "torch", "triton") == set()


def test_ops_load_no_triton() -> None:
    assert _loaded_by("import pylm.ops", "triton") == set()


def test_help_loads_no_torch() -> None:
    assert _loaded_by("import pylm.cli", "torch") == set()


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("from kernels import get_kernel", "this package is pylm.kernels"),
        ("import kernels.rms_norm", "No module named 'kernels.rms_norm'"),
    ],
)
def test_kernels_refuse_another_name(wanted: str, message: str) -> None:
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); {wanted}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert message in done.stderr


def test_who_asks_for_the_version_of_kernels_is_told_that_there_is_none() -> None:
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import kernels; print(kernels.__version__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0"]


def test_no_long_files() -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for pattern in ("pylm/**/*.py", "kernels/*.py", "csrc/**/*.?pp")
        for path in ROOT.glob(pattern)
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > 600 and "table" not in path.name
    }
    assert not long, f"files over 600 lines; would two names be clearer? {long}"
