"""Settings: where they come from, who sees them, and that another backend really computes."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from libraries import Library, require

import kldiv
from kldiv import backends, config
from kldiv.backends import kernel_names, routing
from kldiv.errors import BackendError, ConfigError, LibraryError

X = np.log([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]])
Y = np.array([[0.1, 0.0, 0.9], [0.3, 0.3, 0.4]])
AUTO = {"backend": "auto", "device": "auto", "kernel": "auto"}


@pytest.fixture
def spy(monkeypatch):
    """Names of the backends that computed, in order."""
    computed = []
    for name in ("numpy", "torch", "jax", "dask"):
        if Library(name).problem():
            continue
        backend = backends.get(name)

        def compute(operation, arrays, kernel, backend=backend, real=backend.compute):
            computed.append(backend.name)
            for array in arrays:
                assert backends.find(array) is backend
            return real(operation, arrays, kernel)

        monkeypatch.setattr(backend, "compute", compute)
    return computed


@pytest.mark.parametrize("other", ["numpy", "torch", "jax", "dask"])
@pytest.mark.parametrize("reduction", ["none", "sum", "batchmean"])
def test_another_backend_computes_and_the_result_comes_home(lib, other, reduction, spy):
    require(Library(other))
    x, y = lib.array(X), lib.array(Y)
    expected = lib.numpy(kldiv.kl_div(x, y, reduction=reduction))
    spy.clear()
    with kldiv.config_context(backend=other):
        result = kldiv.kl_div(x, y, reduction=reduction)
        lib.assert_equal(result, expected)  # computes what is lazy
    if lib.backend == other:
        return  # at home: nothing is moved, and a compiled function is not run again
    assert other in spy
    assert set(spy) <= {other, "numpy" if other == "dask" else other}


@pytest.mark.parametrize("other", ["numpy", "torch", "jax", "dask"])
def test_gradients_of_value_and_grad_cross(lib, other, spy):
    require(Library(other))
    loss = partial(kldiv.kl_div, reduction="sum")
    with kldiv.config_context(backend=other):
        value, gradients = kldiv.value_and_grad(loss, (0, 1))(lib.array(X), lib.array(Y))
        with np.errstate(divide="ignore"):
            slope = np.where(Y > 0, np.log(Y) + 1 - X, 0.0)
        lib.assert_equal(gradients[0], -Y)
        lib.assert_equal(gradients[1], slope)
        lib.assert_like(value, (), lib.widest)
    assert other in spy or lib.backend == other


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("source", ["numpy", "numpy-readonly", "torch", "jax-x64"])
@pytest.mark.parametrize("other", ["numpy", "torch", "jax"])
def test_every_dtype_crosses(source, other, dtype, spy):
    lib = Library(source)
    require(lib)
    require(Library(other))
    with lib.configured(), kldiv.config_context(backend=other):
        x, y = lib.array(X, dtype), lib.array(Y, dtype)
        keep = lib.array(np.array([True, False, True]))
        result = kldiv.kl_div(x, y, reduction="none", where=keep)
        lib.assert_like(result, (2, 3), dtype)
        assert spy[0] == other
        exact_x, exact_y = (lib.numpy(a).astype(float) for a in (x, y))
        with np.errstate(divide="ignore", invalid="ignore"):
            expected = np.where(exact_y > 0, exact_y * (np.log(exact_y) - exact_x), 0.0)
        lib.assert_equal(result, expected * [1, 0, 1], dtype)


@pytest.mark.parametrize(
    "change",
    [
        np.asfortranarray,
        lambda a: a[::-1, ::-1],
        lambda a: a.astype(a.dtype.newbyteorder()),
        lambda a: np.broadcast_to(a[:1], a.shape),
        lambda a: np.stack([a, a], axis=-1)[..., 0],
    ],
    ids=["fortran", "negative strides", "byte order", "zero strides", "strided"],
)
@pytest.mark.parametrize("other", ["numpy", "torch", "jax", "dask"])
def test_every_layout_crosses(change, other, spy):
    require(Library(other))
    x, y = change(X), change(Y)
    with np.errstate(divide="ignore", invalid="ignore"):
        expected = np.where(y > 0, y * (np.log(y) - x), 0.0)
    with kldiv.config_context(backend=other):
        result = kldiv.kl_div(x, y, reduction="none")
    assert spy[0] == other
    Library.NUMPY.assert_equal(result, expected)
    result[...] = 0.0  # as NumPy's own results, it can be written to


@pytest.mark.parametrize("other", ["numpy", "jax", "dask"])
def test_torch_gets_its_gradient_from_another_backend(other, spy):
    torch = pytest.importorskip("torch")
    require(Library(other))
    x = torch.tensor(X, requires_grad=True)
    y = torch.tensor(Y, requires_grad=True)
    with kldiv.config_context(backend=other):
        loss = kldiv.kl_div(x, y, reduction="batchmean")
    # The backward belongs to the call: it keeps the call's choice.
    loss.backward()
    assert "torch" not in spy
    assert spy.count(other) >= 2
    np.testing.assert_allclose(x.grad.numpy(), -Y / 2, rtol=1e-15)
    expected = [torch.tensor(X, requires_grad=True), torch.tensor(Y, requires_grad=True)]
    kldiv.kl_div(*expected, reduction="batchmean").backward()
    torch.testing.assert_close(y.grad, expected[1].grad, rtol=1e-15, atol=0)


def test_second_order_crosses_too():
    torch = pytest.importorskip("torch")
    x = torch.tensor(X, requires_grad=True)
    y = torch.tensor(Y + 0.1, requires_grad=True)
    with kldiv.config_context(backend="numpy"):
        assert torch.autograd.gradgradcheck(partial(kldiv.kl_div, reduction="sum"), (x, y))


@pytest.mark.parametrize("transform", ["jit", "grad", "vmap"])
def test_jax_tracers_cannot_cross(transform):
    jax = pytest.importorskip("jax")
    loss = partial(kldiv.kl_div, reduction="sum")
    with (
        kldiv.config_context(backend="numpy"),
        pytest.raises(LibraryError, match="tracer has no values"),
    ):
        getattr(jax, transform)(loss)(jax.numpy.asarray(X), jax.numpy.asarray(Y))


def test_torch_batched_tensors_cannot_cross():
    torch = pytest.importorskip("torch")
    with (
        kldiv.config_context(backend="numpy"),
        pytest.raises(LibraryError, match="has no values to move"),
    ):
        torch.func.vmap(kldiv.kl_div)(torch.tensor(X), torch.tensor(Y))


def test_float64_stays_float64_on_jax_without_x64(spy):
    pytest.importorskip("jax")
    tiny = np.array([1.0, 1e-12])
    with kldiv.config_context(backend="jax"):
        result = kldiv.kl_div(-tiny, tiny, reduction="none")
    assert spy == ["jax"]
    Library.NUMPY.assert_equal(result, tiny * (np.log(tiny) + tiny), ulps=4)


def test_dask_stays_lazy_and_keeps_the_choice_for_its_tasks(spy):
    pytest.importorskip("dask")
    pytest.importorskip("torch")
    lib = Library.DASK
    with kldiv.config_context(backend="torch"):
        lazy = kldiv.kl_div(lib.array(X), lib.array(Y), reduction="sum")
    assert spy == []
    lib.assert_equal(lazy, lib.numpy(kldiv.kl_div(lib.array(X), lib.array(Y), reduction="sum")))
    assert "torch" in spy


@pytest.mark.parametrize(("first", "second"), [("numpy", "torch"), ("torch", "jax")])
def test_two_libraries_in_one_call(first, second):
    libraries = Library(first), Library(second)
    for library in libraries:
        require(library)
    x, y = libraries[0].array(X, "float32"), libraries[1].array(Y, "float32")
    with pytest.raises(TypeError, match=f"{first}.*{second}.*set_config"):
        kldiv.kl_div(x, y)
    for backend in (first, second, "numpy"):
        with kldiv.config_context(backend=backend):
            result = kldiv.kl_div(x, y, reduction="sum")
        expected = kldiv.kl_div(X, Y, reduction="sum")
        libraries[0].assert_equal(result, expected, "float32")


# ---- order and scope -----------------------------------------------------------------------------


def test_set_config_and_back():
    kldiv.set_config(backend="numpy", kernel="pure")
    assert kldiv.get_config() == {"backend": "numpy", "device": "auto", "kernel": "pure"}
    kldiv.set_config(backend=None, kernel=None)
    assert kldiv.get_config() == AUTO


def test_order(monkeypatch, tmp_path):
    file = tmp_path / "config.toml"
    file.write_text('backend = "dask"\ndevice = "cpu"\nkernel = "pure"\n')
    monkeypatch.setenv("KLDIV_CONFIG", str(file))
    monkeypatch.setattr(config, "_file", None)
    assert kldiv.get_config()["backend"] == "dask"
    monkeypatch.setenv("KLDIV_BACKEND", "jax")
    assert kldiv.get_config()["backend"] == "jax"
    kldiv.set_config(backend="torch")
    assert kldiv.get_config()["backend"] == "torch"
    with kldiv.config_context(backend="numpy"):
        assert kldiv.get_config() == {"backend": "numpy", "device": "cpu", "kernel": "pure"}
        with kldiv.config_context(device="auto"):
            assert kldiv.get_config()["backend"] == "numpy"
            assert kldiv.get_config()["device"] == "auto"
    assert kldiv.get_config()["backend"] == "torch"
    assert config.origins() == {
        "backend": "set_config",
        "device": f"the configuration file {str(file)!r}",
        "kernel": f"the configuration file {str(file)!r}",
    }


def test_context_ends_with_an_exception():
    with pytest.raises(ZeroDivisionError), kldiv.config_context(backend="numpy"):
        raise ZeroDivisionError
    assert kldiv.get_config() == AUTO


def test_threads_do_not_see_each_other_s_contexts():
    entered, left = threading.Event(), threading.Event()
    seen = {}

    def inside():
        with kldiv.config_context(backend="numpy"):
            entered.set()
            left.wait(10)
            seen["inside"] = kldiv.get_config()["backend"]

    thread = threading.Thread(target=inside)
    thread.start()
    assert entered.wait(10)
    seen["outside"] = kldiv.get_config()["backend"]
    left.set()
    thread.join()
    assert seen == {"inside": "numpy", "outside": "auto"}


def test_set_config_is_seen_by_all_threads():
    kldiv.set_config(backend="numpy")
    seen = []
    thread = threading.Thread(target=lambda: seen.append(kldiv.get_config()["backend"]))
    thread.start()
    thread.join()
    assert seen == ["numpy"]


def test_tasks_do_not_see_each_other_s_contexts():
    async def inside(entered, left):
        with kldiv.config_context(backend="numpy"):
            entered.set()
            await left.wait()
            return kldiv.get_config()["backend"]

    async def outside(entered, left):
        await entered.wait()
        backend = kldiv.get_config()["backend"]
        left.set()
        return backend

    async def both():
        entered, left = asyncio.Event(), asyncio.Event()
        return await asyncio.gather(inside(entered, left), outside(entered, left))

    assert asyncio.run(both()) == ["numpy", "auto"]


def run(code, directory, **environment):
    """What a fresh interpreter in ``directory`` prints."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("KLDIV")}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=directory,
        env={**clean, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


SCRIPT = """
import sys, numpy as np, kldiv
result = kldiv.kl_div(np.log([0.5, 0.5]), np.array([1.0, 0.0]), reduction="sum")
print(type(result).__module__, round(float(result), 6), "torch" in sys.modules)
"""


def test_the_environment_swaps_the_backend_of_a_script(tmp_path):
    pytest.importorskip("torch")
    assert run(SCRIPT, tmp_path).stdout.split() == ["numpy", "0.693147", "False"]
    swapped = run(SCRIPT, tmp_path, KLDIV_BACKEND="torch")
    assert swapped.stdout.split() == ["numpy", "0.693147", "True"], swapped.stderr


def test_the_user_s_configuration_directory_is_read(tmp_path):
    code = "import kldiv; print(kldiv.get_config()['kernel'])"
    home = tmp_path / "home"
    places = {"HOME": str(home), "XDG_CONFIG_HOME": str(home / ".config"), "APPDATA": str(home)}
    assert run(code, tmp_path, **places).stdout == "auto\n"
    find = "from kldiv import config; print(config._config_file())"
    file = Path(run(find, tmp_path, **places).stdout.strip())
    assert home in file.parents
    file.parent.mkdir(parents=True)
    file.write_text('kernel = "pure"\n')
    assert run(code, tmp_path, **places).stdout == "pure\n"


def test_nothing_is_read_from_the_current_directory(tmp_path):
    for name in ("kldiv.toml", "config.toml", "pyproject.toml", ".kldiv.toml", "kldiv.cfg"):
        (tmp_path / name).write_text('backend = "no such backend"\n[tool.kldiv]\nbackend = "x"\n')
    found = run("import kldiv; print(kldiv.get_config())", tmp_path)
    assert found.stdout == f"{AUTO}\n", found.stderr


# ---- what does not exist -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change", [kldiv.set_config, lambda **s: kldiv.config_context(**s).__enter__()]
)
def test_unknown_names_are_refused_with_the_known_ones(change):
    with pytest.raises(
        ConfigError, match="no backend is called 'tensorflow'; known: auto, numpy, "
    ):
        change(backend="tensorflow")
    known = ", ".join(["auto", *kernel_names()])
    with pytest.raises(ConfigError, match=f"no kernel is called 'magic'; known: {known}"):
        change(kernel="magic")
    with pytest.raises(ConfigError, match="no setting is called 'colour'; known: backend, device"):
        change(colour="blue")
    with pytest.raises(ConfigError, match="backend must be a string, got int"):
        change(backend=3)
    assert kldiv.get_config() == AUTO


