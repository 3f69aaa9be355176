r"""Bregman remainders f(c) − f(a) − (c − a)·df(a) ≥ 0 without cancellation, near c = a and far.

The divergence of two members of an exponential family is such a remainder of its log-partition
function, so these are the pieces of most closed forms.  Everything is a sum of terms that are ≥ 0
and right to a few units, in ``exp`` and ``log`` alone, so that a library's own differentiation is
right too.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from kldiv.formulas.numbers import NEAR
from kldiv.formulas.special import log1p_gap, log_ratio, phi, phi_near, relative

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kldiv._types import Array, Namespace

EULER = 0.5772156649015328606


def ratio_phi(
    xp: Namespace, a: Array, b: Array, power: int = 1, difference: Array | None = None
) -> Array:
    """Return φ(power·log(a/b)): 0 where a = b, also at 0 and ∞, +∞ where only one is at an end."""
    alive = (a > 0) & (b > 0) & (a < math.inf) & (b < math.inf)
    safe_a, safe_b = xp.where(alive, a, 1.0), xp.where(alive, b, 1.0)
    if difference is not None:
        difference = xp.where(alive, difference, 0.0)
    x = power * log_ratio(xp, safe_a, safe_b, difference)
    edge = xp.where((a >= 0) & (b >= 0), math.inf, xp.full_like(x, math.nan))
    edge = xp.where((a >= 0) & (a == b), 0.0, edge)
    # Far apart a power, as the exponential of a large logarithm has the rounding of that.
    near, far = phi_near(xp, xp.clip(x, -NEAR, NEAR)), (safe_b / safe_a) ** power + (x - 1.0)
    return xp.where(alive, xp.where(abs(x) < NEAR, near, far), edge)


def interior(
    xp: Namespace, p: Sequence[Array], q: Sequence[Array]
) -> tuple[Array, Array, list[Array]]:
    """Return where all parameters are in (0, ∞), the value elsewhere, and the parameters.

    Elsewhere P or Q is a limit, of mass at points or far out: 0 where they have the same
    parameters, +∞ where not, NaN where one is negative or NaN.  There the parameters returned
    are 1.
    """
    both = [*p, *q]
    valid, alive, same = True, True, True
    for x in both:
        valid = (x >= 0) & valid
        alive = (x > 0) & (x < math.inf) & alive
    for x, y in zip(p, q, strict=True):
        same = (x == y) & same
    edge = xp.where(valid, xp.where(same, xp.zeros_like(p[0]), math.inf), math.nan)
    return alive, edge, [xp.where(alive, x, 1.0) for x in both]


def times_phi(xp: Namespace, c: Array, w: Array, top: Array) -> Array:
    """Return c φ(−w) = c eʷ − c − c w; ``top`` is c eʷ, where eʷ alone might overflow."""
    near = phi_near(xp, xp.clip(-w, -NEAR, NEAR))
    return xp.where(abs(w) < NEAR, c * near, top - c * (1.0 + w))


# --- log Γ ----------------------------------------------------------------------------------------

SHIFT = 10
"""Stirling's series is used from here on; below, Γ(x + 10) = x (x + 1) … (x + 9) Γ(x)."""

# B₂ₙ / (2n (2n−1)): log Γ(x) = (x − ½) log x − x + ½ log 2π + Σ cₙ x^(1−2n), right to 1e-17 of
# itself at x = 10.
BINET = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360, 1 / 156, -3617 / 122400)


def binet_terms(xp: Namespace, x: Array) -> int:
    """Return how many terms of Stirling's series give x ≥ 10 to u of the first term."""
    return len(BINET) if x.dtype == xp.float64 else 3


def lgamma_remainder(xp: Namespace, a: Array, c: Array, difference: Array | None = None) -> Array:
    """Return log Γ(c) − log Γ(a) − (c − a)·digamma(a) for a, c > 0; ``difference`` is c − a."""
    change = c - a if difference is None else difference
    return relative(xp, c, a, change) + gamma_excess(xp, a, c, change)


