"""`KLState`: the mergeable summary of logits that come in parts."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kldiv import backends
from kldiv._arguments import check_heat
from kldiv._call import PAIR, dtypes, resolve_arrays, wider
from kldiv._files import replacing
from kldiv._notebook import table
from kldiv.errors import InputError, LibraryError, OptionError, ShapeError
from kldiv.formulas import shards, state
from kldiv.formulas.divergences import KullbackLeibler
from kldiv.formulas.packing import split
from kldiv.logit_losses import check_logits
from kldiv.readers.numpy_files import read_arrays

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kldiv._types import Array
    from kldiv.backends.base import Backend
    from kldiv.formulas.rows import RowOperation

FORMAT = 3
"""Version of the file that `KLState.save` writes."""


@dataclass(frozen=True, eq=False)
class KLState:
    """
    The summary of some classes for KL from logits: small, and mergeable in any order.

    Split the classes as you like (chunks of a file, blocks on devices, shards on machines), make
    the state of each part with `from_logits`, merge them, and `kl` is the divergence of all classes
    together, as exact as `kl_div_with_logits` on the whole.

    Parameters
    ----------
    state : kldiv.formulas.state.State
        The summary; made by `from_logits`, `merge` and `load`.
    temperature : float
        Divisor of the logits.

    See Also
    --------
    kl_div_with_logits : The same in one call.

    Examples
    --------
    Logits in two files larger than memory, a chunk of the classes at a time:

    >>> import numpy as np, tempfile, pathlib
    >>> import kldiv
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> np.save(folder / "t.npy", np.sin(np.arange(60_000.0)).reshape(2, -1))
    >>> np.save(folder / "s.npy", np.cos(np.arange(60_000.0)).reshape(2, -1))
    >>> t, s = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in "ts")
    >>> parts = [slice(start, start + 8_000) for start in range(0, 30_000, 8_000)]
    >>> first, *rest = (kldiv.KLState.from_logits(s[:, part], t[:, part]) for part in parts)
    >>> for other in rest:
    ...     first = first + other
    >>> np.allclose(first.kl(), kldiv.kl_div_with_logits(s, t, reduction="none"), rtol=1e-14)
    True
    """

    state: state.State
    temperature: float = 1.0

    @classmethod
    def from_logits(
        cls, input: Array, target: Array, axis: int = -1, *, temperature: float = 1.0
    ) -> KLState:
        """
        Return the state of some classes, or all.

        Parameters
        ----------
        input : array
            The student's logits of these classes.
        target : array
            The teacher's logits of the same classes; of the same shape.
        axis : int, default -1
            Where the classes lie.
        temperature : float, default 1.0
            The divisor of both logits.

        Returns
        -------
        KLState
            On the library and device of the arguments; no gradient flows through it. That of
            Dask arrays is lazy: its arrays are, `kl` is, and `save` computes it.

        Raises
        ------
        ShapeError
            Shapes differ, there is no class, or no such axis.
        OptionError
            A temperature that is not positive and finite.
        """
        if not (temperature > 0 and math.isfinite(temperature)):
            raise OptionError(f"temperature must be positive and finite; got {temperature!r}")
        route, (s, t), wide = resolve_arrays(PAIR, (input, target))
        check_logits(s.shape, t.shape, axis)
        xp = route.caller.namespace(s)
        compute, *_ = dtypes(route, wide, None, s)
        s, t = (xp.moveaxis(route.caller.export(array), axis, -1) for array in (s, t))
        s, t = map(route.caller.adjacent, (s, t))
        check_heat(temperature, compute)
        operation = _operation(shards.ShardState, compute, temperature)
        return cls._of(route.caller, operation, (s, t))

    @classmethod
    def _of(cls, backend: Backend, operation: RowOperation, arrays: Sequence[Array]) -> KLState:
        """Compute an operation's state, lazily where the library is lazy."""
        packed = backend.compute(operation, arrays, "pure")
        with backend.context(packed):
            fields = split(packed)
        return cls(state.State(*fields), float(operation.temperature or 1.0))

    def merge(self, other: KLState) -> KLState:
        """
        Return the state of the classes of both; neither is changed. ``a + b`` is the same.

        Parameters
        ----------
        other : KLState
            Of other classes of the same rows, at the same temperature, on the same library.

        Returns
        -------
        KLState
            Of all their classes. If one is float32 and the other float64, it is float64, and as
            exact as the float32 part: merge in the wider dtype, lose nothing more.

        Raises
        ------
        TypeError
            Not a state, or one on another library.
        ShapeError
            Of other rows.
        OptionError
            At another temperature.
        """
        if not isinstance(other, KLState):
            raise LibraryError(f"a KLState merges with a KLState; got {type(other).__name__}")
        mine, theirs = self.state.t_max, other.state.t_max
        backend, another = backends.find(mine), backends.find(theirs)
        if backend is not another:
            raise LibraryError(
                f"the states are on {backend.name} and {another.name}; make both on one library, "
                "or save and load them"
            )
        if mine.shape != theirs.shape:
            raise ShapeError(
                f"the states have rows {tuple(mine.shape[:-1])} and {tuple(theirs.shape[:-1])}; "
                "merge states of the same rows"
            )
        if self.temperature != other.temperature:
            raise OptionError(
                f"the states have temperatures {self.temperature} and {other.temperature}; make "
                "both at one"
            )
        wide = wider(*(backend.dtype_name(array) for array in (mine, theirs)))
        operation = _operation(shards.Together, wide, self.temperature)
        return KLState._of(backend, operation, (*self.state, *other.state))

    __add__ = merge

    def kl(self) -> Array:
        """
        Return the Kullback-Leibler divergence of each row over all classes merged so far, in nats.

        Returns
        -------
        array
            One number per row, on the library of the logits.
        """
        first = self.state.t_max
        backend = backends.find(first)
        operation = _operation(shards.Finished, backend.dtype_name(first), self.temperature)
        return backend.compute(operation, self.state, "pure")

    def save(self, path: str | os.PathLike[str]) -> None:
        """
        Write the state to a small file that any machine can `load`; nothing is left half-written.

        Parameters
        ----------
        path : path
            The file; it is replaced if it exists.
        """
        first = self.state.t_max
        backend = backends.find(first)
        operation = _operation(shards.Together, backend.dtype_name(first), self.temperature)
        packed = backend.compute(operation, self.state, "pure")  # a lazy one is computed once
        fields = split(backend.on_host(packed))
        arrays: dict[str, Any] = dict(zip(state.State._fields, fields, strict=True))
        arrays.update(format=FORMAT, temperature=self.temperature)
        with replacing(path) as file:
            np.savez(file, **arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> KLState:
        """
        Read a state that `save` wrote, on whatever machine, as NumPy arrays.

        Parameters
        ----------
        path : path
            The file.

        Returns
        -------
        KLState
            The state.

        Raises
        ------
        InputError
            The file is missing, or not a state.
        """
        shown = repr(os.fspath(path))
        if not Path(path).exists():
            raise InputError(f"{shown} does not exist")
        try:
            file = read_arrays(Path(path))
            version, temperature = int(file["format"]), float(file["temperature"])
            if version == FORMAT:
                arrays = [file[name] for name in state.State._fields]
        except (InputError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{shown} is not a state that KLState.save wrote: {error}") from error
        if version != FORMAT:
            raise InputError(
                f"{shown} holds a state of format {version}, this version of kldiv reads format "
                f"{FORMAT}; save it again with the same version"
            )
        shape, dtype = arrays[0].shape, arrays[0].dtype
        if any((array.shape, array.dtype) != (shape, dtype) for array in arrays):
            raise InputError(f"{shown} is not a state: its arrays differ in shape or dtype")
        if dtype.name not in {"float32", "float64"} or shape[-1:] != (1,):
            raise InputError(
                f"{shown} is not a state: its arrays have shape {shape} of {dtype.name}; expected "
                "float32 or float64 and one number per row"
            )
        if not (temperature > 0 and math.isfinite(temperature)):
            raise InputError(f"{shown} is not a state: its temperature is {temperature}")
        return cls(state.State(*arrays), temperature)

    def __repr__(self) -> str:
        first = self.state.t_max
        return (
            f"KLState(rows={tuple(first.shape[:-1])}, temperature={self.temperature}, "
            f"library={backends.find(first).name!r})"
        )

    def _repr_html_(self) -> str:
        facts = repr(self)[len("KLState(") : -1].replace("=", ": ")
        return table("KLState", (), [(f"{len(self.state)} numbers a row; {facts}",)])


def _operation(kind: type[RowOperation], compute: str, temperature: float) -> RowOperation:
    return kind("none", compute, compute, compute, KullbackLeibler(), float(temperature))
