"""How the site is built: `make docs`. Nothing is fetched, and every warning is an error there."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent / "src")]

import earlybert  # noqa: E402

project = "earlybert"
copyright = "the earlybert authors, MIT licence"
version = release = earlybert.__version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "elsewhere",
    "command_reference",
]
exclude_patterns = ["_build"]

myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3

# `name` in a docstring is code, and a link where it is one of ours.
default_role = "py:obj"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
python_use_unqualified_type_names = True
toc_object_entries = False

html_theme = "furo"
pygments_dark_style = "a11y-dark"
html_title = "earlybert"
html_static_path = ["_static"]
html_css_files = ["house.css"]
html_copy_source = False
html_show_sphinx = False

# `make links` alone asks the network.
linkcheck_timeout = 20
linkcheck_retries = 2
