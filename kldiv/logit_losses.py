"""The losses of logits: document, check, resolve, run; the mathematics lies in `kldiv.formulas`."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from kldiv import backends
from kldiv import divergences as records
from kldiv._arguments import check_axis, constant, different, order_of, setting
from kldiv._call import PAIR, Call, differentiable
from kldiv._docstrings import options_of
from kldiv._rows import Rows
from kldiv.backends.base import FLOATS
from kldiv.errors import DTypeError, OptionError, ShapeError
from kldiv.formulas import divergences as formulas
from kldiv.formulas.cross_entropy import CrossEntropy, CrossEntropyLoss
from kldiv.formulas.divergences import LEAST, Divergence, JensenShannon, KullbackLeibler
from kldiv.formulas.powers import Alpha, Renyi
from kldiv.formulas.rows import RowLoss
from kldiv.matched_losses import prepare_matched

if TYPE_CHECKING:
    from kldiv._types import Array, ArrayT, Reduction, SupportsArray


@differentiable(2, RowLoss())
def kl_div_with_logits(
    input: ArrayT,
    target: ArrayT,
    *,
    axis: int = -1,
    temperature: float | SupportsArray = 1.0,
    reduction: Reduction = "mean",
    where: SupportsArray | None = None,
    row_weight: SupportsArray | None = None,
    normalizer: float | SupportsArray | None = None,
    dtype: Any = None,
    group: Any = None,
    axis_name: Any = None,
    input_classes: Any = None,
    target_classes: Any = None,
) -> Call[ArrayT]:
    r"""
    Kullback-Leibler divergence of two sets of logits, exact at any distance, in nats.

    For every pair of distributions P = softmax(target/T) and Q = softmax(input/T) along ``axis``
    this is D(P‖Q), computed without cancellation: right to a few units in the last place however
    close the two are, never negative, and exactly 0 where the logits differ by a constant.
    Differentiable in both. For the reverse divergence swap the two.

    Parameters
    ----------
    input : array
        Logits of Q, the student; float16, bfloat16, float32 or float64. −∞ masks a class.
    target : array
        Logits of P, the teacher; of the same shape.
    axis : int, default -1
        Where the classes lie.
    temperature : float or array, default 1.0
        Divisor of the logits; an array broadcasts over the distributions, and is differentiable.
        The result is not multiplied by T². Where float32 computes it goes from 9.4e-38 to 1.3e36;
        an element of an array that does not makes its distributions NaN.
    reduction : {"mean", "batchmean", "sum", "none"}, default "mean"
        ``"none"`` gives one number per distribution, the axis of the classes gone; ``"mean"``
        is the mean over distributions; ``"batchmean"`` divides the sum by the result's first
        dimension.
    where : array of bool, optional
        Distributions to keep: broadcasts to the shape of the result of ``"none"``. A dropped one
        is 0, gets zero gradient and leaks no NaN; means divide by the number kept.
    row_weight : array of float, optional
        A factor for each distribution: broadcasts to the shape of the result of ``"none"``, and is
        differentiable. 0 lets nothing through, NaN neither; means divide by the number kept all the
        same.
    normalizer : float or array, optional
        Divisor of the sum in place of the reduction's own, for sums that are split, as in gradient
        accumulation: a number or an array of no axes, which no gradient flows into and whose value
        is not read. Where nothing is kept the result is 0.
    dtype : dtype or str, optional
        Dtype of the result; by default the widest of the arguments'. Half-precision logits are
        computed in float32 and rounded once at the end.
    group : torch.distributed.ProcessGroup, optional
        PyTorch only: every rank of the group has other classes of the same distributions, and calls
        this with its own; the value is that of all classes together, on each rank. Shards may
        differ in size. A DTensor needs no group: its placements say how it is spread.
    axis_name : str, optional
        JAX only, inside ``jax.shard_map``: the mesh axis over which the classes are spread.
    input_classes : sequence or array of int, optional
        For vocabularies that are partly the same: the indices in ``input`` of the classes that both
        have. All other classes are one more, on either side. Compilers take a sequence for a
        setting; of an array that they trace the values are not checked.
    target_classes : sequence or array of int, optional
        The indices of the same classes in ``target``, in the same order.

    Returns
    -------
    array
        Of the argument's library and device.

    Raises
    ------
    ShapeError
        Shapes differ, there is no class, or no such ``axis``.
    DTypeError
        An argument is not real floating, or ``where`` is not bool.
    OptionError
        No such ``reduction``, or a temperature that is not positive and finite, or out of range.
    LibraryError
        Not arrays, or arrays of two libraries; ``group`` or ``axis_name`` where it does not belong,
        or placements that do not fit.

    See Also
    --------
    js_div_with_logits : The Jensen-Shannon divergence, finite on any support.
    kl_div : From log-probabilities.

    Notes
    -----
    With x = (t − s)/T − c for any c near the mean of (t − s)/T under P, φ(x) = e⁻ˣ − 1 + x ≥ 0 and
    y = Σ p (e⁻ˣ − 1), KL = Σ p φ(x) − (y − log(1 + y)): no large numbers are subtracted.
    A class with p > 0 and q = 0 makes the divergence +∞; one that both mask takes no part.

    Examples
    --------
    >>> import numpy as np
    >>> import kldiv
    >>> teacher = np.array([[1.0, 2.0, 3.0]], dtype=np.float32)
    >>> student = teacher + np.array([[0.0, 1e-4, 0.0]], dtype=np.float32)
    >>> print(f"{kldiv.kl_div_with_logits(student, teacher):.4e}")
    9.2230e-10
    """
    return prepare(
        KullbackLeibler(),
        input,
        target,
        axis=axis,
        temperature=temperature,
        reduction=reduction,
        where=where,
        row_weight=row_weight,
        normalizer=normalizer,
        dtype=dtype,
        group=group,
        axis_name=axis_name,
        input_classes=input_classes,
        target_classes=target_classes,
    )


class RowsOptions(TypedDict, total=False):
    """The options of all that is taken of rows: `kl_div_with_logits` documents them all."""

    temperature: float | SupportsArray
    where: SupportsArray | None
    dtype: Any


class LossOptions(RowsOptions, total=False):
    """Those of a loss."""

    reduction: Reduction
    row_weight: SupportsArray | None
    normalizer: float | SupportsArray | None


class ReadOptions(RowsOptions, total=False):
    """Those of rows of logits."""

    axis: int
    group: Any
    axis_name: Any


class LogitOptions(LossOptions, ReadOptions, total=False):
    """Those of a loss of rows of logits."""


class Options(LogitOptions, total=False):
    """Those of two sets of logits, which may have other classes."""

    input_classes: Any
    target_classes: Any


@differentiable(2, RowLoss(divergence=JensenShannon()))
@options_of(kl_div_with_logits)
def js_div_with_logits(
    input: ArrayT, target: ArrayT, *, beta: float = 0.5, **options: Unpack[Options]
) -> Call[ArrayT]:
    r"""
    Jensen-Shannon divergence of two sets of logits, exact at any distance, in nats.

    With P = softmax(target/T), Q = softmax(input/T) and M = βP + (1−β)Q this is
    βD(P‖M) + (1−β)D(Q‖M): finite on any support, at most −β log β − (1−β) log(1−β), and as exact as
    `kl_div_with_logits`. Differentiable in both.

    Parameters
    ----------
    beta : float, default 0.5
        Weight of P in the mixture, between 0 and 1.

    Raises
    ------
    OptionError
        ``beta`` outside (0, 1).

    See Also
    --------
    kl_div_with_logits : Either direction of the Kullback-Leibler divergence.
    js_divergence : From probabilities, with the reference.

    Examples
    --------
    >>> import numpy as np
    >>> import kldiv
    >>> apart = kldiv.js_div_with_logits(np.array([0.0, -np.inf]), np.array([-np.inf, 0.0]))
    >>> bool(apart == np.log(2))
    True
    """
    beta = setting("beta", beta)
    if not LEAST <= beta < 1:
        raise OptionError(
            f"beta must lie between 0 and 1, and be at least {LEAST}; got {beta!r}; its "
            "limits are Kullback-Leibler divergences: use kl_div_with_logits(input, target) for "
            "D(P‖Q), with the arguments swapped for D(Q‖P)"
        )
    return prepare(JensenShannon(float(beta)), input, target, **options)


# KL and Jensen-Shannon have losses of their own
@differentiable(2, RowLoss(divergence=formulas.Jeffreys()))
@options_of(kl_div_with_logits)
def f_div_with_logits(
    input: ArrayT, target: ArrayT, *, divergence: Divergence, **options: Unpack[Options]
) -> Call[ArrayT]:
    r"""
    Any f-divergence of two sets of logits, exact at any distance, in nats.

    With P = softmax(target/T), Q = softmax(input/T) and ℓ = log(p/q) of a class this is Σ p g(ℓ),
    with g(0) = g′(0) = 0 so that no term is negative and none cancels another. A record of
    `kldiv.divergences`, or a class of your own, says which divergence. Differentiable in both.

    Parameters
    ----------
    divergence : Divergence
        A record of `kldiv.divergences`: ``KL``, ``Mixture`` (Jensen-Shannon, skew divergences),
        ``Jeffreys``, ``TotalVariation``, ``Hellinger``, ``ChiSquared``, ``Alpha``; or an instance
        of a class that derives from `~kldiv.divergences.FDivergence`.

    Raises
    ------
    OptionError
        ``divergence`` is no such record.

    See Also
    --------
    kl_div_with_logits : The same with ``divergence=KL()``, which is D(P‖Q).
    js_div_with_logits : The same with ``divergence=Mixture(beta, beta, 1 - beta)``.

    Notes
    -----
    The kernels of the CPU, Triton's and CUDA's compute every record of `kldiv.divergences`, those
    of Pallas Kullback-Leibler and Jensen-Shannon. A class of your own is computed by array-API
    formulas.

    References
    ----------
    I. Csiszár, "Information-type measures of difference of probability distributions and indirect
    observations", Studia Sci. Math. Hungar. 2 (1967) 299-318.

    Examples
    --------
    The skew divergence D(P‖0.1 P + 0.9 Q), finite where Q lacks a class of P:

    >>> import numpy as np
    >>> import kldiv
    >>> from kldiv.divergences import Mixture
    >>> teacher, student = np.array([0.0, 1.0, 2.0]), np.array([0.0, 1.0, -np.inf])
    >>> skew = kldiv.f_div_with_logits(student, teacher, divergence=Mixture(0.1, 1.0, 0.0))
    >>> print(f"{skew:.6f}")
    1.188477
    """
    if not isinstance(divergence, Divergence):
        raise OptionError(
            f"divergence must be a record of kldiv.divergences, such as KL() or Mixture(0.5, 0.5, "
            f"0.5), or an instance of a class derived from FDivergence; got {divergence!r}"
        )
    return prepare(divergence, input, target, **options)


@differentiable(2, RowLoss(divergence=formulas.Mixture(0.1, 1.0, 0.0)))
@options_of(kl_div_with_logits)
def skew_kl_div_with_logits(
    input: ArrayT,
    target: ArrayT,
    *,
    alpha: float = 0.1,
    reverse: bool = False,
    **options: Unpack[Options],
) -> Call[ArrayT]:
    r"""
    Skew Kullback-Leibler divergence of two sets of logits, exact at any distance, in nats.

    With P = softmax(target/T), Q = softmax(input/T) this is D(P‖αP + (1−α)Q), finite on any
    support: at most −log α. Differentiable in both.

    Parameters
    ----------
    alpha : float, default 0.1
        Weight in the mixture of the distribution that is averaged over, between 0 and 1.
    reverse : bool, default False
        Whether to take D(Q‖(1−α)P + αQ).

    Raises
    ------
    OptionError
        ``alpha`` outside (0, 1).

    See Also
    --------
    kl_div_with_logits : Its limit, α = 0.
    skew_divergence : From probabilities, with another reference.

    References
    ----------
    J. Ko et al., "DistiLLM: Towards Streamlined Distillation for Large Language Models", ICML 2024.

    Examples
    --------
    >>> import numpy as np
    >>> import kldiv
    >>> teacher, student = np.array([0.0, 1.0, 2.0]), np.array([0.0, 1.0, -np.inf])
    >>> print(f"{kldiv.skew_kl_div_with_logits(student, teacher):.6f}")
    1.188477
    """
    alpha = setting("alpha", alpha)
    if not 0 < alpha < 1:
        raise OptionError(
            f"alpha must lie between 0 and 1; got {alpha!r}; its limits are "
            "kl_div_with_logits at 0, and 0 at 1"
        )
    record = records.Mixture(constant(alpha), 1.0, 0.0)
    return prepare(record, input, target, exchanged=bool(reverse), **options)


@differentiable(2, RowLoss(divergence=formulas.Jeffreys()))
@options_of(kl_div_with_logits)
def jeffreys_div_with_logits(
    input: ArrayT,
    target: ArrayT,
    *,
    weights: tuple[float, float] = (1.0, 1.0),
    **options: Unpack[Options],
) -> Call[ArrayT]:
    r"""
    Both directions of the Kullback-Leibler divergence of two sets of logits, weighed, in nats.

    With P = softmax(target/T), Q = softmax(input/T) and the weights (w, r) this is
    w·D(P‖Q) + r·D(Q‖P), exact at any distance; both 1 are Jeffreys' divergence. Differentiable in
    both.

    Parameters
    ----------
    weights : tuple of float, default (1.0, 1.0)
        Of forward and reverse divergence, ≥ 0 and finite.

    Raises
    ------
    OptionError
        Negative, infinite or no ``weights``.

    See Also
    --------
    jeffreys_divergence : From probabilities, with the reference.

    Examples
    --------
    >>> import numpy as np
    >>> import kldiv
    >>> teacher, student = np.log([0.4, 0.6]), np.log([0.3, 0.7])
    >>> print(f"{kldiv.jeffreys_div_with_logits(student, teacher):.7f}")
    0.0441833
    """
    record = records.Jeffreys(*[setting("weights", weight) for weight in weights])
    return prepare(record, input, target, **options)


@differentiable(2, RowLoss(divergence=formulas.TotalVariation()))
@options_of(kl_div_with_logits)
def tv_div_with_logits(input: ArrayT, target: ArrayT, **options: Unpack[Options]) -> Call[ArrayT]:
    r"""
    Total variation distance of two sets of logits, exact at any distance.

    With P = softmax(target/T), Q = softmax(input/T) this is ½ Σ abs(p − q) = 1 − Σ min(p, q), from
    0 to 1: one less the rate at which speculative decoding accepts the student's tokens.
    Differentiable in both; a class where p = q adds nothing to the gradient.

    See Also
    --------
    tv_divergence : From probabilities.
    js_div_with_logits : Smooth, and as bounded.

    Examples
    --------
    >>> import numpy as np
    >>> import kldiv
    >>> teacher, student = np.log([0.4, 0.6]), np.log([0.3, 0.7])
    >>> print(f"{kldiv.tv_div_with_logits(student, teacher):.6f}")
    0.100000
    """
    return prepare(formulas.TotalVariation(), input, target, **options)


@differentiable(2, RowLoss(divergence=Alpha(0.5, 0.5, 0.25)))
@options_of(kl_div_with_logits)
def hellinger_div_with_logits(
    input: ArrayT, target: ArrayT, **options: Unpack[Options]
) -> Call[ArrayT]:
    r"""
    Squared Hellinger distance of two sets of logits, exact at any distance.

    With P = softmax(target/T), Q = softmax(input/T) this is ½ Σ (√p − √q)² = 1 − Σ √(pq), from 0 to
    1. Differentiable in both.

    See Also
    --------
    hellinger_divergence : From probabilities, with the reference.
    alpha_div_with_logits : Four times as much with ``alpha=0.5``.

    Examples
    --------
    >>> import numpy as np
    >>> import kldiv
    >>> teacher, student = np.log([0.36, 0.64]), np.log([0.5, 0.5])
    >>> print(f"{kldiv.hellinger_div_with_logits(student, teacher):.7f}")
    0.0100505
    """
    return prepare(records.Hellinger(), input, target, **options)


@differentiable(2, RowLoss(divergence=Alpha(2.0, -1.0, 2.0)))
@options_of(kl_div_with_logits)
def chi2_div_with_logits(input: ArrayT, target: ArrayT, **options: Unpack[Options]) -> Call[ArrayT]:
    r"""
    Pearson's χ² divergence of two sets of logits, exact at any distance.

    With P = softmax(target/T), Q = softmax(input/T) this is Σ (p − q)²/q; for Neyman's swap the
    two. Differentiable in both.

    Returns
    -------
    array
        Of the argument's library and device; +∞ where a class has p > 0 = q.

    See Also
    --------
    chi2_divergence : From probabilities, with the reference.
    alpha_div_with_logits : Half as much with ``alpha=2``.

    Examples
    --------
    >>> import numpy as np
    >>> import kldiv
    >>> teacher, student = np.log([0.4, 0.6]), np.log([0.5, 0.5])
    >>> print(f"{kldiv.chi2_div_with_logits(student, teacher):.6f}")
    0.040000
    """
    return prepare(records.ChiSquared(), input, target, **options)


@differentiable(2, RowLoss(divergence=Alpha(2.0, -1.0)))
@options_of(kl_div_with_logits)
def alpha_div_with_logits(
    input: ArrayT, target: ArrayT, *, alpha: float, **options: Unpack[Options]
) -> Call[ArrayT]:
    r"""
    α-divergence of two sets of logits, exact at any distance, in nats.

    With P = softmax(target/T), Q = softmax(input/T) this is (Σ p^α q^(1−α) − 1)/(α(α − 1)), and
    D(P‖Q) for α = 1, D(Q‖P) for α = 0. The order 1 − α exchanges P and Q. Differentiable in both.

    Parameters
    ----------
    alpha : float
        The order, any finite number but those within 1e-30 of 0: below ½ it seeks Q's modes, above
        it covers P.

    Returns
    -------
    array
        Of the argument's library and device; +∞ where a class has p > 0 = q if α ≥ 1, and where
        one has p = 0 < q if α ≤ 0.

    Raises
    ------
    OptionError
        ``alpha`` is not a finite number, or next to 0.

    See Also
    --------
    alpha_divergence : From probabilities, with another reference.
    renyi_div_with_logits : Of the same sum its logarithm.

    Notes
    -----
    Errors are a few units in the last place times (1 + abs(α))·abs(log(p/q)) of the classes that
    count, as the power p^α q^(1−α) magnifies the rounding of the logits.

    References
    ----------
    S. Amari, "α-divergence is unique, belonging to both f-divergence and Bregman divergence
    classes", IEEE Trans. Inf. Theory 55 (2009) 4925-4931.

    Examples
    --------
    >>> import numpy as np
    >>> import kldiv
    >>> teacher, student = np.log([0.4, 0.6]), np.log([0.3, 0.7])
    >>> for alpha in (-1, 0, 0.5, 1, 2):
    ...     print(f"{kldiv.alpha_div_with_logits(student, teacher, alpha=alpha):.6f}")
    0.020833
    0.021601
    0.022063
    0.022582
    0.023810
    """
    return prepare(records.Alpha(alpha), input, target, **options)


@differentiable(2, RowLoss(divergence=Renyi(2.0, -1.0)))
@options_of(kl_div_with_logits)
def renyi_div_with_logits(
    input: ArrayT, target: ArrayT, *, alpha: float, **options: Unpack[Options]
) -> Call[ArrayT]:
    r"""
    Rényi divergence of order α of two sets of logits, exact at any distance, in nats.

    With P = softmax(target/T), Q = softmax(input/T) this is log(Σ p^α q^(1−α))/(α − 1), with its
    limits: D(P‖Q) for α = 1, −log of Q's mass on the support of P for 0, the largest log(p/q) for
    ∞. Differentiable in both.

    Parameters
    ----------
    alpha : float
        The order, 0 or from 1e-30 to ``math.inf``. Below that, and of equal supports, it is alpha
        times D(Q‖P).

    Returns
    -------
    array
        Of the argument's library and device; +∞ where no class has both, and where a class has
        p > 0 = q if α ≥ 1. Gradients of such a row are NaN.

    Raises
    ------
    OptionError
        ``alpha`` is not a number from 0 to ``math.inf``, or next to 0.

    See Also
    --------
    renyi_divergence : From probabilities, with the reference.
    alpha_div_with_logits : Of the same sum no logarithm.

    Examples
    --------
    >>> import math
    >>> import numpy as np
    >>> import kldiv
    >>> teacher, student = np.log([0.25, 0.75]), np.log([0.5, 0.5])
    >>> for alpha in (0, 0.5, 1, 2, math.inf):
    ...     print(f"{kldiv.renyi_div_with_logits(student, teacher, alpha=alpha):.4f}")
    0.0000
    0.0693
    0.1308
    0.2231
    0.4055
    """
    divergence, exchanged = Renyi.of(order_of(alpha, finite=False, of_logits=True))
    return prepare(divergence, input, target, exchanged=exchanged, **options)


def prepare(
    divergence: Divergence,
    input: Array,
    target: Array,
    *,
    names: tuple[str, str] = PAIR,
    beta: Array | None = None,
    exchanged: bool = False,
    input_classes: Any = None,
    target_classes: Any = None,
    **options: Any,
) -> Call[Any]:
    """Check the arguments of a loss and resolve its settings.

    The options are those of `Rows`. ``beta`` is the parameter of rows of a divergence that has one;
    ``exchanged`` says that it takes (t, s).
    """
    if input_classes is not None or target_classes is not None:
        classes = input_classes, target_classes
        return prepare_matched(
            divergence, (input, target), classes, names, beta=beta, exchanged=exchanged, **options
        )
    check = partial(check_logits, names=names)
    rows = Rows(names, (input, target), check, after={"beta": beta}, **options)
    divergence, swapped = divergence.canonical()
    whole = rows.spread is None and isinstance(divergence, CrossEntropy)
    kind: Any = CrossEntropyLoss if whole else RowLoss  # the former's parts have kernels
    loss = kind(*rows.settings, divergence, rows.temperature)
    return rows.call(loss, exchanged=exchanged != swapped)


def check_logits(
    first: tuple[int, ...],
    second: tuple[int, ...],
    axis: int,
    names: tuple[str, str] = PAIR,
    *,
    empty: bool = False,
) -> bool:
    """Raise unless two shapes fit each other and the axis; return whether that is the last.

    No classes at all are an error, unless there are more elsewhere.
    """

    def both() -> str:
        return f"{names[0]} {tuple(first)} and {names[1]} {tuple(second)}"

    check_axis(axis, first, both)
    if first != second:
        if len(first) == len(second) and first[axis] != second[axis]:
            few, many = sorted((first[axis], second[axis]))
            longer = names[first[axis] < second[axis]]
            place = axis % len(first)
            cut = f"..., :{few}" if place == len(first) - 1 else ":, " * place + f":{few}"
            raise ShapeError(
                f"{names[0]} and {names[1]} have {first[axis]} and {second[axis]} classes on axis "
                f"{axis} ({both()}); where the last of the longer are padding cut them, "
                f"{longer}[{cut}]; where they are real pad the shorter with −inf, never with 0: "
                f"kldiv.pad_classes(logits, {many}, axis={axis}); where only some are the same "
                "name these: input_classes=, target_classes="
            )
        raise different(first, second, names)
    if first[axis] == 0 and not empty:
        raise ShapeError(f"there are no classes on axis {axis}: {both()}")
    return axis in {-1, len(first) - 1}


def pad_classes(logits: ArrayT, size: int, *, axis: int = -1) -> ArrayT:
    """
    Pad logits with −∞ to a number of classes: the classes added have probability 0.

    Parameters
    ----------
    logits : array
        Logits in a floating dtype, on any library.
    size : int
        How many classes there shall be, at least as many as there are.
    axis : int, default -1
        Where the classes lie.

    Returns
    -------
    array
        The logits, followed by −∞ along ``axis``.

    Raises
    ------
    ShapeError
        More classes than ``size``, or no such axis.

    Examples
    --------
    >>> import numpy as np
    >>> import kldiv
    >>> kldiv.pad_classes(np.array([0.5, 0.7]), 4)
    array([ 0.5,  0.7, -inf, -inf])
    """
    backend = backends.find(logits)
    shape = tuple(logits.shape)
    check_axis(axis, shape, lambda: f"logits of shape {shape}")
    if shape[axis] > size:
        raise ShapeError(
            f"logits have {shape[axis]} classes on axis {axis}, more than size {size}; pad the "
            "shorter of the two to the longer"
        )
    if backend.dtype_name(logits) not in FLOATS:
        raise DTypeError(
            f"logits have dtype {backend.dtype_name(logits)}; expected one of {', '.join(FLOATS)}, "
            "as only these have −inf"
        )
    xp = backend.namespace(logits)
    axis %= len(shape)
    with backend.context(logits):
        missing = (*shape[:axis], size - shape[axis], *shape[axis + 1 :])
        padding = xp.full(missing, -math.inf, dtype=logits.dtype, **backend.placed(logits))
        padded: ArrayT = xp.concat([logits, padding], axis=axis)
    return padded
