"""Metrics over a loss of rows, and the moments that they keep."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Self, get_args

import numpy as np

from kldiv import backends
from kldiv._files import replacing
from kldiv._notebook import table
from kldiv.backends.base import FLOATS
from kldiv.errors import DTypeError, InputError, LibraryError, OptionError, ShapeError
from kldiv.formulas import moments as formulas
from kldiv.formulas.reductions import cast
from kldiv.label_losses import cross_entropy_with_logits
from kldiv.logit_losses import js_div_with_logits, kl_div_with_logits
from kldiv.measures import js_divergence, kl_divergence
from kldiv.readers.numpy_files import read_arrays

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kldiv._types import Array

Form = Literal["logits", "log-probs", "probs"]
FORMAT = 1
"""Version of the file that `Metric.save` writes."""
PENDING = 256
"""Batches whose moments stay on their device until they are merged."""
HELD = 65_536
"""Rows that stay on their device until the sketch takes them."""
SKETCH = 400
"""The size of the sketch: the rank of a quantile is within 0.7 %, in 99 % of sketches."""


class Result(NamedTuple):
    """
    The numbers of a metric, in nats.

    Parameters
    ----------
    mean : float
        Σ w x / Σ w over the rows, with their weights w; NaN where there is no row or one is NaN,
        +∞ where one is infinite.
    standard_error : float
        Of the mean, the rows being independent; NaN for fewer than two rows.
    min, max : float
        The extremes; NaN where there is no row.
    rows : int
        How many rows were kept and have a weight other than 0.
    infinite : int
        How many of these are infinite.
    undefined : int
        How many are NaN.
    finite_mean : float
        The mean of the others.
    """

    mean: float
    standard_error: float
    min: float
    max: float
    rows: int
    infinite: int
    undefined: int
    finite_mean: float


class Kept:
    """A metric whose state goes to a file and comes back."""

    _quantiles: bool

    def reset(self) -> None:
        """Forget all rows."""
        raise NotImplementedError

    def _add(self, other: Self) -> None:
        """Add the rows of a metric of the same kind."""
        raise NotImplementedError

    def _empty(self) -> Self:
        """Return a metric with the same options and no rows."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """
        Return all that is known of the rows, as NumPy arrays.

        Returns
        -------
        dict
            For `load_state_dict`, and any checkpoint.
        """
        raise NotImplementedError

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        Take the rows of a state in place of the own.

        Parameters
        ----------
        state : dict
            From `state_dict`.

        Raises
        ------
        InputError
            It is none, or of another format, or lacks the sketch of quantiles.
        """
        raise NotImplementedError

    def merge(self, other: Self) -> Self:
        """
        Add all rows of another metric, which stays as it is; returns this one.

        Parameters
        ----------
        other : Metric
            Of the same loss and options.

        Returns
        -------
        Metric
            This one.

        Raises
        ------
        OptionError
            It is of another kind, or only one of the two keeps quantiles.
        """
        if type(other) is not type(self) or other._quantiles != self._quantiles:
            raise OptionError(
                f"merge takes a metric like this one, {self!r}; got {other!r}: make both alike"
            )
        self._add(other)
        return self

    def sync(self, group: Any = None) -> Self:
        """
        Return the metric of all processes of a group; this one stays as it is.

        Parameters
        ----------
        group : torch.distributed.ProcessGroup, optional
            By default all processes. Each calls this, and each gets the same.

        Returns
        -------
        Metric
            With the rows of all.

        Raises
        ------
        LibraryError
            ``torch.distributed`` has not been initialised.
        """
        from kldiv.backends.torch_ import tensor_parallel  # noqa: PLC0415 - PyTorch is optional

        return self._like(tensor_parallel.gather(self.state_dict(), group))

    def _like(self, states: Sequence[dict[str, Any]]) -> Self:
        """Return a metric of this one's kind with the rows of several states."""
        whole, part = self._empty(), self._empty()
        for state in states:
            part.load_state_dict(state)
            whole.merge(part)
        return whole

    def copy(self) -> Self:
        """
        Return a metric with the same rows, which goes its own way.

        Returns
        -------
        Metric
            The copy.
        """
        new = self._empty()
        new.load_state_dict(self.state_dict())
        return new

    def save(self, path: str | os.PathLike[str]) -> None:
        """
        Write the state to a small file, as a whole or not at all.

        Parameters
        ----------
        path : path
            The file; it is replaced if it exists.
        """
        with replacing(path) as file:
            np.savez(file, **self.state_dict())

    def load(self, path: str | os.PathLike[str]) -> Self:
        """
        Take the rows of a file that `save` wrote in place of the own; returns this metric.

        Parameters
        ----------
        path : path
            The file.

        Returns
        -------
        Metric
            This one.

        Raises
        ------
        InputError
            The file is missing, or no state of this metric.
        """
        if not Path(path).exists():
            raise InputError(f"{os.fspath(path)!r} does not exist")
        self.load_state_dict(read_arrays(Path(path)))
        return self


