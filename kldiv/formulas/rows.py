"""Losses of rows of logits, their gradients and the derivatives of these.

Arrays are the student's logits ``s`` and the teacher's ``t``, classes on the last axis, then arrays
of one number per row: those that a class names, the temperature where it is an array, and the mask.
Every operation here treats each row apart from the others, so an adapter may run it on a few at a
time.  `kldiv.formulas.divergences` defines the divergences.

A row is read for its constants, from which value and gradients follow.  An operation finds the
constants itself, or is ``given`` them, packed in one array: so nothing is read twice where a loss
and its gradients are computed one after the other, and so arrays may hold a part of the classes
(`kldiv.formulas.shards`).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial, reduce
from operator import or_
from typing import TYPE_CHECKING, ClassVar

from kldiv.formulas.divergences import ALL, VALUE, Block, Known, KullbackLeibler
from kldiv.formulas.packing import packed, split, unpacked, width
from kldiv.formulas.reductions import cast, finite_or_zero, like, weighed
from kldiv.formulas.row_options import OfDivergence
from kldiv.formulas.state import Rows, finite, over

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kldiv._types import Array, Namespace
    from kldiv.formulas.divergences import Divergence, Wanted
    from kldiv.formulas.operation import Operation, Run, Tangents
    from kldiv.formulas.state import Temperature


@dataclass(frozen=True)
class RowOperation(OfDivergence):
    """The common part of operations on rows: a divergence, the temperature, the mask of rows."""

    divergence: Divergence = field(default_factory=KullbackLeibler)
    temperature: float | None = 1.0

    given: Wanted = field(default=(), kw_only=True)
    """The results whose constants come along, packed, after the own arrays; (): the rows are whole
    and their constants are found first.

    Constants follow from the logits: the rules here give whole derivatives in these, and none in
    the constants, so no operation that is ``native`` may be given them and be differentiated."""

    name: ClassVar[str] = "kl_div_with_logits"
    common: ClassVar[tuple[str, ...]] = ("divergence", "temperature")
    own: ClassVar[int] = 2
    """How many arrays there are before the constants and the temperature."""

    @property
    def first(self) -> int:
        """The place of the first array after the own ones and the constants."""
        return self.own + bool(self.given)

    @property
    def differentiable(self) -> int:
        return self.first + (self.temperature is None)

    def prepared(
        self, xp: Namespace, arrays: tuple[Array, ...]
    ) -> tuple[list[Array], Temperature, Array | None]:
        """Return own arrays and constants, the temperature and the mask.

        The former are in the compute dtype, and 0 where masked.
        """
        own = [cast(xp, array, self.compute) for array in arrays[: self.first]]
        keep = self.keep(arrays)
        if keep is not None:
            # Two equal rows of zeros have no divergence, and no gradient.
            wide = keep[..., None]
            own = [xp.where(wide if array.ndim > keep.ndim else keep, array, 0.0) for array in own]
        return own, self.temperature_of(xp, arrays[self.first :]), keep

    def read(
        self, xp: Namespace, arrays: tuple[Array, ...], wanted: Wanted
    ) -> tuple[Divergence, Block, list[Array], Array | None]:
        """Return the divergence, the classes as a block, the other own arrays, and the mask.

        The block has the given constants, or those that the wanted results take.
        """
        (s, t, *others), temperature, keep = self.prepared(xp, arrays)
        divergence = self.bound(xp, arrays)
        if self.given:
            known = self.unpacked(others[-1])
            return divergence, Block(xp, s, t, temperature, known), others[:-1], keep
        return divergence, divergence.whole(xp, s, t, temperature, wanted), others, keep

    def unpacked(self, given: Array) -> Known:
        """Unpack the constants of whole rows; the sums may be missing."""
        sides, parts = self.divergence.needs(self.given)
        end = width(Rows, len(sides))
        rows, sums = unpacked(Rows, given[..., :end]), split(given[..., end:])
        return Known(dict(zip(sides, rows, strict=True)), dict(zip(parts, sums, strict=False)))


@dataclass(frozen=True)
class Constants(RowOperation):
    """The packed constants of whole rows. Arrays: s, t."""

    wanted: Wanted = ALL
    """The results that follow from these."""

    def shape(self, arrays: Sequence[Array]) -> tuple[int, ...]:
        sides, sums = self.divergence.needs(self.wanted)
        return (*arrays[0].shape[:-1], width(Rows, len(sides)) + len(sums))

    def elements(self, xp: Namespace, *arrays: Array) -> Array:
        _, block, *_ = self.read(xp, arrays, self.wanted)
        return packed(xp, [*block.known.rows.values()], [*block.known.sums.values()])


@dataclass(frozen=True)
class RowLoss(RowOperation):
    """The divergence of each row, reduced. Arrays: s, t; given constants come in their place."""

    wanted: ClassVar[Wanted] = (VALUE,)

    @property
    def first(self) -> int:
        return 1 if self.given else self.own

    @property
    def lengthy(self) -> bool:  # type: ignore[override]
        return self.compute == "float32"

    def elements(self, xp: Namespace, *arrays: Array) -> Array:
        own, temperature, keep = self.prepared(xp, arrays)
        divergence = self.bound(xp, arrays)
        if self.given:
            return self.masked(xp, divergence.value(xp, self.unpacked(*own)), keep)
        s, t = own
        return self.masked(xp, divergence.of_rows(xp, s, t, temperature), keep)

    def shared(self, gradients: Sequence[int]) -> Wanted:
        """Return the results that have constants in common, of value and gradients; or none."""
        every = (VALUE, *(index for index in gradients if index < self.own))
        states, *each = (
            len(self.divergence.needs(some)[0]) for some in (every, *((one,) for one in every))
        )
        return () if states == sum(each) else every

    def with_constants(
        self, xp: Namespace, run: Run, results: Wanted, known: Array, arrays: Sequence[Array]
    ) -> tuple[Array, Run]:
        """Return the value from constants, and a ``run`` for `pullback` that gives them to it."""
        value = replace(self, given=results).value(xp, known, *arrays[self.own :])
        return value, partial(run_given, run, results, known)

    def slope(
        self, xp: Namespace, run: Run, index: int, weight: Array, arrays: Sequence[Array]
    ) -> Array:
        if index == self.own:
            return weighed(xp, weight, run(self.settings(TemperatureSlope), *arrays))
        operation = self.settings(RowGradient, index=index)
        return run(operation, *arrays[:2], weight, *arrays[2:])


@dataclass(frozen=True)
class RowGradient(RowOperation):
    """A number per row times the row's gradient, 0 where it is 0. Arrays: s, t, that number."""

    index: int = 0
    """0: in s, 1: in t."""
    own: ClassVar[int] = 3
    keeps_classes: ClassVar[bool] = True

    @property
    def wanted(self) -> Wanted:
        """The requested result, for `Divergence.needs`."""
        return (self.index,)

    @property
    def loss(self) -> RowOperation:
        """The loss whose gradient it is, row by row."""
        return self.settings(RowLoss)

    @staticmethod
    def of_loss(xp: Namespace, arrays: Sequence[Array]) -> tuple[list[Array], Array]:  # noqa: ARG004
        """Return the arrays of the loss, and the cotangent of its rows."""
        s, t, weight, *others = arrays
        return [s, t, *others], weight

    def elements(self, xp: Namespace, *arrays: Array) -> Array:
        divergence, block, (weight,), _ = self.read(xp, arrays, self.wanted)
        gradient = block.joined(partial(divergence.gradient, self.index))
        return cast(xp, times(xp, weight, gradient), self.result)

    def pullback(
        self, xp: Namespace, run: Run, index: int, cotangent: Array, *arrays: Array
    ) -> Array:
        s, t, weight, *rest = arrays
        if index == self.first:
            slope = xp.sum(cotangent * self.in_temperature(xp, run, *arrays), axis=-1)
            return like(xp, slope, arrays[index])
        if index == 2:
            ones = run(self, s, t, xp.ones_like(weight), *rest)
            slope = xp.sum(cotangent * ones, axis=-1)
            return xp.where(weight == 0, finite_or_zero(xp, slope), slope)
        zeros = xp.zeros_like(cotangent)
        direction = (zeros, cotangent) if self.index else (cotangent, zeros)
        return like(xp, self._tangent(run, index, direction, *arrays), s)

    def pushforward(self, xp: Namespace, run: Run, tangents: Tangents, *arrays: Array) -> Array:
        s, t, weight, *rest = arrays
        ds, dt, dw, *more = tangents
        moved = []
        if dw is not None:
            slope = run(self, s, t, xp.ones_like(weight), *rest)
            slope = xp.where((weight == 0)[..., None], finite_or_zero(xp, slope), slope)
            moved.append(dw[..., None] * slope)
        if more[bool(self.given) :] and more[-1] is not None:
            moved.append(self.in_temperature(xp, run, *arrays) * more[-1][..., None])
        if ds is not None or dt is not None:
            direction = [xp.zeros_like(s) if d is None else d for d in (ds, dt)]
            moved.append(self._tangent(run, self.index, direction, *arrays))
        return sum(moved[1:], moved[0])

    def _tangent(self, run: Run, index: int, direction: Sequence[Array], *arrays: Array) -> Array:
        """Return the derivative in a direction of (s, t), of whole rows."""
        operation = self.settings(RowTangent, index=index)
        return run(operation, *arrays[: self.own], *direction, *arrays[self.first :])

    def in_temperature(self, xp: Namespace, run: Run, *arrays: Array) -> Array:
        """Return ∂G/∂T = −(G + H·(s, t))/T: the gradient G depends on s/T and t/T, over T."""
        direction = []
        for logits in (cast(xp, array, self.compute) for array in arrays[:2]):
            # H·1 is 0: so a constant that all logits have costs no digits.
            top = xp.max(finite(xp, logits), axis=-1, keepdims=True)
            direction.append(xp.where(logits == -xp.inf, top, logits) - top)
        tangent = self._tangent(run, self.index, direction, *arrays)
        # Of a row that the mask drops the temperature is 1: its own may be 0 or NaN.
        temperature = self.temperature_of(xp, arrays[self.first :])
        return -(run(self, *arrays) + tangent) / temperature


