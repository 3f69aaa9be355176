"""Dask arrays in chunks of rows and of classes: lazy, few tasks, the result of the whole."""

from __future__ import annotations

import warnings
from functools import partial

import numpy as np
import pytest
from libraries import Library, require
from logit_families import families

import kldiv
from kldiv.errors import ShapeError

CLASSES = 60
LOSSES = {"kl": kldiv.kl_div_with_logits, "js": kldiv.js_div_with_logits}
ROWS = len(families(CLASSES))
CHUNKS = {"classes": (-1, 7), "rows": (10, -1), "both": (10, 25)}
OPTIONS = {
    "none": {"reduction": "none"},
    "temperature": {"reduction": "sum", "temperature": 1.7},
    "temperatures": {"reduction": "none", "temperature": 0.5 + np.arange(ROWS) / 20},
    "where": {"where": np.arange(ROWS) > 2},
}


@pytest.fixture(autouse=True)
def da():
    require(Library.DASK)
    import dask.array as da

    return da


def logits(dtype="float64", *, masked_rows=False):
    pairs = list(families(CLASSES).values())
    s, t = (np.stack([pair[side] for pair in pairs]).astype(dtype) for side in (0, 1))
    if masked_rows:
        s[0], t[1], s[2, 3] = np.nan, -np.inf, np.inf
    return s, t


def check_gradient(found, wanted, tolerance, floor):
    np.testing.assert_array_equal(np.isnan(found), np.isnan(wanted))
    error = np.nansum(abs(found.astype("float64") - wanted), axis=-1)
    assert (error <= tolerance * np.nansum(abs(wanted), axis=-1) + CLASSES * floor).all()


@pytest.mark.parametrize("loss", LOSSES)
def test_many_rows_whose_classes_are_in_chunks(da, loss):
    s, t = np.random.default_rng(0).normal(size=(2, 3000, 8))
    pair = [da.from_array(array, (3000, 4)) for array in (s, t)]
    found = LOSSES[loss](*pair, reduction="none").compute()
    np.testing.assert_allclose(found, LOSSES[loss](s, t, reduction="none"), rtol=2e-15)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize("loss", LOSSES)
def test_any_chunks_give_the_whole(da, loss, chunks, options, dtype):
    settings, function = OPTIONS[options], LOSSES[loss]
    s, t = logits(dtype, masked_rows="where" in settings)
    lazy = {
        name: da.from_array(value, chunks=CHUNKS[chunks][0])
        if isinstance(value, np.ndarray)
        else value
        for name, value in settings.items()
    }
    arrays = [da.from_array(array, CHUNKS[chunks]) for array in (s, t)]
    exact = [array.astype("float64") for array in (s, t)]
    tolerance, floor = (2e-15 if dtype == "float64" else 1e-6), np.finfo(dtype).tiny
    value = function(*arrays, **lazy)
    assert isinstance(value, da.Array)
    assert value.dtype == dtype
    wanted = function(*exact, **settings)
    assert value.shape == np.shape(wanted)
    np.testing.assert_allclose(value.compute(), wanted, rtol=tolerance, atol=floor)
    if settings.get("reduction") == "none":
        settings, lazy = {**settings, "reduction": "sum"}, {**lazy, "reduction": "sum"}
    _, gradients = kldiv.value_and_grad(partial(function, **lazy), (0, 1))(*arrays)
    _, slopes = kldiv.value_and_grad(partial(function, **settings), (0, 1))(*exact)
    for gradient, slope in zip(gradients, slopes, strict=True):
        assert gradient.chunks == arrays[0].chunks
        check_gradient(gradient.compute(), slope, tolerance, floor)


