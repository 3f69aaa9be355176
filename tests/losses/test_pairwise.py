"""All pairs of rows: against mpmath, against the functions of one pair, with derivatives."""

from __future__ import annotations

import math
from functools import partial

import mpmath
import numpy as np
import pytest
from f_divergences import measured
from libraries import Library, require, unit

import kldiv
from kldiv.errors import DTypeError, LibraryError, OptionError, ShapeError
from kldiv.formulas import blocks
from kldiv.kernels.blocks import pair_measure

OF_ONE = {
    "kl": kldiv.kl_divergence,
    "js": kldiv.js_divergence,
    "js:0": partial(kldiv.js_divergence, weights=(0, 1)),
    "js:0.3": partial(kldiv.js_divergence, weights=(0.3, 0.7)),
    "jeffreys": kldiv.jeffreys_divergence,
    "skew:0.2": partial(kldiv.skew_divergence, alpha=0.2),
    "tv": kldiv.tv_divergence,
    "hellinger": kldiv.hellinger_divergence,
    "chi2": kldiv.chi2_divergence,
    "alpha:0": partial(kldiv.alpha_divergence, alpha=0),
    "alpha:0.5": partial(kldiv.alpha_divergence, alpha=0.5),
    "renyi:2": partial(kldiv.renyi_divergence, alpha=2),
    "renyi:inf": partial(kldiv.renyi_divergence, alpha=math.inf),
}


def rows():
    """Rows with zeros, one that another nearly is, a single class, and numbers near underflow."""
    random = np.random.default_rng(0)
    a = random.dirichlet(np.ones(7), 6)
    b = random.dirichlet(np.ones(7), 5)
    a[0, 2] = b[0, 2] = b[1, 3] = 0.0
    b[2] = a[2] * (1 + 1e-11 * random.normal(size=7))
    b[3] = a[3]
    a[4] = np.eye(7)[1]
    a[5] = b[4] * 10.0 ** np.arange(-300, 1, 50)
    return a, b


def expanded(function, a, b, broadcast=np.broadcast_to):
    """Every pair by the function of one pair."""
    shape = (len(a), len(b), a.shape[1])
    return function(broadcast(a[:, None, :], shape), broadcast(b[None, :, :], shape))


@pytest.mark.parametrize("name", OF_ONE)
@pytest.mark.parametrize("kernel", ["pure", "cpu", "blocks"])
def test_every_pair_is_that_of_the_function_of_one(name, kernel, monkeypatch):
    if kernel == "cpu":
        pytest.importorskip("llvmlite")
    few = partial(blocks.rows_at_a_time, block_bytes=7 * 8 * 4)
    monkeypatch.setattr(blocks, "rows_at_a_time", lambda shape, dtype, _: few(shape, dtype))
    a, b = rows()
    a[1, :2] = math.inf, -1.0  # no probabilities: what the function of one pair makes of them
    b[1, 0] = math.nan
    with np.errstate(all="ignore"), kldiv.config_context(kernel=kernel):
        found, own = kldiv.pairwise(a, b, divergence=name), kldiv.pairwise(a, divergence=name)
        with kldiv.config_context(kernel="pure"):
            wanted, wanted_own = expanded(OF_ONE[name], a, b), expanded(OF_ONE[name], a, a)
    near = 4e-15 if kernel == "blocks" else 2e-15  # products add in another order
    np.testing.assert_allclose(found, wanted, rtol=near, atol=0)
    np.testing.assert_allclose(own, wanted_own, rtol=near, atol=0)
    if np.allclose(wanted_own, wanted_own.T, equal_nan=True):
        np.testing.assert_array_equal(own, own.T)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("classes", [1, 7, 2049])
def test_kernels_are_exact(dtype, classes):
    pytest.importorskip("llvmlite")
    random = np.random.default_rng(1)
    base = random.dirichlet(np.ones(classes))
    gaps = (0, 1e-6, 1e-2, 1, 30)
    a = np.array([base * np.exp(gap * random.normal(size=classes)) for gap in gaps])
    a = (a / a.sum(axis=1, keepdims=True)).astype(dtype)
    a[:, 0] *= np.array([1, 1, 1, 0, 1], dtype) if classes > 1 else 1
    with kldiv.config_context(kernel="cpu"):
        found = kldiv.pairwise(a)
    with mpmath.workdps(40):
        for i, j in ((0, 0), (0, 1), (1, 2), (2, 4), (3, 0), (4, 3)):
            true = float(measured("kl", a[i], a[j]))
            assert found[i, j] == pytest.approx(true, rel=8 * unit(dtype), abs=0), (i, j)