class Metric(Kept):
    """
    The mean of a loss over all rows of all batches, with its standard error.

    Parameters
    ----------
    loss : callable
        A function of kldiv that takes ``reduction="none"``, such as `kldiv.kl_div_with_logits`, or
        any function from arrays to an array of numbers, one a row.
    quantiles : bool, default False
        Whether to keep a sketch of the rows for `quantile`; needs ``datasketches``.
    **options
        Passed to ``loss`` at each update.

    See Also
    --------
    KLDivergence, JensenShannonDivergence, CrossEntropy : Metrics that are ready.

    Notes
    -----
    An update keeps eleven numbers on the arrays' device and does not wait for it; they are merged
    on the host, in float64, when there are many or the result is asked for.

    Examples
    --------
    >>> import numpy as np
    >>> import kldiv
    >>> from kldiv.metrics import Metric
    >>> random = np.random.default_rng(0)
    >>> metric = Metric(kldiv.tv_div_with_logits, temperature=2.0)
    >>> for _ in range(10):
    ...     metric.update(*random.normal(size=(2, 100, 50)))
    >>> found = metric.compute()
    >>> print(f"{found.mean:.4f} ± {found.standard_error:.4f} over {found.rows} rows")
    0.2714 ± 0.0010 over 1000 rows
    """

    def __init__(
        self, loss: Callable[..., Array], *, quantiles: bool = False, **options: Any
    ) -> None:
        self._loss = loss
        self._options = options
        if getattr(loss, "record", None) is not None:
            self._options = {"reduction": "none", **options}
        self._quantiles = quantiles
        self.reset()

    def reset(self) -> None:  # noqa: D102 - as `Kept` has it
        self._moments = moments(np.empty(0))
        self._pending: list[Array] = []
        self._sketch: Any = _sketch() if self._quantiles else None
        self._held: list[Array] = []
        self._number_held = 0

    # ---- adding rows -----------------------------------------------------------------------------

    def update(
        self,
        *arrays: Array,
        where: Array | None = None,
        row_weight: Array | None = None,
        **options: Any,
    ) -> None:
        """
        Add the rows of a batch.

        Parameters
        ----------
        *arrays : array
            The arguments of the loss.
        where : array of bool, optional
            Rows to keep; broadcasts to the shape of the rows. The others add nothing.
        row_weight : array of float, optional
            The weight of each row in the mean, not negative; broadcasts likewise. The quantiles are
            those of the rows of a weight other than 0, each counted once.
        **options
            Passed to the loss, beside those of the constructor.

        Raises
        ------
        ShapeError
            ``where`` or ``row_weight`` does not broadcast to the rows.
        DTypeError
            ``where`` is not bool.
        """
        kept = self._kept(arrays, where)
        self.update_rows(self.rows(*arrays, **options), where=kept, row_weight=row_weight)

    def _kept(self, arrays: tuple[Array, ...], where: Array | None) -> Array | None:
        """Return which rows of a batch count, given those that a mask keeps."""
        return where

    def rows(self, *arrays: Array, **options: Any) -> Array:
        """
        Return the loss of each row of a batch, which is not added.

        Parameters
        ----------
        *arrays : array
            The arguments of the loss.
        **options
            Passed to the loss, beside those of the constructor.

        Returns
        -------
        array
            A number for each row.
        """
        return self._loss(*arrays, **self._options, **options)

    def update_rows(
        self, rows: Array, *, where: Array | None = None, row_weight: Array | None = None
    ) -> None:
        """
        Add rows whose loss is at hand, as `update` adds those that it computes.

        Parameters
        ----------
        rows : array of float
            A number for each row, of any shape.
        where : array of bool, optional
            Rows to keep.
        row_weight : array of float, optional
            The weight of each row.
        """
        backend = backends.find(rows)
        xp = backend.namespace(rows)
        with backend.context(rows):
            values, *others = _alike(backend, rows, row_weight, where)
            self._pending.append(xp.stack([*formulas.moments(xp, values, *others)]))
            if self._sketch is not None:  # which leaves NaN out
                counts = formulas.counting(xp, values, *others)
                self._held.append(xp.where(counts, values, xp.nan))
                self._number_held += math.prod(rows.shape)
        if len(self._pending) > PENDING or self._number_held > HELD:
            self._settle()

    def update_moments(self, vector: Array) -> None:
        """
        Add a batch by its moments, which a compiled function returned.

        Parameters
        ----------
        vector : array
            Eleven numbers from `moments` or `merged`.

        Raises
        ------
        OptionError
            The metric keeps quantiles, which moments do not tell.
        """
        if self._sketch is not None:
            raise OptionError("update_moments tells no quantiles: make the metric without them")
        self._pending.append(vector)
        if len(self._pending) > PENDING:
            self._settle()

    def _settle(self) -> None:
        """Merge the pending moments and rows, in float64."""
        pending, self._pending = self._pending, []
        for vector in pending:
            self._merge_moments(backends.find(vector).on_host(vector).astype(np.float64))
        held, self._held, self._number_held = self._held, [], 0
        for values in held:
            rows = backends.find(values).on_host(values).astype(np.float64).ravel()
            self._sketch.update(rows[~np.isnan(rows)])

    def _merge_moments(self, other: Any) -> None:
        merged = formulas.merge(np, formulas.Moments(*self._moments), formulas.Moments(*other))
        self._moments = np.asarray(merged, np.float64)

    # ---- together --------------------------------------------------------------------------------

    def _add(self, other: Self) -> None:
        self._settle(), other._settle()
        self._merge_moments(other._moments)
        if self._sketch is not None:
            self._sketch.merge(other._sketch)

    def _empty(self) -> Self:
        new = object.__new__(type(self))
        new.__dict__.update(self.__dict__)
        new.reset()
        return new

    # ---- results ---------------------------------------------------------------------------------

    def compute(self) -> Result:
        """
        Return the numbers over all rows so far.

        Returns
        -------
        Result
            Mean, standard error, extremes and counts; prints readably.
        """
        self._settle()
        m = formulas.Moments(*map(float, self._moments))
        count, infinite, undefined = int(m.count), int(m.infinite), int(m.undefined)
        mean = m.mean if count else math.nan
        error = math.nan
        if count > 1:
            apart = m.square_squares + m.square_weight * (m.square_mean - m.mean) ** 2
            error = math.sqrt(apart * count / (count - 1)) / m.weight
        some = count + infinite
        return Result(
            math.nan if undefined else math.inf if infinite else mean,
            math.nan if undefined or infinite else error,
            math.nan if undefined or not some else m.least,
            math.nan if undefined or not some else m.greatest,
            some + undefined,
            infinite,
            undefined,
            mean,
        )

    def quantile(self, q: float | Sequence[float]) -> Any:
        """
        Return quantiles of the rows, by a mergeable sketch.

        Parameters
        ----------
        q : float or sequence of float
            Between 0 and 1.

        Returns
        -------
        float or list of float
            The rows' quantiles; rank errors are below 0.7 % with probability 99 %, and none as long
            as there are fewer rows than some 400. NaN where there is no row.

        Raises
        ------
        OptionError
            The metric was made without ``quantiles=True``, or ``q`` is out of range.

        Notes
        -----
        The sketch is that of Z. Karnin, K. Lang, E. Liberty, "Optimal quantile approximation in
        streams", FOCS 2016, from the library ``datasketches``.
        """
        if self._sketch is None:
            raise OptionError("quantile needs a metric that was made with quantiles=True")
        given: Any = q
        is_one = not isinstance(q, (list, tuple, np.ndarray))
        several = [given] if is_one else [*given]
        if not all(0 <= each <= 1 for each in several):
            raise OptionError(f"q must lie between 0 and 1; got {q!r}")
        self._settle()
        if self._sketch.is_empty():
            found = [math.nan for _ in several]
        else:
            found = [float(each) for each in self._sketch.get_quantiles([*map(float, several)])]
        return found[0] if is_one else found

    # ---- kept ------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:  # noqa: D102 - as `Kept` has it
        self._settle()
        state: dict[str, Any] = {"format": FORMAT, "moments": self._moments.copy()}
        if self._sketch is not None:
            state["sketch"] = np.frombuffer(self._sketch.serialize(), np.uint8)
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: D102 - as `Kept` has it
        try:
            version, found = int(state["format"]), np.asarray(state["moments"], np.float64)
            sketch = None if self._sketch is None else bytes(np.asarray(state["sketch"], np.uint8))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"not a state of this metric: {error!r} is missing or wrong"
            ) from error
        if version != FORMAT or found.shape != self._moments.shape:
            raise InputError(
                f"a state of format {version} with {found.shape} numbers; expected format {FORMAT} "
                f"with {self._moments.shape}: save it again with this version"
            )
        self.reset()
        self._moments = found
        if sketch is not None:
            try:
                self._sketch = type(self._sketch).deserialize(sketch)
            except Exception as error:
                raise InputError(f"not a sketch: {error}") from error

    def __repr__(self) -> str:
        name = getattr(self._loss, "__name__", type(self._loss).__name__)
        given = {k: v for k, v in self._options.items() if k != "reduction"}
        told = "".join(f", {key}={value!r}" for key, value in given.items())
        return f"{type(self).__name__}({name}{told}, rows={self.compute().rows})"

    def _repr_html_(self) -> str:
        found = self.compute()
        return table(repr(self), [*found._fields], [[*found]])


