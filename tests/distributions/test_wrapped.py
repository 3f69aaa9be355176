"""Distributions that are others: subclasses, wrappers, images under transforms, special cases."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from kldiv import distributions as d
from kldiv import kl_divergence as kl
from kldiv.distributions import foreign
from kldiv.errors import LibraryError, ShapeError

INF = math.inf
M, S, N, T = (np.array(x) for x in ([0.3, 1.2], [0.5, 0.7], [0.5, 0.7], [0.4, 1.5]))
"""Locations and scales of two normals, and their divergence."""
NORMAL = np.log(T / S) + (S**2 + (M - N) ** 2) / (2 * T**2) - 0.5


@pytest.fixture
def dist(torch):
    return torch.distributions


@pytest.fixture
def numpyro():
    return pytest.importorskip("numpyro.distributions")


def normals(torch, dtype=None):
    tensors = [torch.tensor(x, dtype=dtype or torch.float64) for x in (M, S, N, T)]
    return [torch.distributions.Normal(*tensors[i : i + 2]) for i in (0, 2)]


def close(found, wanted, rtol=1e-12):
    np.testing.assert_allclose(np.asarray(found), wanted, rtol=rtol, atol=0)


# --- subclasses -----------------------------------------------------------------------------------


def test_a_subclass_is_its_parent(torch, dist):
    class Own(dist.Normal):
        """Another constructor, another sampler: the same density."""

        def __init__(self, loc):
            super().__init__(loc, 2.0)

        def rsample(self, sample_shape=()):
            return super().rsample(sample_shape) * 1.0

    loc = torch.tensor([0.0, 1.0], dtype=torch.float64, requires_grad=True)
    p, q = Own(loc), dist.Normal(torch.zeros(2, dtype=torch.float64), 1.0)
    assert type(d.convert("p", p)) is d.Normal
    close(kl(p, q).detach(), dist.kl_divergence(p, q).detach())
    inside = kl(dist.Independent(p, 1), dist.Independent(q, 1))
    close(inside.detach(), dist.kl_divergence(p, q).sum().detach())
    inside.backward()
    close(loc.grad, [0.0, 1.0])


@pytest.mark.parametrize("given", ["logits", "probs"])
def test_straight_through_one_hots(torch, dist, given):
    x = torch.tensor([[0.2, 0.3, 0.5], [0.1, 0.1, 0.8]], dtype=torch.float64)
    y = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    p, q = (dist.OneHotCategoricalStraightThrough(**{given: v}) for v in (x, y))
    wanted = dist.kl_divergence(*(dist.OneHotCategorical(**{given: v}) for v in (x, y)))
    close(kl(p, q), wanted)
    x = x.expand(4, 2, 3)
    p = dist.Independent(dist.OneHotCategoricalStraightThrough(**{given: x}), 1)
    assert kl(p, p).shape == (4,)


def test_another_density_is_not_its_parents(torch, dist):
    class Squared(dist.Normal):
        def log_prob(self, value):
            return 2 * super().log_prob(value)

    class Cut(dist.Normal):
        support = dist.constraints.positive

    class Doubled(dist.Normal):
        @property
        def scale(self):
            return 2 * self._scale

        @scale.setter
        def scale(self, value):
            self._scale = value

    class Normal(dist.Distribution):
        """No Normal at all but for its name."""

        loc, scale = 0.0, 1.0

        def log_prob(self, value):
            return -value

    x = torch.ones(2)
    stored = dist.Normal(x, x)
    stored.log_prob = lambda value: value
    for p in (
        Squared(x, x),
        Cut(x, x),
        Doubled(x, x),
        type("Further", (Squared,), {})(x, x),
        Normal(validate_args=False),
        stored,
    ):
        assert type(d.convert("p", p)) is foreign.Opaque
        with pytest.raises(d.NoClosedFormError):
            kl(p, dist.Normal(x, x))
    inside = dist.Independent(Squared(x, x), 1)
    with pytest.raises(d.NoClosedFormError, match=r"D\(Independent\(Squared\)‖Independent\(Normal"):
        kl(inside, dist.Independent(dist.Normal(x, x), 1))


def test_a_scipy_distribution_is_not_told_by_its_name_alone():
    stats = pytest.importorskip("scipy.stats")

    class Triangle(stats.rv_continuous):
        def _pdf(self, x):
            return 2 * x

    found = d.convert("p", Triangle(a=0.0, b=1.0, name="norm")())
    assert type(found) is foreign.Opaque
    close(kl(found, d.Uniform(0.0, 1.0), method="quadrature").value, math.log(2) - 0.5, 1e-9)
    close(kl(stats.halfcauchy(scale=2.0), d.HalfCauchy(3.0)), math.log(25 / 24))
    close(kl(stats.chi(3.0), d.Chi(4.0)), kl(d.Chi2(3.0), d.Chi2(4.0)))


def test_a_parameter_that_is_missing_is_named():
    cls = type("Gamma", (), {"__module__": "distrax._src", "concentration": 1.0})
    with pytest.raises(LibraryError, match=r"has no rate, which a Gamma needs; give a kldiv"):
        d.convert("p", cls())


# --- wrappers -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_numpyros_expanded(numpyro):
    jax = pytest.importorskip("jax")
    p = numpyro.Normal(0.0, 1.0).expand([3])
    close(kl(p, numpyro.Normal(1.0, 2.0)), [0.4431471805599453] * 3, 1e-6)
    loc = jax.numpy.asarray([0.3, 1.2])
    for mix in (
        lambda x: numpyro.CategoricalProbs(x / 1.5).expand([4]),
        lambda x: numpyro.Normal(x, 2.0).expand([3, 2]).to_event(1),
    ):
        p, q = mix(loc), mix(loc[::-1])
        close(kl(p, q), numpyro.kl.kl_divergence(p, q), 2e-5)
        assert kl(p, q).shape == p.batch_shape
    found = jax.jit(lambda x: kl(mix(x), mix(x[::-1])))(loc)
    close(found, kl(p, q), 2e-6)


def test_masks(numpyro):
    jnp = pytest.importorskip("jax.numpy")
    p, q = numpyro.Normal(0.0, 1.0), numpyro.Normal(jnp.asarray([1.0, 2.0]), 2.0)
    mask, other = jnp.asarray([True, False]), jnp.asarray([True, True])
    close(kl(p.mask(mask), q.mask(mask)), [0.4431471805599453, 0.0], 1e-6)
    close(kl(p.mask(True), q.mask(True)), kl(p, q))
    assert np.isnan(kl(p.mask(mask), q.mask(other))[1])
    tfp = type("_Masked", (), {"__module__": "tensorflow_probability.python"})
    a, b = tfp(), tfp()
    a.distribution, b.distribution = p, q
    a.validity_mask = b.validity_mask = mask
    close(kl(a, b), [0.4431471805599453, 0.0], 1e-6)


def test_repeated_draws():
    def sample(base, shape):
        made = type("_Sample", (), {"__module__": "tensorflow_probability.python"})()
        made.distribution, made.sample_shape = base, shape
        return made

    p, q = (sample(d.Normal(x, 2.0), [3, 4]) for x in (M, N))
    close(kl(p, q), 12 * (M - N) ** 2 / 8)
    with pytest.raises(ShapeError, match="as many draws"):
        kl(p, sample(d.Normal(N, 2.0), np.array([4, 3])))


def test_independent_normals_are_a_normal_of_vectors(torch, dist):
    p = dist.Independent(normals(torch)[0], 1)
    wide = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
    q = dist.MultivariateNormal(torch.tensor(N), wide)
    full = dist.MultivariateNormal(torch.tensor(M), torch.diag(torch.tensor(S) ** 2))
    close(kl(p, q), dist.kl_divergence(full, q))
    close(kl(q, p), dist.kl_divergence(q, full))
    ours = d.Independent(d.Normal(M, 1.0), 1)  # one scale for both
    close(kl(ours, d.MultivariateNormalDiag(N, T)), np.sum(kl(d.Normal(M, 1.0), d.Normal(N, T))))
    nested = d.Independent(d.Independent(d.Normal(np.stack([M, N]), 1.0), 1), 1)
    many = d.Independent(d.MultivariateNormalDiag(np.stack([N, N]), T + 0 * np.stack([N, N])), 1)
    close(kl(nested, many), np.sum(kl(d.Normal(np.stack([M, N]), 1.0), d.Normal(N, T))))
    with pytest.raises(d.NoClosedFormError, match="Laplace"):
        kl(d.Independent(d.Laplace(M, S), 1), d.MultivariateNormalDiag(N, T))


# --- transforms -----------------------------------------------------------------------------------


def test_equal_transforms(torch, dist):
    t = dist.transforms
    p, q = normals(torch)
    point = torch.tensor([2.0, -3.0], dtype=torch.float64)
    own = t.CumulativeDistributionTransform(dist.Cauchy(0.0, 1.0))
    for first, second in (
        ([t.TanhTransform()], [t.TanhTransform()]),
        ([t.SigmoidTransform(), t.AffineTransform(1.0, 2.0)],) * 2,
        ([t.ExpTransform(), t.PowerTransform(torch.tensor(3.0))],) * 2,
        ([own], [own]),
        ([own, t.AffineTransform(point, point)],) * 2,
        ([t.AffineTransform(point, point)], [t.AffineTransform(point.clone(), point.clone())]),
        (
            [t.ComposeTransform([t.ExpTransform(), t.SoftplusTransform()])],
            [t.ExpTransform(), t.SoftplusTransform()],
        ),
        ([t.TanhTransform(), t.TanhTransform().inv], []),
    ):
        a = dist.TransformedDistribution(p, first)
        b = dist.TransformedDistribution(q, second) if second else q
        close(kl(a, b), NORMAL)
    simplex = (dist.LogisticNormal(x.loc, x.scale) for x in (p, q))
    close(kl(*simplex), NORMAL.sum())
    a, b = (
        dist.Independent(dist.TransformedDistribution(x, [t.TanhTransform()]), 1) for x in (p, q)
    )
    close(kl(a, b), NORMAL.sum())


def test_affine_maps_move_parameters(torch, dist):
    t = dist.transforms
    p, q = normals(torch)
    flip = [t.AffineTransform(1.0, -2.0)]
    moved = dist.TransformedDistribution(p, flip)
    plain = dist.Normal(1 - 2 * p.loc, 2 * p.scale)
    close(kl(moved, q), dist.kl_divergence(plain, q))
    close(kl(q, moved), dist.kl_divergence(q, plain))
    for family in (dist.Laplace, dist.Cauchy):
        a, b = family(p.loc, p.scale), family(q.loc, q.scale)
        other = [t.AffineTransform(0.5, 3.0)]
        found = kl(dist.TransformedDistribution(a, flip), dist.TransformedDistribution(b, other))
        close(found, kl(family(1 - 2 * p.loc, 2 * p.scale), family(0.5 + 3 * q.loc, 3 * q.scale)))
    uniform = dist.TransformedDistribution(dist.Uniform(0.0, 1.0), flip)
    close(kl(uniform, dist.Uniform(-2.0, 2.0)), math.log(2), 1e-6)
    gamma = dist.Gamma(p.scale, q.scale)
    doubled = dist.TransformedDistribution(gamma, [t.AffineTransform(0.0, 2.0)])
    close(kl(doubled, gamma), kl(dist.Gamma(p.scale, q.scale / 2), gamma))
    # The normal is the one that is moved.
    shifted = dist.TransformedDistribution(gamma, [t.AffineTransform(1.0, 2.0)])
    close(kl(shifted, q), kl(gamma, dist.Normal((q.loc - 1) / 2, q.scale / 2)))
    vector = dist.MultivariateNormal(p.loc, torch.diag(p.scale))
    wide = dist.MultivariateNormal(q.loc, torch.diag(q.scale))
    scale = torch.tensor([3.0, -2.0], dtype=torch.float64)
    image = dist.TransformedDistribution(vector, [t.AffineTransform(q.scale, scale)])
    plain = dist.MultivariateNormal(q.scale + scale * p.loc, torch.diag(scale**2 * p.scale))
    close(kl(image, wide), dist.kl_divergence(plain, wide))


def test_named_families_are_images(torch, dist):
    t = dist.transforms
    p, q = normals(torch)
    a = dist.TransformedDistribution(p, [t.ExpTransform()])
    b = dist.LogNormal(q.loc, q.scale)
    close(kl(a, b), NORMAL)
    close(
        kl(dist.LogNormal(p.loc, p.scale), dist.TransformedDistribution(q, t.ExpTransform())),
        NORMAL,
    )
    tripled = dist.TransformedDistribution(p, [t.ExpTransform(), t.AffineTransform(0.0, 3.0)])
    close(kl(tripled, b), kl(dist.Normal(p.loc + math.log(3), p.scale), q))
    squared = dist.TransformedDistribution(b, [t.PowerTransform(torch.tensor(2.0))])
    close(kl(squared, b), kl(dist.Normal(2 * q.loc, 2 * q.scale), q))
    gamma = dist.Gamma(q.scale, p.scale)
    close(kl(a, gamma), kl(dist.LogNormal(p.loc, p.scale), gamma))
    logit = dist.TransformedDistribution(p, [t.SigmoidTransform()])
    close(kl(logit, d.LogitNormal(q.loc, q.scale)), NORMAL)


def test_near_equality_far_from_zero(torch, dist):
    """The affine maps' difference is exact, where locations of 1e8 would lose that of the bases."""
    far = [dist.transforms.AffineTransform(1e8, 1.0)]
    p, q = (
        dist.Normal(torch.tensor(x, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64))
        for x in (0.0, 1e-6)
    )
    found = kl(*(dist.TransformedDistribution(x, far) for x in (p, q)))
    close(found, 5e-13, 1e-15)


