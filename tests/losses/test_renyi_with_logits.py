"""`renyi_div_with_logits`: every order against mpmath, its limits, and the rules of its sums."""

from __future__ import annotations

from functools import cache, partial

import f_divergences
import mpmath
import numpy as np
import pytest
from logit_families import INF, TARGET, batch, dtypes, gradient_error, value_error
from reference import constant, numbers, softmax
from second_derivatives import hessian_error

import kldiv
from bench.studies.targets import rows
from kldiv.errors import OptionError
from kldiv.formulas import blocks

SIZE = 12
ORDERS = (0.5, 2.0, 0.01, 30.0)
S, T = np.random.default_rng(3).normal(size=(2, 4, 5))


def renyi(alpha, **options):
    return partial(kldiv.renyi_div_with_logits, alpha=alpha, **options)


def both(loss, s, t):
    total = kldiv.value_and_grad(partial(loss, reduction="sum"), argnums=(0, 1))
    return loss(s, t, reduction="none"), *total(s, t)[1]


def exact(alpha, s, t):
    """The value of a row, both gradients, and how the power magnifies errors of log(p/q)."""

    def compute():
        p, q = (softmax(numbers(x))[0] for x in (t, s))
        a = mpmath.mpf(alpha)
        value, w = f_divergences.renyi(alpha, p, q)
        if not mpmath.isfinite(value):
            return [[value], w, w, [0, 0, 0]]
        of_t = [a / (1 - a) * (x - y) for x, y in zip(p, w, strict=True)]
        of_s = [y - x for y, x in zip(q, w, strict=True)]
        ell = [abs(mpmath.log(x / y)) if x and y else 0 for x, y in zip(p, q, strict=True)]
        of_value = mpmath.fsum(abs(x - y) * z for x, y, z in zip(w, q, ell, strict=True))
        of_slopes = a * mpmath.fsum(x * z for x, z in zip(w, ell, strict=True))
        sizes = value, *(mpmath.fsum(map(abs, each)) for each in (of_s, of_t))
        scales = of_value, of_slopes, of_slopes
        return [
            [value],
            of_s,
            of_t,
            [x / y if y else 0 for x, y in zip(scales, sizes, strict=True)],
        ]

    with mpmath.workdps(60):
        found = [np.array([float(x) for x in each]) for each in compute()]
    return found[0][0], *found[1:]


@cache
def truths(alpha, dtype):
    _, s, t = batch(SIZE, dtype)
    return [exact(alpha, *row) for row in zip(s, t, strict=True)]


def check_rows(found, alpha, dtype, names, zero):
    """Check values and gradients of each row; some rows are 0."""
    for row, (*true, scales) in enumerate(truths(alpha, dtype)):
        if zero[row]:
            assert all((result[row] == 0).all() for result in found)
            continue
        errors = value_error, gradient_error, gradient_error
        for error, result, wanted, scale in zip(errors, found, true, scales, strict=True):
            allowed = TARGET[dtype] * (1 + scale)
            assert error(result[row], wanted, dtype) <= allowed, names[row]


@pytest.mark.leave_out(
    lambda lib, alpha: (
        "compiled, each for seconds" if lib.root in {"jax", "dask"} and alpha != 2 else None
    )
)
@pytest.mark.parametrize("alpha", ORDERS)
def test_targets(lib, alpha):
    for dtype in dtypes(lib):
        names, s, t = batch(SIZE, dtype)
        found = [lib.numpy(a) for a in both(renyi(alpha), lib.from_numpy(s), lib.from_numpy(t))]
        check_rows(found, alpha, dtype, names, [constant(*row) for row in zip(s, t, strict=True)])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("alpha", [0.01, 0.3, 0.5, 0.9, 2.0])
def test_targets_of_the_kernel(alpha, dtype, monkeypatch):
    """Rows where P and Q have little in common are left to the formulas, those of a mask are 0."""
    pytest.importorskip("llvmlite")
    from kldiv.kernels.cpu import row_loss

    left, formulas = [], row_loss._leave_to_formulas
    monkeypatch.setattr(
        row_loss, "_leave_to_formulas", lambda *a: left.append(a[1].values.copy()) or formulas(*a)
    )
    names, s, t = batch(SIZE, dtype)
    keep = np.arange(len(s)) != 1
    with kldiv.config_context(kernel="cpu"):
        found = both(renyi(alpha, where=keep), s, t)
    assert np.isnan(left[0]).any(), "some rows"
    assert not np.isnan(left[0]).all()
    assert all((each[1] == 0).all() for each in found)
    nothing = [constant(*row) for row in zip(s, t, strict=True)]
    check_rows(found, alpha, dtype, names, nothing | ~keep)


@pytest.mark.parametrize("alpha", [0.01, 0.3, 0.5, 0.9, 2.0, 30.0])
def test_targets_of_blocks(alpha):
    names, s, t = batch(SIZE, "float32")
    keep = np.arange(len(s)) != 1
    with kldiv.config_context(kernel="blocks"):
        found = both(renyi(alpha, where=keep), s, t)
    nothing = [constant(*row) for row in zip(s, t, strict=True)]
    check_rows(found, alpha, "float32", names, nothing | ~keep)


