r"""Divergences of two rows of logits: states and sums, and from these values and gradients.

A row is read for one or two states (`kldiv.formulas.state`); they merge, so a row may lie in any
number of parts.  The merged states give the row's constants, the same for every part; sums over the
classes may then need one more reading.  Both give the value, and each part of the classes computes
its gradient by itself.  So `Divergence` has the same few methods wherever the classes are.

Derivatives of gradients, and that in the temperature, follow from the same pieces for all of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Final, NamedTuple, TypeAlias

from kldiv.formulas import logits, state
from kldiv.formulas.blocks import class_blocks
from kldiv.formulas.logits import Mix, Side, Slopes
from kldiv.formulas.special import expm1, total
from kldiv.formulas.state import over

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from kldiv._types import Array, Namespace
    from kldiv.formulas.state import Logits, Rows, State, Temperature

Wanted: TypeAlias = "tuple[int, ...]"
"""The requested results, of `STUDENT`, `TEACHER` and `VALUE`."""

STUDENT: Final = 0
"""The gradient in s; the state of (t, s)."""
TEACHER: Final = 1
"""The gradient in t; the state of (s, t)."""
VALUE: Final = 2

ALL: Final = (VALUE, TEACHER, STUDENT)


LEAST = 1e-30
"""The smallest share of P in a mixture: with it no product of shares underflows in float32."""


class Known(NamedTuple):
    """The constants and sums of whole rows."""

    rows: Mapping[int, Rows]
    """Constants from each state, `STUDENT` or `TEACHER`."""
    sums: Mapping[int, Array]
    """For each requested result the sum over classes that it takes."""


class Block(NamedTuple):
    """Classes of rows, all or some of them, with the constants and sums of the whole rows."""

    xp: Namespace
    s: Array
    t: Array
    temperature: Temperature
    known: Known

    def side(self, index: int) -> Side:
        """Return the block as seen from a side."""
        other, own = (self.s, self.t) if index == TEACHER else (self.t, self.s)
        return Side(self.xp, other, own, self.known.rows[index], self.temperature)

    @property
    def nothing(self) -> Array:
        """0 for each row, NaN where the row is."""
        return 0.0 * next(iter(self.known.rows.values())).offset

    def logits(self, index: int) -> Logits:
        """Return the logits of a side."""
        return self.t if index == TEACHER else self.s

    def top(self, index: int) -> tuple[Array, Array]:
        """Return a side's largest logit and 1/Σ exp((logit − that)/T), by whichever state it is."""
        rows = self.known.rows.get(index)
        if rows is not None:
            return rows.t_max, rows.t_scale
        rows = self.known.rows[_OTHER[index]]
        return rows.s_max, rows.s_scale

    def own(self, index: int) -> Array:
        """Return the probabilities of a side."""
        top, scale = self.top(index)
        return state.weights_of(self.xp, self.logits(index), top, self.temperature) * scale

    def relative(self, index: int, top: Array | None = None) -> Array:
        """Return a side's logits less the largest, or less others, over T."""
        top = self.top(index)[0] if top is None else top
        return logits.relative(self.xp, self.logits(index), top, self.temperature)

    def pair(self) -> tuple[Array, Array, Array]:
        """Return p, q and log(p/q)."""
        at_teacher = TEACHER in self.known.rows
        r = logits.log_ratio(self.side(TEACHER if at_teacher else STUDENT))
        return self.own(TEACHER), self.own(STUDENT), -r if at_teacher else r

    def parts(self) -> list[Block]:
        """Return blocks of fewer classes, so that a large vocabulary stays in the cache too."""
        cuts = class_blocks(self.s.shape[-1])
        if len(cuts) < 2:
            return [self]
        return [self._replace(s=self.s[..., cut], t=self.t[..., cut]) for cut in cuts]

    def summed(self, function: Callable[[Block], Array]) -> Array:
        """Add up a function's values for the parts."""
        first, *rest = map(function, self.parts())
        return sum(rest, first)

    def joined(self, function: Callable[[Block], Array]) -> Array:
        """Join a function's values for the parts to those of all classes."""
        found = [*map(function, self.parts())]
        return found[0] if len(found) == 1 else self.xp.concat(found, axis=-1)


