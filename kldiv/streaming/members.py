"""Other divergences of logits, each a loss of kldiv by name, from one more read of whole rows."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

import kldiv
from kldiv._named import PARAMETERS, parsed
from kldiv.errors import OptionError
from kldiv.formulas.divergences import Divergence
from kldiv.streaming.conclude import summary_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from kldiv.streaming.options import Options
    from kldiv.streaming.results import Summary
    from kldiv.streaming.work import Work


def member(text: str) -> Callable[..., Any]:
    """Return the loss that a text like ``tv`` or ``renyi:0.5`` names.

    Raises
    ------
    OptionError
        No such name, or a number that it does not take.
    """
    name, values = parsed(text)
    prefix = "skew_kl" if name == "skew" else name
    loss: Callable[..., Any] = getattr(kldiv, f"{prefix}_div_with_logits")
    if not values:
        return loss
    return partial(loss, **{PARAMETERS[name]: values if name == "jeffreys" else values[0]})


def checked(given: Any, options: Options) -> dict[str, Callable[..., Any]]:
    """Return losses by name: of names, of a record, or of losses and records by name."""
    if given is None:
        return {}
    if options.form != "logits":
        raise OptionError("`divergences` are of logits: say form='logits'")
    if not isinstance(given, Mapping):
        texts = [given] if isinstance(given, str) else [*given]
        given = {text: member(text) for text in texts}
    losses = {}
    for name, loss in given.items():
        if isinstance(loss, Divergence):
            loss = partial(kldiv.f_div_with_logits, divergence=loss)  # noqa: PLW2901
        if not callable(loss):
            raise OptionError(f"divergence {name!r} must be a loss or a record; got {loss!r}")
        row = np.zeros((1, 2))
        loss(row, row, reduction="none")  # its own numbers, before any file is read
        losses[name] = loss
    return losses


def measure(work: Work, losses: dict[str, Callable[..., Any]]) -> dict[str, Summary]:
    """Return each divergence over all rows."""
    if not losses:
        return {}
    places, options = work.pair.places, work.job.options
    if not work.plan.whole:
        raise OptionError(
            f"`divergences` take whole rows, and these of {places.size:,} classes are read in "
            "parts; raise `memory`"
        )
    found = {name: np.empty(places.shape) for name in losses}
    settings = dict(work.job.settings)
    with np.errstate(all="ignore"), kldiv.config_context(**settings):
        for number in range(len(work.plan.steps)):
            for rows, p, q in work.pairs(number):
                for name, loss in losses.items():
                    values = np.asarray(loss(q, p, reduction="none"))
                    found[name][rows] = values.reshape(found[name][rows].shape)
    return {name: summary_of(rows, options.reduction, places.shape) for name, rows in found.items()}
