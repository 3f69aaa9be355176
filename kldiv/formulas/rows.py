"""Losses of rows of logits: KL and Jensen-Shannon, their gradients and the derivatives of these.

Arrays are the student's logits ``s`` and the teacher's ``t``, classes on the last axis, then arrays
of one number per row: those that a class names, the temperature where it is an array, and the mask.
Every operation here treats each row apart from the others, so an adapter may run it on a few at a
time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, TypeAlias

from kldiv.formulas import logits, state
from kldiv.formulas.blocks import class_blocks
from kldiv.formulas.reductions import RowWise, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kldiv._types import Array, Namespace
    from kldiv.formulas.operation import Run
    from kldiv.formulas.state import Rows, State, Temperature

    OfBlock: TypeAlias = Callable[[Array, Array], Array]


class Divergence:
    """A divergence of two rows of logits."""

    def value(self, xp: Namespace, s: Array, t: Array, temperature: Temperature) -> Array:
        """Return the divergence of each row, kept as an axis of length one."""
        raise NotImplementedError

    def gradient(
        self, xp: Namespace, index: int, s: Array, t: Array, temperature: Temperature
    ) -> Array:
        """Return the gradient in the student's (0) or the teacher's (1) logits."""
        raise NotImplementedError

    def tangent(
        self,
        xp: Namespace,
        index: int,
        s: Array,
        t: Array,
        direction: tuple[Array, Array],
        temperature: Temperature,
    ) -> Array:
        """Return the derivative of that gradient in a direction of (s, t)."""
        raise NotImplementedError

    def temperature_slope(
        self, xp: Namespace, s: Array, t: Array, temperature: Temperature
    ) -> Array:
        """Return the derivative of each row in its temperature."""
        raise NotImplementedError

    # ---- of a part of the classes, for `kldiv.formulas.shards` -----------------------------------

    def pairs(self, s: Array, t: Array, *, gradients: bool) -> list[tuple[Array, Array]]:  # noqa: ARG002
        """Return the sides of every state that the value, or the gradients too, need."""
        return [(s, t)]

    def sums(self, states: int) -> int:  # noqa: ARG002
        """Return how many sums over classes are needed besides that many states."""
        return 0

    def shares(
        self, xp: Namespace, s: Array, t: Array, rows: Sequence[Rows], temperature: Temperature
    ) -> list[Array]:
        """Return a part's share of these sums, given the constants of each state."""
        raise NotImplementedError

    def whole(self, rows: Sequence[Rows], sums: Sequence[Array]) -> Array:
        """Return the divergence of each row."""
        raise NotImplementedError

    def slope(
        self,
        xp: Namespace,
        index: int,
        s: Array,
        t: Array,
        rows: Sequence[Rows],
        sums: Sequence[Array],
        temperature: Temperature,
    ) -> Array:
        """Return the gradient in a part of the student's (0) or the teacher's (1) logits."""
        raise NotImplementedError

    def temperature_shares(
        self,
        xp: Namespace,
        s: Array,
        t: Array,
        rows: Sequence[Rows],
        sums: Sequence[Array],
        temperature: Temperature,
    ) -> Array:
        """Return a part's share of the derivative in the temperature."""
        raise NotImplementedError


def _blocks(s: Array, t: Array) -> list[tuple[Array, Array]]:
    """Return the logits as blocks of classes, so that a large vocabulary stays in the cache too."""
    parts = class_blocks(s.shape[-1])
    return [(s, t)] if len(parts) < 2 else [(s[..., part], t[..., part]) for part in parts]


def _joined(xp: Namespace, function: OfBlock, s: Array, t: Array) -> Array:
    parts = [function(*block) for block in _blocks(s, t)]
    return parts[0] if len(parts) == 1 else xp.concat(parts, axis=-1)


def _summed(function: OfBlock, s: Array, t: Array) -> Array:
    first, *rest = (function(*block) for block in _blocks(s, t))
    return sum(rest, first)


def state_of(xp: Namespace, s: Array, t: Array, temperature: Temperature) -> State:
    """Return the state of any number of classes, a block of them at a time."""
    states = [state.block_state(xp, *block, -1, temperature) for block in _blocks(s, t)]
    return states[0] if len(states) == 1 else state.merge(xp, states, -1, temperature)


def _rows(xp: Namespace, s: Array, t: Array, temperature: Temperature) -> Rows:
    return state.finish(xp, state_of(xp, s, t, temperature))


