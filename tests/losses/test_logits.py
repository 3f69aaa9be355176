"""`kl_div_with_logits` and `js_div_with_logits` as users call them, on every library."""

from __future__ import annotations

import math
from functools import partial

import mpmath
import numpy as np
import pytest
import reference
from libraries import unit
from logit_families import (
    INDUCTOR,
    INF,
    TARGET,
    assert_right,
    batch,
    dtypes,
    families,
    truths,
    value_error,
)
from reference import exact

import kldiv
from kldiv.errors import DTypeError, OptionError, ShapeError
from kldiv.formulas import blocks

NAN = math.nan
LOSSES = {
    "kl": (kldiv.kl_div_with_logits, None),
    "js": (partial(kldiv.js_div_with_logits, beta=0.3), 0.3),
}
RNG = np.random.default_rng(11)
S, T = RNG.normal(size=(2, 4, 3, 5))


@pytest.fixture(params=LOSSES)
def loss(request):
    return LOSSES[request.param][0]


ONCE = "compiled or made of tasks, each case for seconds: one is enough"


def once(lib, chosen):
    """Leave out all but one case of the libraries that compile or make tasks."""
    return lib.root in {"jax", "dask"} and (not chosen or lib.value == "jax") and ONCE


def tolerance(dtype):
    return 64 * unit(dtype)


def rows_and_gradients(loss, s, t, **options):
    """The divergence of every row, and both gradients of their sum, as the library gives them."""
    total = kldiv.value_and_grad(partial(loss, reduction="sum", **options), argnums=(0, 1))
    return loss(s, t, reduction="none", **options), *total(s, t)[1]


# --- the targets ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOSSES)
def test_targets(lib, name):
    loss, beta = LOSSES[name]
    for dtype in dtypes(lib):
        names, s, t = batch(100, dtype)
        results = rows_and_gradients(loss, lib.from_numpy(s), lib.from_numpy(t))
        for result, shape in zip(results, (s.shape[:1], s.shape, s.shape), strict=True):
            lib.assert_like(result, shape, dtype)
        found = [lib.numpy(result) for result in results]
        assert_right(names, found, truths(100, dtype, 1.0, beta), dtype)


@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize("dtype", TARGET)
@pytest.mark.parametrize("name", LOSSES)
def test_targets_under_jit(jax, name, dtype):
    loss, beta = LOSSES[name]
    names, s, t = batch(100, dtype)
    with jax.enable_x64(dtype == "float64"):
        # Constants of the whole batch would be folded at compile time: they must be arguments.
        total = jax.value_and_grad(lambda s, t: loss(s, t, reduction="sum"), argnums=(0, 1))
        both = jax.jit(lambda s, t: (loss(s, t, reduction="none"), *total(s, t)[1]))
        found = [np.asarray(a) for a in both(jax.numpy.asarray(s), jax.numpy.asarray(t))]
    assert_right(names, found, truths(100, dtype, 1.0, beta), dtype)


@pytest.mark.slow
@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
@pytest.mark.parametrize("name", ["kl", "js"])
def test_targets_under_torch_compile(torch, name, compiler):
    """Inductor computes expm1(x) as exp(x) − 1, which would cost every digit near P = Q."""
    loss, beta = LOSSES[name]
    names, s, t = batch(100, "float32")
    torch.compiler.reset()
    options = INDUCTOR if compiler == "inductor" and name != "kl" else None
    compiled = torch.compile(
        partial(loss, reduction="none"), fullgraph=True, backend=compiler, options=options
    )
    tensors = [torch.tensor(a, requires_grad=True) for a in (s, t)]
    rows = compiled(*tensors)
    gradients = torch.autograd.grad(rows.sum(), tensors)
    found = [a.detach().numpy() for a in (rows, *gradients)]
    assert_right(names, found, truths(100, "float32", 1.0, beta), "float32")


