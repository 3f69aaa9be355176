"""Which of an adapter's kernels computes a call, and what is said of those that do not."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from importlib import import_module
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest
from libraries import Library, require

import kldiv
from kldiv.backends import compile_kernels, get
from kldiv.backends.choice import Choice
from kldiv.cli.app import app
from kldiv.errors import BackendError, OptionError
from kldiv.kernels import KernelError, Technology
from kldiv.kernels.blocks import BLOCKS
from kldiv.kernels.cpu import CPU
from kldiv.kernels.pallas import PALLAS
from kldiv.kernels.triton import TRITON

PAIR = np.log([0.25, 0.75]), np.array([0.5, 0.5])


class StandIn(Technology):
    """A technology that answers with the length of its own name."""

    def __init__(self, name, *, problem=None, refusal=None, small=0, error=None):
        self.name, self.words, self.small, self.failure = name, f"the {name} one", small, problem
        self.refuses, self.error = refusal, error

    def refusal(self, work):
        return self.refuses

    def compute(self, work):
        if self.error:
            raise KernelError(self.error)
        return np.float64(len(self.name)), [np.full(2, float(index)) for index in work.gradients]


@pytest.fixture
def having(monkeypatch):
    """Give NumPy's adapter other kernels, and undo the routes that were chosen with them."""

    def having(*technologies):
        backend = get("numpy")
        monkeypatch.setattr(backend, "technologies", technologies, raising=False)
        names = (*(each.name for each in technologies), "pure")
        monkeypatch.setattr(backend, "kernels", names, raising=False)
        monkeypatch.setattr("kldiv.backends.routing._places", {})

    return having


def test_the_first_that_can_computes(having):
    having(StandIn("a", problem="no a here"), StandIn("bb", refusal="not this"))
    formulas = kldiv.kl_div(*PAIR, reduction="sum")
    having(StandIn("a", problem="no a here"), StandIn("bbb"), StandIn("cccc"))
    assert kldiv.kl_div(*PAIR, reduction="sum") == 3 != formulas
    value, gradient = kldiv.value_and_grad(kldiv.kl_div, argnums=1)(*PAIR)
    assert (value, gradient.tolist()) == (3, [1.0, 1.0])


def test_explain_says_why_each_of_them_does_not(having):
    having(StandIn("a", problem="no a here"), StandIn("bb", small=10))
    found = kldiv.explain(*PAIR)
    assert found.kernel == "pure"
    assert "a: no a here; bb: arrays of fewer than 10 elements" in str(found)
    having(StandIn("a"), StandIn("bb"))
    assert "kernel a: the a one, the fastest that applies" in str(kldiv.explain(*PAIR))


def test_explain_says_why_a_named_one_does_not(having):
    having(StandIn("cpu", refusal="not this"), StandIn("bb"))
    with kldiv.config_context(kernel="cpu"):
        found = str(kldiv.explain(*PAIR, operation="f_div_with_logits"))
    why = "set by config_context to 'cpu', which does not compute this: not this"
    assert found.endswith(f"kernel pure: {why}")


def test_one_that_fails_gives_way_with_a_warning(having):
    having(StandIn("a", error="it does not compile"), StandIn("bbb"))
    with pytest.warns(RuntimeWarning, match="not by its kernels 'a': it does not compile"):
        assert kldiv.kl_div(*PAIR) == 3


def test_doctor_says_which_kernels_cannot_run(having, capsys):
    having(StandIn("a", problem="no a here"), StandIn("bbb"))
    status = kldiv.available_backends()["numpy"]
    assert status.kernels == ("bbb", "pure")
    assert status.kernel_problems == {"a": "no a here"}
    with pytest.raises(SystemExit):
        app(["doctor"], prog_name="kldiv")
    assert "a (numpy): no a here" in capsys.readouterr().out


@pytest.mark.parametrize("why", ["problem", "error"])
def test_a_name_forces_it_or_says_why_not(having, why):
    having(StandIn("cpu", **{why: "it does not compile"}))
    with (
        kldiv.config_context(kernel="cpu"),
        pytest.raises(BackendError, match="kernel 'cpu' cannot run here: it does not compile"),
    ):
        kldiv.kl_div(*PAIR)


def test_an_adapter_s_own_kernel_is_chosen_first(having, monkeypatch):
    having()
    backend, seen = get("numpy"), []
    monkeypatch.setattr(backend, "kernels", ("mine", "pure"), raising=False)
    compute = backend.compute
    monkeypatch.setattr(backend, "compute", lambda *given: seen.append(given[2]) or compute(*given))
    kldiv.kl_div(*PAIR)
    assert seen == ["mine"]
    assert kldiv.explain(*PAIR).kernel == "mine"


