"""KL and JS from logits through the public functions: edges, accuracy, blocks, derivatives."""

from __future__ import annotations

import math
from functools import cache, partial
from types import SimpleNamespace

import numpy as np
import pytest
import reference
from libraries import Library, require, unit
from reference import exact, extended

import kldiv
from kldiv import js_div_with_logits, kl_div_with_logits
from kldiv.errors import DTypeError, LibraryError, OptionError, ShapeError
from kldiv.formulas import blocks, rows

# torch.func and forward mode load parts of torch that still use torch.jit.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated:DeprecationWarning")

INF, NAN = math.inf, math.nan
TARGET = {"float32": 1e-6, "float64": 2e-15}
LOSSES = {"kl": kl_div_with_logits, "js": js_div_with_logits}
REDUCTIONS = ["none", "sum", "mean", "batchmean"]

both_losses = pytest.mark.parametrize("name", LOSSES)


@pytest.fixture(autouse=True)
def eager_jax():
    """Run JAX operation by operation, for each that it compiles takes seconds.

    Tests that compile say so by ``compiled_jax``.
    """
    try:
        import jax
    except ImportError:
        yield
    else:
        with jax.disable_jit():
            yield


def compiled_jax():
    """Return the context in which JAX compiles as usual."""
    return pytest.importorskip("jax").disable_jit(False)


# --- what is expected -----------------------------------------------------------------------------


def logs(probabilities, shift=0.0):
    with np.errstate(divide="ignore"):
        return np.log(np.asarray(probabilities, dtype=float)) + shift


def textbook(name, q, p, beta=0.5):
    """Value and gradients in the logits of Q and P by the definitions, with the edges' rules."""
    q, p = np.asarray(q, dtype=float), np.asarray(p, dtype=float)

    def relative_entropy(a, b):
        """D(A‖B) and its gradient in the logits of A, B held."""
        with np.errstate(divide="ignore", invalid="ignore"):
            logarithm = np.where(a > 0, np.log(a / b), 0.0)
            value = float(np.sum(np.where(a > 0, a * logarithm, 0.0)))
            slope = a * (logarithm - value) if value < INF else NAN
            return value, np.where(a > 0, slope, 0.0)

    if name == "kl":
        value, gradient = relative_entropy(p, q)
        return value, q - p, gradient
    m = beta * p + (1 - beta) * q
    of_p, of_q = relative_entropy(p, m), relative_entropy(q, m)
    value = beta * of_p[0] + (1 - beta) * of_q[0]
    return value, (1 - beta) * of_q[1], beta * of_p[1]


def evaluate(lib, loss, s, t, dtype=None, **options):
    """Return value and both gradients, all on the host, having checked whose and what they are."""
    dtype = dtype or lib.widest
    s, t = lib.array(s, dtype), lib.array(t, dtype)
    value, gradients = kldiv.value_and_grad(partial(loss, **options), (0, 1))(s, t)
    lib.assert_like(value, (), dtype)
    for gradient in gradients:
        lib.assert_like(gradient, tuple(s.shape), dtype)
    return tuple(lib.numpy(a) for a in (value, *gradients))


def close(found, expected, dtype, ulps=8):
    tolerance = ulps * unit(dtype)
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


# Three rows of four classes: JAX prepares its operations once for each shape.
Q = np.array([[0.5, 0.25, 0.125, 0.125], [0.1, 0.2, 0.3, 0.4], [0.7, 0.1, 0.1, 0.1]])
P = np.array([[0.25, 0.25, 0.25, 0.25], [0.4, 0.3, 0.2, 0.1], [0.6, 0.2, 0.1, 0.1]])
S, T = logs(Q, 0.5), logs(P, -2.0)


@cache
def expected(name, beta=0.5):
    """Values and gradients of these rows."""
    found = [textbook(name, q, p, beta) for q, p in zip(Q, P, strict=True)]
    return tuple(np.array(column) for column in zip(*found, strict=True))


# --- the table of the edges -----------------------------------------------------------------------

# name: (Q, P): a probability of 0 is a logit of −∞.
EDGES = {
    "t = s = -inf at a class": ([0.5, 0.25, 0.25, 0.0], [0.25, 0.25, 0.5, 0.0]),
    "t = s = -inf at all classes but one": ([0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 1.0, 0.0]),
    "t = -inf, s finite": ([0.5, 0.25, 0.125, 0.125], [0.25, 0.75, 0.0, 0.0]),
    "t finite, s = -inf": ([0.5, 0.5, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25]),
    "t = -inf here, s = -inf there": ([0.5, 0.0, 0.5, 0.0], [0.5, 0.5, 0.0, 0.0]),
    "nothing in common": ([0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.25, 0.75]),
}


def beside(edge, others):
    """Return the edge's row between two ordinary ones."""
    return np.array([others[0], edge, others[2]])


@both_losses
@pytest.mark.parametrize("edge", EDGES)
def test_edges(lib, name, edge):
    q, p = EDGES[edge]
    value, *gradients = textbook(name, q, p)
    values, *neighbours = expected(name)
    s, t = beside(logs(q), S), beside(logs(p, 1.0), T)
    lossless = LOSSES[name](lib.array(s), lib.array(t), reduction="none")
    lib.assert_equal(lossless, [values[0], value, values[2]])
    total, *found = evaluate(lib, LOSSES[name], s, t, reduction="sum")
    close(total, values[0] + value + values[2], lib.widest)
    for ours, right, rest in zip(found, gradients, neighbours, strict=True):
        close(ours, beside(right, rest), lib.widest)


def test_what_the_table_says_of_a_student_that_lacks_a_class(lib):
    """KL is +∞, yet what the student's gradient needs is finite; the teacher has none."""
    q, p = np.array([0.5, 0.5, 0.0, 0.0]), np.array([0.25, 0.25, 0.5, 0.0])
    s, t = beside(logs(q), S), beside(logs(p), T)
    total, in_s, in_t = evaluate(lib, kl_div_with_logits, s, t, reduction="sum")
    assert total == INF
    close(in_s[1], q - p, lib.widest)
    assert np.isnan(in_t[1, :3]).all()
    assert in_t[1, 3] == 0
    assert np.isfinite(in_t[[0, 2]]).all()
    total, in_s, in_t = evaluate(lib, js_div_with_logits, s, t, reduction="sum")
    assert np.isfinite(total)
    assert np.isfinite(in_s).all()
    assert np.isfinite(in_t).all()


BROKEN = {
    "t all -inf": (S[1], [-INF] * 4),
    "s all -inf": ([-INF] * 4, T[1]),
    "both all -inf": ([-INF] * 4, [-INF] * 4),
    "t holds +inf": (S[1], [0.0, INF, 0.0, -INF]),
    "s holds +inf": ([0.0, INF, 0.0, 1.0], T[1]),
    "t holds NaN": (S[1], [0.0, NAN, 0.0, 1.0]),
    "s holds NaN": ([-INF, 0.0, NAN, 1.0], T[1]),
    "+inf in both": ([0.0, INF, 0.0, 1.0], [0.0, INF, 0.0, 1.0]),
}


@both_losses
@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_row_is_nan_and_others_are_untouched(lib, name, broken):
    s, t = (beside(row, rest) for row, rest in zip(BROKEN[broken], (S, T), strict=True))
    values, *gradients = expected(name)
    result = LOSSES[name](lib.array(s), lib.array(t), reduction="none")
    lib.assert_equal(result, [values[0], NAN, values[2]])
    total, *found = evaluate(lib, LOSSES[name], s, t, reduction="sum")
    assert np.isnan(total)
    for ours, right in zip(found, gradients, strict=True):
        assert np.isnan(ours[1]).all()
        close(ours[[0, 2]], right[[0, 2]], lib.widest)


