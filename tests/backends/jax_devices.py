"""What `test_jax_sharded` looks at, computed by a process of its own that has eight devices.

XLA_FLAGS=--xla_force_host_platform_device_count=8 python tests/backends/jax_devices.py TIER RESULTS
"""

from __future__ import annotations

import os
import pickle
import re
import sys
from functools import partial
from pathlib import Path

import jax
import numpy as np
import spread_rows
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from logit_families import families

import kldiv
from kldiv.backends.jax_ import sharding
from kldiv.errors import LibraryError
from kldiv.formulas import ranks
from kldiv.kernels import pallas

DEVICES, ROWS, CLASSES = 8, 56, 64
LOSSES = {"kl": kldiv.kl_div_with_logits, "js": kldiv.js_div_with_logits}
SPECS = {
    "classes": (None, "all"),
    "rows": ("all", None),
    "both": ("some", "others"),
    "classes on two axes": (None, ("some", "others")),
    "whole": (None, None),
    "classes, explicit": (None, "all"),
}
OPTIONS = {
    "rows": {"reduction": "none"},
    "mean": {},
    "where": {"where": np.arange(ROWS) > 2, "temperature": 1.7, "reduction": "batchmean"},
    "weights": {
        "where": np.arange(ROWS) > 1,
        "row_weight": np.clip(np.arange(ROWS) - 3.0, 0.0, None),
        "normalizer": 9.0,
    },
    "temperatures": {"temperature": 0.5 + np.arange(ROWS) / 20, "reduction": "none"},
}
COMPILED = [
    ("kl", "classes", "rows", "float64"),
    ("kl", "both", "mean", "float32"),
    ("kl", "classes on two axes", "rows", "float32"),
    ("kl", "classes", "where", "float64"),
    ("kl", "rows", "mean", "float64"),
    ("js", "classes", "rows", "float64"),
    ("js", "both", "temperatures", "float32"),
    ("js", "classes, explicit", "mean", "float64"),
    ("kl", "classes", "rows", "float16"),
]
FUSED = [
    ("kl", "classes", "temperatures", "float64"),
    ("js", "rows", "temperatures", "float32"),
    ("js", "both", "mean", "float32"),
    ("kl", "classes, explicit", "rows", "float32"),
]
"""Of COMPILED's kind, by a kernel."""
MAPPED = [
    ("kl", "temperatures", "float64", "inside"),
    ("kl", "where", "float64", "inside"),
    ("kl", "rows", "float32", "outside"),
    ("kl", "weights", "float64", "inside"),
    ("kl", "temperatures", "float64", "beyond"),
]
QUICK = {
    ("kl", "both", "mean", "float32"),
    ("kl", "where", "float64", "inside"),
}
"""Those of COMPILED and MAPPED that every run of the tests looks at; the others take a minute."""
COLLECTIVES = ("all-gather", "all-reduce", "collective-permute", "all-to-all", "reduce-scatter")


def logits(dtype, options):
    pairs = list(families(CLASSES).values())
    s, t = (np.stack([pair[side] for pair in pairs]) for side in (0, 1))
    with np.errstate(over="ignore"):
        s, t = (np.concatenate([array, array])[:ROWS].astype(dtype) for array in (s, t))
    if "where" in options:
        s[0], t[1], s[2, 3] = np.nan, -np.inf, np.inf
    return s, t


def mesh_of(axes, kind=AxisType.Auto):
    shape = (DEVICES,) if "all" in axes else (2, 4)
    names = ("all",) if "all" in axes else ("some", "others")
    return jax.make_mesh(shape, names, axis_types=(kind,) * len(names))


def differentiated(loss, options, **more):
    """Return a function that gives the loss' rows, or itself, and the gradients of its sum."""

    def summed(s, t, others):
        value = loss(
            s, t, **others, **{k: v for k, v in options.items() if k not in others}, **more
        )
        return value.sum(), value

    def run(s, t, others):
        grads, value = jax.grad(summed, argnums=(0, 1), has_aux=True)(s, t, others)
        return value, *grads

    return run


def arrays_of(options):
    return {name: value for name, value in options.items() if isinstance(value, np.ndarray)}


