"""Losses of rows of logits and their gradients, a block of whole rows at a time."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from kldiv.formulas.blocks import row_blocks
from kldiv.formulas.divergences import VALUE
from kldiv.formulas.rows import Constants, RowGradient
from kldiv.kernels import threads
from kldiv.kernels.blocks import divergences
from kldiv.kernels.blocks.arrays import SIZE, Room, host
from kldiv.kernels.results import RowResults

if TYPE_CHECKING:
    from kldiv.kernels.blocks.arrays import Buffer, Index
    from kldiv.kernels.work import Found, Work

MOST = 1 << 20
"""Classes of a row up to which the buffers for whole rows take little memory."""

_LOWEST = -1e300
"""Instead of the logarithm of 0: finite times a probability."""


def run(work: Work) -> Found:
    """Return the value, if it is wanted, and the gradients that are."""
    rows = Rows(work)

    def part(first: int, last: int) -> None:
        room = Room(divergences.BUFFERS)
        with np.errstate(all="ignore"):
            for block in rows.blocks[first:last]:
                rows.compute(block, room)

    threads.share(part, len(rows.blocks), threads.number(work.threads))
    return rows.results.of_values()


class Rows:
    """The rows of work, its results, and how a block of them is computed."""

    def __init__(self, work: Work) -> None:
        operation, self.wanted = work.operation, work.gradients
        self.results = results = RowResults(work)
        self.s, self.t = map(host, work.arrays[:2])
        self.outputs = {index: host(array) for index, array in results.outputs.items()}
        dtype = operation.compute
        self.loss = replace(operation, reduction="none", total=dtype, result=dtype)
        self.wide = dtype == "float64" or self.s.shape[-1] > MOST
        self.divergence = divergences.of(operation.divergence)
        size = 4 * SIZE if self.wide else SIZE  # formulas make more calls
        self.blocks = row_blocks(self.s.shape, "float64", 8 * size)
        self.values = results.values.reshape(results.shape)
        self.numbers = [
            _of_rows(each, results.shape) for each in (results.factors, results.temperatures)
        ]
        self.keep = None if results.keep is None else _of_rows(results.keep, results.shape)

    def compute(self, block: Index, room: Room) -> None:
        """Compute a block of rows."""
        given: list[Buffer] = [
            array[block].reshape(-1, array.shape[-1]) for array in (self.s, self.t)
        ]
        given += [each[block].reshape(-1) for each in self.numbers]
        number = len(given[0])
        outputs = {index: np.atleast_2d(array[block]) for index, array in self.outputs.items()}
        values, keep = np.empty(number), None if self.keep is None else self.keep[block].reshape(-1)
        unsure = dict.fromkeys((VALUE, *outputs), np.ones(number, np.bool_))
        if not self.wide:
            values[:], unsure = self._quickly(given, room, outputs)
        if keep is not None:
            unsure = {result: each & keep for result, each in unsure.items()}
        some = np.flatnonzero(np.any([*unsure.values()], axis=0))
        if some.size:
            exact, gradients = self._exactly(*(each[some] for each in given))
            own = {result: each[some] for result, each in unsure.items()}
            values[some[own[VALUE]]] = exact[own[VALUE]]
            for index, output in outputs.items():
                output[_places(some[own[index]], output)] = gradients[index][own[index]]
        if keep is not None:
            values[~keep] = 0.0
            for output in outputs.values():
                output[_places(np.flatnonzero(~keep), output)] = 0.0
        self.values[block] = values.reshape(self.values[block].shape)

    def _quickly(
        self, given: list[Buffer], room: Room, outputs: dict[int, Buffer]
    ) -> tuple[Buffer, dict[int, Buffer]]:
        """Write gradients; return values, and of each result which rows lack digits of float32."""
        s, t, factors, temperatures = given
        buffers, lost = room.of(s.shape), np.zeros(len(s), np.bool_)
        inverse = (1.0 / temperatures)[:, None]
        scale = factors[:, None] * inverse
        tempered, masked = (inverse != 1.0).any(), False
        for logits, buffer in ((s, buffers[0]), (t, buffers[1])):
            narrow = logits.astype(np.float32) if logits.itemsize == 2 else logits
            np.subtract(narrow, narrow.max(-1, keepdims=True), out=buffer, dtype=np.float64)
            if tempered:
                np.multiply(buffer, inverse, out=buffer)
            masked |= not narrow.min() > -np.inf
        if masked:
            gone = [buffer == -np.inf for buffer in buffers[:2]]
            for infinite, one, other in zip(
                self.divergence.unbounded, gone, gone[::-1], strict=True
            ):
                if infinite:
                    lost |= (one & ~other).any(axis=-1)
            for buffer in buffers[:2]:
                np.maximum(buffer, _LOWEST, out=buffer)

        def emit(index: int, gradient: Buffer) -> None:
            gradient *= scale
            outputs[index][...] = gradient.reshape(outputs[index].shape)

        values, sure = self.divergence.of(buffers, self.wanted, emit)
        return values[:, 0], {result: lost | ~each[:, 0] for result, each in sure.items()}

    def _exactly(
        self, s: Buffer, t: Buffer, factors: Buffer, temperatures: Buffer
    ) -> tuple[Buffer, dict[int, Buffer]]:
        """Return values and gradients by the formulas."""
        loss, more = self.loss, [temperatures] if self.loss.temperature is None else []

        def run(operation: Any, *arrays: Buffer) -> Buffer:
            value: Buffer = operation.value(np, *arrays)
            return value

        results = loss.shared(self.wanted) if self.wanted else ()
        if results:
            known = run(loss.settings(Constants, wanted=results), s, t, *more)
            values, run = loss.with_constants(np, run, results, known, (s, t, *more))
        else:
            values = run(loss, s, t, *more)
        return values, {
            index: run(loss.settings(RowGradient, index=index), s, t, factors, *more)
            for index in self.wanted
        }


def _of_rows(numbers: Buffer, shape: tuple[int, ...]) -> Buffer:
    """Return one number of each row, or one for all, in the shape of the rows."""
    return np.broadcast_to(
        numbers.reshape(shape) if numbers.size > 1 else numbers[:1].reshape(()), shape
    )


def _places(rows: Buffer, output: Buffer) -> Index:
    """Return the indices of rows of a block."""
    return np.unravel_index(rows, output.shape[:-1])
