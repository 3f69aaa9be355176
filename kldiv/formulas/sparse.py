r"""Divergences from a teacher of which some log-probabilities a row are known.

S are the classes given, with log-probabilities a.  With the tail "bucket" all others are one more
class, of the teacher's mass 1 − Σ e^a, or a mass that is given, and of the student's

    log q_rest = log Σ e^{s/T} over the others − log Σ e^{s/T} over all

from its own logits: 1 − Σ q would have no digit left where S holds nearly all of it.  With the tail
"renormalize" both sides are taken on S alone.  So a row becomes two rows of K + 1, or K, logits, to
which every divergence applies as it stands.  These are double words (`kldiv.formulas.state.Wide`),
as a rounded logit would be taken for a divergence.

With G the gradients in these, and r the student's shares among the others,

    ∂s_j = G_j/T on S, G_rest r_j/T elsewhere        ∂a_i = G_i − G_rest e^{a_i}/p_rest
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple

from kldiv.formulas.divergences import STUDENT, TEACHER, Block, Divergence, KullbackLeibler
from kldiv.formulas.numbers import EIGHTH
from kldiv.formulas.reductions import cast, weighed
from kldiv.formulas.row_options import OfDivergence
from kldiv.formulas.rows import times
from kldiv.formulas.special import add, counted, expm1, largest, log1p, total, two_difference
from kldiv.formulas.state import (
    Wide,
    factor_of,
    finite,
    held,
    number,
    over,
    product,
    quotient,
    steps_from,
    sum_of_weights,
    tempered,
    weights_of,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

    from kldiv._types import Array, Namespace
    from kldiv.formulas.operation import Run
    from kldiv.formulas.state import DoubleWord, Temperature

BUCKET: Final = "bucket"
TAILS: Final = (BUCKET, "renormalize")


class Entries(NamedTuple):
    """The classes that rows are given; arrays have the classes' axis."""

    a: Array
    """The teacher's log-probabilities."""
    valid: Array
    """Whether an entry is no padding."""
    likeliest: Array
    """The entry that is surely none, where there is one."""
    places: Array
    """The class of each entry, of padding that of the likeliest."""
    some: Array
    """Whether any is no padding."""
    foreign: Array
    """Whether one is no class."""

    def marked(self, xp: Namespace, logits: Array) -> Array:
        """Return which of the classes, on the last axis of logits, are given."""
        some = xp.broadcast_to(self.some, self.places.shape)
        return put(xp, xp.zeros_like(logits, dtype=xp.bool), self.places, some)


class Read(NamedTuple):
    """The results of one reading of the student's logits."""

    own: Array
    """The logits of the given classes."""
    highest: Array
    """The largest of the others, −∞ where there is none."""
    weight: Array
    """Σ e^((s − highest)/T) over these."""


class Rows(NamedTuple):
    """Rows of K or K + 1 classes."""

    top: Array
    """The student's largest logit; NaN where the row has no value."""
    rest: Array | None
    """The teacher's mass on the others; None where these do not count."""
    s: Wide
    """The student's logits."""
    t: Wide
    """The teacher's."""
    heat: Temperature
    """The divisor of these: 1, unless the log-probabilities are of another temperature."""


def entries_of(xp: Namespace, a: Array, indices: Array, classes: Any) -> Entries:
    """Return the classes that rows are given."""
    valid = a != -xp.inf
    inside = (indices >= 0) & (indices < classes)
    likeliest = xp.argmax(xp.where(valid & inside, a, -xp.inf), axis=-1, keepdims=True)
    places = xp.where(inside, indices, xp.zeros_like(indices))
    places = xp.where(valid, places, taken(xp, places, likeliest))
    some = xp.any(valid, axis=-1, keepdims=True)
    foreign = xp.any(valid & ~inside, axis=-1, keepdims=True)
    return Entries(a, valid, likeliest, places, some, foreign)


