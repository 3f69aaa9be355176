"""The operations that have fused forms, each as words and numbers that a compiler can keep."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from kldiv.formulas.divergences import Jeffreys, Mixture, TotalVariation
from kldiv.formulas.interpolation import Interpolated
from kldiv.formulas.pointwise import KL, KLLogTarget, PointwiseLoss
from kldiv.formulas.powers import Alpha
from kldiv.formulas.rows import JensenShannon, KullbackLeibler, RowLoss

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kldiv._types import Array


class Form(NamedTuple):
    """A loss that kernels compute in one pass."""

    name: str
    operation: Any
    """Its class, and that of its function, or divergence."""
    kind: Any
    numbers: tuple[str, ...] = ()
    """The settings of that kind."""
    everywhere: bool = True
    """Whether every technology has it, not only those that say so."""


FORMS: Final = (
    Form("kl_div", PointwiseLoss, KL),
    Form("kl_div, log_target", PointwiseLoss, KLLogTarget),
    Form("kl_div_with_logits", RowLoss, KullbackLeibler),
    Form("js_div_with_logits", RowLoss, JensenShannon, ("beta",)),
    Form("f_div_with_logits, mixture", RowLoss, Mixture, ("m", "a", "b"), everywhere=False),
    Form("f_div_with_logits, Jeffreys", RowLoss, Jeffreys, ("w", "r"), everywhere=False),
    Form("distillation_loss, beta of rows", RowLoss, Interpolated, everywhere=False),
    Form("f_div_with_logits, total variation", RowLoss, TotalVariation, everywhere=False),
    Form("f_div_with_logits, alpha", RowLoss, Alpha, ("alpha", "kappa", "scale"), everywhere=False),
)
"""All fused forms: other operations are left to the formulas."""


def form_of(operation: Any) -> Form | None:
    """Return the fused form of an operation, or None."""
    kind = _kind(operation)
    if kind is None or getattr(kind, "order", None):  # a derivative
        return None
    for form in FORMS:
        if type(operation) is form.operation and _plain(type(kind)) is form.kind:
            return form
    return None


def _plain(kind: type) -> type:
    """Return the class that a public one derives from only to document and to check."""
    return kind.__base__ if kind.__module__ == "kldiv.divergences" else kind  # type: ignore[return-value]


def no_fused_form(operation: Any, arrays: Sequence[Array], *, every: bool = False) -> str | None:
    """Return why nothing fuses an operation on arrays, or None where there is a fused form.

    ``every`` is whether the forms count too that only some technologies have.
    """
    if 0 in arrays[0].shape:
        return "there are no elements"
    form = form_of(operation)
    if form is None or not (every or form.everywhere):
        return f"there is no fused form of {type(_kind(operation) or operation).__name__}"
    return None


def spelled(operation: Any) -> tuple[list[str], list[float]]:
    """Return an operation that has a fused form in words and numbers."""
    form = form_of(operation)
    assert form is not None  # noqa: S101 - no kernel takes another
    kind = _kind(operation)
    words = [form.name, operation.reduction, operation.compute, operation.total, operation.result]
    numbers = [getattr(kind, name) for name in form.numbers]
    if form.operation is RowLoss and operation.temperature is not None:
        numbers.append(operation.temperature)
    return words, numbers


def read(words: Sequence[str], numbers: Sequence[Any]) -> Any:
    """Return the operation that was spelled."""
    name, *settings = words
    form = next(form for form in FORMS if form.name == name)
    count = len(form.numbers)
    kind = form.kind(*numbers[:count])
    own = numbers[count:] or [None]  # the temperature, None where it is an array
    return form.operation(*settings, kind, *(own if form.operation is RowLoss else ()))


def _kind(operation: Any) -> Any:
    """Return the function of a loss of elements, the divergence of a loss of rows, or None."""
    return getattr(operation, "function", None) or getattr(operation, "divergence", None)
