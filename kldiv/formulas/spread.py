"""Labels, entropies and sparse teachers where the classes are spread over ranks.

As in `kldiv.formulas.shards`, a rank reads its classes for a few numbers a row; merged, these are
the constants of whole rows, the same on every rank, from which value and gradients follow.  The
indices of labels and of a teacher's classes are those of all classes together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final

from kldiv.formulas.divergences import ALL, STUDENT, TEACHER
from kldiv.formulas.labels import OfRows, peak_values
from kldiv.formulas.packing import split
from kldiv.formulas.reductions import RowWise, cast, weighed
from kldiv.formulas.rows import times
from kldiv.formulas.sparse import (
    BUCKET,
    Entries,
    Read,
    Rows,
    TopKOperation,
    entries_of,
    mean_depth,
    put,
    taken,
)
from kldiv.formulas.special import total
from kldiv.formulas.state import depth_of, number, weights_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kldiv._types import Array, Namespace
    from kldiv.formulas.divergences import Wanted
    from kldiv.formulas.operation import Tangents
    from kldiv.formulas.packing import Evaluate
    from kldiv.formulas.ranks import Ranks
    from kldiv.formulas.row_options import Tempered
    from kldiv.formulas.state import Temperature


@dataclass
class Spread:
    """A loss on the arrays of a rank, which has some of the classes of every row."""

    xp: Namespace
    evaluate: Evaluate
    ranks: Ranks
    loss: Any
    arrays: Sequence[Array]
    wanted: Wanted = ALL
    """The results that constants serve."""

    with_classes: ClassVar[int] = 1
    """How many of the leading arrays have the rank's classes."""
    share: ClassVar[type[RowWise]]
    """The operation that reads the rank's classes."""

    @property
    def size(self) -> int:
        """How many classes the rank has."""
        size: int = self.arrays[0].shape[-1]
        return size

    def forward(self) -> tuple[Array, Array]:
        """Return the loss of each row, and the packed constants that gradients take."""
        known = self.constants()
        return self.values(known), known

    def backward(self, index: int, cotangent: Array, known: Array) -> Array:
        """Return the gradient in an array, given the gradient in the rows' losses."""
        gradient = self.slope(index, cast(self.xp, cotangent, self.loss.compute), known)
        return self.xp.astype(gradient, self.arrays[index].dtype)

    def tangent(self, tangents: Tangents, known: Array) -> Array:
        """Return the derivative of each row's loss; a tangent of None is zero."""
        xp, one = self.xp, self.xp.ones_like(known[..., 0])
        results = self.loss.shape(self.arrays)[one.ndim :]
        if not results:
            return self._moved(tangents, one, known)
        zero, found = xp.zeros_like(one), []
        for place in range(results[0]):
            weights = [one if each == place else zero for each in range(results[0])]
            found.append(self._moved(tangents, xp.stack(weights, axis=-1), known))
        return xp.stack(found, axis=-1)

    def _moved(self, tangents: Tangents, weight: Array, known: Array) -> Array:
        """Return the same times a weight per row."""
        xp = self.xp
        shares: list[Array] = []
        whole: list[Array] = []
        for index, tangent in enumerate(tangents):
            if tangent is not None:
                step = cast(xp, tangent, self.loss.compute)
                moved = self.slope(index, weight, known) * step
                moved = xp.sum(moved, axis=-1) if moved.ndim == known.ndim else moved
                (shares if index < self.with_classes else whole).append(moved)
        if shares:
            whole.append(self.ranks.add(sum(shares[1:], shares[0])))
        return sum(whole[1:], whole[0]) if whole else xp.zeros_like(known[..., 0])

    @property
    def heat(self) -> Temperature:
        """The temperature, a number or one for each row."""
        loss: Tempered = self.loss
        return loss.temperature_of(self.xp, self.arrays[loss.differentiable - 1 :])

    def here(self) -> list[Array]:
        """Return the arrays with indices that count the rank's own classes, of which it has one."""
        xp, place = self.xp, self.loss.leading - 1
        found, end = [*self.arrays], self.with_classes
        first, _ = self.ranks.extent(found[0])
        if not self.size:
            found[:end] = (
                xp.broadcast_to(0.0 * s.sum() - xp.inf, (*s.shape[:-1], 1)) for s in found[:end]
            )
        if place >= self.loss.differentiable:
            own = found[place] - first
            found[place] = own if self.size else xp.full_like(own, -1)
        return [*(cast(xp, s, self.loss.compute) for s in found[:end]), *found[end:]]

    def constants(self) -> Array:
        """Return the constants of whole rows, packed."""
        own = self.evaluate(self.loss.settings(self.share), *self.here())
        heat: Any = self.heat
        rows = [heat[..., 0]] if self.loss.temperature is None else []
        return self.ranks.merge(self._together, own, *rows)

    def _together(self, parts: Sequence[Array], *heat: Array) -> Array:
        fixed = self.loss.temperature
        return self.merged(parts, number(fixed) if fixed is not None else heat[0][..., None])

    def merged(self, parts: Sequence[Array], temperature: Temperature) -> Array:
        """Return the packed constants of whole rows, given the sums of all ranks."""
        raise NotImplementedError

    def values(self, known: Array) -> Array:
        """Return the loss of each row."""
        raise NotImplementedError

    def slope(self, index: int, weight: Array, known: Array) -> Array:
        """Return a weight per row times the gradient: in the logits that of the own classes."""
        raise NotImplementedError

    def _masked(self, values: Array) -> Array:
        keep = self.loss.keep(self.arrays)
        if keep is None:
            return values
        return self.xp.where(keep if values.ndim == keep.ndim else keep[..., None], values, 0.0)


