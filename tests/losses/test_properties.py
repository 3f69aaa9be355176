"""What holds for every input: the divergence's identities, and a result that ignores the layout."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from libraries import Library, require, unit

import kldiv

U = unit("float64")


@pytest.fixture(params=[Library.NUMPY, Library.TORCH, Library.JAX_X64], ids=lambda lib: lib.value)
def lib(request):
    """The libraries whose arithmetic differs; the others share NumPy's."""
    require(request.param)
    with request.param.configured():
        yield request.param


def always(library, **strategies):
    """Check a property now: often where a call is cheap, the same examples each time."""
    examples = {"numpy": 60, "torch": 25, "jax": 8}[library.root]

    def run(check):
        given(**strategies)(settings(CALM, max_examples=examples)(check))()

    return run


CALM = settings(deadline=None, derandomize=True, database=None)

SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
MATRICES = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=6)
SEEDS = st.integers(0, 2**32 - 1)
REDUCTIONS = st.sampled_from(["none", "mean", "batchmean", "sum"])


def of_any_shape(elements):
    """Pairs of float64 arrays of one shape, up to 4-d and empty ones too."""
    x, y = elements

    def pairs(shape):
        return st.tuples(
            hnp.arrays(np.float64, shape, elements=x), hnp.arrays(np.float64, shape, elements=y)
        )

    return SHAPES.flatmap(pairs)


LOG_Q = st.floats(-50, 0)
P = st.one_of(st.just(0.0), st.floats(1e-30, 1.0))
PAIRS = of_any_shape((LOG_Q, P))


def elements(x, y):
    """The definition, in NumPy."""
    return np.where(y > 0, y * (np.log(np.where(y > 0, y, 1.0)) - x), 0.0)


def size_of_terms(x, y):
    """Sum of the terms without their cancellation, by which rounding is measured."""
    y = np.asarray(y)
    return float(np.sum(y * (abs(np.log(np.where(y > 0, y, 1.0))) + abs(x)))) + 1e-300


def distributions(seed, shape, *, zeros=0.0):
    """Rows of log Q and of P that sum to 1."""
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((2, *shape)) * rng.choice([0.01, 1.0, 10.0])
    both = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    p = np.exp(both[1])
    p[rng.random(shape) < zeros] = 0.0
    total = p.sum(axis=-1, keepdims=True)
    return both[0], np.divide(p, total, out=np.full(shape, 1 / shape[-1]), where=total > 0)


def number(lib, value):
    return float(lib.numpy(value))


def total(lib, x, y, **options):
    return number(lib, kldiv.kl_div(lib.array(x), lib.array(y), reduction="sum", **options))


# ---- the divergence ------------------------------------------------------------------------------


def test_it_is_the_definition(lib):
    @always(lib, pair=PAIRS)
    def _(pair):
        x, y = pair
        found = kldiv.kl_div(lib.array(x), lib.array(y), reduction="none")
        lib.assert_like(found, x.shape, "float64")
        bound = 4 * U * y * (abs(np.log(np.where(y > 0, y, 1.0))) + abs(x))
        assert (abs(lib.numpy(found) - elements(x, y)) <= 2 * bound).all()


def test_it_is_zero_between_equal_distributions(lib):
    @always(lib, seed=SEEDS, shape=MATRICES)
    def _(seed, shape):
        x, _ = distributions(seed, shape)
        assert total(lib, x, x, log_target=True) == 0.0
        p = np.exp(x)  # rounded by u·P, which moves the element by as much
        assert abs(total(lib, x, p)) <= 4 * U * (size_of_terms(x, p) + p.sum())


# ---- elements and reductions ---------------------------------------------------------------------


def test_reductions_of_the_elements(lib):
    @always(lib, pair=PAIRS)
    def _(pair):
        x, y = pair
        call = partial(kldiv.kl_div, lib.array(x), lib.array(y))
        values = lib.numpy(call(reduction="none"))
        whole = math.fsum(values.ravel())
        found = {word: number(lib, call(reduction=word)) for word in ("sum", "mean", "batchmean")}
        rounding = 8 * U * float(abs(values).sum())
        assert abs(found["sum"] - whole) <= rounding
        for word, count in (("mean", x.size), ("batchmean", x.shape[0] if x.ndim else 1)):
            if count:
                assert abs(found[word] * count - found["sum"]) <= rounding + 4 * U * abs(whole)
            else:
                assert math.isnan(found[word])


