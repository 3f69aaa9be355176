"""NVRTC compiles the CUDA sources for GPUs, where there is none: no warning, few registers."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest

from kldiv.kernels.cuda import compiling, row_loss
from kldiv.kernels.spelling import DIVERGENCES

ARCHITECTURES = ("sm_80", "sm_90")


@cache
def nvrtc():
    """The library of the wheel nvidia-cuda-nvrtc-cu12, or None."""
    try:
        spec = find_spec("nvidia.cuda_nvrtc")
    except ModuleNotFoundError:
        return None
    folders = [] if spec is None else [Path(p) for p in spec.submodule_search_locations or []]
    found = [path for folder in folders for path in sorted(folder.glob("lib/libnvrtc.so.*"))]
    return ctypes.CDLL(str(found[0])) if found else None


def compiled(name, architecture, *, real="float32", **macros):
    """A kernel's PTX and what the compiler said."""
    options = compiling.definitions(REAL=compiling.TYPES[real], **macros)
    text = compiling.joined(compiling.SOURCES[name])
    return built(text, (*compiling.OPTIONS, *options), architecture)


def built(text, options, architecture):
    library = nvrtc()
    if library is None:
        pytest.skip("the wheel nvidia-cuda-nvrtc-cu12 is not installed")
    options = [*options, f"-arch={architecture.replace('sm', 'compute')}"]
    program = ctypes.c_void_p()
    text = text.encode()
    assert library.nvrtcCreateProgram(ctypes.byref(program), text, b"kldiv.cu", 0, None, None) == 0
    pointers = (ctypes.c_char_p * len(options))(*[option.encode() for option in options])
    code = library.nvrtcCompileProgram(program, len(options), pointers)
    said = read(library, program, "ProgramLog")
    assert code == 0, said
    return read(library, program, "PTX"), said


def read(library, program, what):
    size = ctypes.c_size_t()
    assert getattr(library, f"nvrtcGet{what}Size")(program, ctypes.byref(size)) == 0
    buffer = ctypes.create_string_buffer(size.value)
    assert getattr(library, f"nvrtcGet{what}")(program, buffer) == 0
    return buffer.value.decode()


def macros(name, dtype, *, kind=0, classes=151936):
    if name == "pointwise":
        return {"PER": 8, "LOG_TARGET": kind, **compiling.types(**dict.fromkeys("XYEC", dtype))}
    per = row_loss.shape_for(8192, classes, real(dtype)).per
    return {"PER": per, "DIVERGENCE": kind, **compiling.types(**dict.fromkeys("ST", dtype))}


def real(dtype):
    return "float64" if dtype == "float64" else "float32"


KERNELS = [
    ("row_loss", "float32", 0, 151936),
    ("row_loss", "bfloat16", 0, 100),
    ("row_loss", "float64", 0, 10),
    ("row_loss", "float16", 1, 151936),
    ("row_loss", "bfloat16", 2, 151936),
    ("row_loss", "float64", 3, 1000),
    ("row_loss", "float32", 4, 151936),
    ("row_loss", "float64", 5, 1000),
    ("row_loss", "bfloat16", 6, 1000),
    ("pointwise", "float32", 0, 0),
    ("pointwise", "float64", 1, 0),
    ("pointwise", "bfloat16", 1, 0),
]


@pytest.mark.parametrize(
    ("name", "dtype", "kind", "classes", "architecture"),
    [
        pytest.param(*kernel, each, marks=() if k % 2 == n % 2 else pytest.mark.slow)
        for k, kernel in enumerate(KERNELS)
        for n, each in enumerate(ARCHITECTURES)
    ],
)
def test_nvrtc_compiles_it(name, dtype, kind, classes, architecture):
    told = macros(name, dtype, kind=kind, classes=classes)
    ptx, said = compiled(name, architecture, real=real(dtype), **told)
    assert said.strip("\0\n ") == ""  # not even a warning
    assert f".target {architecture}" in ptx
    assert f".visible .entry {name}(" in ptx
    assert not re.search(r"\b(atom|red)\.", ptx)  # the same result every time


