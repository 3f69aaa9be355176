"""The Kullback-Leibler divergence, right, fast and the same on every array library."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # Not cli and streaming, which import this package: `from kldiv import streaming` is typed too.
    from kldiv import (  # noqa: F401 - modules
        backends,
        config,
        distributions,
        divergences,
        errors,
        estimators,
        fitting,
        nn,
        readers,
        testing,
    )
    from kldiv.backends import available_backends, register_backend
    from kldiv.config import config_context, get_config, set_config
    from kldiv.diagnosis import diagnose
    from kldiv.distillation import distillation_loss
    from kldiv.distributions import register_kl
    from kldiv.explanation import explain
    from kldiv.gradients import value_and_grad
    from kldiv.label_losses import (
        cross_entropy_with_logits,
        entropy_with_logits,
        log_prob_and_entropy_with_logits,
    )
    from kldiv.linear_losses import linear_js_div, linear_kl_div
    from kldiv.logit_losses import (
        f_div_with_logits,
        jeffreys_div_with_logits,
        js_div_with_logits,
        kl_div_with_logits,
        pad_classes,
        skew_kl_div_with_logits,
        tv_div_with_logits,
    )
    from kldiv.losses import KLDivLoss, kl_div
    from kldiv.measures import (
        cross_entropy,
        entropy,
        jeffreys_divergence,
        js_divergence,
        kl_divergence,
        renyi_divergence,
    )
    from kldiv.sparse_losses import SparseTeacher, topk_kl_div_with_logits, topk_log_probs
    from kldiv.states import KLState

__version__ = "0.1.0"

__all__ = [
    "KLDivLoss",
    "KLState",
    "SparseTeacher",
    "available_backends",
    "config_context",
    "cross_entropy",
    "cross_entropy_with_logits",
    "diagnose",
    "distillation_loss",
    "entropy",
    "entropy_with_logits",
    "explain",
    "f_div_with_logits",
    "get_config",
    "jeffreys_div_with_logits",
    "jeffreys_divergence",
    "js_div_with_logits",
    "js_divergence",
    "kl_div",
    "kl_div_with_logits",
    "kl_divergence",
    "linear_js_div",
    "linear_kl_div",
    "log_prob_and_entropy_with_logits",
    "pad_classes",
    "register_backend",
    "register_kl",
    "renyi_divergence",
    "set_config",
    "skew_kl_div_with_logits",
    "topk_kl_div_with_logits",
    "topk_log_probs",
    "tv_div_with_logits",
    "value_and_grad",
]

_HOMES = {
    "KLDivLoss": "losses",
    "KLState": "states",
    "SparseTeacher": "sparse_losses",
    "available_backends": "backends",
    "config_context": "config",
    "cross_entropy": "measures",
    "cross_entropy_with_logits": "label_losses",
    "diagnose": "diagnosis",
    "distillation_loss": "distillation",
    "entropy": "measures",
    "entropy_with_logits": "label_losses",
    "explain": "explanation",
    "f_div_with_logits": "logit_losses",
    "get_config": "config",
    "jeffreys_div_with_logits": "logit_losses",
    "jeffreys_divergence": "measures",
    "js_div_with_logits": "logit_losses",
    "js_divergence": "measures",
    "kl_div": "losses",
    "kl_div_with_logits": "logit_losses",
    "kl_divergence": "measures",
    "linear_js_div": "linear_losses",
    "linear_kl_div": "linear_losses",
    "log_prob_and_entropy_with_logits": "label_losses",
    "pad_classes": "logit_losses",
    "register_backend": "backends",
    "register_kl": "distributions",
    "renyi_divergence": "measures",
    "set_config": "config",
    "skew_kl_div_with_logits": "logit_losses",
    "topk_kl_div_with_logits": "sparse_losses",
    "topk_log_probs": "sparse_losses",
    "tv_div_with_logits": "logit_losses",
    "value_and_grad": "gradients",
}
_MODULES = {
    "backends",
    "cli",
    "config",
    "distributions",
    "divergences",
    "errors",
    "estimators",
    "fitting",
    "nn",
    "readers",
    "streaming",
    "testing",
}


def __getattr__(name: str) -> Any:
    # Loaded at first use: the command's --help needs neither NumPy nor any of this.
    if name in _MODULES:
        return import_module(f"kldiv.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'kldiv' has no attribute {name!r}")
    value = getattr(import_module(f"kldiv.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
