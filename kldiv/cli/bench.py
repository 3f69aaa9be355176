"""``kldiv bench``: the benchmark suite, which the wheel carries as ``kldiv._bench``.

In an editable checkout it lies beside the package as ``bench`` and is loaded under the same name.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import click

import kldiv
from kldiv.cli.suggestions import Group

if TYPE_CHECKING:
    from types import ModuleType

_NAME: Final = "kldiv._bench"


def suite() -> ModuleType:
    """Return the package of the benchmark suite."""
    try:
        return import_module(_NAME)
    except ModuleNotFoundError as error:
        if error.name != _NAME:
            raise
    folder = Path(kldiv.__file__).parents[1] / "bench"
    start = folder / "__init__.py"
    spec = spec_from_file_location(_NAME, start, submodule_search_locations=[str(folder)])
    if spec is None or spec.loader is None or not start.exists():
        raise click.UsageError(
            f"the benchmark is not there: neither {_NAME} nor {folder} exists; "
            'pip install "kldiv[bench]"'
        )
    package = module_from_spec(spec)
    sys.modules[_NAME] = package
    spec.loader.exec_module(package)
    return package


class _Suite(Group):
    """The suite's own commands, loaded when one of them is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return self._app().list_commands(ctx)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return self._app().get_command(ctx, cmd_name)

    @staticmethod
    def _app() -> click.Group:
        app: Any = import_module(f"{suite().__name__}.app").app
        return cast("click.Group", app)


command: Final = _Suite(
    "bench",
    help="Measure which library, device and kernel is fastest here, and how right each one is.",
    short_help="Measure speed, memory and accuracy beside other libraries.",
)
