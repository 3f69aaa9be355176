"""Sparse teachers against the definition in mpmath, and at the edges."""

from __future__ import annotations

from functools import partial

import mpmath
import numpy as np
import pytest
from f_divergences import RECORDS
from libraries import Library, unit
from logit_families import dtypes
from second_derivatives import hessian_error, mixed
from sparse_teachers import Rows, assert_right, errors, exact, rows

import kldiv
from bench.studies.targets.rows import softmax
from kldiv import SparseTeacher
from kldiv.divergences import KL, Alpha, Jeffreys
from kldiv.errors import DTypeError, OptionError, ShapeError

INF = np.inf
SLOW = {Library.JAX, Library.JAX_X64, Library.DASK, Library.STRICT, Library.STRICTEST}
CASES = {
    "KL": ("KL", {"temperature": 1.5}),
    "KL, rest": ("KL", {"temperature": 1.5, "target_rest": True}),
    "reverse KL": ("reverse KL", {}),
    "JS, rest": ("JS", {"target_rest": True}),
    "skew": ("skew", {}),
    "KL, renormalized": ("KL", {"tail": "renormalize", "temperature": 1.5}),
    "mixture, re-tempered": (
        "mixture",
        {"tail": "renormalize", "temperature": 3.0, "target_temperature": 0.7},
    ),
    "KL, taken at 1": (
        "KL",
        {"tail": "renormalize", "temperature": 1.5, "target_temperature": 1.0},
    ),
}
TWO = {"KL, rest", "mixture, re-tempered"}
loss = kldiv.topk_kl_div_with_logits


@pytest.mark.leave_out(
    lambda lib, case: (
        "compiled or slow: two are enough" if lib in SLOW and case not in TWO else None
    )
)
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # rows that are infinite
@pytest.mark.parametrize("case", CASES)
def test_targets(lib, case):
    name, options = CASES[case]
    for dtype in dtypes(lib):
        _check(lib, dtype, RECORDS[name], [*CASES].index(case) % 3, **options)


def _check(lib, dtype, record, first, *, target_rest=False, **options):
    given = Rows(*(each[first::3] for each in rows(dtype)))
    arrays = [lib.from_numpy(np.asarray(a)) for a in (given.s, given.log_probs, given.indices)]
    extra = {"target_rest": lib.from_numpy(given.rest)} if target_rest else {}
    own = partial(loss, divergence=record, **extra, **options)
    total = kldiv.value_and_grad(
        partial(own, reduction="sum"), (0, 1, 2) if target_rest else (0, 1)
    )
    results = [own(*arrays, reduction="none"), *total(*arrays)[1]]
    for result, like in zip(results, (given.rest, *given[1:3], given.rest), strict=False):
        lib.assert_like(result, like.shape, dtype)
    results = [lib.numpy(result) for result in results]
    assert_right(record, given, results, dtype, target_rest=target_rest, **options)


@pytest.mark.parametrize("name", RECORDS)
@pytest.mark.parametrize("library", [Library.NUMPY, Library.TORCH])
def test_every_divergence_is_of_p_and_q_in_this_order(library, name):
    """Also those that are computed with the two exchanged, and one of a user's."""
    random = np.random.default_rng(0)
    s, log_p = 2 * random.normal(size=(2, 4, 7)).astype("f4").astype("f8")
    log_p -= np.log(np.exp(log_p).sum(-1, keepdims=True))
    order = np.argsort(-log_p, axis=-1)[:, :3]
    own = np.take_along_axis(log_p, order, -1)
    for options in ({}, {"tail": "renormalize", "temperature": 1.5}):
        call = partial(loss, divergence=RECORDS[name], **options)
        arrays = [library.from_numpy(array) for array in (s, own, order)]
        both = kldiv.value_and_grad(partial(call, reduction="sum"), (0, 1))
        found = [call(*arrays, reduction="none"), *both(*arrays)[1]]
        found = [library.numpy(each) for each in found]
        for row in range(len(s)):
            given = s[row], own[row], order[row]
            heat, tail = options.get("temperature", 1.0), options.get("tail", "bucket")
            true = exact(RECORDS[name], *given, heat, None, tail)
            assert max(errors(true, [each[row] for each in found], "float64")) <= 2, row


