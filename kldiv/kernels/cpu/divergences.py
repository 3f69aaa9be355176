"""Divergences class by class, given p, q and x = log(p/q): terms, and the functions of gradients.

Formulas and words are those of `kldiv.formulas.logits`. A class is seen from the side whose
gradient it is: p is then the own probability, and the other's is q.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple, Protocol

from kldiv.formulas.numbers import HALF_NEAR, LN2
from kldiv.kernels.cpu.code import at_least, at_most, polynomial, select
from kldiv.kernels.cpu.elementary import (
    NEAR,
    artanh_rest,
    exp,
    format_of,
    gap_near,
    joined_log,
    log,
    log1p_near,
    log_normal,
    phi_near,
    phi_ratio,
    power,
    power_of,
    shift_of,
    split_log,
    split_power,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from kldiv.kernels.cpu.code import Value
    from kldiv.kernels.cpu.elementary import Heat

    Change = Callable[[Value, Value], Value]


class Rows(Protocol):
    """The part of a row that a divergence reads: see `kldiv.kernels.cpu.row`."""

    code: Any
    own: Any

    def get(self, name: str) -> Value: ...

    def words(self, name: str) -> tuple[Value, Value]: ...

    def number(self, index: int) -> Value: ...

    def vector(self, value: Value) -> Value: ...

    def heat(self) -> Heat: ...


class Lane(NamedTuple):
    """A vector of classes."""

    raw_s: Value
    raw_t: Value
    p: Value
    q: Value
    x: Value
    """log(p/q), about the pivot."""
    step: Value
    """x about the anchor; about the pivot where there is none."""
    far: Value
    """x before it was multiplied by ``inverse``, which may overflow."""
    rise: Value
    """The same of ``step``."""
    inverse: Value
    unit: float
    """That of ``far``, of which ``inverse`` is the inverse times the temperature's."""

    def times_x(self, p: Value) -> Value:
        """Return the product p x, or q x, which is finite where x is not."""
        # p in that unit too: of eighths the product of a small one does not underflow sooner.
        return (p / self.unit) * self.far * (self.inverse * self.unit)


DIVERGENCES: Final[dict[str, type[Divergence]]] = {}
"""Those that kernels are written from, by their names."""


class Divergence:
    """The parts of a divergence that a kernel is written from."""

    def __init_subclass__(cls) -> None:
        DIVERGENCES[cls.name] = cls

    name: ClassVar[str]
    exact: ClassVar[bool] = False
    """Whether the sum of terms about any pivot, and y, tell the divergence exactly."""
    unbounded: ClassVar[tuple[bool, bool]] = (False, False)
    """Whether it is +∞ where a class has p > 0 = q, and where one has p = 0 < q."""
    along: ClassVar[bool] = False
    """Whether terms come with the student's rise about p = q, and a gradient is p·u less p times
    the mean, which the pass for the mean keeps."""
    reach: ClassVar[float] = 100.0
    """|log(p/q)| up to which a class counts in the mean of that, an anchor."""
    linear: ClassVar[bool] = False
    """Whether u and v are log(p/q) and log(q/p); the rise is then T of these, or an eighth."""
    squares: ClassVar[bool] = False
    """Whether moments have own·u², by which the mean's loss is known."""
    logarithmic: ClassVar[bool] = False
    """Whether terms come last with p^α q^κ, of whose sum the divergence is the logarithm."""
    labelled: ClassVar[bool] = False
    """Whether −log p of a label and the entropy of the teacher come along."""
    sides: ClassVar[str] = "ts"
    """The sides that are read."""
    smooth: ClassVar[bool] = True
    """Whether terms have no slope at p = q, so that u has an anchor, and a pivot need not be so
    exact."""

    @property
    def paired(self) -> bool:
        """Whether there is a divergence; else labels and the entropy are all."""
        return len(self.sides) == 2

    def terms(self, rows: Rows) -> Callable[[Lane], tuple[Value, ...]]:
        """Return a function that returns p (e⁻ˣ − 1) and a class's share of the divergence.

        Where ``along``, and the student's ``rise`` about p = q, which costs little beside these.
        """
        raise NotImplementedError

    def value(self, total: Value, y: Value) -> Value:
        """Return the divergence of a row, given the sum of the terms."""
        return total

    def counted(self, rows: Rows, index: int, flag: Value) -> Value:
        """Return the flag of a class that only one side has, 0 where that does not matter."""
        return flag

    def has_mean(self, side: str) -> bool:
        """Return whether the gradient of a side takes the mean of u, or v; else it is q − p."""
        return True

    def rise(self, rows: Rows, side: str) -> Callable[[Lane], Value]:
        """Return a function that returns u less its value at the anchor; v of the student."""
        raise NotImplementedError

    def moments(self, lane: Lane, rise: Value) -> list[Value]:
        """Return own·u, its size and own·x of a class, whose sums give the mean and the anchor."""
        x = rise if self.linear else at_most(at_least(lane.x, -self.reach), self.reach)
        return [lane.p * rise, abs(lane.p * rise), lane.p * x]

    def slope(self, rows: Rows, side: str) -> Callable[[Lane, Any], Value]:
        """Return a function that returns T times a gradient, given u less its mean."""
        return lambda lane, rise: lane.p * rise


