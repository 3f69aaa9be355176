"""The CUDA sources compiled by a C++ compiler for the CPU, behind the production launcher.

`function` is what CuPy's ``RawModule(...).get_function(...)`` is on a GPU; arrays are NumPy's.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

from kldiv.kernels.cuda import compiling

PRIMITIVES = Path(__file__).with_name("cuda_on_cpu.h")
HARNESS = """
extern "C" int launch(const void* job, long long gx, int gy, int threads) {
    return cpu::launch([](const void* it) { KERNEL_NAME(*(const Job*)it); }, job, gx, gy, threads);
}
extern "C" unsigned long size_of_job() { return sizeof(Job); }
"""
# Double words need every rounding where the source has it.
FLAGS = "-std=c++17 -O1 -ffp-contract=off -fno-fast-math -shared -fPIC -Wall -Wextra".split()
QUIET = "-Wno-unused-function -Wno-unused-parameter -Wno-unknown-pragmas".split()


def problem() -> str | None:
    """Why this cannot be done here, or None."""
    if not sys.platform.startswith("linux"):
        return "contexts to emulate CUDA's threads with are used on Linux only"
    return None if compiler() else "no C++ compiler was found"


def compiler() -> str | None:
    names = (os.environ.get("CXX"), "g++", "clang++", "c++")
    return next((found for name in names if name and (found := shutil.which(name))), None)


@cache
def folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="kldiv-cuda-on-cpu-"))


def source(name: str) -> str:
    """The text of a kernel, with the CPU's primitives for CUDA's."""
    first, *rest = compiling.SOURCES[name]
    assert first == "primitives.cuh"
    return f"{PRIMITIVES.read_text(encoding='utf-8')}\n{compiling.joined(rest)}\n{HARNESS}"


@cache
def function(name: str, macros: tuple[str, ...]):
    """A kernel as CuPy would hand it out."""
    text = source(name)
    key = hashlib.sha256("\n".join([text, *macros, *FLAGS]).encode()).hexdigest()[:20]
    library = folder() / f"{key}.so"
    path = library.with_suffix(".cpp")
    path.write_text(text, encoding="utf-8")
    command = [compiler(), *FLAGS, *QUIET, *macros, f"-DKERNEL_NAME={name}", path, "-o", library]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[:4000]
    assert "warning" not in run.stderr, run.stderr[:4000]
    loaded = ctypes.CDLL(str(library))
    loaded.launch.argtypes = [ctypes.c_void_p, ctypes.c_longlong, ctypes.c_int, ctypes.c_int]
    loaded.size_of_job.restype = ctypes.c_ulong

    def launch(grid, block, arguments):
        (job,) = arguments
        assert job.nbytes == loaded.size_of_job()
        assert len(block) == 1
        gx, gy = (*grid, 1)[:2]
        assert loaded.launch(job.ctypes.data, gx, gy, block[0]) == 0, "threads wait forever"

    return launch
