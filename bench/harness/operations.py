"""The operations that are measured: each in this one place, with its inputs, bytes and truth.

To add one, add an entry to `OPERATIONS`; peers that know it get a formula in ``peers.py``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from ..oracle import losses

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..oracle.losses import Loss

Pass = Literal["value", "gradient"]
Shape = tuple[int, int]
"""Rows and classes."""

ITEMSIZE: Final = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
UNIT: Final = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24, "float64": 2.0**-53}
"""Unit roundoff."""
TARGETS: Final = {"float32": 1e-6, "float64": 2e-15}
"""The relative error that kldiv's losses from logits, and their gradients, stay below."""
SPREAD: Final = 3.0
"""Standard deviation of the teacher's logits."""
_TILE = 1 << 16


def half_the_digits(dtype: str) -> float:
    """Return the error from which a cell is wrong: not half of the dtype's digits are right."""
    return math.sqrt(UNIT[dtype])


@dataclass(frozen=True)
class Operation:
    """One operation: its name in kldiv, its options, the least bytes, its truth."""

    name: str
    title: str
    function: str
    """Its public name in kldiv."""
    options: dict[str, Any]
    truth: Callable[..., Loss]
    """From the input's and the target's rows, in float64."""
    inputs: Literal["probabilities", "log-probabilities", "logits", "labels"]
    """The content of the target; the input holds log-probabilities, or of the last two logits."""
    shapes: tuple[Shape, ...] = ((8, 10), (1024, 32000))
    quick: Shape | None = (256, 16000)
    """The shape of ``--quick``; None leaves the operation out of it."""
    elementwise: bool = False
    """Whether the result has the input's shape; it has no gradient then."""
    finish: Callable[..., Any] | None = None
    """Reduces several results to one number, which `kldiv.value_and_grad` does not take."""

    @property
    def passes(self) -> tuple[Pass, ...]:
        """The measured passes: the value, and the value with the gradient in the input."""
        whole = not self.elementwise and self.finish is None
        return ("value", "gradient") if whole else ("value",)

    def loss(self) -> Callable[..., Any]:
        """Return kldiv's function with the options bound."""
        import kldiv

        found = partial(getattr(kldiv, self.function), **self.options)
        finish = self.finish
        return found if finish is None else lambda *arrays: finish(*found(*arrays))

    def traffic(self, part: Pass, dtype: str, shape: Shape) -> tuple[int, int]:
        """Return the bytes that must be read and written: each input once, each output once.

        A reduced loss reads its two inputs, labels being nothing beside logits; its gradient, or a
        result with the inputs' shape, is written once. Bytes that an implementation stores and
        reads again in between do not count.
        """
        array = ITEMSIZE[dtype] * math.prod(shape)
        read = array if self.inputs == "labels" else 2 * array
        return read, array if part == "gradient" or self.elementwise else 0


_FAMILY: Final = {
    "skew_kl_div": ("skew KL", losses.skew, {}),
    "jeffreys_div": ("Jeffreys", losses.jeffreys, {}),
    "tv_div": ("total variation", losses.total_variation, {}),
    "hellinger_div": ("squared Hellinger", losses.power(0.5, 0.25), {}),
    "chi2_div": ("χ²", losses.power(2.0, 2.0), {}),
    "alpha_div": ("α = 0.7", losses.power(0.7), {"alpha": 0.7}),
}
"""The other divergences of logits: title, definition, own options."""


def _of_logits(
    name: str, title: str, truth: Callable[..., Loss], function: str = "", **fields: Any
) -> Operation:
    """Return an operation on logits, by default their mean loss in the function of its name."""
    fields = {"options": {"reduction": "mean"}, "inputs": "logits", "quick": None, **fields}
    shapes = ((8, 10), (512, 32000))
    return Operation(name, title, function or name, truth=truth, shapes=shapes, **fields)


OPERATIONS: Final = {
    operation.name: operation
    for operation in (
        Operation(
            "kl_div",
            "kl_div, sum",
            "kl_div",
            {"reduction": "sum"},
            losses.kl_div,
            "probabilities",
        ),
        _of_logits(
            "kl_div_with_logits",
            "KL from logits, mean",
            losses.kl_div_with_logits,
            quick=(128, 16000),
        ),
        _of_logits("js_div_with_logits", "JS from logits, mean", losses.js_div_with_logits),
        Operation(
            "kl_div_log_target",
            "kl_div, sum, log_target",
            "kl_div",
            {"reduction": "sum", "log_target": True},
            partial(losses.kl_div, log_target=True),
            "log-probabilities",
            quick=None,
        ),
        Operation(
            "kl_div_none",
            "kl_div, elements",
            "kl_div",
            {"reduction": "none"},
            losses.kl_div,
            "probabilities",
            quick=None,
            elementwise=True,
        ),
        *(
            _of_logits(
                f"{name}_with_logits",
                f"{title} from logits, mean",
                partial(losses.of_classes, classes),
                options={"reduction": "mean", **options},
            )
            for name, (title, classes, options) in _FAMILY.items()
        ),
        _of_logits(
            "distillation_loss", "distillation loss, β = ½, mean", losses.js_div_with_logits
        ),
        _of_logits(
            "cross_entropy_with_logits",
            "cross entropy of a teacher, mean",
            partial(losses.of_classes, losses.cross_entropy),
        ),
        _of_logits(
            "cross_entropy_of_labels",
            "cross entropy of labels, mean",
            losses.labels,
            "cross_entropy_with_logits",
            inputs="labels",
        ),
        _of_logits(
            "log_prob_and_entropy",
            "entropy less log p(label), mean",
            partial(losses.labels, entropic=True),
            "log_prob_and_entropy_with_logits",
            options={},
            inputs="labels",
            finish=lambda log_prob, entropy: (entropy - log_prob).mean(),
        ),
    )
}


