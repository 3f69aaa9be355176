"""The options of a comparison, checked before any file is opened."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, get_args

from kldiv.errors import OptionError
from kldiv.readers.reading import PLAIN, Reading
from kldiv.streaming._types import Form, Reduction
from kldiv.streaming.logits import Logits
from kldiv.streaming.scales import Logarithmic, Scale

if TYPE_CHECKING:
    import os

_SMOOTHING: Final = "`smoothing` changes the sum of probabilities: say normalize=True too"


@dataclass(frozen=True, slots=True)
class Held:
    """The form of the numbers of P, or of Q."""

    form: Form
    normalized: bool
    guessed: bool
    """Whether nobody asked for the normalisation that counts get."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The options that decide the result; `kldiv.streaming.compare` documents them."""

    form: Form = "probs"
    axis: int = -1
    normalize: bool = False
    smoothing: float = 0.0
    align: bool = False
    fold: bool | None = None
    rebin: bool = False
    reduction: Reduction = "mean"
    top: int = 10
    key: str | None = None
    max_bytes: int | None = None
    shard_axis: int = 0
    reading: Reading = PLAIN
    quantization: bool = False

    def __post_init__(self) -> None:
        for name, known in (("form", get_args(Form)), ("reduction", get_args(Reduction))):
            if getattr(self, name) not in known:
                raise OptionError(
                    f"{name}={getattr(self, name)!r}: expected one of {', '.join(map(repr, known))}"
                )
        for name in ("axis", "shard_axis", "top"):
            value = getattr(self, name)
            if type(value) is not int or (name == "top" and value < 0):
                kind = "a whole number, 0 or above" if name == "top" else "a whole number"
                raise OptionError(f"{name}={value!r}: expected {kind}")
        if not (math.isfinite(self.smoothing) and self.smoothing >= 0):
            least = "" if self.smoothing > 0 else ", 0 or above"
            raise OptionError(f"smoothing={self.smoothing}: expected a finite number{least}")
        if self.fold is not None and not self.align:
            raise OptionError("`fold` is how labels are matched: say align=True too")
        if not isinstance(self.reading, Reading):
            raise OptionError(f"reading={self.reading!r}: expected a kldiv.readers.Reading")
        if self.quantization and self.form != "logits":
            raise OptionError("`quantization` is of models' logits: say form='logits' too")
        self._check_smoothing()

    def _check_smoothing(self) -> None:
        if self.smoothing and self.logarithmic:
            raise OptionError(f"`smoothing` adds to counts or probabilities, not to {self.form}")
        if self.smoothing and self.form == "probs" and not self.normalize:
            raise OptionError(_SMOOTHING)

    def key_of(self, given: str | os.PathLike[str]) -> str | None:
        """Return the array to take from a file, unless its path names one."""
        return None if isinstance(given, str) and "::" in given else self.key

    @property
    def logarithmic(self) -> bool:
        """Whether the numbers are not on the scale of probabilities."""
        return self.form in {"log-probs", "logits"}

    @property
    def scale(self) -> Scale:
        """The scale of the numbers."""
        if self.logarithmic:
            return Logits() if self.form == "logits" else Logarithmic()
        return Scale(self.smoothing)

    def held(self, name: str, *, counts: bool) -> Held:
        """Return the form of P or Q, where "auto" may mean counts."""
        form = self.form
        if form == "auto":
            form = "counts" if counts else "probs"
        normalized = self.normalize or form in {"counts", "logits"}
        if self.smoothing and not normalized:
            raise OptionError(f"{name} holds probabilities, not counts. {_SMOOTHING}")
        asked = self.normalize or self.smoothing or self.form == form
        return Held(form, normalized, normalized and not asked)
