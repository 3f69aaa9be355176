"""The machine of the measurements, versions, revision, threads."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, Final

PACKAGES: Final = (
    *("kldiv", "numpy", "torch", "jax", "jaxlib", "cupy", "dask", "llvmlite", "triton", "mpmath"),
    *("scipy", "optax", "simsimd", "liger_kernel"),
)
_CUPY: Final = ("cupy-cuda13x", "cupy-cuda12x", "cupy")
LIKE: Final = ("cpu", "cores", "system", "gpus", "threads")
"""The facts that two machines must share for their times to be comparable."""


def cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@cache
def describe() -> dict[str, Any]:
    """Return the facts of the machine."""
    return {
        "cpu": _cpu(),
        "cores": cores(),
        "memory_gib": _memory(),
        "system": f"{platform.system()} {platform.machine()}",
        "release": platform.release(),
        "gpus": _gpus(),
        "threads": threads(),
    }


def unlike(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    """Return in words how two machines differ in facts that decide a time."""
    return [
        f"{name}: {first.get(name)} and {second.get(name)}"
        for name in LIKE
        if first.get(name) != second.get(name)
    ]


def versions() -> dict[str, str]:
    """Return the versions of installed packages."""
    import kldiv

    found = {"python": platform.python_version(), "kldiv": kldiv.__version__}
    for name in PACKAGES[1:]:
        for distribution in _CUPY if name == "cupy" else (name,):
            try:
                found[name] = metadata.version(distribution)
                break
            except metadata.PackageNotFoundError:
                continue
    return found


def revision() -> dict[str, Any] | None:
    """Return the git revision that kldiv is imported from, and whether it was changed."""
    import kldiv

    root = Path(kldiv.__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    commit = _run("git", "-C", str(root), "rev-parse", "HEAD")
    if commit is None:
        return None
    changes = _run("git", "-C", str(root), "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": bool(changes)}


def threads() -> dict[str, Any]:
    """Return the number of threads that each library would use, and the environment's settings."""
    names = ("KLDIV_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    found: dict[str, Any] = {name: os.environ[name] for name in names if name in os.environ}
    torch = sys.modules.get("torch")
    if torch is not None:
        found["torch"] = torch.get_num_threads()
    return found


def load() -> float | None:
    """Return the load of the last minute a core: how busy the machine is with all it does."""
    try:
        return round(os.getloadavg()[0] / (os.cpu_count() or 1), 2)
    except (AttributeError, OSError):
        return None


def _cpu() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    fields = dict(
        (part.strip() for part in line.split(":", 1)) for line in text.splitlines() if ":" in line
    )
    name = fields.get("model name") or _run("sysctl", "-n", "machdep.cpu.brand_string")
    family = "/".join(fields[key] for key in ("cpu family", "model") if key in fields)
    name = name or platform.processor() or platform.machine()
    return f"{name} ({family})" if family else name


def _memory() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, OSError, ValueError):
        return None


def _gpus() -> list[dict[str, str]]:
    text = _run(
        "nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"
    )
    names = ("name", "driver", "memory")
    return [
        dict(zip(names, (part.strip() for part in line.split(",")), strict=False))
        for line in (text or "").splitlines()
        if line.strip()
    ]


def _run(*command: str) -> str | None:
    try:
        done = subprocess.run(  # noqa: S603 - fixed commands
            command, capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