@both_losses
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("dtype", ["float16", "float32", "widest"])
def test_identical_and_shifted_logits_are_exactly_zero(lib, name, temperature, dtype):
    dtype = lib.widest if dtype == "widest" else dtype
    if dtype not in lib.floats:
        pytest.skip(f"{lib.value} has no {dtype} here")
    # Multiples of 1/16, so that float16 holds the shifted ones exactly.
    t = np.array([[0.125, 3.5, -INF, 1.0], [0.0625, 7.0, 9.75, -8.5], [1.5, 0.1, 0.2, -3.3]])
    s = t + np.array([[100.25], [-50.5], [0.0]])
    loss = LOSSES[name]
    values = loss(
        lib.array(s, dtype), lib.array(t, dtype), reduction="none", temperature=temperature
    )
    np.testing.assert_array_equal(lib.numpy(values), np.zeros(3))
    for result in evaluate(lib, loss, s, t, dtype, temperature=temperature):
        np.testing.assert_array_equal(result, np.zeros(result.shape))


@pytest.mark.parametrize("dtype", TARGET)
def test_positive_down_to_the_smallest_normal_number(lib, dtype):
    if dtype not in lib.floats:
        pytest.skip(f"{lib.value} has no {dtype} here")
    s, t = np.zeros((3, 4), dtype), np.zeros((3, 4), dtype)
    s[:, 0] = 4 * math.sqrt(float(np.finfo(dtype).tiny)) * np.array([1, -1, 2])  # KL ≈ 3 s²/32
    found = lib.numpy(
        kl_div_with_logits(lib.array(s, dtype), lib.array(t, dtype), reduction="none")
    )
    assert (found > 0).all()


@both_losses
@pytest.mark.parametrize(
    ("reduction", "right"),
    [("none", np.zeros(0)), ("sum", 0.0), ("mean", NAN), ("batchmean", NAN)],
)
def test_no_rows(lib, name, reduction, right):
    s = lib.array(np.zeros((0, 4)))
    lib.assert_equal(LOSSES[name](s, s, reduction=reduction), right)
    if reduction != "none":
        _, in_s, in_t = evaluate(lib, LOSSES[name], *np.zeros((2, 0, 4)), reduction=reduction)
        assert in_s.shape == in_t.shape == (0, 4)


@pytest.mark.parametrize("shape", [(2, 0, 4), (0, 300, 1000), (300, 0, 1000)])
def test_no_rows_in_any_dimension(lib, shape):
    s = lib.array(np.zeros(shape), "float32")
    lib.assert_equal(kl_div_with_logits(s, s, reduction="none"), np.zeros(shape[:-1]), "float32")


@both_losses
def test_shapes_that_are_refused(lib, name):
    loss = LOSSES[name]

    def zeros(*shape):
        return lib.array(np.zeros(shape))

    with pytest.raises(ShapeError, match=r"axis of classes; got input \(\) and target \(\)"):
        loss(zeros(), zeros())
    with pytest.raises(ShapeError, match=r"axis of classes; got input \(3,\) and target \(\)"):
        loss(zeros(3), zeros())
    for axis in (2, -3):
        with pytest.raises(ShapeError, match=rf"axis {axis} is out of range for .*\(2, 3\)"):
            loss(zeros(2, 3), zeros(2, 3), axis=axis)
    with pytest.raises(ShapeError, match=r"no classes on axis -1: input \(2, 0\)"):
        loss(zeros(2, 0), zeros(2, 0))
    for first, second in (((2, 3), (3, 3)), ((2, 3), (3,)), ((2, 3), (1, 2, 3))):
        with pytest.raises(ShapeError, match=r"must have the same shape; got input .* and target"):
            loss(zeros(*first), zeros(*second))


@both_losses
@pytest.mark.parametrize(
    ("first", "second", "axis"), [((2, 3), (2, 5), -1), ((5, 2), (3, 2), 0), ((3,), (5,), 0)]
)
def test_different_class_counts_name_the_mend(lib, name, first, second, axis):
    s, t = lib.array(np.zeros(first)), lib.array(np.zeros(second))
    with pytest.raises(ShapeError) as caught:
        LOSSES[name](s, t, axis=axis)
    message = str(caught.value)
    assert f"input {first} and target {second}" in message
    assert f"kldiv.pad_classes(logits, 5, axis={axis})" in message
    assert "with −inf, never with 0" in message
    shorter = s if first[axis] == 3 else t
    padded = kldiv.pad_classes(shorter, 5, axis=axis)
    assert tuple(padded.shape) == (second if shorter is s else first)


# --- options --------------------------------------------------------------------------------------


def reduce(values, reduction, keep=None):
    """Reduce the values of rows by the definitions."""
    keep = (
        np.ones(values.shape, dtype=bool) if keep is None else np.broadcast_to(keep, values.shape)
    )
    values = np.where(keep, values, 0.0)
    divisor = {
        "sum": 1,
        "mean": keep.sum(),
        "batchmean": keep.any(axis=tuple(range(1, keep.ndim))).sum(),
    }
    return values if reduction == "none" else values.sum() / divisor[reduction]


@both_losses
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_reductions(lib, name, reduction):
    loss, (values, *gradients) = LOSSES[name], expected(name)
    result = loss(lib.array(S), lib.array(T), reduction=reduction)
    lib.assert_equal(result, reduce(values, reduction))
    if reduction == "none":
        return
    _, *found = evaluate(lib, loss, S, T, reduction=reduction)
    for ours, right in zip(found, gradients, strict=True):
        close(ours, right / (1 if reduction == "sum" else 3), lib.widest)


def test_mean_is_the_default(lib):
    for name, loss in LOSSES.items():
        lib.assert_equal(loss(lib.array(S), lib.array(T)), expected(name)[0].mean())


def test_arguments_by_name(lib):
    for name, loss in LOSSES.items():
        result = loss(target=lib.array(T), input=lib.array(S), reduction="sum")
        lib.assert_equal(result, expected(name)[0].sum())


# Two by three rows: 2×3×4, whichever axis the classes are on.
S3, T3 = (np.stack([a, a[::-1]]) for a in (S, T))


@both_losses
@pytest.mark.parametrize("axis", [0, 1, -2, -1])
def test_any_axis_of_three(lib, name, axis):
    loss, (values, *gradients) = LOSSES[name], expected(name)
    s, t = (np.moveaxis(a, -1, axis) for a in (S3, T3))
    values = np.stack([values, values[::-1]])
    lib.assert_equal(loss(lib.array(s), lib.array(t), axis=axis, reduction="none"), values)
    total, *found = evaluate(lib, loss, s, t, axis=axis, reduction="batchmean")
    close(
        total, values.sum() / 2, lib.widest
    )  # the first dimension of the result, not of the input
    for ours, right in zip(found, gradients, strict=True):
        both = np.stack([right, right[::-1]]) / 2
        close(ours, np.moveaxis(both, -1, axis), lib.widest)


@both_losses
def test_one_row_alone(lib, name):
    loss, (values, *gradients) = LOSSES[name], expected(name)
    for reduction in REDUCTIONS:
        lib.assert_equal(loss(lib.array(S[0]), lib.array(T[0]), reduction=reduction), values[0])
    total, *found = evaluate(lib, loss, S[0], T[0])
    close(total, values[0], lib.widest)
    for ours, right in zip(found, gradients, strict=True):
        close(ours, right[0], lib.widest)