def test_products_are_not_fused_by_the_compiler():
    """Every fused multiply-add is one that the source asks for."""
    told = macros("row_loss", "float32")
    ptx, _ = compiled("row_loss", "sm_90", **told)
    asked = ptx.count("fma.rn.f32")
    others = [line for line in ptx.splitlines() if re.search(r"\bmad\.(rn\.)?f(32|64)", line)]
    assert asked > 50
    assert others == []
    assert "mul.f32" not in ptx.replace("mul.rn.f32", "").replace("mul.ftz", "")


def test_subnormal_numbers_count_and_kernels_are_kept(monkeypatch, tmp_path):
    """What CuPy compiles by itself takes them for 0: a probability near 1e-38, and its gradient."""
    seen = []

    def compile_using_nvrtc(text, options, filename):
        seen.append(filename)
        return built(text, options, "sm_90")[0].encode(), None

    def module(path):
        return SimpleNamespace(get_function=lambda name: Path(path).read_text(encoding="utf-8"))

    cuda = SimpleNamespace(
        Device=lambda: SimpleNamespace(compute_capability="90"),
        compiler=SimpleNamespace(compile_using_nvrtc=compile_using_nvrtc),
        nvrtc=SimpleNamespace(getVersion=lambda: (12, 9)),
    )
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=cuda, RawModule=module))
    monkeypatch.setitem(sys.modules, "cupy.cuda", cuda)
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path / "new"))
    told = macros("row_loss", "float32", classes=10)
    for _ in range(2):  # the second process finds the file
        compiling._compiled.cache_clear()
        ptx = compiling.kernel("row_loss", "float32", **told)
        assert "mul.rn.f32" in ptx
        assert ".ftz.f32" not in ptx
    compiling._compiled.cache_clear()
    assert seen == ["row_loss.cu"]


def assembler():
    spec = find_spec("triton")
    folders = [] if spec is None else [Path(p) for p in spec.submodule_search_locations or []]
    inside = [folder / "backends/nvidia/bin/ptxas" for folder in folders]
    return next((str(path) for path in inside if path.exists()), shutil.which("ptxas"))


SPILLED = 80
"""Bytes a thread may spill: up to 60 were found, of α-divergences in float64 80."""


@pytest.mark.parametrize(
    ("divergence", "dtype", "architecture"),
    [
        ("KL", "bfloat16", "sm_90"),
        *(
            pytest.param(each, dtype, ARCHITECTURES[(k + n) % 2], marks=pytest.mark.slow)
            for k, each in enumerate(DIVERGENCES)
            for n, dtype in enumerate(("float32", "float64"))
        ),
    ],
)
def test_two_blocks_fit_on_a_multiprocessor(divergence, dtype, architecture, tmp_path):
    """128 registers a thread, with next to no spills: tiles stay on chip."""
    if not (ptxas := assembler()):
        pytest.skip("no ptxas was found: the wheel triton has one")
    told = macros("row_loss", dtype, kind=DIVERGENCES.index(divergence))
    ptx, _ = compiled("row_loss", architecture, real=real(dtype), **told)
    path = tmp_path / "kernel.ptx"
    path.write_text(ptx, encoding="utf-8")
    command = [
        ptxas,
        "-v",
        f"-arch={architecture}",
        str(path),
        "-o",
        str(tmp_path / "kernel.cubin"),
    ]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    registers, spilled, shared = (
        max([int(n) for n in re.findall(pattern, said)], default=0)
        for pattern in (r"Used (\d+) registers", r"(\d+) bytes spill stores", r"(\d+) bytes smem")
    )
    assert registers <= 128
    assert spilled <= SPILLED
    assert 2 * shared <= 64 << 10  # of the smallest GPU that has two such blocks
