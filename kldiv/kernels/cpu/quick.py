"""The quick way through float32 logits: one pass over a block, where x is nowhere large.

It guesses an origin of the exponents and a pivot, from the elements before, and sees afterwards how
good they were: a block is done again about a better pivot, or left to `kldiv.kernels.cpu.general`,
which takes any logits. The origin is a power of 2, so that no maximum is subtracted, and x is so
small that w·e⁻ˣ neither underflows nor loses digits: the student needs no exponential of its own.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
from numba import types
from numba.extending import overload

from kldiv.kernels.cpu.compiling import OPTIONS, inline
from kldiv.kernels.cpu.elementary import ROUND_32, ROUND_BITS_32
from kldiv.kernels.cpu.instructions import load_float32, select, store_float32
from kldiv.kernels.cpu.passes import SIZE, fallen, masked, plain
from kldiv.kernels.cpu.state import (
    ANCHOR,
    ANCHOR_LOW,
    DRIFT,
    PHI,
    PIVOT,
    PIVOT_LOW,
    S_MAX,
    S_SUM,
    T_MAX,
    T_SUM,
    Y,
    difference,
    log1p_gap,
)
from kldiv.kernels.layout import Buffer

LONGEST: Final = 1 << 20
"""Classes of the longest row whose terms the caches hold, for its gradients."""

# Fields of a guess: the exponent of 2 at the origin and its logit, the ratio of sums about the
# latter to sums about the former, and the pivot; then whether a class has been seen that is masked,
# and one that is not.
_EXPONENT: Final = 0
_TOP: Final = 1
_SCALE: Final = 2
_CENTER: Final = 3
_MASKS: Final = 4
_SEEN: Final = 5
GUESSES: Final = 6

_GLANCE: Final = 64
"""Elements of a row from which the first guess is made."""

_FAR: Final = int(np.float32(8).view(np.int32))
"""The bits of an |x| that must be known better than to a rounding for e⁻ˣ."""

_LINEAR: Final = int(np.float32(0.25).view(np.int32))
"""The bits of an |x| below which e⁻ˣ − 1 is as balanced as x."""

_ENDLESS: Final = int(np.float32(np.inf).view(np.int32))
"""The bits of infinity; those of NaN are more."""

_DEEP: Final = 87.0
"""−log of the smallest weight: a smaller one counts as that."""

_LEAST: Final = 1e-24
"""Σ w φ(x) that such weights do not touch."""

_RISE: Final = 32
"""By how many powers of 2 a weight may exceed 1."""

_HIGHEST: Final = 150
"""The largest exponent of 2 at the origin: its multiples of log 2 stay exact."""

_MOST: Final = 1e6
"""By how much the student's mass may exceed the teacher's in a block before digits are lost."""

_AMPLIFIED: Final = 1.5
"""How much larger roundings may become by a pivot that is not the mean."""

_FALLEN: Final = 2.5
"""The largest Σ w |e⁻ˣ − 1| of one sign, of that of the other."""

_LN2: Final = math.log(2)


# --- a block --------------------------------------------------------------------------------------


@inline
def _origin(exponent: float, temperature: float, guess: Buffer) -> bool:
    """Take another origin; return whether its exponent of 2 is in range."""
    if not abs(exponent) <= _HIGHEST:
        return False
    top = np.float64(np.float32(exponent * temperature * _LN2))
    guess[_EXPONENT], guess[_TOP] = exponent, top
    guess[_SCALE] = math.exp(exponent * _LN2 - top / temperature)
    return True


@inline
def _look(t: int, s: int, n: int, guess: Buffer) -> Any:
    """Guess a pivot from the classes that neither has masked, if any; return the largest logit."""
    nothing, zero, one = np.float32(-np.inf), np.float32(0.0), np.float32(1.0)
    top, any_top, total, number = nothing, nothing, zero, zero
    for k in range(n):
        own, other = load_float32(t, k), load_float32(s, k)
        seen = (own > nothing) & (other > nothing)
        top = select(seen & (own > top), own, top)
        any_top = max(any_top, own, other)
        total += select(seen, own - other, zero)
        number += select(seen, one, zero)
    guess[_SEEN] = number
    if number < n:
        guess[_MASKS] = 1.0
    guess[_CENTER] = total / number if number > zero else zero
    return top if number > zero else any_top


@inline
def _glance(t: int, s: int, n: int, temperature: float, guess: Buffer) -> bool:
    """Guess origin and pivot from a row's first elements; return whether the origin is in range."""
    top = _look(t, s, min(n, _GLANCE), guess)
    if guess[_SEEN] == 0 and n > _GLANCE:
        top = _look(t, s, n, guess)
    if top == -np.inf:  # masked for both: any origin will do
        return _origin(0.0, temperature, guess)
    return _origin(math.floor(top / (temperature * _LN2) + 0.5), temperature, guess)


