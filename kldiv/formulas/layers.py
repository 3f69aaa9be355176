"""Linear layers' logits: products of matrices, soft caps, and the settings of a layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from kldiv.formulas.blocks import rows_at_a_time, slices
from kldiv.formulas.operation import Operation
from kldiv.formulas.reductions import cast

if TYPE_CHECKING:
    from kldiv._types import Array, Namespace
    from kldiv.formulas.operation import Run

_BLOCK_BYTES = 2**24
"""Bytes of a weight, or of its gradient, that are converted or added at a time."""


class Products:
    """Products of matrices in the dtype of the logits; adapters derive faster ones."""

    in_blocks: ClassVar[bool] = True
    """Whether a weight of another dtype is converted a block of classes at a time."""

    def __init__(self, xp: Namespace, dtype: str, block_bytes: int | None = None) -> None:
        self.xp = xp
        self.dtype = dtype
        self.block_bytes = block_bytes
        """Bytes of products that gradients are written over at a time; None: over none."""

    def takes(self, array: Array) -> bool:
        """Return whether half-type arrays like this multiply unconverted, with float32 sums."""
        return False

    def __call__(self, a: Array, b: Array) -> Array:
        """Return a·b."""
        return self.xp.matmul(self.cast(a), self.cast(b))

    def accumulate(self, total: Array, a: Array, b: Array) -> None:
        """Add a·b to ``total``, in place."""
        for block in self._slices(total):
            total[block, :] += self(a[block, :], b)

    def cast(self, array: Array) -> Array:
        """Return an array in the dtype of the logits."""
        return cast(self.xp, array, self.dtype)

    def factor(self, array: Array) -> Array:
        """Return an array in the dtype of its products."""
        return array if self.takes(array) else self.cast(array)

    def slope(self, gradient: Array, other: Array) -> Array:
        """Return a gradient in logits in the dtype of its products with another array."""
        return self.xp.astype(gradient, other.dtype) if self.takes(other) else gradient

    def blocks(self, weight: Array) -> list[slice]:
        """Return blocks of a weight's classes that are multiplied at a time."""
        if not self.in_blocks or self.takes(weight) or weight.dtype == getattr(self.xp, self.dtype):
            return [slice(None)]
        return self._slices(weight)

    def rows(self, products: Array) -> list[slice]:
        """Return blocks of rows whose losses are computed at a time."""
        return self._slices(products, self.block_bytes or _BLOCK_BYTES) or [slice(0, 0)]

    def empty(self, like: Array, *shape: int) -> Array:
        """Return a new array in the dtype of the logits, where another is."""
        place = {"device": like.device} if hasattr(like, "device") else {}
        return self.xp.empty(shape, dtype=getattr(self.xp, self.dtype), **place)

    def _slices(self, array: Array, block_bytes: int = _BLOCK_BYTES) -> list[slice]:
        return slices(array.shape[0], rows_at_a_time(array.shape, self.dtype, block_bytes))


@dataclass(frozen=True)
class SoftCap(Operation):
    """Logits under a soft cap: c·tanh(x/c), −∞ as it is. Arrays: x."""

    cap: float
    factor: float = 1.0
    """Of the derivative."""

    name: ClassVar[str] = "a soft cap"
    result: ClassVar[str] = "float32"  # or float64, as the arrays are
    native: ClassVar[bool] = True

    def value(self, xp: Namespace, *arrays: Array) -> Array:
        (x,) = arrays
        return xp.where(x == -xp.inf, -xp.inf, self.cap * xp.tanh(x / self.cap))


@dataclass(frozen=True)
class SoftCapSlope(SoftCap):
    """A gradient in such logits times their derivative. Arrays: the gradient, x."""

    def value(self, xp: Namespace, *arrays: Array) -> Array:
        gradient, x = arrays
        # 1 − tanh² has no digit left where it is small.
        shrink = xp.exp(-2.0 * abs(x / self.cap))
        return multiplied(self.factor, gradient * (4.0 * shrink / (1.0 + shrink) ** 2))


class Layer(NamedTuple):
    """The settings of one side's layer."""

    bias: bool = False
    """Whether it has one."""
    softcap: float | None = None
    scale: float = 1.0

    def logits(self, run: Run, products: Array) -> Array:
        """Return the logits, given products with the bias and the scale; −∞ stays."""
        return products if self.softcap is None else run(SoftCap(self.softcap), products)

    def slope(self, run: Run, gradient: Array, products: Array) -> Array:
        """Return a gradient in the products without the scale, given that in the logits."""
        if self.softcap is None:
            return multiplied(self.scale, gradient)
        return run(SoftCapSlope(self.softcap, self.scale), gradient, products)


class Side(NamedTuple):
    """Indices of the arrays that make the logits of the student, or of the teacher."""

    hidden: int
    weight: int
    bias: int | None
    layer: Layer


def multiplied(factor: float, array: Array) -> Array:
    """Return an array times a factor, itself where that is 1."""
    return array if factor == 1 else array * factor
