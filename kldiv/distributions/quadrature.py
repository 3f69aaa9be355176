"""D(P‖Q) of two densities of single numbers, by adaptive Gauss-Kronrod rules on log-densities.

The line is stretched so that edges and tails are exponential, cut where P and Q have their mass,
and the integrals of p, q, p log(p/q) and p φ(log(p/q)), φ(x) = e⁻ˣ − 1 + x, come of one pass.
The last is D too where both have all their mass there, and loses nothing near P = Q.
The mass of P tells whether a peak was missed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from kldiv.distributions.lines import line, within
from kldiv.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Callable

    from kldiv.distributions.host import Density
    from kldiv.distributions.lines import Line

_EPS = float(np.finfo(np.float64).eps)
_NOTHING = -75.0  # log of the mass that a tail may leave out
_SMALLEST = -708.0  # the logarithm of the smallest normal number, nearly
_OVERFLOW = 690.0  # near the largest logarithm of a float
_LOST = 1e-6  # of P's mass, that may be missing before the integral is given up
_SPLITS = 400  # of pieces, of which a kink takes some forty
_RELATIVE = np.array([1e-12, 1e-10, 1e-11, 1e-10, 1e-3])
_ABSOLUTE = np.array([1e-14, 1e-13, 1e-15, 1e-26, math.inf])
_LARGE = 1e150  # a float whose square does not overflow
_TINY = 1e-300
_FAR = 1e7  # how far a line is looked along, where densities are exact in its logarithms
_FLOATS = 700.0  # likewise where they depend on x alone

P, Q, RATIO, EXCESS, ROUNDING = range(5)
"""The integrands: p, q, p log(p/q), p φ(log(p/q)) and p(|log p| + |log q| + 2)."""


class Sums(NamedTuple):
    """Integrals or sums of `P`, `Q`, `RATIO`, `EXCESS`, `ROUNDING`, and bounds of their errors."""

    values: Any
    errors: Any

    def plus(self, other: Sums) -> Sums:
        """Return both together."""
        return Sums(self.values + other.values, self.errors + other.errors)


@dataclass
class Pair:
    """Both densities on one line."""

    p: Density
    q: Density
    line: Line
    step: ClassVar[float] = 1e-6  # between places that differ by more than rounding

    def rough(self) -> Any:
        """Return the y at which densities may jump."""
        with np.errstate(all="ignore"):
            return self.line.of(np.array([*self.p.cuts, *self.q.cuts]))

    def extreme(self, y: Any) -> Any:
        """Return where x is so large or small that its square, or x itself, leaves the floats."""
        with np.errstate(all="ignore"):
            size = np.abs(self.line.at(y).x)
            return (size > _LARGE) | (size < _TINY)

    def logs(self, y: Any) -> tuple[Any, Any]:
        """Return the log-densities of P and Q in y."""
        with np.errstate(all="ignore"):
            x, log_x, log_rest, slope = self.line.at(y)
            found = []
            for density in (self.p, self.q):
                log = np.asarray(density.log_prob(x, log_x, log_rest), dtype=float)
                if density.underflows:  # numbers below the normal ones have lost digits
                    log = np.where(log < _SMALLEST, -np.inf, log)
                low, high = density.bounds
                if not density.circle:  # the formulas hold inside only
                    log = np.where((x < low) | (x > high), -np.inf, log)
                found.append(log + slope)
            return found[0], found[1]


def terms(log_p: Any, log_q: Any) -> Any:
    """Return the integrands, along a last axis."""
    with np.errstate(all="ignore"):
        p, q = np.exp(log_p), np.exp(log_q)
        ratio = np.where(p > 0, log_p - log_q, 0.0)
        both = (p > 0) & (np.abs(ratio) < 1)
        small = np.where(both, ratio, 0.0)
        # φ by its series: p·ratio + q − p cancels.
        series = small**2 * _series(small)
        excess = np.where(both, p * series, np.where(p > 0, p * ratio - p + q, q))
        weighted = np.where(p > 0, p * ratio, 0.0)
        rounding = np.where(p > 0, p * (np.abs(log_p) + np.abs(log_q) + 2), 0.0)
        return np.stack([p, q, weighted, excess, rounding], axis=-1)


def _series(x: Any) -> Any:
    """Return (e⁻ˣ − 1 + x)/x² for |x| < 1."""
    total = np.zeros_like(x)
    for k in range(18, 0, -1):
        total = (1 - total * x) / (k + 1) if k > 1 else (1 - total * x) / 2
    return total


def integrate(p: Density, q: Density) -> tuple[float, float]:
    """Return D(P‖Q) and a bound of its error."""
    if not q.circle and (q.bounds[0] > p.bounds[0] or q.bounds[1] < p.bounds[1]):
        return math.inf, 0.0
    marks = p.landmarks()
    pair = Pair(p, q, line(p.bounds, marks))
    cuts = _cuts(pair, marks)
    found = integrals(pair, cuts, -math.inf, math.inf)
    if not isinstance(found, Sums):
        return found, 0.0 * found if math.isnan(found) else 0.0
    same = q.circle or p.bounds == q.bounds
    return verdict(pair, found, cuts, same_support=same)


def _cuts(pair: Pair, marks: Any) -> Any:
    """Return where to cut, in y: at marks of both, and at peaks of P along the line."""
    with np.errstate(all="ignore"):
        wanted = np.concatenate([marks, pair.q.landmarks(), pair.p.cuts, pair.q.cuts])
        y = pair.line.of(wanted)
    y = y[np.abs(y) <= 0.9 * _reach(pair)]
    steps = np.geomspace(1e-2, _reach(pair), 300)
    grid = np.unique(np.concatenate([-steps, [0.0], steps, y]))
    log_p, _ = pair.logs(grid)
    log_p = np.where(np.isfinite(log_p), log_p, -np.inf)
    top = np.max(log_p)
    inner = log_p[1:-1]
    peak = (inner >= log_p[:-2]) & (inner >= log_p[2:]) & (inner > top - 40)
    return np.unique(np.concatenate([y, grid[1:-1][peak]]))


def _reach(pair: Pair) -> float:
    return _FAR if pair.p.by_logarithms and pair.q.by_logarithms else _FLOATS


# --- the integrals --------------------------------------------------------------------------------


def integrals(pair: Pair, cuts: Any, start: float, stop: float) -> Sums | float:
    """Integrate between two y, which may be infinite; return ∞ or NaN where that is the result."""
    inner = cuts[(cuts > start) & (cuts < stop)]
    if not len(inner):
        inner = np.array([within(start, stop)])
    log_p, log_q = pair.logs(inner)
    if np.isnan(log_p).any() or np.isnan(log_q).any():
        return math.nan
    # An object may overflow long before x does: there tails are continued, as where x ends.
    ended = np.isneginf(log_q) & (log_p > -np.inf) & pair.extreme(inner)
    if ended.any() and not ended.all():
        inner = inner[~ended]
    below = _end(pair, inner, start, -1)
    above = _end(pair, inner, stop, 1)
    for end in (below, above):
        if isinstance(end, float):
            return end
    points = np.unique(np.concatenate([inner, below.points, above.points]))  # type: ignore[union-attr]
    total = _adaptive(lambda y: terms(*pair.logs(y)), points, _noise(pair, inner)[1])
    for end in (below, above):
        if end.tail is not None:  # type: ignore[union-attr]
            total = total.plus(end.tail)  # type: ignore[union-attr]
    if np.isposinf(total.values[RATIO]):
        if pair.q.underflows:
            raise OptionError(
                "the density of Q underflows where P has mass, and has no logarithm of its own; "
                "use a distribution of kldiv.distributions, or method='monte_carlo'"
            )
        return math.inf
    return total


def _adaptive(function: Callable[[Any], Any], points: Any, noise: float = 0.0) -> Sums:
    """Integrate between the first and last of the points, cut at all, until errors are small."""
    from scipy.integrate import cubature  # noqa: PLC0415 - optional

    def over(low: Any, high: Any, allowed: Any, **options: Any) -> Any:
        return cubature(
            lambda y: function(y[:, 0]), low, high, rule="gk21", rtol=0.0, atol=allowed, **options
        )

    inner = [[point] for point in points[1:-1]]
    rough = over(points[:1], points[-1:], np.full(5, np.inf), points=inner)
    allowed = (_ABSOLUTE + _RELATIVE * np.abs(rough.estimate)) / len(rough.regions)
    # Piece by piece, the worst first: of several, SciPy splits them in no order.
    pieces, left = [], _SPLITS
    for piece in sorted(rough.regions, key=lambda piece: -float(np.max(piece.error / allowed))):
        enough = np.maximum(allowed, _rounding(np.abs(piece.estimate), noise))
        if left and (piece.error > enough).any():
            found = over(piece.a, piece.b, enough, max_subdivisions=min(left, _SPLITS // 4))
            left -= found.subdivisions
            pieces += found.regions
        else:
            pieces.append(piece)
    values = np.sum([piece.estimate for piece in pieces], axis=0)
    errors = np.sum([piece.error for piece in pieces], axis=0)
    # Both rules may be off alike where a kink lies: another one on halves has other places.
    edges = np.array([[piece.a[0], piece.b[0]] for piece in pieces])
    errors = errors + np.abs(_by_halves(function, edges) - values)
    return Sums(values, errors + 8 * _EPS * np.abs(values))


def _by_halves(function: Callable[[Any], Any], edges: Any) -> Any:
    """Integrate over pieces by Gauss and Legendre's rule on the halves of each."""
    places, weights = np.polynomial.legendre.leggauss(15)
    low, high = edges[:, :1], edges[:, 1:]
    middle, quarter = (low + high) / 2, (high - low) / 4
    y = np.concatenate(
        [middle - quarter + quarter * places, middle + quarter + quarter * places], 1
    )
    found = np.reshape(function(np.ravel(y)), (*y.shape, -1))
    return np.einsum("ij,ijk->k", quarter * np.concatenate([weights, weights]), found)