@pytest.mark.parametrize("beta", [0.01, 0.99])
def test_every_weight_of_the_mixture(beta):
    names, s, t = batch(3, "float64")
    found = rows_and_gradients(partial(kldiv.js_div_with_logits, beta=beta), s, t)
    assert_right(names, found, truths(3, "float64", 1.0, beta), "float64")


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_half_types(lib, loss, half):
    """Right for the given logits in float32, rounded once where the result is of the half type."""
    finite = [p for p in families(100).values() if max(map(np.nanmax, map(abs, p))) < 100]
    beta = None if loss is kldiv.kl_div_with_logits else 0.3
    ours = [lib.array(np.stack([pair[i] for pair in finite[::3]]), half) for i in (0, 1)]
    rounded = [lib.numpy(array).astype(np.float64) for array in ours]
    expected = [exact(a, b, beta=beta) for a, b in zip(*rounded, strict=True)]
    rows = loss(*ours, reduction="none", dtype="float32")
    lib.assert_like(rows, (len(expected),), "float32")
    for found, true in zip(lib.numpy(rows), expected, strict=True):
        assert value_error(found, true.value, "float32") <= TARGET["float32"]

    rows, of_s, of_t = rows_and_gradients(loss, *ours)
    lib.assert_like(rows, (len(expected),), half)
    tiny = 1e-7 if half == "float16" else 1e-38
    u = unit(half) * 1.001
    np.testing.assert_allclose(
        lib.numpy(rows).astype(float), [float(e.value) for e in expected], rtol=u, atol=tiny
    )
    for found, wanted in ((of_s, "grad_input"), (of_t, "grad_target")):
        lib.assert_like(found, ours[0].shape, half)
        true = np.array([getattr(e, wanted) for e in expected], float)
        scale = abs(true).max(-1, keepdims=True)
        assert (abs(lib.numpy(found) - true) <= u * abs(true) + 1e-6 * scale + tiny).all()


def test_identical_and_shifted_logits_are_exactly_zero(lib, loss):
    t = np.round(1024 * 3 * RNG.normal(size=(3, 50))) / 1024
    s = t + np.array([[0.0], [100.25], [-50.5]])
    for result in rows_and_gradients(loss, lib.array(s), lib.array(t)):
        assert (lib.numpy(result) == 0).all()


# --- float32 stays float32 ------------------------------------------------------------------------


class Recorder(np.ndarray):
    """An array that notes the dtype of every result as large as itself."""

    seen: set[str]

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        plain = [np.asarray(a) if isinstance(a, Recorder) else a for a in inputs]
        result = getattr(ufunc, method)(*plain, **kwargs)
        if isinstance(result, np.ndarray):
            if result.size >= 1000:
                Recorder.seen.add(result.dtype.name)
            return result.view(Recorder)
        return result


def test_float32_elements_stay_float32_on_numpy(loss):
    Recorder.seen = set()
    s, t = RNG.normal(size=(2, 4, 300)).astype(np.float32)
    with kldiv.config_context(kernel="pure"):
        loss(s.view(Recorder), t.view(Recorder))
        assert Recorder.seen == {"float32", "bool"}
        loss(s.astype(float).view(Recorder), t.view(Recorder))
    assert "float64" in Recorder.seen  # the spy can see it


