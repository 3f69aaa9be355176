"""Distributions that are made of others: images under a transform, masked ones, repeated draws.

`kldiv.distributions.foreign` makes them of other libraries' objects.  `Independent` and
`MixtureSameFamily` are families, as users write them too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from kldiv.distributions import families as f
from kldiv.distributions.base import Distribution, broadcast


@dataclass(frozen=True, eq=False)
class Bijection:
    """An injective transform, of which only is known which one it is.

    Two are equal by their name where that says all, else where they come from one object.
    """

    name: str
    original: Any = None
    inverted: bool = False

    def __eq__(self, other: object) -> bool:
        """Return whether it is the same transform."""
        return isinstance(other, Bijection) and self._key() == other._key()

    def __hash__(self) -> int:
        """Return a hash of which one it is."""
        return hash(self._key())

    def _key(self) -> tuple[str, int, bool]:
        return self.name, id(self.original), self.inverted

    def inverse(self) -> Bijection:
        """Return the inverse transform."""
        return replace(self, inverted=not self.inverted)


EXP = Bijection("exp")
LOG = EXP.inverse()
SIGMOID = Bijection("sigmoid")

ELEMENTWISE = frozenset({"exp", "sigmoid", "tanh", "softplus"})
"""Transforms of single numbers, which act on each number of an event."""


@dataclass(frozen=True, eq=False)
class Image(Distribution):
    """The image of a distribution under a transform."""

    base_dist: Any


@dataclass(frozen=True, eq=False)
class Affine(Image):
    """loc + scale · x of each number x of an event; the scale may be negative."""

    loc: Any
    scale: Any

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Shape of the batch, without the axes of the base's event."""
        axes = event_rank(self.base_dist) or 0
        shapes = (tuple(getattr(a, "shape", ())) for a in (self.loc, self.scale))
        outer = (shape[: max(0, len(shape) - axes)] for shape in shapes)
        return broadcast("Affine", self.base_dist.batch_shape, *outer)


@dataclass(frozen=True, eq=False)
class Mapped(Image):
    """The image under a `Bijection`."""

    transform: Bijection
    options: ClassVar[tuple[str, ...]] = ("transform",)

    def label(self) -> str:
        """Return the transform's name, with that of the distribution it is applied to."""
        inverse = "inverse of " * self.transform.inverted
        return f"{inverse}{self.transform.name}({self.base_dist.label()})"


@dataclass(frozen=True, eq=False)
class Masked(Distribution):
    """The base where mask is not 0; elsewhere nothing, of divergence 0."""

    base_dist: Any
    mask: Any


@dataclass(frozen=True, eq=False)
class Sample(Distribution):
    """Independent draws of the base, in that shape, as one event."""

    base_dist: Any
    sample_shape: tuple[int, ...]
    options: ClassVar[tuple[str, ...]] = ("sample_shape",)

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Shape of the base's batch."""
        shape: tuple[int, ...] = self.base_dist.batch_shape
        return shape


WRAPPERS = (Image, Masked, Sample)

VECTORS = frozenset({"vectors", "simplex", "one-hot", "counts"})


def event_rank(d: Distribution) -> int | None:  # noqa: PLR0911 - one return for each kind
    """Return how many axes one outcome has; None where that is not known."""
    if isinstance(d, f.Delta):
        return d.event_dim
    if isinstance(d, f.Independent):
        return _more(event_rank(d.base_dist), d.reinterpreted_batch_ndims)
    if isinstance(d, Sample):
        return _more(event_rank(d.base_dist), len(d.sample_shape))
    if isinstance(d, f.MixtureSameFamily):
        return event_rank(d.component_distribution)
    if isinstance(d, Affine | Masked) or (
        isinstance(d, Mapped) and d.transform.name in ELEMENTWISE
    ):
        return event_rank(d.base_dist)
    if hasattr(d, "original"):
        shape = getattr(d.original, "event_shape", None)
        return None if shape is None else len(tuple(shape))
    if d.support in VECTORS:
        return 1
    return 0 if d.support else None


def _more(rank: int | None, axes: int) -> int | None:
    return None if rank is None else rank + axes


def apply(base: Distribution, step: Bijection | tuple[Any, Any]) -> Distribution:
    """Return the image of a distribution under a bijection, or under (loc, scale)."""
    each = isinstance(step, tuple) or step.name in ELEMENTWISE
    if isinstance(base, f.Independent) and each:
        return f.Independent(apply(base.base_dist, step), base.reinterpreted_batch_ndims)
    return Affine(base, *step) if isinstance(step, tuple) else Mapped(base, step)


def cancel(p: Distribution, q: Distribution) -> tuple[Distribution, Distribution]:
    """Return both without the outermost transforms that are one and the same object."""
    if isinstance(p, f.Independent) and isinstance(q, f.Independent):
        axes = p.reinterpreted_batch_ndims, q.reinterpreted_batch_ndims
        if axes[0] == axes[1]:
            a, b = cancel(p.base_dist, q.base_dist)
            return f.Independent(a, axes[0]), f.Independent(b, axes[1])
    while (
        isinstance(p, Image)
        and isinstance(q, Image)
        and _same(p, q)
        and all(d.batch_shape == d.base_dist.batch_shape for d in (p, q))
    ):
        p, q = p.base_dist, q.base_dist
    return p, q


def _same(p: Image, q: Image) -> bool:
    if isinstance(p, Mapped) and isinstance(q, Mapped):
        return p.transform == q.transform
    if isinstance(p, Affine) and isinstance(q, Affine):
        return p.loc is q.loc and p.scale is q.scale
    return False


def anonymous(d: Any, seen: dict[Bijection, int]) -> Any:
    """Return it with its transforms numbered instead of kept: compilers store their arguments."""
    if not isinstance(d, Distribution):
        return d
    changed = {
        name: anonymous(value, seen)
        for name, value in d.parameters()
        if isinstance(value, Distribution)
    }
    if isinstance(d, Mapped) and d.transform.original is not None:
        plain = replace(d.transform, inverted=False)
        number = seen.setdefault(plain, len(seen))
        name = f"{d.transform.name} {number}"
        changed["transform"] = Bijection(name, None, d.transform.inverted)
    return replace(d, **changed) if changed else d
