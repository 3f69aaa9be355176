"""Values and slopes of closed forms at the worst inputs that a search found, and edges nearby."""

from __future__ import annotations

import math
import sys
from dataclasses import replace

import numpy as np
import pytest

from bench.studies.search import errors, truth
from bench.studies.searching import by_torch
from bench.studies.targets import GROUPS
from kldiv import distributions as d
from kldiv import kl_divergence as kl

TARGETS = {target.name: target for group in GROUPS.values() for target in group()}
# Normals by what describes them: P's mean and numbers, then Q's.
NORMALS = [
    # Components that tell one factor far better than those before them, and factors of which the
    # first is small beside the second.
    ("low rank‖low rank", (
        0.005821865, -222.7289, -534.3934, 0.5857362, 0.4197851, 0.02235939,
        1.857309, -38.8458, -342.9765, 0.02112087, 0.02027, 16.25206,
        143.3874, 684.4739, -536.5926, 0.314291, -498.6698, -2137.414,
        0.03148046, 0.05943631, 0.00519763, 454.9283, 8.226901e-05, 0.001583575,
    )),
    ("low rank‖low rank", (
        619.3609, -1.983518, 0.3116259, 0.6154592, -8.252473, 204.4247,
        0.6086473, -8.443085, 200.1564, 0.008844152, 0.006897982, 0.006897982,
        619.3609, 0.001987511, 0.001316687, 0.04499977, -0.0155657, -0.005775631,
        -47.6261, -8.443085, 200.1564, 0.000756477, 0.003909776, 0.07540705,
    )),
    # Slopes that passed through the Cholesky factor of a matrix that is given.
    ("covariance‖scale_tril", (
        9.45124245, 264.209045, 450.991364, 1.60503292, -18.0195656, 202.379425, -54.1491051,
        408.25177, 563738.625, -17.1721344, 0.0379515328, 0.00986557733, 129.630615, 0.026137678,
        3.38570595, -4.03650665, -4.93880558, 0.00142725511,
    )),
    ("covariance‖diagonal", (
        9.27147484, 6.19054174, 3.11837864, 0.0243773293, 0.00147897308, 8.98268481e-05,
        1.29207551, 0.0761048049, 140.980225, 0.00307293376, 274.391418, -0.0412539765,
        99.2580795, 2.85434103, 0.0132696759,
    )),
    ("covariance‖low rank", (
        722.857849, -0.0011622305, 11.7076664, 22415.3984, -3.62437272, 8045.28369, -144.295502,
        1.13676178, 0.929182291, 177.00322, 41.989399, 0.0150569044, 0.00403944403, 0.00394641655,
        65.2253723, 541.159729, 36.2297363, 4.68089676, 0.0994569957, 0.00325761875,
        0.00270629558,
    )),
    # A factor whose components are in another order than it tells.
    ("scale_tril‖low rank", (
        0.00501215179, 84.865242, -0.0457832366, 344.464874, -2.20776129, 1.70611274, 5.10709047,
        -0.019510515, 10.5605345, 242.644882, 84.4393387, -0.0037261711, 1.40788376,
        -0.00133566756, 0.0819681361, 1.09128892, 323.925018, -23.9664955, 322.182617,
        0.0679973066, 0.00178818731,
    )),
    # Nearly singular matrices, whose last pivot is as small as its rounding.
    ("precision‖scale_tril", (
        1.1440748, -234.137665, -0.725982606, 0.0994024202, -6.51652002, 830.085938, -138.313217,
        9067.28027, 192455.609, 1.64428222, 16.008606, -0.509681702, 0.561971009, -256.128723,
        0.837704778, 14.7949085, 0.0324873589, 0.749910712,
    )),
    ("precision‖precision", (
        276.569885, -0.0327496938, -572.429504, 14.6167145, 18.2531395, 359.982758, 0.0783110783,
        0.166954651, 0.000433748181, 276.569885, 254.188477, -3.73664832, 73.0552979, 1.9301399,
        359.952179, -113.488914, 0.168066934, 458.469757,
    )),
    # Triangles whose derivatives are solved for: pivots would leave the rounding of large rows.
    ("scale_tril‖scale_tril", (
        0.32053924, 0.185761205, 305.510954, 0.0356970778, -0.130331108, 57.6786692, -1.7085572,
        0.0022744568, 0.0200379709, 0.128079092, 0.00144417921, -226.638016, 996.548118,
        -9.76155938, 0.00108091406, 0.412548667, -0.270879303, 0.00681271333,
    )),
]  # fmt: skip
FOUND = [
    ("Beta", (1730.6286850687075, 0.027129654751141423, 0.0019686997465812226, 0.0020729282654)),
    ("Beta", (44778.140625, 0.015556014142930508, 60356.16796875, 13166.927734375)),
    ("Beta", (2447.7869919365635, 438.52811033168194, 0.002713337610934558, 0.00364583882911)),
    ("Beta", (325.97247314453125, 227.44668579101562, 0.00010844932694453746, 0.0273815374821)),
    ("Beta", (0.0019255219250358497, 3404.511550908642, 1598.3567512113812, 667.5145343121146)),
    ("Dirichlet", (3000.0, 0.02, 1e-3, 1e-4, 2e-3, 1e-5)),
    ("ContinuousBernoulli, logits", (3.506770142924052, -0.4917476096254066)),
    ("ContinuousBernoulli, logits", (-1.0785084962844849, -18.721975326538086)),
    ("ContinuousBernoulli, logits", (7.3192219734191895, 1.7726236581802368)),
    ("VonMises", (-0.0100823978675519, 16.079053183840035, 0.820915271648614, 0.003352758107)),
    ("VonMises", (-0.004214921306158823, 3.74173819355894, -0.006085251024861, 0.00040104868632)),
    ("VonMises", (0.23487738683050996, 23.96387114682117, 0.23475975110969158, 0.00291306296)),
    ("VonMises", (1.4566891193389893, 0.002127521438524127, -0.003749792231246829, 3186.619140625)),
    ("VonMises", (0.0, 711296.125, 0.0, 164963.453125)),
    (
        "VonMises",
        (-0.062157490568619224, 1.3288697906739444, -0.08315427080528877, 0.00826107357896341),
    ),
    ("Binomial 5, 9", (2.404033921266091e-06, 1.2450315807654988e-05)),
    ("Binomial 5, 9", (4.113199077250189e-06, 3.0371582444436693e-05)),
    ("Gumbel", (204.55679321289062, 33.837764739990234, 0.004146182909607887, 0.270134776830673)),
    ("Geometric", (0.7407, 4.4e-6)),
    ("Geometric, logits", (0.1286114901304245, -59.346595764160156)),
    ("NegativeBinomial, logits", (28.142475128173828, -0.037324994802474976)),
    ("Gamma", (6089.28, 1456.0, 0.06128, 0.005511)),
    ("Gamma", (27193.50006027017, 4650.454473067586, 0.12311501843981834, 0.00116850070253)),
    ("InverseGamma", (20417.1953125, 90.66423034667969, 0.06623565405607224, 9.189694537781e-05)),
    ("Laplace", (892.6843872070312, 0.004889452829957008, 892.8042602539062, 0.0050944667309522)),
    ("ContinuousBernoulli", (0.012981722131371498, 0.22185364365577698)),
    # The farthest two normals of vectors that are near.
    ("MultivariateNormal, precision", (7.668366, -0.0324, 10.3566, 3.864024, 0.375372, 10.3566)),
    # A factor in whose first column the pivot would be a row of far larger numbers.
    ("MultivariateNormal, precision", (0.00149, 0.001525, 832.2, 0.001137, -0.28022, 619.73)),
    ("MultivariateNormal, covariance", (0.00149, 0.001525, 832.2, 0.001137, -0.28022, 619.73)),
    ("MultivariateNormal, covariance", (0.50001, 1e-3, 1.0, 1.0, 1e-3, 1.0)),
    # A factor whose rows nearly follow one another, and far larger than that of P.
    (
        "LowRankMultivariateNormal",
        (-0.00522767, 0.01748212, 5.663158, 0.00391268, -2081.005, 144.94015, 3.8969247, 5.311e-05),
    ),
    (
        "LowRankMultivariateNormal",
        (-0.12487510, 0.0168048, 0.036, 0.0489594, 23.10955, -69.61066885, 0.036, 0.0103313048),
    ),
    *((f"normals, {ways}", case) for ways, case in NORMALS),
    # Slopes whose parts are beyond the numbers of float32, or of both.
    ("Geometric, logits", (38.110218, 92.01123)),
    ("Geometric, logits", (-99.5, -100.25)),
    ("Laplace", (4.281189e-17, 7.0005157e-15, 161270431744.0, 12321105641472.0)),
    ("Cauchy", (-2.74309e23, 6.570597e-14, 1.117845e22, 1.3923036e-18)),
    ("Normal, log-variance", (-1.7535109e-25, -194.36659, -1.7288013e-25, -196.36546)),
    # Scales far apart: an exponential of a logarithm would have its rounding.
    ("Normal", (1.0, 1e10, 2.0, 1e-9)),
    ("HalfNormal", (1e15, 1e-12)),
    ("Laplace", (1.0, 1e10, 2.0, 1e-9)),
    ("Exponential", (1e-9, 1e9)),
    ("Pareto", (2.0, 1e-9, 1.0, 1e9)),
    # Moments whose slopes cancel each other's.
    ("Exponential‖Gumbel", (0.0014721774, 0.0324926674, 0.00111615926)),
    ("Gamma‖Gumbel", (3.16786577, 0.00325288204, 0.103129834, 0.00162560737)),
    ("Uniform‖Gumbel", (0.00015708041610196233, 0.367874891, 0.00726163387, 0.00160835707)),
    ("Normal‖Gumbel", (-0.0019379067, 2.80324745, -780.435608, 0.00519676972)),
    ("LogNormal‖Gamma", (-411.8466796875, 23.5832062, 35526.49609375, 0.0466190875)),
    ("LogNormal‖Gamma", (62.829750, 0.43405253, 0.01736747, 112.738052)),
    ("LogNormal‖Exponential", (-987.694214, 41.4955559, 0.135175630)),
    ("LogNormal‖HalfNormal", (0.063535161, 9.4748707, 1.0000000150474662e30)),
    ("LogNormal‖Normal", (-913.358643, 27.7500496, 122.323547, 0.00429866184)),
    ("Pareto‖Normal", (0.0015052067, 2.00467849, -0.0794106722, 16.4783726)),
    ("Pareto‖Gamma", (0.0013245072, 1.00161982, 75689.7421875, 0.482816279)),
    ("Uniform‖Pareto", (0.00783464499, 0.386620909, 0.00119001651, 0.00109301449)),
    ("ContinuousBernoulli‖HalfNormal", (-0.0010040314, 917.022949)),
    ("ContinuousBernoulli‖Exponential", (-0.0011696956, 0.00117682712)),
    ("Normal‖Laplace", (-43.97132110595703, 5.725151538848877, 87.18983459472656, 0.00252535333)),
    ("LogNormal‖Gamma", (-1.0, 8.0, 2.0, 2.0)),
    ("LogNormal‖Gamma", (0.0828113406896, 12.996091842651367, 0.036379706114, 2.925009966)),
    ("LogNormal‖Normal", (-153.5768280029297, 0.1236409917473793, 0.27244383096694946, 22.8937)),
    ("Uniform‖Beta", (5.3912845e-05, 0.00013169345, 1.0000001192092896, 1.2066233158111572)),
    ("plug_in_kl", (43.67362976, 1274.169189453125, 929589.6875, 43.6735, 1273.9862, 929800.75)),
    ("cross_entropy, normalised", (1.026e-06, 5.8314e-07, 0.999999, 1.36e-06, 1.33e-06, 0.27189)),
    ("cross_entropy, normalised", (0.999999, 2.279e-06, 6.7e-06, 0.999999, 2.33e-06, 6.9e-06)),
    ("entropy, normalised", (0.999999, 2.279e-06, 6.7e-06)),
    (
        "renyi_divergence 20",
        (0.0009425309, 0.004713208880275488, 0.00156681, 0.189890325, 0.009485429152, 0.0066324044),
    ),
    (
        "renyi_divergence 20",
        (0.02966908, 3.206071414751932e-05, 0.0014645960, 0.0790169537, 0.075120233, 0.9933684468),
    ),
    (
        "renyi_div_with_logits 20",
        (16.51505470275879, 0.00776554504, 0.911010980, 21.1935634613, 0.00817461684, 0.724796175),
    ),
    (
        "renyi_div_with_logits 2",
        (-0.00214079354, 26.57232706166, 0.75258989, -0.002140043, 26.563877893891, 0.751180346),
    ),
    (
        "hellinger_div_with_logits, temperature",
        (26.9664192, 5.70546224, 0.00742249, 26.9664192, 5.182317550, 0.00742249, 0.136608519),
    ),
    (
        "topk_kl_div_with_logits, JS",
        (20.58829116821289, -0.010161789, 0.223558664, 16.8260325, 45.302940368, 0.1388887614),
    ),
    ("kl_divergence, normalised", (1.33e-05, 0.9755, 3.354e-06, 0.22878, 0.06277, 3.5e-05)),
]


