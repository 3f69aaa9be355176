"""Compiling by LLVM, once: kept in a cache on disk that follows the sources."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import sys
import tempfile
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from threading import Lock, Timer
from typing import TYPE_CHECKING, Any, Final

import llvmlite
import llvmlite.binding as llvm
from filelock import FileLock
from llvmlite import ir

from kldiv.formulas import numbers
from kldiv.kernels.cpu.code import Code

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_PATIENCE: Final = 1.0
"""Seconds of silence while a kernel is compiled."""

_lock = Lock()
_engines: list[Any] = []
"""They own the machine code."""


def compiled(name: str, arguments: int, write: Callable[[Code], object]) -> Any:
    """Return a function of integers, with a C function's address, that ``write`` writes down.

    Its name in the cache says all that ``write`` depends on, but the sources.
    """
    with _lock, _alone(_folder() / f"{name}.lock"):
        return _loaded(name, arguments, _object(name, arguments, write))


if hasattr(os, "register_at_fork"):
    # A child must not wait for a thread that it does not have.
    os.register_at_fork(
        before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release
    )


def _object(name: str, arguments: int, write: Callable[[Code], object]) -> bytes:
    path = _folder() / f"{name}.o"
    with suppress(FileNotFoundError):
        return path.read_bytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file, _announced(name):
        file.write(_machine().emit_object(optimised(name, arguments, write)))
    Path(file.name).replace(path)
    return path.read_bytes()


def optimised(
    name: str, arguments: int, write: Callable[[Code], object], machine: Any = None
) -> Any:
    """Return a function as LLVM's optimised code for a machine, this one unless said."""
    machine = machine or _machine()
    module = ir.Module("kldiv")
    module.triple, module.data_layout = machine.triple, str(machine.target_data)
    code = Code(module, name, arguments)
    write(code)
    code.end()
    found = llvm.parse_assembly(str(module))
    found.verify()
    options = llvm.create_pipeline_tuning_options(speed_level=2)
    passes = llvm.create_pass_builder(machine, options)
    passes.getModulePassManager().run(found, passes)
    return found


def _loaded(name: str, arguments: int, code: bytes) -> Any:
    empty = llvm.parse_assembly("")
    # One piece of memory holds code and constants, as the small code model needs.
    engine = llvm.create_mcjit_compiler(empty, _machine(), use_lmm=True)
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _engines.append(engine)
    address = engine.get_function_address(name)
    function = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * arguments)(address)
    function.address = address  # type: ignore[attr-defined]
    return function


@cache
def _host() -> tuple[str, str]:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()


def _machine() -> Any:
    """Return this machine, a new object each time, as an engine takes it over."""
    cpu, features = _host()
    triple = llvm.get_process_triple()
    target = llvm.Target.from_triple(triple)
    # x86's default for code in memory loads the address of each constant first: a fifth of time.
    # The loaders of other object formats than Linux's do not all know the small model.
    elf = triple.startswith("x86_64") and "linux" in triple
    near = {"codemodel": "small", "reloc": "pic"} if elf else {}
    return target.create_target_machine(cpu=cpu, features=features, opt=2, jit=True, **near)


@contextmanager
def _announced(name: str) -> Iterator[None]:
    """Announce a compilation that takes long, where somebody may be watching."""

    def say() -> None:
        logging.getLogger("kldiv").warning(
            "kldiv compiles %s for this CPU, once: a few seconds; `kldiv warmup` does it ahead",
            name,
        )

    timer = Timer(_PATIENCE, say)
    timer.daemon = True
    if sys.stderr is not None and sys.stderr.isatty():
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold a lock, so that of many processes one compiles and the others load its result."""
    with ExitStack() as stack:
        # Without a place to write or locks there, each process compiles for itself.
        with suppress(OSError, NotImplementedError):
            stack.enter_context(FileLock(path))
        yield


def directory() -> Path:
    """Return the folder of compiled kernels."""
    chosen = os.environ.get("KLDIV_CACHE_DIR")
    if chosen:
        return Path(chosen)
    import platformdirs  # noqa: PLC0415 - only a compiler needs it

    return platformdirs.user_cache_path("kldiv")


def _folder() -> Path:
    return directory() / f"kernels-{stamp()}"


@cache
def stamp() -> str:
    """Return a digest of all that compiled code depends on."""
    words = [llvmlite.__version__, llvm.get_process_triple(), *_host()]
    digest = hashlib.sha256("\n".join(words).encode())
    folder = Path(__file__).parent
    files = [*sorted(folder.glob("*.py")), *sorted(folder.parent.glob("*.py"))]
    for path in [*files, Path(numbers.__file__)]:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
