"""A results file as one self-contained page: no network, light and dark, charts and a table."""

from __future__ import annotations

from .page import page

__all__ = ["page"]