def falling(lane: Lane) -> Value:
    """Return q − p, by p·(e⁻ˣ − 1) where they are close."""
    return select(abs(lane.x) < NEAR, lane.p * (phi_near(lane.x) - lane.x), lane.q - lane.p)


class Jeffreys(Divergence):
    """w·KL(P‖Q) + r·KL(Q‖P)."""

    name = "Jeffreys"
    unbounded = (True, True)
    linear = True

    def terms(self, rows: Rows) -> Callable[[Lane], tuple[Value, ...]]:
        w, r = (rows.vector(rows.number(index)) for index in range(2))

        def of(lane: Lane) -> tuple[Value, ...]:
            fall, forward = _forward(lane)
            near = abs(lane.x) < NEAR
            back = select(
                near, lane.q * phi_near(-lane.x), (lane.p - lane.q) - lane.times_x(lane.q)
            )
            return fall, _weighed(w, forward) + _weighed(r, back)

        return of

    def counted(self, rows: Rows, index: int, flag: Value) -> Value:
        return select(rows.number(index) == 0.0, 0.0, flag)

    def rise(self, rows: Rows, side: str) -> Callable[[Lane], Value]:
        return lambda lane: lane.rise

    def slope(self, rows: Rows, side: str) -> Callable[[Lane, Any], Value]:
        first, second = (rows.vector(rows.number(index)) for index in range(2))
        own_weight, other_weight = (first, second) if side == "t" else (second, first)
        straight = self._straight(rows, side)
        return lambda lane, rise: (
            _weighed(own_weight, straight(lane, rise)) - other_weight * falling(lane)
        )

    def _straight(self, rows: Rows, side: str) -> Callable[[Lane, Any], Value]:
        """Return a function that returns own·(x − its mean): NaN where that is infinite."""
        value = rows.get("value")
        infinite = rows.get("lost" if side == "t" else "lone") > 0.0
        nothing = select(value == value, rows.code.real(0.0), float("nan"))  # noqa: PLR0124
        masked = rows.vector(nothing)
        gap = rows.vector(select(infinite, float("nan"), nothing))

        def of(lane: Lane, rise: Any) -> Value:
            apart = (lane.p * 8.0) * (rise + gap) * (lane.inverse * 0.125)
            return select(lane.raw_t == -float("inf"), masked, apart)

        return of


def _weighed(weight: Value, part: Value) -> Value:
    """Return a direction's part of a sum: 0 where it does not count, were it infinite."""
    return select(weight == 0.0, 0.0, weight * part)


class KullbackLeibler(Jeffreys):
    """KL(P‖Q)."""

    name = "KL"
    exact = True
    unbounded = (True, False)

    def terms(self, rows: Rows) -> Callable[[Lane], tuple[Value, ...]]:
        return _forward

    def value(self, total: Value, y: Value) -> Value:
        """Return Φ − (y − log(1 + y)), which is exact about any pivot."""
        close = (y > -0.5) & (y < 1.0)
        gap = log1p_near(select(close, y, 0.0))[1]
        return total - select(close, gap, y - log(y + 1.0))

    def counted(self, rows: Rows, index: int, flag: Value) -> Value:
        return flag

    def has_mean(self, side: str) -> bool:
        return side == "t"

    def slope(self, rows: Rows, side: str) -> Callable[[Lane, Any], Value]:
        return self._straight(rows, side)