@pytest.mark.parametrize("shape", [(CLASSES,), (3, 4, CLASSES)])
@pytest.mark.parametrize("axis", [0, -1])
def test_any_number_of_axes(da, shape, axis):
    random = np.random.default_rng(3)
    s, t = (np.moveaxis(random.normal(size=shape), -1, axis) for _ in range(2))
    chunks = (7, *shape[:-1]) if axis == 0 else (*(2 for _ in shape[:-1]), 7)
    for loss in LOSSES.values():
        call = partial(loss, axis=axis, reduction="none")
        found = call(*(da.from_array(array, chunks) for array in (s, t)))
        np.testing.assert_allclose(found.compute(), call(s, t), rtol=2e-15)
        value, gradient = kldiv.value_and_grad(partial(loss, axis=axis))(
            *(da.from_array(array, chunks) for array in (s, t))
        )
        whole, slope = kldiv.value_and_grad(partial(loss, axis=axis))(s, t)
        np.testing.assert_allclose(value.compute(), whole, rtol=2e-15)
        np.testing.assert_allclose(gradient.compute(), slope, rtol=1e-12, atol=1e-17)


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_the_two_need_not_be_in_the_same_chunks_nor_the_blocks_numpy_s(da, backend):
    if backend == "torch":
        require(Library.TORCH)
    s, t = logits()
    with kldiv.config_context(backend=backend):
        arrays = da.from_array(s, (7, 11)), da.from_array(t, (10, 25))
        found = kldiv.kl_div_with_logits(*arrays, reduction="none")
    wanted = kldiv.kl_div_with_logits(s, t, reduction="none")
    np.testing.assert_allclose(found.compute(), wanted, rtol=2e-15, atol=1e-300)


def refuse(*args, **kwargs):
    raise AssertionError("computed")


@pytest.fixture
def lazy():
    """Nothing may be computed while a graph is built."""
    import dask

    return dask.config.set(scheduler=refuse)


@pytest.mark.parametrize(("loss", "most"), [("kl", (1.4, 4.4)), ("js", (3.6, 5.6))])
def test_nothing_is_computed_while_building_and_tasks_are_few(da, lazy, loss, most):
    import dask

    shape, chunks = (64, 640), (8, 40)
    with lazy:
        s, t = (function(shape, chunks=chunks) for function in (da.ones, da.zeros))
        value, gradients = kldiv.value_and_grad(LOSSES[loss], (0, 1))(s, t)
    for found, limit in zip(((value,), (value, *gradients)), most, strict=True):
        tasks = set().union(*(one.__dask_graph__() for one in dask.optimize(*found)))
        assert len(tasks) <= limit * s.npartitions + 8


