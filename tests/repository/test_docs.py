"""The README and the documentation do what they say: every code block runs."""

from __future__ import annotations

import contextlib
import doctest
import importlib
import io
import re
import tomllib
from pathlib import Path

import pytest
from libraries import Library, require

import kldiv
from tools.tables import CAPABILITIES, FEATURES, support_table

ROOT = Path(kldiv.__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)
CHECKER = doctest.OutputChecker()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_code_block_runs_and_prints_what_it_says(path):
    text = path.read_text(encoding="utf-8")
    for name in ("torch", "jax", "dask"):
        if f"import {name}" in text:
            require(Library(name))
    if "array_api_strict" in text:
        require(Library.STRICT)
    names: dict[str, object] = {}
    printed = ran = 0
    output = ""
    for kind, block in BLOCK.findall(text):
        if kind == "python" and ">>>" in block:
            test = doctest.DocTestParser().get_doctest(block, names, path.name, str(path), 0)
            runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
            report = io.StringIO()
            runner.run(test, out=report.write, clear_globs=False)
            names.update(test.globs)
            assert runner.failures == 0, report.getvalue()
            printed += runner.tries
        elif kind == "python":
            stream = io.StringIO()
            with contextlib.redirect_stdout(stream):
                exec(compile(block, str(path), "exec"), names)  # noqa: S102 - our own page
            output = stream.getvalue()
        elif kind == "text" and output:
            flags = doctest.NORMALIZE_WHITESPACE
            assert CHECKER.check_output(block, output, flags), f"printed:\n{output}\nsays:\n{block}"
            printed += 1
            output = ""
        ran += kind == "python"
    assert printed or not ran, "no block shows what it prints"


def listed():
    """Names that a page of the reference has, with their module."""
    names = set()
    for page in (ROOT / "docs/reference").glob("*.md"):
        module = ""
        for line in page.read_text(encoding="utf-8").splitlines():
            if found := re.match(r"\.\. currentmodule:: (\S+)", line):
                module = found[1]
            elif re.fullmatch(r"   \w[\w.]*", line):
                names.add(f"{module}.{line.strip()}")
    return names


def test_the_reference_has_every_public_name():
    modules = ("distributions", "divergences", "readers", "streaming")
    public = {f"kldiv.{name}" for name in kldiv.__all__}
    for module in modules:
        public |= {f"kldiv.{module}.{name}" for name in getattr(kldiv, module).__all__}
    public -= {"kldiv.register_kl"}  # the same as that of kldiv.distributions
    missing = public - listed()
    assert not missing, f"give a page of docs/reference: {sorted(missing)}"
    for name in listed():
        home, _, last = name.rpartition(".")
        assert hasattr(importlib.import_module(home), last), f"docs/reference lists {name}"


def test_docstrings_of_losses_and_measures_have_all_their_sections():
    # As they are printed: much of them is assembled, which numpydoc's own hook does not see.
    numpydoc = pytest.importorskip("numpydoc.validate")
    with (ROOT / "pyproject.toml").open("rb") as file:
        own = tomllib.load(file)["tool"]["numpydoc_validation"]["checks"]
    for name in kldiv.__all__:
        if hasattr(getattr(kldiv, name), "record"):
            errors = numpydoc.validate(f"kldiv.{name}")["errors"]
            found = [error for error in errors if error[0] not in own]
            assert not found, f"kldiv.{name}: {found}"


def test_the_support_table_is_the_declared_one():
    text = (ROOT / "docs/reference/index.md").read_text(encoding="utf-8")
    table = text.partition("<!-- support-table -->\n")[2].partition("\n<!-- /support-table -->")[0]
    assert table == support_table(), f"paste this into docs/reference/index.md:\n{support_table()}"


def test_the_table_names_every_built_in_backend_and_only_known_features():
    from kldiv.backends.table import TABLE

    assert set(CAPABILITIES) == {*TABLE, "array API"}
    assert set().union(*CAPABILITIES.values()) == set(FEATURES)


def test_links_lead_somewhere():
    for path in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
            # Pages that the site makes of scripts.
            source = re.sub(r"auto_(\w+)/(\w+)\.rst", r"\1/\2.py", target)
            source = re.sub(r"auto_(\w+)/index\.rst|(\w+)/index\.py", r"\1\2/README.rst", source)
            assert (path.parent / source).exists(), f"{path.name} links to {target}"
