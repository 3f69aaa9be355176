"""The examples for clients, and which of these are installed."""

from __future__ import annotations

from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

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
