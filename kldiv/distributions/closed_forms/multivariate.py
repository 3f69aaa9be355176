"""Normals of vectors: through the eigenvalues of what one covariance adds to the other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kldiv.distributions.closed_forms.location import quotient
from kldiv.distributions.families import (
    LowRankMultivariateNormal,
    MultivariateNormal,
    MultivariateNormalDiag,
)
from kldiv.distributions.registry import register_kl
from kldiv.formulas.remainders import ratio_phi
from kldiv.formulas.special import log1p_gap

if TYPE_CHECKING:
    from kldiv._types import Array, Namespace


@register_kl(MultivariateNormalDiag, MultivariateNormalDiag)
def diagonal(xp: Namespace, p: MultivariateNormalDiag, q: MultivariateNormalDiag) -> Array:
    """The sum of the components' divergences."""
    z = quotient(xp, p.loc - q.loc, q.scale_diag)
    return 0.5 * xp.sum(ratio_phi(xp, q.scale_diag, p.scale_diag, 2.0) + z * z, axis=-1)


_ANY = (MultivariateNormal, MultivariateNormalDiag, LowRankMultivariateNormal)


def multivariate(xp: Namespace, p: Any, q: Any) -> Array:
    """½ Σ (eᵢ − log(1 + eᵢ)) + ½ |L⁻¹(μ₁ − μ₂)|²; e are the eigenvalues of L⁻¹(Σ₁ − Σ₂)L⁻ᵀ.

    L Lᵀ = Σ₂.  Of two precisions it is those of K⁻¹(Λ₂ − Λ₁)K⁻ᵀ, K Kᵀ = Λ₁: the same numbers.
    """
    if _both(p, q, "precision_matrix"):
        factor = xp.linalg.cholesky(p.precision_matrix)
        added = _within(xp, factor, q.precision_matrix - p.precision_matrix)
        z = xp.linalg.cholesky(q.precision_matrix)
        z = _apply(xp, _transposed(xp, z), p.loc - q.loc)
    else:
        if _both(p, q, "scale_tril"):
            factor = q.scale_tril
            m = xp.linalg.solve(factor, p.scale_tril - q.scale_tril)
            added = m + _transposed(xp, m) + xp.matmul(m, _transposed(xp, m))
        else:
            covariance = _covariance(xp, q)
            factor = q.scale_tril if _has(q, "scale_tril") else xp.linalg.cholesky(covariance)
            added = _within(xp, factor, _covariance(xp, p) - covariance)
        z = xp.linalg.solve(factor, (p.loc - q.loc)[..., None])[..., 0]
    # Symmetric but for rounding; a library may read one half only.
    values = xp.linalg.eigvalsh(0.5 * (added + _transposed(xp, added)))
    return 0.5 * (xp.sum(log1p_gap(xp, values), axis=-1) + xp.sum(z * z, axis=-1))


for _p in _ANY:
    for _q in _ANY:
        if (_p, _q) != (MultivariateNormalDiag, MultivariateNormalDiag):
            register_kl(_p, _q)(multivariate)


def _has(d: Any, name: str) -> bool:
    return getattr(d, name, None) is not None


def _both(p: Any, q: Any, name: str) -> bool:
    return _has(p, name) and _has(q, name)


def _transposed(xp: Namespace, matrix: Array) -> Array:
    return xp.matrix_transpose(matrix)


def _apply(xp: Namespace, matrix: Array, vector: Array) -> Array:
    return xp.matmul(matrix, vector[..., None])[..., 0]


def _within(xp: Namespace, factor: Array, matrix: Array) -> Array:
    """Return L⁻¹ A L⁻ᵀ of a symmetric A."""
    half = xp.linalg.solve(factor, matrix)
    return xp.linalg.solve(factor, _transposed(xp, half))


def _covariance(xp: Namespace, d: Any) -> Array:
    if isinstance(d, MultivariateNormalDiag):
        return _diagonal(xp, d.scale_diag * d.scale_diag)
    if isinstance(d, LowRankMultivariateNormal):
        low = xp.matmul(d.cov_factor, _transposed(xp, d.cov_factor))
        return low + _diagonal(xp, d.cov_diag)
    if d.covariance_matrix is not None:
        return d.covariance_matrix
    if d.scale_tril is not None:
        return xp.matmul(d.scale_tril, _transposed(xp, d.scale_tril))
    return xp.linalg.inv(d.precision_matrix)


def _diagonal(xp: Namespace, values: Array) -> Array:
    size = values.shape[-1]
    where = xp.arange(size)
    same = where[:, None] == where[None, :]
    same = xp.zeros_like(values)[..., None, :] + xp.astype(same, values.dtype)
    return same * values[..., None, :]
