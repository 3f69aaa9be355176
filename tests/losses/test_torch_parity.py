"""Other libraries' own divergences give the same numbers: torch above all, then SciPy and Optax."""

from __future__ import annotations

import copy
import io
import math
import pickle
import warnings
from functools import cache

import numpy as np
import pytest
from libraries import unit

import kldiv

DTYPES = ("float32", "float64", "bfloat16", "float16")
REDUCTIONS = ("none", "mean", "batchmean", "sum")


@pytest.fixture
def functional(torch):
    """torch's own ``kl_div`` without the warning that it gives at every "mean"."""

    def kl_div(*args, **kwargs):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "reduction: 'mean' divides", UserWarning)
            return torch.nn.functional.kl_div(*args, **kwargs)

    return kl_div


@cache
def torch_s_own_test_database():
    pytest.importorskip("expecttest", reason="torch's test database needs expecttest")
    from torch.testing._internal.common_methods_invocations import op_db

    return op_db


@pytest.fixture
def opinfo(torch):
    found = [op for op in torch_s_own_test_database() if op.name == "nn.functional.kl_div"]
    assert len(found) == 1
    return found[0]


def scale(x, y, *, log_target):
    """The terms of one element without their cancellation: what its rounding is measured by."""
    x, y = x.detach().double(), y.detach().double()
    return y.exp() * (y.abs() + x.abs()) if log_target else y.xlogy(y).abs() + (y * x).abs()


def divisor(shape, reduction):
    if reduction == "batchmean":
        return shape[0] if shape else 1
    return math.prod(shape) if reduction == "mean" else 1


def assert_within(found, wanted, bound):
    """Assert the same library, dtype and shape, and values no further apart than ``bound``."""
    assert type(found) is type(wanted)
    assert found.dtype == wanted.dtype
    assert found.shape == wanted.shape
    difference = (found.detach().double() - wanted.detach().double()).abs()
    assert bool((difference <= bound).all()), f"off by {difference}, allowed {bound}"


def gradients(function, x, y, weight, **options):
    """Value, and both gradients of its ``weight``-weighted sum."""
    x, y = x.detach().requires_grad_(), y.detach().requires_grad_()
    value = function(x, y, **options)
    (value * weight(value)).sum().backward()
    return value, x.grad, y.grad


