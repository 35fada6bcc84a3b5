"""Settings of the documentation site: `make docs` builds it, and warnings are errors."""

import importlib.metadata

project = "hybrid_jax"
author = "the hybrid_jax authors"
release = importlib.metadata.version("hybrid_jax")

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
highlight_language = "none"  # of indented blocks
myst_heading_anchors = 3
nb_execution_mode = "off"  # the notebooks hold their outputs

add_module_names = False
default_role = "code"  # docstrings set names of code in single backticks
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_attr_annotations = False  # signatures show types
napoleon_use_ivar = True

html_theme = "sphinx_book_theme"
html_title = "hybrid_jax"


def setup(app):
    """Leaves out the fields of named tuples, which their class describes."""
    app.connect(
        "autodoc-skip-member",
        lambda app, what, name, member, skip, options: (
            str(getattr(member, "__doc__", "")).startswith("Alias for field number") or None
        ),
    )
