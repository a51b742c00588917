"""The directive `commands`: the help of every verb of the command line, as the program prints it."""

import argparse
import os
from collections.abc import Iterator

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """The parsers of a command line that run something: those without verbs of their own."""
    verbs = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    for action in verbs:
        for verb in action.choices.values():
            yield from parsers(verb)
    if not verbs:
        yield parser


class Commands(SphinxDirective):
    """Markdown: one heading and one block of text per verb."""

    def run(self) -> list[nodes.Node]:
        """Write the sections."""
        from perception.cli.main import build_parser

        os.environ["COLUMNS"] = "100"  # argparse's line length
        lines: list[str] = []
        for parser in parsers(build_parser()):
            lines += [f"## {parser.prog}", "```text", *parser.format_help().splitlines(), "```", ""]
        section = nodes.section()
        self.state.nested_parse(StringList(lines, source="perception --help"), 0, section, match_titles=True)
        return section.children


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive; called by Sphinx."""
    app.add_directive("commands", Commands)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
