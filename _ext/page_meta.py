"""What a page says of itself to those who do not open it: description, social card, llms.txt.

The description of a page is the first paragraph of its text. llms.txt lists all pages with theirs.
A card's picture (tools/card.py draws it) needs an absolute address and waits for one: that of the
book (`html.baseurl` in _config.yml), or else that of the public repository, where it lies too.
"""

import html
import sys
from pathlib import Path

from docutils import nodes

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))
import address

LENGTH = 200
LABELS = ("You will do", "You will learn", "You need", "Time")
CARD = "_static/card.png"
CARD_SHOWS = "A raccoon, the title, and a query that reads four points on each of five grids."


def description(doctree: nodes.document) -> str:
    """The first paragraph of a page, without the label of a chapter's first lines, on one line."""
    for paragraph in doctree.findall(nodes.paragraph):
        copy = paragraph.deepcopy()
        for maths in list(copy.findall(nodes.math)):
            maths.replace_self(nodes.Text(maths.astext().replace("\\", "")))
        text = " ".join(copy.astext().split())
        for label in LABELS:
            text = text.removeprefix(label).lstrip(":. ")
        if len(text) > 40:
            text = text[0].upper() + text[1:]
            return text if len(text) <= LENGTH else text[:LENGTH].rsplit(" ", 1)[0] + " ..."
    return ""


def card_address(baseurl: str, repository: str) -> str | None:
    """Where the card's picture is reached from elsewhere, or None as long as it is not.

    >>> card_address("https://example.org/book/", "https://github.com/your_account/name")
    'https://example.org/book/_static/card.png'
    >>> card_address("", "https://github.com/a/b")
    'https://raw.githubusercontent.com/a/b/main/_static/card.png'
    >>> card_address("", "https://github.com/your_account/name")
    """
    if baseurl:
        return f"{baseurl.rstrip('/')}/{CARD}"
    if address.is_public(repository):
        return f"https://raw.githubusercontent.com/{address.slug(repository)}/main/{CARD}"
    return None


def add_tags(app, pagename, templatename, context, doctree):
    """A page's description and card (html-page-context)."""
    if doctree is None:
        return
    told = description(doctree)
    title = app.env.titles[pagename].astext()
    app.described[pagename] = title, told
    tags = {"og:type": "article", "og:site_name": app.config.html_title, "og:title": title}
    tags |= {"og:description": told}
    if base := app.config.html_baseurl.rstrip("/"):
        tags["og:url"] = f"{base}/{pagename}.html"
    card = card_address(base, address.current())
    if card:
        tags |= {"og:image": card, "og:image:alt": CARD_SHOWS}
        tags |= {"og:image:width": "1200", "og:image:height": "630"}
    lines = [f'<meta property="{k}" content="{html.escape(v)}" />' for k, v in tags.items() if v]
    lines += [
        f'<meta name="description" content="{html.escape(told)}" />',
        f'<meta name="twitter:card" content="{"summary_large_image" if card else "summary"}" />',
    ]
    context["metatags"] = context.get("metatags", "") + "\n".join(lines)


def write_list(app, error):
    """llms.txt beside the pages (build-finished)."""
    if error or app.builder.format != "html":
        return
    rank = {page: k for k, page in enumerate(_in_order(app, app.config.root_doc))}
    order = sorted(app.described, key=lambda page: rank.get(page, len(rank)))
    root = app.described.get(app.config.root_doc, ("", ""))
    lines = [f"# {app.config.html_title}", "", f"> {root[1]}", "", "## Pages", ""]
    for page in order:
        title, told = app.described[page]
        lines.append(f"- [{title}]({page}.html): {told}")
    Path(app.outdir, "llms.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _in_order(app, page):
    yield page
    for child in app.env.toctree_includes.get(page, []):
        yield from _in_order(app, child)


def setup(app):
    """Collect what each page says, and write the list at the end."""
    app.described = {}
    app.connect("html-page-context", add_tags)
    app.connect("build-finished", write_list)
    return {"parallel_read_safe": True, "parallel_write_safe": False}
