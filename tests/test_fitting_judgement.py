"""How `fitting.rank` judges: fitted ends, families left out, intervals, kinds of data."""

from __future__ import annotations

import json
import math
from functools import partial
from itertools import pairwise

import numpy as np
import pytest

from kldiv import fitting
from kldiv._families import FAMILIES, Family, family_of
from kldiv.errors import InputError, ShapeError
from kldiv.formulas import samples

scipy_stats = pytest.importorskip("scipy.stats")
special = pytest.importorskip("scipy.special")
integrate = pytest.importorskip("scipy.integrate")


# --- families whose ends follow the data ----------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "law"),
    [("Uniform", scipy_stats.uniform(2.0, 3.0)), ("Pareto", scipy_stats.pareto(2.0))],
)
def test_a_family_with_fitted_ends_can_win(family, law):
    data = law.rvs(1000, random_state=np.random.default_rng(2))
    ranking = fitting.rank(data)
    assert ranking.best.family == family
    assert ranking.fits[1].behind > 0.01
    assert ranking.best.kl.low < 0 < ranking.best.kl.high < 0.05
    assert ranking.warnings == ()


@pytest.mark.parametrize("name", ["Uniform", "Pareto", "expon"])
def test_what_is_expected_of_a_new_point_is_a_density(name):
    data = np.random.default_rng(3).uniform(2.0, 5.0, 40)
    family = family_of(name)
    numbers = family.fit(data)
    ends = [end for _, end in family.moving_ends(numbers)]

    def density(x):
        return float(np.exp(family.log_predictive(np.array([x]), numbers, 40))[0])

    cuts = [-np.inf, *ends, np.inf]
    parts = [integrate.quad(density, *pair)[0] for pair in pairwise(cuts)]
    assert sum(parts) == pytest.approx(1.0, abs=1e-6)
    beyond = [parts[0], parts[-1]] if len(ends) == 2 else [parts[0]]
    assert beyond == pytest.approx([1 / 41] * len(ends), abs=1e-6)


def test_it_is_the_bayesian_predictive_of_uniform_data_to_first_order():
    """With the prior 1/(b − a): (n − 1)/(n + 1) R^(n−1) (R + d)^−n, d the distance beyond."""
    n, family = 400, FAMILIES["Uniform"]
    data = np.random.default_rng(3).uniform(-1.0, 1.0, n)
    numbers, span = family.fit(data), np.ptp(data)
    for steps in (-1.0, 0.0, 0.5, 2.0):
        d = max(steps, 0.0) * span / n
        found = family.log_predictive(np.array([data.max() + steps * span / n]), numbers, n)
        exact = math.log((n - 1) / (n + 1)) + (n - 1) * math.log(span) - n * math.log(span + d)
        assert found[0] == pytest.approx(exact, abs=5 / n)


def test_no_point_of_the_data_is_beyond_the_fitted_ends():
    for seed in range(20):
        data = 1e9 + np.random.default_rng(seed).normal(size=50) / 3
        for name in ("Uniform", "Pareto", "expon"):
            family = family_of(name)
            assert np.isfinite(family.log_likelihoods(data, family.fit(data))).all()


# --- where the data lie ---------------------------------------------------------------------------


REAL = [name for name, family in FAMILIES.items() if family.support == "real"]
SCALED = ["HalfNormal", "Exponential", "Gamma", "InverseGamma", "LogNormal", "Weibull", "Pareto"]


@pytest.mark.parametrize("family", [*REAL, "logistic"])
def test_a_family_of_all_numbers_has_no_origin_and_no_unit(family):
    # Steps of 2⁻²⁰, so that the data are the same far from the origin.
    data = np.round(np.random.default_rng(5).standard_t(4, size=200) * 2**20) / 2**20
    score = fitting.rank(data, [family]).best.score
    assert fitting.rank(data + 1e9, [family]).best.score == pytest.approx(score, abs=1e-5)
    for unit in (2.0**-500, 2.0**500):
        moved = fitting.rank(data * unit, [family]).best.score
        assert moved + math.log(unit) == pytest.approx(score, abs=1e-5)


@pytest.mark.parametrize("family", SCALED)
def test_a_family_of_positive_numbers_has_no_unit(family):
    data = np.random.default_rng(5).gamma(3.0, size=200)
    score = fitting.rank(data, [family]).best.score
    for unit in (2.0**-500, 2.0**500):
        moved = fitting.rank(data * unit, [family]).best.score
        assert moved + math.log(unit) == pytest.approx(score, abs=1e-6)