def gamma_excess(xp: Namespace, a: Array, c: Array, difference: Array | None = None) -> Array:
    """Return the remainder of G(x) = log Γ(x) − x log x + x from a to c ≥ 0; it is ≥ 0.

    Shifted up by Γ's recurrence, G(x) − G(x + 1) = (x + 1) log(1 + 1/x) − 1, and there by
    Stirling's series.  All parts are ≥ 0; +∞ where one of a and c is 0, and 0 where both are.
    """
    change = c - a if difference is None else difference
    alive, edge, a, c, change = _positive(xp, a, c, change)
    shifted = _stirling_excess(xp, a + SHIFT, c + SHIFT, change)
    steps = _Steps.up_from(xp, a, c, change).excess()
    return xp.where(alive, shifted + xp.sum(steps, axis=-1), edge)


def _positive(xp: Namespace, a: Array, c: Array, change: Array) -> tuple[Array, ...]:
    """Return where a and c are positive, the excess elsewhere, and a, c and c − a there."""
    alive = (a > 0) & (c > 0)
    zero = xp.zeros_like(change)
    edge = xp.where((a >= 0) & (c >= 0), xp.where(a == c, 0.0, zero + math.inf), math.nan)
    safe = xp.where(alive, a, 1.0), xp.where(alive, c, 1.0), xp.where(alive, change, zero)
    return alive, edge, *safe


def gamma_excess_gap(
    xp: Namespace, main: Sequence[Array], one: Sequence[Array], others: Sequence[Array]
) -> Array:
    """Return E(a → c) + E(i → j) − E(a + i + k → c + j + l), E the `gamma_excess`.

    ``main`` is a, c and c − a, ``one`` is i, j and j − i, ``others`` is k, l and l − k: i, j, k and
    l are ≥ 0, however small.
    """
    alive, _, a, c, change = _positive(xp, *main)
    some, edge, i, j, own_change = _positive(xp, *one)
    s, t, more = (xp.where(alive, x + y, 0.0) for x, y in zip(one, others, strict=True))
    steps = _Steps.up_from(xp, a, c, change)
    own = _Steps.up_from(xp, i, j, own_change)
    all_s, all_t, all_more, left = (x[..., None] for x in (s, t, more, c + others[1]))
    apart = own.excess() - steps.growth(all_s, all_t, all_more)
    crossed = some[..., None] & (own.y > steps.y) & (steps.x > 4.0 * steps.y)
    apart = xp.where(crossed, steps.crossed(crossed, own, all_s, all_t, left), apart)
    grown = _stirling_growth(xp, a + SHIFT, c + SHIFT, change, s, t, more)
    shifted = _stirling_excess(xp, i + SHIFT, j + SHIFT, own_change) - grown
    return shifted + xp.sum(apart, axis=-1) + xp.where(some, 0.0, edge)


def up_from(xp: Namespace, x: Array) -> Array:
    """Return x, x + 1, …, x + 9 on an axis of their own: a compiler sees one formula, not ten."""
    ones = xp.ones_like(x)[..., None]
    steps = xp.cumulative_sum(xp.broadcast_to(ones, (*ones.shape[:-1], SHIFT)), axis=-1)
    return x[..., None] + (steps - 1.0)