def test_unknown_names_in_the_environment(monkeypatch):
    monkeypatch.setenv("KLDIV_BACKEND", "tensorflow")
    with pytest.raises(ConfigError, match=r"environment.*tensorflow.*known: auto, numpy"):
        kldiv.kl_div(X, Y)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("backend = ", "is not TOML"),
        ("colour = 'blue'", "no setting is called 'colour'"),
        ("backend = 'tensorflow'", "no backend is called 'tensorflow'"),
        (b"\xff\xfe", "is not TOML"),
        (None, "does not exist"),
    ],
)
def test_bad_files(monkeypatch, tmp_path, content, message):
    file = tmp_path / "settings.toml"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    monkeypatch.setenv("KLDIV_CONFIG", str(file))
    monkeypatch.setattr(config, "_file", None)
    monkeypatch.setattr(routing, "_places", {})  # kept of calls under another file
    with pytest.raises(ConfigError, match=message) as caught:
        kldiv.kl_div(X, Y)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("backend", ["auto", "numpy", "torch", "jax"])
def test_a_device_that_the_backend_does_not_have(backend):
    if backend != "auto":
        require(Library(backend))
    with (
        kldiv.config_context(backend=backend, device="tpu:7"),
        pytest.raises(BackendError, match=r"has no device 'tpu:7' here; it has: cpu"),
    ):
        kldiv.kl_div(X, Y)