def test_float32_elements_stay_float32_on_torch(torch, loss):
    from torch.utils._python_dispatch import TorchDispatchMode

    class Spy(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.seen = set()

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and result.numel() >= 1000:
                self.seen.add(result.dtype)
            return result

    s, t = torch.tensor(RNG.normal(size=(2, 4, 300)), dtype=torch.float32)
    s.requires_grad_()
    with Spy() as spy, kldiv.config_context(kernel="pure"):
        torch.autograd.grad(loss(s, t), s)
    assert spy.seen == {torch.float32, torch.bool}


def test_float32_elements_stay_float32_on_jax(jax, loss):
    arrays = [jax.numpy.zeros((4, 300), "float32")] * 2
    with jax.enable_x64(True):  # so that float64 could appear
        text = str(jax.make_jaxpr(jax.grad(loss))(*arrays))
    assert "f32[4,300]" in text
    assert "f64[4,300]" not in text


# --- shapes, reductions, masks --------------------------------------------------------------------


def test_reductions(lib, loss):
    s, t = lib.array(S), lib.array(T)
    rows = lib.numpy(loss(s, t, reduction="none")).astype(float)
    assert rows.shape == (4, 3)
    lib.assert_equal(loss(s, t), rows.mean())
    lib.assert_equal(loss(s, t, reduction="sum"), rows.sum(), ulps=32)
    lib.assert_equal(loss(s, t, reduction="batchmean"), rows.sum() / 4, ulps=32)
    flat = loss(lib.array(S[0, 0]), lib.array(T[0, 0]), reduction="batchmean")
    lib.assert_equal(flat, rows[0, 0], ulps=64)


@pytest.mark.leave_out(lambda lib, shape: once(lib, shape == (4, 1)))
@pytest.mark.parametrize("shape", [(4, 3), (3,), (4, 1), ()])
def test_where_masks_rows_and_leaks_nothing(lib, loss, shape):
    keep = np.array(RNG.random(shape) < 0.6)
    keep.ravel()[:1] = shape != ()
    wide = np.broadcast_to(keep, (4, 3))
    s, t = S.copy(), T.copy()
    rows = lib.numpy(loss(lib.array(S), lib.array(T), reduction="none")).astype(float)
    rows[~wide] = 0
    s[~wide], t[~wide, :2] = NAN, INF
    arrays, mask = (lib.array(s), lib.array(t)), lib.array(keep)
    number, entries = wide.sum(), wide.any(1).sum()
    lib.assert_equal(loss(*arrays, where=mask, reduction="none"), rows, ulps=64)
    lib.assert_equal(loss(*arrays, where=mask, reduction="sum"), rows.sum(), ulps=64)
    mean = rows.sum() / number if number else NAN
    batchmean = rows.sum() / entries if number else NAN
    lib.assert_equal(loss(*arrays, where=mask), mean, ulps=64)
    lib.assert_equal(loss(*arrays, where=mask, reduction="batchmean"), batchmean, ulps=64)
    gradients = kldiv.value_and_grad(partial(loss, where=mask), argnums=(0, 1))(*arrays)[1]
    for gradient, clean in zip(gradients, gradients_of(lib, loss, "sum"), strict=True):
        expected = np.where(wide[..., None], clean / max(number, 1), 0)
        lib.assert_equal(gradient, expected, ulps=64)


def gradients_of(lib, loss, reduction, **options):
    function = kldiv.value_and_grad(partial(loss, reduction=reduction, **options), argnums=(0, 1))
    return [lib.numpy(g).astype(float) for g in function(lib.array(S), lib.array(T))[1]]


@pytest.mark.leave_out(lambda lib, axis: once(lib, axis == -2))
@pytest.mark.parametrize("axis", [0, 1, -2, -3])
def test_classes_on_any_axis(lib, loss, axis):
    moved = [lib.array(np.moveaxis(a, -1, axis)) for a in (S, T)]
    rows, *gradients = rows_and_gradients(loss, *moved, axis=axis)
    expected, *slopes = rows_and_gradients(loss, lib.array(S), lib.array(T))
    lib.assert_equal(rows, lib.numpy(expected), ulps=64)
    for found, slope in zip(gradients, slopes, strict=True):
        lib.assert_equal(found, np.moveaxis(lib.numpy(slope), -1, axis), ulps=64)


def test_no_rows(lib, loss):
    empty = lib.array(np.zeros((0, 5)))
    lib.assert_equal(loss(empty, empty, reduction="none"), np.zeros(0))
    lib.assert_equal(loss(empty, empty, reduction="sum"), 0.0)
    lib.assert_equal(loss(empty, empty), NAN)
    _, gradient = kldiv.value_and_grad(loss)(empty, empty)
    lib.assert_like(gradient, (0, 5), lib.widest)


@pytest.mark.parametrize(
    ("first", "second", "axis", "words"),
    [
        (
            (2, 5),
            (2, 7),
            -1,
            ["5 and 7 classes", "target[..., :5]", "pad_classes(logits, 7, axis=-1)", "−inf"],
        ),
        (
            (7, 2),
            (5, 2),
            0,
            ["7 and 5 classes on axis 0", "input[:5]", "pad_classes(logits, 7, axis=0)"],
        ),
        ((2, 5), (3, 5), -1, ["the same shape", "(2, 5)", "(3, 5)"]),
        ((5,), (2, 5), -1, ["the same shape", "(5,)", "(2, 5)"]),
        ((2, 0), (2, 0), -1, ["no classes on axis -1"]),
        ((), (), -1, ["axis of classes"]),
        ((2, 5), (2, 5), 2, ["axis 2 is out of range", "(2, 5)"]),
        ((2, 5), (2, 5), -3, ["axis -3 is out of range"]),
    ],
)
def test_shapes_that_do_not_fit(lib, loss, first, second, axis, words):
    with pytest.raises(ShapeError) as error:
        loss(lib.array(np.zeros(first)), lib.array(np.zeros(second)), axis=axis)
    for word in words:
        assert word in str(error.value)


def test_options_that_do_not_fit(lib, loss):
    s, t = lib.array(S), lib.array(T)
    with pytest.raises(OptionError, match="'none', 'mean'"):
        loss(s, t, reduction="average")
    for temperature in (0, -1.0, INF, NAN):
        with pytest.raises(OptionError, match="positive and finite"):
            loss(s, t, temperature=temperature)
    with pytest.raises(DTypeError, match="temperature has dtype int"):
        loss(s, t, temperature=lib.array(np.ones(3, np.int32)))
    with pytest.raises(ShapeError, match=r"temperature has shape \(5,\).*\(4, 3\)"):
        loss(s, t, temperature=lib.array(np.ones(5)))
    with pytest.raises(ShapeError, match=r"where has shape \(5,\).*\(4, 3\)"):
        loss(s, t, where=lib.array(np.ones(5, bool)))
    with pytest.raises(DTypeError, match="where has dtype int"):
        loss(s, t, where=lib.array(np.ones((4, 3), np.int32)))
    with pytest.raises(DTypeError, match="input has dtype int"):
        loss(lib.array(np.ones((4, 3, 5), np.int64)), t)
    with pytest.raises(TypeError, match="list"):
        loss([1.0, 2.0], t)


@pytest.mark.parametrize("beta", [0, 1, -0.1, 1.5, NAN])
def test_limits_of_the_mixture_name_the_divergence_to_use(beta):
    with pytest.raises(OptionError, match="kl_div_with_logits"):
        kldiv.js_div_with_logits(S, T, beta=beta)


# --- temperature ----------------------------------------------------------------------------------


@pytest.mark.leave_out(lambda lib, shape: once(lib, shape == (3,)))
@pytest.mark.parametrize("shape", [(4, 3), (3,), (4, 1), ()])
def test_temperature_by_row(lib, loss, shape):
    each = RNG.uniform(0.5, 3.0, shape)
    wide = np.broadcast_to(each, (4, 3))
    beta = None if loss is kldiv.kl_div_with_logits else 0.3
    s, t = lib.array(S), lib.array(T)
    rows, of_s, of_t = rows_and_gradients(loss, s, t, temperature=lib.array(each))
    truth = {i: exact(S[i], T[i], temperature=wide[i], beta=beta) for i in np.ndindex(4, 3)}
    for found, name in ((rows, "value"), (of_s, "grad_input"), (of_t, "grad_target")):
        expected = np.array([getattr(truth[i], name) for i in np.ndindex(4, 3)], float)
        np.testing.assert_allclose(
            lib.numpy(found).reshape(expected.shape),
            expected,
            rtol=tolerance(lib.widest),
            atol=8 * unit(lib.widest),
        )


def slopes_in_temperature(beta, temperature):
    """∂/∂T of each row, by a difference of 60 digits."""

    def slope(s, t, T):
        with mpmath.workdps(90):
            h, T = mpmath.mpf(10) ** -30, mpmath.mpf(float(T))

            def value(T):
                a, b = ([mpmath.mpf(float(v)) / T for v in x] for x in (s, t))
                return (reference.kl(a, b) if beta is None else reference.js(a, b, beta))[0]

            return float((value(T + h) - value(T - h)) / (2 * h))

    return np.array([[slope(S[i, j], T[i, j], temperature[j]) for j in range(3)] for i in range(4)])


def test_gradient_in_an_array_temperature_torch(torch, loss):
    each = np.array([0.5, 1.3, 2.9])
    beta = None if loss is kldiv.kl_div_with_logits else 0.3
    expected = slopes_in_temperature(beta, each)
    s, t, T_ = torch.tensor(S), torch.tensor(T), torch.tensor(each, requires_grad=True)
    (found,) = torch.autograd.grad(loss(s, t, temperature=T_, reduction="sum"), T_)
    np.testing.assert_allclose(found, expected.sum(0), rtol=1e-13)
    _, tangent = torch.func.jvp(
        lambda T: loss(s, t, temperature=T, reduction="none"), (T_,), (torch.ones_like(T_),)
    )
    np.testing.assert_allclose(tangent.detach(), expected, rtol=1e-13)


@pytest.mark.slow
def test_gradient_in_an_array_temperature_jax(jax, loss):
    each = np.array([0.5, 1.3, 2.9])
    beta = None if loss is kldiv.kl_div_with_logits else 0.3
    with jax.enable_x64(True):
        s, t, T_ = (jax.numpy.asarray(a) for a in (S, T, each))
        found = jax.jit(jax.jacfwd(lambda T: loss(s, t, temperature=T, reduction="none")))(T_)
        back = jax.jit(jax.grad(lambda T: loss(s, t, temperature=T, reduction="sum")))(T_)
    expected = slopes_in_temperature(beta, each)
    np.testing.assert_allclose(np.einsum("ijj->ij", found), expected, rtol=1e-13)
    np.testing.assert_allclose(back, expected.sum(0), rtol=1e-13)


@pytest.mark.slow
def test_second_derivatives_in_an_array_temperature(torch, jax, loss):
    s, t = small(torch)
    temperature = torch.tensor([0.5, 1.3, 2.9], dtype=torch.float64, requires_grad=True)

    def of(s, t, temperature):
        return loss(s, t, temperature=temperature, reduction="none")

    assert torch.autograd.gradgradcheck(of, (s, t, temperature), fast_mode=True)
    arguments = [a.detach().numpy() for a in (s, t, temperature)]
    with jax.enable_x64(True):
        tall = jax.hessian(lambda *a: of(*a).sum(), argnums=(0, 1, 2))(
            *map(jax.numpy.asarray, arguments)
        )
    wide = torch.autograd.functional.hessian(lambda *a: of(*a).sum(), (s, t, temperature))
    for row, expected in zip(tall, wide, strict=True):
        for block, other in zip(row, expected, strict=True):
            np.testing.assert_allclose(block, other, rtol=1e-10, atol=1e-12)


# --- blocks ---------------------------------------------------------------------------------------


@pytest.mark.leave_out(lambda lib, shape: once(lib, shape == (3, 7, 5)))
@pytest.mark.leave_out(lambda lib, loss: lib.root == "jax" and loss == "js" and ONCE)
@pytest.mark.slow_where(lambda lib, shape: "strict" in lib.value and shape != (3, 7, 5))
@pytest.mark.parametrize("shape", [(7, 5), (3, 7, 5), (2, 1, 3, 5), (5,)])
def test_blocks_of_rows_and_of_classes_change_nothing(lib, loss, shape, monkeypatch):
    s, t = (lib.array(RNG.normal(size=shape)) for _ in "st")
    mask = lib.array(RNG.random(shape[:-1]) < 0.7)
    temperature = lib.array(RNG.uniform(0.5, 2, shape[:-1]))
    options = {"where": mask, "temperature": temperature}
    whole = [lib.numpy(a) for a in rows_and_gradients(loss, s, t, **options)]
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 2 * 5 * 8)
    monkeypatch.setattr(blocks, "BLOCK_CLASSES", 2)
    if lib.root == "jax":
        import jax

        from kldiv.backends.jax_ import sharding

        monkeypatch.setattr(sharding, "BLOCK_BYTES", 2 * 5 * 8)
        jax.clear_caches()
    parts = rows_and_gradients(loss, s, t, **options)
    for found, expected in zip(parts, whole, strict=True):
        lib.assert_equal(found, expected, ulps=64)


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["pure", "auto"])
def test_extra_memory_on_numpy(loss, kernel):
    import tracemalloc

    s, t = RNG.normal(size=(2, 64, 151_936)).astype(np.float32)
    inputs = s.nbytes + t.nbytes
    with_gradient = kldiv.value_and_grad(loss)
    for function, own in ((loss, 0), (with_gradient, s.nbytes)):
        with kldiv.config_context(kernel=kernel):
            function(s[:1], t[:1])  # a compiler's memory is not the loss'
            tracemalloc.start()
            function(s, t)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak - own <= 0.25 * inputs


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["pure", "auto"])
def test_extra_memory_on_torch(torch, loss, kernel):
    s, t = torch.randn(2, 24, 151_936)
    s.requires_grad_()
    inputs = 2 * s.numel() * 4

    def peak(function):
        with (
            kldiv.config_context(kernel=kernel),
            torch.profiler.profile(profile_memory=True) as profile,
        ):
            function()
        events = profile.profiler.kineto_results.events()
        changes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
        assert changes
        return max(np.cumsum([size for _, size in sorted(changes)]))

    assert peak(lambda: loss(s.detach(), t)) <= 0.25 * inputs
    assert peak(lambda: torch.autograd.grad(loss(s, t), s)) - inputs / 2 <= 0.25 * inputs


