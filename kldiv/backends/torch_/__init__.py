"""The adapter of PyTorch, loaded when one of its arrays appears or its name is asked for."""

from __future__ import annotations

from kldiv.backends.torch_.adapter import BACKEND

__all__ = ["BACKEND"]