@dataclass(frozen=True)
class TopKOperation(OfDivergence):
    """The common part of operations on a student's logits and a sparse teacher.

    Arrays: s, the log-probabilities, those that a class names, the mass of the others where it is
    given, the temperature where it is an array, the divergence's parameters, the indices of the
    classes, the mask.
    """

    divergence: Divergence = field(default_factory=KullbackLeibler)
    temperature: float | None = 1.0
    tail: str = BUCKET
    has_rest: bool = False
    target_temperature: float | None = None
    """The temperature of the log-probabilities; None: that of the loss."""

    weights: ClassVar[int] = 0
    common: ClassVar[tuple[str, ...]] = (
        *("divergence", "temperature"),
        *("tail", "has_rest", "target_temperature"),
    )

    @property
    def differentiable(self) -> int:
        return 2 + self.weights + self.has_rest + (self.temperature is None)

    @property
    def leading(self) -> int:
        # torch.compile knows no property of a base class.
        return self.differentiable + self.divergence.parameters + 1

    def with_parameters(self, xp: Namespace, arrays: Sequence[Array]) -> Self:
        """Return the operation with the divergence's parameters of each row, if it has any."""
        bound = self.bound(xp, arrays)
        return self if bound is self.divergence else replace(self, divergence=bound)

    def prepared(
        self, xp: Namespace, arrays: Sequence[Array], classes: Any = None
    ) -> tuple[Array, Array | None, Temperature, Entries]:
        """Return the logits, the mass of the others where given, temperature and given classes.

        ``classes`` is how many there are, where the logits are not of all.
        """
        keep, first = self.keep(arrays), 2 + self.weights
        s, a = (cast(xp, array, self.compute) for array in arrays[:2])
        mass = cast(xp, arrays[first], self.compute) if self.has_rest else None
        temperature = self.temperature_of(xp, arrays[self.differentiable - 1 :])
        indices = arrays[self.leading - 1]
        if keep is not None:  # of a row that is dropped nothing is infinite
            wide = keep[..., None]
            s, a = xp.where(wide, s, 0.0), xp.where(wide, a, -1.0 * a.shape[-1])
            indices = xp.where(wide, indices, xp.zeros_like(indices))
            mass = mass if mass is None else xp.where(keep, mass, 0.5)
        mass = mass if mass is None else mass[..., None]
        classes = s.shape[-1] if classes is None else classes
        return s, mass, temperature, entries_of(xp, a, indices, classes)

    def read(
        self, xp: Namespace, s: Array, entries: Entries, temperature: Temperature
    ) -> tuple[Read, Array, Array]:
        """Read the student; return also which classes are given, and the others' weights."""
        marked, own = entries.marked(xp, s), taken(xp, s, entries.places)
        if self.tail != BUCKET:
            top = xp.max(s, axis=-1, keepdims=True)
            return Read(own, top, top), marked, top
        highest, weight, weights = others_of(xp, xp.where(marked, -xp.inf, s), temperature)
        return Read(own, highest, weight), marked, weights

    def rows(
        self,
        xp: Namespace,
        classes: Any,
        mass: Array | None,
        temperature: Temperature,
        entries: Entries,
        read: Read,
    ) -> Rows:
        """Return the rows of K or K + 1 classes."""
        a, valid = entries.a, entries.valid
        own = xp.where(valid, read.own, -xp.inf)
        if self.tail == BUCKET:
            # No result depends on it, where it is a number: a class that is not given has no slope.
            top = held(xp, xp.maximum(xp.max(own, axis=-1, keepdims=True), read.highest))
        else:
            top = taken(xp, own, xp.argmax(own, axis=-1, keepdims=True))
        top = xp.where(entries.foreign | (top == -xp.inf), xp.nan, top)
        heat = 1.0 if self.target_temperature is None else temperature
        divisor = temperature if self.target_temperature is None else 1.0
        own = [over_top(xp, read.own, top, divisor, valid)]
        teacher = [masked_words(xp, valid, *self._teacher(xp, xp.where(valid, a, 0.0), entries))]
        if self.tail != BUCKET:
            return Rows(top, None, Wide(*own[0]), Wide(*teacher[0]), heat)
        own.append(together(xp, read.highest, read.weight, top, temperature))
        mass = left_mass(xp, entries, mass, classes)
        positive, zero = mass != 0, xp.zeros_like(mass)
        words = plus_log(xp, zero, zero, xp.where(positive, mass, 1.0))
        teacher.append(masked_words(xp, positive, *words))
        s, t = (
            Wide(*(xp.concat(words, axis=-1) for words in zip(*side, strict=True)))
            for side in (own, teacher)
        )
        return Rows(top, mass, s, t, 1.0)

    def block(self, xp: Namespace, rows: Rows, *wanted: int) -> Block:
        """Return the rows with the sums that results need: `VALUE`, `STUDENT`, `TEACHER`."""
        return self.divergence.whole(xp, rows.s, rows.t, rows.heat, wanted)

    def slopes(self, side: int, rows: Rows, block: Block) -> tuple[Array, Array | None]:
        """Return the gradient in a side's logits: of the given classes, and of the others."""
        found = self.divergence.gradient(side, block)
        if side == STUDENT or rows.rest is None:
            logits = (rows.t if side == TEACHER else rows.s).high
            found = of_likeliest(block.xp, logits, found)
        return (found, None) if rows.rest is None else (found[..., :-1], found[..., -1:])

    def in_given(
        self, xp: Namespace, entries: Entries, rows: Rows, temperature: Temperature, block: Block
    ) -> tuple[Array, Array | None]:
        """Return the student's gradient: of given classes, of all others together."""
        found, last = self.slopes(STUDENT, rows, block)
        found = xp.where(entries.valid, found, taken(xp, found, entries.likeliest))
        divisor = temperature if self.target_temperature is None else 1.0
        return over(found, divisor), last if last is None else over(last, divisor)

    def in_teacher(
        self, xp: Namespace, entries: Entries, rows: Rows, block: Block
    ) -> tuple[Array, Array | None]:
        """Return the gradients in the log-probabilities, and in the mass of the others."""
        if rows.rest is not None and not self.has_rest:
            # The others have 1 less the mass of these, so each slope is the difference from theirs:
            # taken of two gradients it might lose its digits to a mean that is larger than both.
            block = self.divergence.from_last(TEACHER, block)
        return self.to_teacher(xp, entries, rows.rest, *self.slopes(TEACHER, rows, block))

    def to_teacher(
        self, xp: Namespace, entries: Entries, rest: Array | None, found: Array, last: Array | None
    ) -> tuple[Array, Array | None]:
        """Return these gradients, given those in the logits of the K + 1 classes."""
        if last is not None and rest is not None:
            there = rest > 0
            last = xp.where(there, last / xp.where(there, rest, 1.0), 0.0 * last)
            if not self.has_rest:
                found = found - last * xp.exp(entries.a)
        if self.target_temperature is not None:
            found = found * self.target_temperature
        return xp.where(entries.valid, found, 0.0), last

    def in_heat_of_given(self, xp: Namespace, rows: Rows) -> tuple[Array, Array | None]:
        """Return the share of the given classes in −T ∂/∂T, and the gradient in all others."""
        slopes, last = self.slopes(STUDENT, rows, self.block(xp, rows, STUDENT))
        logits = rows.s.high[..., : slopes.shape[-1]]
        if last is None:  # slopes sum to 0, so that logits may be taken from where the slopes are
            size = total(xp, abs(slopes))
            middle = moment(xp, abs(slopes), logits) / xp.where(size > 0, size, 1.0)
            logits = logits - middle
        found = moment(xp, slopes, logits)
        if self.target_temperature is not None:
            of_teacher, _ = self.slopes(TEACHER, rows, self.block(xp, rows, TEACHER))
            found = found + moment(xp, of_teacher, rows.t.high)
        return found, last

    def _teacher(self, xp: Namespace, a: Array, entries: Entries) -> DoubleWord:
        """Return the log-probabilities, times their temperature if they have their own.

        Renormalised ones are less the likeliest, as the student's logits are, and derive from that
        too: a slope in it is then made of those in the others, where 1 − p would round to 0.
        """
        if self.tail == BUCKET:
            return a, xp.zeros_like(a)
        words = two_difference(a, taken(xp, a, entries.likeliest))
        if self.target_temperature is None:
            return words
        return product(xp, *words, factor_of(xp, number(self.target_temperature), a))


