"""Normals of vectors: by triangular factors, or by the difference of covariances."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from kldiv.distributions.base import broadcast, changed
from kldiv.distributions.closed_forms.location import quotient
from kldiv.distributions.families import (
    LowRankMultivariateNormal,
    MultivariateNormal,
    MultivariateNormalDiag,
)
from kldiv.distributions.registry import register_kl
from kldiv.formulas.remainders import log_det_remainder, ratio_phi
from kldiv.formulas.state import held

if TYPE_CHECKING:
    from kldiv._types import Array, Namespace


@register_kl(MultivariateNormalDiag, MultivariateNormalDiag)
def diagonal(xp: Namespace, p: MultivariateNormalDiag, q: MultivariateNormalDiag) -> Array:
    """The sum of the components' divergences."""
    z = quotient(xp, p.loc - q.loc, q.scale_diag)
    return 0.5 * xp.sum(ratio_phi(xp, q.scale_diag, p.scale_diag, 2) + z * z, axis=-1)


NORMALS = (MultivariateNormal, MultivariateNormalDiag, LowRankMultivariateNormal)
_SMALL: Final = 32
"""Cholesky factors of matrices up to here are refined: beside their other work it is little."""


def multivariate(xp: Namespace, p: Any, q: Any) -> Array:
    """½ (tr A − n − log det A) + ½ |L⁻¹(μ₁ − μ₂)|², A = L⁻¹ Σ₁ L⁻ᵀ, L Lᵀ = Σ₂.

    Of two precisions A = K⁻¹ Λ₂ K⁻ᵀ, K Kᵀ = Λ₁, has the same eigenvalues. Where Σ₁ or Λ₂ is given
    the slopes are those of tr A by it, ½ (Λ₂ − Λ₁) and ½ (Σ₁ + δδᵀ − Σ₂): through a Cholesky factor
    of it and back they would have the rounding of the other's times a condition.
    """
    change = (p.loc - q.loc)[..., None]
    trace = None
    if _has(p, "precision_matrix") and _has(q, "precision_matrix"):
        inner, outer = (_cholesky(xp, d.precision_matrix) for d in (q, p))
        added, whole = q.precision_matrix - p.precision_matrix, q.precision_matrix
        spread, trace = _or_near(xp, _by_factors(xp, inner, outer), outer, added, whole)
        z = xp.matmul(xp.matrix_transpose(inner), change)
        logs = _log_det(xp, inner) - _log_det(xp, outer)
    else:
        low = next((d for d in (q, p) if _has(d, "cov_factor")), None)
        if low is not None and not _has(q, "scale_tril"):
            order = _best_informed(xp, low)
            if _has(p, "scale_tril"):
                narrow = _rows(xp, xp.linalg.diagonal(p.scale_tril)[..., None], order)[..., 0]
            p, q = _ordered(xp, p, order), _ordered(xp, q, order)
            change = (p.loc - q.loc)[..., None]
        inner = _factor(xp, p)
        if _has(q, "precision_matrix"):
            root = _lower_root(xp, q.precision_matrix)
            inverse = 1.0 / xp.linalg.diagonal(root)
            spread = _of_quotient(xp, xp.matmul(root, inner), inverse, xp.linalg.diagonal(inner))
            z = xp.matmul(root, change)
            logs = _log_det(xp, root) + _log_det(xp, inner)
            trace = _traced(xp, p, inner, q.precision_matrix)
        else:
            outer = _factor(xp, q)
            z = _solved(xp, outer, change)
            if _has(p, "scale_tril") and _has(q, "cov_factor"):
                spread = _of_any_order(xp, _solved(xp, outer, inner), outer, narrow)
            else:
                logs = _log_det(xp, inner) - _log_det(xp, outer)
                spread = _by_factors(xp, inner, outer)
                if not (_has(p, "precision_matrix") or (_triangular(p) and _triangular(q))):
                    whole = getattr(p, "covariance_matrix", None)
                    spread, trace = _or_near(xp, spread, outer, _added(xp, p, q), whole)
    value = 0.5 * (spread + xp.sum(z * z, axis=(-2, -1)))
    if trace is None or not hasattr(xp, "constant"):
        return value
    turned = (
        xp.matmul(q.precision_matrix, change) * change if _has(q, "precision_matrix") else z * z
    )
    return _with_slopes_of(xp, value, 0.5 * (trace + xp.sum(turned, axis=(-2, -1))) - logs)


