"""Classes sharded over ranks: states of shards, constants of whole rows, gradients of shards.

A rank reads its shard of the classes for its state (`ShardState`); from the states of all ranks
`merged` makes the constants of whole rows, the same on every rank.  KL is among them.  JS needs one
more read (`ShardSums`), whose results add up.  Each rank then computes the gradient of its shard:
nothing needs to be exchanged for it.

Ranks exchange a few numbers per row, packed side by side on the last axis of one array.  The engine
moves them: ranks of a process group, devices of a mesh, chunks of a lazy array.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Final

from kldiv.formulas import state
from kldiv.formulas.divergences import ALL, TEACHER, VALUE, Wanted, state_of
from kldiv.formulas.labels import LabelLoss
from kldiv.formulas.packing import packed, split, unpacked, width
from kldiv.formulas.policy import PolicyLoss
from kldiv.formulas.ranks import Ranks
from kldiv.formulas.reductions import RowWise, cast, weighed
from kldiv.formulas.rows import Constants, RowGradient, RowLoss, RowOperation, TemperatureSlope
from kldiv.formulas.sparse import TopKLoss
from kldiv.formulas.spread import LABEL_SUMS, Labels, LabelShare, Sparse, Spread
from kldiv.formulas.state import Rows, State

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from kldiv._types import Array, Namespace
    from kldiv.formulas.packing import Evaluate
    from kldiv.formulas.state import Temperature


class Alone(Ranks):
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

    def keep(self, arrays: Sequence[Array]) -> Array | None:
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
        whole = state.merge(xp, [first, *more], temperature) if more else first
        return packed(xp, [whole])


@dataclass(frozen=True)
class Finished(Together):
    """KL of the classes in a state. Arrays: its fields."""

    keeps_classes: ClassVar[bool] = False

    def shape(self, arrays: Sequence[Array]) -> tuple[int, ...]:
        return tuple(arrays[0].shape[:-1])

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
        divergence, block, *_ = self.read(xp, arrays, ())
        return xp.concat(divergence.shares(self._parts, block), axis=-1)


class Logits(Spread):
    """A divergence of logits on the arrays of a rank."""

    with_classes: ClassVar[int] = 2

    def constants(self) -> Array:
        """Return the constants: from the merged states, then the added sums."""
        xp, loss, (s, t, *others) = self.xp, self.loss, self.arrays
        sides, parts = loss.divergence.needs(self.wanted)
        states = self.evaluate(loss.settings(ShardState, sides=sides), s, t, *others)
        known = self.ranks.merge(lambda *parts: merged(xp, loss, *parts), states, *others)
        if parts:
            share = loss.settings(ShardSums, given=self.wanted)
            sums = self.evaluate(share, s, t, known, *others)
            if loss.divergence.adds:
                sums = self.ranks.add(sums)
            else:
                sums = self.ranks.merge(partial(summed, loss, xp), sums)
            known = xp.concat([known, sums], axis=-1)
        return known

    def values(self, known: Array) -> Array:
        loss = self.loss.settings(RowLoss, given=self.wanted)
        return loss.elements(self.xp, known, *self.arrays[2:])

    def slope(self, index: int, weight: Array, known: Array) -> Array:
        s, t, *others = self.arrays
        if index == self.loss.own:
            operation = self.loss.settings(TemperatureSlope, given=self.wanted)
            slope = self.ranks.add(self.evaluate(operation, s, t, known, *others))
            return weighed(self.xp, weight, slope)
        operation = self.loss.settings(RowGradient, index=index, given=self.wanted)
        return self.evaluate(operation, s, t, weight, known, *others)


@dataclass(frozen=True)
class PolicyShare(LabelShare):
    """The same and the state of (Q, P), packed. Arrays: P's logits, Q's logits."""

    weights: ClassVar[int] = 1

    def shape(self, arrays: Sequence[Array]) -> tuple[int, ...]:
        return (*arrays[0].shape[:-1], LABEL_SUMS + width(State, 1))

    def elements(self, xp: Namespace, *arrays: Array) -> Array:
        policy, temperature, _ = self.prepared(xp, arrays)
        reference, keep = cast(xp, arrays[1], self.compute), self.keep(arrays)
        if keep is not None:
            reference = xp.where(keep[..., None], reference, 0.0)
        pair = packed(xp, [state_of(xp, TEACHER, reference, policy, temperature)])
        return xp.concat([super().elements(xp, *arrays), pair], axis=-1)


_PAIR: Final = width(Rows, 1)


class Policy(Spread):
    """Labels, entropy and divergence from a reference, of which both have the rank's classes."""

    with_classes: ClassVar[int] = 2
    share: ClassVar[type[RowWise]] = PolicyShare

    @property
    def _labels(self) -> Labels:
        loss, own = self.loss.labels, self.loss.of_labels(self.arrays)
        return Labels(self.xp, self.evaluate, self.ranks, loss, own)

    def merged(self, parts: Sequence[Array], temperature: Temperature) -> Array:
        """Return the constants of (Q, P), then the labels'."""
        xp = self.xp
        states = [unpacked(State, part[..., LABEL_SUMS:])[0] for part in parts]
        rows = state.finish(xp, state.merge(xp, states, temperature))
        of_labels = self._labels.merged([part[..., :LABEL_SUMS] for part in parts], temperature)
        return packed(xp, [rows], [of_labels])

    def values(self, known: Array) -> Array:
        kl = unpacked(Rows, known[..., :_PAIR])[0].kl
        return self.xp.concat([self._labels.values(known[..., _PAIR:]), self._masked(kl)], axis=-1)

    def slope(self, index: int, weight: Array, known: Array) -> Array:
        places, shares = range(self.loss.differentiable), []
        of_labels, of_kl = self.loss.of_labels(places), self.loss.of_kl(places)
        if index in of_labels:
            place = of_labels.index(index)
            shares.append(self._labels.slope(place, weight[..., :2], known[..., _PAIR:]))
        kl = Logits(self.xp, self.evaluate, self.ranks, self.loss.kl, self.loss.of_kl(self.arrays))
        shares.append(kl.slope(of_kl.index(index), weight[..., 2], known[..., :_PAIR]))
        return sum(shares[1:], shares[0])


