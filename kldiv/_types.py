"""The few type aliases that the whole package shares."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

# No typing protocol spans all array libraries yet, so arrays and namespaces are checked at run
# time.
Array: TypeAlias = Any
"""An array of any supported library."""

Namespace: TypeAlias = Any
"""A module-like object with the functions of the Python array API."""

Reduction: TypeAlias = Literal["none", "mean", "batchmean", "sum"]
