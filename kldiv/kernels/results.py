"""Results of work on a CPU: factors of its gradients, memory for them, and the value at last."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from kldiv.formulas.reductions import count
from kldiv.kernels.layout import dtype_name, empty_like

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kldiv._types import Array, Reduction
    from kldiv.kernels.work import Found, Work

    Buffer = np.ndarray[Any, Any]


class Results:
    """The results of work, of any shape."""

    def __init__(self, work: Work, shape: tuple[int, ...], keep: Array | None) -> None:
        operation, xp, arrays = work.operation, work.xp, work.arrays
        self.work, self.shape = work, shape
        self.reduced = operation.reduction != "none"
        self.dtype = getattr(xp, operation.result)
        if keep is None:
            self.number = _number_of_all(operation.reduction, shape)
        else:
            number = count(xp, operation.reduction, shape, keep, "float64")
            self.number = None if number is None else float(number)
        self.gradients: Sequence[Array] = work.into or [
            empty_like(xp, arrays[index]) for index in work.gradients
        ]
        self.outputs = dict(zip(work.gradients, self.gradients, strict=True))
        """Memory for gradients, by the index of the array."""

    def factor(self, upstream: Any) -> Any:
        """Return the gradient in the elements, given that in the result."""
        return self._divided(upstream, 0.0)

    def found(self, total: float) -> Found:
        """Return the value, given the sum, and the gradients."""
        result = self._divided(float(total), math.nan)
        device = self.work.arrays[0].device
        value = self.work.xp.asarray(result, dtype=self.dtype, device=device)
        return value[()], list(self.gradients)

    def _divided(self, total: Any, empty: float) -> Any:
        if self.number is None:
            return total
        return total / self.number if self.number else total * empty


class ElementResults(Results):
    """The results of a loss of elements."""

    def __init__(self, work: Work) -> None:
        self.keep = work.arrays[2] if work.arrays[2:] else None
        super().__init__(work, tuple(work.arrays[0].shape), self.keep)
        wanted = work.value and not self.reduced
        first = work.arrays[0]
        self.elements = work.xp.empty_like(first, dtype=self.dtype) if wanted else None
        self.weight, self.cotangent = 1.0, None
        """The factor of gradients: a number, or one for each element."""
        if self.reduced:
            upstream = 1.0 if work.cotangent is None else float(work.cotangent)
            self.weight = self.factor(upstream)
        else:
            self.cotangent = work.cotangent

    def of_totals(self, totals: Buffer) -> Found:
        """Return the value and the gradients that are wanted, given sums of parts."""
        if self.reduced and self.work.value:
            return self.found(_sum(totals))
        return self.elements, list(self.gradients)


class RowResults(Results):
    """The results of a loss of rows, with the numbers of each row in float64."""

    def __init__(self, work: Work) -> None:
        keep = work.operation.keep(work.arrays)
        super().__init__(work, tuple(work.operation.shape(work.arrays)), keep)
        upstream = np.ones(1) if work.cotangent is None else numbers(work.cotangent)
        self.factors: Buffer = numbers(self.factor(upstream))
        self.keep = None if keep is None else np.ascontiguousarray(keep, dtype=np.bool_)
        self.values = np.empty(math.prod(self.shape))

    @property
    def temperatures(self) -> Buffer:
        """The temperature of all rows, or that of each row."""
        operation = self.work.operation
        if operation.temperature:
            return np.array([operation.temperature], np.float64)
        return numbers(self.work.arrays[operation.differentiable - 1])

    def of_values(self) -> Found:
        """Return the value and the gradients that are wanted, once all rows have values."""
        if not self.work.value:
            return None, list(self.gradients)
        if self.reduced:
            return self.found(self.values.sum())
        xp, device = self.work.xp, self.work.arrays[0].device
        shaped = xp.asarray(self.values.reshape(self.shape), device=device)
        return xp.astype(shaped, self.dtype)[()], list(self.gradients)


@lru_cache
def _number_of_all(reduction: Reduction, shape: tuple[int, ...]) -> float | None:
    """Return the divisor of a sum over a shape."""
    return cast("float | None", count(np, reduction, shape, None, "float64"))


def scaled(gradients: list[Array], cotangent: Array) -> list[Array] | None:
    """Return gradients times a scalar, written in place; None where that would round twice."""
    factor = float(cotangent)
    if factor == 1.0:
        return gradients
    if any(str(gradient.dtype).endswith("float16") for gradient in gradients):
        return None
    for gradient in gradients:
        gradient *= factor  # noqa: PLW2901 - in place
    return gradients


def _sum(totals: Buffer) -> float:
    """Return the sum, rounded once: whatever the order, it is the same."""
    if np.isfinite(totals).all():
        return math.fsum(totals)
    return float(totals.sum())


def numbers(array: Array) -> Buffer:
    """Return float64 numbers on one axis."""
    return host(array, "float64").reshape(-1)


def host(array: Array, dtype: str) -> Buffer:
    """Return an array of NumPy or PyTorch as a contiguous one of NumPy, of a dtype."""
    if hasattr(array, "data_ptr"):
        array = array.detach()
        array = array.float() if dtype_name(array) == "bfloat16" else array
        array = array.numpy()
    return np.ascontiguousarray(array, dtype=dtype)
