"""The operations that have fused forms, each as words and numbers that a compiler can keep."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from kldiv.formulas.divergences import Jeffreys, Mixture, TotalVariation
from kldiv.formulas.interpolation import Interpolated
from kldiv.formulas.labels import LabelLoss
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
    """Its class, and that of its function, or divergence; of labels the settings themselves."""
    kind: Any
    numbers: tuple[str, ...] = ()
    """The settings of that kind."""
    everywhere: bool = True
    """Whether every technology has it, not only those that say so."""
    only: tuple[str, float] | None = None
    """A setting, and the value that it must have."""

    def fits(self, operation: Any, kind: Any) -> bool:
        """Return whether an operation of that kind has this form."""
        if type(operation) is not self.operation or self.kind not in {kind, _plain(type(kind))}:
            return False
        return self.only is None or getattr(kind, self.only[0]) == self.only[1]


FORMS: Final = (
    Form("kl_div", PointwiseLoss, KL),
    Form("kl_div, log_target", PointwiseLoss, KLLogTarget),
    Form("kl_div_with_logits", RowLoss, KullbackLeibler),
    Form("js_div_with_logits", RowLoss, JensenShannon, ("beta",)),
    Form("f_div_with_logits, mixture", RowLoss, Mixture, ("m", "a", "b"), everywhere=False),
    Form("f_div_with_logits, Jeffreys", RowLoss, Jeffreys, ("w", "r"), everywhere=False),
    Form("distillation_loss, beta of rows", RowLoss, Interpolated, everywhere=False),
    Form("f_div_with_logits, total variation", RowLoss, TotalVariation, everywhere=False),
    Form(
        "f_div_with_logits, Hellinger",
        RowLoss,
        Alpha,
        ("alpha", "kappa", "scale"),
        everywhere=False,
        only=("alpha", 0.5),
    ),
    Form("f_div_with_logits, alpha", RowLoss, Alpha, ("alpha", "kappa", "scale"), everywhere=False),
    Form("cross_entropy_with_logits", LabelLoss, (True, False), everywhere=False),
    Form("entropy_with_logits", LabelLoss, (False, True), everywhere=False),
    Form("log_prob_and_entropy_with_logits", LabelLoss, (True, True), everywhere=False),
)
"""All fused forms: other operations are left to the formulas."""

DIVERGENCES: Final = ("KL", "JS", "total variation", "Hellinger")
"""The divergences of rows that kernels of GPUs have, and know by their places here."""

ON_GPUS: Final = ("f_div_with_logits, total variation", "f_div_with_logits, Hellinger")
"""The forms of those that not every technology has."""


def numbered(divergence: Any) -> tuple[int, float, float]:
    """Return a divergence's place in `DIVERGENCES`, β, and the factor of its results."""
    if isinstance(divergence, JensenShannon):
        return DIVERGENCES.index("JS"), divergence.beta, 1.0
    if isinstance(divergence, TotalVariation):
        return DIVERGENCES.index("total variation"), 0.5, 1.0
    if isinstance(divergence, Alpha):  # Σ (√p − √q)² without it
        return DIVERGENCES.index("Hellinger"), 0.5, 2.0 * divergence.scale
    return DIVERGENCES.index("KL"), 0.5, 1.0


def form_of(operation: Any) -> Form | None:
    """Return the fused form of an operation, or None."""
    kind = _kind(operation)
    if kind is None or getattr(kind, "order", None):  # a derivative
        return None
    return next((form for form in FORMS if form.fits(operation, kind)), None)


def _plain(kind: type) -> type:
    """Return the class that a public one derives from only to document and to check."""
    return kind.__base__ if kind.__module__ == "kldiv.divergences" else kind  # type: ignore[return-value]


def no_fused_form(
    operation: Any, arrays: Sequence[Array], further: Sequence[str] | None = ()
) -> str | None:
    """Return why nothing fuses an operation on arrays, or None where there is a fused form.

    ``further`` are the forms that count beside those which every technology has; None: all.
    """
    if 0 in arrays[0].shape:
        return "there are no elements"
    form = form_of(operation)
    if form is None:
        return f"there is no fused form of {type(_kind(operation) or operation).__name__}"
    if not (form.everywhere or further is None or form.name in further):
        return f"there is no such kernel of {form.name}"
    return None


def spelled(operation: Any) -> tuple[list[str], list[float]]:
    """Return an operation that has a fused form in words and numbers."""
    form = form_of(operation)
    assert form is not None  # noqa: S101 - no kernel takes another
    kind = _kind(operation)
    words = [form.name, operation.reduction, operation.compute, operation.total, operation.result]
    numbers = [getattr(kind, name) for name in form.numbers]
    if form.operation is not PointwiseLoss and operation.temperature is not None:
        numbers.append(operation.temperature)
    return words, numbers


def read(words: Sequence[str], numbers: Sequence[Any]) -> Any:
    """Return the operation that was spelled."""
    name, *settings = words
    form = next(form for form in FORMS if form.name == name)
    count = len(form.numbers)
    own = numbers[count:] or [None]  # the temperature, None where it is an array
    if form.operation is LabelLoss:
        further = [*own, *form.kind]
    else:
        kind = form.kind(*numbers[:count])
        further = [kind, *own] if form.operation is RowLoss else [kind]
    return form.operation(*settings, *further)


def _kind(operation: Any) -> Any:
    """Return the function of a loss of elements, the divergence of a loss of rows, or None.

    Of a loss of labels it is what is asked for.
    """
    if isinstance(operation, LabelLoss):
        return operation.labelled, operation.entropic
    return getattr(operation, "function", None) or getattr(operation, "divergence", None)
