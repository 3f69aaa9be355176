"""What the files hold: counts, probabilities or logarithms."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import click

from kldiv.cli.arithmetic import Linear, Logarithmic, Logits
from kldiv.cli.inputs import LOGARITHMS

if TYPE_CHECKING:
    from kldiv.cli.arithmetic import Scale
    from kldiv.cli.request import Form, Request
    from kldiv.cli.sums import Seen
    from kldiv.readers import Table

_SMOOTHING: Final = "--smoothing changes the sum of probabilities: say --normalize too"


@dataclass(frozen=True, slots=True)
class Held:
    """What one of the files holds."""

    form: Form
    normalized: bool
    guessed: bool
    """Whether nobody asked for the normalisation that counts get."""


@dataclass(frozen=True, slots=True)
class Distribution:
    """P or Q: an array, what it holds, and what was seen of it."""

    name: str
    table: Table
    held: Held
    seen: Seen

    @property
    def form(self) -> Form:
        """What the array holds."""
        return self.held.form

    @property
    def normalized(self) -> bool:
        """Whether its rows were divided by their sums."""
        return self.held.normalized


def scale_of(request: Request) -> Scale:
    """Return how the numbers stand for probabilities; refuse options that do not fit."""
    if not math.isfinite(request.smoothing):
        raise click.UsageError(f"--smoothing {request.smoothing}: expected a finite number")
    if request.form not in LOGARITHMS:
        if request.smoothing and request.form == "probs" and not request.normalize:
            raise click.UsageError(_SMOOTHING)
        return Linear(request.smoothing)
    if request.smoothing:
        raise click.UsageError(
            f"--smoothing adds to counts or probabilities, not to {request.form}"
        )
    return Logits() if request.form == "logits" else Logarithmic()


def held(name: str, request: Request, *, counts: bool) -> Held:
    """Return what a file holds, where "auto" may mean counts."""
    form = request.form
    if form == "auto":
        form = "counts" if counts else "probs"
    normalized = request.normalize or form in {"counts", "logits"}
    if request.smoothing and not normalized:
        raise click.UsageError(f"{name} holds probabilities, not counts. {_SMOOTHING}")
    asked = request.normalize or request.smoothing or request.form == form
    return Held(form, normalized, normalized and not asked)
