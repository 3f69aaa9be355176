"""Every loss under what libraries do with functions: derivatives, maps, compilers, backends."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest
from f_divergences import RECORDS

import kldiv
from kldiv.backends import routing


class Case(NamedTuple):
    """A loss of arrays and of options, both differentiable, and of arrays that are not."""

    loss: Any
    arrays: tuple[Any, ...]
    options: dict[str, Any]
    constant: dict[str, Any]
    has_rule: bool
    """Whether it is a single number, of which `kldiv.value_and_grad` gives the gradients."""

    @property
    def given(self):
        return (*self.arrays, *self.options.values())

    def of(self, constant):
        """Return the loss as a function of what is given, by position."""
        number = len(self.arrays)

        def called(*given):
            options = dict(zip(self.options, given[number:], strict=True))
            return self.loss(*given[:number], **options, **constant)

        return called

    def wanted(self, place=lambda array: array):
        """Return value and gradients in the arrays, by kldiv's own rules, on NumPy's by default."""
        loss = partial(self.loss, **placed({**self.options, **self.constant}, place))
        places = tuple(range(len(self.arrays)))
        return kldiv.value_and_grad(loss, places)(*map(place, self.arrays))


def case(loss, *arrays, options=None, has_rule=True, settings=None, **constant):
    return Case(partial(loss, **settings or {}), arrays, options or {}, constant, has_rule)


def log_probabilities(s, temperature, labels):
    """Both results, which have gradients of their own."""
    found = kldiv.log_prob_and_entropy_with_logits(s, labels, temperature=temperature)
    return (2 * found[0] + found[1]).sum()


def sparse_and_labels(hidden, weight, bias, log_probs, indices, labels, items):
    """A sum of losses of one layer, softcap and all."""
    head = kldiv.Head(hidden, weight, bias, softcap=2.0)
    options = {"beta": 0.25, "hard_weight": 0.5, "num_items_in_batch": items}
    return kldiv.linear_distillation_loss(
        head, kldiv.SparseTeacher(log_probs, indices), labels, **options
    )


RNG = np.random.default_rng(11)
S, T = RNG.normal(size=(2, 2, 4))
P, Q = (np.exp(a[0]) / np.exp(a[0]).sum() for a in (S, T))
LABELS, KEEP = np.array([2, -100]), np.array([True, False])
LOST = np.where(KEEP[:, None], 0.0, np.nan)
HEAT, WEIGHT = np.array([1.3, 0.7]), np.array([-1.5, 2.0])
LAYERS = tuple(RNG.normal(size=size) for size in ((2, 3), (4, 3), (2, 2), (4, 2)))
TEACHER = kldiv.topk_log_probs(T, 2)
MEASURES = {
    "kl": kldiv.kl_divergence,
    "Jeffreys": kldiv.jeffreys_divergence,
    "js": partial(kldiv.js_divergence, weights=(0.3, 0.7)),
    "cross": kldiv.cross_entropy,
    "skew": partial(kldiv.skew_divergence, alpha=0.2),
    "TV": kldiv.tv_divergence,
    "Hellinger": kldiv.hellinger_divergence,
    "chi2": kldiv.chi2_divergence,
    **{f"Rényi {a}": partial(kldiv.renyi_divergence, alpha=a) for a in (0.5, 1.001, 3)},
    **{f"alpha {a}": partial(kldiv.alpha_divergence, alpha=a) for a in (0.3, 0.999, 2.5, -1)},
}
CASES = {
    "kl": case(kldiv.kl_div_with_logits, S, T, settings={"temperature": 1.7}),
    "kl, rows": case(
        kldiv.kl_div_with_logits, S, T, settings={"reduction": "none"}, has_rule=False
    ),
    "kl, options": case(
        kldiv.kl_div_with_logits, S + LOST, T + LOST, settings={"normalizer": 7},
        options={"temperature": HEAT, "row_weight": WEIGHT}, where=KEEP,
    ),
    "distillation": case(
        kldiv.distillation_loss, S, T, settings={"hard_weight": 0.3},
        labels=LABELS, beta=np.array([0.3, 1.0]), num_items_in_batch=np.array(7),
    ),
    "js": case(
        kldiv.js_div_with_logits, S, T, settings={"beta": 0.3}, options={"temperature": HEAT[:1]}
    ),
    **{
        name: case(
            kldiv.f_div_with_logits, S, T,
            settings={"divergence": RECORDS[name], "temperature": 1.3},
        )
        for name in ("Jeffreys", "skew", "mixture", "Hellinger", "TV", "chi2")
    },
    **{
        f"Rényi {alpha}": case(
            kldiv.renyi_div_with_logits, S, T,
            settings={"alpha": alpha}, options={"temperature": HEAT},
        )
        for alpha in (2, 0.3, 0, np.inf)
    },
    "labels": case(kldiv.cross_entropy_with_logits, S, target=LABELS),
    "teacher": case(kldiv.cross_entropy_with_logits, S, T, settings={"temperature": 1.3}),
    "entropy": case(kldiv.entropy_with_logits, S, options={"temperature": HEAT}),
    "log-probabilities": case(
        log_probabilities, S, options={"temperature": HEAT}, labels=LABELS, has_rule=False
    ),
    "sparse": case(
        kldiv.topk_kl_div_with_logits, S, TEACHER.log_probs, settings={"beta": 0.3},
        options={"temperature": HEAT}, target_indices=TEACHER.indices,
    ),
    "sparse, rest": case(
        kldiv.topk_kl_div_with_logits, S, TEACHER.log_probs, settings={"temperature": 1.5},
        options={"target_rest": TEACHER.rest}, target_indices=TEACHER.indices,
    ),
    "sparse, renormalized": case(
        kldiv.topk_kl_div_with_logits, S, TEACHER.log_probs, target_indices=TEACHER.indices,
        settings={"tail": "renormalize", "target_temperature": 0.7}, options={"temperature": HEAT},
    ),
    "layers": case(kldiv.linear_kl_div, *LAYERS, settings={"temperature": 1.5}),
    "layers, options": case(
        kldiv.linear_kl_div, LAYERS[0] + LOST[:, :1], LAYERS[1], LAYERS[2] + LOST[:, :1], LAYERS[3],
        settings={"normalizer": 7}, options={"row_weight": WEIGHT}, where=KEEP,
    ),
    "layers, js": case(kldiv.linear_js_div, *LAYERS, settings={"beta": 0.3, "temperature": 1.5}),
    "layers, sparse and labels": case(
        sparse_and_labels, *LAYERS[:2], S[0], TEACHER.log_probs,
        indices=TEACHER.indices, labels=LABELS, items=np.array(5), has_rule=False,
    ),
    "matched": case(
        kldiv.distillation_loss, S, T[:, :3],
        settings={"input_classes": [0, 2], "target_classes": [1, 0], "beta": 0.25},
        options={"temperature": HEAT},
    ),
    "kl_div": case(kldiv.kl_div, np.log(P), Q, settings={"reduction": "sum"}),
    "kl_div, log": case(kldiv.kl_div, S, T, settings={"log_target": True}),
    "kl_div, masked": case(
        kldiv.kl_div, S + LOST, np.exp(T + LOST), settings={"reduction": "batchmean"},
        where=KEEP[:, None],
    ),
    "kl_div, elements": case(
        kldiv.kl_div, S, T, settings={"reduction": "none", "log_target": True}, has_rule=False,
        where=S < 0.5,
    ),
    "pairs": case(
        kldiv.pairwise, np.exp(S), np.exp(T), settings={"divergence": "js", "normalize": True},
        has_rule=False,
    ),
    **{f"measure {name}": case(measure, P, Q) for name, measure in MEASURES.items()},
}  # fmt: skip

MEASURED = ["measure kl", "measure js", "measure Rényi 3"]
BY_TORCH = [
    *("kl, options", "distillation", "log-probabilities", "sparse, rest", "layers, js"),
    *("layers, options", "layers, sparse and labels", "pairs", *MEASURED),
    *("kl_div, masked", "kl_div, elements"),
]
BY_JAX = [
    *("labels", "kl, options", "distillation", "Jeffreys", "skew", "Hellinger", "Rényi 2"),
    *("sparse, rest", "layers, options", "matched", *MEASURED, "measure cross"),
    *("kl_div, masked", "kl_div, elements"),
]
TWICE = [
    *("kl", "kl, options", "js", "log-probabilities", "sparse", "layers", *MEASURED),
    *("measure cross", "kl_div, masked", "kl_div, elements", "Jeffreys", "skew"),
]
"""Of each code those that compilers are tried on, which take seconds for each.

