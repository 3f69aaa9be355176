"""Classes sharded over ranks: states of shards, constants of whole rows, gradients of shards.

A rank reads its shard of the classes for its state (`ShardState`); from the states of all ranks
`merged` makes the constants of whole rows, the same on every rank.  KL is among them.  JS needs one
more read (`ShardSums`), whose results add up.  Each rank then computes the gradient of its shard
(`ShardGradient`): nothing needs to be exchanged for it.

Ranks exchange a few numbers per row, packed side by side on the last axis of one array.  The engine
moves them: ranks of a process group, devices of a mesh, chunks of a lazy array.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from kldiv.formulas import spread, state
from kldiv.formulas.divergences import ALL, TEACHER, VALUE, Wanted, state_of
from kldiv.formulas.packing import packed, split, unpacked, width
from kldiv.formulas.reductions import cast
from kldiv.formulas.rows import Constants, RowGradient, RowLoss, RowOperation, TemperatureSlope
from kldiv.formulas.state import State

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from kldiv._types import Array, Namespace
    from kldiv.formulas.packing import Evaluate, Ranks


def extent_of(xp: Namespace, sizes: Array, place: int) -> tuple[Array, Array]:
    """Return how many classes the ranks before have, and all together, given those of each."""
    return xp.sum(sizes[:place]), xp.sum(sizes)


def even_extent(size: int, place: Any, number: int) -> tuple[Any, int]:
    """Return the same of so many ranks that have so many classes each."""
    return place * size, number * size


class Alone:
    """The one rank that has whole rows."""

    def merge(self, function: Callable[..., Array], states: Array, *rows: Array) -> Array:
        return function([states], *rows)

    def add(self, array: Array) -> Array:
        return array

    def extent(self, array: Array) -> tuple[Any, Any]:
        return 0, array.shape[-1]


@dataclass(frozen=True)
class ShardState(RowOperation):
    """Packed states of a shard, which may be empty. Arrays: s, t."""

    sides: Wanted = (TEACHER,)
    """The states, `TEACHER` or `STUDENT` each."""
    carries: bool = False
    """Whether the temperature comes along at the end, where it is an array."""

    def shape(self, arrays: Sequence[Array]) -> tuple[int, ...]:
        return (*arrays[0].shape[:-1], width(State, len(self.sides)) + self._carried)

    @property
    def _carried(self) -> int:
        return self.carries and self.temperature is None

    def elements(self, xp: Namespace, *arrays: Array) -> Array:
        (s, t), temperature, _ = self.prepared(xp, arrays)
        states = [state_of(xp, side, s, t, temperature) for side in self.sides]
        return packed(xp, states, [temperature] if self._carried else [])


@dataclass(frozen=True)
class Together(RowOperation):
    """The merged state of one or more, packed. Arrays: their fields."""

    keeps_classes: ClassVar[bool] = True

    @property
    def differentiable(self) -> int:
        return 0

    def keep(self, arrays: Sequence[Array]) -> Array | None:  # noqa: ARG002
        return None

    def shape(self, arrays: Sequence[Array]) -> tuple[int, ...]:
        return (*arrays[0].shape[:-1], width(State, 1))

    def states(self, xp: Namespace, arrays: Sequence[Array]) -> list[State]:
        """Return the states, in one dtype: not every library's concat takes two."""
        fields = [cast(xp, array, self.compute) for array in arrays]
        size = width(State, 1)
        return [State(*fields[start : start + size]) for start in range(0, len(fields), size)]

    def elements(self, xp: Namespace, *arrays: Array) -> Array:
        first, *more = self.states(xp, arrays)
        temperature = self.temperature_of(xp, ())
        whole = state.merge(xp, [first, *more], -1, temperature) if more else first
        return packed(xp, [whole])


@dataclass(frozen=True)
class Finished(Together):
    """KL of the classes in a state. Arrays: its fields."""

    keeps_classes: ClassVar[bool] = False

    def shape(self, arrays: Sequence[Array]) -> tuple[int, ...]:
        shape: tuple[int, ...] = arrays[0].shape[:-1]
        return shape

    def elements(self, xp: Namespace, *arrays: Array) -> Array:
        return state.finish(xp, *self.states(xp, arrays)).kl[..., 0]


@dataclass(frozen=True)
class ShardSums(RowOperation):
    """A shard's share of the sums that results need besides the given constants. Arrays: s, t."""

    @property
    def _parts(self) -> Wanted:
        return self.divergence.needs(self.given)[1]

    def shape(self, arrays: Sequence[Array]) -> tuple[int, ...]:
        return (*arrays[0].shape[:-1], len(self._parts))

    def elements(self, xp: Namespace, *arrays: Array) -> Array:
        (s, t, *given), temperature, _ = self.prepared(xp, arrays)
        divergence = self.bound(xp, arrays)
        block = self.block(xp, divergence, s, t, temperature, given, ())
        return xp.concat(divergence.shares(self._parts, block), axis=-1)


def forward(
    xp: Namespace,
    evaluate: Evaluate,
    ranks: Ranks,
    loss: RowOperation,
    arrays: Sequence[Array],
    *,
    gradients: bool,
) -> tuple[Array, Array]:
    """Return the divergence of each row, and the packed constants that gradients take."""
    if not isinstance(loss, RowOperation):
        return spread.forward(xp, evaluate, ranks, loss, arrays)
    wanted = ALL if gradients else (VALUE,)
    known = constants(xp, evaluate, ranks, loss, wanted, arrays)
    return loss.settings(RowLoss, given=wanted).elements(xp, known, *arrays[2:]), known


