"""Densities and samplers of other libraries' objects, one entry of a batch at a time.

No library is imported: an object brings its own, and arrays are converted by the adapters.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from kldiv import backends
from kldiv.distributions.host import Density
from kldiv.distributions.lines import within
from kldiv.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Callable

_KEYED = ("numpyro", "tensorflow_probability", "distrax")


def of_object(original: Any, index: tuple[int, ...]) -> Density:
    """Return the density of one batch entry of an object."""
    if hasattr(original, "rvs") or hasattr(original, "logpdf"):
        return of_scipy(original, index)
    backend = _backend(original)
    batch, event = tuple(original.batch_shape), tuple(original.event_shape)
    bounds, discrete = _support(original, backend, index)
    inner = bounds if discrete else _inner(bounds)
    place: Any = (slice(None), *index)

    def log_prob(x: Any, log_x: Any = None, log_rest: Any = None) -> Any:  # noqa: ARG001
        x = np.asarray(x, dtype=np.float64)
        inside = True if event else (x >= bounds[0]) & (x <= bounds[1]) & np.isfinite(x)
        # Objects that check their arguments raise outside of their support.
        given = x if event else np.where(inside, np.clip(x, *inner), within(*inner))
        lead = given.shape[: given.ndim - len(event)]
        given = np.reshape(given, (-1, *(1 for _ in batch), *event))
        given = np.broadcast_to(given, (len(given), *batch, *event))
        logs = np.broadcast_to(_evaluate(original, backend, given), (len(given), *batch))
        found = np.reshape(logs[place], lead)
        return np.where(inside, found, -np.inf)

    def sample(n: int, rng: Any) -> Any:
        return samples(original, n, rng)[place]

    return Density(log_prob, sample, bounds, discrete, bool(event))


def samples(original: Any, n: int, rng: Any) -> Any:
    """Return n samples of the whole batch of an object, along the first axis."""
    if hasattr(original, "rvs"):
        shape = np.shape(original.support()[0]) if hasattr(original, "support") else ()
        return np.asarray(original.rvs(size=(n, *shape) if shape else n, random_state=rng))
    if hasattr(original, "logpdf"):
        return np.asarray(original.sample(n, rng=rng))
    backend = _backend(original)
    if backend.name == "jax":
        key = backend.random_key(int(rng.integers(2**31)))
        if type(original).__module__.startswith("distrax"):
            drawn = original.sample(seed=key, sample_shape=(n,))
        elif type(original).__module__.startswith("tensorflow_probability"):
            drawn = original.sample(n, seed=key)
        else:
            drawn = original.sample(key, (n,))
    else:
        drawn = original.sample((n,))
    return np.asarray(backend.on_host(drawn), dtype=np.float64)


def log_probs(original: Any, x: Any) -> Any:
    """Return the log-densities of the whole batch of an object; x has the batch's axes."""
    if hasattr(original, "logpdf") or hasattr(original, "logpmf"):
        if hasattr(original, "logpdf") and not _is_discrete(original):
            return np.asarray(original.logpdf(x))
        return np.asarray(original.logpmf(x))
    return _evaluate(original, _backend(original), x)


def batch_shape(original: Any) -> tuple[int, ...]:
    """Return the shape of an object's batch."""
    if hasattr(original, "batch_shape"):
        return tuple(original.batch_shape)
    if not hasattr(original, "support"):
        return ()
    return np.broadcast_shapes(*(np.shape(edge) for edge in original.support()))


def _backend(original: Any) -> Any:
    for cls in type(original).__mro__:
        root = cls.__module__.partition(".")[0]
        if root in {"torch", "pyro"}:
            return backends.get("torch")
        if root in _KEYED:
            if root == "tensorflow_probability" and ".substrates.jax" not in cls.__module__:
                break
            return backends.get("jax")
    raise OptionError(
        f"{type(original).__module__}.{type(original).__qualname__} has no closed form here, and "
        "only distributions of SciPy and PyTorch, and of NumPyro, distrax and TFP on JAX, can be "
        "sampled and integrated; convert it"
    )


def _evaluate(original: Any, backend: Any, x: Any) -> Any:
    # A copy: PyTorch warns of arrays that it cannot write to.
    x = np.array(x, dtype=np.float64)
    if backend.name == "torch":
        return _evaluated(original, backend, x)
    # JAX compiles for every shape: a few lengths serve all.
    count = len(x)
    more = max(256, 1 << (count - 1).bit_length()) - count if count else 0
    with backend.receiving(("float64",)):  # JAX takes float64 only there
        return _evaluated(original, backend, np.concatenate([x, x[:1].repeat(more, 0)]))[:count]


def _evaluated(original: Any, backend: Any, x: Any) -> Any:
    xp = backend.namespace()
    try:
        found = original.log_prob(xp.asarray(x, dtype=xp.float64))
    except ValueError as error:
        raise OptionError(
            f"{type(original).__qualname__} refuses places of the other distribution: "
            f"{str(error).splitlines()[0]}; make it with validate_args=False"
        ) from error
    found = found.detach() if hasattr(found, "detach") else found
    return backend.on_host(found)


