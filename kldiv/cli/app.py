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
from kldiv.cli.interrupts import prompt_interrupt
from kldiv.cli.suggestions import Group, suggested
from kldiv.errors import KLDivError

if TYPE_CHECKING:
    from collections.abc import Iterator

_INTERRUPTED = 130


class BadInput(click.ClickException):
    """An error of kldiv's own: a message, no traceback."""

    exit_code: ClassVar[int] = 4


class Failure(click.ClickException):
    """A mistake of kldiv's own: a line, and how to see more."""

    exit_code: ClassVar[int] = 70


class Commands(Group):
    """A group whose commands end in the documented exit codes."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Take ``--debug`` wherever it stands, and two files without a command for ``compare``."""
        end = args.index("--") if "--" in args else len(args)
        ctx.meta["debug"] = "--debug" in args[:end]
        args = [each for i, each in enumerate(args) if i >= end or each != "--debug"]
        words = [each for each in args if not each.startswith("-") or each == "-"]
        known = set(self.list_commands(ctx)) | {"help"}
        if words and not known & set(words) and args[0] not in ctx.help_option_names:
            # A file, file::key, a distribution, or standard input.
            named = any(c in args[0] for c in "./\\:(*") or args[0].startswith("-")
            named = named or os.path.exists(args[0])  # noqa: PTH110 - of any name
            if named and (len(words) > 1 or "--pairwise" in args):
                args = ["compare", *args]
            elif named and words[0] == args[0]:
                raise click.UsageError(f"{words[0]}: two files are compared: kldiv P Q", ctx)
        if args[:1] == ["help"]:
            args = [*args[1:2], "--help"]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; turn errors, interrupts and closed pipes into exit codes."""
        with _encodable(sys.stdout), prompt_interrupt():
            try:
                try:
                    return super().invoke(ctx)
                finally:
                    sys.stdout.flush()  # here, where a closed pipe can still be answered
            except KLDivError as error:
                from kldiv.cli.flags import in_flags  # noqa: PLC0415 - only where one is said

                text = str(error).removeprefix("config_context: ")
                raise BadInput(suggested(in_flags(text))) from error
            except KeyboardInterrupt as error:
                click.echo(" ".join(["Interrupted", *map(str, error.args)]), err=True)
                ctx.exit(_INTERRUPTED)
            except BrokenPipeError:
                # Whoever read has seen enough; nor may the interpreter's last flush complain.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                ctx.exit(0)
            except (click.ClickException, click.exceptions.Exit, click.Abort):
                raise
            except Exception as error:
                if ctx.meta.get("debug"):
                    raise
                why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
                raise Failure(
                    f"kldiv itself failed ({why}). The same command with --debug shows where;"
                    " please report it"
                ) from error


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
kldiv P Q is kldiv compare P Q. Exit codes: 0 fine, 2 usage, 4 bad input, 70 a
mistake of kldiv's own (--debug shows where), 130 interrupted. Data go to
stdout, messages to stderr. NO_COLOR=1 switches colours off.

\b
Completion, for one of bash, zsh and fish:
  eval "$(_KLDIV_COMPLETE=bash_source kldiv)"     # in ~/.bashrc
  eval "$(_KLDIV_COMPLETE=zsh_source kldiv)"      # in ~/.zshrc
  _KLDIV_COMPLETE=fish_source kldiv | source      # in ~/.config/fish/config.fish
"""


@click.group(cls=Commands, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(kldiv.__version__, "-V", "--version", message="%(prog)s %(version)s")
def app() -> None:
    """Compare the distributions in your files by Kullback-Leibler divergence."""


for _module in (bench, compare, diagnose, doctor, fit, warmup):
    app.add_command(_module.command)
