"""`fitting.rank` and ``kldiv fit``: which family made the data, and how far the best one is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from libraries import Library

import kldiv
from kldiv import fitting
from kldiv._families import FAMILIES
from kldiv.errors import DTypeError, InputError, LibraryError, OptionError, ShapeError

scipy_stats = pytest.importorskip("scipy.stats")

EXAMPLES = Path(__file__).parents[1] / "examples" / "fit"

# What made the data, and its parameters.
MADE = {
    "Normal": ({"loc": 3.0, "scale": 2.0}, lambda r, n: r.normal(3.0, 2.0, n)),
    "Laplace": ({"loc": -1.0, "scale": 0.5}, lambda r, n: r.laplace(-1.0, 0.5, n)),
    "Cauchy": ({"loc": 1.0, "scale": 2.0}, lambda r, n: 1.0 + 2.0 * r.standard_cauchy(n)),
    "Gumbel": ({"loc": 2.0, "scale": 3.0}, lambda r, n: r.gumbel(2.0, 3.0, n)),
    "StudentT": (
        {"df": 3.0, "loc": 1.0, "scale": 2.0},
        lambda r, n: 1.0 + 2.0 * r.standard_t(3.0, n),
    ),
    "Uniform": ({"low": -2.0, "high": 5.0}, lambda r, n: r.uniform(-2.0, 5.0, n)),
    "HalfNormal": ({"scale": 3.0}, lambda r, n: abs(r.normal(0.0, 3.0, n))),
    "Exponential": ({"rate": 0.25}, lambda r, n: r.exponential(4.0, n)),
    "Gamma": ({"concentration": 3.0, "rate": 0.5}, lambda r, n: r.gamma(3.0, 2.0, n)),
    "InverseGamma": ({"concentration": 4.0, "rate": 2.0}, lambda r, n: 2.0 / r.gamma(4.0, 1.0, n)),
    "LogNormal": ({"loc": 1.0, "scale": 0.7}, lambda r, n: r.lognormal(1.0, 0.7, n)),
    "Weibull": ({"scale": 3.0, "concentration": 2.5}, lambda r, n: 3.0 * r.weibull(2.5, n)),
    "Pareto": ({"scale": 2.0, "alpha": 3.0}, lambda r, n: 2.0 * (1.0 + r.pareto(3.0, n))),
    "Beta": ({"concentration1": 2.0, "concentration0": 5.0}, lambda r, n: r.beta(2.0, 5.0, n)),
    "Poisson": ({"rate": 6.0}, lambda r, n: r.poisson(6.0, n)),
    "Geometric": ({"probs": 0.3}, lambda r, n: r.geometric(0.3, n) - 1),
    "NegativeBinomial": (
        {"total_count": 3.0, "probs": 0.6},
        lambda r, n: r.negative_binomial(3.0, 0.4, n),
    ),
}


def test_every_family_has_its_data():
    assert set(MADE) == set(FAMILIES)


@pytest.mark.parametrize("family", MADE)
def test_the_family_that_made_the_data_is_near_the_top(family):
    true, make = MADE[family]
    data = make(np.random.default_rng(4), 3000)
    ranking = fitting.rank(data)
    assert ranking.kind == ("counts" if FAMILIES[family].support == "counts" else "continuous")
    (own,) = [fit for fit in ranking.fits if fit.family == family]
    # A family that contains it (Gamma the exponential one, …) may be ahead by chance.
    assert own.behind <= 2 * own.behind_error + 1e-9
    assert own.parameters == pytest.approx(true, rel=0.25, abs=0.15)
    assert own.kl.low < 0.02
    assert abs(own.kl.value) < 0.05
    assert not [text for text in ranking.warnings if "still" in text]


def test_the_score_is_of_points_not_fitted():
    data = np.random.default_rng(0).normal(size=60)
    fit = fitting.rank(data, ["Normal"], folds=4, seed=5).best
    fold = np.random.default_rng(5).permutation(60) % 4
    scores = np.empty(60)
    for part in range(4):
        train = data[fold != part]
        scores[fold == part] = scipy_stats.norm.logpdf(
            data[fold == part], train.mean(), train.std()
        )
    assert fit.score == pytest.approx(scores.mean(), rel=1e-12)


def test_the_divergence_is_the_true_one():
    """Normal data described by a Laplace distribution, whose divergence is known by quadrature."""
    data = np.random.default_rng(1).normal(size=20_000)
    fit = fitting.rank(data, ["Laplace"]).best
    b = np.sqrt(2 / np.pi)  # the best scale
    true = np.log(2 * b) + 1 - (0.5 + 0.5 * np.log(2 * np.pi))
    assert fit.kl.low < true < fit.kl.high
    assert fit.kl.value == pytest.approx(true, abs=0.03)


def test_counts_have_the_divergence_of_their_frequencies():
    random = np.random.default_rng(1)
    data = random.poisson(3.0, size=4000)
    best = fitting.rank(data).best
    assert best.family == "Poisson"
    assert best.kl.value == pytest.approx(0.0, abs=0.005)
    # The rarest counts are one cell, with the fit's shares in it.
    number = np.bincount(data.astype(int))
    law = scipy_stats.poisson(best.parameters["rate"])
    likely = 4000 * law.pmf(np.arange(len(number)))
    first = np.flatnonzero((likely < 2) & (number < 5))[0] - 1
    cells = np.append(number[:first], number[first:].sum()) / 4000
    expected = np.append(likely[:first], 4000 * law.sf(first - 1)) / 4000
    value = np.sum(cells * np.log(cells / expected)) + law.logpmf(data).mean() - best.score
    assert best.kl.value == pytest.approx(value - (len(cells) - 1) / 8000, abs=1e-12)
    wide = fitting.rank(random.negative_binomial(1.5, 0.2, size=4000), ["Poisson"])
    assert wide.best.kl.value > 0.5
    assert "still" in wide.warnings[-1]


def test_rounded_data_are_spread_and_it_is_said():
    data = np.random.default_rng(2).normal(0.0, 1.0, size=2000)
    exact, rounded = fitting.rank(data, ["Normal"]), fitting.rank(np.round(data, 1), ["Normal"])
    assert exact.warnings == ()
    assert "rounded" in rounded.warnings[0]
    assert rounded.best.kl.value == pytest.approx(exact.best.kl.value, abs=0.03)


def test_two_heaps_are_described_by_none():
    random = np.random.default_rng(2)
    data = np.concatenate([random.normal(-4, 1, 500), random.normal(4, 1, 500)])
    ranking = fitting.rank(data, ["Normal", "Laplace"])
    assert ranking.best.kl.low > fitting.POOR
    assert "none of these describes them" in ranking.warnings[-1]


def test_families_of_scipy_by_name():
    data = np.random.default_rng(3).logistic(size=500)
    ranking = fitting.rank(data, ["logistic", "Uniform"])
    assert ranking.best.family == "logistic"
    assert set(ranking.best.parameters) == {"loc", "scale"}
    assert ranking.best.distribution().mean() == pytest.approx(ranking.best.parameters["loc"])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_fit_is_a_distribution_of_ours(family):
    true, make = MADE[family]
    data = make(np.random.default_rng(5), 500)
    fit = fitting.rank(data, [family]).best
    law = fit.distribution()
    assert type(law) is getattr(kldiv.distributions, family)
    assert {name: float(value) for name, value in law.parameters()} == fit.parameters
    away = kldiv.kl_divergence(law, type(law)(**true), method="quadrature").value
    assert away > 0
    if family != "StudentT":  # without a closed form
        assert kldiv.kl_divergence(law, law) == pytest.approx(0.0, abs=1e-15)


@pytest.mark.leave_out(lambda lib: lib is Library.STRICTEST and "as array-api-strict")
def test_data_of_any_library(lib):
    data = np.random.default_rng(3).normal(size=100).astype(np.float32)
    found = fitting.rank(lib.from_numpy(data), ["Normal"]).best
    assert found == fitting.rank(data, ["Normal"]).best


def test_the_same_seed_gives_the_same_ranking():
    data = np.random.default_rng(3).normal(size=100)
    assert fitting.rank(data, seed=1) == fitting.rank(data, seed=1)
    assert fitting.rank(data, seed=1) != fitting.rank(data, seed=2)


def test_progress_is_told():
    steps = []
    fitting.rank(
        np.arange(1.5, 40), ["Normal", "Gamma"], folds=3, progress=lambda *a: steps.append(a)
    )
    assert steps == [(i, 8) for i in range(1, 9)]


DATA = np.linspace(-1.0, 1.0, 30)


@pytest.mark.parametrize(
    ("data", "options", "error", "said"),
    [
        ([1.0, 2.0, 3.5], {}, ShapeError, "20 points at least; got 3"),
        ([*DATA, np.nan], {}, InputError, "1 numbers that are NaN or infinite, the first at 30"),
        (DATA + 1j, {}, DTypeError, "complex"),
        (DATA, {"families": ["Normald"]}, OptionError, "no family 'Normald'; there are Normal"),
        (DATA, {"families": ["Gamma"]}, InputError, "none of Gamma is a family"),
        (DATA, {"kind": "counts"}, InputError, "whole numbers"),
        (DATA, {"kind": "reals"}, OptionError, "kind must be"),
        (DATA, {"folds": 16}, OptionError, "folds must lie between 2 and 15"),
        (DATA, {"neighbour": 0}, OptionError, "neighbour must be an integer between 1 and 29"),
        (DATA, {"neighbour": 30}, OptionError, "neighbour must be an integer between 1 and 29"),
        (DATA, {"confidence": 1.0}, OptionError, "confidence"),
        (np.full(30, 2.5), {"families": ["Normal"]}, InputError, r"all data are 2\.5"),
    ],
)
def test_what_cannot_be_ranked(data, options, error, said):
    with pytest.raises(error, match=said):
        fitting.rank(data, **options)


def test_what_is_left_out_and_missing(monkeypatch):
    left = fitting.rank(DATA, ["Normal", "Gamma"]).warnings
    assert left == ("not where the data are, and left out: Gamma",)
    monkeypatch.setitem(__import__("sys").modules, "scipy.stats", None)
    with pytest.raises(LibraryError, match=r"pip install .*kldiv\[scipy\]"):
        fitting.rank(DATA)


def test_a_ranking_prints_as_a_table():
    text = str(fitting.rank(np.random.default_rng(3).normal(size=100), ["Normal", "Cauchy"]))
    what, head, first, second = text.splitlines()
    assert what == "100 points, taken for continuous numbers"
    assert head.split() == ["family", "behind", "±", "KL", "95", "%", "from", "to", "parameters"]
    assert first.startswith("Normal")
    assert second.startswith("Cauchy")


# --- the command ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "family", "parameters"),
    [
        # Published fits: shape about 3 and scale about 11 mph; 122 deaths in 200 corps-years.
        ("wind.csv", "Weibull", {"scale": 11.1, "concentration": 3.05}),
        ("horse_kicks.csv", "Poisson", {"rate": 0.61}),
    ],
)
def test_published_data_choose_their_family(fit, name, family, parameters):
    found = json.loads(fit(EXAMPLES / name, "--json").out)
    assert found["fits"][0]["family"] == family
    assert found["fits"][0]["parameters"] == pytest.approx(parameters, rel=5e-3)
    for seed in (1, 2):
        again = json.loads(fit(EXAMPLES / name, "--json", "--seed", seed).out)
        assert again["fits"][0]["family"] == family
    text = fit(EXAMPLES / name).out.splitlines()
    assert text[3].startswith(family)


def test_the_published_data_are_whole():
    wind = np.loadtxt(EXAMPLES / "wind.csv", skiprows=1)
    assert (len(wind), wind.min(), wind.max(), np.median(wind)) == (153, 1.7, 20.7, 9.7)
    assert wind.mean() == pytest.approx(9.957516, abs=1e-6)
    kicks = np.loadtxt(EXAMPLES / "horse_kicks.csv", skiprows=1)
    assert np.bincount(kicks.astype(int)).tolist() == [109, 65, 22, 3, 1]


def test_options_and_notes(fit, tmp_path):
    shown = fit(EXAMPLES / "wind.csv", "--families", "Normal, Gamma,Poisson")
    assert "Weibull" not in shown.out
    assert "left out: Poisson" in shown.err
    assert "rounded" in shown.err
    table = tmp_path / "two.csv"
    table.write_text("a,b\n" + "\n".join(f"{i / 3},{i}" for i in range(1, 31)))
    found = json.loads(fit(f"{table}::b", "--json", "--kind", "continuous").out)
    assert (found["kind"], found["samples"]) == ("continuous", 30)


@pytest.mark.parametrize("name", ["wind.csv", "horse_kicks.csv"])
def test_pictures(fit, tmp_path, name):
    pytest.importorskip("matplotlib")
    path = tmp_path / "fit.png"
    fit(EXAMPLES / name, "--families", "Normal,Weibull,Poisson", "--plot", path)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_estimates_and_rankings_are_reached_from_the_package():
    assert kldiv.fitting is fitting
    assert kldiv.estimators.Estimate is type(
        fitting.rank(np.linspace(0.1, 1.0, 30), ["Normal"]).best.kl
    )