def _rounding(sizes: Any, noise: float) -> Any:
    """Return the error that rounding and noise of log-densities may cause in a piece's integrals.

    To split a piece for less would be in vain.
    """
    p, _, _, excess, logs = sizes
    found = (32 * _EPS + noise) * sizes
    found[RATIO] += 8 * _EPS * logs + noise * p
    # p φ(r) is p r²/2, of an r that is off by the rounding of both logarithms.
    off = 4 * _EPS * logs + noise * p
    if p > 1e-100:
        found[EXCESS] += off * (math.sqrt(2 * excess / p) + off / p)
    return found


class _End(NamedTuple):
    points: Any
    tail: Sums | None


def _end(pair: Pair, inner: Any, limit: float, side: int) -> _End | float:
    """Return the cuts beyond the outermost one, and the tail beyond the last, or ∞."""
    first = float(inner[-1] if side > 0 else inner[0])
    width = float(inner[-1] - inner[0]) / 8 if len(inner) > 1 else 0.5
    if math.isfinite(limit):
        count = max(2, int(np.ceil(np.log2(abs(limit - first) / width + 2))) + 1)
        return _End(first + (limit - first) * np.linspace(0, 1, count + 1)[1:] ** 2, None)
    stretch = max(_reach(pair) - side * first, 1.0)
    steps = np.geomspace(min(width / 16, stretch / 64), stretch, 600)
    y = first + side * steps
    log_p, log_q = pair.logs(y)
    with np.errstate(all="ignore"):
        ratio = log_p - log_q
        usable = np.isfinite(log_p) & np.isfinite(ratio)
        size = np.where(np.isneginf(log_p), -np.inf, log_p + np.log1p(np.abs(ratio)))
    count = len(y) if usable.all() else int(np.argmin(usable))
    if count < 4:
        return _nearest(pair, first, width, side)
    last = _last_heavy((size + np.log(steps))[:count])
    of_q = _last_heavy((log_q + np.log(steps))[:count])
    far = max(last, of_q) if of_q < count else last  # all of Q's mass, where it can be had
    far = min(far, count - 1)
    # Some thirty steps double the distance: no piece is much longer than all before it.
    points = y[np.unique(np.concatenate([np.arange(0, far, 30), [far]]))]
    known = y[:count], log_p[:count], ratio[:count]
    if _diverges(*known, first) or (last == count and size[count - 1] > _OVERFLOW):
        return math.inf
    if last < count:
        return _End(points, None)
    if count < len(y) and np.isneginf(log_p[count]) and not pair.extreme(y[count]):
        return _End(np.append(points, y[count]), None)  # P ends there, or underflows
    return _End(points, _tail(*known, first))


