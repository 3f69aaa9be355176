"""The parts of a search: a target with its truth by mpmath, cases to begin from, and libraries.

A target computes a batch of cases at once, each case a row of numbers: value, gradient and, where
the library has it, the Hessian in these numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    Floats = np.ndarray[Any, np.dtype[np.float64]]


class Found(NamedTuple):
    """A library's results for n cases of k numbers; None where it has no derivative."""

    value: Floats  # (n,)
    gradient: Floats | None = None  # (n, k)
    hessian: Floats | None = None  # (n, k, k)


@dataclass(frozen=True)
class Target:
    """A function of ``k`` numbers, with its truth."""

    name: str
    truth: Callable[..., Any]
    """The function, of mpmath's numbers."""
    call: Callable[..., Any]
    """The function of kldiv, of ``k`` arrays of n numbers each, giving n numbers."""
    ranges: tuple[str, ...]
    """The kind of each number: a name of `RANGES`."""
    twins: tuple[tuple[int, int], ...] = ()
    """Pairs of numbers, of P and of Q, that are interesting where they are close."""
    units: float = 10.0
    """How many units of roundoff, scaled by the condition, it may be off."""
    near: Callable[[Any], list[float] | None] | None = None
    """Returns the last numbers of a case such that Q is close to P."""
    made: Callable[[Any], Any] = lambda case: case
    """Makes a case of the numbers that were drawn."""
    order: int = 2
    """How many derivatives it has."""
    whole: bool = False
    """Whether a slope is judged beside the largest: an algebra of matrices mixes them."""
    signed: bool = False
    """Whether it may be negative."""
    digits: int = 100
    """Of mpmath's: second differences take 36, and e⁶⁰ beside 1 another 26."""
    alone: bool = False
    """Whether the call takes one case at a time."""
    libraries: tuple[str, ...] = ("numpy", "torch", "jax")


# Ranges of drawn numbers: decimal exponents of their size, whether of both signs, limits.
RANGES: dict[str, tuple[float, float, bool, float, float]] = {
    "location": (-3, 3, True, -np.inf, np.inf),
    "scale": (-3, 3, False, 1e-30, 1e30),
    "shape": (-3, 5, False, 1e-6, 1e8),
    "angle": (-3, 0.5, True, -np.pi, np.pi),
    "probability": (-6, 0, False, 1e-30, 1 - 2.0**-20),
    "logit": (-3, 1.5, True, -60, 60),
    "small": (-2, 0.7, True, -6, 6),
    "temperature": (-1, 1, False, 0.1, 10),
    "count": (0, 6, False, 1, 1e8),
    "above": (0, 3, False, 1, 1e30),
}


def draw(target: Target, random: np.random.Generator, dtype: str) -> Floats:
    """Return a case: each number log-uniform, half of the twins close to one another."""
    case = np.empty(len(target.ranges))
    for i, name in enumerate(target.ranges):
        low, high, signed, *_ = RANGES[name]
        case[i] = 10 ** random.uniform(low, high) * (random.choice([-1, 1]) if signed else 1)
    if random.random() < 0.5:
        near = 10 ** random.uniform(-7, -0.5)
        for i, j in target.twins:
            case[j] = case[i] * (1 + near * random.standard_normal())
        if target.near and (found := target.near(case)):
            case[-len(found) :] = found * (1 + near * random.standard_normal(len(found)))
    return settle(target, case, dtype)


def mutate(target: Target, case: Floats, random: np.random.Generator, dtype: str) -> Floats:
    """Return a neighbour of a case, or one with two numbers made equal."""
    case = case.copy()
    kind = random.random()
    if target.twins and kind < 0.2:
        i, j = target.twins[random.integers(len(target.twins))]
        case[j] = case[i]
    else:
        i = random.integers(len(case))
        step = 10 ** random.uniform(-7, 0.3) * random.standard_normal()
        case[i] *= np.exp(np.clip(step, -5, 5))
    return settle(target, case, dtype)


def settle(target: Target, case: Floats, dtype: str) -> Floats:
    """Return the case within its limits, as the dtype holds it."""
    limits = np.array([RANGES[name][3:] for name in target.ranges])
    return np.clip(case, *limits.T).astype(dtype).astype(np.float64)


# --- libraries ------------------------------------------------------------------------------------


def by_numpy(target: Target, cases: Floats, dtype: str) -> Found:
    """Return values; NumPy differentiates no function of a user's."""
    numbers = cases.T.astype(dtype)
    if target.alone:
        return Found(np.array([target.call(*case) for case in cases.astype(dtype)], np.float64))
    return Found(np.asarray(target.call(*numbers), dtype=np.float64))


def by_torch(target: Target, cases: Floats, dtype: str) -> Found:
    """Return values, gradients and Hessians by autograd: cases do not mix, so sums have all."""
    import torch

    columns = [torch.tensor(column.astype(dtype)) for column in cases.T.copy()]
    numbers = [column.requires_grad_(target.order > 0) for column in columns]
    if target.alone:
        value = torch.stack([target.call(*case) for case in zip(*numbers, strict=True)])
    else:
        value = torch.as_tensor(target.call(*numbers))
    if not target.order:
        return Found(value.double().numpy())
    slopes = torch.autograd.grad(
        value.sum(), numbers, create_graph=True, materialize_grads=True, allow_unused=True
    )
    gradient = torch.stack(slopes, -1).detach().double().numpy()
    if target.order == 1:
        return Found(value.detach().double().numpy(), gradient)
    bends = [
        torch.autograd.grad(
            slope.sum(), numbers, retain_graph=True, materialize_grads=True, allow_unused=True
        )
        if slope.requires_grad
        else [torch.zeros_like(slope)] * len(numbers)
        for slope in slopes
    ]
    return Found(
        value.detach().double().numpy(),
        gradient,
        torch.stack([torch.stack(list(row), -1) for row in bends], -2).double().numpy(),
    )


def by_jax(target: Target, cases: Floats, dtype: str) -> Found:
    """Return values, gradients and Hessians of each case, compiled once a target."""
    import jax

    with jax.enable_x64(dtype == "float64"):
        key = target.name, dtype
        if key not in _COMPILED:

            def one(numbers: Any) -> Any:
                if target.alone:
                    return target.call(*numbers)
                return target.call(*(x[None] for x in numbers))[0]

            def all_three(numbers: Any) -> Any:
                ways = (one, jax.grad(one), jax.hessian(one))[: target.order + 1]
                return tuple(way(numbers) for way in ways)

            _COMPILED[key] = jax.jit(jax.vmap(all_three))
        found = _COMPILED[key](jax.numpy.asarray(cases.astype(dtype)))
    return Found(*(np.asarray(each, np.float64) for each in found))


_COMPILED: dict[Any, Any] = {}
LIBRARIES = {"numpy": by_numpy, "torch": by_torch, "jax": by_jax}
