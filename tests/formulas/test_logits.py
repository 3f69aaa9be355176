"""KL and JS from logits against the truth: values, gradients, states merged in any order, edges."""

from __future__ import annotations

import itertools
import math
from contextlib import nullcontext
from fractions import Fraction
from functools import partial

import mpmath
import numpy as np
import pytest
import reference
from label_rows import cross_entropy
from libraries import Library, unit
from logit_families import (
    INF,
    TARGET,
    assert_right,
    batch,
    dtypes,
    families,
    long_rows,
    truths,
    value_error,
)
from reference import exact, truth

import kldiv
from kldiv.formulas import logits, special, state
from kldiv.formulas.cross_entropy import CrossEntropy
from kldiv.formulas.divergences import (
    ALL,
    STUDENT,
    TEACHER,
    JensenShannon,
    KullbackLeibler,
)
from kldiv.formulas.rows import RowLoss

NAN = math.nan


@pytest.fixture(autouse=True)
def quiet():
    """Silence NumPy as its adapter does, in Dask's threads too."""
    try:
        import dask
    except ImportError:
        scheduler = nullcontext()
    else:
        scheduler = dask.config.set(scheduler="synchronous")
    with np.errstate(all="ignore"), scheduler:
        yield


# --- what is measured -----------------------------------------------------------------------------


def cut(array, cuts):
    edges = [0, *cuts, array.shape[-1]]
    return [array[..., i:j] for i, j in itertools.pairwise(edges)]


def rows_of(xp, s, t, cuts=(), temperature=1.0):
    blocks = zip(cut(s, cuts), cut(t, cuts), strict=True)
    states = [state.block_state(xp, a, b, temperature) for a, b in blocks]
    return state.finish(xp, state.merge(xp, states, temperature))


def kl_all(xp, cuts, temperature, s, t):
    """KL and both gradients, from blocks of classes throughout."""
    rows = rows_of(xp, s, t, cuts, temperature)
    blocks = list(zip(cut(s, cuts), cut(t, cuts), strict=True))
    sides = [logits.Side(xp, a, b, rows, temperature) for a, b in blocks]
    gs, gt = [*map(logits.grad_input, sides)], [*map(logits.grad_target, sides)]
    return rows.kl[..., 0], xp.concat(gs, axis=-1), xp.concat(gt, axis=-1)


def js_all(xp, cuts, temperature, beta, s, t):
    """JS and both gradients, from blocks of classes throughout."""
    rows = rows_of(xp, s, t, cuts, temperature)
    blocks = list(zip(cut(s, cuts), cut(t, cuts), strict=True))
    mix = logits.Mix(beta, 1 - beta, beta, 1 - beta)
    sides = [logits.Side(xp, a, b, rows, temperature) for a, b in blocks]
    parts = [logits.mixture_terms(side, mix) for side in sides]
    value = sum(xp.sum(part, axis=-1) for part in parts)
    of_t = js_half(xp, blocks, rows, mix, temperature)
    rows = rows_of(xp, t, s, cuts, temperature)
    swapped = [(b, a) for a, b in blocks]
    return value, js_half(xp, swapped, rows, mix.swapped, temperature), of_t


def js_half(xp, blocks, rows, mix, temperature):
    sides = [logits.Side(xp, a, b, rows, temperature) for a, b in blocks]
    pairs = [logits.mixture_rise(side, mix) for side in sides]
    shift = sum(xp.sum(p * rise, axis=-1, keepdims=True) for p, rise in pairs)
    return xp.concat([p * (rise - shift) / temperature for p, rise in pairs], axis=-1)


def second(xp, divergence, s, t, ds, dt, temperature=1.0):
    """The derivatives of both gradients in a direction, and that of the value in T."""
    blocks = [divergence.whole(xp, s, t, temperature, (side,)) for side in (STUDENT, TEACHER)]
    found = [divergence.tangent(side, block, (ds, dt)) for side, block in enumerate(blocks)]
    block = divergence.whole(xp, s, t, temperature, ALL)
    return *found, -divergence.temperature_share(block) / temperature


