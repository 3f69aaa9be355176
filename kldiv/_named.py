"""Divergences by name, such as ``tv`` or ``renyi:0.5``: the name, and the numbers behind it."""

from __future__ import annotations

from typing import Final

from kldiv.errors import OptionError

PARAMETERS: Final[dict[str, str]] = {
    "kl": "",
    "js": "beta",
    "skew": "alpha",
    "jeffreys": "weights",
    "tv": "",
    "hellinger": "",
    "chi2": "",
    "alpha": "alpha",
    "renyi": "alpha",
}
"""The names, and the parameter that the number behind each sets."""


def parsed(text: str) -> tuple[str, tuple[float, ...]]:
    """Return the name in a text, and its numbers, none where there are none; raise on others."""
    name, _, number = text.strip().partition(":")
    if name not in PARAMETERS:
        raise OptionError(f"divergence {name!r}: expected one of {', '.join(PARAMETERS)}")
    if not number:
        if name in {"alpha", "renyi"}:
            raise OptionError(f"divergence {name!r} needs its order: {name}:0.5")
        return name, ()
    if not PARAMETERS[name]:
        raise OptionError(f"divergence {name!r} takes no number; got {text!r}")
    try:
        values = tuple(map(float, number.split(",")))
    except ValueError:
        raise OptionError(f"divergence {text!r}: {number!r} is no number") from None
    if len(values) != 1 + (name == "jeffreys"):
        wanted = "two numbers" if name == "jeffreys" else "one number"
        raise OptionError(f"divergence {text!r}: expected {wanted}")
    return name, values
