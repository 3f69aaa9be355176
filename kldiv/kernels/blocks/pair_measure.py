"""Measures of all pairs of rows by products of matrices, about a row between them.

With r a mean of all rows, D(p‖q) = D(p‖r) + D(r‖q) − Σ (p − r)·log(q/r): two numbers of single rows
and a product of matrices. All three are as small as D(p‖q) unless two rows are much closer to one
another than to r, so rounding is known beside the result, and the pairs that it would harm, equal
rows among them, are computed by the formulas. The same holds of the other measures here. Those of a
mixture m take a logarithm for each class of a pair besides, and total variation a difference: some
rows with some others, in a buffer that stays in the cache.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from kldiv.formulas import measures, renyi_measures
from kldiv.formulas.blocks import PAIR_BLOCK_BYTES, pairs_at_a_time, rows_at_a_time, slices
from kldiv.formulas.pairs import PairSlope
from kldiv.formulas.special import log_ratio
from kldiv.kernels import threads
from kldiv.kernels.blocks.arrays import SIZE, Room, host

if TYPE_CHECKING:
    from collections.abc import Callable

    from kldiv.formulas.measures import Measure
    from kldiv.kernels.blocks.arrays import Buffer
    from kldiv.kernels.work import Found, Work

ENOUGH: Final = {"float32": 2.0**-26, "float64": 0.25}
"""Size, beside that of the terms, from which a result is right: of float64 the terms' own rounding,
some units of 2⁻⁵³, is then at most four times as large in it."""

_LOG_LEAST: Final = -800.0  # in place of −∞, which times 0 is no number
_LEAST: Final = 1e-280  # below, products of small numbers lose digits
_LARGEST: Final = 1e140  # above, those of large ones overflow
_LARGEST_ORDER: Final = 2.0
_LEFT: Final = {"float32": 2.0**-20, "float64": 0.5}  # of S, in Rényi's logarithm
_BLOCK: Final = 1 << 22  # numbers of all rows, of some of their classes


class EachPair(NamedTuple):
    """The part of a pair that no product gives."""

    first: list[Buffer]
    """Arrays with a row for each of the first's, of which the term takes some."""
    second: list[Buffer]
    term: Callable[[list[Buffer], list[Buffer], list[Buffer]], Buffer]
    """Returns a number of each pair of these rows, given buffers for all their classes."""


class Factors(NamedTuple):
    """The parts of a measure, of rows p and q: own + Σ left·right."""

    own: tuple[Buffer, Buffer]
    """A number of each row, ≥ 0."""
    products: list[tuple[Buffer, Buffer]]
    forbidden: list[tuple[Buffer, Buffer]]
    """Masks of classes that make a pair infinite where both are set."""
    sizes: list[tuple[Buffer, Buffer]] | None = None
    """Whose product bounds the rounding of the others; by default their magnitudes."""
    bounds: tuple[Buffer, Buffer] | None = None
    """Numbers of each row that bound the rounding of terms added to products; by default own."""
    each: EachPair | None = None


def refusal(work: Work) -> str | None:
    """Return why there is no kernel for such work, or None where there is."""
    operation = work.operation
    measure = operation.measure
    slopes = work.gradients or isinstance(operation, PairSlope)
    if slopes or type(measure) not in _FACTORS:
        return f"there is no product of matrices for {operation.name}, or none for its gradient"
    if getattr(measure, "alpha", 0.0) > _LARGEST_ORDER:
        return f"orders above {_LARGEST_ORDER:g} magnify the rounding of products"
    if 0.0 in getattr(measure, "weights", ()):
        return "there is no mixture where a weight is 0"
    if operation.compute == "float64" and operation.name in _MIXTURES and not measure.symmetric:
        return "of float64 only the formulas are exact"
    return "there are no pairs" if 0 in operation.shape(work.arrays) else None


def run(work: Work) -> Found:
    """Return the measure of all pairs."""
    operation, xp = work.operation, work.xp
    compute = operation.compute
    given = [host(array).astype(compute, copy=False) for array in work.arrays]
    with np.errstate(all="ignore"):
        values, certain = _by_products(operation, given, threads.number(work.threads))
        values /= operation.unit
        if operation.symmetric:
            certain |= np.tri(len(values), k=-1, dtype=bool)  # mirrored below
        _by_formulas(work, given, values, np.flatnonzero(~certain))
        found = operation.mirrored(np, values) if operation.symmetric else values
    result = xp.asarray(found, device=work.arrays[0].device)
    return xp.astype(result, getattr(xp, operation.result)), []


