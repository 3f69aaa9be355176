"""The registry: recognition, third parties, conformance, and what a missing library says."""

from __future__ import annotations

import pickle
import sys
import textwrap
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from libraries import Library, require
from processes import python

import kldiv
from kldiv import backends, testing
from kldiv.backends import Backend, exchange, get, registry, routing, table
from kldiv.divergences import Jeffreys
from kldiv.errors import BackendError, ConfigError, LibraryError


@pytest.fixture(autouse=True)
def own_registry(monkeypatch):
    """What a test registers is gone after it."""
    monkeypatch.setattr(registry, "_registered", {})
    monkeypatch.setattr(table, "registered", {})
    monkeypatch.setattr(registry, "_by_type", {})
    monkeypatch.setattr(routing, "_places", {})


@pytest.mark.parametrize("name", ["numpy", "torch", "jax", "dask", "cupy", "mlx"])
def test_ours_conform(name):
    require(Library(name))
    checks = testing.check_backend(name)
    assert {"description", "arrays float32", "gradients float32", "settings float32"} <= set(checks)


def test_the_generic_adapter_conforms():
    strict = pytest.importorskip("array_api_strict")
    assert len(testing.check_backend(backends.find(strict.asarray([1.0])))) == 12


SABOTAGE = {
    "compute": lambda self, operation, arrays, kernel: (
        Backend.compute(self, operation, arrays, kernel) * 2
    ),
    "to_numpy": lambda self, array: np.asarray(array) + 1,
    "dtype_name": lambda self, array: "float64",
    "devices": lambda self: (),
    "find_device": lambda self, name: name,
    "from_numpy": lambda self, array, device: np.abs(array),
    "problem": lambda self: "sabotaged",
}


@pytest.mark.parametrize("method", SABOTAGE)
def test_the_conformance_suite_can_fail(method, monkeypatch):
    backend = backends.get("numpy")
    monkeypatch.setattr(type(backend), method, SABOTAGE[method])
    with pytest.raises((AssertionError, BackendError)) as caught:
        testing.check_backend("numpy")
    assert method == "problem" or "failed the check" in caught.value.__notes__[0]


class Wrapped:
    """An array type of a library of its own: ``toylib``, NumPy with a coat."""

    __module__ = "toylib.arrays"

    def __init__(self, values):
        self.values = np.asarray(values)

    shape = property(lambda self: self.values.shape)
    dtype = property(lambda self: self.values.dtype)
    ndim = property(lambda self: self.values.ndim)


def coated(function):
    def call(*args, **kwargs):
        bare = [a.values if isinstance(a, Wrapped) else a for a in args]
        return Wrapped(function(*bare, **kwargs))

    return call


for _name in "add sub mul truediv and eq neg radd rmul rsub rtruediv".split():
    setattr(Wrapped, f"__{_name}__", coated(getattr(np.ndarray, f"__{_name}__")))
Wrapped.__hash__ = None


class ToyNamespace:
    def __getattr__(self, name):
        value = getattr(np, name)
        return coated(value) if callable(value) and not isinstance(value, type) else value


class Toy(Backend):
    name = "toy"
    roots = ("toylib",)
    module = "math"  # importable, and never used: the namespace is the toy's own

    def namespace(self, array=None):
        return ToyNamespace()

    def device(self, array):
        return "cpu"

    def devices(self):
        return ("cpu",)

    def to_numpy(self, array):
        return np.array(array.values)

    def from_numpy(self, array, device):
        return Wrapped(array.copy())

    def from_dlpack(self, array, device):
        raise BufferError


def test_a_third_party_registers_and_conforms():
    kldiv.register_backend(Toy())
    checks = testing.check_backend("toy")
    assert "values float64" in checks
    result = kldiv.kl_div(Wrapped(np.log([0.5, 0.5])), Wrapped([1.0, 0.0]), reduction="sum")
    assert isinstance(result, Wrapped)
    assert result.values == pytest.approx(np.log(2), rel=1e-15)
    assert kldiv.available_backends()["toy"].usable