def test_extra_memory_on_jax(jax, loss):
    """As XLA plans it; nothing is run."""
    logits = jax.ShapeDtypeStruct((512, 151_936), "float32")
    inputs = 2 * 512 * 151_936 * 4
    for function in (loss, jax.grad(loss)):
        plan = jax.jit(function).lower(logits, logits).compile().memory_analysis()
        assert plan.temp_size_in_bytes <= 0.25 * inputs


# --- the libraries' own machinery -----------------------------------------------------------------


def small(torch, *, masked=False):
    generator = np.random.default_rng(3)
    s, t = generator.normal(size=(2, 3, 4))
    if masked:
        t[0, 1] = -INF
        s[1, 2] = t[1, 2] = -INF
    return tuple(torch.tensor(a, requires_grad=True) for a in (s, t))


def test_torch_func(torch, loss):
    from torch.func import grad, hessian, jacfwd, jacrev, vmap

    s, t = (a.detach() for a in small(torch))
    rows = loss(s, t, reduction="none")
    torch.testing.assert_close(vmap(loss)(s, t), rows)
    torch.testing.assert_close(vmap(loss, in_dims=(1, 1))(s.T, t.T), rows)
    torch.testing.assert_close(vmap(grad(loss))(s, t), grad(partial(loss, reduction="sum"))(s, t))
    torch.testing.assert_close(jacfwd(loss)(s, t), jacrev(loss)(s, t))
    torch.testing.assert_close(
        hessian(loss)(s, t), torch.autograd.functional.hessian(lambda s: loss(s, t), s)
    )


