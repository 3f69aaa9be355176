"""A namespace with the few names that a library's own lacks, such as a dtype, or has slow."""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


class Overlay(ModuleType):
    """The namespace of ``module``, with ``others`` before its own names, ``missing`` after them."""

    def __init__(
        self, module: ModuleType, missing: Callable[[str], Any] | None = None, **others: Any
    ) -> None:
        super().__init__(module.__name__)
        vars(self).update(others)
        self._module = module
        self._missing = missing

    def __getattr__(self, name: str) -> Any:
        try:
            value = getattr(self._module, name)
        except AttributeError:
            if self._missing is None:
                raise
            value = self._missing(name)
        setattr(self, name, value)  # asked once
        return value