class Divergence:
    """A divergence of two rows of logits."""

    parameters: ClassVar[int] = 0
    """How many numbers of its own each row has."""
    adds: ClassVar[bool] = True
    """Whether shares of sums are added up; else `merged` has the rule."""

    def bound(self, xp: Namespace, *parameters: Array) -> Divergence:
        """Return the divergence with the parameters of each row, on the classes' axis."""
        raise NotImplementedError

    def needs(self, wanted: Wanted) -> tuple[Wanted, Wanted]:
        """Return the states, and then the sums, that the requested results take."""
        raise NotImplementedError

    def anchored(self, wanted: Wanted) -> bool:
        """Return whether the requested results take the states' anchors."""
        return wanted != (VALUE,) or bool(self.needs(wanted)[1])

    def share(self, part: int, block: Block) -> Array:
        """Return a block's share of the sum for ``part``, given the states."""
        raise NotImplementedError

    def value(self, xp: Namespace, known: Known) -> Array:
        """Return the divergence of each row, kept as an axis of length one."""
        raise NotImplementedError

    def gradient(self, index: int, block: Block) -> Array:
        """Return the gradient in a block of the student's (0) or the teacher's (1) logits."""
        return over(self.unit_gradient(index, block), block.temperature)

    def unit_gradient(self, index: int, block: Block) -> Array:
        """Return T times the gradient."""
        raise NotImplementedError

    def curvature(self, block: Block) -> Array:
        """Return p·u′(log p/q), of which derivatives of gradients consist."""
        raise NotImplementedError

    def slopes(self, block: Block) -> Slopes:
        """Return T times both gradients, given the states and sums of all results."""
        raise NotImplementedError

    def canonical(self) -> tuple[Divergence, bool]:
        """Return an equal divergence with the fastest code, and whether it takes (t, s)."""
        return self, False

    def from_last(self, index: int, block: Block) -> Block:
        """Return a block with gradients of a side less p_i/p_last times that of the last class.

        The default is the same block, for divergences whose two gradients lose no digits by the
        subtraction itself.
        """
        return block

    # ---- common to all divergences ---------------------------------------------------------------

    def tangent(self, index: int, block: Block, direction: tuple[Array, Array]) -> Array:
        r"""Return the derivative of a gradient in a direction of (s, t), of whole rows.

        This is the Hessian times a vector; as the Hessian is symmetric, it serves double backward
        too.  With α = ds − Σ q ds, β = dt − Σ p dt, h the curvature and G the gradients at T = 1:

            dG_t = z − p Σ z,  z = G_t β + h (β − α)        dG_s = z − q Σ z,  z = G_s α + h (α − β)
        """
        xp, temperature = block.xp, block.temperature
        own = block.own(STUDENT), block.own(TEACHER)
        moved = [step - total(xp, p * step) for p, step in zip(own, direction, strict=True)]
        z = temperature * self.gradient(index, block) * moved[index]
        z = z + self.curvature(block) * (moved[index] - moved[1 - index])
        change = z - own[index] * total(xp, z)
        return over(over(change, temperature), temperature)

    def temperature_share(self, block: Block) -> Array:
        """Return a block's share of −T ∂D/∂T, given the states and sums of all results."""
        return logits.temperature_share(*self._along(block))

    def temperature_bend(self, block: Block) -> Array:
        """Return the second derivative along (s, t)/T, of whole rows, given the same."""
        side, slopes = self._along(block)
        return logits.temperature_bend(side, slopes, self.curvature(block))

    def _along(self, block: Block) -> tuple[Side, Slopes]:
        """Return a side with the slopes as seen from there."""
        slopes = self.slopes(block)
        if TEACHER in block.known.rows:
            return block.side(TEACHER), slopes
        return block.side(STUDENT), slopes.swapped

    def of_rows(self, xp: Namespace, s: Array, t: Array, temperature: Temperature) -> Array:
        """Return the divergence of each row, given all its classes."""
        return self.value(xp, self.whole(xp, s, t, temperature, (VALUE,)).known)

    def whole(
        self, xp: Namespace, s: Array, t: Array, temperature: Temperature, wanted: Wanted
    ) -> Block:
        """Return all classes as a block, with their constants and sums."""
        states, sums = self.needs(wanted)
        find = partial(state_of, anchored=self.anchored(wanted))
        rows = {index: state.finish(xp, find(xp, index, s, t, temperature)) for index in states}
        block = Block(xp, s, t, temperature, Known(rows, {}))
        if not sums:
            return block
        found = dict(zip(sums, self.shares(sums, block), strict=True))
        return block._replace(known=Known(rows, found))

    def shares(self, sums: Wanted, block: Block) -> list[Array]:
        """Return a block's shares of sums, in their order."""
        parts = [self.own_shares(sums, some) for some in block.parts()]
        return parts[0] if len(parts) == 1 else self.merged(block.xp, parts)

    def own_shares(self, sums: Wanted, block: Block) -> list[Array]:
        """Return a block's shares of sums, of all its classes at once."""
        return [self.share(part, block) for part in sums]

    def merged(self, xp: Namespace, parts: Sequence[Sequence[Array]]) -> list[Array]:
        """Merge the parts' shares of sums to those of all classes."""
        return [sum(same[1:], same[0]) for same in zip(*parts, strict=True)]