def test_the_hessian_near_equality_is_the_fisher_information(torch):
    """∂²KL/∂s² = diag q − q qᵀ, at any distance."""
    t = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)
    s = t + 1e-6 * torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    q = torch.softmax(s, -1)
    found = torch.func.hessian(kldiv.kl_div_with_logits)(s, t)
    torch.testing.assert_close(found, torch.diag(q) - torch.outer(q, q), rtol=1e-14, atol=1e-16)


def test_torch_second_order_is_finite_beside_masks(torch, loss):
    s, t = small(torch, masked=True)
    (first,) = torch.autograd.grad(loss(s, t), s, create_graph=True)
    second = torch.autograd.grad(first.square().sum(), (s, t))
    assert all(bool(torch.isfinite(g).all()) for g in second)


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_torch_double_backward_in_half_types(torch, loss, half):
    s, t = (a.detach().to(getattr(torch, half)).requires_grad_() for a in small(torch))
    (first,) = torch.autograd.grad(loss(s, t), s, create_graph=True)
    (second,) = torch.autograd.grad(first.float().square().sum(), t)
    assert second.dtype == s.dtype
    assert bool(torch.isfinite(second).all())


def test_torch_autocast(torch, loss):
    s, t = (a.detach().bfloat16() for a in small(torch))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(s, t)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(s.float(), t.float()))


