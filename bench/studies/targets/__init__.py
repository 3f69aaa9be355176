"""The public functions that the search attacks, with their truth by mpmath, in groups."""

from .cross import cross_families
from .families import closed_forms
from .logits import losses
from .measures import measures, samples
from .normals import normals

GROUPS = {
    "closed forms": closed_forms,
    "normals": normals,
    "different families": cross_families,
    "measures": measures,
    "losses of logits": losses,
    "samples": samples,
}
