"""Fused kernels for arrays in a CPU's memory, compiled by Numba; imported without it."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

from kldiv.kernels.technology import Technology

if TYPE_CHECKING:
    from collections.abc import Callable

    from kldiv._types import Array
    from kldiv.kernels.work import Found, Work


class Cpu(Technology):
    """Numba's machine code."""

    name = "cpu"
    words = "fused, compiled by Numba"
    small = 1 << 14

    def __init__(self) -> None:
        self.installed = find_spec("numba") is not None

    def lacking(self) -> str | None:
        return None if self.installed else 'Numba is not installed; pip install "kldiv[cpu]"'

    def prepare(self, work: Work) -> Callable[[Work], Found]:
        """Return a function for such work, compiled; of the arrays only the dtypes are looked at.

        Raises
        ------
        KernelError
            It cannot be compiled here.
        """
        try:
            loss = self.module(work)
            return partial(loss.run, kernel=loss.compile_for(work))
        except Exception as error:  # whatever a compiler, or a file system, may raise
            raise self.failed(error) from error

    def compute(self, work: Work) -> Found:
        return self.prepare(work)(work)

    def scaled(self, gradients: list[Array], cotangent: Array) -> list[Array] | None:
        factor = float(cotangent)
        if factor == 1.0:
            return gradients
        if any(str(gradient.dtype).endswith("float16") for gradient in gradients):
            return None
        for gradient in gradients:
            gradient *= factor  # noqa: PLW2901 - in place
        return gradients

    def compilers(self) -> dict[str, Callable[[], Any]]:
        """Return, for each kernel, the function that compiles it, or loads it from the cache."""
        found = {}
        for name, module in (
            ("kl_div", "pointwise"),
            ("kl_div_with_logits", "logits"),
            ("js_div_with_logits", "jensen_shannon"),
        ):
            kernels = import_module(f"kldiv.kernels.cpu.{module}")
            for dtype in ("float32", "float64"):
                found[f"{name}, {dtype}"] = getattr(kernels, dtype)
        return found


CPU: Final = Cpu()