# ---- what explain says is what runs --------------------------------------------------------------

LOSSES = ("kl_div", "kl_div_with_logits", "js_div_with_logits")
SHAPES = {"small": (4, 8), "large": (64, 512), "empty": (0, 512)}
LIBRARIES = [Library(name) for name in ("numpy", "torch", "jax", "dask", "array-api-strict")]


@pytest.fixture
def computing(monkeypatch):
    """Names of the technologies that computed."""
    found = []

    def spied(technology, name, compute):
        def run(*args):
            found.append(technology.name)
            return compute(*args)

        monkeypatch.setattr(technology, name, run)

    for technology in (CPU, TRITON, PALLAS, BLOCKS):
        spied(technology, "compute", technology.compute)
    prepare = CPU.prepare
    # Routes keep what is prepared, so they are made anew, and what is prepared is spied on.
    monkeypatch.setattr("kldiv.backends.routing._places", {})

    def prepared(work):
        spied(launcher := SimpleNamespace(name="cpu", run=None), "run", prepare(work))
        return launcher.run

    monkeypatch.setattr(CPU, "prepare", prepared)
    return found


def arrays_of(lib, shape, dtype):
    x, y = np.random.default_rng(0).normal(size=(2, *shape))
    return [lib.array(a, dtype) for a in (-abs(x), abs(y))]


def strided(array):
    return array[:, ::2] if array.ndim > 1 else array


CHANGES = {"plain": lambda a: a, "strided": strided}


def explained_and_run(computing, loss, *arrays, run=None, **options):
    """Return which kernel explain names, and which computed."""
    explained = kldiv.explain(*arrays, operation=loss).kernel
    computing.clear()
    result = (run or getattr(kldiv, loss))(*arrays, **options)
    getattr(result, "compute", lambda: None)()
    np.asarray(result.detach() if hasattr(result, "detach") else 0)  # an asynchronous one is done
    if type(result).__module__.startswith("jax"):
        result.block_until_ready()
    return explained, set(computing) or {"pure"}


CASES = [
    ("small", "auto", "plain"),
    ("large", "auto", "plain"),
    ("small", "cpu", "strided"),
    ("large", "cpu", "plain"),
    ("large", "auto", "strided"),
    ("large", "pure", "plain"),
    ("empty", "auto", "plain"),
]


@pytest.mark.parametrize(("size", "kernel", "change"), CASES)
@pytest.mark.parametrize("library", LIBRARIES, ids=lambda library: library.value)
def test_explain_says_what_runs(computing, library, size, kernel, change):
    require(library)
    if kernel == "cpu" and (library.backend not in {"numpy", "torch", "jax"} or CPU.problem()):
        return
    half = {library.floats[0]} if library is not Library.JAX else set()
    for dtype in {"float32", *half}:
        arrays = [CHANGES[change](a) for a in arrays_of(library, SHAPES[size], dtype)]
        for loss in LOSSES:
            with kldiv.config_context(kernel=kernel):
                explained, ran = explained_and_run(computing, loss, *arrays, reduction="sum")
            if library is Library.DASK and kernel == "auto":  # said of its blocks
                assert explained == "auto"
                blocks = [np.asarray(a.blocks[0, 0]) for a in arrays] if size != "empty" else None
                explained = kldiv.explain(*blocks, operation=loss).kernel if blocks else "pure"
                if loss != "kl_div":  # whole rows are more than a block of both axes
                    continue
            assert ran == {explained}, (loss, dtype)


@pytest.mark.parametrize("library", LIBRARIES[:3], ids=lambda library: library.value)
def test_explain_says_what_runs_under_a_mask(computing, library):
    require(library)
    x, y = arrays_of(library, (64, 512), "float32")
    for loss, shape in (("kl_div", (64, 512)), ("kl_div_with_logits", (64,))):
        keep = library.from_numpy(np.ones(shape, bool))
        explained = kldiv.explain(x, y, keep, operation=loss).kernel
        _, ran = explained_and_run(computing, loss, x, y, where=keep)
        assert ran == {explained}