def of_likeliest(xp: Namespace, logits: Array, numbers: Array) -> Array:
    """Return numbers of a constant sum; that of the likeliest class derives from the others'.

    Its own derivatives have a factor 1 − p, which would round to 0.
    """
    if not hasattr(xp, "constant"):  # nothing is differentiated
        return numbers
    here = counted(xp, logits) == xp.argmax(logits, axis=-1, keepdims=True)
    others = total(xp, xp.where(here, 0.0, numbers))
    others = xp.where(xp.isfinite(others), others, 0.0)
    return xp.where(here, held(xp, numbers) + (held(xp, others) - others), numbers)


def shares_of(xp: Namespace, weights: Array, weight: Array) -> Array:
    """Return the shares of classes in the sum of their weights, 0 where there is none."""
    return of_likeliest(xp, weights, weights / xp.where(weight > 0, weight, 1.0))


def others_of(xp: Namespace, logits: Array, temperature: Temperature) -> tuple[Array, Array, Array]:
    """Return the largest logit of classes, the sum of their weights about it, and these."""
    highest = largest(xp, logits)
    origin = xp.where(highest == -xp.inf, 0.0, highest)
    weights = weights_of(xp, logits, origin, temperature)
    return highest, sum_of_weights(xp, weights, origin), weights


