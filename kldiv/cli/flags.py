"""Arguments of kldiv's functions, as the command spells them."""

from __future__ import annotations

import re
from typing import Final

_OPTIONS: Final = "align|axis|checkpoint|form|normalize|scheduler|shard_axis|smoothing"
_OTHERS: Final = "backend|device|kernel|key|reduction|top"  # whose values other messages name too
_VALUE: Final = r"'(?P<text>[^']*)'|(?P<plain>-?\w+(?:\.\w+)?)"
_ARGUMENT: Final = re.compile(
    rf"\b(?P<name>{_OPTIONS})=(?:{_VALUE})(?:, (?=\w+=))?|`(?P<bare>{_OPTIONS}|{_OTHERS})`"
)


def in_flags(text: str) -> str:
    """Return a message with ``form='logits'`` spelled ``--from logits``, and "`top`" ``--top``."""
    return _ARGUMENT.sub(_flag, text)


def _flag(found: re.Match[str]) -> str:
    name = found["name"] or found["bare"]
    flag = "--from" if name == "form" else f"--{name.replace('_', '-')}"
    value = found["text"] or found["plain"]
    follows = " " if found[0].endswith(", ") else ""
    return (flag if value in {None, "True"} else f"{flag} {value}") + follows
