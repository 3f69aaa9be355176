"""Build the site: ``python -m sphinx -W --keep-going -b html docs build/site``."""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib as mpl

import kldiv

mpl.use("agg")
sys.path.insert(0, str(Path(__file__).parent / "extensions"))

project = "kldiv"
author = "the kldiv developers"
copyright = "the kldiv developers"  # noqa: A001 - Sphinx's name
version = release = kldiv.__version__

extensions = [
    "myst_parser",  # pages in Markdown, as in the repository
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "numpydoc",  # docstrings of the scientific Python world
    "sphinx_click",  # the command from its own declarations
    "sphinx_copybutton",
    "sphinx_design",  # tabs, cards and grids
    "sphinx_gallery.gen_gallery",  # runs tutorial and gallery, and keeps what has not changed
    "repository_links",
]
exclude_patterns = [
    "extensions",
    "gallery/*",
    "tutorial/*",
    "**/sg_execution_times.rst",
    "sg_execution_times.rst",
]
nitpicky = False

# ---- Markdown ------------------------------------------------------------------------------------

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath", "attrs_inline"]
myst_heading_anchors = 3

# ---- reference -----------------------------------------------------------------------------------

autosummary_generate = True
autodoc_typehints = "none"  # numpydoc's parameters say them in words
autodoc_member_order = "bysource"
numpydoc_show_class_members = False
numpydoc_xref_param_type = False
templates_path = ["templates"]

# ---- pages that run ------------------------------------------------------------------------------

sphinx_gallery_conf = {
    "examples_dirs": ["tutorial", "gallery"],
    "gallery_dirs": ["auto_tutorial", "auto_gallery"],
    "within_subsection_order": "FileNameSortKey",
    "filename_pattern": "plot_",
    "abort_on_example_error": True,
    "download_all_examples": False,
    "remove_config_comments": True,
    "show_memory": False,
    "reset_modules": ("gallery_style.apply",),
    "min_reported_time": 1e9,
    "copyfile_regex": "",
    "backreferences_dir": "reference/uses",
    "doc_module": ("kldiv",),
}

# ---- looks ---------------------------------------------------------------------------------------

html_theme = "pydata_sphinx_theme"
html_title = "kldiv"
html_static_path = ["static"]
html_css_files = ["kldiv.css"]
html_js_files = ["accessible.js"]
html_context = {"default_mode": "auto"}
html_show_sourcelink = False
html_copy_source = False
html_show_search_summary = False  # it would fetch pages, which a browser refuses from a file system
html_last_updated_fmt = None
html_theme_options = {
    "github_url": "https://github.com/kldiv/kldiv",
    "navbar_align": "left",
    "header_links_before_dropdown": 6,
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "footer_start": ["copyright"],
    "footer_end": [],
    "secondary_sidebar_items": ["page-toc"],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
html_sidebars = {name: [] for name in ("index", "start", "search")}
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
