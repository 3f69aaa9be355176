"""Parameters that no distribution has: the command names them, where functions return NaN."""

from __future__ import annotations

import pytest

pytest.importorskip("click")
pytest.importorskip("rich")

from kldiv import distributions as d
from kldiv.cli.app import app
from kldiv.cli.expressions import parse
from kldiv.errors import InputError

OUTSIDE = [
    ("Normal(0, -1)", "scale of Normal must be 0 or above, and finite; got -1"),
    ("Normal(inf, 1)", "loc of Normal must be finite; got inf"),
    ("Normal([0, 1], [1, -2])", r"scale of Normal .*; got -2\.0"),
    ("Gamma(-2, 1)", "concentration of Gamma must be above 0 and finite; got -2"),
    ("Gamma(2, 0)", "rate of Gamma"),
    ("StudentT(0)", "df of StudentT"),
    ("Beta(1, 0)", "concentration0 of Beta"),
    ("Uniform(1, 0)", "high of Uniform must be finite and at least low; got 0"),
    ("Bernoulli(1.2)", r"probs of Bernoulli must be between 0 and 1; got 1\.2"),
    ("Geometric(logits=inf - 0)", "cannot be read"),
    ("Binomial(2.5, 0.5)", r"total_count of Binomial must be a whole number, 0 or above; got 2\.5"),
    ("NegativeBinomial(0, 0.5)", "total_count of NegativeBinomial"),
    ("Poisson(-1)", "rate of Poisson"),
    ("VonMises(0, -1)", "concentration of VonMises"),
    ("Categorical([0.2, 0.9])", "probs of Categorical must be 0 or above, with sum 1"),
    ("Categorical([-0.5, 1.5])", r"probs of Categorical .* got -0\.5"),
    ("Multinomial(2, logits=[0, inf])", "logits of Multinomial must be below inf"),
    ("Dirichlet([1, 0])", "concentration of Dirichlet"),
    ("MultivariateNormalDiag([0, 0], [1, -1])", "scale_diag of MultivariateNormalDiag"),
    ("MultivariateNormal([0, 0], [[1, 2], [2, 1]])", "symmetric and positive definite"),
    ("MultivariateNormal([0, 0], [[1, 0.2], [0.1, 1]])", "covariance_matrix .* symmetric"),
    ("MultivariateNormal([0, 0], scale_tril=[[1, 1], [0, 1]])", "lower triangular"),
    ("LowRankMultivariateNormal([0, 0], [[1], [2]], [1, 0])", "cov_diag"),
    ("Independent(Normal([0, 1], [1, 0 ]), 2)", "whole number from 0 to 1, .*; got 2"),
    ("Independent(Normal([0, 1], [1, -1]), 1)", r"Normal\(\[0, 1\], \[1, -1\]\): scale"),
    ("Independent(3, 1)", "base_dist of Independent must be one of kldiv.distributions"),
    ("MixtureSameFamily(Normal(0, 1), Normal([0, 1], 1))", "must be a Categorical; got a Normal"),
    ("Normal(Normal(0, 1), 1)", "loc of Normal must be numbers; got a Normal"),
    ("Delta(inf)", "value of Delta"),
]


@pytest.mark.parametrize(("text", "words"), OUTSIDE)
def test_what_is_outside(text, words):
    with pytest.raises((InputError, ValueError, TypeError), match=words):
        parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "Normal(0, 0)",
        "Uniform(1, 1)",
        "Poisson(0)",
        "Exponential(0)",
        "VonMises(0, 0)",
        "Bernoulli(1)",
        "Bernoulli(logits=-inf)",
        "Categorical([0.333333, 0.333333, 0.333334])",
        "Categorical(logits=[0, -inf])",
        "MultivariateNormal([0, 0], precision_matrix=[[2, 1], [1, 2]])",
        "Independent(Normal([0, 1], 1), 0)",
    ],
)
def test_limits_are_inside(text):
    assert isinstance(parse(text), d.Distribution)


@pytest.mark.parametrize(
    ("p", "q", "words"),
    [
        ("Normal(0,-1)", "Normal(0,1)", "scale of Normal"),
        ("Normal(0,1)", "Gamma(-2,1)", "concentration of Gamma"),
        ("Dirichlet([1,2,3])", "Normal(1,2)", "Dirichlet is a vector, one of Normal is a number"),
        ("Dirichlet([1,2,3])", "Dirichlet([1,2])", "has length 3"),
        ("Multinomial(2, [0.5, 0.5])", "Dirichlet([1, 2])", "no closed form is known"),
    ],
)
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_one_line_and_exit_code_4(p, q, words, options):
    from click.testing import CliRunner

    found = CliRunner().invoke(app, ["compare", p, q, *options])
    assert found.exit_code == 4, found.output
    assert words in found.output
    assert found.output.startswith("Error: ")
    assert found.output.count("\n") == 1