class Labels(Divergence):
    """No divergence: −log p of a label and the entropy of P, of which no class can be lost."""

    name = "labels"
    labelled = True
    sides = "t"

    def has_mean(self, side: str) -> bool:
        return False


class Policy(KullbackLeibler):
    """KL(P‖Q) with −log p of a label and the entropy of P."""

    name = "policy"
    labelled = True


def _forward(lane: Lane) -> tuple[Value, Value]:
    """Return p (e⁻ˣ − 1) and p φ(x)."""
    x = lane.far * lane.inverse
    near, phi, apart = abs(x) < NEAR, phi_near(x), lane.q - lane.p
    fall = select(near, lane.p * (phi - x), apart)
    return fall, select(near, lane.p * phi, apart + lane.times_x(lane.p))


class Mixture(Divergence):
    """a·D(P‖M) + b·D(Q‖M), M = mP + (1 − m)Q; the numbers are m, 1 − m, a and b."""

    name = "mixture"
    along = True
    reach = 8.0  # beyond it u is constant where p is, and a few classes do not carry the mean away

    def terms(self, rows: Rows) -> Callable[[Lane], tuple[Value, ...]]:
        r"""Return a function of elements that are all ≥ 0.

        Of p and q the larger is the base, γ its share of M, and the other is base·e^(−ρ). With
        a = e^(−ρ) − 1, g = (1−γ)a and w = γa/(1+g), which are M/base − 1 and the other/M − 1,
        and gap(z) = z − log(1+z), the shares of the base and of the other are

            base gap(g)     base (γ a w − e^(−ρ) gap(w))

        and gap(g) + gap(w) = φ(ρ) − w g: of the two the smaller is a series.
        """
        m, rest, of_p, of_q = (rows.vector(rows.number(index)) for index in range(4))
        at_equal = self._at_equal(rows)

        def of(lane: Lane) -> tuple[Value, ...]:
            p, q, x = lane.p, lane.q, lane.x
            tiny = format_of(x).tiny
            student = x < 0.0
            rho = at_most(abs(x), 100.0)
            base, other = select(student, q, p), select(student, p, q)
            gamma, beta = select(student, rest, m), select(student, m, rest)
            of_base, of_other = select(student, of_q, of_p), select(student, of_p, of_q)
            near, phi = rho < NEAR, phi_near(rho)
            far = other / at_least(base, tiny)
            a = select(near, phi - rho, far - 1.0)
            e, phi = select(near, a + 1.0, far), select(near, phi, a + rho)
            mixed = gamma + beta * e  # 1 + g
            g, product = beta * a, gamma * a
            per = 1.0 / mixed
            w = product * per
            # The gap of the smaller of γ and 1 − γ by a series, and from that the other. Where
            # w < −½ nothing cancels, and the series is that of log(1 + g) itself.
            small = gamma < 0.5
            beyond = small & (mixed + (product + product) <= 0.0)
            whole, f = split_log(mixed)
            series = select(beyond, f, select(small, w, g))
            z = select(beyond, f, select(small, product, g)) / select(
                beyond, f + 2.0, select(small, mixed + mixed + product, g + 2.0)
            )
            gap = _gap(z, series)
            logarithm = joined_log(whole, f, gap)
            rest_of_both = (phi - w * g) - gap
            gap_g = select(small, select(beyond, g - logarithm, rest_of_both), gap)
            gap_w = select(small, select(beyond, w + (rho + logarithm), gap), rest_of_both)
            second = select(beyond, -e * (rho + logarithm) - product, product * w - e * gap_w)
            fall = base * a
            share = base * (of_base * gap_g + of_other * second)
            # q/M − 1, and the gap of that.
            less = g * per
            own = select(student, -less, w), select(student, g * less - gap_g, gap_w)
            return select(student, -fall, fall), share, at_equal(*own)

        return of

    def _at_equal(self, rows: Rows) -> Change:
        """Return a function of v less its value at p = q, of w = q/M − 1 and w − log(1 + w).

        v is b·log(q/M) − c w; where w is large the former is w's gap less w, and w is not small
        beside it.
        """
        m, rest, a, _ = (rows.number(index) for index in range(4))
        k, b = a * (rest / m), self._of_q(rows)
        whole, of_gap, of_w = map(rows.vector, (b * m + rest * k, b, rest * (k - b)))

        def of(w: Value, gap: Value) -> Value:
            return select(w < 1.0, whole * w - of_gap * gap, of_gap * (w - gap) + of_w * w)

        return of

    @staticmethod
    def _of_q(rows: Rows) -> Value:
        """Return b; NaN, which no mean is, where roundings of log(p/q) show in log(q/M)."""
        uneven = at_most(rows.number(0), rows.number(1)) < 1 / 16
        return select(uneven, float("nan"), rows.number(3))

    def rise(self, rows: Rows, side: str) -> Callable[[Lane], Value]:
        r"""Return a function of u less its value at the anchor.

        u is a·log(p/M) − m(a p + b q)/M, but for a constant. With θ = (1−m) q/M and κ = θ p/q at
        the anchor, from there M/p grows by the factor 1 + y, y = θ expm1(−step) = κ q/p − θ.
        """
        m, rest, a, b = (
            rows.number(index) for index in ((0, 1, 2, 3) if side == "t" else (1, 0, 3, 2))
        )
        (z, low), k = rows.words(f"at_{side}"), m / rest
        above = z > 0.0
        small = power_of((-abs(z), select(above, -low, low)), rows.code.real(1.0))
        high, low = small + k, k * small + 1.0
        numbers = (
            select(above, small / high, 1.0 / low),
            select(above, k / high, k * small / low),
            select(above, 1.0 / high, small / low),
        )
        theta, left, kappa = map(rows.vector, numbers)
        combined = self._combined(rows, a, b * k, theta, left)

        def of(lane: Lane) -> Value:
            step, tiny = lane.step, format_of(lane.x).tiny
            ratio = kappa * (lane.q / select(lane.p < tiny, 1.0, lane.p))
            near = abs(step) < NEAR
            y = select(near, theta * (phi_near(step) - step), ratio - theta)
            grown = select(near, y + 1.0, left + ratio)
            return combined(y, grown)

        return of

    def _combined(self, rows: Rows, a: Value, k: Value, theta: Value, left: Value) -> Change:
        r"""Return a function of how u changes where M/p grows by 1 + y = 1/(1 − η).

        Then w = (1−m) q/M, which was θ, grows by η(1 − θ). With F(w) = −w − log(1 − w) the change
        is −a·ΔF − k·Δw. As ΔF + Δw = log(1 + y), the smaller of a and k multiplies the logarithm,
        and the rest has one sign: nothing cancels.
        """
        zero = rows.code.real(0.0)
        both, of_f, of_w = (
            rows.vector(each)
            for each in (at_most(a, k), at_least(a - k, zero), at_least(k - a, zero))
        )

        def of(y: Value, grown: Value) -> Value:
            close, logarithm = _logarithm(y, grown)
            eta = select(close, y / grown, 1.0 - 1.0 / grown)
            # ΔF = (−η − log(1 − η)) + θη, of its own size however small η is.
            gap = select(close, -eta, 0.0)
            rising = select(
                close, _gap(gap / (gap + 2.0), gap) + eta * theta, logarithm - left * eta
            )
            return -(both * logarithm + of_f * rising + of_w * (left * eta))

        return of