LABEL_SUMS: Final = 6
"""Numbers of a row that a rank sums for its labels and its entropy."""


# ---- labels --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LabelShare(OfRows):
    """The sums of a rank for rows and their labels, packed. Arrays: s."""

    def shape(self, arrays: Sequence[Array]) -> tuple[int, ...]:
        return (*arrays[0].shape[:-1], LABEL_SUMS)

    def elements(self, xp: Namespace, *arrays: Array) -> Array:
        s, temperature, is_label = self.prepared(xp, arrays)
        top = xp.max(s, axis=-1, keepdims=True)
        origin = xp.where(top == -xp.inf, 0.0, top)
        largest, weights = s == origin, weights_of(xp, s, origin, temperature)
        ties = total(xp, xp.where(largest, weights, 0.0))
        rest = total(xp, xp.where(largest, 0.0, weights))
        depth = depth_of(xp, s, origin, temperature)
        moved = total(xp, weights * depth)
        own, has = xp.zeros_like(top), xp.zeros_like(top)
        if is_label is not None:
            own = total(xp, xp.where(is_label, s, 0.0))
            has = cast(xp, xp.any(is_label, axis=-1, keepdims=True), self.compute)
        return xp.concat([top, rest, ties, moved, own, has], axis=-1)


class Labels(Spread):
    """A loss of labels, or an entropy."""

    share: ClassVar[type[RowWise]] = LabelShare

    def merged(self, parts: Sequence[Array], temperature: Temperature) -> Array:
        """Return top, rest, mean and the label's depth."""
        xp = self.xp
        own = [split(part) for part in parts]
        top = own[0][0]
        for first, *_ in own[1:]:
            top = xp.maximum(top, first)
        top = xp.where(top == -xp.inf, xp.nan, top)
        rest, ties, moved, logit, has = (xp.zeros_like(top) for _ in range(5))
        for first, others, equal, each, chosen, found in own:
            less, same, mass = weights_of(xp, first, top, temperature), first == top, others + equal
            rest = rest + xp.where(same, others, mass * less)
            ties = ties + xp.where(same, equal, 0.0)
            apart = depth_of(xp, first, top, temperature)
            moved = moved + less * each + (less * mass) * apart
            logit, has = logit + chosen, has + found
        rest = rest + (ties - 1.0)
        depth = depth_of(xp, logit, top, temperature)
        depth = xp.where(logit == -xp.inf, xp.inf, depth)
        depth = xp.where(has > 0, depth, xp.nan)  # a label that is no class has no probability
        return xp.concat([top, rest, moved / (1.0 + rest), depth], axis=-1)

    def values(self, known: Array) -> Array:
        _, rest, mean, depth = split(known)
        loss = self.loss
        chosen = depth if loss.labelled else None
        return self._masked(peak_values(self.xp, rest, mean, chosen, entropic=loss.entropic))

    def slope(self, index: int, weight: Array, known: Array) -> Array:
        xp = self.xp
        s, *others = self.here()
        operation, weights = self.loss.gradient_with(weight, given=True)
        gradient = self.evaluate(operation, s, *weights, known, *others)
        if index == 0:
            return gradient[..., : self.size]
        apart = s - known[..., :1]
        apart = xp.where((apart == -xp.inf) | (gradient == 0), 0.0, apart)
        share = self.ranks.add(xp.sum(gradient * apart, axis=-1))
        heat: Any = self.heat
        return -share / heat[..., 0]


# ---- sparse teachers -----------------------------------------------------------------------------


def _entries_here(xp: Namespace, a: Array, indices: Array, classes: int) -> Entries:
    """Return the given classes that a rank has; the others are padding."""
    inside = (indices >= 0) & (indices < classes)
    return entries_of(xp, xp.where(inside, a, -xp.inf), indices, classes)


def _shares(
    xp: Namespace, s: Array, given: Array, highest: Array, weight: Array, temperature: Array
) -> Array:
    """Return the shares of classes among those that are not given, whose weights are summed."""
    there = highest > -xp.inf
    origin = xp.where(there, highest, 0.0)
    weights = weights_of(xp, xp.where(given, -xp.inf, s), origin, temperature)
    return weights / xp.where(there, weight, 1.0)


