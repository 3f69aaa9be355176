"""Families beside themselves: closed forms."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import mpmath
from mpmath import mp

import kldiv
from kldiv import distributions as d

from ...oracle import textbook
from ..searching import Target
from .rows import ROWS, TWINS, by_rows, generalised, halves, space, vector

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def _family(
    name: str, *ranges: str, truth: Any, label: str = "", make: Any = None, **options: Any
) -> Target:
    """Return the divergence of two members of a family whose parameters are these."""
    make, k = make or getattr(d, name), len(ranges)

    def call(*numbers: Any) -> Any:
        return kldiv.kl_divergence(make(*numbers[:k]), make(*numbers[k:]))

    twins = tuple((i, k + i) for i in range(k))
    return Target(label or name, truth, call, 2 * ranges, twins, **options)


def _sigmoid(x: Any) -> Any:
    return 1 / (1 + mp.exp(-x))


def _of_two_rows(name: str) -> Callable[..., Any]:
    make = getattr(d, name)
    return lambda *x: by_rows(lambda p, q: kldiv.kl_divergence(make(p), make(q)), x)


def _triangular(*numbers: Any) -> Any:
    """Return a MultivariateNormal of two dimensions by mean and Cholesky factor."""
    m, n, a, b, c = numbers
    return d.MultivariateNormal(vector(m, n), scale_tril=_matrix(a, 0.0 * a, b, c))


def _by_covariance(a: Any, b: Any, c: Any) -> Any:
    return d.MultivariateNormal(vector(0.0 * a, 0.0 * a), covariance_matrix=_matrix(a, b, b, c))


def _by_precision(a: Any, b: Any, c: Any) -> Any:
    return d.MultivariateNormal(vector(0.0 * a, 0.0 * a), precision_matrix=_matrix(a, b, b, c))


def _low_rank(u: Any, v: Any, a: Any, b: Any) -> Any:
    factor = vector(u, v)[..., None]
    return d.LowRankMultivariateNormal(vector(0.0 * u, 0.0 * u), factor, vector(a, b))


def _matrix(*numbers: Any) -> Any:
    return space(numbers[0]).stack([vector(*numbers[:2]), vector(*numbers[2:])], axis=-2)


def _triangular_truth(*numbers: Any) -> Any:
    (m, n, a, b, c), (o, p, e, f, g) = halves(numbers)
    x, z = a / e, c / g
    y, first = (b - f * x) / g, (m - o) / e
    second = ((n - p) - f * first) / g
    return (x * x + y * y + z * z + first**2 + second**2 - 2) / 2 - mp.log(x * z)


def _covariance_truth(*numbers: Any) -> Any:
    (a, b, c), (e, f, g) = halves(numbers)
    p, q = a * c - b * b, e * g - f * f
    if min(p, q) <= 0:
        return mp.inf
    return ((a * g + c * e - 2 * b * f) / q - 2 + mp.log(q / p)) / 2


def _precision_truth(*numbers: Any) -> Any:
    p, q = halves(numbers)
    return _covariance_truth(*q, *p)


def _low_rank_truth(*numbers: Any) -> Any:
    return _covariance_truth(
        *(x for u, v, a, b in halves(numbers) for x in (u * u + a, u * v, v * v + b))
    )


def _binomials(n: int, m: int) -> Target:
    def truth(p: Any, q: Any) -> Any:
        def mass(k: int, n: int, p: Any) -> Any:
            return mp.binomial(n, k) * p**k * (1 - p) ** (n - k)

        pairs = [(mass(k, n, p), mass(k, m, q)) for k in range(n + 1)]
        return mpmath.fsum(x * mp.log(x / y) for x, y in pairs)

    def call(p: Any, q: Any) -> Any:
        return kldiv.kl_divergence(d.Binomial(n, p), d.Binomial(m, q))

    return Target(f"Binomial {n}, {m}", truth, call, 2 * ("probability",), ((0, 1),))


def _negative_binomial(r: Any, p: Any, q: Any) -> Any:
    return r * textbook.bernoulli(p, q) / (1 - p)


def closed_forms() -> Iterator[Target]:
    """Yield the families with themselves whose divergence stands in a textbook."""
    t = textbook
    located = {
        "Normal": t.normal, "LogNormal": t.normal, "LogitNormal": t.normal, "Laplace": t.laplace,
        "Cauchy": t.cauchy, "Gumbel": t.gumbel,
    }  # fmt: skip
    for name, truth in located.items():
        yield _family(name, "location", "scale", truth=truth)
    yield _family(
        "Normal",
        "location",
        "logit",
        truth=lambda m, v, n, w: t.normal(m, mp.exp(v / 2), n, mp.exp(w / 2)),
        label="Normal, log-variance",
        make=d.Normal.from_log_variance,
    )
    yield _family("HalfNormal", "scale", truth=t.half_normal)
    yield _family("HalfCauchy", "scale", truth=lambda s, u: t.cauchy(0, s, 0, u))
    yield _family("Exponential", "scale", truth=t.exponential)
    yield _family("Gamma", "shape", "scale", truth=t.gamma)
    yield _family("InverseGamma", "shape", "scale", truth=t.gamma)
    yield _family("Chi2", "shape", truth=t.chi2)
    yield _family("Chi", "shape", truth=t.chi2)
    yield _family("Beta", "shape", "shape", truth=t.beta)
    yield Target(
        "Dirichlet",
        lambda *x: t.dirichlet(*halves(x)),
        _of_two_rows("Dirichlet"),
        ROWS * ("shape",),
        TWINS,
    )
    yield _family("Weibull", "scale", "shape", truth=t.weibull)
    yield _family("Pareto", "scale", "scale", truth=t.pareto)
    yield Target(
        "Uniform",
        lambda a, b, c, e: mp.log((c + e) / (a + b)) if a <= c and b <= e else mp.inf,
        lambda a, b, c, e: kldiv.kl_divergence(d.Uniform(-a, b), d.Uniform(-c, e)),
        4 * ("scale",),
        ((0, 2), (1, 3)),
    )
    yield Target(
        "Kumaraswamy",
        lambda a, b, c: t.exponential(b, c) + 0 * a,
        lambda a, b, c: kldiv.kl_divergence(d.Kumaraswamy(a, b), d.Kumaraswamy(a, c)),
        3 * ("shape",),
        ((1, 2),),
    )
    yield _family("VonMises", "angle", "shape", truth=t.von_mises)
    yield _family("Poisson", "scale", truth=t.poisson)
    for name, truth in {
        "Bernoulli": t.bernoulli,
        "Geometric": t.geometric,
        "ContinuousBernoulli": t.continuous_bernoulli,
    }.items():
        yield _family(name, "probability", truth=truth)
        yield _family(
            name,
            "logit",
            truth=lambda a, b, f=truth: f(_sigmoid(a), _sigmoid(b)),
            label=f"{name}, logits",
            make=lambda a, name=name: getattr(d, name)(logits=a),
        )
    # The count is no parameter here: it is P's and Q's at once.
    yield _family(
        "NegativeBinomial",
        "probability",
        truth=partial(_negative_binomial, 3),
        make=partial(d.NegativeBinomial, 3),
    )
    yield _family(
        "",
        "logit",
        truth=lambda a, b: _negative_binomial(3, _sigmoid(a), _sigmoid(b)),
        label="NegativeBinomial, logits",
        make=lambda a: d.NegativeBinomial(3, logits=a),
    )
    yield _binomials(7, 7)
    yield _binomials(5, 9)
    yield Target(
        "Categorical", generalised, _of_two_rows("Categorical"), ROWS * ("probability",), TWINS
    )
    own = ("location", "location", "scale", "location", "scale")
    yield _family("MultivariateNormal", *own, truth=_triangular_truth, make=_triangular, whole=True)
    for kind, make, truth in (
        ("covariance", _by_covariance, _covariance_truth),
        ("precision", _by_precision, _precision_truth),
    ):
        label = f"MultivariateNormal, {kind}"
        given = ("scale", "location", "scale")
        yield _family("", *given, truth=truth, make=make, label=label, whole=True)
    yield _family(
        "LowRankMultivariateNormal",
        *("location", "location", "scale", "scale"),
        truth=_low_rank_truth,
        make=_low_rank,
        whole=True,
    )