class Skew(Mixture):
    """A mixture of which one side has weight 0: a single gap is left."""

    name = "skew"

    def terms(self, rows: Rows) -> Callable[[Lane], tuple[Value, ...]]:
        r"""Return a function of elements that are all ≥ 0.

        Seen from the side that has weight, γ its share of M, e is the other over own. With
        g = (1−γ)(e − 1), which is M/own − 1, and gap(g) = g − log(1+g), a share is own gap(g).
        With 1 + g = S (1 + f), S a power of 2, that gap is (S−1)(1+f) − log S + gap(f), where
        S − 1 − log S is as good as exact: nothing cancels however near to 1 + g = √2 that is.
        """
        m, rest, of_p, of_q = (rows.number(index) for index in range(4))
        ahead = of_q == 0.0
        numbers = (
            *(select(ahead, 1.0, rows.code.real(-1.0)), select(ahead, m, rest)),
            *(select(ahead, rest, m), select(ahead, of_p, of_q)),
            select(ahead, of_p, self._of_q(rows)),
        )
        sign, gamma, beta, weight, of_mean = map(rows.vector, numbers)

        def of(lane: Lane) -> tuple[Value, ...]:
            form, forward, x = format_of(lane.x), sign > 0.0, lane.x * sign
            own, other = select(forward, lane.p, lane.q), select(forward, lane.q, lane.p)
            near, phi = abs(x) < NEAR, phi_near(x)
            lost = (own < form.tiny) & ~near
            e = select(lost, 0.25 / form.tiny, other / own)
            a = select(near, phi - x, e - 1.0)
            g, mixed = beta * a, select(near, a + 1.0, e).fma(beta, gamma)
            k, scale, inverse = split_power(mixed)
            # Of g and 1 + g the one that is near 0 has the smaller rounding.
            f = select(g < -0.5, mixed.fma(inverse, -1.0), g.fma(inverse, inverse - 1.0))
            gap_f = gap_near(f)
            jump = f.fma(scale - 1.0, k.fma(-form.ln2, scale - 1.0))
            gap = k.fma(-form.ln2_low, jump) + gap_f
            fall = select(near, own * a, other - own)
            share = select(lost, beta * other, own * gap)
            # v less its value at p = q: of the other side (1−γ)² (e−1) own/M, of the own side
            # log(own/M) − γ w with w = own/M − 1.
            risen = a / mixed * beta
            w = -risen
            close = (g > -0.5) & (g < 1.0)
            back = select(close, w.fma(beta + g, gap), -w.fma(gamma, joined_log(k, f, gap_f)))
            return fall * sign, weight * share, of_mean * select(forward, beta * risen, back)

        return of


