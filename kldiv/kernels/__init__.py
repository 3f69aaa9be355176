"""Fused implementations of operations, one folder a technology; only adapters import them.

A technology's package is imported without its compiler and offers what `Kernels` lists. An adapter
asks `problem` whether the kernels can run here at all and `refusal` whether they take a call; then
`compute` gives the value, gradients, or both from one pass over the data.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from kldiv.formulas.pointwise import KL, KLLogTarget, PointwiseLoss
from kldiv.formulas.rows import JensenShannon, KullbackLeibler, RowLoss

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kldiv._types import Array, Namespace
    from kldiv.formulas.operation import Operation


class KernelError(Exception):
    """A kernel that cannot be compiled or launched here."""


class Work(NamedTuple):
    """What is wanted of an operation on arrays."""

    operation: Any
    xp: Namespace
    arrays: Sequence[Array]
    threads: int = 1
    """How many of a CPU's threads to use."""
    value: bool = True
    gradients: tuple[int, ...] = ()
    """Indices of the arrays to differentiate in."""
    cotangent: Array | None = None
    """The gradient in the result; None is 1."""
    into: Sequence[Array] | None = None
    """Where to write the gradients; None makes new arrays."""
    keep: bool = False
    """Whether to return, after the gradients, what a later call for these takes as ``kept``."""
    kept: Array | None = None
    """What an earlier call for the value returned, from which the gradients follow."""


class Kernels(Protocol):
    """What the package of a technology offers."""

    @property
    def NAME(self) -> str:  # noqa: N802 - a constant of a module
        """Its name, as the setting ``kernel`` spells it."""
        ...

    @property
    def WORDS(self) -> str:  # noqa: N802 - likewise
        """What it is, in a few words."""
        ...

    @property
    def SMALL(self) -> int:  # noqa: N802 - likewise
        """Elements below which the formulas are as fast."""
        ...

    def problem(self) -> str | None:
        """Return why these kernels cannot run here, or None."""
        ...

    def refusal(self, operation: Operation, arrays: Sequence[Array]) -> str | None:
        """Return why an operation on arrays has no kernel here, or None where it has."""
        ...

    def compute(self, work: Work) -> tuple[Array | None, list[Array]]:
        """Return the value, if it is wanted, and the gradients that are.

        Raises
        ------
        KernelError
            The kernel cannot be compiled or launched here; `problem` says so from then on.
        """
        ...

    def scaled(self, gradients: list[Array], cotangent: Array) -> list[Array] | None:
        """Return gradients times a scalar, in place; None where that would round twice."""
        ...


def told(error: Exception) -> str:
    """Return what an error is and the first line of what it says: compilers say a lot."""
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"


def no_fused_form(operation: Operation, arrays: Sequence[Array]) -> str | None:
    """Return why nothing fuses an operation on arrays, or None for the losses themselves."""
    if 0 in arrays[0].shape:
        return "there are no elements"
    if isinstance(operation, PointwiseLoss) and operation.function in {KL(), KLLogTarget()}:
        return None
    if isinstance(operation, RowLoss) and isinstance(
        operation.divergence, KullbackLeibler | JensenShannon
    ):
        return None
    return f"there is no fused form of {type(operation).__name__}"


def is_small(kernels: Kernels, array: Array) -> bool:
    """Return whether a call is so small that the formulas are as fast."""
    return math.prod(array.shape) < kernels.SMALL


def small_text(kernels: Kernels) -> str:
    """Return `is_small` as a reason."""
    return f"arrays of fewer than {kernels.SMALL} elements"