def state(
    t: Any,
    s: Any,
    n: Any,
    begins: Any,
    kept: Any,
    temperature: Any,
    hot: Any,
    guess: Any,
    a: Any,
) -> Any:
    """Fill the state of a block and the terms kept of it; return whether that could be done.

    ``begins`` says whether the block is a row's first.
    """
    raise NotImplementedError


@overload(state, jit_options=OPTIONS)
def _state(
    t: Any,
    s: Any,
    n: Any,
    begins: Any,
    kept: Any,
    temperature: Any,
    hot: Any,
    guess: Any,
    a: Any,
) -> Any:
    return _state_32 if hot[0] == types.float32 else _never


def _never(
    t: Any,
    s: Any,
    n: Any,
    begins: Any,
    kept: Any,
    temperature: Any,
    hot: Any,
    guess: Any,
    a: Any,
) -> Any:
    return False


def _state_32(
    t: Any,
    s: Any,
    n: Any,
    begins: Any,
    kept: Any,
    temperature: Any,
    hot: Any,
    guess: Any,
    a: Any,
) -> Any:
    if begins:
        guess[_MASKS] = guess[_SEEN] = 0.0
    if guess[_SEEN] == 0 and not _glance(t, s, n, temperature, guess):
        return False
    for _ in range(4):
        c = np.float32(guess[_CENTER])
        low = np.float32(guess[_TOP] - _DEEP * temperature)
        shift = np.float32(ROUND_32 - guess[_EXPONENT])
        masks = guess[_MASKS] != 0
        if masks:
            sums = masked(t, s, n, kept, low, shift, hot, c)
        else:
            sums = plain(t, s, n, kept, low, shift, hot, c)
        t_sum, drift, spread, lone, phi, far, rise = sums
        if far >= _ENDLESS and not masks:  # there may be −∞ now, or NaN
            guess[_MASKS] = 1.0
        elif far >= _FAR:
            return False
        elif rise - ROUND_BITS_32 > _RISE:
            higher = guess[_EXPONENT] + (rise - ROUND_BITS_32)
            if not _origin(higher, temperature, guess):
                return False
        elif not _measurable(t_sum, phi, far):
            return False
        elif t_sum == 0 or (
            _central(t_sum, drift, spread, phi)
            and (far < _LINEAR or _balanced(t_sum, drift, fallen(kept, n), lone, phi))
        ):
            _fill(t_sum, drift, phi, temperature, guess, a)
            return True
        else:
            guess[_CENTER] = np.float32(guess[_CENTER] + temperature * (drift / t_sum))
    return False


@inline
def _measurable(t_sum: float, phi: float, far: int) -> bool:
    """Return whether the weights that are too small to be right do not touch the sums."""
    # Nor do they touch a sum that is exactly zero: all is masked, or x is zero everywhere.
    known = (phi >= _LEAST) | ((phi == 0) & (far == 0))
    return known & (((t_sum >= _LEAST) & (phi <= _MOST * t_sum)) | (t_sum == 0))


@inline
def _central(t_sum: float, drift: float, spread: float, phi: float) -> bool:
    """Return whether a pivot is so near to the mean that roundings grow but little."""
    y = (phi - drift) / t_sum
    kl = phi - t_sum * log1p_gap(y)
    return (phi <= _AMPLIFIED * kl * (1.0 + y)) & (abs(drift) <= 0.7 * spread)