def _traced(xp: Namespace, p: Any, inner: Array, precision: Array) -> Array:
    """Return tr Λ₂ Σ₁, by a factor where that is given: its square may be beyond the numbers."""
    if _has(p, "covariance_matrix"):
        return xp.sum(precision * p.covariance_matrix, axis=(-2, -1))
    return xp.sum(xp.matmul(precision, inner) * inner, axis=(-2, -1))


def _log_det(xp: Namespace, factor: Array) -> Array:
    return xp.sum(xp.log(xp.linalg.diagonal(factor)), axis=-1)


def _with_slopes_of(xp: Namespace, value: Array, other: Array) -> Array:
    """Return D, with the derivatives of another formula where it is far from 0.

    Near 0 those would be differences of large numbers, where D's own are right.
    """
    far = xp.isfinite(other) & (value > 0.05)
    other = xp.where(far, other, 0.0)
    return xp.where(far, held(xp, value), value) + (other - held(xp, other))


def _by_factors(xp: Namespace, inner: Array, outer: Array) -> Array:
    """Return tr A − n − log det A ≥ 0 of A = M Mᵀ, M = L⁻¹ R lower triangular; L outer, R inner.

    Off its diagonal M is L⁻¹(R − L), right where R nears L; where a column of R is small beside
    that of L the difference would have its rounding.
    """
    wide, narrow = xp.linalg.diagonal(outer), xp.linalg.diagonal(inner)
    right = xp.where((narrow > 0.5 * wide)[..., None, :], inner - outer, inner)
    return _of_quotient(xp, _solved(xp, outer, right), wide, narrow)


def _of_quotient(xp: Namespace, m: Array, wide: Array, narrow: Array) -> Array:
    """Return the same of M below its diagonal, and of the diagonals of L and R.

    It is Σ φ(2 log(Lᵢᵢ/Rᵢᵢ)) + Σ Mᵢⱼ² over i > j: no eigenvalue is needed, nothing cancels, and it
    is smooth where eigenvalues are equal.
    """
    place = xp.arange(m.shape[-1])
    m = xp.where(place[:, None] > place[None, :], m, 0.0)
    diagonals = ratio_phi(xp, wide, narrow, 2)
    return xp.sum(diagonals, axis=-1) + xp.sum(m * m, axis=(-2, -1))


def _of_any_order(xp: Namespace, m: Array, outer: Array, narrow: Array) -> Array:
    """Return the same of any M = L⁻¹ R with A = M Mᵀ; R a triangle with other rows first.

    Near I by the triangular factor of A; a small pivot of that would have the rounding of its row.
    """
    logs = xp.sum(xp.log(xp.linalg.diagonal(outer) / narrow), axis=-1)
    far = xp.sum(m * m, axis=(-2, -1)) - float(m.shape[-1]) + 2.0 * logs
    near = far < 0.5
    one = _diagonal(xp, xp.ones_like(narrow))
    t = _triangle(xp, xp.where(near[..., None, None], xp.matrix_transpose(m), one))
    diagonal = xp.linalg.diagonal(t)
    return xp.where(near, _of_quotient(xp, t, xp.ones_like(diagonal), diagonal), far)


def _or_near(
    xp: Namespace, spread: Array, factor: Array, added: Array, whole: Array | None
) -> tuple[Array, Array | None]:
    """Return the same by the difference of the matrices, where that is small; and tr A or tr A − n.

    Factors that were computed have each its own rounding, which their difference would show.
    """
    near = spread < 0.1
    e = added if whole is None else xp.where(near[..., None, None], added, whole)
    e = _within(xp, factor, e)
    e = 0.5 * (e + xp.matrix_transpose(e))  # symmetric but for rounding
    near = near & (xp.sum(e * e, axis=(-2, -1)) < 0.25)
    trace = None if whole is None else xp.sum(xp.linalg.diagonal(e), axis=-1)
    by_difference = log_det_remainder(xp, xp.where(near[..., None, None], e, 0.0))
    return xp.where(near, by_difference, spread), trace


for _p in NORMALS:
    for _q in NORMALS:
        if (_p, _q) != (MultivariateNormalDiag, MultivariateNormalDiag):
            register_kl(_p, _q)(multivariate)


def _has(d: Any, name: str) -> bool:
    return getattr(d, name, None) is not None


