"""Passes over a segment of a row, a block at a time: weights, sums and gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from kldiv.kernels.cpu.code import AHEAD, DOUBLE, Value, at_least, at_most, select
from kldiv.kernels.cpu.divergences import Lane, exchanged
from kldiv.kernels.cpu.elementary import difference, eighth_difference, exp, two_difference
from kldiv.kernels.cpu.peaks import counter
from kldiv.kernels.cpu.row import ARRAYS, BLOCK, LEAN, LOGITS, RECORD, SEGMENT, WORDS
from kldiv.kernels.cpu.runs import PAD, Run
from kldiv.kernels.cpu.sums import STRIP, Total, block_sums, joined_halves, largest, split_in_halves

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kldiv.kernels.cpu.peaks import Scale
    from kldiv.kernels.cpu.row import Row


class Words(NamedTuple):
    """An eighth of a pivot in the dtype of the elements, of three numbers; or a pivot of one."""

    first: Value
    second: Any
    third: Any


class Segment:
    """A segment of a row: its passes."""

    def __init__(self, row: Row, segment: Value) -> None:
        self.row, self.code, self.real = row, row.code, row.real
        self.start = segment * SEGMENT
        self.n = at_most(row.frame["classes"] - self.start, SEGMENT)
        self.kept = row.kept + segment * row.kept_size
        self.records, self.first_sums = row.records(segment), row.sums(segment, 0)
        self.sources, self.direct, self.lent = [], [], None
        for index, name in enumerate(ARRAYS[: len(row.divergence.sides)]):
            copy = self._kept(self.code.whole(0), LOGITS + index)
            at, direct = row.place(name, self.start, copy)
            last = self._kept(self.n // self.real.lanes, LOGITS + index)
            self.sources.append(Run(self.code, self.real, at, self.n, last))
            self.direct.append(direct)
        self.count = self.sources[0].count
        if row.gradients and not row.divergence.paired:
            # Weights lie where their gradient is to be: of long rows the cache holds more.
            last = self._kept(self.n // self.real.lanes, 0)
            at, _ = row.place("gradient_t", self.start, self.kept)
            self.lent = Run(self.code, self.real, at, self.n, last)

    def read(self) -> None:
        """Copy the logits where they are not read in place, and their last vector."""
        for source, direct in zip(self.sources, self.direct, strict=True):
            with self.code.when(direct):
                source.fill(-float("inf"))  # classes that both mask

    def _block(self, begin: Value) -> tuple[Value, Value]:
        """Return the first class of a block, and how many it has."""
        first = begin * self.real.lanes
        return first, at_most(self.n - first, BLOCK * self.real.lanes)

    def _read_block(self, begin: Value) -> None:
        """Copy logits of a block."""
        first, n = self._block(begin)
        for name, source, direct in zip(ARRAYS, self.sources, self.direct, strict=False):
            with self.code.when(~direct):
                self.row.move(name, self.start + first, n, source.at + first * self.real.size)
                with self.code.when(n < BLOCK * self.real.lanes):
                    source.fill(-float("inf"))

    def _logits(self, k: Value) -> list[Value]:
        """Return the teacher's logits, and the student's."""
        return [source.load(k) for source in self.sources]

    def _low(self, k: Value) -> Value:
        return self.code.load(self.real.vector, self.row.low_at(), self.start + k * self.real.lanes)

    # ---- sums of weights -------------------------------------------------------------------------

    def weights(self) -> None:
        """Write the records of blocks: maxima, sums of weights and those beside the maxima."""
        code, row, vector = self.code, self.row, self.real.vector
        nothing, divergence, count = -float("inf"), row.divergence, len(self.sources)
        with code.loop(self.count, step=BLOCK) as begin:
            end = at_most(begin + BLOCK, self.count)
            self._read_block(begin)
            tops = [code.variable(code.constant(vector, nothing)) for _ in range(count)]
            ends = [code.variable(code.constant(vector, -nothing)) for _ in range(count)]
            with code.loop(end, begin) as k:
                for index, own in enumerate(self._logits(k)):
                    top, bottom = tops[index].get(), ends[index].get()
                    tops[index].set(select(own > top, own, top))
                    ends[index].set(select(own < bottom, own, bottom))
            place = self._record(begin)
            scales = []
            for index in range(count):
                top = largest(tops[index].get()).to(DOUBLE)
                code.store(place, top, 2 * index)
                code.store(place, code.real(0.0), 4 + index)
                scales.append(row.scale(top))
                if divergence.unbounded[index]:
                    lowest_of_other = -largest(-ends[1 - index].get())
                    with code.when(lowest_of_other == nothing):
                        code.store(place, self._lost(begin, end, index), 4 + index)
            self._weigh(begin, end, scales)
        if divergence.labelled:
            self._keep_label()

    def _weigh(self, begin: Value, end: Value, scales: Sequence[Scale]) -> None:
        """Keep the weights of a block, and write their sums."""
        code, row, place = self.code, self.row, self._record(begin)
        divergence = row.divergence
        weigh = [scale.weigher(row.vector, row.heat()) for scale in scales]
        bound = row.get("temperature") * row.own.gone
        count = counter(scales[0].top, bound, row.get("inverse"), row.vector)
        nothing = code.constant(self.real.vector, -float("inf"))
        has_mean = [row.gradients and divergence.has_mean(side) for side in divergence.sides]
        beside = {index: code.variable(nothing) for index, own in enumerate(has_mean) if own}
        peaks = [row.vector(scale.top) for scale in scales]

        def body(k: Value) -> list[Value]:
            # While there is enough to compute, the next block comes into the cache.
            for source in self.sources:
                source.fetch(k + BLOCK)
            logits = self._logits(k)
            for index, highest in beside.items():
                other, before = logits[1 - index], highest.get()
                found = (logits[index] == peaks[index]) & (other > before)
                highest.set(select(found, other, before))
            weights = [change(each) for change, each in zip(weigh, logits, strict=True)]
            if row.gradients or divergence.paired:
                for index, weight in enumerate(weights):
                    code.store(self._kept(k, index), weight)
            sums = weights if divergence.paired else []
            if not divergence.labelled:
                return split_in_halves(sums)
            ties, *below = count(logits[0], weights[0])
            return [*split_in_halves([*sums, *below]), ties]

        places = [1, 3] * divergence.paired + [11, 12] * divergence.labelled
        number = len(places) * (1 if self.real.single else 2)
        ends = begin, end
        parts = block_sums(code, self.real, ends, STRIP, body, number + divergence.labelled)
        if divergence.labelled:
            code.store(place, parts.pop(), 10)
        for index, whole in zip(places, joined_halves(parts, self.real), strict=True):
            code.store(place, whole, index)
        for index, highest in beside.items():
            code.store(place, largest(highest.get()).to(DOUBLE), 6 + index)

    def _label(self) -> tuple[Value, Value, Value]:
        """Return the place of the row's label, whether that is in the segment, and its logit."""
        label = self.row.label()[0] - self.start
        here = (label >= 0) & (label < self.n)
        place = select(here, label, 0)
        return place, here, self.code.load(self.real.scalar, self.sources[0].at, place).to(DOUBLE)

    def _keep_label(self) -> None:
        """Keep the label's logit as the first number of the segment."""
        _, here, logit = self._label()
        with self.code.when(here):
            self.code.store(self.first_sums, logit)

    def _record(self, begin: Value) -> Value:
        return self.records + (begin // BLOCK) * (8 * RECORD)

    def _kept(self, k: Value, index: int) -> Value:
        """Return the address of a vector of the numbers that are kept."""
        if self.lent and index == 0:
            return self.lent.place(k)
        return self.kept + (self.row.frame["width"] * index + k * self.real.lanes) * self.real.size

    def _factor(self, record: Value, index: int, scale: Value) -> Value:
        """Return the factor that takes a block's weights, lowered by their lift, to probabilities.

        Without that the factor of a block far below the largest class would underflow before p.
        """
        lift = 2.0**self.row.own.lift
        return self.row.vector(scale * lift * self.code.load(DOUBLE, record, 8 + index))

    def _share(self, k: Value, index: int, factor: Value) -> Value:
        """Return the probabilities of a vector of classes."""
        weights = self.code.load(self.real.vector, self._kept(k, index))
        return weights * 2.0**-self.row.own.lift * factor

    def _lost(self, begin: Value, end: Value, index: int) -> Value:
        """Return 1 where a class has p > 0 = q, by ``index`` 1 where one has p = 0 < q; else 0."""
        flag = self.code.variable(self.code.constant(self.real.vector, 0.0))
        with self.code.loop(end, begin) as k:
            logits = self._logits(k)
            own, other = logits[index], logits[1 - index]
            found = (other == -float("inf")) & (own > -float("inf"))
            flag.set(select(found, 1.0, flag.get()))
        return largest(flag.get()).to(DOUBLE)

    # ---- sums ------------------------------------------------------------------------------------

    def _sums(
        self, body: Callable[[Value], Callable[[Value], list[Value]]], count: int, place: Value
    ) -> None:
        """Write the sums, for each block, of the values that ``body`` returns for its vectors."""
        code = self.code
        totals = [Total(code) for _ in range(count)]
        with code.loop(self.count, step=BLOCK) as begin:
            end = at_most(begin + BLOCK, self.count)
            found = block_sums(code, self.real, (begin, end), STRIP, body(begin), count)
            for total, part in zip(totals, found, strict=True):
                total.add(part)
        for index, total in enumerate(totals):
            code.store(place, total.get(), index)

    # ---- classes ---------------------------------------------------------------------------------

    def _words(self, name: str) -> Words:
        """Return a pivot or an anchor."""
        return Words(*(self.row.vector(self.row.get(f"{name}_words{word}")) for word in WORDS))

    def _lanes(self, pivot: Words, anchor: Words | None = None, *, exact: bool) -> Any:
        """Return a function of a block that returns one of a vector of classes.

        ``exact`` is whether q sums to 1 as p does; else it is p e⁻ˣ, about the pivot as it is.
        """
        row = self.row
        scales = [row.get(f"{side}_scale") for side in "ts"]
        if not exact:
            away = difference(row.words("pivot"), row.words("ratio"))
            scales[1] = scales[1] * exp(away * row.of_eighths())
        plain = pivot.second is None
        inverse = row.vector(row.get("inverse") if plain else row.of_eighths())
        unit = 1.0 if plain else 0.125

        def about(d: Value, d_low: Value, c: Words) -> Value:
            if c.second is None:
                x = (d - c.first) + d_low
            else:
                high, low = two_difference(d_low, c.second)
                x = ((d - c.first) + high) + (low - c.third)
            return x

        def block(begin: Value) -> Callable[[Value], Lane]:
            record = self._record(begin)
            factors = [self._factor(record, index, scale) for index, scale in enumerate(scales)]

            def lane(k: Value) -> Lane:
                t, s = self._logits(k)
                if plain:
                    d, d_low = two_difference(at_least(t, -row.most), at_least(s, -row.most))
                else:
                    d, d_low = eighth_difference(t, s, row.least)
                if row.wide:
                    d_low = d_low + self._low(k) * unit
                p, q = (self._share(k, index, factor) for index, factor in enumerate(factors))
                far = about(d, d_low, pivot)
                step = far if anchor is None else about(d, d_low, anchor)
                # Where p is 0 a product with ∞ would be NaN; NaN is kept.
                x, about_anchor = (
                    at_most(at_least(each * inverse, -row.most), row.most) for each in (far, step)
                )
                return Lane(s, t, p, q, x, about_anchor, far, step, inverse, unit)

            return lane

        return block

    def divergence(self, place: Value, *, plain: bool) -> None:
        """Write y, Σ p |e⁻ˣ − 1| and the divergence."""
        words = self._words("pivot")
        whole = Words(words.first * 8.0, None, None)
        block = self._lanes(whole if plain else words, exact=False)
        divergence = self.row.divergence
        terms, smooth = divergence.terms(self.row), divergence.smooth
        slopes = self.row.slopes() if self.row.leans else None

        def body(begin: Value) -> Callable[[Value], list[Value]]:
            lane = block(begin)

            def of(k: Value) -> list[Value]:
                seen = lane(k)
                fall, term, *risen = terms(seen)
                if self.row.keeps:
                    self.code.store(self._kept(k, 2), fall)
                sums = [fall, abs(fall), term]
                if self.row.along:
                    own, size, *_ = divergence.moments(exchanged(seen), risen[0])
                    self.code.store(self._kept(k, 3), own)
                    sums += [own, size]
                if divergence.logarithmic:
                    sums.append(risen[-1])
                if slopes:
                    sums.append(seen.p * slopes.step(seen.raw_t))
                return sums if smooth else [*sums, select(seen.x > 0.0, seen.p, 0.0)]

            return of

        more = divergence.logarithmic + self.row.leans
        self._sums(body, 3 + (not smooth) + 2 * self.row.along + more, place)

    def _rise(self, side: str) -> Any:
        """Return a function of a block that returns one of a class and the rise from the anchor."""
        words = (self._words("pivot"), self._words(f"anchor_{side}"))
        block = self._lanes(*words, exact=True)
        rise = self.row.divergence.rise(self.row, side)

        def of(begin: Value) -> Callable[[Value], tuple[Lane, Value]]:
            lane = block(begin)

            def vector(k: Value) -> tuple[Lane, Value]:
                seen = lane(k) if side == "t" else exchanged(lane(k))
                return seen, rise(seen)

            return vector

        return of

    def mean(self, place: Value, side: str) -> None:
        """Write the sums of the divergence's moments."""
        divergence, block = self.row.divergence, self._rise(side)

        def body(begin: Value) -> Callable[[Value], list[Value]]:
            vector = block(begin)

            def of(k: Value) -> list[Value]:
                moments = divergence.moments(*vector(k))
                if divergence.along:
                    self.code.store(self._kept(k, 2 + "ts".index(side)), moments[0])
                return moments

            return of

        self._sums(body, 3 + divergence.squares, place)

    def lean(self, place: Value) -> None:
        """Write Σ p (t − anchor)/T, which only the entropy's gradient takes."""
        slopes, place = self.row.slopes(), place + 8 * LEAN

        def body(begin: Value) -> Callable[[Value], list[Value]]:
            factor = self._factor(self._record(begin), 0, self.row.get("t_scale"))
            return lambda k: [self._share(k, 0, factor) * slopes.step(self._logits(k)[0])]

        self.code.store(place, self.code.real(0.0))
        with self.code.when(self.row.factors()[1] != 0.0):
            self._sums(body, 1, place)

    def gradient(self, side: str) -> None:
        """Write a gradient."""
        code, row = self.code, self.row
        factors = row.factors()
        slope: Any = self._slope(side, factors[-1]) if row.divergence.paired else self._shares
        labelled = side == "t" and row.divergence.labelled
        change = self._with_labels(factors[:2]) if labelled else None
        with code.loop(self.count, step=BLOCK) as begin:
            of_block = slope(begin)
            start, n = self._block(begin)
            out = row.written(f"gradient_{side}", self.start + start, n)
            with out as written, code.loop(written.count) as place:
                written.fetch(place + AHEAD, write=True)
                p, found = of_block(begin + place)
                found = change(begin + place, p, found) if change else found
                written.store(place, found)
        if labelled:
            self._slope_of_label(factors[:2])

    def _slope(self, side: str, factor: Value) -> Callable[[Value], Callable[[Value], Any]]:
        """Return a function of a block that returns one of p and the divergence's gradient."""
        code, row, real = self.code, self.row, self.real
        scale = row.vector(factor)
        slope, has_mean = row.divergence.slope(row, side), row.divergence.has_mean(side)
        along, index = row.divergence.along, "ts".index(side)
        rising: Any = self._rise(side) if has_mean and not along else None
        if has_mean:
            value, mean = row.get("value"), row.get(f"mean_{side}")
            # Of an infinite divergence the kept parts are NaN, but for classes that take no part;
            # of one beyond the largest number no gradient is known.
            beyond = select(row.get("lost") > 0.0, code.real(0.0), float("nan"))
            mean = select(abs(mean) < float("inf"), mean, beyond)
            mean = row.vector(select(value == value, mean, value))  # noqa: PLR0124 - asks for NaN
        else:
            # q − p, of p (e⁻ˣ − 1) about the pivot before it was moved by log(1 + y).
            share = 1.0 / (row.get("y") + 1.0)
            kept, moved = row.vector(share), row.vector(-row.get("y") * share)

        def block(begin: Value) -> Callable[[Value], tuple[Value, Value]]:
            of_block, which = rising and rising(begin), index if has_mean else 0
            own = self._factor(self._record(begin), which, row.get("ts"[which] + "_scale"))

            def of(k: Value) -> tuple[Value, Value]:
                if of_block:
                    lane, u = of_block(k)
                    p, found = lane.p, slope(lane, u - mean)
                else:
                    p = self._share(k, which, own)
                    part = code.load(real.vector, self._kept(k, 2 + index * has_mean))
                    found = part - p * mean if has_mean else part * kept + p * moved
                found = found * scale
                if row.divergence.labelled:
                    # Of a divergence that does not count it may be NaN.
                    found = select(scale == 0.0, 0.0, found)
                return p, found

            return of

        return block

    def _shares(self, begin: Value) -> Callable[[Value], tuple[Value, None]]:
        """Return a function of a block's vectors: p, without a divergence's gradient."""
        own = self._factor(self._record(begin), 0, self.row.get("t_scale"))
        return lambda k: (self._share(k, 0, own), None)

    def _with_labels(
        self, factors: Sequence[Value]
    ) -> Callable[[Value, Value, Value | None], Value]:
        """Return a function that returns the gradients of −log p and the entropy.

        A divergence's is added; of the vector that has the label it is kept too.
        """
        code, row = self.code, self.row
        both = [row.vector(factor) for factor in factors]
        slopes, lean = row.slopes(), row.vector(row.lean())
        vector_of_label = self._label()[0] // self.real.lanes
        kept, other = (row.pad + place * PAD for place in (1, 2))

        def change(k: Value, p: Value, found: Value | None) -> Value:
            slope = slopes.slope(p, self._logits(k)[0], lean, both)
            if found is None:
                return slope
            code.store(select(k == vector_of_label, kept, other), found)
            return found + slope

        return change

    def _slope_of_label(self, factors: Sequence[Value]) -> None:
        """Write the gradient in the label's logit."""
        code, row, scalar = self.code, self.row, self.real.scalar
        place, here, logit = self._label()
        with code.when(here):
            slope = row.peak().slope_of_label(
                logit, row.peak().anchor(self.real), row.lean(), factors
            )
            if row.divergence.paired:
                divergence = code.load(scalar, row.pad + PAD, place % self.real.lanes)
                slope = slope + divergence.to(DOUBLE)
            out, direct = row.place("gradient_t", self.start + place, row.buffer)
            code.store(out, slope.to(scalar))
            with code.when(~direct):
                row.move("gradient_t", self.start + place, code.whole(1), out)