def _support(
    original: Any, backend: Any, index: tuple[int, ...]
) -> tuple[tuple[float, float], bool]:
    """Return the bounds of an entry, and whether it is discrete."""
    support = getattr(original, "support", None)
    shape = tuple(original.batch_shape)

    def edge(name: str, missing: float) -> float:
        value = getattr(support, name, None)
        if value is None:
            return missing
        if hasattr(value, "dtype"):
            value = backend.on_host(value)
        return float(np.broadcast_to(np.asarray(value, dtype=float), shape)[index])

    if original.event_shape:
        return (-math.inf, math.inf), bool(getattr(support, "is_discrete", False))
    bounds = edge("lower_bound", -math.inf), edge("upper_bound", math.inf)
    discrete = getattr(support, "is_discrete", None)
    if discrete is None:  # a continuous one hardly ever gives whole numbers only
        drawn = samples(original, 64, np.random.default_rng(0))
        discrete = bool((drawn == np.rint(drawn)).all())
    return bounds, bool(discrete)


def _inner(bounds: tuple[float, float]) -> tuple[float, float]:
    return float(np.nextafter(bounds[0], math.inf)), float(np.nextafter(bounds[1], -math.inf))


# --- SciPy ----------------------------------------------------------------------------------------


def of_scipy(frozen: Any, index: tuple[int, ...] = ()) -> Density:
    """Return the density of one batch entry of a distribution of SciPy."""
    discrete = _is_discrete(frozen)
    if type(frozen).__name__ == "dirichlet_frozen":  # SciPy has events on the first axis
        return Density(
            lambda x: frozen.logpdf(np.asarray(x).T),
            lambda n, rng: frozen.rvs(n, random_state=rng),
            vector=True,
        )
    if not hasattr(frozen, "support"):
        log_prob = frozen.logpmf if discrete else frozen.logpdf
        return Density(
            log_prob,
            lambda n, rng: frozen.rvs(size=n, random_state=rng),
            discrete=discrete,
            vector=True,
        )
    shape = batch_shape(frozen)
    low, high = (float(np.broadcast_to(edge, shape)[index]) for edge in frozen.support())
    circle = getattr(getattr(frozen, "dist", None), "name", "") == "vonmises"
    if circle:  # SciPy has its density on the whole line
        low = float(np.broadcast_to(frozen.mean(), shape)[index]) - math.pi
        high = low + 2 * math.pi

    def of_entry(function: Callable[[Any], Any]) -> Callable[..., Any]:
        def apply(x: Any, log_x: Any = None, log_rest: Any = None) -> Any:  # noqa: ARG001
            x = np.asarray(x, dtype=float)
            if not shape:
                return function(x)
            wide = np.broadcast_to(x[(..., *(None for _ in shape))], (*x.shape, *shape))
            return function(wide)[(..., *index)]

        return apply

    quick = _has_quantiles(frozen)
    upper = getattr(frozen, "isf", getattr(frozen, "iccdf", None))
    return Density(
        of_entry(frozen.logpmf if discrete else frozen.logpdf),
        lambda n, rng: samples(frozen, n, rng)[(slice(None), *index)],
        (low, high),
        discrete,
        circle=circle,
        quantile=of_entry(getattr(frozen, "ppf", getattr(frozen, "icdf", None))) if quick else None,  # type: ignore[arg-type]
        upper_quantile=of_entry(upper) if quick and upper is not None else None,
        underflows=_underflows(frozen),
    )


def _is_discrete(original: Any) -> bool:
    if hasattr(original, "dist"):
        return not hasattr(original.dist, "_pdf")
    if hasattr(original, "logpdf") and hasattr(original, "logpmf"):  # SciPy's newer objects
        kind = next((c.__name__ for c in type(original).__mro__ if "Discrete" in c.__name__), "")
        return bool(kind)
    return not hasattr(original, "logpdf")


def _has_quantiles(frozen: Any) -> bool:
    """Return whether quantiles are quick: a discrete one without formulas adds up its mass."""
    own, base = _own_and_generic(frozen)
    if base is None or base.__name__ == "rv_continuous":
        return True
    return own._cdf is not base._cdf or own._ppf is not base._ppf  # noqa: SLF001


def _underflows(frozen: Any) -> bool:
    """Return whether a log-density is the logarithm of a density, which underflows."""
    own, base = _own_and_generic(frozen)
    if base is None:
        return False
    name = "_logpdf" if base.__name__ == "rv_continuous" else "_logpmf"
    return getattr(own, name) is getattr(base, name)


def _own_and_generic(frozen: Any) -> tuple[Any, Any]:
    """Return the class of a frozen distribution's law and SciPy's generic one, if it has these."""
    own: Any = type(getattr(frozen, "dist", None))
    generic = {"rv_continuous", "rv_discrete"}
    return own, next((c for c in own.__mro__ if c.__name__ in generic), None)