def _last_heavy(size: Any) -> int:
    """Return how many places there are up to the last whose logarithm of a mass counts."""
    heavy = np.flatnonzero(size > _NOTHING)
    return int(heavy[-1]) + 1 if len(heavy) else 0


def _nearest(pair: Pair, first: float, width: float, side: int) -> _End:
    """Return the last place that can be computed, found by halving."""
    good, bad = 0.0, width
    for _ in range(60):
        middle = (good + bad) / 2
        logs = pair.logs(np.array([first + side * middle]))
        good, bad = (middle, bad) if np.isfinite(logs).all() else (good, middle)
    return _End(np.array([first + side * good]) if good else np.empty(0), None)


def _three(y: Any, first: float, share: float) -> Any:
    """Return the places of three points at equal distances, the last being the last of all."""
    last = y[-1]
    step = (last - first) * share / 2
    return np.array([int(np.argmin(np.abs(y - (last - k * step)))) for k in (2, 1, 0)])


def _diverges(y: Any, log_p: Any, ratio: Any, first: float) -> bool:
    """Return whether p log(p/q) does not fall for ever: P's tail falls more slowly than Q's."""
    some = _three(y, first, 0.5)
    if not ratio[-1] > 50 or len(set(some.tolist())) < 3 or (ratio[some] <= 0).any():
        return False  # the ratio is no more than P's logarithm, or P has less than Q
    place = np.abs(y[some] - first)
    falls = -np.diff(log_p[some]) / np.diff(place)
    rises = np.diff(np.log(ratio[some])) / np.diff(place)
    if (rises <= 0).any():
        return False
    before, after = falls / rises
    if after > before * (1 + 1e-3):
        return False  # P falls faster and faster
    if after < before * (1 - 0.05):
        return True  # slower and slower: Q's logarithm grows exponentially beside P's
    return not after > 1 + 1e-9


