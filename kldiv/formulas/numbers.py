"""Every number of the formulas, once: for these, and for the kernels of every technology.

The order of a state's fields is here too; the kernels that lay states out in memory number them by
it.  Polynomials are minimax, fitted for this file, in rising powers.
"""

from __future__ import annotations

import math
from typing import Final

HEATS: Final = {"float32": (2.0**-123, 2.0**120), "float64": (2.0**-1019, 2.0**980)}
"""The least temperature, of which an eighth is no subnormal number, and the largest, that kernels
take apart in two."""

MOST_ORDER: Final = 1e36
"""Orders of power divergences that are farther from 0 give the same, to rounding; float32 has no
number for some."""


def bounded(order: float) -> float:
    """Return an order, or `MOST_ORDER` with its sign where it is farther from 0."""
    return math.copysign(MOST_ORDER, order) if abs(order) > MOST_ORDER else order


FIELDS: Final = (
    *("t_max", "t_sum", "s_max", "s_sum", "pivot", "pivot_low", "y", "phi"),
    *("anchor", "anchor_low", "drift", "spread", "gap"),
)
"""The fields of a state: see `kldiv.formulas.state.State`."""

ROW_FIELDS: Final = (
    *("kl", "t_max", "t_scale", "s_max", "s_scale", "pivot", "pivot_low", "offset"),
    *("anchor", "anchor_low", "mean"),
)
"""The constants of a row: see `kldiv.formulas.state.Rows`."""

SUM_FIELDS: Final = ("value", "t_mean", "s_mean", "t_second", "s_second")
"""Sums over classes that GPUs take of a divergence: itself, and two for each of its gradients."""

# ---- series --------------------------------------------------------------------------------------

NEAR: Final = 2.0
"""|x| below which φ is a series; beyond it e⁻ˣ + (x − 1) loses a factor of 2.5 at most."""

# φ(x)/x² for |x| ≤ NEAR, within 6e-10 and 8e-20 of itself: so much closer than rounding that their
# derivatives, which libraries take of these, are as good
PHI_32: Final = (
    0.5000000001562418,
    -0.16666666820289108,
    0.041666664750263004,
    -0.00833332514487759,
    0.0013888924587592232,
    -0.00019842466978749207,
    2.4799480261098215e-05,
    -2.7486894785127897e-06,
    2.7592888740210676e-07,
    -2.6840396114531144e-08,
    2.128407892641795e-09,
)
PHI: Final = (
    0.5,
    -0.16666666666666666,
    0.041666666666666664,
    -0.008333333333333328,
    0.0013888888888888946,
    -0.00019841269841272045,
    2.4801587301573173e-05,
    -2.755731922353121e-06,
    2.7557319225750226e-07,
    -2.5052108435976348e-08,
    2.0876756866885342e-09,
    -1.6059040552081456e-10,
    1.1470750271172236e-11,
    -7.647292275307195e-13,
    4.779381986774865e-14,
    -2.8084796453537764e-15,
    1.5626334579551627e-16,
    -8.595706156296952e-18,
    4.165159321255664e-19,
)
# the same for |x| ≤ 1, within 5e-9 and 1.2e-17
PHI_NEAR_32: Final = (
    0.4999999979586414,
    -0.1666666707561649,
    0.04166673396406151,
    -0.008333304899369835,
    0.0013885467502887925,
    -0.0001984511481720183,
    2.5353789036900093e-05,
    -2.7659865167931736e-06,
)
PHI_NEAR: Final = (
    0.5,
    -0.16666666666666666,
    0.041666666666666116,
    -0.008333333333333878,
    0.0013888888888978507,
    -0.00019841269840858297,
    2.4801587247336444e-05,
    -2.755731935186589e-06,
    2.755733482929975e-07,
    -2.505209084850624e-08,
    2.0874456917332125e-09,
    -1.6059833989629884e-10,
    1.1638481624306464e-11,
    -7.679721343855964e-13,
)

# (2 artanh(z) − 2z)/z³ in z² ≤ 1/9, within 1e-8 and 4e-18; log1p(y) is 2 artanh(z), z = y/(2 + y)
ARTANH_32: Final = (
    0.6666666733115758,
    0.3999970322283513,
    0.2859249911327468,
    0.21704532049355862,
    0.23233563837995214,
)
ARTANH: Final = (
    0.6666666666666666,
    0.39999999999999514,
    0.2857142857160246,
    0.22222222197963598,
    0.181818199140089,
    0.15384543423865213,
    0.13335189729475858,
    0.11734138213587068,
    0.1084625826048976,
    0.07487561297154262,
    0.15638840711852628,
)

