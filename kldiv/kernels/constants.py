"""Numbers of which kernels make exponentials and logarithms, the same in every technology.

The polynomials are minimax, fitted for this file, in rising powers.
"""

from __future__ import annotations

import math
from typing import Final

# The first has so few bits that its product with any exponent is exact.
LN2_HIGH_32: Final = 0.693359375
LN2_LOW_32: Final = math.log(2) - LN2_HIGH_32
LN2_HIGH_64: Final = float.fromhex("0x1.62e42feep-1")
LN2_LOW_64: Final = float.fromhex("0x1.a39ef35793c76p-33")
LN2: Final = math.log(2)
LN2_LOW: Final = 2.3190468138462996e-17
"""log 2 less its rounding to float64."""
LOG2_E: Final = 1 / math.log(2)

# log(1 + f) = f − f²/2 + f³·P(f) for √½ ≤ 1 + f < √2, within 6e-9 of itself
LOG_32: Final = (
    0.33333331707289265,
    -0.2500082104531514,
    0.20001226938086014,
    -0.1662335694550242,
    0.1420175595042327,
    -0.13160184467694075,
    0.12761594843398072,
    -0.07634514490184806,
)
# log(1 + f) = 2z + z³·P(z²), z = f/(2 + f), within 2e-18
LOG_64: Final = (
    0.6666666666666734,
    0.39999999999414343,
    0.285714287424695,
    0.22222198564100976,
    0.18183564831711022,
    0.1531403679955515,
    0.14796095142155627,
)
# exp(r) = 1 + r + r²·P(r) for |r| ≤ ½ log 2, within 4e-9 and 4e-18
EXP_32: Final = (
    0.5000000095704549,
    0.16666518306154118,
    0.041666204126187614,
    0.008368953501337987,
    0.0013950603085746583,
)
EXP_64: Final = (
    0.5000000000000013,
    0.166666666666667,
    0.04166666666651432,
    0.008333333333307028,
    0.0013888888947330839,
    0.00019841269917766753,
    2.480148959095654e-05,
    2.755721595842778e-06,
    2.763141365878929e-07,
    2.5117969684469478e-08,
)
# the same for |r| ≤ log 2, within 7e-9 of P
EXP_WIDE_32: Final = (
    0.5000000005339994,
    0.1666666998660857,
    0.04166664987944348,
    0.00833277653110906,
    0.0013889450665501798,
    0.00020073657909108414,
    2.4878527042216776e-05,
)
ROOT_32: Final = 0x3F3504F3
ROOT_64: Final = 0x3FE6A09E667F3BCD
"""The bits of √½."""

# φ(x)/x² = Σ (−x)ᵏ/(k + 2)!, to a quarter of a rounding of float64 at |x| = 2; 14 do for float32
PHI: Final = tuple((-1) ** k / math.factorial(k + 2) for k in range(25))
# the same for |x| ≤ 1, within 5e-9 of itself
PHI_32: Final = (
    0.4999999979586414,
    -0.1666666707561649,
    0.04166673396406151,
    -0.008333304899369835,
    0.0013885467502887925,
    -0.0001984511481720183,
    2.5353789036900093e-05,
    -2.7659865167931736e-06,
)

# log1p(y) = 2 artanh(z) = 2z + z³ Σ 2z²ᵏ/(2k + 3), z = y/(2 + y), likewise at |z| = 1/3; 7 do
ARTANH: Final = tuple(2 / (2 * k + 3) for k in range(16))