def _by_products(operation: Any, given: list[Buffer], number: int) -> tuple[Buffer, Buffer]:
    """Return the measure of all pairs in nats, and which of them are right."""
    p, q = given
    usable = [np.all((rows >= 0) & (rows < _LARGEST), axis=-1) for rows in given]
    shape, measure = (len(p), len(q)), operation.measure
    even = isinstance(measure, measures.JensenShannon) and measure.symmetric
    fast = operation.compute == "float32" or not even
    factors_of = _FACTORS[type(measure)] if fast else _even_mixture
    masses = np.zeros(len(p)), np.zeros(len(q))
    values, sizes, infinite = np.zeros(shape), np.zeros(shape), np.zeros(shape, bool)
    for classes in slices(p.shape[-1], max(1, _BLOCK // sum(shape))):
        own_p, own_q = (
            np.where(own[:, None], rows[:, classes].astype(np.float64), 0.0)
            for rows, own in zip((p, q), usable, strict=True)
        )
        r = (own_p.sum(axis=0) + own_q.sum(axis=0)) / sum(shape)
        factors = factors_of(measure, own_p, own_q, r)
        masses = masses[0] + own_p.sum(axis=-1), masses[1] + own_q.sum(axis=-1)
        own = factors.own[0][:, None] + factors.own[1]
        values += own
        sizes += own if factors.bounds is None else factors.bounds[0][:, None] + factors.bounds[1]
        for left, right in factors.products:
            values += left @ right.T
        for left, right in factors.sizes or factors.products:
            sizes += abs(left) @ abs(right).T
        if factors.each is not None:
            _add_of_pairs(factors.each, values, number, symmetric=operation.symmetric)
        for left, right in factors.forbidden:
            if left.any() and right.any():
                infinite |= left.astype(np.float32) @ right.astype(np.float32).T > 0
    least = np.maximum(ENOUGH[operation.compute] * sizes, _LEAST)
    certain = (values >= least) & (values < np.inf) | infinite
    values[infinite] = np.inf
    if isinstance(measure, renyi_measures.Renyi):
        certain &= _to_renyi(measure, values, masses, _LEFT[operation.compute])
    return values, certain & usable[0][:, None] & usable[1]


def _add_of_pairs(each: EachPair, values: Buffer, number: int, *, symmetric: bool) -> None:
    """Add that part to all values, or to those on and above the diagonal."""
    shapes = [(count, each.first[0].shape[1]) for count in values.shape]
    down, across = pairs_at_a_time(shapes[0], shapes[1], "float64", 8 * SIZE)
    blocks = slices(len(values), down)

    def part(start: int, stop: int) -> None:
        room = Room(6)
        with np.errstate(all="ignore"):
            for some in blocks[start:stop]:
                first = [rows[some, None] for rows in each.first]
                for begin in range(some.start if symmetric else 0, values.shape[1], across):
                    others = slice(begin, begin + across)
                    second = [rows[others] for rows in each.second]
                    shape = np.broadcast_shapes(first[0].shape, second[0].shape)
                    values[some, others] += each.term(first, second, room.of(shape))

    threads.share(part, len(blocks), number)


def _by_formulas(work: Work, given: list[Buffer], values: Buffer, pairs: Buffer) -> None:
    """Compute some pairs by the formula of one pair."""
    operation = work.operation
    a, b = given
    rows, columns = np.divmod(pairs, len(b))
    size = rows_at_a_time((len(pairs), a.shape[-1]), operation.compute, PAIR_BLOCK_BYTES)
    blocks = slices(len(pairs), size)

    def part(first: int, last: int) -> None:
        with np.errstate(all="ignore"):
            for block in blocks[first:last]:
                one, other = rows[block], columns[block]
                nats = operation.measure.value(np, a[one], b[other])
                values[one, other] = operation.in_units(nats)

    threads.share(part, len(blocks), threads.number(work.threads))


# --- the measures ---------------------------------------------------------------------------------
# A class of q = 0 < r adds nothing to a pair that it does not make infinite: its factors are such
# that their sum is that.


def _logs(q: Buffer, r: Buffer) -> Buffer:
    """Return log(q/r), −1 where q = 0."""
    some = q > 0
    return np.where(some, log_ratio(np, np.where(some, q, 1.0), np.where(some, r, 1.0)), -1.0)


def _kullback_leibler(_: Measure, p: Buffer, q: Buffer, r: Buffer) -> Factors:
    to_r = measures.relative_entropy(np, p, r).sum(axis=-1)
    from_r = np.where(q > 0, measures.relative_entropy(np, r, q), 0.0).sum(axis=-1)
    return Factors((to_r, from_r), [(p - r, -_logs(q, r))], [(p > 0, q == 0)])


def _jeffreys(_: Measure, p: Buffer, q: Buffer, r: Buffer) -> Factors:
    (apart_p, apart_q), (log_p, log_q) = (p - r, q - r), (_logs(p, r), _logs(q, r))
    own = (apart_p * log_p).sum(axis=-1), (apart_q * log_q).sum(axis=-1)
    products = [(apart_p, -log_q), (-log_p, apart_q)]
    return Factors(own, products, [(p > 0, q == 0), (p == 0, q > 0)])


def _hellinger(_: Measure, p: Buffer, q: Buffer, r: Buffer) -> Factors:
    root = np.sqrt(r)
    apart = [(x - r) / np.where(r > 0, np.sqrt(x) + root, 1.0) for x in (p, q)]
    own = 0.5 * (apart[0] ** 2).sum(axis=-1), 0.5 * (apart[1] ** 2).sum(axis=-1)
    return Factors(own, [(apart[0], -apart[1])], [])


def _chi_squared(_: Measure, p: Buffer, q: Buffer, r: Buffer) -> Factors:
    some, apart = q > 0, p - r
    below = np.where(some, (r - q) / np.where(some, q, 1.0), 0.0)
    own = np.zeros(len(p)), (np.where(some, r - q, 0.0) * below).sum(axis=-1)
    inverse = np.where(some, 1.0 / np.where(some, q, 1.0), 0.0)
    return Factors(own, [(apart, 2.0 * below), (apart * apart, inverse)], [(p > 0, q == 0)])


def _alpha(measure: measures.Alpha, p: Buffer, q: Buffer, r: Buffer) -> Factors:
    if measure.exchanged:
        found = _alpha(replace(measure, exchanged=False), q, p, r)
        lists = found.products, found.forbidden, found.sizes or []
        products, forbidden, sizes = ([(b, a) for a, b in pairs] for pairs in lists)
        return Factors(found.own[::-1], products, forbidden, sizes)
    alpha, kappa = measure.alpha, measure.kappa
    some = q > 0
    to_r = measure.value(np, p, np.broadcast_to(r, p.shape))
    from_r = measure.value(np, np.broadcast_to(r, q.shape), np.where(some, q, r))
    (left, of_left), (right, of_right) = _power_change(p, r, alpha), _power_change(q, r, kappa)
    left, right = r * left / alpha, -right / kappa
    forbidden = []
    if kappa > 0:
        from_r += np.where(some, 0.0, r / kappa).sum(axis=-1)
    else:
        right, forbidden = np.where(some, right, 1.0), [(p > 0, q == 0)]
    sizes = [(left * of_left, right * of_right)]
    return Factors((to_r, from_r), [(left, right)], forbidden, sizes)


def _power_change(x: Buffer, r: Buffer, power: float) -> tuple[Buffer, Buffer]:
    """Return (x/r)^power − 1, −1 where x = 0, and by how much its exponent magnifies rounding."""
    some = x > 0
    exponent = power * log_ratio(np, np.where(some, x, 1.0), np.where(some, r, 1.0))
    return np.where(some, np.expm1(exponent), -1.0), 1.0 + 0.5 * abs(exponent)


def _total_variation(_: Measure, p: Buffer, q: Buffer, __: Buffer) -> Factors:
    def term(first: list[Buffer], second: list[Buffer], room: list[Buffer]) -> Buffer:
        np.subtract(first[0], second[0], out=room[0])
        return 0.5 * np.abs(room[0], out=room[0]).sum(axis=-1)

    return Factors((np.zeros(len(p)), np.zeros(len(q))), [], [], each=EachPair([p], [q], term))


def _even_mixture(_: Measure, p: Buffer, q: Buffer, __: Buffer) -> Factors:
    """Return terms of Jensen-Shannon with weights of ½ that lose nothing.

    With m = p + q and z = (p − q)/m it is ¼ Σ m·((1 + z) log(1 + z) + (1 − z) log(1 − z)). Near
    z = 0 that is z·(log(1 + z) − log(1 − z)) + log(1 − z²), 2z² − z².
    """

    def term(first: list[Buffer], second: list[Buffer], room: list[Buffer]) -> Buffer:
        m, z, up, down, found, spare = room
        np.add(first[0], second[0], out=m)
        np.subtract(first[0], second[0], out=z)
        np.divide(z, np.maximum(m, _LEAST, out=up), out=z)
        np.maximum(np.log1p(z, out=up), _LOG_LEAST, out=up)
        np.maximum(np.log1p(np.negative(z, out=down), out=down), _LOG_LEAST, out=down)
        np.multiply(np.subtract(up, down, out=found), z, out=found)
        up += np.multiply(up, z, out=spare)
        down -= np.multiply(down, z, out=spare)
        np.negative(np.multiply(z, z, out=z), out=z)
        found += np.log1p(z, out=spare)
        np.add(up, down, out=found, where=z < -0.25)
        return 0.25 * np.vecdot(m, found)

    return Factors((np.zeros(len(p)), np.zeros(len(q))), [], [], each=EachPair([p], [q], term))


def _jensen_shannon(measure: measures.JensenShannon, p: Buffer, q: Buffer, r: Buffer) -> Factors:
    own, rest = measure.weights
    (to_p, size_p), (to_q, size_q) = _about(p, r), _about(q, r)

    def term(first: list[Buffer], second: list[Buffer], room: list[Buffer]) -> Buffer:
        m, logs = (np.add(a, b, out=at) for a, b, at in zip(first, second, room, strict=False))
        return -np.vecdot(m, np.log(logs, out=logs))

    parts = [[w * x, w * x / _some(r) + _LEAST] for w, x in ((own, p), (rest, q))]
    # |x log x| ≤ x log x − x + 1 + |x − 1|, which is convex: that of m is at most that of p and q.
    bounds = own * (2.0 * size_p + p.sum(axis=-1)), rest * (2.0 * size_q + q.sum(axis=-1))
    each = EachPair(parts[0], parts[1], term)
    return Factors((own * to_p, rest * to_q), [], [], bounds=bounds, each=each)


def _skew(measure: measures.Skew, p: Buffer, q: Buffer, r: Buffer) -> Factors:
    own, rest = measure.alpha, 1.0 - measure.alpha
    log_q = np.where(q > 0, abs(_logs(q, r)), -np.log(own))

    def term(first: list[Buffer], second: list[Buffer], room: list[Buffer]) -> Buffer:
        logs = np.add(first[0], second[0], out=room[0])
        return -np.vecdot(first[1], np.log(logs, out=logs))

    each = EachPair([own * p / _some(r) + _LEAST, p], [rest * q / _some(r)], term)
    masses = [rest * (rows - r).sum(axis=-1) for rows in (p, q)]
    bounds = 2.0 * abs(p * _logs(p, r)).sum(axis=-1) + p.sum(axis=-1), np.zeros(len(q))
    numbers = _about(p, r)[0] - masses[0], masses[1]
    return Factors(numbers, [], [], [(p, log_q)], bounds, each)


def _about(p: Buffer, r: Buffer) -> tuple[Buffer, Buffer]:
    """Return Σ p·log(p/r) of each row, and a bound of the sum of its terms' magnitudes."""
    divergence = measures.relative_entropy(np, p, r).sum(axis=-1)
    apart = p - r
    return divergence + apart.sum(axis=-1), divergence + abs(apart).sum(axis=-1)


def _some(r: Buffer) -> Buffer:
    """Return r, 1 where no row has a class."""
    return np.where(r > 0, r, 1.0)


def _renyi(measure: renyi_measures.Renyi, p: Buffer, q: Buffer, r: Buffer) -> Factors:
    return _alpha(measures.Alpha.of(measure.alpha), p, q, r)


def _to_renyi(
    measure: renyi_measures.Renyi, values: Buffer, masses: tuple[Buffer, Buffer], left: float
) -> Buffer:
    """Make alpha divergences Rényi's, given the rows' sums; return which are right.

    With S = αΣp + (1 − α)Σq they are log(1 − α(1 − α)D/S)/(α − 1).
    """
    alpha = measure.alpha
    p, q = masses
    mass = alpha * p[:, None] + (1.0 - alpha) * q
    share = (alpha * (alpha - 1.0)) * values / mass
    np.divide(np.log1p(share), alpha - 1.0, out=values)
    alike = abs(p[:, None] - q) * alpha < 0.25 * q
    return alike & (share > left - 1.0)


_MIXTURES: Final = {"js_divergence", "skew_divergence"}
_FACTORS: Final[dict[type, Callable[[Any, Buffer, Buffer, Buffer], Factors]]] = {
    measures.KullbackLeibler: _kullback_leibler,
    measures.Jeffreys: _jeffreys,
    measures.Hellinger: _hellinger,
    measures.ChiSquared: _chi_squared,
    measures.Alpha: _alpha,
    renyi_measures.Renyi: _renyi,
    measures.TotalVariation: _total_variation,
    measures.JensenShannon: _jensen_shannon,
    measures.Skew: _skew,
}
