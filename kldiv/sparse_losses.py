"""The losses of sparse teachers: document, check, resolve, run; no mathematics."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Unpack

from kldiv import backends
from kldiv._arguments import (
    as_number,
    check_axis,
    check_heat,
    fixed_temperature,
    same_rows,
    setting,
)
from kldiv._call import Call, differentiable, wider
from kldiv._docstrings import options_of
from kldiv._rows import Rows
from kldiv.backends.base import FLOATS
from kldiv.distillation import divergence_of_beta
from kldiv.errors import DTypeError, LibraryError, OptionError, ShapeError
from kldiv.formulas import divergences as formulas
from kldiv.formulas.divergences import Divergence
from kldiv.formulas.reductions import cast as in_dtype
from kldiv.formulas.sparse import BUCKET, TAILS, TopKLoss, likeliest
from kldiv.logit_losses import kl_div_with_logits

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kldiv._types import Array, ArrayT, SupportsArray
    from kldiv.formulas.operation import Run
    from kldiv.logit_losses import LogitOptions

_NAMES = "input", "target_log_probs"


class SparseTeacher(NamedTuple):
    """
    The likeliest classes of a teacher's rows, with their log-probabilities.

    Parameters
    ----------
    log_probs : array
        Log-probabilities, (..., K); −∞ is padding.
    indices : array of int
        The class of each, of the same shape; that of padding does not matter.
    rest : array, optional
        The mass of all other classes of each row, (...). Without it the mass is 1 less that
        of the given classes.
    temperature : float, default 1.0
        The temperature that the log-probabilities were taken at.

    See Also
    --------
    topk_log_probs : Makes one from logits.
    topk_kl_div_with_logits : The loss that takes one.

    Examples
    --------
    >>> import numpy as np
    >>> import kldiv
    >>> teacher = kldiv.topk_log_probs(np.log([0.1, 0.6, 0.3]), 2)
    >>> np.exp(teacher.log_probs).round(6), teacher.indices, float(teacher.rest.round(6))
    (array([0.6, 0.3]), array([1, 2]), 0.1)
    """

    log_probs: Array
    indices: Array
    rest: Array | None = None
    temperature: float = 1.0


class _Call(Call[Any]):
    """A call whose arrays after the second are numbers per row."""

    __slots__ = ()

    def gradient(self, index: int, value: Array, run: Run) -> Array:
        operation = getattr(self.operation, "loss", self.operation)
        if index == 2 and not operation.has_rest:
            raise OptionError("argnums 2 is target_rest, which is not given; pass the mass")
        return super().gradient(index, value, run)


@differentiable(3, TopKLoss())
@options_of(kl_div_with_logits, without=("input_classes", "target_classes"))
def topk_kl_div_with_logits(
    input: ArrayT,
    target_log_probs: ArrayT | SparseTeacher,
    target_indices: SupportsArray | None = None,
    *,
    tail: str = BUCKET,
    target_rest: SupportsArray | None = None,
    target_temperature: float | None = None,
    beta: float | SupportsArray = 0.0,
    divergence: Divergence | None = None,
    **options: Unpack[LogitOptions],
) -> Call[ArrayT]:
    r"""
    Divergence of logits from a teacher of which the likeliest classes are known, in nats.

    Serving engines give K log-probabilities a token, no more. All other classes together are one
    more class, exactly: the teacher's share is 1 less that of the given ones, the student's comes
    from its own logits. On these K + 1 classes it is D(P‖Q), or any other divergence.
    Differentiable in ``input``, ``target_log_probs`` and ``target_rest``.

    Parameters
    ----------
    input : array
        Logits of Q, the student, over all classes; float16, bfloat16, float32 or float64. −∞ masks
        a class.
    target_log_probs : array or SparseTeacher
        Log-probabilities of K classes, on ``axis``; −∞ is padding, where a row has fewer. Or a
        record of these, the indices, the rest and their temperature.
    target_indices : array of int
        The class of each, of the same shape, none twice in a row. Where classes are spread over
        ranks, it counts those of all, and each rank has the whole teacher.
    tail : {"bucket", "renormalize"}, default "bucket"
        How the other classes count: as one class more, or not, with both distributions
        normalised on the given ones.
    target_rest : array, optional
        The teacher's mass on the other classes, for each row, where it is known better than
        1 − Σ e^(log-probabilities), which rounds small ones to 0. Given and rest together are taken
        to be a distribution.
    target_temperature : float, optional
        The temperature at which the log-probabilities were taken; by default that of the loss.
        Serving engines take them at 1. With "renormalize" they are brought to the temperature of
        the loss, with "bucket" nobody can.
    beta : float or array, default 0.0
        0 is D(P‖Q), 1 is D(Q‖P), between them Jensen-Shannon, as in `distillation_loss`; an array
        broadcasts over the distributions and is not differentiated in.
    divergence : Divergence, optional
        Any record of `kldiv.divergences` in place of ``beta``.

    Returns
    -------
    array
        Of the argument's library and device.

    Raises
    ------
    DTypeError
        Indices are no integers.
    OptionError
        No such ``tail``, ``beta`` outside [0, 1], ``target_temperature`` with "bucket" that is not
        that of the loss, or, of NumPy arrays, an index that is no class.

    See Also
    --------
    topk_log_probs : Makes a sparse teacher from logits, the rest exact.
    diagnose : Finds indices that are repeated or no class, and a rest that rounds to 0.

    Notes
    -----
    A row of padding alone is 0 with "bucket", NaN with "renormalize". Where all classes are given
    there is no rest, whatever rounding leaves of the mass. An index that is no class makes the row
    NaN, where looking would wait for the device. Masses are divided by their sum, which is 1 but
    for rounding; gradients are those of the quotients.

    Examples
    --------
    >>> import numpy as np
    >>> import kldiv
    >>> student = np.array([0.0, 1.0, 2.0, 3.0])
    >>> log_probs, indices = np.log([0.5, 0.3]), np.array([3, 1])
    >>> print(f"{kldiv.topk_kl_div_with_logits(student, log_probs, indices):.6f}")
    0.185151
    >>> teacher = kldiv.topk_log_probs(np.array([0.0, 1.0, 2.0, 2.5]), 2)
    >>> print(f"{kldiv.topk_kl_div_with_logits(student, teacher):.6f}")
    0.030632
    """
    fixed = fixed_temperature(options.get("temperature", 1.0))
    target_log_probs, target_indices, target_rest, target_temperature = teacher_of(
        target_log_probs, target_indices, target_rest, target_temperature, fixed, tail
    )
    record, of_beta = record_of(beta, divergence)
    rows = Rows(
        _NAMES,
        (input, target_log_probs),
        partial(_check_shapes, target_indices),
        sharded=0,
        before={"target_rest": target_rest},
        after={"beta": of_beta, "target_indices": target_indices},
        **options,
    )
    s, a = rows.arrays
    check_indices(rows.route, a, rows.of_rows["target_indices"], s.shape[-1])
    check_heat(target_temperature, rows.settings[1])
    has_rest = target_rest is not None
    kind: Any = TopKLoss
    loss = kind(*rows.settings, record, rows.temperature, tail, has_rest, target_temperature)
    return rows.call(loss, _Call)


def teacher_of(
    log_probs: Any,
    indices: Array | None,
    rest: Array | None,
    heat: float | None,
    fixed: float | None,
    tail: str,
) -> tuple[Array, Array, Array | None, float | None]:
    """Return a sparse teacher's arrays, and its temperature where it is not that of the loss."""
    if isinstance(log_probs, SparseTeacher):
        if indices is not None or rest is not None:
            raise OptionError(
                "a SparseTeacher has its own indices and rest; leave target_indices and "
                "target_rest out"
            )
        log_probs, indices, rest, own = log_probs
        heat = own if heat is None else heat
        rest = rest if tail == BUCKET else None  # of which the others know nothing
    if indices is None:
        raise OptionError("target_indices is missing: the class of each log-probability")
    heat = _target_temperature(heat, fixed, tail)
    if rest is not None and tail != BUCKET:
        raise OptionError(
            f"target_rest is a mass outside the given classes; tail={tail!r} has none"
        )
    return log_probs, indices, rest, heat


