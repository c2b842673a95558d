"""Every chapter keeps the frame that CONTRIBUTING.md describes, and is stored without noise.

In a page of the appendix, or of the measurements, one looks things up: it has sections of its own
and no exercises, and keeps the rest.

The checks are functions from a notebook to a list of findings. They run over every chapter, and
over a sound little chapter that is spoiled in one way after another: each check must notice its
own.
"""

import re
from pathlib import Path

import address
import nbformat
import notebooks
import pytest
import yaml
from nbconvert import HTMLExporter, ScriptExporter
from nbconvert.filters.widgetsdatatypefilter import WIDGET_STATE_MIMETYPE
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from traitlets.config import Config

from fractal_lib.plots import SMALLEST

ROOT = Path(__file__).resolve().parent.parent
CHAPTERS = sorted(
    p for p in (ROOT / "book").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts
)
FRAME = [
    "From scratch",
    "From the library",
    "On real data",
    "What it costs",
    "Exercises",
    "What to remember",
]
OPTIONAL = {"On real data"}
SETUP = address.setup_cell(address.current())


def headings(nb, level):
    """(cell number, text) of every heading of that level, fenced code left out."""
    found = []
    for k, cell in enumerate(nb.cells):
        if cell.cell_type == "markdown":
            text = re.sub(r"^(```|~~~).*?^\1", "", cell.source, flags=re.M | re.S)
            found += [(k, m[1].strip()) for m in re.finditer(rf"^#{{{level}}} (.+)$", text, re.M)]
    return found


def code_cells(nb):
    return [cell for cell in nb.cells if cell.cell_type == "code"]


def tags(cell):
    return cell.metadata.get("tags", [])


def title(nb):
    """One title, in the first cell, before anything else."""
    at = [k for k, _ in headings(nb, 1)]
    return (
        []
        if at == [0] and nb.cells[0].source.startswith("# ")
        else [f"titles in cells {at}, expected [0]"]
    )


def sections(nb):
    """The sections of the frame, in its order; others may stand between them."""
    found = [text for _, text in headings(nb, 2) if text in FRAME]
    wanted = [text for text in FRAME if text in found or text not in OPTIONAL]
    return [] if found == wanted else [f"sections {found}, expected {wanted}"]


def introduction(nb):
    """The four lines and the picture that stand before the first section."""
    end = next((k for k, _ in headings(nb, 2)), len(nb.cells))
    text = "\n".join(cell.source for cell in nb.cells[:end] if cell.cell_type == "markdown")
    lines = ["You will do", "You will learn", "You need", "Time"]
    missing = [line for line in lines if not re.search(rf"\*\*{line}[.:]?\*\*", text)]
    found = [f"no line **{line}** before the first section" for line in missing]
    if not re.search(r"!\[[^\]]+\]\([^)]+\)", text) and not any(map(plots, nb.cells[:end])):
        found.append("no picture before the first section")
    return found


def setup(nb):
    """The first code cell installs in Colab, from the address of _config.yml; then the imports."""
    cells = code_cells(nb)
    found = []
    if not cells or cells[0].source != SETUP:
        found.append("the first code cell is not the setup cell of tools/address.py")
    elif "hide-input" not in tags(cells[0]):
        found.append("the setup cell is not tagged hide-input")
    if len(cells) < 2 or not re.search(r"^(import|from) ", cells[1].source, re.M):
        found.append("the second code cell imports nothing")
    return found


def exercises(nb):
    """Three or more, each with a hidden solution that asserts."""
    start = next((k for k, text in headings(nb, 2) if text == "Exercises"), len(nb.cells))
    end = next((k for k, _ in headings(nb, 2) if k > start), len(nb.cells))
    asked = [
        (k, text)
        for k, text in headings(nb, 3)
        if start <= k < end and text.startswith("Exercise ")
    ]
    found = [] if len(asked) >= 3 else [f"{len(asked)} exercises, expected at least 3"]
    for (k, text), (stop, _) in zip(asked, [*asked[1:], (end, "")], strict=True):
        solutions = [
            c for c in nb.cells[k:stop] if c.cell_type == "code" and "hide-cell" in tags(c)
        ]
        if not any(
            re.search(r"^\s*(assert\b|[\w.]+\.assert_\w+\()", c.source, re.M) for c in solutions
        ):
            found.append(f"{text}: no hidden solution with an assert")
    return found


def plots(cell):
    return cell.cell_type == "code" and "plt.show()" in cell.source


