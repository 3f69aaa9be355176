"""Where the CPU kernels run: other CPUs, other processes, arrays of more than 2³¹ elements."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import kldiv

pytest.importorskip("numba")

import llvmlite.binding as llvm

COUNT = 2**31 + 2**12


@pytest.fixture
def untouched():
    """Half-precision zeros that take no memory: all their pages are the same one until written."""
    if not sys.platform.startswith("linux"):
        pytest.skip("zeros may take memory here")

    def make(*shape):
        return np.zeros(shape, "float16")

    return make


def test_elements_beyond_32_bits(untouched):
    x, y = untouched(COUNT), untouched(COUNT)
    x[-1], y[-1] = -2, 1
    assert kldiv.kl_div(x, y, reduction="sum") == 2


def test_rows_beyond_32_bits(untouched):
    s, t = untouched(COUNT // 2**12, 2**12), untouched(COUNT // 2**12, 2**12)
    t[-1] = np.linspace(-1, 1, 2**12)
    keep = np.arange(len(t)) == len(t) - 1  # the others are not even read
    found = kldiv.kl_div_with_logits(s, t, reduction="sum", where=keep, dtype="float32")
    assert found == kldiv.kl_div_with_logits(s[-1:], t[-1:], reduction="sum", dtype="float32") > 0


# --- other CPUs -----------------------------------------------------------------------------------

VECTORS = {
    "aarch64-linux-gnu, neoverse-n1": r"fmla\s+v\d+\.4s",
    "x86_64-linux-gnu, haswell": r"vfn?madd\d+ps.*ymm",
    "x86_64-linux-gnu, x86-64": r"mulps.*xmm",
}

# Unoptimised code of the loop that does most of the work on logits, for no CPU in particular.
UNOPTIMISED = """
import numba
from numba import types
from kldiv.kernels.cpu import passes

whole, single = types.int64, types.float32
signature = (*[whole] * 4, single, single, types.UniTuple(single, 5), single)
passes.plain.compile(signature)
print(passes.plain.inspect_llvm(signature))
"""


@pytest.fixture(scope="module")
def loop():
    run = subprocess.run(
        [sys.executable, "-c", UNOPTIMISED],
        env={**os.environ, "NUMBA_OPT": "0"},
        capture_output=True,
        text=True,
        check=True,
    )
    return run.stdout


@pytest.mark.parametrize("machine", VECTORS)
def test_the_loop_becomes_vectors_of_other_cpus(machine, loop):
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    triple, cpu = machine.split(", ")
    code = loop
    target = llvm.Target.from_triple(triple).create_target_machine(cpu=cpu, opt=3)
    lines = {"triple": triple, "datalayout": str(target.target_data)}
    for word, value in lines.items():
        code = re.sub(f'target {word} = ".*"', f'target {word} = "{value}"', code)
    module = llvm.parse_assembly(code)
    options = llvm.create_pipeline_tuning_options(speed_level=3)
    options.loop_vectorization = True
    builder = llvm.create_pass_builder(target, options)
    builder.getModulePassManager().run(module, builder)
    assert re.search(VECTORS[machine], target.emit_assembly(module))


@pytest.mark.skipif(platform.machine() not in {"x86_64", "AMD64"}, reason="not an x86-64 CPU")
@pytest.mark.skipif(sys.platform == "darwin", reason="Rosetta may lack AVX2")
@pytest.mark.slow
def test_a_cpu_without_avx512(tmp_path):
    """The same tests of accuracy, compiled for an older CPU."""
    chosen = "cpu and (functions or elements_are_right or 100-float32 or 1025)"
    command = [sys.executable, *"-m pytest -q -n 0 -p no:cacheprovider -k".split(), chosen]
    run = subprocess.run(
        [*command, str(Path(__file__).with_name("test_conformance.py"))],
        env={**os.environ, "NUMBA_CPU_NAME": "haswell", "KLDIV_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout
    assert " passed" in run.stdout


# --- other processes ------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_is_compiled_is_loaded_without_a_compiler(tmp_path):
    code = """
import sys, numpy as np, kldiv
x = np.full(10**5, -1, 'float32')
assert kldiv.kl_div(x, -x, reduction='sum') == 10**5
print(kldiv.explain(x).kernel, 'numba.np.arraymath' in sys.modules, 'scipy.linalg' in sys.modules)
import numba
assert numba.njit(lambda a: a.sum())(np.ones(3)) == 3  # others compile as ever
"""
    environment = {**os.environ, "KLDIV_CACHE_DIR": str(tmp_path)}
    for loaded in (True, False):  # the first process compiles
        run = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
            env=environment,
        )
        kernel, compiler, scipy = run.stdout.split()
        assert (kernel, compiler) == ("cpu", str(loaded))
        assert loaded or scipy == "False"


class Losses:
    """A dataset whose items are computed by kernels, in the worker that loads them."""

    def __init__(self, torch):
        generator = torch.Generator().manual_seed(0)
        self.s, self.t = torch.randn(2, 4, 6, 20_000, generator=generator)

    def __len__(self):
        return len(self.s)

    def __getitem__(self, index):
        return kldiv.kl_div_with_logits(self.s[index], self.t[index])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="workers are forked")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:os.fork.. was called:RuntimeWarning")  # JAX's, if it is here
def test_workers_of_a_data_loader(monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setenv("KLDIV_NUM_THREADS", "2")
    losses = Losses(torch)
    wanted = torch.stack([losses[index] for index in range(len(losses))])
    loader = torch.utils.data.DataLoader(losses, 2, num_workers=2, multiprocessing_context="fork")
    assert torch.equal(torch.cat(list(loader)), wanted)


def test_of_many_processes_one_compiles(tmp_path):
    from filelock import FileLock, Timeout

    from kldiv.kernels.cpu import compiling

    path = tmp_path / "below" / "kernel.lock"
    with compiling._alone(path), pytest.raises(Timeout):
        FileLock(path).acquire(timeout=0)
    FileLock(path).acquire(timeout=0)
    (tmp_path / "file").touch()
    with compiling._alone(tmp_path / "file" / "kernel.lock"):
        pass  # no place for a lock: each compiles for itself
