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


def lazily(da, array, chunks):
    return da.from_array(array, chunks=chunks)


def check_gradient(found, wanted, tolerance, floor):
    np.testing.assert_array_equal(np.isnan(found), np.isnan(wanted))
    error = np.nansum(abs(found.astype("float64") - wanted), axis=-1)
    assert (error <= tolerance * np.nansum(abs(wanted), axis=-1) + CLASSES * floor).all()


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
    arrays = [lazily(da, array, CHUNKS[chunks]) for array in (s, t)]
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
        found = call(*(lazily(da, array, chunks) for array in (s, t)))
        np.testing.assert_allclose(found.compute(), call(s, t), rtol=2e-15)
        value, gradient = kldiv.value_and_grad(partial(loss, axis=axis))(
            *(lazily(da, array, chunks) for array in (s, t))
        )
        whole, slope = kldiv.value_and_grad(partial(loss, axis=axis))(s, t)
        np.testing.assert_allclose(value.compute(), whole, rtol=2e-15)
        np.testing.assert_allclose(gradient.compute(), slope, rtol=1e-12, atol=1e-17)


def test_the_two_need_not_be_in_the_same_chunks(da):
    s, t = logits()
    found = kldiv.kl_div_with_logits(
        lazily(da, s, (7, 11)), lazily(da, t, (10, 25)), reduction="none"
    )
    wanted = kldiv.kl_div_with_logits(s, t, reduction="none")
    np.testing.assert_allclose(found.compute(), wanted, rtol=2e-15, atol=1e-300)


@pytest.mark.parametrize("loss", LOSSES)
def test_nothing_is_computed_while_building_and_tasks_are_few(da, loss):
    import dask

    def refuse(*args, **kwargs):
        raise AssertionError("computed")

    shape, chunks = (64, 640), (8, 40)
    with dask.config.set(scheduler=refuse):
        s, t = (da.random.default_rng(seed).normal(size=shape, chunks=chunks) for seed in (1, 2))
        value, gradient = kldiv.value_and_grad(LOSSES[loss])(s, t)
    (value_only,) = dask.optimize(value)
    both = dask.optimize(value, gradient)
    blocks = s.npartitions
    assert len(value_only.__dask_graph__()) <= 8 * blocks
    assert len({**both[0].__dask_graph__(), **both[1].__dask_graph__()}) <= 16 * blocks


def test_no_block_is_larger_than_a_chunk(da):
    largest = []

    def noted(block):
        largest.append(block.size)
        return block

    s, t = (
        lazily(da, array, (10, 7)).map_blocks(noted, meta=np.empty((0, 0))) for array in logits()
    )
    kldiv.kl_div_with_logits(s, t).compute()
    assert max(largest) == 70


def test_warnings_stay_inside_the_tasks(da):
    s, t = logits(masked_rows=True)
    arrays = [lazily(da, array, (10, 7)) for array in (s, t)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for loss in LOSSES.values():
            value, gradient = kldiv.value_and_grad(loss)(*arrays)
            for scheduler in ("sync", "threads"):
                value.compute(scheduler=scheduler)
                gradient.compute(scheduler=scheduler)


def test_unknown_chunks_are_refused_with_the_mend(da):
    s, t = (lazily(da, array, (10, 7)) for array in logits())
    unknown = s[s[:, 0] > 0]
    with pytest.raises(ShapeError, match="compute_chunk_sizes"):
        kldiv.kl_div_with_logits(unknown, t)


def test_another_backend_computes_the_blocks(da):
    require(Library.TORCH)
    s, t = logits()
    with kldiv.config_context(backend="torch"):
        found = kldiv.kl_div_with_logits(
            *(lazily(da, array, (10, 7)) for array in (s, t)), reduction="none"
        )
    wanted = kldiv.kl_div_with_logits(s, t, reduction="none")
    np.testing.assert_allclose(found.compute(), wanted, rtol=2e-15, atol=1e-300)