@pytest.mark.parametrize("every", [3, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "name",
    [
        *("kl", "jeffreys", "hellinger", "chi2", "alpha:0.3", "alpha:2", "renyi:0.5", "renyi:2"),
        *("js", "js:0.2", "skew:0.1", "skew:0.5", "skew:0.9", "tv"),
    ],
)
def test_products_of_matrices_lose_nothing(name, dtype, every, monkeypatch):
    """Of all pairs, or of every third beside another, as near ones are."""
    random = np.random.default_rng(5)
    centre = random.dirichlet(np.ones(46))
    rows = [centre * np.exp(gap * random.normal(size=46)) for gap in (0, 1e-9, 1e-5, 0.01, 1, 3)]
    rows += [random.dirichlet(np.full(46, order)) for order in (1, 1, 100, 100)]
    a = np.array([*rows, rows[6]])
    a[:, ::7] = 0
    a = (a / a.sum(axis=1, keepdims=True)).astype(dtype)
    a[2, 1] = 0  # a class that few lack: infinite, or not
    left, by_formulas = [], pair_measure._by_formulas
    monkeypatch.setattr(
        pair_measure, "_by_formulas", lambda *args: left.append(len(args[-1])) or by_formulas(*args)
    )
    with kldiv.config_context(kernel="blocks"):
        found = kldiv.pairwise(a, divergence=name)
    if dtype == "float64" and name[:3] in {"js:", "ske"}:
        assert not left  # by formulas alone
    else:
        assert left[0] < found.size - 20  # most are by products
    with mpmath.workdps(40):
        for i, j in np.ndindex(found.shape):
            if (j - i - 1) % every:
                continue
            infinite = [(a[i] > 0) & (a[j] == 0), (a[j] > 0) & (a[i] == 0)]
            unbounded = name in {"kl", "chi2", "jeffreys", "alpha:2", "renyi:2"}
            if (unbounded and infinite[0].any()) or (name == "jeffreys" and infinite[1].any()):
                assert found[i, j] == np.inf
            elif np.array_equal(a[i], a[j]):
                assert found[i, j] == 0
            else:
                true = float(measured(name, a[i], a[j]))
                assert found[i, j] == pytest.approx(true, rel=12 * unit(dtype), abs=0), (i, j)


def test_on_every_library(lib):
    a, b = rows()
    a[5] = a[3]  # float16 has no such numbers
    wanted = expanded(kldiv.kl_divergence, a, b)
    wide = lib.widest
    own, other = lib.array(a.astype(wide)), lib.array(b.astype(wide))
    assert np.allclose(lib.numpy(kldiv.pairwise(own, other)), wanted, rtol=0, atol=2e-5)
    lib.assert_like(kldiv.pairwise(own, other), (6, 5), wide)
    counts = lib.from_numpy(np.array([[1, 2, 1], [3, 0, 1]]))
    found = lib.numpy(kldiv.pairwise(counts, divergence="tv", normalize=True, base=None))
    assert np.allclose(found, [[0, 0.5], [0.5, 0]], atol=1e-6)
    if "float16" in lib.floats and lib.root != "jax":
        half = lib.array(a, "float16")
        lib.assert_like(kldiv.pairwise(half, divergence="js", normalize=True), (6, 6), "float16")


@pytest.mark.parametrize("name", ["kl", "js:0", "alpha:0", "renyi:2"])
def test_derivatives_in_torch(torch, name):
    a, b = (each[:4, 3:] + 1e-3 for each in rows())
    random = np.random.default_rng(2)
    ours, theirs = ([torch.tensor(x, requires_grad=True) for x in (a, b)] for _ in "12")
    weight = torch.tensor(random.random((4, 4)))
    every = partial(kldiv.pairwise, divergence=name)
    (every(*ours) * weight).sum().backward()
    (expanded(OF_ONE[name], *theirs, torch.broadcast_to) * weight).sum().backward()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-12, atol=1e-14)
    single = ours[0].detach().requires_grad_()
    (every(single) * weight).sum().backward()
    both = [x.detach().requires_grad_() for x in (single, single)]
    (expanded(OF_ONE[name], *both, torch.broadcast_to) * weight).sum().backward()
    torch.testing.assert_close(single.grad, both[0].grad + both[1].grad, rtol=1e-11, atol=1e-13)
    assert torch.autograd.gradcheck(every, ours, check_forward_ad=True)
    if name == "kl":
        assert torch.autograd.gradgradcheck(every, [x[:2] for x in ours], fast_mode=True)
    stacked = torch.stack([ours[0], ours[0] / 2])
    assert torch.func.vmap(lambda x: every(x, ours[1]))(stacked).shape == (2, 4, 4)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", [*OF_ONE][:9])