# --- their inputs ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Data:
    """Input and target in host memory: one tile of random rows, repeated to the full shape.

    Repeated rows repeat their terms of the loss, so the truth of one tile is that of all, and
    the cost of the truth does not grow with the shape.
    """

    operation: Operation
    dtype: str
    shape: Shape
    tile: tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]
    input: np.ndarray[Any, Any]
    target: np.ndarray[Any, Any]
    origin: tuple[int, float]
    """Seed and distance."""

    @property
    def repeats(self) -> int:
        """How many times the tile is there."""
        return self.shape[0] // self.tile[0].shape[0]

    def exact(self) -> float:
        """Return the loss of one tile."""
        return _exact(self.operation.name, self.dtype, self.shape, self.origin).value

    def errors(self, value: Any, gradient: Any | None) -> tuple[float, float | None]:
        """Return the relative errors of value and gradient, in the 1-norm; NaN is infinite."""
        exact = _exact(self.operation.name, self.dtype, self.shape, self.origin)
        sums = self.operation.options.get("reduction") == "sum"
        if exact.elements is not None and self.operation.elementwise:
            return _distance(value, exact.elements, self.repeats), None
        total = exact.value * self.repeats if sums else exact.value
        error = _relative(abs(float(value) - total), abs(total))
        if gradient is None or exact.gradient is None:
            return error, None
        scale = 1 if sums else self.repeats
        return error, _distance(gradient, exact.gradient / scale, self.repeats)


def make(
    operation: Operation, dtype: str, shape: Shape, seed: int = 0, distance: float = 1.0
) -> Data:
    """Return inputs whose logits differ by ``distance`` times standard normal noise."""
    tile = _tile(operation.inputs, dtype, shape, seed, distance)
    repeats = shape[0] // tile[0].shape[0]
    full = [np.tile(each, (repeats, *(1,) * (each.ndim - 1))) for each in tile]
    return Data(operation, dtype, shape, tile, full[0], full[1], (seed, distance))


def numpy_dtype(dtype: str) -> np.dtype[Any]:
    """Return NumPy's dtype of that name; bfloat16 is ml_dtypes'."""
    if dtype == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(dtype)


def _tile(
    inputs: str, dtype: str, shape: Shape, seed: int, distance: float
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    rows, classes = shape
    most = max(1, _TILE // classes)
    rows = next(size for size in range(min(rows, most), 0, -1) if rows % size == 0)
    random = np.random.default_rng([seed, rows, classes])
    teacher = random.normal(0.0, SPREAD, (rows, classes))
    student = teacher + distance * random.normal(0.0, 1.0, (rows, classes))
    if inputs == "labels":
        return student.astype(numpy_dtype(dtype)), random.integers(classes, size=rows)
    if inputs != "logits":
        teacher, student = (a - _log_sum_exp(a) for a in (teacher, student))
    if inputs == "probabilities":
        teacher = np.exp(teacher)
    kind = numpy_dtype(dtype)
    return student.astype(kind), teacher.astype(kind)


def _log_sum_exp(a: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    top = a.max(axis=-1, keepdims=True)
    return top + np.log(np.exp(a - top).sum(axis=-1, keepdims=True))


@lru_cache(maxsize=4)
def _exact(name: str, dtype: str, shape: Shape, origin: tuple[int, float]) -> Loss:
    operation = OPERATIONS[name]
    student, teacher = _tile(operation.inputs, dtype, shape, *origin)
    with np.errstate(all="ignore"):
        return operation.truth(student.astype(np.float64), teacher.astype(np.float64))


def _distance(found: Any, exact: np.ndarray[Any, Any], repeats: int) -> float:
    """Return ‖found − exact‖₁/‖exact‖₁, tile by tile, so that no copy of all is made."""
    norm = float(np.abs(exact).sum())
    rows = exact.shape[0]
    worst = 0.0
    with np.errstate(all="ignore"):
        for k in range(repeats):
            part = np.asarray(found[k * rows : (k + 1) * rows], dtype=np.float64)
            worst = max(worst, _relative(float(np.abs(part - exact).sum()), norm))
    return worst


def _relative(difference: float, norm: float) -> float:
    if math.isnan(difference):
        return math.inf
    return difference / norm if norm else (math.inf if difference else 0.0)
