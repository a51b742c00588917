"""Sphinx configuration of the documentation: `bash tools/docs.sh`.

The source directory is the repository's root, so that links between README.md, docs/ and projects/ stay as they are.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(Path(__file__).parent), str(ROOT)]

project = "perception"
release = re.search(r'__version__ = "(.+)"', (ROOT / "perception" / "__init__.py").read_text())[1]
extensions = ["myst_parser", "api", "commands", "mathml"]
root_doc = "docs/index"
include_patterns = ["docs/**.md", "README.md", "CHANGELOG.md", "data/README.md", "projects/**README.md"]

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
myst_disable_syntax = ["html_inline", "html_block"]  # a placeholder such as <root> is text
highlight_language = "none"
pygments_style = "default"
python_maximum_signature_line_length = 90

html_theme = "furo"
html_title = f"perception {release}"
html_math_renderer = "mathml"  # part of the page: no script, no network
html_extra_path = ["index.html"]  # leads to docs/index.html
html_copy_source = False