def _tail(y: Any, log_p: Any, ratio: Any, first: float) -> Sums:
    """Integrate beyond the last place that floats reach, log-densities being continued.

    Both are polynomials of y there, or the ratio is exponential; three fits tell the error.
    """
    found = []
    for share in (0.5, 0.35, 0.25):
        some = _three(y, first, share)
        place = np.abs(y[some] - y[-1]) * -1.0
        of_p = _parabola(place, log_p[some])
        exponential = ratio[-1] > 1e6
        of_ratio = _parabola(place, np.log(ratio[some]) if exponential else ratio[some])
        length = _length(of_p, of_ratio if exponential else None)
        if length is None:
            raise OptionError(
                "the integral of p log(p/q) does not converge, or so slowly that floats do not "
                "reach its end; use method='monte_carlo', which averages over samples"
            )
        found.append(_continued(of_p, of_ratio, exponential=exponential, length=length))
    spread = np.ptp([each.values for each in found], axis=0)
    return Sums(found[0].values, found[0].errors + 4 * spread)


def _continued(of_p: Any, of_ratio: Any, *, exponential: bool, length: float) -> Sums:
    def function(u: Any) -> Any:
        with np.errstate(all="ignore"):
            log_p, ratio = np.polyval(of_p, u), np.polyval(of_ratio, u)
            if not exponential:
                return terms(log_p, log_p - ratio)
            p, weighted = np.exp(log_p), np.exp(log_p + ratio)
            return np.stack([p, 0 * p, weighted, weighted - p, weighted], axis=-1)

    points = np.concatenate([[0.0], length * 2.0 ** np.arange(-12, 1)])
    return _adaptive(function, points)


