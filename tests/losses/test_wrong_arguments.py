"""What users pass that no loss takes: each error names it and a mend, and the mend works."""

from __future__ import annotations

import re
from inspect import signature

import numpy as np
import pytest

import kldiv
from kldiv.errors import LibraryError, OptionError, ShapeError

LOGITS = np.random.default_rng(0).normal(size=(2, 2, 3, 4, 5))


def mend_of(error, pattern):
    """Return what an error tells the caller to pass."""
    return re.search(pattern, str(error.value))[1]


@pytest.mark.parametrize(
    ("axis", "call"),
    [
        ((2, 3), "x.reshape((2, 3, -1))"),
        ([-1, -2], "x.reshape((2, 3, -1))"),
        ((0, 2), "moveaxis(x, (0, 2), (-2, -1)).reshape((3, 5, -1))"),
        ((0, 1, 2, 3), "x.reshape((-1,))"),
    ],
)
def test_several_axes_of_classes(axis, call):
    s, t = LOGITS
    for loss in (kldiv.kl_div_with_logits, kldiv.js_div_with_logits, kldiv.kl_divergence):
        with pytest.raises(OptionError, match="axis must be one whole number; got") as error:
            loss(s, t, axis=axis)
        mend = mend_of(error, r"for each array x pass (.*\))(?:; in PyTorch|$)")
        assert mend == call
    made = [eval(mend, {"x": x, "moveaxis": np.moveaxis}) for x in (s, t)]  # noqa: S307 - our own
    axes = tuple(axis)
    p = np.exp(t) / np.exp(t).sum(axes, keepdims=True)
    q = np.exp(s) / np.exp(s).sum(axes, keepdims=True)
    found = kldiv.kl_div_with_logits(*made, reduction="none")
    np.testing.assert_allclose(found, (p * np.log(p / q)).sum(axes), rtol=1e-12)


@pytest.mark.parametrize("axis", [None, "classes", 1.0, (7,), (), True, np.True_])
def test_no_axis_at_all(axis):
    calls = kldiv.kl_div_with_logits, kldiv.kl_divergence, kldiv.tv_divergence, kldiv.diagnose
    for call in calls:
        with pytest.raises(OptionError, match="axis must be one whole number"):
            call(*LOGITS, axis=axis)


def test_any_whole_number_is_an_axis():
    s, t = LOGITS
    found = kldiv.kl_div_with_logits(s, t, axis=np.int64(1))
    assert found == kldiv.kl_div_with_logits(s, t, axis=1)


@pytest.mark.parametrize("shapes", [((4, 1, 6), (1, 3, 6)), ((6,), (4, 3, 6)), ((3, 6), (1, 6))])
@pytest.mark.parametrize("name", ["kl_div_with_logits", "kl_div", "kl_divergence"])
def test_shapes_that_would_broadcast(name, shapes):
    first, second = (np.full(shape, 1 / 6) for shape in shapes)
    loss = getattr(kldiv, name)
    with pytest.raises(ShapeError, match="nothing is broadcast") as error:
        loss(first, second)
    arrays = {"input": first, "target": second, "p": first, "q": second}
    for mend in mend_of(error, r"if you mean that pass (.*)").split(" and "):
        named = re.search(r"broadcast_to\((\w+),", mend)[1]
        scope = {**arrays, "broadcast_to": np.broadcast_to}
        arrays[named] = eval(mend, scope)  # noqa: S307 - our own
    pair = ("p", "q") if name == "kl_divergence" else ("input", "target")
    loss(*(arrays[one] for one in pair))


@pytest.mark.parametrize("name", ["kl_div_with_logits", "kl_div", "kl_divergence", "js_divergence"])
def test_lists_and_what_has_an_array(name):
    class Column:
        """What a column of a data frame is to kldiv."""

        def __array__(self, *_, **__):
            return np.array([0.5, 0.5])

    array = np.array([0.5, 0.5])
    for one in ([0.5, 0.5], Column()):
        for pair in ((one, one), (array, one), (one, array)):
            with pytest.raises(LibraryError, match="convert it, for example by"):
                getattr(kldiv, name)(*pair)
        getattr(kldiv, name)(np.asarray(one), np.asarray(one))


def test_sparse_matrices():
    sparse = pytest.importorskip("scipy.sparse").csr_array(np.eye(2))
    with pytest.raises(LibraryError, match=r"toarray\(\)"):
        kldiv.kl_div_with_logits(sparse, sparse)
    torch = pytest.importorskip("torch")
    tensor = torch.eye(2).to_sparse()
    with pytest.raises(LibraryError, match=r"target is a tensor of layout.*target\.to_dense\(\)"):
        kldiv.kl_div_with_logits(torch.eye(2), tensor)
    assert kldiv.kl_div_with_logits(torch.eye(2), tensor.to_dense()) == 0


def test_tensors_on_two_devices():
    torch = pytest.importorskip("torch")
    here, there = torch.zeros(2, 3), torch.zeros(2, 3, device="meta")
    for loss in (kldiv.kl_div_with_logits, kldiv.kl_divergence, kldiv.kl_div):
        with pytest.raises(LibraryError, match=r"is on cpu and (\w+) on meta.*\1\.to\('cpu'\)"):
            loss(here, there)
    with pytest.raises(LibraryError, match="temperature on meta"):
        kldiv.kl_div_with_logits(here, here, temperature=torch.ones(2, device="meta"))
    alone = kldiv.kl_div_with_logits(here, here, temperature=torch.tensor(2.0))
    assert alone == 0


