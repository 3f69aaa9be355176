"""From the sources and the arrays' dtypes to a function that launches a kernel."""

from __future__ import annotations

import hashlib
import math
import os
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from kldiv._files import replacing
from kldiv.formulas import numbers

if TYPE_CHECKING:
    from collections.abc import Sequence

NUMBERS: Final = "numbers.cuh"
"""The name of the text that `generated` makes."""

COMMON: Final = ("primitives.cuh", NUMBERS, "elementary.cuh", "layout.cuh")

SOURCES: Final = {
    "row_loss": (
        *(*COMMON, "state.cuh", "rows.cuh", "sums.cuh"),
        *("mixtures.cuh", "powers.cuh", "distances.cuh", "divergences.cuh", "row_loss.cu"),
    ),
    "pointwise": (*COMMON, "pointwise.cu"),
}
"""The files of each kernel, in the order in which they are joined."""

OPTIONS: Final = ("-std=c++17", "--fmad=false")
"""Not fused unless the source says so: a double word has the rounding of a product, not of its sum.
Division, square roots and subnormal numbers are IEEE's by default."""

TYPES: Final = {"float32": "float", "float64": "double", "float16": "Of16", "bfloat16": "Of16B"}
"""The sources' names of the dtypes."""


def problem() -> str | None:
    """Return why kernels cannot be compiled here, or None where no reason is known."""
    import cupy  # noqa: PLC0415 - asked only where its arrays are

    if getattr(cupy.cuda.runtime, "is_hip", False):
        return "they are for NVIDIA's GPUs, and this CuPy is built for AMD's"
    return None


def joined(names: Sequence[str]) -> str:
    """Return the text of source files one after another, each under its own name."""
    folder = files("kldiv.kernels.cuda") / "source"
    texts = (
        generated() if name == NUMBERS else (folder / name).read_text(encoding="utf-8")
        for name in names
    )
    return "\n".join(f'#line 1 "{name}"\n{text}' for name, text in zip(names, texts, strict=True))


@cache
def generated() -> str:
    """Return the source of the numbers: of all formulas, and the layout of a state and a row."""
    fields, of_rows = (", ".join(names) for names in (numbers.FIELDS, numbers.ROW_FIELDS))
    constants = [
        f"constexpr double {name} = {number!r};"
        for name, number in vars(numbers).items()
        if name.isupper() and isinstance(number, float)
    ]
    constants.append(f"constexpr double LEAST = {math.exp(-numbers.DEEP)!r};  // e^(−DEEP)")
    series = (
        ("phi_series", numbers.PHI_32, numbers.PHI),
        ("artanh_series", numbers.ARTANH_32, numbers.ARTANH),
        ("exp_rest", numbers.EXP_32, numbers.EXP_64),
    )
    return "\n".join(
        [
            f"struct State {{ double {fields}; }};",
            f"struct Row {{ double {of_rows}; }};",
            *constants,
            *(_polynomial(name, "float", narrow) for name, narrow, _ in series),
            *(_polynomial(name, "double", wide) for name, _, wide in series),
            _polynomial("exp_rest_wide", "float", numbers.EXP_WIDER_32),
            "",
        ]
    )


def _polynomial(name: str, kind: str, coefficients: Sequence[float]) -> str:
    """Return the source of a function that evaluates a polynomial, by Horner's rule."""
    *rest, first = (f"{kind}({number!r})" for number in coefficients)
    steps = "".join(f" p = fused(p, x, {number});" for number in reversed(rest))
    return f"DEVICE {kind} {name}({kind} x) {{ {kind} p = {first};{steps} return p; }}"


def definitions(**macros: object) -> tuple[str, ...]:
    """Return the options that define macros."""
    return tuple(f"-D{name}={value}" for name, value in sorted(macros.items()))


def load(name: str, macros: tuple[str, ...]) -> Any:
    """Return a kernel for the current device, and others of its kind."""
    import cupy  # noqa: PLC0415 - it compiles and launches

    return _compiled(name, macros, cupy.cuda.Device().compute_capability)


@cache
def _compiled(name: str, macros: tuple[str, ...], capability: str) -> Any:
    """Return a kernel for the current device, which is of this kind, kept on disk.

    CuPy's ``RawModule`` would let NVRTC take subnormal numbers for zero, whatever the options say.
    """
    import cupy  # noqa: PLC0415
    from cupy.cuda import compiler, nvrtc  # noqa: PLC0415

    text, options = joined(SOURCES[name]), (*OPTIONS, *macros)
    words = [text, *options, capability, str(nvrtc.getVersion())]
    digest = hashlib.sha256("\n".join(words).encode()).hexdigest()
    folder = Path(os.environ.get("CUPY_CACHE_DIR") or Path.home() / ".cupy" / "kernel_cache")
    path = folder / f"kldiv-{digest[:32]}.cubin"
    try:
        if not path.exists():
            code, _ = compiler.compile_using_nvrtc(text, options, filename=f"{name}.cu")
            folder.mkdir(parents=True, exist_ok=True)
            with replacing(path) as file:
                file.write(code)
        module = cupy.RawModule(path=str(path))
    # Not a documented interface, and the folder may be read-only: then with such numbers as zeros.
    except (AttributeError, TypeError, OSError, RuntimeError):
        module = cupy.RawModule(code=text, options=options)
    return module.get_function(name)


def kernel(name: str, real: str, **macros: object) -> Any:
    """Return a kernel of `SOURCES` that computes in the dtype ``real``, given its other macros.

    It takes the grid, the block and the arguments.
    """
    return load(name, definitions(REAL=TYPES[real], **macros))


def types(**dtypes: str) -> dict[str, str]:
    """Return the macros that name dtypes, given as names."""
    return {f"TYPE_{name}": TYPES[dtype] for name, dtype in dtypes.items()}