@pytest.mark.parametrize("backend", ["numpy", "torch", "jax"])
def test_the_device_that_every_backend_has(backend, spy):
    require(Library(backend))
    with kldiv.config_context(backend=backend, device="cpu"):
        Library.NUMPY.assert_equal(
            kldiv.kl_div(X, Y, reduction="sum"), np.nansum(Y * (np.log(Y + (Y == 0)) - X))
        )
    assert spy == [backend]


@pytest.mark.parametrize("device", ["array_api_strict.Device('device2')", "CPU_DEVICE"])
def test_a_device_of_the_arrays_own_library(device):
    strict = pytest.importorskip("array_api_strict")
    name = next(str(d) for d in strict.__array_namespace_info__().devices() if device in str(d))
    lib = Library.STRICT
    with kldiv.config_context(device=name):
        result = kldiv.kl_div(lib.array(X), lib.array(Y))
        assert kldiv.explain(lib.array(X)).device == name
    lib.assert_like(result, (), "float64")  # back where the input was


def test_explain(lib, monkeypatch):
    found = kldiv.explain(lib.array(X), lib.array(Y))
    kernels = {Library.DASK: "auto"}  # each block's own library chooses
    kernels |= {Library.CUPY: "cuda", Library.TORCH_CUDA: "triton"}  # however small the arrays
    kernel = kernels.get(lib, "pure")
    assert (found.library, found.backend, found.kernel) == (lib.backend, lib.backend, kernel)
    assert found.device
    monkeypatch.setenv("KLDIV_BACKEND", "numpy")
    other = kldiv.explain(lib.array(X))
    assert (other.library, other.backend, other.device) == (lib.backend, "numpy", "cpu")
    assert "set by the environment variable KLDIV_BACKEND" in str(other)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((), "needs the arrays"), ((X, "no array"), "expected an array")],
)
def test_explain_refuses(arguments, message):
    with pytest.raises(kldiv.errors.KLDivError, match=message):
        kldiv.explain(*arguments)
    with pytest.raises(ValueError, match="operation must be one of 'kl_div'"):
        kldiv.explain(X, operation="kl")
