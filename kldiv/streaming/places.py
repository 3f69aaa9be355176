"""The rows and classes of an array: how many, where, and their names."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from kldiv.streaming._types import Names


@dataclass(frozen=True, slots=True)
class Places:
    """An array's shape, the axis of its classes, and the labels of both where there are any."""

    whole: tuple[int, ...]
    axis: int
    classes: Names
    rows: Names

    @property
    def size(self) -> int:
        """The number of classes."""
        return self.whole[self.axis]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the rows: one entry a distribution."""
        return self.whole[: self.axis] + self.whole[self.axis + 1 :]

    @property
    def count(self) -> int:
        """The number of rows."""
        return math.prod(self.shape)

    def class_name(self, index: int) -> str:
        """Return the label of a class, or its number."""
        return str(index) if self.classes is None else self.classes[index]

    def row_name(self, index: int) -> str:
        """Return the label of a row, or its number; rows are counted in C order."""
        if self.rows is not None:
            return self.rows[index]
        place = [int(i) for i in np.unravel_index(index, self.shape)]
        return str(place[0]) if len(place) == 1 else str(tuple(place))

    def element(self, place: tuple[int, ...]) -> str:
        """Return the name of an element."""
        name = f"class {self.class_name(place[self.axis])!r}"
        if not self.shape:
            return name
        row = np.ravel_multi_index(place[: self.axis] + place[self.axis + 1 :], self.shape)
        return f"row {self.row_name(int(row))!r}, {name}"
