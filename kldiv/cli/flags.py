"""Arguments of kldiv's functions, as the command spells them."""

from __future__ import annotations

import re
import shlex
from typing import Final

_OPTIONS: Final = (
    "align|axis|checkpoint|fold|form|generalized|normalize|rebin|scheduler|shard_axis|smoothing"
    "|quantization|next_tokens|labels|values|sep|decimal|encoding|comment|na|header"
)
_QUOTED: Final = {"labels", "values", "sep", "decimal", "comment"}  # of any characters
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
    value = found["plain"] if found["text"] is None else found["text"]
    if value == "False":
        flag, value = flag.replace("--", "--no-", 1), None
    if value is not None and name in _QUOTED:
        value = "tab" if value == "\\t" else "blank" if value == " " else shlex.quote(value)
    follows = " " if found[0].endswith(", ") else ""
    return (flag if value in {None, "True"} else f"{flag} {value}") + follows