def together(
    xp: Namespace, highest: Array, weight: Array, top: Array, temperature: Temperature
) -> DoubleWord:
    """Return the logit less top, over T, of classes as one, given their `others_of`."""
    there = highest != -xp.inf
    high, low = over_top(xp, highest, top, temperature, there)
    words = plus_log(xp, xp.where(there, high, 0.0), low, xp.where(there, weight, 1.0))
    return masked_words(xp, there, *words)


def over_top(
    xp: Namespace, logits: Array, top: Array, temperature: Temperature, there: Array
) -> DoubleWord:
    """Return (logits − top)/T as double words, −∞ where a class is not there."""
    most = 2.0**-15 * float(xp.finfo(logits.dtype).max)
    apart, rest = two_difference(finite(xp, logits), top)
    near = abs(apart) < most  # farther away the low word does not matter, and may overflow
    nothing = 0.0 * top
    close = quotient(xp, xp.where(near, apart, nothing), xp.where(near, rest, nothing), temperature)
    there = there & (logits != -xp.inf)
    # Masked before the division: its derivative would be infinite beside the mask.
    far = xp.where(there & ~near, steps_from(xp, logits, top), nothing)
    high = xp.where(near, close[0], tempered(xp, far, EIGHTH * temperature))
    return masked_words(xp, there, high, close[1])


def masked_words(xp: Namespace, there: Array, high: Array, low: Array) -> DoubleWord:
    """Return double words, −∞ where there is none."""
    return xp.where(there, high, -xp.inf), xp.where(there, low, 0.0)


def plus_log(xp: Namespace, high: Array, low: Array, number: Array) -> DoubleWord:
    """Return a double word plus the logarithm of a number, right to a few u, not u·|log|."""
    log = xp.log(number)
    most = math.log(float(xp.finfo(log.dtype).max))
    rest = number * xp.exp(xp.clip(-log, -math.inf, most)) - 1.0
    # A subnormal number has no digits for a rest.
    return add(high, low + xp.where(-log < most, rest, 0.0), log)


def left_mass(xp: Namespace, entries: Entries, mass: Array | None, classes: Any) -> Array:
    """Return the teacher's mass on the others: the given one, or 1 − Σ e^a ≥ 0."""
    if mass is None:
        mass = _rest(xp, entries.a, entries.likeliest)
    # All classes are given: a rest of the mass is rounding, and belongs to none.
    whole = xp.sum(xp.astype(entries.valid, xp.int32), axis=-1, keepdims=True) == classes
    return xp.where(whole, 0.0, mass)


def _rest(xp: Namespace, a: Array, likeliest: Array) -> Array:
    """Return 1 − Σ e^a ≥ 0; of one class the distance from 1 is taken, which keeps its digits."""
    first = taken(xp, a, likeliest)
    lack = -expm1(xp, xp.where(first == -xp.inf, 0.0, first))
    lack = xp.where(first == -xp.inf, 1.0, lack)
    others = xp.where(counted(xp, a) == likeliest, 0.0, xp.exp(a))
    left = lack - total(xp, others)
    return xp.where(left < 0, 0.0, left)


@dataclass(frozen=True)
class TopKLoss(TopKOperation):
    """The divergence of each row, reduced. Arrays: s, the log-probabilities."""

    name: ClassVar[str] = "topk_kl_div_with_logits"
    with_classes: ClassVar[int] = 2

    def elements(self, xp: Namespace, *arrays: Array) -> Array:
        s, mass, temperature, entries = self.prepared(xp, arrays)
        read, *_ = self.read(xp, s, entries, temperature)
        rows = self.rows(xp, s.shape[-1], mass, temperature, entries, read)
        values = self.bound(xp, arrays).of_rows(xp, rows.s, rows.t, rows.heat)
        return self.masked(xp, values, self.keep(arrays))

    def slope(
        self, xp: Namespace, run: Run, index: int, weight: Array, arrays: Sequence[Array]
    ) -> Array:
        gradient = self.settings(TopKGradient, index=index)
        return run(gradient, *arrays[:2], weight, *arrays[2:])


