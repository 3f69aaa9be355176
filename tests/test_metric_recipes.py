"""The classes that the page on metrics has for torchmetrics and Keras, with these packages."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import kldiv

PAGE = Path(__file__).parents[1] / "docs" / "howto" / "metrics.md"

pytestmark = pytest.mark.slow


def recipe(package):
    """Return the block of the page that imports a package."""
    blocks = re.findall(
        r"```{code-block} python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL
    )
    return next(block for block in blocks if f"import {package}" in block)


@pytest.fixture
def torchmetrics():
    return pytest.importorskip("torchmetrics")


@pytest.fixture
def keras():
    """The package is imported by the processes of the tests, each with its backend."""


def test_torchmetrics(torchmetrics, torch):
    names = {}
    exec(recipe("torchmetrics"), names)  # noqa: S102 - our own page
    metric, other = names["KLDivergence"](), names["KLDivergence"]()
    assert isinstance(metric, torchmetrics.Metric)
    student, teacher = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 30, 7)))
    for part in (slice(0, 4), slice(4, 19)):
        metric.update(student[part], teacher[part])
    other.update(student[19:], teacher[19:], where=torch.ones(11, dtype=torch.bool))
    metric.moments = metric.together(torch.stack([metric.moments, other.moments]))
    expected = kldiv.kl_div_with_logits(student, teacher)
    torch.testing.assert_close(metric.compute(), expected, rtol=1e-14, atol=0)
    forward = other(student, teacher)  # a batch by itself, beside the sum
    torch.testing.assert_close(forward, expected, rtol=1e-14, atol=0)
    metric.reset()
    assert metric.moments[0] == 0


KERAS = """
student, teacher, weight = keras.random.normal((3, 32, 9), seed=1)
weight = keras.ops.convert_to_numpy(keras.ops.abs(weight[:, 0]))
student, teacher = map(keras.ops.convert_to_numpy, (student, teacher))
inputs = keras.Input((9,))
model = keras.Model(inputs, keras.layers.Identity()(inputs))
model.compile(loss="mse", metrics=[KLDivergence()], weighted_metrics=[KLDivergence("weighted")])
found = model.evaluate(
    student, teacher, sample_weight=weight, batch_size=10, verbose=0, return_dict=True
)
again = model.evaluate(student[:7], teacher[:7], batch_size=4, verbose=0, return_dict=True)
print(*(float(each) for each in (found["kl_divergence"], found["weighted"], again["weighted"])))
from kldiv import kl_div_with_logits
rows = kl_div_with_logits(student.astype(float), teacher.astype(float), reduction="none")
print(rows.mean(), (weight * rows).sum() / weight.sum(), rows[:7].mean())
"""


@pytest.mark.parametrize("backend", ["numpy", "torch", "jax"])
def test_keras(keras, backend, tmp_path):
    if backend != "numpy":
        pytest.importorskip(backend)
    script = tmp_path / "recipe.py"
    script.write_text(recipe("keras") + KERAS, encoding="utf-8")
    environment = {**os.environ, "KERAS_BACKEND": backend, "KERAS_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, script], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found, expected = (line.split() for line in done.stdout.splitlines()[-2:])
    np.testing.assert_allclose(np.float64(found), np.float64(expected), rtol=1e-6)
