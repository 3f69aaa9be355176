"""The domains of families' parameters, which the command checks and functions never do.

A limit that a family has counts as inside, as in the library: a scale of 0, a rate of 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from kldiv import distributions as d
from kldiv.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable


class Domain(NamedTuple):
    """A condition on a parameter, in words and as a check, which may look at the others."""

    words: str
    holds: Callable[[Any, Any], Any]


_FINITE = Domain("finite", lambda x, _: np.isfinite(x))
_POSITIVE = Domain("above 0 and finite", lambda x, _: (x > 0) & np.isfinite(x))
_NOT_NEGATIVE = Domain("0 or above, and finite", lambda x, _: (x >= 0) & np.isfinite(x))
_PROBABILITY = Domain("between 0 and 1", lambda x, _: (x >= 0) & (x <= 1))
_COUNT = Domain(
    "a whole number, 0 or above", lambda x, _: (x >= 0) & (x == np.floor(x)) & np.isfinite(x)
)
_LOGITS = Domain("below inf", lambda x, _: x < np.inf)
_LOGITS_OF_ONE = Domain("a number", lambda x, _: ~np.isnan(x))
_SUM: Final = 1e-6  # error of the sum of probabilities written with a few digits
_CLASSES = Domain(
    "0 or above, with sum 1",
    lambda x, _: (x >= 0) & (abs(np.sum(x, axis=-1, keepdims=True) - 1) <= _SUM),
)
_SYMMETRIC = Domain("symmetric and positive definite", lambda x, _: _definite(x))
_TRIANGULAR = Domain(
    "lower triangular with a diagonal above 0",
    lambda x, _: (
        _square(x) and np.all(np.triu(x, 1) == 0) and np.all(np.diagonal(x, axis1=-2, axis2=-1) > 0)
    ),
)

_USUAL: Final = {
    "loc": _FINITE,
    "scale": _NOT_NEGATIVE,
    "scale_diag": _POSITIVE,
    "rate": _POSITIVE,
    "df": _POSITIVE,
    "alpha": _POSITIVE,
    "concentration": _POSITIVE,
    "concentration1": _POSITIVE,
    "concentration0": _POSITIVE,
    "probs": _PROBABILITY,
    "logits": _LOGITS_OF_ONE,
    "total_count": _COUNT,
    "value": _FINITE,
    "log_density": _FINITE,
    "low": _FINITE,
    "cov_factor": _FINITE,
    "cov_diag": _POSITIVE,
    "covariance_matrix": _SYMMETRIC,
    "precision_matrix": _SYMMETRIC,
    "scale_tril": _TRIANGULAR,
    "high": Domain("finite and at least low", lambda x, p: np.isfinite(x) & (x >= p.low)),
    "mixture_distribution": Domain("a Categorical", lambda x, _: isinstance(x, d.Categorical)),
}
_OWN: Final[dict[tuple[Any, str], Domain]] = {
    (d.Poisson, "rate"): _NOT_NEGATIVE,
    (d.Exponential, "rate"): _NOT_NEGATIVE,
    (d.VonMises, "concentration"): _NOT_NEGATIVE,
    (d.Weibull, "scale"): _POSITIVE,
    (d.Pareto, "scale"): _POSITIVE,
    (d.NegativeBinomial, "total_count"): _POSITIVE,
    **{
        (family, name): domain
        for family in (d.Categorical, d.OneHotCategorical, d.Multinomial)
        for name, domain in (("probs", _CLASSES), ("logits", _LOGITS))
    },
}


def check(made: Any, text: str) -> None:
    """Raise where a parameter of a distribution lies outside its domain.

    Parameters
    ----------
    made : Distribution
        The distribution that an expression describes.
    text : str
        The expression.

    Raises
    ------
    InputError
        The first parameter that does, by name.
    """
    if isinstance(made, d.Independent):
        axes: Any = made.reinterpreted_batch_ndims
        batch = len(made.base_dist.batch_shape)
        if not (isinstance(axes, int) and 0 <= axes <= batch):
            raise InputError(
                f"{text}: reinterpreted_batch_ndims of Independent must be a whole number from 0 "
                f"to {batch}, the axes that its batch has; got {axes}"
            )
    for name, value in made.parameters():
        if isinstance(value, d.Distribution) and name not in made.parts:
            raise InputError(
                f"{text}: {name} of {type(made).__name__} must be numbers; got {_shown(value)}"
            )
        domain = _OWN.get((type(made), name)) or _USUAL.get(name)
        if domain is None:
            continue
        array = _array(value)
        holds = np.asarray(domain.holds(array, made))
        if not holds.all():
            wrong = np.broadcast_to(array, holds.shape)[~holds][0] if holds.ndim else value
            raise InputError(
                f"{text}: {name} of {type(made).__name__} must be {domain.words}; got "
                f"{_shown(wrong)}"
            )


def _shown(wrong: Any) -> str:
    if isinstance(wrong, d.Distribution):
        return f"a {type(wrong).__name__}"
    return str(np.asarray(wrong).tolist())


def _array(value: Any) -> Any:
    return value if isinstance(value, d.Distribution) else np.asarray(value, dtype=np.float64)


def _square(x: Any) -> bool:
    return bool(x.ndim >= 2 and x.shape[-1] == x.shape[-2])


def _definite(x: Any) -> bool:
    if not _square(x) or not np.isfinite(x).all():
        return False
    other = np.swapaxes(x, -1, -2)
    same = np.allclose(x, other, rtol=1e-12, atol=0)
    return bool(same and (np.linalg.eigvalsh(x) > 0).all())
