"""Builds the C++ core with its own tests and its fuzzers and runs them, plain and under sanitizers.

The sanitizer builds take about a minute each: `pytest tests/csrc -m slow`.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TESTS = (
    "parallel",
    "arrow",
    "pretokenize",
    "merges",
    "tokenizer",
    "vocabulary",
    "training",
    "dedup",
    "signals",
    "sentencepiece",
    "shards",
    "suffix_array",
    "substring",
    "index",
    "substring_stages",
    "section_file",
    "normal_form",
)

FUZZERS = (
    *("fuzz_dedup", "fuzz_encode", "fuzz_pretokenize", "fuzz_section_file"),
    *("fuzz_sentencepiece", "fuzz_substring", "fuzz_vocabulary"),
)
SEEDS = ROOT / "tests/csrc/seeds"

# A report ends the process, and its exit code is no test's.
OPTIONS = {
    "ASAN_OPTIONS": "exitcode=99:detect_stack_use_after_return=1:strict_string_checks=1",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "exitcode=99:halt_on_error=1:second_deadlock_stack=1",
}


def _sanitizer_works(sanitize: str, folder: Path) -> bool:
    """Compile, link and run an empty program: the runtime libraries are packages of their own."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or "c++"
    source, program = folder / "empty.cpp", folder / "empty"
    source.write_text("int main() { return 0; }\n")
    command = [compiler, f"-fsanitize={sanitize}", str(source), "-o", str(program)]
    try:
        return all(
            subprocess.run(step, capture_output=True, check=False).returncode == 0
            for step in (command, [str(program)])
        )
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    "sanitize",
    [
        pytest.param("", id="plain"),
        pytest.param("address,undefined", marks=pytest.mark.slow),
        pytest.param("thread", marks=pytest.mark.slow),
    ],
)
def test_core(sanitize: str, tmp_path: Path) -> None:
    if shutil.which("cmake") is None:
        pytest.skip("cmake is not installed")
    if sanitize and not _sanitizer_works(sanitize, tmp_path):
        pytest.skip(f"the compiler has no runtime for -fsanitize={sanitize}")
    build = tmp_path / "build"
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    settings = {
        "CMAKE_BUILD_TYPE": "Debug",
        "CMAKE_CXX_FLAGS_DEBUG": "-O1",
        "PYLM_SANITIZE": sanitize,
        "PYLM_BUILD_MODULE": "OFF",
        "PYLM_BUILD_TESTS": "ON",
    }
    flags = [f"-D{name}={value}" for name, value in settings.items()]
    for command in (
        ["cmake", "-S", str(ROOT), "-B", str(build), *generator, *flags],
        ["cmake", "--build", str(build), "--parallel", str(os.cpu_count() or 1)],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    assert _run(build / "pylm_core_tests") == [f"{name}: ok" for name in TESTS]
    for fuzzer in FUZZERS:
        seeds = SEEDS / fuzzer
        assert _run(build / f"{fuzzer}_replay", seeds) == [f"{len(list(seeds.iterdir()))} files: ok"]


def _run(program: Path, *arguments: Path) -> list[str]:
    """Run to the end without a complaint. Returns the lines of the output."""
    command = [str(program), *map(str, arguments)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **OPTIONS})
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout.splitlines()
