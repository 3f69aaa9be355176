"""Where the CPU kernels run: other CPUs, other processes, arrays of more than 2³¹ elements."""

from __future__ import annotations

import os
import re
import sys
import time
from functools import partial

import numpy as np
import pytest
from processes import python

import kldiv

pytest.importorskip("llvmlite")

import llvmlite.binding as llvm

from kldiv.kernels.cpu import compiling
from kldiv.kernels.cpu.code import FLOAT32
from kldiv.kernels.cpu.divergences import KullbackLeibler
from kldiv.kernels.cpu.rows import Rows

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
    last = kldiv.kl_div_with_logits(s[-1:], t[-1:], reduction="sum", dtype="float32")
    assert found == pytest.approx(last, rel=4e-7, abs=0)  # a small array is left to the formulas
    assert last > 0


# --- other CPUs -----------------------------------------------------------------------------------

VECTORS = {
    "aarch64-linux-gnu, neoverse-n1": r"fmla\s+v\d+\.4s",
    "x86_64-linux-gnu, haswell": r"vfn?madd\d+ps.*ymm",
    "x86_64-linux-gnu, x86-64": r"mulps.*xmm",
}


@pytest.mark.parametrize("machine", VECTORS)
def test_vectors_of_other_cpus(machine):
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    triple, cpu = machine.split(", ")
    target = llvm.Target.from_triple(triple).create_target_machine(cpu=cpu, opt=2)
    writer = partial(Rows, real=FLOAT32, divergence=KullbackLeibler(), gradients=False)
    code = target.emit_assembly(compiling.optimised("kl", 6, writer, target))
    assert re.search(VECTORS[machine], code)


# --- other processes ------------------------------------------------------------------------------


def test_what_is_compiled_is_kept(tmp_path):
    code = """
import numpy as np, kldiv
x = np.full(10**5, -1, 'float32')
assert kldiv.kl_div(x, -x, reduction='sum') == 10**5
assert kldiv.explain(x).kernel == 'cpu'
"""
    before = set()
    for _ in range(2):  # the first process compiles
        python("-c", code, KLDIV_CACHE_DIR=str(tmp_path))
        files = {(path.name, path.stat().st_mtime_ns) for path in tmp_path.rglob("*.o")}
        assert files
        assert before <= files
        before = files


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

    path = tmp_path / "below" / "kernel.lock"
    with compiling._alone(path), pytest.raises(Timeout):
        FileLock(path).acquire(timeout=0)
    FileLock(path).acquire(timeout=0)
    (tmp_path / "file").touch()
    with compiling._alone(tmp_path / "file" / "kernel.lock"):
        pass  # no place for a lock: each compiles for itself


@pytest.mark.parametrize("terminal", [True, False])
def test_a_wait_for_the_compiler_is_explained_on_a_terminal(monkeypatch, caplog, terminal):
    monkeypatch.setattr(compiling, "_PATIENCE", 0.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    with compiling._announced("KL-float32"):
        deadline = time.monotonic() + (10 if terminal else 0.2)
        while not caplog.messages and time.monotonic() < deadline:
            time.sleep(0.01)
    assert ["KL-float32" in message for message in caplog.messages] == [True] * terminal
