"""Distributions as they are written: ``Normal(0, scale=2)``; read, never evaluated."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from kldiv import distributions
from kldiv.cli.domains import check
from kldiv.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

_LONGEST: Final = 10_000  # characters; the parser's memory grows with them
_SIGNS: Final[dict[type, Callable[[Any], Any]]] = {ast.UAdd: lambda x: x, ast.USub: lambda x: -x}
_WORDS: Final = {"inf": np.inf, "True": True, "False": False}


def parse(text: str) -> Any:
    """Return the distribution that an expression describes.

    Parameters
    ----------
    text : str
        The name of a class of `kldiv.distributions` and its parameters: numbers, lists of numbers,
        or further distributions, in order or by name.

    Returns
    -------
    object
        The distribution, with NumPy parameters.

    Raises
    ------
    InputError
        Anything else; a parameter outside its domain.
    """
    if len(text) > _LONGEST:
        raise InputError(
            f"an expression of {len(text):,} characters; at most {_LONGEST:,} are read"
        )
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InputError(
            f"{text!r} is not a distribution: {getattr(error, 'msg', error)}. Write it like "
            "Normal(0, 1) or Gamma(concentration=2, rate=0.5)"
        ) from None
    return _distribution(tree, text)


def _distribution(node: ast.AST, text: str) -> Any:
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
        raise _refused(node, text)
    name, known = node.func.id, _families()
    if name not in known:
        raise InputError(f"no distribution {name!r}; there are {', '.join(known)}")
    given = [_value(each, text) for each in node.args]
    named = {}
    for keyword in node.keywords:
        if keyword.arg is None:
            raise _refused(keyword.value, text)
        named[keyword.arg] = _value(keyword.value, text)
    try:
        made = known[name](*given, **named)
    except TypeError as error:
        raise InputError(f"{ast.unparse(node)}: {error}") from None
    check(made, ast.unparse(node))
    return made


def _families() -> dict[str, type[distributions.Distribution]]:
    """Return the families by their names."""
    base = distributions.Distribution
    named = {name: getattr(distributions, name) for name in distributions.__all__}
    return {
        name: each
        for name, each in named.items()
        if isinstance(each, type) and issubclass(each, base) and each is not base
    }


def _value(node: ast.AST, text: str) -> Any:
    if isinstance(node, ast.Call):
        return _distribution(node, text)
    plain = _plain(node, text)
    if not isinstance(plain, list):
        return plain
    try:
        return np.asarray(plain, dtype=np.float64)
    except ValueError:
        raise InputError(f"{ast.unparse(node)} has rows of different lengths") from None


def _plain(node: ast.AST, text: str) -> Any:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float | bool):
        return node.value
    if isinstance(node, ast.Name) and node.id in _WORDS:
        return _WORDS[node.id]
    if isinstance(node, ast.UnaryOp) and type(node.op) in _SIGNS:
        return _SIGNS[type(node.op)](_plain(node.operand, text))
    if isinstance(node, ast.List | ast.Tuple):
        return [_plain(each, text) for each in node.elts]
    raise _refused(node, text)


def _refused(node: ast.AST, text: str) -> InputError:
    part = ast.get_source_segment(text.strip(), node) or "this"
    return InputError(
        f"{part!r} in {text!r} cannot be read: an expression holds the names of distributions and "
        "numbers, nothing else"
    )