@both_losses
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_where_leaks_nothing(lib, name, reduction):
    loss, (values, *gradients) = LOSSES[name], expected(name)
    s, t = S.copy(), T.copy()
    s[0], t[0] = [NAN, 1.0, INF, -INF], -INF
    t[2], s[2] = [INF, NAN, 0.0, 0.0], -INF
    keep = np.array([False, True, False])
    options = {"reduction": reduction, "where": lib.array(keep)}
    lib.assert_equal(loss(lib.array(s), lib.array(t), **options), reduce(values, reduction, keep))
    if reduction == "none":
        return
    _, *found = evaluate(lib, loss, s, t, **options)
    for ours, right in zip(found, gradients, strict=True):
        np.testing.assert_array_equal(ours[[0, 2]], np.zeros((2, 4)))
        close(ours[1], right[1], lib.widest)


@both_losses
@pytest.mark.parametrize(("reduction", "right"), [("sum", 0.0), ("mean", NAN), ("batchmean", NAN)])
def test_where_keeps_nothing(lib, name, reduction, right):
    options = {"reduction": reduction, "where": lib.array(np.zeros(3, dtype=bool))}
    total, *found = evaluate(lib, LOSSES[name], S, T, **options)
    np.testing.assert_array_equal(total, right)
    for ours in found:
        np.testing.assert_array_equal(ours, np.zeros((3, 4)))


@pytest.mark.parametrize("shape", [(2, 3), (1, 3), (2, 1), (3,), (1,), ()])
def test_where_broadcasts(lib, shape):
    keep = np.arange(1, 1 + math.prod(shape)).reshape(shape) % 2 == 1
    values = expected("kl")[0]
    values = np.stack([values, values[::-1]])
    s, t, mask = lib.array(S3), lib.array(T3), lib.array(keep)
    for reduction in REDUCTIONS:
        result = kl_div_with_logits(s, t, reduction=reduction, where=mask)
        lib.assert_equal(result, reduce(values, reduction, keep))
    # The mask is of the result's axes, wherever the classes are.
    s, t = lib.array(np.moveaxis(S3, -1, 0)), lib.array(np.moveaxis(T3, -1, 0))
    result = kl_div_with_logits(s, t, axis=0, reduction="none", where=mask)
    lib.assert_equal(result, reduce(values, "none", keep))


@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 3), (1, 1)])
def test_where_that_does_not_fit(lib, shape):
    mask = lib.array(np.ones(shape, dtype=bool))
    for loss in LOSSES.values():
        with pytest.raises(ShapeError, match=r"where has shape .* classes are masked by −inf"):
            loss(lib.array(S), lib.array(T), where=mask)


def test_where_that_is_not_bool(lib):
    with pytest.raises(DTypeError, match="where has dtype"):
        kl_div_with_logits(lib.array(S), lib.array(T), where=lib.array(np.ones(3)))


# --- temperature and beta -------------------------------------------------------------------------


def truth_of_rows(s, t, dtype, temperatures=(1.0, 1.0, 1.0), beta=None):
    """Values and gradients of rows in the dtype by the reference."""
    s, t = (np.asarray(a).astype(dtype) for a in (s, t))
    found = [
        exact(a, b, temperature=c, beta=beta) for a, b, c in zip(s, t, temperatures, strict=True)
    ]
    return tuple(np.array(column, dtype=float) for column in zip(*found, strict=True))


BETA = {"kl": None, "js": 0.5}


@both_losses
@pytest.mark.parametrize("temperature", [2, 0.7, 30.0])
def test_temperature(lib, name, temperature):
    values, *gradients = truth_of_rows(S, T, lib.widest, [temperature] * 3, BETA[name])
    result = LOSSES[name](lib.array(S), lib.array(T), temperature=temperature, reduction="none")
    np.testing.assert_allclose(lib.numpy(result), values, rtol=16 * unit(lib.widest))
    _, *found = evaluate(lib, LOSSES[name], S, T, temperature=temperature, reduction="sum")
    for ours, right in zip(found, gradients, strict=True):
        assert abs(ours - right).sum() <= 16 * unit(lib.widest) * abs(right).sum()


@both_losses
@pytest.mark.parametrize("values", [[0.5, 1.7, 3.0], [1.7], 2.0], ids=["rows", "one", "0-d"])
def test_temperature_by_row(lib, name, values):
    whole = np.broadcast_to(np.asarray(values), 3)
    exactly = whole.astype(lib.widest).astype(float)
    right = truth_of_rows(S, T, lib.widest, exactly, BETA[name])
    temperature = lib.array(np.asarray(values))
    loss = partial(LOSSES[name], temperature=temperature)
    result = loss(lib.array(S), lib.array(T), reduction="none")
    np.testing.assert_allclose(lib.numpy(result), right[0], rtol=16 * unit(lib.widest))
    _, *found = evaluate(lib, loss, S, T, reduction="sum")
    for ours, gradient in zip(found, right[1:], strict=True):
        assert abs(ours - gradient).sum() <= 16 * unit(lib.widest) * abs(gradient).sum()


def test_temperature_of_a_row_left_out_leaks_nothing(lib):
    temperature = lib.array(np.array([NAN, 1.0, 0.0]))
    keep = lib.array(np.array([False, True, False]))
    values, *gradients = expected("kl")
    options = {"temperature": temperature, "where": keep, "reduction": "sum"}
    total, *found = evaluate(lib, kl_div_with_logits, S, T, **options)
    close(total, values[1], lib.widest)
    for ours, right in zip(found, gradients, strict=True):
        close(ours, right * [[0.0], [1.0], [0.0]], lib.widest)


@both_losses
@pytest.mark.parametrize(
    "wrong", [0, 0.0, -1, -0.5, NAN, INF, -INF, pytest.param(10**400, id="huge")]
)
def test_temperature_that_is_no_temperature(name, wrong):
    with pytest.raises(ValueError, match="temperature must be positive and finite"):
        LOSSES[name](S, T, temperature=wrong)


@both_losses
def test_temperature_of_another_type(lib, name):
    s, t = lib.array(S), lib.array(T)
    with pytest.raises(DTypeError, match="temperature"):
        LOSSES[name](s, t, temperature=lib.array(np.ones(3, dtype="int32"), "int32"))
    for wrong in ("2", [1.0, 2.0, 3.0], None):
        with pytest.raises(TypeError, match="expected an array"):
            LOSSES[name](s, t, temperature=wrong)


@pytest.mark.parametrize("shape", [(4,), (3, 1), (2,)])
def test_temperature_that_does_not_fit(lib, shape):
    """It has one number for each row, and no axis of classes."""
    temperature = lib.array(np.ones(shape))
    with pytest.raises(ShapeError, match="temperature has shape"):
        kl_div_with_logits(lib.array(S), lib.array(T), temperature=temperature)


@pytest.mark.parametrize("beta", [0.01, 0.3, 0.99])
def test_beta(lib, beta):
    s, t = S.astype(lib.widest), T.astype(lib.widest)
    values, *gradients = truth_of_rows(s, t, lib.widest, beta=beta)
    total, *found = evaluate(lib, js_div_with_logits, s, t, beta=beta, reduction="sum")
    np.testing.assert_allclose(total, values.sum(), rtol=TARGET[lib.widest])
    for ours, right in zip(found, gradients, strict=True):
        assert abs(ours - right).sum() <= TARGET[lib.widest] * abs(right).sum()


def test_the_largest_js(lib):
    s, t = beside([0.0, 1.0, -INF, -INF], S), beside([-INF, -INF, 5.0, 4.0], T)
    result = js_div_with_logits(lib.array(s), lib.array(t), beta=0.25, reduction="none")
    close(lib.numpy(result)[1], -0.25 * math.log(0.25) - 0.75 * math.log(0.75), lib.widest, 4)