@dataclass(frozen=True)
class KullbackLeibler(Divergence):
    """KL(softmax(t/T) ‖ softmax(s/T))."""

    def value(self, xp: Namespace, s: Array, t: Array, temperature: Temperature) -> Array:
        return _rows(xp, s, t, temperature).kl

    def gradient(
        self, xp: Namespace, index: int, s: Array, t: Array, temperature: Temperature
    ) -> Array:
        return self.slope(xp, index, s, t, [_rows(xp, s, t, temperature)], [], temperature)

    def whole(self, rows: Sequence[Rows], sums: Sequence[Array]) -> Array:  # noqa: ARG002
        return rows[0].kl

    def slope(
        self,
        xp: Namespace,
        index: int,
        s: Array,
        t: Array,
        rows: Sequence[Rows],
        sums: Sequence[Array],  # noqa: ARG002
        temperature: Temperature,
    ) -> Array:
        function = (logits.grad_input, logits.grad_target)[index]
        return _joined(xp, lambda a, b: function(xp, a, b, rows[0], temperature), s, t)

    def tangent(
        self,
        xp: Namespace,
        index: int,
        s: Array,
        t: Array,
        direction: tuple[Array, Array],
        temperature: Temperature,
    ) -> Array:
        rows = _rows(xp, s, t, temperature)
        return logits.tangents(xp, s, t, rows, *direction, temperature)[index]

    def temperature_slope(
        self, xp: Namespace, s: Array, t: Array, temperature: Temperature
    ) -> Array:
        rows = [_rows(xp, s, t, temperature)]
        return self.temperature_shares(xp, s, t, rows, [], temperature)

    def temperature_shares(
        self,
        xp: Namespace,
        s: Array,
        t: Array,
        rows: Sequence[Rows],
        sums: Sequence[Array],  # noqa: ARG002
        temperature: Temperature,
    ) -> Array:
        return _summed(lambda a, b: logits.temperature_terms(xp, a, b, rows[0], temperature), s, t)


@dataclass(frozen=True)
class JensenShannon(Divergence):
    """βD(P‖M) + (1−β)D(Q‖M), M = βP + (1−β)Q, P = softmax(t/T), Q = softmax(s/T)."""

    beta: float = 0.5

    def value(self, xp: Namespace, s: Array, t: Array, temperature: Temperature) -> Array:
        return self._value(xp, s, t, _rows(xp, s, t, temperature), temperature)

    def _value(
        self, xp: Namespace, s: Array, t: Array, rows: Rows, temperature: Temperature
    ) -> Array:
        return _summed(lambda a, b: logits.js_terms(xp, a, b, rows, self.beta, temperature), s, t)

    def gradient(
        self, xp: Namespace, index: int, s: Array, t: Array, temperature: Temperature
    ) -> Array:
        other, own, _ = self._side(index, s, t)
        rows = _rows(xp, other, own, temperature)
        shift = self._shift(xp, index, s, t, rows, temperature)
        return self._gradient(xp, index, s, t, rows, shift, temperature)

    def _side(self, index: int, s: Array, t: Array) -> tuple[Array, Array, tuple[float, float]]:
        """Return the other side, the one that moves, and the weights for it."""
        weights = self.beta, 1.0 - self.beta
        return (s, t, weights) if index else (t, s, weights[::-1])

    def _shift(
        self, xp: Namespace, index: int, s: Array, t: Array, rows: Rows, temperature: Temperature
    ) -> Array:
        other, own, weights = self._side(index, s, t)
        return _summed(
            lambda a, b: logits.js_shift(xp, a, b, rows, weights, temperature), other, own
        )

    def _gradient(
        self,
        xp: Namespace,
        index: int,
        s: Array,
        t: Array,
        rows: Rows,
        shift: Array,
        temperature: Temperature,
    ) -> Array:
        other, own, weights = self._side(index, s, t)
        return _joined(
            xp,
            lambda a, b: logits.js_grad(xp, a, b, rows, shift, weights, temperature),
            other,
            own,
        )

    def pairs(self, s: Array, t: Array, *, gradients: bool) -> list[tuple[Array, Array]]:
        return [(s, t), (t, s)] if gradients else [(s, t)]

    def sums(self, states: int) -> int:
        return 3 if states == 2 else 1  # JS itself, and what the gradients in t and s need

    def shares(
        self, xp: Namespace, s: Array, t: Array, rows: Sequence[Rows], temperature: Temperature
    ) -> list[Array]:
        shifts = (
            self._shift(xp, index, s, t, rows[1 - index], temperature)
            for index in ((1, 0) if len(rows) == 2 else ())
        )
        return [self._value(xp, s, t, rows[0], temperature), *shifts]

    def whole(self, rows: Sequence[Rows], sums: Sequence[Array]) -> Array:  # noqa: ARG002
        return sums[0]

    def slope(
        self,
        xp: Namespace,
        index: int,
        s: Array,
        t: Array,
        rows: Sequence[Rows],
        sums: Sequence[Array],
        temperature: Temperature,
    ) -> Array:
        known = rows[1 - index], sums[2 - index]
        return self._gradient(xp, index, s, t, *known, temperature)

    def tangent(
        self,
        xp: Namespace,
        index: int,
        s: Array,
        t: Array,
        direction: tuple[Array, Array],
        temperature: Temperature,
    ) -> Array:
        gradients = (
            self.gradient(xp, 0, s, t, temperature),
            self.gradient(xp, 1, s, t, temperature),
        )
        rows = _rows(xp, s, t, temperature)
        return logits.js_tangents(xp, s, t, rows, gradients, *direction, self.beta, temperature)[
            index
        ]

    def temperature_slope(
        self, xp: Namespace, s: Array, t: Array, temperature: Temperature
    ) -> Array:
        rows = _rows(xp, s, t, temperature)
        shift = self._shift(xp, 1, s, t, rows, temperature)
        value = self._value(xp, s, t, rows, temperature)
        return self.temperature_shares(xp, s, t, [rows], [value, shift], temperature)

    def temperature_shares(
        self,
        xp: Namespace,
        s: Array,
        t: Array,
        rows: Sequence[Rows],
        sums: Sequence[Array],
        temperature: Temperature,
    ) -> Array:
        value, shift, *_ = sums
        constants = rows[0], shift, value, self.beta, temperature
        return _summed(lambda a, b: logits.js_temperature_terms(xp, a, b, *constants), s, t)