def constants(
    xp: Namespace,
    evaluate: Evaluate,
    ranks: Ranks,
    loss: RowOperation,
    wanted: Wanted,
    arrays: Sequence[Array],
) -> Array:
    """Return the packed constants of whole rows: from the merged states, then the added sums."""
    s, t, *others = arrays
    sides, parts = loss.divergence.needs(wanted)
    states = evaluate(loss.settings(ShardState, sides=sides), s, t, *others)
    known = ranks.merge(lambda *parts: merged(xp, loss, *parts), states, *others)
    if parts:
        sums = evaluate(loss.settings(ShardSums, given=wanted), s, t, known, *others)
        if loss.divergence.adds:
            sums = ranks.add(sums)
        else:
            sums = ranks.merge(partial(summed, xp, loss), sums)
        known = xp.concat([known, sums], axis=-1)
    return known


def backward(
    xp: Namespace,
    evaluate: Evaluate,
    ranks: Ranks,
    loss: RowOperation,
    index: int,
    cotangent: Array,
    arrays: Sequence[Array],
    known: Array,
) -> Array:
    """Return the gradient in ``arrays[index]``, given the gradient in the rows' divergences."""
    if not isinstance(loss, RowOperation):
        return spread.backward(xp, evaluate, ranks, loss, index, cotangent, arrays, known)
    s, t, *others = arrays
    if index == loss.own:
        slope = evaluate(loss.settings(TemperatureSlope, given=ALL), s, t, known, *others)
        gradient = ranks.add(slope) * cotangent
    else:
        operation = loss.settings(RowGradient, index=index, given=ALL)
        gradient = evaluate(operation, s, t, cotangent, known, *others)
    return xp.astype(gradient, arrays[index].dtype)


def tangent(
    xp: Namespace,
    evaluate: Evaluate,
    ranks: Ranks,
    loss: RowOperation,
    tangents: Sequence[Array | None],
    arrays: Sequence[Array],
    known: Array,
) -> Array:
    """Return the derivative of each row's divergence; a tangent of None is zero."""
    if not isinstance(loss, RowOperation):
        return spread.tangent(xp, evaluate, ranks, loss, tangents, arrays, known)
    ones = xp.ones_like(known[..., 0])
    moved = [xp.zeros_like(ones)]
    for index, step in enumerate(tangents):
        if step is None:
            continue
        step = cast(xp, step, loss.compute)  # noqa: PLW2901
        if index == loss.own:
            operation = loss.settings(TemperatureSlope, given=ALL)
            slope = evaluate(operation, *arrays[:2], known, *arrays[2:])
            moved.append(slope * step)
        else:
            operation = loss.settings(RowGradient, index=index, given=ALL)
            slope = evaluate(operation, *arrays[:2], ones, known, *arrays[2:])
            moved.append(xp.sum(slope * step, axis=-1))
    return ranks.add(sum(moved[1:], moved[0]))


def part(
    xp: Namespace,
    evaluate: Evaluate,
    ranks: Ranks,
    operation: RowOperation,
    arrays: Sequence[Array],
) -> Array:
    """Return a shard's part of the elements of an operation that is defined on whole rows."""
    if operation.given:
        return evaluate(operation, *arrays)
    if isinstance(operation, Constants):
        return constants(xp, evaluate, ranks, operation, operation.wanted, arrays)
    if isinstance(operation, RowGradient):
        s, t, weight, *others = arrays
        loss = operation.settings(RowLoss)
        wanted = (operation.index,)
        known = constants(xp, evaluate, ranks, loss, wanted, (s, t, *others))
        gradient = operation.settings(RowGradient, index=operation.index, given=wanted)
        return cast(xp, evaluate(gradient, s, t, weight, known, *others), operation.result)
    return forward(xp, evaluate, ranks, operation, arrays, gradients=False)[0]


def merged(xp: Namespace, loss: RowOperation, states: Iterable[Array], *others: Array) -> Array:
    """Return the packed constants of whole rows, given the packed states of all their parts."""
    return packed(xp, [state.finish(xp, whole) for whole in _wholes(xp, loss, states, others)])


def summed(xp: Namespace, loss: RowOperation, parts: Sequence[Array]) -> Array:
    """Return the packed sums of whole rows, given the packed shares of all their parts."""
    return xp.concat(loss.divergence.merged(xp, [split(part) for part in parts]), axis=-1)


def _wholes(
    xp: Namespace, loss: RowOperation, states: Iterable[Array], others: Sequence[Array]
) -> list[State]:
    """Merge packed states of the parts of rows, each side by itself."""
    temperature = loss.temperature_of(xp, others)
    sides = zip(*(unpacked(State, part) for part in states), strict=True)
    return [state.merge(xp, parts, -1, temperature) for parts in sides]


def combined(xp: Namespace, loss: RowOperation, parts: Sequence[Array], *, done: bool) -> Array:
    """Merge packed states that carry the temperature; finish them to constants if ``done``."""
    own, others = parts, []
    if loss.temperature is None:
        own, others = [part[..., :-1] for part in parts], [parts[0][..., -1]]
    if done:
        return merged(xp, loss, own, *others)
    states = _wholes(xp, loss, own, others)
    return packed(xp, states, [array[..., None] for array in others])
