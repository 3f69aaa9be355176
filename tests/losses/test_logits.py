"""`kl_div_with_logits` and `js_div_with_logits` as users call them, on every library."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
from libraries import unit
from logit_families import INF, rows_and_gradients
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
    whole = rows_and_gradients(loss, lib.array(S), lib.array(T))
    rows, *slopes = (lib.numpy(each).astype(float) for each in whole)
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
    for gradient, slope in zip(gradients, slopes, strict=True):
        expected = np.where(wide[..., None], slope / max(number, 1), 0)
        lib.assert_equal(gradient, expected, ulps=64)


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
            rtol=64 * unit(lib.widest),
            atol=8 * unit(lib.widest),
        )


@pytest.mark.parametrize("kernel", ["pure", "auto"])
def test_the_temperature_of_a_dropped_row_counts_for_nothing(torch, loss, kernel):
    keep = torch.tensor([True, False, True])
    results = []
    for one in (1.0, NAN, INF, 0.0, -1.0):
        given = [torch.tensor(a, requires_grad=True) for a in (S[0], T[0], [0.7, one, 2.0])]
        with kldiv.config_context(kernel=kernel):
            value = loss(*given[:2], temperature=given[2], where=keep)
            slopes = torch.autograd.grad(value, given, create_graph=True)
            seconds = torch.autograd.grad(sum((each**2).sum() for each in slopes), given)
        results.append([value, *slopes, *seconds])
    for each in results[1:]:
        for found, wanted in zip(each, results[0], strict=True):
            assert torch.equal(found, wanted)


@pytest.mark.parametrize("kept", [True, False])
def test_second_derivatives_of_an_infinite_row(torch, kept):
    s, t = torch.tensor([0.3, -INF, 1.0]), torch.tensor([0.1, 0.5, 0.2])
    direction, keep = torch.tensor([1.0, 2.0, -1.0]), torch.tensor(kept)

    def slopes(s, t):
        loss = partial(kldiv.kl_div_with_logits, where=keep, reduction="sum")
        return torch.func.grad(loss, argnums=(0, 1))(s, t)

    _, (of_s, of_t) = torch.func.jvp(slopes, (s, t), (direction, 0 * direction))
    q = s.softmax(-1)
    wanted = q * (direction - q @ direction) if kept else 0 * q
    torch.testing.assert_close(of_s, wanted, rtol=1e-6, atol=0)
    assert of_t.isnan().all() if kept else (of_t == 0).all()


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
@pytest.mark.parametrize(("name", "index"), [("kl", 0), ("js", 1)])
def test_second_order_in_a_loop_of_jax(jax, name, index):
    """Where JAX splits a loop it forgets what it was told of derivatives."""
    loss = LOSSES[name][0]
    with jax.enable_x64(True):
        s, t = jax.numpy.asarray(np.random.default_rng(3).normal(size=(2, 4, 7)))

        def looped(s, t):
            return jax.numpy.sin(jax.lax.map(lambda pair: loss(*pair), (s, t))).sum()

        def whole(s, t):
            return jax.numpy.sin(loss(s, t, reduction="none")).sum()

        found, wanted = (jax.jit(jax.hessian(f, index))(s, t) for f in (looped, whole))
        np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-14)
