"""``kldiv compare`` of distributions that are written out: what is read, refused, and printed."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

pytest.importorskip("click")
pytest.importorskip("rich")

from kldiv import distributions
from kldiv.cli.app import app
from kldiv.cli.expressions import parse
from kldiv.errors import InputError


@pytest.fixture
def compare(capsys):
    def run(p, q, *options):
        app.main(["compare", p, q, *options], standalone_mode=False)
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize(
    ("text", "family", "parameters"),
    [
        ("Normal(0, 1)", "Normal", {"loc": 0, "scale": 1}),
        (" Normal ( loc=-1.5e2, scale=+2 ) ", "Normal", {"loc": -150.0, "scale": 2}),
        ("Dirichlet([1, 2, 3])", "Dirichlet", {"concentration": [1.0, 2.0, 3.0]}),
        ("Categorical(logits=[0, -inf])", "Categorical", {"logits": [0.0, -math.inf]}),
        ("Binomial(10, 0.25)", "Binomial", {"total_count": 10, "probs": 0.25}),
        (
            "Independent(Normal([0, 0], [1, 2]), 1)",
            "Independent",
            {"batch_shape": (), "reinterpreted_batch_ndims": 1},
        ),
    ],
)
def test_what_is_read(text, family, parameters):
    found = parse(text)
    assert type(found) is getattr(distributions, family)
    for name, value in parameters.items():
        np.testing.assert_array_equal(getattr(found, name), value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Normal(0", "never closed"),
        ("Normald(0, 1)", "no distribution 'Normald'; there are Bernoulli"),
        ("normal(0, 1)", "Did you mean 'Normal'?"),
        ("Normal(mu=0, sigma=1)", "no parameter 'mu'; it has loc, scale, log_scale. Write loc="),
        ("Normal(0, sigma=1)", "Write scale="),
        ("Beta(1, beta=2)", "Write concentration0="),
        ("Gamma(2, beta=2)", "Write rate="),
        ("Poisson(lambda=2)", "no parameter 'lambda'; it has rate. Write rate="),
        ("Normal(locc=0)", "Did you mean 'loc'?"),
        ("Gamma(1, 2, 3)", "3 parameters; Gamma has 2"),
        (f"Normal(0, {10**400})", "float64 does not hold the number 1000"),
        ("Normal(1e400, 1)", "float64 does not hold the number 1e400"),
        ("Poisson(lambda=1e-400)", r"Poisson.*: float64 does not hold the number 1e-400"),
        ("Distribution()", "no distribution 'Distribution'"),
        ("__import__('os')", "no distribution '__import__'"),
        ("Normal(__import__('os').getpid(), 1)", "cannot be read"),
        ("Normal(x, 1)", "'x' in 'Normal\\(x, 1\\)' cannot be read"),
        ("Normal('0', 1)", "cannot be read"),
        ("Normal(1 + 1, 1)", "'1 \\+ 1' in .* cannot be read"),
        ("Normal(*[0, 1])", "cannot be read"),
        ("Normal(**{})", "cannot be read"),
        ("[Normal(0, 1)]", "cannot be read"),
        ("Normal(0, 1, 2)", "Normal\\(0, 1, 2\\): .*positional"),
        ("Normal(0, width=1)", "width"),
        ("Normal([[1], [2, 3]], 1)", "rows of different lengths"),
        ("Normal(" + "-" * 9000 + "1, 1)", "is not a distribution|cannot be read"),
        ("Normal(" + "0" * 20_000 + ", 1)", "20,011 characters"),
    ],
)
def test_what_is_refused(text, words):
    with pytest.raises(InputError, match=words):
        parse(text)


def test_a_closed_form_is_printed_in_both_directions(compare):
    found = json.loads(compare("Normal(0,1)", "Laplace(0,0.8)", "--json"))
    # ∫ of the Laplace log-density under N(0, 1), and the other way round.
    entropy = 0.5 * math.log(2 * math.pi * math.e)
    assert found["kl_pq"] == pytest.approx(
        math.log(1.6) + math.sqrt(2 / math.pi) / 0.8 - entropy, rel=1e-13
    )
    assert found["kl_qp"] == pytest.approx(
        0.5 * math.log(2 * math.pi) + 0.8**2 - 1 - math.log(1.6), rel=1e-12
    )
    assert found["method"] == {"kl_pq": "closed form", "kl_qp": "closed form"}
    assert found["error"] == {"kl_pq": None, "kl_qp": None}
    assert found["bits"]["kl_pq"] == pytest.approx(found["kl_pq"] / math.log(2), rel=1e-15)
    lines = compare("Normal(0,1)", "Laplace(0,0.8)").splitlines()
    assert lines[:2] == ["P  Normal(0,1)", "Q  Laplace(0,0.8)"]
    assert lines[4].split()[0] == "D(P‖Q)"
    assert lines[4].endswith("closed form")


def test_quadrature_where_there_is_no_closed_form_and_infinity(compare):
    found = json.loads(compare("Gamma(2, 0.5)", "LogNormal(0, 1)", "--json"))
    assert found["method"] == {"kl_pq": "quadrature", "kl_qp": "closed form"}
    assert 0 <= found["error"]["kl_pq"] < 1e-8
    assert "quadrature, error about" in compare("Gamma(2, 0.5)", "LogNormal(0, 1)")
    found = json.loads(compare("Uniform(0, 1)", "Uniform(0.5, 1)", "--json"))
    assert found["kl_pq"] == "inf"


def test_a_batch_has_a_line_for_each_entry(compare):
    out = compare("Normal([0, 1], 1)", "Normal(0, [[1], [2]])")
    assert [line.split()[0] for line in out.splitlines()[4:8]] == [
        f"D(P‖Q)[{i}," for i in (0, 0, 1, 1)
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("Normal(0, 1)", "missing.csv"), "one is a distribution"),
        (("Normal(0, 1)", "counts(1)"), "one is a distribution, the other a file"),  # of that name
        (("Normal(0, 1)", "Normal(0, 1)", "--smoothing", "1"), "not for distributions"),
        (("Normal(0, 1)",) * 2 + ("--axis", "0", "--from", "logits"), "not for distributions"),
    ],
)
def test_what_does_not_go_together(tmp_path, monkeypatch, arguments, said):
    import click

    monkeypatch.chdir(tmp_path)
    (tmp_path / "counts(1)").mkdir()
    with pytest.raises(click.UsageError, match=said):
        app.main(["compare", *arguments], standalone_mode=False)