def test_a_temperature_of_each_row_of_exchanged_sides():
    torch = pytest.importorskip("torch")
    random = np.random.default_rng(1)
    s, t = (torch.tensor(random.normal(size=(2, 5)), requires_grad=True) for _ in range(2))
    heat = torch.tensor([0.7, 1.5], dtype=torch.float64, requires_grad=True)
    every = torch.arange(5).expand(2, 5)

    def sparse(s, t, heat):
        log_p = (t / heat[:, None]).log_softmax(-1)
        own = {"divergence": Alpha(0.3), "temperature": heat, "reduction": "none"}
        return loss(s, log_p, every, **own)

    dense = kldiv.alpha_div_with_logits(s, t, alpha=0.3, temperature=heat, reduction="none")
    torch.testing.assert_close(sparse(s, t, heat), dense)
    slopes = [torch.autograd.grad(each.sum(), (s, t, heat)) for each in (dense, sparse(s, t, heat))]
    torch.testing.assert_close(slopes[1], slopes[0])


# --- the edges ------------------------------------------------------------------------------------

S = np.array([0.0, 1.0, 2.0, -1.0, 0.5])
P = np.exp(S[::-1]) / np.exp(S).sum()


def dense(record, s, log_p, **options):
    """The divergence of dense rows."""
    return kldiv.f_div_with_logits(s, log_p, divergence=record, reduction="none", **options)


seconds = pytest.mark.leave_out(lambda lib: "compiles for seconds" if lib.root == "jax" else None)


@seconds
@pytest.mark.parametrize("record", [KL(), KL(reverse=True), Jeffreys(0.3, 2.0)])
def test_all_classes_are_dense(lib, record):
    """No rest is invented, in whatever order the classes come, whatever rounding leaves of 1."""
    t = np.random.default_rng(4).normal(size=(16, 5))
    log_p, order = np.log(np.exp(t) / np.exp(t).sum(-1, keepdims=True)), np.argsort(t, axis=-1)
    s, own = lib.array(np.stack([S] * 16)), lib.array(np.take_along_axis(log_p, order, -1))
    for tail in ("bucket", "renormalize"):
        found = loss(s, own, lib.array(order), divergence=record, tail=tail, reduction="none")
        lib.assert_equal(found, lib.numpy(dense(record, s, lib.array(log_p))))


def test_many_others_near_the_teacher():
    """The logarithm of their sum is right to less than its own rounding."""
    sizes = np.arange(3000, 3100)
    others = sizes[np.argmax(abs(np.log(sizes) - np.log(sizes).astype("f4")))]
    s = np.zeros(others + 1, "f4")
    s[0] = np.log(others)
    log_probs, rest = np.log([0.4999]).astype("f4"), np.float32(0.5001)
    arrays = s, log_probs, np.array([0])
    with kldiv.config_context(kernel="pure"):
        total = kldiv.value_and_grad(partial(loss, target_rest=np.asarray(rest)))
        _, gradient = total(*arrays)
    true = exact(KL(), *arrays, rest=rest)
    assert abs(gradient[0] - true.student[0]) <= 0.25 * 2 * unit("float32")


def test_the_rest_keeps_its_axes_whatever_that_of_the_classes():
    s, t = np.random.default_rng(2).normal(size=(2, 2, 2, 5))
    teacher = kldiv.topk_log_probs(t, 2)
    first = [np.moveaxis(array, -1, 0) for array in (s, *teacher[:2])]
    kwargs = {"target_rest": teacher.rest, "reduction": "sum"}
    gradient = kldiv.value_and_grad(loss, 2)
    _, expected = gradient(s, *teacher[:2], **kwargs)
    _, found = gradient(*first, axis=0, **kwargs)
    np.testing.assert_allclose(found, expected, rtol=1e-14)
    out = np.empty_like(teacher.rest)
    assert gradient(*first, axis=0, out=out, **kwargs)[1] is out
    np.testing.assert_array_equal(out, found)


