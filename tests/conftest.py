"""What every test shares: libraries, untouched settings, and what cannot run here left out early.

A case that cannot run here is not collected: `pytest_pycollect_makeitem` drops it and counts
its reason, and the run ends with one line a reason.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections import Counter
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from zlib import crc32

import pytest
from libraries import FLOATS, Library, demanded, require

from kldiv import config

ROOT = Path(__file__).parents[1]

# A user's own configuration must not decide what the suite tests.
for variable in (*config.VARIABLES, "KLDIV_CONFIG"):
    os.environ.pop(variable, None)

# Without a GPU Triton interprets its kernels on the CPU; it asks when it is first imported, which
# torch may do in any test.
if not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = "1"

# XLA compiles every operation of every shape. Most tests do without LLVM's optimisations (fixture
# `optimised`: with them), and later runs find what is compiled. A limit of its size would make JAX
# read the whole cache at each write (270 ms with 7,000 entries, compiling 20 ms), and its writes
# are not atomic: each worker has its own, and a session starts anew where they have grown.
XLA = ROOT / ".pytest_cache" / "xla"
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(XLA / os.environ.get("PYTEST_XDIST_WORKER", "main"))
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

# Each worker has a core.
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    if "PYTEST_XDIST_WORKER" in os.environ:
        os.environ.setdefault(variable, "1")

LEFT_OUT = pytest.StashKey[Counter[str]]()


def pytest_configure(config):
    config.stash[LEFT_OUT] = Counter()
    if "PYTEST_XDIST_WORKER" not in os.environ and sum(1 for _ in XLA.glob("*/*")) > 30_000:
        shutil.rmtree(XLA)


def pytest_report_header() -> list[str]:
    problems = {library: library.problem() for library in Library}
    unknown = demanded() - {library.value for library in Library}
    if unknown:
        raise pytest.UsageError(
            f"KLDIV_TEST_BACKENDS names {', '.join(sorted(unknown))}; known: "
            f"{', '.join(library.value for library in Library)}"
        )
    return [
        "kldiv on: " + ", ".join(lib.value for lib, why in problems.items() if why is None),
        "not on: " + ", ".join(f"{lib.value} ({why})" for lib, why in problems.items() if why),
    ]


# ---- what cannot run here ------------------------------------------------------------------------


@cache
def problem(library: Library) -> str | None:
    """Return why a library cannot be tested here and was not demanded, or None."""
    return None if library.value in demanded() else library.problem()


GPUS = [library for library in Library if library.needs_gpu]


def usable(library: Library) -> bool:
    return problem(library) is None


def reason_to_leave_out(item) -> str | None:
    """Return why a case cannot run here, or can show nothing, or None."""
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    library = library_of(item)
    if library is not None and (why := problem(library)):
        return why
    for name in ("dtype", "half"):
        if library and parameters.get(name) in set(FLOATS) - set(library.floats):
            return f"{library.value} has no {parameters[name]} here"
    if item.get_closest_marker("gpu") and library is None and not any(map(usable, GPUS)):
        return "no GPU is usable here"
    for framework in ("torch", "jax", "mlx"):
        if framework in item.fixturenames and find_spec(framework) is None:
            return f"{framework} is not installed"
    return next(filter(None, told_by(item, "leave_out")), None)


def told_by(item, marker):
    """Yield what each function of the marker says of a case's parameters."""
    for mark in item.iter_markers(marker):
        (function,) = mark.args
        names = function.__code__.co_varnames[: function.__code__.co_argcount]
        yield function(*(item.callspec.params[name] for name in names))


STRIDES = {
    Library.NUMPY_READONLY: 4,
    Library.STRICT: 4,
    Library.TORCH_FLOAT64: 4,
    Library.JAX: 4,  # compiles each case
    Library.JAX_X64: 4,
    Library.MLX: 4,  # each operation is a small computation of its own
}
TWINS = (Library.JAX, Library.JAX_X64)
"""The same code in two precisions: a test runs on one of them."""


def thinned(items):
    """Leave out most cases of a variant: a library that runs all, in another setting.

    Each test keeps other cases, so that together they run nearly all; every test runs on each, but
    for twins on one of them.
    """
    libraries = {library_of(item) for item in items}
    for variant, most in STRIDES.items():
        if variant.value in demanded():
            continue
        own = [item for item in items if library_of(item) is variant]
        twins = own and libraries.issuperset(TWINS)
        if twins and variant is TWINS[crc32(own[0].originalname.encode()) % 2]:
            yield from ((item, f"{variant.value}: its twin runs") for item in own)
            continue
        stride = min(most, len(own))
        for index, item in enumerate(own):
            if index % stride != crc32(f"{variant} {item.originalname}".encode()) % stride:
                why = f"one of {most} (KLDIV_TEST_EVERYTHING=1 runs all)"
                yield item, f"{variant.value}: {why}"


