"""Peak extra memory of one call: the most that it held beyond its inputs, its result included.

Who counts depends on the library: tracemalloc for NumPy, PyTorch's allocator on a GPU, a hook in
CuPy's, XLA's own plan of the compiled function. On Linux the process' high-water mark is read
besides, as it sees memory of no allocator; it counts whole pages, and threads' stacks too.
"""

from __future__ import annotations

import ctypes
import gc
import tracemalloc
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    Peaks = dict[str, int]
    """Bytes by who counted them: tracemalloc, allocator, xla, rss."""

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def peaks(call: Callable[[], Any], library: str, device: str, arguments: tuple[Any, Any]) -> Peaks:
    """Return the peak extra memory of a call that has run before.

    Parameters
    ----------
    call
        The call, synchronised: it returns when the device is done.
    library
        ``memory`` of the library.
    device
        Where it runs.
    arguments
        The arguments that a compiled function is planned for.
    """
    found: Peaks = {}
    if device == "cuda":
        if library == "torch":
            found["allocator"] = _torch(call)
        elif library == "cupy":
            found["allocator"] = _cupy(call)
    elif library == "tracemalloc":
        found["tracemalloc"] = _tracemalloc(call)
    if library == "xla" and (planned := _xla(call, arguments)) is not None:
        found["xla"] = planned
    if device == "cpu" and (resident := _resident(call)) is not None:
        found["rss"] = resident
    return found


def headline(found: Peaks) -> tuple[int, str] | None:
    """Return the figure to show and who counted it: an allocator's own first, else the largest."""
    for name in ("allocator", "xla"):
        if name in found:
            return found[name], name
    if not found:
        return None
    name = max(found, key=lambda key: found[key])
    return found[name], name


def _tracemalloc(call: Callable[[], Any]) -> int:
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        call()
        return max(0, tracemalloc.get_traced_memory()[1] - before)
    finally:
        tracemalloc.stop()


def _resident(call: Callable[[], Any]) -> int | None:
    """Return by how much the process' resident memory grew at most; None where nobody counts."""
    gc.collect()
    _trim()
    try:
        _CLEAR.write_text("5")  # the high-water mark starts again at the resident size
    except OSError:
        return None
    before = _status("VmRSS")
    call()
    peak = _status("VmHWM")
    return None if before is None or peak is None else max(0, peak - before)


def _trim() -> None:
    """Have the C library hand back its free memory, so that a call's memory shows as new."""
    with suppress(AttributeError, OSError, TypeError):  # where it is not glibc
        ctypes.CDLL(None).malloc_trim(0)


def _status(name: str) -> int | None:
    try:
        lines = _STATUS.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    found = next((line for line in lines if line.startswith(f"{name}:")), None)
    return None if found is None else int(found.split()[1]) * 1024


def _torch(call: Callable[[], Any]) -> int:
    cuda = import_module("torch").cuda
    gc.collect()
    cuda.synchronize()
    before = cuda.memory_allocated()
    cuda.reset_peak_memory_stats()
    call()
    cuda.synchronize()
    return int(cuda.max_memory_allocated() - before)


def _cupy(call: Callable[[], Any]) -> int:
    cupy = import_module("cupy")

    class Hook(cupy.cuda.MemoryHook):  # type: ignore[misc]
        name = "kldiv bench"
        held = peak = 0

        def malloc_postprocess(self, **block: Any) -> None:
            self.held += block["mem_size"]
            self.peak = max(self.peak, self.held)

        def free_postprocess(self, **block: Any) -> None:
            self.held -= block["mem_size"]

    gc.collect()
    with Hook() as hook:
        call()
    return int(hook.peak)


def _xla(call: Callable[[], Any], arguments: tuple[Any, Any]) -> int | None:
    """Return the bytes that XLA plans to allocate: temporaries and results."""
    lower = getattr(call, "lower", None)
    if lower is None:
        return None
    try:
        plan = lower(*arguments).compile().memory_analysis()
    except Exception:  # noqa: BLE001 - not every platform has it, and each says so in its own way
        return None
    if plan is None:
        return None
    return int(plan.temp_size_in_bytes + plan.output_size_in_bytes)