def assert_parity(functional, x, y, **options):
    """Values and gradients are torch's within what torch's own rounding explains."""
    log_target, reduction = options["log_target"], options["reduction"]

    def ramp(value):
        # Unequal weights show a cotangent that is dropped, or one that is applied to another place.
        return (1 + value.detach() * 0).cumsum(-1) if value.ndim else 1 + value.detach() * 0

    found = gradients(kldiv.kl_div, x, y, ramp, **options)
    wanted = gradients(functional, x, y, ramp, **options)
    u = unit(str(x.dtype).rpartition(".")[2])
    whole = scale(x, y, log_target=log_target)
    if reduction != "none":
        whole = whole.sum() / divisor(tuple(x.shape), reduction)
    # torch rounds some five times an element, in half precision too; kldiv only once.
    assert_within(found[0], wanted[0], 8 * u * whole)
    weight = ramp(found[0]).double() / divisor(tuple(x.shape), reduction)
    x, y = x.detach().double(), y.detach().double()
    steep = y.exp() if log_target else y
    slope = y.exp() * (y.abs() + x.abs() + 1) if log_target else y.log().abs() + x.abs() + 1
    assert_within(found[1], wanted[1], 4 * u * weight * steep)
    finite = wanted[2].isfinite()
    assert bool(finite.any())
    zero = wanted[2].new_zeros(())
    assert_within(
        found[2].where(finite, zero),
        wanted[2].where(finite, zero),
        (8 * u * weight * slope).where(finite, zero.double()),
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_samples_of_torch_s_own_opinfo(torch, opinfo, functional, dtype):
    assert getattr(torch, dtype) in opinfo.dtypes
    seen = set()
    for sample in opinfo.sample_inputs("cpu", getattr(torch, dtype), requires_grad=True):
        (target,) = sample.args
        seen.add((sample.kwargs["reduction"], sample.kwargs["log_target"]))
        if sample.input.shape == target.shape:
            assert_parity(functional, sample.input, target, **sample.kwargs)
        else:  # torch broadcasts
            with pytest.raises(kldiv.errors.ShapeError):
                kldiv.kl_div(sample.input, target, **sample.kwargs)
    assert seen == {(reduction, flag) for reduction in REDUCTIONS for flag in (True, False)}


def test_every_dtype_of_torch_s_opinfo_is_tested(torch, opinfo):
    assert {str(dtype).rpartition(".")[2] for dtype in opinfo.dtypes} == set(DTYPES)


@pytest.mark.parametrize("shape", [(), (1,), (7,), (1, 5), (5, 1), (4, 6), (2, 3, 4), (2, 1, 3, 5)])
@pytest.mark.parametrize("log_target", [False, True])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_more_shapes(torch, functional, shape, log_target, reduction, dtype):
    generator = torch.Generator().manual_seed(3)
    x, y = (
        # No wider: torch's float16 gradients lose digits at subnormal probabilities.
        torch.randn(shape, generator=generator, dtype=torch.float64).log_softmax(-1)
        for _ in range(2)
    )
    if not shape:
        x, y = x - 0.25, y - 0.75
    y = y if log_target else y.exp()
    x, y = x.to(getattr(torch, dtype)), y.to(getattr(torch, dtype))
    assert_parity(functional, x, y, log_target=log_target, reduction=reduction)


class TestModule:
    """``kldiv.nn.KLDivLoss`` in the place of ``torch.nn.KLDivLoss``."""

    @pytest.fixture
    def arrays(self, torch):
        x = torch.tensor([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]]).log()
        return x, torch.tensor([[0.1, 0.1, 0.8], [0.3, 0.3, 0.4]])

    @pytest.fixture
    def make(self, torch):
        return pytest.importorskip("kldiv.nn").KLDivLoss

    def test_defaults_are_torch_s(self, torch, make):
        assert (make().reduction, make().log_target) == (
            torch.nn.KLDivLoss().reduction,
            torch.nn.KLDivLoss().log_target,
        )

    def test_it_is_a_module_without_state(self, torch, make):
        loss = make("sum")
        assert isinstance(loss, torch.nn.Module)
        assert loss.state_dict() == {}
        assert list(loss.parameters()) == list(loss.buffers()) == []
        loss.load_state_dict({})
        assert loss.eval().training is False
        assert loss.to(torch.float64).half() is loss

    def test_it_lives_in_containers(self, torch, make, arrays):
        losses = torch.nn.ModuleList([make("sum"), make("batchmean")])
        losses.append(make("none"))
        assert [loss(*arrays).shape for loss in losses] == [(), (), (2, 3)]
        assert len(list(losses.modules())) == 4
        named = torch.nn.ModuleDict({"soft": make("sum"), "hard": torch.nn.CrossEntropyLoss()})
        torch.testing.assert_close(named["soft"](*arrays), losses[0](*arrays))
        chain = torch.nn.Sequential(torch.nn.LogSoftmax(-1), make("sum"))
        torch.testing.assert_close(chain[1](chain[0](arrays[0]), arrays[1]), losses[0](*arrays))
        assert chain.state_dict() == losses.state_dict() == {}

    def test_copies_behave_alike(self, torch, make, arrays):
        loss = make("none", log_target=True)
        saved = io.BytesIO()
        torch.save(loss, saved)
        saved.seek(0)
        for copied in (
            copy.deepcopy(loss),
            copy.copy(loss),
            pickle.loads(pickle.dumps(loss)),  # noqa: S301 - our own bytes
            torch.load(saved, weights_only=False),
        ):
            assert type(copied) is make
            assert repr(copied) == repr(loss)
            torch.testing.assert_close(copied(*arrays), loss(*arrays))

    def test_the_repr_shows_the_settings(self, torch, make):
        assert repr(make()) == "KLDivLoss(reduction='mean', log_target=False)"
        assert repr(make("sum", log_target=True)) == "KLDivLoss(reduction='sum', log_target=True)"
        inside = repr(torch.nn.ModuleList([make("none")]))
        assert "(0): KLDivLoss(reduction='none', log_target=False)" in inside

    def test_an_unknown_reduction_fails_at_construction(self, make):
        with pytest.raises(ValueError, match="'none', 'mean', 'batchmean', 'sum'"):
            make("average")

    def test_hooks_and_options_of_the_call(self, torch, make, arrays):
        loss, seen = make("sum"), []
        loss.register_forward_hook(lambda module, args, output: seen.append((module, output)))
        value = loss(*arrays, where=torch.tensor([[True], [False]]), dtype=torch.float64)
        assert seen == [(loss, value)]
        wanted = kldiv.kl_div(arrays[0][:1].double(), arrays[1][:1].double(), reduction="sum")
        torch.testing.assert_close(value, wanted)
        by_name = loss(target=arrays[1], input=arrays[0])
        torch.testing.assert_close(by_name, loss(*arrays))


def distributions(seed=0, shape=(20, 50)):
    """Rows of log Q and P, both normalised; P has zeros."""
    rng = np.random.default_rng(seed)
    q, p = rng.dirichlet(np.ones(shape[1]), (2, shape[0]))
    p[rng.random(shape) < 0.1] = 0.0
    return np.log(q), p / p.sum(axis=1, keepdims=True)


def test_scipy_agrees():
    special = pytest.importorskip("scipy.special")
    stats = pytest.importorskip("scipy.stats")
    x, p = distributions()
    found = kldiv.kl_div(x, p, reduction="none")
    # rel_entr takes Q itself: one more rounding of log Q, of relative size u·|log Q| in Q.
    np.testing.assert_allclose(found, special.rel_entr(p, np.exp(x)), rtol=1e-12, atol=1e-15)
    entropies = stats.entropy(p, np.exp(x), axis=1)  # normalises both once more
    np.testing.assert_allclose(found.sum(axis=1), entropies, rtol=1e-12)
    total = kldiv.kl_div(x, p, reduction="batchmean")
    np.testing.assert_allclose(total, entropies.mean(), rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("log_target", [False, True])
def test_optax_agrees(jax, log_target):
    optax = pytest.importorskip("optax").losses
    theirs = optax.kl_divergence_with_log_targets if log_target else optax.kl_divergence
    x, p = distributions()
    kept = p != 0  # at P = 0 Optax has no gradient in the target
    if log_target:
        p = np.log(np.maximum(p, 1e-30))  # its log-target form makes NaN of −∞

    def ours(x, y):
        return kldiv.kl_div(x, y, reduction="none", log_target=log_target).sum(axis=-1)

    with jax.enable_x64(True):
        pair = jax.numpy.asarray(x), jax.numpy.asarray(p)
        np.testing.assert_allclose(ours(*pair), theirs(*pair), rtol=1e-12)
        slopes = (jax.grad(lambda *a, f=f: f(*a).sum(), (0, 1))(*pair) for f in (ours, theirs))
        for found, wanted in zip(*slopes, strict=True):
            np.testing.assert_allclose(found[kept], wanted[kept], rtol=1e-11, atol=1e-13)
