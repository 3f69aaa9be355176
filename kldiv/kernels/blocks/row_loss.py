"""Losses of rows of logits and their gradients, a block of whole rows at a time."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from kldiv.formulas.blocks import row_blocks
from kldiv.formulas.divergences import VALUE
from kldiv.formulas.rows import Constants, RowLoss
from kldiv.kernels import threads
from kldiv.kernels.blocks import divergences
from kldiv.kernels.blocks.arrays import SIZE, Room, host
from kldiv.kernels.results import RowResults

if TYPE_CHECKING:
    from kldiv.kernels.blocks.arrays import Buffer, Index
    from kldiv.kernels.work import Found, Work

MOST = 1 << 20
"""Classes of a row up to which the buffers for whole rows take little memory."""


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
        self.rows = tuple(work.arrays[0].shape[:-1])
        arrays = [*map(host, work.arrays[: operation.leading])]
        self.logits = arrays[: operation.with_classes]
        self.numbers = [_of_rows(each, self.rows) for each in arrays[operation.with_classes :]]
        self.outputs = {index: host(array) for index, array in results.outputs.items()}
        dtype = operation.compute
        self.loss = replace(operation, reduction="none", total=dtype, result=dtype)
        self.wide = dtype == "float64" or self.logits[0].shape[-1] > MOST
        # Rows make more calls than elements; still threads have some blocks each.
        size = min(4 * SIZE, max(SIZE, self.logits[0].size // 8))
        self.blocks = row_blocks(self.logits[0].shape, "float64", 8 * size)
        self.values = results.values.reshape(results.shape)
        self.factors = _of_rows(results.factors, results.shape)
        self.temperatures = _of_rows(results.temperatures, self.rows)
        self.keep = None if results.keep is None else _of_rows(results.keep, self.rows)

    def compute(self, block: Index, room: Room) -> None:
        """Compute a block of rows."""
        given: list[Buffer] = [each[block].reshape(-1, each.shape[-1]) for each in self.logits]
        given += [each[block].reshape(-1) for each in self.numbers]
        number, kinds = len(given[0]), self.results.shape[len(self.rows) :]
        factors = self.factors[block].reshape(number, *kinds)
        outputs = {index: np.atleast_2d(array[block]) for index, array in self.outputs.items()}
        values, keep = np.empty(factors.shape), None
        unsure = dict.fromkeys((VALUE, *outputs), np.ones(number, np.bool_))
        if not self.wide:
            temperatures = self.temperatures[block].reshape(number, 1)
            found, unsure = self._quickly(given, factors, temperatures, room, outputs)
            values[...] = found.reshape(values.shape)
        if self.keep is not None:
            keep = self.keep[block].reshape(-1)
            unsure = {result: each & keep for result, each in unsure.items()}
        some = np.flatnonzero(np.any([*unsure.values()], axis=0))
        if some.size:
            exact, gradients = self._exactly([each[some] for each in given], factors[some])
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
        self,
        given: list[Buffer],
        factors: Buffer,
        temperatures: Buffer,
        room: Room,
        outputs: dict[int, Buffer],
    ) -> tuple[Buffer, dict[int, Buffer]]:
        """Write gradients; return values, and of each result which rows lack digits of float32."""
        first, *_ = pair = given[: len(self.logits)]
        buffers, lost = room.of(first.shape), np.zeros(len(first), np.bool_)
        inverse = 1.0 / temperatures
        tempered, masked = (inverse != 1.0).any(), False
        for logits, buffer in zip(pair, buffers, strict=False):
            narrow = logits.astype(np.float32) if logits.itemsize == 2 else logits
            np.subtract(narrow, narrow.max(-1, keepdims=True), out=buffer, dtype=np.float64)
            if tempered:
                np.multiply(buffer, inverse, out=buffer)
            masked |= not narrow.min() > -np.inf
        plain = divergences.of(self.loss, given[len(pair) :], factors)
        if masked:
            gone = [buffer == -np.inf for buffer in buffers[: len(pair)]]
            for infinite, one, other in zip(plain.unbounded, gone, gone[::-1], strict=False):
                if infinite:
                    lost |= (one & ~other).any(axis=-1)
            for buffer in buffers[: len(pair)]:
                np.maximum(buffer, divergences.LOWEST, out=buffer)
        scale = inverse if plain.weighs else inverse * factors[:, None]

        def emit(index: int, gradient: Buffer, rate: Any) -> None:
            gradient *= rate * scale
            outputs[index][...] = gradient.reshape(outputs[index].shape)

        values, sure = plain.of(buffers, self.wanted, emit)
        return values, {result: lost | ~each[:, 0] for result, each in sure.items()}

    def _exactly(self, arrays: list[Buffer], factors: Buffer) -> tuple[Buffer, dict[int, Buffer]]:
        """Return values and gradients by the formulas."""
        loss = self.loss

        def run(operation: Any, *arrays: Buffer) -> Buffer:
            value: Buffer = operation.value(np, *arrays)
            return value

        results = loss.shared(self.wanted) if self.wanted and isinstance(loss, RowLoss) else ()
        if results:
            known = run(loss.settings(Constants, wanted=results), *arrays)
            values, run = loss.with_constants(np, run, results, known, arrays)
        else:
            values = run(loss, *arrays)
        return values, {
            index: loss.pullback(np, run, index, factors, *arrays) for index in self.wanted
        }


def _of_rows(numbers: Buffer, shape: tuple[int, ...]) -> Buffer:
    """Return one number of each row, or one for all, in the shape of the rows."""
    numbers = numbers.reshape(shape if numbers.size > 1 else ())
    return np.broadcast_to(numbers, shape)


def _places(rows: Buffer, output: Buffer) -> Index:
    """Return the indices of rows of a block."""
    return np.unravel_index(rows, output.shape[:-1])
