"""The index of the book: book/index_terms.yml says which page tells about a term.

    start/ladder:
      - ladder
      - pyramid: Sample the rows, or pool them

A term leads to the page, or to the section whose heading stands after the colon. The search of the
book puts such pages first. A page or heading that does not exist fails the build.
"""

from pathlib import Path

import yaml
from docutils import nodes
from sphinx import addnodes
from sphinx.transforms import SphinxTransform
from sphinx.util import logging

LOGGER = logging.getLogger(__name__)


def terms(root: Path) -> dict[str, list[tuple[str, str]]]:
    """Page -> its terms, each with a heading or an empty text."""
    listed = yaml.safe_load((root / "book" / "index_terms.yml").read_text(encoding="utf-8"))
    return {
        f"book/{page}": [
            next(iter(term.items())) if isinstance(term, dict) else (term, "") for term in found
        ]
        for page, found in listed.items()
    }


class AddTerms(SphinxTransform):
    """Puts each term of a page into its section, before the domains collect the index."""

    default_priority = 800

    def apply(self, **kwargs):
        """Insert the nodes of the page that was just read."""
        sections = list(self.document.findall(nodes.section))
        titles = {node[0].astext(): node for node in reversed(sections)}
        for term, heading in self.config.index_terms.get(self.env.docname, []):
            section = titles.get(heading) if heading else sections[0]
            if section is None:
                LOGGER.warning("no heading %r for the term %r", heading, term)
                continue
            entry = ("single", term, section["ids"][0], "main", None)
            section.insert(1, addnodes.index(entries=[entry], inline=False))


def check(app, env):
    """Every page that has terms was read (env-updated)."""
    for page in set(app.config.index_terms) - env.found_docs:
        LOGGER.warning("book/index_terms.yml names %s, which is not a page", page)


def setup(app):
    """Register the transform; the terms are part of the configuration."""
    app.add_config_value("index_terms", terms(Path(app.srcdir)), "env")
    app.add_transform(AddTerms)
    app.connect("env-updated", check)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
