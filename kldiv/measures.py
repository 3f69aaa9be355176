"""Divergences and entropies of probabilities: document, check, resolve, run.

The mathematics lies in `kldiv.formulas.measures`; divergences of distribution objects in
`kldiv.distributions`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack, overload

from kldiv._arguments import as_number, check_axis, different, order_of, setting
from kldiv._call import Call, differentiable, dtypes, integers_in_float64, resolve_arrays
from kldiv._docstrings import options_of
from kldiv.errors import LibraryError, OptionError, ShapeError
from kldiv.formulas import measures as formulas
from kldiv.formulas import renyi_measures
from kldiv.formulas.numbers import MOST_ORDER
from kldiv.formulas.row_measures import RowMeasure
from kldiv.frames import as_arrays

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kldiv._types import Array, ArrayT
    from kldiv.distributions import Estimate
    from kldiv.formulas.measures import Measure


@overload
def kl_divergence(
    p: ArrayT, q: ArrayT, *, axis: int = ..., base: float | None = ..., normalize: bool = ...
) -> ArrayT: ...
@overload
def kl_divergence(p: object, q: object, *, base: float | None = ..., method: None = ...) -> Any: ...
@overload
def kl_divergence(
    p: object, q: object, *, base: float | None = ..., method: Literal["quadrature", "monte_carlo"]
) -> Estimate: ...
@differentiable(2)
def kl_divergence(
    p: Any,
    q: Any,
    *,
    axis: int = -1,
    base: float | None = None,
    normalize: bool = False,
    method: Literal["quadrature", "monte_carlo"] | None = None,
) -> Call[ArrayT]:
    r"""
    Kullback-Leibler divergence D(p‖q) of probabilities, or of two distributions.

    Of arrays of probabilities this is Σ p log(p/q) + q − p along ``axis``: every term
    is ≥ 0 and exact near p = q, and the sum is the divergence of normalised rows; a rounding error
    in their sums does not enter.  Of measures that are not normalised it is the generalised KL
    divergence.  Differentiable in both.  Of distributions it is the closed form of their pair, one
    number per batch entry: see `kldiv.distributions`.

    Parameters
    ----------
    p : array or distribution
        Probabilities, the distribution that is averaged over; float16, bfloat16, float32 or
        float64. Series and data frames of pandas and polars are matched by their labels: index and
        columns of pandas, columns of polars. Or a distribution of `kldiv.distributions`,
        ``torch.distributions``, ``scipy.stats`` (frozen), NumPyro, TFP or distrax.
    q : array or distribution
        Probabilities, of the same shape; or a distribution, of any of these libraries.
    axis : int, default -1
        Where the classes lie; for arrays only.
    base : float, optional
        Base of the logarithm, above 1: 2 for bits. By default e: nats.
    normalize : bool, default False
        Divide both by their sums along ``axis`` first; for arrays only. Integers, such as counts,
        are taken then, in float64. A row whose sum is beyond the largest number gives NaN.
    method : {"quadrature", "monte_carlo"}, optional
        For distributions only: integrate or sum the densities (with SciPy), or average over samples
        of ``p``, instead of a closed form.

    Returns
    -------
    array or Estimate
        One number for each row, of the arguments' library and device, in the wider of their dtypes;
        half-precision arrays are computed in float32 and rounded once. With ``method`` an
        `kldiv.distributions.Estimate`, the pair (value, standard error).

    Raises
    ------
    ShapeError
        Shapes differ (nothing is broadcast), there is no class, or no such axis.
    DTypeError
        An argument is not real floating.
    OptionError
        ``base`` is not above 1, an option does not apply, or the method cannot be used.
    LibraryError
        Not arrays and not distributions, or of libraries that do not mix.
    NoClosedFormError
        No closed form is known for the pair of distributions; the message names the alternatives.

    See Also
    --------
    kldiv.kl_div : From log-probabilities, as a loss.
    kldiv.kl_div_with_logits : From logits.
    kldiv.diagnose : Reports rows that do not sum to 1: this function never looks at values.

    Notes
    -----
    Where p = 0 the term is q, even if q = 0; where p > 0 = q it is +∞. The slopes are log(p/q) in p
    (0 where p = 0) and 1 − p/q in q.

    References
    ----------
    S. Kullback and R. A. Leibler, "On Information and Sufficiency", Ann. Math. Statist. 22 (1951)
    79-86.

    Examples
    --------
    >>> import numpy as np
    >>> import kldiv
    >>> p = np.array([0.36, 0.48, 0.16])
    >>> q = np.array([1 / 3, 1 / 3, 1 / 3])
    >>> round(float(kldiv.kl_divergence(p, q)), 6), round(float(kldiv.kl_divergence(q, p)), 6)
    (0.0853, 0.097455)
    >>> from kldiv.distributions import Normal
    >>> round(float(kldiv.kl_divergence(Normal(0, 1), Normal(1, 2))), 6)
    0.443147
    """
    if not (_like_array(p) and _like_array(q)):
        return _OfDistributions(p, q, axis=axis, base=base, normalize=normalize, method=method)
    if method is not None:
        raise OptionError(
            f"method belongs to distributions; got {method!r} with arrays of probabilities, whose "
            "divergence is a sum: leave it out"
        )
    return _of_pair(formulas.KullbackLeibler(), p, q, axis=axis, base=base, normalize=normalize)


class _OfDistributions(Call[Any]):
    """A call of `kl_divergence` on two distributions."""

    __slots__ = ("options", "pair")

    def __init__(self, *pair: Any, **options: Any) -> None:
        self.pair, self.options = pair, options

    def value(self) -> Any:
        from kldiv.distributions import divergence  # noqa: PLC0415 - arrays do not need it

        p, q = self.pair
        if self.options["normalize"] or self.options["axis"] != -1:
            raise OptionError(
                "axis and normalize belong to arrays of probabilities; got "
                f"{type(p).__name__} and {type(q).__name__}; leave them out for distributions"
            )
        return divergence(p, q, unit=_unit(self.options["base"]), method=self.options["method"])

    def argument(self, index: int) -> Array:
        raise no_array("pq"[index], self.pair[index])

    def value_and_gradients(self, *_: Any) -> tuple[Array, list[Array]]:
        raise no_array("p", self.pair[0])


@differentiable(2)
def jeffreys_divergence(
    p: ArrayT, q: ArrayT, *, axis: int = -1, base: float | None = None, normalize: bool = False
) -> Call[ArrayT]:
    r"""
    Jeffreys divergence D(p‖q) + D(q‖p) of probabilities, the symmetrised Kullback-Leibler one.

    This is Σ (p − q) log(p/q) along ``axis``: every term is ≥ 0 and exact near p = q, and +∞ where
    only one of the two is 0. Differentiable in both.

    Parameters
    ----------
    p : array
        Probabilities; float16, bfloat16, float32 or float64.
    q : array
        Probabilities, of the same shape.
    axis : int, default -1
        Where the classes lie.
    base : float, optional
        Base of the logarithm, above 1: 2 for bits. By default e: nats.
    normalize : bool, default False
        Divide each by its sum along ``axis`` first; integers are taken then, in float64.

    Returns
    -------
    array
        One number for each row, of the arguments' library and device.

    Raises
    ------
    ShapeError
        Shapes differ, there is no class, or no such axis.
    DTypeError
        An argument is not real floating.
    OptionError
        ``base`` is not above 1.
    LibraryError
        Not arrays, or arrays of two libraries.

    References
    ----------
    H. Jeffreys, "An invariant form for the prior probability in estimation problems", Proc. R. Soc.
    A 186 (1946) 453-461.

    Examples
    --------
    >>> import numpy as np
    >>> import kldiv
    >>> p, q = np.array([0.25, 0.75]), np.array([0.5, 0.5])
    >>> round(float(kldiv.jeffreys_divergence(p, q)), 6)
    0.274653
    """
    return _of_pair(formulas.Jeffreys(), p, q, axis=axis, base=base, normalize=normalize)


class Options(TypedDict, total=False):
    """The options of most measures."""

    axis: int
    normalize: bool


class LogOptions(Options, total=False):
    """Those of measures that take logarithms."""

    base: float | None


@differentiable(math.inf)
@options_of(jeffreys_divergence)
def js_divergence(
    *ps: ArrayT, weights: Sequence[float] | None = None, **options: Unpack[LogOptions]
) -> Call[ArrayT]:
    r"""
    Jensen-Shannon divergence of two or more arrays of probabilities.

    With the mixture m = Σ wᵢ pᵢ this is Σ wᵢ D(pᵢ‖m): finite on any
    support, at most −Σ wᵢ log wᵢ, exact near equality. Differentiable in each.

    Parameters
    ----------
    *ps : array
        Probabilities, at least two arrays of one shape.
    weights : sequence of float, optional
        One number for each array, not negative, with sum 1; by default all the same.

    Raises
    ------
    OptionError
        Fewer than two arrays, or weights that do not fit.

    See Also
    --------
    kldiv.js_div_with_logits : From logits.

    References
    ----------
    J. Lin, "Divergence measures based on the Shannon entropy", IEEE Trans. Inf. Theory 37 (1991)
    145-151.

    Examples
    --------
    >>> import numpy as np
    >>> import kldiv
    >>> apart = kldiv.js_divergence(np.array([1.0, 0.0]), np.array([0.0, 1.0]), base=2)
    >>> print(f"{apart:.6f}")
    1.000000
    """
    if len(ps) < 2:
        raise OptionError(
            f"js_divergence compares two or more arrays; got {len(ps)}; pass each as an argument "
            "of its own: js_divergence(p, q, r), js_divergence(*rows)"
        )
    equal = [1.0 / len(ps)] * len(ps)
    numbers = tuple(setting("weights", n) for n in (equal if weights is None else weights))
    total = math.fsum(numbers)
    if len(numbers) != len(ps) or not all(n >= 0 for n in numbers) or not abs(total - 1) < 1e-6:
        raise OptionError(
            f"weights must be {len(ps)} numbers, one for each array, not negative, with sum 1; got "
            f"{numbers} with sum {total:g}"
        )
    measure = formulas.JensenShannon(tuple(n / total for n in numbers))
    return _prepare(measure, [f"ps[{i}]" for i in range(len(ps))], ps, **options)


@differentiable(2)
@options_of(jeffreys_divergence)
def skew_divergence(
    p: ArrayT, q: ArrayT, *, alpha: float = 0.1, **options: Unpack[LogOptions]
) -> Call[ArrayT]:
    r"""
    Skew Kullback-Leibler divergence D(p‖m) of probabilities from a mixture, m = αp + (1−α)q.

    This is Σ p log(p/m) + m − p along ``axis``: every term is ≥ 0 and exact near p = q,
    and finite on any support, at most −log α. Differentiable in both.

    Parameters
    ----------
    alpha : float, default 0.1
        Weight of p in the mixture, between 0 and 1.

    Raises
    ------
    OptionError
        ``alpha`` outside (0, 1).

    See Also
    --------
    kldiv.skew_kl_div_with_logits : From logits.

    References
    ----------
    L. Lee, "Measures of Distributional Similarity", ACL 1999, 25-32.

    Examples
    --------
    >>> import numpy as np
    >>> import kldiv
    >>> p, q = np.array([0.25, 0.75]), np.array([0.0, 1.0])
    >>> print(f"{kldiv.skew_divergence(p, q):.6f}")
    0.378873
    """
    alpha = setting("alpha", alpha)
    if not 0 < alpha < 1:
        raise OptionError(
            f"alpha must lie between 0 and 1; got {alpha!r}; its limits are kl_divergence at 0, and"
            " 0 at 1"
        )
    return _of_pair(formulas.Skew(float(alpha)), p, q, **options)


@differentiable(2)
@options_of(jeffreys_divergence, without=["base"])
def tv_divergence(p: ArrayT, q: ArrayT, **options: Unpack[Options]) -> Call[ArrayT]:
    r"""
    Total variation distance ½ Σ abs(p − q) of probabilities.

    It lies between 0 and 1 where both sum to 1, and is 1 − Σ min(p, q) then. Differentiable in
    both; the derivative is 0 where p = q.

    See Also
    --------
    kldiv.tv_div_with_logits : From logits.

    Examples
    --------
    >>> import numpy as np
    >>> import kldiv
    >>> p, q = np.array([0.25, 0.75]), np.array([0.5, 0.5])
    >>> float(kldiv.tv_divergence(p, q))
    0.25
    """
    return _of_pair(formulas.TotalVariation(), p, q, **options)


@differentiable(2)
@options_of(jeffreys_divergence, without=["base"])
def hellinger_divergence(p: ArrayT, q: ArrayT, **options: Unpack[Options]) -> Call[ArrayT]:
    r"""
    Squared Hellinger distance ½ Σ (√p − √q)² of probabilities.

    It lies between 0 and 1 where both sum to 1, and is 1 − Σ √(pq) then; exact near p = q.
    Differentiable in both.

    See Also
    --------
    kldiv.hellinger_div_with_logits : From logits.

    Notes
    -----
    The derivative in p is (1 − √(q/p))/2; where p = 0 < q it is infinite, and 0 is taken.

    References
    ----------
    E. Hellinger, "Neue Begründung der Theorie quadratischer Formen von unendlichvielen
    Veränderlichen", J. reine angew. Math. 136 (1909) 210-271.

    Examples
    --------
    >>> import numpy as np
    >>> import kldiv
    >>> p, q = np.array([0.36, 0.64]), np.array([0.5, 0.5])
    >>> print(f"{kldiv.hellinger_divergence(p, q):.7f}")
    0.0100505
    """
    return _of_pair(formulas.Hellinger(), p, q, **options)


@differentiable(2)
@options_of(jeffreys_divergence, without=["base"])
def chi2_divergence(p: ArrayT, q: ArrayT, **options: Unpack[Options]) -> Call[ArrayT]:
    r"""
    Pearson's χ² divergence Σ (p − q)²/q of probabilities; for Neyman's swap the two.

    Every term is ≥ 0 and exact near p = q. Differentiable in both.

    Returns
    -------
    array
        One number for each row, of the arguments' library and device; +∞ where p > 0 = q.

    See Also
    --------
    kldiv.chi2_div_with_logits : From logits.

    References
    ----------
    K. Pearson, "On the criterion that a given system of deviations from the probable …", Phil. Mag.
    50 (1900) 157-175.

    Examples
    --------
    >>> import numpy as np
    >>> import kldiv
    >>> p, q = np.array([0.4, 0.6]), np.array([0.5, 0.5])
    >>> print(f"{kldiv.chi2_divergence(p, q):.6f}")
    0.040000
    """
    return _of_pair(formulas.ChiSquared(), p, q, **options)


@differentiable(2)
@options_of(jeffreys_divergence, without=["base"])
def alpha_divergence(
    p: ArrayT, q: ArrayT, *, alpha: float, **options: Unpack[Options]
) -> Call[ArrayT]:
    r"""
    α-divergence Σ (p^α q^(1−α) − αp − (1−α)q)/(α(α − 1)) of probabilities.

    That is (Σ p^α q^(1−α) − 1)/(α(α − 1)) where both sum to 1, D(p‖q) for α = 1 and D(q‖p) for
    α = 0. Every term is ≥ 0 and exact near p = q. Differentiable in both.

    Parameters
    ----------
    alpha : float
        The order, any finite number; 1 − α exchanges p and q.

    Returns
    -------
    array
        One number for each row, of the arguments' library and device; +∞ where p > 0 = q if
        α ≥ 1, and where p = 0 < q if α ≤ 0.

    Raises
    ------
    OptionError
        ``alpha`` is not a finite number.

    See Also
    --------
    kldiv.alpha_div_with_logits : From logits.
    renyi_divergence : Of the same sum its logarithm.

    References
    ----------
    A. Cichocki and S. Amari, "Families of Alpha- Beta- and Gamma-divergences", Entropy 12 (2010)
    1532-1568.

    Examples
    --------
    >>> import numpy as np
    >>> import kldiv
    >>> p, q = np.array([0.4, 0.6]), np.array([0.3, 0.7])
    >>> for alpha in (-1, 0, 0.5, 1, 2):
    ...     print(f"{kldiv.alpha_divergence(p, q, alpha=alpha):.6f}")
    0.020833
    0.021601
    0.022063
    0.022582
    0.023810
    """
    order = order_of(alpha, finite=True)
    if order in {0, 1}:
        return _of_pair(formulas.KullbackLeibler(), p, q, exchanged=not order, **options)
    return _of_pair(formulas.Alpha.of(order), p, q, **options)


@differentiable(2)
@options_of(jeffreys_divergence)
def renyi_divergence(
    p: ArrayT, q: ArrayT, *, alpha: float, **options: Unpack[LogOptions]
) -> Call[ArrayT]:
    r"""
    Rényi divergence of order α of probabilities, with its limits at 0, 1 and ∞.

    For other orders this is log(Σ p^α q^(1−α))/(α − 1) along ``axis``, exact near
    p = q and near α = 1. Order 1 is `kl_divergence`, order 0 −log of Q's mass on the support of P,
    order ∞ the largest log(p/q). Differentiable in both.

    Parameters
    ----------
    alpha : float
        The order, from 0 to ``math.inf``; a Python number.

    Raises
    ------
    OptionError
        ``alpha`` is negative.

    See Also
    --------
    kldiv.renyi_div_with_logits : From logits.

    Notes
    -----
    The sum is divided by α Σp + (1−α) Σq, which is 1 for normalised rows, so that a rounding error
    in their sums does not enter; of rows that are not normalised the result is ≥ 0 as well. An
    order above 1 magnifies the difference of the sums: where that divisor is less than half of
    (Σp)^α (Σq)^(1−α), which is 1 too for normalised rows, it is that instead.

    References
    ----------
    T. van Erven and P. Harremoës, "Rényi Divergence and Kullback-Leibler Divergence", IEEE Trans.
    Inf. Theory 60 (2014) 3797-3820.

    Examples
    --------
    >>> import math
    >>> import numpy as np
    >>> import kldiv
    >>> p, q = np.array([0.25, 0.75]), np.array([0.5, 0.5])
    >>> for alpha in (0, 0.5, 1, 2, math.inf):
    ...     print(f"{kldiv.renyi_divergence(p, q, alpha=alpha):.4f}")
    0.0000
    0.0693
    0.1308
    0.2231
    0.4055
    """
    order = order_of(alpha, finite=False)
    limits = {
        0.0: renyi_measures.RenyiZero(),
        1.0: formulas.KullbackLeibler(),
        math.inf: renyi_measures.RenyiInfinity(),
    }
    # Beyond that order the two differ by less than rounding, and α log(p/q) would overflow.
    order = math.inf if order > MOST_ORDER else order
    measure = limits.get(order) or renyi_measures.Renyi(order)
    return _of_pair(measure, p, q, **options)


@differentiable(1)
@options_of(jeffreys_divergence)
def entropy(p: ArrayT, **options: Unpack[LogOptions]) -> Call[ArrayT]:
    r"""
    Shannon entropy −Σ p log p of probabilities along an axis.

    References
    ----------
    C. E. Shannon, "A Mathematical Theory of Communication", Bell Syst. Tech. J. 27 (1948) 379-423.

    Examples
    --------
    >>> import numpy as np
    >>> import kldiv
    >>> float(kldiv.entropy(np.array([0.5, 0.25, 0.25]), base=2))
    1.5
    """
    normalized = options.get("normalize", False)
    measure = formulas.EntropyOfNormalized if normalized else formulas.Entropy
    return _prepare(measure(), ("p",), (p,), **options)


@differentiable(2)
@options_of(jeffreys_divergence)
def cross_entropy(p: ArrayT, q: ArrayT, **options: Unpack[LogOptions]) -> Call[ArrayT]:
    r"""
    Cross entropy −Σ p log q of probabilities along an axis.

    It is the entropy of p plus D(p‖q); take `kl_divergence` for the difference, which cancels here.

    Returns
    -------
    array
        One number for each row, of the arguments' library and device; +∞ where q = 0 < p.

    See Also
    --------
    kldiv.cross_entropy_with_logits : From logits.

    Examples
    --------
    >>> import numpy as np
    >>> import kldiv
    >>> p, q = np.array([0.5, 0.5, 0.0]), np.array([0.25, 0.5, 0.25])
    >>> float(kldiv.cross_entropy(p, q, base=2))
    1.5
    """
    normalized = options.get("normalize", False)
    measure = formulas.CrossEntropyOfNormalized if normalized else formulas.CrossEntropy
    return _of_pair(measure(), p, q, **options)


def is_array(value: Any) -> bool:
    """Return whether a value is an array, and not a distribution."""
    return hasattr(value, "shape") and hasattr(value, "dtype")


def _like_array(value: Any) -> bool:
    """Return whether a value is an array, or can be made one and is no distribution."""
    return is_array(value) or isinstance(value, list | tuple) or hasattr(value, "__array__")


def _of_pair(measure: Measure, p: Array, q: Array, **options: Any) -> Call[Any]:
    return _prepare(measure, ("p", "q"), (p, q), **options)


def _prepare(
    measure: Measure,
    names: Sequence[str],
    ps: tuple[Array, ...],
    *,
    axis: int = -1,
    base: float | None = None,
    normalize: bool = False,
    exchanged: bool = False,
) -> Call[Any]:
    unit = _unit(base)
    ps = as_arrays(names, ps)
    for name, p in zip(names, ps, strict=True):
        if not is_array(p):
            raise no_array(name, p)
    if normalize:
        ps = integers_in_float64(names, ps)
    route, arrays, wide = resolve_arrays(names, ps)
    last = _check_shapes(names, ps, axis)
    if not last:
        xp = route.caller.namespace(arrays[0])
        arrays = tuple(xp.moveaxis(array, axis, -1) for array in arrays)
    arrays = tuple(map(route.caller.adjacent, arrays))
    _, compute, result = dtypes(route, wide, None, arrays[0])
    operation = RowMeasure(
        "none", compute, compute, result, measure, bool(normalize), unit, len(arrays)
    )
    return Call(route, operation, *arrays, axis=-1 if last else axis, exchanged=exchanged)


def no_array(name: str, p: Any) -> LibraryError:
    """Return the error for an argument that is no array."""
    return LibraryError(
        f"{name} must be an array of probabilities; got {type(p).__module__}."
        f"{type(p).__qualname__}; convert it, for example by numpy.asarray; of two "
        "distributions there is kl_divergence only"
    )


def _unit(base: Any) -> float:
    """Return how many nats the unit of that base has."""
    if base is None:
        return 1.0
    if not isinstance(as_number(base), int | float) or not 1 < base < math.inf:
        raise OptionError(
            f"base must be a number above 1, 2 for bits, or None for nats; got {base!r}"
        )
    return math.log(base)


def _check_shapes(names: Sequence[str], ps: Sequence[Array], axis: int) -> bool:
    """Raise unless the shapes fit each other and the axis; return whether that is the last."""
    shape = ps[0].shape
    for name, p in zip(names, ps, strict=True):
        if p.shape != shape:
            raise different(shape, p.shape, (names[0], name))
    check_axis(axis, shape, lambda: f"{names[0]} of shape {tuple(shape)}")
    if shape[axis] == 0:
        raise ShapeError(f"there are no classes on axis {axis} of {names[0]}: {tuple(shape)}")
    return axis in {-1, len(shape) - 1}