Those of one divergence each are compiled where their accuracy is tested. Of JAX's the quick run has
the first.
"""


def close(found, wanted):
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(np.asarray(one), np.asarray(other), rtol=1e-11, atol=1e-14)


def doubled(arrays):
    return tuple([np.stack([array, 0.9 * array]) for array in arrays])


def placed(constant, place):
    return {name: place(array) for name, array in constant.items()}


HAVE_HESSIANS = {"Jeffreys", "skew", "mixture", "Hellinger", "TV", "chi2", "Rényi 0.3"}
"""Those whose second derivatives mpmath confirms, in `test_f_divergences`, `test_slopes_at_bounds`.

The transforms around them are those of the others.
"""
UNDEFINED = {"kl_div", "measure js", "layers"}
"""One of each of autograd's functions, which treat all losses alike."""


@pytest.mark.slow_where(lambda name: name in HAVE_HESSIANS)
@pytest.mark.parametrize("name", CASES)
def test_torch_differentiates(torch, name):
    """Once as kldiv does, twice, forward, and over a batch."""
    own = CASES[name]
    loss = own.of(placed(own.constant, torch.tensor))
    given = [torch.tensor(array, requires_grad=True) for array in own.given]
    if own.has_rule:
        value, slopes = own.wanted()
        found = loss(*given)
        close([found.detach()], [value])
        close(torch.autograd.grad(found, given)[: len(slopes)], slopes)
    options = {"fast_mode": True, "check_undefined_grad": False}
    assert torch.autograd.gradcheck(loss, given, check_forward_ad=True, **options)
    assert torch.autograd.gradgradcheck(loss, given, **options)
    pair = [torch.tensor(array) for array in doubled(own.given)]
    slope = torch.func.grad(lambda *arrays: loss(*arrays).sum())
    for function in (loss, slope):
        found = torch.func.vmap(function)(*pair)
        each = [function(*(array[k] for array in pair)) for k in (0, 1)]
        torch.testing.assert_close(found, torch.stack(each))
    first, *others = pair[0], *(array[0] for array in pair[1:])
    found = torch.func.vmap(loss, (0, *[None] * len(others)))(first, *others)
    torch.testing.assert_close(found, torch.stack([loss(each, *others) for each in first]))


