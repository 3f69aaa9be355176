"""``kldiv doctor``: backends and kernels that work here, why others do not, the settings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kldiv.backends import BackendStatus

_REPORTED: Final = (
    *("usable", "version", "devices", "kernels", "kernel_problems", "reason", "install"),
)


@click.command("doctor", short_help="Say which libraries can compute here, and why not.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(*, as_json: bool) -> None:
    """Say which libraries can compute here, where and by which kernels, or why not.

    Every installed library is imported.  The settings in force come last, with their origin.
    """
    # Imported here, as these bring NumPy and rich.
    import json  # noqa: PLC0415
    import platform  # noqa: PLC0415

    import kldiv  # noqa: PLC0415

    backends = kldiv.available_backends(unusable=True)
    python = platform.python_version()
    if not as_json:
        _print_backends(backends, f"kldiv {kldiv.__version__}, Python {python}")
    settings = _settings()  # may raise: the lines above are on the page then
    if not as_json:
        _print_settings(settings)
        return
    report = {
        "version": kldiv.__version__,
        "python": python,
        "backends": {
            name: {each: getattr(status, each) for each in _REPORTED}
            for name, status in backends.items()
        },
        "settings": settings,
    }
    click.echo(json.dumps(report, indent=2))


def _settings() -> dict[str, dict[str, str]]:
    from kldiv import get_config  # noqa: PLC0415 - see above
    from kldiv.config import origins  # noqa: PLC0415

    values, places = get_config(), origins()
    return {name: {"value": values[name], "origin": places[name]} for name in values}


def _print_backends(backends: Mapping[str, BackendStatus], title: str) -> None:
    from rich.text import Text  # noqa: PLC0415 - see above

    from kldiv.cli.render import Page  # noqa: PLC0415

    page = Page()
    page.line(Text(title, style="bold"))
    page.line()
    rows = []
    for name, status in backends.items():
        if status.usable:
            version, devices = status.version or page.glyphs.none, ", ".join(status.devices)
            rows.append([name, version, devices, ", ".join(status.kernels)])
    page.table(rows, "<<<<", ("backend", "version", "devices", "kernels"))
    problems = [
        [f"{kernel} ({name})", why]
        for name, status in backends.items()
        for kernel, why in status.kernel_problems.items()
    ]
    if problems:
        page.head("kernels that cannot run", "dim")
    for kernel, why in problems:
        page.line(kernel, f": {why}")
    broken = {name: status for name, status in backends.items() if not status.usable}
    if broken:
        page.head("not usable", "dim")
    for name, status in broken.items():
        page.line(name, f": {status.reason}")
        if status.install:
            page.line("  ", Text(status.install, style="bold"))


def _print_settings(settings: Mapping[str, Mapping[str, str]]) -> None:
    from kldiv.cli.render import Page  # noqa: PLC0415 - see above

    page = Page()
    page.line()
    rows = [(name, each["value"], each["origin"]) for name, each in settings.items()]
    page.table(rows, "<<<", ("setting", "value", "origin"))
