"""Threads of the fused CPU kernels: PyTorch's and our own, and the same bits from any number."""

from __future__ import annotations

import ctypes
import functools
import math
import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from f_divergences import RECORDS
from libraries import Library, unit
from processes import python

import kldiv
from kldiv.errors import ConfigError
from kldiv.formulas.divergences import JensenShannon
from kldiv.formulas.rows import RowLoss
from kldiv.kernels import Work
from kldiv.kernels.cpu import CPU

pytest.importorskip("llvmlite")

from kldiv.kernels import layout, threads
from kldiv.kernels.cpu import team

FLOATS = ["float32", "float64"]
LABELS = kldiv.cross_entropy_with_logits

pytestmark = pytest.mark.usefixtures("small_too")

RANDOM = np.random.default_rng(8)
LARGE = RANDOM.normal(size=(2, 64, 20000)).astype("float32")
LONG = LARGE.reshape(2, -1), np.array([5, LARGE[0].size - 1])
SPARSE, WIDE = (kldiv.topk_log_probs(LARGE[1, :, :n], 9) for n in (1003, 20000))


def of(loss, *arrays, wanted=(0, 1)):
    """The bits of the value and the gradients."""
    value, gradients = kldiv.value_and_grad(loss, wanted)(*arrays)
    return [np.asarray(value).tobytes(), *(gradient.tobytes() for gradient in gradients)]


