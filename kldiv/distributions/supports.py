"""Where families have mass, and which pairs can therefore only be infinitely far apart."""

from __future__ import annotations

from typing import Final

CONTINUOUS: Final = ("real", "positive", "unit", "interval", "tail", "circle")
DISCRETE: Final = ("boolean", "count", "naturals")

_TOO_SMALL: Final = {
    "real": ("positive", "unit", "interval", "tail", "circle"),
    "positive": ("unit", "interval", "tail", "circle"),
    "tail": ("unit", "interval", "circle"),
    "unit": ("tail",),
    "naturals": ("count", "boolean"),
}
"""For P on the first, the supports of Q that leave out some of P's mass whatever the parameters."""


def never_covers(q: str, p: str) -> bool:
    """Return whether P has mass where Q has none, whatever their parameters."""
    if (p in CONTINUOUS and q in DISCRETE) or (p in DISCRETE and q in CONTINUOUS):
        return True  # a point has no mass under a density, and points have all of a discrete one's
    return q in _TOO_SMALL.get(p, ())
