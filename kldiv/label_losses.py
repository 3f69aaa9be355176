"""Losses of logits and labels, and entropies: document, check, resolve, run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Unpack

from kldiv import backends
from kldiv._arguments import broadcasts, check_axis
from kldiv._call import PAIR, Call, differentiable, dtypes
from kldiv._docstrings import options_of
from kldiv._rows import Rows
from kldiv.errors import DTypeError, OptionError, ShapeError
from kldiv.formulas.cross_entropy import CrossEntropy
from kldiv.formulas.labels import LabelLoss
from kldiv.formulas.policy import PolicyLoss
from kldiv.formulas.reductions import cast
from kldiv.logit_losses import check_logits, kl_div_with_logits, prepare

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kldiv._types import Array, ArrayT, SupportsArray
    from kldiv.logit_losses import LogitOptions, ReadOptions

    Shape = tuple[int, ...]


_CLASSES = "input_classes", "target_classes"
_REDUCING = "reduction", "row_weight", "normalizer"


@differentiable(1, LabelLoss(labelled=False, entropic=True))
@options_of(kl_div_with_logits, without=_CLASSES)
def entropy_with_logits(input: ArrayT, **options: Unpack[LogitOptions]) -> Call[ArrayT]:
    """
    Entropy of softmax(input/T), exact on peaked distributions too, in nats.

    Parameters
    ----------
    input : array
        Logits; float16, bfloat16, float32 or float64. −∞ masks a class.

    See Also
    --------
    log_prob_and_entropy_with_logits : With the log-probability of a label from the same read.
    entropy : Of probabilities.

    Notes
    -----
    With m the largest logit, d = (s − m)/T and r = Σ e^d over all other classes, log p(label) is
    d − log(1 + r) and the entropy log(1 + r) + Σ p·abs(d): all terms have one sign. The usual
    log Z − Σ p s loses every digit where one class has nearly all the mass.

    Examples
    --------
    >>> import numpy as np
    >>> import kldiv
    >>> print(f"{kldiv.entropy_with_logits(np.array([0.0, 40.0])):.6e}")
    1.741825e-16
    """
    return prepare_labels(input, None, entropic=True, **options)


@differentiable(2, LabelLoss())
@options_of(kl_div_with_logits, without=_CLASSES)
def cross_entropy_with_logits(
    input: ArrayT, target: ArrayT, *, ignore_index: int = -100, **options: Unpack[LogitOptions]
) -> Call[ArrayT]:
    """
    Cross entropy of softmax(input/T) with labels, or with a teacher's logits, in nats.

    Labels cost −log q(label). A teacher P = softmax(target/T) costs −Σ p log q, computed as its
    entropy plus the Kullback-Leibler divergence D(P‖Q), both exact.

    Parameters
    ----------
    target : array
        Labels, integers with a class for each distribution, counting those of all ranks; or logits
        of P, of the shape of ``input``, differentiable too.
    ignore_index : int, default -100
        The label of distributions that do not count.

    Raises
    ------
    DTypeError
        Labels are no integers.
    OptionError
        Of NumPy arrays, a label that is no class; ``ignore_index`` with a teacher's logits.

    See Also
    --------
    kl_div_with_logits : Without the teacher's entropy, and as differentiable in the student.
    distillation_loss : A divergence and the labels' cross entropy together.

    Notes
    -----
    Exact as `entropy_with_logits` is.
    A label that is no class is an error on NumPy and NaN elsewhere, where reading it would wait.

    Examples
    --------
    >>> import numpy as np
    >>> import kldiv
    >>> student = np.array([[0.0, 1.0], [2.0, 0.0], [1.0, 1.0]])
    >>> print(f"{kldiv.cross_entropy_with_logits(student, np.array([1, 0, -100])):.6f}")
    0.220095
    >>> teacher = np.array([[0.0, 2.0], [1.0, 0.0], [0.0, 0.0]])
    >>> print(f"{kldiv.cross_entropy_with_logits(student, teacher):.6f}")
    0.596808
    """
    caller = backends.resolve(PAIR, input, target).caller
    if "int" in caller.dtype_name(target):
        return prepare_labels(input, target, ignore_index=ignore_index, **options)
    if ignore_index != -100:
        raise OptionError(
            f"ignore_index is a label, {ignore_index!r}, and target has dtype "
            f"{caller.dtype_name(target)}: leave distributions out by where="
        )
    return prepare(CrossEntropy(), input, target, **options)


@options_of(kl_div_with_logits, without=(*_CLASSES, *_REDUCING))
def log_prob_and_entropy_with_logits(
    input: ArrayT,
    labels: SupportsArray,
    *,
    reference: SupportsArray | None = None,
    ignore_index: int = -100,
    **options: Unpack[ReadOptions],
) -> tuple[ArrayT, ...]:
    """
    Log-probability of a label and entropy of softmax(input/T), from one read, in nats.

    Policy gradients take both for every token. Differentiable in the logits.

    Parameters
    ----------
    input : array
        Logits; float16, bfloat16, float32 or float64. −∞ masks a class.
    labels : array of int
        The index of a class for each distribution.
    reference : array, optional
        Logits of a reference policy, of the shape of ``input``, differentiable too: adds the exact
        KL from it.
    ignore_index : int, default -100
        The label of distributions that do not count: both results are 0.
    where : array of bool, optional
        Distributions to keep: broadcasts to the shape of the labels. A dropped one is 0, gets zero
        gradient and leaks no NaN.
    dtype : dtype or str, optional
        Dtype of the results; by default that of the logits.
    group : torch.distributed.ProcessGroup, optional
        PyTorch only: whose ranks have the other classes, as in `kl_div_with_logits`; labels
        count all classes.

    Returns
    -------
    log_prob : array
        log p(label) ≤ 0 of each distribution.
    entropy : array
        −Σ p log p ≥ 0 of each distribution.
    kl : array
        D(P‖R) ≥ 0 of each distribution, R = softmax(reference/T); only with ``reference``.

    Raises
    ------
    DTypeError
        Labels are no integers.
    OptionError
        A temperature that is not positive and finite, or, of NumPy arrays, a label that is no
        class.

    See Also
    --------
    entropy_with_logits : The entropy as a loss.
    cross_entropy_with_logits : The label's share as a loss.

    Notes
    -----
    Exact as `entropy_with_logits` is.
    A label that is no class is an error on NumPy and NaN elsewhere, where reading it would wait.

    Examples
    --------
    >>> import numpy as np
    >>> import kldiv
    >>> logits = np.array([[0.0, 40.0], [1.0, 1.0]])
    >>> log_prob, entropy = kldiv.log_prob_and_entropy_with_logits(logits, np.array([1, 0]))
    >>> for each in (log_prob, entropy):
    ...     print(f"{each[0]:.6e} {each[1]:.6f}")
    -4.248354e-18 -0.693147
    1.741825e-16 0.693147
    """
    call = prepare_labels(
        input,
        labels,
        reference=reference,
        entropic=True,
        ignore_index=ignore_index,
        reduction="none",
        **options,
    )
    values: Any = call.value()
    found = [values[..., place] for place in range(values.shape[-1])]
    unsaid = options.get("dtype") is None
    if reference is not None and unsaid and reference.dtype != input.dtype:
        xp, caller = call.route.caller.namespace(values), call.route.caller
        own = dtypes(call.route, caller.dtype_name(input), None, input)[2]
        found[:2] = (cast(xp, each, own) for each in found[:2])
    return -found[0], *found[1:]


class _Call(Call[Any]):
    """A call whose arrays after the first are of rows."""

    __slots__ = ()

    def reduced(self) -> Array:
        operation, route, arrays = self.operation, self.route, self.arrays
        parts = isinstance(operation, PolicyLoss) and self.spread is None
        if not parts or route.is_fused(operation, arrays):
            return super().reduced()
        xp = route.caller.namespace(arrays[0])
        with route.caller.context(arrays[0]):
            return operation.composed(xp, route.run, *arrays)

    def _value_and_gradients(
        self, wanted: tuple[int, ...], into: Sequence[Array] | None
    ) -> tuple[Array, list[Array]]:
        if any(wanted):
            raise OptionError("argnums 1 is target, which holds labels: they have no gradient")
        return super()._value_and_gradients(wanted, into)


def prepare_labels(
    logits: Array,
    labels: Array | None,
    *,
    name: str = "input",
    reference: Array | None = None,
    entropic: bool = False,
    ignore_index: int = -100,
    **options: Any,
) -> Call[Any]:
    """Check the arguments of a loss of labels, of an entropy, or both, and resolve its settings.

    With a reference both, and the divergence from it. The options are those of `Rows`.
    """
    if labels is not None:
        axis, where = options.get("axis", -1), options.get("where")
        options["where"] = kept_labels(logits, labels, axis, ignore_index, where, name)

    def check(shape: Shape, *others: Any, empty: bool) -> bool:
        *references, axis = others
        check_classes(shape, axis, name, empty=empty)
        for other in references:
            check_logits(other, shape, axis, ("reference", name), empty=empty)
        return axis in {-1, len(shape) - 1}

    both = {name: logits} | ({} if reference is None else {"reference": reference})
    rows = Rows([*both], [*both.values()], check, after={"labels": labels}, **options)
    if labels is not None:
        of_rows, classes = rows.of_rows, rows.arrays[0].shape[-1]
        check_range(rows.route, of_rows["labels"], of_rows["where"], classes)
    kind: Any = LabelLoss if reference is None else PolicyLoss
    return rows.call(kind(*rows.settings, rows.temperature, labels is not None, entropic), _Call)


def check_classes(shape: tuple[int, ...], axis: int, name: str, *, empty: bool = False) -> None:
    """Raise unless logits of that shape have classes on that axis."""

    def described() -> str:
        return f"{name} of shape {tuple(shape)}"

    check_axis(axis, shape, described)
    if not shape[axis] and not empty:
        raise ShapeError(f"there are no classes on axis {axis}: {described()}")


def kept_labels(
    logits: Array,
    labels: Array,
    axis: int,
    ignore_index: int | None,
    where: Array | None,
    name: str,
) -> Array:
    """Return which rows count: those whose label is not ignored, of those that a mask keeps."""
    caller = backends.resolve((name, "labels"), logits, labels).caller
    check_classes(logits.shape, axis, name, empty=True)
    dtype = caller.dtype_name(labels)
    if "int" not in dtype:
        raise DTypeError(
            f"labels has dtype {dtype}; expected integers, the index of a class for each row"
        )
    shape = list(logits.shape)
    del shape[axis]
    if tuple(labels.shape) != tuple(shape):
        raise ShapeError(
            f"labels has shape {tuple(labels.shape)}; expected one for each row of {name}, "
            f"{tuple(shape)}"
        )
    if ignore_index is not None and _holds(dtype, ignore_index):
        keep = labels != ignore_index
    else:  # PyTorch would take −100 for 156 among bytes
        xp = caller.namespace(labels)
        keep = xp.ones_like(labels, dtype=xp.bool)
    if where is None:
        return keep
    if caller.dtype_name(where) == "bool" and broadcasts(where.shape, keep.shape):
        return keep & where
    return where  # which the checks of the call refuse


def _holds(dtype: str, number: int) -> bool:
    """Return whether integers of a dtype can be that number."""
    bits = int(dtype.rpartition("int")[2])
    least = 0 if dtype.startswith("u") else -(2 ** (bits - 1))
    return bool(least <= number < least + 2**bits)


def check_range(route: backends.Route, labels: Array, keep: Array, classes: int) -> None:
    """Raise where a label is no class, on NumPy; elsewhere reading labels would wait for them."""
    if route.caller.name != "numpy":
        return
    wrong = ((labels < 0) | (labels >= classes)) & keep
    if wrong.any():
        raise OptionError(
            f"labels has {int(labels[wrong][0])}, which is none of the {classes} classes, 0 to "
            f"{classes - 1}; rows without a label have ignore_index, or where= drops them"
        )