def test_registering_refuses():
    with pytest.raises(TypeError, match="pass an instance"):
        kldiv.register_backend(Toy)
    kldiv.register_backend(Toy())
    with pytest.raises(ConfigError, match="'toy' exists already"):
        kldiv.register_backend(Toy())
    impostor = Toy()
    impostor.name = "numpy"
    with pytest.raises(ConfigError, match="'numpy' exists already"):
        kldiv.register_backend(impostor)


def test_an_unknown_type_is_recognised_once_its_backend_is_registered():
    with pytest.raises(LibraryError, match=r"toylib.arrays.Wrapped"):
        kldiv.kl_div(Wrapped([0.0]), Wrapped([1.0]))
    kldiv.register_backend(Toy())
    assert kldiv.kl_div(Wrapped([0.0]), Wrapped([1.0])).values == 0.0


@pytest.mark.parametrize(
    ("name", "members", "said"),
    [
        ("Sparse", {"toarray": None}, "its own toarray"),
        ("KerasTensor", {}, "call the loss in a layer"),
        ("Other", {}, "numpy.asarray"),
    ],
)
def test_an_array_of_no_library_says_what_makes_one(name, members, said):
    array = type(name, (), members)()
    with pytest.raises(LibraryError, match=said):
        kldiv.kl_div(array, array)


def test_bfloat16_goes_to_no_library_that_lacks_it():
    torch, strict = pytest.importorskip("torch"), pytest.importorskip("array_api_strict")
    lacking = backends.find(strict.asarray([1.0]))
    with pytest.raises(LibraryError, match="'array_api_strict' has no bfloat16"):
        exchange.move(torch.ones(2).bfloat16(), get("torch"), lacking, None)
    with pytest.raises(LibraryError, match="convert them to float32 first"):
        exchange.move(SimpleNamespace(dtype="bfloat16"), lacking, get("numpy"), None)


def test_special_functions_of_a_library_that_has_none():
    """SciPy's, on the array's own device; what neither has is no attribute."""
    special = pytest.importorskip("scipy.special")
    require(Library.STRICT)
    host = np.array([0.5, 3.0], np.float32)
    array = Library.STRICT.from_numpy(host)
    xp = backends.find(array).namespace(array)
    found = xp.special.digamma(array)
    assert (found.dtype, found.device) == (array.dtype, array.device)
    np.testing.assert_array_equal(Library.STRICT.numpy(found), special.digamma(host))
    assert not hasattr(xp, "no_function")


PLUGIN = """
import numpy as np
from kldiv.backends import get
from kldiv.backends.numpy_ import NumPyBackend

class Plugin(NumPyBackend):
    name = "plugin"
    roots = ("numpy",)

    def compute(self, operation, arrays, kernel):
        print("plugin computes")
        return super().compute(operation, arrays, kernel)
"""


@pytest.fixture
def plugin(tmp_path):
    """A directory with an installed package that offers a backend for NumPy's own arrays."""
    (tmp_path / "kldiv_plugin.py").write_text(PLUGIN)
    info = tmp_path / "kldiv_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: kldiv-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[kldiv.backends]\nplugin = kldiv_plugin:Plugin\n")
    return tmp_path


def run(directory, code):
    script = f"import sys; sys.path.insert(0, {str(directory)!r})\n{textwrap.dedent(code)}"
    return python("-W", "error", "-c", script)


def test_an_entry_point_is_found_by_name_and_changes_nothing_on_its_own(plugin):
    code = """
        import numpy as np, kldiv
        def compute():
            print(kldiv.kl_div(np.log([0.5, 0.5]), np.array([1.0, 0.0]), reduction="sum"))
        compute()
        print("plugin" in kldiv.available_backends(), "kldiv_plugin" in sys.modules)
        compute()
        print(kldiv.explain(np.ones(2)).backend)
        with kldiv.config_context(backend="plugin"):
            compute()
    """
    value = "0.6931471805599453"
    assert run(plugin, code).splitlines() == [
        value,
        "True True",
        value,
        "numpy",
        "plugin computes",
        value,
    ]