class JensenShannon(Mixture):
    """A mixture whose a is m and b is 1 − m: of u only the logarithm is left."""

    name = "JS"

    def _combined(self, rows: Rows, a: Value, k: Value, theta: Value, left: Value) -> Change:
        del k, theta, left
        weight = rows.vector(-a)
        return lambda y, grown: weight * _logarithm(y, grown)[1]


class EvenJensenShannon(JensenShannon):
    """The mixture of equal halves."""

    name = "even JS"

    def terms(self, rows: Rows) -> Callable[[Lane], tuple[Value, ...]]:
        r"""Return a function of series whose terms are all ≥ 0.

        With h(x) = x/2·tanh(x/2) − log cosh(x/2) a share is M h, and log(q/M) is
        −x/2 − log cosh(x/2); far away they are made of −log(M/base), base the larger of both.
        """

        def of(lane: Lane) -> tuple[Value, ...]:
            p, q, x = lane.p, lane.q, lane.x
            own, size, student = format_of(x), abs(x), x < 0.0
            near, square, both = size < HALF_NEAR, x * x, p + q
            tanh, series = polynomial(square, own.tanh), polynomial(square, own.shannon)
            base, other = select(student, q, p), select(student, p, q)
            e = other / at_least(base, own.tiny)
            log_base = -(e * polynomial(e, own.log1p)) + LN2
            fall = select(near, -(both * x) * tanh, q - p)
            term = select(near, both * square * series, (both * log_base - other * size) * 0.5)
            ahead = x * -0.25 - square * (tanh * 0.25 - series)
            far = (log_base - select(student, 0.0, size)) * 0.5
            return fall, term, select(near, ahead, far)

        return of


def _gap(z: Value, y: Value) -> Value:
    """Return y − log(1 + y), given y/(2 + y) too."""
    return y * z - artanh_rest(z)


def _logarithm(y: Value, grown: Value) -> tuple[Value, Value]:
    """Return whether y is small, and log(1 + y), given 1 + y too."""
    own = format_of(y)
    close = (y > -0.5) & (y < 1.0)
    logarithm = log_normal(at_most(at_least(grown, own.tiny), 0.25 / own.tiny))
    # The logarithm of the rounding of 1 + y, which is exact here, is that over 1 + y.
    lost = select(close, (y - (grown - 1.0)) / grown, 0.0)
    return close, logarithm + lost


