"""What memory holds and moves: counted by those who can, and the bytes that must move."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from benchmark.suite import load

memory, bandwidth, libraries, timing = map(
    load, [f"harness.{name}" for name in ("memory", "bandwidth", "libraries", "timer")]
)
operations = load("harness.operations")
NOTHING = (None, None)


def test_tracemalloc_sees_temporaries_and_the_result():
    def call():
        temporary = np.ones(1 << 20)  # 8 MiB
        return temporary[: 1 << 10].copy()

    call()
    found = memory.peaks(call, "tracemalloc", "cpu", NOTHING)
    assert found["tracemalloc"] == pytest.approx(8 << 20, rel=0.01)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux resets the high-water mark")
def test_resident_memory_sees_what_no_allocator_tells():
    found = memory._resident(lambda: np.ones(1 << 22).sum())  # 32 MiB
    if found is None:
        pytest.skip("this system lets nobody reset the high-water mark")
    assert found == pytest.approx(32 << 20, rel=0.1)


def test_a_call_that_keeps_nothing_takes_nothing():
    x = np.ones(1 << 20)
    assert memory.peaks(x.max, "tracemalloc", "cpu", NOTHING)["tracemalloc"] < 10_000


def test_xla_tells_its_plan():
    jax = pytest.importorskip("jax")
    function = jax.jit(lambda x, y: x * y)
    x = jax.numpy.ones(1000)
    assert memory._xla(function, (x, x)) == 4000


def test_the_allocator_of_torch_is_asked_on_a_gpu(monkeypatch):
    log = []
    cuda = SimpleNamespace(
        synchronize=lambda: log.append("synchronize"),
        memory_allocated=lambda: 100,
        reset_peak_memory_stats=lambda: log.append("reset"),
        max_memory_allocated=lambda: 350,
    )
    monkeypatch.setattr(memory, "import_module", lambda _name: SimpleNamespace(cuda=cuda))
    found = memory.peaks(lambda: log.append("call"), "torch", "cuda", NOTHING)
    assert found == {"allocator": 250}
    assert log == ["synchronize", "reset", "call", "synchronize"]


def test_a_hook_counts_in_cupy(monkeypatch):
    class MemoryHook:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            hooks.clear()

        def __init__(self):
            hooks.append(self)

    hooks = []
    cupy = SimpleNamespace(cuda=SimpleNamespace(MemoryHook=MemoryHook))
    monkeypatch.setattr(memory, "import_module", lambda _name: cupy)

    def call():
        for size in (512, 1024):
            hooks[0].malloc_postprocess(device_id=0, size=1, mem_size=size, mem_ptr=0, pmem_id=0)
        hooks[0].free_postprocess(device_id=0, mem_size=512, mem_ptr=0, pmem_id=0)
        hooks[0].malloc_postprocess(device_id=0, size=1, mem_size=256, mem_ptr=0, pmem_id=0)

    assert memory.peaks(call, "cupy", "cuda", NOTHING) == {"allocator": 1536}


@pytest.mark.parametrize("found", [{}, {"allocator": 3, "rss": 9}, {"tracemalloc": 5, "rss": 7}])
def test_an_allocator_comes_before_what_the_system_sees(found):
    wanted = {"allocator": (3, "allocator"), "tracemalloc": (7, "rss")}
    assert memory.headline(found) == wanted.get(next(iter(found), ""))


@pytest.mark.parametrize(
    ("name", "part", "wanted"),
    [
        ("kl_div", "value", (2 * 4 * 80, 0)),
        ("kl_div", "gradient", (2 * 4 * 80, 4 * 80)),
        ("kl_div_none", "value", (2 * 4 * 80, 4 * 80)),
        ("kl_div_with_logits", "gradient", (2 * 4 * 80, 4 * 80)),
    ],
)
def test_the_bytes_that_must_move(name, part, wanted):
    assert operations.OPERATIONS[name].traffic(part, "float32", (8, 10)) == wanted


@pytest.mark.parametrize("library", ["numpy", "torch", "jax"])
@pytest.mark.parametrize("sizes", [(4096, 0), (4096, 2048), (4096, 8192)])
def test_the_floor_moves_its_bytes(library, sizes):
    """Also in the way that it goes on a GPU, here with arrays on the CPU."""
    if library != "numpy":
        pytest.importorskip(library)
    floor = bandwidth.Floor("cpu", *sizes, library)
    seconds, _ = timing.Timer().once(floor.candidate())
    assert seconds > 0
    if sizes[1] and library != "jax":  # JAX writes anew
        assert libraries.LIBRARIES[library].get(floor._written)[0] == 1.0


def test_the_bandwidth_of_this_machine():
    found = bandwidth.measure("cpu", timing.Timer(), size=1 << 22, rounds=3)
    assert found.keys() == {"read", "copy"}
    assert all(1e8 < rate < 1e13 for rate in found.values())