@pytest.mark.parametrize(("name", "case"), FOUND, ids=lambda x: x if isinstance(x, str) else "")
def test_values_and_slopes_are_right_to_ten_units_of_their_condition(name, case):
    pytest.importorskip("torch")
    target = TARGETS[name]
    if "low" in name.lower():  # rank: whose second derivatives lose by the condition of Σ
        target = replace(target, order=1)
    for dtype in ("float64", "float32"):
        case = np.array(case, dtype).astype(np.float64)
        wanted = truth(target, case)
        found = by_torch(target, case[None], dtype)
        of_value, of_slopes, of_bends = errors(found, 0, wanted, dtype, signed=target.signed)
        assert of_value <= 10, dtype
        assert of_slopes <= 10, dtype
        assert of_bends <= 2e3, dtype


@pytest.mark.parametrize("family", [d.Gamma, d.InverseGamma])
@pytest.mark.parametrize(
    "numbers",
    [
        (394.0, 4.75e19, 8.43e7, 1.1e-20),  # a quotient of rates that float32 does not have
        (2.36e-5, 7.2e19, 3.2e-7, 4.5e-20),
        (0.083, 6.75e18, 0.0035, 6.1e-12),
    ],
)
def test_rates_whose_quotient_is_no_number(family, numbers):
    torch = pytest.importorskip("torch")
    found = []
    for dtype in (torch.float32, torch.float64):
        leaves = [torch.tensor(x, dtype=torch.float32).to(dtype).requires_grad_() for x in numbers]
        value = kl(family(*leaves[:2]), family(*leaves[2:]))
        found.append([value.item(), *(x.item() for x in torch.autograd.grad(value, leaves))])
    held = [x if abs(x) < 1e38 else pytest.approx(math.inf) for x in found[1]]
    assert [abs(x) if abs(x) == math.inf else x for x in found[0]] == pytest.approx(
        held, rel=1e-5, abs=0
    )


