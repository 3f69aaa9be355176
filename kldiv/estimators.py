"""Divergences from samples: log-ratios of a policy, two sets of points, or counts."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import numpy as np

from kldiv import backends
from kldiv._arguments import as_number, check_axis, check_mask, check_numbers
from kldiv._call import (
    Call,
    check_reduction,
    differentiable,
    dtypes,
    integers_in_float64,
    record_of,
    resolve_arrays,
)
from kldiv.backends.base import HALVES
from kldiv.errors import OptionError, ShapeError
from kldiv.formulas import samples
from kldiv.formulas.estimators import K1, K2, K3, Clipped, ScoreFunction
from kldiv.formulas.pointwise import PointwiseLoss
from kldiv.formulas.reductions import cast, divide
from kldiv.formulas.weighting import Weighted

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kldiv._types import Array, ArrayT, Reduction, SupportsArray
    from kldiv.formulas.pointwise import Pointwise

    Kind: TypeAlias = Literal[
        "k1", "k2", "k3", "k1+", "k3+", "kl", "kl+", "mse", "low_var_kl", "low_var_kl+"
    ]

_DOMINANT = 0.25
"""The largest share of the variance that one sample may have."""
_EFFECTIVE = 50
"""The least effective number of samples by q/p, or a quarter of all if that is less."""

_APART = 4.0
"""How many standard errors the mean of q/p may be from 1; within `_ROUNDED` it always may."""
_ROUNDED = 1e-6

_LEAST = 1e-150
"""A distance whose square is a normal number, and that of its inverse too."""

_SAMPLES = "the samples (for a weight a row add an axis: weight[:, None])"

_KINDS: dict[str, Pointwise] = {"k1": K1(), "k2": K2(), "k3": K3()}
_ALIASES = {"kl": "k1", "mse": "k2", "low_var_kl": "k3"}
"""The names of verl and of others after it."""


class Estimate(NamedTuple):
    """
    An estimated divergence, how uncertain it is, and from how many samples, in nats.

    Parameters
    ----------
    value : float
        The estimate.
    standard_error : float
        Its standard error.
    low, high : float
        The confidence interval.
    samples : int
        How many samples it rests on.
    note : str, default ""
        Why the interval may cover less often than it says; empty where nothing speaks for that.
    """

    value: float
    standard_error: float
    low: float
    high: float
    samples: int
    note: str = ""


@differentiable(2)
def kl_estimate(
    log_p: ArrayT,
    log_q: ArrayT,
    *,
    kind: Kind = "k3",
    unbiased_gradient: bool = False,
    log_ratio_clip: float | None = None,
    weight: SupportsArray | None = None,
    reduction: Reduction = "mean",
    where: SupportsArray | None = None,
    dtype: Any = None,
) -> Call[ArrayT]:
    r"""
    Estimate D(P‖Q) from log-probabilities of samples of P, in nats: k1, k2 or k3.

    With x = log p − log q of each sample, k1 is x, k2 is x²/2 and k3 is e⁻ˣ − 1 + x.

    Parameters
    ----------
    log_p : array
        Logarithms of P's probability (or density) at samples of P: in reinforcement learning the
        policy's log-probabilities of the tokens that it sampled.
    log_q : array
        Logarithms of Q's at the same samples: the reference's; of the same shape.
    kind : {"k1", "k2", "k3", "k1+", "k3+"}, default "k3"
        ``"k1"`` is unbiased, of large variance, and negative for many samples. ``"k2"`` is biased
        and never negative. ``"k3"`` is unbiased, never negative, and of small variance where P and
        Q are close; right to a few units in the last place of itself. ``"kl"``, ``"mse"`` and
        ``"low_var_kl"``, verl's names, are k1, k2 and k3; a ``+`` behind any is
        ``unbiased_gradient=True``.
    unbiased_gradient : bool, default False
        Whether the gradient is that of k2 whatever the kind: see the notes.
    log_ratio_clip : float, optional
        A positive number of nats: x is moved into [−it, it] first, in the value and in the slope,
        while the clip itself has the slope 1 (straight through). k3 grows as e⁻ˣ, and is +∞ with an
        infinite gradient from x = −89 in float32, from −710 in float64: one such sample hides all
        others. A clip bounds it, and makes the estimate too small where x is beyond.
    weight : array, optional
        Importance weights of the samples, such as p/b where they come from a behaviour policy b and
        not from P; of the shape of ``log_p``, or broadcasting to it. Each sample's estimate is
        multiplied by its weight, and 0 where that is 0; means still divide by the number of
        samples. Differentiable in PyTorch and JAX: detach it, or ``jax.lax.stop_gradient``, where
        it is to be a constant, as beside ``unbiased_gradient``: see the notes.
    reduction : {"mean", "batchmean", "sum", "none"}, default "mean"
        As in `kldiv.kl_div`.
    where : array of bool, optional
        Samples to keep, broadcasting to the arguments' shape; padding is left out before any
        exponential, so that nothing there, NaN and ∞ included, reaches value or gradient. Means
        divide by the number kept.
    dtype : dtype or str, optional
        Dtype of the result. Half types are computed in float32.

    Returns
    -------
    array
        Of the argument's library and device.

    Raises
    ------
    OptionError
        No such ``kind`` or ``reduction``, or ``log_ratio_clip`` is not positive and finite.
    ShapeError
        The shapes differ, or ``weight`` or ``where`` does not broadcast to them.
    DTypeError
        An argument is not real floating, or ``where`` is not bool.

    See Also
    --------
    kl_by_sequence : Sums or means of each sequence.
    kldiv.kl_div_with_logits : The divergence itself, where the logits of all classes are at hand.

    Notes
    -----
    As a loss to train P (``log_p`` differentiable, its samples fixed) the three differ more than
    their values do. The gradient of D(P‖Q) is E[x ∇log p]:

    * k1's gradient is ∇log p, whose mean is 0: it trains nothing;
    * k2's is x ∇log p: right, in every sample;
    * k3's is (1 − q/p) ∇log p, whose mean is the gradient of D(Q‖P), the other direction.

    ``unbiased_gradient=True`` therefore keeps the value of the kind and takes k2's gradient. With
    ``weight`` = p/b and its gradient, k3's mean gradient is that of D(P‖Q) too: ∇(w k3) =
    w (k3 + 1 − q/p) ∇log p = w x ∇log p. Beside ``unbiased_gradient`` detach the weight: its
    gradient would be added to one that is right already.

    References
    ----------
    J. Schulman, "Approximating KL divergence", 2020, http://joschu.net/blog/kl-approx.html.

    Examples
    --------
    >>> import numpy as np
    >>> from kldiv.estimators import kl_estimate
    >>> log_p, log_q = np.log([0.5, 0.25]), np.log([0.4, 0.3])
    >>> [round(float(kl_estimate(log_p, log_q, kind=kind)), 6) for kind in ("k1", "k2", "k3")]
    [0.020411, 0.020759, 0.020411]
    """
    check_reduction(reduction)
    name, straight = _named(kind)
    others = {"weight": weight, "where": where}
    given = {name: array for name, array in others.items() if array is not None}
    route, arrays, wide = resolve_arrays(("log_p", "log_q"), (log_p, log_q), **given)
    if log_p.shape != log_q.shape:
        raise ShapeError(
            f"log_p and log_q must have the same shape; got {tuple(log_p.shape)} and "
            f"{tuple(log_q.shape)}: a number for each sample in both"
        )
    if where is not None:
        check_mask(route, arrays[-1], log_p.shape)
    function = _KINDS[name]
    if unbiased_gradient or straight:
        function = ScoreFunction(function)
    if log_ratio_clip is not None:
        limit: Any = as_number(log_ratio_clip)
        if not isinstance(limit, int | float) or not 0 < limit < math.inf:
            raise OptionError(f"log_ratio_clip must be a positive number or None; got {limit!r}")
        function = Clipped(function, float(limit))
    loss = PointwiseLoss(reduction, *dtypes(route, wide, dtype, arrays[0]), function)
    if weight is None:
        return Call(route, loss, *arrays)
    log_p, log_q, weight, *mask = arrays
    check_numbers(route, "weight", weight, log_p.shape, _SAMPLES)
    weight = route.caller.namespace(weight).broadcast_to(weight, log_p.shape)
    return Call(route, Weighted.of(loss), log_p, log_q, weight, *mask)


def _named(kind: str) -> tuple[Kind, bool]:
    """Return k1, k2 or k3 for any name of it, and whether a ``+`` asks for the gradient of k2."""
    plain = str(kind).removesuffix("+")
    name: Any = _ALIASES.get(plain, plain)
    if name not in _KINDS:
        raise OptionError(
            f"kind must be one of 'k1', 'k2', 'k3' or verl's 'kl', 'mse', 'low_var_kl', with a '+'"
            f" for the gradient of k2; got {kind!r}"
        )
    return name, plain != kind


_prepare_estimate = record_of(kl_estimate).prepare  # torch.compile cannot look for it


def kl_by_sequence(
    log_p: ArrayT,
    log_q: ArrayT,
    *,
    average: bool = False,
    where: SupportsArray | None = None,
    dtype: Any = None,
    **options: Any,
) -> ArrayT:
    """
    Estimate D(P‖Q) of each sequence: sums, or means, of its tokens' estimates, in nats.

    Parameters
    ----------
    log_p, log_q : array
        Log-probabilities of sampled tokens, along the last axis; as in `kl_estimate`.
    average : bool, default False
        Whether to divide by the number of tokens kept; a sequence of none is 0.
    where : array of bool, optional
        Tokens to keep, as in `kl_estimate`.
    dtype : dtype or str, optional
        Dtype of the result.
    **options
        Of `kl_estimate`: ``kind``, ``unbiased_gradient``, ``log_ratio_clip``, ``weight``.

    Returns
    -------
    array
        A number for each sequence, differentiable in PyTorch and JAX.

    See Also
    --------
    kl_estimate : Means and sums over all tokens.

    Examples
    --------
    >>> import numpy as np
    >>> from kldiv.estimators import kl_by_sequence
    >>> log_p = np.log([[0.5, 0.25, 0.1], [0.2, 0.2, 0.2]])
    >>> log_q = np.log([[0.4, 0.3, 0.1], [0.1, 0.1, 0.1]])
    >>> kl_by_sequence(log_p, log_q, where=np.array([[1, 1, 1], [1, 0, 0]], bool)).round(4)
    array([0.0408, 0.1931])
    """
    call: Any = _prepare_estimate(
        log_p, log_q, reduction="none", where=where, dtype=dtype, **options
    )
    result = call.operation.result
    if result in HALVES:  # tokens are summed in float32, and rounded once
        call.operation = replace(call.operation, result="float32")
    terms = call.value()
    backend = backends.find(terms)
    xp = backend.namespace(terms)
    if not terms.ndim:
        raise ShapeError("log_p is one number; expected the tokens of sequences along an axis")
    with backend.context(terms):
        found: Any = xp.sum(terms, axis=-1)
        if average:
            kept = xp.ones_like(terms)
            if where is not None:
                kept = xp.where(where, kept, xp.zeros_like(kept))
            found = divide(xp, found, xp.sum(kept, axis=-1), 0.0)
        rounded: ArrayT = cast(xp, found, result)
    return rounded


def monte_carlo_kl(
    log_p: SupportsArray, log_q: SupportsArray, *, kind: Kind = "k3", confidence: float = 0.95
) -> Estimate:
    """
    Estimate D(P‖Q) from independent samples of P, with a confidence interval, in nats.

    Parameters
    ----------
    log_p, log_q : array
        Log-densities of P and Q at samples of P; of one shape, each element a sample.
    kind : {"k1", "k2", "k3"}, default "k3"
        As in `kl_estimate`, with its other names; k1 where P and Q are far apart: see the notes.
    confidence : float, default 0.95
        Probability with which the interval covers the divergence, by the central limit theorem.

    Returns
    -------
    Estimate
        Python numbers; its ``note`` says where the samples themselves speak against the interval.

    Raises
    ------
    OptionError
        No such ``kind``, or ``confidence`` outside (0, 1).
    ShapeError
        The shapes differ, or there are fewer than two samples.

    Notes
    -----
    The terms of k3 hold q/p, whose distribution has a long tail where P and Q are far apart: most
    of its mean is then in samples that are not drawn, and the estimate is too small with an
    interval too narrow. For N(0, 1) and N(μ, 1), 1,000 samples and 95 %, intervals of k3 cover in
    95 % of cases at μ = 1, 92 % at μ = 1.5, 85 % at μ = 2 and 61 % at μ = 3; for N(0, 1) and
    N(0, σ²) in 90 % at σ = 1.2 and 62 % at σ = 2, where q/p has no variance. Those of k1 cover in
    93 to 96 % in all of these. The ``note`` appears where one sample makes a quarter of the
    variance, where the mean of q/p is four standard errors from 1, and where the ratios q/p are
    worth fewer than 50 equal ones, or a quarter of their number (Kong's effective sample size).

    References
    ----------
    A. Kong, "A note on importance sampling using standardized weights", University of Chicago,
    Dept. of Statistics, Tech. Rep. 348 (1992).

    Examples
    --------
    >>> import numpy as np
    >>> from kldiv.estimators import monte_carlo_kl
    >>> x = np.random.default_rng(0).normal(size=10_000)  # samples of P = N(0, 1); Q = N(1, 1)
    >>> estimate = monte_carlo_kl(-(x**2) / 2, -((x - 1) ** 2) / 2)
    >>> estimate.low < 0.5 < estimate.high
    True
    """
    if not 0 < confidence < 1:
        raise OptionError(f"confidence must lie between 0 and 1; got {confidence!r}")
    name, _ = _named(kind)
    terms, ratios = (
        _listed(kl_estimate(log_p, log_q, kind=each, reduction="none", dtype="float64"))
        for each in (name, "k1")
    )
    if len(terms) < 2:
        raise ShapeError(f"an interval needs two samples at least; got {len(terms)}")
    if not np.isfinite(terms).all():
        return _not_finite(terms, ratios)
    found = samples.mean_interval(np, terms, confidence)
    return Estimate(*found, len(terms), _doubt(name, terms, ratios))


def knn_kl(x: ArrayT, y: ArrayT, *, k: int = 5) -> ArrayT:
    r"""
    Estimate D(P‖Q) from samples of both, by distances to nearest neighbours, in nats.

    With ρ the distance from a point of ``x`` to its k-th neighbour among the others of ``x``, and
    ν that to its k-th neighbour in ``y``, for n and m points of d dimensions

        (d/n) Σ log(νᵢ/ρᵢ) + log(m/(n − 1))

    Parameters
    ----------
    x : array
        Samples of P: one a row, or an array of numbers for one dimension.
    y : array
        Samples of Q, of the same dimensions.
    k : int, default 5
        Which neighbour: a larger one has less variance and more bias.

    Returns
    -------
    array
        0-d, of the argument's library and device; may be negative where P and Q are close. Points
        that occur more than k times have no distance and make it ±∞ or NaN: such data are discrete.

    Raises
    ------
    ShapeError
        Other than one or two axes, different dimensions, or too few points for ``k``.
    OptionError
        ``k`` is no positive integer.
    DTypeError
        An argument is not real floating.

    See Also
    --------
    plug_in_kl : From counts of classes.

    Notes
    -----
    NumPy arrays are searched by SciPy's k-d tree where SciPy is installed, all others by the
    distances of all pairs, a block of points at a time.

    References
    ----------
    Q. Wang, S. R. Kulkarni, S. Verdú, "Divergence estimation for multidimensional densities via
    k-nearest-neighbor distances", IEEE Trans. Inf. Theory 55 (2009) 2392-2405.
    F. Pérez-Cruz, "Kullback-Leibler divergence estimation of continuous distributions", ISIT 2008.

    Examples
    --------
    >>> import numpy as np
    >>> from kldiv.estimators import knn_kl
    >>> random = np.random.default_rng(0)
    >>> x, y = random.normal(size=5_000), random.normal(1.0, 1.0, size=5_000)
    >>> abs(float(knn_kl(x, y)) - 0.5) < 0.1  # the true value is 1/2
    True
    """
    if type(k) is not int or k < 1:
        raise OptionError(f"k must be a positive integer; got {k!r}")
    route, (x, y), wide = resolve_arrays(("x", "y"), (x, y))
    compute, _, result = dtypes(route, wide, None, x)
    caller = route.caller
    xp = caller.namespace(x)
    x, y = (_points(xp, name, array) for name, array in (("x", x), ("y", y)))
    if x.shape[1] != y.shape[1]:
        raise ShapeError(
            f"x and y must have the same dimensions; got points of {x.shape[1]} and {y.shape[1]}"
        )
    if x.shape[0] <= k or y.shape[0] < k:
        raise ShapeError(
            f"k = {k} needs more than {k} points in x and {k} in y; got {x.shape[0]} and "
            f"{y.shape[0]}"
        )
    with caller.context(x):
        x, y = (cast(xp, caller.export(array), compute) for array in (x, y))
        # The tree takes finite points only.
        finite = caller.name == "numpy" and all(bool(xp.all(xp.isfinite(z))) for z in (x, y))
        tree = _tree() if finite else None
        if tree is None:
            distances = partial(samples.neighbour_distances, xp, x)
        else:
            distances = partial(_by_tree, tree, x)
        value = samples.knn_kl(xp, distances(y, k), distances(x, k + 1), x.shape[1], y.shape[0])
        found: ArrayT = cast(xp, value, result)
    return found


def plug_in_kl(
    p_counts: ArrayT,
    q_counts: ArrayT,
    *,
    correction: Literal["miller-madow"] | None = "miller-madow",
    axis: int = -1,
) -> ArrayT:
    r"""
    Estimate D(P‖Q) from counts of classes in a sample of each, in nats.

    The divergence of the observed frequencies is too large on average, by about (K − 1)/2n for the
    n samples of P and by (Σ p/q − 1)/2m for the m samples of Q; the correction subtracts both.

    Parameters
    ----------
    p_counts, q_counts : array
        How often each class was seen; of one shape. Integers are taken in float64, by JAX in its
        widest dtype.
    correction : {"miller-madow", None}, default "miller-madow"
        K is the number of classes seen in P's sample (Miller 1955), and Σ p/q is taken over these.
    axis : int, default -1
        Where the classes lie.

    Returns
    -------
    array
        One number for each pair of samples, the axis of the classes gone. Corrected it may be
        negative; ∞ where a class was seen in P's sample and not in Q's.

    Raises
    ------
    OptionError
        No such correction.
    ShapeError
        The shapes differ, or there is no such axis.

    References
    ----------
    G. A. Miller, "Note on the bias of information estimates", Information Theory in Psychology
    (1955) 95-100. Z. Zhang, M. Grabchak, "Nonparametric estimation of Kullback-Leibler
    divergence", Neural Computation 26 (2014) 2570-2593.

    Examples
    --------
    >>> import numpy as np
    >>> from kldiv.estimators import plug_in_kl
    >>> dice = np.array([12.0, 9.0, 11.0, 8.0, 10.0, 10.0])
    >>> round(float(plug_in_kl(dice, np.full(6, 10.0))), 4)
    -0.075
    """
    if correction not in {"miller-madow", None}:
        raise OptionError(f"correction must be 'miller-madow' or None; got {correction!r}")
    names = ("p_counts", "q_counts")
    counts = integers_in_float64(names, (p_counts, q_counts))
    route, (p, q), wide = resolve_arrays(names, counts)
    if p.shape != q.shape:
        raise ShapeError(
            f"p_counts and q_counts must have the same shape; got {tuple(p.shape)} and "
            f"{tuple(q.shape)}: the same classes in both, unseen ones with 0"
        )
    check_axis(axis, p.shape, lambda: f"counts of shape {tuple(p.shape)}")
    _, total, result = dtypes(route, wide, None, p)
    xp = route.caller.namespace(p)
    with route.caller.context(p):
        p, q = cast(xp, p, total), cast(xp, q, total)
        value = samples.plug_in_kl(xp, p, q, axis, corrected=correction is not None)
        found: ArrayT = cast(xp, value, result)
    return found


def _listed(terms: Array) -> NDArray[np.float64]:
    return backends.find(terms).on_host(terms).astype(np.float64).ravel()


def _not_finite(terms: NDArray[np.float64], ratios: NDArray[np.float64]) -> Estimate:
    """Return the estimate from terms of which some are ∞ or NaN; an interval only for q = 0 < p."""
    if np.isnan(terms).any():
        return Estimate(math.nan, math.nan, math.nan, math.nan, len(terms), "a term is NaN")
    if (ratios == math.inf).any():
        note = "samples of P have probability 0 under Q"
        return Estimate(math.inf, math.nan, math.inf, math.inf, len(terms), note)
    note = "a term is infinite: q/p is beyond the largest number; kind='k1' has no such terms"
    return Estimate(float(terms.mean()), math.nan, math.nan, math.nan, len(terms), note)


def _doubt(kind: Kind, terms: NDArray[np.float64], ratios: NDArray[np.float64]) -> str:
    """Return why the central limit theorem may not hold yet, or nothing."""
    mend = "kind='k1' or more samples" if kind == "k3" else "more samples"
    squares = (terms - terms.mean()) ** 2
    largest = float(squares.max())
    if largest > _DOMINANT * float(squares.sum()):
        return (
            f"one of {len(terms):,} samples makes {largest / float(squares.sum()):.0%} of the "
            f"variance: the interval covers less often than it says; take {mend}"
        )
    if kind != "k3":
        return ""
    peak = float(-ratios.min())
    weights = np.exp(-ratios - peak)  # q/p, scaled: the largest ratios and their squares overflow
    total = float(weights.sum())
    with np.errstate(over="ignore"):
        scale = float(np.exp(peak))
    mean, error = scale * total / len(weights), float(weights.std(ddof=1))
    error *= scale / math.sqrt(len(weights))
    if abs(mean - 1) > max(_APART * error, _ROUNDED) or math.isinf(scale):
        return (
            f"the mean of q/p is 1, but {mean:.2g} in {len(terms):,} samples: k3 is off by that; "
            f"take {mend}"
        )
    effective = total**2 / float((weights**2).sum())
    if effective < min(_EFFECTIVE, len(terms) / 4):
        return (
            f"the ratios q/p of {len(terms):,} samples are worth {effective:.0f} equal ones: the "
            f"estimate is likely too small, and its interval too narrow; take {mend}"
        )
    return ""


def _points(xp: Any, name: str, array: Array) -> Array:
    if array.ndim == 1:
        return xp.reshape(array, (-1, 1))
    if array.ndim != 2:
        raise ShapeError(
            f"{name} must have a point a row, or be a list of numbers; got shape "
            f"{tuple(array.shape)}"
        )
    return array


def _tree() -> Any:
    try:
        from scipy.spatial import KDTree  # noqa: PLC0415 - optional
    except ImportError:
        return None
    return KDTree


def _by_tree(tree: Any, x: Array, y: Array, k: int) -> Array:
    found = tree(y).query(x, k=[k], p=1 if x.shape[1] == 1 else 2)[0][:, 0]
    if x.shape[1] > 1:
        lost = (found < _LEAST) | (found > 1 / _LEAST)  # the tree's squares are no numbers there
        if lost.any():
            found[lost] = samples.neighbour_distances(np, x[lost], y, k)
    return found
