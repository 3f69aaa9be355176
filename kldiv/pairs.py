"""Divergences of all pairs of rows: document, check, resolve, run.

The mathematics lies in `kldiv.formulas.measures` and `kldiv.formulas.pairs`.
"""

from __future__ import annotations

from inspect import signature
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from kldiv import measures
from kldiv._call import dtypes, integers_in_float64, record_of, resolve_arrays
from kldiv._named import parsed
from kldiv.errors import OptionError, ShapeError
from kldiv.formulas.pairs import PairMeasure, normalized
from kldiv.frames import as_arrays

if TYPE_CHECKING:
    from kldiv._types import Array, ArrayT
    from kldiv.formulas.measures import Measure


def pairwise(
    a: ArrayT,
    b: ArrayT | None = None,
    *,
    divergence: str = "kl",
    base: float | None = None,
    normalize: bool = False,
) -> ArrayT:
    r"""
    Divergence of every row of one array from every row of another, as a matrix.

    Each entry is that of the function of one pair, `kldiv.kl_divergence` and relatives: as exact
    near equality, the same at zeros. Memory is that of the matrix: rows are never expanded.
    Differentiable in both arrays where their library differentiates, in reverse mode within that
    memory too.

    Parameters
    ----------
    a : array of shape (n, k)
        Rows of probabilities, P of each pair; float16, bfloat16, float32 or float64. Data frames of
        pandas and polars are matched by their columns.
    b : array of shape (m, k), optional
        Rows of probabilities, Q of each pair. By default ``a``; of a symmetric divergence half of
        the pairs are computed then.
    divergence : str, default "kl"
        Its name: ``"kl"``, ``"js"``, ``"jeffreys"``, ``"tv"``, ``"hellinger"``, ``"chi2"``,
        ``"skew"``, ``"alpha:0.5"``, ``"renyi:2"``; ``"js:0.3"`` weighs P by 0.3 and Q by 0.7,
        ``"skew:0.2"`` has that weight of P in the mixture.
    base : float, optional
        Base of the logarithm, above 1: 2 for bits. By default e: nats.
    normalize : bool, default False
        Divide each row by its sum first; integers, such as counts, are taken then, in float64.

    Returns
    -------
    array of shape (n, m)
        The divergence of row j of ``b`` from row i of ``a`` at (i, j), of the arguments' library
        and device, in the wider of their dtypes; half-precision arrays are computed in float32 and
        rounded once.

    Raises
    ------
    ShapeError
        An array is no matrix, they differ in their number of classes, or there is no class.
    DTypeError
        An argument is not real floating.
    OptionError
        No such divergence, a number that it does not take, or a ``base`` that does not apply.
    LibraryError
        Not arrays, or arrays of two libraries.

    See Also
    --------
    kldiv.kl_divergence : Of row i and row i; explains all divergences.

    Notes
    -----
    On the CPU, arrays of NumPy, PyTorch and JAX, and gradients in the latter two, are computed by a
    kernel (``kldiv[cpu]``), which takes each pair's terms as they stand. Without it, and of
    ``alpha`` and ``renyi`` up to order 2, of NumPy and PyTorch products of matrices compute all but
    ``js``, ``skew`` and ``tv``, about a row r between all others:
    :math:`D(p\|q) = D(p\|r) + D(r\|q) - \sum (p - r) \log(q/r)`. Those three take a few of
    NumPy's functions, on some rows at a time; of float64 ``skew`` and ``js`` of unlike
    weights have the formulas alone. Pairs too much alike for that to be exact are computed term by
    term. A library that multiplies matrices by several threads may round the last digit in another
    way with another number of them.

    Examples
    --------
    >>> import numpy as np
    >>> import kldiv
    >>> rows = np.array([[0.5, 0.5, 0.0], [0.25, 0.5, 0.25], [0.0, 0.5, 0.5]])
    >>> print(kldiv.pairwise(rows, base=2))
    [[0.  0.5 inf]
     [inf 0.  inf]
     [inf 0.5 0. ]]
    >>> print(kldiv.pairwise(rows, rows[:1], divergence="tv").tolist())
    [[0.0], [0.25], [0.5]]
    """
    names = ("a",) if b is None else ("a", "b")
    given = as_arrays(names, (a,) if b is None else (a, b), rows=False)
    for name, array in zip(names, given, strict=True):
        if not measures.is_array(array):
            raise measures.no_array(name, array)
    measured: _Measured = getattr(_measures, _settled(divergence, base))
    _check_shapes(names, given)
    if normalize:
        given = integers_in_float64(names, given)
    route, arrays, wide = resolve_arrays(names, given)
    compute, total, result = dtypes(route, wide, None, arrays[0])
    caller = route.caller
    if normalize:
        with caller.context(arrays[0]):
            xp = caller.namespace(arrays[0])
            arrays = tuple(normalized(xp, caller.adjacent(each), compute) for each in arrays)
    first, second = (*arrays, *arrays)[:2]
    if measured.exchanged:
        first, second = second, first
    symmetric = b is None and measured.measure.symmetric
    own = "none", compute, total, result
    pairs = PairMeasure(*own, measured.measure, measured.unit, symmetric)  # type: ignore[arg-type]
    found = route.run(pairs, first, second)
    return cast("ArrayT", found.T if measured.exchanged else found)