def test_gradients_of_kernels_are_those_of_the_formulas(torch, name, dtype):
    pytest.importorskip("llvmlite")
    random = np.random.default_rng(4)
    a, b = random.dirichlet(np.ones(83), 11), random.dirichlet(np.ones(83), 37)
    a[0, 2] = b[0, 2] = b[1, 3] = a[1, 5] = 0.0
    b[2], b[3] = a[2] * (1 + 1e-7 * random.normal(size=83)), a[3]
    a[4] = np.eye(83)[1]
    a[5, 1], b[5, 3] = -1.0, math.nan  # no probabilities
    weight = torch.tensor(random.normal(size=(11, 37)), dtype=getattr(torch, dtype))
    weight[0, 1] = weight[4] = 0.0
    weight[:, ::5] = 0.0
    found = []
    for kernel in ("cpu", "pure"):
        rows = [torch.tensor(x, dtype=weight.dtype, requires_grad=True) for x in (a, b)]
        with kldiv.config_context(kernel=kernel):
            value = kldiv.pairwise(*rows, divergence=name)
            found.append(torch.autograd.grad(value, rows, weight))
    for mine, other in zip(*found, strict=True):
        assert mine.isfinite().any()
        # Sums of both signs: an error is one of the terms'.
        scale = float(other[other.isfinite()].abs().mean())
        torch.testing.assert_close(
            mine, other, rtol=100 * unit(dtype), atol=100 * unit(dtype) * scale, equal_nan=True
        )


def test_many_pairs_are_differentiated_on_every_path(torch):
    random = np.random.default_rng(6)
    a, b = (torch.tensor(random.dirichlet(np.ones(64), 20)) for _ in "12")
    weight = torch.tensor(random.random((20, 20)))
    found = []
    for kernel in ("auto", "pure"):
        with kldiv.config_context(kernel=kernel):
            rows = [x.clone().requires_grad_() for x in (a, b)]
            total = (kldiv.pairwise(*rows, divergence="js") * weight).sum()
            once = torch.autograd.grad(total, rows, create_graph=True)
            found.append([*once, *torch.autograd.grad(sum((x**2).sum() for x in once), rows)])
    torch.testing.assert_close(*found, rtol=1e-11, atol=1e-13)


def test_gradients_of_infinite_pairs_leak_nothing(torch):
    a = torch.tensor([[0.5, 0.5], [0.2, 0.8]], requires_grad=True)
    b = torch.tensor([[1.0, 0.0], [0.4, 0.6]])
    found = kldiv.pairwise(a, b)
    found[:, 1].sum().backward()
    assert found[:, 0].isinf().all()
    torch.testing.assert_close(a.grad, (a.detach() / b[1]).log())


