"""Single instructions that Numba does not offer, written so that LLVM turns loops into vectors.

Bits are cast by LLVM's own bitcast, because a loop around NumPy's ``view`` of a scalar stays
scalar. Sums of a loop are reordered into lanes only where `accumulate` says so; nothing else is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llvmlite import ir
from numba import extending, types

if TYPE_CHECKING:
    from collections.abc import Callable

intrinsic: Any = extending.intrinsic  # whose own types count the context as an argument

_TYPES = {
    types.float32: ir.FloatType(),
    types.float64: ir.DoubleType(),
    types.int32: ir.IntType(32),
    types.int64: ir.IntType(64),
    types.uint16: ir.IntType(16),
    types.uint8: ir.IntType(8),
}
_BITS = {
    types.float32: types.int32,
    types.float64: types.int64,
    types.int32: types.float32,
    types.int64: types.float64,
}


@intrinsic
def bits(_context: Any, x: Any) -> Any:
    """Return the bits of a float as an integer of its size, or the float of an integer's bits."""
    result = _BITS[x]

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], _TYPES[result])

    return result(x), generate


@intrinsic
def like(_context: Any, x: Any, value: Any) -> Any:
    """Return ``value`` in the type of ``x``: a number in the code is a float64 otherwise."""

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return context.cast(builder, arguments[1], value, x)

    return x(x, value), generate


@intrinsic
def fused(_context: Any, a: Any, b: Any, c: Any) -> Any:
    """Return a·b + c, rounded once, however slow that is."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        llvm = _TYPES[a]
        kind = ir.FunctionType(llvm, [llvm] * 3)
        return builder.call(builder.module.declare_intrinsic("llvm.fma", [llvm], kind), arguments)

    return a(a, a, a), generate


@intrinsic
def larger(_context: Any, a: Any, b: Any) -> Any:
    """Return the larger of two numbers, NaN where either is."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        llvm = _TYPES[a]
        kind = ir.FunctionType(llvm, [llvm] * 2)
        function = builder.module.declare_intrinsic("llvm.maximum", [llvm], kind)
        return builder.call(function, arguments, fastmath=["nsz"])

    return a(a, a), generate


@intrinsic
def multiply_add(_context: Any, a: Any, b: Any, c: Any) -> Any:
    """Return a·b + c, rounded once where the CPU does that as fast."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return _fmuladd(builder, a, *arguments)

    return a(a, a, a), generate


def _fmuladd(builder: Any, kind: Any, *arguments: Any) -> Any:
    llvm = _TYPES[kind]
    function = builder.module.declare_intrinsic(
        "llvm.fmuladd", [llvm], ir.FunctionType(llvm, [llvm] * 3)
    )
    return builder.call(function, arguments)


@intrinsic(prefer_literal=True)
def polynomial(_context: Any, x: Any, coefficients: Any) -> Any:
    """Return Σ cₖ xᵏ by Horner's rule; the coefficients, lowest first, are a constant tuple."""

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        variable, table = arguments
        terms = [
            context.cast(builder, builder.extract_value(table, index), kind, x)
            for index, kind in enumerate(coefficients)
        ]
        value = terms.pop()
        while terms:
            value = _fmuladd(builder, x, value, variable, terms.pop())
        return value

    return x(x, coefficients), generate


@intrinsic
def accumulate(_context: Any, total: Any, term: Any) -> Any:
    """Return total + term, of which a loop may make several sums at a time."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.fadd(*arguments, flags=["reassoc"])

    return total(total, total), generate


@intrinsic
def select(_context: Any, condition: Any, yes: Any, no: Any) -> Any:
    """Return one of two values, both computed: a branch would keep a loop scalar."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.select(*arguments)

    return yes(types.boolean, yes, yes), generate


def _loader(kind: Any) -> Callable[..., Any]:
    @intrinsic
    def load(_context: Any, address: Any, index: Any) -> Any:
        def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            llvm = _TYPES[kind]
            pointer = builder.inttoptr(arguments[0], llvm.as_pointer())
            return builder.load(builder.gep(pointer, [arguments[1]]))

        return kind(types.int64, types.int64), generate

    return load


def _storer(kind: Any) -> Callable[..., Any]:
    @intrinsic
    def store(_context: Any, address: Any, index: Any, value: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            llvm = _TYPES[kind]
            pointer = builder.inttoptr(arguments[0], llvm.as_pointer())
            builder.store(arguments[2], builder.gep(pointer, [arguments[1]]))
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, kind), generate

    return store


load_float32, load_float64 = _loader(types.float32), _loader(types.float64)
load_uint16, load_uint8 = _loader(types.uint16), _loader(types.uint8)
store_float32, store_float64 = _storer(types.float32), _storer(types.float64)
store_uint16 = _storer(types.uint16)
