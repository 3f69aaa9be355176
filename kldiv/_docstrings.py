"""Docstrings completed from those of functions with the same options."""

from __future__ import annotations

import re
from inspect import cleandoc
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_SECTIONS = "Parameters", "Returns", "Raises", "See Also", "Notes", "References", "Examples"
"""The sections of a numpydoc docstring that are found here, in their order."""


def joined(own: str, others: Sequence[str], names: Sequence[str], without: Sequence[str]) -> str:
    """Return a docstring with its parameters in order, completed from others."""
    summary, sections = _sections(own)
    sources = [_sections(other)[1] for other in others]
    parameters: dict[str, str] = {}
    for each in (*sources[::-1], sections):
        parameters |= _entries(each.get("Parameters", ""))
    sections["Parameters"] = "\n".join(parameters[name] for name in names)
    sections.setdefault("Returns", sources[0]["Returns"])
    errors = _entries(sections.get("Raises", ""))
    for name, entry in _entries(sources[0]["Raises"]).items():
        if not any(f"``{option}``" in entry for option in without):
            errors[name] = "\n".join([errors.get(name, name), *entry.splitlines()[1:]])
    sections["Raises"] = "\n".join(errors.values())
    ordered = sorted(sections, key=_SECTIONS.index)
    parts = [f"{name}\n{'-' * len(name)}\n{sections[name]}" for name in ordered]
    return "\n" + "\n\n".join([summary, *parts]) + "\n"


def _sections(text: str) -> tuple[str, dict[str, str]]:
    """Return the part of a numpydoc docstring before its sections, and these by name."""
    summary, *rest = re.split(r"^(\w[\w ]*)\n-+\n", cleandoc(text), flags=re.MULTILINE)
    bodies = [body.strip() for body in rest[1::2]]
    return summary.strip(), dict(zip(rest[::2], bodies, strict=True))


def _entries(section: str) -> dict[str, str]:
    """Return the entries of a section of a numpydoc docstring by name."""
    return {
        found[1]: found[0]
        for found in re.finditer(r"^(\w+).*(?:\n    .*)*", section, flags=re.MULTILINE)
    }
