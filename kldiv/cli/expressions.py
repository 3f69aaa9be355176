"""Distributions as they are written: ``Normal(0, scale=2)``; read, never evaluated."""

from __future__ import annotations

import ast
import re
import sys
from inspect import signature
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from kldiv import distributions
from kldiv.cli.domains import check
from kldiv.cli.suggestions import suggestion
from kldiv.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

_LONGEST: Final = 10_000  # characters; the parser's memory grows with them
_SIGNS: Final[dict[type, Callable[[Any], Any]]] = {ast.UAdd: lambda x: x, ast.USub: lambda x: -x}
_LAMBDA: Final = re.compile(r"\blambda\s*=(?!=)")  # a word of the language that reads it
_DIGITS: Final = re.compile(r"[^eE]*[1-9]")  # of a number other than 0
_MEANT: Final = {
    **dict.fromkeys(("mu", "mean", "m", "location"), ("loc",)),
    **dict.fromkeys(("sigma", "std", "sd", "stddev", "s"), ("scale", "scale_diag")),
    **dict.fromkeys(("var", "variance", "cov", "sigma2"), ("covariance_matrix", "scale")),
    **dict.fromkeys(("lam", "lambda", "lambd"), ("rate",)),
    **dict.fromkeys(("alpha", "a"), ("concentration1", "concentration", "alpha")),
    **dict.fromkeys(("beta", "b"), ("concentration0", "rate", "scale")),
    **dict.fromkeys(("p", "prob", "probability", "theta"), ("probs", "scale")),
    **dict.fromkeys(("n", "trials", "r"), ("total_count",)),
    **dict.fromkeys(("nu", "dof"), ("df",)),
    **dict.fromkeys(("k", "shape", "kappa"), ("concentration", "df")),
}
"""The names of parameters elsewhere, and the family's own for each."""

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
        written = _LAMBDA.sub("lambda_=", text.strip())
        tree = ast.parse(written, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InputError(
            f"{text!r} is not a distribution: {getattr(error, 'msg', error)}. Write it like "
            "Normal(0, 1) or Gamma(concentration=2, rate=0.5)"
        ) from None
    return _distribution(tree, written)


def _distribution(node: ast.AST, text: str) -> Any:
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
        raise _refused(node, text)
    name, known = node.func.id, _families()
    if name not in known:
        near = suggestion(name, known)
        raise InputError(f"no distribution {name!r}; there are {', '.join(known)}.{near}")
    given = [_value(each, text) for each in node.args]
    named = {}
    for keyword in node.keywords:
        if keyword.arg is None:
            raise _refused(keyword.value, text)
        named[keyword.arg] = _value(keyword.value, text)
    _check_parameters(known[name], len(given), named, ast.unparse(node))
    try:
        made = known[name](*given, **named)
    except TypeError as error:
        why = str(error).removeprefix(f"{name}.").removeprefix("__init__() ")
        raise InputError(f"{ast.unparse(node)}: {why}") from None
    check(made, ast.unparse(node))
    return made


def _check_parameters(family: Any, given: int, named: dict[str, Any], text: str) -> None:
    """Refuse parameters that a family does not have; say which one was meant."""
    known = list(signature(family).parameters)
    text = text.replace("lambda_=", "lambda=")
    for name in (each.replace("lambda_", "lambda") for each in named):
        if name not in known:
            meant = next((each for each in _MEANT.get(name.lower(), ()) if each in known), None)
            hint = f" Write {meant}=." if meant else suggestion(name, known)
            raise InputError(
                f"{text}: {family.__name__} has no parameter {name!r}; it has"
                f" {', '.join(known)}.{hint}"
            )
    if given > len(known):
        raise InputError(
            f"{text}: {given} parameters; {family.__name__} has {len(known)}, {', '.join(known)}"
        )


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
        if not 0 < abs(node.value) <= sys.float_info.max:
            written = ast.get_source_segment(text, node) or ""
            if _DIGITS.match(written):  # not read as 0 or infinite
                whole = text.replace("lambda_=", "lambda=")
                raise InputError(f"{whole}: float64 does not hold the number {written[:20]}")
        return node.value
    if isinstance(node, ast.Name) and node.id in _WORDS:
        return _WORDS[node.id]
    if isinstance(node, ast.UnaryOp) and type(node.op) in _SIGNS:
        return _SIGNS[type(node.op)](_plain(node.operand, text))
    if isinstance(node, ast.List | ast.Tuple):
        return [_plain(each, text) for each in node.elts]
    raise _refused(node, text)


def _refused(node: ast.AST, text: str) -> InputError:
    part = ast.get_source_segment(text, node) or "this"
    whole = text.replace("lambda_=", "lambda=")
    return InputError(
        f"{part!r} in {whole!r} cannot be read: an expression holds the names of distributions and "
        "numbers, nothing else"
    )