PUBLIC = [name for name in kldiv.__all__ if name.endswith(("logits", "divergence", "loss", "div"))]


@pytest.mark.parametrize("name", PUBLIC)
def test_an_option_of_no_function_or_of_another_is_refused(name):
    function = getattr(kldiv, name)
    own = signature(function).parameters
    # Names that functions behind the public ones take.
    inner = {
        "beta",
        "names",
        "exchanged",
        "entropic",
        "reference",
        "single",
        "arguments",
        "measure",
    }
    calls = [function]
    if hasattr(function, "record"):
        calls.append(kldiv.value_and_grad(function))
    for option in inner.difference(own):
        for call in calls:
            with pytest.raises(TypeError, match=rf"{name}\(\) got an unexpected .*'{option}'"):
                call(*LOGITS, **{option: np.full(LOGITS.shape[1:-1], 0.5)})


def test_an_array_is_not_differentiated_in_twice():
    with pytest.raises(OptionError, match="argnums names an array twice"):
        kldiv.value_and_grad(kldiv.kl_div, argnums=(0, 0))


def _places(s):
    return np.broadcast_to(np.arange(s.shape[-1]), s.shape).copy()


def _of_a_setting():
    s, t = abs(LOGITS[:, 0])  # probabilities too
    labels = np.zeros(s.shape[:-1], int)
    records = kldiv.divergences
    return {
        "beta": lambda xp, x: kldiv.js_div_with_logits(xp(s), xp(t), beta=x),
        "alpha": lambda xp, x: kldiv.skew_kl_div_with_logits(xp(s), xp(t), alpha=x),
        "weights": lambda xp, x: kldiv.jeffreys_div_with_logits(xp(s), xp(t), weights=(x, x)),
        "alpha as an order": lambda xp, x: kldiv.renyi_div_with_logits(xp(s), xp(t), alpha=x),
        "alpha of p": lambda xp, x: kldiv.skew_divergence(xp(s), xp(t), alpha=x).sum(),
        "weights of p": lambda xp, x: kldiv.js_divergence(xp(s), xp(t), weights=(x, x)).sum(),
        "hard_weight": lambda xp, x: kldiv.distillation_loss(
            xp(s), xp(t), xp(labels), hard_weight=x
        ),
        "logit_scale": lambda xp, x: kldiv.linear_kl_div(*[xp(s[0])] * 4, logit_scale=x),
        "softcap": lambda xp, x: kldiv.linear_kl_div(*[xp(s[0])] * 4, softcap=x),
        "target_temperature": lambda xp, x: kldiv.topk_kl_div_with_logits(
            xp(s), xp(-t), xp(_places(s)), tail="renormalize", target_temperature=x
        ),
        "m": lambda xp, x: records.Mixture(x, 1.0, 1.0) and x,
        "w": lambda xp, x: records.Jeffreys(x) and x,
        "alpha of a record": lambda xp, x: hash(records.Alpha(x)) and x,
    }


@pytest.mark.parametrize("name", _of_a_setting())
def test_a_setting_loses_no_gradient_in_silence(name, jax, torch):
    call = _of_a_setting()[name]
    number = call(np.asarray, 0.5)
    for same in (np.float32(0.5), np.array(0.5)):
        assert float(call(np.asarray, same)) == number
    # None leaves these three as they are.
    unset = name in {"logit_scale", "softcap", "target_temperature"}
    for given in (torch.tensor(0.5, requires_grad=True), "0.5", b"0.5", *[None] * (not unset)):
        with pytest.raises(OptionError, match=f"{name.split()[0]} must be a number"):
            call(torch.as_tensor, given)
    for transformed in (jax.grad, jax.jit):
        with pytest.raises(OptionError, match=f"{name.split()[0]} must be a number"):
            transformed(lambda x: call(jax.numpy.asarray, x))(0.0 if name == "hard_weight" else 0.5)


def _of_forward_mode(torch):
    def dual(function, x):
        with torch.autograd.forward_ad.dual_level():
            return function(torch.autograd.forward_ad.make_dual(x, torch.ones_like(x)))

    def jvp(function, x):
        return torch.func.jvp(function, (x,), (torch.ones_like(x),))

    def beneath(function, x):  # another transform lies over the one that follows the option
        inner = torch.func.grad(lambda y, x: function(x).sum() * y)
        return jvp(lambda x: inner(torch.ones_like(x), x), x)

    def grad(function, x):
        return torch.func.grad(function)(x)

    def vmap(function, x):
        return torch.func.vmap(function)(x[None])

    return dual, jvp, beneath, grad, vmap


@pytest.mark.parametrize("name", _of_a_setting())
@pytest.mark.parametrize("number", [0.5, 1.0])  # 1 is what some are by default
def test_a_setting_loses_no_derivative_of_a_transform_in_silence(name, number, torch):
    def call(x):
        return _of_a_setting()[name](torch.as_tensor, x)

    for transform in _of_forward_mode(torch):
        with pytest.raises(OptionError, match=f"{name.split()[0]} must be a number"):
            transform(call, torch.tensor(number))