@pytest.mark.parametrize("wrong", [0, 1, 0.0, 1.0, -0.1, 1.5, NAN, INF])
def test_beta_outside(wrong):
    with pytest.raises(
        ValueError, match=r"beta must lie between 0 and 1; got .*kl_div_with_logits"
    ):
        js_div_with_logits(S, T, beta=wrong)


# --- dtypes and arguments -------------------------------------------------------------------------

FLOATS = ("float16", "bfloat16", "float32", "float64")


@both_losses
@pytest.mark.parametrize("half", FLOATS[:2])
def test_half_logits_are_exact(lib, name, half):
    """G3: the divergence of the very logits that were given, rounded once."""
    if half not in lib.floats:
        pytest.skip(f"{lib.value} has no {half} here")
    s, t = lib.array(S + 0.01 * T, half), lib.array(S, half)
    right = truth_of_rows(lib.numpy(s), lib.numpy(t), "float64", beta=BETA[name])
    wide = LOSSES[name](s, t, reduction="none", dtype="float32")
    lib.assert_like(wide, (3,), "float32")
    np.testing.assert_allclose(lib.numpy(wide), right[0], rtol=TARGET["float32"])
    own = LOSSES[name](s, t, reduction="none")
    lib.assert_like(own, (3,), half)
    smallest = {"float16": 2.0**-24, "bfloat16": 0.0}[half]  # below 2⁻¹⁴ its steps are equal
    np.testing.assert_allclose(lib.numpy(own), right[0], rtol=1.01 * unit(half), atol=smallest)
    _, gradients = kldiv.value_and_grad(partial(LOSSES[name], reduction="sum"), (0, 1))(s, t)
    for ours, gradient in zip(gradients, right[1:], strict=True):
        lib.assert_like(ours, (3, 4), half)
        np.testing.assert_allclose(lib.numpy(ours), gradient, rtol=1.01 * unit(half), atol=smallest)


def wider(a, b):
    return "float32" if {a, b} == {"float16", "bfloat16"} else max(a, b, key=FLOATS.index)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("float16", "bfloat16"),
        ("bfloat16", "float32"),
        ("float32", "float64"),
        ("float64", "float16"),
    ],
)
def test_mixed_dtypes(lib, first, second):
    if not {first, second} <= set(lib.floats):
        pytest.skip(f"{lib.value} has no {first} or {second} here")
    s, t = lib.array(S, first), lib.array(T, second)
    wide = wider(first, second)
    right = truth_of_rows(lib.numpy(s), lib.numpy(t), "float64")
    result = kl_div_with_logits(s, t, reduction="none")
    lib.assert_like(result, (3,), wide)
    np.testing.assert_allclose(lib.numpy(result), right[0], rtol=16 * unit(wide))
    _, gradients = kldiv.value_and_grad(partial(kl_div_with_logits, reduction="sum"), (0, 1))(s, t)
    for ours, gradient, dtype in zip(gradients, right[1:], (first, second), strict=True):
        lib.assert_like(ours, (3, 4), dtype)
        np.testing.assert_allclose(lib.numpy(ours), gradient, atol=2 * unit(dtype))


@pytest.mark.parametrize("dtype", FLOATS)
def test_dtype_of_the_result(lib, dtype):
    if dtype not in lib.floats:
        pytest.skip(f"{lib.value} has no {dtype} here")
    s, t = lib.array(S, "float32"), lib.array(T, "float32")
    right = truth_of_rows(S, T, "float32")[0]
    own = kldiv.backends.find(s).namespace(s)
    for wanted in (dtype, getattr(own, dtype)):
        result = kl_div_with_logits(s, t, reduction="none", dtype=wanted)
        lib.assert_like(result, (3,), dtype)
        # Float64 is computed in float64 from the float32 logits.
        np.testing.assert_allclose(lib.numpy(result), right, rtol=16 * unit(dtype))


@both_losses
def test_arguments_that_are_refused(lib, name):
    loss, s, t = LOSSES[name], lib.array(S), lib.array(T)
    for dtype in ("int32", "bool", "complex64"):
        wrong = lib.array(np.ones((3, 4), dtype=dtype), dtype)
        with pytest.raises(DTypeError, match=f"^input has dtype {dtype}"):
            loss(wrong, t)
        with pytest.raises(DTypeError, match=f"^target has dtype {dtype}"):
            loss(s, wrong)
    for wrong in ([[0.0, 1.0]], 1.0, "logits", None):
        with pytest.raises(TypeError, match=r"expected an array.*asarray"):
            loss(wrong, t)
    with pytest.raises(DTypeError, match="dtype must be one of"):
        loss(s, t, dtype="int32")
    with pytest.raises(OptionError, match="'none', 'mean', 'batchmean', 'sum'"):
        loss(s, t, reduction="avg")
    with pytest.raises(TypeError, match="positional"):
        loss(s, t, -1)
    with pytest.raises(TypeError, match="log_target"):
        loss(s, t, log_target=True)
    with pytest.raises(ShapeError, match="scalar loss"):
        kldiv.value_and_grad(partial(loss, reduction="none"))(s, t)


@pytest.mark.parametrize("argument", ["target", "where", "temperature"])
def test_arrays_of_two_libraries_are_refused(lib, argument):
    other = Library.TORCH if lib.root == "numpy" else Library.NUMPY
    require(other)
    foreign = {"target": T, "where": np.ones(3, dtype=bool), "temperature": np.ones(3)}
    options = {"target": lib.array(T), argument: other.array(foreign[argument])}
    names = {lib.backend, other.backend}
    with pytest.raises(LibraryError, match="come from different libraries") as caught:
        kl_div_with_logits(lib.array(S), **options)
    assert all(name in str(caught.value) for name in names)


@both_losses
def test_arguments_are_never_modified(lib, name):
    s, t = beside([0.0, -INF, NAN, 1.0], S), beside([-INF, 1.0, 2.0, 3.0], T)
    ours = lib.array(s), lib.array(t)
    keep = lib.array(np.array([True, False, True]))
    temperature = lib.array(np.array([1.0, NAN, 2.0]))
    loss = partial(LOSSES[name], where=keep, temperature=temperature)
    for result in kldiv.value_and_grad(loss, (0, 1))(*ours)[1]:
        lib.numpy(result)  # computes what is lazy
    np.testing.assert_array_equal(lib.numpy(ours[0]), s.astype(lib.widest))
    np.testing.assert_array_equal(lib.numpy(ours[1]), t.astype(lib.widest))
    np.testing.assert_array_equal(lib.numpy(keep), [True, False, True])
    np.testing.assert_array_equal(lib.numpy(temperature), [1.0, NAN, 2.0])


# --- pad_classes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("axis", "shape"), [(-1, (3, 6)), (1, (3, 6)), (0, (6, 4)), (-2, (6, 4))])
def test_pad_classes(lib, dtype, axis, shape):
    if dtype not in lib.floats:
        pytest.skip(f"{lib.value} has no {dtype} here")
    padded = kldiv.pad_classes(lib.array(S, dtype), 6, axis=axis)
    lib.assert_like(padded, shape, dtype)
    found = lib.numpy(padded)
    np.testing.assert_array_equal(found[:3, :4], lib.numpy(lib.array(S, dtype)))
    assert (found[3:] == -INF).all()
    assert (found[:, 4:] == -INF).all()