def test_padding_and_rows_of_it(lib):
    """−∞ is padding whatever its index; a row of nothing else has the whole mass in the rest."""
    log_probs = np.log(np.stack([P[:3], P[:3], P[:3]]))
    log_probs[1, 1:] = -INF
    log_probs[2] = -INF
    indices = np.array([[0, 1, 2], [0, 0, 99], [-7, 4, 99]])
    s = lib.array(np.stack([S] * 3))
    total = kldiv.value_and_grad(partial(loss, reduction="sum"), (0, 1))
    arrays = s, lib.array(log_probs), lib.array(indices)
    found = lib.numpy(loss(*arrays, reduction="none"))
    _, (gs, ga) = total(*arrays)
    for row, given in enumerate((3, 1, 0)):
        places, own = indices[row, :given], log_probs[row, :given]
        true = exact(KL(), S, own, places)
        assert abs(found[row] - true.value) < 64 * unit(lib.widest)
        np.testing.assert_allclose(lib.numpy(gs)[row], true.student, atol=64 * unit(lib.widest))
        wanted = np.append(true.log_probs, np.zeros(3 - given))
        np.testing.assert_allclose(lib.numpy(ga)[row], wanted, atol=64 * unit(lib.widest))


@seconds
def test_mass_that_rounding_loses(lib):
    """A rest below rounding is 0, and reverse KL infinite; the mass itself mends that."""
    s = np.array([0.0, -1.0, -40.0, -41.0])
    log_p = s - np.log(np.exp(s).sum())
    log_p[:2] += 32 * unit(lib.widest)
    arrays = lib.array(s), lib.array(log_p[:2]), lib.array(np.arange(2))
    rest = lib.array(np.exp(log_p[2:]).sum())
    for beta, without in ((0.0, 0.0), (1.0, INF)):
        value, gradient = kldiv.value_and_grad(partial(loss, beta=beta))(*arrays)
        lib.assert_equal(value, without)
        if not beta:
            assert np.isfinite(lib.numpy(gradient)).all()
        value, gradients = kldiv.value_and_grad(
            partial(loss, beta=beta, target_rest=rest), (0, 1, 2)
        )(*arrays)
        assert 0 <= lib.numpy(value) < 1e-12
        assert all(np.isfinite(lib.numpy(each)).all() for each in gradients)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_reverse_direction_where_the_student_has_no_other_class(dtype):
    """−Σ q log p has the slope −q: the rest counts for nothing."""
    s, a = np.array([1.0, 2.0, -INF, -INF], dtype), np.log([0.3, 0.6]).astype(dtype)
    loss = partial(kldiv.topk_kl_div_with_logits, target_indices=np.array([0, 1]), beta=1)
    _, (_, found) = kldiv.value_and_grad(loss, (0, 1))(s, a)
    np.testing.assert_allclose(found, -1 / (1 + np.exp([1.0, -1.0])), rtol=4 * unit(dtype))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("library", [Library.NUMPY, Library.TORCH])
def test_a_subnormal_rest_is_a_number(library, dtype):
    """e to the power of minus its logarithm is beyond the largest number."""
    small = np.finfo(dtype).smallest_subnormal * 64
    s, log_p = np.array([1.0, 0.5, -2.0, -3.0], dtype), np.log(np.array([0.6, 0.4], dtype))
    arrays = [library.from_numpy(a) for a in (s, log_p, np.arange(2))]
    found = []
    with kldiv.config_context(kernel="pure"):
        for rest in (small, 0.0):
            own = partial(loss, target_rest=library.from_numpy(np.asarray(rest, dtype)))
            value, gradients = kldiv.value_and_grad(own, (0, 1))(*arrays)
            found.append([float(value), *map(library.numpy, gradients)])
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=16 * unit(dtype), atol=1e-36)


@seconds
def test_masks_weights_and_axes(lib):
    s, keep = np.stack([S, S * 2, np.full(5, np.nan), S - 3]), np.array([True, True, False, True])
    log_probs = np.log(np.stack([P[:2], P[2:4], [np.nan, 0.1], P[:2]]))
    indices = np.array([[1, 3], [4, 2], [99, -9], [0, 1]])
    weight = np.array([1.0, 0.0, 5.0, -2.0])
    truth = [exact(KL(), *row) for row in zip(s[keep], log_probs[keep], indices[keep], strict=True)]
    values = np.zeros(4)
    values[keep] = [true.value for true in truth]
    student = np.zeros((4, 5))
    student[keep] = [true.student for true in truth]
    arrays = [lib.array(np.moveaxis(a, -1, 0)) for a in (s, log_probs)]
    if lib.root == "numpy":  # where an index that is no class is an error, dropped or not
        indices[2] = 0
    arrays.append(lib.array(indices.T))
    kept = partial(loss, axis=0, where=lib.array(keep))
    lib.assert_equal(kept(*arrays, reduction="none"), values, ulps=64)
    for options, factor in (
        ({}, keep / 3),
        ({"normalizer": 7}, keep / 7),
        ({"row_weight": lib.array(weight)}, np.where(keep, weight, 0) / 3),
    ):
        value, gradient = kldiv.value_and_grad(partial(kept, **options))(*arrays)
        lib.assert_equal(value, (values * factor).sum(), ulps=64)
        lib.assert_equal(gradient, (student * factor[:, None]).T, ulps=64)


