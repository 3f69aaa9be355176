"""The technologies that compute kldiv's operations, each behind one adapter for the tests.

An adapter takes NumPy's arrays and gives them back. What is to be tested by
``test_conformance.py``, a new technology or one on another device, is a class in `TECHNOLOGIES`.
"""

from __future__ import annotations

import importlib
import os
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import cache
from types import MappingProxyType
from zlib import crc32

import numpy as np
import pytest
from kernels import cuda_on_cpu
from libraries import Library

import kldiv
from kldiv.kernels import Work
from kldiv.kernels.blocks import BLOCKS
from kldiv.kernels.cpu import CPU
from kldiv.kernels.cuda import CUDA
from kldiv.kernels.pallas import PALLAS, unsupported
from kldiv.kernels.triton import TRITON

FLOATS = ["float32", "float64"]
HALVES = ["float16", "bfloat16"]


def same(array):
    return array


class Technology:
    """The formulas: what every technology falls back to, in the dtype that it is asked for."""

    name = "pure"
    library = Library.NUMPY
    interpreted = False
    """Whether this is not what production runs, and far slower: slow runs do more."""
    pointwise = True
    """Whether it computes `kl_div` too."""
    autograd = False
    """Whether `derivatives` differentiates through it."""
    functions = ()
    """Which elementary functions are its own."""
    near = 2.0
    """How far its series of φ reaches."""
    shannon = True
    """Whether it does more for JS than find the states of rows, as for KL."""
    apart = True
    """Whether it has all divergences of rows that kernels have, not only KL and JS."""
    whole_range = True
    """Whether differences of logits may be beyond the largest number of float32."""
    reuses = False
    """Whether it runs the formulas' own code: interpreted, it shows little that they do not."""
    unsure = MappingProxyType({})
    """Cases that it misses on some processors, and why."""
    splits = ()
    """How else rows can be shared out: arguments of `split`."""

    def problem(self):
        """Why it cannot run here, or None."""
        return self.library.problem()

    def some(self, *case):
        """The rows that a case takes: all, or a part where each row takes long, others another."""
        return slice(None)

    def marks(self, *, slow=False):
        """Marks of a test, given whether it shows little that others do not."""
        gpu = [pytest.mark.gpu] if self.library.needs_gpu else []
        return [*gpu, pytest.mark.slow] if slow and self.interpreted else gpu

    @contextmanager
    def prepared(self, monkeypatch):
        """Have this technology or an error."""
        with kldiv.config_context(kernel=self.name):
            yield

    def split(self, monkeypatch, how):
        """Share out rows in another way."""
        raise NotImplementedError

    def function(self, name, x):
        """Evaluate an elementary function of its own."""
        raise NotImplementedError

    def run(self, operation, *arrays, gradients=(0, 1), cotangent=None, changed=same):
        """Value and gradients; ``changed`` gives the first two arrays another layout there."""
        arrays = [changed(a) if k < 2 else a for k, a in enumerate(arrays)]
        return self.compute(operation, arrays, gradients, cotangent)

    def compute(self, operation, arrays, gradients, cotangent):
        xp = kldiv.backends.get("numpy").namespace()
        with np.errstate(all="ignore"):
            value = operation.value(xp, *arrays)
            seed = np.ones_like(value) if cotangent is None else cotangent
            pull = operation.pullback
            run = lambda op, *rest: op.value(xp, *rest)  # noqa: E731
            found = [np.asarray(pull(xp, run, k, seed, *arrays)) for k in gradients]
        return np.asarray(value), found

    def derivatives(self, loss, *arrays, wanted=(0, 1)):
        """Value and gradients by the library's own differentiation."""
        raise NotImplementedError


def formulas(operation, *arrays, **options):
    """What the formulas give in float64 for the numbers that the arrays hold."""
    operation = replace(operation, compute="float64", total="float64", result="float64")
    arrays = [a if a.dtype == bool else a.astype("float64") for a in arrays]
    return Technology().run(operation, *arrays, **options)