_KINDS: dict[type[Any], type[Spread]] = {LabelLoss: Labels, PolicyLoss: Policy, TopKLoss: Sparse}


def of_rank(
    xp: Namespace,
    evaluate: Evaluate,
    ranks: Ranks,
    loss: Any,
    arrays: Sequence[Array],
    *,
    gradients: bool = True,
) -> Spread:
    """Return a loss on the arrays of a rank, with the constants of its gradients or without."""
    kind = Logits if isinstance(loss, RowOperation) else _KINDS[type(loss)]
    return kind(xp, evaluate, ranks, loss, arrays, ALL if gradients else (VALUE,))


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
    tools = xp, evaluate, ranks
    if isinstance(operation, Constants):
        return Logits(*tools, operation, arrays, operation.wanted).constants()
    if isinstance(operation, RowGradient):
        own, weight = operation.of_loss(xp, arrays)
        gradient = Logits(*tools, operation.loss, own, operation.wanted)
        found = gradient.slope(operation.index, weight, gradient.constants())
        return cast(xp, found, operation.result)
    return of_rank(*tools, operation, arrays, gradients=False).forward()[0]


def merged(xp: Namespace, loss: RowOperation, states: Iterable[Array], *others: Array) -> Array:
    """Return the packed constants of whole rows, given the packed states of all their parts."""
    return packed(xp, [state.finish(xp, whole) for whole in _wholes(xp, loss, states, others)])


def summed(loss: RowOperation, xp: Namespace, parts: Sequence[Array]) -> Array:
    """Return the packed sums of whole rows, given the packed shares of all their parts."""
    return xp.concat(loss.divergence.merged(xp, [split(part) for part in parts]), axis=-1)


def _wholes(
    xp: Namespace, loss: RowOperation, states: Iterable[Array], others: Sequence[Array]
) -> list[State]:
    """Merge packed states of the parts of rows, each side by itself."""
    temperature = loss.temperature_of(xp, others)
    sides = zip(*(unpacked(State, part) for part in states), strict=True)
    return [state.merge(xp, parts, temperature) for parts in sides]


def joined(loss: RowOperation, xp: Namespace, parts: Sequence[Array]) -> Array:
    """Merge packed states, which carry the temperature where it is an array."""
    own, others = _apart(loss, parts)
    return packed(xp, _wholes(xp, loss, own, others), [array[..., None] for array in others])


def finished(loss: RowOperation, xp: Namespace, parts: Sequence[Array]) -> Array:
    """Return the packed constants of whole rows, given such states of all their parts."""
    own, others = _apart(loss, parts)
    return merged(xp, loss, own, *others)


def _apart(loss: RowOperation, parts: Sequence[Array]) -> tuple[Sequence[Array], list[Array]]:
    """Return packed states, and the temperature that they carry if they do."""
    if loss.temperature is not None:
        return parts, []
    return [part[..., :-1] for part in parts], [parts[0][..., -1]]
