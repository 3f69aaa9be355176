"""Normals of three dimensions, described in like and unlike ways."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any

import mpmath
import numpy as np
from mpmath import mp

import kldiv
from kldiv import distributions as d

from ..searching import Target
from .rows import space, vector

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_LOWER = [(i, j) for i in range(3) for j in range(i + 1)]
_FACTOR = tuple("scale" if i == j else "location" for i, j in _LOWER)
_RANGES = {
    "scale_tril": _FACTOR,
    "covariance": _FACTOR,
    "precision": _FACTOR,
    "diagonal": 3 * ("scale",),
    "low rank": (*6 * ("location",), *3 * ("scale",)),
}


def _described(way: str, *numbers: Any) -> Any:
    """Return a normal by its mean and a description; of rank 2 where that is low."""
    loc, x = vector(*numbers[:3]), numbers[3:]
    if way == "diagonal":
        return d.MultivariateNormalDiag(loc, vector(*x))
    if way == "low rank":
        factor = space(loc).stack([vector(*x[:3]), vector(*x[3:6])], axis=-1)
        return d.LowRankMultivariateNormal(loc, factor, vector(*x[6:]))
    matrix = [[0.0 * x[0]] * 3 for _ in range(3)]
    for (i, j), value in zip(_LOWER, x, strict=True):
        matrix[i][j] = value
        if way != "scale_tril":
            matrix[j][i] = value
    name = "scale_tril" if way == "scale_tril" else f"{way}_matrix"
    rows = [vector(*row) for row in matrix]
    return d.MultivariateNormal(loc, **{name: space(loc).stack(rows, axis=-2)})


def _exact_matrix(way: str, x: Sequence[Any]) -> list[list[Any]]:
    """Return the covariance, or the precision; by lists, which take less time than a matrix."""
    if way == "diagonal":
        columns, rest = [], [s * s for s in x]
    elif way == "low rank":
        columns, rest = [x[:3], x[3:6]], list(x[6:])
    else:
        lower = dict(zip(_LOWER, x, strict=True))
        if way != "scale_tril":
            return [[lower[max(i, j), min(i, j)] for j in range(3)] for i in range(3)]
        columns, rest = [[lower.get((i, j), 0) for i in range(3)] for j in range(3)], [0, 0, 0]
    return [
        [sum(c[i] * c[j] for c in columns) + (rest[i] if i == j else 0) for j in range(3)]
        for i in range(3)
    ]


def _exact_inverse(m: list[list[Any]]) -> tuple[list[list[Any]], Any]:
    """Return the inverse of a symmetric matrix and its determinant, 0 where it is not positive."""

    def minor(i: int, j: int) -> Any:
        (a, b), (c, e) = ((i + 1) % 3, (i + 2) % 3), ((j + 1) % 3, (j + 2) % 3)
        return m[a][c] * m[b][e] - m[a][e] * m[b][c]

    parts = [[minor(i, j) for j in range(3)] for i in range(3)]
    whole = sum(m[0][j] * parts[0][j] for j in range(3))
    if not (m[0][0] > 0 and parts[2][2] > 0 and whole > 0):
        return parts, 0
    return [[x / whole for x in row] for row in parts], whole


def _normals(own: str, other: str) -> Target:
    """Return the divergence of two normals of three dimensions, described in these ways."""
    size = 3 + len(_RANGES[own])
    ways = (own, 0), (other, size)

    def truth(*numbers: Any) -> Any:
        given = [
            _exact_matrix(way, numbers[at + 3 : at + 3 + len(_RANGES[way])]) for way, at in ways
        ]
        (p, _, p_whole), (_, q_inverse, q_whole) = (
            (inverse, m, 1 / whole) if way == "precision" and whole else (m, inverse, whole)
            for (way, _), m in zip(ways, given, strict=True)
            for inverse, whole in [_exact_inverse(m)]
        )
        if not (p_whole and q_whole):
            return mp.inf
        z = [numbers[i] - numbers[size + i] for i in range(3)]
        terms = (q_inverse[i][j] * (p[i][j] + z[i] * z[j]) for i in range(3) for j in range(3))
        return (mpmath.fsum(terms) - 3 + mp.log(q_whole / p_whole)) / 2

    def call(*numbers: Any) -> Any:
        return kldiv.kl_divergence(
            _described(own, *numbers[:size]), _described(other, *numbers[size:])
        )

    def squared(case: Any) -> Any:
        """Return a case whose matrices are squares of the factors that were drawn."""
        rows, columns = zip(*_LOWER, strict=True)
        for way, at in ways:
            if way in {"covariance", "precision"}:
                factor = np.zeros((3, 3))
                factor[rows, columns] = case[at + 3 : at + 9]
                case[at + 3 : at + 9] = (factor @ factor.T)[rows, columns]
        return case

    ranges = tuple(name for way, _ in ways for name in (*3 * ("location",), *_RANGES[way]))
    twins = tuple((i, size + i) for i in range(size if own == other else 3))
    label = f"normals, {own}‖{other}"
    return Target(label, truth, call, ranges, twins, whole=True, made=squared)


def normals() -> Iterator[Target]:
    """Yield normals of three dimensions, each description beside each."""
    for own, other in product(_RANGES, repeat=2):
        yield _normals(own, other)