def record_of(
    beta: float | Array, divergence: Divergence | None = None
) -> tuple[Divergence, Array | None]:
    """Return the divergence of a β, or the one that is given, and β where it is an array.

    The divergence takes the arrays in their order.
    """
    of_rows = None
    if divergence is None:
        divergence, of_rows = divergence_of_beta(beta)
    elif not isinstance(as_number(beta), int | float) or beta:
        raise OptionError("beta and divergence both say which divergence; pass one of them")
    elif not isinstance(divergence, Divergence):
        raise OptionError(
            f"divergence must be a record of kldiv.divergences, such as KL(); got {divergence!r}"
        )
    found, exchanged = divergence.canonical()
    if exchanged:  # only Kullback-Leibler's has kernels for (Q, P) too
        is_kl = found == formulas.KullbackLeibler()
        found = formulas.Jeffreys(0.0, 1.0) if is_kl else formulas.Exchanged(found)
    return found, of_rows


def _target_temperature(own: float | None, fixed: float | None, tail: str) -> float | None:
    """Return the temperature of the log-probabilities, None where it is that of the loss."""
    if tail not in TAILS:
        raise OptionError(f"tail must be one of {', '.join(map(repr, TAILS))}; got {tail!r}")
    if own is None:
        return None
    own = fixed_temperature(setting("target_temperature", own))
    if own == fixed:
        return None
    if tail == BUCKET:
        raise OptionError(
            f"log-probabilities taken at temperature {own} are not those of the loss, "
            f"{'an array' if fixed is None else fixed}, and the mass of the others cannot be "
            "brought there; take them at the temperature of the loss, or pass tail='renormalize'"
        )
    return own


