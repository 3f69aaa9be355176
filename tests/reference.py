"""The oracle of the benchmark, for the tests: `truth` in double-doubles, and mpmath's `exact`."""

from __future__ import annotations

from importlib import import_module

from kldiv.cli.bench import suite

doubles, losses, _rows, _exact = (
    import_module(f"{suite().__name__}.oracle.{name}")
    for name in ("doubles", "losses", "rows", "exact")
)
Truth, truth = _rows.Truth, _rows.truth
exact, js, kl, softmax = _exact.exact, _exact.js, _exact.kl, _exact.softmax
constant, converged, numbers = _exact.constant, _exact.converged, _exact.numbers