class Torch(Technology):
    """What is differentiated by torch, on one of its devices."""

    autograd = True
    device = "cpu"

    def derivatives(self, loss, *arrays, wanted=(0, 1)):
        import torch

        there = [torch.from_numpy(a).to(self.device) for a in arrays]
        for index in wanted:
            there[index].requires_grad_()
        versions = [a._version for a in there]
        value = loss(*there)
        found = torch.autograd.grad(value.sum(), [there[k] for k in wanted], create_graph=True)
        slopes = sum(g.square().sum() for g in found)
        second = torch.autograd.grad(slopes, [there[k] for k in wanted], retain_graph=True)
        assert versions == [a._version for a in there]
        return [a.detach().cpu().numpy() for a in (value, *found, *second)]


class OnNumPy(Technology):
    """What computes arrays of NumPy."""

    def compute(self, operation, arrays, gradients, cotangent):
        xp = kldiv.backends.get("numpy").namespace()
        seed = None if cotangent is None else np.asarray(cotangent)
        return self.kernels.compute(Work(operation, xp, arrays, 1, True, gradients, seed))


class Cpu(OnNumPy, Torch):
    """LLVM's machine code, under NumPy and torch."""

    name = "cpu"
    kernels = CPU
    functions = ("exp", "log")
    near = 1.0

    def problem(self):
        return CPU.problem()

    @contextmanager
    def prepared(self, monkeypatch):
        monkeypatch.setattr(CPU, "small", 0)
        with super().prepared(monkeypatch):
            yield

    def function(self, name, x):
        from kernels.elementary import evaluate

        return evaluate(name, x)


class Blocks(OnNumPy):
    """NumPy on blocks."""

    name = "blocks"
    kernels = BLOCKS


class Triton(Torch):
    """Triton, on a GPU or as its interpreter runs it on the CPU (``tests/conftest.py``)."""

    name = "triton"
    whole_range = False
    functions = ("exp", "log")
    splits = ("small", 1, 24)

    def __init__(self):
        self.interpreted = TRITON.interpreted
        self.device = "cpu" if self.interpreted else "cuda"
        self.library = Library.TORCH if self.interpreted else Library.TORCH_CUDA

    def problem(self):
        return self.library.problem() or TRITON.problem()

    def marks(self, *, slow=False):
        noise = "ignore::RuntimeWarning", "ignore:.*ndim > 0 to a scalar:DeprecationWarning"
        return [*super().marks(slow=slow), pytest.mark.filterwarnings(*noise)]

    def some(self, *case):
        if not self.interpreted or os.environ.get("KLDIV_TEST_EVERYTHING"):
            return slice(None)
        return slice(crc32(repr(case).encode()) % 3, None, 3)

    @contextmanager
    def prepared(self, monkeypatch):
        # As large arrays: small ones never go the quick way.
        launch = importlib.import_module("kldiv.kernels.triton.launch")
        monkeypatch.setattr(launch, "SMALL", 0)
        with super().prepared(monkeypatch):
            yield

    def split(self, monkeypatch, how):
        launch = importlib.import_module("kldiv.kernels.triton.launch")
        monkeypatch.setitem(launch.STATE_TILE, False, 128)
        if how == "small":
            monkeypatch.setattr(launch, "SMALL", 1 << 30)
        else:
            monkeypatch.setattr(launch, "PROGRAMS", how)

    def function(self, name, x):
        from kernels.triton_elementary import evaluate

        return evaluate(name, x, self.device)

    def run(self, operation, *arrays, gradients=(0, 1), cotangent=None, changed=same):
        arrays = [changed(a) if k < 2 else a for k, a in enumerate(self.there(arrays))]
        seed = None if cotangent is None else self.there([np.asarray(cotangent)])[0]
        work = Work(operation, self.xp(), arrays, 1, True, gradients, seed)
        value, found = TRITON.compute(work)
        return self.host(value), [self.host(a) for a in found]

    def xp(self):
        return kldiv.backends.get("torch").namespace()

    def there(self, arrays):
        import torch

        bits = [a.view(np.int16) if a.dtype.name == "bfloat16" else a for a in arrays]
        there = [torch.from_numpy(np.array(a)).to(self.device) for a in bits]
        return [
            b.view(torch.bfloat16) if a.dtype.name == "bfloat16" else b
            for a, b in zip(arrays, there, strict=True)
        ]

    def host(self, tensor):
        import torch

        if tensor.dtype == torch.bfloat16:
            return tensor.cpu().view(torch.int16).numpy().view(kind("bfloat16"))
        return tensor.cpu().numpy()


