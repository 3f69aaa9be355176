"""What is particular to the CUDA kernels beyond ``test_conformance.py``, on a GPU and without one.

That NVRTC compiles the sources as they are for GPUs is shown in ``test_cuda_sources.py``.
"""

from __future__ import annotations

import numpy as np
from kernels.conformance import each, formulas
from logit_families import assert_right
from reference import truth

from kldiv.formulas.divergences import JensenShannon
from kldiv.formulas.rows import RowLoss
from kldiv.kernels.cuda import row_loss

LAYOUTS = {
    "backwards": lambda a: a[::-1, :, ::-1],
    "eight axes": lambda a: (
        a[:, :4, :96].reshape(6, 2, 2, 2, 2, 2, 2, 6)[::5].swapaxes(1, 3).swapaxes(4, 6)
    ),
}
FLOAT32 = RowLoss("none", "float32", "float32", "float32")


def on_cuda(technology):
    return technology.name == "cuda"


def logits(*shape):
    random = np.random.default_rng(0)
    t = 3 * random.normal(size=shape)
    return (t + random.normal(size=shape)).astype("float32"), t.astype("float32")


@each("rows size", [(70, 20), (70, 1000)], only=on_cuda)
def test_more_rows_than_teams(technology, rows, size, monkeypatch):
    monkeypatch.setattr(row_loss, "MOST", 3)
    s, t = logits(rows, size)
    keep = np.arange(rows) % 5 != 3
    value, gradients = technology.run(FLOAT32, s, t, keep)
    found = (each[keep] for each in (value, *gradients))
    assert_right(np.flatnonzero(keep), list(found), truth(s[keep], t[keep]), "float32")
    assert not any(each[~keep].any() for each in (value, *gradients))


@each("layout", LAYOUTS, only=on_cuda)
def test_layouts_that_not_every_library_has(technology, layout):
    changed = LAYOUTS[layout]
    s, t = logits(6, 7, 130)
    value, gradients = technology.run(FLOAT32, s, t, changed=changed)
    s, t = (
        np.ascontiguousarray(changed(each)).reshape(-1, changed(each).shape[-1]) for each in (s, t)
    )
    found = value.ravel(), *(each.reshape(s.shape) for each in gradients)
    assert_right(range(len(s)), found, truth(s, t), "float32")


@each("beta", [None, 0.3], only=on_cuda)
def test_mixed_dtypes_are_rounded_once(technology, beta):
    s, t = logits(4, 100)
    s, t = s.astype("float16"), t.astype("float64")
    operation = RowLoss("none", "float64", "float64", "float64")
    if beta is not None:
        operation = RowLoss("none", "float64", "float64", "float64", JensenShannon(beta))
    value, gradients = technology.run(operation, s, t)
    wanted, slopes = formulas(operation, s.astype("float64"), t)
    np.testing.assert_allclose(value, wanted, rtol=2e-15)
    assert [each.dtype.name for each in gradients] == ["float16", "float64"]
    np.testing.assert_array_equal(gradients[0], slopes[0].astype("float16"))
    np.testing.assert_allclose(gradients[1], slopes[1], rtol=1e-13, atol=1e-15)