def test_available_backends():
    found = kldiv.available_backends()
    assert found["numpy"].version == np.__version__
    assert found["numpy"].devices == ("cpu",)
    assert all(status.usable and "pure" in status.kernels for status in found.values())
    whole = kldiv.available_backends(unusable=True)
    assert {"numpy", "torch", "jax", "cupy", "dask", "mlx"} <= set(whole)
    for status in whole.values():
        assert status.usable == (status.reason is None)


@pytest.fixture
def without(monkeypatch):
    """Hide a library."""

    def hide(name):
        monkeypatch.setitem(sys.modules, name, None)
        for module in [m for m in sys.modules if m.startswith(f"kldiv.backends.{name}_")]:
            monkeypatch.delitem(sys.modules, module)
        monkeypatch.setattr(
            registry, "_loaded", {k: v for k, v in registry._loaded.items() if k != name}
        )

    return hide


@pytest.mark.parametrize("name", ["torch", "jax", "cupy", "dask"])
def test_a_missing_library_says_how_to_install_it(name, without):
    without(name)
    status = kldiv.available_backends(unusable=True)[name]
    assert not status.usable
    assert status.reason
    assert status.install.startswith("pip install")
    assert name not in kldiv.available_backends()
    with (
        kldiv.config_context(backend=name),
        pytest.raises(BackendError, match=r"cannot be used here: .*; install it: pip install"),
    ):
        kldiv.kl_div(np.zeros(2), np.ones(2))


@pytest.mark.parametrize("name", ["numpy", "torch", "jax", "dask"])
def test_adapters_are_pickled_by_name(name):
    require(Library(name))
    assert pickle.loads(pickle.dumps(backends.get(name))) is backends.get(name)  # noqa: S301


def test_subclasses_are_their_library_s():
    torch = pytest.importorskip("torch")

    class Mine(torch.Tensor):
        pass

    class MyArray(np.ndarray):
        pass

    assert backends.find(torch.ones(2).as_subclass(Mine)).name == "torch"
    assert backends.find(torch.nn.Parameter(torch.ones(2))).name == "torch"
    assert backends.find(np.ones(2).view(MyArray)).name == "numpy"
    assert backends.find(np.float32(1.0)).name == "numpy"


def test_a_kernel_that_the_backend_lacks(monkeypatch):
    monkeypatch.setattr(table, "kernel_names", lambda: ["pure", "magic"])
    with (
        kldiv.config_context(kernel="magic"),
        pytest.raises(BackendError, match=r"kernel 'magic' does not run on backend 'numpy'.*pure"),
    ):
        kldiv.kl_div(np.zeros(2), np.ones(2))


def test_status_without_a_version():
    assert Backend.version(SimpleNamespace(roots=("no_such_module",))) is None


def test_threads_that_meet_a_library_first_get_their_own_route(monkeypatch):
    """Each thread's settings lead to its own route, though all routes are made at once."""
    monkeypatch.setattr(routing, "_routes", SimpleNamespace())
    monkeypatch.setattr(routing, "_places", {})
    devices = [f"cpu:{i}" for i in range(16)]
    monkeypatch.setattr(type(backends.get("numpy")), "devices", lambda _self: tuple(devices))
    start = threading.Barrier(len(devices))
    found = {}

    def call(device):
        with kldiv.config_context(device=device):
            start.wait()
            found[device] = backends.resolve(("arrays",), np.ones(2)).device

    threads = [threading.Thread(target=call, args=(device,)) for device in devices]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {device: device for device in devices}


def test_results_go_to_the_first_array_s_device(monkeypatch):
    s, t = np.array([[0.0, 1.0]]), np.array([[1.0, 0.5]])
    homes = []
    monkeypatch.setattr(get("numpy"), "device", lambda array: homes.append(array) or "cpu")
    reverse = Jeffreys(0.0, 1.0)  # KL, which takes the second one first
    with kldiv.config_context(device="cpu"):
        kldiv.f_div_with_logits(s, t, divergence=reverse)
        kldiv.kl_div_with_logits(s, t)
    assert [home is s for home in homes] == [True, True]