def figures(nb):
    """A figure that a cell shows has a caption, a name and alt text; a slider brings its own."""
    found = []
    for cell in filter(plots, code_cells(nb)):
        meta = cell.metadata.get("mystnb", {})
        words = {**meta.get("figure", {}), **meta.get("image", {})}
        lacking = [key for key in ("caption", "name", "alt") if not str(words.get(key, "")).strip()]
        if lacking:
            found.append(f"cell {cell.id}: a figure without {', '.join(lacking)}")
    return found


def letters(nb):
    """No letters of a chart are smaller than those that are read on a telephone."""
    small = re.compile(r"fontsize=(\d+(?:\.\d+)?)")
    return [
        f"cell {cell.id}: letters of {size} points, at least {SMALLEST}"
        for cell in code_cells(nb)
        for size in small.findall(cell.source)
        if float(size) < SMALLEST
    ]


def runs_whole(nb):
    """No cell is left out of the book's run or of the tests', and none may fail unseen."""
    left_out = {"skip-execution", "nbval-skip", "raises-exception", "nbval-raises-exception"}
    return [
        f"cell {cell.id}: tagged {t}"
        for cell in code_cells(nb)
        for t in tags(cell)
        if t in left_out
    ]


def width(nb):
    """Code lines fit the page: 76 characters (the setup cell's address may be longer)."""
    cells = [cell for cell in code_cells(nb) if cell.source != SETUP]
    long = [(cell.id, n) for cell in cells for n in map(len, cell.source.split("\n")) if n > 76]
    return [f"cell {name}: a line of {n} characters, at most 76 fit" for name, n in long]


def visible(nb):
    """(cell number, cell) of the code that a reader meets unfolded."""
    folds = {"hide-input", "hide-cell", "remove-input", "remove-cell"}
    return [
        (k, c) for k, c in enumerate(nb.cells) if c.cell_type == "code" and not folds & {*tags(c)}
    ]


def short(nb):
    """A visible cell has at most 30 lines of code; most have 20, one thought each."""
    sizes = [
        (c.id, sum(bool(line.strip()) for line in c.source.split("\n"))) for _, c in visible(nb)
    ]
    found = [f"cell {name}: {n} visible lines, at most 30" for name, n in sizes if n > 30]
    long = [name for name, n in sizes if n > 20]
    return found + [f"{len(long)} cells of more than 20 lines: {long}"] * (len(long) > 3)


def folded(nb):
    """What draws, moves a slider or measures a time is folded; what it shows is not."""
    work = re.compile(r"plt\.show\(\)|^explore\(|\bTimer\(|\.style\.format\(", re.M)
    return [f"cell {c.id}: not folded" for _, c in visible(nb) if work.search(c.source)]


def led_in(nb):
    """A sentence stands before each visible cell, but for the imports."""
    imports = code_cells(nb)[1:2]
    found = []
    for k, cell in visible(nb):
        before = nb.cells[k - 1]
        line = before.source.strip().split("\n")[-1]
        if cell not in imports and (before.cell_type != "markdown" or line.startswith("#")):
            found.append(f"cell {cell.id}: no sentence before it")
    return found


CHECKS = [
    *(title, sections, introduction, setup, exercises, figures, letters, runs_whole, width),
    *(short, folded, led_in),
]
OF_CHAPTERS_ALONE = [sections, introduction, exercises]
# what is not a chapter: pages where one looks things up, and the way in
NO_CHAPTERS = {"appendix", "measure", "before_you_begin"}
FRAMED = [
    (path, check)
    for check in CHECKS
    for path in CHAPTERS
    if not NO_CHAPTERS & {path.parent.name, path.stem} or check not in OF_CHAPTERS_ALONE
]


def test_the_table_of_contents_lists_every_chapter():
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    listed = {toc["root"]} | {c["file"] for part in toc["parts"] for c in part["chapters"]}
    files = {
        p.relative_to(ROOT).with_suffix("").as_posix()
        for p in [*CHAPTERS, *(ROOT / "book").rglob("*.md")]
    }
    assert CHAPTERS
    assert listed == files


@pytest.mark.parametrize(
    ("path", "check"), FRAMED, ids=lambda of: of.stem if isinstance(of, Path) else of.__name__
)
def test_chapter_keeps_the_frame(path, check):
    assert check(nbformat.read(path, as_version=4)) == []


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_chapter_is_stored_without_noise(path):
    assert notebooks.noise(path) == []


def exported(nb, **options):
    """The page that nbconvert makes of an executed notebook."""
    exporter = HTMLExporter(config=Config({"NbConvertBase": options}))
    return exporter.from_notebook_node(nb)[0]


