"""The losses as ``torch.nn`` modules; needs PyTorch."""

from __future__ import annotations

from inspect import signature
from typing import TYPE_CHECKING, Any

import torch

from kldiv import losses
from kldiv._call import check_reduction
from kldiv.distillation import distillation_loss

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


_OF_DISTILLATION = (
    *("beta", "temperature", "ignore_index"),
    *("reduction", "hard_weight", "scale_by_temperature"),
)


class DistillationLoss(torch.nn.Module):
    """
    `kldiv.distillation_loss` as a module.

    Parameters
    ----------
    beta : float, default 0.5
        0 is forward KL, 1 reverse KL, and Jensen-Shannon lies between.
    temperature : float, default 1.0
        Divisor of both logits.
    ignore_index : int, default -100
        The label of tokens that do not count.
    reduction : {"batchmean", "mean", "sum", "none"}, default "batchmean"
        As in `kldiv.distillation_loss`.
    hard_weight : float, default 0.0
        Share of the labels' cross entropy.
    scale_by_temperature : bool, default False
        Whether to multiply the divergence by T².

    Raises
    ------
    OptionError
        No such ``reduction``; at construction already.

    Examples
    --------
    >>> import torch
    >>> from kldiv.nn import DistillationLoss
    >>> loss = DistillationLoss(beta=0.0, temperature=2.0)
    >>> loss
    DistillationLoss(beta=0.0, temperature=2.0)
    >>> loss(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0, 2.0]]), torch.tensor([1]))
    tensor(0.0263)
    """

    def __init__(
        self,
        beta: float = 0.5,
        temperature: float = 1.0,
        *,
        ignore_index: int = -100,
        reduction: Reduction = "batchmean",
        hard_weight: float = 0.0,
        scale_by_temperature: bool = False,
    ) -> None:
        super().__init__()
        check_reduction(reduction)
        self.beta = beta
        self.temperature = temperature
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.hard_weight = hard_weight
        self.scale_by_temperature = scale_by_temperature

    def forward(
        self,
        student_logits: torch.Tensor,
        teacher_logits: torch.Tensor,
        labels: torch.Tensor | None = None,
        **options: Any,
    ) -> torch.Tensor:
        """Return the loss; options are those of `kldiv.distillation_loss`, for one call."""
        loss: torch.Tensor = distillation_loss(
            student_logits, teacher_logits, labels, **{**self._settings(), **options}
        )
        return loss

    def extra_repr(self) -> str:
        """Show the settings that are not the default."""
        default = signature(type(self)).parameters
        return ", ".join(
            f"{name}={value!r}"
            for name, value in self._settings().items()
            if value != default[name].default
        )

    def _settings(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _OF_DISTILLATION}