@pytest.mark.slow_where(lambda name: name not in UNDEFINED)
@pytest.mark.parametrize("name", CASES)
def test_torch_differentiates_where_cotangents_are_undefined(torch, name):
    """Twice; and by every element, in place of a direction, where that is short."""
    own = CASES[name]
    loss = own.of(placed(own.constant, torch.tensor))
    given = [torch.tensor(array, requires_grad=True) for array in own.given]
    assert torch.autograd.gradcheck(loss, given, fast_mode=name != "kl")
    assert torch.autograd.gradgradcheck(loss, given, fast_mode=True)


@pytest.mark.parametrize("name", CASES)
def test_torch_repeats_and_refuses(torch, name):
    """Backward again, of what is recomputed, of each array alone; none, and not of what changed."""
    own = CASES[name]
    loss = own.of(placed(own.constant, torch.tensor))
    given = [torch.tensor(array, requires_grad=True) for array in own.given]
    value = loss(*given).sum()
    slopes = torch.autograd.grad(value, given, retain_graph=True)
    again = torch.utils.checkpoint.checkpoint(loss, *given, use_reentrant=False).sum()
    near = partial(torch.testing.assert_close, rtol=1e-12, atol=1e-15)
    near(torch.autograd.grad(value, given, retain_graph=True), slopes)
    near(torch.autograd.grad(again, given), slopes)
    near(torch.autograd.grad(loss(*given).sum(), given, create_graph=True), slopes)
    if own.has_rule:
        found, gradients = own.wanted(torch.tensor)
        near((found, gradients), (value.detach(), slopes[: len(gradients)]))
    for index, slope in enumerate(slopes):
        alone = [each.detach().requires_grad_(k == index) for k, each in enumerate(given)]
        loss(*alone).sum().backward()
        near(alone[index].grad, slope)
        assert all(each.grad is None for k, each in enumerate(alone) if k != index)
    if name != "matched":  # which takes no other backend
        with kldiv.config_context(backend="numpy"):
            crossing = loss(*given).sum()
        near(torch.autograd.grad(crossing, given), slopes)
    with torch.no_grad():
        assert not loss(*given).requires_grad
        given[0].mul_(2)
    with torch.inference_mode():
        assert loss(*given).is_inference()
    assert loss(*(each.detach() for each in given)).grad_fn is None
    if name == "matched":  # which keeps copies
        near(torch.autograd.grad(value, given), slopes)
        return
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


@pytest.mark.parametrize("name", ["kl", "js", "labels", "teacher", "sparse", "kl_div, log"])
def test_torch_differentiates_again_what_a_kernel_left(torch, name):
    """Gradients that a kernel computed with the value are constants, which have no derivative."""
    pytest.importorskip("llvmlite")
    own, found = CASES[name], []
    for kernel in ("cpu", "pure"):
        loss = own.of(placed(own.constant, torch.tensor))
        given = [torch.tensor(array, requires_grad=True) for array in own.given]
        with kldiv.config_context(kernel=kernel):
            slopes = torch.autograd.grad(loss(*given), given, create_graph=True)
            found.append(torch.autograd.grad(sum(each.square().sum() for each in slopes), given))
    torch.testing.assert_close(*found)


