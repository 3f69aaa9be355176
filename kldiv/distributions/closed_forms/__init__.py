"""The closed forms, registered by importing them; each file holds the pairs of its kind.

A formula takes ``(xp, p, q)``: see `kldiv.register_kl`.  Sources: the derivations stand in
docs/distributions.md.
"""

from kldiv.distributions.closed_forms import (  # noqa: F401 - importing registers
    combined,
    cross,
    discrete,
    gamma,
    location,
    multivariate,
    shape,
)