def test_an_exported_page_keeps_its_slider_where_html_is_preferred():
    """As CONTRIBUTING.md says; without the option the widget wins, whose scripts are elsewhere."""
    views, states = "application/vnd.jupyter.widget-view+json", WIDGET_STATE_MIMETYPE
    slider = '<figure class="fractal-explore">a</figure>'
    nb = new_notebook(cells=[new_code_cell("explore(draw)")])
    nb.cells[0].outputs = [
        new_output("display_data", {"text/html": slider, views: {"model_id": "m"}})
    ]
    nb.metadata.widgets = {states: {"state": {"m": {}}, "version_major": 2, "version_minor": 0}}
    option = re.search(r"display_data_priority=\"(.+?)\"", (ROOT / "CONTRIBUTING.md").read_text())[
        1
    ]
    assert slider in exported(nb, display_data_priority=yaml.safe_load(option))
    assert slider not in exported(nb)


def test_a_chapter_becomes_a_script_with_its_prose():
    nb = nbformat.reads(notebooks.stored(sound()), as_version=4)
    text, resources = ScriptExporter().from_notebook_node(nb)
    assert resources["output_extension"] == ".py"
    assert "# # Draw a line" in text


# ---- the checks themselves -----------------------------------------------------------------------


def sound():
    """The smallest chapter that every check accepts."""
    md, code = new_markdown_cell, new_code_cell
    intro = (
        "# Draw a line\n\n**You will do** a\n**You will learn** b\n**You need** c\n**Time** d\n\n"
        "![a line](a.svg)"
    )
    figure = {
        "tags": ["hide-input"],
        "mystnb": {
            "figure": {"caption": "A line.", "name": "fig-line"},
            "image": {"alt": "A line."},
        },
    }
    cells = [
        md(intro, id="intro"),
        code(SETUP, id="setup", metadata={"tags": ["hide-input"]}),
        code("import math", id="imports"),
        md("## From scratch", id="scratch"),
        code("plt.plot([0, 1])\nplt.show()", id="figure", metadata=figure),
        md("## From the library\n\n## What it costs\n\nA sum.", id="rest"),
        code("2 + 2", id="sum", metadata={"tags": ["nbval-check-output"]}),
        md("## Exercises", id="exercises"),
    ]
    cells[-2].execution_count = 4
    cells[-2].outputs = [new_output("execute_result", {"text/plain": "4"}, execution_count=4)]
    for n in (1, 2, 3):
        cells += [
            md(f"### Exercise {n}", id=f"exercise-{n}"),
            code("assert math.pi > 3", id=f"solution-{n}", metadata={"tags": ["hide-cell"]}),
        ]
    cells.append(md("## What to remember", id="remember"))
    return new_notebook(cells=cells)


def edit(name, old, new):
    """Replace text in one cell, named by its id; its tags count as text."""

    def spoil(nb):
        cell = next(cell for cell in nb.cells if cell.id == name)
        assert old in cell.source or old in tags(cell) or old in str(cell.metadata)
        cell.source = cell.source.replace(old, new)
        cell.metadata = yaml.safe_load(yaml.safe_dump(_plain(cell.metadata)).replace(old, new))

    return spoil


def _plain(node):
    return {k: _plain(v) if isinstance(v, dict) else v for k, v in node.items()}


def test_a_sound_chapter_passes(tmp_path):
    (path := tmp_path / "sound.ipynb").write_text(notebooks.stored(sound()))
    assert {check.__name__: check(sound()) for check in CHECKS} == {
        check.__name__: [] for check in CHECKS
    }
    assert notebooks.noise(path) == []


@pytest.mark.parametrize(
    ("check", "spoil"),
    [
        (title, edit("intro", "# Draw", "Draw")),
        (title, edit("rest", "## From the library", "# From the library")),
        (sections, edit("remember", "remember", "forget")),
        (sections, edit("rest", "From the library", "On real data")),
        (introduction, edit("intro", "**Time**", "Time")),
        (introduction, edit("intro", "a line", "")),
        (setup, edit("setup", "fractal", "fractured")),
        (setup, edit("setup", "hide-input", "show")),
        (setup, edit("imports", "import math", "math = 3")),
        (exercises, edit("exercise-3", "### Exercise", "### Question")),
        (exercises, edit("solution-2", "assert", "print")),
        (exercises, edit("solution-1", "hide-cell", "hide-output")),
        (figures, edit("figure", "alt", "text")),
        (figures, edit("figure", "A line.", "''")),
        (letters, edit("figure", "plt.show()", "plt.title('a', fontsize=9.5)")),
        (runs_whole, edit("solution-3", "hide-cell", "skip-execution")),
        (width, edit("imports", "import math", f"import {'m' * 70}")),
        (short, edit("sum", "2 + 2", "\n\n".join(["2 + 2"] * 31))),
        (folded, edit("figure", "hide-input", "show")),
        (folded, edit("sum", "2 + 2", "explore(draw)")),
        (led_in, edit("rest", "\n\nA sum.", "")),
    ],
)
def test_each_check_notices(check, spoil):
    nb = sound()
    spoil(nb)
    assert check(nb) != []