def on(lib, function, *arrays):
    """Call ``function(xp, …)`` on the library's arrays and bring its results back.

    JAX compiles it whole, as the adapter does: one operation at a time takes ten times as long.
    """
    ours = [lib.from_numpy(array) for array in arrays]
    xp = kldiv.backends.find(ours[0]).namespace(ours[0])
    run = partial(function, xp)
    if lib.root == "jax":
        import jax

        run = jax.jit(run)
    results = run(*ours)
    for result in results:
        assert result.dtype == ours[0].dtype
    return [lib.numpy(result) for result in results]


def test_the_measure_can_fail():
    """Log-softmax and a sum, as every library does it, misses the target by far."""
    _, s, t = batch(100, "float32")
    row = list(families(100)).index("distance 1e-3")
    p, q = (a - np.log(np.sum(np.exp(a))) for a in (t[row], s[row]))
    assert (
        value_error(np.sum(np.exp(p) * (p - q)), truths(100, "float32")[row].value, "float32")
        > 1e-2
    )


# --- the pieces -----------------------------------------------------------------------------------

PIECES = {
    "phi": (special.phi, lambda x: mpmath.exp(-x) - 1 + x, (-30.0, 30.0)),
    "expm1": (special.expm1, mpmath.expm1, (-30.0, 30.0)),
    "log1p": (special.log1p, mpmath.log1p, (-0.999, 50.0)),
    "log1p_gap": (special.log1p_gap, lambda y: y - mpmath.log1p(y), (-0.999, 50.0)),
}


@pytest.mark.parametrize("piece", PIECES)
def test_pieces(lib, piece):
    function, true, (low, high) = PIECES[piece]
    random = np.random.default_rng(3)
    points = [random.uniform(low, high, 100), random.uniform(-0.9, 2.5, 100)]
    points += [10.0**-k * random.uniform(-1, 1, 10) for k in range(1, 9)]
    for dtype in dtypes(lib):
        x = np.concatenate([*points, [0.0]]).astype(dtype)
        (found,) = on(lib, lambda xp, x: (function(xp, x),), x)
        with mpmath.workdps(60):
            expected = np.array([float(true(mpmath.mpf(float(v)))) for v in x])
        np.testing.assert_allclose(found, expected, rtol=8 * unit(dtype), atol=0)


def test_double_words_are_exact(lib):
    random = np.random.default_rng(4)
    for dtype in dtypes(lib):
        a, b = (random.normal(size=200) * 10.0 ** random.integers(-9, 9, 200) for _ in range(2))
        a, b = a.astype(dtype), b.astype(dtype)
        sums = on(lib, lambda _, a, b: special.two_sum(a, b), a, b)
        differences = on(lib, lambda _, a, b: special.two_difference(a, b), a, b)
        for x, y, *found in zip(a, b, *sums, *differences, strict=True):
            high, low, high_, low_ = map(Fraction, map(float, found))
            assert high + low == Fraction(float(x)) + Fraction(float(y))
            assert high_ + low_ == Fraction(float(x)) - Fraction(float(y))


# --- the targets ----------------------------------------------------------------------------------

SLOW = {Library.DASK: "thousands of tasks", Library.JAX_X64: "compiled, each case for seconds"}


def once(lib, chosen):
    """Leave out cases that take seconds but for the chosen one, and JAX where it has one dtype."""
    return (not chosen and SLOW.get(lib)) or (lib is Library.JAX and "jax-x64 has both dtypes")


def never_in_dask(lib):
    return (lib is Library.DASK and SLOW[lib]) or once(lib, chosen=True)


