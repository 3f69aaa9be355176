"""docs/architecture.md: each "how to add" is a change that works on a copy of the package."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from processes import python

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "architecture.md"
GIT = shutil.which("git")
pytestmark = pytest.mark.skipif(GIT is None, reason="git, which applies changes, is not installed")
PROGRAMS = {
    "A divergence of logits": """
import numpy as np
from kldiv.divergences import Triangular
from functools import partial
s, t = np.log([0.3, 0.7]), np.log([0.5, 0.5])
loss = partial(kldiv.f_div_with_logits, divergence=Triangular())
value, (of_s, of_t) = kldiv.value_and_grad(loss, (0, 1))(s, t)
assert abs(float(value) - (0.04 / 0.8 + 0.04 / 1.2)) < 1e-15
d = np.array([-0.2 / 0.8, 0.2 / 1.2])  # (q − p)/(p + q)
for found, own, slope in ((of_s, np.array([0.3, 0.7]), 2 * d - d * d), (of_t, 0.5, -2 * d - d * d)):
    assert abs(found - own * (slope - (own * slope).sum())).max() < 1e-15
""",
    "A library": """
import pytest
strict = pytest.importorskip("array_api_strict")
x = strict.asarray([-1.0, -0.5])
assert kldiv.backends.get("strict").status().usable
assert kldiv.explain(x, x).backend == "strict"
assert abs(float(kldiv.kl_div(x, strict.exp(x)))) == 0
""",
    "A technology of kernels": """
import numpy as np
from kldiv.kernels.loops import LOOPS
ran, compute = [], LOOPS.compute
LOOPS.compute = lambda work: (ran.append(work), compute(work))[1]
x, y = np.log([0.3, 0.7]), np.array([0.4, 0.6])
with kldiv.config_context(kernel="loops"):
    value, mean = kldiv.kl_div(x, y, reduction="sum"), kldiv.kl_div(x, y)
assert len(ran) == 1, "the mean has no loop"
assert abs(float(value) - 0.0225824210843575) < 1e-16
assert abs(float(mean) - value / 2) < 1e-16
""",
    "A file format": """
from pathlib import Path
from kldiv.readers import read
Path("table.toml").write_text("p = [0.25, 0.75]")
assert read("table.toml").array.tolist() == [0.25, 0.75]
Path("table.toml").write_text("p = [0.25")
try:
    read("table.toml")
except kldiv.errors.InputError as error:
    assert "TOML" in str(error)
else:
    raise AssertionError("damage was not seen")
""",
    "A pair of distributions": """
import math
from kldiv.distributions import Bernoulli, Geometric
value = kldiv.kl_divergence(Bernoulli(0.3), Geometric(0.4))
assert abs(float(value) - (0.3 * math.log(0.3 / 0.24) + 0.7 * math.log(0.7 / 0.4))) < 1e-15
""",
}


def changes():
    """Return the change under each heading of "How to add"."""
    text = PAGE.read_text(encoding="utf-8").partition("## How to add")[2]
    parts = re.findall(r"^### (.*?)\n.*?^```diff\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return dict(parts)


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """Return a folder with a copy of the package to which all changes are applied."""
    folder = tmp_path_factory.mktemp("package")
    shutil.copytree(ROOT / "kldiv", folder / "kldiv", ignore=shutil.ignore_patterns("__pycache__"))
    for heading, change in changes().items():
        applied = subprocess.run(
            [GIT, "apply", "-p1", "-"],
            cwd=folder,
            input=change,
            capture_output=True,
            encoding="utf-8",
            check=False,
        )
        assert applied.returncode == 0, f"{heading}: {applied.stderr}"
    return folder


def test_every_change_has_its_program():
    assert list(changes()) == list(PROGRAMS)


@pytest.mark.parametrize("heading", PROGRAMS)
def test_a_change_does_what_it_is_for(package, tmp_path, heading):
    start = f"import sys; sys.path.insert(0, {str(package)!r})\nimport kldiv, kldiv.errors\n"
    start += f"assert kldiv.__file__.startswith({str(package)!r}), kldiv.__file__\n"
    python("-c", start + PROGRAMS[heading], cwd=tmp_path)