def state_of(
    xp: Namespace,
    index: int,
    s: Array,
    t: Array,
    temperature: Temperature,
    *,
    anchored: bool = True,
) -> State:
    """Return a state of any number of classes, a part of them at a time."""
    block = Block(xp, s, t, temperature, Known({}, {}))
    if not s.shape[-1]:
        return state.empty_state(xp, xp.sum(s, axis=-1, keepdims=True))
    pairs = ((a, b) if index == TEACHER else (b, a) for _, a, b, *_ in block.parts())
    states = [state.block_state(xp, *pair, temperature, anchored=anchored) for pair in pairs]
    return states[0] if len(states) == 1 else state.merge(xp, states, temperature)


@dataclass(frozen=True)
class KullbackLeibler(Divergence):
    """KL(softmax(t/T) ‖ softmax(s/T)): the state of (s, t) is all it takes."""

    def needs(self, wanted: Wanted) -> tuple[Wanted, Wanted]:
        return (TEACHER,), ()

    def anchored(self, wanted: Wanted) -> bool:
        return TEACHER in wanted

    def value(self, xp: Namespace, known: Known) -> Array:
        return known.rows[TEACHER].kl

    def gradient(self, index: int, block: Block) -> Array:
        return kl_gradient(TEACHER, index, block)

    def curvature(self, block: Block) -> Array:
        return block.own(TEACHER)

    def slopes(self, block: Block) -> Slopes:
        return logits.kl_slopes(block.side(TEACHER))

    def from_last(self, index: int, block: Block) -> Block:
        return from_last_class(index, TEACHER, block)


@dataclass(frozen=True)
class Jeffreys(Divergence):
    """w·KL(P‖Q) + r·KL(Q‖P): two states, no sums."""

    w: float = 1.0
    r: float = 1.0

    def _sides(self) -> dict[int, float]:
        """Return the states of the directions that count, with their weights."""
        return {side: each for side, each in ((TEACHER, self.w), (STUDENT, self.r)) if each}

    def _added(self, function: Callable[[int], Array]) -> Array:
        """Return the weighted sum of a function's values for the directions that count."""
        first, *more = (weight * function(side) for side, weight in self._sides().items())
        return sum(more, first)

    def canonical(self) -> tuple[Divergence, bool]:
        one = {(1.0, 0.0): False, (0.0, 1.0): True}.get((self.w, self.r))
        return (self, False) if one is None else (KullbackLeibler(), one)

    def needs(self, wanted: Wanted) -> tuple[Wanted, Wanted]:
        return tuple(self._sides()), ()

    def value(self, xp: Namespace, known: Known) -> Array:
        return self._added(lambda side: known.rows[side].kl)

    def gradient(self, index: int, block: Block) -> Array:
        return self._added(lambda side: kl_gradient(side, index, block))

    def curvature(self, block: Block) -> Array:
        return self._added(block.own)

    def slopes(self, block: Block) -> Slopes:
        each = {side: kl_slopes(side, block) for side in self._sides()}
        parts = (self._added(lambda side: each[side][part]) for part in range(3))  # noqa: B023
        return Slopes(*parts)

    def from_last(self, index: int, block: Block) -> Block:
        for side in self._sides():
            block = from_last_class(index, side, block)
        return block