def test_transforms_that_differ(torch, dist):
    t = dist.transforms
    p, q = normals(torch)

    def pair(a, b):
        return (dist.TransformedDistribution(x, y) for x, y in ((p, a), (q, b)))

    for a, b in (
        (t.TanhTransform(), t.SigmoidTransform()),
        (t.AbsTransform(), t.AbsTransform()),  # several values to one: closer than the bases
        *[(t.CumulativeDistributionTransform(dist.Normal(0.0, 1.0)) for _ in range(2))],
    ):
        with pytest.raises(d.NoClosedFormError):
            kl(*pair(a, b))
    # By values that are never looked at: NaN, and slopes that beside equality nobody knows.
    scale = torch.tensor([2.0, 2.0], dtype=torch.float64, requires_grad=True)
    same = torch.tensor([2.0, 3.0], dtype=torch.float64)
    a, b = pair(
        [t.TanhTransform(), t.AffineTransform(0.0, scale)],
        [t.TanhTransform(), t.AffineTransform(0.0, same)],
    )
    found = kl(a, b)
    close(found[0].detach(), NORMAL[0])
    assert torch.isnan(found[1])
    assert torch.isnan(torch.autograd.grad(found[0], scale)[0][0])


def test_gradients_through_transforms(torch, dist):
    t = dist.transforms
    x = [torch.tensor(v, requires_grad=True) for v in (M, S, N, T)]

    def value(m, s, n, r):
        p = dist.TransformedDistribution(dist.Normal(m, s), [t.AffineTransform(n, -r)])
        return kl(p, dist.TransformedDistribution(dist.Normal(n, r), [t.AffineTransform(m, s)]))

    assert torch.autograd.gradcheck(value, x)


