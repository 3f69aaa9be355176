"""The group of commands, and the exit codes of their errors.

Only click is imported here and in the modules of the commands; each imports its work when it runs,
so that ``--help`` and completion answer at once.
"""

from __future__ import annotations

import io
import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import click

import kldiv
from kldiv.cli import bench, compare, diagnose, doctor, fit, warmup
from kldiv.errors import KLDivError

if TYPE_CHECKING:
    from collections.abc import Iterator

_INTERRUPTED = 130


class BadInput(click.ClickException):
    """An error of kldiv's own: a message, no traceback."""

    exit_code: ClassVar[int] = 4


class Commands(click.Group):
    """A group whose commands end in the documented exit codes."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; turn errors, interrupts and closed pipes into exit codes."""
        with _encodable(sys.stdout):
            try:
                try:
                    return super().invoke(ctx)
                finally:
                    sys.stdout.flush()  # here, where a closed pipe can still be answered
            except KLDivError as error:
                raise BadInput(str(error)) from error
            except KeyboardInterrupt as error:
                click.echo(" ".join(["Interrupted", *map(str, error.args)]), err=True)
                ctx.exit(_INTERRUPTED)
            except BrokenPipeError:
                # Whoever read has seen enough; nor may the interpreter's last flush complain.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                ctx.exit(0)


@contextmanager
def _encodable(stream: Any) -> Iterator[None]:
    """Have characters that a terminal cannot show escaped, for a label is no reason to fail."""
    if not isinstance(stream, io.TextIOWrapper):
        yield
        return
    errors = stream.errors
    stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        stream.reconfigure(errors=errors)


EPILOG = """\b
Exit codes: 0 fine, 2 usage, 4 bad input, 130 interrupted. Data go to stdout,
messages to stderr. NO_COLOR=1 switches colours off.

\b
Completion, for one of bash, zsh and fish:
  eval "$(_KLDIV_COMPLETE=bash_source kldiv)"     # in ~/.bashrc
  eval "$(_KLDIV_COMPLETE=zsh_source kldiv)"      # in ~/.zshrc
  _KLDIV_COMPLETE=fish_source kldiv | source      # in ~/.config/fish/config.fish
"""


@click.group(cls=Commands, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(kldiv.__version__, message="%(prog)s %(version)s")
def app() -> None:
    """Compare the distributions in your files by Kullback-Leibler divergence."""


for _module in (bench, compare, diagnose, doctor, fit, warmup):
    app.add_command(_module.command)
