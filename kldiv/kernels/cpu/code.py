"""Machine code written as Python: values with operators, variables, loops and branches.

A Python function that computes with values is run once, and its steps are written down as LLVM's
instructions; a helper that it calls is thereby part of it. Vectors are explicit, so that nothing is
left to a compiler's judgement, and no operation is reordered or contracted: results have the same
bits in whatever program they are computed.
"""

from __future__ import annotations

import struct
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from llvmlite import ir

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    _Operator = Callable[["Value", Any], "Value"]

I1, I8, I16, I32, I64 = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
SINGLE, DOUBLE = ir.FloatType(), ir.DoubleType()

AHEAD: Final = 32
"""Vectors by which memory is fetched before a pass comes to it."""

_SIZES: Final = {I8: 1, I16: 2, I32: 4, I64: 8, SINGLE: 4, DOUBLE: 8}


class Real(NamedTuple):
    """A dtype to compute in."""

    name: str
    scalar: Any
    size: int
    """Bytes of a number."""
    lanes: int
    """Numbers of a vector."""

    @property
    def vector(self) -> Any:
        """The type of a vector."""
        return ir.VectorType(self.scalar, self.lanes)

    @property
    def single(self) -> bool:
        """Whether it is float32."""
        return self.size == 4

    @property
    def largest(self) -> float:
        """The largest finite number."""
        return (2.0 - 2.0**-23) * 2.0**127 if self.single else sys.float_info.max


FLOAT32: Final = Real("float32", SINGLE, 4, 16)
FLOAT64: Final = Real("float64", DOUBLE, 8, 8)
REALS: Final = {"float32": FLOAT32, "float64": FLOAT64}


def _operators(of_floats: str, of_integers: str) -> tuple[_Operator, _Operator]:
    """Return the methods of an operator, with the value on the left and on the right."""

    def left(self: Value, other: Any) -> Value:
        return self._binary(other, of_floats, of_integers)

    def right(self: Value, other: Any) -> Value:
        return self._binary(other, of_floats, of_integers, swap=True)

    return left, right


def _comparison(sign: str) -> _Operator:
    return lambda self, other: self._compared(sign, other)