@pytest.mark.slow
def test_jax_vmap_under_jit(jax, loss):
    s, t = (jax.numpy.asarray(a, "float32") for a in (S, T))
    rows = loss(s, t, reduction="none")
    mapped = jax.jit(jax.vmap(jax.vmap(loss)))(s, t)
    np.testing.assert_allclose(mapped, rows, rtol=1e-6)
    gradient = jax.jit(jax.vmap(jax.vmap(jax.grad(loss))))(s, t)
    whole = jax.grad(partial(loss, reduction="sum"))(s, t)
    np.testing.assert_allclose(gradient, whole, rtol=1e-5, atol=1e-8)


def test_dask_stays_lazy(loss):
    da = pytest.importorskip("dask.array")
    import dask

    def computed(*args, **kwargs):
        raise AssertionError("computed")

    s, t = (da.from_array(a, chunks=(2, 3, 2)) for a in (S, T))
    with dask.config.set(scheduler=computed):
        value, gradient = kldiv.value_and_grad(loss)(s, t)
        with pytest.raises(AssertionError, match="computed"):
            value.compute()
    expected, slope = kldiv.value_and_grad(loss)(S, T)
    np.testing.assert_allclose(value.compute(), expected, rtol=1e-13)
    np.testing.assert_allclose(gradient.compute(), slope, rtol=1e-12, atol=1e-16)