class _Measured(NamedTuple):
    """A measure as `PairMeasure` takes it."""

    measure: Measure
    unit: float
    exchanged: bool
    """Whether the measure takes Q first."""


def _settled(divergence: str, base: float | None) -> str:
    """Return the name in `_measures` of the measure of a divergence and a base."""
    place = f"{divergence}, {base}"
    if not hasattr(_measures, place):
        setattr(_measures, place, _measured(divergence, base))
    return place


_measures = SimpleNamespace()
# As that of `kldiv.backends.routing`, for torch.compile.
_settled._dynamo_marked_constant = True  # type: ignore[attr-defined] # noqa: SLF001


def _measured(divergence: str, base: float | None) -> _Measured:
    if not isinstance(divergence, str):
        raise OptionError(
            f"divergence must be a name, such as 'kl' or 'renyi:2'; got {divergence!r}"
        )
    name, numbers = parsed(divergence)
    function: Any = getattr(measures, f"{name}_divergence")
    options: dict[str, Any] = {}
    if name == "jeffreys" and numbers:
        raise OptionError(
            f"divergence {divergence!r}: of probabilities it has no weights; take 'jeffreys', or "
            "'kl' of both orders"
        )
    if name == "js" and numbers:
        options["weights"] = (numbers[0], 1.0 - numbers[0])
    elif numbers:
        options["alpha"] = numbers[0]
    if base is not None:
        if "base" not in signature(function).parameters:
            raise OptionError(f"base is for logarithms, and {name} has none; leave it out")
        options["base"] = base
    # What the function of one pair checks and runs: it may take one for the other.
    p, q = np.ones(1), np.ones(1)
    call: Any = record_of(function).prepare(p, q, **options)
    return _Measured(call.operation.measure, call.operation.unit, call.arrays[0] is q)


def _check_shapes(names: tuple[str, ...], arrays: tuple[Array, ...]) -> None:
    for name, array in zip(names, arrays, strict=True):
        shape = tuple(array.shape)
        if len(shape) != 2:
            mend = (
                f"of one row pass {name}[None, :]"
                if len(shape) == 1
                else f"bring all rows onto one axis, {name}.reshape(-1, {name}.shape[-1])"
                if shape
                else "pass a matrix"
            )
            raise ShapeError(f"{name} must be a matrix, a row for each distribution; got shape "
                             f"{shape}; {mend}")  # fmt: skip
    classes = [array.shape[1] for array in arrays]
    if classes[0] != classes[-1]:
        raise ShapeError(
            f"a and b must have the same classes, on their second axis; got shapes "
            f"{tuple(arrays[0].shape)} and {tuple(arrays[-1].shape)}"
        )
    if not classes[0]:
        raise ShapeError(f"there are no classes on the second axis of a: {tuple(arrays[0].shape)}")
