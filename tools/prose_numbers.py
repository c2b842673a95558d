"""Figures in prose that nothing backs: no cell prints them, no code sets them, no record has them.

    python tools/prose_numbers.py             report them; needs executed notebooks (`make book`)
    python tools/prose_numbers.py --attack    how many wrong figures would pass if one wrote them

What a figure is, `prose_figures` says. Looked at are Markdown, captions and alt texts, README.md
and DESIGN.md. A figure is backed if

1. an output of its section, or of the cell before or after, prints it, rounded as the prose rounds
   (in a page's first section and its last: any output of the page), or the page's code sets it; and
   few other figures of its length would be backed as well. For each number the words are counted
   that its line shares with the sentence: those that share as many as the figure's own may be no
   more than a twentieth of all figures of that length, else the prose could say anything;
2. or `prose_numbers.yml` lists the words around it: with an expression of the same value (`is`),
   computed from records, outputs or what the sentence shows; or with a reason (`because`) where it
   is neither measured nor computed.
"""

import argparse
import json
import math
import random
import re
import statistics
import sys
from collections import Counter
from dataclasses import dataclass
from functools import cache
from html import unescape
from pathlib import Path

import nbformat
import yaml
from executed import CACHE
from jupyter_cache import get_cache
from notebooks import BOOK, pages
from prose_figures import Figure, figures, parsed, prose, words

ROOT = BOOK.parent
RESULTS = ROOT / "fractal_lib" / "benchmark" / "results"
LISTED = Path(__file__).with_suffix(".yml")
TEXTS = [ROOT / "README.md", ROOT / "DESIGN.md", *sorted(BOOK.rglob("*.md"))]
CONFUSABLE = 0.05  # of the other figures of its length, how many may be backed as well

# ---- what backs them -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """A number that a cell prints or sets, and the words of its line."""

    value: float
    step: float  # the place of its last digit; 0 if it is exact
    words: frozenset[str]
    cell: int
    code: bool


def numbers(line: str, code: bool) -> list[tuple[float, float]]:
    """The numbers of a line of output or code, each with the place of its last digit."""
    found = re.findall(r"(?<![A-Za-z_\d.])(?:\d[\d_,]*\.?\d*|\.\d+)(?:e[-+]?\d+)?", line)
    plain = [parsed(text.rstrip(",_")) for text in found]
    if not code:
        return plain
    powers = re.findall(r"(?<![\w.])(\d+) ?\*\* ?(\d+)", line)
    return [(value, 0) for value, _ in plain] + [(float(a) ** int(b), 0) for a, b in powers]


def lines(output) -> list[tuple[str, str]]:
    """The lines of an output, each with the head above it."""
    data = output.get("data", {})
    text = output.get("text") or data.get("text/html") or data.get("text/plain") or ""
    text = "".join(text)
    if "text/html" in data:
        text = re.sub(r"<(script|style|svg)\b.*?</\1>|data:[^\"']*", "", text, flags=re.S)
        heads = re.findall(r"<caption.*?</caption>|<thead.*?</thead>", text, flags=re.S)
        head = re.sub("<[^>]+>", " ", " ".join(heads))
        rows = re.findall(r"<tr.*?</tr>|<p.*?</p>|<li.*?</li>", text, flags=re.S) or [text]
        return [(unescape(re.sub("<[^>]+>", " ", row)), unescape(head)) for row in rows]
    return [(line, text.split("\n", 1)[0]) for line in text.split("\n")]


def sources(cells) -> list[Source]:
    """Every number that the cells of a page print or set."""
    found = []
    for index, cell in enumerate(cells):
        if cell.cell_type != "code":
            continue
        said = [(line, head, False) for out in cell.outputs for line, head in lines(out)]
        said += [(line, "", True) for line in cell.source.split("\n")]
        for line, head, code in said:
            about = words(f"{line} {head}")
            found += [Source(*number, about, index, code) for number in numbers(line, code)]
    return found


