"""The map of the book: how long each page takes, and what it asks of a reader and a browser.

    python tools/bookmap.py            print a table of every page, in the order of the contents
    python tools/bookmap.py times      write each chapter's **Time** line as it is computed here

A page takes words / 200 + visible code lines / 15 minutes: visible is what no tag folds or removes.
Pages of the last parts are looked up and not read from end to end; their minutes are printed in
brackets and not added. If the book is built, the table also has each page's weight in a browser
that has nothing yet (without MathJax and the font of icons, which all pages share), and the seconds
its notebook ran; and if `make browser` has looked at it since, how many of its outputs are cut.
"""

import json
import re
import sqlite3
import sys
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parent.parent
FOLDED = {"hide-input", "hide-cell", "remove-input", "remove-cell"}
LOOKED_UP = ("Reference", "Appendix")  # parts of the contents
WIDTHS = (1280, 390)  # pixels, at which the browser's tests measure outputs
SHARED = ("mathjax", "fontawesome", "fa-")
TIME = re.compile(r"^\*\*Time:?\*\*:?\s*(?:about )?(\d+) minutes?", re.M)


@dataclass
class Page:
    """A page: where it is, what it is called, and what it asks of a reader."""

    name: str  # as in _toc.yml, from the root and without suffix
    part: str
    title: str
    words: int = 0
    cells: list[int] = field(default_factory=list)  # lines of each visible code cell
    stated: int | None = None  # minutes of its Time line

    @property
    def lines(self) -> int:
        """Visible lines of code."""
        return sum(self.cells)

    @property
    def minutes(self) -> float:
        """How long it takes to read."""
        return self.words / 200 + self.lines / 15

    @property
    def read(self) -> bool:
        """Whether it is read from end to end; else one looks things up in it."""
        return self.part not in LOOKED_UP


def code_lines(source: str) -> int:
    """Lines of code that are not blank."""
    return sum(bool(line.strip()) for line in source.split("\n"))


def prose(text: str) -> tuple[int, list[int]]:
    """Words of Markdown, and the lines of each Python block in it; directives are neither."""
    cells = []

    def block(match):
        if match[1] in ("python", "py"):
            cells.append(code_lines(match[2]))
        return ""

    text = re.sub(r"^```+(\S*)[^\n]*\n(.*?)^```+$", block, text, flags=re.M | re.S)
    text = re.sub(r"^(:::+|:\w+:|\(\S+\)=).*$", "", text, flags=re.M)
    text = re.sub(r"\]\([^)\s]*\)", "]", text)  # where a link leads is not read
    return len(text.split()), cells


def page(name: str, part: str, root: Path = ROOT) -> Page:
    """Measure one page, a notebook or a file of Markdown."""
    notebook = root / f"{name}.ipynb"
    if notebook.exists():
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        texts = ["".join(c["source"]) for c in cells if c["cell_type"] == "markdown"]
        visible = [
            code_lines("".join(c["source"]))
            for c in cells
            if c["cell_type"] == "code" and not FOLDED & {*c["metadata"].get("tags", [])}
        ]
    else:
        texts, visible = [(root / f"{name}.md").read_text(encoding="utf-8")], []
        texts[0] = re.sub(r"\A---\n.*?^---\n", "", texts[0], flags=re.M | re.S)
    found = Page(name, part, texts[0].lstrip().split("\n")[0].removeprefix("# "))
    for text in texts:
        words, blocks = prose(text)
        found.words += words
        visible += blocks
    found.cells = visible
    stated = TIME.search(texts[0])
    found.stated = int(stated[1]) if stated else None
    return found


def pages(root: Path = ROOT) -> list[Page]:
    """Every page of `_toc.yml`, in its order."""
    found, part = [], ""
    for line in (root / "_toc.yml").read_text(encoding="utf-8").split("\n"):
        if caption := re.fullmatch(r"\s*- caption: (.+)", line):
            part = caption[1]
        elif file := re.fullmatch(r"(?:root|\s*- file): (.+)", line):
            found.append(page(file[1], part, root))
    return found


def reached(name: str, every: list[Page]) -> float:
    """Minutes of reading before a page, for who reads in the order of the contents."""
    names = [p.name for p in every]
    return sum(p.minutes for p in every[: names.index(name)] if p.read)


def spoken(minutes: float) -> str:
    """Minutes as one says them: `1 h 05`, or `25 min`."""
    whole = round(minutes)
    return f"{whole // 60} h {whole % 60:02}" if whole >= 60 else f"{whole} min"


