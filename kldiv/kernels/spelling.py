"""The operations that have fused forms, each as words and numbers that a compiler can keep."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from importlib import import_module
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from kldiv.errors import LibraryError
from kldiv.formulas.divergences import (
    Divergence,
    Jeffreys,
    JensenShannon,
    KullbackLeibler,
    Mixture,
    OfMixture,
    TotalVariation,
)
from kldiv.formulas.interpolation import Interpolated
from kldiv.formulas.labels import LabelLoss
from kldiv.formulas.pointwise import KL, KLLogTarget, PointwiseLoss
from kldiv.formulas.policy import PolicyLoss
from kldiv.formulas.powers import Alpha, Renyi, RenyiInfinity, RenyiZero
from kldiv.formulas.rows import RowLoss

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from kldiv._types import Array


class Form(NamedTuple):
    """A loss that kernels compute in one pass."""

    name: str
    operation: Any
    """Its class, and that of its function, or divergence; of labels the settings themselves."""
    kind: Any
    everywhere: bool = True
    """Whether every technology has it, not only those that say so."""
    only: tuple[str, float] | None = None
    """A setting, and the value that it must have."""
    compiled: bool = True
    """Whether the CPU's compiled kernels have it."""

    def fits(self, operation: Any, kind: Any) -> bool:
        """Return whether an operation of that kind has this form."""
        if type(operation) is not self.operation or self.kind not in {kind, _plain(type(kind))}:
            return False
        return self.only is None or getattr(kind, self.only[0]) == self.only[1]


FORMS: Final = (
    Form("kl_div", PointwiseLoss, KL),
    Form("kl_div, log_target", PointwiseLoss, KLLogTarget),
    Form("kl_div_with_logits", RowLoss, KullbackLeibler),
    Form("js_div_with_logits", RowLoss, JensenShannon),
    Form("f_div_with_logits, mixture", RowLoss, Mixture, everywhere=False),
    Form("f_div_with_logits, Jeffreys", RowLoss, Jeffreys, everywhere=False),
    Form("distillation_loss, beta of rows", RowLoss, Interpolated, everywhere=False),
    Form("f_div_with_logits, total variation", RowLoss, TotalVariation, everywhere=False),
    Form("f_div_with_logits, Hellinger", RowLoss, Alpha, everywhere=False, only=("alpha", 0.5)),
    Form("f_div_with_logits, alpha", RowLoss, Alpha, everywhere=False),
    Form("renyi_div_with_logits", RowLoss, Renyi, everywhere=False, only=("is_moderate", True)),
    *(
        Form(
            f"renyi_div_with_logits, order {order}", RowLoss, kind, everywhere=False, compiled=False
        )
        for order, kind in (("beyond 2", Renyi), ("0", RenyiZero), ("∞", RenyiInfinity))
    ),
    Form("cross_entropy_with_logits", LabelLoss, (True, False), everywhere=False),
    Form("entropy_with_logits", LabelLoss, (False, True), everywhere=False),
    Form("log_prob_and_entropy_with_logits", LabelLoss, (True, True), everywhere=False),
    Form("the same with a reference", PolicyLoss, KullbackLeibler, everywhere=False),
)
"""All fused forms: other operations are left to the formulas."""

DIVERGENCES: Final = "KL", "JS", "total variation", "Hellinger", "mixture", "Jeffreys", "alpha"
"""The divergences of rows that kernels of GPUs have, and know by their places here."""

ON_GPUS: Final = tuple(
    form.name for form in FORMS if form.kind in {Mixture, Jeffreys, TotalVariation, Alpha}
)
"""The forms of those that not every technology has."""

COMPILED: Final = tuple(form.name for form in FORMS if form.compiled)
"""The forms that the CPU's compiled kernels have."""


class Numbered(NamedTuple):
    """A divergence of rows as kernels of GPUs take it."""

    place: int
    """Its place in `DIVERGENCES`."""
    numbers: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0)
    """Its numbers; the two sides exchanged, the first two change places, and the others."""
    factor: float = 1.0
    """The factor of its results."""


