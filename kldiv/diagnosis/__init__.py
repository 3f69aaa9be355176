"""Looking at the values of an input and a target, to name the common mistakes.

No loss of this package looks at values; `diagnose` does nothing else, and so it is eager.  It makes
two passes: a `Scan` of each array alone finds its plausible content, and a `Pair` then compares
the two in the light of that.  Both go block by block, in float64 on the host, so that a large array
is never copied as a whole, and one on a GPU or in a Dask graph takes no more memory than a block.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING

from kldiv._arguments import check_axis
from kldiv._call import resolve_same_shape
from kldiv.diagnosis.forms import find_forms, swapped
from kldiv.diagnosis.pair import Pair
from kldiv.diagnosis.report import SEVERITIES, Diagnosis, Finding
from kldiv.diagnosis.scan import Scan
from kldiv.diagnosis.sparse import diagnose_sparse
from kldiv.sparse_losses import SparseTeacher

if TYPE_CHECKING:
    from kldiv._types import Array

__all__ = ["Diagnosis", "Finding", "diagnose"]


def diagnose(
    input: Array, target: Array | SparseTeacher, *, axis: int = -1, log_target: bool = False
) -> Diagnosis:
    """
    Report problems in the arguments of a call of `kl_div`.

    It names the common mistakes: a log that is missing or one too many, logits, a softmax over the
    wrong axis, swapped arguments, zeros in Q where P has mass, values clipped at a tiny floor, NaN,
    rows that do not sum to 1, and which reduction gives the divergence.  It looks at the values, so
    it takes time and works on concrete arrays only, not inside ``jax.jit`` or ``torch.compile``.

    Parameters
    ----------
    input : array
        The input of `kl_div`: log Q.
    target : array or SparseTeacher
        The target of `kl_div`: P, or log P with ``log_target=True``. Beside a
        `kldiv.SparseTeacher` the input is logits, and indices and masses are looked at, for
        `topk_kl_div_with_logits`.
    axis : int, default -1
        The axis that the classes lie on.
    log_target : bool, default False
        The same option of the call of `kl_div`.

    Returns
    -------
    Diagnosis
        The findings, and the plausible content of both arrays.  It is true where something looks
        wrong, prints as a report, and ``to_dict()`` is ready for JSON.

    Raises
    ------
    LibraryError
        Not arrays of one supported library, or traced arrays, which have no values.
    DTypeError
        Not real floating-point arrays.
    ShapeError
        The shapes differ, or there is no such axis.
    OptionError
        The axis is not an integer.

    Examples
    --------
    >>> import numpy as np
    >>> import kldiv
    >>> p = np.asarray([[0.36, 0.48, 0.16]])
    >>> q = np.asarray([[0.25, 0.25, 0.5]])
    >>> report = kldiv.diagnose(q, p)
    >>> bool(report)
    True
    >>> print(report.findings[0])
    error: probabilities-as-input
      input holds probabilities: its rows sum to 1 (from 0.25 to 0.5), but kl_div takes
      log Q
      mend: pass log_softmax of the logits, or log(input)
    >>> bool(kldiv.diagnose(np.log(q), p))
    False
    """
    if isinstance(target, SparseTeacher):
        return diagnose_sparse(input, target, _check_axis(axis, input.shape))
    resolve_same_shape(input, target)  # the checks of kl_div, and its errors
    axis = _check_axis(axis, input.shape)
    x, t = Scan("input", input, axis), Scan("target", target, axis)
    if x.size == 0:
        text = f"input and target are empty, shape {x.shape}: sum is 0, mean and batchmean are NaN"
        note = Finding("empty", "note", text, "leave empty batches out, or use reduction='sum'")
        return Diagnosis((note,), "empty", "empty")
    findings = [*x.findings(), *t.findings(), *find_forms(x, t, log_target=log_target)]
    findings += Pair(x, t, swapped=swapped(x, t, log_target=log_target)).findings()
    findings.sort(key=lambda finding: SEVERITIES.index(finding.severity))
    return Diagnosis(tuple(findings), str(x.reading), str(t.reading))


# Values cannot be seen while torch.compile traces: `Scan.fetch` raises then.  Under fullgraph=True
# torch gives up earlier, and says so in the words of this mark (torch's own, set here by name, as
# torch may not be there).
vars(diagnose).update(
    _torchdynamo_disable=True,
    _torchdynamo_disable_msg="kldiv.diagnose looks at values; call it outside torch.compile",
)


def _check_axis(axis: int, shape: tuple[int, ...]) -> int:
    own = shape or (1,)  # a number counts as one class
    check_axis(axis, own, lambda: f"shape {tuple(shape)}")
    return operator.index(axis) % len(own)
