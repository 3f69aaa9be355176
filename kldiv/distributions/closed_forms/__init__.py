"""The closed forms, registered by importing them; each file holds the pairs of its kind.

A formula takes ``(xp, p, q)``: see `kldiv.register_kl`.  Sources: the derivations stand in
docs/distributions.md.
"""

from kldiv.distributions.closed_forms import (  # noqa: F401 - importing registers
    combined,
    counts,
    cross,
    discrete,
    gamma,
    infinite,
    kumaraswamy,
    location,
    multivariate,
    point,
    shape,
    transformed,
)

# isort: split
from kldiv.distributions.closed_forms import as_another  # noqa: F401 - after what it builds on