def numbered(divergence: Any) -> Numbered:
    """Return a divergence as kernels of GPUs take it."""
    name, factor = "KL", 1.0
    numbers: tuple[float, ...] = ()
    if isinstance(divergence, OfMixture):
        name = "JS" if isinstance(divergence, JensenShannon) else "mixture"
        numbers = divergence.mix
    elif isinstance(divergence, Jeffreys):
        name, numbers = "Jeffreys", (divergence.w, divergence.r)
    elif isinstance(divergence, TotalVariation):
        name = "total variation"
    elif isinstance(divergence, Alpha):
        if divergence.alpha == 0.5:  # Σ (√p − √q)² without the factor
            name, factor = "Hellinger", 2.0 * float(divergence.scale)
        else:
            name, numbers = "alpha", (divergence.kappa, divergence.alpha)
            factor = float(divergence.scale)
    padded = (*map(float, numbers), *[0.0] * (4 - len(numbers)))
    return Numbered(DIVERGENCES.index(name), padded, factor)


def form_of(operation: Any) -> Form | None:
    """Return the fused form of an operation, or None."""
    kind = _kind(operation)
    if kind is None or getattr(kind, "order", None) or getattr(operation, "given", None):
        return None  # a derivative, or rows of which the constants are at hand instead of logits
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


def _kind(operation: Any) -> Any:
    """Return the function of a loss of elements, the divergence of a loss of rows, or None.

    A loss of labels gives instead whether it has a label and an entropy part.
    """
    if isinstance(operation, LabelLoss):
        return operation.labelled, operation.entropic
    return getattr(operation, "function", None) or getattr(operation, "divergence", None)


def spelled(operation: Any) -> tuple[list[str], list[float]]:
    """Return an operation in words and numbers, which are all that a compiler keeps."""
    words: list[str] = []
    numbers: list[float] = []
    _spell(operation, words, numbers)
    return words, numbers


def read(words: Iterable[str], numbers: Iterable[float]) -> Any:
    """Return the operation that was spelled."""
    return _read(iter(words), iter(numbers))


def _spell(value: Any, words: list[str], numbers: list[float]) -> None:
    if value is None:
        words.append("none")
    elif isinstance(value, str):
        words.extend(("str", value))
    elif isinstance(value, bool):
        words.extend(("bool", "yes" if value else ""))
    elif isinstance(value, int):
        words.extend(("int", str(value)))
    elif isinstance(value, float):
        words.append("float")
        numbers.append(value)
    else:
        kind = type(value)
        parts = (
            value if isinstance(value, tuple) else [getattr(value, f.name) for f in fields(value)]
        )
        # Of built-in classes a compiler does not know the module.
        named = ("builtins", "tuple") if kind is tuple else (kind.__module__, kind.__qualname__)
        words.extend((*named, str(len(parts))))
        for part in parts:
            _spell(part, words, numbers)


def _read(words: Iterator[str], numbers: Iterator[float]) -> Any:
    kind = next(words)
    if kind in _PLAIN:
        return _PLAIN[kind](next(words))
    if kind in {"none", "float"}:
        return None if kind == "none" else next(numbers)
    found: Any = attrgetter(next(words))(import_module(kind))
    parts = [_read(words, numbers) for _ in range(int(next(words)))]
    if found is tuple:
        return tuple(parts)
    if is_dataclass(found):
        make: Any = found
        return make(**dict(zip([each.name for each in fields(found)], parts, strict=True)))
    # A saved program may hold any words: they name parts of an operation, and make nothing else.
    if not (isinstance(found, type) and issubclass(found, tuple | Divergence)):
        raise LibraryError(f"{kind}.{found!r} is no part of an operation")
    return found(*parts)


_PLAIN: Final[dict[str, Any]] = {"str": str, "bool": bool, "int": int}