class _Divergence(Metric):
    """A mean divergence of rows of logits or of probabilities."""

    _losses: ClassVar[tuple[Any, Any]]
    """Of logits, and of probabilities."""

    def __init__(self, *, form: Form = "logits", quantiles: bool = False, **options: Any) -> None:
        if form not in get_args(Form):
            raise OptionError(f"form must be 'logits', 'log-probs' or 'probs'; got {form!r}")
        super().__init__(self._losses[form == "probs"], quantiles=quantiles, **options)


def _kl_of_probabilities(input: Array, target: Array, **options: Any) -> Array:
    return kl_divergence(target, input, **options)


def _js_of_probabilities(input: Array, target: Array, **options: Any) -> Array:
    return js_divergence(target, input, **options)


class KLDivergence(_Divergence):
    """
    The mean Kullback-Leibler divergence D(P‖Q) of rows, P being the target.

    Parameters
    ----------
    form : {"logits", "log-probs", "probs"}, default "logits"
        The content of both arrays. Log-probabilities are taken as logits: exact, and normalised.
    quantiles : bool, default False
        Whether to keep a sketch for `Metric.quantile`.
    **options
        Of `kldiv.kl_div_with_logits` or `kldiv.kl_divergence`: ``axis``, ``temperature``, …

    Examples
    --------
    >>> import numpy as np
    >>> from kldiv.metrics import KLDivergence
    >>> random = np.random.default_rng(0)
    >>> metric = KLDivergence()
    >>> for _ in range(4):
    ...     student, teacher = random.normal(size=(2, 8, 100))
    ...     metric.update(student, teacher, where=np.arange(8) < 6)
    >>> metric.compute().rows
    24
    """

    _losses = kl_div_with_logits, _kl_of_probabilities


