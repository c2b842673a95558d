"""What a page says of itself to those who do not open it: description, social card, llms.txt.

The description of a page is the first paragraph of its text. llms.txt lists all pages with theirs.
A card's picture needs the book's own address (`html.baseurl` in _config.yml) and waits for it.
"""

import html
from pathlib import Path

from docutils import nodes

LENGTH = 200
LABELS = ("You will do", "You will learn", "You need", "Time")
CARD = "_static/card.png"


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


def add_tags(app, pagename, templatename, context, doctree):
    """A page's description and card (html-page-context)."""
    if doctree is None:
        return
    told = description(doctree)
    title = app.env.titles[pagename].astext()
    app.described[pagename] = title, told
    tags = {"og:type": "article", "og:site_name": app.config.html_title, "og:title": title}
    tags |= {"og:description": told}
    if app.config.html_baseurl:
        base = app.config.html_baseurl.rstrip("/")
        tags |= {"og:url": f"{base}/{pagename}.html", "og:image": f"{base}/{CARD}"}
    lines = [f'<meta property="{k}" content="{html.escape(v)}" />' for k, v in tags.items() if v]
    lines += [
        f'<meta name="description" content="{html.escape(told)}" />',
        '<meta name="twitter:card" content="summary" />',
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