@pytest.mark.parametrize("kernel", [pytest.param("pure", marks=pytest.mark.slow), "cpu"])
def test_derivatives_and_transforms_in_jax(kernel):
    require(Library.JAX_X64)
    if kernel == "cpu":
        pytest.importorskip("llvmlite")
    import jax
    import jax.numpy as jnp

    with jax.enable_x64(True), kldiv.config_context(kernel=kernel):
        a, b = (jnp.asarray(each[:3, 3:] + 1e-3) for each in rows())
        weight = jnp.asarray(np.random.default_rng(3).random((3, 3)))

        def both(a, b):
            one = kldiv.pairwise(a, b)
            with kldiv.config_context(kernel="pure"):
                return one, expanded(kldiv.kl_divergence, a, b, jnp.broadcast_to)

        def losses(a, b):
            return jnp.stack([(weight * each).sum() for each in both(a, b)])

        @jax.jit
        def every(a, b):
            tangents = jax.jvp(both, (a, b), (a, -b))[1]
            mapped = jax.vmap(kldiv.pairwise, (0, None))(jnp.stack([a, a]), b)[1]
            return both(a, b), tangents, jax.jacrev(losses, (0, 1))(a, b), mapped

        values, tangents, gradients, mapped = every(a, b)
        for one, other in (values, tangents, *gradients, (mapped, values[1])):
            np.testing.assert_allclose(one, other, rtol=1e-11, atol=1e-14)
        gradient = jax.grad(losses_of := lambda a, b: losses(a, b)[0], (0, 1))
        for eager, known in zip(gradient(a, b), gradients, strict=True):
            np.testing.assert_allclose(eager, known[0], rtol=1e-11, atol=1e-14)
        # Of second order: forward over reverse, reverse over reverse, and gradients of a batch.
        second = [jax.jit(jax.jacfwd(gradient)), jax.jit(jax.jacrev(gradient))]
        wanted = jax.hessian(lambda a, b: losses(a, b)[1])(a, b)
        for each in second:
            np.testing.assert_allclose(each(a, b)[0], wanted, rtol=1e-9, atol=1e-12)
        batch = jax.vmap(gradient, (0, None))(jnp.stack([a, a / 2]), b)
        np.testing.assert_allclose(batch[0][1], gradient(a / 2, b)[0], rtol=1e-12)
        assert ("kldiv_fused" in str(jax.make_jaxpr(losses_of)(a, b))) is (kernel == "cpu")


def test_edges_of_shapes_and_other_backends():
    a, b = rows()
    for kernel in ("auto", "pure"):
        with kldiv.config_context(kernel=kernel):
            assert kldiv.pairwise(a[:0], b).shape == (0, 5)
            assert kldiv.pairwise(a, b[:0], divergence="renyi:inf").shape == (6, 0)
            assert kldiv.pairwise(a[:1], b[:1]).shape == (1, 1)
    assert kldiv.pairwise(a[:2, ::-2], b[:, ::-2]).tolist() == pytest.approx(
        kldiv.pairwise(a[:2, ::-2].copy(), b[:, ::-2].copy())
    )
    require(Library.TORCH)
    with kldiv.config_context(backend="torch"):
        found = kldiv.pairwise(a, b, base=2)
    assert isinstance(found, np.ndarray)
    np.testing.assert_allclose(found * math.log(2), kldiv.pairwise(a, b), rtol=1e-14)


def test_frames_are_matched_by_columns():
    pd = pytest.importorskip("pandas")
    a, b = (each[:3, :3] for each in rows())
    p = pd.DataFrame(a, ["r", "s", "t"], ["x", "y", "z"])
    q = pd.DataFrame(b, columns=["x", "y", "z"])[["z", "x", "y"]]
    np.testing.assert_array_equal(kldiv.pairwise(p, q), kldiv.pairwise(a, b))


@pytest.mark.parametrize(
    ("arguments", "options", "error", "said"),
    [
        ((np.ones(3),), {}, ShapeError, r"a\[None, :\]"),
        ((np.ones((1, 2, 3)),), {}, ShapeError, r"reshape\(-1"),
        ((np.ones((2, 3)), np.ones((2, 4))), {}, ShapeError, r"\(2, 3\) and \(2, 4\)"),
        ((np.ones((2, 0)),), {}, ShapeError, "no classes"),
        ((np.ones((2, 3), int),), {}, DTypeError, "int64"),
        (([[0.5, 0.5]],), {}, LibraryError, "numpy.asarray"),
        ((np.ones((2, 3)),), {"divergence": "kll"}, OptionError, "expected one of kl"),
        ((np.ones((2, 3)),), {"divergence": "renyi"}, OptionError, "needs its order"),
        ((np.ones((2, 3)),), {"divergence": "jeffreys:1,2"}, OptionError, "no weights"),
        ((np.ones((2, 3)),), {"divergence": "tv", "base": 2}, OptionError, "tv has none"),
        ((np.ones((2, 3)),), {"divergence": "skew:2"}, OptionError, "between 0 and 1"),
        ((np.ones((2, 3)),), {"divergence": None}, OptionError, "must be a name"),
    ],
)
def test_errors(arguments, options, error, said):
    with pytest.raises(error, match=said):
        kldiv.pairwise(*arguments, **options)
