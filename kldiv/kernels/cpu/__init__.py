"""Fused kernels for arrays in a CPU's memory, compiled by LLVM; imported without it."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

from kldiv.formulas.linear import SoftCap
from kldiv.formulas.pairs import PairMeasure
from kldiv.formulas.sparse import TopKLoss
from kldiv.kernels.technology import Technology

if TYPE_CHECKING:
    from collections.abc import Callable

    from kldiv.kernels.work import Found, Work


_ROWS: Final = {
    "kl_div_with_logits": "KL",
    "js_div_with_logits": "even JS",
    "js_div_with_logits of another beta": "JS",
    "f_div_with_logits of a mixture": "mixture",
    "skew_kl_div_with_logits": "skew",
    "f_div_with_logits of Jeffreys": "Jeffreys",
    "tv_div_with_logits": "total variation",
    "hellinger_div_with_logits": "Hellinger",
    "alpha_div_with_logits": "alpha",
    "renyi_div_with_logits": "Renyi",
    "log_prob_and_entropy_with_logits with a reference": "policy",
}


class Cpu(Technology):
    """Machine code of llvmlite, LLVM for Python."""

    name = "cpu"
    words = "fused, compiled by LLVM"
    small = 1 << 14
    forms = None
    by_types = True

    def __init__(self) -> None:
        self.installed = find_spec("llvmlite") is not None

    def lacking(self) -> str | None:
        advice = 'pip install "kldiv[cpu]" makes large losses 3 to 8 times as fast'
        return None if self.installed else f"llvmlite is not installed; {advice}"

    def refusal(self, work: Work) -> str | None:
        if not isinstance(work.operation, TopKLoss | PairMeasure | SoftCap):
            return super().refusal(work)
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

    def compilers(self) -> dict[str, Callable[[], Any]]:
        """Return, for each kernel, the function that compiles it, or loads it from the cache."""
        elements, rows, labels, sparse, softcap, pairs = (
            import_module(f"kldiv.kernels.cpu.{name}").kernel for name in _MODULES
        )
        found: dict[str, Callable[[], Any]] = {}
        for dtype in ("float32", "float64"):
            for target in (False, True):
                name = f"kl_div{', log_target' * target}, {dtype}"
                found[name] = partial(_each, elements, dtype, target)
            for name, spelled in _ROWS.items():
                found[f"{name}, {dtype}"] = partial(_each, rows, spelled, dtype)
            found[f"soft cap, {dtype}"] = partial(softcap, dtype)
            found[f"cross entropy and entropy, {dtype}"] = partial(_each, labels, dtype)
            for name in import_module("kldiv.kernels.cpu.pairs").TERMS:
                found[f"pairwise, {name}, {dtype}"] = partial(pairs, name, dtype)
        found["topk_kl_div_with_logits, float32"] = sparse
        for spelled in _ROWS.values():
            own = partial(_each, rows, spelled, "float64", wide=True)
            found[f"topk_kl_div_with_logits, {spelled}, float32"] = own
        return found


_MODULES: Final = (
    "pointwise_loss", "row_loss", "label_loss", "topk_loss", "softcap", "pair_measure"
)  # fmt: skip


def _each(kernel: Callable[..., Any], *which: Any, **more: Any) -> None:
    """Compile a kernel without gradients, and with them."""
    for gradients in (False, True):
        kernel(*which, gradients, **more)


CPU: Final = Cpu()