# ---- states of rows of logits --------------------------------------------------------------------

EIGHTH: Final = 0.125
"""The unit, in that of the logits, of differences, pivots and anchors: none of them overflows."""

FAR: Final = 1024.0
"""e to the power of minus this is 0."""

FEW: Final = 16.0
"""Roundings of KL below which the ratio of sums is no pivot."""

CLOSE: Final = 0.5
"""|y| or KL below which a pivot near the bulk, not the ratio of sums, loses no digits."""

INSIDE: Final = 0.55
"""Share of the spread within which the teacher's maximum lies in the bulk."""

REACH: Final = 8.0
"""|x| up to which a class counts in the mean that an anchor is: beyond it slopes of mixtures are as
good as constant."""

DEEP: Final = 69.0
"""Beyond it e^(−r) for p/q would soon underflow in float32."""
DEEP_32: Final = 40.0
"""The same where second derivatives have its square, in float32."""
LARGE: Final = 1e12
DEEP_LARGE: Final = 16.0
"""The same where q has a larger weight, of which the quotient would be no number in float32."""

DEEPEST: Final = 1024.0
"""Farther below q p is 0: any finite number serves, and no weight makes it infinite."""

FARTHEST: Final = 1e30
"""log(p/q), or less, where one of them is 0: its products with other numbers are finite."""

# ---- exponential and logarithm, which kernels make themselves ------------------------------------

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
# the same for |r| < 1
EXP_WIDER_32: Final = (
    0.49999999775716203,
    0.16666667038460747,
    0.041666738694438654,
    0.00833330885483077,
    0.0013885312602539262,
    0.0001984413627081471,
    2.5365991960239137e-05,
    2.7726128977775458e-06,
)

# ---- Jensen-Shannon of equal weights -------------------------------------------------------------

HALF_NEAR: Final = 1.5
"""|x| below which its terms are series in x², and beyond it in e^(−|x|)."""
# tanh(x/2)/x, within 1.5e-9 and 1.4e-18 of itself
TANH_32: Final = (
    0.4999999992566346,
    -0.04166663404109273,
    0.004166430973958014,
    -0.00042098150210335836,
    4.185717794567943e-05,
    -3.7241361801583664e-06,
    2.100041992145571e-07,
)
TANH_64: Final = (
    0.5,
    -0.041666666666666546,
    0.00416666666666314,
    -0.00042162698408655625,
    4.2713844554766646e-05,
    -4.327750850302304e-06,
    4.3849014601326216e-07,
    -4.442526906315625e-08,
    4.4978812484651045e-09,
    -4.531668989143997e-10,
    4.453473334738982e-11,
    -4.001824465297059e-12,
    2.82062326642689e-13,
    -1.1014361413315575e-14,
)
# (x/2·tanh(x/2) − log cosh(x/2))/(2x²), within 2.9e-9 and 2.8e-18
SHANNON_32: Final = (
    0.06249999981937729,
    -0.007812492165008189,
    0.0008679994363694733,
    -9.2078197182997e-05,
    9.408930735942734e-06,
    -8.501634748225589e-07,
    4.829040821149554e-08,
)
SHANNON_64: Final = (
    0.0625,
    -0.00781249999999997,
    0.0008680555555546796,
    -9.223090276778264e-05,
    9.610615019675246e-06,
    -9.91776222390833e-07,
    1.0179232988097428e-07,
    -1.0412141311133321e-08,
    1.0619734103223352e-09,
    -1.076117324353571e-10,
    1.0621485549386519e-11,
    -9.571942834335934e-13,
    6.75662273096731e-14,
    -2.6394063583646206e-15,
)
# log(1 + e)/e for 0 ≤ e ≤ e^(−1.5), within 4.9e-9 and 2e-18
LOG1P_32: Final = (
    0.9999999951834302,
    -0.4999984229553986,
    0.33324903786052673,
    -0.2483313088491262,
    0.18469477907703544,
    -0.09795675592822548,
)
LOG1P_64: Final = (
    1.0,
    -0.499999999999997,
    0.3333333333325694,
    -0.24999999992388117,
    0.19999999605050528,
    -0.1666665443509094,
    0.14285470130700628,
    -0.12496714633467894,
    0.1108057242195917,
    -0.09802150668142073,
    0.0820199372016071,
    -0.05615719853198984,
    0.022113523909325236,
)