class Page:
    """A page, executed: its figures, and what backs them."""

    def __init__(self, name: str, cells):
        self.name, self.cells, self.sources = name, cells, sources(cells)
        starts = (
            c.cell_type == "markdown" and bool(re.search("^##", c.source, re.M)) for c in cells
        )
        self.section, count = [], 0
        for start in starts:
            count += start
            self.section.append(count)

    def figures(self):
        """Each figure with the index of its cell."""
        for index, cell in enumerate(self.cells):
            shown = cell.metadata.get("mystnb", {})
            texts = [shown.get("figure", {}).get("caption"), shown.get("image", {}).get("alt")]
            for text in [cell.source] if cell.cell_type == "markdown" else filter(None, texts):
                for sentence in prose(text):
                    yield from ((index, figure) for figure in figures(sentence))

    def near(self, index: int) -> set[int]:
        """The cells whose outputs a figure of this cell may quote."""
        if self.section[index] in (0, self.section[-1]):
            return set(range(len(self.cells)))
        codes = [i for i, c in enumerate(self.cells) if c.cell_type == "code"]
        around = [i for i in codes if i < index][-1:] + [i for i in codes if i > index][:1]
        return {i for i in codes if self.section[i] == self.section[index]}.union(around, [index])

    def backed(self, index: int, figure: Figure) -> Source | None:
        """The source of a figure on its page, if few other figures would do as well."""
        near, about = self.near(index), words(figure.sentence)
        fits: dict[int, tuple[int, Source]] = {}  # by what they would let the prose say
        for source in self.sources:
            if not source.code and source.cell not in near:
                continue
            shared = len(about & source.words)
            for key in figure.read_as(source.value, source.step, source.code):
                if key not in fits or fits[key][0] < shared:
                    fits[key] = shared, source
        if (own := fits.get(figure.key)) is None:
            return None
        lower = 10 ** (len(str(figure.key)) - 1)
        rivals = [
            k for k, (shared, _) in fits.items() if lower <= k < 10 * lower and shared >= own[0]
        ]
        return own[1] if len(rivals) - 1 <= CONFUSABLE * 9 * lower else None


# ---- what is listed, and the whole -----------------------------------------------------------


class Listed:
    """The figures that `prose_numbers.yml` accounts for."""

    def __init__(self, file: Path, book: dict[str, Page]):
        self.book, self.entries, self.used, self.faults = book, [], set(), []
        known = {"load": load, "math": math, "median": statistics.median, "printed": self.printed}
        for name, entries in yaml.safe_load(file.read_text(encoding="utf-8")).items():
            for entry in entries:
                says, values = " ".join(prose(entry["says"])), entry.get("because")
                if "is" in entry:
                    try:
                        values = eval(str(entry["is"]), dict(known))
                    except Exception as error:
                        self.faults.append(f"{name}: {says}: {type(error).__name__}: {error}")
                        values = []
                    values = [values] if isinstance(values, (int, float)) else values
                self.entries.append((name, says, values))

    def printed(self, name: str, pattern: str) -> float:
        """The number that an output of a page prints where a pattern has its group."""
        for cell in self.book[name].cells:
            for output in cell.get("outputs", []):
                if match := re.search(pattern, "\n".join(line for line, _ in lines(output))):
                    return float(match[1].replace(",", ""))
        raise LookupError(f"no output of {name} has {pattern}")

    def backs(self, name: str, figure: Figure) -> bool:
        """Whether an entry has this figure in this place."""
        for entry in self.entries:
            page, says, values = entry
            start = figure.sentence.find(says)
            if page != name or start < 0 or not start <= figure.span[0] < start + len(says):
                continue
            self.used.add(entry[:2])
            if isinstance(values, str):
                return True
            every = figures(says)
            here = sum(start + other.span[0] < figure.span[0] for other in every)
            return len(values) == len(every) and figure.key in figure.read_as(values[here])
        return False

    def trouble(self) -> list[str]:
        """Entries that cannot be computed, and entries whose words stand nowhere any more."""
        unused = (e[:2] for e in self.entries if e[:2] not in self.used)
        return self.faults + [f"{name}: listed, but not there: {says}" for name, says in unused]


