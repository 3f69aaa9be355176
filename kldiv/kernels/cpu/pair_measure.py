"""From a measure of all pairs of rows, or its gradients, to a kernel, and back to arrays."""

from __future__ import annotations

from functools import cache, partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from kldiv.formulas.pairs import PairSlope
from kldiv.kernels.cpu import pairs, team
from kldiv.kernels.cpu.code import REALS
from kldiv.kernels.cpu.compiling import compiled
from kldiv.kernels.layout import empty_like, words_of
from kldiv.kernels.results import host

if TYPE_CHECKING:
    from kldiv.formulas.pairs import PairMeasure
    from kldiv.kernels.work import Found, Work

    Rows = np.ndarray[Any, Any]

_UNITS: Final = {"float32": (2.0**40, 2.0**60), "float64": (2.0**80, 2.0**900)}
"""What probabilities are multiplied by, so that none is subnormal, and the largest that are."""


def refusal(work: Work) -> str | None:
    """Return why there is no kernel for such work, or None where there is."""
    operation = work.operation
    if isinstance(operation, PairSlope):
        return "a gradient of pairs that is differentiated has no kernel"
    if operation.name not in pairs.TERMS:
        return f"there is no kernel of pairs for {operation.name}"
    if work.gradients and work.cotangent is None:
        return "a matrix has a gradient for each of its numbers"
    return "there are no pairs" if 0 in operation.shape(work.arrays) else None


@cache
def kernel(name: str, dtype: str, index: int | None = None) -> Any:
    """Return the compiled function of a measure, or of its gradient in an array, for a dtype."""
    given: dict[str, Any] = {"real": REALS[dtype], "measure": name}
    if index is None:
        return compiled(f"pairs-{name}-{dtype}", 4, partial(pairs.write, **given))
    index %= len(pairs.SLOPES[name])
    writer = partial(pairs.write_slope, **given, index=index)
    return compiled(f"pairs-{name}-slope-{index}-{dtype}", 4, writer)


def compile_for(work: Work) -> Any:
    """Return the compiled kernels: that of the value, then those of gradients, as asked for."""
    own = partial(kernel, work.operation.name, work.operation.compute)
    return [own() if work.value else None, *map(own, work.gradients)]


def run(work: Work, kernel: Any) -> Found:
    """Return the measure of all pairs, if it is wanted, and the gradients that are."""
    operation, (of_value, *of_slopes) = work.operation, kernel
    given = _Given.of(work)
    value = None if of_value is None else _values(operation, given, of_value)
    gradients = []
    for place, (index, function) in enumerate(zip(work.gradients, of_slopes, strict=True)):
        found = _gradient(work, given, index, function)
        memory = empty_like(work.xp, work.arrays[index]) if work.into is None else work.into[place]
        memory[...] = work.xp.asarray(found, device=memory.device)
        gradients.append(memory)
    if value is None:
        return None, gradients
    result = work.xp.asarray(value, device=work.arrays[0].device)
    return work.xp.astype(result, getattr(work.xp, operation.result)), gradients


class _Given(NamedTuple):
    """Both arrays of rows, on the host."""

    rows: list[Rows]
    usable: list[Rows]
    """Masks of the rows that the kernels take."""
    padded: list[Rows]
    """Rows in a small unit, with zeros up to whole vectors; rows not usable are zeros. Of some
    measures each is followed by its square roots."""
    unit: float
    numbers: Rows
    """Those of the measure, of the first array and of the second."""
    threads: int | None

    @classmethod
    def of(cls, work: Work) -> _Given:
        """Return the arrays of work."""
        operation = work.operation
        dtype, measure = operation.compute, operation.measure
        unit, largest = _UNITS[dtype]
        unit = unit if operation.name in pairs.BY_BITS else 1.0
        rows = [host(array, dtype) for array in work.arrays]
        usable = [np.all((each >= 0) & (each <= largest), axis=-1) for each in rows]
        padded = [
            _padded(each, own, unit, REALS[dtype].lanes, roots=operation.name in pairs.BY_ROOTS)
            for each, own in zip(rows, usable, strict=True)
        ]
        alpha = getattr(measure, "alpha", 0.0)
        numbers = getattr(measure, "weights", None) or (alpha, 1.0 - alpha)
        return cls(rows, usable, padded, unit, np.array(numbers), work.threads)

    def share(self, kernel: Any, own: Rows, other: Rows, **more: Any) -> None:
        """Call a kernel for all rows of an array."""
        rows = len(own)
        frame = {"classes": own.shape[-1], "others": len(other), "own": own, "other": other}
        words = words_of(pairs.FRAME, frame | more)
        team.launch(kernel, words, 0, rows, self.threads, step=pairs.TOGETHER)


def _values(operation: PairMeasure, given: _Given, kernel: Any) -> Rows:
    own, other = given.padded
    values, symmetric = np.empty((len(own), len(other))), operation.symmetric
    given.share(kernel, own, other, symmetric=symmetric, numbers=given.numbers, found=values)
    values /= given.unit * operation.unit
    found: Rows = operation.mirrored(np, values) if operation.symmetric else values
    a, b = given.rows
    rows, columns = (np.flatnonzero(~own) for own in given.usable)
    # The kernel does not take these.
    with np.errstate(all="ignore"):
        for row in rows:
            found[row] = operation.elements(np, a[row : row + 1], b)[0]
        for column in columns:
            found[:, column] = operation.elements(np, a, b[column : column + 1])[:, 0]
    return found


def _gradient(work: Work, given: _Given, index: int, kernel: Any) -> Rows:
    """Return the gradient in the rows of one array."""
    operation = work.operation
    weights = host(work.cotangent, operation.compute)
    own, other = given.padded[index], given.padded[1 - index]
    usable = given.usable[1 - index]
    by_own = weights if index == 0 else weights.T
    by_kernel = np.ascontiguousarray(by_own if usable.all() else np.where(usable, by_own, 0))
    numbers = given.numbers if index == 0 else given.numbers[::-1].copy()
    gradient = np.empty((len(own), own.shape[-1]), own.dtype)
    given.share(kernel, own, other, numbers=numbers, weights=by_kernel, found=gradient)
    found: Rows = gradient[:, : given.rows[0].shape[-1]]
    found /= operation.unit

    def by_formulas(some: Rows, others: Rows) -> Rows:
        """Return the gradient in some rows, of their pairs with some others."""
        ends = (some, others) if index == 0 else (others, some)
        rows = [array[mask] for array, mask in zip(given.rows, ends, strict=True)]
        own_weights = weights[np.ix_(*ends)]
        slopes: Rows = operation.pullback(
            np, lambda each, *arrays: each.value(np, *arrays), index, own_weights, *rows
        )
        return slopes

    with np.errstate(all="ignore"):
        if not usable.all():
            found += by_formulas(np.ones(len(own), bool), ~usable)
        unlike = ~given.usable[index]
        if unlike.any():
            found[unlike] = by_formulas(unlike, np.ones(len(other), bool))
    return found


def _padded(rows: Rows, usable: Rows, unit: float, lanes: int, *, roots: bool) -> Rows:
    size = -(-rows.shape[-1] // lanes) * lanes
    found = np.zeros((len(rows), 1 + roots, size), rows.dtype)
    found[:, 0, : rows.shape[-1]] = rows * rows.dtype.type(unit)
    found[~usable] = 0.0
    if roots:
        np.sqrt(found[:, 0], out=found[:, 1])
    return found