class Value:
    """A number, or a vector of numbers, of a program; numbers of Python take its type."""

    __slots__ = ("builder", "ir")

    def __init__(self, builder: Any, value: Any) -> None:
        self.builder, self.ir = builder, value

    @property
    def scalar(self) -> Any:
        """The type of its elements."""
        return getattr(self.ir.type, "element", self.ir.type)

    @property
    def lanes(self) -> int:
        """How many elements it has; 0 for a number."""
        return getattr(self.ir.type, "count", 0)

    @property
    def floating(self) -> bool:
        """Whether it is not an integer."""
        return isinstance(self.scalar, ir.FloatType | ir.DoubleType)

    def of(self, value: Any) -> Value:
        """Return another value in this one's type: constants and scalars become vectors."""
        if isinstance(value, Value):
            return value.spread(self.lanes) if self.lanes and not value.lanes else value
        if self.scalar == SINGLE:
            value = struct.unpack("f", struct.pack("f", value))[0]
        constant = ir.Constant(self.scalar, value)
        if self.lanes:
            constant = ir.Constant(self.ir.type, [constant] * self.lanes)
        return Value(self.builder, constant)

    def spread(self, lanes: int) -> Value:
        """Return a vector of equal numbers."""
        kind = ir.VectorType(self.ir.type, lanes)
        one = self.builder.insert_element(
            ir.Constant(kind, ir.Undefined), self.ir, ir.Constant(I32, 0)
        )
        mask = ir.Constant(ir.VectorType(I32, lanes), [ir.Constant(I32, 0)] * lanes)
        spread = self.builder.shuffle_vector(one, ir.Constant(kind, ir.Undefined), mask)
        return Value(self.builder, spread)

    def _binary(self, other: Any, of_floats: str, of_integers: str, *, swap: bool = False) -> Value:
        other = self.of(other)
        a, b = (other.of(self), other) if other.lanes else (self, other)
        a, b = (b, a) if swap else (a, b)
        name = of_floats if self.floating else of_integers
        return Value(self.builder, getattr(self.builder, name)(a.ir, b.ir))

    __add__, __radd__ = _operators("fadd", "add")
    __sub__, __rsub__ = _operators("fsub", "sub")
    __mul__, __rmul__ = _operators("fmul", "mul")
    __truediv__, __rtruediv__ = _operators("fdiv", "")
    __floordiv__, _ = _operators("", "udiv")
    __mod__, _ = _operators("", "urem")
    __lshift__, _ = _operators("", "shl")
    __rshift__, _ = _operators("", "ashr")
    __and__, _ = _operators("", "and_")
    __or__, _ = _operators("", "or_")

    def __neg__(self) -> Value:
        negated = self.builder.fneg(self.ir) if self.floating else self.builder.neg(self.ir)
        return Value(self.builder, negated)

    def __invert__(self) -> Value:
        return Value(self.builder, self.builder.not_(self.ir))

    def __abs__(self) -> Value:
        return self._intrinsic("fabs", self)

    def _compared(self, sign: str, other: Any) -> Value:
        other = self.of(other)
        a = other.of(self) if other.lanes else self
        if not self.floating:
            return Value(self.builder, self.builder.icmp_signed(sign, a.ir, other.ir))
        compare = self.builder.fcmp_unordered if sign == "!=" else self.builder.fcmp_ordered
        return Value(self.builder, compare(sign, a.ir, other.ir))

    __lt__, __le__ = _comparison("<"), _comparison("<=")
    __gt__, __ge__ = _comparison(">"), _comparison(">=")
    __eq__, __ne__ = _comparison("=="), _comparison("!=")  # type: ignore[assignment]
    __hash__ = None  # type: ignore[assignment]

    def _intrinsic(self, name: str, *values: Value) -> Value:
        kind, module = values[0].ir.type, self.builder.module
        lanes = f"v{self.lanes}" if self.lanes else ""
        name = f"llvm.{name}.{lanes}{self.scalar.intrinsic_name}"
        declared = module.globals.get(name) or ir.Function(
            module, ir.FunctionType(kind, [kind] * len(values)), name
        )
        return Value(self.builder, self.builder.call(declared, [value.ir for value in values]))

    def fma(self, factor: Any, term: Any) -> Value:
        """Return self·factor + term, rounded once where the CPU does that as fast."""
        values = [self, self.of(factor), self.of(term)]
        wide = next((value for value in values if value.lanes), self)
        return self._intrinsic("fmuladd", *(wide.of(value) for value in values))

    def sqrt(self) -> Value:
        """Return the square root."""
        return self._intrinsic("sqrt", self)

    def bits(self) -> Value:
        """Return the bits of a float as an integer of its size, or the float of an integer."""
        scalar = {SINGLE: I32, DOUBLE: I64, I32: SINGLE, I64: DOUBLE}[self.scalar]
        kind = ir.VectorType(scalar, self.lanes) if self.lanes else scalar
        return Value(self.builder, self.builder.bitcast(self.ir, kind))

    def to(self, scalar: Any) -> Value:
        """Return it converted to another type of numbers."""
        kind = ir.VectorType(scalar, self.lanes) if self.lanes else scalar
        if self.scalar == scalar:
            return self
        if self.floating and scalar in (SINGLE, DOUBLE):
            name = "fpext" if scalar == DOUBLE else "fptrunc"
        elif self.floating:
            name = "fptosi"
        elif scalar in (SINGLE, DOUBLE):
            name = "sitofp"
        elif self.scalar == I1 or _SIZES[self.scalar] < _SIZES[scalar]:
            name = "zext"
        else:
            name = "trunc"
        return Value(self.builder, getattr(self.builder, name)(self.ir, kind))

    def element(self, index: int) -> Value:
        """Return an element of a vector."""
        return Value(self.builder, self.builder.extract_element(self.ir, ir.Constant(I32, index)))

    def folded(self, join: Callable[[Value, Value], Value]) -> Value:
        """Return one number of a vector's elements, those of both halves joined in pairs."""
        value, shuffled = self, self.builder.shuffle_vector
        while value.lanes > 1:
            half, nothing = value.lanes // 2, ir.Constant(value.ir.type, ir.Undefined)
            parts = []
            for start in (0, half):
                places = [ir.Constant(I32, start + index) for index in range(half)]
                mask = ir.Constant(ir.VectorType(I32, half), places)
                parts.append(Value(self.builder, shuffled(value.ir, nothing, mask)))
            value = join(*parts)
        return value.element(0)


def select(condition: Value, yes: Any, no: Any) -> Value:
    """Return one of two values, both computed."""
    yes, no = (yes, yes.of(no)) if isinstance(yes, Value) else (no.of(yes), no)
    if condition.lanes and not yes.lanes:
        yes, no = yes.spread(condition.lanes), no.spread(condition.lanes)
    yes, no = (no.of(yes), no) if no.lanes else (yes, no)
    return Value(yes.builder, yes.builder.select(condition.ir, yes.ir, no.ir))


def at_least(x: Value, bound: Any) -> Value:
    """Return ``x``, but no less than a bound; NaN is kept."""
    return select(x < bound, bound, x)


def at_most(x: Value, bound: Any) -> Value:
    """Return ``x``, but no more than a bound; NaN is kept."""
    return select(x > bound, bound, x)


def polynomial(x: Value, coefficients: Sequence[float]) -> Value:
    """Return Σ cₖ xᵏ by Horner's rule."""
    *rest, value = coefficients
    result = x.of(value)
    for coefficient in reversed(rest):
        result = result.fma(x, coefficient)
    return result


class Variable:
    """A place for a value that changes."""

    def __init__(self, builder: Any, kind: Any) -> None:
        self.builder = builder
        with builder.goto_entry_block():
            self.place = builder.alloca(kind)

    def get(self) -> Value:
        """Return its value."""
        return Value(self.builder, self.builder.load(self.place))

    def set(self, value: Value) -> None:
        """Change its value."""
        self.builder.store(value.ir, self.place)


