"""Looking at the values of an input and a target, to name the common mistakes.

No loss of this package looks at values; `diagnose` does nothing else, and so it is eager.  It makes
two passes: a `_Scan` of each array alone tells what the array reads as, and a `_Pair` then compares
the two in the light of that.  Both go block by block, in float64 on the host, so that a large array
is never copied as a whole, and one on a GPU or in a Dask graph takes no more memory than a block.
"""

from __future__ import annotations

import math
import operator
import textwrap
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import numpy as np

from kldiv import backends
from kldiv._call import resolve_same_shape
from kldiv.errors import LibraryError, OptionError, ShapeError
from kldiv.formulas.pointwise import KL

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from kldiv._types import Array

    Floats: TypeAlias = NDArray[np.float64]
    Mask: TypeAlias = NDArray[np.bool_]

__all__ = ["Diagnosis", "Finding", "diagnose"]

Severity: TypeAlias = Literal["error", "warning", "note"]
Kind: TypeAlias = Literal["probabilities", "log-probabilities", "logits", "weights", "undefined"]

_SEVERITIES: Final = ("error", "warning", "note")
_BLOCK: Final = 1 << 20  # elements looked at together
_ROUGH: Final = 0.01  # what half precision or printed decimals do to the sum of a row
_FILL: Final = -1e3  # no logarithm of a probability, but what masks are filled with
_EPSILON: Final = {
    "float16": 2.0**-10,
    "bfloat16": 2.0**-7,
    "float32": 2.0**-23,
    "float64": 2.0**-52,
}
_SUBNORMAL: Final = {"float16": 2.0**-24}  # the others' are too small to matter
_LOG10: Final = math.log(10.0)


@dataclass(frozen=True)
class Finding:
    """
    One thing that looks wrong, or is worth knowing.

    Attributes
    ----------
    code : str
        Its name, for programs: ``probabilities-as-input``, ``nan``, ``row-sums`` and so on.
    severity : str
        ``"error"``: the loss is NaN, infinite or means something else; ``"warning"``: it looks
        wrong; ``"note"``: worth knowing.
    message : str
        What was found: how much of it, where first, which values.
    mend : str
        What to do about it.
    """

    code: str
    severity: Severity
    message: str
    mend: str

    def __str__(self) -> str:
        lines = [f"{self.severity}: {self.code}"]
        for text, indent in ((self.message, "  "), (f"mend: {self.mend}", "        ")):
            lines += textwrap.wrap(
                text, 84, initial_indent="  ", subsequent_indent=indent, break_on_hyphens=False
            )
        return "\n".join(lines)


@dataclass(frozen=True)
class Diagnosis:
    """
    What `diagnose` found; true where something looks wrong.

    Attributes
    ----------
    findings : tuple of Finding
        Errors first, then warnings, then notes.
    input : str
        What the input most plausibly is, such as ``"log-probabilities"`` or ``"logits"``.
    target : str
        The same of the target.
    """

    findings: tuple[Finding, ...]
    input: str
    target: str

    def __bool__(self) -> bool:
        return any(finding.severity != "note" for finding in self.findings)

    def __str__(self) -> str:
        head = f"input reads as {self.input}, target as {self.target}"
        if not self:
            head += "; nothing looks wrong"
        return "\n".join([head, *map(str, self.findings)])

    def to_dict(self) -> dict[str, Any]:
        """
        Return the diagnosis as plain dictionaries, lists, strings and numbers.

        Returns
        -------
        dict
            The keys ``wrong``, ``input``, ``target`` and ``findings``, ready for JSON.
        """
        return {
            "wrong": bool(self),
            "input": self.input,
            "target": self.target,
            "findings": [asdict(finding) for finding in self.findings],
        }