def test_a_family_that_cannot_be_fitted_is_left_out_with_the_reason():
    data = np.random.default_rng(0).normal(size=500) + 1e9
    ranking = fitting.rank(data)
    ranked = {fit.family: fit for fit in ranking.fits}
    left_out = {text.partition(" ")[0] for text in ranking.warnings if "left out" in text}
    # Their shape would be 10¹⁸, whose log-density double precision does not hold.
    assert left_out == {"Gamma", "InverseGamma"}
    assert left_out.isdisjoint(ranked)
    normal = scipy_stats.norm.logpdf(data - 1e9, *scipy_stats.norm.fit(data - 1e9)).mean()
    for family in ("Normal", "LogNormal", "StudentT"):
        assert ranked[family].score == pytest.approx(normal, abs=0.02)
    assert ranking.best.kl.low < 0 < ranking.best.kl.high
    with pytest.raises(InputError, match="Gamma cannot be fitted to these data, so left out: "):
        fitting.rank(data, ["Gamma"])


def test_any_error_of_a_fit_is_a_reason(monkeypatch):
    def fail(data):
        raise RuntimeError("first line\nsecond")

    broken = Family("Broken", "norm", "real", dict, fitter=fail)
    monkeypatch.setitem(FAMILIES, "Broken", broken)
    steps = []
    data = np.random.default_rng(0).normal(size=100)
    ranking = fitting.rank(data, ["Broken", "Normal"], progress=lambda *a: steps.append(a))
    assert [fit.family for fit in ranking.fits] == ["Normal"]
    assert ranking.warnings == ("Broken cannot be fitted to these data, so left out: first line",)
    assert steps[-1] == (12, 12)


def test_a_shape_that_cannot_be_computed_is_an_error():
    data = 1.0 + np.random.default_rng(0).normal(size=100) * 1e-6
    with pytest.raises(InputError, match=r"its shape would be 1\..*e\+12"):
        FAMILIES["Gamma"].fit(data)


# --- what the data are taken for ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (np.arange(60.0) % 30, "counts"),
        (np.arange(60.0) % 31, "continuous"),  # whole, but most differ
        (np.arange(60), "counts"),  # integers
        (np.arange(60) - 1, "continuous"),
        (2.0**53 + 2 * (np.arange(60) % 7), "continuous"),
        (2**53 + 2 * (np.arange(60) % 7), "continuous"),
    ],
    ids=["few", "many", "integers", "negative", "large", "large integers"],
)
def test_whole_numbers(data, kind):
    ranking = fitting.rank(data, ["Normal", "Poisson"])
    assert ranking.kind == kind
    assert f"60 points, taken for {kind}" in str(ranking)
    said = any("say kind='counts'" in text for text in ranking.warnings)
    assert said == (data.dtype.kind == "f" and data.max() == 30)


def test_what_cannot_be_counts():
    with pytest.raises(InputError, match=r"whole numbers from 0 to 2\*\*53"):
        fitting.rank(2.0**53 + np.arange(30.0), kind="counts")


class Columns:
    """What a table of pandas or polars shows."""

    def __init__(self, **columns):
        self.columns = list(columns)
        self.values = np.stack([*columns.values()], axis=1)

    def __array__(self, dtype=None, copy=None):
        return self.values


def test_data_of_several_columns_are_refused():
    a, b = np.random.default_rng(0).normal(size=(2, 30))
    with pytest.raises(ShapeError, match=r"2 columns, height, weight; .* data\['height'\]"):
        fitting.rank(Columns(height=a, weight=b))
    with pytest.raises(ShapeError, match=r"shape \(30, 2\); expected one list"):
        fitting.rank(np.stack([a, b], axis=1))
    with pytest.raises(ShapeError, match=r"shape \(30, 2\)"):
        fitting.rank([[1.0, 2.0]] * 30)
    one = fitting.rank(a, ["Normal"])
    assert fitting.rank(Columns(height=a), ["Normal"]) == one
    assert fitting.rank(a[:, None], ["Normal"]) == one


# --- the absolute divergence and its interval -----------------------------------------------------


def test_spacings_of_uniform_points_have_the_mean_and_the_variance_that_are_said():
    m, n = 5, 200
    random = np.random.default_rng(0)
    digammas = float(special.digamma(m) - special.digamma(n + 1))
    density = partial(samples.log_density_on_unit, np, m=m, digammas=digammas)
    means, variances = [], []
    for _ in range(2000):
        points = np.concatenate([[0.0], np.sort(random.uniform(size=n)), [1.0]])
        found = density(points, 1 - points)
        means.append(found.mean())
        variances.append(found.var(ddof=1))
    polygammas = [float(special.polygamma(order, m)) for order in (1, 3)]
    noise = samples.spacing_noise(m, n, polygammas)
    assert np.mean(means) == pytest.approx(0.0, abs=4 * math.sqrt(noise.joint / n / 2000))
    assert n * np.var(means) == pytest.approx(noise.joint, rel=0.15)
    assert np.mean(variances) == pytest.approx(noise.own, rel=0.05)
    assert np.std(variances) == pytest.approx(noise.error, rel=0.15)
    # D. A. Darling, "On a class of problems related to the random division of an interval" (1953).
    single = samples.spacing_noise(1, n, (math.pi**2 / 6, math.pi**4 / 15)).joint
    assert single == pytest.approx(math.pi**2 / 6 - 1)