@pytest.mark.parametrize("wanted", ["value", "value_and_grad", "backward"])
@pytest.mark.parametrize("size", ["small", "large"])
@pytest.mark.parametrize("library", LIBRARIES[:3], ids=lambda library: library.value)
def test_gradients_run_where_explain_says(computing, library, size, wanted):
    require(library)
    for loss in LOSSES:
        arrays = arrays_of(library, SHAPES[size], "float32")
        run = getattr(kldiv, loss)
        if wanted == "value_and_grad":
            run = lambda *pair, f=run: kldiv.value_and_grad(f, (0, 1))(*pair)[1][0]  # noqa: E731
        elif wanted == "backward" and library is Library.TORCH:
            arrays[0].requires_grad_()
            run = lambda x, y, f=run: f(x, y).backward() or x.grad  # noqa: E731
        elif wanted == "backward" and library is Library.JAX:
            run = lambda *pair, f=run: import_module("jax").value_and_grad(f)(*pair)[0]  # noqa: E731
        explained, ran = explained_and_run(computing, loss, *arrays, run=run)
        assert ran == {explained}, loss


@pytest.mark.parametrize(
    ("size", "kernel"),
    [
        pytest.param("small", "auto", marks=pytest.mark.slow),
        ("small", "cpu"),
        pytest.param("large", "auto", marks=pytest.mark.slow),
    ],
)
def test_compiled_code_runs_what_explain_says(computing, size, kernel):
    torch = pytest.importorskip("torch")
    if CPU.problem():
        pytest.skip(CPU.problem())
    for loss in LOSSES[:2]:
        torch.compiler.reset()
        function = torch.compile(getattr(kldiv, loss), fullgraph=True, backend="aot_eager")
        x, y = arrays_of(Library.TORCH, SHAPES[size], "float32")
        x.requires_grad_()
        run = lambda x, y, f=function: f(x, y).backward() or x.grad  # noqa: E731
        with kldiv.config_context(kernel=kernel):
            for pair in ((x.detach(), y), (x, y)):
                how = function if not pair[0].requires_grad else run
                explained, ran = explained_and_run(computing, loss, *pair, run=how)
                # Blocks are NumPy's, which no compiler takes.
                assert ran == {"pure" if explained == "blocks" else explained}, loss


@pytest.mark.parametrize("size", ["small", "large"])
@pytest.mark.parametrize(("caller", "other"), [("numpy", "torch"), ("torch", "numpy")])
def test_explain_says_what_another_library_runs(computing, caller, other, size):
    require(Library(caller)), require(Library(other))
    arrays = arrays_of(Library(caller), SHAPES[size], "float32")
    with kldiv.config_context(backend=other):
        for loss in LOSSES:
            explained, ran = explained_and_run(computing, loss, *arrays)
            assert ran == {explained}, loss


def unaligned(array):
    place = np.empty(array.nbytes + 1, np.uint8)[1:].view(array.dtype).reshape(array.shape)
    place[...] = array
    return place


ARRAYS = {
    "large": lambda a: a,
    "small": lambda a: a[:4],
    "empty": lambda a: a[:0],
    "strided": strided,
    "float64": lambda a: a.astype(np.float64),
    "float16": lambda a: a.astype(np.float16),
    "unaligned": unaligned,
    "of another byte order": lambda a: a.astype(a.dtype.newbyteorder()),
    "of a subclass": lambda a: a.view(type("Mine", (np.ndarray,), {})),
}


@pytest.mark.parametrize("how", ["value", "value_and_grad"])
def test_kept_choices_are_those_of_a_first_call(computing, how, monkeypatch):
    """Calls of all kinds after one another, and again: each runs as explained at that moment."""
    require(Library.NUMPY)
    pair = arrays_of(Library.NUMPY, (64, 512), "float32")
    settings = {
        "default": nullcontext,
        "context": lambda: kldiv.config_context(kernel="pure"),
        "cpu": nullcontext if CPU.problem() else lambda: kldiv.config_context(kernel="cpu"),
        "environment": lambda: environment(monkeypatch),
        "process": process,
        "failed": lambda: changed(monkeypatch, CPU, "failure", "it failed"),
        "all are small": lambda: changed(monkeypatch, CPU, "small", 1 << 20),
    }
    seen = set()
    for _ in range(3):
        for loss in LOSSES[:2]:
            run = getattr(kldiv, loss)
            if how == "value_and_grad":
                run = lambda *pair, f=run: kldiv.value_and_grad(f)(*pair)[0]  # noqa: E731
            for setting in settings.values():
                for change in ARRAYS.values():
                    arrays = list(map(change, pair))
                    with setting():
                        explained, ran = explained_and_run(computing, loss, *arrays, run=run)
                    assert ran == {explained}, loss
                    seen |= ran
    assert seen == {"blocks", "pure"} | ({"cpu"} if not CPU.problem() else set())


