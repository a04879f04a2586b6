"""A pytest plugin with a GPU that is not there: Triton compiles for an H100 and launches into `libcuda.c`.

    PYTHONPATH=tests python -m pytest -p oracles.fake_gpu tests/kernels/starts.py

CPU tensors stand for those of the GPU. Nothing is computed; what each launch was given is noted down.
"""

import ctypes
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

_FOLDER = tempfile.TemporaryDirectory()
os.environ["TRITON_LIBCUDA_PATH"] = _FOLDER.name
os.environ["TRITON_CACHE_DIR"] = str(Path(_FOLDER.name) / "cache")
os.environ.pop("TRITON_INTERPRET", None)
assert "triton" not in sys.modules, "load this plugin before triton"

import torch  # noqa: E402
import triton  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.backends.nvidia import driver as nvidia  # noqa: E402

_MAX_PARAMS = 64
_BYTES = {"i1": 1, "i8": 1, "i32": 4, "i64": 8, "u64": 8, "fp32": 4, "fp64": 8}


class _Noted(ctypes.Structure):
    _fields_ = (
        ("function", ctypes.c_uint64),
        ("stream", ctypes.c_uint64),
        ("grid", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32),
        ("shared", ctypes.c_uint32),
        ("params", ctypes.c_uint64 * _MAX_PARAMS),
    )


class Launch(NamedTuple):
    """What cuLaunchKernelEx was given."""

    function: int
    stream: int
    grid: tuple[int, ...]
    block: int
    shared: int
    params: tuple[int, ...]


def _load() -> ctypes.CDLL:
    source = Path(__file__).with_name("libcuda.c")
    library = Path(_FOLDER.name) / "libcuda.so.1"
    include = Path(nvidia.__file__).parent / "include"
    flags = ["-shared", "-fPIC", "-O1", "-w", "-Wl,-soname,libcuda.so.1", "-I", str(include)]
    subprocess.run(["cc", *flags, str(source), "-o", str(library)], check=True)
    library.with_name("libcuda.so").symlink_to(library)
    # Triton's C code opens it by its name, and finds what is loaded.
    loaded = ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    loaded.launch_at.restype = ctypes.POINTER(_Noted)
    loaded.count_launches.restype = ctypes.c_uint64
    return loaded


LIBCUDA = _load()


def _sizes(kind: str) -> list[int]:
    """Return the bytes of what a parameter of the kernel becomes; of a tensor map those that are noted."""
    if kind == "constexpr":
        return []
    if kind.startswith("tensordesc"):
        rank = kind.partition("[")[2].partition("]")[0].count(",") + 1
        return [8, *[4] * rank, *[8] * rank]
    return [8 if kind.startswith("*") else _BYTES[kind]]


class _Launcher(nvidia.CudaLauncher):
    """Triton's launcher, which tells the library the sizes of the parameters beforehand."""

    def __init__(self, src: Any, metadata: Any) -> None:
        super().__init__(src, metadata)
        sizes = [size for kind in src.signature.values() for size in _sizes(kind)] + [8, 8]
        self._sizes = (ctypes.c_int * len(sizes))(*sizes)

    def __call__(self, *args: Any) -> None:
        LIBCUDA.note_sizes(self._sizes, len(self._sizes))
        super().__call__(*args)


class FakeDriver:
    """What Triton asks a driver."""

    def __init__(self) -> None:
        self.utils = nvidia.CudaUtils()
        self.launcher_cls = _Launcher
        self.device = 0
        self.streams = {0: 7, 1: 8}

    def get_current_device(self) -> int:
        return self.device

    def get_current_stream(self, device: int) -> int:
        return self.streams[device]

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


DRIVER = FakeDriver()
triton.runtime.driver.set_active(DRIVER)


@contextmanager
def noting() -> Iterator[list[Launch]]:
    """Fill the list with the launches of the block, when it ends."""
    launches: list[Launch] = []
    LIBCUDA.start_noting(1)
    yield launches
    for i in range(LIBCUDA.count_launches()):
        noted = LIBCUDA.launch_at(i).contents
        fields = noted.function, noted.stream, tuple(noted.grid), noted.block, noted.shared
        launches.append(Launch(*fields, tuple(noted.params)))
    LIBCUDA.start_noting(0)


def launches_of(call: Callable[[], object]) -> list[Launch]:
    """Return what a call launches."""
    with noting() as launches:
        call()
    return launches