def test_padding_changes_no_divergence(lib):
    s, t = (kldiv.pad_classes(lib.array(a), 6) for a in (S[:, :3], T))
    kl = kl_div_with_logits(t, s, reduction="none")  # the longer one is the student
    q, p = P, Q[:, :3] / Q[:, :3].sum(axis=1, keepdims=True)
    p = np.concatenate([p, np.zeros((3, 1))], axis=1)
    lib.assert_equal(kl, [textbook("kl", *row)[0] for row in zip(q, p, strict=True)])
    for size in (3, 4):
        lib.assert_like(kldiv.pad_classes(lib.array(S[:, :3]), size), (3, size), lib.widest)


def test_pad_classes_refuses(lib):
    with pytest.raises(ShapeError, match=r"4 classes on axis 1, more than size 3"):
        kldiv.pad_classes(lib.array(S), 3)
    for shape, axis in (((), -1), ((3,), 1), ((3,), -2)):
        with pytest.raises(ShapeError, match=f"axis {axis} is out of range"):
            kldiv.pad_classes(lib.array(np.zeros(shape)), 5, axis=axis)
    for dtype in ("int32", "bool", "complex64"):
        with pytest.raises(DTypeError, match=f"dtype {dtype}"):
            kldiv.pad_classes(lib.array(np.ones(3, dtype=dtype), dtype), 5)
    with pytest.raises(TypeError, match=r"expected an array.*asarray"):
        kldiv.pad_classes([0.0, 1.0], 5)


# --- the targets ----------------------------------------------------------------------------------

SIZES = (2, 3, 100, 1000)
BETAS = (None, 0.5, 0.01)