class JensenShannonDivergence(_Divergence):
    """
    The mean Jensen-Shannon divergence of rows.

    Parameters
    ----------
    form : {"logits", "log-probs", "probs"}, default "logits"
        The content of both arrays.
    quantiles : bool, default False
        Whether to keep a sketch for `Metric.quantile`.
    **options
        Of `kldiv.js_div_with_logits` or `kldiv.js_divergence`: ``axis``, ``temperature``, …

    Examples
    --------
    >>> import numpy as np
    >>> from kldiv.metrics import JensenShannonDivergence
    >>> metric = JensenShannonDivergence(form="probs")
    >>> metric.update(np.array([[0.3, 0.5, 0.2]]), np.array([[0.36, 0.48, 0.16]]))
    >>> print(f"{metric.compute().mean:.6f}")
    0.002581
    """

    _losses = js_div_with_logits, _js_of_probabilities


class CrossEntropy(Metric):
    """
    The mean negative log-probability of labels; e to it is the perplexity.

    `update` takes the logits, and a label for each row.

    Parameters
    ----------
    ignore_index : int, default -100
        Labels that do not count.
    quantiles : bool, default False
        Whether to keep a sketch for `Metric.quantile`.
    **options
        Of `kldiv.cross_entropy_with_logits`: ``axis``, ``temperature``, …

    Examples
    --------
    >>> import numpy as np
    >>> from kldiv.metrics import CrossEntropy
    >>> metric = CrossEntropy()
    >>> metric.update(np.zeros((3, 50)), np.array([1, 2, -100]))
    >>> print(round(metric.perplexity, 6), metric.compute().rows)
    50.0 2
    """

    def __init__(
        self, *, ignore_index: int = -100, quantiles: bool = False, **options: Any
    ) -> None:
        self.ignore_index = ignore_index
        super().__init__(
            cross_entropy_with_logits, quantiles=quantiles, ignore_index=ignore_index, **options
        )

    def _kept(self, arrays: tuple[Array, ...], where: Array | None) -> Array:
        if len(arrays) != 2:
            raise ShapeError(f"update takes logits and labels; got {len(arrays)} arrays")
        kept: Array = arrays[1] != self.ignore_index
        return kept if where is None else kept & where

    @property
    def perplexity(self) -> float:
        """The exponential of the mean."""
        with np.errstate(over="ignore"):
            return float(np.exp(self.compute().mean))


