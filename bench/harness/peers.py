"""The peers that kldiv is measured beside: one table, one entry each.

To add one, add an entry to `PEERS`: its modules, and a formula for every operation it knows. A
formula takes the library's own arrays of input and target and returns the value, or the pair of
value and gradient; ``prepare`` converts these for it, outside of the time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from .libraries import LIBRARIES

if TYPE_CHECKING:
    from .operations import Pass

Formula = Callable[[Any, Any], Any]


@dataclass(frozen=True)
class Peer:
    """A library, or a way to use it, that computes some of the operations."""

    name: str
    library: str
    """Whose arrays it takes."""
    needs: tuple[str, ...]
    """Modules that must be importable."""
    install: str
    values: Mapping[str, Callable[[], Formula]]
    """By operation: the function that makes the formula of the value."""
    gradients: Mapping[str, Callable[[], Formula]] = field(default_factory=dict)
    """Likewise of value and gradient, where it has its own; else its library differentiates."""
    differentiable: bool = False
    mode: str = "eager"
    devices: tuple[str, ...] = ("cpu",)
    dtypes: tuple[str, ...] | None = None
    """None: those of the library."""
    prepare: Callable[[Any, Any], tuple[Any, Any]] | None = None
    version_of: str | None = None
    """The distribution whose version matters, where it is not the first need."""

    def missing(self) -> str | None:
        """Return which modules are missing, or None."""
        names = [name for name in self.needs if find_spec(name) is None]
        return f"{' and '.join(names)} not installed" if names else None

    def knows(self, operation: str, part: Pass) -> bool:
        """Return whether it computes this."""
        if part == "value":
            return operation in self.values
        return operation in self.gradients or (self.differentiable and operation in self.values)

    def formula(self, operation: str, part: Pass) -> Formula:
        """Return the function to time."""
        library = LIBRARIES[self.library]
        if part == "gradient" and operation in self.gradients:
            return self.gradients[operation]()
        made = self.values[operation]()
        if part == "gradient":
            made = library.differentiate(made)
        return library.compile(made, self.mode)


def _by(module: str, formula: Callable[[Any, Any, Any], Any]) -> Callable[[], Formula]:
    """Return the maker of a formula of a module and two arrays, which imports the module."""
    return lambda: partial(formula, import_module(module))


# --- NumPy, written out ---------------------------------------------------------------------------


def _log_softmax(a: Any) -> Any:
    shifted = a - a.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def _numpy_logits(s: Any, t: Any) -> Any:
    log_q, log_p = _log_softmax(s), _log_softmax(t)
    return (np.exp(log_p) * (log_p - log_q)).sum() / len(s)


def _numpy_logits_gradient(s: Any, t: Any) -> Any:
    log_q, log_p = _log_softmax(s), _log_softmax(t)
    p = np.exp(log_p)
    return (p * (log_p - log_q)).sum() / len(s), (np.exp(log_q) - p) / len(s)


def _numpy_js(s: Any, t: Any) -> Any:
    log_q, log_p = _log_softmax(s), _log_softmax(t)
    p, q = np.exp(log_p), np.exp(log_q)
    log_m = np.log((p + q) / 2)
    return (p * (log_p - log_m) + q * (log_q - log_m)).sum() / (2 * len(s))


def _numpy_labels(s: Any, labels: Any) -> Any:
    return -np.take_along_axis(_log_softmax(s), labels[:, None], -1).mean()


def _numpy_labels_and_entropy(s: Any, labels: Any) -> Any:
    log_q = _log_softmax(s)
    entropy = -(np.exp(log_q) * log_q).sum(axis=-1)
    return (entropy - np.take_along_axis(log_q, labels[:, None], -1)[:, 0]).mean()


def _numpy_cross_entropy(s: Any, t: Any) -> Any:
    return -(np.exp(_log_softmax(t)) * _log_softmax(s)).sum() / len(s)


NUMPY = Peer(
    "NumPy, written out",
    "numpy",
    ("numpy",),
    "pip install numpy",
    {
        "kl_div": lambda: lambda x, y: (y * (np.log(y) - x)).sum(),
        "kl_div_log_target": lambda: lambda x, y: (np.exp(y) * (y - x)).sum(),
        "kl_div_none": lambda: lambda x, y: y * (np.log(y) - x),
        "kl_div_with_logits": lambda: _numpy_logits,
        "js_div_with_logits": lambda: _numpy_js,
        "distillation_loss": lambda: _numpy_js,
        "cross_entropy_with_logits": lambda: _numpy_cross_entropy,
        "cross_entropy_of_labels": lambda: _numpy_labels,
        "log_prob_and_entropy": lambda: _numpy_labels_and_entropy,
    },
    {
        "kl_div": lambda: lambda x, y: ((y * (np.log(y) - x)).sum(), -y),
        "kl_div_with_logits": lambda: _numpy_logits_gradient,
    },
    dtypes=("float32", "float64"),
)


# --- PyTorch --------------------------------------------------------------------------------------


def _torch_kl_div(**options: Any) -> Callable[[], Formula]:
    def make() -> Formula:
        functional = import_module("torch.nn.functional")
        return lambda x, y: functional.kl_div(x, y, **options)

    return make


def _torch_logits() -> Formula:
    functional = import_module("torch.nn.functional")

    def formula(s: Any, t: Any) -> Any:
        log_q, log_p = functional.log_softmax(s, -1), functional.log_softmax(t, -1)
        return functional.kl_div(log_q, log_p, reduction="batchmean", log_target=True)

    return formula


def _torch_js() -> Formula:
    torch = import_module("torch")
    functional = import_module("torch.nn.functional")
    log_2 = float(np.log(2.0))

    def formula(s: Any, t: Any) -> Any:
        log_q, log_p = functional.log_softmax(s, -1), functional.log_softmax(t, -1)
        log_m = torch.logaddexp(log_p, log_q) - log_2
        of_p = functional.kl_div(log_m, log_p, reduction="batchmean", log_target=True)
        return (of_p + functional.kl_div(log_m, log_q, reduction="batchmean", log_target=True)) / 2

    return formula


def _torch_of(formula: Callable[[Any, Any], Any]) -> Callable[[], Formula]:
    """Return a divergence of log p and log q, class by class, as it is usually written."""

    def make() -> Formula:
        functional = import_module("torch.nn.functional")

        def loss(s: Any, t: Any) -> Any:
            log_p, log_q = functional.log_softmax(t, -1), functional.log_softmax(s, -1)
            return formula(log_p, log_q).sum() / len(s)

        return loss

    return make


def _torch_cross_entropy() -> Formula:
    functional = import_module("torch.nn.functional")
    return lambda s, t: functional.cross_entropy(s, functional.softmax(t, -1))


def _torch_labels() -> Formula:
    return import_module("torch.nn.functional").cross_entropy  # type: ignore[no-any-return]


def _torch_labels_and_entropy() -> Formula:
    functional = import_module("torch.nn.functional")

    def formula(s: Any, labels: Any) -> Any:
        log_q = functional.log_softmax(s, -1)
        entropy = -(log_q.exp() * log_q).sum(-1)
        return (entropy - log_q.gather(-1, labels[:, None])[:, 0]).mean()

    return formula


_TORCH: Final[Mapping[str, Callable[[], Formula]]] = {
    "kl_div": _torch_kl_div(reduction="sum"),
    "kl_div_log_target": _torch_kl_div(reduction="sum", log_target=True),
    "kl_div_none": _torch_kl_div(reduction="none"),
    "kl_div_with_logits": _torch_logits,
    "js_div_with_logits": _torch_js,
    "distillation_loss": _torch_js,
    "cross_entropy_with_logits": _torch_cross_entropy,
    "cross_entropy_of_labels": _torch_labels,
    "log_prob_and_entropy": _torch_labels_and_entropy,
    "skew_kl_div_with_logits": _torch_of(
        lambda a, b: a.exp() * (a - (0.1 * a.exp() + 0.9 * b.exp()).log())
    ),
    "jeffreys_div_with_logits": _torch_of(lambda a, b: (a.exp() - b.exp()) * (a - b)),
    "tv_div_with_logits": _torch_of(lambda a, b: 0.5 * (a.exp() - b.exp()).abs()),
    "hellinger_div_with_logits": _torch_of(
        lambda a, b: 0.5 * ((0.5 * a).exp() - (0.5 * b).exp()) ** 2
    ),
    "chi2_div_with_logits": _torch_of(lambda a, b: (a.exp() - b.exp()) ** 2 / b.exp()),
    "alpha_div_with_logits": _torch_of(
        lambda a, b: (0.7 * a.exp() + 0.3 * b.exp() - (0.7 * a + 0.3 * b).exp()) / 0.21
    ),
}
_INSTALL_TORCH: Final = 'pip install "kldiv[torch]"'
TORCH, COMPILED = (
    Peer(
        name,
        "torch",
        ("torch",),
        _INSTALL_TORCH,
        _TORCH,
        differentiable=True,
        mode=mode,
        devices=("cpu", "cuda"),
    )
    for name, mode in (("torch eager", "eager"), ("torch.compile", "compile"))
)


# --- Liger ----------------------------------------------------------------------------------------


def _liger_kl_div(**options: Any) -> Callable[[], Formula]:
    return lambda: import_module("liger_kernel.transformers.kl_div").LigerKLDIVLoss(**options)


def _liger_of_logits(module: str, name: str, **options: Any) -> Callable[[], Formula]:
    """Liger's losses take log-probabilities: torch makes them of the logits, inside the time."""

    def make() -> Formula:
        loss = getattr(import_module(module), name)(**options)
        functional = import_module("torch.nn.functional")
        return lambda s, t: loss(functional.log_softmax(s, -1), functional.log_softmax(t, -1))

    return make


