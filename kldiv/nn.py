"""The losses as ``torch.nn`` modules; needs PyTorch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from kldiv import losses
from kldiv._call import check_reduction

if TYPE_CHECKING:
    from kldiv._types import Reduction


class KLDivLoss(torch.nn.Module):
    """
    `kldiv.kl_div` as a module, a drop-in for ``torch.nn.KLDivLoss``.

    Parameters
    ----------
    reduction : {"mean", "batchmean", "sum", "none"}, default "mean"
        As in `kldiv.kl_div`.
    log_target : bool, default False
        Whether targets hold log-probabilities.

    Raises
    ------
    OptionError
        No such ``reduction``; at construction already.

    Examples
    --------
    >>> import torch
    >>> from kldiv.nn import KLDivLoss
    >>> loss = KLDivLoss(reduction="batchmean")
    >>> loss
    KLDivLoss(reduction='batchmean', log_target=False)
    >>> loss(torch.log(torch.tensor([[0.5, 0.5]])), torch.tensor([[1.0, 0.0]]))
    tensor(0.6931)
    """

    def __init__(self, reduction: Reduction = "mean", log_target: bool = False) -> None:  # noqa: FBT001, FBT002 - torch's own signature
        super().__init__()
        check_reduction(reduction)
        self.reduction = reduction
        self.log_target = log_target

    def forward(
        self,
        input: torch.Tensor,
        target: torch.Tensor,
        *,
        where: torch.Tensor | None = None,
        row_weight: torch.Tensor | None = None,
        normalizer: float | torch.Tensor | None = None,
        dtype: Any = None,
    ) -> torch.Tensor:
        """Return the loss of ``input`` (log Q) and ``target``."""
        loss: torch.Tensor = losses.kl_div(
            input,
            target,
            reduction=self.reduction,
            log_target=self.log_target,
            where=where,
            row_weight=row_weight,
            normalizer=normalizer,
            dtype=dtype,
        )
        return loss

    def extra_repr(self) -> str:
        """Show the settings."""
        return f"reduction={self.reduction!r}, log_target={self.log_target}"
