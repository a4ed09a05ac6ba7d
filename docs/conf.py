"""The documentation site: `make docs` builds it into build/docs, warnings as errors.

Sphinx with MyST, as the sites of jax and flax: the pages are Markdown that GitHub shows, too, the reference comes from
the docstrings, and names of jax and NumPy link to their sites.
"""

import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "docs" / "_ext"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

project = PROJECT["name"]
author = copyright = PROJECT["authors"][0]["name"]
version = release = PROJECT["version"]

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "public_api",
    "repository_links",
]
exclude_patterns = ["_ext"]
default_role = "py:obj"  # of names in docstrings; one that is not in the reference stays plain
suppress_warnings = ["ref.python"]  # of a type's short name that several packages use

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True, "undoc-members": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100

html_theme = "furo"
html_title = f"{project} {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_baseurl = PROJECT["urls"]["Documentation"]
html_show_sourcelink = False
