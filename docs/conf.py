"""The documentation's settings: `sphinx-build -W docs docs/_build` builds the site, warnings as errors.

The commands come from click, the Python functions from their docstrings, the reference of the job file from its JSON Schema.
"""

from __future__ import annotations

import dlscale

project = "dlscale"
author = "the dlscale developers"
release = version = dlscale.__version__
extensions = ["myst_parser", "numpydoc", "sphinx.ext.autodoc", "sphinx_click"]
html_theme = "furo"
html_title = f"dlscale {release}"
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
# Pages link to files of the repository beside docs/, which are no part of the site.
suppress_warnings = ["myst.xref_missing"]
numpydoc_show_class_members = False
autodoc_typehints = "none"
autodoc_member_order = "bysource"