def long_by_nature(items):
    """Return the cases that only the slow run has, of variants that compile or interpret each case.

    JAX compiles and Dask makes tasks: every fifth test of all libraries runs on JAX at once, every
    third on Dask, and of a test of JAX itself the first case; the others in the slow run, with
    those that a test says (``slow_where``). Of a technology that is interpreted every sixth case of
    a test runs at once.
    """
    yield from (item for item in items if any(told_by(item, "slow_where")))
    if "jax" in items[0].fixturenames:
        yield from items[1:]
    turn = crc32(items[0].originalname.encode())
    for libraries, most in ((TWINS, 5), ((Library.DASK,), 3)):
        own = [item for item in items if library_of(item) in libraries]
        if len(own) < len(items) and turn // 2 % most:
            yield from own
    interpreted = [
        item
        for item in items
        if hasattr(item, "callspec")
        and getattr(item.callspec.params.get("technology"), "interpreted", False)
    ]
    stride = min(6, len(interpreted))
    yield from (each for k, each in enumerate(interpreted) if (k + turn) % stride)


def library_of(item) -> Library | None:
    return item.callspec.params.get("lib") if hasattr(item, "callspec") else None


@pytest.hookimpl(wrapper=True)
def pytest_pycollect_makeitem(collector, name, obj):
    if name.startswith("test_") and not callable(obj):
        # `leave_out` and `slow_where` take lambdas; a named function they would decorate.
        raise pytest.UsageError(f"{name} is no test: mark it by `with_args(the function)`")
    made = yield
    if not isinstance(made, list) or not all(isinstance(item, pytest.Function) for item in made):
        return made
    left_out = {item: why for item in made if (why := reason_to_leave_out(item))}
    made = [item for item in made if item not in left_out]
    if not os.environ.get("KLDIV_TEST_EVERYTHING"):
        left_out.update(thinned(made))
    collector.config.stash[LEFT_OUT].update(left_out.values())
    made = [item for item in made if item not in left_out]
    for item in long_by_nature(made) if made else ():
        item.add_marker(pytest.mark.slow)
    return made


def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):  # a worker of pytest-xdist
        session.config.workeroutput["left_out"] = dict(session.config.stash[LEFT_OUT])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    # Every worker collects the same.
    node.config.stash[LEFT_OUT] |= Counter(getattr(node, "workeroutput", {}).get("left_out", {}))


def pytest_terminal_summary(terminalreporter, config):
    left_out = config.stash[LEFT_OUT]
    if left_out:
        terminalreporter.section("not collected here")
    for why, number in left_out.most_common():
        terminalreporter.write_line(f"{number:5} cases: {why}")


# ---- fixtures ------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def own_settings(monkeypatch, tmp_path_factory):
    """No settings from outside, and none left behind."""
    monkeypatch.setattr(config, "_process", {})
    monkeypatch.setattr(config, "_file", {})


@pytest.fixture(autouse=True)
def own_numbers():
    """Torch's random numbers are a test's own, whichever ran before it on the same worker."""
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)


@pytest.fixture(
    params=[
        pytest.param(library, marks=pytest.mark.gpu if library.needs_gpu else (), id=library.value)
        for library in Library
    ]
)
def lib(request):
    """Each array library in turn."""
    require(request.param)
    with request.param.configured():
        yield request.param


@pytest.fixture
def command(capsys):
    """Run the command in this process; return its exit code, stdout and stderr."""
    from kldiv.cli.app import app

    def run(*arguments):
        with pytest.raises(SystemExit) as stopped:
            app([str(each) for each in arguments], prog_name="kldiv")
        return stopped.value.code, *capsys.readouterr()

    return run


@pytest.fixture
def fit(capsys):
    """Run ``kldiv fit`` in this process, which must succeed; return its stdout and stderr."""
    pytest.importorskip("click")
    pytest.importorskip("rich")
    from kldiv.cli.app import app

    def run(*arguments):
        code = app.main(["fit", *map(str, arguments)], standalone_mode=False)
        assert code in {None, 0}
        return capsys.readouterr()

    return run


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


@pytest.fixture
def jax():
    return pytest.importorskip("jax")


@pytest.fixture
def mlx():
    return pytest.importorskip("mlx.core")


@pytest.fixture
def optimised(jax):
    """XLA compiles as it does for users."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