@pytest.mark.leave_out(lambda lib, size, cuts: once(lib, (size, cuts) == (3, (1,))))
@pytest.mark.parametrize(("size", "cuts"), [(2, ()), (3, (1,)), (3, (1, 2)), (100, (33, 34, 80))])
def test_kl(lib, size, cuts):
    for dtype in dtypes(lib):
        names, s, t = batch(size, dtype)
        results = on(lib, lambda xp, *a: kl_all(xp, cuts, 1.0, *a), s, t)
        assert_right(names, results, truths(size, dtype), dtype)


@pytest.mark.leave_out(lambda lib, beta: never_in_dask(lib) or once(lib, beta == 0.5))
@pytest.mark.parametrize(
    ("size", "cuts", "beta"), [(3, (1,), 0.01), (3, (), 0.5), (3, (1,), 0.99), (100, (33,), 0.01)]
)
def test_js(lib, size, cuts, beta):
    for dtype in dtypes(lib):
        names, s, t = batch(size, dtype)
        results = on(lib, lambda xp, *a: js_all(xp, cuts, 1.0, beta, *a), s, t)
        assert_right(names, results, truths(size, dtype, 1.0, beta), dtype)


@pytest.mark.slow
@pytest.mark.parametrize("size", [32000, 151936])
@pytest.mark.parametrize("dtype", TARGET)
def test_a_vocabulary(dtype, size):
    pairs, names = long_rows(size), ["1e-3", "sorted"]
    if size < 100_000:
        names += ["1", "1e-7", "scale 20", "smooth", "t + 8, rounded"]
    s, t = (np.stack([pairs[name][i] for name in names]).astype(dtype) for i in (0, 1))
    expected = truth(s, t)
    for cuts in ((), tuple(range(4096, size, 4096))):
        assert_right(names, kl_all(np, cuts, 1.0, s, t), expected, dtype)
    if size < 100_000:
        assert_right(names, js_all(np, (), 1.0, 0.3, s, t), truth(s, t, beta=0.3), dtype)


@pytest.mark.parametrize("dtype", TARGET)
@pytest.mark.parametrize("temperature", [0.7, 2.0, 3.3])
def test_temperature(dtype, temperature):
    """Right for the given logits: dividing them first would round each by u·100."""
    names, s, t = batch(3, dtype)
    # Gradients that leave the normal numbers on the way have no digits to keep.
    normal = [i for i, name in enumerate(names) if "hardly" not in name and "scale" not in name]
    results = [a[normal] for a in js_all(np, (1,), temperature, 0.3, s, t)]
    expected = truths(3, dtype, temperature, 0.3)
    assert_right([names[i] for i in normal], results, [expected[i] for i in normal], dtype)


@pytest.mark.parametrize("dtype", TARGET)
def test_a_temperature_for_each_row_is_as_exact_as_a_number(dtype):
    random = np.random.default_rng(0)
    heat = 10.0 ** random.uniform(-3, 3, 2000).astype(dtype)
    t = random.normal(size=(2000, 30)) * 10.0 ** random.uniform(0, 5, (2000, 1))
    s = t + random.normal(size=t.shape) * 10.0 ** random.uniform(-4, 0, (2000, 1))
    s, t = s.astype(dtype), t.astype(dtype)
    with kldiv.config_context(kernel="pure"):
        found = kldiv.kl_div_with_logits(s, t, temperature=heat, reduction="none")
        wanted = [
            kldiv.kl_div_with_logits(*rows, temperature=float(one), reduction="none")
            for *rows, one in zip(s, t, heat, strict=True)
        ]
    np.testing.assert_allclose(found, wanted, rtol=np.finfo(dtype).eps, atol=1e-20)