LIGER = Peer(
    "Liger",
    "torch",
    ("torch", "triton", "liger_kernel"),
    "pip install liger-kernel",
    {
        "kl_div": _liger_kl_div(reduction="sum"),
        "kl_div_log_target": _liger_kl_div(reduction="sum", log_target=True),
        "kl_div_none": _liger_kl_div(reduction="none"),
        "kl_div_with_logits": _liger_of_logits(
            "liger_kernel.transformers.kl_div",
            "LigerKLDIVLoss",
            reduction="batchmean",
            log_target=True,
        ),
        "js_div_with_logits": _liger_of_logits("liger_kernel.transformers.jsd", "LigerJSD"),
    },
    differentiable=True,
    devices=("cuda",),
    version_of="liger_kernel",
)


# --- JAX ------------------------------------------------------------------------------------------


def _optax_logits() -> Formula:
    losses, nn = import_module("optax.losses"), import_module("jax.nn")
    return lambda s, t: losses.kl_divergence(nn.log_softmax(s), nn.softmax(t)).mean()


OPTAX = Peer(
    "optax, jax.jit",
    "jax",
    ("jax", "optax"),
    "pip install jax optax",
    {
        "kl_div": _by("optax.losses", lambda of, x, y: of.kl_divergence(x, y).sum()),
        "kl_div_log_target": _by(
            "optax.losses", lambda of, x, y: of.kl_divergence_with_log_targets(x, y).sum()
        ),
        "kl_div_with_logits": _optax_logits,
        "cross_entropy_of_labels": _by(
            "optax.losses",
            lambda of, s, t: of.softmax_cross_entropy_with_integer_labels(s, t).mean(),
        ),
    },
    differentiable=True,
    mode="jit",
    devices=("cpu", "cuda"),
    version_of="optax",
)