def test_the_kernel_of_torch(torch):
    """Half types, an axis, temperatures of rows; rows near and far apart."""
    s, t = torch.randn(2, 5, 40, 6, generator=torch.Generator().manual_seed(0)).double()
    t[2] *= 30
    heat = torch.linspace(0.5, 2.0, 6, dtype=torch.float64)
    for dtype, unit in ((torch.float64, 1e-13), (torch.bfloat16, 2.0**-7)):
        found = []
        for kernel in ("cpu", "pure"):
            own = [each.to(dtype).requires_grad_() for each in (s, t)]
            with kldiv.config_context(kernel=kernel):
                loss = renyi(0.7, temperature=heat, axis=1, reduction="none", dtype=torch.float64)
                values = loss(*own)
            found.append([values, *torch.autograd.grad((values * values.detach()).sum(), own)])
        torch.testing.assert_close(*found, rtol=unit, atol=1e-14)


@pytest.mark.parametrize("kernel", ["pure", "cpu", "blocks"])
@pytest.mark.parametrize("alpha", [1e-20, 5e-17, 1e-16])
def test_orders_next_to_0_where_either_side_masks_a_class(alpha, kernel):
    """1 − alpha is 1, and still no class that one side masks makes it infinite: not a subnormal."""
    if kernel == "cpu":
        pytest.importorskip("llvmlite")
    s = np.array([1.0, -INF, 0.5, -740.0, 0.2])
    t = np.array([0.3, 0.1, 1.0, -INF, 0.4])
    value, of_s, of_t, _ = exact(alpha, s, t)
    with kldiv.config_context(kernel=kernel):
        found, *gradients = both(renyi(alpha), s, t)
        power = float(kldiv.alpha_div_with_logits(s, t, alpha=alpha))
    np.testing.assert_allclose(found, value, rtol=1e-14)
    for gradient, wanted in zip(gradients, (of_s, of_t), strict=True):
        np.testing.assert_allclose(gradient, wanted, rtol=1e-13, atol=1e-30)
    # The divergence itself is nearly the mass that P has not, over α.
    np.testing.assert_allclose(power, -np.expm1(-value) / alpha, rtol=1e-13)


@pytest.mark.slow_where(lambda lib: lib.root == "jax")
def test_limits(lib):
    """0, 1 and ∞, and what is near them."""
    s, t = S.copy(), T.copy()
    t[0, 1], s[1, 2] = -INF, -INF
    p, q = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (t, s))
    arrays = lib.array(s), lib.array(t)
    loss = kldiv.renyi_div_with_logits
    value, of_s, of_t = both(renyi(0), *arrays)
    lost = np.where(p > 0, 0, q).sum(-1, keepdims=True)
    lib.assert_equal(value, -np.log1p(-lost)[..., 0], ulps=16)
    lib.assert_equal(of_s, np.where(p > 0, -q * lost / (1 - lost), q), ulps=16)
    lib.assert_equal(of_t, 0 * p)
    value, of_s, of_t = both(renyi(INF), *arrays)
    with np.errstate(divide="ignore"):
        ratio = np.where(p > 0, p / q, 0)
    top = ratio == ratio.max(-1, keepdims=True)
    lib.assert_equal(value, np.log(ratio.max(-1)), ulps=16)
    lib.assert_equal(of_s[2:, :], (q - top)[2:], ulps=16)
    lib.assert_equal(of_t[2:, :], (top - p)[2:], ulps=16)
    assert np.isnan(lib.numpy(of_s)[1]).all()
    kl = lib.numpy(kldiv.kl_div_with_logits(*arrays, reduction="none"))
    lib.assert_equal(loss(*arrays, alpha=1, reduction="none"), kl, ulps=0)
    if lib.widest == "float64":
        near = loss(*arrays, alpha=1 + 1e-12, reduction="none")
        np.testing.assert_allclose(lib.numpy(near)[[0, 2, 3]], kl[[0, 2, 3]], rtol=1e-10)


@pytest.mark.parametrize("alpha", [-1, float("nan"), "2"])
def test_wrong_orders(alpha):
    allowed = "and no array" if alpha == "2" else "from 0 to"
    with pytest.raises(OptionError, match="alpha must be a number,? " + allowed):
        kldiv.renyi_div_with_logits(S, T, alpha=alpha)


@pytest.mark.parametrize("alpha", [0.01, 0.5, 2.0, 30.0])
def test_hessians_where_one_class_has_all_mass(torch, alpha):
    """The mass of all others is nothing beside it."""
    t = np.array([50.0, 0.3, -0.4, 0.1])
    x = np.array([*(t + np.array([-0.5, 1.0, 0.2, -0.3])), *t])
    found = torch.func.hessian(lambda x: renyi(alpha)(x[:4], x[4:]))(torch.tensor(x))
    true = rows.softmaxed(rows.renyi(alpha))
    assert hessian_error(found.tolist(), lambda x: true(*x), x) < 64 * 2.0**-53


@pytest.mark.parametrize("alpha", [0, 0.5, 2.0, INF])
def test_rows_in_parts(monkeypatch, alpha):
    """Ties of the largest quotient lie in several of them."""
    s, t = np.tile(S, 3), np.tile(T, 3)
    t[:, [3, 8]] = -INF
    wanted = both(renyi(alpha), s, t)
    monkeypatch.setattr(blocks, "BLOCK_CLASSES", 4)
    for found, whole in zip(both(renyi(alpha), s, t), wanted, strict=True):
        np.testing.assert_allclose(found, whole, rtol=1e-14, atol=1e-16)