class TotalVariation(Divergence):
    """½ Σ |p − q|, whose u is ½ sign(x).

    u less its mean is B + Z/2 where x > 0, and −(A + Z/2) where x < 0, with A, B and Z the mass of
    the classes where x is above, below and at 0: summed apart, so that nothing cancels.
    """

    name = "total variation"
    smooth = False

    def terms(self, rows: Rows) -> Callable[[Lane], tuple[Value, ...]]:
        def of(lane: Lane) -> tuple[Value, ...]:
            fall = falling(lane)
            return fall, abs(fall) * 0.5

        return of

    def rise(self, rows: Rows, side: str) -> Callable[[Lane], Value]:
        return lambda lane: lane.x

    def moments(self, lane: Lane, rise: Value) -> list[Value]:
        x = rise
        return [select(where, lane.p, 0.0) for where in (x > 0.0, x < 0.0, x == 0.0)]

    def slope(self, rows: Rows, side: str) -> Callable[[Lane, Any], Value]:
        above, below, at = (rows.get(f"{name}_{side}") for name in ("mean", "below", "level"))
        value = rows.get("value")
        nothing = select(value == value, rows.code.real(0.0), value)  # noqa: PLR0124 - asks for NaN
        up, down, level = (
            rows.vector(each + nothing)
            for each in (below + at * 0.5, -(above + at * 0.5), (below - above) * 0.5)
        )

        def of(lane: Lane, rise: Any) -> Value:
            return lane.p * select(lane.x > 0.0, up, select(lane.x < 0.0, down, level))

        return of


class Alpha(Divergence):
    """scale·(Σ p^α q^κ − 1)/(α(α − 1)); the numbers are α ≥ ½, κ = 1 − α and the scale.

    The words are those of `kldiv.formulas.powers`. ``rise`` is own·(u less that at the anchor).
    """

    name = "alpha"
    unbounded = (True, False)
    along = True
    squares = True

    def counted(self, rows: Rows, index: int, flag: Value) -> Value:
        return select(rows.number(1) > 0.0, 0.0, flag) if self.unbounded[index] else flag

    def moments(self, lane: Lane, rise: Value) -> list[Value]:
        x = at_most(at_least(lane.x, -self.reach), self.reach)
        square = rise * (rise / at_least(lane.p, format_of(x).tiny))
        return [rise, abs(rise), lane.p * x, square]

    def mass(self, rows: Rows) -> Callable[[Lane], Value]:
        """Return a function of p^α q^κ, given p as the teacher's."""
        alpha, kappa = (rows.number(index) for index in range(2))
        of_p, of_q = rows.vector(kappa * -0.5), rows.vector(alpha * 0.5)
        exponent = self._exponent(rows, alpha, kappa)

        def of(lane: Lane) -> Value:
            student = lane.x < 0.0
            # Where the larger underflows, the power need not.
            base = select(student, lane.q, lane.p)
            lost = (base < 8.0 * format_of(base).tiny) & (lane.x > 0.0)
            base = select(lost, 1.0, base)
            half = lane.x * select(student, of_q, of_p)
            half = exp(select(lost, exponent(lane), half))
            return (base * half) * half

        return of

    def _exponent(self, rows: Rows, alpha: Value, kappa: Value) -> Callable[[Lane], Value]:
        """Return a function of half the logarithm of p^α q^κ, by the logits themselves."""
        constant, parts = rows.code.real(0.0), []
        for side, order in (("t", alpha), ("s", kappa)):
            powers = rows.get(f"{side}_exponent") - rows.own.lift  # of 2
            log_scale = log(rows.get(f"{side}_scale")) - powers * LN2
            constant = constant + order * 0.5 * log_scale
            factor = rows.vector(order * 0.5 * rows.get("inverse"))
            parts.append((rows.vector(rows.get(f"{side}_origin")), factor))
        (t_origin, t_factor), (s_origin, s_factor) = parts
        whole = rows.vector(constant)

        def of(lane: Lane) -> Value:
            t, s = at_least(lane.raw_t - t_origin, -1e30), at_least(lane.raw_s - s_origin, -1e30)
            return t.fma(t_factor, s.fma(s_factor, whole))

        return of

    def terms(self, rows: Rows) -> Callable[[Lane], tuple[Value, ...]]:
        alpha, kappa, scale = (rows.number(index) for index in range(3))
        widest = rows.vector(1.0 / at_least(abs(kappa), 1.0))
        factor, per, k = map(rows.vector, (scale / alpha, 1.0 / kappa, kappa))
        mass = self.mass(rows)

        def of(lane: Lane) -> tuple[Value, ...]:
            p, x, power = lane.p, lane.x, mass(lane)
            z, fall, p_x = x * k, falling(lane), lane.p * x
            ratio = phi_ratio(z)
            near = p_x * x * (phi_ratio(x) - k * ratio)
            # (m − p)/κ, also where κ is small.
            less = select(abs(z) < NEAR, p_x * (z * ratio - 1.0), (power - p) * per)
            term = select(abs(x) < widest, near, fall - less)
            own = select(abs(x) < NEAR, fall - k * less, lane.q - power)
            found = fall, factor * term, factor * own
            return (*found, power) if self.logarithmic else found

        return of

    def rise(self, rows: Rows, side: str) -> Callable[[Lane], Value]:
        rate, scale = rows.number(1 if side == "t" else 0), rows.number(2)
        at = power_of(rows.words(f"at_{side}"), -rate)
        # Gradients of an infinite divergence are NaN.
        at = select(rows.get("lost") > 0.0, float("nan"), at)
        at, rate = rows.vector(at), rows.vector(rate)
        scale, per = rows.vector(scale), 1.0 / rate
        mass = self.mass(rows)

        def of(lane: Lane) -> Value:
            z = lane.step * rate
            own = lane.p * at
            near = own * lane.step * (1.0 - z * phi_ratio(z))
            power = mass(lane if side == "t" else exchanged(lane))
            masked = lane.raw_t == -float("inf")
            if side == "s":
                masked = masked & (lane.raw_s == -float("inf"))
            return select(masked, 0.0, scale * select(abs(z) < NEAR, near, (own - power) * per))

        return of