def moments(rows: Array, *, where: Array | None = None, row_weight: Array | None = None) -> Array:
    """
    Sum up the losses of rows in eleven numbers, also inside a compiled function.

    Parameters
    ----------
    rows : array of float
        The loss of each row, of any shape.
    where : array of bool, optional
        Rows to keep; broadcasts to the shape of the rows.
    row_weight : array of float, optional
        The weight of each row; broadcasts likewise.

    Returns
    -------
    array
        For `Metric.update_moments`; in float64 where the library has it.

    Raises
    ------
    ShapeError
        ``where`` or ``row_weight`` does not broadcast to the rows.
    DTypeError
        ``where`` is not bool.

    Examples
    --------
    >>> import numpy as np
    >>> from kldiv.metrics import moments
    >>> moments(np.array([1.0, 2.0, 3.0]))[:4]
    array([3., 3., 2., 2.])
    """
    backend = backends.find(rows)
    xp = backend.namespace(rows)
    with backend.context(rows):
        return xp.stack([*formulas.moments(xp, *_alike(backend, rows, row_weight, where))])


def merged(vector: Array, axis_name: str) -> Array:
    """
    Merge the moments of all devices along a mesh axis, inside ``jax.shard_map``.

    Parameters
    ----------
    vector : array
        The moments of this device, from `moments`.
    axis_name : str
        The mesh axis over which the rows are spread.

    Returns
    -------
    array
        The moments of all, the same on each device.
    """
    from kldiv.backends.jax_ import sharding  # noqa: PLC0415 - JAX is optional

    return merge_moments(*sharding.gather(vector, axis_name))