@dataclass(frozen=True)
class RowTangent(RowOperation):
    """A number per row times a gradient's derivative. Arrays: s, t, that number, ds, dt."""

    index: int = 0
    own: ClassVar[int] = 5
    keeps_classes: ClassVar[bool] = True
    native: ClassVar[bool] = True  # third order is the library's own

    def elements(self, xp: Namespace, *arrays: Array) -> Array:
        divergence, block, (weight, ds, dt), _ = self.read(xp, arrays, (self.index,))
        change = divergence.tangent(self.index, block, (ds, dt))
        # Told by the constants: JAX transposes this, and takes no question about the directions.
        infinite = [~xp.isfinite(rows.kl) for rows in block.known.rows.values()]
        lost = reduce(or_, infinite) & (weight == 0)[..., None]
        return cast(xp, weight[..., None] * xp.where(lost, 0.0, change), self.result)


@dataclass(frozen=True)
class TemperatureSlope(RowOperation):
    """The derivative of each row in its temperature, or a shard's share. Arrays: s, t."""

    def elements(self, xp: Namespace, *arrays: Array) -> Array:
        divergence, block, _, keep = self.read(xp, arrays, ALL)
        slope = -over(block.summed(divergence.temperature_share), block.temperature)
        return self.masked(xp, slope, keep)

    def slope(
        self, xp: Namespace, run: Run, index: int, weight: Array, arrays: Sequence[Array]
    ) -> Array:
        if index == self.own:
            return weighed(xp, weight, run(self.settings(TemperatureBend), *arrays))
        gradient = self.settings(RowGradient, index=index)
        return gradient.in_temperature(xp, run, *arrays[:2], weight, *arrays[2:])


@dataclass(frozen=True)
class TemperatureBend(RowOperation):
    """The second derivative of each row in its temperature. Arrays: s, t."""

    native: ClassVar[bool] = True  # third order is the library's own

    def elements(self, xp: Namespace, *arrays: Array) -> Array:
        divergence, block, _, keep = self.read(xp, arrays, ALL)
        bend = 2.0 * divergence.temperature_share(block) + divergence.temperature_bend(block)
        return self.masked(xp, over(over(bend, block.temperature), block.temperature), keep)


def times(xp: Namespace, weight: Array, gradient: Array) -> Array:
    """Return a number per row times the row's gradient; 0 where it is 0, were the gradient NaN."""
    return xp.where((weight == 0)[..., None], 0.0, weight[..., None] * gradient)


def run_given(
    run: Run, results: Wanted, known: Array, operation: Operation, *arrays: Array
) -> Array:
    """Run an operation, a gradient of rows with their constants."""
    if not isinstance(operation, RowGradient):
        return run(operation, *arrays)
    s, t, weight, *others = arrays
    operation = operation.settings(RowGradient, index=operation.index, given=results)
    return run(operation, s, t, weight, known, *others)
