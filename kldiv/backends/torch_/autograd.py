"""PyTorch, derivatives: an operation as autograd's functions, built from its own two rules.

`Plain` is reverse mode. Where the loss is reduced and on a CPU, its forward computes the gradients
along with the value, from one pass, for a cotangent of 1; the backward scales them. On a GPU, and
by the formulas, the forward of a loss of rows keeps their constants for the backward.
`Transformable` adds forward mode, `torch.func`.
Both rules run further operations through the same hook, so that higher orders come out of them.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from kldiv.backends import chunks
from kldiv.backends.torch_ import namespace as xp
from kldiv.backends.torch_.transforms import lie_on_cpu, transforming
from kldiv.formulas.rows import Constants, RowLoss, run_given
from kldiv.kernels import results
from kldiv.kernels.triton import TRITON

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kldiv._types import Array
    from kldiv.backends.routing import Route
    from kldiv.formulas.operation import Operation


def wanted_of(ctx: Any) -> tuple[int, ...]:
    """Return the indices of the arrays whose gradients are wanted."""
    return tuple([index for index, each in enumerate(ctx.needs_input_grad[2:]) if each])


def in_places(ctx: Any, gradients: Sequence[Array]) -> tuple[Any, ...]:
    """Return the wanted gradients, each in the place of its argument."""
    given = iter(gradients)
    return (None, None, *(next(given) if each else None for each in ctx.needs_input_grad[2:]))


def _gradients(ctx: Any, cotangent: Array) -> tuple[Any, ...]:
    """Return the gradients: those that a fused forward left serve once, and are scaled."""
    kept, ctx.kept = getattr(ctx, "kept", None), None
    # Once, as torch.utils.checkpoint unpacks them; it raises where an argument has changed since.
    saved = ctx.saved_tensors
    found = None
    if kept is not None and not torch.is_grad_enabled() and lie_on_cpu([*kept, cotangent]):
        found = results.scaled(kept, cotangent)
    return in_places(ctx, _computed(ctx, cotangent, saved) if found is None else found)


def _computed(ctx: Any, cotangent: Array, saved: Sequence[Array]) -> Sequence[Array]:
    """Return the wanted gradients, given the saved tensors."""
    wanted, number = wanted_of(ctx), len(ctx.needs_input_grad[2:])
    arrays, kept = saved[:number], saved[number:]
    given = getattr(ctx, "given", None)
    # Where gradients are enabled these will be differentiated again; a compiler allows just one
    # order, and enables them all the same.
    again = torch.is_grad_enabled() and not torch.compiler.is_compiling()
    if given is None and not again:
        outputs = {"gradients": wanted, "cotangent": cotangent, "value": False}
        if kept:
            outputs["kept"] = kept[0]
        found = ctx.route.fused(ctx.operation, arrays, **outputs)
        if found is not None:
            return found[1]
    # A call without gradients has no consumers: it needs no hook.
    plain = not (torch.is_grad_enabled() or torch.compiler.is_compiling() or transforming())
    run = ctx.route.compute if plain else ctx.route.run
    if given:
        run = partial(run_given, run, given, kept[0])
    pullback = partial(ctx.operation.pullback, xp, run)
    return [pullback(index, cotangent, *arrays) for index in wanted]


def _by_formulas(
    ctx: Any, operation: Any, route: Route, arrays: Sequence[Array], wanted: tuple[int, ...]
) -> Sequence[Array]:
    """Return the value, of a loss of rows also the constants that it shares with its gradients.

    ``ctx.given`` says so to the backward, which then does not ask for kernels again.
    """
    shares = isinstance(operation, RowLoss) and not route.moves
    ctx.given = operation.shared(wanted) if shares else ()
    if not ctx.given:
        return (route.compute(operation, *arrays),)
    known = route.compute(operation.settings(Constants, wanted=ctx.given), *arrays)
    value, _ = operation.with_constants(xp, route.run, ctx.given, known, arrays)
    # Not a view of the constants, which must stay as they are: a caller may write into the value.
    return value.clone(memory_format=torch.contiguous_format), known


class Plain(torch.autograd.Function):
    """An operation with its reverse rule: the fast form, and the one ``torch.compile`` takes."""

    @staticmethod
    def forward(ctx: Any, operation: Operation, route: Route, *arrays: Array) -> Array:
        ctx.operation, ctx.route = operation, route
        wanted = wanted_of(ctx)
        kept: Sequence[Array] = ()
        if route.kernel == TRITON.name or arrays[0].device.type != "cpu":
            # Gradients wait for backward and its cotangent: to read its value would synchronise.
            found = route.fused(operation, arrays, keep=True)
            if found is not None:
                value, kept = found
        else:
            reduced = getattr(operation, "reduction", "none") != "none"
            at_once = wanted if reduced and not torch.compiler.is_compiling() else ()
            found = route.fused(operation, arrays, gradients=at_once)
            if found is not None:
                value, ctx.kept = found[0], found[1] or None
        if found is None:
            value, *kept = _by_formulas(ctx, operation, route, arrays, wanted)
        ctx.save_for_backward(*arrays, *kept)
        return value

    backward = staticmethod(_gradients)


class Transformable(torch.autograd.Function):
    """An operation with its rules for forward mode and ``torch.func`` too, at 20 µs a call."""

    generate_vmap_rule = True

    @staticmethod
    def forward(operation: Any, route: Route, *arrays: Array) -> Array:
        return route.compute(operation, *arrays)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Array) -> None:  # noqa: ARG004
        ctx.operation, ctx.route, *arrays = inputs
        ctx.save_for_backward(*arrays)
        ctx.save_for_forward(*arrays)

    backward = staticmethod(_gradients)

    @staticmethod
    def jvp(ctx: Any, _operation: None, _route: None, *tangents: Array | None) -> Array:
        operation = ctx.operation
        return operation.pushforward(
            xp, ctx.route.run, tangents[: operation.differentiable], *ctx.saved_tensors
        )


class TransformableLinear(Transformable):
    """Two linear layers' loss with its rules for forward mode and ``torch.func``."""

    @staticmethod
    def forward(operation: Any, route: Route, *arrays: Array) -> Array:
        return chunks.value(route, operation, arrays)


def differentiated(arrays: Sequence[Array]) -> tuple[bool, bool]:
    """Return whether autograd follows any of the tensors, and whether a transform is active."""
    transformed = transforming() and not torch.compiler.is_compiling()
    return torch.is_grad_enabled() and any(each.requires_grad for each in arrays), transformed