def merge_moments(*vectors: Array) -> Array:
    """
    Merge moments of several sets of rows, also inside a compiled function.

    Parameters
    ----------
    *vectors : array
        From `moments`, of one library.

    Returns
    -------
    array
        The moments of all rows together.

    Examples
    --------
    >>> import numpy as np
    >>> from kldiv.metrics import merge_moments, moments
    >>> merge_moments(moments(np.array([1.0, 2.0])), moments(np.array([6.0])))[:4]
    array([ 3.,  3.,  3., 14.])
    """
    backend = backends.find(vectors[0])
    xp = backend.namespace(vectors[0])
    with backend.context(vectors[0]):
        whole, *others = (formulas.Moments(*each) for each in vectors)
        for other in others:
            whole = formulas.merge(xp, whole, other)
        return xp.stack([*whole])


def mean_of(vector: Array) -> Array:
    """
    Return the mean of rows from their moments, also inside a compiled function.

    Parameters
    ----------
    vector : array
        From `moments`, `merge_moments` or `merged`.

    Returns
    -------
    array
        The mean as `Result` has it: NaN where there is no row or one is NaN, +∞ where one is.

    Examples
    --------
    >>> import numpy as np
    >>> from kldiv.metrics import mean_of, moments
    >>> print(mean_of(moments(np.array([1.0, 3.0]))), mean_of(moments(np.array([1.0, np.inf]))))
    2.0 inf
    """
    backend = backends.find(vector)
    with backend.context(vector):
        return formulas.mean(backend.namespace(vector), formulas.Moments(*vector))


def _alike(
    backend: Any, rows: Array, row_weight: Array | None, where: Array | None
) -> tuple[Array, Array | None, Array | None]:
    """Return rows, weights and mask of one shape, in the widest dtype, without gradients."""
    xp = backend.namespace(rows)
    name = backend.dtype_name(rows)
    if name not in FLOATS:
        raise OptionError(f"rows have dtype {name}; expected floating-point numbers")
    wide = widest(backend, xp)
    values = cast(xp, backend.constant(rows), wide)
    shape = tuple(values.shape)

    def like(label: str, array: Array | None) -> Array | None:
        if array is None:
            return None
        try:
            return xp.broadcast_to(backend.constant(array), shape)
        except (ValueError, RuntimeError, TypeError) as error:
            raise ShapeError(
                f"{label} has shape {tuple(array.shape)}, which does not broadcast to that of the "
                f"rows, {shape}"
            ) from error

    weight, kept = like("row_weight", row_weight), like("where", where)
    if kept is not None and (found := backend.dtype_name(kept)) != "bool":
        raise DTypeError(f"where has dtype {found}; expected bool; compare first: where=mask != 0")
    return values, None if weight is None else cast(xp, weight, wide), kept


def widest(backend: Any, xp: Any) -> str:
    """Return the name of the widest float dtype: JAX has no float64 unless it is enabled."""
    return backend.dtype_name(xp.zeros(())) if backend.name == "jax" else "float64"


def _sketch() -> Any:
    try:
        from datasketches import kll_doubles_sketch  # noqa: PLC0415 - optional
    except ImportError:
        raise LibraryError(
            'quantiles need datasketches, which is not installed: pip install "kldiv[metrics]"'
        ) from None
    return kll_doubles_sketch(SKETCH)