@dataclass(frozen=True)
class Exchanged(Divergence):
    """Another divergence of (Q, P), where arrays themselves cannot change places.

    It has values and gradients alone, which losses with sparse teachers need.
    """

    divergence: Divergence
    adds: ClassVar[bool] = False  # the other one's rule merges, whatever it is

    def needs(self, wanted: Wanted) -> tuple[Wanted, Wanted]:
        sides, sums = self.divergence.needs(tuple(_OTHER[index] for index in wanted))
        return tuple([_OTHER[side] for side in sides]), sums

    def shares(self, sums: Wanted, block: Block) -> list[Array]:
        return self.divergence.shares(sums, self._turned(block))

    def merged(self, xp: Namespace, parts: Sequence[Sequence[Array]]) -> list[Array]:
        return self.divergence.merged(xp, parts)

    def value(self, xp: Namespace, known: Known) -> Array:
        return self.divergence.value(xp, self._known(known))

    def gradient(self, index: int, block: Block) -> Array:
        return self.divergence.gradient(_OTHER[index], self._turned(block))

    def from_last(self, index: int, block: Block) -> Block:
        found = self.divergence.from_last(_OTHER[index], self._turned(block))
        return found._replace(s=block.s, t=block.t, known=self._known(found.known))

    def _turned(self, block: Block) -> Block:
        return block._replace(s=block.t, t=block.s, known=self._known(block.known))

    def _known(self, known: Known) -> Known:
        return known._replace(rows={_OTHER[side]: rows for side, rows in known.rows.items()})


_OTHER: Final = {STUDENT: TEACHER, TEACHER: STUDENT, VALUE: VALUE}


def from_last_class(index: int, side: int, block: Block) -> Block:
    """Return the block with a gradient, by the state of a side, counted from the last class.

    That of the state's own side is p·(u − Σ p u): then the anchor is the last class, and the mean
    beyond it is left out.  That of the other side is q − p, less q/q_last times that of the last
    class: then q is scaled, and the pivot is such, that both are equal there.  So the last class'
    gradient is 0.  The block is the same where a side has no such class.
    """
    xp, known = block.xp, block.known
    last = block._replace(s=block.s[..., -1:], t=block.t[..., -1:]).side(side)
    there = (last.s > -math.inf) & (last.t > -math.inf)
    rows, sums = known.rows[side], {**known.sums}
    if side == index:
        names = "anchor", "anchor_low"
        rows = rows._replace(mean=xp.where(there, 0.0 * rows.mean, rows.mean))  # NaN stays
        if index in sums:
            sums[index] = xp.where(there, 0.0, sums[index])
    else:
        names = "pivot", "pivot_low"
        q, p = logits.other(last), logits.own(last)
        there = there & (p < q * float(xp.finfo(q.dtype).max))
        ratio = xp.where(there, p / xp.where(there, q, 1.0), 1.0)
        offset = xp.where(there, 0.0, rows.offset)
        rows = rows._replace(offset=offset, s_scale=rows.s_scale * ratio)
    words = zip(names, state.differences(xp, last.s, last.t), strict=True)
    moved = {name: xp.where(there, word, getattr(rows, name)) for name, word in words}
    return block._replace(known=Known({**known.rows, side: rows._replace(**moved)}, sums))


def bend_by_tangents(divergence: Divergence, block: Block) -> Array:
    """Return the second derivative along (s, t)/T, of whole rows, by those of the gradients."""
    xp, temperature = block.xp, block.temperature
    steps = tuple(
        xp.where(block.logits(index) == -math.inf, 0.0, block.relative(index))
        for index in (STUDENT, TEACHER)
    )
    moved = (divergence.tangent(index, block, steps) * step for index, step in enumerate(steps))
    return total(xp, sum(moved)) * temperature * temperature


def kl_gradient(side: int, index: int, block: Block) -> Array:
    """Return the gradient in the logits of an index, of the KL whose state is of a side."""
    return (logits.grad_target if index == side else logits.grad_input)(block.side(side))


