"""Divergences for `kldiv.f_div_with_logits`, and the base class and functions for your own."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from kldiv._arguments import order_of, setting
from kldiv.errors import OptionError
from kldiv.formulas import divergences as formulas
from kldiv.formulas import powers
from kldiv.formulas.divergences import Divergence, FDivergence
from kldiv.formulas.special import exp_rise, expm1, log1p, phi

__all__ = [
    "KL",
    "Alpha",
    "ChiSquared",
    "Divergence",
    "FDivergence",
    "Hellinger",
    "Jeffreys",
    "Mixture",
    "TotalVariation",
    "exp_rise",
    "expm1",
    "log1p",
    "phi",
]


@dataclass(frozen=True)
class KL(Divergence):
    r"""
    The Kullback-Leibler divergence D(P‖Q), g(ℓ) = e^(−ℓ) − 1 + ℓ.

    Parameters
    ----------
    reverse : bool, default False
        Whether to take D(Q‖P), the reverse divergence.

    Examples
    --------
    >>> import numpy as np
    >>> import kldiv
    >>> from kldiv.divergences import KL
    >>> teacher, student = np.log([0.4, 0.6]), np.log([0.3, 0.7])
    >>> for divergence in (KL(), KL(reverse=True)):
    ...     print(f"{kldiv.f_div_with_logits(student, teacher, divergence=divergence):.7f}")
    0.0225824
    0.0216009
    """

    reverse: bool = False

    def canonical(self) -> tuple[Divergence, bool]:  # noqa: D102 - as the class it overrides
        return formulas.KullbackLeibler(), self.reverse


@dataclass(frozen=True)
class Mixture(formulas.Mixture):
    r"""
    The divergences from a mixture, a·D(P‖M) + b·D(Q‖M) with M = mP + (1 − m)Q.

    Jensen-Shannon is ``Mixture(beta, beta, 1 - beta)``; the skew divergence D(P‖αP + (1−α)Q) is
    ``Mixture(alpha, 1, 0)`` and its reverse, D(Q‖(1−α)P + αQ), ``Mixture(1 - alpha, 0, 1)``;
    ``Mixture(0, 1, 0)`` is D(P‖Q) and ``Mixture(1, 0, 1)`` D(Q‖P).

    Parameters
    ----------
    m : float
        Weight of P in the mixture, from 0 to 1; between the two the divergence is finite on any
        support.
    a, b : float
        Weights of the two divergences, ≥ 0 and finite.

    Raises
    ------
    OptionError
        A weight out of range, or neither divergence counts.

    References
    ----------
    J. Lin, "Divergence measures based on the Shannon entropy", IEEE Trans. Inf. Theory 37 (1991)
    145-151. L. Lee, "Measures of Distributional Similarity", ACL 1999, 25-32 (skew divergences).

    Examples
    --------
    >>> import numpy as np
    >>> import kldiv
    >>> from kldiv.divergences import Mixture
    >>> apart = np.array([0.0, -np.inf]), np.array([-np.inf, 0.0])
    >>> skew = Mixture(0.1, 1.0, 0.0)
    >>> print(f"{kldiv.f_div_with_logits(*apart, divergence=skew):.6f}, {-np.log(0.1):.6f}")
    2.302585, 2.302585
    """

    def __post_init__(self) -> None:
        _set_numbers(self, "m", "a", "b")
        if not 0 <= self.m <= 1:
            raise OptionError(f"m must lie between 0 and 1, both included; got {self.m!r}")
        if 0 < self.m < formulas.LEAST:
            raise OptionError(
                f"m must be 0 or at least {formulas.LEAST}, as float32 has no smaller parts; got "
                f"{self.m!r}; take 0, its limit"
            )
        _check_weights(a=self.a, b=self.b)
        if (self.m == 0 and not self.a) or (self.m == 1 and not self.b):
            raise OptionError(
                f"{self!r} is 0 everywhere, as the mixture is the distribution itself; for "
                "D(P‖Q) take Mixture(0, 1, 0), for D(Q‖P) Mixture(1, 0, 1)"
            )


@dataclass(frozen=True)
class Jeffreys(formulas.Jeffreys):
    r"""
    Both directions of the Kullback-Leibler divergence, w·D(P‖Q) + r·D(Q‖P).

    Parameters
    ----------
    w, r : float, default 1.0
        Weights, ≥ 0 and finite. Both 1 is Jeffreys' divergence; (w, 1 − w) mixes forward and
        reverse divergence.

    Raises
    ------
    OptionError
        A negative or infinite weight, or both are 0.

    References
    ----------
    H. Jeffreys, "An invariant form for the prior probability in estimation problems", Proc. R. Soc.
    Lond. A 186 (1946) 453-461.

    Examples
    --------
    >>> import numpy as np
    >>> import kldiv
    >>> from kldiv.divergences import Jeffreys
    >>> teacher, student = np.log([0.4, 0.6]), np.log([0.3, 0.7])
    >>> print(f"{kldiv.f_div_with_logits(student, teacher, divergence=Jeffreys()):.7f}")
    0.0441833
    """

    def __post_init__(self) -> None:
        _set_numbers(self, "w", "r")
        _check_weights(w=self.w, r=self.r)


@dataclass(frozen=True)
class TotalVariation(formulas.TotalVariation):
    r"""
    The total variation distance ½ Σ abs(p − q), whose gradient is 0 at p = q.

    Examples
    --------
    >>> import numpy as np
    >>> import kldiv
    >>> from kldiv.divergences import TotalVariation
    >>> apart = np.array([0.0, -np.inf]), np.array([-np.inf, 0.0])
    >>> print(kldiv.f_div_with_logits(*apart, divergence=TotalVariation()))
    1.0
    """


@dataclass(frozen=True)
class Hellinger(Divergence):
    r"""
    The squared Hellinger distance ½ Σ (√p − √q)², from 0 to 1.

    Examples
    --------
    >>> import numpy as np
    >>> import kldiv
    >>> from kldiv.divergences import Hellinger
    >>> teacher, student = np.log([0.36, 0.64]), np.log([0.5, 0.5])
    >>> print(f"{kldiv.f_div_with_logits(student, teacher, divergence=Hellinger()):.7f}")
    0.0100505
    """

    def canonical(self) -> tuple[Divergence, bool]:  # noqa: D102 - as the class it overrides
        return powers.Alpha(0.5, 0.5, 0.25), False


@dataclass(frozen=True)
class ChiSquared(Divergence):
    r"""
    Pearson's χ² divergence Σ (p − q)²/q; the arguments swapped it is Neyman's.

    Examples
    --------
    >>> import numpy as np
    >>> import kldiv
    >>> from kldiv.divergences import ChiSquared
    >>> teacher, student = np.log([0.4, 0.6]), np.log([0.5, 0.5])
    >>> print(f"{kldiv.f_div_with_logits(student, teacher, divergence=ChiSquared()):.6f}")
    0.040000
    """

    def canonical(self) -> tuple[Divergence, bool]:  # noqa: D102
        return powers.Alpha(2.0, -1.0, 2.0), False


@dataclass(frozen=True)
class Alpha(Divergence):
    r"""
    The α-divergence (Σ p^α q^(1−α) − 1)/(α(α − 1)); D(P‖Q) for α = 1, D(Q‖P) for α = 0.

    Parameters
    ----------
    alpha : float
        The order, any finite number but those within 1e-30 of 0; 1 − α exchanges P and Q.

    Raises
    ------
    OptionError
        The order is not a finite number, or next to 0.

    References
    ----------
    S. Amari, "α-divergence is unique, belonging to both f-divergence and Bregman divergence
    classes", IEEE Trans. Inf. Theory 55 (2009) 4925-4931.

    Examples
    --------
    >>> import numpy as np
    >>> import kldiv
    >>> from kldiv.divergences import Alpha
    >>> teacher, student = np.log([0.4, 0.6]), np.log([0.3, 0.7])
    >>> print(f"{kldiv.f_div_with_logits(student, teacher, divergence=Alpha(0.5)):.7f}")
    0.0220631
    """

    alpha: float

    def __post_init__(self) -> None:
        _set_numbers(self, "alpha")
        order_of(self.alpha, finite=True, of_logits=True)

    def canonical(self) -> tuple[Divergence, bool]:  # noqa: D102
        return powers.Alpha.of(float(self.alpha))


def _set_numbers(record: Any, *names: str) -> None:
    """Set the fields of a record that are no numbers of Python's to those, or raise."""
    for name in names:
        given = getattr(record, name)
        if type(given) not in {int, float}:
            object.__setattr__(record, name, setting(name, given))


def _check_weights(**weights: float) -> None:
    """Raise unless all are ≥ 0 and finite, and one of them is not 0."""
    for name, weight in weights.items():
        if not 0 <= weight < math.inf:
            raise OptionError(f"{name} must be a finite number, at least 0; got {weight!r}")
    if not any(weights.values()):
        raise OptionError(f"one of {' and '.join(weights)} must not be 0")