@pytest.mark.parametrize("family", ["Exponential", "Poisson"])
def test_intervals_cover_about_as_often_as_they_say(family):
    """`bench.studies.fit_coverage` has the numbers; here a factor of about 1.4 in width is seen."""
    law = {"Exponential": scipy_stats.expon(), "Poisson": scipy_stats.poisson(4.0)}[family]
    scores = []
    for seed in range(150):
        data = law.rvs(300, random_state=np.random.default_rng(seed))
        fit = fitting.rank(data, [family]).best
        rate = fit.parameters["rate"]
        if family == "Exponential":
            true = -math.log(rate) + rate - 1
        else:
            true = 4 * math.log(4 / rate) + rate - 4
        scores.append((fit.kl.value - true) / fit.kl.standard_error)
    assert 0.7 < np.std(scores) < 1.25
    assert abs(np.mean(scores)) < 0.4
    assert np.mean(np.abs(scores) < 1.96) > 0.9


def test_rare_counts_are_one_cell():
    expected = np.array([0.0, 9.0, 0.5, 0.4, 1.0, 1.5, 0.1, 0.2, 0.3])
    observed = np.array([0.0, 8.0, 0.0, 5.0, 0.0, 1.0, 0.0, 1.0, 0.0])
    found = fitting._cells(expected, observed)
    assert found.tolist() == [0, 0, 1, 1, 2, 2, 2, 2, 2]
    assert fitting._cells(np.array([0.1, 0.2]), np.array([0.0, 1.0])).tolist() == [0, 0]


def test_counts_with_gaps_have_a_divergence():
    """All even: a Poisson distribution has half of its probability elsewhere."""
    data = 2.0 * np.random.default_rng(0).poisson(3.0, 2000)
    fit = fitting.rank(data, ["Poisson"]).best
    # D of 2·Poisson(3) from Poisson(6), summed.
    k = np.arange(60)
    p = scipy_stats.poisson.pmf(k, 3.0)
    true = float(np.sum(p * (np.log(p) - scipy_stats.poisson.logpmf(2 * k, 6.0))))
    assert fit.kl.low < true < fit.kl.high
    assert fit.kl.high - fit.kl.low < 0.1


def test_where_the_best_is_poor_the_interval_is_of_the_true_divergence():
    """Uniform data described by an exponential distribution: log(mean) + 1 − log(width)."""
    data = np.random.default_rng(1).uniform(0.0, 2.0, size=4000)
    fit = fitting.rank(data, ["Exponential"]).best
    assert fit.kl.low < 1 - math.log(2) < fit.kl.high
    assert fit.kl.value == pytest.approx(1 - math.log(2), abs=0.02)


def test_where_the_fit_underflows_there_is_a_density_all_the_same():
    data = np.random.default_rng(1).normal(size=4000)
    own, _ = fitting._densities(data, np.zeros(4000), 5, FAMILIES["Normal"], (0.0, 0.01))
    assert own.mean() == pytest.approx(-0.5 * math.log(2 * math.pi * math.e), abs=0.03)


@pytest.mark.parametrize(
    ("family", "numbers", "point", "wanted"),
    [  # SciPy's are −∞ for the first three
        ("Laplace", (0.0, 1.0), 1e6, -1e6 - math.log(2)),
        ("StudentT", (3.0, 0.0, 1.0), 1e250, math.log(6 * 3**0.5 / math.pi) - 1000 * math.log(10)),
        ("Pareto", (2.0, 0.0, 1.0), 1e250, -3 * 250 * math.log(10) + math.log(2)),
        ("Poisson", (1e12, 0.0), 1e12, -0.5 * math.log(2e12 * math.pi)),
        ("NegativeBinomial", (1e12, 0.5, 0.0), 1e12, -0.5 * math.log(4e12 * math.pi)),
        ("Poisson", (2.0, 0.0), 2.5, -math.inf),
        ("Uniform", (0.0, 1.0), 1.5, -math.inf),
    ],
)
def test_log_likelihoods_reach_far_and_keep_their_digits(family, numbers, point, wanted):
    found = FAMILIES[family].log_likelihoods(np.array([point]), numbers)
    assert found[0] == pytest.approx(wanted, rel=1e-12)