class _Steps:
    """The remainders from x to y of h(x) = (x + 1) log(1 + 1/x) − 1 at x = a, a + 1, …, a + 9.

    With d = y − x, σ(x) = x/(x + 1) and r = σ(x)/σ(y) = 1 + ρ each is (y + 1) log r + d/x or, with
    g(ρ) = ρ − log(1 + ρ), −ρ d/x − (y + 1) g(ρ), which does not cancel where ρ is small.
    """

    def __init__(self, xp: Namespace, x: Array, y: Array, d: Array) -> None:
        self.xp, self.x, self.y, self.d = xp, x, y, d
        self.rho, self.near = self._ratio_less_one(x, y, d)

    @classmethod
    def up_from(cls, xp: Namespace, a: Array, c: Array, change: Array) -> _Steps:
        """Return the steps from a and c on; ``change`` is c − a."""
        return cls(xp, up_from(xp, a), up_from(xp, c), change[..., None])

    def _ratio_less_one(self, x: Array, y: Array, d: Array) -> tuple[Array, Array]:
        rho = -(_change(self.xp, x, y, d) / y) * _sigma(self.xp, x)
        return rho, (rho > -0.5) & (rho < 1.0)

    def _log(self, x: Array, y: Array, d: Array) -> Array:
        """Return log(σ(x)/σ(y)); d is y − x."""
        low, high = (_sigma(self.xp, v) for v in (x, y))
        return log_ratio(self.xp, low, high, -(_change(self.xp, x, y, d) * low) / (y + 1.0))

    def excess(self) -> Array:
        xp, x, y = self.xp, self.x, self.y
        rho = xp.where(self.near, self.rho, 0.0)
        change = _change(xp, x, y, self.d)
        near = -xp.where(self.near, change, 0.0) * rho - (y + 1.0) * log1p_gap(xp, rho)
        far = (y + 1.0) * self._log(x, y, self.d) + change
        return xp.where(self.near, near, far)

    def growth(self, s: Array, t: Array, more: Array) -> Array:
        """Return how much the steps grow where x and y do by s and t; ``more`` is t − s."""
        xp, x, y, d = self.xp, self.x, self.y, self.d
        wide_x, wide_y, wide_d = x + s, y + t, d + more
        _, near = self._ratio_less_one(wide_x, wide_y, wide_d)
        up = (d / y) * (t / wide_y + s / (x + 1.0)) - more / wide_y
        up = up / (wide_x + 1.0)  # the ratio's own growth …
        rate = up * (y / x) * ((x + 1.0) / (y + 1.0))  # … relative to the ratio
        near = near & self.near & (rate > -0.5) & (rate < 1.0) & ~(t > y)
        flatter = _growth_of_quotient(xp, x, y, d, s, t, more)
        rho, rate, up = (xp.where(near, v, 0.0) for v in (self.rho, rate, up))
        slope = xp.where(near, wide_d / wide_x, 0.0)
        close = -slope * up - xp.where(near, flatter, 0.0) * rho - t * log1p_gap(xp, rho)
        close = close - (wide_y + 1.0) * (rho * rate + log1p_gap(xp, rate))
        grown = self._log(y, wide_y, t) - self._log(x, wide_x, s)
        far = (wide_y + 1.0) * grown + t * self._log(x, y, d) + flatter
        # Of very different remainders nothing is lost by their difference.
        apart = _Steps(xp, wide_x, wide_y, wide_d).excess() - self.excess()
        return xp.where(t > y, apart, xp.where(near, close, far))

    def crossed(self, where: Array, own: _Steps, s: Array, t: Array, left: Array) -> Array:
        """Return the excess of ``own``, i → j, less the growth, for i < x ≫ y < j.

        There both remainders are large and their slopes in x and in j agree but for little.  With
        X = x + s, Y = y + t = j + left and r the remainder of h it is h(y) − h(i) − (j − i)h′(i)
        − left h′(j) − r(j → Y) − r(X → x) − (x − y)(h′(X) − h′(x)) + t h′(X), of which the first
        three are r(i → y) − (j − y)h′(i), or r(i → j) + r(j → y) − (j − y)h′(j).
        """
        xp = self.xp
        given = self.x, self.y, self.d, own.x, own.y, s, t
        x, y, d, i, j, s, t = (xp.where(where, v, 1.0) for v in given)
        left = xp.where(where, left, 1.0)
        wide_x, wide_y = x + s, y + t
        below = i < y
        value = _Steps(xp, i, xp.where(below, j, y), xp.where(below, j, y) - i).excess()
        value = value + xp.where(below, _Steps(xp, j, y, y - j).excess(), 0.0)
        value = value + (j - y) * log1p_gap(xp, 1.0 / xp.where(below, j, i))
        value = value - _Steps(xp, j, wide_y, left).excess() + left * log1p_gap(xp, 1.0 / j)
        value = value - _Steps(xp, wide_x, x, -s).excess()
        return value + d * _slope_growth(xp, x, wide_x, s) - t * log1p_gap(xp, 1.0 / wide_x)


def _sigma(xp: Namespace, x: Array) -> Array:
    """Return x/(x + 1), whose derivative is no difference."""
    large = x > 1.0
    return xp.where(large, 1.0 / (1.0 + 1.0 / xp.where(large, x, 1.0)), x / (x + 1.0))


def _change(xp: Namespace, x: Array, y: Array, d: Array) -> Array:
    """Return d/x for d = y − x; where y is not close to x its derivative in x is no difference."""
    return xp.where(abs(d) < 0.5 * x, d / x, y / x - 1.0)


