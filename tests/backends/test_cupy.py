"""The CuPy adapter's own logic, on the CPU with a stand-in for the ``cupy`` module.

The stand-in is NumPy with devices: it refuses, as CuPy does, to compute on arrays of a device that
is not the current one, and it fails without a GPU at the same place. What only a GPU can show is
marked ``gpu`` in the other tests.
"""

from __future__ import annotations

import sys
import types
from functools import partial
from typing import ClassVar

import numpy as np
import pytest
from kernels import cuda_on_cpu

import kldiv
from kldiv import backends
from kldiv.backends import registry, routing
from kldiv.errors import BackendError
from kldiv.kernels.cuda import CUDA, compiling


class CUDARuntimeError(RuntimeError):
    """As ``cupy.cuda.runtime`` has it."""


class Device:
    """A device, and a context manager that makes it the current one."""

    current: ClassVar = [0]

    def __init__(self, index=None):
        self.id = Device.current[-1] if index is None else index

    def __enter__(self):
        Device.current.append(self.id)
        return self

    def __exit__(self, *error):
        Device.current.pop()


def computed(function):
    """A function of the stand-in: refuses arrays that are not on the current device."""

    def call(*args, **kwargs):
        arrays = [a for a in args if isinstance(a, Array)]
        for array in arrays:
            assert array.device.id == Device.current[-1], "computes on another device's array"
        bare = [a.host if isinstance(a, Array) else a for a in args]
        return Array(function(*bare, **kwargs), Device())

    return call


def viewed(function):
    """A function that computes nothing, wherever the array is."""
    return lambda array, *args: Array(function(array.host, *args), array.device)


class Array:
    """Stands for ``cupy.ndarray``."""

    __module__ = "cupy"

    def __init__(self, host, device):
        self.host = np.asarray(host)
        self.device = device

    shape = property(lambda self: self.host.shape)
    dtype = property(lambda self: self.host.dtype)
    ndim = property(lambda self: self.host.ndim)
    strides = property(lambda self: self.host.strides)
    ctypes = property(lambda self: self.host.ctypes)  # where a kernel finds it

    def __dlpack__(self, **kwargs):
        raise BufferError("device memory")

    def __dlpack_device__(self):
        return (2, self.device.id)


for _name in "add sub mul truediv and eq neg radd rmul rsub rtruediv".split():
    setattr(Array, f"__{_name}__", computed(getattr(np.ndarray, f"__{_name}__")))
Array.__hash__ = None


@pytest.fixture
def cupy(monkeypatch):
    """A machine with two GPUs and the stand-in installed; gives the module."""
    module = types.ModuleType("cupy")
    module.__version__ = "14.0.0"
    module.ndarray = Array
    for name in """
        where log exp isnan isinf sum any count_nonzero astype ones_like ones full empty reshape
        ascontiguousarray
    """.split():
        setattr(module, name, computed(getattr(np, name)))
    module.moveaxis, module.broadcast_to = viewed(np.moveaxis), viewed(np.broadcast_to)
    module.float16, module.float32, module.float64 = np.float16, np.float32, np.float64
    module.inf = np.inf
    module.bool = np.bool_
    module.asnumpy = lambda array: array.host.copy()
    module.asarray = lambda host: Array(np.array(host), Device())
    module.array = lambda array: Array(array.host.copy(), Device())
    module.from_dlpack = lambda array: (
        array if isinstance(array, Array) else Array(np.from_dlpack(array), Device())
    )
    runtime = types.SimpleNamespace(
        getDeviceCount=lambda: module.gpus,
        CUDARuntimeError=CUDARuntimeError,
        is_hip=True,  # a build for AMD's GPUs, which has no kernels
    )
    module.cuda = types.SimpleNamespace(Device=Device, runtime=runtime)
    module.gpus = 2
    compat = types.ModuleType("array_api_compat.cupy")
    compat.__dict__.update({k: v for k, v in vars(module).items() if not k.startswith("__")})
    monkeypatch.setitem(sys.modules, "cupy", module)
    monkeypatch.setitem(sys.modules, "array_api_compat.cupy", compat)
    import array_api_compat

    monkeypatch.setattr(array_api_compat, "cupy", compat, raising=False)
    monkeypatch.delitem(sys.modules, "kldiv.backends.cupy_", raising=False)
    monkeypatch.setattr(registry, "_loaded", dict(registry._loaded))
    monkeypatch.setattr(registry, "_by_type", {})
    monkeypatch.setattr(routing, "_places", {})
    monkeypatch.setattr(CUDA, "failure", None)
    registry._loaded.pop("cupy", None)
    yield module
    sys.modules.pop("kldiv.backends.cupy_", None)
    assert Device.current == [0], "a device context was not left"


X, Y = np.log([0.25, 0.75]), np.array([0.5, 0.5])
EXPECTED = 0.14384103622589045


def on(device, host):
    return Array(host, Device(device))


@pytest.mark.parametrize("device", [0, 1])
def test_computes_on_the_device_of_its_arrays(cupy, device):
    loss = partial(kldiv.kl_div, reduction="sum")
    value, gradient = kldiv.value_and_grad(loss)(on(device, X), on(device, Y))
    for result in (loss(on(device, X), on(device, Y)), value):
        assert isinstance(result, Array)
        assert result.device.id == device
        assert result.host == pytest.approx(EXPECTED, rel=1e-15)
    assert gradient.device.id == device
    np.testing.assert_array_equal(gradient.host, -Y)


