"""Lead links that leave ``docs/`` to the published repository; escape stars of the command."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx

REPOSITORY = "https://github.com/kldiv/kldiv"
ROOT = Path(__file__).parents[2]
LINK = re.compile(r"\]\((\.\./[^)#]*)((?:#[^)]*)?)\)")


def published(app: Sphinx, name: str, source: list[str]) -> None:
    """Replace relative links to files of the repository that are no pages of the site."""
    folder = Path(app.env.doc2path(name)).parent

    def replace(match: re.Match[str]) -> str:
        path = (folder / match[1]).resolve()
        if path.is_relative_to(ROOT / "docs") or not path.exists():
            return match[0]
        kind = "tree" if path.is_dir() else "blob"
        return f"]({REPOSITORY}/{kind}/main/{path.relative_to(ROOT)}{match[2]})"

    source[0] = LINK.sub(replace, source[0])


def escaped(_: Sphinx, __: Any, lines: list[str]) -> None:
    """Keep a star of a help text from opening an emphasis."""
    lines[:] = [re.sub(r"(?<![\\*])\*(?!\*)", r"\\*", line) for line in lines]


def setup(app: Sphinx) -> dict[str, Any]:
    """Register both."""
    app.connect("source-read", published)
    for part in ("description", "options", "arguments", "epilog", "usage"):
        app.connect(f"sphinx-click-process-{part}", escaped)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
