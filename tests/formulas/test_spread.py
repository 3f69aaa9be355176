"""Losses whose classes are spread over ranks, which are threads here: values and derivatives."""

from __future__ import annotations

import operator
from concurrent.futures import ThreadPoolExecutor
from functools import partial, reduce
from threading import Barrier

import numpy as np
import pytest
import spread_rows

import kldiv
from kldiv.backends.base import Spread, in_row_blocks
from kldiv.backends.numpy_ import NumPyBackend
from kldiv.formulas import ranks, shards

SIZES = (20, 0, 13, 31)
"""Classes of each rank."""


class Meeting:
    """A place where threads hand each other arrays."""

    def __init__(self, size):
        self.given, self.barrier = [None] * size, Barrier(size, timeout=30)


class Threads(ranks.Ranks):
    """Ranks that are threads of this process."""

    xp = np

    def __init__(self, meeting, place):
        self.meeting, self.place, self.size = meeting, place, len(meeting.given)

    def gathered(self, array):
        self.meeting.given[self.place] = array
        self.meeting.barrier.wait()
        found = [*self.meeting.given]
        self.meeting.barrier.wait()  # before the next one is given
        return found

    def exchanged(self, parts):
        return [part[self.place] for part in self.gathered(parts)]

    def add(self, array):
        return reduce(operator.add, self.gathered(array))

    def extent(self, array):
        sizes = np.array(self.gathered(array.shape[-1]))
        return ranks.extent_of(np, sizes, self.place)


def elements(operation, *arrays):
    return in_row_blocks(operation, np, arrays)


class Recorded(Spread):
    """Keeps the operation on whole rows, its arrays and its values."""

    def value(self, operation, arrays):
        values = operation.elements(np, *arrays)
        self.operation, self.arrays, self.values = operation, arrays, values
        return operation.finish(np, values, operation.keep(arrays))


def recorded(monkeypatch, function, arrays):
    found = Recorded()
    monkeypatch.setattr(NumPyBackend, "spread", lambda *_: found)
    function(*arrays)
    return found


def along_steps(own, operation, arrays, steps):
    """Return a rank's values, and derivatives along the steps in two ways, and along none."""
    rank = shards.of_rank(np, elements, own, operation, arrays)
    values, known = rank.forward()

    def of_rows(array):
        return array.sum(-1) if array.ndim == known.ndim else array

    backward = np.zeros(values.shape[: known.ndim - 1])
    for index, step in enumerate(steps):
        part = of_rows(rank.backward(index, np.ones_like(values), known) * step)
        backward += own.add(part) if index < rank.with_classes else part
    first = [steps[0], *(None for _ in steps[1:])]
    some = [steps, first, [None for _ in steps]]
    return values, backward, *(of_rows(rank.tangent(each, known)) for each in some)


def of_all_ranks(loss, random):
    """Return the results of `along_steps` for each rank, which has some of a loss's classes."""
    operation, arrays, meeting = loss.operation, loss.arrays, Meeting(len(SIZES))
    steps = [random.normal(size=each.shape) for each in arrays[: operation.differentiable]]
    classes = shards.of_rank(np, elements, None, operation, arrays).with_classes

    def own(given, place):
        cut = [np.split(each, np.cumsum(SIZES)[:-1], axis=-1)[place] for each in given[:classes]]
        return [*cut, *given[classes:]]

    def work(place):
        with np.errstate(all="ignore"):
            ends = own(arrays, place), own(steps, place)
            return along_steps(Threads(meeting, place), operation, *ends)

    with ThreadPoolExecutor(len(SIZES)) as pool:
        return [future.result() for future in [pool.submit(work, n) for n in range(len(SIZES))]]


def losses():
    """Return losses by name, and their arrays."""
    s, labels, teacher, heat, beta = spread_rows.rows()
    found = {
        name: (loss, (s, heat, teacher.log_probs))
        for name, loss in spread_rows.losses(labels, *teacher[1:3], beta).items()
    }
    del found["hard"]  # a loss of PyTorch's and JAX's own derivatives
    renyi = kldiv.renyi_div_with_logits
    for name, loss in {
        "KL": kldiv.kl_div_with_logits,
        "JS": kldiv.js_div_with_logits,
        "Rényi 2": partial(renyi, alpha=2.0),
        "Rényi ∞": partial(renyi, alpha=np.inf),
    }.items():

        def rows(s, heat, a, *, loss=loss, **spread):
            del a
            return loss(s, 0.5 * s - 0.1 * s**2, temperature=heat, **spread).sum()

        found[name] = rows, (np.clip(s, -5, 9), heat, teacher.log_probs)
    return found


@pytest.mark.parametrize("gathered", [16, 1], ids=["all states", "a share of the rows"])
@pytest.mark.parametrize("name", losses())
def test_threads_that_each_have_some_classes(monkeypatch, name, gathered):
    function, arrays = losses()[name]
    with np.errstate(all="ignore"):
        loss = recorded(monkeypatch, partial(function, axis_name="ranks"), arrays)
    monkeypatch.setattr(ranks, "GATHERED", gathered)
    for values, backward, along, first, none in of_all_ranks(loss, np.random.default_rng(1)):
        np.testing.assert_allclose(values, loss.values, rtol=1e-13)
        finite = np.isfinite(backward)
        assert finite.sum() >= 4
        np.testing.assert_allclose(along[finite], backward[finite], rtol=1e-12, atol=1e-13)
        assert (abs(first - along)[finite] > 1e-6).any()
        assert not none.any()