@pytest.mark.parametrize("setting", ["auto", "cuda:1", "cuda"])
def test_numpy_arrays_are_computed_by_cupy(cupy, setting, monkeypatch):
    seen = []
    backend = backends.get("cupy")
    real = backend.compute
    monkeypatch.setattr(
        backend,
        "compute",
        lambda operation, arrays, kernel: (
            seen.append([a.device.id for a in arrays]) or real(operation, arrays, kernel)
        ),
    )
    with kldiv.config_context(backend="cupy", device=setting):
        result = kldiv.kl_div(X, Y, reduction="sum")
    assert isinstance(result, np.floating)
    assert result == pytest.approx(EXPECTED, rel=1e-15)
    assert seen == [[1, 1] if setting == "cuda:1" else [0, 0]]


def test_an_array_of_another_gpu_is_moved(cupy):
    with kldiv.config_context(device="cuda:0"):
        result = kldiv.kl_div(on(1, X), on(1, Y), reduction="sum")
    assert result.device.id == 1  # back where the input was
    assert result.host == pytest.approx(EXPECTED, rel=1e-15)


def test_cupy_arrays_are_computed_by_numpy(cupy):
    with kldiv.config_context(backend="numpy"):
        result = kldiv.kl_div(on(1, X), on(1, Y), reduction="none")
    assert isinstance(result, Array)
    assert result.device.id == 1
    assert result.host.sum() == pytest.approx(EXPECTED, rel=1e-15)


def test_explain_and_status(cupy):
    assert kldiv.explain(on(1, X)).device == "cuda:1"
    status = kldiv.available_backends()["cupy"]
    assert (status.version, status.devices) == ("14.0.0", ("cuda:0", "cuda:1"))


# --- the kernel ``cuda`` --------------------------------------------------------------------------


@pytest.fixture
def launches(cupy, monkeypatch):
    """NVIDIA's GPUs, and the kernels on the CPU; gives what is launched, and on which device."""
    if problem := cuda_on_cpu.problem():
        pytest.skip(problem)
    monkeypatch.setattr(cupy.cuda.runtime, "is_hip", False)
    seen = []

    def load(name, macros):
        seen.append((name, Device.current[-1]))
        return cuda_on_cpu.function(name, macros)

    monkeypatch.setattr(compiling, "load", load)
    return seen


def test_kernels_compute_on_the_device_of_the_arrays(launches):
    x, y = on(1, X), on(1, Y)
    assert kldiv.explain(x).kernel == "cuda"
    value = kldiv.kl_div(x, y, reduction="sum")
    assert value.host == pytest.approx(EXPECTED, rel=1e-15)
    logits = kldiv.kl_div_with_logits(x, on(1, np.log(Y)), reduction="none")
    assert logits.host == pytest.approx(EXPECTED, rel=1e-15)
    assert (value.device.id, logits.device.id) == (1, 1)
    assert launches == [("pointwise", 1), ("row_loss", 1)]


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("loss", [kldiv.kl_div_with_logits, kldiv.js_div_with_logits])
def test_value_and_gradient_come_from_one_launch(launches, loss, mask):
    s, t = np.random.default_rng(0).normal(size=(2, 100, 6))
    where = np.arange(6) != 4
    options = {"axis": 0, "temperature": 0.7}
    vg = kldiv.value_and_grad(partial(loss, **options), (0, 1))
    value, gradients = vg(on(1, s), on(1, t), **({"where": on(1, where)} if mask else {}))
    assert launches == [("row_loss", 1)]
    with kldiv.config_context(kernel="pure"):
        wanted, expected = vg(s, t, **({"where": where} if mask else {}))
    assert value.host == pytest.approx(wanted, rel=1e-14)
    for found, true in zip(gradients, expected, strict=True):
        assert found.device.id == 1
        np.testing.assert_allclose(found.host, true, rtol=1e-12, atol=1e-16)


def test_a_kernel_that_cannot_be_compiled(launches, monkeypatch):
    def fails(name, macros):
        raise RuntimeError("nvrtc: error: invalid value for --gpu-architecture\nmore")

    monkeypatch.setattr(compiling, "load", fails)
    x, y = on(1, X), on(1, Y)
    with pytest.warns(RuntimeWarning, match=r"not by its kernels 'cuda': .*gpu-architecture; "):
        value = kldiv.kl_div(x, y, reduction="sum")
    assert value.host == pytest.approx(EXPECTED, rel=1e-15)
    kldiv.kl_div(x, y)  # it says so once
    assert kldiv.explain(x).kernel == "pure"
    with (
        kldiv.config_context(kernel="cuda"),
        pytest.raises(BackendError, match=r"kernel 'cuda' cannot run here: .*gpu-architecture"),
    ):
        kldiv.kl_div(x, y)


def test_gpus_that_the_kernels_are_not_for(cupy):
    assert kldiv.explain(on(0, X)).kernel == "pure"
    assert "built for AMD's" in str(kldiv.explain(on(0, X)))


def test_a_device_that_is_not_there(cupy):
    with (
        kldiv.config_context(backend="cupy", device="cuda:7"),
        pytest.raises(BackendError, match="no device 'cuda:7' here; it has: cuda:0, cuda:1"),
    ):
        kldiv.kl_div(X, Y)


def fails():
    raise CUDARuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected")


@pytest.mark.parametrize(
    ("count", "reason"),
    [(lambda: 0, "no GPU was found"), (fails, "no GPU can be used: cudaErrorNoDevice")],
)
def test_without_a_gpu_it_says_so(cupy, monkeypatch, count, reason):
    monkeypatch.setattr(cupy.cuda.runtime, "getDeviceCount", count)
    status = kldiv.available_backends(unusable=True)["cupy"]
    assert not status.usable
    assert status.reason.startswith(reason)
    with (
        kldiv.config_context(backend="cupy"),
        pytest.raises(BackendError, match=f"'cupy' cannot be used here: {reason}"),
    ):
        kldiv.kl_div(X, Y)