def kl_slopes(side: int, block: Block) -> Slopes:
    """Return T times both gradients of the KL whose state is of that side."""
    found = logits.kl_slopes(block.side(side))
    return found if side == TEACHER else found.swapped


def states_of(wanted: Wanted) -> Wanted:
    """Return the states that values by classes, and gradients about an anchor of theirs, take."""
    sides = tuple(index for index in wanted if index != VALUE)
    first = (TEACHER,) if VALUE in wanted and TEACHER not in sides else ()
    return (*first, *sides)


class Summed(Divergence):
    """A divergence that takes sums: of its terms, and of u or v for a gradient."""

    def elements(self, block: Block) -> Array:
        """Return the classes' shares of the value, none below 0, given the state of (s, t)."""
        raise NotImplementedError

    def rise(self, index: int, block: Block) -> tuple[Array, Array]:
        """Return a side's probabilities, and u (1) or v (0) less its value at the anchor."""
        raise NotImplementedError

    def level(self, block: Block) -> Array:
        """Return u at the anchor of (s, t), u being 0 for p = q."""
        raise NotImplementedError

    def weighted(self, index: int, block: Block, own: Array, values: Array) -> Array:
        """Return values times the probabilities of a side."""
        return own * values

    def needs(self, wanted: Wanted) -> tuple[Wanted, Wanted]:
        return states_of(wanted), wanted

    def share(self, part: int, block: Block) -> Array:
        if part == VALUE:
            return total(block.xp, self.elements(block))
        return total(block.xp, self.weighted(part, block, *self.rise(part, block)))

    def value(self, xp: Namespace, known: Known) -> Array:
        return known.sums[VALUE]

    def unit_gradient(self, index: int, block: Block) -> Array:
        own, rise = self.rise(index, block)
        return self.weighted(index, block, own, rise - block.known.sums[index])

    def slopes(self, block: Block) -> Slopes:
        sums = block.known.sums
        return logits.slopes_of(
            block.side(TEACHER),
            self.unit_gradient(TEACHER, block),
            self.unit_gradient(STUDENT, block),
            self.elements(block),
            sums[VALUE],
            sums[TEACHER] + self.level(block),
        )

    def from_last(self, index: int, block: Block) -> Block:
        return from_last_class(index, index, block)


class OfMixture(Summed):
    """a·D(P‖M) + b·D(Q‖M), M a mixture of P and Q."""

    @property
    def mix(self) -> Mix:
        """The weights in M, and of the two divergences."""
        raise NotImplementedError

    def elements(self, block: Block) -> Array:
        return logits.mixture_terms(block.side(TEACHER), self.mix)

    def rise(self, index: int, block: Block) -> tuple[Array, Array]:
        mix = self.mix if index == TEACHER else self.mix.swapped
        return logits.mixture_rise(block.side(index), mix)

    def level(self, block: Block) -> Array:
        rows = block.known.rows[TEACHER]
        return logits.mixture_level(block.xp, rows, self.mix, block.temperature)

    def curvature(self, block: Block) -> Array:
        return logits.mixture_curvature(block.xp, *block.pair()[:2], self.mix)


@dataclass(frozen=True)
class JensenShannon(OfMixture):
    """βD(P‖M) + (1−β)D(Q‖M), M = βP + (1−β)Q, P = softmax(t/T), Q = softmax(s/T)."""

    beta: float = 0.5

    @property
    def mix(self) -> Mix:
        return Mix(self.beta, 1.0 - self.beta, self.beta, 1.0 - self.beta)


@dataclass(frozen=True)
class Mixture(OfMixture):
    """a·D(P‖M) + b·D(Q‖M), M = mP + (1−m)Q; m = 0 and m = 1 only for `canonical`."""

    m: float
    a: float
    b: float

    @property
    def mix(self) -> Mix:
        return Mix(self.m, 1.0 - self.m, self.a, self.b)

    def canonical(self) -> tuple[Divergence, bool]:
        if self.m in {0, 1}:
            return Jeffreys(*((0.0, self.b) if self.m else (self.a, 0.0))).canonical()
        # 1 − 0.9 is not 0.1, but as near as the result's own rounding.
        if self.a == self.m and math.isclose(self.b, 1.0 - self.m, rel_tol=1e-15):
            return JensenShannon(float(self.m)), False
        return self, False


