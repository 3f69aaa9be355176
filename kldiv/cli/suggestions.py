"""Commands and values that were mistyped: which one was meant."""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Iterable

_LISTED = re.compile(r"[A-Za-z][\w-]*")


def suggestion(given: str, known: Iterable[str]) -> str:
    """Return a question after the nearest of the known words, or nothing."""
    words = {each.lower(): each for each in known}
    near = get_close_matches(given.lower(), words, n=1)
    return f" Did you mean {words[near[0]]!r}?" if near else ""


def suggested(message: str) -> str:
    """Return an error's message with the nearest of the words that it lists as known."""
    named = re.search(r"'([^']+)': no such name among its \w+: (.*)\. Name", message)
    if named is not None:
        known = re.findall(r"'([^']+)'", named[2])
        return message + suggestion(named[1], known)
    wrong = re.search(r"'([\w-]+)'", message)
    listed = re.search(r"(?:known|there are|one of):? (.*)", message)
    if wrong is None or listed is None or "Did you mean" in message:
        return message
    near = suggestion(wrong[1], _LISTED.findall(listed[1]))
    return f"{message.rstrip('.')}.{near}" if near else message


class Choice(click.Choice[str]):
    """A choice that says which value was meant."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the value, or fail with the nearest one."""
        try:
            return str(super().convert(value, param, ctx))
        except click.BadParameter as error:
            near = suggestion(str(value), map(str, self.choices))
            self.fail(f"{error.message}{near}", param, ctx)


class Group(click.Group):
    """A group that says which of its commands was meant."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that the arguments name."""
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            near = suggestion(args[0], self.list_commands(ctx))
            also = "" if near or len(args) == 1 else f" Nor is there a file {args[0]!r}."
            raise click.UsageError(f"No such command {args[0]!r}.{near}{also}", ctx)
        return super().resolve_command(ctx, args)
