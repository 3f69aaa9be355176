"""The two loops of the quick way through float32 logits: without masked classes, and with some.

A masked class has a logit of −∞. Where both have it, it takes no part. Where only the teacher has
it, the student's probability alone counts: it is e^((s + c)/T) in the scale of the weights, about
the pivot c. Where only the student has it, x is infinite, and the row is not done quickly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from kldiv.kernels.cpu.compiling import inline
from kldiv.kernels.cpu.elementary import apart_32, power_32
from kldiv.kernels.cpu.instructions import accumulate, bits, load_float32, select, store_float32
from kldiv.kernels.cpu.state import two_difference, two_sum

if TYPE_CHECKING:
    from collections.abc import Callable

SIZE: Final = 2048
"""Elements of a block."""

_STRIP: Final = 128
"""Elements whose sum is taken in float32, in as many lanes as the CPU has."""


def _passing(masks: bool) -> Callable[..., Any]:
    """Return one of the two loops: the other's branches are left out where it is compiled."""

    @inline
    def run(t: int, s: int, n: int, kept: int, low: Any, shift: Any, hot: Any, c: Any) -> Any:
        """Return sums and, as bits, the largest |x| and exponent of 2.

        The sums are of w, w x, w |x|, the mass that the student has alone, and w φ(x).
        It always keeps w, w (e⁻ˣ − 1) and w x, needed or not: a loop of its own for values alone
        would hardly be faster, and its sums would differ in the last bit.
        """
        t_sum = drift = spread = lone = phi = 0.0
        far = top = np.int32(0)
        zero, nothing = np.float32(0.0), np.float32(-np.inf)
        for start in range(0, n, _STRIP):
            w_part = x_part = size_part = lone_part = phi_part = np.float32(0.0)
            for k in range(start, min(start + _STRIP, n)):
                own, other = load_float32(t, k), load_float32(s, k)
                d, d_low = two_difference(own, other)
                # Of one word, as c is, d − c is exact where it is not much larger than d's error.
                x = ((d - c) + d_low) * hot[0]
                if masks:
                    gone, there = own == nothing, other > nothing
                    # A NaN or +∞ beside a −∞ is seen all the same.
                    x = select(gone, select(other == nothing, zero, other - other), x)
                    moved, moved_low = two_sum(other, c)
                    moved_low = select(gone, moved_low, zero)
                    moved = select(gone, moved, own)
                    power, exponent = power_32(moved, moved_low, low, shift, hot)
                    w, alone = select(gone, zero, power), select(gone & there, power, zero)
                    phi_part = accumulate(phi_part, alone)
                    lone_part = accumulate(lone_part, alone)
                else:
                    w, exponent = power_32(own, np.float32(-0.0), low, shift, hot)
                rest, fall = apart_32(x)
                wx = w * x
                w_fall = w * fall
                w_part = accumulate(w_part, w)
                x_part = accumulate(x_part, wx)
                size_part = accumulate(size_part, abs(wx))
                phi_part = accumulate(phi_part, w * rest)
                far = max(far, np.int32(bits(x) & np.int32(0x7FFFFFFF)))
                top = max(top, exponent)
                store_float32(kept, k, w)
                store_float32(kept, k + SIZE, w_fall + alone if masks else w_fall)
                store_float32(kept, k + 2 * SIZE, wx)
            t_sum += np.float64(w_part)
            drift += np.float64(x_part)
            spread += np.float64(size_part)
            lone += np.float64(lone_part)
            phi += np.float64(phi_part)
        return t_sum, drift, spread, lone, phi, far, top

    return run


plain, masked = _passing(masks=False), _passing(masks=True)


@inline
def fallen(kept: int, n: int) -> float:
    """Return Σ w |e⁻ˣ − 1| and the mass that the student has alone, added up, from kept terms."""
    total = np.float32(0.0)
    for k in range(n):
        total = accumulate(total, abs(load_float32(kept, k + SIZE)))
    return np.float64(total)