def _triangular(d: Any) -> bool:
    """Return whether a triangular factor of the covariance is given."""
    return _has(d, "scale_tril") or _has(d, "scale_diag")


def _within(xp: Namespace, factor: Array, matrix: Array) -> Array:
    """Return L⁻¹ A L⁻ᵀ of a symmetric A."""
    half = _solved(xp, factor, matrix)
    return _solved(xp, factor, xp.matrix_transpose(half))


def _solved(xp: Namespace, lower: Array, right: Array) -> Array:
    """Return L⁻¹ B of a lower triangular L; where only `solve` is there, of its reverse.

    Pivots would exchange rows of L, and a large row would leave its rounding in a small one; below
    the diagonal of an upper triangle there are none to take.
    """
    if hasattr(xp.linalg, "solve_triangular"):
        return xp.linalg.solve_triangular(lower, right, upper=False)
    upper = xp.flip(lower, axis=(-2, -1))
    return xp.flip(xp.linalg.solve(upper, xp.flip(right, axis=-2)), axis=-2)


def _factor(xp: Namespace, d: Any) -> Array:
    """Return L with L Lᵀ = Σ, lower triangular."""
    if _has(d, "scale_tril"):
        return d.scale_tril
    if _has(d, "scale_diag"):
        return _diagonal(xp, d.scale_diag)
    if _has(d, "cov_factor"):
        return _factor_of_low_rank(xp, d)
    if _has(d, "precision_matrix"):
        root = _lower_root(xp, d.precision_matrix)
        return _solved(xp, root, _diagonal(xp, xp.ones_like(root[..., 0])))
    return _cholesky(xp, covariance(xp, d))


def _lower_root(xp: Namespace, precision: Array) -> Array:
    """Return the lower triangular L⁻¹ of Λ = L⁻ᵀ L⁻¹: an inverse of Λ is right by its norm only."""
    root = _cholesky(xp, xp.flip(precision, axis=(-2, -1)))
    return xp.matrix_transpose(xp.flip(root, axis=(-2, -1)))


def _cholesky(xp: Namespace, matrix: Array) -> Array:
    """Return the Cholesky factor of A; of a small one as if with half as many digits more.

    The last pivot of a nearly singular matrix may be as small as its rounding. So it is that of
    L (I + E) Lᵀ, by a rough factor L, which derivatives hold, and by what A differs from L Lᵀ.
    """
    size = matrix.shape[-1]
    if size > _SMALL:
        return xp.linalg.cholesky(matrix)
    one = _diagonal(xp, xp.ones_like(matrix[..., 0]))
    eps = float(xp.finfo(matrix.dtype).eps)
    at = held(xp, matrix)
    rough = xp.linalg.cholesky(at + (4 * size * eps) * (one * at))  # where rounding makes it none
    e = _within(xp, rough, _without_square(xp, matrix, rough, eps))
    more = xp.linalg.cholesky(one + 0.5 * (e + xp.matrix_transpose(e)))
    return xp.matmul(rough, more)


def _without_square(xp: Namespace, matrix: Array, factor: Array, eps: float) -> Array:
    """Return A − L Lᵀ; the product of the leading digits of L, as many as fit, has no rounding."""
    spare = math.ceil(0.5 * math.log2(factor.shape[-1] / eps))
    top = xp.max(abs(factor), axis=-1, keepdims=True) * (1.5 * 2.0**spare)
    high = (factor + top) - top
    low = factor - high
    cross = xp.matmul(high, xp.matrix_transpose(low))
    rest = cross + xp.matrix_transpose(cross) + xp.matmul(low, xp.matrix_transpose(low))
    return (matrix - xp.matmul(high, xp.matrix_transpose(high))) - rest


def _factor_of_low_rank(xp: Namespace, d: LowRankMultivariateNormal) -> Array:
    """Return the Rᵀ of W Wᵀ + D = Rᵀ R, by R of [W, √D]ᵀ: squares would lose a small D beside W.

    The columns of W with most beside √D come first: reflections leave the rounding of large rows
    in small ones above them.
    """
    w, root = d.cov_factor, xp.sqrt(d.cov_diag)
    told = xp.max(abs(w) / root[..., None], axis=-2)
    parts = [_rows(xp, xp.matrix_transpose(w), xp.argsort(-told, axis=-1)), _diagonal(xp, root)]
    batch = broadcast(type(d).__name__, *(m.shape[:-2] for m in parts))
    parts = [xp.broadcast_to(m, (*batch, *m.shape[-2:])) for m in parts]
    return _triangle(xp, xp.concat(parts, axis=-2))


