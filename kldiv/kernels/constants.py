"""The numbers of `kldiv.formulas.numbers`, by the name that the CPU's kernels know."""

from kldiv.formulas.numbers import *  # noqa: F403
