"""Settings of the documentation site; ``make docs`` builds it."""

from __future__ import annotations

import re
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path[:0] = [str(HERE / "_ext"), str(ROOT), str(ROOT / "kernels")]

project = "torchrl_smore"
author = "the torchrl_smore authors"
copyright = f"2026 {author}"
# read and not imported: a page alone then needs no PyTorch
version = release = re.findall(r'^__version__ = "(.*)"', (ROOT / "torchrl_smore" / "__init__.py").read_text(), re.M)[0]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "mathml", "public_api", "recipe_options"]
exclude_patterns = ["_build"]
nitpicky = True
# other packages' names: their inventories would have to be downloaded
nitpick_ignore_regex = [
    ("py:.*", r"(abc|collections|contextlib|gymnasium|logging|numpy|os|pathlib|tensordict|torch|torchrl|types)(\..*)?"),
    ("py:.*", r"(Figure|Path|Tensor|optional)"),
    # types in signatures and base classes that are nobody's to import
    ("py:class", r"torchrl_smore\.(.*\._.*|.*\.Array|reports\..*markup\.Row)"),
]

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath", "fieldlist"]
myst_heading_anchors = 3

autodoc_default_options = {
    "members": True,
    "private-members": "_AcceptedKeys",
    "exclude-members": "default_keys, ensembles",
    "show-inheritance": True,
}
autodoc_member_order = "bysource"
# as written: an object without a name of its own would leave the whole signature unread
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_custom_sections = ["Returns (forward)"]
napoleon_attr_annotations = False
add_module_names = False
toc_object_entries_show_parents = "hide"
python_use_unqualified_type_names = True

html_theme = "furo"
html_title = "torchrl_smore"
html_math_renderer = "mathml"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
