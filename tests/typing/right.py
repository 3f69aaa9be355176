"""Code as users write it: type checkers find nothing wrong, and know each result."""

from __future__ import annotations

from functools import partial
from typing import assert_type

import jax
import numpy as np
import torch
from numpy.typing import NDArray

import kldiv
from kldiv import distributions, divergences, estimators, fitting, metrics, streaming
from kldiv.divergences import Jeffreys
from kldiv.nn import DistillationLoss


def in_numpy(p: NDArray[np.float64], q: NDArray[np.float64]) -> None:
    assert_type(kldiv.kl_div(q, p, reduction="batchmean", where=p > 0), NDArray[np.float64])
    assert_type(kldiv.kl_div_with_logits(q, p, temperature=2.0), NDArray[np.float64])
    assert_type(kldiv.js_div_with_logits(q, p, beta=0.3, axis=0), NDArray[np.float64])
    assert_type(kldiv.f_div_with_logits(q, p, divergence=Jeffreys(1.0, 0.5)), NDArray[np.float64])
    assert_type(kldiv.kl_divergence(p, q, base=2), NDArray[np.float64])
    assert_type(kldiv.js_divergence(p, q), NDArray[np.float64])
    assert_type(estimators.knn_kl(p, q), NDArray[np.float64])
    value, gradient = kldiv.value_and_grad(kldiv.kl_div)(q, p, reduction="sum")
    assert_type(gradient, NDArray[np.float64])
    assert_type(value, NDArray[np.float64])
    several = kldiv.value_and_grad(partial(kldiv.kl_div, log_target=True), argnums=(0, 1))
    assert_type(several(q, p)[1], tuple[NDArray[np.float64], ...])
    same = kldiv.value_and_grad(kldiv.kl_div)(q, p, out=gradient)
    assert_type(same[1], NDArray[np.float64])


def in_torch(student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor) -> None:
    assert_type(kldiv.kl_div_with_logits(student, teacher), torch.Tensor)
    assert_type(kldiv.distillation_loss(student, teacher, labels, beta=0.5), torch.Tensor)
    assert_type(kldiv.entropy_with_logits(student), torch.Tensor)
    assert_type(kldiv.cross_entropy_with_logits(student, labels), torch.Tensor)
    log_prob, _ = kldiv.log_prob_and_entropy_with_logits(student, labels)
    assert_type(log_prob, torch.Tensor)
    assert_type(kldiv.linear_kl_div(student, teacher, student, teacher), torch.Tensor)
    DistillationLoss(beta=0.1)(student, teacher)


def in_jax(x: jax.Array, y: jax.Array) -> None:
    assert_type(kldiv.kl_div(x, y, log_target=True), jax.Array)
    assert_type(kldiv.renyi_divergence(x, y, alpha=2.0), jax.Array)
    jax.grad(lambda s: kldiv.kl_div_with_logits(s, y))(x)


def elsewhere(data: NDArray[np.float64]) -> None:
    with kldiv.config_context(backend="torch", kernel="pure"):
        explained = kldiv.explain(data)
    assert_type(explained.kernel, str)
    kldiv.kl_divergence(distributions.Normal(0, 1), distributions.Gamma(2.0, 1.0))
    assert_type(
        kldiv.kl_divergence(
            distributions.Normal(0, 1), distributions.Normal(1, 2), method="monte_carlo"
        ),
        distributions.Estimate,
    )
    assert_type(fitting.rank(data).best.family, str)
    assert_type(streaming.compare(data, data).mean, float)
    metric = metrics.KLDivergence(form="probs")
    metric.update(data, data, where=data[..., 0] > 0)
    assert_type(metric.compute().standard_error, float)
    assert_type(divergences.KL(reverse=True).reverse, bool)
