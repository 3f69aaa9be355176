"""One tree of errors: each message names the argument, its value, the expectation, the remedy."""

from __future__ import annotations


class KLDivError(Exception):
    """Base class of every error that kldiv raises on purpose."""


class ShapeError(KLDivError, ValueError):
    """Arrays whose shapes do not fit each other or the operation."""


class DTypeError(KLDivError, TypeError):
    """An array, or a requested result, of a dtype that the operation does not take."""


class LibraryError(KLDivError, TypeError):
    """Arrays of no supported library, of several libraries at once, or that cannot be moved."""


class OptionError(KLDivError, ValueError):
    """An option with a value that it does not take."""


class ConfigError(KLDivError, ValueError):
    """A setting, or the place that it was read from, that is not right."""


class BackendError(KLDivError, RuntimeError):
    """A backend, device or kernel that exists but cannot be used here."""


class InputError(KLDivError, ValueError):
    """A file that cannot be read as the array that was asked for."""
