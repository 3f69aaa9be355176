"""The examples for clients, and which of these are installed."""

from __future__ import annotations

import os
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
from processes import python

EXAMPLES = Path(__file__).parents[2] / "examples" / "clients"


def load(name):
    spec = spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


curves = load("curves")

PACKAGES = {
    "TRL": "trl",
    "Liger": "liger_kernel",
    "Lightning": "lightning",
    "Flax": "flax",
    "Keras": "keras",
    "by": "torch",
}
"""The package of a client by the first word of its name; the others are called as they are."""


def missing(client):
    first = client.replace(",", "").split()[0]
    package = PACKAGES.get(first, first)
    return None if find_spec(package) else f"{package} is not installed"


def needs(client):
    """Leave a test out where a client is not installed."""
    return pytest.mark.leave_out.with_args(lambda: missing(client))


def run_keras(script, backend, folder, *arguments):
    """Run a script in a process of its own, as Keras has one backend a process."""
    if backend != "numpy":
        pytest.importorskip(backend)
    environment = {
        "KERAS_BACKEND": backend,
        "KERAS_HOME": str(folder),
        "PYTHONPATH": os.pathsep.join([str(EXAMPLES), os.environ.get("PYTHONPATH", "")]),
    }
    python("-c", script, *arguments, **environment)
