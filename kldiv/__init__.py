"""The Kullback-Leibler divergence and its family, right, fast and the same on every array library.

Losses take log-probabilities (`kl_div`), logits (`kl_div_with_logits` and its family,
`distillation_loss`) or hidden states (`linear_kl_div`); measures take probabilities or
distributions (`kl_divergence` and relatives, `kldiv.distributions`); `kldiv.estimators` and
`kldiv.fitting` take samples; `KLState`, `kldiv.metrics` and `kldiv.streaming` take parts, batches
and files.  `value_and_grad` gives the gradient on every library, `explain` says who computes, and
`diagnose` finds mistakes in arguments.
"""

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
        metrics,
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
    from kldiv.layers import Head
    from kldiv.linear_losses import (
        linear_distillation_loss,
        linear_js_div,
        linear_kl_div,
        linear_log_prob_and_entropy,
        linear_topk_kl_div,
    )
    from kldiv.logit_losses import (
        alpha_div_with_logits,
        chi2_div_with_logits,
        f_div_with_logits,
        hellinger_div_with_logits,
        jeffreys_div_with_logits,
        js_div_with_logits,
        kl_div_with_logits,
        pad_classes,
        renyi_div_with_logits,
        skew_kl_div_with_logits,
        tv_div_with_logits,
    )
    from kldiv.losses import KLDivLoss, kl_div
    from kldiv.measures import (
        alpha_divergence,
        chi2_divergence,
        cross_entropy,
        entropy,
        hellinger_divergence,
        jeffreys_divergence,
        js_divergence,
        kl_divergence,
        renyi_divergence,
        skew_divergence,
        tv_divergence,
    )
    from kldiv.pairs import pairwise
    from kldiv.sparse_losses import SparseTeacher, topk_kl_div_with_logits, topk_log_probs
    from kldiv.states import KLState

__version__ = "0.1.0"

__all__ = [
    "Head",
    "KLDivLoss",
    "KLState",
    "SparseTeacher",
    "alpha_div_with_logits",
    "alpha_divergence",
    "available_backends",
    "chi2_div_with_logits",
    "chi2_divergence",
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
    "hellinger_div_with_logits",
    "hellinger_divergence",
    "jeffreys_div_with_logits",
    "jeffreys_divergence",
    "js_div_with_logits",
    "js_divergence",
    "kl_div",
    "kl_div_with_logits",
    "kl_divergence",
    "linear_distillation_loss",
    "linear_js_div",
    "linear_kl_div",
    "linear_log_prob_and_entropy",
    "linear_topk_kl_div",
    "log_prob_and_entropy_with_logits",
    "pad_classes",
    "pairwise",
    "register_backend",
    "register_kl",
    "renyi_div_with_logits",
    "renyi_divergence",
    "set_config",
    "skew_divergence",
    "skew_kl_div_with_logits",
    "topk_kl_div_with_logits",
    "topk_log_probs",
    "tv_div_with_logits",
    "tv_divergence",
    "value_and_grad",
]

_HOMES = {
    name: home
    for home, names in {
        "backends": "available_backends register_backend",
        "config": "config_context get_config set_config",
        "diagnosis": "diagnose",
        "distillation": "distillation_loss",
        "distributions": "register_kl",
        "explanation": "explain",
        "gradients": "value_and_grad",
        "label_losses": "cross_entropy_with_logits entropy_with_logits "
        "log_prob_and_entropy_with_logits",
        "layers": "Head",
        "linear_losses": "linear_distillation_loss linear_js_div linear_kl_div "
        "linear_log_prob_and_entropy linear_topk_kl_div",
        "logit_losses": "alpha_div_with_logits chi2_div_with_logits f_div_with_logits "
        "hellinger_div_with_logits jeffreys_div_with_logits js_div_with_logits "
        "kl_div_with_logits pad_classes renyi_div_with_logits skew_kl_div_with_logits "
        "tv_div_with_logits",
        "losses": "KLDivLoss kl_div",
        "measures": "alpha_divergence chi2_divergence cross_entropy entropy hellinger_divergence "
        "jeffreys_divergence js_divergence kl_divergence renyi_divergence skew_divergence "
        "tv_divergence",
        "pairs": "pairwise",
        "sparse_losses": "SparseTeacher topk_kl_div_with_logits topk_log_probs",
        "states": "KLState",
    }.items()
    for name in names.split()
}
"""The module of each name, from which it is loaded at first use."""
_MODULES = {
    *("backends", "cli", "config", "distributions", "divergences", "errors", "estimators"),
    *("fitting", "metrics", "nn", "readers", "streaming", "testing"),
}


def _load(name: str) -> Any:
    # Loaded at first use: the command's --help needs neither NumPy nor any of this.
    if name in _MODULES:
        return import_module(f"kldiv.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'kldiv' has no attribute {name!r}")
    value = getattr(import_module(f"kldiv.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


if not TYPE_CHECKING:  # type checkers are told every name, and find a wrong one
    __getattr__ = _load


def __dir__() -> list[str]:
    return sorted({*__all__, *_MODULES, "__version__"})