def with_time(text: str, minutes: float) -> str:
    """A page's first cell, with the number of minutes in its Time line."""
    return TIME.sub(lambda m: m[0].replace(m[1], str(round(minutes))), text)


# ---- of the built book ---------------------------------------------------------------------------


def weight(html: Path) -> int:
    """Bytes that a browser fetches to show a page: itself, and what its tags name."""
    text = html.read_text(encoding="utf-8")
    named = re.findall(r"<(?:img|script)\b[^>]*?\bsrc=\"([^\"]+)\"", text)
    named += re.findall(r"<link\b[^>]*?\brel=\"(?:stylesheet|preload|icon)\"[^>]*?>", text)
    total, seen = html.stat().st_size, set()
    for name in named:
        if name.startswith("<link"):
            href = re.search(r'href="([^"]+)"', name)
            name = href[1] if href else ""
        path = (html.parent / unquote(urlsplit(name).path)).resolve()
        if name.startswith("data:") or path in seen or not path.is_file():
            continue
        seen.add(path)
        if not any(word in str(path).lower() for word in SHARED):
            total += path.stat().st_size
    return total


def cut_file(build: Path, name: str, width: int) -> Path:
    """Where the browser's tests leave how many outputs of a page are cut in a window of a width."""
    return build / "cut" / f"{name}-{width}"


def outputs_cut(build: Path, name: str) -> int | None:
    """How many outputs of a page are cut, at all widths together; None if this is not known."""
    found = [cut_file(build, name, width) for width in WIDTHS]
    built = (build / "html" / f"{name}.html").stat().st_mtime
    if not all(path.exists() and path.stat().st_mtime >= built for path in found):
        return None
    return sum(int(path.read_text()) for path in found)


def run_times(cache: Path) -> dict[str, float]:
    """Seconds that each notebook ran, by its path, as the cache of Jupyter Book has it."""
    if not (database := cache / "global.db").exists():
        return {}
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
        rows = connection.execute("SELECT uri, data FROM nbcache").fetchall()
    return {uri: json.loads(data or "{}").get("execution_seconds") for uri, data in rows}


def table(root: Path = ROOT) -> str:
    """The map as text, one line a page."""
    every = pages(root)
    built, ran = root / "_build" / "html", run_times(root / "_build" / ".jupyter_cache")
    row = "{:38} {:>5} {:>7} {:>5} {:>7} {:>4} {:>6} {:>6}".format
    lines = [row("page", "min", "so far", "lines", "longest", "cut", "kB", "run s")]
    for p in every:
        minutes = f"{p.minutes:.0f}" if p.read else f"({p.minutes:.0f})"
        so_far = spoken(reached(p.name, every) + p.minutes) if p.read else ""
        html = built / f"{p.name}.html"
        kilobytes = f"{weight(html) / 1000:.0f}" if html.exists() else ""
        cut = outputs_cut(root / "_build", p.name) if html.exists() else None
        cut = "" if cut is None else cut
        seconds = next((s for u, s in ran.items() if u.endswith(f"/{p.name}.ipynb") and s), None)
        name, longest = p.name.removeprefix("book/"), max(p.cells, default=0)
        ran_for = "" if seconds is None else round(seconds)
        lines.append(row(name, minutes, so_far, p.lines, longest, cut, kilobytes, ran_for))
    total = sum(p.minutes for p in every if p.read)
    lines.append(row("all that is read", f"{total:.0f}", spoken(total), *[""] * 5))
    return "\n".join(line.rstrip() for line in lines)


def write_times(root: Path = ROOT) -> list[str]:
    """Put the computed minutes into each page's Time line; the pages that changed."""
    changed = []
    for p in pages(root):
        path = next(q for q in (root / f"{p.name}.ipynb", root / f"{p.name}.md") if q.exists())
        text = path.read_text(encoding="utf-8")
        if p.stated is None or p.stated == round(p.minutes):
            continue
        if path.suffix == ".md":
            new = with_time(text, p.minutes)
        else:
            notebook = json.loads(text)
            first = notebook["cells"][0]
            source = with_time("".join(first["source"]), p.minutes)
            first["source"] = source.splitlines(keepends=True)
            # as nbformat writes it
            new = json.dumps(notebook, ensure_ascii=False, indent=1, sort_keys=True) + "\n"
        path.write_text(new, encoding="utf-8")
        changed.append(f"{p.name}: {p.stated} -> {round(p.minutes)} minutes")
    return changed


if __name__ == "__main__":
    match sys.argv[1:]:
        case []:
            print(table())
        case ["times"]:
            print("\n".join(write_times()) or "nothing to change")
        case _:
            sys.exit(__doc__)
