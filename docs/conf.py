"""How Sphinx builds these pages: from Markdown and docstrings of the installed dhp_jax.

The build needs neither network nor GPU, and a reader's browser loads nothing from
another host.
"""

from __future__ import annotations

import importlib

from docutils import nodes
from docutils.utils.math import latex2mathml
from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer

import dhp_jax

project = "dhp_jax"
version = release = dhp_jax.__version__
project_copyright = "the dhp_jax authors"
html_title = f"dhp_jax {release}"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_show_sourcelink = False
html_copy_source = False
html_math_renderer = "mathml"

myst_heading_anchors = 3  # pages link to each other's sections

default_role = "code"  # of docstrings, which write `name` for code
smartquotes_action = "D"  # dashes only: quotes are code more often than not
autodoc_typehints = "none"  # docstrings say more: dtype, shape and secrecy
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False

nitpicky = True
nitpick_ignore = [
    # A link to JAX's pages would take an inventory from the network.
    ("py:func", "jax.nn.dot_product_attention"),
    ("py:class", "jax.Array"),
    ("py:class", "jax.jaxlib._jax.Array"),  # what jax 0.9 calls it
]


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.add_html_math_renderer(
        "mathml", (_write_inline_math, None), (_write_block_math, None)
    )
    app.connect("autodoc-process-docstring", _find_comment_of_constant)


def _write_inline_math(writer: nodes.NodeVisitor, node: nodes.math) -> None:
    """MathML, which browsers draw without a script from elsewhere."""
    writer.body.append(latex2mathml.tex2mathml(node.astext()))
    raise nodes.SkipNode


def _write_block_math(writer: nodes.NodeVisitor, node: nodes.math_block) -> None:
    writer.body.append(latex2mathml.tex2mathml(node.astext(), as_block=True))
    raise nodes.SkipNode


def _find_comment_of_constant(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Gives a public constant the docstring below its assignment, in its own module."""
    package, _, constant = name.rpartition(".")
    if what != "data" or package != "dhp_jax":
        return
    home = importlib.import_module("dhp_jax")._HOME[constant]
    lines[:] = ModuleAnalyzer.for_module(home).find_attr_docs()["", constant]