@dataclass(frozen=True)
class TopKGradient(TopKOperation):
    """A number per row times the row's gradient. Arrays: s, the log-probabilities, that number."""

    index: int = 0
    """Of the loss' array."""
    weights: ClassVar[int] = 1
    native: ClassVar[bool] = True  # second order is the library's own

    def shape(self, arrays: Sequence[Array]) -> tuple[int, ...]:
        return tuple(arrays[min(self.index, 2)].shape)

    def elements(self, xp: Namespace, *arrays: Array) -> Array:
        s, mass, temperature, entries = self.prepared(xp, arrays)
        read, marked, weights = self.read(xp, s, entries, temperature)
        rows = self.rows(xp, s.shape[-1], mass, temperature, entries, read)
        weight, keep = cast(xp, arrays[2], self.compute), self.keep(arrays)
        shares = shares_of(xp, weights, read.weight)
        bound = self.with_parameters(xp, arrays)
        if self.index == 0:
            block = bound.block(xp, rows, STUDENT)
            own, last = bound.in_given(xp, entries, rows, temperature, block)
            others = 0.0 * rows.top if last is None else last * shares
            nothing = xp.zeros_like(marked, dtype=own.dtype)
            gradient = xp.where(marked, put(xp, nothing, entries.places, own), others)
        elif self.index < 2 + self.has_rest:
            block = bound.block(xp, rows, TEACHER)
            gradient, last = bound.in_teacher(xp, entries, rows, block)
            gradient = last if self.index == 2 else gradient
        else:
            gradient = bound.in_temperature(xp, s, temperature, rows, shares)
        if self.index < 2:
            found = times(xp, weight, gradient)
            return found if keep is None else xp.where(keep[..., None], found, 0.0)
        return self.masked(xp, weighed(xp, weight[..., None], gradient), keep)

    def in_temperature(
        self, xp: Namespace, s: Array, temperature: Temperature, rows: Rows, shares: Array
    ) -> Array:
        """Return the derivative in the temperature."""
        found, last = self.in_heat_of_given(xp, rows)
        if last is not None:
            found = found + last * mean_depth(xp, s, rows.top, shares, temperature)
        return -found / temperature


def moment(xp: Namespace, slopes: Array, logits: Array) -> Array:
    """Return the sum of slopes times logits, those of −∞ left out."""
    return total(xp, slopes * xp.where(logits == -xp.inf, 0.0, logits))


def mean_depth(
    xp: Namespace, logits: Array, top: Array, shares: Array, temperature: Temperature
) -> Array:
    """Return the mean of (logits − top)/T over the classes that have shares."""
    # Masked before the division: its derivative would be infinite beside the mask.
    depth = xp.where(shares == 0, 0.0, steps_from(xp, logits, top))
    return total(xp, shares * tempered(xp, depth, EIGHTH * temperature))


def likeliest(
    xp: Namespace, logits: Array, k: int, temperature: float
) -> tuple[Array, Array, Array]:
    """Return the k largest log-probabilities of rows, their places, and the mass of the others."""
    places = top_places(xp, logits, k)
    none = xp.zeros_like(logits, dtype=xp.bool)
    every = xp.ones_like(places, dtype=xp.bool)
    marked = put(xp, none, places, every)
    top = xp.max(logits, axis=-1, keepdims=True)
    top = xp.where(top == -xp.inf, xp.nan, top)
    weights = weights_of(xp, logits, top, temperature)
    others = total(xp, xp.where(marked, 0.0, weights))
    own = taken(xp, weights, places)
    besides = total(xp, own[..., 1:]) + others  # all but the first, one of the largest
    given = taken(xp, logits, places)
    high, low = over_top(xp, given, top, temperature, given != -xp.inf)
    return high + (low - log1p(xp, besides)), places, (others / (1.0 + besides))[..., 0]


def top_places(xp: Namespace, array: Array, k: int) -> Array:
    """Return the places of the k largest elements on the last axis, the largest first."""
    if hasattr(xp, "topk"):
        return xp.topk(array, k, -1)[1]
    if hasattr(xp, "top_places"):
        return xp.top_places(array, k)
    if hasattr(xp, "argpartition"):
        places = xp.argpartition(array, -k, axis=-1)[..., -k:]
        order = xp.argsort(taken(xp, array, places), axis=-1)[..., ::-1]
        return taken(xp, places, order)
    return xp.argsort(array, axis=-1, descending=True)[..., :k]


def taken(xp: Namespace, array: Array, places: Array) -> Array:
    """Return the elements of an array at places on its last axis."""
    if hasattr(xp, "gather"):  # take_along_dim fixes the sizes of an exported program
        return xp.gather(array, -1, xp.astype(places, xp.int64))
    return xp.take_along_axis(array, places, axis=-1)


def put(xp: Namespace, array: Array, places: Array, values: Array) -> Array:
    """Return an array, which may be written over, with values at places on its last axis."""
    if hasattr(xp, "scatter"):
        return xp.scatter(array, -1, xp.astype(places, xp.int64), values)
    if hasattr(xp, "scattered"):
        return xp.scattered(array, places, values)
    for k in range(places.shape[-1]):
        here = counted(xp, array) == places[..., k : k + 1]
        array = xp.where(here, values[..., k : k + 1], array)
    return array
