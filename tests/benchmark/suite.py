"""The benchmark suite for its tests: its modules, and results that were never measured."""

from __future__ import annotations

from importlib import import_module

import pytest

pytest.importorskip("click")
pytest.importorskip("rich")

from kldiv.cli.bench import suite


def load(name):
    """Return a module of the suite, as ``kldiv bench`` loads it."""
    return import_module(f"{suite().__name__}.{name}")


def cell(samples, *, who="kldiv", group=0, **changes):
    """Return a record of samples that were made up."""
    cells, estimates = load("harness.cells"), load("harness.estimates")
    where = cells.Group("kl_div", "value", "float32", (8 + group, 10), "cpu")
    library = "numpy" if who == "kldiv" else who
    found = cells.Cell(where, who, library, "pure" if who == "kldiv" else None)
    summary = estimates.summarise(samples)
    return {
        **found.record(),
        "status": "ok",
        "reason": None,
        "first_s": 1.0,
        "compile_s": None,
        "calls": 1,
        "samples_s": list(samples),
        "median_s": summary.median,
        "q25_s": summary.q25,
        "q75_s": summary.q75,
        "iqr_s": summary.iqr,
        "n": summary.n,
        "outliers": summary.outliers,
        "unstable": summary.unstable,
        "bytes": {"read": 640, "written": 0},
        "bytes_per_s": 640 / summary.median,
        "of_bandwidth": 0.5,
        "memory": {"tracemalloc": 100},
        "error": 1e-8,
        "gradient_error": None,
        "ratios": {},
        **changes,
    }


def results(*cells, **changes):
    """Return results that hold these cells."""
    records = load("harness.records")
    return {
        "schema": records.SCHEMA,
        "version": records.VERSION,
        "complete": True,
        "started": "2026-01-01T00:00:00+00:00",
        "settings": {"seed": 0, "effort": {"rounds": [5, 15]}},
        "machine": {"cpu": "a CPU", "cores": 2, "system": "Linux", "gpus": [], "threads": {}},
        "versions": {"python": "3.11", "kldiv": "0.1.0", "numpy": "2.4", "torch": "2.13"},
        "revision": None,
        "bandwidth": {"cpu": {"read": 3e10, "copy": 3e10}},
        "missing": {},
        "cells": list(cells),
        **changes,
    }
