"""The documentation site: ``make docs``."""

import os

import lficam

os.environ["OMP_NUM_THREADS"] = str(min(os.cpu_count() or 1, 4))
project = "lficam"
author = copyright = "The lficam developers"
version = release = lficam.__version__
extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "myst_nb", "sphinx_copybutton"]
exclude_patterns = ["_build", "jupyter_execute"]
html_theme = "furo"
html_title = "lficam"
html_static_path: list[str] = []
nitpicky = True
# Names of other packages, whose inventories are on the network.
_OTHERS = "torch|numpy|pathlib|collections|pytorch_lightning|lightning_fabric|huggingface_hub|abc|enum|fastapi|gradio"
nitpick_ignore_regex = [(r"py:.*|any", rf"({_OTHERS})\..*"), (r"py:.*", r"lficam\..*\._.*")]
default_role = "any"
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
myst_links_external_new_tab = True
nb_execution_mode = "force"
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_merge_streams = True
napoleon_use_rtype = False
napoleon_use_param = False
napoleon_use_ivar = True
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": False}
