"""Equations as MathML in the page; Sphinx's own ways want a network or LaTeX."""

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.writers.html5 import HTML5Translator

logger = logging.getLogger(__name__)


def _convert(node: nodes.Element, *, display: str) -> str:
    mathml = convert(node.astext(), display=display)
    if "\\" in mathml:  # what the converter does not know it passes on
        logger.warning("equation %r holds a command that becomes no MathML", node.astext(), location=node)
    return mathml


def visit_math(translator: HTML5Translator, node: nodes.math) -> None:
    """Write an equation within text."""
    translator.body.append(_convert(node, display="inline"))
    raise nodes.SkipNode


def visit_math_block(translator: HTML5Translator, node: nodes.math_block) -> None:
    """Write an equation of its own, which scrolls where the page is narrow."""
    translator.body.append(f'<div style="overflow-x: auto">{_convert(node, display="block")}</div>\n')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the renderer; called by Sphinx."""
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