@cache
def load(name: str) -> dict:
    """A record by its name."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def book(folder: Path = CACHE) -> dict[str, Page]:
    """Every page and text by its path; raises KeyError for a notebook that was not executed."""
    store, found = get_cache(folder), {}
    for path in pages():
        _, done = store.merge_match_into_notebook(nbformat.read(path, as_version=4))
        found[str(path.relative_to(ROOT))] = Page(str(path.relative_to(ROOT)), done.cells)
    for path in TEXTS:
        cell = nbformat.v4.new_markdown_cell(path.read_text(encoding="utf-8"))
        found[str(path.relative_to(ROOT))] = Page(str(path.relative_to(ROOT)), [cell])
    return found


def unbacked(pages: dict[str, Page], listed: Listed) -> list[str]:
    """A line for each figure that nothing backs, and for each entry of the list that is stale."""
    found = []
    for name, page in pages.items():
        for index, figure in page.figures():
            if not listed.backs(name, figure) and page.backed(index, figure) is None:
                start, end = figure.span
                around = figure.sentence[max(0, start - 40) : end + 40]
                found.append(f"{name} [{index}]: {figure.text} in: ... {around} ...")
    return found + listed.trouble()


def wrong(figure: Figure, rng: random.Random) -> str | None:
    """The figure as someone might get it wrong: scaled, two digits swapped, or one replaced."""
    mantissa, e, power = figure.text.partition("e")
    digits = [i for i, c in enumerate(mantissa) if c.isdigit()]
    new = list(mantissa)
    match rng.choice(["scale", "swap", "digit"]):
        case "scale":
            decimals = len(mantissa.partition(".")[2])
            scaled = parsed(mantissa)[0] * rng.choice([0.5, 0.7, 1.3, 2])
            new = list(f"{scaled:{',' * (',' in mantissa)}.{decimals}f}")
        case "swap" if len(digits) > 1:
            a, b = rng.sample(digits, 2)
            new[a], new[b] = new[b], new[a]
        case _:
            telling = [i for i in digits if new[i] != "0"][:2]
            if telling:
                new[rng.choice(telling)] = rng.choice("123456789")
    text = "".join(new) + e + power
    value = parsed(text)[0]
    return text if value and abs(value / figure.value - 1) > 0.05 else None


def attack(pages: dict[str, Page], listed: Listed, times: int = 20) -> Counter:
    """Make each figure wrong so often; how many were tried and how many passed, by digits."""
    rng, count = random.Random(0), Counter()
    for name, page in pages.items():
        for index, figure in page.figures():
            for text in filter(None, (wrong(figure, rng) for _ in range(times))):
                start, end = figure.span
                sentence = figure.sentence[:start] + text + figure.sentence[end:]
                new = next((f for f in figures(sentence) if f.span[0] == start), None)
                count["tried", len(str(figure.key))] += 1
                if new is None or listed.backs(name, new) or page.backed(index, new):
                    count["passed", len(str(figure.key))] += 1
    return count


def main() -> int:
    """Report, or attack; 1 if a figure has nothing behind it."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--attack", action="store_true", help="count the wrong figures that pass")
    args = parser.parse_args()
    every = book()
    listed = Listed(LISTED, every)
    if args.attack:
        count = attack(every, listed)
        for digits in sorted({d for _, d in count}):
            tried, passed = count["tried", digits], count["passed", digits]
            print(
                f"{digits} digits: {passed:5} of {tried:5} wrong figures pass, {passed / tried:.1%}"
            )
        tried, passed = (
            sum(v for (w, _), v in count.items() if w == what) for what in ("tried", "passed")
        )
        print(f"in all:   {passed:5} of {tried:5}, {passed / tried:.1%}")
        return 0
    found = unbacked(every, listed)
    print(
        "\n".join(found)
        or f"{sum(1 for p in every.values() for _ in p.figures())} figures, all backed"
    )
    return min(len(found), 1)


if __name__ == "__main__":
    sys.exit(main())