# --- states ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TARGET)
def test_any_split_in_any_order(dtype):
    size = 7
    names, s, t = batch(size, dtype)
    expected = truths(size, dtype)
    random = np.random.default_rng(5)
    for _ in range(500):
        order = random.permutation(size)
        cuts = sorted(set(random.integers(1, size, size=random.integers(0, 6)).tolist()))
        blocks = zip(cut(s[:, order], cuts), cut(t[:, order], cuts), strict=True)
        states = [state.block_state(np, a, b) for a, b in blocks]
        while len(states) > 1:  # as a tree of random shape
            i, j = sorted(random.choice(len(states), 2, replace=False))
            states.append(state.merge(np, [states.pop(j), states.pop(i)]))
        rows = state.finish(np, states[0])
        row = int(random.integers(len(names)))
        results = (
            rows.kl[row, 0],
            logits.grad_input(logits.Side(np, s, t, rows))[row],
            logits.grad_target(logits.Side(np, s, t, rows))[row],
        )
        assert_right([names[row]], [[a] for a in results], [expected[row]], dtype)


@pytest.mark.leave_out.with_args(never_in_dask)
def test_the_empty_state_changes_nothing(lib):
    def merged(xp, s, t):
        one = state.block_state(xp, s, t)
        none = state.empty_state(xp, one.t_sum)
        return (
            state.finish(xp, one).kl,
            *(state.finish(xp, state.merge(xp, pair)).kl for pair in ([none, one], [one, none])),
            state.finish(xp, state.merge(xp, [none, none])).kl,
        )

    dtype = lib.widest
    _, s, t = batch(3, dtype)
    alone, before, after, nothing = on(lib, merged, s, t)
    np.testing.assert_allclose(before, alone, rtol=4 * unit(dtype))
    np.testing.assert_array_equal(before, after)
    assert np.isnan(nothing).all()


# --- zero, and how close to it --------------------------------------------------------------------


@pytest.mark.leave_out.with_args(never_in_dask)
def test_identical_and_shifted_logits_are_exactly_zero(lib):
    for dtype in dtypes(lib):
        random = np.random.default_rng(7)
        # Multiples of 1/1024 so that shifts are exact; then the same, not on any grid.
        t = np.round(3 * 1024 * random.normal(size=(4, 200))) / 1024
        t[1, :50] = -INF
        t[2] *= 1000
        s = t + np.array([[0.0], [100.25], [-50.5], [8.0]])
        same = random.normal(size=(1, 200)) * 100
        s, t = np.concatenate([s, same]).astype(dtype), np.concatenate([t, same]).astype(dtype)
        s[1, :50] = t[1, :50]
        for cuts in ((), (50, 180)):
            if cuts == () or lib not in SLOW:
                for result in on(lib, lambda xp, *a, c=cuts: kl_all(xp, c, 1.0, *a), s, t):
                    assert (result == 0).all()
        if lib not in SLOW:
            for result in on(lib, lambda xp, *a: js_all(xp, (50,), 0.7, 0.3, *a), s, t):
                assert (result == 0).all()


def test_constant_differences_that_no_float_holds():
    """t − s = 100 + 2⁻³⁰ everywhere: a double word in float32, and exactly zero still."""
    t = np.float32([[100.0, 2.0**-30 + 2.0**-7, 100.0]])
    s = np.float32([[-(2.0**-30), 2.0**-7 - 100, -(2.0**-30)]])
    assert (t.astype(float) - s == 100 + 2.0**-30).all()
    for cuts in ((), (1,), (1, 2)):
        for result in kl_all(np, cuts, 1.0, s, t):
            assert (result == 0).all()


@pytest.mark.parametrize("dtype", TARGET)
def test_positive_down_to_the_smallest_normal_number(dtype):
    tiny = float(np.finfo(dtype).tiny)
    for size in (2, 100):
        t = np.zeros((1, size), dtype)
        s = np.zeros((1, size), dtype)
        s[0, 0] = 4 * math.sqrt(tiny * size)  # KL ≈ s²/2·p(1 − p)
        true = exact(s[0], t[0]).value
        assert tiny < true < 16 * tiny
        assert state.finish(np, state.block_state(np, s, t)).kl[0, 0] > 0