def test_numpyros_transforms(numpyro):
    t = numpyro.transforms
    jnp = pytest.importorskip("jax.numpy")
    p, q = (numpyro.Normal(jnp.asarray(a), jnp.asarray(b)) for a, b in ((M, S), (N, T)))
    order = t.PermuteTransform(jnp.asarray([1, 0]))
    for steps in (
        [t.SigmoidTransform()],
        [t.AffineTransform(1.0, -2.0), t.ExpTransform(), t.PowerTransform(2.0)],
    ):
        a, b = (numpyro.TransformedDistribution(x, list(steps)) for x in (p, q))
        close(kl(a, b), NORMAL, 1e-5)
    for step in (t.StickBreakingTransform(), order):
        a, b = (numpyro.TransformedDistribution(x, step) for x in (p, q))
        close(kl(a, b), NORMAL.sum(), 1e-5)
    for step in (t.AbsTransform(), type("Own", (t.AbsTransform,), {})()):
        folded = [numpyro.TransformedDistribution(x, step) for x in (p, q)]
        with pytest.raises(d.NoClosedFormError):
            kl(*folded)


def test_bijectors_of_tfp():
    """By stand-ins with its names."""

    def made(name, **attributes):
        cls = type(name, (), {"__module__": "tensorflow_probability.python.bijectors"})
        thing = cls()
        vars(thing).update(attributes)
        return thing

    def image(base, *bijectors):
        chain = made("Chain", bijectors=list(bijectors))  # the last one first
        return made("TransformedDistribution", distribution=base, bijector=chain)

    p, q = d.Normal(M, S), d.Normal(N, T)
    tanh, twice = made("Tanh"), made("Scale", scale=2.0)
    close(kl(image(p, tanh, twice), image(q, tanh, twice)), NORMAL)
    close(kl(image(p, made("Shift", shift=1.0), twice), d.Normal(1 + 2 * N, 2 * T)), NORMAL)
    close(kl(image(p, made("Exp")), d.LogNormal(N, T)), NORMAL)
    close(kl(image(p, made("Invert", bijector=twice)), d.Normal(N / 2, T / 2)), NORMAL)
    narrow = made("Sigmoid", low=0.0, high=2.0)
    with pytest.raises(d.NoClosedFormError):
        kl(image(p, narrow), image(q, made("Sigmoid", low=None, high=None)))
    close(kl(image(p, narrow), image(q, narrow)), NORMAL)
    log = made("Scale", scale=None, log_scale=2.0)
    with pytest.raises(d.NoClosedFormError):
        kl(image(p, log), image(q, made("Scale", scale=None, log_scale=3.0)))
    lossy = made("Own", _is_injective=False)
    with pytest.raises(d.NoClosedFormError):
        kl(image(p, lossy), image(q, lossy))
    half = made("HalfCauchy", loc=1.0, _scale=2.0, scale=2.0)
    close(kl(half, half), 0.0)
    assert kl(made("HalfCauchy", loc=0.5, scale=2.0), half) == INF  # mass below where Q starts
    assert math.isnan(kl(made("HalfCauchy", loc=1.5, scale=2.0), half))


