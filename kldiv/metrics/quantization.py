"""The numbers that a quantised language model is judged by, beside the original, over batches."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

import numpy as np

from kldiv import backends
from kldiv._notebook import table
from kldiv.formulas.reductions import cast
from kldiv.label_losses import cross_entropy_with_logits
from kldiv.logit_losses import kl_div_with_logits, tv_div_with_logits
from kldiv.metrics.metric import Kept, Metric, widest

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kldiv._types import Array

PERCENTILES: Final = (99.9, 99.0, 95.0, 90.0, 50.0, 10.0, 5.0, 1.0)
"""The percentiles of the divergence that a report has, as others print them."""
_NAN: Final = math.nan


class Measured(NamedTuple):
    """
    A mean, or a function of means, with its standard error.

    Parameters
    ----------
    value : float
        The number.
    standard_error : float
        Its standard error, the rows being independent; NaN for fewer than two rows.
    """

    value: float
    standard_error: float

    def __format__(self, form: str) -> str:
        return f"{self.value:{form}} ± {self.standard_error:{form}}" if form else str(self)


class Histogram(NamedTuple):
    """
    The number of rows by the size of their divergence.

    Parameters
    ----------
    edges : numpy.ndarray
        The edges of bins, ten a power of ten.
    counts : numpy.ndarray
        The rows in each; those beyond the last edge, infinite ones included, are in the last.
    below : int
        Rows below the first edge, those of divergence 0 included.
    """

    edges: NDArray[np.float64]
    counts: NDArray[np.int64]
    below: int


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class QuantizationReport:
    """
    The numbers that a quantised language model Q is judged by, beside the original P.

    Made by `Quantization` and by `kldiv.streaming.compare`. Standard errors take rows for
    independent; those of one text are nearly so at best.

    Attributes
    ----------
    rows : int
        The number of rows: a distribution over the next token each.
    kl : Measured
        Mean D(P‖Q), in nats.
    kl_min : float
        The smallest D(P‖Q).
    kl_max : float
        The largest.
    kl_percentiles : dict of float
        D(P‖Q) of rows by percentage: 50 is the median; empty where no quantiles were kept.
    same_top : Measured
        Share of rows in which P and Q have the same likeliest class, the first of equal ones.
    acceptance : Measured
        Mean Σ min(p, q): the rate at which P accepts tokens drawn from Q in speculative decoding.
    next_tokens : int
        The number of rows whose next token is known; without one the numbers below are NaN.
    delta_p : Measured
        Mean of q − p of the next token.
    rms_delta_p : Measured
        Root of the mean of its square.
    perplexity_p : Measured
        Of the next tokens under P.
    perplexity_q : Measured
        Under Q.
    perplexity_ratio : Measured
        That of Q by that of P; its error is smaller than theirs, as both see the same tokens.
    histogram : Histogram or None
        Of D(P‖Q); where all rows were kept.
    """

    rows: int
    kl: Measured
    kl_min: float
    kl_max: float
    kl_percentiles: dict[float, float]
    same_top: Measured
    acceptance: Measured
    next_tokens: int
    delta_p: Measured
    rms_delta_p: Measured
    perplexity_p: Measured
    perplexity_q: Measured
    perplexity_ratio: Measured
    histogram: Histogram | None = None

    @property
    def kl_median(self) -> float:
        """The median of D(P‖Q); NaN where no quantiles were kept."""
        return self.kl_percentiles.get(50.0, _NAN)

    def to_dict(self) -> dict[str, Any]:
        """
        Return the numbers by name, as JSON has them.

        Returns
        -------
        dict
            Numbers with an error are ``{"value": …, "standard_error": …}``.
        """
        found: dict[str, Any] = {}
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, Measured | Histogram):
                parts = value._asdict().items()
                value = {name: np.asarray(part).tolist() for name, part in parts}
            elif isinstance(value, dict):
                value = {f"{percent:g}": number for percent, number in value.items()}
            found[each.name] = value
        return found

    def __repr__(self) -> str:
        return (
            f"QuantizationReport(kl={self.kl:.6g}, same_top={self.same_top:.4g},"
            f" acceptance={self.acceptance:.4g}, rows={self.rows})"
        )

    def _repr_html_(self) -> str:
        names = [
            each.name for each in fields(self) if isinstance(getattr(self, each.name), Measured)
        ]
        rows: list[tuple[object, ...]] = [(name, *getattr(self, name)) for name in names]
        rows += [
            (f"{percent:g} % of the divergences", value, "")
            for percent, value in self.kl_percentiles.items()
        ]
        return table(f"{self.rows:,} rows", ("", "value", "standard error"), rows)


class Quantization(Kept):
    """
    The numbers that a quantised model is judged by, over many batches, on any library.

    The mean D(P‖Q) of the original's distributions P and the quantised model's Q, the share of rows
    with the same likeliest token, the expected acceptance rate Σ min(p, q) of speculative decoding,
    and of the tokens that really follow the change of their probability and the ratio of
    perplexities.

    Parameters
    ----------
    quantiles : bool, default False
        Whether to keep a sketch for percentiles; needs ``datasketches``.
    axis : int, default -1
        The axis of the classes.

    See Also
    --------
    kldiv.streaming.compare : With ``quantization=True``, of files of logits.

    Examples
    --------
    >>> import numpy as np
    >>> from kldiv.metrics import Quantization
    >>> random = np.random.default_rng(0)
    >>> metric = Quantization()
    >>> for _ in range(10):
    ...     original = 3 * random.normal(size=(64, 100))
    ...     quantised = original + 0.1 * random.normal(size=original.shape)
    ...     metric.update(quantised, original, random.integers(0, 100, 64))
    >>> found = metric.compute()
    >>> print(f"{found.kl:.5f}; same top {found.same_top:.3f}; accepted {found.acceptance:.3f}")
    0.00381 ± 0.00010; same top 0.938 ± 0.010; accepted 0.967 ± 0.001
    """

    def __init__(self, *, quantiles: bool = False, axis: int = -1) -> None:
        self._axis = axis
        names = ("accepted", "same_top", "log_p", "log_q", "log_ratio", "delta_p", "squared")
        self._parts = {name: Metric(_itself) for name in names}
        self._parts["kl"] = Metric(_itself, quantiles=quantiles)
        self._quantiles = quantiles

    def reset(self) -> None:  # noqa: D102 - as `Kept` has it
        for part in self._parts.values():
            part.reset()

    # ---- adding rows -----------------------------------------------------------------------------

    def update(
        self,
        input: Array,
        target: Array,
        next_tokens: Array | None = None,
        *,
        where: Array | None = None,
    ) -> None:
        """
        Add the rows of a batch.

        Parameters
        ----------
        input : array
            Logits of Q, the quantised model.
        target : array
            Logits of P, the original.
        next_tokens : array of int, optional
            The class that follows in the text for each row; negative where none is known.
        where : array of bool, optional
            Rows to keep.
        """
        options: dict[str, Any] = {"axis": self._axis, "reduction": "none"}
        kl = kl_div_with_logits(input, target, **options)
        backend = backends.find(kl)
        xp = backend.namespace(kl)
        accepted = 1.0 - tv_div_with_logits(input, target, **options)
        tops = [xp.argmax(backend.constant(each), axis=self._axis) for each in (input, target)]
        same = xp.astype(tops[0] == tops[1], kl.dtype)
        same = xp.where(xp.isnan(kl), kl, same)
        logs: tuple[Array, Array] | tuple[None, None] = (None, None)
        known = None
        if next_tokens is not None:
            known = next_tokens >= 0
            labels = xp.where(known, next_tokens, xp.zeros_like(next_tokens))
            log_p, log_q = (
                -cross_entropy_with_logits(each, labels, **options) for each in (target, input)
            )
            logs = log_p, log_q
        self.update_rows(kl, accepted, same, *logs, known=known, where=where)

    def update_rows(
        self,
        kl: Array,
        accepted: Array,
        same_top: Array,
        log_p: Array | None = None,
        log_q: Array | None = None,
        *,
        known: Array | None = None,
        where: Array | None = None,
    ) -> None:
        """
        Add rows of which everything is at hand.

        Parameters
        ----------
        kl, accepted, same_top : array of float
            D(P‖Q), Σ min(p, q), and 1 or 0, of each row.
        log_p, log_q : array of float, optional
            Log-probabilities of the next token.
        known : array of bool, optional
            The rows whose next token is known; by default all.
        where : array of bool, optional
            Rows to keep.
        """
        parts = self._parts
        for name, values in (("kl", kl), ("accepted", accepted), ("same_top", same_top)):
            parts[name].update_rows(values, where=where)
        if log_p is None or log_q is None:
            return
        if known is not None and where is not None:
            known = known & where
        elif known is None:
            known = where
        backend = backends.find(log_p)
        xp = backend.namespace(log_p)
        wide = widest(backend, xp)
        with backend.context(log_p):
            log_p, log_q = (cast(xp, backend.constant(each), wide) for each in (log_p, log_q))
            apart = xp.exp(log_q) - xp.exp(log_p)
            found = {
                "log_p": log_p,
                "log_q": log_q,
                "log_ratio": log_p - log_q,
                "delta_p": apart,
                "squared": apart * apart,
            }
        for name, values in found.items():
            parts[name].update_rows(values, where=known)

    # ---- together --------------------------------------------------------------------------------

    def _add(self, other: Self) -> None:
        for name, part in self._parts.items():
            part.merge(other._parts[name])

    def _empty(self) -> Self:
        return type(self)(quantiles=self._quantiles, axis=self._axis)

    # ---- results ---------------------------------------------------------------------------------

    def compute(self) -> QuantizationReport:
        """
        Return the numbers over all rows so far.

        Returns
        -------
        QuantizationReport
            Means with their standard errors, extremes, and percentiles by the sketch.
        """
        found = {name: part.compute() for name, part in self._parts.items()}
        mean = {name: Measured(each.mean, each.standard_error) for name, each in found.items()}
        percentiles = {}
        if self._quantiles:
            values = self._parts["kl"].quantile([percent / 100 for percent in PERCENTILES])
            percentiles = dict(zip(PERCENTILES, values, strict=True))
        return QuantizationReport(
            rows=found["kl"].rows,
            kl=mean["kl"],
            kl_min=found["kl"].min,
            kl_max=found["kl"].max,
            kl_percentiles=percentiles,
            same_top=mean["same_top"],
            acceptance=mean["accepted"],
            next_tokens=found["delta_p"].rows,
            delta_p=mean["delta_p"],
            rms_delta_p=_root(mean["squared"]),
            perplexity_p=_exponential(mean["log_p"], -1.0),
            perplexity_q=_exponential(mean["log_q"], -1.0),
            perplexity_ratio=_exponential(mean["log_ratio"], 1.0),
        )

    # ---- kept ------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:  # noqa: D102 - as `Kept` has it
        return {
            f"{name}.{key}": value
            for name, part in self._parts.items()
            for key, value in part.state_dict().items()
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: D102 - as `Kept` has it
        for name, part in self._parts.items():
            start = f"{name}."
            own = {key.removeprefix(start): v for key, v in state.items() if key.startswith(start)}
            part.load_state_dict(own)

    def __repr__(self) -> str:
        return f"Quantization(quantiles={self._quantiles}, rows={self._parts['kl'].compute().rows})"


def _itself(rows: Array) -> Array:
    return rows


def _root(mean: Measured) -> Measured:
    root = math.sqrt(mean.value)
    return Measured(root, 0.5 * mean.standard_error / root if root else 0.0 * mean.standard_error)


def _exponential(mean: Measured, sign: float) -> Measured:
    with np.errstate(over="ignore"):
        value = float(np.exp(sign * mean.value))
    return Measured(value, value * mean.standard_error)
