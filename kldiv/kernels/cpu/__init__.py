"""Fused kernels for arrays in a CPU's memory, compiled by LLVM; imported without it."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from kldiv.formulas.layers import SoftCap
from kldiv.formulas.pairs import PairMeasure
from kldiv.formulas.sparse import TopKLoss
from kldiv.kernels.spelling import COMPILED
from kldiv.kernels.technology import Technology

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from kldiv.kernels.work import Found, Work


class Kernel(NamedTuple):
    """A kernel to compile ahead."""

    functions: tuple[str, ...]
    """The public functions that it serves, of which the first names it."""
    detail: str
    dtype: str
    compiled: Callable[[], Any]
    """Compiles it, without gradients and with them, or loads it from the cache."""

    @property
    def name(self) -> str:
        """The first function, the detail and the dtype."""
        return f"{self.functions[0]}{self.detail}, {self.dtype}"

    @property
    def is_first(self) -> bool:
        """Whether most programs need it."""
        return self.dtype == "float32" and not FIRST.isdisjoint(self.functions)


FIRST: Final = frozenset({"kl_div", "kl_div_with_logits", "js_div_with_logits"})

_F, _LOSS = "f_div_with_logits", "distillation_loss"

_ROWS: Final = {
    "KL": (("kl_div_with_logits", _F, _LOSS), ""),
    "even JS": (("js_div_with_logits", _F, _LOSS), ""),
    "JS": ((_LOSS, "js_div_with_logits", _F), " of another beta"),
    "mixture": ((_F,), " of a mixture"),
    "skew": (("skew_kl_div_with_logits", _F), ""),
    "Jeffreys": (("jeffreys_div_with_logits", _F), ""),
    "total variation": (("tv_div_with_logits", _F), ""),
    "Hellinger": (("hellinger_div_with_logits", _F), ""),
    "chi2": (("chi2_div_with_logits", _F), ""),
    "alpha": (("alpha_div_with_logits", _F), ""),
}
"""The divergences of rows: the functions that they serve, and a detail."""

_POLICY: Final = "log_prob_and_entropy_with_logits"
_ROWS_ALONE: Final = {
    "Renyi": (("renyi_div_with_logits",), ""),
    "policy": ((_POLICY,), " with a reference"),
    "labels": (("cross_entropy_with_logits", "entropy_with_logits", _POLICY), ""),
}
"""Those that sparse teachers do not have."""

_LINEAR: Final = ("linear_kl_div", "linear_js_div", "linear_distillation_loss")


class Cpu(Technology):
    """Machine code of llvmlite, LLVM for Python."""

    name = "cpu"
    words = "fused, compiled by LLVM"
    small = 1 << 14
    forms = COMPILED
    by_types = True

    def __init__(self) -> None:
        self.installed = find_spec("llvmlite") is not None

    def lacking(self) -> str | None:
        advice = 'pip install "kldiv[cpu]" makes large losses 3 to 8 times as fast'
        return None if self.installed else f"llvmlite is not installed; {advice}"

    def refusal(self, work: Work) -> str | None:
        if not isinstance(work.operation, TopKLoss | PairMeasure | SoftCap):
            return super().refusal(work)
        # JAX calls the kernels of pairs, not the two others.
        own = isinstance(work.operation, PairMeasure) or all(
            isinstance(a, np.ndarray) or hasattr(a, "data_ptr") for a in work.arrays
        )
        if not own:
            return "there is a fused form for arrays of NumPy and PyTorch only"
        why: str | None = self.module(work).refusal(work)
        return why

    def prepare(self, work: Work) -> Callable[[Work], Found]:
        try:
            loss = self.module(work)
            return partial(loss.run, kernel=loss.compile_for(work))
        except Exception as error:  # whatever a compiler, or a file system, may raise
            raise self.failed(error) from error

    def compute(self, work: Work) -> Found:
        return self.prepare(work)(work)

    def compilers(self) -> Iterator[Kernel]:
        """Yield the kernels, those that most programs need first."""
        elements, rows, sparse, softcap, pairs = (
            import_module(f"kldiv.kernels.cpu.{name}").kernel for name in _MODULES
        )
        topk = ("topk_kl_div_with_logits", "linear_topk_kl_div")
        gradients = False, True
        for dtype in ("float32", "float64"):
            for target in (False, True):
                own = partial(_each, elements, gradients, dtype, target)
                yield Kernel(("kl_div",), ", log_target" * target, dtype, own)
            for spelled, (functions, detail) in (_ROWS | _ROWS_ALONE).items():
                yield Kernel(
                    functions, detail, dtype, partial(_each, rows, gradients, spelled, dtype)
                )
            yield Kernel(_LINEAR, ", soft cap", dtype, partial(softcap, dtype))
            for name in import_module("kldiv.kernels.cpu.pairs").TERMS:
                own = partial(_each, pairs, (None, 0, 1), name, dtype)
                yield Kernel(("pairwise",), f", {name}", dtype, own)
        yield Kernel(topk, "", "float32", sparse)
        for spelled in _ROWS:
            own = partial(_each, rows, gradients, spelled, "float64", wide=True)
            yield Kernel(topk, f", {spelled}", "float32", own)


_MODULES: Final = ("pointwise_loss", "row_loss", "topk_loss", "softcap", "pair_measure")


def _each(kernel: Callable[..., Any], last: Iterable[Any], *which: Any, **more: Any) -> None:
    """Compile the kernels that a last argument tells apart: which gradients they have."""
    for each in last:
        kernel(*which, each, **more)


CPU: Final = Cpu()
