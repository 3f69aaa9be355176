"""The Kullback-Leibler divergence, right, fast and the same on every array library."""

from __future__ import annotations

from kldiv.backends import available_backends, register_backend
from kldiv.config import config_context, get_config, set_config
from kldiv.diagnosis import diagnose
from kldiv.explanation import explain
from kldiv.gradients import value_and_grad
from kldiv.losses import KLDivLoss, kl_div

__version__ = "0.1.0"

__all__ = [
    "KLDivLoss",
    "available_backends",
    "config_context",
    "diagnose",
    "explain",
    "get_config",
    "kl_div",
    "register_backend",
    "set_config",
    "value_and_grad",
]