def of_policy(rows, classes):
    torch = pytest.importorskip("torch")
    pair = torch.from_numpy(LARGE).reshape(2, -1)[:, : rows * classes].reshape(2, rows, classes)
    s, r = (each.clone().requires_grad_() for each in pair)
    labels = torch.arange(rows) * (classes // rows)
    values = kldiv.log_prob_and_entropy_with_logits(s, labels, reference=r)
    slopes = torch.autograd.grad(sum(values).sum(), (s, r))
    return [each.detach().numpy().tobytes() for each in (*values, *slopes)]


def of_sparse(name):
    loss = partial(kldiv.topk_kl_div_with_logits, divergence=RECORDS[name], target_rest=SPARSE.rest)
    return of(loss, LARGE[0, :, :1003], SPARSE.log_probs, SPARSE.indices, wanted=(0, 1, 2))


THREADED = {
    "elements": lambda: of(kldiv.kl_div, LARGE[0], abs(LARGE[1])),
    "KL": lambda: of(kldiv.kl_div_with_logits, *LARGE),
    "JS": lambda: of(kldiv.js_div_with_logits, *LARGE),
    "entropy": lambda: of(kldiv.entropy_with_logits, LARGE[0], wanted=(0,)),
    "entropy of long rows": lambda: of(kldiv.entropy_with_logits, *LONG[:1], wanted=(0,)),
    "labels": lambda: of(LABELS, LARGE[0], np.arange(64), wanted=(0,)),
    "labels of long rows": lambda: of(LABELS, *LONG, wanted=(0,)),
    "policy": partial(of_policy, 64, 3000),
    "policy of long rows": partial(of_policy, 2, 600_000),
    "sparse": partial(of_sparse, "KL"),
    "sparse, with formulas": partial(of_sparse, "own"),
}


@pytest.mark.parametrize("name", THREADED)
def test_the_same_bits_for_any_number_of_threads(name, monkeypatch):
    results = []
    for number in ("1", "2", "3", "2"):
        monkeypatch.setenv("KLDIV_NUM_THREADS", number)
        results.append(THREADED[name]())
    assert results[1:] == results[:-1]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("beta", [None, 0.3, 0.5])
def test_threads_share_long_rows(dtype, beta, monkeypatch):
    random = np.random.default_rng(9)
    t = 3 * random.normal(size=(3, 150_001))
    s = t + random.normal(size=t.shape)
    t[0, 60_000:140_000] = s[0, 130_000:140_000] = -np.inf
    t[1] *= 20
    keep, temperature = np.array([True, True, False]), np.array([1.0, 0.7, 1.3])
    arrays = [s.astype(dtype), t.astype(dtype), temperature, keep]
    divergence = [] if beta is None else [JensenShannon(beta)]
    operation = RowLoss("sum", dtype, dtype, dtype, *divergence, temperature=None)
    xp = kldiv.backends.get("numpy").namespace()
    shared, launch = [], team.launch

    def counted(kernel, words, room, units, *others, **options):
        shared.append(units)
        launch(kernel, words, room, units, *others, **options)

    monkeypatch.setattr(team, "launch", counted)
    results = []
    for number in (1, 4, 5):
        value, gradients = CPU.compute(Work(operation, xp, arrays, number, gradients=(0, 1)))
        results.append([float(value), *(each.tobytes() for each in gradients)])
    assert results[1:] == results[:-1]
    assert shared == [3, *[9] * 11 * 2]
    with kldiv.config_context(kernel="pure"):
        loss = functools.partial(kldiv.js_div_with_logits, beta=beta)
        loss = kldiv.kl_div_with_logits if beta is None else loss
        loss = functools.partial(loss, temperature=temperature, where=keep, reduction="sum")
        wanted, expected = kldiv.value_and_grad(loss, (0, 1))(s.astype(dtype), t.astype(dtype))
    assert value == pytest.approx(wanted, rel=40 * unit(dtype), abs=0)
    for a, b in zip(gradients, expected, strict=True):
        assert abs(a - b).sum() <= 40 * unit(dtype) * abs(b).sum()


def test_many_threads_call_at_once(monkeypatch):
    monkeypatch.setenv("KLDIV_NUM_THREADS", "2")
    wanted = THREADED["KL"]()
    with ThreadPoolExecutor(6) as pool:
        for future in [pool.submit(THREADED["KL"]) for _ in range(12)]:
            assert future.result() == wanted


# --- PyTorch's ------------------------------------------------------------------------------------

OPENMP = Library.TORCH.problem() is None and team._starter()
needs_openmp = pytest.mark.skipif(not OPENMP, reason="PyTorch has no OpenMP like GCC's here")


@pytest.fixture
def two(torch):
    """PyTorch, which uses two threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield torch
    torch.set_num_threads(before)


def of_tensors(torch, name):
    loss, *arrays = {
        "elements": (kldiv.kl_div, LARGE[0], abs(LARGE[1])),
        "KL": (kldiv.kl_div_with_logits, *LARGE),
        "JS of long rows": (kldiv.js_div_with_logits, *LARGE.reshape(2, 1, -1)),
        "sparse": (partial(sparse_loss, torch), LARGE[0], WIDE.log_probs),
        "pairs": (lambda p, q: kldiv.pairwise(p, q).sum(), *abs(LARGE[:, :, :300])),
    }[name]
    leaves = [torch.tensor(array, requires_grad=True) for array in arrays]
    value = loss(*leaves)
    slopes = torch.autograd.grad(value, leaves)
    return [each.detach().numpy().tobytes() for each in (value, *slopes)]


def sparse_loss(torch, s, a):
    indices = torch.from_numpy(WIDE.indices)
    return kldiv.topk_kl_div_with_logits(s, a, indices, reduction="sum")


@needs_openmp
@pytest.mark.parametrize("most", [team._AT_ONCE, 1])
@pytest.mark.parametrize("name", ["elements", "KL", "JS of long rows", "sparse", "pairs"])
def test_torchs_threads_give_the_same_bits(two, monkeypatch, name, most):
    started = []

    def start(*arguments):
        started.append(arguments)
        OPENMP(*arguments)

    monkeypatch.setattr(team, "_AT_ONCE", most)
    monkeypatch.setattr(team, "_pause", team._Pause())
    monkeypatch.setattr(team, "_STALL", math.inf)
    monkeypatch.setattr(team, "_starter", lambda: start)
    found = of_tensors(two, name)
    two.set_num_threads(4)  # of which two take part
    monkeypatch.setenv("KLDIV_NUM_THREADS", "2")
    number = len(started)
    assert of_tensors(two, name) == found
    assert len(started) == 2 * number > 0
    monkeypatch.setattr(team, "_starter", lambda: None)
    assert of_tensors(two, name) == found
    monkeypatch.setenv("KLDIV_NUM_THREADS", "1")
    assert of_tensors(two, name) == found


def test_a_thread_takes_parts_until_none_is_left():
    """Each has a room, and those that are too many take none."""
    taken = []
    kernel = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 5)(lambda *given: taken.append(given))
    rooms = np.array([640, 1280])
    frame = {
        "kernel": ctypes.cast(kernel, ctypes.c_void_p).value,
        "words": 7,
        "rooms": rooms,
        "units": 10,
        "step": 4,
        "parts": 2,
        "number": 2,
        "next": 3,
    }
    numbers = np.append(layout.words_of(team._FRAME, frame), [99])
    for room in (640, 1280, None):
        numbers[team._FRAME.index("next")] = 3
        team._member(1)(numbers.ctypes.data)
        wanted = [(7, room, 3, 7, 99), (7, room, 7, 10, 99)] if room else []
        assert taken == wanted
        taken.clear()
    assert numbers[team._FRAME.index("helpers")] == 2


@needs_openmp
def test_our_own_threads_take_over_where_others_keep_cores_busy(two, monkeypatch):
    """Of PyTorch's one comes too late for a part, and the call waits for it."""
    calls, seconds, stall = [0], [0.0], [0.0]

    def start(function, frame, *_):
        member = ctypes.CFUNCTYPE(None, ctypes.c_int64)(function)
        member(frame)
        member(frame)
        seconds[0] += stall[0]
        calls[-1] += 1

    monkeypatch.setattr(team, "_starter", lambda: start)
    monkeypatch.setattr(team, "_pause", team._Pause())
    monkeypatch.setattr(team, "time", SimpleNamespace(perf_counter=lambda: seconds[0]))
    x, y = two.tensor(LARGE[0]), two.tensor(abs(LARGE[1]))
    for lost in (0.5, 2, 2, 0, 0):
        stall[0] = lost * team._STALL
        for _ in range(40):
            kldiv.kl_div(x, y, reduction="sum")
        calls.append(0)
    assert calls[0] == 40, "short calls, though one thread does all"
    assert 1 <= calls[1] <= 4
    assert 0 <= calls[2] <= 1
    assert calls[4] == 40, "and back"


@needs_openmp
def test_other_libraries_have_threads_of_their_own(two, monkeypatch):
    monkeypatch.setattr(team, "_starter", lambda: pytest.fail("OpenMP was asked"))
    THREADED["KL"]()
    two.set_num_threads(1)
    monkeypatch.setenv("KLDIV_NUM_THREADS", "2")
    of_tensors(two, "KL")  # as in a worker of a DataLoader, a forked child
    two.set_num_threads(2)
    monkeypatch.setenv("KLDIV_NUM_THREADS", "3")
    of_tensors(two, "KL")


@needs_openmp
def test_many_threads_call_at_once_with_tensors(two):
    wanted = of_tensors(two, "KL")
    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(of_tensors, two, "KL") for _ in range(8)]:
            assert future.result() == wanted