def diagnose(input: Array, target: Array, *, axis: int = -1, log_target: bool = False) -> Diagnosis:
    """
    Say what looks wrong with the arguments of a call of `kl_div`.

    It names the common mistakes: a log that is missing or one too many, logits, a softmax over the
    wrong axis, swapped arguments, zeros in Q where P has mass, values clipped at a tiny floor, NaN,
    rows that do not sum to 1, and which reduction gives the divergence.  It looks at the values, so
    it takes time and works on concrete arrays only, not inside ``jax.jit`` or ``torch.compile``.

    Parameters
    ----------
    input : array
        What `kl_div` takes as input: log Q.
    target : array
        What `kl_div` takes as target: P, or log P with ``log_target=True``.
    axis : int, default -1
        The axis that the classes lie on.
    log_target : bool, default False
        What the call of `kl_div` says about its target.

    Returns
    -------
    Diagnosis
        The findings, and what input and target read as.  It is true where something looks wrong,
        prints as a report, and ``to_dict()`` is ready for JSON.

    Raises
    ------
    LibraryError
        Not arrays of one supported library, or traced arrays, which have no values.
    DTypeError
        Not real floating-point arrays.
    ShapeError
        The shapes differ, or there is no such axis.
    OptionError
        The axis is not an integer.

    Examples
    --------
    >>> import numpy as np
    >>> import kldiv
    >>> p = np.asarray([[0.36, 0.48, 0.16]])
    >>> q = np.asarray([[0.25, 0.25, 0.5]])
    >>> report = kldiv.diagnose(q, p)
    >>> bool(report)
    True
    >>> print(report.findings[0])
    error: probabilities-as-input
      input holds probabilities: its rows sum to 1 (from 0.25 to 0.5), but kl_div takes
      log Q
      mend: pass log_softmax of the logits, or log(input)
    >>> bool(kldiv.diagnose(np.log(q), p))
    False
    """
    resolve_same_shape(input, target)  # the checks of kl_div, and its errors
    axis = _check_axis(axis, input.shape)
    x, t = _Scan("input", input, axis), _Scan("target", target, axis)
    if x.size == 0:
        text = f"input and target are empty, shape {x.shape}: sum is 0, mean and batchmean are NaN"
        note = Finding("empty", "note", text, "leave empty batches out, or use reduction='sum'")
        return Diagnosis((note,), "empty", "empty")
    findings = [*x.findings(), *t.findings(), *_find_forms(x, t, log_target=log_target)]
    findings += _Pair(x, t, swapped=_swapped(x, t, log_target=log_target)).findings()
    findings.sort(key=lambda finding: _SEVERITIES.index(finding.severity))
    return Diagnosis(tuple(findings), str(x.reading), str(t.reading))


# Values cannot be seen while torch.compile traces: `_Scan.fetch` raises then.  Under fullgraph=True
# torch gives up earlier, and says so in the words of this mark (torch's own, set here by name, as
# torch may not be there).
vars(diagnose).update(
    _torchdynamo_disable=True,
    _torchdynamo_disable_msg="kldiv.diagnose looks at values; call it outside torch.compile",
)


def _check_axis(axis: int, shape: tuple[int, ...]) -> int:
    try:
        axis = operator.index(axis)
    except TypeError:
        raise OptionError(f"axis must be an integer, got {axis!r}") from None
    dimensions = max(len(shape), 1)  # a number counts as one class
    if not -dimensions <= axis < dimensions:
        raise ShapeError(
            f"axis {axis} is out of range for shape {tuple(shape)}; it must lie from {-dimensions} "
            f"to {dimensions - 1}"
        )
    return axis % dimensions


# ---- going through an array ----------------------------------------------------------------------