def counts(text):
    return {name: len(re.findall(rf" {name}(?:-start)?\(", text)) for name in COLLECTIVES}


def by_the_compiler(name, loss, options, dtype):
    axes = SPECS[name]
    mesh = mesh_of(axes, AxisType.Explicit if "explicit" in name else AxisType.Auto)
    sharding = NamedSharding(mesh, PartitionSpec(*axes))
    s, t = (jax.device_put(array, sharding) for array in logits(dtype, options))
    with jax.set_mesh(mesh):
        compiled = jax.jit(differentiated(loss, options)).lower(s, t, arrays_of(options)).compile()
    found = compiled(s, t, arrays_of(options))
    where = [str(array.sharding.spec) for array in found[1:]]
    text = compiled.as_text()
    return [np.asarray(array) for array in found], counts(text), where, "kldiv_states" in text


def by_axis_name(loss, options, dtype, *, inside):
    mesh, spec = mesh_of(SPECS["classes"]), PartitionSpec(None, "all")
    others = arrays_of(options)
    run = partial(differentiated, loss, options)
    shard_map = partial(jax.shard_map, mesh=mesh)
    if inside:
        specs = {"in_specs": (spec, spec, PartitionSpec())}
        call = shard_map(run(axis_name="all"), **specs, out_specs=(PartitionSpec(), spec, spec))
    else:

        def whole(s, t, **options):
            return shard_map(
                lambda s, t: loss(s, t, axis_name="all", **options),
                in_specs=(spec, spec),
                out_specs=PartitionSpec(),
            )(s, t)

        call = differentiated(whole, options)
    compiled = jax.jit(call).lower(*logits(dtype, options), others).compile()
    found = compiled(
        *(jax.device_put(a, NamedSharding(mesh, spec)) for a in logits(dtype, options)), others
    )
    return [np.asarray(array) for array in found], counts(compiled.as_text())


def fused():
    """Losses by kernels, which Pallas interprets."""
    found = {}
    os.environ["KLDIV_PALLAS_INTERPRET"] = "1"
    with kldiv.config_context(kernel="pallas"):
        for loss, name, options, dtype in FUSED:
            key = loss, name, options, dtype, "fused"
            found[key] = by_the_compiler(name, LOSSES[loss], OPTIONS[options], dtype)
        # Its interpreter cannot follow over which axes arrays vary.
        interpreted = rows_in_a_shard_map(check_vma=False)
        del os.environ["KLDIV_PALLAS_INTERPRET"]
        pallas.elsewhere = lambda: None
        jax.clear_caches()
        return found, [interpreted, rows_in_a_shard_map()]


def rows_in_a_shard_map(**options):
    mesh, rows = mesh_of(SPECS["rows"]), PartitionSpec("all", None)
    loss = partial(kldiv.kl_div_with_logits, reduction="none")
    specs = {"in_specs": (rows, rows), "out_specs": PartitionSpec("all")}
    traced = jax.jit(jax.shard_map(loss, mesh=mesh, **specs, **options)).trace(
        *logits(np.float64, {})
    )
    value = traced.lower().compile()(*logits(np.float64, {}))
    return np.asarray(value), str(traced.jaxpr).count("pallas_call[")


