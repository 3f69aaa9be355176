"""Distributions on any array library, and the divergence of every pair that has a closed form."""

from __future__ import annotations

from typing import Any

from kldiv.errors import LibraryError


def divergence(p: Any, q: Any, *, unit: float = 1.0, method: str | None = None) -> Any:  # noqa: ARG001
    """Return D(p‖q) of two distributions."""
    raise LibraryError(
        "p and q must be arrays of probabilities or distributions; got "
        f"{type(p).__name__} and {type(q).__name__}"
    )