@pytest.mark.leave_out(lambda lib: "takes no lazy arrays" if lib is Library.DASK else None)
@seconds
def test_a_teacher_from_logits(lib):
    """The rest is exact where 1 − Σ p has no digit, and at the temperature."""
    t = np.array([[0.0, 40.0, 1.0, 2.0], [0.3, -INF, 0.1, 0.2]])
    for heat in (1.0, 2.0):
        p = np.exp(t / heat) / np.exp(t / heat).sum(-1, keepdims=True)
        teacher = kldiv.topk_log_probs(lib.array(t), 2, heat)
        log_probs, indices, rest, temperature = teacher
        assert temperature == heat
        np.testing.assert_array_equal(lib.numpy(indices), [[1, 3], [0, 3]])
        np.testing.assert_allclose(
            lib.numpy(rest), [p[0, [0, 2]].sum(), p[1, 2]], rtol=8 * unit(lib.widest)
        )
        wanted = np.log(np.take_along_axis(p, lib.numpy(indices), -1))
        np.testing.assert_allclose(
            lib.numpy(log_probs), wanted, rtol=8 * unit(lib.widest), atol=1e-16
        )
        s = lib.array(np.stack([S[:4]] * 2))
        found = loss(s, teacher, temperature=heat)
        own = loss(s, log_probs, indices, target_rest=rest, temperature=heat)
        lib.assert_equal(found, lib.numpy(own))


def test_indices_that_are_no_class(lib):
    arrays = lib.array(S), lib.array(np.log(P[:2])), lib.array(np.array([1, 5]))
    if lib.root == "numpy":
        with pytest.raises(
            OptionError, match="target_indices has 5, which is none of the 5 classes"
        ):
            loss(*arrays)
    else:
        assert np.isnan(lib.numpy(loss(*arrays)))


A, AT = np.log(P[:2]), np.array([0, 1])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (partial(loss, S, A, AT, tail="drop"), "tail must be one of 'bucket', 'renormalize'"),
        (partial(loss, S, A, AT, beta=1.5), "beta must be 0, 1 or between them"),
        (partial(loss, S, A, AT, beta=1.0, divergence=KL()), "pass one of them"),
        (partial(loss, S, A, AT, target_temperature=2.0), "pass tail='renormalize'"),
        (partial(loss, S, A, AT, tail="renormalize", target_rest=P[0]), "has none"),
        (partial(loss, S, A, A), "expected integers"),
        (partial(loss, S, A, AT[:1]), "has an entry for each"),
        (partial(loss, np.stack([S, S]), A, AT), "must agree but for the axis"),
        (partial(loss, S, SparseTeacher(A, AT), AT), "leave target_indices"),
        (partial(kldiv.value_and_grad(loss, 2), S, A, AT), "argnums 2 is target_rest"),
        (partial(kldiv.topk_log_probs, S, 6), "fewer than k"),
    ],
)
def test_wrong_arguments(call, words):
    with pytest.raises((DTypeError, OptionError, ShapeError), match=words):
        call()


def test_a_teacher_brings_its_temperature_and_no_rest_where_classes_are_renormalized():
    s, t = np.random.default_rng(1).normal(size=(2, 2, 5))
    teacher = kldiv.topk_log_probs(t, 2, 2.0)
    plain = partial(loss, s, teacher.log_probs, teacher.indices, tail="renormalize")
    for options, heat in (({}, 2.0), ({"target_temperature": 0.7}, 0.7)):
        found = loss(s, teacher, tail="renormalize", **options)
        assert found == plain(target_temperature=heat) != plain()


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_classes_that_are_left_out_have_no_second_derivative(torch, beta):
    s = torch.tensor([[0.3, -1.2, 0.7, 5.5, 2.0]], requires_grad=True)  # the largest is left out
    a = torch.tensor([[-0.4, -1.3]], requires_grad=True)
    loss = kldiv.topk_kl_div_with_logits(
        s, a, torch.tensor([[0, 1]]), beta=beta, tail="renormalize"
    )
    of_s, of_a = torch.autograd.grad(loss, (s, a), create_graph=True)
    for slope in (of_s[0, 0], of_s[0, 1], of_a[0, 0]):
        (second,) = torch.autograd.grad(slope, s, retain_graph=True)
        assert (second[0, 2:] == 0).all()
        assert (second[0, :2] != 0).all()


