"""Compile the Pallas kernels for a GPU of compute capability 9.0, which needs none.

JAX lowers a kernel to Triton's language; the package triton compiles that. Run as a script, it
reports registers, and exits with 1 where a kernel spills more than a few bytes.
"""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import triton
from jax._src.pallas.triton import lowering
from triton.backends.compiler import GPUTarget

from kldiv.formulas.divergences import ALL, JensenShannon, KullbackLeibler
from kldiv.formulas.shards import ShardState
from kldiv.kernels.pallas import states

TARGET = GPUTarget("cuda", 90, 32)
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
LOWER = lowering.lower_jaxpr_to_triton_module
DIVERGENCES = {"KL": KullbackLeibler(), "JS": JensenShannon(0.5)}
SHAPES = {"long rows": (8, 151936), "short rows": (1000, 100)}


def lowered(operation, *arrays):
    """Return a kernel in Triton's language."""
    found = []

    def keep(*given, **options):
        result = LOWER(*given, **options)
        found.append(result.module.operation.get_asm(enable_debug_info=False))
        return result

    with mock.patch.object(lowering, "lower_jaxpr_to_triton_module", keep):
        function = jax.jit(lambda *given: states._packed_states(operation, *given))
        function.trace(*arrays).lower(lowering_platforms=("cuda",))
    (text,) = found
    return text


def compiled(text):
    """Return registers and bytes of stack of a kernel in Triton's language."""
    with tempfile.TemporaryDirectory() as folder:
        source, result = Path(folder) / "kernel.ttir", Path(folder) / "kernel.cubin"
        source.write_text(text)
        # XLA contracts products and sums, as its compiler for CPUs does.
        options = {"num_warps": states.WARPS, "enable_fp_fusion": True}
        result.write_bytes(triton.compile(str(source), TARGET, options).asm["cubin"])
        command = [CUOBJDUMP, "-res-usage", result]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    match = re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", said)
    return int(match[1]), int(match[2]) + int(match[3])


def main():
    jax.config.update("jax_enable_x64", True)
    spilled = False
    for loss, dtype, shape in itertools.product(DIVERGENCES, states.TILE, SHAPES):
        logits = [jax.ShapeDtypeStruct(SHAPES[shape], jnp.dtype(dtype))] * 2
        numbers = [
            jax.ShapeDtypeStruct(SHAPES[shape][:1], kind) for kind in (jnp.dtype(dtype), jnp.bool_)
        ]
        for temperature, others in ((1.0, []), (None, numbers)):
            names = ("none", dtype, dtype, dtype, DIVERGENCES[loss], temperature)
            sides, _ = DIVERGENCES[loss].needs(ALL)
            operation = ShardState(*names, sides=sides)
            registers, stack = compiled(lowered(operation, *logits, *others))
            warm = ", temperatures and mask" if others else ""
            sys.stdout.write(
                f"{loss} {dtype}, {shape}{warm}: {registers} registers, {stack} bytes of stack\n"
            )
            sys.stdout.flush()
            spilled |= stack > 16
    return int(spilled)


if __name__ == "__main__":
    sys.exit(main())