class FDivergence(Summed):
    r"""
    A divergence Σ p g(log p/q) of your own, by the scalar functions that it consists of.

    Derive from it, as a frozen dataclass where there are parameters (compilers cache by equality),
    and define four methods, in the operations of the array API alone: ``xp`` is the namespace,
    arrays have the compute dtype. With ℓ = log p/q take g such that g(0) = g′(0) = 0: add a
    multiple of 1 − e^(−ℓ), which leaves the divergence as it is. Then no term is below 0.

    Attributes
    ----------
    unbounded : tuple of bool, default (False, False)
        Whether the divergence is +∞ where a class has p > 0 = q, and where one has p = 0 < q. Both
        gradients of such a row are NaN.

    See Also
    --------
    kldiv.f_div_with_logits : The loss that takes it.

    Notes
    -----
    ``expm1``, ``log1p``, ``phi`` (e^(−x) − 1 + x) and ``exp_rise`` of `kldiv.divergences` are right
    to a few units on every library; some libraries' own are not. An exponential is best of −abs(ℓ),
    times the larger of p and q, as e^(−ℓ) may overflow where p·e^(−ℓ) does not. In ``u`` and ``v``
    e^(±at) is finite, and so is e^(−at − step) in ``u``, e^(at + step) in ``v``. A class whose own
    probability underflows adds nothing to a gradient. As ℓ is one number, powers of e^ℓ are known
    to abs(ℓ)/2 units: about 200 where P and Q have a class 400 apart.

    Examples
    --------
    The squared Hellinger distance, ½ Σ (√p − √q)²:

    >>> import numpy as np
    >>> import kldiv
    >>> from kldiv.divergences import FDivergence, exp_rise, expm1
    >>> class Hellinger(FDivergence):
    ...     def term(self, xp, p, q, ell):
    ...         return 0.5 * xp.maximum(p, q) * expm1(xp, -0.5 * abs(ell)) ** 2
    ...
    ...     def u(self, xp, at, step):
    ...         return -0.5 * exp_rise(xp, -0.5, at, step)
    ...
    ...     def v(self, xp, at, step):
    ...         return -0.5 * exp_rise(xp, 0.5, at, step)
    ...
    ...     def slope(self, xp, p, q, ell):
    ...         return 0.25 * xp.maximum(p, q) * xp.exp(-0.5 * abs(ell))
    >>> teacher, student = np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.0, 3.5])
    >>> print(f"{kldiv.f_div_with_logits(student, teacher, divergence=Hellinger()):.10f}")
    0.0062944293
    """

    unbounded: ClassVar[tuple[bool, bool]] = (False, False)

    def term(self, xp: Namespace, p: Array, q: Array, ell: Array) -> Array:
        """Return p·g(ℓ) ≥ 0; ℓ is huge, but finite, where p or q is 0."""
        raise NotImplementedError

    def u(self, xp: Namespace, at: Array, step: Array) -> Array:
        """Return u(at + step) − u(at) for u = g + g′, exact however small the step is."""
        raise NotImplementedError

    def v(self, xp: Namespace, at: Array, step: Array) -> Array:
        """Return v(at + step) − v(at) for v = −e^ℓ g′."""
        raise NotImplementedError

    def slope(self, xp: Namespace, p: Array, q: Array, ell: Array) -> Array:
        """Return p·u′(ℓ), which second derivatives take."""
        raise NotImplementedError

    def elements(self, block: Block) -> Array:
        terms = self._finite(block, self.term)
        for lost in self._lost(block):
            terms = block.xp.where(lost, math.inf + block.nothing, terms)
        return terms

    def rise(self, index: int, block: Block) -> tuple[Array, Array]:
        xp, side = block.xp, block.side(index)
        known, step = logits.from_anchor(side)
        at = _nearer(xp, known)
        step = xp.where(at == known, step, -logits.log_ratio(side) - at)
        # Farther below own is 0 to any dtype, and u or v, growing with other/own, would overflow.
        step = xp.maximum(step, -_farthest(xp, at) - at)
        rise = self.u(xp, at, step) if index == TEACHER else self.v(xp, -at, -step)
        return block.own(index), rise

    def level(self, block: Block) -> Array:
        at = logits.anchor_log(block.xp, block.known.rows[TEACHER], block.temperature)
        at = _nearer(block.xp, at)
        return self.u(block.xp, block.xp.zeros_like(at), at)

    def curvature(self, block: Block) -> Array:
        return self._finite(block, self.slope)

    def weighted(self, index: int, block: Block, own: Array, values: Array) -> Array:
        xp = block.xp
        nothing = 0.0 * block.known.rows[index].offset  # NaN where the row is
        found = xp.where(own == 0, nothing, own * values)
        for lost in self._lost(block):
            found = xp.where(lost, math.nan, found)
        return found

    def _finite(self, block: Block, function: Callable[..., Array]) -> Array:
        """Return a function of p, q and log p/q, 0 for a class that takes no part."""
        p, q, ell = block.pair()
        found = function(block.xp, p, q, ell)
        return block.xp.where(block.xp.maximum(p, q) == 0, block.nothing, found)

    def _lost(self, block: Block) -> list[Array]:
        """Return masks of the classes that make the divergence infinite."""
        sides = (block.s, block.t), (block.t, block.s)
        return [
            (zero == -math.inf) & (other > -math.inf)
            for infinite, (zero, other) in zip(self.unbounded, sides, strict=True)
            if infinite
        ]