def test_uniforms_may_differ_by_less_than_the_rounding_of_their_width():
    torch = pytest.importorskip("torch")
    for low in (-1e-20, 0.0):
        ends = torch.tensor([0.0, 1.0, low, 1.0], dtype=torch.float64, requires_grad=True)
        value = kl(d.Uniform(*ends[:2]), d.Uniform(*ends[2:]))
        assert value.item() == pytest.approx(-low, rel=1e-15, abs=0)
        assert torch.autograd.grad(value, ends)[0].tolist() == pytest.approx([1, -1, -1, 1])


def test_moments_beyond_the_numbers():
    wide = [np.float32(x) for x in (-7.87, 10.5, 4.8e20, 1e30)]  # whose moments are, and D is not
    assert kl(d.LogNormal(*wide[:2]), d.Normal(*wide[2:])) == pytest.approx(4.218016e28, rel=1e-6)
    numbers = [np.float32(x) for x in (0.00269, 0.02924, 53212, 0.0632)]
    found, wanted = (
        kl(d.Weibull(*x[:2]), d.Gamma(*x[2:])) for x in (numbers, list(map(float, numbers)))
    )
    assert found == pytest.approx(wanted, rel=1e-4, abs=0)
    for p in (d.LogNormal(2.0, 1e300), d.Pareto(1e300, 3.0)):
        assert kl(p, d.HalfNormal(1e-300)) == kl(p, d.Normal(0.0, 1e-300)) == math.inf
    assert kl(d.LogNormal(2.0, 1e300), d.Gamma(3.0, 1.0)) == math.inf