def _parabola(x: Any, values: Any) -> Any:
    """Return the polynomial through three points, a straight line where rounding is the rest."""
    coefficients = np.polyfit(x, values, 2)
    rounding = 64 * _EPS * np.max(np.abs(values))
    if abs(coefficients[0]) * (x[-1] - x[0]) ** 2 < rounding:
        slope = (values[-1] - values[0]) / (x[-1] - x[0])
        return np.array([0.0, slope, values[-1]])
    return np.array([coefficients[0], coefficients[1], values[-1]])


def _length(of_p: Any, of_ratio: Any | None) -> float | None:
    """Return how far a continued tail has to be integrated, or None if it does not fall."""
    falling = of_p if of_ratio is None else of_p + of_ratio
    steps = np.geomspace(1e-3, 1e12, 2000)
    with np.errstate(all="ignore"):
        size = np.polyval(falling, steps) + np.log(steps)
        heavy = np.flatnonzero(~(size < -60))
    last = int(heavy[-1]) + 1 if len(heavy) else 0
    return float(steps[last]) if last < len(steps) else None


# --- the result -----------------------------------------------------------------------------------


def verdict(pair: Pair, found: Sums, cuts: Any, *, same_support: bool) -> tuple[float, float]:
    """Return D(P‖Q) of its integrals, in the form with the smaller error, and that error."""
    values, errors = found
    lost = abs(values[P] - 1)
    if not lost <= _LOST:
        raise OptionError(
            f"the density of P integrates to {values[P]:.6g}, not to 1: its mass was not found, or "
            "it is not normalised; use method='monte_carlo', which averages over samples"
        )
    step, scatter, steepest = _noise(pair, cuts)
    missing = lost * (1 + steepest)
    extra = abs(values[Q] - 1) if same_support else 0.0
    complete = same_support and extra <= 1e-9
    noise = 4 * scatter + step * values[ROUNDING] + (extra if complete else 0.0)
    plain = errors[RATIO] + noise + missing
    best = (values[RATIO], plain)
    if complete:
        # Normalising constants enter in second order only.
        distance = math.sqrt(2 * max(values[EXCESS], 0.0))
        level = 4 * scatter + step * values[ROUNDING]
        error = errors[EXCESS] + level * (distance + level)
        error += (lost + extra) * (distance + lost + extra) + lost * steepest * (lost > 1e-13)
        if error < plain:
            best = (values[EXCESS], error)
    value, error = best
    return max(float(value), 0.0), float(error)


def _noise(pair: Pair, cuts: Any) -> tuple[float, float, float]:
    """Return the roundoff of log-densities, how much they scatter, and the largest |log(p/q)|."""
    ulp = np.spacing(np.maximum(np.abs(cuts), 1e-3))
    step = pair.step * np.maximum(np.abs(cuts), 1.0) if pair.step < 1 else 1.0 + 0 * cuts
    y = np.concatenate([cuts[:, None] + ulp[:, None] * np.arange(9) * 2, (cuts + step)[:, None]], 1)
    both = pair.logs(y)
    with np.errstate(all="ignore"):
        weight = both[0][:, 4] - np.max(both[0][:, 4], initial=-np.inf)
        found = np.isfinite(both[0]).all(1) & np.isfinite(both[1]).all(1) & (weight > -30)
    for place in pair.rough():
        found &= np.abs(cuts - place) > 64 * ulp
    if not found.any():
        return 2 * _EPS, 0.0, 0.0
    scatter = 0.0
    for log in (each[found] for each in both):
        jumps = np.max(np.abs(np.diff(log[:, :9], 2, axis=1)))
        # A rounded parameter moves the whole density by some units in the last place.
        slope = np.abs(log[:, 9] - log[:, 0]) / step[found] * np.maximum(np.abs(cuts[found]), 1.0)
        scatter = max(scatter, float(jumps), _EPS * float(np.max(slope * np.exp(weight[found]))))
    ratio = both[0][found] - both[1][found]
    return 2 * _EPS, scatter, float(np.max(np.abs(ratio)))