@dataclass(frozen=True)
class TopKShare(TopKOperation):
    """The given classes' logits, the largest other one, and the others' weights, packed."""

    def shape(self, arrays: Sequence[Array]) -> tuple[int, ...]:
        return (*arrays[1].shape[:-1], arrays[1].shape[-1] + 2)

    def elements(self, xp: Namespace, *arrays: Array) -> Array:
        s, _, temperature, entries = self.prepared(xp, arrays)
        here = _entries_here(xp, entries.a, arrays[self.leading - 1], s.shape[-1])
        read, *_ = self.read(xp, s, here, temperature)
        own = xp.where(here.valid, read.own, -xp.inf)
        return xp.concat([own, read.highest, read.weight], axis=-1)


@dataclass(frozen=True)
class TopKSpread(RowWise):
    """A gradient in the student's logits of a rank.

    Arrays: s, the gradient in the given classes, then side by side that in all others, the largest
    of these, their weights and the temperature; the indices.
    """

    keeps_classes: ClassVar[bool] = True

    def keep(self, arrays: Sequence[Array]) -> Array | None:
        return None

    def elements(self, xp: Namespace, *arrays: Array) -> Array:
        s, own, numbers, indices = arrays
        last, highest, weight, temperature = split(numbers)
        here = _entries_here(xp, xp.zeros_like(own), indices, s.shape[-1])
        marked = here.marked(xp, s)
        own = xp.where(here.valid, own, taken(xp, own, here.likeliest))
        shares = _shares(xp, s, marked, highest, weight, temperature)
        shares = xp.where(last == 0, 0.0, last * shares)
        return xp.where(marked, put(xp, xp.zeros_like(s), here.places, own), shares)


class Sparse(Spread):
    """A loss beside a sparse teacher."""

    share: ClassVar[type[RowWise]] = TopKShare

    def merged(self, parts: Sequence[Array], temperature: Temperature) -> Array:
        xp = self.xp
        whole = parts[0]
        for part in parts[1:]:
            whole = xp.maximum(whole, part)
        own, highest = whole[..., :-2], whole[..., -2:-1]
        origin = xp.where(highest == -xp.inf, 0.0, highest)
        weights = [
            part[..., -1:] * weights_of(xp, part[..., -2:-1], origin, temperature) for part in parts
        ]
        if self.loss.tail != BUCKET:
            weights = [xp.ones_like(highest)]
        return xp.concat([own, highest, sum(weights[1:], weights[0])], axis=-1)

    def _whole(self, known: Array) -> tuple[Any, Entries, Rows, Temperature]:
        """Return the operation, its classes, rows of K + 1 classes and the temperature."""
        xp, loss = self.xp, self.loss
        _, classes = self.ranks.extent(self.arrays[0])
        _, mass, temperature, entries = loss.prepared(xp, self.arrays, classes)
        read = Read(known[..., :-2], known[..., -2:-1], known[..., -1:])
        rows = loss.rows(xp, classes, mass, temperature, entries, read)
        return loss.with_parameters(xp, self.arrays), entries, rows, temperature

    def values(self, known: Array) -> Array:
        bound, _, rows, _ = self._whole(known)
        return self._masked(bound.divergence.of_rows(self.xp, rows.s, rows.t, rows.heat)[..., 0])

    def slope(self, index: int, weight: Array, known: Array) -> Array:
        xp, loss = self.xp, self.loss
        bound, entries, rows, temperature = self._whole(known)
        if 0 < index < 2 + loss.has_rest:
            block = bound.block(xp, rows, TEACHER)
            gradient, last = bound.in_teacher(xp, entries, rows, block)
            if index == 1:
                return self._masked(times(xp, weight, gradient))
            return self._masked(weighed(xp, weight, last[..., 0]))
        numbers = known[..., -2:-1], known[..., -1:], temperature + 0.0 * known[..., -1:]
        s, *others = self.here()
        places = others[loss.leading - 2]
        if index == 0:
            own, last = bound.in_given(
                xp, entries, rows, temperature, bound.block(xp, rows, STUDENT)
            )
            last = 0.0 * rows.top if last is None else last
            own, last = (self._masked(times(xp, weight, each)) for each in (own, last))
            operation = TopKSpread("none", loss.compute, loss.compute, loss.compute)
            side = xp.concat([last, *numbers], axis=-1)
            keep = loss.keep(self.arrays)
            s = s if keep is None else xp.where(keep[..., None], s, 0.0)
            return self.evaluate(operation, s, own, side, places)[..., : self.size]
        found, last = bound.in_heat_of_given(xp, rows)
        if last is not None:
            here = _entries_here(xp, entries.a, places, s.shape[-1])
            shares = _shares(xp, s, here.marked(xp, s), *numbers)
            depth = self.ranks.add(mean_depth(xp, s, rows.top, shares, temperature))
            found = found + last * depth
        return self._masked(weighed(xp, weight, (-found / temperature)[..., 0]))