def test_von_mises_at_edges_needs_no_scipy(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.special", None)
    inf, nan = math.inf, math.nan
    rows = np.array([
        # μ₁, κ₁, μ₂, κ₂, D: κ of 0 is uniform, of ∞ a point
        (0, 0, 1, 0, 0), (0, inf, 0, inf, 0), (0, inf, 1, inf, inf), (0, 1, 0, inf, inf),
        (0, inf, 0, 1, inf), (0, -1, 0, 1, nan), (0, 1, 0, -1, nan), (nan, inf, 0, 1, nan),
    ])  # fmt: skip
    *parameters, wanted = rows.T
    np.testing.assert_array_equal(
        kl(d.VonMises(*parameters[:2]), d.VonMises(*parameters[2:])), wanted
    )


def test_second_derivatives_of_von_mises_are_fishers_information():
    torch = pytest.importorskip("torch")

    def value(k):
        return kl(d.VonMises(0.3, k[0]), d.VonMises(0.3, k[1])).sum()

    for k, information in ((0.0, 0.5), (1e30, 0.0)):  # 1 − A/κ − A²
        found = torch.autograd.functional.hessian(value, torch.tensor([k, k]))
        wanted = [[information, -information], [-information, information]]
        torch.testing.assert_close(found, torch.tensor(wanted))