# --- of two sets of probabilities -----------------------------------------------------------------


def _probabilities(x: Any, y: Any) -> tuple[Any, Any]:
    """Return Q for log Q, as users of these libraries hold it; logits stay as they are."""
    return np.exp(x), y


def _scipy_logits(special: Any, s: Any, t: Any) -> Any:
    p, q = special.softmax(t, axis=-1), special.softmax(s, axis=-1)
    return special.rel_entr(p, q).sum() / len(s)


_SCIPY: Final = ("scipy",)
_INSTALL_SCIPY: Final = "pip install scipy"
REL_ENTR = Peer(
    "scipy rel_entr",
    "numpy",
    _SCIPY,
    _INSTALL_SCIPY,
    {
        "kl_div": _by("scipy.special", lambda of, q, p: of.rel_entr(p, q).sum()),
        "kl_div_none": _by("scipy.special", lambda of, q, p: of.rel_entr(p, q)),
    },
    dtypes=("float32", "float64"),
    prepare=_probabilities,
)
REL_ENTR_OF_LOGITS = Peer(
    "scipy rel_entr of softmax",
    "numpy",
    _SCIPY,
    _INSTALL_SCIPY,
    {"kl_div_with_logits": _by("scipy.special", _scipy_logits)},
    dtypes=("float32", "float64"),
)
ENTROPY = Peer(
    "scipy entropy",
    "numpy",
    _SCIPY,
    _INSTALL_SCIPY,
    {"kl_div": _by("scipy.stats", lambda of, q, p: of.entropy(p, q, axis=-1).sum())},
    dtypes=("float32", "float64"),
    prepare=_probabilities,
)


SIMSIMD = Peer(
    "SimSIMD",
    "numpy",
    ("simsimd",),
    "pip install simsimd",
    {"kl_div": _by("simsimd", lambda of, q, p: np.asarray(of.kullbackleibler(p, q)).sum())},
    dtypes=("float16", "float32", "float64"),
    prepare=_probabilities,
)

PEERS: Final = {
    peer.name: peer
    for peer in (
        TORCH,
        COMPILED,
        OPTAX,
        NUMPY,
        REL_ENTR,
        REL_ENTR_OF_LOGITS,
        ENTROPY,
        SIMSIMD,
        LIGER,
    )
}