# --- pad_classes ----------------------------------------------------------------------------------


@pytest.mark.leave_out(lambda lib, axis: once(lib, axis == 1))
@pytest.mark.parametrize("axis", [-1, 0, 1])
def test_padding_adds_classes_of_no_probability(lib, loss, axis):
    arrays = [np.moveaxis(a, -1, axis) for a in (S, T)]
    short = np.take(arrays[0], range(3), axis=axis)
    padded = kldiv.pad_classes(lib.array(short), 5, axis=axis)
    lib.assert_like(padded, arrays[0].shape, lib.widest)
    masked = arrays[0].copy()
    np.moveaxis(masked, axis, -1)[..., 3:] = -INF
    np.testing.assert_array_equal(lib.numpy(padded), masked.astype(lib.widest))
    t = lib.array(arrays[1])
    lib.assert_equal(
        loss(t, padded, axis=axis, reduction="none"),
        lib.numpy(loss(t, lib.array(masked), axis=axis, reduction="none")),
    )
    assert kldiv.pad_classes(padded, 5, axis=axis).shape == padded.shape


def test_padding_that_cannot_be_done(lib):
    logits = lib.array(S)
    with pytest.raises(ShapeError, match="5 classes on axis -1, more than size 4"):
        kldiv.pad_classes(logits, 4)
    with pytest.raises(ShapeError, match="axis 3 is out of range"):
        kldiv.pad_classes(logits, 9, axis=3)
    with pytest.raises(DTypeError, match="logits have dtype int"):
        kldiv.pad_classes(lib.array(np.ones((2, 3), np.int64)), 4)


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["kl", pytest.param("js", marks=pytest.mark.slow)], indirect=True)
def test_second_order_in_a_loop_of_jax(jax, loss):
    """Where JAX splits a loop it forgets what it was told of derivatives."""
    with jax.enable_x64(True):
        s, t = jax.numpy.asarray(np.random.default_rng(3).normal(size=(2, 4, 7)))

        def looped(s, t):
            return jax.numpy.sin(jax.lax.map(lambda pair: loss(*pair), (s, t))).sum()

        def whole(s, t):
            return jax.numpy.sin(loss(s, t, reduction="none")).sum()

        for index in (0, 1):
            found, wanted = (jax.jit(jax.hessian(f, index))(s, t) for f in (looped, whole))
            np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-14)
