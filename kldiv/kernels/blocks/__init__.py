"""NumPy on blocks that a CPU's cache holds, shared among threads, without a compiler.

A loss of float32 or half types is computed in float64 as it is usually written, without the care
that the formulas take, and rows are left to these where too few digits would be right. A loss of
float64 is computed by the formulas, a block at a time. Pairs of rows are products of matrices.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from kldiv.formulas.pairs import PairMeasure
from kldiv.kernels.layout import dtype_name
from kldiv.kernels.technology import Technology

if TYPE_CHECKING:
    from kldiv.kernels.work import Work


class Blocks(Technology):
    """NumPy's own functions, with buffers for their results."""

    name = "blocks"
    words = "NumPy on blocks in the cache"
    small = 1 << 14
    forms = None
    by_types = True
    step = "computing"

    def least(self, operation: Any) -> int:
        return 0 if operation.lengthy else self.small

    def refusal(self, work: Work) -> str | None:
        kinds = [work.operation.result, *map(dtype_name, work.arrays)]
        if "bfloat16" in kinds and hasattr(work.arrays[0], "data_ptr"):
            return "NumPy has no bfloat16"
        if isinstance(work.operation, PairMeasure):
            why: str | None = self.module(work).refusal(work)
            return why
        return super().refusal(work)


BLOCKS: Final = Blocks()