@dataclass(frozen=True)
class RowOperation(RowWise):
    """What the operations on rows share: a divergence, the temperature, and the mask of rows."""

    divergence: Divergence = KullbackLeibler()
    temperature: float | None = 1.0
    """None: an array of one number per row, the last of the differentiable arrays."""

    name: ClassVar[str] = "kl_div_with_logits"
    own: ClassVar[int] = 2
    """How many differentiable arrays there are before the temperature."""

    @property
    def differentiable(self) -> int:
        return self.own + (self.temperature is None)

    def prepared(
        self, xp: Namespace, arrays: tuple[Array, ...]
    ) -> tuple[list[Array], Temperature, Array | None]:
        """Return the own arrays in the compute dtype, without what the mask drops, and the rest."""
        own = [cast(xp, array, self.compute) for array in arrays[: self.own]]
        keep = self.keep(arrays)
        if keep is not None:
            # Two equal rows of zeros have no divergence, and no gradient.
            wide = keep[..., None]
            own = [xp.where(wide if array.ndim > keep.ndim else keep, array, 0.0) for array in own]
        return own, self.temperature_of(xp, arrays[self.own :]), keep

    def temperature_of(self, xp: Namespace, others: Sequence[Array]) -> Temperature:
        """Return the temperature: a number, or the first array after the own ones."""
        if self.temperature is not None:
            return self.temperature
        temperature = cast(xp, others[0], self.compute)
        if len(others) > 1:
            temperature = xp.where(others[1], temperature, 1.0)
        return temperature[..., None]

    def settings(self, kind: type[RowOperation], **extra: int) -> RowOperation:
        """Return an operation of another kind on the same rows, elementwise and not rounded."""
        names = ("none", self.compute, self.compute, self.compute)
        return kind(*names, self.divergence, self.temperature, **extra)  # type: ignore[arg-type]

    def masked(self, xp: Namespace, values: Array, keep: Array | None) -> Array:
        """Return row values with zero where the mask drops the row."""
        values = values[..., 0]
        return values if keep is None else xp.where(keep, values, 0.0)


@dataclass(frozen=True)
class RowLoss(RowOperation):
    """The divergence of each row, reduced. Arrays: s, t."""

    def elements(self, xp: Namespace, *arrays: Array) -> Array:
        (s, t), temperature, keep = self.prepared(xp, arrays)
        return self.masked(xp, self.divergence.value(xp, s, t, temperature), keep)

    def pullback(
        self, xp: Namespace, run: Run, index: int, cotangent: Array, *arrays: Array
    ) -> Array:
        rows = arrays[0].shape[:-1]
        weight = self.weight(xp, cotangent, rows, self.keep(arrays))
        # Not broadcast_to: torch's older vmap, which checks batched gradients, has no rule for it.
        weight = weight * cast(xp, xp.ones_like(arrays[0][..., 0]), self.compute)
        if index == self.own:
            gradient = run(self.settings(TemperatureSlope), *arrays) * weight
        else:
            operation = self.settings(RowGradient, index=index)
            gradient = run(operation, *arrays[:2], weight, *arrays[2:])
        wanted = arrays[index].dtype
        return gradient if gradient.dtype == wanted else xp.astype(gradient, wanted)

    def pushforward(
        self, xp: Namespace, run: Run, tangents: Sequence[Array | None], *arrays: Array
    ) -> Array:
        rows = arrays[0].shape[:-1]
        moved = []
        for index, tangent in enumerate(tangents):
            if tangent is None:
                continue
            step = cast(xp, tangent, self.compute)
            if index == self.own:
                moved.append(run(self.settings(TemperatureSlope), *arrays) * step)
            else:
                ones = xp.ones_like(xp.broadcast_to(step[..., 0], rows))
                operation = self.settings(RowGradient, index=index)
                slope = run(operation, *arrays[:2], ones, *arrays[2:])
                moved.append(xp.sum(slope * step, axis=-1))
        return self.finish(xp, sum(moved[1:], moved[0]), self.keep(arrays), empty=0.0)


