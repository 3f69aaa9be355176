"""The losses: document, check, resolve, run; the mathematics lies in `kldiv.formulas`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kldiv._arguments import check_mask, check_numbers
from kldiv._call import (
    Call,
    Record,
    Reducing,
    SumOfCalls,
    check_reduction,
    differentiable,
    dtypes,
    record_of,
    resolve_same_shape,
)
from kldiv.formulas.pointwise import KL, KLLogTarget, PointwiseLoss

if TYPE_CHECKING:
    from kldiv._types import Array, ArrayT, Reduction, SupportsArray
    from kldiv.formulas.pointwise import Pointwise


_ELEMENTS = "the elements (for one weight a row add an axis: row_weight[:, None])"


@differentiable(2, PointwiseLoss())
def kl_div(
    input: ArrayT,
    target: ArrayT,
    *,
    reduction: Reduction = "mean",
    log_target: bool = False,
    where: SupportsArray | None = None,
    row_weight: SupportsArray | None = None,
    normalizer: float | SupportsArray | None = None,
    dtype: Any = None,
) -> Call[ArrayT]:
    r"""
    Kullback-Leibler divergence D(P‖Q) of probabilities P from log-probabilities log Q, in nats.

    A drop-in for ``torch.nn.functional.kl_div`` on every array library: each element contributes
    y·(log y − x), with ``x`` from ``input`` (log Q) and ``y`` from ``target`` (P).
    Differentiable in both arguments.

    Parameters
    ----------
    input : array
        Log-probabilities log Q, of any shape; float16, bfloat16, float32 or float64. Not checked
        to be normalised: `kldiv.diagnose` looks at values, this function never does.
    target : array
        Probabilities P, or log-probabilities log P with ``log_target=True``; the same shape, any of
        the same dtypes.
    reduction : {"mean", "batchmean", "sum", "none"}, default "mean"
        ``"mean"`` divides the sum by the number of *elements* and so is not the divergence of one
        distribution; ``"batchmean"`` divides it by ``input.shape[0]`` and is, for rows of a matrix;
        ``"none"`` returns the elements.
    log_target : bool, default False
        Whether ``target`` holds log-probabilities.
    where : array of bool, optional
        Elements to keep; broadcasts to the shape of ``input``. A dropped element adds nothing, gets
        zero gradient and leaks no NaN; ``"mean"`` divides by how many elements are kept,
        ``"batchmean"`` by how many entries of the first axis keep any.
    row_weight : array of float, optional
        A factor for each element: broadcasts to the shape of the result of ``"none"``, and is
        differentiable. 0 lets nothing through, NaN neither; means divide by the number kept all the
        same.
    normalizer : float or array, optional
        Divisor of the sum in place of the reduction's own, for sums that are split, as in gradient
        accumulation: a number or an array of no axes, which no gradient flows into and whose value
        is not read. Where nothing is kept the result is 0.
    dtype : dtype or str, optional
        Dtype of the result; by default the wider of the two arguments'. Half-precision arguments
        are computed in float32 and rounded once at the end; under ``torch.autocast`` their result
        stays float32, as with PyTorch's own losses.

    Returns
    -------
    array
        Of the argument's library and device; 0-d, or of the arguments' shape for ``"none"``.

    Raises
    ------
    ShapeError
        Shapes differ (nothing is broadcast), or ``where``, ``row_weight`` or ``normalizer`` does
        not fit.
    DTypeError
        An argument is not real floating, ``where`` is not bool, or ``dtype`` is no such dtype.
    OptionError
        No such ``reduction``, or a ``normalizer`` without one.
    LibraryError
        Not arrays, or arrays of two libraries.

    See Also
    --------
    KLDivLoss : The same with its options bound.
    value_and_grad : Its gradient on every library, NumPy too.

    Notes
    -----
    NumPy's float32 logarithm is up to 4.6 units off, so without the CPU kernels (extra ``cpu``,
    arrays that are not small) float32 arrays of NumPy, and of libraries built on it, are computed
    in float64 and rounded once: it takes about twice the time and temporary memory.

    Where P = 0 an element is 0, even if log Q = −∞; where P > 0 and log Q = −∞ it is +∞. NaN stays
    NaN. The gradient is −P in ``input`` and log P + 1 − log Q in ``target``, 0 where P = 0.

    References
    ----------
    S. Kullback and R. A. Leibler, "On Information and Sufficiency", Ann. Math. Statist. 22 (1951)
    79-86.

    Examples
    --------
    >>> import numpy as np
    >>> import kldiv
    >>> p = np.array([0.36, 0.48, 0.16])
    >>> q = np.array([0.30, 0.50, 0.20])
    >>> round(float(kldiv.kl_div(np.log(q), p, reduction="sum")), 6)
    0.010338
    """
    reducing = Reducing.of(reduction, normalizer, {"row_weight": row_weight, "where": where})
    route, (x, y, *others), wide = resolve_same_shape(input, target, **reducing.others)
    given, divisor = reducing.named(route, others)
    if where is not None:
        check_mask(route, given["where"], input.shape)
    if row_weight is not None:
        check_numbers(route, "row_weight", given["row_weight"], input.shape, _ELEMENTS)
        xp = route.caller.namespace(given["row_weight"])
        given["row_weight"] = xp.broadcast_to(given["row_weight"], input.shape)
    compute, total, result = dtypes(route, wide, dtype, x)
    if log_target:
        function: Pointwise = KLLogTarget()
    else:
        function, compute = KL(), total  # where float32 logarithms are rough, total is float64
    operation = reducing.loss(PointwiseLoss(reduction, compute, total, result, function))
    return Call(route, operation, x, y, *given.values(), normalizer=divisor)


_KL_DIV = record_of(kl_div)


@dataclass(frozen=True)
class KLDivLoss:
    """
    `kl_div` with its options bound, for arrays of any library.

    Parameters
    ----------
    reduction : {"mean", "batchmean", "sum", "none"}, default "mean"
        As in `kl_div`.
    log_target : bool, default False
        Whether targets hold log-probabilities.

    Raises
    ------
    OptionError
        No such ``reduction``.

    See Also
    --------
    kldiv.nn.KLDivLoss : The same as a ``torch.nn.Module``.

    Examples
    --------
    >>> import numpy as np
    >>> import kldiv
    >>> loss = kldiv.KLDivLoss(reduction="sum")
    >>> loss
    KLDivLoss(reduction='sum', log_target=False)
    >>> round(float(loss(np.log([0.5, 0.5]), np.array([1.0, 0.0]))), 6)
    0.693147
    """

    reduction: Reduction = "mean"
    log_target: bool = False

    def __post_init__(self) -> None:
        check_reduction(self.reduction)

    def __call__(self, input: Array, target: Array, **options: Any) -> Array:
        """Return the loss of ``input`` (log Q) and ``target``; options are those of `kl_div`."""
        return self.prepare(input, target, **options).value()

    @property
    def record(self) -> Record:
        """The facts of this loss, as those of a function."""
        return Record(self.prepare, _KL_DIV.arrays)

    def prepare(self, input: Array, target: Array, **options: Any) -> Call[Any] | SumOfCalls[Any]:
        """Check the arguments and resolve the settings of one call."""
        bound = {"reduction": self.reduction, "log_target": self.log_target}
        return _KL_DIV.prepare(input, target, **bound, **options)