def more():
    """Whatever else must hold on many devices."""
    found = {}
    mesh, rows = mesh_of(SPECS["rows"]), PartitionSpec("all", None)
    spec = PartitionSpec(None, "all")
    loss = partial(kldiv.kl_div_with_logits, reduction="none")
    whole = [array[:48] for array in logits(np.float64, {})]  # of a shape not compiled yet
    s, t = (jax.device_put(array, NamedSharding(mesh, spec)) for array in whole)
    derivative = jax.grad(kldiv.js_div_with_logits, argnums=(0, 1))
    along = [np.cos(np.arange(array.size)).reshape(array.shape) for array in whole]
    change = jax.jit(lambda *arrays: jax.jvp(derivative, arrays[:2], arrays[2:])[1])
    finite = [np.nan_to_num(array, neginf=-9) for array in whole]
    placed = [jax.device_put(array, NamedSharding(mesh, spec)) for array in (*finite, *along)]
    found["second order"] = [np.asarray(array) for array in change(*placed)]
    # The same of whole rows, by differences of its first derivatives.
    step = 1e-5
    ahead, behind = (
        jax.jit(derivative)(*(a + sign * step * b for a, b in zip(finite, along, strict=True)))
        for sign in (1, -1)
    )
    found["differences"] = [
        np.asarray(a - b) / (2 * step) for a, b in zip(ahead, behind, strict=True)
    ]
    both = jax.jit(kldiv.value_and_grad(kldiv.js_div_with_logits, (0, 1)))
    compiled = both.lower(*placed[:2]).compile()
    found["value_and_grad"] = counts(compiled.as_text())
    batched = jax.jit(jax.vmap(loss, in_axes=(0, None)))
    found["vmap"] = np.asarray(batched(s, t[5]))
    s, t = (jax.device_put(array, NamedSharding(mesh, rows)) for array in whole)
    sharding.BLOCK_BYTES = 2 * CLASSES * 8  # each device has several blocks
    compiled = jax.jit(loss).lower(s, t).compile()
    found["blocks"] = np.asarray(compiled(s, t)), counts(compiled.as_text())
    own_rows = jax.shard_map(loss, mesh=mesh, in_specs=(rows, rows), out_specs=PartitionSpec("all"))
    found["rows in a shard_map"] = np.asarray(jax.jit(own_rows)(s, t))
    shared = jax.shard_map(
        partial(kldiv.kl_div_with_logits, axis_name="all"),
        mesh=mesh,
        in_specs=(spec, spec),
        out_specs=PartitionSpec(),
    )
    try:
        jax.jit(jax.grad(lambda s: jax.grad(shared)(s, t).sum())).lower(s)
    except LibraryError as error:
        found["refused"] = str(error)
    return found


def labels_and_teachers(*names):
    """Losses of labels, or of sparse teachers, with gradients: over an axis, and of whole rows."""
    found = {}
    s, labels, teacher, heat, beta = spread_rows.rows()
    losses = spread_rows.losses(*map(jax.numpy.asarray, (labels, *teacher[1:3], beta)))
    mesh, classes, whole = mesh_of(SPECS["classes"]), PartitionSpec(None, "all"), PartitionSpec()
    for name in names:
        both = [
            jax.value_and_grad(partial(losses[name], **options), (0, 1, 2))
            for options in ({"axis_name": "all"}, {})
        ]
        rows = classes, whole, whole
        both[0] = jax.shard_map(both[0], mesh=mesh, in_specs=rows, out_specs=(whole, rows))
        arrays = [jax.numpy.asarray(array) for array in (s, heat, teacher.log_probs)]
        found[name] = [
            [np.asarray(array) for array in jax.tree.leaves(jax.jit(each)(*arrays))]
            for each in both
        ]
    return found


def main(part, path):
    """Write the results that one part of the tests checks; "quick" is some of both others."""
    jax.config.update("jax_enable_x64", True)
    quick = part == "quick"
    found = {"devices": jax.device_count(), "compiler": {}, "axis_name": {}}
    for key in [key for key in COMPILED if (key in QUICK) == quick and part != "by_name"]:
        loss, name, options, dtype = key
        found["compiler"][key] = by_the_compiler(name, LOSSES[loss], OPTIONS[options], dtype)
    for key in [key for key in MAPPED if (key in QUICK) == quick and part != "by_the_compiler"]:
        loss, options, dtype, where = key
        ranks.GATHERED = 1 if where == "beyond" else 16
        found["axis_name"][key] = by_axis_name(
            LOSSES[loss], OPTIONS[options], dtype, inside=where != "outside"
        )
    ranks.GATHERED = 16
    if part == "by_the_compiler":
        of_layouts, found["fused in a shard_map"] = fused()
        found["compiler"].update(of_layouts)
    if part == "by_name":
        names = "both", "policy", "hard", "bucket", "renormalized"
        found["labels and teachers"] = labels_and_teachers(*names)
        found.update(more())
    Path(path).write_bytes(pickle.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