class Code:
    """A function in the making: its arguments are integers, addresses of memory among them."""

    def __init__(self, module: Any, name: str, arguments: int) -> None:
        kind = ir.FunctionType(ir.VoidType(), [I64] * arguments)
        self.function = ir.Function(module, kind, name)
        self.builder = ir.IRBuilder(self.function.append_basic_block())
        self.arguments = [Value(self.builder, each) for each in self.function.args]

    def constant(self, kind: Any, value: float) -> Value:
        """Return a number of a type, or a vector of them."""
        return Value(self.builder, ir.Constant(kind, None)).of(value)

    def whole(self, value: int) -> Value:
        """Return an integer."""
        return self.constant(I64, value)

    def real(self, value: float) -> Value:
        """Return a float64 number."""
        return self.constant(DOUBLE, value)

    def variable(self, first: Value) -> Variable:
        """Return a variable with a value."""
        variable = Variable(self.builder, first.ir.type)
        variable.set(first)
        return variable

    def _pointer(self, kind: Any, address: Value) -> Any:
        return self.builder.inttoptr(address.ir, kind.as_pointer())

    def frame(self, address: Value, names: Sequence[str]) -> dict[str, Value]:
        """Return the integers at an address, by their names."""
        return {name: self.load(I64, address, index) for index, name in enumerate(names)}

    def load(self, kind: Any, address: Value, index: Any = 0) -> Value:
        """Return the number, or vector, at an address, or ``index`` numbers after it."""
        size = _SIZES[getattr(kind, "element", kind)]
        pointer = self._pointer(kind, address + self.of_index(index) * size)
        return Value(self.builder, self.builder.load(pointer, align=size))

    def load_or(self, kind: Any, base: Value, index: Value, default: Any) -> Value:
        """Return an integer of an array, in 64 bits; a default where the address is 0."""
        found = self.variable(self.of_index(default))
        with self.when(base != 0):
            found.set(self.load(kind, base, index).to(I64))
        return found.get()

    def store(self, address: Value, value: Value, index: Any = 0) -> None:
        """Write a number, or a vector, to an address, or ``index`` numbers after it."""
        size = _SIZES[value.scalar]
        pointer = self._pointer(value.ir.type, address + self.of_index(index) * size)
        self.builder.store(value.ir, pointer, align=size)

    def fetch_and_add(self, address: Value, step: Any) -> Value:
        """Return the integer at an address and add a step to it, as if no thread came between."""
        pointer = self._pointer(I64, address)
        found = self.builder.atomic_rmw("add", pointer, self.of_index(step).ir, "monotonic")
        return Value(self.builder, found)

    def fetch(self, address: Value, *, write: bool = False) -> None:
        """Fetch a line of memory into the cache; the address may lie behind an array's end.

        CPUs do not look ahead beyond a page themselves.
        """
        kind = ir.FunctionType(ir.VoidType(), [I8.as_pointer(), *[I32] * 3])
        name, module = "llvm.prefetch.p0i8", self.builder.module
        fetching = module.globals.get(name) or ir.Function(module, kind, name)
        hints = [ir.Constant(I32, hint) for hint in (int(write), 3, 1)]  # writing, all caches, data
        self.builder.call(fetching, [self._pointer(I8, address), *hints])

    def of_index(self, index: Any) -> Value:
        """Return an index as a value."""
        return index if isinstance(index, Value) else self.whole(index)

    @contextmanager
    def loop(self, last: Any, first: Any = 0, step: Any = 1) -> Iterator[Value]:
        """Repeat for an index from ``first``, by steps, as long as it is below ``last``."""
        builder, function = self.builder, self.function
        last, first, step = (self.of_index(each) for each in (last, first, step))
        before = builder.block
        head, body, end = (function.append_basic_block() for _ in range(3))
        builder.branch(head)
        builder.position_at_end(head)
        index = builder.phi(I64)
        index.add_incoming(first.ir, before)
        builder.cbranch(builder.icmp_signed("<", index, last.ir), body, end)
        builder.position_at_end(body)
        yield Value(builder, index)
        index.add_incoming(builder.add(index, step.ir), builder.block)
        builder.branch(head)
        builder.position_at_end(end)

    @contextmanager
    def when(self, condition: Value) -> Iterator[None]:
        """Run the block only where a condition holds."""
        with self.builder.if_then(condition.ir):
            yield

    @contextmanager
    def either(self, condition: Value) -> Iterator[tuple[Any, Any]]:
        """Do one of two things."""
        with self.builder.if_else(condition.ir) as both:
            yield both

    def call(self, address: Value, *arguments: Any) -> None:
        """Call a function of integers that lies at an address."""
        values = [self.of_index(argument).ir for argument in arguments]
        kind = ir.FunctionType(ir.VoidType(), [I64] * len(values))
        self.builder.call(self.builder.inttoptr(address.ir, kind.as_pointer()), values)

    def end(self) -> None:
        """Return from the function."""
        self.builder.ret_void()
