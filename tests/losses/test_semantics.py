"""The table of the edges: value and both gradients, on every library alike."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
from libraries import unit

import kldiv

INF, NAN = math.inf, math.nan
LOG_QUARTER, EXP_MINUS_1 = math.log(0.25), math.exp(-1)

# name: (log_target, x, y, value, gradient in x, gradient in y); None: not stated.
EDGES = {
    "P = 0, x finite": (False, -1.5, 0.0, 0.0, 0.0, 0.0),
    "P = -0, x finite": (False, -1.5, -0.0, 0.0, 0.0, 0.0),
    "P = 0, x = -inf": (False, -INF, 0.0, 0.0, 0.0, 0.0),
    "P = 0, x = NaN": (False, NAN, 0.0, NAN, 0.0, 0.0),
    "P > 0, x = -inf": (False, -INF, 0.25, INF, -0.25, INF),
    "P = 0, x = +inf": (False, INF, 0.0, 0.0, 0.0, 0.0),
    "P > 0, x = +inf": (False, INF, 0.25, -INF, -0.25, -INF),
    "P > 0, x = NaN": (False, NAN, 0.25, NAN, -0.25, NAN),
    "P = +inf": (False, -1.0, INF, INF, -INF, INF),
    "P < 0": (False, -1.0, -0.25, NAN, 0.25, NAN),
    "P = NaN": (False, -1.0, NAN, NAN, NAN, NAN),
    "P > 0, x finite": (False, -1.0, 0.25, 0.25 * (LOG_QUARTER + 1), -0.25, LOG_QUARTER + 2),
    "log P = -inf, x finite": (True, -1.0, -INF, 0.0, 0.0, 0.0),
    "log P = -inf, x = -inf": (True, -INF, -INF, 0.0, 0.0, 0.0),
    "log P = -inf, x = +inf": (True, INF, -INF, 0.0, 0.0, 0.0),
    "log P = -inf, x = NaN": (True, NAN, -INF, NAN, 0.0, None),
    "log P finite, x = -inf": (True, -INF, -1.0, INF, -EXP_MINUS_1, INF),
    "log P far below underflow, x = -inf": (True, -INF, -2000.0, INF, 0.0, INF),
    "log P far below underflow, x finite": (True, -1.0, -2000.0, 0.0, 0.0, 0.0),
    "log P finite, x = +inf": (True, INF, -1.0, -INF, -EXP_MINUS_1, -INF),
    "log P = NaN": (True, -1.0, NAN, NAN, NAN, NAN),
    "log P finite, x finite": (True, -2.0, -1.0, EXP_MINUS_1, -EXP_MINUS_1, 2 * EXP_MINUS_1),
}


@pytest.mark.parametrize("edge", EDGES)
def test_value(lib, edge):
    log_target, x, y, value, _, _ = EDGES[edge]
    # A neighbour must not change, nor be changed.
    result = kldiv.kl_div(
        lib.array([[x, -1.0]]),
        lib.array([[y, -1.0 if log_target else 0.5]]),
        reduction="none",
        log_target=log_target,
    )
    neighbour = 0.0 if log_target else 0.5 * (math.log(0.5) + 1)
    lib.assert_equal(result, [[value, neighbour]])


@pytest.mark.leave_out(lambda edge, argument: EDGES[edge][4 + argument] is None and "not stated")
@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("argument", [0, 1], ids=["input", "target"])
def test_gradient(lib, edge, argument):
    log_target, x, y, _, *gradients = EDGES[edge]
    loss = partial(kldiv.kl_div, reduction="sum", log_target=log_target)
    _, gradient = kldiv.value_and_grad(loss, argument)(lib.array([x]), lib.array([y]))
    lib.assert_equal(gradient, [gradients[argument]])


X = np.log([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]])
Y = np.array([[0.1, 0.0, 0.9], [0.3, 0.3, 0.4]])
ELEMENTS = np.array(
    [
        [0.1 * math.log(0.5), 0.0, 0.9 * math.log(1.8)],
        [0.3 * math.log(0.5), 0.0, 0.4 * math.log(4.0)],
    ]
)


def test_mean_is_the_default(lib):
    x, y = lib.array(X), lib.array(Y)
    lib.assert_equal(kldiv.kl_div(x, y), ELEMENTS.sum() / 6)
    lib.assert_equal(kldiv.kl_div(x, y, reduction="batchmean"), ELEMENTS.sum() / 2)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean", "batchmean"])
def test_zero_dimensional(lib, reduction):
    result = kldiv.kl_div(lib.array(-1.0), lib.array(0.5), reduction=reduction)
    lib.assert_equal(result, 0.5 * (math.log(0.5) + 1))


@pytest.mark.parametrize(
    ("reduction", "expected"),
    [("none", np.zeros((0, 3))), ("sum", 0.0), ("mean", NAN), ("batchmean", NAN)],
)
def test_empty(lib, reduction, expected):
    empty = lib.array(np.zeros((0, 3)))
    lib.assert_equal(kldiv.kl_div(empty, empty, reduction=reduction), expected)


KEEP = np.array([[True, False, True], [False, False, False]])


@pytest.mark.parametrize(
    ("reduction", "expected"),
    [
        ("none", np.where(KEEP, ELEMENTS, 0.0)),
        ("sum", ELEMENTS[KEEP].sum()),
        ("mean", ELEMENTS[KEEP].sum() / 2),
        ("batchmean", ELEMENTS[KEEP].sum() / 1),
    ],
)
@pytest.mark.parametrize("poison", [NAN, INF, -INF])
@pytest.mark.parametrize("log_target", [False, True])
def test_where_leaks_nothing(lib, reduction, expected, poison, log_target):
    x = np.where(KEEP, X, poison)
    with np.errstate(divide="ignore"):
        y = np.where(KEEP, np.log(Y) if log_target else Y, poison)
    loss = partial(kldiv.kl_div, reduction=reduction, log_target=log_target, where=lib.array(KEEP))
    lib.assert_equal(loss(lib.array(x), lib.array(y)), expected)
    if reduction == "none":
        return
    count = {"sum": 1, "mean": 2, "batchmean": 1}[reduction]
    _, gradients = kldiv.value_and_grad(loss, (0, 1))(lib.array(x), lib.array(y))
    lib.assert_equal(gradients[0], np.where(KEEP, -Y, 0.0) / count)
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = np.log(Y) + 1 - X
        slope = np.where(KEEP & (Y > 0), Y * slope if log_target else slope, 0.0)
    lib.assert_equal(gradients[1], slope / count)


@pytest.mark.parametrize(
    ("reduction", "expected"), [("sum", 0.0), ("mean", NAN), ("batchmean", NAN)]
)
def test_where_keeps_nothing(lib, reduction, expected):
    nothing = lib.array(np.zeros((2, 3), dtype=bool))
    loss = partial(kldiv.kl_div, reduction=reduction, where=nothing)
    lib.assert_equal(loss(lib.array(X), lib.array(Y)), expected)
    _, gradients = kldiv.value_and_grad(loss, (0, 1))(lib.array(X), lib.array(Y))
    for gradient in gradients:
        lib.assert_equal(gradient, np.zeros((2, 3)))


@pytest.mark.parametrize("shape", [(2, 1), (1, 3), (3,), (1, 1), (1,), ()])
@pytest.mark.parametrize("reduction", ["sum", "mean", "batchmean"])
def test_where_broadcasts(lib, shape, reduction):
    keep = np.arange(1, 1 + math.prod(shape)).reshape(shape) % 2 == 1
    whole = np.broadcast_to(keep, (2, 3))
    divisor = {"sum": 1, "mean": whole.sum(), "batchmean": whole.any(axis=1).sum()}[reduction]
    result = kldiv.kl_div(lib.array(X), lib.array(Y), reduction=reduction, where=lib.array(keep))
    lib.assert_equal(result, ELEMENTS[whole].sum() / divisor)


@pytest.mark.slow_where(lambda lib: lib.root == "array_api_strict")
def test_large_counts_are_exact(lib):
    """A float32 counter would stop at 2²⁴."""
    n = 2**24 + 2
    x, y = np.zeros(n, np.float32), np.full(n, math.e, np.float32)
    keep = lib.array(np.ones(n, dtype=bool))
    result = kldiv.kl_div(
        lib.array(x, "float32"), lib.array(y, "float32"), where=keep, dtype="float32"
    )
    lib.assert_equal(result, np.float32(math.e), "float32")


@pytest.mark.parametrize("argument", ["input", "target"])
@pytest.mark.parametrize("dtype", ["int32", "bool", "complex64"])
def test_other_dtypes_are_refused(lib, argument, dtype):
    arrays = {"input": lib.array(X), "target": lib.array(Y)}
    arrays[argument] = lib.array(np.ones((2, 3), dtype=dtype), dtype)
    with pytest.raises(kldiv.errors.DTypeError, match=f"^{argument} has dtype {dtype}"):
        kldiv.kl_div(**arrays)


@pytest.mark.parametrize("shape", [(3,), (2, 1), (1, 3), (3, 2), (2, 3, 1), ()])
def test_nothing_is_broadcast(lib, shape):
    with pytest.raises(kldiv.errors.ShapeError, match=r"\(2, 3\) and \(.*nothing is broadcast"):
        kldiv.kl_div(lib.array(X), lib.array(np.ones(shape)))


@pytest.mark.parametrize("shape", [(2,), (3, 2), (1, 2, 3), (4, 1)])
def test_where_that_does_not_fit(lib, shape):
    keep = lib.array(np.ones(shape, dtype=bool))
    with pytest.raises(kldiv.errors.ShapeError, match="where has shape"):
        kldiv.kl_div(lib.array(X), lib.array(Y), where=keep)


def test_where_that_is_not_bool(lib):
    with pytest.raises(kldiv.errors.DTypeError, match="where has dtype"):
        kldiv.kl_div(lib.array(X), lib.array(Y), where=lib.array(np.ones((2, 3))))


@pytest.mark.parametrize("reduction", ["avg", "Mean", "", None, True, ["mean"]])
def test_unknown_reduction(lib, reduction):
    words = "'none', 'mean', 'batchmean', 'sum'"
    with pytest.raises(ValueError, match=words):
        kldiv.kl_div(lib.array(X), lib.array(Y), reduction=reduction)
    with pytest.raises(ValueError, match=words):
        kldiv.KLDivLoss(reduction=reduction)


@pytest.mark.parametrize("option", ["size_average", "reduce"])
def test_deprecated_options_do_not_exist(lib, option):
    with pytest.raises(TypeError, match=option):
        kldiv.kl_div(lib.array(X), lib.array(Y), **{option: True})


def test_options_are_keyword_only(lib):
    with pytest.raises(TypeError, match="positional"):
        kldiv.kl_div(lib.array(X), lib.array(Y), "sum")


class TestDtypes:
    """Result dtypes, promotion before any log, accumulation in float32, one rounding at the end."""

    PAIRS = ("float16", "bfloat16", "float32", "float64")

    @staticmethod
    def wider(a, b):
        if {a, b} == {"float16", "bfloat16"}:
            return "float32"
        return max(a, b, key=TestDtypes.PAIRS.index)

    @pytest.mark.leave_out(
        lambda lib, first, second: (
            {first, second} - set(lib.floats) and "one of two dtypes is not here"
        )
    )
    @pytest.mark.parametrize("first", PAIRS)
    @pytest.mark.parametrize("second", PAIRS)
    def test_promotion(self, lib, first, second):
        x, y = lib.array(X, first), lib.array(Y, second)
        exact_x, exact_y = (lib.numpy(a).astype(np.float64) for a in (x, y))
        with np.errstate(divide="ignore", invalid="ignore"):
            expected = np.where(exact_y > 0, exact_y * (np.log(exact_y) - exact_x), 0.0).sum()
        lib.assert_equal(
            kldiv.kl_div(x, y, reduction="sum"), expected, self.wider(first, second), ulps=4
        )

    @pytest.mark.parametrize("dtype", PAIRS)
    def test_dtype_of_the_result(self, lib, dtype):
        x, y = lib.array(X, "float32"), lib.array(Y, "float32")
        result = kldiv.kl_div(x, y, reduction="sum", dtype=dtype)
        lib.assert_equal(result, ELEMENTS.sum(), dtype, ulps=8 * max(1, 2**-24 / unit(dtype)))
        own = kldiv.backends.find(x).namespace(x)
        again = kldiv.kl_div(x, y, reduction="sum", dtype=getattr(own, dtype))
        lib.assert_equal(again, lib.numpy(result), dtype)

    def test_unknown_dtype(self, lib):
        with pytest.raises(kldiv.errors.DTypeError, match="dtype must be one of"):
            kldiv.kl_div(lib.array(X), lib.array(Y), dtype="int32")

    @pytest.mark.parametrize("half", ["float16", "bfloat16"])
    def test_half_accumulates_in_float32(self, lib, half):
        x, y = lib.array(np.full(60, -2000.0), half), lib.array(np.ones(60), half)
        total = kldiv.kl_div(x, y, reduction="sum", dtype="float32")
        lib.assert_equal(total, 120_000.0, "float32", ulps=0)  # beyond float16

    @pytest.mark.parametrize("half", ["float16", "bfloat16"])
    def test_gradients_keep_their_argument_s_dtype(self, lib, half):
        x, y = lib.array(X, half), lib.array(Y, "float32")
        _, gradients = kldiv.value_and_grad(kldiv.kl_div, (0, 1))(x, y)
        lib.assert_equal(gradients[0], -Y / 6, half, ulps=2)
        lib.assert_like(gradients[1], (2, 3), "float32")


def test_inputs_are_never_modified(lib):
    x, y = lib.array(np.where(KEEP, X, NAN)), lib.array(Y)
    before = lib.numpy(x).copy(), lib.numpy(y).copy()
    kldiv.value_and_grad(kldiv.kl_div, (0, 1))(x, y, where=lib.array(KEEP))
    np.testing.assert_array_equal(lib.numpy(x), before[0])
    np.testing.assert_array_equal(lib.numpy(y), before[1])


@pytest.mark.parametrize("wrong", [1.0, [0.5, 0.5], "0.5", None, {}])
def test_what_is_no_array(wrong):
    with pytest.raises(TypeError, match=r"expected an array.*asarray"):
        kldiv.kl_div(wrong, np.ones(2))


@pytest.mark.filterwarnings("ignore:the matrix subclass")
@pytest.mark.parametrize("make", [np.ma.masked_array, np.matrix])
def test_numpy_subclasses_with_an_arithmetic_of_their_own(make):
    wrong = make([0.5])
    with pytest.raises(TypeError, match=r"numpy\.asarray"):
        kldiv.kl_div(wrong, wrong)


@pytest.mark.parametrize(
    ("loss", "option", "advice"),
    [
        (kldiv.kl_div_with_logits, "dim", "say axis="),
        (kldiv.js_divergence, "dim", "say axis="),
        (kldiv.kl_div, "axis", "reduction='none'"),
        (kldiv.kl_div, "dim", "reduction='none'"),
    ],
)
def test_an_axis_by_another_name_is_advised(loss, option, advice):
    with pytest.raises(TypeError, match=option) as refused:
        loss(np.ones((2, 3)) / 3, np.ones((2, 3)) / 3, **{option: -1})
    (note,) = refused.value.__notes__
    assert advice in note
