"""Fused kernels for CuPy's arrays on NVIDIA's GPUs: CUDA C++, compiled by NVRTC at first use.

The sources are in ``source/``; importing this package needs neither CuPy nor a GPU.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

from kldiv.kernels.spelling import ON_GPUS
from kldiv.kernels.technology import Technology

if TYPE_CHECKING:
    from kldiv.kernels.work import Found, Work


class Cuda(Technology):
    """CUDA C++.

    A formula is a launch for every operation on arrays, a kernel one or a few at any size.
    """

    name = "cuda"
    words = "fused, in CUDA C++"
    device = "cuda"
    forms = ON_GPUS
    step = "compiling or launching"

    def lacking(self) -> str | None:
        problem: str | None = import_module("kldiv.kernels.cuda.compiling").problem()
        return problem

    def compute(self, work: Work) -> Found:
        try:
            return super().compute(work)
        except MemoryError:
            raise  # the formulas would need more
        except Exception as error:  # whatever a compiler, or the driver, may raise
            raise self.failed(error) from error


CUDA: Final = Cuda()
