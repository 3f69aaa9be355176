"""What ``kldiv compare`` was asked for."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal, TypeAlias

import click

_CALL: Final = re.compile(r"\s*[A-Za-z_]\w*\s*\(.*\)\s*", flags=re.DOTALL)

Form: TypeAlias = Literal["auto", "probs", "log-probs", "logits", "counts"]
Reduction: TypeAlias = Literal["mean", "sum", "batchmean", "none"]


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked for: the arguments and options, by name."""

    p: str
    q: str
    form: Form = "auto"
    axis: int = -1
    normalize: bool = False
    smoothing: float = 0.0
    align: bool = False
    reduction: Reduction = "mean"
    backend: str | None = None
    device: str | None = None
    kernel: str | None = None
    top: int = 10
    key: str | None = None
    max_bytes: int | None = None
    as_json: bool = False
    plot: str | None = None
    shard_axis: int = 0
    checkpoint: str | None = None
    scheduler: str | None = None

    @property
    def written_out(self) -> bool:
        """Whether P and Q are distributions like ``Normal(0, 1)`` rather than files."""
        written = [_is_expression(text) for text in (self.p, self.q)]
        if any(written) and not all(written):
            raise click.UsageError(
                f"{self.p} and {self.q}: one is a distribution, the other a file; for data and a "
                "distribution see kldiv fit"
            )
        options = {"form": "--from", "normalize": "--normalize", "smoothing": "--smoothing"}
        options |= {"align": "--align", "plot": "--plot", "axis": "--axis", "key": "--key"}
        options |= {"shard_axis": "--shard-axis", "checkpoint": "--checkpoint"}
        options |= {"scheduler": "--scheduler"}
        unused = [
            flag
            for name, flag in options.items()
            if getattr(self, name) != Request.__dataclass_fields__[name].default
        ]
        if any(written) and unused:
            raise click.UsageError(f"{', '.join(unused)}: for files, not for distributions")
        return any(written)

    @property
    def settings(self) -> dict[str, str]:
        """The settings that were named."""
        named = {"backend": self.backend, "device": self.device, "kernel": self.kernel}
        return {name: value for name, value in named.items() if value is not None}

    def for_others(self) -> Request:
        """Return the same for other processes, which may be in another folder."""
        here = os.getcwd()  # noqa: PTH109 - a file may be followed by ::key, which is no path
        return replace(
            self,
            p=os.path.join(here, self.p),  # noqa: PTH118
            q=os.path.join(here, self.q),  # noqa: PTH118
        )


def _is_expression(text: str) -> bool:
    # A file may have any name, and one that is there is meant.
    return _CALL.fullmatch(text) is not None and not Path(text).exists()