# --- families that are others ---------------------------------------------------------------------


def test_families_that_are_others(torch, dist):
    close(kl(d.Chi2(3.0), d.Normal(1.0, 2.0)), kl(d.Gamma(1.5, 0.5), d.Normal(1.0, 2.0)))
    close(kl(d.LogNormal(1.0, 0.2), d.Chi2(5.0)), kl(d.LogNormal(1.0, 0.2), d.Gamma(2.5, 0.5)))
    close(kl(d.Chi(3.0), d.Chi(4.0)), kl(d.Chi2(3.0), d.Chi2(4.0)))
    close(kl(d.LogitNormal(M, S), d.LogitNormal(N, T)), NORMAL)
    close(kl(d.HalfCauchy(2.0), d.HalfCauchy(3.0)), math.log(25 / 24))
    x = torch.tensor(2.0, dtype=torch.float64)
    close(kl(dist.HalfCauchy(x), dist.HalfCauchy(x + 1)), math.log(25 / 24))
    assert kl(d.HalfCauchy(1.0), d.HalfNormal(1.0)) == INF
    assert kl(d.Cauchy(0.0, 1.0), d.Normal(0.0, 1.0)) == INF
    assert math.isnan(kl(d.Cauchy(math.nan, 1.0), d.Normal(0.0, 1.0)))
    assert math.isnan(kl(d.Cauchy(np.float64(math.nan), 1.0), d.Normal(0.0, 1.0)))
    simplex = d.Dirichlet(np.ones((3, 2)))
    np.testing.assert_array_equal(kl(simplex, d.MultivariateNormalDiag(M, S)), [INF] * 3)
    np.testing.assert_array_equal(kl(d.MultivariateNormalDiag(M, S), simplex), [INF] * 3)


