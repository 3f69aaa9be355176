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
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

from kldiv.formulas import state
from kldiv.formulas.divergences import ALL, TEACHER, VALUE, Block, Known, Wanted, state_of
from kldiv.formulas.reductions import cast
from kldiv.formulas.rows import RowGradient, RowLoss, RowOperation, times
from kldiv.formulas.state import Rows, State

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from kldiv._types import Array, Namespace
    from kldiv.formulas.operation import Operation, Run

    Evaluate = Callable[..., Array]
    """Evaluates an operation on the arrays that follow it."""


class Ranks(Protocol):
    """The collectives of an engine; every rank calls the same ones, in the same order."""

    def merge(self, function: Callable[..., Array], states: Array, *rows: Array) -> Array:
        """Return ``function`` of the list of all ranks' states, and of other arrays of rows."""
        ...

    def add(self, array: Array) -> Array:
        """Return the sum of all ranks' arrays."""
        ...


class Alone:
    """The one rank that has whole rows."""

    def merge(self, function: Callable[..., Array], states: Array, *rows: Array) -> Array:
        return function([states], *rows)

    def add(self, array: Array) -> Array:
        return array


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
class KnownRows(RowOperation):
    """An operation on packed constants of whole rows: those from states, then sums."""

    wanted: Wanted = ALL
    """The results that follow from these."""

    @property
    def needs(self) -> tuple[Wanted, Wanted]:
        """The states and the sums that these take."""
        return self.divergence.needs(self.wanted)

    def unpacked(self, known: Array) -> Known:
        """Unpack the constants of whole rows; the sums may be missing."""
        sides, parts = self.needs
        end = width(Rows, len(sides))
        rows, sums = unpacked(Rows, known[..., :end]), split(known[..., end:])
        return Known(dict(zip(sides, rows, strict=True)), dict(zip(parts, sums, strict=False)))


@dataclass(frozen=True)
class ShardSums(KnownRows):
    """A shard's share of the sums that value and gradients still need. Arrays: s, t, rows."""

    own: ClassVar[int] = 3

    def shape(self, arrays: Sequence[Array]) -> tuple[int, ...]:
        return (*arrays[0].shape[:-1], len(self.needs[1]))

    def elements(self, xp: Namespace, *arrays: Array) -> Array:
        (s, t, rows), temperature, _ = self.prepared(xp, arrays)
        block = Block(xp, s, t, temperature, self.unpacked(rows))
        share = self.bound(xp, arrays).share
        shares = [block.summed(partial(share, part)) for part in self.needs[1]]
        return xp.concat(shares, axis=-1)


@dataclass(frozen=True)
class Constants(KnownRows):
    """The packed constants of whole rows. Arrays: s, t."""

    def shape(self, arrays: Sequence[Array]) -> tuple[int, ...]:
        sides, sums = self.needs
        return (*arrays[0].shape[:-1], width(Rows, len(sides)) + len(sums))

    def elements(self, xp: Namespace, *arrays: Array) -> Array:
        (s, t), temperature, _ = self.prepared(xp, arrays)
        known = self.bound(xp, arrays).whole(xp, s, t, temperature, self.wanted).known
        return packed(xp, [*known.rows.values()], [*known.sums.values()])


@dataclass(frozen=True)
class ShardValues(KnownRows):
    """The divergence of each row, 0 where the mask drops it. Arrays: the constants."""

    own: ClassVar[int] = 1

    def elements(self, xp: Namespace, *arrays: Array) -> Array:
        values = self.divergence.value(self.unpacked(arrays[0]))
        return self.masked(xp, values, self.keep(arrays))


@dataclass(frozen=True)
class ShardGradient(KnownRows):
    """A number per row times the gradient in a shard. Arrays: s, t, that number, the constants."""

    index: int = 0
    """0: in s, 1: in t."""
    own: ClassVar[int] = 4
    keeps_classes: ClassVar[bool] = True

    def elements(self, xp: Namespace, *arrays: Array) -> Array:
        (s, t, weight, known), temperature, _ = self.prepared(xp, arrays)
        block = Block(xp, s, t, temperature, self.unpacked(known))
        gradient = block.joined(partial(self.bound(xp, arrays).gradient, self.index))
        return cast(xp, times(xp, weight, gradient), self.result)


