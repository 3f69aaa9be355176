"""From an operation on rows of logits and arrays to launches of its kernel, and back to arrays."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from kldiv.formulas.numbers import FIELDS, ROW_FIELDS, SUM_FIELDS
from kldiv.kernels.cuda.arguments import address, layout, numbers, structure, wide
from kldiv.kernels.cuda.compiling import kernel, types
from kldiv.kernels.layout import memory
from kldiv.kernels.spelling import numbered

if TYPE_CHECKING:
    from kldiv._types import Array
    from kldiv.kernels.work import Work

STATES, FINISH, SUMS, VALUES, GRADIENTS = (1 << bit for bit in range(5))
"""The phases of the work, as the source has them."""

WARPS: Final = 8
"""Warps of a block: a team for one long row, or a team of its own for each of eight short ones."""

MANY: Final = 512
"""Blocks that keep a large GPU busy; with fewer rows than that several blocks share one."""

MOST: Final = 2048
"""Blocks, beyond which a team takes several rows, one after another."""

_FIELDS, _KNOWN = len(FIELDS), len(ROW_FIELDS)


class Shape(NamedTuple):
    """The division of rows among blocks and warps."""

    per: int
    """Classes in the registers of a lane; 32 lanes have a tile."""
    team: int
    """Warps for a row, or for a part of it."""
    parts: int
    """Teams that share a row."""
    blocks: int

    @property
    def teams(self) -> int:
        """Rows that are worked on at a time."""
        return self.blocks * WARPS // self.team


def shape_for(rows: int, classes: int, real: str) -> Shape:
    """Return the division of rows: it is the same on every GPU, and so are the results' sums."""
    # As many as a lane can hold in 128 registers, with next to no spills.
    per = 1 if classes <= 32 else 4 if classes <= 128 or real == "float64" else 8
    tiles = math.ceil(classes / (32 * per))
    team = WARPS if tiles > 2 * WARPS or (tiles > 1 and rows < MANY) else 1
    parts = 1
    if team > 1:
        share = max(WARPS, math.ceil(tiles * rows / MANY))  # tiles of a part
        parts = math.ceil(tiles / share)
    rows_of_block = WARPS // team
    return Shape(per, team, parts, min(math.ceil(rows / rows_of_block), MOST))


def run(work: Work) -> tuple[Array | None, list[Array]]:
    """Return the value, if it is wanted, and the gradients that are."""
    operation, xp, arrays = work.operation, work.xp, work.arrays
    keep, shape = operation.keep(arrays), tuple(arrays[0].shape)
    rows, classes = math.prod(shape[:-1]), shape[-1]
    dtypes = [memory(array).dtype for array in arrays[:2]]
    real = wide([operation.result, *dtypes])
    divergence, own_numbers, factor = numbered(operation.divergence)
    sides = 2 if divergence and 0 in work.gradients else 1
    cut = shape_for(rows, classes, real)

    exact = replace(operation, compute="float64", total="float64")
    factors, cotangent = xp.ones((1,), dtype=xp.float64), work.cotangent
    if work.gradients:
        factors = factors if cotangent is None else numbers(xp, cotangent)
        factors = factor * exact.weight(xp, factors, shape[:-1], keep)
    if operation.temperature is None:
        temperatures = numbers(xp, arrays[2])
    else:
        temperatures = xp.full((1,), operation.temperature, dtype=xp.float64)
    kept = None if keep is None else xp.ascontiguousarray(keep)

    gradients = [xp.empty(shape, dtype=arrays[index].dtype) for index in work.gradients]
    outputs = dict(zip(work.gradients, gradients, strict=True))
    table, alive = layout(xp, [*arrays[:2], outputs.get(0), outputs.get(1)], whole_rows=True)
    space = [
        xp.empty((cut.teams * size,), dtype=xp.float64)
        for size in (sides * cut.parts * _FIELDS, sides * _KNOWN, len(SUM_FIELDS) * cut.parts)
    ]
    values = xp.empty((rows,), dtype=xp.float64)
    fields: dict[str, Any] = {
        "rows": rows,
        "classes": classes,
        "parts": cut.parts,
        "team": cut.team,
        "sides": sides,
        "keep": address(kept),
        "factors": address(factors),
        "factor_step": int(factors.shape[0] > 1),
        "temperatures": address(temperatures),
        "temperature_step": int(temperatures.shape[0] > 1),
        "states": address(space[0]),
        "known": address(space[1]),
        "sums": address(space[2]),
        "values": address(values),
        "numbers": np.array(own_numbers),
    }
    own = types(S=dtypes[0], T=dtypes[1])
    launch = kernel("row_loss", real, PER=cut.per, DIVERGENCE=divergence, **own)
    for phases, parts in _launches(cut.parts, summed=divergence > 0, gradients=bool(gradients)):
        job = structure(table=table, phases=phases, **fields)
        launch((cut.blocks, parts), (32 * WARPS,), (job,))
    del alive  # until here
    if not work.value:
        return None, gradients
    if factor != 1:
        values *= factor
    return exact.finish(xp, xp.reshape(values, shape[:-1]), keep), gradients


def _launches(parts: int, *, summed: bool, gradients: bool) -> list[tuple[int, int]]:
    """Return the phases of each launch, and how many parts of a row take part in it."""
    last = VALUES | GRADIENTS if gradients else VALUES
    sums = SUMS if summed else 0
    if parts == 1:
        return [(STATES | FINISH | sums | last, 1)]
    first = [(STATES, parts), (FINISH, 1)]
    return [*first, *([(sums, parts)] if sums else []), (last, parts if gradients else 1)]