def _check_shapes(
    target_indices: Array, whole: Sequence[int], own: Sequence[int], axis: int, *, empty: bool
) -> bool:
    """Raise unless the shapes fit; return whether the classes lie on the last axis."""
    indices = target_indices.shape
    shapes = f"input {tuple(whole)}, target_log_probs {tuple(own)}, target_indices {tuple(indices)}"
    check_axis(axis, tuple(whole), lambda: shapes)
    if tuple(own) != tuple(indices):
        raise ShapeError(f"target_indices has an entry for each log-probability; got {shapes}")
    if not same_rows(whole, own, axis):
        raise ShapeError(
            f"input and target_log_probs must agree but for the axis of the classes, {axis}; got "
            f"{shapes}"
        )
    if not (whole[axis] or empty) or not own[axis]:
        raise ShapeError(f"there are no classes on axis {axis}: {shapes}")
    return axis in {-1, len(whole) - 1}


def check_indices(route: backends.Route, a: Array, indices: Array, classes: int) -> None:
    """Raise unless indices are integers and, on NumPy, those of classes: elsewhere that waits."""
    dtype = route.caller.dtype_name(indices)
    if "int" not in dtype:
        raise DTypeError(f"target_indices has dtype {dtype}; expected integers, indices of classes")
    if route.caller.name != "numpy":
        return
    wrong = ((indices < 0) | (indices >= classes)) & (a != -float("inf"))
    if wrong.any():
        raise OptionError(
            f"target_indices has {int(indices[wrong][0])}, which is none of the {classes} classes, "
            f"0 to {classes - 1}; entries that are padding have a log-probability of −inf"
        )


def topk_log_probs(
    logits: Array, k: int, temperature: float = 1.0, *, axis: int = -1
) -> SparseTeacher:
    """
    Return the k likeliest classes of softmax(logits/T), and the exact mass of the others.

    Parameters
    ----------
    logits : array
        A teacher's logits; float16, bfloat16, float32 or float64. −∞ masks a class.
    k : int
        How many classes, at most as many as there are.
    temperature : float, default 1.0
        Divisor of the logits.
    axis : int, default -1
        Where the classes lie, in the results too.

    Returns
    -------
    SparseTeacher
        Log-probabilities, the likeliest first, indices, and the mass of all other classes, summed
        from their own logits; in float32, or float64 for such logits. It unpacks like a tuple.

    Raises
    ------
    ShapeError
        No such axis, or fewer than k classes.
    DTypeError
        Logits are not real floating.
    OptionError
        ``k`` below 1, or a temperature that is not positive and finite.

    See Also
    --------
    topk_kl_div_with_logits : The loss that takes it.

    Examples
    --------
    >>> import numpy as np
    >>> import kldiv
    >>> teacher = kldiv.topk_log_probs(np.array([0.0, 30.0, 1.0, 2.0]), 2)
    >>> teacher.indices
    array([1, 3])
    >>> print(f"{teacher.rest:.6e}")
    3.479428e-13
    """
    backend = backends.find(logits)
    backend.check("logits", logits)
    if backend.in_blocks:
        raise LibraryError(
            f"topk_log_probs takes numbers, and arrays of {backend.name} are lazy; call it on "
            "each block"
        )
    dtype = backend.dtype_name(logits)
    if dtype not in FLOATS:
        raise DTypeError(f"logits has dtype {dtype}; expected one of {', '.join(FLOATS)}")
    heat = fixed_temperature(temperature)
    if heat is None:
        raise OptionError(f"temperature must be a number; got {temperature!r}")
    shape = tuple(logits.shape)
    check_axis(axis, shape, lambda: f"logits of shape {shape}")
    if k < 1:
        raise OptionError(f"k must be at least 1; got {k!r}")
    if k > shape[axis]:
        raise ShapeError(f"logits of shape {shape} have {shape[axis]} classes, fewer than k, {k}")
    xp = backend.namespace(logits)
    with backend.context(logits):
        compute = wider(dtype, "float32")
        check_heat(heat, compute)
        rows = in_dtype(xp, xp.moveaxis(logits, axis, -1), compute)
        log_probs, indices, rest = likeliest(xp, rows, k, heat)
        log_probs, indices = (xp.moveaxis(array, -1, axis) for array in (log_probs, indices))
        return SparseTeacher(log_probs, indices, rest, heat)
