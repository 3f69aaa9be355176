"""The report of `diagnose`: findings, the worst first."""

from __future__ import annotations

import textwrap
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, TypeAlias

from kldiv._notebook import table

Severity: TypeAlias = Literal["error", "warning", "note"]

SEVERITIES: Final = ("error", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """
    One thing that looks wrong, or is worth knowing.

    Attributes
    ----------
    code : str
        Its name, for programs: ``probabilities-as-input``, ``nan``, ``row-sums`` and so on.
    severity : str
        ``"error"``: the loss is NaN, infinite or means something else; ``"warning"``: it looks
        wrong; ``"note"``: worth knowing.
    message : str
        A problem: how many elements have it, where the first is, which values.
    mend : str
        The remedy.
    """

    code: str
    severity: Severity
    message: str
    mend: str

    def __str__(self) -> str:
        lines = [f"{self.severity}: {self.code}"]
        for text, indent in ((self.message, "  "), (f"mend: {self.mend}", "        ")):
            lines += textwrap.wrap(
                text, 84, initial_indent="  ", subsequent_indent=indent, break_on_hyphens=False
            )
        return "\n".join(lines)


@dataclass(frozen=True)
class Diagnosis:
    """
    The findings of `diagnose`; true where there is one.

    Attributes
    ----------
    findings : tuple of Finding
        Errors first, then warnings, then notes.
    input : str
        The most plausible content of the input, such as ``"log-probabilities"`` or ``"logits"``.
    target : str
        The same of the target.
    """

    findings: tuple[Finding, ...]
    input: str
    target: str

    def __bool__(self) -> bool:
        return any(finding.severity != "note" for finding in self.findings)

    def __str__(self) -> str:
        head = f"input reads as {self.input}, target as {self.target}"
        if not self:
            head += "; nothing looks wrong"
        return "\n".join([head, *map(str, self.findings)])

    def _repr_html_(self) -> str:
        head = str(self).partition("\n")[0]
        rows = [(each.severity, each.code, each.message, each.mend) for each in self.findings]
        return table(head, ("", "code", "problem", "mend"), rows)

    def to_dict(self) -> dict[str, Any]:
        """
        Return the diagnosis as plain dictionaries, lists, strings and numbers.

        Returns
        -------
        dict
            The keys ``wrong``, ``input``, ``target`` and ``findings``, ready for JSON.
        """
        return {
            "wrong": bool(self),
            "input": self.input,
            "target": self.target,
            "findings": [asdict(finding) for finding in self.findings],
        }