# --- edges ----------------------------------------------------------------------------------------

LN2, HALF_GONE = math.log(2), 0.75 * math.log(4 / 3)
# name: (s, t, KL, ∂KL/∂s, ∂KL/∂t, JS, ∂JS/∂s, ∂JS/∂t) at β = 1/2; None: finite.
EDGES = {
    "t = s = −∞": ([0, 0, -INF], [0, 0, -INF], 0, [0, 0, 0], [0, 0, 0], 0, [0, 0, 0], [0, 0, 0]),
    "t = −∞": ([0, 0], [0, -INF], LN2, [-0.5, 0.5], [0, 0], HALF_GONE, None, [0, 0]),
    "s = −∞": ([0, -INF], [0, 0], INF, [0.5, -0.5], [NAN, NAN], HALF_GONE, None, None),
    "s = −∞ where t is far below": ([0, -INF], [0, -300], INF, [0, 0], [NAN, NAN], 0, None, None),
    "nothing in common": ([0, -INF], [-INF, 0], INF, [1, -1], [0, NAN], LN2, [0, 0], [0, 0]),
    "t all −∞": ([0, 1], [-INF, -INF], NAN, None, None, NAN, None, None),
    "s all −∞": ([-INF, -INF], [0, 1], NAN, None, None, NAN, None, None),
    "t holds +∞": ([0, 1], [INF, 0], NAN, None, None, NAN, None, None),
    "s holds +∞": ([0, INF], [1, 0], NAN, None, None, NAN, None, None),
    "t holds NaN": ([0, 1], [NAN, 0], NAN, None, None, NAN, None, None),
    "s holds NaN": ([NAN, 1], [0, 0], NAN, None, None, NAN, None, None),
    "finite masks": ([0, 0, -3e38], [0, 0, -3e38], 0, [0] * 3, [0] * 3, 0, [0] * 3, [0] * 3),
    "nothing but finite masks": ([-3e38] * 2, [-3e38] * 2, 0, [0] * 2, [0] * 2, 0, None, None),
    "one class": ([5], [-3], 0, [0], [0], 0, [0], [0]),
}


def padded(row, size):
    """More classes that take no part."""
    return [*row, *[-INF] * (size - len(row))]


@pytest.mark.leave_out(lambda lib, cuts: never_in_dask(lib) or once(lib, not cuts))
@pytest.mark.parametrize("cuts", [(), (1,)])
def test_edges(lib, cuts):
    """All edges as rows of one array, so that each has neighbours, which must not change."""
    dtype = lib.widest
    plain = [0.0, 0.5, 1.0]
    s, t = ([plain, *(padded(edge[i], 3) for edge in EDGES.values())] for i in (0, 1))
    s, t = (np.array(rows).astype(dtype) for rows in (s, t))
    results = on(lib, lambda xp, *a: kl_all(xp, cuts, 1.0, *a), s, t)
    results += on(lib, lambda xp, *a: js_all(xp, cuts, 1.0, 0.5, *a), s, t)
    for result in results:
        assert (result[0] == 0).all()
    for row, (name, (own, _, *expected)) in enumerate(EDGES.items(), start=1):
        nan = isinstance(expected[0], float) and math.isnan(expected[0])
        for result, wanted in zip(results, expected, strict=True):
            found = result[row] if result.ndim == 1 else result[row, : len(own)]
            if wanted is not None:
                np.testing.assert_allclose(found, wanted, atol=4 * unit(dtype), err_msg=name)
            else:
                assert (np.isnan(found) if nan else np.isfinite(found)).all(), name


# --- derivatives of derivatives -------------------------------------------------------------------


DIVERGENCES = {
    "KL": (KullbackLeibler(), reference.kl),
    "JS": (JensenShannon(0.5), partial(reference.js, beta=mpmath.mpf(0.5))),
    "JS, 0.05": (JensenShannon(0.05), partial(reference.js, beta=mpmath.mpf(0.05))),
    "cross entropy": (CrossEntropy(), cross_entropy),
}
"""Each with its value and gradients, given logits at temperature 1 in many digits."""


