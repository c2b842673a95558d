"""The map of the book and its paths, with the minutes that tools/bookmap.py computes.

    ```{book-map}
    ```

lists every page with its minutes, and those from the first page to its end;

    ```{book-path}
    start/before_you_begin
    start/ladder
    ```

lists the pages of one path and their sum. A page that is not in the contents fails the build.
"""

import sys
from pathlib import Path

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))
import bookmap


def whole(minutes: float) -> str:
    """Minutes as one says them, on one line."""
    return bookmap.spoken(minutes).replace(" ", "\N{NO-BREAK SPACE}")


class _Generated(SphinxDirective):
    def parsed(self, lines: list[str]) -> list[nodes.Node]:
        """The nodes of some Markdown, in the page's own dialect."""
        holder = nodes.container(classes=[self.name])
        self.state.nested_parse(StringList(lines, source=self.name), self.content_offset, holder)
        return [holder]

    def link(self, page: bookmap.Page, title: str) -> str:
        """A link to a page."""
        here = Path(self.env.docname).parent
        up = "../" * (len(here.parts) - 1)
        suffix = Path(self.env.doc2path(page.name)).suffix
        return f"[{title}]({up}{page.name.removeprefix('book/')}{suffix})"


class BookMap(_Generated):
    """Every page that is read, part by part."""

    def run(self) -> list[nodes.Node]:
        every = bookmap.pages(Path(self.env.srcdir))
        lines, part = ["| page | minutes | so far |", "|---|--:|--:|"], ""
        for page in every:
            if not page.read or not page.part:
                continue
            if page.part != part:
                part = page.part
                lines.append(f"| **{part}** | | |")
            end = bookmap.reached(page.name, every) + page.minutes
            lines.append(f"| {self.link(page, page.title)} | {page.minutes:.0f} | {whole(end)} |")
        return self.parsed(lines)


class BookPath(_Generated):
    """Some pages, and how long they take together."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        every = {page.name: page for page in bookmap.pages(Path(self.env.srcdir))}
        lines, total = [], 0.0
        for name in filter(None, map(str.strip, self.content)):
            if (page := every.get(f"book/{name}")) is None:
                raise self.error(f"{name} is not in _toc.yml")
            short = page.title.partition(":")[0]
            lines.append(f"- {self.link(page, short)}, {whole(page.minutes)}")
            total += page.minutes
        return self.parsed([*lines, "", f"Together {whole(total)}."])


def setup(app):
    """Register both directives."""
    app.add_directive("book-map", BookMap)
    app.add_directive("book-path", BookPath)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