@dataclass(frozen=True)
class RowGradient(RowOperation):
    """A number per row times the row's gradient. Arrays: s, t, that number."""

    index: int = 0
    """0: in s, 1: in t."""
    own: ClassVar[int] = 3
    keeps_classes: ClassVar[bool] = True

    @property
    def loss(self) -> RowOperation:
        """What it is the gradient of, row by row."""
        return self.settings(RowLoss)

    def elements(self, xp: Namespace, *arrays: Array) -> Array:
        (s, t, weight), temperature, _ = self.prepared(xp, arrays)
        gradient = self.divergence.gradient(xp, self.index, s, t, temperature)
        return cast(xp, weight[..., None] * gradient, self.result)

    def pullback(
        self, xp: Namespace, run: Run, index: int, cotangent: Array, *arrays: Array
    ) -> Array:
        s, t, weight, *rest = arrays
        if index == self.own:
            slope = xp.sum(cotangent * self._in_temperature(xp, run, *arrays), axis=-1)
            return cast(xp, slope, _name(arrays[index]))
        if index == 2:
            ones = run(self, s, t, xp.ones_like(weight), *rest)
            return xp.sum(cotangent * ones, axis=-1)
        zeros = xp.zeros_like(cotangent)
        direction = (zeros, cotangent) if self.index else (cotangent, zeros)
        operation = self.settings(RowTangent, index=index)
        return cast(xp, run(operation, s, t, weight, *direction, *rest), _name(s))

    def pushforward(
        self, xp: Namespace, run: Run, tangents: Sequence[Array | None], *arrays: Array
    ) -> Array:
        s, t, weight, *rest = arrays
        ds, dt, dw, *more = tangents
        moved = [] if dw is None else [run(self, s, t, dw, *rest)]
        if more and more[0] is not None:
            moved.append(self._in_temperature(xp, run, *arrays) * more[0][..., None])
        if ds is not None or dt is not None:
            direction = [xp.zeros_like(s) if d is None else d for d in (ds, dt)]
            operation = self.settings(RowTangent, index=self.index)
            moved.append(run(operation, s, t, weight, *direction, *rest))
        return sum(moved[1:], moved[0])

    def _in_temperature(
        self, xp: Namespace, run: Run, s: Array, t: Array, weight: Array, *rest: Array
    ) -> Array:
        """Return ∂G/∂T = −(G + H·(s, t))/T: the gradient G depends on s/T and t/T, over T."""
        direction = [xp.where(logits == -xp.inf, 0.0, logits) for logits in (s, t)]
        tangent = run(self.settings(RowTangent, index=self.index), s, t, weight, *direction, *rest)
        temperature = cast(xp, rest[0], self.compute)[..., None]
        return -(run(self, s, t, weight, *rest) + tangent) / temperature


@dataclass(frozen=True)
class RowTangent(RowOperation):
    """A number per row times a gradient's derivative. Arrays: s, t, that number, ds, dt."""

    index: int = 0
    own: ClassVar[int] = 5
    keeps_classes: ClassVar[bool] = True

    @property
    def native(self) -> bool:
        return True  # third order is the library's own

    def elements(self, xp: Namespace, *arrays: Array) -> Array:
        (s, t, weight, ds, dt), temperature, _ = self.prepared(xp, arrays)
        change = self.divergence.tangent(xp, self.index, s, t, (ds, dt), temperature)
        return cast(xp, weight[..., None] * change, self.result)


@dataclass(frozen=True)
class TemperatureSlope(RowOperation):
    """The derivative of each row in its temperature. Arrays: s, t."""

    @property
    def native(self) -> bool:
        return True

    def elements(self, xp: Namespace, *arrays: Array) -> Array:
        (s, t), temperature, keep = self.prepared(xp, arrays)
        return self.masked(xp, self.divergence.temperature_slope(xp, s, t, temperature), keep)


def _name(array: Array) -> str:
    return str(array.dtype).rpartition(".")[2]