@dataclass(frozen=True)
class ShardTemperatureSlope(KnownRows):
    """A shard's share of the derivative in the temperature. Arrays: s, t, the constants."""

    own: ClassVar[int] = 3

    def elements(self, xp: Namespace, *arrays: Array) -> Array:
        (s, t, known), temperature, keep = self.prepared(xp, arrays)
        block = Block(xp, s, t, temperature, self.unpacked(known))
        return self.masked(xp, block.summed(self.bound(xp, arrays).temperature_share), keep)


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
    wanted = ALL if gradients else (VALUE,)
    known = constants(xp, evaluate, ranks, loss, wanted, arrays)
    return loss.settings(ShardValues, wanted=wanted).elements(xp, known, *arrays[2:]), known


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
        sums = ranks.add(evaluate(loss.settings(ShardSums, wanted=wanted), s, t, known, *others))
        known = xp.concat([known, sums], axis=-1)
    return known


def value_and_run(
    xp: Namespace, run: Run, loss: RowLoss, wanted: Sequence[int], arrays: Sequence[Array]
) -> tuple[Array, Run]:
    """Return a loss, and a ``run`` that computes its gradients from the same constants."""
    every = tuple(dict.fromkeys((VALUE, *wanted)))
    states, *each = (
        len(loss.divergence.needs(some)[0]) for some in (every, *((one,) for one in every))
    )
    if states == sum(each):  # there is nothing to share
        return run(loss, *arrays), run
    parts = {"wanted": every}
    known = run(loss.settings(Constants, **parts), *arrays)
    values = loss.settings(ShardValues, **parts).elements(xp, known, *arrays[2:])

    def run_known(operation: Operation, *some: Array) -> Array:
        if not isinstance(operation, RowGradient):
            return run(operation, *some)
        s, t, weight, *others = some
        gradient = operation.settings(ShardGradient, index=operation.index, **parts)
        return run(gradient, s, t, weight, known, *others)

    return loss.gather(xp, values, arrays), run_known


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
    s, t, *others = arrays
    if index == loss.own:
        slope = evaluate(loss.settings(ShardTemperatureSlope), s, t, known, *others)
        gradient = ranks.add(slope) * cotangent
    else:
        operation = loss.settings(ShardGradient, index=index)
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
    ones = xp.ones_like(known[..., 0])
    moved = [xp.zeros_like(ones)]
    for index, step in enumerate(tangents):
        if step is None:
            continue
        step = cast(xp, step, loss.compute)  # noqa: PLW2901
        if index == loss.own:
            slope = evaluate(loss.settings(ShardTemperatureSlope), *arrays[:2], known, *arrays[2:])
            moved.append(slope * step)
        else:
            operation = loss.settings(ShardGradient, index=index)
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
    if isinstance(operation, ShardGradient):
        return evaluate(operation, *arrays)
    if isinstance(operation, Constants):
        return constants(xp, evaluate, ranks, operation, operation.wanted, arrays)
    if isinstance(operation, RowGradient):
        s, t, weight, *others = arrays
        loss = operation.settings(RowLoss)
        wanted = (operation.index,)
        known = constants(xp, evaluate, ranks, loss, wanted, (s, t, *others))
        gradient = operation.settings(ShardGradient, index=operation.index, wanted=wanted)
        return cast(xp, evaluate(gradient, s, t, weight, known, *others), operation.result)
    return forward(xp, evaluate, ranks, operation, arrays, gradients=False)[0]


def merged(xp: Namespace, loss: RowOperation, states: Iterable[Array], *others: Array) -> Array:
    """Return the packed constants of whole rows, given the packed states of all their parts."""
    return packed(xp, [state.finish(xp, whole) for whole in _wholes(xp, loss, states, others)])


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


def packed(xp: Namespace, constants: Sequence[NamedTuple], others: Sequence[Array] = ()) -> Array:
    """Return tuples of one number per row, and others, as one array."""
    return xp.concat([*(field for one in constants for field in one), *others], axis=-1)


def width(kind: type[Any], number: int) -> int:
    """Return how long the last axis of that many packed tuples is."""
    return number * len(kind._fields)


def unpacked(kind: type[Any], array: Array) -> list[Any]:
    """Return the tuples that `packed` has joined."""
    fields = split(array)
    size = len(kind._fields)
    return [kind(*fields[start : start + size]) for start in range(0, len(fields), size)]


def split(array: Array) -> list[Array]:
    """Return the numbers on the last axis, each with an axis of length one."""
    return [array[..., index : index + 1] for index in range(array.shape[-1])]