def _blocks(*arrays: Array) -> Iterator[tuple[slice, ...]]:
    """Yield the indices of slabs of the arrays' common shape, cut along one axis."""
    shape = arrays[0].shape
    if not shape:
        yield ()
        return
    # Along the first axis, which is contiguous, unless that is too short to make the slabs small.
    wanted = math.prod(shape) / _BLOCK
    cut = next((i for i, n in enumerate(shape) if n >= wanted), shape.index(max(shape)))
    step = max(1, int(shape[cut] / wanted))
    for array in arrays:
        chunks = getattr(array, "chunks", None)
        if chunks:  # Dask's: a slab that cuts through one would compute it twice
            chunk = max(1, *chunks[cut])
            step = max(1, step // chunk) * chunk
    whole = [slice(None)] * len(shape)
    for start in range(0, shape[cut], step):
        yield (*whole[:cut], slice(start, min(start + step, shape[cut])), *whole[cut + 1 :])


@dataclass
class _Tally:
    """How many elements are of some sort, and where the first is, in the order of the last axis."""

    shape: tuple[int, ...]
    count: int = 0
    first: int = -1

    def add(self, mask: Mask, index: tuple[slice, ...]) -> None:
        found = int(np.count_nonzero(mask))
        if not found:
            return
        self.count += found
        place = np.unravel_index(int(np.argmax(mask)), mask.shape)
        whole = tuple(int(i) + (s.start or 0) for i, s in zip(place, index, strict=True))
        flat = int(np.ravel_multi_index(whole, self.shape)) if whole else 0
        self.first = flat if self.first < 0 else min(self.first, flat)

    @property
    def where(self) -> str:
        return _place(tuple(int(i) for i in np.unravel_index(self.first, self.shape)))


def _place(index: tuple[int | str, ...]) -> str:
    return f"[{', '.join(map(str, index))}]"


@dataclass
class _Least:
    """The least of some values, and how many equal it."""

    value: float = math.inf
    count: int = 0

    def add(self, values: Floats) -> None:
        low = float(np.min(values, initial=math.inf))
        if low < self.value:
            self.value, self.count = low, 0
        if low == self.value and low < math.inf:
            self.count += int(np.count_nonzero(values == low))


@dataclass(frozen=True)
class _Reading:
    """What an array most plausibly is."""

    kind: Kind
    normalised: bool | None = False
    """Whether most rows sum to 1; None where no row can be summed."""
    over: str = ""
    """Where they do so in another direction: over which axis."""

    def __str__(self) -> str:
        if self.over:
            return f"{self.kind} over {self.over}"
        if self.kind == "log-probabilities" and self.normalised is False:
            return "unnormalised log-probabilities"
        return {"weights": "unnormalised probabilities", "undefined": "nothing but NaN"}.get(
            self.kind, self.kind
        )


class _Scan:
    """One pass over one array: what it holds, and what it reads as."""

    def __init__(self, name: str, array: Array, axis: int) -> None:
        self.name = name
        self.is_target = name == "target"
        self.array = array
        self.dtype = backends.find(array).dtype_name(array)
        self.shape = tuple(int(size) for size in array.shape)
        self.size = math.prod(self.shape)
        self.axis = axis
        self.classes = self.shape[axis] if self.shape else 1
        self.rows = self.size // max(self.classes, 1)
        self.nan, self.plus, self.minus, self.negative, self.zero = (
            _Tally(self.shape) for _ in range(5)
        )
        self.low, self.least = _Least(), _Least()  # of the finite entries, of the positive ones
        self.high = -math.inf
        self.above = self.below = 0.0  # sums of the positive and of the negative entries
        kept = tuple(1 if i == axis else size for i, size in enumerate(self.shape))
        self.sums, self.exp_sums = np.zeros(kept), np.zeros(kept)
        if self.size:
            with np.errstate(all="ignore"):
                for index in _blocks(array):
                    self._add(self.fetch(index), index)
                self.reading = self._read()

    def fetch(self, index: tuple[slice, ...]) -> Floats:
        """Return a part of the array as float64 in host memory."""
        backend = backends.find(self.array)
        try:
            part = backend.export(self.array)
            part = part[index] if index else part
            if self.dtype in {"float16", "bfloat16"}:  # NumPy may have no such type
                with backend.context(part):
                    xp = backend.namespace(part)
                    part = xp.astype(part, xp.float32)
            return np.asarray(backend.to_numpy(part), dtype=np.float64)
        except (LibraryError, NotImplementedError) as error:
            raise LibraryError(
                f"diagnose looks at values, and {self.name} ({type(self.array).__name__}) has "
                "none; call it on concrete arrays, outside jax.jit, jax.grad, torch.compile and "
                "torch.func"
            ) from error

    def _add(self, block: Floats, index: tuple[slice, ...]) -> None:
        self.nan.add(np.isnan(block), index)
        self.plus.add(block == math.inf, index)
        self.minus.add(block == -math.inf, index)
        self.negative.add(block < 0, index)
        self.zero.add(block == 0, index)
        finite = block[np.isfinite(block)]
        positive = finite[finite > 0]
        self.low.add(finite)
        self.least.add(positive)
        self.high = max(self.high, float(np.max(finite, initial=-math.inf)))
        self.above += float(np.sum(positive))
        self.below += float(np.sum(finite[finite < 0]))
        if not self.shape:
            self.sums, self.exp_sums = block, np.exp(block)
            return
        # A slab may hold parts of rows, so sums add up.  Where exp overflows, no row is normalised.
        rows = tuple(slice(None) if i == self.axis else part for i, part in enumerate(index))
        self.sums[rows] += np.sum(block, axis=self.axis, keepdims=True)
        self.exp_sums[rows] += np.sum(np.exp(block), axis=self.axis, keepdims=True)

    # ---- what it reads as ------------------------------------------------------------------------

    def tolerance(self, kind: Kind, classes: int) -> float:
        """Return how far from 1 rounding alone takes the sum of a row."""
        # A rounded logarithm is off by |log p|·ε: for a row by its entropy, which is at most log K.
        # Libraries that sum in the array's own dtype lose a few ε more.
        spread = 2.0 + math.log(max(classes, 1)) if kind == "log-probabilities" else 4.0
        rounding = spread * _EPSILON[self.dtype] + classes * _SUBNORMAL.get(self.dtype, 0.0)
        # Float64 often holds what was computed in float32, whose sums over many classes lose more.
        return max(rounding, 1e-4)

    def _read(self) -> _Reading:
        if self.nan.count and self.nan.count + self.minus.count == self.size:
            return _Reading("undefined")
        # Rows with NaN or +inf say nothing, nor do rows of zeros, which pad a batch.
        padding = (self.sums == 0) & (self.exp_sums == self.classes) & (self.classes > 1)
        use = np.isfinite(self.exp_sums) & ~padding
        if not self.shape or not np.any(use):
            return self._read_signs(None)
        kind = self._normalised(self.sums[use], self.exp_sums[use], self.classes)
        if kind:
            return _Reading(kind, normalised=True)
        total = self._normalised(
            np.asarray([np.sum(self.sums)]), np.asarray([np.sum(self.exp_sums)]), self.size
        )
        if total:
            return _Reading(total, over="all axes together")
        for other, size in enumerate(self.shape):
            kind = self._normalised_over(other) if other != self.axis and size > 1 else None
            if kind:
                return _Reading(kind, over=f"axis {other}")
        return self._read_signs(float(np.median(self.exp_sums[use])))

    def _normalised(self, sums: Floats, exp_sums: Floats, classes: int) -> Kind | None:
        """Return which sums are 1 in most rows: never both, as the exponentials exceed K + sum."""
        if np.mean(np.abs(sums - 1) <= max(self.tolerance("probabilities", classes), 0.05)) > 0.5:
            return "probabilities"
        limit = max(self.tolerance("log-probabilities", classes), 0.05)
        return "log-probabilities" if np.mean(np.abs(exp_sums - 1) <= limit) > 0.5 else None

    def _normalised_over(self, other: int) -> Kind | None:
        """Return the same along another axis, by a sample of the rows along it."""
        width = max(1, round((_BLOCK / self.shape[other]) ** (1 / max(len(self.shape) - 1, 1))))
        sample = self.fetch(
            tuple(slice(0, n if i == other else min(n, width)) for i, n in enumerate(self.shape))
        )
        exp_sums = np.sum(np.exp(sample), axis=other)
        use = ~np.isnan(exp_sums)
        if not np.any(use):
            return None
        return self._normalised(np.sum(sample, axis=other)[use], exp_sums[use], self.shape[other])

    def _read_signs(self, mass: float | None) -> _Reading:
        """Tell by signs what has no normalised rows; ``mass`` is what exp of a row sums to."""
        zeros = self.high == self.low.value == 0
        if self.high <= 0 and (mass is None or mass <= 1.05) and not (zeros and self.is_target):
            return _Reading("log-probabilities", normalised=None if mass is None else False)
        if -self.below <= 0.01 * self.above or (zeros and self.is_target):
            known = mass is not None or self.high > 1
            return _Reading("weights") if known else _Reading("probabilities", normalised=None)
        return _Reading("logits")

    # ---- what is wrong with it alone -------------------------------------------------------------

    def findings(self) -> Iterator[Finding]:
        """Yield what looks wrong with the array, whatever the other one holds."""
        yield from self._find_nan()
        if self.plus.count:
            text = f"{self.name} holds {_many(self.plus.count, '+inf')}, first at {self.plus.where}"
            mend = "find the overflow that made it; no probability or log-probability is +inf"
            yield Finding("infinite", "error", text, mend)
        if self.negative.count and self.reading.kind in {"probabilities", "weights"}:
            text = (
                f"{self.name} holds {_many(self.negative.count, 'negative probability')}, first at "
                f"{self.negative.where}, least {_number(self.low.value)}; their logarithm is NaN"
            )
            mend = "mend what made them (a subtraction that cancels?), or clip them at 0"
            yield Finding("negative-probabilities", "error", text, mend)
        distribution = self.reading.kind in {"probabilities", "log-probabilities"}
        if distribution or (self.reading.kind == "weights" and self.is_target):
            yield from self._find_row_sums()

    def _find_nan(self) -> Iterator[Finding]:
        if not self.nan.count:
            return
        many = f"{self.name} holds {self.nan.count} NaN among {self.size} entries, first at"
        if self.reading.kind == "undefined":
            yield Finding(
                "log-of-log-probabilities",
                "error",
                f"{many} {self.nan.where}, and no finite number: so looks the logarithm of "
                "negative numbers, such as log_softmax(...).log()",
                "log_softmax returns logarithms already: drop the second log; if there is none, "
                "find the NaN in what made the array (a model that diverged?)",
            )
            return
        yield Finding(
            "nan",
            "error",
            f"{many} {self.nan.where}; KL does not ignore NaN: each reaches the result",
            "find what made it (the log of a negative number, 0/0, inf − inf); leave out what is "
            "missing by where=, for example where=~isnan(array)",
        )

    def _find_row_sums(self) -> Iterator[Finding]:
        logs = self.reading.kind == "log-probabilities"
        sums = self.exp_sums if logs else self.sums
        if self.reading.over or not self.shape:
            return  # said already; one number is no distribution
        sound = np.isfinite(sums)
        off = np.where(sound, np.abs(sums - 1), 0.0)
        tolerance = self.tolerance(self.reading.kind, self.classes)
        count = int(np.count_nonzero(off > tolerance))
        if not count:
            return
        first = int(np.argmax(off >= (1 - 1e-9) * np.max(off)))  # of rows that are equally bad
        worst = np.unravel_index(first, off.shape)
        place = _place(tuple(":" if i == self.axis else int(at) for i, at in enumerate(worst)))
        empty = int(np.count_nonzero(sound & (sums == 0)))
        what = f"exp({self.name})" if logs else self.name
        text = (
            f"{count} of {_many(self.rows, 'row')} of {what} {'does' if count == 1 else 'do'} not "
            f"sum to 1; the worst is {place}, which sums to {_sum(float(sums[worst]))}"
        )
        mend = "apply log_softmax" if logs else "divide by the sum"
        mend += f" over axis {self.axis}"
        if empty:
            text += f"; {empty} {'has' if empty == 1 else 'have'} no mass at all"
            mend += ", and leave padding out by where="
        rough = float(off[worst]) <= _ROUGH
        if rough:
            mend = f"half precision and rounded decimals do as much; where it matters, {mend}"
        yield Finding("row-sums", "note" if rough else "warning", text, mend)


# ---- the two together ----------------------------------------------------------------------------


def _swapped(x: _Scan, t: _Scan, *, log_target: bool) -> bool:
    kinds = (x.reading.kind, t.reading.kind)
    return kinds == ("probabilities", "log-probabilities") and not log_target


def _find_forms(x: _Scan, t: _Scan, *, log_target: bool) -> Iterator[Finding]:
    """Yield where an array is not of the form that the call takes it for."""
    yield from _find_wrong_axis(x, t)
    if _swapped(x, t, log_target=log_target):
        yield Finding(
            "arguments-swapped",
            "error",
            "input holds probabilities and target log-probabilities: kl_div takes log Q first, P "
            "second",
            "call kl_div(target, input); if the order is meant, take the log of input and pass "
            "log_target=True",
        )
        return
    yield from _find_input_form(x)
    yield from _find_target_form(t, log_target=log_target)


def _find_wrong_axis(x: _Scan, t: _Scan) -> Iterator[Finding]:
    for scan in (x, t):
        if scan.reading.over:
            # Where both agree, the classes may simply lie there: kl_div itself knows no axis.
            agree = x.reading.over == t.reading.over
            yield Finding(
                "wrong-axis",
                "warning" if agree else "error",
                f"{scan.name} of shape {scan.shape} sums to 1 over {scan.reading.over}, not over "
                f"axis {scan.axis}: it looks like a softmax over the wrong axis",
                f"apply softmax or log_softmax over axis {scan.axis}; where the classes do lie on "
                "another axis, pass it to diagnose",
            )


def _find_input_form(x: _Scan) -> Iterator[Finding]:
    span = f"from {_number(x.low.value)} to {_number(x.high)}"
    kind = x.reading.kind
    if kind == "probabilities" or (kind == "weights" and 0 < x.high <= 1):
        sums = {True: ": its rows sum to 1", False: ": its rows do not sum to 1", None: ""}
        yield Finding(
            "probabilities-as-input",
            "error",
            f"input holds probabilities{sums[x.reading.normalised]} ({span}), but kl_div takes "
            "log Q",
            "pass log_softmax of the logits, or log(input)",
        )
    elif kind in {"logits", "weights"}:
        text = f"input holds logits or counts ({span}), but kl_div takes log Q"
        known = x.exp_sums[~np.isnan(x.exp_sums)]
        if known.size:
            text += f"; exp of a row sums to {_number(float(np.median(known)))} (median), not to 1"
        yield Finding(
            "logits-as-input",
            "error",
            text,
            f"pass log_softmax(input) over axis {x.axis}",
        )


def _find_target_form(t: _Scan, *, log_target: bool) -> Iterator[Finding]:
    span = f"from {_number(t.low.value)} to {_number(t.high)}"
    kind = t.reading.kind
    if kind == "logits":
        yield Finding(
            "logits-as-target",
            "error",
            f"target holds logits ({span}), but kl_div takes P"
            + (", its logarithm with log_target=True" if log_target else ""),
            f"pass {'log_' * log_target}softmax(target) over axis {t.axis}",
        )
    elif kind == "log-probabilities" and not log_target:
        yield Finding(
            "log-probabilities-as-target",
            "error",
            f"target holds log-probabilities ({span}), which kl_div takes for P: the logarithm of "
            "a negative number is NaN",
            "pass log_target=True",
        )
    elif kind in {"probabilities", "weights"} and log_target:
        yield Finding(
            "probabilities-as-log-target",
            "error",
            f"target holds probabilities ({span}), but the call says log_target=True: kl_div takes "
            "their exponential for P",
            "leave log_target=True out",
        )


class _Pair:
    """One pass over both arrays: what they add up to, and how much of it hangs on a trick."""

    def __init__(self, x: _Scan, t: _Scan, *, swapped: bool) -> None:
        self.x, self.t = x, t
        self.total = math.nan
        self.floors = {scan.name: _floor(scan) for scan in (x, t)}
        self.doubled = {"input": 0, "target": 0}  # how many entries are twice the floor
        self.parts = {"input": 0.0, "target": 0.0}  # of the divergence, from what lies on a floor
        self.mass = 0.0  # of P, on the floor of Q
        self.lost = _Tally(x.shape)
        self.lost_mass = 0.0
        known = {"probabilities", "log-probabilities"}
        self.possible = (
            not swapped and x.reading.kind in known and t.reading.kind in {*known, "weights"}
        )
        if self.possible:
            self.total = 0.0
            with np.errstate(all="ignore"):
                for index in _blocks(x.array, t.array):
                    self._add(x.fetch(index), t.fetch(index), index)

    def _add(self, x: Floats, t: Floats, index: tuple[slice, ...]) -> None:
        log_q = x if self.x.reading.kind == "log-probabilities" else np.log(x)
        p = np.exp(t) if self.t.reading.kind == "log-probabilities" else t
        values = KL().value(np, log_q, p)
        self.total += float(np.sum(values))
        lost = (log_q == -math.inf) & (p > 0)
        self.lost.add(lost, index)
        self.lost_mass += float(np.sum(p[lost]))
        for scan, array in ((self.x, x), (self.t, t)):
            floor = self.floors[scan.name]
            if floor is not None:
                on_it = array == floor
                self.mass += float(np.sum(p[on_it])) if scan is self.x else 0.0
                self.parts[scan.name] += float(np.sum(values[on_it]))
                logs = scan.reading.kind == "log-probabilities"
                twice = array - floor - math.log(2.0) if logs else array / floor / 2.0 - 1.0
                self.doubled[scan.name] += int(np.count_nonzero(np.abs(twice) < 1e-5))

    def findings(self) -> Iterator[Finding]:
        """Yield what looks wrong with the two arrays together."""
        if self.lost.count:
            yield Finding(
                "zeros-in-q",
                "error",
                f"Q is 0 where P is not: {_many(self.lost.count, 'entry')} with "
                f"{_number(self.lost_mass / self.x.rows)} of P's mass per row, first at "
                f"{self.lost.where}; the divergence is +inf, and that is the honest answer",
                "take log_softmax of logits, which does not underflow, rather than log(softmax); "
                "true zeros need another measure (Jensen-Shannon) or smoothing that you state",
            )
        yield from self._find_clipping()
        yield from self._find_reduction()

    def _find_clipping(self) -> Iterator[Finding]:
        for scan in (self.x, self.t):
            floor = self.floors[scan.name]
            logs = scan.reading.kind == "log-probabilities"
            if floor is None or not self.possible:
                continue
            least = scan.low if logs else scan.least
            if self.doubled[scan.name] > 0.05 * least.count:
                continue  # relative frequencies: multiples of one part in N
            shift = self.parts[scan.name]
            effect = f"the floor makes {_number(shift / scan.rows)} of it"
            if scan is self.x and self.mass and floor > _FILL:
                shift = self.mass * _LOG10
                effect = f"a floor ten times lower would add {_number(shift / scan.rows)} to it"
            weight = abs(shift) / max(abs(self.total), 1e-3 * scan.rows)
            if not weight > 1e-6:
                continue
            size = f"log({_number(math.exp(floor))})" if logs and floor > _FILL else _number(floor)
            yield Finding(
                "clipped",
                "warning" if weight > 1e-3 else "note",
                f"{least.count} of {scan.size} entries of {scan.name} lie on the floor {size}, "
                "which looks like clipping; the divergence is "
                f"{_number(self.total / scan.rows)} per row, and {effect}",
                "do not clip: P = 0 adds exactly 0, and Q = 0 where P > 0 is +inf; take "
                "log_softmax of logits, or smooth by a share that you state",
            )

    def _find_reduction(self) -> Iterator[Finding]:
        x = self.x
        if x.classes < 2:
            if x.shape:
                text = f"axis {x.axis} of shape {x.shape} holds one class: every divergence is 0"
                mend = "check the axis; for yes/no probabilities stack p and 1 − p"
                yield Finding("single-class", "note", text, mend)
            return
        value = self.total / x.size
        numbers = (
            f": {_number(value)} instead of {_number(self.total / x.rows)}"
            if math.isfinite(value) and value
            else ""
        )
        if x.rows == 1:
            mend = "use reduction='sum'"
        elif x.axis and x.rows == x.shape[0]:
            mend = "use reduction='batchmean'"
        else:
            mend = f"use reduction='sum' and divide by the number of distributions, {x.rows}"
        yield Finding(
            "mean-over-elements",
            "note",
            f"reduction='mean' divides by all {x.size} elements: it is {x.classes} times smaller "
            f"than the divergence of a distribution{numbers}",
            mend,
        )


def _floor(scan: _Scan) -> float | None:
    """Return the least value of ``scan`` where it looks like a floor that values are clipped at."""
    logs = scan.reading.kind == "log-probabilities"
    least = scan.low if logs else scan.least
    half = scan.dtype in {"float16", "bfloat16"}
    # Half types have so few values that some are met by chance.
    if least.count < (max(3, 0.01 * scan.size) if half else 1):
        return None
    if (scan.minus if logs else scan.zero).count:
        return None  # what is clipped has no zeros left
    if logs and least.value <= _FILL:
        return least.value
    depth = least.value if logs else math.log(least.value)
    mass = least.count * math.exp(depth) / scan.rows
    if depth > -5.0 * _LOG10 + 0.01 or mass > 0.01:
        return None  # too much for a floor: smoothing, which is meant
    # Rows that were normalised after clipping are off by about the mass on the floor.
    slack = 1e-6 + 2 * mass + 4 * _EPSILON[scan.dtype] * (-depth if logs else 1.0)
    slack += 0.0 if logs else _SUBNORMAL.get(scan.dtype, 0.0) / least.value
    powers = round(depth / _LOG10) * _LOG10
    known = (powers, *map(math.log, (2.0**-23, 2.0**-52, 2.0**-126, 2.0**-1022)), -100.0)
    return least.value if any(abs(depth - k) <= slack for k in known) else None


# ---- words ---------------------------------------------------------------------------------------


def _number(value: float) -> str:
    return f"{value:.4g}"


def _sum(value: float) -> str:
    near = abs(value - 1) <= _ROUGH
    return f"1 {'+' if value > 1 else '−'} {abs(value - 1):.2g}" if near else _number(value)


def _many(count: int, what: str) -> str:
    if count == 1 or what == "+inf":
        return f"{count} {what}"
    return f"{count} {what[:-1]}ies" if what.endswith("y") else f"{count} {what}s"