class Cuda(Technology):
    """CUDA C++ on a GPU, by CuPy."""

    name = "cuda"
    whole_range = False
    library = Library.CUPY
    splits = ((1, 1), (8, 1), (8, 5), (8, 40))

    @contextmanager
    def prepared(self, monkeypatch):
        monkeypatch.setattr(CUDA, "failure", None)
        yield

    def split(self, monkeypatch, how):
        row_loss = importlib.import_module("kldiv.kernels.cuda.row_loss")
        team, parts = how

        def shape(rows, classes, real):
            blocks = -(-rows * team // row_loss.WARPS)
            return row_loss.Shape(4 if real == "float64" else 8, team, parts, blocks)

        monkeypatch.setattr(row_loss, "shape_for", shape)

    def run(self, operation, *arrays, gradients=(0, 1), cotangent=None, changed=same):
        there = [changed(self.there(a)) if k < 2 else self.there(a) for k, a in enumerate(arrays)]
        seed = None if cotangent is None else self.there(np.asarray(cotangent))
        xp = kldiv.backends.get(self.library.value).namespace()
        value, found = CUDA.compute(Work(operation, xp, there, 1, True, gradients, seed))
        return self.host(value), [self.host(a) for a in found]

    def there(self, array):
        return importlib.import_module("cupy").asarray(array)

    def host(self, array):
        return importlib.import_module("cupy").asnumpy(array)


class CudaOnCpu(Cuda):
    """The same sources, compiled for the CPU by a C++ compiler."""

    library = Library.NUMPY
    interpreted = True

    def problem(self):
        return cuda_on_cpu.problem()

    @contextmanager
    def prepared(self, monkeypatch):
        compiling = importlib.import_module("kldiv.kernels.cuda.compiling")
        monkeypatch.setattr(compiling, "load", cuda_on_cpu.function)
        with super().prepared(monkeypatch):
            yield

    def there(self, array):
        return array

    def host(self, array):
        return np.asarray(array)


class Pallas(Technology):
    """Pallas, on a GPU or interpreted on the CPU."""

    name = "pallas"
    pointwise = False
    shannon = False
    apart = False
    reuses = True
    splits = (64,)

    unsure = MappingProxyType(
        {
            ("a class against the bulk",): "5.5e-6 in the gradient in the target",
            (3, "float32", 0.7): "subnormal probabilities, which XLA takes for 0 on a CPU",
        }
    )

    @property
    def library(self):
        return Library.JAX if self.interpreted else Library.JAX_GPU

    @property
    def interpreted(self):
        return Library.JAX_GPU.problem() is not None

    def problem(self):
        return self.library.problem() or unsupported()

    @contextmanager
    def prepared(self, monkeypatch):
        monkeypatch.setattr("kldiv.backends.routing._places", {})
        monkeypatch.setattr(PALLAS, "failure", None)
        if self.interpreted:
            monkeypatch.setenv("KLDIV_PALLAS_INTERPRET", "1")
        with super().prepared(monkeypatch):
            yield

    def split(self, monkeypatch, how):
        states = importlib.import_module("kldiv.kernels.pallas.states")
        monkeypatch.setitem(states.TILE, "float32", how)

    def run(self, operation, *arrays, gradients=(0, 1), cotangent=None, changed=same):
        import jax

        wide = any(a.dtype == "float64" for a in arrays) or operation.result == "float64"
        with jax.enable_x64(True) if wide else nullcontext():
            arrays = [jax.numpy.asarray(a) for a in arrays]
            seed = None if cotangent is None else jax.numpy.asarray(cotangent, operation.compute)

            program = self.program(operation, gradients, changed, self.tile())
            value, found = program(seed, *arrays)
        return np.asarray(value), [np.asarray(a) for a in found]

    @cache  # noqa: B019 - programs are compiled once
    def program(self, operation, gradients, changed, tile):
        def compute(seed, *arrays):
            arrays = [changed(a) if k < 2 else a for k, a in enumerate(arrays)]
            xp = kldiv.backends.get("jax").namespace()
            return PALLAS.compute(Work(operation, xp, arrays, 1, True, gradients, seed))

        return self.compiled(compute)

    def tile(self):
        return importlib.import_module("kldiv.kernels.pallas.states").TILE["float32"]

    def compiled(self, function):
        """Compile in a third of the time, without a GPU."""
        jax = importlib.import_module("jax")
        return jax.jit(function, compiler_options=self.options())

    @cache  # noqa: B019 - one for the process
    def options(self):
        """What makes compiling quick without a GPU, as far as this XLA knows it."""
        jax = importlib.import_module("jax")
        wanted = {
            "xla_backend_optimization_level": 0,
            "xla_llvm_disable_expensive_passes": True,
            "xla_cpu_use_fusion_emitters": False,
        }
        found = {}
        for name, value in wanted.items():
            try:
                jax.jit(jax.numpy.negative).lower(1.0).compile(compiler_options={name: value})
            except jax.errors.JaxRuntimeError:  # JAX renames them at will
                continue
            found[name] = value
        return found if self.interpreted else None


TECHNOLOGIES = {
    "pure": Technology(),
    "cpu": Cpu(),
    "blocks": Blocks(),
    "triton": Triton(),
    "cuda emulated": CudaOnCpu(),
    "cuda": Cuda(),
    "pallas": Pallas(),
}
AVAILABLE = {name: each for name, each in TECHNOLOGIES.items() if each.problem() is None}


def kind(dtype):
    """NumPy's dtype of that name; bfloat16 is ml_dtypes'."""
    return np.dtype(importlib.import_module("ml_dtypes").bfloat16 if dtype == "bfloat16" else dtype)


def shapes(works):
    """The shapes of the first arrays of works."""
    return [tuple(work.arrays[0].shape) for work in works]


def each(names="", cases=((),), more=(), only=lambda technology: True):
    """Run a test on every technology with every case; interpreters leave ``more`` to slow runs.

    Cases may depend on the technology: a function of it. An interpreter of the formulas' own code
    runs every third of ``more``.
    """

    def parameters(technology, cases):
        cases = cases(technology) if callable(cases) else cases
        return [case if isinstance(case, tuple) else (case,) for case in cases]

    found = []
    for name, technology in AVAILABLE.items():
        if not only(technology):
            continue
        always = listed = parameters(technology, cases)
        if "beta" in names and not technology.shannon:
            place = names.split().index("beta")
            always = [case for case in listed if case[place] is None] or listed[-1:]
        further = [case for case in parameters(technology, more) if case not in listed]
        if technology.reuses and technology.interpreted:
            further = further[::3]
        misses = {
            case: [pytest.mark.xfail(reason=reason, raises=AssertionError, strict=False)]
            for case, reason in technology.unsure.items()
        }
        found += [
            pytest.param(
                technology,
                *case,
                marks=[*technology.marks(slow=case not in always), *misses.get(case, [])],
                id="-".join([name, *map(str, case)]),
            )
            for case in dict.fromkeys([*listed, *further])
        ]
    return pytest.mark.parametrize(("technology", *names.split()), found, indirect=["technology"])
