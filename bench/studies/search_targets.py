"""The public functions that the search attacks, with their truth by mpmath, in groups."""

from __future__ import annotations

from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

import mpmath
import numpy as np
from mpmath import mp

import kldiv
from kldiv import distributions as d
from kldiv import divergences, estimators

from ..oracle import moments, textbook
from .searching import Target

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_CLASSES = 3
_ROWS = 2 * _CLASSES
_TWINS = tuple((i, _CLASSES + i) for i in range(_CLASSES))


def _space(number: Any) -> Any:
    return kldiv.backends.find(number).namespace(number)


def _halves(numbers: Sequence[Any]) -> tuple[Any, Any]:
    return numbers[: len(numbers) // 2], numbers[len(numbers) // 2 :]


# --- families with themselves ---------------------------------------------------------------------


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
    return lambda *x: _rows(lambda p, q: kldiv.kl_divergence(make(p), make(q)), x)


def _triangular(*numbers: Any) -> Any:
    """Return a MultivariateNormal of two dimensions by mean and Cholesky factor."""
    m, n, a, b, c = numbers
    return d.MultivariateNormal(_vector(m, n), scale_tril=_matrix(a, 0.0 * a, b, c))


def _by_covariance(a: Any, b: Any, c: Any) -> Any:
    return d.MultivariateNormal(_vector(0.0 * a, 0.0 * a), covariance_matrix=_matrix(a, b, b, c))


def _by_precision(a: Any, b: Any, c: Any) -> Any:
    return d.MultivariateNormal(_vector(0.0 * a, 0.0 * a), precision_matrix=_matrix(a, b, b, c))


def _low_rank(u: Any, v: Any, a: Any, b: Any) -> Any:
    factor = _vector(u, v)[..., None]
    return d.LowRankMultivariateNormal(_vector(0.0 * u, 0.0 * u), factor, _vector(a, b))


def _vector(*numbers: Any) -> Any:
    return _space(numbers[0]).stack(numbers, axis=-1)


def _matrix(*numbers: Any) -> Any:
    return _space(numbers[0]).stack([_vector(*numbers[:2]), _vector(*numbers[2:])], axis=-2)


def _triangular_truth(*numbers: Any) -> Any:
    (m, n, a, b, c), (o, p, e, f, g) = _halves(numbers)
    x, z = a / e, c / g
    y, first = (b - f * x) / g, (m - o) / e
    second = ((n - p) - f * first) / g
    return (x * x + y * y + z * z + first**2 + second**2 - 2) / 2 - mp.log(x * z)


def _covariance_truth(*numbers: Any) -> Any:
    (a, b, c), (e, f, g) = _halves(numbers)
    p, q = a * c - b * b, e * g - f * f
    if min(p, q) <= 0:
        return mp.inf
    return ((a * g + c * e - 2 * b * f) / q - 2 + mp.log(q / p)) / 2


def _precision_truth(*numbers: Any) -> Any:
    p, q = _halves(numbers)
    return _covariance_truth(*q, *p)


def _low_rank_truth(*numbers: Any) -> Any:
    return _covariance_truth(
        *(x for u, v, a, b in _halves(numbers) for x in (u * u + a, u * v, v * v + b))
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
        lambda *x: t.dirichlet(*_halves(x)),
        _of_two_rows("Dirichlet"),
        _ROWS * ("shape",),
        _TWINS,
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
        "Categorical", _generalised, _of_two_rows("Categorical"), _ROWS * ("probability",), _TWINS
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


# --- normals of three dimensions, described in like and unlike ways -------------------------------

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
    loc, x = _vector(*numbers[:3]), numbers[3:]
    if way == "diagonal":
        return d.MultivariateNormalDiag(loc, _vector(*x))
    if way == "low rank":
        factor = _space(loc).stack([_vector(*x[:3]), _vector(*x[3:6])], axis=-1)
        return d.LowRankMultivariateNormal(loc, factor, _vector(*x[6:]))
    matrix = [[0.0 * x[0]] * 3 for _ in range(3)]
    for (i, j), value in zip(_LOWER, x, strict=True):
        matrix[i][j] = value
        if way != "scale_tril":
            matrix[j][i] = value
    name = "scale_tril" if way == "scale_tril" else f"{way}_matrix"
    rows = [_vector(*row) for row in matrix]
    return d.MultivariateNormal(loc, **{name: _space(loc).stack(rows, axis=-2)})


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


# --- different families ---------------------------------------------------------------------------

_PARAMETERS: dict[str, tuple[str, ...]] = {
    "Beta": ("shape", "shape"),
    "ContinuousBernoulli": ("logit",),
    "Exponential": ("scale",),
    "Gamma": ("shape", "scale"),
    "Gumbel": ("location", "scale"),
    "HalfNormal": ("scale",),
    "Laplace": ("location", "scale"),
    "LogNormal": ("location", "scale"),
    "Normal": ("location", "scale"),
    "Pareto": ("scale", "scale"),
    "Uniform": ("probability", "probability"),
    "Weibull": ("scale", "shape"),
}
_CROSS = {
    "Beta": "ContinuousBernoulli Exponential Gamma HalfNormal Normal Uniform",
    "ContinuousBernoulli": "Exponential HalfNormal Normal Uniform",
    "Exponential": "Gumbel HalfNormal Normal",
    "Gamma": "Gumbel HalfNormal Normal",
    "Gumbel": "Normal",
    "HalfNormal": "Exponential Gamma Normal",
    "Laplace": "Gumbel Normal",
    "LogNormal": "Exponential Gamma HalfNormal Normal",
    "Normal": "Gumbel Laplace",
    "Pareto": "Exponential Gamma HalfNormal Normal",
    "Uniform": "Beta ContinuousBernoulli Exponential Gamma Gumbel HalfNormal Laplace Normal Pareto",
    "Weibull": "Gamma HalfNormal Normal",
}
_CROSS_UNITS = 1678.0
"""1e-4 in float32; in float64 it is a millionth of the target 1e-10."""


def _made(name: str, numbers: Sequence[Any]) -> Any:
    if name == "ContinuousBernoulli":
        return d.ContinuousBernoulli(logits=numbers[0])
    return getattr(d, name)(*numbers)


def _matched(q: str, p: str, numbers: Sequence[float]) -> list[float] | None:
    """Return parameters of Q whose moments are P's, or about them."""
    with mpmath.workdps(30):
        _, mean, variance, *_ = moments.P[p](*map(mp.mpf, numbers))
        if not 0 < variance < mp.inf:
            return None
        scale = mp.sqrt(variance)
        beta = scale * mp.sqrt(6) / mp.pi
        found = {
            "Beta": (1, 1),
            "ContinuousBernoulli": (mp.mpf("1e-3"),),
            "Exponential": (1 / mean,),
            "Gamma": (mean**2 / variance, mean / variance),
            "Gumbel": (mean - mp.euler * beta, beta),
            "HalfNormal": (mp.sqrt(mean**2 + variance),),
            "Laplace": (mean, scale / mp.sqrt(2)),
            "Normal": (mean, scale),
        }.get(q)
    return None if found is None else [float(x) for x in found]


def _cross(p: str, q: str) -> Target:
    size = len(_PARAMETERS[p])
    exact = moments.divergence(p, q, size)

    def fits(*x: Any) -> bool:
        of_p, of_q = x[:size], x[size:]
        if p == "Uniform" and not of_p[0] < of_p[1]:
            return False
        if q == "Pareto":
            return bool(of_q[0] <= of_p[0])
        return not (p == "Pareto" and of_p[1] <= (1 if q in {"Exponential", "Gamma"} else 2))

    def call(*x: Any) -> Any:
        of_q = (-x[size], x[size + 1]) if q == "Uniform" else x[size:]
        return kldiv.kl_divergence(_made(p, x[:size]), _made(q, of_q))

    def truth(*x: Any) -> Any:
        if not fits(*x):
            return mp.inf
        return exact(*x[:size], -x[size], x[size + 1]) if q == "Uniform" else exact(*x)

    def near(numbers: Sequence[float]) -> list[float] | None:
        return _matched(q, p, numbers[:size]) if fits(*numbers) else None

    ranges = _PARAMETERS[p] + (("scale", "above") if q == "Uniform" else _PARAMETERS[q])
    return Target(f"{p}‖{q}", truth, call, ranges, units=_CROSS_UNITS, near=near)


def cross_families() -> Iterator[Target]:
    """Yield pairs of different families with textbook moments."""
    for p, qs in _CROSS.items():
        for q in qs.split():
            yield _cross(p, q)
    yield Target(
        "Bernoulli‖Poisson",
        lambda p, r: p * mp.log(p / r) + (1 - p) * mp.log(1 - p) + r - p + p,
        lambda p, r: kldiv.kl_divergence(d.Bernoulli(p), d.Poisson(r)),
        ("probability", "scale"),
        ((0, 1),),
    )


# --- rows of probabilities ------------------------------------------------------------------------


def _rows(function: Any, numbers: Any, **options: Any) -> Any:
    """Return a function of two rows: the first half of the numbers, and the rest."""
    return function(*(_vector(*half) for half in _halves(numbers)), **options)


def _generalised(*numbers: Any) -> Any:
    pairs = zip(*_halves(numbers), strict=True)
    return mpmath.fsum(p * mp.log(p / q) - p + q for p, q in pairs)


def _mixed(m: Any, a: Any, b: Any) -> Callable[..., Any]:
    """Return a·D(P‖M) + b·D(Q‖M), M = mP + (1 − m)Q, of two rows."""
    m, a, b = map(mp.mpf, (m, a, b))

    def value(*numbers: Any) -> Any:
        p, q = _halves(numbers)
        mixture = [m * x + (1 - m) * y for x, y in zip(p, q, strict=True)]
        return a * _generalised(*p, *mixture) + b * _generalised(*q, *mixture)

    return value


def _renyi(alpha: float) -> Callable[..., Any]:
    def value(*numbers: Any) -> Any:
        pairs = zip(*_halves(numbers), strict=True)
        order = mp.mpf(alpha)
        return mp.log(mpmath.fsum(p**order * q ** (1 - order) for p, q in pairs)) / (order - 1)

    return value


def _normalised(truth: Callable[..., Any]) -> Callable[..., Any]:
    def value(*numbers: Any) -> Any:
        sums = [mpmath.fsum(half) for half in _halves(numbers)]
        pairs = zip(_halves(numbers), sums, strict=True)
        return truth(*(x / total for half, total in pairs for x in half))

    return value


def _entropy(*p: Any) -> Any:
    return -mpmath.fsum(x * mp.log(x) for x in p)


def _cross_entropy(*numbers: Any) -> Any:
    return -mpmath.fsum(p * mp.log(q) for p, q in zip(*_halves(numbers), strict=True))


def measures() -> Iterator[Target]:
    """Yield measures of rows of probabilities, as they are and normalised."""
    k = kldiv
    both = {"jeffreys_divergence": lambda *x: _generalised(*x) + _generalised(*x[3:], *x[:3])}
    plain: dict[str, Any] = {
        "kl_divergence": _generalised,
        "js_divergence": _mixed(0.5, 0.5, 0.5),
        **both,
        "cross_entropy": _cross_entropy,
    }
    for name, truth in plain.items():
        function = getattr(kldiv, name)
        for normalize in (False, True):
            call = partial(lambda f, n, *x: _rows(f, x, normalize=n), function, normalize)
            label, exact = (
                (f"{name}, normalised", _normalised(truth)) if normalize else (name, truth)
            )
            yield Target(label, exact, call, _ROWS * ("probability",), _TWINS)
    yield Target(
        "js_divergence, weights",
        _mixed(0.125, 0.125, 0.875),
        lambda *x: _rows(kldiv.js_divergence, x, weights=(0.125, 0.875)),
        _ROWS * ("probability",),
        _TWINS,
    )
    powers = {
        "hellinger_divergence": (_hellinger, k.hellinger_divergence, {}),
        "chi2_divergence": (_of_powers(2.0, 2.0), k.chi2_divergence, {}),
        "tv_divergence": (_variation, k.tv_divergence, {}),
        "skew_divergence": (_mixed(0.125, 1, 0), k.skew_divergence, {"alpha": 0.125}),
    }
    for alpha in (-0.5, 0.25, 0.75, 1.5):
        powers[f"alpha_divergence {alpha:g}"] = (
            _of_powers(alpha), k.alpha_divergence, {"alpha": alpha},
        )  # fmt: skip
    for name, (truth, function, options) in powers.items():
        call = partial(lambda f, o, *x: _rows(f, x, **o), function, options)
        order = 1 if truth is _variation else 2
        yield Target(name, truth, call, _ROWS * ("probability",), _TWINS, order=order)
    for alpha in (2.0**-10, 0.375, 0.5, 0.984375, 1.5, 2.0, 20.0):
        yield Target(
            f"renyi_divergence {alpha:g}",
            _normalised(_renyi(alpha)),
            partial(lambda a, *x: _rows(kldiv.renyi_divergence, x, alpha=a, normalize=True), alpha),
            _ROWS * ("probability",),
            _TWINS,
        )
    yield Target(
        "entropy",
        _entropy,
        lambda *x: kldiv.entropy(_vector(*x)),
        _CLASSES * ("probability",),
    )
    yield Target(
        "entropy, normalised",
        lambda *x: _entropy(*(each / mpmath.fsum(x) for each in x)),
        lambda *x: kldiv.entropy(_vector(*x), normalize=True),
        _CLASSES * ("probability",),
    )
    yield Target(
        "kl_div",
        lambda x, y: y * (mp.log(y) - x),
        lambda x, y: kldiv.kl_div(x, y, reduction="none"),
        ("logit", "probability"),
        signed=True,
    )
    yield Target(
        "kl_div, log_target",
        lambda x, y: mp.exp(y) * (y - x),
        lambda x, y: kldiv.kl_div(x, y, reduction="none", log_target=True),
        ("logit", "logit"),
        ((0, 1),),
        signed=True,
    )
    yield Target(
        "plug_in_kl",
        _plug_in,
        lambda *x: _rows(estimators.plug_in_kl, x),
        _ROWS * ("count",),
        _TWINS,
        order=0,
        signed=True,
    )
    for name, truth in {
        "kl_pq": _generalised,
        "kl_qp": lambda *x: _generalised(*x[_CLASSES:], *x[:_CLASSES]),
        "js": _mixed(0.5, 0.5, 0.5),
    }.items():
        for form, label, exact, ranges in (
            ("probs", "probability", truth, "probability"),
            ("logits", "logit", _swapped(_softmaxed(truth)), "logit"),
        ):
            yield Target(
                f"streaming.compare {name} of {label}s",
                exact,
                partial(_compared, name, form),
                _ROWS * (ranges,),
                _TWINS,
                order=0,
                libraries=("numpy",),
            )


def _plug_in(*numbers: Any) -> Any:
    counts, others = _halves(numbers)
    n, m = mpmath.fsum(counts), mpmath.fsum(others)
    p, q = [x / n for x in counts], [x / m for x in others]
    ratio = mpmath.fsum(x / y for x, y in zip(p, q, strict=True))
    return _generalised(*p, *q) - (_CLASSES - 1) / (2 * n) - (ratio - 1) / (2 * m)


def _compared(name: str, form: Any, *numbers: Any) -> Any:
    from kldiv.streaming import compare

    p, q = (_vector(*half) for half in _halves(numbers))
    return getattr(compare(p, q, form=form, reduction="none"), name).values


# --- rows of logits -------------------------------------------------------------------------------


def _softmax(logits: Sequence[Any]) -> list[Any]:
    weights = [mp.exp(x) for x in logits]
    total = mpmath.fsum(weights)
    return [w / total for w in weights]


def _softmaxed(truth: Callable[..., Any], temperature: float = 1.0) -> Callable[..., Any]:
    """Return a function of P and Q as one of the logits of Q and P."""
    scale = mp.mpf(temperature)

    def value(*logits: Any) -> Any:
        s, t = _halves([x / scale for x in logits])
        return truth(*_softmax(t), *_softmax(s))

    return value


def _swapped(truth: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *x: truth(*_halves(x)[1], *_halves(x)[0])


def _variation(*numbers: Any) -> Any:
    return mpmath.fsum(abs(p - q) for p, q in zip(*_halves(numbers), strict=True)) / 2


def _hellinger(*numbers: Any) -> Any:
    pairs = zip(*_halves(numbers), strict=True)
    return mpmath.fsum((mp.sqrt(p) - mp.sqrt(q)) ** 2 for p, q in pairs) / 2


def _alpha(alpha: float, times: float = 1.0) -> Callable[..., Any]:
    def value(*numbers: Any) -> Any:
        pairs = zip(*_halves(numbers), strict=True)
        order = mp.mpf(alpha)
        powers = mpmath.fsum(p**order * q ** (1 - order) for p, q in pairs)
        return times * (powers - 1) / (order * (order - 1))

    return value


def _of_powers(alpha: float, times: float = 1.0) -> Callable[..., Any]:
    """Return the α-divergence of rows that need not sum to 1, a number of times."""
    whole = _alpha(alpha, times)

    def value(*numbers: Any) -> Any:
        p, q = _halves(numbers)
        order = mp.mpf(alpha)
        mixed = order * mpmath.fsum(p) + (1 - order) * mpmath.fsum(q)
        return whole(*numbers) - times * (mixed - 1) / (order * (order - 1))

    return value


def _weighted(w: float, r: float) -> Callable[..., Any]:
    def value(*x: Any) -> Any:
        return mp.mpf(w) * _generalised(*x) + mp.mpf(r) * _generalised(*x[3:], *x[:3])

    return value


def _sparse_truth(truth: Callable[..., Any], tail: str, *numbers: Any) -> Any:
    """Return the divergence of two classes of four and, unless renormalized, the rest as one.

    The teacher's numbers are −log p.
    """
    p, q = [mp.exp(-x) for x in numbers[4:]], _softmax(numbers[:4])
    rest = 1 - mpmath.fsum(p)
    if rest <= 0:
        return mp.inf
    if tail == "renormalize":
        return truth(*(x / mpmath.fsum(r) for r in (p, q[:2]) for x in r))
    return truth(*p, rest, *q[:2], mpmath.fsum(q[2:]))


def _sparse_loss(options: dict[str, Any], *numbers: Any, **more: Any) -> Any:
    """Return `topk_kl_div_with_logits` of two classes of four."""
    return kldiv.topk_kl_div_with_logits(
        _vector(*numbers[:4]), -_vector(*numbers[4:]), _indices(numbers[0]), reduction="none",
        **options, **more,
    )  # fmt: skip


def _matched_truth(truth: Callable[..., Any], *logits: Any) -> Any:
    """Return the divergence of rows of which the first two classes match, the rest being one."""
    q, p = (_softmax(half) for half in _halves(logits))
    return truth(*p[:2], mpmath.fsum(p[2:]), *q[:2], mpmath.fsum(q[2:]))


def _indices(number: Any) -> Any:
    """Return classes 0 and 1 of every row."""
    one = _labels(number)
    return _vector(0 * one, one)


def _labels(number: Any) -> Any:
    """Return label 1 for every row, as the library's integers."""
    xp = _space(number)
    return xp.astype(xp.ones_like(number), xp.int32 if "torch" not in xp.__name__ else xp.int64)


def _hard(logits: Sequence[Any]) -> Any:
    return -mp.log(_softmax(logits)[1])


def losses() -> Iterator[Target]:
    """Yield losses of rows of logits, their first half the input's."""
    k, logit = kldiv, ("logit",)
    pairs: dict[str, tuple[Any, Any, dict[str, Any]]] = {
        "kl_div_with_logits": (_generalised, k.kl_div_with_logits, {}),
        "js_div_with_logits": (_mixed(0.5, 0.5, 0.5), k.js_div_with_logits, {}),
        "js_div_with_logits 0.125": (
            _mixed(0.125, 0.125, 0.875), k.js_div_with_logits, {"beta": 0.125},
        ),
        "skew_kl_div_with_logits": (
            _mixed(0.125, 1, 0), k.skew_kl_div_with_logits, {"alpha": 0.125},
        ),
        "skew_kl_div_with_logits, reverse": (
            _mixed(0.875, 0, 1), k.skew_kl_div_with_logits, {"alpha": 0.125, "reverse": True},
        ),
        "jeffreys_div_with_logits": (_weighted(1, 1), k.jeffreys_div_with_logits, {}),
        "jeffreys_div_with_logits, weights": (
            _weighted(0.25, 0.75), k.jeffreys_div_with_logits, {"weights": (0.25, 0.75)},
        ),
        "tv_div_with_logits": (_variation, k.tv_div_with_logits, {}),
        "hellinger_div_with_logits": (_hellinger, k.hellinger_div_with_logits, {}),
        "chi2_div_with_logits": (_alpha(2.0, 2.0), k.chi2_div_with_logits, {}),
        **{
            f"alpha_div_with_logits {alpha:g}": (
                _alpha(alpha), k.alpha_div_with_logits, {"alpha": alpha},
            )
            for alpha in (-0.5, 0.25, 0.75, 1.5)
        },
        **{
            f"renyi_div_with_logits {alpha:g}": (
                _renyi(alpha), k.renyi_div_with_logits, {"alpha": alpha},
            )
            for alpha in (0.375, 2.0, 20.0)
        },
        "f_div_with_logits": (
            _mixed(0.25, 1, 2),
            k.f_div_with_logits,
            {"divergence": divergences.Mixture(0.25, 1.0, 2.0)},
        ),
        "distillation_loss": (_mixed(0.5, 0.5, 0.5), k.distillation_loss, {}),
        "distillation_loss, forward": (_generalised, k.distillation_loss, {"beta": 0.0}),
        "distillation_loss, reverse": (
            lambda *x: _generalised(*x[3:], *x[:3]), k.distillation_loss, {"beta": 1.0},
        ),
    }  # fmt: skip
    for name, (truth, function, options) in pairs.items():
        call = partial(lambda f, o, *x: _rows(f, x, reduction="none", **o), function, options)
        order = 1 if truth is _variation else 2  # it has kinks
        yield Target(name, _softmaxed(truth), call, _ROWS * logit, _TWINS, order=order)
    for name in (
        "kl_div_with_logits", "js_div_with_logits", "jeffreys_div_with_logits",
        "hellinger_div_with_logits", "alpha_div_with_logits 0.25", "renyi_div_with_logits 2",
    ):  # fmt: skip
        truth, function, options = pairs[name]
        yield Target(
            f"{name}, temperature",
            lambda *x, truth=truth: _softmaxed(truth)(*(v / x[-1] for v in x[:-1])),
            lambda *x, f=function, o=options: _rows(
                f, x[:-1], reduction="none", temperature=x[-1], **o
            ),
            (*_ROWS * logit, "temperature"),
            _TWINS,
            digits=400,  # logits over T reach 600
        )
    sparse: dict[str, tuple[Any, dict[str, Any]]] = {
        "forward": (_generalised, {}),
        "renormalize": (_generalised, {"tail": "renormalize"}),
        "reverse": (lambda *x: _generalised(*_halves(x)[1], *_halves(x)[0]), {"beta": 1.0}),
        "JS": (_mixed(0.5, 0.5, 0.5), {"beta": 0.5}),
        "Hellinger": (_hellinger, {"divergence": divergences.Hellinger()}),
        "Alpha": (_alpha(1.5), {"divergence": divergences.Alpha(1.5)}),
    }
    for name, (truth, options) in sparse.items():
        exact = partial(_sparse_truth, truth, options.get("tail", "bucket"))
        given = partial(_sparse_loss, options)
        numbers = (*4 * logit, *2 * ("shape",))
        whole = f"topk_kl_div_with_logits, {name}"
        yield Target(whole, exact, given, numbers, digits=200)
        yield Target(
            f"{whole}, temperature",
            lambda *x, exact=exact: exact(*(v / x[-1] for v in x[:4]), *x[4:-1]),
            lambda *x, given=given: given(*x[:-1], temperature=x[-1]),
            (*numbers, "temperature"),
            digits=400,
        )
    for name in ("kl_div_with_logits", "js_div_with_logits", "hellinger_div_with_logits"):
        truth, function, _ = pairs[name]
        yield Target(
            f"{name}, matched",
            partial(_matched_truth, truth),
            lambda *x, f=function: f(
                _vector(*x[:4]), _vector(*x[4:]), reduction="none",
                input_classes=[0, 1], target_classes=[0, 1],
            ),
            8 * logit,
            ((0, 4), (1, 5), (2, 6), (3, 7)),
            units=500.0,  # masses of unlike classes are rounded, however near they are
            digits=200,
        )  # fmt: skip
    yield Target(
        "distillation_loss, hard",
        lambda *x: (
            _hard(x[:3]) / 4 + 3 * _softmaxed(_mixed(0.25, 0.25, 0.75), 2.0)(*x)
        ),
        lambda *x: _rows(
            k.distillation_loss, x, labels=_labels(x[0]), beta=0.25, hard_weight=0.25,
            temperature=2.0, scale_by_temperature=True, reduction="none",
        ),
        _ROWS * logit,
        _TWINS,
        units=100.0,  # a sum, whose parts' slopes may cancel
    )  # fmt: skip
    yield Target(
        "cross_entropy_with_logits",
        _softmaxed(_cross_entropy),
        lambda *x: _rows(k.cross_entropy_with_logits, x, reduction="none"),
        _ROWS * logit,
        _TWINS,
    )
    yield Target(
        "cross_entropy_with_logits, labels",
        lambda *x: _hard(x),
        lambda *x: k.cross_entropy_with_logits(_vector(*x), _labels(x[0]), reduction="none"),
        _CLASSES * logit,
    )
    yield Target(
        "entropy_with_logits",
        lambda *x: _of_softmax(x),
        lambda *x: k.entropy_with_logits(_vector(*x), reduction="none"),
        _CLASSES * logit,
    )
    for index, (part, exact) in enumerate({"log_prob": _hard, "entropy": _of_softmax}.items()):
        yield Target(
            f"log_prob_and_entropy_with_logits, {part}",
            lambda *x, exact=exact: exact(x),
            partial(_policy, index),
            _CLASSES * logit,
        )
    yield Target(
        "linear_kl_div",
        lambda h, a, b, g, c, e: _softmaxed(_generalised)(h * a, h * b, g * c, g * e),
        lambda h, a, b, g, c, e: kldiv.linear_kl_div(
            h[..., None, None], _vector(a, b)[..., None], g[..., None, None],
            _vector(c, e)[..., None], reduction="sum",
        ),
        _ROWS * ("small",),
        _TWINS,
        alone=True,
    )  # fmt: skip
    yield Target(
        "KLState",
        _softmaxed(_generalised),
        _merged,
        _ROWS * logit,
        _TWINS,
        order=0,
        libraries=("numpy", "torch"),
    )


def _of_softmax(logits: Sequence[Any]) -> Any:
    return _entropy(*_softmax(logits))


def _policy(index: int, *x: Any) -> Any:
    found = kldiv.log_prob_and_entropy_with_logits(_vector(*x), _labels(x[0]))[index]
    return found if index else -found


def _merged(*numbers: Any) -> Any:
    s, t = (_vector(*half) for half in _halves(numbers))
    parts = [kldiv.KLState.from_logits(s[..., i], t[..., i]) for i in (slice(2), slice(2, None))]
    return parts[0].merge(parts[1]).kl()


# --- samples --------------------------------------------------------------------------------------


def samples() -> Iterator[Target]:
    """Yield estimates from samples."""
    kinds: dict[str, Any] = {
        "k1": lambda x: x,
        "k2": lambda x: x * x / 2,
        "k3": lambda x: mp.expm1(-x) + x,
    }
    for kind, truth in kinds.items():
        yield Target(
            f"kl_estimate {kind}",
            partial(lambda f, p, q: f(p - q), truth),
            partial(lambda k, p, q: estimators.kl_estimate(p, q, kind=k, reduction="none"), kind),
            ("logit", "logit"),
            ((0, 1),),
            signed=kind == "k1",
        )
    yield Target(
        "kl_estimate, weight",
        lambda p, q, w: w * kinds["k3"](p - q),
        lambda p, q, w: estimators.kl_estimate(p, q, weight=w, reduction="none"),
        ("logit", "logit", "scale"),
        ((0, 1),),
    )
    yield Target(
        "monte_carlo_kl",
        lambda *x: mpmath.fsum(kinds["k3"](p - q) for p, q in zip(*_halves(x), strict=True)) / 3,
        lambda *x: _each(lambda p, q: estimators.monte_carlo_kl(p, q).value, x),
        _ROWS * ("logit",),
        _TWINS,
        order=0,
        libraries=("numpy", "torch"),
    )
    yield Target(
        "knn_kl",
        _nearest,
        lambda *x: _each(lambda p, q: estimators.knn_kl(p, q, k=1), x),
        _ROWS * ("location",),
        units=100.0,  # a mean of logarithms of both signs
        signed=True,
        order=0,
        libraries=("numpy", "torch"),
    )


def _each(function: Any, numbers: Any) -> Any:
    pairs = zip(*(_vector(*half) for half in _halves(numbers)), strict=True)
    return np.array([float(function(p, q)) for p, q in pairs])


def _nearest(*numbers: Any) -> Any:
    x, y = _halves(numbers)
    total = mp.mpf(0)
    for i, a in enumerate(x):
        own = min(abs(a - b) for j, b in enumerate(x) if j != i)
        other = min(abs(a - b) for b in y)
        if not own or not other:
            return mp.inf
        total += mp.log(other / own)
    return total / len(x) + mp.log(mp.mpf(len(y)) / (len(x) - 1))


GROUPS = {
    "closed forms": closed_forms,
    "normals": normals,
    "different families": cross_families,
    "measures": measures,
    "losses of logits": losses,
    "samples": samples,
}