# --- of both --------------------------------------------------------------------------------------


ARRAYS = {
    "NumPy": """
import numpy as np
x, y = np.zeros((64, 20000), 'float32'), np.full((64, 20000), 0.5, 'float32')
""",
    "PyTorch": """
import torch
torch.set_num_threads(2)
x, y = torch.zeros(64, 20000), torch.full((64, 20000), 0.5)
""",
}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system cannot fork")
@pytest.mark.parametrize("arrays", ["NumPy", pytest.param("PyTorch", marks=needs_openmp)])
def test_a_forked_child_computes(arrays):
    """It does not wait for its parent's threads, which it does not have."""
    code = """
import os, sys, kldiv
before = kldiv.kl_div(x, y, reduction='sum')
child = os.fork()
if child == 0:
    os._exit(0 if kldiv.kl_div(x, y, reduction='sum') == before else 1)
sys.exit(os.waitpid(child, 0)[1])
"""
    python("-c", ARRAYS[arrays] + code, KLDIV_NUM_THREADS="2")


def test_an_error_in_a_helper_is_raised():
    def work(first, _):
        if first:
            raise ValueError("of a helper")

    with pytest.raises(ValueError, match="of a helper"):
        threads.share(work, 100, 2)


def test_the_number_of_threads(monkeypatch):
    for value in ("0", "two", "-1"):
        monkeypatch.setenv("KLDIV_NUM_THREADS", value)
        with pytest.raises(ConfigError, match="KLDIV_NUM_THREADS must be a whole number"):
            threads.number()
    monkeypatch.delenv("KLDIV_NUM_THREADS")
    assert threads.number() == threads.cores()
    assert threads.number(3) == 3, "it follows the library's"