def _slope_growth(xp: Namespace, x: Array, y: Array, d: Array) -> Array:
    """Return h′(y) − h′(x) of the steps' h, for d = y − x ≥ 0: σ(y)/σ(x) is 1 + d/(x(y + 1))."""
    return d / x / y / (y + 1.0) + log1p_gap(xp, d / x / (y + 1.0))


def _growth_of_quotient(
    xp: Namespace, x: Array, y: Array, d: Array, s: Array, t: Array, more: Array
) -> Array:
    """Return (y + t)/(x + s) − y/x, where d is y − x and ``more`` is t − s."""
    close = abs(d) < 0.5 * x
    return xp.where(close, more - s * (d / x), t - s * (y / x)) / (x + s)


# The remainder of x^(−m) is d²u²v Σ (i + 1) uⁱ v^(m−1−i), i < m, with d = c − a, u = 1/a and
# v = 1/c.


def _stirling_excess(xp: Namespace, a: Array, c: Array, change: Array) -> Array:
    """Return the `gamma_excess` by Stirling's series, for a and c from 10 on."""
    # φ, and no remainder of x log x over a, whose slope would lose log(a/c).
    return 0.5 * phi(xp, log_ratio(xp, a, c, -change)) + series_remainder(xp, a, c, change)


def series_remainder(xp: Namespace, a: Array, c: Array, change: Array) -> Array:
    """Return the remainder of Stirling's series from a to c, for both from 10 on."""
    u, v = 1.0 / a, 1.0 / c
    power, inner, total = xp.ones_like(u), xp.ones_like(u), BINET[0] * xp.ones_like(u)
    for k in range(1, 2 * binet_terms(xp, u) - 1):
        power = power * u
        inner = v * inner + (k + 1) * power
        if k % 2 == 0:
            total = total + BINET[k // 2] * inner
    return ((change * v) * u) * (change * u) * total


def _stirling_growth(
    xp: Namespace, a: Array, c: Array, change: Array, s: Array, t: Array, more: Array
) -> Array:
    """Return the growth of `_stirling_excess` where a and c grow by s and t."""
    wide_a, wide_c, wide_change = a + s, c + t, change + more
    u, v, wide_u, wide_v = 1.0 / a, 1.0 / c, 1.0 / wide_a, 1.0 / wide_c
    up_u, up_v = -s * u * wide_u, -t * v * wide_v
    power, inner, total = xp.ones_like(u), xp.ones_like(u), BINET[0] * xp.ones_like(u)
    up_power, up_inner, up_total = xp.zeros_like(u), xp.zeros_like(u), xp.zeros_like(u)
    for k in range(1, 2 * binet_terms(xp, u) - 1):
        up_power = wide_u * up_power + up_u * power
        up_inner = wide_v * up_inner + up_v * inner + (k + 1) * up_power
        power = power * u
        inner = v * inner + (k + 1) * power
        if k % 2 == 0:
            total = total + BINET[k // 2] * inner
            up_total = up_total + BINET[k // 2] * up_inner
    lead = ((change * v) * u) * (change * u)
    up_lead = (more * wide_u) * ((wide_change + change) * wide_v) * wide_u
    up_lead = up_lead - (change * u) * (s * wide_u) * ((change * wide_v) * (u + wide_u))
    up_lead = up_lead - (change * u) * ((change * wide_v) * u) * (t * v)
    steeper = _growth_of_quotient(xp, a, c, change, s, t, more)
    rate = steeper * (a / c)
    near = (rate > -0.5) & (rate < 1.0)
    close = steeper * (change * v) + log1p_gap(xp, xp.where(near, rate, 0.0))
    far = steeper - log_ratio(xp, wide_c / wide_a, c / a, steeper)
    return 0.5 * xp.where(near, close, far) + up_lead * (total + up_total) + lead * up_total


def lgamma_from_one(xp: Namespace, s: Array, less: Array) -> Array:
    """Return log Γ(1 + s), which is 0 at 0 and 1, to a few units of itself; ``less`` is s − 1.

    It is the remainder from the nearer zero, plus digamma(1) s or digamma(2) (s − 1).
    """
    low = s < 0.5
    zero, change = xp.where(low, xp.ones_like(s), 2.0), xp.where(low, s, less)
    slope = xp.where(low, xp.full_like(s, -EULER), 1.0 - EULER)
    return lgamma_remainder(xp, zero, 1.0 + s, change) + change * slope


def log_det_remainder(xp: Namespace, e: Array) -> Array:
    """Return tr E − log det(I + E) ≥ 0 of symmetric matrices of a norm below ½.

    It is Σ (Fᵢᵢ² + 2 (Fᵢᵢ − log(1 + Fᵢᵢ))) + Σ Fᵢⱼ² over i > j, of I + F the Cholesky factor of
    I + E. Computed, that has the rounding of I; F + Fᵀ = E − F Fᵀ gives F once more, with that
    of E. Smooth at E = 0, and where eigenvalues are equal.
    """
    where = xp.arange(e.shape[-1])
    one = xp.astype(where[:, None] == where[None, :], e.dtype)
    rough = xp.linalg.cholesky(one + e) - one
    both = e - xp.matmul(rough, xp.matrix_transpose(rough))
    below = xp.where(where[:, None] > where[None, :], both, 0.0)
    along = 0.5 * xp.linalg.diagonal(both)
    diagonals = along * along + 2.0 * log1p_gap(xp, along)
    return xp.sum(diagonals, axis=-1) + xp.sum(below * below, axis=(-2, -1))


# --- by integration -------------------------------------------------------------------------------

# Nodes and weights of Gauss-Legendre on [0, 1], ten points: exact for polynomials of degree 19.
_NODES = (
    (0.013046735741414140, 0.033335672154344069),
    (0.067468316655507744, 0.074725674575290297),
    (0.160295215850487797, 0.109543181257991022),
    (0.283302302935376405, 0.134633359654998178),
    (0.425562830509184394, 0.147762112357376435),
    (0.574437169490815606, 0.147762112357376435),
    (0.716697697064623595, 0.134633359654998178),
    (0.839704784149512203, 0.109543181257991022),
    (0.932531683344492256, 0.074725674575290297),
    (0.986953264258585860, 0.033335672154344069),
)


def integrated_remainder(
    xp: Namespace, curvature: Callable[[Array], Array], a: Array, change: Array
) -> Array:
    """Return ∫ₐᶜ (c − t) f″(t) dt, the remainder of f, where ``change`` = c − a is small."""
    points = a[..., None] + xp.stack([node * change for node, _ in _NODES], axis=-1)
    found = curvature(points)
    parts = [weight * (1.0 - node) * found[..., i] for i, (node, weight) in enumerate(_NODES)]
    return change * change * sum(parts[1:], parts[0])


def softplus_remainder(xp: Namespace, a: Array, b: Array) -> Array:
    """Return log(1+eᵇ) − log(1+eᵃ) − (b − a)·σ(a): the divergence of two Bernoullis by logits."""
    d = a - b
    flip = a > 0  # of the two outcomes take the rarer one
    a, b, d = xp.where(flip, -a, a), xp.where(flip, -b, b), xp.where(flip, -d, d)
    p = chances(xp, a)[0]
    small = abs(d) < 1.0
    near_d = xp.where(small, d, 0.0)
    bend = phi(xp, near_d)
    near = p * bend - log1p_gap(xp, p * (bend - near_d))
    far_d = xp.where(small, 1.0, d)
    far = softplus(xp, b) - softplus(xp, a) + p * far_d
    return xp.where(small, near, far)


def chances(xp: Namespace, x: Array) -> tuple[Array, Array]:
    """Return 1/(1 + e⁻ˣ) and 1/(1 + eˣ): no power in them or in their slopes is beyond numbers."""
    above = x > 0
    falling = xp.exp(xp.where(above, -x, x))
    more = 1.0 / (1.0 + falling)
    less = falling * more
    return xp.where(above, more, less), xp.where(above, less, more)


def softplus(xp: Namespace, x: Array) -> Array:
    """Return log(1 + eˣ)."""
    above = x > 0
    # Not −abs(x), whose slope at 0 is 0.
    return xp.where(above, x, 0.0) + xp.log1p(xp.exp(xp.where(above, -x, x)))
