"""Divergences from sparse teachers by their definition, in mpmath, and rows that go wrong."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import mpmath
import numpy as np
from f_divergences import definition, slope
from libraries import unit
from logit_families import TARGET, batch

SIZE, GIVEN = 12, 4
CONDITION = 4.0
"""Roundings of the others' masses that results may feel."""


class Rows(NamedTuple):
    """Rows of a student and a sparse teacher."""

    names: list
    s: np.ndarray
    log_probs: np.ndarray
    indices: np.ndarray
    rest: np.ndarray


class Truth(NamedTuple):
    """The divergence of a row, its gradients, and how all feel the others' masses."""

    value: float
    student: np.ndarray
    log_probs: np.ndarray
    rest: float
    slack: tuple


@cache
def rows(dtype, given=GIVEN):
    """The families of dense logits, of which the teacher's likeliest classes are known."""
    names, s, t = batch(SIZE, dtype)
    with np.errstate(over="ignore"):
        t = t.astype("f8")
        log_p = t - t.max(-1, keepdims=True)
        log_p -= np.log(np.exp(log_p).sum(-1, keepdims=True))
    order = np.argsort(-log_p, axis=-1, kind="stable")
    every = np.take_along_axis(log_p, order, -1)
    rest = np.exp(every[:, given:]).sum(-1)
    return Rows(names, s, every[:, :given].astype(dtype), order[:, :given], rest.astype(dtype))


def exact(record, s, log_probs, indices, temperature=1.0, rest=None, tail="bucket", own=None):
    """The truth about one row; gradients are those of normalised masses."""
    arrays = (tuple(map(float, array)) for array in (s, log_probs))
    return _exact(record, *arrays, tuple(map(int, indices)), temperature, rest, tail, own)


@cache  # the same rows are given to every library
@mpmath.workdps(420)
def _exact(record, s, log_probs, indices, temperature, rest, tail, own):
    log_probs, indices = np.array(log_probs), np.array(indices)
    valid = log_probs != -np.inf
    places = [int(index) for index in indices[valid]]
    heat = 1 / mpmath.mpf(float(temperature))
    factor = mpmath.mpf(1) if own is None else mpmath.mpf(float(own)) * heat
    top = max(float(x) for x in s)
    e = [mpmath.exp((mpmath.mpf(float(x)) - top) * heat) if x > -np.inf else 0 for x in s]
    p = [mpmath.exp(mpmath.mpf(float(x)) * factor) for x in log_probs[valid]]
    q = [e[place] for place in places]
    others = [j for j in range(len(s)) if j not in places]
    if tail != "bucket":
        others = []
    bucket = bool(others)
    implicit = bucket and rest is None
    if bucket:
        left = 1 - mpmath.fsum(p) if rest is None else mpmath.mpf(float(rest))
        p.append(max(left, mpmath.mpf(0)))
        q.append(mpmath.fsum(e[j] for j in others))

    def results(by_p=0, by_q=0):
        masses, shares = [*p], [*q]
        if bucket:
            masses[-1] *= 1 + mpmath.mpf(by_p)
            shares[-1] *= 1 + mpmath.mpf(by_q)
        given = masses[-1]
        masses, shares = ([x / mpmath.fsum(side) for x in side] for side in (masses, shares))
        pairs = zip(masses, shares, strict=True)
        parts = [definition(record, *pair) if any(pair) else (0, 0, 0) for pair in pairs]
        value, of_p, of_q = zip(*parts, strict=True)
        in_t, in_s = slope(masses, of_p), slope(shares, of_q)
        student = [mpmath.mpf(0)] * len(s)
        for place, each in zip(places, in_s, strict=False):
            student[place] = each * heat
        for j in others if bucket and q[-1] else ():
            student[j] = in_s[-1] * e[j] / q[-1] * heat
        last = in_t[-1] / given if bucket and given else mpmath.mpf(0)
        teacher = [each - implicit * last * x for each, x in zip(in_t, masses, strict=True)]
        teacher = [each * factor for each in teacher[: len(places)]]
        return [mpmath.fsum(value), *student, *teacher, last]

    found, slack = results(), None
    if bucket and mpmath.isfinite(found[0]):
        step = mpmath.mpf(10) ** -60
        feel_p, feel_q = (
            [(b - a) / step for a, b in zip(found, results(*by), strict=True)]
            for by in ((step, 0), (0, step))
        )
        size = 1 + (1 - max(p[:-1], default=0)) / p[-1] if implicit and p[-1] else 1
        slack = [float(abs(a) * size + abs(b)) for a, b in zip(feel_p, feel_q, strict=True)]
    numbers = [float(x) for x in found]
    slack = slack or [0.0] * len(numbers)
    student, teacher = numbers[1 : 1 + len(s)], np.zeros(len(log_probs))
    teacher[valid] = numbers[1 + len(s) : -1]
    parts = slack[0], sum(slack[1 : 1 + len(s)]), sum(slack[1 + len(s) : -1]), slack[-1]
    return Truth(numbers[0], np.array(student), teacher, numbers[-1], parts)


def errors(truth, found, dtype):
    """How far results are off, in parts of what is allowed."""
    tiny = float(np.finfo(dtype).tiny)
    parts = []
    for true, result, slack in zip(truth[:4], found, truth.slack, strict=False):
        wanted, each = np.asarray(true, "f8"), np.asarray(result, "f8")
        if not np.isfinite(wanted).all():
            same = (np.isnan(wanted) == np.isnan(each)).all() and (
                np.isposinf(wanted) == np.isposinf(each)
            ).all()
            parts.append(0.0 if same else np.inf)
            continue
        allowed = TARGET[dtype] * abs(wanted).sum() + CONDITION * unit(dtype) * slack
        error = abs(each - wanted).sum() / (allowed + tiny * wanted.size)
        parts.append(float(error) if error == error else np.inf)
    return parts


def assert_right(record, given, results, dtype, *, target_rest=False, **options):
    """Assert value and gradients of every row, and name all the rows that are wrong."""
    wrong, own = {}, options.pop("target_temperature", None)
    for row, name in enumerate(given.names):
        rest = given.rest[row] if target_rest else None
        arrays = (array[row] for array in given[1:4])
        true = exact(record, *arrays, rest=rest, own=own, **options)
        off = errors(true, [result[row] for result in results], dtype)
        if not max(off) <= 1:
            wrong[name] = off
    assert wrong == {}