@inline
def _balanced(t_sum: float, drift: float, size: float, lone: float, phi: float) -> bool:
    """Return whether roundings of the student's gradient grow but little, be x as large as it is.

    q − p is p (e⁻ˣ − 1 − y)/(1 + y), and may be small where e⁻ˣ − 1 is not. Half of its size is no
    less than the share whose sign is not that of y, and than the mass that the student has alone.
    """
    y, own, alone = (phi - drift) / t_sum, (size - lone) / t_sum, lone / t_sum
    up, down = 0.5 * (own + (y - alone)), 0.5 * (own - (y - alone))
    half = max(down, alone) if y > 0 else up + alone
    return half + abs(y) <= _FALLEN * half * (1.0 + max(y, 0.0))


@inline
def _fill(
    t_sum: float, drift: float, phi: float, temperature: float, guess: Buffer, a: Buffer
) -> None:
    scale, c = guess[_SCALE], guess[_CENTER]
    a[T_MAX], a[T_SUM] = guess[_TOP], scale * t_sum
    a[PIVOT], a[PIVOT_LOW], a[ANCHOR], a[ANCHOR_LOW] = c, 0.0, c, 0.0
    a[DRIFT], a[PHI] = scale * drift, scale * phi
    a[Y] = scale * (phi - drift)
    # Σ w e⁻ˣ = Σ exp((s − (origin − c))/T)
    apart = guess[_TOP] - c
    a[S_MAX] = np.float32(apart)
    a[S_SUM] = (a[T_SUM] + a[Y]) * math.exp((apart - a[S_MAX]) / temperature)
    # Sums that are zero have no scale of their own.
    if a[T_SUM] == 0:
        a[T_MAX] = -np.inf
    if a[S_SUM] == 0:
        a[S_MAX] = -np.inf


# --- gradients ------------------------------------------------------------------------------------


def gradient(
    of_teacher: Any,
    kept: Any,
    n: Any,
    out: Any,
    guess: Any,
    a: Any,
    shift: Any,
    by: Any,
    temperature: Any,
    kind: Any,
) -> Any:
    """Write a gradient, times a factor, from the terms kept of a block and its row's state."""
    raise NotImplementedError


@overload(gradient, jit_options=OPTIONS)
def _gradient(
    of_teacher: Any,
    kept: Any,
    n: Any,
    out: Any,
    guess: Any,
    a: Any,
    shift: Any,
    by: Any,
    temperature: Any,
    kind: Any,
) -> Any:
    return _gradient_32 if kind.dtype == types.float32 else _nothing


def _nothing(
    of_teacher: Any,
    kept: Any,
    n: Any,
    out: Any,
    guess: Any,
    a: Any,
    shift: Any,
    by: Any,
    temperature: Any,
    kind: Any,
) -> Any:
    pass


def _gradient_32(
    of_teacher: Any,
    kept: Any,
    n: Any,
    out: Any,
    guess: Any,
    a: Any,
    shift: Any,
    by: Any,
    temperature: Any,
    kind: Any,
) -> Any:
    c = guess[_CENTER]
    # p/w, with the factor
    first = by * guess[_SCALE] * math.exp((guess[_TOP] - a[T_MAX]) / temperature) / a[T_SUM]
    if of_teacher:
        # p (x − its mean)
        moved = difference(c, 0.0, a[ANCHOR], a[ANCHOR_LOW]) / temperature
        second = first * (moved - a[DRIFT] / a[T_SUM])
        which = 2 * SIZE
    else:
        # log(p/q) is x + δ, and e^(−x−δ) − 1 = e^(−δ)(e⁻ˣ − 1) + (e^(−δ) − 1)
        log_ratio = difference(c, 0.0, a[PIVOT], a[PIVOT_LOW]) / temperature + shift
        first, second = first * math.exp(-log_ratio), first * math.expm1(-log_ratio)
        which = SIZE
    one, other = np.float32(first), np.float32(second)
    for k in range(n):
        value = one * load_float32(kept, k + which) + other * load_float32(kept, k)
        store_float32(out, k, value)