def directional(true, s, t, ds, dt, temperature):
    """Value and gradients, the latter's derivative in a direction, the former's in T.

    By differences of 60 digits.
    """
    with mpmath.workdps(90):
        h, heat = mpmath.mpf(10) ** -30, mpmath.mpf(temperature)

        def at(step, heat):
            def tempered(side, by):
                pairs = zip(map(float, side), map(float, by), strict=True)
                return [None if x == -INF else (x + step * d) / heat for x, d in pairs]

            value, *slopes = true(tempered(s, ds), tempered(t, dt))
            return [value, *([x / heat for x in each] for each in slopes)]

        here, ahead, behind = (at(step, heat) for step in (0 * h, h, -h))
        changes = [
            np.array([float((x - y) / (2 * h)) for x, y in zip(*pair, strict=True)])
            for pair in zip(ahead[1:], behind[1:], strict=True)
        ]
        in_heat = (at(0 * h, heat + h)[0] - at(0 * h, heat - h)[0]) / (2 * h)
        slopes = [np.array([*map(float, each)]) for each in here[1:]]
        return float(here[0]), slopes, changes, float(in_heat)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("distance", [1.0, 1e-3, 1e-6])
@pytest.mark.parametrize("temperature", [1.0, 1.7])
@pytest.mark.parametrize("name", DIVERGENCES)
def test_second_order(distance, masked, temperature, name):
    random = np.random.default_rng(8)
    t = 3 * random.normal(size=(1, 20))
    s = t + distance * random.normal(size=(1, 20))
    ds, dt = random.normal(size=(2, 1, 20))
    if masked:
        t[0, 3] = t[0, 4] = s[0, 4] = -INF
    divergence, true = DIVERGENCES[name]
    *found, slope = second(np, divergence, s, t, ds, dt, temperature)
    value, slopes, expected, in_heat = directional(true, s[0], t[0], ds[0], dt[0], temperature)
    rows = RowLoss("none", *["float64"] * 3, divergence, temperature)
    assert rows.value(np, s, t)[0] == pytest.approx(value, rel=1e-13, abs=0)
    own = [
        divergence.gradient(side, divergence.whole(np, s, t, temperature, (side,)))
        for side in (STUDENT, TEACHER)
    ]
    for a, b in zip((*own, *found), (*slopes, *expected), strict=True):
        assert abs(a[0] - b).sum() <= 1e-14 * abs(b).sum()
    assert slope[0, 0] == pytest.approx(in_heat, rel=1e-13, abs=0)


@pytest.mark.leave_out(lambda lib: once(lib, chosen=False))
def test_second_order_is_finite_at_every_mask(lib):
    values = [-INF, 0.0, 1.0]
    grid = np.array(np.meshgrid(*[values] * 4)).reshape(4, -1).T.astype("float32")
    s, t = grid[:, :2].copy(), grid[:, 2:].copy()
    alive = np.isfinite(s).any(-1) & np.isfinite(t).any(-1)
    kept = alive & ~(np.isinf(s) & np.isfinite(t)).any(-1)
    one = np.ones_like(s)

    def both(xp, s, t, one):
        of_kl = second(xp, KullbackLeibler(), s, t, one, one * s[:1, :])
        return *of_kl[:2], *second(xp, JensenShannon(0.3), s, t, one, -one)[:2]

    finite = np.where(np.isfinite(s[:1]), s[:1], 2.0)
    s[:1] = finite  # a direction that is finite
    t[:1] = 0.0
    kept[0] = True
    ds, dt, *of_js = on(lib, both, s, t, one)
    assert np.isfinite(ds[kept]).all()
    assert np.isfinite(dt[kept]).all()
    for result in of_js:
        assert np.isfinite(result[alive]).all()
