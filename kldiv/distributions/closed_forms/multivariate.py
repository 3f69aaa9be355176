"""Normals of vectors: by triangular factors, or by the difference of covariances."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kldiv.distributions.base import broadcast
from kldiv.distributions.closed_forms.location import quotient
from kldiv.distributions.families import (
    LowRankMultivariateNormal,
    MultivariateNormal,
    MultivariateNormalDiag,
)
from kldiv.distributions.registry import register_kl
from kldiv.formulas.remainders import log_det_remainder, ratio_phi

if TYPE_CHECKING:
    from kldiv._types import Array, Namespace


@register_kl(MultivariateNormalDiag, MultivariateNormalDiag)
def diagonal(xp: Namespace, p: MultivariateNormalDiag, q: MultivariateNormalDiag) -> Array:
    """The sum of the components' divergences."""
    z = quotient(xp, p.loc - q.loc, q.scale_diag)
    return 0.5 * xp.sum(ratio_phi(xp, q.scale_diag, p.scale_diag, 2) + z * z, axis=-1)


NORMALS = (MultivariateNormal, MultivariateNormalDiag, LowRankMultivariateNormal)


def multivariate(xp: Namespace, p: Any, q: Any) -> Array:
    """½ (tr A − n − log det A) + ½ |L⁻¹(μ₁ − μ₂)|², A = L⁻¹ Σ₁ L⁻ᵀ, L Lᵀ = Σ₂.

    Of two precisions A = K⁻¹ Λ₂ K⁻ᵀ, K Kᵀ = Λ₁, has the same eigenvalues.
    """
    if _has(p, "precision_matrix") and _has(q, "precision_matrix"):
        inner, outer = (xp.linalg.cholesky(d.precision_matrix) for d in (q, p))
        added = q.precision_matrix - p.precision_matrix
        z = xp.matmul(xp.matrix_transpose(inner), (p.loc - q.loc)[..., None])[..., 0]
    else:
        inner, outer = _factor(xp, p), _factor(xp, q)
        added = None if _triangular(p) and _triangular(q) else _added(xp, p, q)
        z = _solved(xp, outer, (p.loc - q.loc)[..., None])[..., 0]
    spread = _by_factors(xp, inner, outer)
    if added is not None:
        spread = _or_near(xp, spread, outer, added)
    return 0.5 * (spread + xp.sum(z * z, axis=-1))


def _by_factors(xp: Namespace, inner: Array, outer: Array) -> Array:
    """Return tr A − n − log det A ≥ 0 of A = M Mᵀ, M = L⁻¹ R lower triangular; L outer, R inner.

    It is Σ φ(2 log(Lᵢᵢ/Rᵢᵢ)) + Σ Mᵢⱼ² over i > j: no eigenvalue is needed, nothing cancels, and it
    is smooth where eigenvalues are equal. Off its diagonal M is L⁻¹(R − L), right where R nears L;
    where a column of R is small beside that of L the difference would have its rounding.
    """
    size = outer.shape[-1]
    below = xp.arange(size)[:, None] > xp.arange(size)[None, :]
    wide, narrow = xp.linalg.diagonal(outer), xp.linalg.diagonal(inner)
    right = xp.where((narrow > 0.5 * wide)[..., None, :], inner - outer, inner)
    m = xp.where(below, _solved(xp, outer, right), 0.0)
    diagonals = ratio_phi(xp, wide, narrow, 2)
    return xp.sum(diagonals, axis=-1) + xp.sum(m * m, axis=(-2, -1))


def _or_near(xp: Namespace, spread: Array, factor: Array, added: Array) -> Array:
    """Return the same by the difference of the matrices, where that is small.

    Factors that were computed have each its own rounding, which their difference would show.
    """
    e = _within(xp, factor, added)
    e = 0.5 * (e + xp.matrix_transpose(e))  # symmetric but for rounding
    near = xp.sum(e * e, axis=(-2, -1)) < 0.25
    return xp.where(near, log_det_remainder(xp, xp.where(near[..., None, None], e, 0.0)), spread)


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
    """Return L⁻¹ B of a lower triangular L, by the rows and columns in reverse.

    Pivots would exchange rows of L, and a large row would leave its rounding in a small one; below
    the diagonal of an upper triangle there are none to take.
    """
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
    return xp.linalg.cholesky(covariance(xp, d))


def _factor_of_low_rank(xp: Namespace, d: LowRankMultivariateNormal) -> Array:
    """Return the Rᵀ of W Wᵀ + D = Rᵀ R, by R of [W, √D]ᵀ: squares would lose a small D beside W."""
    root = _diagonal(xp, xp.sqrt(d.cov_diag))
    batch = broadcast(type(d).__name__, d.cov_factor.shape[:-2], root.shape[:-2])
    parts = [xp.broadcast_to(m, (*batch, *m.shape[-2:])) for m in (d.cov_factor, root)]
    r = xp.linalg.qr(xp.matrix_transpose(xp.concat(parts, axis=-1)))[1]
    r = xp.where(xp.linalg.diagonal(r)[..., None] < 0, -r, r)
    return xp.matrix_transpose(r)


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
    return xp.linalg.inv(d.precision_matrix)


def _diagonal(xp: Namespace, values: Array) -> Array:
    size = values.shape[-1]
    where = xp.arange(size)
    same = where[:, None] == where[None, :]
    return xp.where(same, values[..., None, :], 0.0)
