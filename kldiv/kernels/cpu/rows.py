"""Rows of logits: how a divergence and its gradients are made of a few passes over a row.

A row is a few segments, each read as blocks that the first-level cache holds. The passes, stages of
a call, are

0. maxima of a block, then sums of weights: the pivot T·log(Σe^{t/T}/Σe^{s/T}) follows from these;
1. the divergence about that pivot, and y = Σ p (e⁻ˣ − 1), by which the pivot is not exact;
2. and 3. the same about a better pivot, only where y is not small beside Σ p |e⁻ˣ − 1|;
4. the mean of u, for the gradient in the teacher, about the class where p is largest;
5. the same about the mean of x, where u may be nearly constant; 6. again about the former, where
   that was nearer; 7. to 9. likewise the mean of v for the student;
10. gradients.

Labels and entropies alone have one side: maxima and weights, the sum that the entropy's gradient
takes, and the gradient are stages 0, 1 and 2.

Nothing is guessed: whatever the pivot, y is measured about it. Elements are in the dtype of the
logits, their sums, and all that is made of these, in float64. Differences of logits, pivots and
anchors with them, are in eighths, and over T/8: so none overflows, −∞ is far below the lowest, and
none is divided by T before it is multiplied by p. Where the first pass cannot overflow anyway it
does without eighths.
A pivot is the difference of the largest logits and what it differs from that, in two words each:
however far from 0 logits are, a class of either side is told from the others of it.
Formulas and words are those of `kldiv.formulas.state` and `kldiv.formulas.logits`. Threads share
rows, or the segments of a few long ones, one stage after the other; results do not depend on that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kldiv.kernels.cpu.code import I8, Code, Value, at_most, select
from kldiv.kernels.cpu.conclusions import better_pivot, find_mean, find_scales, first_anchor
from kldiv.kernels.cpu.passes import Segment
from kldiv.kernels.cpu.row import BLOCK, GRADIENTS, PIVOT, SEGMENT, STUDENT, TEACHER, Row

if TYPE_CHECKING:
    from kldiv.kernels.cpu.code import Real
    from kldiv.kernels.cpu.divergences import Divergence


class Rows:
    """The writer of a kernel: a dtype, a divergence, with its gradients or without.

    It takes a frame, room, the first and last unit, and such stages.
    """

    def __init__(
        self, code: Code, real: Real, divergence: Divergence, *, gradients: bool, wide: bool = False
    ) -> None:
        self.code, self.divergence, self.gradients = code, divergence, gradients
        *_, first, last, self.first_stage, self.last_stage = code.arguments
        self.row = Row(code, real, divergence, gradients=gradients, wide=wide)
        self.frame = self.row.frame
        # Without a second side no stage is left between the scales, a sum and the gradient.
        ends = (TEACHER, GRADIENTS) if divergence.paired else (PIVOT, PIVOT + 1)
        self.final = ends[gradients]
        with code.loop(last, first) as unit:
            self._unit(unit)

    def _unit(self, unit: Value) -> None:
        code, frame, row = self.code, self.frame, self.row
        segments, shared = frame["segments"], frame["shared"] != 0
        row.begin(select(shared, unit // segments, unit), segments, shared=shared)
        begin = select(shared, unit % segments, 0)
        end = select(shared, begin + 1, segments)
        kept = code.load_or(I8, frame["keep"], row.index, 1)
        with code.either(kept != 0) as (then, otherwise):
            with then, code.loop(at_most(self.last_stage, self.final) + 1) as stage:
                self._prepare(stage)
                with code.when(stage >= self.first_stage), code.loop(end, begin) as segment:
                    self._stage(stage, segment)
            with otherwise:
                for index in range(row.results):
                    row.store(code.real(0.0), index)
                if self.gradients:
                    with code.when(self.last_stage == GRADIENTS), code.loop(end, begin) as segment:
                        self._zeros(segment)

    def _prepare(self, stage: Value) -> None:
        """Draw the conclusions from the stages before."""
        code, row, divergence = self.code, self.row, self.divergence
        with code.when(stage == 0):
            row.set(settled=0.0, again=1.0)
        with code.when(stage == PIVOT):
            find_scales(row)
        if not divergence.paired:
            return
        with code.when((stage > PIVOT) & (stage <= TEACHER) & ~row.flag("settled")):
            better_pivot(row, stage)
        for base, side in ((TEACHER, "t"), (STUDENT, "s")) if self.gradients else ():
            if divergence.has_mean(side):
                with code.when((stage > base) & (stage <= base + 3)):
                    find_mean(row, stage, side)
                with code.when(stage == base):
                    first_anchor(row, side)

    def _stage(self, stage: Value, segment: Value) -> None:
        code, row, divergence = self.code, self.row, self.divergence
        passes = Segment(row, segment)
        place = row.sums(segment, stage)
        with code.when(stage == 0):
            passes.read()
            passes.weights()
        if divergence.paired:
            self._pair(passes, stage, place)
        elif self.gradients:
            with code.when(stage == PIVOT):
                passes.lean(place)
        if self.gradients:
            with code.when(stage == self.final):
                for side in divergence.sides:
                    with code.when(self.frame[f"wants_{side}"] != 0):
                        self._gradient(passes, segment, side)

    def _pair(self, passes: Segment, stage: Value, place: Value) -> None:
        """Do the passes of a divergence before its gradients."""
        code, row, divergence = self.code, self.row, self.divergence
        with code.when((stage >= PIVOT) & (stage < TEACHER) & ~row.flag("settled")):
            if divergence.exact:
                with code.either(row.flag("plain")) as (then, otherwise):
                    with then:
                        passes.divergence(place, plain=True)
                    with otherwise:
                        passes.divergence(place, plain=False)
            else:
                passes.divergence(place, plain=False)
        for base, side in ((TEACHER, "t"), (STUDENT, "s")) if self.gradients else ():
            if divergence.has_mean(side):
                wanted = self.frame[f"wants_{side}"] != 0
                now = (stage >= base) & (stage < base + 3) & row.flag("again")
                with code.when(now & wanted):
                    passes.mean(place, side)

    def _gradient(self, passes: Segment, segment: Value, side: str) -> None:
        """Write a gradient; of labels and the entropy zeros where neither counts."""
        if self.divergence.paired:
            passes.gradient(side)
            return
        of_label, of_entropy = self.row.factors()
        with self.code.either((of_label != 0.0) | (of_entropy != 0.0)) as (then, otherwise):
            with then:
                passes.gradient(side)
            with otherwise:
                self._zeros(segment)

    def _zeros(self, segment: Value) -> None:
        """Write zeros: the gradients of a row that a mask drops."""
        code, row, size = self.code, self.row, BLOCK * self.row.real.lanes
        first = segment * SEGMENT
        end = at_most(first + SEGMENT, self.frame["classes"])
        for side in self.divergence.sides:
            with code.when(self.frame[f"wants_{side}"] != 0), code.loop(end, first, size) as start:
                n = at_most(end - start, size)
                with row.written(f"gradient_{side}", start, n) as run, code.loop(run.count) as k:
                    run.store(k, code.constant(row.real.vector, 0.0))