@cache
def grid(size):
    """Names and rows of logits: distances, shifts, peaks, masks."""
    random = np.random.default_rng(size)
    t, z = 3 * random.normal(size=size), random.normal(size=size)
    pairs = {f"distance 1e-{k}": (t + 10.0**-k * z, t) for k in range(9)}
    pairs["teacher + 100"] = (t + 1e-3 * z, t + 100)
    pairs["student - 50"] = (t + 1e-5 * z - 50, t)
    pairs["student = teacher + 8, rounded"] = (t + 8, t)
    pairs["KL of several"] = (t + 3 * z - 50, t + 100)
    if size < 1000:  # up to here the slow reference is fast enough
        low, high, last = (np.arange(size) == i for i in (t.argmin(), t.argmax(), size - 1))
        peaked = t + 30 * (np.arange(size) == size // 2)
        pairs["both peaked"] = (peaked + 1e-3 * z, peaked)
        pairs["peaks disagree"] = (t + 30 * (np.arange(size) == 0), peaked)
        pairs["KL of hundreds"] = (t - 500 * high, t)
        pairs["an unlikely class 40 lower"] = (t + 1e-3 * z - 40 * low, t)
        pairs["scale 20"] = (20 * z, 20 * random.normal(size=size))
        pairs["masked for both"] = (np.where(last, -INF, t + 1e-3 * z), np.where(last, -INF, t))
        pairs["masked for the teacher"] = (t + 1e-2 * z, np.where(last, -INF, t))
        pairs["masked for the student"] = (np.where(last, -INF, t + z), t)
    return list(pairs), *(np.stack([pair[i] for pair in pairs.values()]) for i in (0, 1))


@cache
def truths(size, dtype, beta):
    _, s, t = grid(size)
    function = extended if size == 1000 else exact
    return [
        function(a, b, beta=beta) for a, b in zip(s.astype(dtype), t.astype(dtype), strict=True)
    ]


def sizes_here():
    return SIZES if reference.WIDE else SIZES[:-1]


def errors(found, true, dtype):
    """Relative error of a value, and those of its gradients in the sum of magnitudes."""
    value, *gradients = (np.asarray(a, dtype=np.longdouble) for a in found)
    tiny = np.finfo(dtype).tiny
    if not np.isfinite(true.value) or true.value == 0:
        yield 0.0 if value == true.value else INF
    else:
        yield float(abs(value - true.value) / true.value) if value >= 0 else INF
    for ours, right in zip(gradients, (true.grad_input, true.grad_target), strict=True):
        if not np.isfinite(right).all():
            yield 0.0 if (np.isnan(ours) == np.isnan(right)).all() else INF
            continue
        error = float(abs(ours - right).sum() / max(abs(right).sum(), len(right) * tiny))
        yield error if error == error else INF


def assert_on_target(size, dtype, beta, results):
    """Assert G1, G2 and G10 for every row, naming all rows that miss them."""
    names = grid(size)[0]
    missed = {}
    for name, true, *found in zip(names, truths(size, dtype, beta), *results, strict=True):
        worst = tuple(errors(found, true, dtype))
        if not max(worst) <= TARGET[dtype]:
            missed[name] = worst
    assert missed == {}


def loss_of(beta):
    return kl_div_with_logits if beta is None else partial(js_div_with_logits, beta=beta)


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("size", SIZES)
def test_targets(lib, size, beta):
    if size not in sizes_here():
        pytest.skip("a long double is a double here")
    if lib.root == "jax":
        pytest.skip("compiled, below")
    _, s, t = grid(size)
    for dtype in set(TARGET) & set(lib.floats):
        values = loss_of(beta)(lib.array(s, dtype), lib.array(t, dtype), reduction="none")
        lib.assert_like(values, (len(s),), dtype)
        _, *gradients = evaluate(lib, loss_of(beta), s, t, dtype, reduction="sum")
        assert_on_target(size, dtype, beta, (lib.numpy(values), *gradients))


def padded_grid(dtype):
    """All sizes in one pair of arrays, for one compilation."""
    sizes = sizes_here()
    wide = [[kldiv.pad_classes(a, sizes[-1]) for a in grid(size)[1:]] for size in sizes]
    return [np.concatenate(side).astype(dtype) for side in zip(*wide, strict=True)]


def assert_padded_on_target(dtype, beta, results):
    start = 0
    for size in sizes_here():
        stop = start + len(grid(size)[0])
        values, *gradients = (np.asarray(result)[start:stop] for result in results)
        assert all((g[:, size:] == 0).all() for g in gradients if np.isfinite(g).all())
        assert_on_target(size, dtype, beta, (values, *(g[:, :size] for g in gradients)))
        start = stop


@pytest.mark.parametrize("beta", BETAS[:2])
@pytest.mark.parametrize("dtype", TARGET)
def test_targets_compiled_by_xla(dtype, beta):
    """Fusion must not reassociate what the formulas rely on; padding by −∞ changes nothing."""
    jax = pytest.importorskip("jax")
    loss = loss_of(beta)

    @jax.jit
    def everything(s, t):
        value, pullback = jax.vjp(partial(loss, reduction="none"), s, t)
        return value, *pullback(jax.numpy.ones_like(value))

    with compiled_jax(), jax.enable_x64(dtype == "float64"):
        results = everything(*map(jax.numpy.asarray, padded_grid(dtype)))
        assert {str(a.dtype) for a in results} == {dtype}
    assert_padded_on_target(dtype, beta, results)


# What torch.compile warns of on its own account, about its internals.
torch_compiles = [
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
]


def compiled_by_torch(loss, backend, s, t):
    """Value of each row and gradients of their sum, as one graph."""
    torch = pytest.importorskip("torch")
    torch.compiler.reset()
    compiled = torch.compile(partial(loss, reduction="none"), fullgraph=True, backend=backend)
    s, t = (torch.from_numpy(a).requires_grad_() for a in (s, t))
    value = compiled(s, t)
    gradients = torch.autograd.grad(value.sum(), (s, t))
    torch.compiler.reset()
    return [a.detach().numpy() for a in (value, *gradients)]


@pytest.mark.parametrize(
    ("beta", "backend"),
    [
        pytest.param(None, "inductor", marks=torch_compiles),
        pytest.param(0.5, "aot_eager", marks=torch_compiles),  # inductor takes a minute for it
    ],
)
def test_targets_compiled_by_torch(beta, backend):
    s, t = padded_grid("float32")
    assert_padded_on_target("float32", beta, compiled_by_torch(loss_of(beta), backend, s, t))


# --- float32 stays float32 ------------------------------------------------------------------------


def dtypes_in(values):
    """Dtypes of the arrays among arguments and results."""
    for value in values:
        if isinstance(value, (tuple, list)):
            yield from dtypes_in(value)
        elif hasattr(value, "dtype") and hasattr(value, "shape"):
            yield str(value.dtype).rpartition(".")[2]


class Watched:
    """A namespace that notes what goes into its functions and what comes out."""

    def __init__(self, namespace, seen):
        self._namespace, self._seen = namespace, seen

    def __getattr__(self, name):
        value = getattr(self._namespace, name)
        if not callable(value) or isinstance(value, type):
            return value

        def call(*args, **kwargs):
            result = value(*args, **kwargs)
            self._seen.extend((name, dtype) for dtype in dtypes_in([args, result]))
            return result

        return call


@both_losses
@pytest.mark.parametrize("library", ["numpy", "array-api-strict", "dask"])
def test_float32_is_not_computed_in_float64(name, library, monkeypatch):
    lib = Library(library)
    require(lib)
    s, t = lib.array(S, "float32"), lib.array(T, "float32")
    seen = []
    owner = Library.NUMPY if lib is Library.DASK else lib  # computes Dask's blocks
    backend = kldiv.backends.find(owner.array(S))
    real = backend.namespace
    monkeypatch.setattr(backend, "namespace", lambda array=None: Watched(real(array), seen))
    lib.numpy(LOSSES[name](s, t, reduction="none"))
    _, gradients = kldiv.value_and_grad(partial(LOSSES[name], reduction="sum"), (0, 1))(s, t)
    for gradient in gradients:
        lib.numpy(gradient)
    assert ("exp", "float32") in seen
    wide = {function for function, dtype in seen if dtype == "float64"}
    assert wide <= {"sum", "astype", "ones_like"}  # the total over rows, and its rounding
    seen.clear()
    lib.numpy(LOSSES[name](lib.array(S, "float64"), lib.array(T, "float64"), reduction="none"))
    if "float64" in lib.floats:
        assert ("exp", "float64") in seen  # so it can be seen


@both_losses
def test_float32_is_not_computed_in_float64_by_torch(name):
    torch = pytest.importorskip("torch")
    from torch.utils._python_dispatch import TorchDispatchMode

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            seen.update(dtypes_in([result]))
            return result

    for dtype in ("float32", "float64"):
        seen = set()
        s, t = (Library.TORCH.array(a, dtype).requires_grad_() for a in (S, T))
        with Watch():
            torch.autograd.grad(LOSSES[name](s, t), (s, t))
        assert dtype in seen
        assert seen <= {dtype, "bool"}


@both_losses
def test_float32_is_not_computed_in_float64_by_jax(name):
    jax = pytest.importorskip("jax")
    with compiled_jax(), jax.enable_x64(True):
        for dtype, other in (("float32", "float64"), ("float64", "float32")):
            s, t = (jax.numpy.asarray(a, dtype) for a in (S, T))
            program = str(jax.make_jaxpr(jax.value_and_grad(LOSSES[name], (0, 1)))(s, t))
            short = {"float32": "f32[3,", "float64": "f64[3,"}
            assert short[dtype] in program
            assert short[other] not in program


# --- blocks ---------------------------------------------------------------------------------------


@pytest.fixture
def tiny_blocks(monkeypatch):
    """Cut into blocks of so many rows of five classes when told to; notes shapes of blocks."""
    shapes = []

    def watched(real):
        def elements(self, xp, *arrays):
            shapes.append(tuple(arrays[0].shape))
            return real(self, xp, *arrays)

        return elements

    for kind in (rows.RowLoss, rows.RowGradient):
        monkeypatch.setattr(kind, "elements", watched(kind.elements))

    def cut(lib, row_count, classes=None):
        size = row_count * 5 * (8 if lib.widest == "float64" else 4)
        monkeypatch.setattr(blocks, "BLOCK_BYTES", size)
        monkeypatch.setattr(blocks.rows_at_a_time, "__defaults__", (size,))
        if classes is not None:
            monkeypatch.setattr(blocks, "BLOCK_CLASSES", classes)
        if lib.root == "jax":
            import jax

            from kldiv.backends import _jax

            monkeypatch.setattr(_jax, "_BLOCK_BYTES", size)

            def afresh(*args):
                return _jax._run(*args)

            monkeypatch.setattr(_jax, "_run_compiled", jax.jit(afresh, static_argnums=(0, 1)))
        shapes.clear()

    return SimpleNamespace(cut=cut, shapes=shapes)


def pairs_of(*shape):
    random = np.random.default_rng(shape)
    t = 3 * random.normal(size=shape)
    s = t + 0.1 * random.normal(size=shape)
    t[..., 2], s[..., 2] = -INF, np.where(s[..., 2] > 0, s[..., 2], -INF)
    return s, t


BLOCKED = {
    "one row": ((5,), {}),
    "rows, the last block ragged": ((7, 5), {}),
    "rows of rows": ((2, 3, 5), {}),
    "masks": ((7, 5), {"where": np.arange(7) % 3 != 1}),
    "temperatures": ((7, 5), {"temperature": np.linspace(0.5, 3.0, 7)}),
    "masks and temperatures of rows of rows": (
        (2, 3, 5),
        {"where": np.array([True, False, True]), "temperature": np.array([[0.5], [2.0]])},
    ),
}


def whole(lib, name, s, t, options):
    """Values of rows, then gradients of their sum."""
    ours = {key: lib.array(value) for key, value in options.items()}
    values = LOSSES[name](lib.array(s), lib.array(t), reduction="none", **ours)
    _, *gradients = evaluate(lib, LOSSES[name], s, t, reduction="sum", **ours)
    return lib.numpy(values), *gradients


@both_losses
@pytest.mark.parametrize("case", BLOCKED)
def test_blocks_of_rows(lib, name, case, tiny_blocks):
    shape, options = BLOCKED[case]
    s, t = pairs_of(*shape)
    in_one = whole(lib, name, s, t, options)
    tiny_blocks.cut(lib, 2)
    in_blocks = whole(lib, name, s, t, options)
    count = [math.prod(found[:-1]) for found in tiny_blocks.shapes]
    if lib is not Library.DASK:  # which cuts before
        assert len(count) >= 3
    assert max(count) <= 2
    for ours, right in zip(in_blocks, in_one, strict=True):
        close(ours, right, lib.widest, 4)


@both_losses
@pytest.mark.parametrize("case", ["one row", "rows of rows", "temperatures"])
def test_blocks_of_classes(lib, name, case, tiny_blocks):
    """A row that is summed in parts is as exact as one that is not."""
    shape, options = BLOCKED[case]
    s, t = (a.astype(lib.widest) for a in pairs_of(*shape))
    tiny_blocks.cut(lib, 2, classes=2)
    found = whole(lib, name, s, t, options)
    every = [a.reshape(-1, 5) for a in (s, t)]
    temperatures = np.broadcast_to(options.get("temperature", 1.0), len(every[0]))
    temperatures = temperatures.astype(lib.widest).astype(float)
    right = truth_of_rows(*every, lib.widest, temperatures, BETA[name])
    for ours, true in zip(found, right, strict=True):
        flat = ours.reshape(true.shape).astype(float)
        same = (flat == true) | (np.isnan(flat) & np.isnan(true))
        apart = np.where(same, 0.0, abs(flat - true)).reshape(len(true), -1).sum(axis=1)
        scale = abs(true).reshape(len(true), -1).sum(axis=1)
        assert (
            np.where(same.reshape(len(true), -1).all(axis=1), 0.0, apart)
            <= TARGET[lib.widest] * np.where(np.isnan(scale), 0.0, scale)
        ).all()


@pytest.mark.parametrize("half", FLOATS[:2])
def test_blocks_of_half_types(lib, half, tiny_blocks):
    if half not in lib.floats:
        pytest.skip(f"{lib.value} has no {half} here")
    s, t = pairs_of(7, 5)
    loss = partial(kl_div_with_logits, reduction="none")
    arrays = lib.array(s, half), lib.array(t, half)
    in_one = lib.numpy(loss(*arrays))
    tiny_blocks.cut(lib, 1)
    in_blocks = loss(*arrays)
    lib.assert_like(in_blocks, (7,), half)
    close(lib.numpy(in_blocks), in_one, half, 2)
    assert max(shape[0] for shape in tiny_blocks.shapes) <= 2
    wide = loss(*arrays, dtype="float32")
    lib.assert_like(wide, (7,), "float32")
    close(lib.numpy(wide), in_one, half, 2)


def test_blocks_that_jax_compiles(tiny_blocks):
    """Compiled, mapped and differentiated; the last block covers rows a second time."""
    jax = pytest.importorskip("jax")
    lib = Library.JAX
    s, t = pairs_of(7, 5)
    options = {"where": np.arange(7) % 3 != 1, "temperature": np.linspace(0.5, 3.0, 7)}
    in_one = whole(lib, "kl", s, t, options)
    tiny_blocks.cut(lib, 2)
    ours = {key: lib.array(value) for key, value in options.items()}
    loss = partial(kl_div_with_logits, reduction="sum", **ours)
    with compiled_jax():
        value, gradients = jax.jit(jax.value_and_grad(loss, (0, 1)))(lib.array(s), lib.array(t))
    assert {shape[0] for shape in tiny_blocks.shapes} == {2}
    close(value, in_one[0].sum(), "float32", 16)
    for found, right in zip(gradients, in_one[1:], strict=True):
        close(found, right, "float32", 4)


@both_losses
def test_blocks_under_torch_s_autograd(name, tiny_blocks):
    torch = pytest.importorskip("torch")
    lib = Library.TORCH
    s, t = pairs_of(7, 5)
    in_one = whole(lib, name, s, t, {})
    tiny_blocks.cut(lib, 2)
    inputs = [lib.array(a).requires_grad_() for a in (s, t)]
    values = LOSSES[name](*inputs, reduction="none")
    gradients = torch.autograd.grad(values.sum(), inputs)
    assert {shape[0] for shape in tiny_blocks.shapes} == {2, 1}
    for found, right in zip((values, *gradients), in_one, strict=True):
        close(found.detach().numpy(), right, "float64", 4)
    s, t = (lib.array(np.where(np.isfinite(a), a, 0.0)) for a in (s, t))
    assert torch.autograd.gradgradcheck(
        partial(LOSSES[name], reduction="sum"), (s[:3].requires_grad_(), t[:3].requires_grad_())
    )
    by_row = torch.func.vmap(LOSSES[name])(s, t)
    close(by_row, LOSSES[name](s, t, reduction="none").detach(), "float64", 4)
    found = torch.func.grad(partial(LOSSES[name], reduction="sum"))(s, t)
    _, right = kldiv.value_and_grad(partial(LOSSES[name], reduction="sum"))(s, t)
    close(found, right, "float64", 4)


def computed(*args, **kwargs):
    raise AssertionError("computed")


CHUNKS = {"rows": ((2, 5), (3,)), "classes": ((7, 2), (7,)), "both": ((3, 2), (2,))}


@both_losses
@pytest.mark.parametrize("chunks", CHUNKS)
def test_dask_by_chunks(name, chunks):
    da = pytest.importorskip("dask.array")
    import dask

    s, t = pairs_of(7, 5)
    keep, temperature = np.arange(7) % 3 != 1, np.linspace(0.5, 3.0, 7)
    options = {"where": keep, "temperature": temperature, "reduction": "mean"}
    right = evaluate(Library.NUMPY, LOSSES[name], s, t, **options)
    of_logits, of_rows = CHUNKS[chunks]
    with dask.config.set(scheduler=computed):
        lazy = [da.from_array(s, chunks=of_logits), da.from_array(t, chunks=(4, 3))]
        options |= {
            "where": da.from_array(keep, chunks=of_rows),
            "temperature": da.from_array(temperature, chunks=(4,)),
        }
        value, gradients = kldiv.value_and_grad(partial(LOSSES[name], **options), (0, 1))(*lazy)
        each = LOSSES[name](*lazy, **options | {"reduction": "none"})
        with pytest.raises(AssertionError, match="computed"):
            value.compute()
    for ours, wanted in zip((value, *gradients), right, strict=True):
        Library.DASK.assert_like(ours, wanted.shape, "float64")
        close(ours.compute(), wanted, "float64", 4)
    close(each.compute()[~keep], 0.0, "float64", 0)


# --- derivatives in torch and JAX -----------------------------------------------------------------


def differentiable(name, masked):
    """A loss of finite parameters; masked classes are put in by the function itself."""

    def loss(s, t, *temperature):
        import torch

        if masked:
            s, t = (torch.nn.functional.pad(a, (0, 2), value=-INF) for a in (s, t))
            s = torch.cat([s[:, :-1], s[:, :1]], dim=1)  # where the teacher has no mass
        options = {"temperature": temperature[0]} if temperature else {}
        return LOSSES[name](s, t, reduction="none", **options)

    return loss


def parameters(*extra):
    torch = pytest.importorskip("torch")
    random = np.random.default_rng(11)
    arrays = [random.normal(size=(2, 3)), random.normal(size=(2, 3)), *extra]
    return tuple(torch.tensor(a, dtype=torch.float64, requires_grad=True) for a in arrays)


@both_losses
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
def test_torch_checks_first_and_second_order(name, masked):
    torch = pytest.importorskip("torch")
    loss, inputs = differentiable(name, masked), parameters()
    assert torch.autograd.gradcheck(
        loss,
        inputs,
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
    )
    assert torch.autograd.gradgradcheck(
        loss, inputs, check_fwd_over_rev=True, check_rev_over_rev=True
    )


@both_losses
def test_torch_checks_the_temperature(name):
    torch = pytest.importorskip("torch")
    inputs = parameters([0.6, 2.3])
    loss = differentiable(name, masked=True)
    assert torch.autograd.gradcheck(loss, inputs, check_forward_ad=True)
    one = inputs[2][:1].detach().requires_grad_()
    assert torch.autograd.gradcheck(loss, (*inputs[:2], one))  # broadcasts
    # Second order in the logits, under a temperature that is held.
    assert torch.autograd.gradgradcheck(loss, (*inputs[:2], inputs[2].detach()))


@both_losses
@pytest.mark.parametrize("reduction", ["mean", "batchmean", "sum"])
def test_torch_backward_gives_what_value_and_grad_gives(name, reduction):
    pytest.importorskip("torch")
    lib = Library.TORCH
    keep = lib.array(np.array([True, False, True]))
    loss = partial(LOSSES[name], reduction=reduction, where=keep, axis=0)
    s, t = (lib.array(np.ascontiguousarray(a.T)).requires_grad_() for a in (S, T))
    loss(s, t).backward()
    _, gradients = kldiv.value_and_grad(loss, (0, 1))(s.detach(), t.detach())
    for found, right in zip((s.grad, t.grad), gradients, strict=True):
        close(found, right, "float64", 2)


@both_losses
def test_torch_transforms(name):
    torch = pytest.importorskip("torch")
    lib, loss = Library.TORCH, LOSSES[name]
    s, t = lib.array(S), lib.array(T)
    right = loss(s, t, reduction="none")
    close(torch.func.vmap(loss)(s, t), right, "float64", 4)
    close(torch.func.vmap(loss, in_dims=(1, 0))(s.T, t), right, "float64", 4)
    close(
        torch.func.vmap(loss, in_dims=(0, None))(s, t[0]),
        loss(s, t[:1].expand(3, 4), reduction="none"),
        "float64",
        4,
    )
    _, gradient = kldiv.value_and_grad(partial(loss, reduction="sum"))(s, t)
    close(torch.func.vmap(torch.func.grad(loss))(s, t), gradient, "float64", 4)
    _, slope = torch.func.jvp(partial(loss, reduction="sum"), (s, t), (s, torch.zeros_like(t)))
    close(slope, (gradient * s).sum(), "float64", 16)
    by_func = torch.func.hessian(loss)(s[0], t[0])
    by_autograd = torch.autograd.functional.hessian(loss, (s[0], t[0]))
    close(by_func, by_autograd[0][0], "float64", 16)
    close(by_func, by_func.T, "float64", 16)
    close(by_func.sum(dim=0), torch.zeros(4), "float64", 16)  # a shift changes nothing
    if name == "kl":  # the Fisher information of the student
        q = torch.softmax(s[0], dim=0)
        close(by_func, torch.diag(q) - torch.outer(q, q), "float64", 16)


@both_losses
@pytest.mark.parametrize("half", FLOATS[:2])
def test_torch_autocast(name, half):
    torch = pytest.importorskip("torch")
    s, t = (Library.TORCH.array(a, half).requires_grad_() for a in (S, T))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = LOSSES[name](s, t, reduction="none")
        of_floats = LOSSES[name](s.float(), t.float(), reduction="none")
    assert value.dtype == of_floats.dtype == torch.float32
    right = truth_of_rows(
        Library.TORCH.numpy(s), Library.TORCH.numpy(t), "float64", beta=BETA[name]
    )
    for found in (value, of_floats):
        np.testing.assert_allclose(found.detach().numpy(), right[0], rtol=TARGET["float32"])
    value.sum().backward()
    assert str(s.grad.dtype) == f"torch.{half}"
    np.testing.assert_allclose(Library.TORCH.numpy(s.grad), right[1], atol=2 * unit(half))


@both_losses
def test_torch_saves_nothing_but_the_arguments(name):
    """The gradient reads the logits again: no more than they is kept alive."""
    torch = pytest.importorskip("torch")
    kept = []
    s, t = (Library.TORCH.array(a).requires_grad_() for a in (S, T))
    with torch.autograd.graph.saved_tensors_hooks(lambda a: kept.append(a) or a, lambda a: a):
        LOSSES[name](s, t)
    assert sorted(a.data_ptr() for a in kept) == sorted(a.data_ptr() for a in (s, t))


@both_losses
def test_jax_checks_first_and_second_order(name):
    pytest.importorskip("jax")
    from jax.test_util import check_grads

    lib = Library.JAX_X64
    with lib.configured():
        s, t = lib.array(S), lib.array(T)
        check_grads(partial(LOSSES[name], reduction="sum"), (s, t), order=2, modes=["fwd", "rev"])
        temperature = lib.array(np.array([0.5, 1.0, 2.0]))
        check_grads(lambda each: LOSSES[name](s, t, temperature=each), (temperature,), order=1)


@both_losses
def test_jax_transforms(name):
    jax = pytest.importorskip("jax")
    lib, loss = Library.JAX_X64, LOSSES[name]
    values, in_s, in_t = expected(name)
    with lib.configured():
        s, t = lib.array(S), lib.array(T)
        close(jax.vmap(loss)(s, t), values, "float64")
        close(jax.vmap(jax.grad(loss))(s, t), in_s, "float64")
        close(jax.jacfwd(partial(loss, reduction="sum"), 1)(s, t), in_t, "float64")
        hessian = jax.hessian(loss)(s[0], t[0])
        close(hessian, hessian.T, "float64", 16)
        close(hessian.sum(axis=0), np.zeros(4), "float64", 16)
        with compiled_jax():
            mapped = jax.jit(jax.vmap(jax.value_and_grad(loss, 1)))(s, t)
        close(mapped[0], values, "float64")
        close(mapped[1], in_t, "float64")


def test_a_public_call_of_jax_compiles_to_the_same(lib):
    """Without an outer jit, with a mask and a temperature for each row."""
    if lib is not Library.JAX:
        pytest.skip("for JAX")
    options = {
        "where": lib.array(np.array([True, False, True])),
        "temperature": lib.array(np.array([0.5, NAN, 2.0])),
    }
    right = evaluate(lib, js_div_with_logits, S, T, **options)
    with compiled_jax():
        found = evaluate(lib, js_div_with_logits, S, T, **options)
    for ours, wanted in zip(found, right, strict=True):
        close(ours, wanted, lib.widest, 4)


# --- settings -------------------------------------------------------------------------------------


@both_losses
@pytest.mark.parametrize("other", ["numpy", "torch", "jax"])
def test_another_backend_computes_and_the_results_come_home(lib, name, other, monkeypatch):
    require(Library(other))
    backend, ran = kldiv.backends.get(other), []
    real = backend.compute

    def compute(operation, arrays, kernel):
        assert all(kldiv.backends.find(array) is backend for array in arrays)
        ran.append(type(operation).__name__)
        return real(operation, arrays, kernel)

    monkeypatch.setattr(backend, "compute", compute)
    keep = np.array([True, False, True])
    temperature = np.array([0.75, 1.5, 2.5])
    values, *gradients = truth_of_rows(S, T, lib.widest, temperature, BETA[name])
    with kldiv.config_context(backend=other):
        options = {"where": lib.array(keep), "temperature": lib.array(temperature)}
        total, *found = evaluate(lib, LOSSES[name], S, T, reduction="sum", **options)
    close(total, values[keep].sum(), lib.widest)
    for ours, right in zip(found, gradients, strict=True):
        close(ours, right * keep[:, None], lib.widest)
    assert {"RowLoss", "RowGradient"} <= set(ran)


@both_losses
@pytest.mark.parametrize("other", ["numpy", "jax", "dask"])
def test_torch_gets_its_gradients_from_another_backend(name, other):
    torch = pytest.importorskip("torch")
    require(Library(other))
    loss, inputs = partial(LOSSES[name], reduction="batchmean"), parameters()
    right = torch.autograd.grad(loss(*inputs), inputs)
    with kldiv.config_context(backend=other):
        value = loss(*inputs)
        # A gradient belongs to its call, and keeps the call's choice.
    for found, wanted in zip(torch.autograd.grad(value, inputs), right, strict=True):
        close(found, wanted, "float64", 8)
    if other == "numpy":
        with kldiv.config_context(backend=other):
            assert torch.autograd.gradcheck(loss, inputs)
            assert torch.autograd.gradgradcheck(loss, inputs)


def test_two_libraries_meet_in_a_third():
    for library in (Library.TORCH, Library.JAX):
        require(library)
    s, t = Library.TORCH.array(S, "float32"), Library.JAX.array(T, "float32")
    with kldiv.config_context(backend="numpy"):
        result = kl_div_with_logits(s, t, reduction="none")
    Library.TORCH.assert_equal(result, truth_of_rows(S, T, "float32")[0], "float32")
