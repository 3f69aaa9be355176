"""JAX arrays on eight devices: the loss and gradients of the whole, and few collectives."""

from __future__ import annotations

import os
import pickle
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from libraries import Library, require
from processes import python

import kldiv

jax_devices = pytest.importorskip("backends.jax_devices") if Library.JAX.problem() is None else None


QUICKLY = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
"""Compiles in half the time; how programs are partitioned, which is looked at here, is the same."""


TARGETS = {"float16": 2e-3, "float32": 1e-6, "float64": 2e-15}


def computed(part, factory):
    """Return the results of a process with eight devices; JAX fixes their number when it starts.

    Of several workers one starts it, and the others wait for its results.
    """
    require(Library.JAX)
    own = factory.getbasetemp()
    path = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / f"devices-{part}"
    environment = {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={jax_devices.DEVICES} {QUICKLY}",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path]),
    }
    with FileLock(f"{path}.lock"):
        if not path.exists():
            python(jax_devices.__file__, part, path, **environment)
    return pickle.loads(path.read_bytes())  # noqa: S301 - our own


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    return computed("quick", tmp_path_factory)


@pytest.fixture(scope="module")
def by_the_compiler(tmp_path_factory):
    return computed("by_the_compiler", tmp_path_factory)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return computed("by_name", tmp_path_factory)


@pytest.fixture(scope="module")
def wanted():
    """Loss and gradients of whole arrays in float64, by NumPy."""
    results = {}
    compiled = [*cases("COMPILED"), *cases("FUSED")]
    for loss, options, dtype in {(key[0], *key[-2:]) for key in compiled} | {
        key[:3] for key in cases("MAPPED")
    }:
        function, settings = jax_devices.LOSSES[loss], jax_devices.OPTIONS[options]
        arrays = [array.astype("float64") for array in jax_devices.logits(dtype, settings)]
        summed = settings
        if settings.get("reduction") == "none":
            summed = {**settings, "reduction": "sum"}
        _, gradients = kldiv.value_and_grad(partial(function, **summed), (0, 1))(*arrays)
        results[loss, options, dtype] = [function(*arrays, **settings), *gradients]
    return results


def check(found, wanted, dtype):
    """Compare a loss relative to each row, gradients to a row's L1 norm."""
    tolerance, floor = TARGETS[dtype], np.finfo(dtype).tiny
    (value, *gradients), (expected, *slopes) = found, wanted
    assert value.dtype == dtype
    np.testing.assert_allclose(value.astype("float64"), expected, rtol=tolerance, atol=floor)
    for gradient, slope in zip(gradients, slopes, strict=True):
        np.testing.assert_array_equal(np.isnan(gradient), np.isnan(slope))
        error = np.nansum(abs(gradient.astype("float64") - slope), axis=-1)
        size = np.nansum(abs(slope), axis=-1)
        assert (error <= tolerance * size + slope.shape[-1] * floor).all()


def cases(name):
    return getattr(jax_devices, name) if jax_devices else []


def in_parts(keys, slow):
    return [
        pytest.param(key, "quick", id=" ".join(key))
        if key in cases("QUICK")
        else pytest.param(key, slow, id=" ".join(key), marks=pytest.mark.slow)
        for key in keys
    ]


@pytest.mark.parametrize(
    ("key", "part"),
    in_parts([*cases("COMPILED"), *((*key, "fused") for key in cases("FUSED"))], "by_the_compiler"),
)
def test_the_compiler_shards_a_loss(request, wanted, key, part):
    found = request.getfixturevalue(part)
    loss, layout, options, dtype, *fused = key
    results, collectives, where, has_kernel = found["compiler"][key]
    assert has_kernel == bool(fused)
    check(results, wanted[loss, options, dtype], dtype)
    axes = jax_devices.SPECS[layout]
    assert where == [where[0]] * 2
    assert all(str(axis) in where[0] for axis in axes if axis)
    sums = collectives.pop("all-reduce")
    assert set(collectives.values()) == {0}
    spread_classes = axes[1] is not None
    # Of the value and two gradients, which XLA combines; another adds the rows of a reduced loss.
    assert sums <= spread_classes * (1 if loss == "kl" else 2) + (
        options not in {"rows", "temperatures"}
    )


@pytest.mark.parametrize(("key", "part"), in_parts(cases("MAPPED"), "found"))
def test_an_axis_name_in_a_shard_map(request, wanted, key, part):
    found = request.getfixturevalue(part)
    loss, options, dtype, where = key
    results, collectives = found["axis_name"][key]
    check(results, wanted[loss, options, dtype], dtype)
    through = collectives.pop("all-to-all")
    assert through == (where == "beyond")
    # Weights need the values before the gradients.
    allowed = (2 if loss == "kl" else 3) + (options == "weights")
    assert collectives.pop("all-reduce") <= allowed
    assert set(collectives.values()) == {0}


@pytest.mark.slow
def test_labels_and_sparse_teachers_over_an_axis(found):
    for ours, wanted in found["labels and teachers"].values():
        for array, expected in zip(ours, wanted, strict=True):
            size = np.abs(np.nan_to_num(expected, posinf=0.0, neginf=0.0)).max()
            np.testing.assert_allclose(array, expected, rtol=2e-15, atol=2e-15 * size)


@pytest.mark.slow
def test_vmap_goes_on_working(found):
    s, t = (array[:48] for array in jax_devices.logits("float64", {}))
    wanted = kldiv.kl_div_with_logits(s, np.broadcast_to(t[5], s.shape), reduction="none")
    np.testing.assert_allclose(found["vmap"], wanted, rtol=2e-15, atol=1e-300)


@pytest.mark.slow
def test_rows_in_several_blocks_on_each_device(found, wanted):
    value, collectives = found["blocks"]
    whole = wanted["kl", "rows", "float64"][0][:48]
    np.testing.assert_allclose(value, whole, rtol=2e-15, atol=1e-300)
    assert set(collectives.values()) == {0}
    np.testing.assert_array_equal(found["rows in a shard_map"], value)


@pytest.mark.slow
def test_fused_rows_in_a_shard_map(by_the_compiler):
    expected = kldiv.kl_div_with_logits(*jax_devices.logits("float64", {}), reduction="none")
    for value, kernels in by_the_compiler["fused in a shard_map"]:
        np.testing.assert_allclose(value, expected, rtol=2e-15, atol=1e-300)
        assert kernels


@pytest.mark.slow
def test_second_order_over_an_axis_name_is_refused(found):
    assert "are differentiated once" in found["refused"]


@pytest.mark.slow
def test_second_order_of_sharded_classes(found):
    for change, differences in zip(found["second order"], found["differences"], strict=True):
        np.testing.assert_allclose(change, differences, rtol=1e-5, atol=1e-8)


@pytest.mark.slow
def test_value_and_grad_of_sharded_classes_takes_two_exchanges(found):
    collectives = dict(found["value_and_grad"])
    assert collectives.pop("all-reduce") <= 3
    assert set(collectives.values()) == {0}


def test_there_were_eight_devices(quick):
    assert quick["devices"] == jax_devices.DEVICES