def test_log_target_is_the_target_s_logarithm(lib):
    @always(lib, pair=PAIRS)
    def _(pair):
        x, y = pair
        with np.errstate(divide="ignore"):
            log_y = np.log(y)
        plain = kldiv.kl_div(lib.array(x), lib.array(y), reduction="none")
        logs = kldiv.kl_div(lib.array(x), lib.array(log_y), reduction="none", log_target=True)
        # Rounding log y to u·|log y| multiplies its exponential by as much.
        size = np.where(y > 0, abs(log_y), 0.0)
        bound = 4 * U * y * (size + 2) * (size + abs(x) + 1)
        assert (abs(lib.numpy(logs) - lib.numpy(plain)) <= bound).all()


def masks(pair, seed):
    """A mask of the pair's shape, or one that broadcasts to it."""
    rng = np.random.default_rng(seed)
    shape = pair[0].shape
    full = rng.random(shape) < 0.6
    slim = [1 if rng.random() < 0.3 else size for size in shape][rng.integers(0, 2) :]
    return full if rng.random() < 0.5 else rng.random(slim) < 0.6


@pytest.mark.parametrize("reduction", ["none", "mean", "batchmean", "sum"])
def test_where_is_as_leaving_out(lib, reduction):
    @always(lib, pair=PAIRS, seed=SEEDS, poison=st.sampled_from([math.nan, math.inf, 7.0]))
    def _(pair, seed, poison):
        x, y = pair
        where = masks(pair, seed)
        keep = np.broadcast_to(where, x.shape)
        values = np.where(keep, elements(x, y), 0.0)
        count = {
            "sum": 1,
            "mean": keep.sum(),
            "batchmean": keep.any(axis=tuple(range(1, keep.ndim))).sum() if keep.ndim else 1,
        }
        found = kldiv.kl_div(
            lib.array(np.where(keep, x, poison)),
            lib.array(np.where(keep, y, poison)),
            reduction=reduction,
            where=lib.array(where),
        )
        if reduction == "none":
            np.testing.assert_allclose(lib.numpy(found), values, rtol=0, atol=8 * U * 120)
            return
        whole = math.fsum(elements(x[keep], y[keep]))
        if not count[reduction]:
            assert math.isnan(number(lib, found))
            return
        rounding = 8 * U * size_of_terms(x[keep], y[keep])
        assert abs(number(lib, found) * count[reduction] - whole) <= rounding


# ---- layouts -------------------------------------------------------------------------------------


def unaligned(array):
    raw = np.zeros(array.nbytes + 1, np.uint8)
    out = np.ndarray(array.shape, array.dtype, buffer=raw.data, offset=1)
    out[...] = array
    return out


def read_only(array):
    array = array.copy()
    array.setflags(write=False)
    return array


LAYOUTS = {
    "fortran": lambda a: a.copy(order="F"),
    "reversed": lambda a: np.flip(np.flip(a).copy()),
    "strided": lambda a: np.repeat(a, 2, axis=-1)[..., ::2] if a.ndim else a,
    "byte-swapped": lambda a: a.astype(a.dtype.newbyteorder()),
    "unaligned": unaligned,
    "read only": read_only,
}


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_of_numpy_arrays_is_of_no_matter(layout, dtype):
    @always(Library.NUMPY, pair=PAIRS, reduction=REDUCTIONS, which=st.sampled_from([0, 1, 2]))
    def _(pair, reduction, which):
        x, y = (array.astype(dtype) for array in pair)
        change = LAYOUTS[layout]
        other_x, other_y = change(x) if which != 1 else x, change(y) if which != 0 else y
        np.testing.assert_array_equal(x, other_x)
        loss = partial(kldiv.kl_div, reduction=reduction)
        wanted, found = loss(x, y), loss(other_x, other_y)
        Library.NUMPY.assert_like(found, wanted.shape, dtype)
        assert np.asarray(found).dtype.isnative
        scale = size_of_terms(x.astype(float), y.astype(float)) + np.finfo(dtype).smallest_normal
        # Another order of adding rounds otherwise.
        np.testing.assert_allclose(found, wanted, rtol=0, atol=8 * unit(dtype) * scale)
        if reduction == "none":
            return
        gradients = kldiv.value_and_grad(loss, (0, 1))(other_x, other_y)[1]
        plain = kldiv.value_and_grad(loss, (0, 1))(x, y)[1]
        for gradient, same in zip(gradients, plain, strict=True):
            assert gradient.shape == x.shape
            assert gradient.dtype.newbyteorder("=") == dtype
            np.testing.assert_allclose(gradient, same, rtol=8 * unit(dtype))
