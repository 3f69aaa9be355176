"""Signatures and docstrings completed from those of functions with the same options."""

from __future__ import annotations

import re
from functools import wraps
from inspect import cleandoc, signature
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

P = ParamSpec("P")
T = TypeVar("T")

_SECTIONS = "Parameters", "Returns", "Raises", "See Also", "Notes", "References", "Examples"
"""The sections of a numpydoc docstring that are found here, in their order."""


def options_of(
    *documented: Callable[..., Any], without: Sequence[str] = ()
) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Give a function the options of others, and no more, in place of its ``**options``.

    The others have them as keyword-only arguments, with a numpydoc docstring. All but those
    ``without`` are in its signature, and sections that its docstring lacks are added: the others'
    parameters and errors, the first's result.
    """
    options: dict[str, Any] = {}
    for source in documented:
        for each in signature(source).parameters.values():
            if each.kind == each.KEYWORD_ONLY and each.name not in without:
                options.setdefault(each.name, each)

    def completed(function: Callable[P, T]) -> Callable[P, T]:
        own = signature(function)
        first = [*own.parameters.values()][:-1]
        others = [each for name, each in options.items() if name not in own.parameters]
        names = [each.name for each in (*first, *others)]

        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            for name in kwargs:  # the function behind ``**options`` may take more
                if name not in names:
                    raise TypeError(
                        f"{function.__name__}() got an unexpected keyword argument {name!r}"
                    )
            return function(*args, **kwargs)

        found: Any = call
        found.__signature__ = own.replace(parameters=[*first, *others])
        if function.__doc__:  # there is none under -OO
            texts = [source.__doc__ or "" for source in documented]
            found.__doc__ = _joined(function.__doc__, texts, names, without)
        return call

    return completed


def _joined(own: str, others: Sequence[str], names: Sequence[str], without: Sequence[str]) -> str:
    """Return a docstring with its parameters in order, completed from others."""
    summary, sections = _sections(own)
    sources = [_sections(other)[1] for other in others]
    parameters: dict[str, str] = {}
    for each in (*sources[::-1], sections):
        parameters |= _entries(each.get("Parameters", ""))
    sections["Parameters"] = "\n".join(parameters[name] for name in names)
    sections.setdefault("Returns", sources[0]["Returns"])
    others_errors: dict[str, str] = {}
    for source in sources:
        for name, entry in _entries(source.get("Raises", "")).items():
            if not any(f"``{option}``" in entry for option in without):
                others_errors.setdefault(name, entry)
    errors = _entries(sections.get("Raises", ""))
    for name, entry in others_errors.items():
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
        for found in re.finditer(r"^\*{0,2}(\w+).*(?:\n    .*)*", section, flags=re.MULTILINE)
    }