class ChiSquared(Alpha):
    """α = 2: powers are p·(p/q), right to a few u where e^log(p/q) is to u·|log(p/q)|."""

    name = "chi2"

    def mass(self, rows: Rows) -> Callable[[Lane], Value]:
        general = super().mass(rows)

        def of(lane: Lane) -> Value:
            p, q, least = lane.p, lane.q, 8.0 * format_of(lane.p).tiny
            known = (p >= least) & (q >= least) & (p < q * (0.25 / format_of(q).tiny))
            return select(known, p * (p / select(known, q, 1.0)), general(lane))

        return of


class Renyi(Alpha):
    """Rényi's divergence: numbers as of an α-divergence of scale 1, then its own scale."""

    name = "Renyi"
    logarithmic = True


class Hellinger(Alpha):
    """α = ½: powers are products of roots."""

    name = "Hellinger"
    unbounded = (False, False)

    def mass(self, rows: Rows) -> Callable[[Lane], Value]:
        of_t, of_s = (self._root(rows, side) for side in "ts")
        return lambda lane: of_t(lane.raw_t) * of_s(lane.raw_s)

    @staticmethod
    def _root(rows: Rows, side: str) -> Callable[[Value], Value]:
        """Return a function of a side's logits: √p, a weight at 2T, as p may underflow."""
        own, top, origin = rows.own, rows.get(f"top_{side}"), rows.get(f"{side}_origin")
        exponent, rounding = rows.get(f"{side}_exponent"), format_of(top).round
        half = (exponent * 0.5 + rounding) - rounding
        odd = half * 2.0 - exponent
        rest = select(odd > 0.0, rows.code.real(2.0), select(odd < 0.0, rows.code.real(0.5), 1.0))
        scale = rows.vector((rows.get(f"{side}_scale") * rest).sqrt() * 2.0 ** -(own.lift // 2))
        lowest = (top - origin) - rows.get("temperature") * (2.0 * own.gone)
        least = rows.vector(select(top > -float("inf"), lowest, 0.0))
        start, shift = rows.vector(origin), shift_of(rows.vector(half))
        heat = rows.heat().doubled
        return lambda logits: power(logits - start, least, shift, heat) * scale

    def terms(self, rows: Rows) -> Callable[[Lane], tuple[Value, ...]]:
        factor = rows.vector(rows.number(2) * 2.0)

        def of(lane: Lane) -> tuple[Value, ...]:
            z, student = abs(lane.x) * 0.5, lane.x < 0.0
            root_p, root_q = lane.p.sqrt(), lane.q.sqrt()
            less = select(student, -root_q, root_p) * (z * (1.0 - z * phi_ratio(z)))
            apart = select(z < NEAR, less, root_p - root_q)
            return falling(lane), factor * apart * apart, -factor * root_q * apart

        return of


def exchanged(lane: Lane) -> Lane:
    """Return a class seen from the other side."""
    own = -lane.x, -lane.step, -lane.far, -lane.rise
    return Lane(lane.raw_t, lane.raw_s, lane.q, lane.p, *own, lane.inverse, lane.unit)
