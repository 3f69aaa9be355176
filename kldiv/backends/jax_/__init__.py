"""The adapter of JAX, loaded when one of its arrays appears or its name is asked for."""

from __future__ import annotations

from kldiv.backends.jax_.adapter import BACKEND

__all__ = ["BACKEND"]