@dataclass(frozen=True)
class TotalVariation(FDivergence):
    """½ Σ |p − q|, u = ½ sign(ℓ).

    u less its mean is B + Z/2 where ℓ > 0, and −(A + Z/2) where ℓ < 0, with A, B and Z the mass of
    the classes where ℓ is above, below and at 0: summed apart, so that nothing cancels.
    """

    def term(self, xp: Namespace, p: Array, q: Array, ell: Array) -> Array:
        return -0.5 * xp.maximum(p, q) * expm1(xp, -abs(ell))

    def slope(self, xp: Namespace, p: Array, q: Array, ell: Array) -> Array:
        return xp.zeros_like(ell)

    def needs(self, wanted: Wanted) -> tuple[Wanted, Wanted]:
        states, sums = super().needs(wanted)
        sides = [index for index in sums if index != VALUE]
        return states, (*sums, *(_BELOW + index for index in sides), *(_AT + i for i in sides))

    def share(self, part: int, block: Block) -> Array:
        if part == VALUE:
            return super().share(part, block)
        xp, index, sign = block.xp, part % _BELOW, self._sign(part % _BELOW, block)
        wanted = (1.0, -1.0, 0.0)[part // _BELOW]
        return total(xp, xp.where(sign == wanted, block.own(index), 0.0))

    def unit_gradient(self, index: int, block: Block) -> Array:
        xp, sums, sign = block.xp, block.known.sums, self._sign(index, block)
        above, below, at = (sums[part + index] for part in (0, _BELOW, _AT))
        rise = xp.where(sign > 0, below + 0.5 * at, -(above + 0.5 * at))
        nothing = 0.0 * block.known.rows[index].offset  # NaN where the row is
        return block.own(index) * xp.where(sign == 0, 0.5 * (below - above), rise) + nothing

    def from_last(self, index: int, block: Block) -> Block:
        return block

    def level(self, block: Block) -> Array:
        sums = block.known.sums
        # `temperature_share` adds this to the sum of the part, which has Σ p u then.
        return -0.5 * (sums[TEACHER] + sums[_BELOW + TEACHER])

    def _sign(self, index: int, block: Block) -> Array:
        return -block.xp.sign(logits.log_ratio(block.side(index)))


_BELOW: Final = 4
_AT: Final = 8
"""Added to a side: the sums of `TotalVariation` over the classes where ℓ is below, or at, 0."""


def _farthest(xp: Namespace, like: Array) -> float:
    """Return the largest exponent of e with a finite power, less ½."""
    return math.log(float(xp.finfo(like.dtype).max)) - 0.5


def _nearer(xp: Namespace, at: Array) -> Array:
    return xp.clip(at, -_farthest(xp, at), _farthest(xp, at))
