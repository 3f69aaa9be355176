"""JSON on stdout, which has no number for infinities and NaN."""

from __future__ import annotations

import json
import math
import sys
from typing import Any


def print_json(report: dict[str, Any]) -> None:
    """Print a report; NaN and the infinities become strings."""
    sys.stdout.write(json.dumps(_finite(report), indent=2, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    """Return a value that JSON can hold: infinities and NaN become strings."""
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return value
