"""
Comparisons of arrays larger than memory, in parts, which can be stopped and go on.

`compare` takes NumPy arrays, memory maps, files and folders of shards.  It cuts them into steps
(`blocks`), reads and reduces each step (`work`, by `scales` and `logits`) on threads or a cluster
(`runners`), adds the steps up in their order (`totals`, of `columns`, `rows` and `seen`), and makes
the result of the sums (`conclude`).  All sums have the order of the steps, so a run that goes on
from its state (`resume`) gives the same bits.

`pairwise` compares all distributions in some files with each other (`pairs`).

`TeacherWriter` and `open_teacher` keep sparse teachers on disk (`teachers`).
"""

from __future__ import annotations

from kldiv.streaming.comparison import Interrupted, compare
from kldiv.streaming.pairs import Pairs, pairwise
from kldiv.streaming.results import Comparison, Contribution, Row, Side, Summary, Zeros
from kldiv.streaming.run import Run
from kldiv.streaming.teachers import StoredTeacher, TeacherWriter, open_teacher

__all__ = [
    "Comparison",
    "Contribution",
    "Interrupted",
    "Pairs",
    "Row",
    "Run",
    "Side",
    "StoredTeacher",
    "Summary",
    "TeacherWriter",
    "Zeros",
    "compare",
    "open_teacher",
    "pairwise",
]
