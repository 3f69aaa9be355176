"""Options of losses of rows of logits: the temperature, and a divergence with its numbers.

Each is the same for all rows, or an array of one number per row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kldiv.formulas.reductions import RowWise, cast
from kldiv.formulas.state import number

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kldiv._types import Array, Namespace
    from kldiv.formulas.divergences import Divergence
    from kldiv.formulas.state import Temperature


class Tempered(RowWise):
    """An operation on rows whose logits are divided by a temperature."""

    temperature: float | None
    """None: an array of one number per row, the last of the differentiable arrays."""

    def temperature_of(self, xp: Namespace, others: Sequence[Array]) -> Temperature:
        """Return the temperature, 1 for rows that the mask drops.

        ``others`` are the arrays from that of the temperature on, where it is one.
        """
        if self.temperature is not None:
            return number(self.temperature)
        temperature = cast(xp, others[0], self.compute)
        if len(others) > 1 + self.leading - self.differentiable:
            temperature = xp.where(others[-1], temperature, 1.0)
        return temperature[..., None]


class OfDivergence(Tempered):
    """Such an operation with a divergence, whose numbers come after the differentiable arrays."""

    divergence: Divergence

    @property
    def leading(self) -> int:
        return self.differentiable + self.divergence.parameters

    def bound(self, xp: Namespace, arrays: Sequence[Array]) -> Divergence:
        """Return the divergence, with its parameters of each row where it has any."""
        count = self.divergence.parameters
        if not count:
            return self.divergence
        keep, first = self.keep(arrays), self.differentiable
        own = [cast(xp, array, self.compute) for array in arrays[first : first + count]]
        if keep is not None:
            own = [xp.where(keep, array, 0.5) for array in own]
        return self.divergence.bound(xp, *(array[..., None] for array in own))
