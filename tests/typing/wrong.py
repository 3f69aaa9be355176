"""Mistakes that a type checker finds, each in a line that ends so."""

from __future__ import annotations

from typing import TYPE_CHECKING

import kldiv
from kldiv import fitting, metrics

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray


def mistakes(p: NDArray[np.float64], t: torch.Tensor) -> None:
    kldiv.kl_div("abc", p)  # wrong
    kldiv.kl_div(p)  # wrong
    kldiv.kl_div([0.1, 0.9], [0.2, 0.8])  # wrong
    kldiv.kl_div(p, p, reduction="men")  # wrong
    kldiv.kl_div(p, p, log_targets=True)  # wrong
    kldiv.kl_div_with_logits(p, p, temperature="warm")  # wrong
    kldiv.kl_div_with_logits(p, p, beta=0.5)  # wrong
    kldiv.js_div_with_logits(p, p, beta="half")  # wrong
    kldiv.f_div_with_logits(p, p)  # wrong
    kldiv.distillation_loss(t, t, reduction="batch")  # wrong
    kldiv.js_divergence(0.5, p)  # wrong
    kldiv.kl_divergence(p, p, method="exact")  # wrong
    kldiv.value_and_grad(kldiv.kl_div)("abc", p)  # wrong
    kldiv.set_config(kernel=3)  # wrong
    kldiv.config_context(backends="torch")  # wrong
    kldiv.kl_div_with_logits(t, t).backwards()  # wrong
    fitting.rank(p, kind="contynuous")  # wrong
    metrics.KLDivergence(form="logit")  # wrong
    kldiv.kl_dv(p, p)  # wrong
