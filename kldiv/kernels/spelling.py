"""Operations as text, which a compiler can keep beside the call of a kernel."""

from __future__ import annotations

import json
from dataclasses import fields, is_dataclass
from typing import Any, Final

from kldiv.formulas.pointwise import KL, KLLogTarget, PointwiseLoss
from kldiv.formulas.rows import JensenShannon, KullbackLeibler, RowLoss

_CLASSES: Final = {
    cls.__name__: cls
    for cls in (PointwiseLoss, KL, KLLogTarget, RowLoss, KullbackLeibler, JensenShannon)
}


def spelled(operation: Any) -> str:
    """Return an operation that has kernels, in words and numbers."""
    return json.dumps(_parts(operation))


def read(text: str) -> Any:
    """Return the operation that was spelled."""
    return _whole(json.loads(text))


def _parts(value: Any) -> Any:
    if not is_dataclass(value):
        return value
    settings = {field.name: _parts(getattr(value, field.name)) for field in fields(value)}
    return {type(value).__name__: settings}


def _whole(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    ((name, settings),) = value.items()
    return _CLASSES[name](**{key: _whole(each) for key, each in settings.items()})
