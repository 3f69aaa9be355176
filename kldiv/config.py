"""Settings: which backend, device and kernel compute, and where that choice comes from.

Order: `config_context` › `set_config` › environment › configuration file › default.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypedDict, Unpack

from kldiv.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Mapping
    from pathlib import Path


class Given(TypedDict, total=False):
    """Settings by name; each may be left out."""

    backend: str
    device: str
    kernel: str


class GivenOrNone(TypedDict, total=False):
    """Settings by name, None to take one back."""

    backend: str | None
    device: str | None
    kernel: str | None


class Settings(NamedTuple):
    """The settings of one call."""

    backend: str = "auto"
    device: str = "auto"
    kernel: str = "auto"


VARIABLES: Final = Settings("KLDIV_BACKEND", "KLDIV_DEVICE", "KLDIV_KERNEL")

_context: ContextVar[tuple[tuple[str, str], ...]] = ContextVar("kldiv_settings", default=())
_process: dict[str, str] = {}
_file: dict[str, str] | None = None

# The environment is looked at in every call, since a program may set a variable itself. Looking
# into the dict that os.environ wraps takes 0.1 µs, through the wrapper 2 µs: a tenth of a small
# loss.
_environment = getattr(os.environ, "_data", os.environ)
_encoded = getattr(os.environ, "encodekey", str)

changes = 0
"""How often `set_config` has been called."""

SOURCES: Final[tuple[Callable[[], Hashable], ...]] = (
    _context.get,
    *(partial(_environment.get, _encoded(variable)) for variable in VARIABLES),
)
"""Functions that give, with `changes`, all that `current` follows from."""


def current() -> Settings:
    """Return the settings that hold here and now."""
    return Settings(**{**_from_file(), **_in_environment(), **_process, **dict(_context.get())})


def get_config() -> dict[str, str]:
    """
    Return the settings that hold here and now.

    Returns
    -------
    dict
        The keys ``backend``, ``device`` and ``kernel``, each a name or ``"auto"``.

    Raises
    ------
    ConfigError
        The environment or the configuration file holds a setting or a name that does not exist.

    Examples
    --------
    >>> import kldiv
    >>> kldiv.get_config()
    {'backend': 'auto', 'device': 'auto', 'kernel': 'auto'}
    """
    return current()._asdict()


def set_config(**settings: Unpack[GivenOrNone]) -> None:
    """
    Set the process-wide default of one or more settings.

    Parameters
    ----------
    **settings : str or None
        ``backend``, ``device`` or ``kernel``.  None takes an earlier `set_config` back, so that the
        environment, the configuration file or the default holds again.

    Raises
    ------
    ConfigError
        No such setting, or no such backend or kernel; nothing is changed then.

    See Also
    --------
    config_context : Settings for one block of code.

    Examples
    --------
    >>> import kldiv
    >>> kldiv.set_config(kernel="pure")
    >>> kldiv.get_config()["kernel"]
    'pure'
    >>> kldiv.set_config(kernel=None)
    """
    checked = _check({k: v for k, v in settings.items() if v is not None}, "set_config")
    _check_names(settings, "set_config")
    global _process, changes  # noqa: PLW0603 - replaced at once: other threads read it
    _process = {name: value for name, value in _process.items() if name not in settings} | checked
    changes += 1


@contextmanager
def config_context(**settings: Unpack[Given]) -> Iterator[None]:
    """
    Use other settings inside a ``with`` block.

    Contexts nest: an inner one changes only the settings that it names. Threads and asyncio
    tasks do not see each other's.

    Parameters
    ----------
    **settings : str
        ``backend``, ``device`` or ``kernel``.

    Yields
    ------
    None
        Nothing: the settings are read by the calls inside the block.

    Raises
    ------
    ConfigError
        No such setting, or no such backend or kernel.

    Examples
    --------
    >>> import kldiv
    >>> with kldiv.config_context(backend="numpy"):
    ...     kldiv.get_config()["backend"]
    'numpy'
    """
    checked = _check(settings, "config_context")
    token = _context.set((*{**dict(_context.get()), **checked}.items(),))
    try:
        yield
    finally:
        _context.reset(token)


def origins() -> dict[str, str]:
    """Return for each setting where its value comes from, in words."""
    in_context, from_environment, from_file = dict(_context.get()), _in_environment(), _from_file()
    found = {}
    for name, variable in zip(Settings._fields, VARIABLES, strict=True):
        sources = (
            (in_context, "config_context"),
            (_process, "set_config"),
            (from_environment, f"the environment variable {variable}"),
            (from_file, f"the configuration file {str(_config_file())!r}"),
        )
        found[name] = next((words for own, words in sources if name in own), "default")
    return found


def _in_environment() -> dict[str, str]:
    values = map(os.environ.get, VARIABLES)
    found = {k: v for k, v in zip(Settings._fields, values, strict=True) if v}
    return _check(found, "the environment (KLDIV_*)")


def _from_file() -> dict[str, str]:
    """Return the settings of the configuration file, read at the first call only."""
    global _file  # noqa: PLW0603 - one cache for the process
    if _file is None:
        _file = _read_file()
    return _file


def _config_file() -> Path:
    from pathlib import Path  # noqa: PLC0415 - only a first call needs it

    import platformdirs  # noqa: PLC0415 - likewise

    named = os.environ.get("KLDIV_CONFIG")
    return Path(named) if named else platformdirs.user_config_path("kldiv") / "config.toml"


def _read_file() -> dict[str, str]:
    import tomllib  # noqa: PLC0415 - only a first call needs it

    path = _config_file()
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        if "KLDIV_CONFIG" not in os.environ:
            return {}
        raise ConfigError(
            f"KLDIV_CONFIG names {str(path)!r}, which does not exist; create it, or unset the "
            "variable"
        ) from None
    except OSError as error:
        raise ConfigError(
            f"the configuration file {str(path)!r} cannot be read: {error.strerror}"
        ) from error
    try:
        settings = tomllib.loads(content.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"the configuration file {str(path)!r} is not TOML: {error}") from error
    return _check(settings, f"the configuration file {str(path)!r}")


def _check(settings: Mapping[str, Any], place: str) -> dict[str, str]:
    """Return ``settings`` if every name and value exists."""
    _check_names(settings, place)
    for name, value in settings.items():
        if not isinstance(value, str):
            raise ConfigError(
                f"{place}: {name} must be a string, got {type(value).__name__}: {value!r}"
            )
        known = _known(name, value)
        if known is not None and value not in known:
            raise ConfigError(f"{place}: no {name} is called {value!r}; known: {', '.join(known)}")
    return dict(settings)


def _check_names(settings: Mapping[str, Any], place: str) -> None:
    for name in settings:
        if name not in Settings._fields:
            raise ConfigError(
                f"{place}: no setting is called {name!r}; known: {', '.join(Settings._fields)}"
            )


def _known(name: str, value: str) -> list[str] | None:
    """Return the values that a setting can have; None where only the backend can tell."""
    if value == "auto" or name == "device":
        return None
    from kldiv.backends import table  # noqa: PLC0415 - the package, not the table, needs NumPy

    return ["auto", *(table.names() if name == "backend" else table.kernel_names())]