@pytest.mark.slow_where(lambda name: name not in {"measure kl", "kl_div, elements"})
@pytest.mark.parametrize("name", BY_TORCH)
def test_torch_compiles(torch, monkeypatch, name):
    """To one graph, also where nothing is known yet of who computes."""
    monkeypatch.setattr(routing, "_places", {})
    torch.compiler.reset()
    own = CASES[name]
    loss = own.of(placed(own.constant, torch.tensor))
    given = [torch.tensor(array, requires_grad=True) for array in own.given]
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")(*given)
    eager = loss(*given)
    slopes = [torch.autograd.grad(each.sum(), given) for each in (compiled, eager)]
    torch.testing.assert_close((compiled, slopes[0]), (eager, slopes[1]), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", BY_JAX)
def test_jax_compiles(jax, name):
    """The loss, its gradients and those of a batch, all in one program."""
    own = CASES[name]

    @jax.jit
    def program(given, twice, constant):
        loss = own.of(constant)
        places = tuple(range(len(given)))
        both = jax.value_and_grad(lambda *arrays: loss(*arrays).sum(), places)
        return both(*given), jax.vmap(both)(*twice)

    with jax.enable_x64(True):
        (value, slopes), (values, batches) = program(own.given, doubled(own.given), own.constant)
    close([values[0], *(each[0] for each in batches)], [value, *slopes])
    if own.has_rule:
        wanted, gradients = own.wanted()
        close([value, *slopes[: len(gradients)]], [wanted, *gradients])


@pytest.mark.slow
@pytest.mark.parametrize("name", TWICE)
def test_jax_differentiates_twice(torch, jax, name):
    """As PyTorch does, whose second derivatives differences confirm."""
    own = CASES[name]
    loss = own.of(placed(own.constant, torch.tensor))
    wanted = torch.autograd.functional.hessian(
        lambda *given: loss(*given).sum(), tuple(map(torch.tensor, own.given))
    )
    with jax.enable_x64(True):
        loss = own.of(placed(own.constant, jax.numpy.asarray))
        places = tuple(range(len(own.given)))
        found = jax.jit(jax.hessian(lambda *given: loss(*given).sum(), places))(*own.given)
    for row, expected in zip(found, wanted, strict=True):
        for block, other in zip(row, expected, strict=True):
            np.testing.assert_allclose(block, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["kl", "js", "Hellinger", "Rényi 2", "layers", "measure kl"])
def test_dask_stays_lazy(name):
    """Nothing is computed before it is asked for."""
    da = pytest.importorskip("dask.array")
    import dask

    def computed(*args, **kwargs):
        raise AssertionError("computed")

    with dask.config.set(scheduler=computed):
        lazy = CASES[name].wanted(lambda a: da.from_array(a, chunks=(1, *a.shape[1:])))
        assert lazy[1][0].numblocks[0] > 1
        with pytest.raises(AssertionError, match="computed"):
            lazy[0].compute()
    wanted = CASES[name].wanted()
    close([lazy[0], *lazy[1]], [wanted[0], *wanted[1]])


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        *((name, backend) for name in CASES for backend in ("torch", "dask")),
        pytest.param("layers", "jax", marks=pytest.mark.slow),
    ],
)
@pytest.mark.leave_out(lambda name: not CASES[name].has_rule and "it has several numbers")
@pytest.mark.leave_out(lambda name: name == "matched" and "it takes no other backend")
def test_another_backend_computes(name, backend):
    pytest.importorskip(backend)
    wanted, slopes = CASES[name].wanted()
    with kldiv.config_context(backend=backend):
        found, gradients = CASES[name].wanted()
    assert isinstance(found, np.floating | np.ndarray)
    assert all(isinstance(each, np.ndarray) for each in gradients)
    close([found, *gradients], [wanted, *slopes])


ORDERS = {f"Rényi {a}": partial(kldiv.renyi_divergence, alpha=a) for a in (0, np.inf)}


@pytest.mark.parametrize("measure", [pytest.param(v, id=k) for k, v in (MEASURES | ORDERS).items()])
def test_a_class_that_neither_has_counts_for_nothing(measure):
    p, q = np.array([0.5, 0.25, 0.25]), np.array([0.25, 0.625, 0.125])
    value, slopes = kldiv.value_and_grad(measure, (0, 1))(*(np.append(x, 0) for x in (p, q)))
    wanted, of_three = kldiv.value_and_grad(measure, (0, 1))(p, q)
    assert value == pytest.approx(wanted, rel=1e-15, abs=0)
    for found, one in zip(slopes, of_three, strict=True):
        np.testing.assert_allclose(found[:3], one, rtol=1e-15)
        assert np.isfinite(found[3])