def test_a_laplace_is_not_impossible_where_one_point_is_far():
    data = np.append(np.random.default_rng(0).laplace(size=400), 1e5)
    fit = fitting.rank(data, ["Laplace"]).best
    assert math.isfinite(fit.score)
    assert math.isfinite(fit.kl.value)


@pytest.mark.parametrize("mean", [1e6, 1e12])
def test_a_negative_binomial_of_large_counts_is_no_worse_than_the_poisson_in_it(mean):
    data = np.random.default_rng(0).poisson(mean, 400)
    behind = {fit.family: fit.behind for fit in fitting.rank(data, kind="counts").fits}
    assert abs(behind["NegativeBinomial"] - behind["Poisson"]) < 0.01


@pytest.mark.parametrize("offset", [1e15, 1e16])
def test_where_floats_are_coarse_there_is_a_divergence_all_the_same(offset):
    """Spread within their rounding, points of that size round to one another again."""
    data = np.random.default_rng(0).normal(scale=4.0, size=400) + offset
    ranking = fitting.rank(data)
    assert ranking.best.family == "Normal"  # logarithms have no digits left for LogNormal
    assert ranking.best.kl.value == pytest.approx(0.0, abs=0.05)
    assert any("LogNormal cannot be fitted" in text for text in ranking.warnings)


def test_a_peak_at_a_frequent_value_is_no_closer_than_the_data():
    """A scale that shrinks to 0 there is infinitely likely, and the divergence was −16 nats."""
    fits = fitting.rank(np.repeat([2.5, 7.1], (49, 1))).fits
    assert all(fit.kl.high > 0 for fit in fits)


def test_a_fold_without_scatter_is_named():
    warnings = fitting.rank(np.repeat([2.5, 7.1], (49, 1))).warnings
    assert any("from 2.5 to 2.5: no unit fits" in text for text in warnings)


def test_integers_that_float64_rounds_are_named():
    data = 2**55 + 1000 * np.random.default_rng(0).integers(0, 1000, size=60)
    for points, said in ((data, True), (data - 2**55, False)):
        warnings = fitting.rank(points, ["Normal"], kind="continuous").warnings
        assert any("rounded to float64" in text for text in warnings) == said


def test_data_rounded_to_the_end_of_the_support_keep_a_divergence():
    data = np.round(np.random.default_rng(1).exponential(2.0, size=1000), 1)
    fit = fitting.rank(data, ["Exponential"]).best
    assert fit.kl.value == pytest.approx(0.0, abs=0.05)


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture
def two_columns(tmp_path):
    table = tmp_path / "two.csv"
    rows = np.random.default_rng(0).normal(size=(40, 2)).round(3)
    table.write_text("a,b\n" + "\n".join(f"{a},{b}" for a, b in rows))
    return table


def test_the_command_names_the_columns(fit, two_columns, tmp_path):
    from click import ClickException

    with pytest.raises(ClickException, match=r"2 columns of numbers, a, b; .*two\.csv::a"):
        fit(two_columns)
    np.save(tmp_path / "flat.npy", np.zeros((20, 3)))
    with pytest.raises(ClickException, match=r"shape \(20, 3\)"):
        fit(tmp_path / "flat.npy")


def test_the_command_says_kind_and_level(fit, two_columns):
    shown = fit(f"{two_columns}::a", "--families", "Normal").out
    assert "40 points, taken for continuous numbers" in shown
    assert "95 % from" in shown
    found = json.loads(fit(f"{two_columns}::a", "--families", "Normal", "--json").out)
    assert (found["kind"], found["confidence"]) == ("continuous", 0.95)


def test_titles_of_pictures_are_plain():
    pytest.importorskip("matplotlib")
    from kldiv.cli.fit_plot import _title

    found = fitting.rank(np.random.default_rng(0).normal(size=200), ["Normal"])

    def title(low, high):
        kl = found.best.kl._replace(low=low, high=high)
        best = fitting.Fit("Normal", {}, 0.0, 0.0, 0.0, kl)
        return _title(fitting.Ranking((best,), "continuous", 200, ()), "x.csv")

    assert title(-0.02, 0.012) == "Normal fits x.csv best: at most 0.012 nats from the data (95 %)"
    assert title(0.02, 0.1) == "Normal fits x.csv best: 0.020 to 0.100 nats from the data (95 %)"
    assert title(-0.2, -0.1) == "Normal fits x.csv best: no divergence from the data is found"
    assert "impossible" in title(math.inf, math.inf)
