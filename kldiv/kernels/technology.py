"""A technology that compiles fused kernels: the work that it can do here, and doing it.

To add a technology, derive from `Technology`, give it a package of its own beside the others, and
name it in the adapter of the library whose arrays it reads.
"""

from __future__ import annotations

import math
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from kldiv.formulas.labels import LabelLoss
from kldiv.formulas.layers import SoftCap, SoftCapSlope
from kldiv.formulas.pairs import PairMeasure, PairSlope
from kldiv.formulas.policy import PolicyLoss
from kldiv.formulas.rows import RowLoss
from kldiv.formulas.sparse import TopKLoss
from kldiv.kernels.spelling import no_fused_form

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kldiv._types import Array
    from kldiv.kernels.work import Found, Work


class KernelError(Exception):
    """A kernel that cannot be compiled or launched here."""


class Technology:
    """Fused kernels of one kind; importing its package loads no compiler."""

    name: str
    """As the setting ``kernel`` spells it, and as its package is called."""
    words: str
    """The technology in a few words."""
    device: str = "cpu"
    """The kind of device that has the arrays which it reads, as adapters name devices."""
    small: int = 0
    """Elements below which the formulas are as fast."""
    kept: int = 0
    """Float64 numbers of a row of logits from which its gradients follow, where a forward keeps
    them."""
    forms: Sequence[str] | None = ()
    """Fused forms that it has beside those of every technology; None: all."""
    by_types: bool = False
    """Whether a fused form's kernel depends on the operation and on arrays' types alone."""
    step: str = "compiling"
    """The step that is named where anything fails."""
    failure: str | None = None
    """Why a kernel failed, once one has."""

    def lacking(self) -> str | None:
        """Return why these kernels cannot run here, or None; nothing is compiled for it."""
        return None

    def problem(self) -> str | None:
        """Return why these kernels cannot run here, or None."""
        return self.lacking() or self.failure

    # torch.compile calls this while it traces: it cannot trace a look for packages and devices.
    problem._dynamo_marked_constant = True  # type: ignore[attr-defined] # noqa: SLF001

    def least(self, operation: Any) -> int:
        """Return how many elements an operation has from where on the formulas are slower."""
        return self.small

    def refusal(self, work: Work) -> str | None:
        """Return why there is no kernel for such work, or None where there is."""
        if any(index > 1 - isinstance(work.operation, LabelLoss) for index in work.gradients):
            return "there is no fused gradient in a temperature"
        return no_fused_form(work.operation, work.arrays, self.forms)

    def compute(self, work: Work) -> Found:
        """Return the value, if it is wanted, and the gradients that are.

        Raises
        ------
        KernelError
            The kernel cannot be compiled or launched here; `problem` says so from then on.
        """
        found: Found = self.module(work).run(work)
        return found

    def prepare(self, work: Work) -> Callable[[Work], Found]:
        """Return a function for such work, compiled; of the arrays only the dtypes are looked at.

        Raises
        ------
        KernelError
            It cannot be compiled here.
        """
        return self.compute

    def module(self, work: Work) -> Any:
        """Return the module that launches the kernel, loading the compiler at first use."""
        name = _MODULES.get(type(work.operation), "pointwise_loss")
        return import_module(f"kldiv.kernels.{self.name}.{name}")

    def failed(self, error: Exception) -> KernelError:
        """Return the error of a failed kernel, kept as this technology's `failure` from now on."""
        self.failure = f"{self.step} it fails: {described(error)}"
        return KernelError(self.failure)


_MODULES: Final = {
    RowLoss: "row_loss",
    TopKLoss: "topk_loss",
    LabelLoss: "row_loss",
    PolicyLoss: "row_loss",
    PairMeasure: "pair_measure",
    PairSlope: "pair_measure",
    SoftCap: "softcap",
    SoftCapSlope: "softcap",
}


def size_of(*arrays: Array) -> int:
    """Return how many elements the largest array has."""
    return max([math.prod(array.shape) for array in arrays])


def described(error: Exception) -> str:
    """Return the type of an error and the first line of its message: compilers write many."""
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"