def _triangle(xp: Namespace, m: Array) -> Array:
    """Return Rᵀ, lower triangular, of M = Q R: Mᵀ M is its square."""
    r = xp.linalg.qr(m)[1]
    r = xp.where(xp.linalg.diagonal(r)[..., None] < 0, -r, r)
    return xp.matrix_transpose(r)


def _best_informed(xp: Namespace, d: LowRankMultivariateNormal) -> Array:
    """Return an order of components, those first that together tell the factors best.

    Of a triangular factor in another order a row may take back what a component told of a factor
    before another told it far better. Greedy, as column pivots of a QR are; no slope is in it.
    """
    w = d.cov_factor / xp.sqrt(d.cov_diag)[..., None]
    size, rank = w.shape[-2:]
    where = xp.arange(size)
    place = xp.full_like(xp.sum(w, axis=-1), size)
    for step in range(min(size, rank)):
        told = xp.where(place < size, -1.0, xp.sum(w * w, axis=-1))
        best = where == xp.argmax(told, axis=-1)[..., None]
        place = xp.where(best, float(step), place)
        row = xp.sum(xp.where(best[..., None], w, 0.0), axis=-2, keepdims=True)
        square = xp.sum(row * row, axis=-1, keepdims=True)
        along = xp.sum(w * row, axis=-1, keepdims=True) / xp.where(square > 0, square, 1.0)
        w = w - along * row
    return xp.argsort(place, axis=-1, stable=True)


def _ordered(xp: Namespace, d: Any, order: Array) -> Any:
    """Return the same normal, its components in another order."""

    def taken(name: str, x: Array) -> Array:
        if type(d).event_axes[name] == 1:
            return _rows(xp, x[..., None], order)[..., 0]
        x = _rows(xp, x, order)
        return (
            x if name in ("cov_factor", "scale_tril") else _rows(xp, xp.matrix_transpose(x), order)
        )

    return changed(d, taken)


def _rows(xp: Namespace, x: Array, order: Array) -> Array:
    """Return rows of matrices in another order."""
    batch = broadcast("matrices", x.shape[:-2], order.shape[:-1])
    shape = (*batch, order.shape[-1], x.shape[-1])
    places = xp.broadcast_to(order[..., None], shape)
    return xp.take_along_axis(xp.broadcast_to(x, shape), places, axis=-2)


def _added(xp: Namespace, p: Any, q: Any) -> Array:
    """Return Σ₁ − Σ₂; of two of low rank by the differences of their parts."""
    if not (_has(p, "cov_factor") and _has(q, "cov_factor")):
        return covariance(xp, p) - covariance(xp, q)
    w, v = p.cov_factor, q.cov_factor
    rest = _diagonal(xp, p.cov_diag - q.cov_diag)
    if w.shape[-1] != v.shape[-1]:
        return xp.matmul(w, xp.matrix_transpose(w)) - xp.matmul(v, xp.matrix_transpose(v)) + rest
    change = xp.matmul(w - v, 0.5 * xp.matrix_transpose(w + v))
    return change + xp.matrix_transpose(change) + rest


def covariance(xp: Namespace, d: Any) -> Array:
    """Return the covariance of a normal of vectors."""
    if isinstance(d, MultivariateNormalDiag):
        return _diagonal(xp, d.scale_diag * d.scale_diag)
    if isinstance(d, LowRankMultivariateNormal):
        low = xp.matmul(d.cov_factor, xp.matrix_transpose(d.cov_factor))
        return low + _diagonal(xp, d.cov_diag)
    if d.covariance_matrix is not None:
        return d.covariance_matrix
    if d.scale_tril is not None:
        return xp.matmul(d.scale_tril, xp.matrix_transpose(d.scale_tril))
    unit = 1.0 / xp.sqrt(xp.linalg.diagonal(d.precision_matrix))
    units = unit[..., :, None] * unit[..., None, :]  # unlike scales would choose the pivots
    return units * xp.linalg.inv(units * d.precision_matrix)


def _diagonal(xp: Namespace, values: Array) -> Array:
    size = values.shape[-1]
    where = xp.arange(size)
    same = where[:, None] == where[None, :]
    return xp.where(same, values[..., None, :], 0.0)
