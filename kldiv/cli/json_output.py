"""JSON on stdout, which has no word for what is not finite."""

from __future__ import annotations

import json
import math
import sys
from typing import Any


def print_json(report: dict[str, Any]) -> None:
    """Print a report; NaN and the infinities become strings."""
    sys.stdout.write(json.dumps(_finite(report), indent=2, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    """Return a value that JSON can hold: what is not finite becomes a string."""
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return value
