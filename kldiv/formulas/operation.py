"""The one shape that every formula has: a value, and the rules that carry derivatives through it.

An operation is an immutable value (hashable, comparable, picklable), so that a compiler can cache
on it and a scheduler can ship it. Gradient hooks need nothing else: reverse mode is `pullback`,
forward mode is `pushforward`, and both are written in terms of further operations, which they hand
to ``run``. Because ``run`` is the hook itself, second and higher orders come out of the same two
rules.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kldiv._types import Array, Namespace

    Tangents = Sequence[Array | None]
    """Those of the leading arrays; None is zero."""


class Run(Protocol):
    """Runs an operation on arrays, differentiably where the library can."""

    def __call__(self, operation: Operation, *arrays: Array) -> Array:
        """Return ``operation`` of ``arrays``."""
        ...


class Operation:
    """A function of arrays with its derivatives; knows no framework and no settings."""

    name: ClassVar[str]
    size: ClassVar[Callable[[Any, Sequence[Array]], int] | None] = None
    """Says how many elements a kernel computes, where these are not the first array's."""
    lengthy: bool = False
    """Whether its formulas take a hundred calls and more: NumPy's own on blocks are quicker."""

    @property
    def differentiable(self) -> int:
        """How many of the leading arrays it can be differentiated in; masks come after them."""
        return 2

    @property
    def native(self) -> bool:
        """Whether a library's own differentiation of `value` is right everywhere, at any order."""
        return False

    @property
    def native_in_first(self) -> bool:
        """Whether that is right in the first array, where no other is differentiated in."""
        return self.native

    def value(self, xp: Namespace, *arrays: Array) -> Array:
        """Evaluate the function."""
        raise NotImplementedError

    def pullback(
        self, xp: Namespace, run: Run, index: int, cotangent: Array, *arrays: Array
    ) -> Array:
        """Return the gradient in ``arrays[index]``, given the gradient in the result."""
        raise NotImplementedError

    def pushforward(self, xp: Namespace, run: Run, tangents: Tangents, *arrays: Array) -> Array:
        """Return the tangent of the result; a tangent of None is zero, and at least one is not."""
        raise NotImplementedError


class Composite(Operation):
    """An operation made of others, which adapters compute as they compute these."""

    def composed(self, xp: Namespace, run: Run, *arrays: Array) -> Array:
        """Return the value, given a function that computes other operations."""
        raise NotImplementedError

    def value(self, xp: Namespace, *arrays: Array) -> Array:
        def run(operation: Operation, *some: Array) -> Array:
            return operation.value(xp, *some)

        return self.composed(xp, run, *arrays)

    def fused(
        self, xp: Namespace, fused: Callable[..., Any], arrays: Sequence[Array], **wanted: Any
    ) -> tuple[Array | None, list[Array]] | None:
        """Return value and gradients, given a function that fuses those of others, or None.

        ``wanted`` are the fields of `kldiv.kernels.work.Work` that name the results.
        """
        raise NotImplementedError
