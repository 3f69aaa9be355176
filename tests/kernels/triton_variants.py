"""Compile every kernel for a GPU of compute capability 9.0, which needs none; report registers.

Run as a script, without ``TRITON_INTERPRET``, for one dtype, or for both. The exit code is 1 where
a kernel spills more than `MOST`.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kldiv.kernels.spelling import DIVERGENCES
from kldiv.kernels.triton import gradients, launch, pointwise, rows

TARGET = GPUTarget("cuda", 90, 32)
MOST = 16
"""Bytes: the assembler keeps two numbers of a mixture off registers, to stay at 128 of them."""
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
FLOATS = {"float32": "*fp32", "float64": "*fp64"}
NUMBERS = "values saved partial sums factors temperatures".split()
ALIGNED = [["tt.divisibility", 16]]


def compiled(kernel, constants, pointers, warps):
    """Return registers and bytes of stack of a kernel; what is not named is a multiple of 16."""
    signature, constexprs, attributes = {}, {}, {}
    for place, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name], constexprs[name] = "constexpr", constants[name]
        elif name in pointers:
            signature[name], attributes[place,] = pointers[name], ALIGNED
        elif name.endswith("_strides"):
            signature[name] = ("i32",) * 3
            if "factors" in kernel.arg_names or "classes" in kernel.arg_names:  # of rows
                signature[name] = ("i32", "i32", "constexpr")
                constexprs[place, 2] = 1
                attributes[place, 0] = attributes[place, 1] = ALIGNED
        else:
            signature[name] = "i64" if name.endswith("_bits") else "i32"
            if name in {"classes", "chunk"}:
                attributes[place,] = ALIGNED
    source = ASTSource(kernel, signature, constexprs, attributes)
    quick = constants.get("way") == rows.QUICK.value
    options = {**(launch.QUICK_OPTIONS if quick else launch.OPTIONS), "num_warps": warps}
    found = triton.compile(source, target=TARGET, options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(found.asm["cubin"])
        file.flush()
        command = [CUOBJDUMP, "-res-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    match = re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", text)
    return int(match[1]), int(match[2]) + int(match[3])


def variants(dtypes):
    """Yield a name and the arguments of `compiled` for each kernel, on production tiles."""
    numbers = dict.fromkeys(NUMBERS, "*fp64")
    warps = launch.OPTIONS["num_warps"]
    for name in dtypes:
        wide, real = name == "float64", FLOATS[name]
        logits = {**numbers, **dict.fromkeys(["s", "t", "s_out", "t_out"], real)}
        tile, state_tile = launch.TILE[wide], launch.STATE_TILE[wide]
        common = {"keep": None, "temperatures": None, "wide": wide}
        shapes = {"tiles": (1, state_tile), "short rows": (state_tile // 32, 16)}
        ways = {"all": rows.ALL, "quick": rows.QUICK, "the rest": rows.REST}
        for (shape, (height, width)), way, anchors in product(shapes.items(), ways, (False, True)):
            if not (wide and way != "all"):
                also = ", two anchors" if anchors else ""
                yield f"states {name}, {shape}, {way}{also}", rows.states, {
                    **common, "way": ways[way].value, "anchors": anchors, "partial": None,
                    "height": height, "width": width,
                }, logits, warps  # fmt: skip
        for divergence, loss in enumerate(DIVERGENCES):
            summed = loss != "KL"
            sums = {"t_means": summed, "s_means": summed}
            common["divergence"] = divergence
            yield f"gradients {loss} {name}", gradients.gradients, {
                **common, "height": 1, "width": tile, "span": launch.SPAN,
            }, logits, warps  # fmt: skip
            if summed:
                yield f"look {loss} {name}", rows.look, {
                    **common, **sums, "sums": None, "height": 1, "width": state_tile,
                }, logits, warps  # fmt: skip
        for log_target, flat in product((False, True), repeat=2):
            target = ("log target" if log_target else "target") + (", one row" if flat else "")
            constants = {
                "wide": wide, "log_target": log_target, "flat": flat, "one_factor": flat,
                "height": 1, "width": tile,
            }  # fmt: skip
            arrays = {**numbers, **dict.fromkeys("x y value x_out y_out factor".split(), real)}
            arrays["keep"] = "*u8"
            wanted = {"sums": ["partial"], "maps": ["factor", "value", "x_out", "y_out"]}
            every = [each for some in wanted.values() for each in some]
            for results, own in wanted.items():
                missing = {each: None for each in every if each not in own}
                yield f"{results} of {target} {name}", pointwise.pointwise, {
                    **constants, **missing,
                }, arrays, warps  # fmt: skip
            yield f"both of {target} {name}", pointwise.pointwise, {
                **constants, "value": None,
            }, arrays, warps  # fmt: skip
    joined = {"keep": None, "temperatures": None, "height": 32}
    yield "join", rows.join, joined, numbers, 1
    yield "join_sums", rows.join_sums, joined, numbers, 1


def main(*dtypes):
    spilled = False
    for name, *arguments in variants(dtypes or FLOATS):
        registers, stack = compiled(*arguments)
        sys.stdout.write(f"{name}: {registers} registers, {stack} bytes of stack\n")
        spilled |= stack > MOST
    return int(spilled)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