@pytest.mark.parametrize("name", ["count", "output", "metadata", "lost", "heavy", "order"])
def test_noise_is_noticed(tmp_path, name):
    nb = nbformat.reads(notebooks.stored(sound()), as_version=4)
    cells = {cell.id: cell for cell in nb.cells}
    match name:
        case "count":
            cells["imports"].execution_count = 3
        case "output":
            cells["imports"].outputs = [new_output("stream", text="hello")]
        case "metadata":
            cells["imports"].metadata["collapsed"] = True
        case "lost":
            cells["sum"].execution_count = None
        case "heavy":
            cells["sum"].outputs[0].data["text/plain"] = "4" * 400_000
    text = notebooks.stored(nb) if name == "heavy" else nbformat.writes(nb) + "\n"
    if name == "order":
        text = text.replace(
            ' "nbformat": 4,\n "nbformat_minor": 5\n', ' "nbformat_minor": 5,\n "nbformat": 4\n'
        )
    (path := tmp_path / "noisy.ipynb").write_text(text)
    assert len(notebooks.noise(path)) >= 1


def test_storing_runs_checked_cells_and_keeps_nothing_else(tmp_path):
    nb = sound()
    del nb.cells[4]  # its figure needs imports
    nb.cells[2].outputs = [new_output("stream", text="left over")]
    checked = next(cell for cell in nb.cells if cell.id == "sum")
    checked.execution_count, checked.outputs = None, []
    nbformat.write(nb, path := tmp_path / "chapter.ipynb")
    assert notebooks.store(path)
    again = nbformat.read(path, as_version=4)
    assert notebooks.noise(path) == []
    assert [cell.id for cell in code_cells(again) if cell.outputs] == ["sum"]
    assert next(c for c in again.cells if c.id == "sum").outputs[0].data["text/plain"] == "4"
    assert not notebooks.store(path)


# ---- the address ---------------------------------------------------------------------------------


def test_the_address_can_be_moved_and_moved_back(tmp_path):
    old, new = address.current(), "https://github.com/another-account/another.name"
    texts = {
        "_config.yml": f"repository:\n  url: {old}\n",
        "README.md": f"see {old}.git and {old}-two, colab/{address.slug(old)}/blob",
        "book/a.ipynb": notebooks.stored(sound()),
    }
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert {str(p.relative_to(tmp_path)) for p in address.rewrite(new, tmp_path)} == set(texts)
    assert address.current(tmp_path) == new
    assert code_cells(nbformat.read(tmp_path / "book/a.ipynb", 4))[0].source == address.setup_cell(
        new
    )
    moved = (tmp_path / "README.md").read_text()
    assert moved == f"see {new}.git and {old}-two, colab/another-account/another.name/blob"
    address.rewrite(old, tmp_path)
    assert {name: (tmp_path / name).read_text() for name in texts} == texts


@pytest.mark.parametrize(
    "url", ["github.com/a/b", "https://github.com/a", "https://example.org/a/b", "a/b"]
)
def test_an_address_that_colab_cannot_open_is_refused(url, tmp_path):
    with pytest.raises(ValueError, match="expected https://github.com/OWNER/NAME"):
        address.slug(url)


def test_the_readme_lists_the_chapters_of_the_table_of_contents():
    listed = address.chapters(address.current())
    assert listed in (ROOT / "README.md").read_text()  # `python tools/address.py URL` writes it
    for path in CHAPTERS:
        assert f"{path.relative_to(ROOT).as_posix()})" in listed


def test_colab_is_offered_when_the_address_is_set_and_not_before():
    for url, offered in (
        ("https://github.com/a/b", True),
        (f"https://github.com/{address.NOBODY}/b", False),
    ):
        listed = address.chapters(url)
        assert (address.COLAB in listed) == offered
        assert (address.UNSET in listed) == (not offered)
        assert ("git+https" in address.setup_cell(url)) == offered


def test_every_place_that_needs_the_address_quotes_the_one_of_the_configuration():
    quoting = {
        p.relative_to(ROOT).as_posix()
        for p in address.quoting(ROOT, address.slug(address.current()))
    }
    public = address.is_public(address.current())
    chapters = {p.relative_to(ROOT).as_posix() for p in CHAPTERS if public}
    assert quoting >= chapters | {"_config.yml", "pyproject.toml", "CITATION.cff"}