@pytest.mark.parametrize("beta", [0.0, 0.3, 0.5, 1.0])
def test_second_derivatives_where_the_other_classes_are_the_likeliest(torch, beta):
    shares = [0.16, 0.25, 0.16, 0.1, 0.08, 0.25], [0.03, 0.16, 0.2]
    s, a = (torch.tensor(each, dtype=torch.float64).log() for each in shares)
    indices = torch.tensor([0, 2, 4])

    def written_out(s, a):
        q = s.softmax(-1)
        p, q = (torch.cat([x, 1.0 - x.sum(-1, keepdim=True)], -1) for x in (a.exp(), q[indices]))
        m = beta * p + (1.0 - beta) * q
        if beta in (0.0, 1.0):
            p, q = (p, q) if beta == 0.0 else (q, p)
            return (p * (p / q).log()).sum()
        return beta * (p * (p / m).log()).sum() + (1.0 - beta) * (q * (q / m).log()).sum()

    hessian = torch.autograd.functional.hessian
    found, wanted = (
        hessian(each, (s, a)) for each in (lambda s, a: loss(s, a, indices, beta=beta), written_out)
    )
    for i, j in np.ndindex(2, 2):
        torch.testing.assert_close(found[i][j], wanted[i][j], rtol=1e-12, atol=1e-14)


def _renormalized(x, beta):
    return mixed(*(softmax(half) for half in (x[3:], x[:3])), beta)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("beta", [0.0, 1.0, 0.5])
@pytest.mark.parametrize("far", [40, 240])
def test_second_derivatives_where_a_class_holds_almost_all_mass(torch, beta, far, dtype):
    far = far / 8 if dtype == "float32" else far  # no product of two masses is subnormal
    for own, teacher in (
        ([0.3, -0.5, 1.0], [-0.1, -far, -far - 2.5]),
        ([0.3 - far, 0.5, -far - 2], [-far, -far - 1.5, -1.0]),
        ([0.3 - far, 0.5, -far - 2], [-far, -0.5, -far - 1.5]),
    ):
        x = torch.tensor(own + teacher, dtype=getattr(torch, dtype))
        options = {"beta": beta, "tail": "renormalize"}
        found = torch.autograd.functional.hessian(
            lambda x, o=options: loss(x[:3], x[3:], torch.arange(3), **o), x
        )
        error = hessian_error(found.tolist(), lambda x: _renormalized(x, beta), x.tolist())
        assert error < 20 * unit(dtype)


def _bucketed(x, beta):
    p, q = [mpmath.exp(each) for each in x[4:]], softmax(x[:4])
    return mixed([*p, 1 - mpmath.fsum(p)], [*q[:2], q[2] + q[3]], beta)


# The first two classes are given.
LIKELIEST = {
    "another, the teacher's too": [-0.003, 0.8, 5.8, 23.4, -52.0, -53.0],
    "another, not the teacher's": [-0.003, -0.06, 0.01, 60.0, -9.0, -0.26],
    "a given one": [0.3, 30.0, -0.4, 1.2, -0.7, -2.0],
    "a given one, far": [60.0, -0.06, -10.7, 0.03, -0.4, -40.0],
}


@pytest.mark.parametrize("beta", [0.0, 1.0, 0.5])
@pytest.mark.parametrize("case", LIKELIEST)
def test_second_derivatives_in_the_likeliest_class(torch, case, beta):
    """Its own are those of the others: 1 − p, of which they have a factor, rounds to 0."""
    x, indices = torch.tensor(LIKELIEST[case], dtype=torch.float64), torch.arange(2)
    found = torch.autograd.functional.hessian(lambda x: loss(x[:4], x[4:], indices, beta=beta), x)
    error = hessian_error(found.tolist(), partial(_bucketed, beta=beta), x.tolist())
    assert error < 60 * unit("float64")