MEASURES = {
    "kl": kldiv.kl_divergence,
    "js": kldiv.js_divergence,
    "jeffreys": kldiv.jeffreys_divergence,
    "cross entropy": kldiv.cross_entropy,
    "entropy": lambda p, q, **options: kldiv.entropy(p, **options),
    **{
        f"renyi {alpha}": partial(kldiv.renyi_divergence, alpha=alpha)
        for alpha in (0, 0.5, 3, np.inf)
    },
}


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("name", MEASURES)
def test_measures_of_class_chunks(da, lazy, name, normalize):
    import dask

    p, q = np.random.default_rng(0).dirichlet(np.ones(CLASSES), (2, 9))
    p[2, 3:9] = q[2, 5:9] = q[4, 20:22] = 0
    p[5] = q[5] * (1 + 1e-9 * np.cos(np.arange(CLASSES)))
    if normalize:
        p = 1.1 * p
    function = partial(MEASURES[name], normalize=normalize, base=2)
    arrays = [da.from_array(array, (4, 13)) for array in (p, q)]
    with lazy:
        value = function(*arrays)
    np.testing.assert_allclose(value.compute(), function(p, q), rtol=1e-12)
    (graph,) = dask.optimize(value)
    assert len(graph.__dask_graph__()) <= 8 * arrays[0].npartitions
    if name == "entropy":
        return
    for row in (2, 4, 5):
        function = partial(MEASURES[name], normalize=normalize)
        with lazy:
            value, gradients = kldiv.value_and_grad(function, (0, 1))(*(a[row] for a in arrays))
        whole, slopes = kldiv.value_and_grad(function, (0, 1))(p[row], q[row])
        np.testing.assert_allclose(value.compute(), whole, rtol=1e-12)
        for gradient, slope in zip(gradients, slopes, strict=True):
            assert gradient.chunks == arrays[0][row].chunks
            np.testing.assert_allclose(gradient.compute(), slope, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("chunks", CHUNKS)
def test_a_state_is_lazy_until_it_is_saved(da, lazy, chunks, tmp_path):
    s, t = logits()
    wanted = kldiv.kl_div_with_logits(s, t, reduction="none", temperature=1.7)
    with lazy:
        lazy_s, lazy_t = (da.from_array(array, CHUNKS[chunks]) for array in (s, t))
        parts = [
            kldiv.KLState.from_logits(lazy_s[:, part], lazy_t[:, part], temperature=1.7)
            for part in (slice(21), slice(21, None))
        ]
        whole = kldiv.KLState.from_logits(lazy_s, lazy_t, temperature=1.7)
        values = [whole.kl(), (parts[0] + parts[1]).kl()]
    for value in values:
        np.testing.assert_allclose(value.compute(), wanted, rtol=2e-15, atol=1e-300)
    whole.save(tmp_path / "state")
    loaded = kldiv.KLState.load(tmp_path / "state")
    np.testing.assert_array_equal(loaded.kl(), values[0].compute())


class Chunk(np.ndarray):
    """Stands for another library's array, as CuPy's are."""


@pytest.mark.parametrize("chunks", CHUNKS)
def test_chunks_stay_the_library_that_they_are(da, chunks):
    arrays = [
        da.from_array(array, CHUNKS[chunks]).map_blocks(
            lambda block: block.view(Chunk), meta=np.empty((0, 0)).view(Chunk)
        )
        for array in logits()
    ]
    for loss in LOSSES.values():
        _, gradients = kldiv.value_and_grad(loss, (0, 1))(*arrays)
        for found in (loss(*arrays, reduction="none"), *gradients):
            assert type(found._meta) is Chunk
            assert found.compute().shape == found.shape


def test_no_block_is_larger_than_a_chunk(da):
    largest = []

    def noted(block):
        largest.append(block.size)
        return block

    s, t = (
        da.from_array(array, (10, 7)).map_blocks(noted, meta=np.empty((0, 0))) for array in logits()
    )
    kldiv.kl_div_with_logits(s, t).compute()
    assert max(largest) == 70


def test_warnings_stay_inside_the_tasks(da):
    s, t = logits(masked_rows=True)
    arrays = [da.from_array(array, (10, 7)) for array in (s, t)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for loss in LOSSES.values():
            value, gradient = kldiv.value_and_grad(loss)(*arrays)
            for scheduler in ("sync", "threads"):
                value.compute(scheduler=scheduler)
                gradient.compute(scheduler=scheduler)


def test_unknown_chunks_are_refused_with_the_mend(da):
    s, t = (da.from_array(array, (10, 7)) for array in logits())
    unknown = s[s[:, 0] > 0]
    with pytest.raises(ShapeError, match="compute_chunk_sizes"):
        kldiv.kl_div_with_logits(unknown, t)


def test_blocks_take_the_fastest_kernel_of_their_library(da, monkeypatch):
    from kldiv.kernels.cpu import CPU

    if CPU.problem():
        pytest.skip(CPU.problem())
    seen, prepare = [], CPU.prepare

    def prepared(work):
        launch = prepare(work)
        return lambda work: seen.append(work.arrays[0].shape) or launch(work)

    monkeypatch.setattr(CPU, "prepare", prepared)
    arrays = [da.ones((128, 512), chunks=(64, 512)) for _ in range(2)]
    assert kldiv.kl_div_with_logits(*arrays).compute() == 0
    assert seen == [(64, 512)] * 2
    with kldiv.config_context(kernel="pure"):
        kldiv.kl_div_with_logits(*arrays).compute()
    assert len(seen) == 2