@contextmanager
def environment(monkeypatch):
    monkeypatch.setenv("KLDIV_KERNEL", "pure")
    yield
    monkeypatch.delenv("KLDIV_KERNEL")


@contextmanager
def process():
    kldiv.set_config(kernel="pure")
    yield
    kldiv.set_config(kernel=None)


@contextmanager
def changed(monkeypatch, technology, name, value):
    usual = getattr(technology, name)
    monkeypatch.setattr(technology, name, value)
    yield
    monkeypatch.setattr(technology, name, usual)


def test_kept_choices_of_torch_know_transforms_and_views(computing):
    require(Library.TORCH)
    torch = import_module("torch")
    x, y = arrays_of(Library.TORCH, (64, 512), "float32")
    complex_ = torch.complex(x, x)
    kinds = {
        "plain": lambda: kldiv.kl_div(x, y),
        "tracked": lambda: kldiv.kl_div(x.clone().requires_grad_(), y),
        "negative": lambda: kldiv.kl_div(torch.imag(complex_.conj()), y),
        "forward": lambda: torch.func.jvp(kldiv.kl_div, (x, y), (x, y))[1],
        "entries": lambda: torch.func.vmap(kldiv.kl_div)(x, y),
        "fake": lambda: fake(torch, x, y),
    }
    expected = {}
    for _ in range(3):
        for kind, call in kinds.items():
            computing.clear()
            result = call()
            found = set(computing), None if kind == "fake" else result.sum().item()
            assert expected.setdefault(kind, found) == found, kind
    if not CPU.problem():
        assert expected["plain"][0] == expected["tracked"][0] == {"cpu"}
        assert expected["negative"][0] == expected["fake"][0] == set()


def fake(torch, *arrays):
    mode = import_module("torch._subclasses").FakeTensorMode()
    with mode:
        return kldiv.kl_div(*(mode.from_tensor(array) for array in arrays))


def test_explain_says_what_a_mixed_call_runs(computing):
    require(Library.TORCH)
    pair = [arrays_of(lib, (64, 512), "float32")[k] for k, lib in enumerate(LIBRARIES[:2])]
    with kldiv.config_context(backend="numpy"):
        explained, ran = explained_and_run(computing, "kl_div_with_logits", *pair)
    assert ran == {explained}


def test_the_proof_can_fail(computing, monkeypatch):
    x, y = arrays_of(Library.NUMPY, (64, 512), "float32")
    monkeypatch.setattr("kldiv.explanation.choose", lambda *_: Choice(None, dict))
    explained, ran = explained_and_run(computing, "kl_div", x, y)
    assert ran != {explained} or CPU.problem()


@pytest.mark.skipif(find_spec("llvmlite") is None, reason="llvmlite is not installed")
def test_no_nan_of_a_row_counts_whose_cotangent_is_0(computing):
    torch = pytest.importorskip("torch")
    s, t = torch.zeros(2, 5, requires_grad=True), torch.arange(10.0).reshape(2, 5)
    t[0, 1] = float("nan")
    with kldiv.config_context(kernel="cpu"):
        kldiv.kl_div_with_logits(s, t, reduction="none").backward(torch.tensor([0.0, 1.0]))
    assert set(computing) == {"cpu"}
    assert s.grad[0].tolist() == [0.0] * 5
    assert torch.isfinite(s.grad[1]).all()


def test_kernels_that_cannot_be_compiled_ahead(monkeypatch):
    monkeypatch.setattr(CPU, "problem", lambda: "no compiler here")
    with pytest.raises(BackendError, match="kernel 'cpu' cannot run here: no compiler here"):
        next(compile_kernels())


@pytest.mark.skipif(find_spec("llvmlite") is None, reason="llvmlite is not installed")
def test_kernels_to_compile_ahead():
    def names(*functions, first=False):
        return [name for name, _ in compile_kernels(functions, first=first)]

    assert names("entropy_with_logits") == [
        "cross_entropy_with_logits, float32",
        "cross_entropy_with_logits, float64",
    ]
    first, every = names(first=True), names()
    assert {"kl_div, float32", "kl_div_with_logits, float32"} < set(first) < set(every)
    assert not any("float64" in name for name in first)
    assert len(set(every)) == len(every)
    with pytest.raises(OptionError, match="no CPU kernel serves 'hellinger'"):
        names("tv_div_with_logits", "hellinger")