def test_methods_have_the_new_families():
    pytest.importorskip("scipy")
    for p, q in (
        (d.LogitNormal(0.3, 0.5), d.Beta(2.0, 3.0)),
        (d.Chi(3.0), d.Gamma(2.0, 1.0)),
        (d.HalfNormal(1.0), d.HalfCauchy(2.0)),
    ):
        exact, sampled = (kl(p, q, method=m) for m in ("quadrature", "monte_carlo"))
        assert abs(sampled.value - exact.value) < 5 * sampled.standard_error
    found = kl(d.LogitNormal(0.3, 0.5), d.LogitNormal(0.0, 0.7), method="quadrature").value
    close(found, kl(d.Normal(0.3, 0.5), d.Normal(0.0, 0.7)), 1e-9)


# --- errors whose mends work ----------------------------------------------------------------------


def test_every_mend_of_a_missing_pair_works(torch, dist):
    t = dist.transforms
    one = torch.tensor(1.0, dtype=torch.float64)
    folded = dist.TransformedDistribution(dist.Normal(one, one), [t.AbsTransform()])
    snedecor = dist.FisherSnedecor(5 * one, 9 * one)
    vectors = d.Independent(d.StudentT(np.array([3.0, 4.0])), 1)

    class Squared(dist.Normal):
        def log_prob(self, value):
            return 2 * super().log_prob(value)

    for p, q, count in (
        (d.StudentT(3.0), d.Normal(0.0, 1.0), 2),
        (folded, dist.HalfCauchy(one), 0),
        (snedecor, dist.HalfCauchy(one), 2),
        (Squared(one, one), dist.Normal(one, one), 0),
        (d.HalfNormal(1.0), d.HalfCauchy(1.0), 2),
        (vectors, d.Independent(d.Normal(M, S), 1), 1),
        (vectors, d.MultivariateNormalDiag(M, S), 1),
        (d.Multinomial(2, np.ones(2) / 2), d.Dirichlet(np.ones(2)), 0),
    ):
        with pytest.raises(d.NoClosedFormError, match="register_kl") as caught:
            kl(p, q)
        ways = re.findall(r"method='(\w+)'", str(caught.value))
        assert len(ways) == count, str(caught.value)
        for way in ways:
            assert kl(p, q, method=way).value >= 0


def test_outcomes_of_different_kinds():
    simplex = d.Dirichlet(np.array([1.0, 2.0, 3.0]))
    for method in (None, "monte_carlo", "quadrature"):
        with pytest.raises(ShapeError, match=r"Dirichlet is a vector, one of Normal is a number"):
            kl(simplex, d.Normal(1.0, 2.0), method=method)
    with pytest.raises(ShapeError, match="has length 3, one of Dirichlet 2"):
        kl(simplex, d.Dirichlet(np.ones(2)))
    with pytest.raises(ShapeError, match="has length 1, one of Categorical 2"):
        kl(d.Categorical(np.ones(1)), d.Categorical(np.ones(2) / 2))
    with pytest.raises(ShapeError, match=r"distributions\.Independent"):
        kl(d.Normal(M, S), d.MultivariateNormalDiag(M, S))


def test_what_a_part_must_be():
    with pytest.raises(LibraryError, match=r"base_dist of Independent.*distributions\.convert"):
        d.Independent(np.ones(2), 1)
    stats = pytest.importorskip("scipy.stats")
    made = d.Independent(d.convert("base_dist", stats.norm(M, S)), 1)
    close(kl(made, d.Independent(d.Normal(N, T), 1)), NORMAL.sum())
