"""Each notebook is executed once: into Jupyter Book's cache, and nbval checks what stands there."""

import os
import subprocess
import sys

import executed
import nbformat
import pytest
from executed import execute, fill
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from notebooks import CHECKED, METADATA

ROOT = executed.BOOK.parent


def marked(source, text):
    """A cell whose output nbval compares with this one."""
    out = new_output("execute_result", {"text/plain": text}, execution_count=1)
    return new_code_cell(source, metadata={"tags": [CHECKED]}, execution_count=1, outputs=[out])


CELLS = {
    "sound": [
        new_code_cell("import os, warnings\nwarnings.warn('to stderr')\nos.getcwd()"),
        new_markdown_cell("Prose."),
        new_code_cell("1 / 0", metadata={"tags": ["raises-exception"]}),
        new_code_cell("skipped", metadata={"tags": ["skip-execution", "nbval-skip"]}),
        marked("os.path.exists('sound.ipynb')", "True"),
    ],
    "changed": [new_markdown_cell("Prose."), new_code_cell("a = 3"), marked("a", "2")],
    "raises": [
        new_code_cell("a = 3"),
        new_code_cell("raise ValueError('planted')"),
        marked("a", "3"),
    ],
}


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The notebooks' folder, the cache's, and the reports of a run of them all."""
    folder = tmp_path_factory.mktemp("notebooks")
    for name, cells in CELLS.items():
        nbformat.write(new_notebook(cells=cells, metadata=METADATA), folder / f"{name}.ipynb")
    return folder, folder / "cache", fill(sorted(folder.glob("*.ipynb")), folder / "cache")


def check(folder, cache, *names):
    """How nbval's checks of executed notebooks end, and what they say."""
    files = [f"{name}.ipynb" for name in names]
    arguments = ["-p", "executed", "-p", "no:cacheprovider", "-q", "--color=no", "-rA"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *arguments, f"--executed={cache}", *files],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout


def test_a_cell_that_raises_is_named(ran):
    folder, _, (report,) = ran
    assert report.startswith(f"{folder / 'raises.ipynb'}::Cell 1\n")
    assert "ValueError" in report and "planted" in report


def test_what_is_in_the_cache_is_not_executed_again(ran, monkeypatch):
    folder, cache, _ = ran
    monkeypatch.setattr(executed, "execute", None)
    assert fill([folder / "sound.ipynb", folder / "changed.ipynb"], cache) == []


def test_a_marked_output_that_changed_is_named(ran):
    folder, cache, _ = ran
    code, said = check(folder, cache, "changed", "sound")
    assert code == 1
    assert "changed.ipynb::Cell 1" in said and "'2' == '3'" in said
    assert "1 failed, 4 passed, 1 skipped" in said and "FAILED sound" not in said


def test_what_was_not_executed_does_not_pass(ran):
    folder, cache, _ = ran
    code, said = check(folder, cache, "sound", "raises")
    assert code != 0 and "raises.ipynb was not executed: run `make book`" in said


def test_the_book_takes_the_same_outputs(ran):
    """As myst-nb looks them up; with what went to stderr, which a strict build refuses."""
    folder, cache, _ = ran
    nb = nbformat.read(folder / "sound.ipynb", as_version=4)
    _, found = executed.get_cache(cache).merge_match_into_notebook(nb)
    first = found.cells[0].outputs
    assert any(out.get("name") == "stderr" and "to stderr" in out.text for out in first)
    assert first[-1].data["text/plain"] == repr(str(folder))


@pytest.mark.parametrize("times", [1, 2])
def test_a_kernel_that_does_not_start_is_tried_once_more(tmp_path, monkeypatch, times):
    path, tried = tmp_path / "page.ipynb", []
    nbformat.write(new_notebook(cells=[], metadata=METADATA), path)

    async def start(self, **settings):
        tried.append(settings)
        if len(tried) <= times:
            raise RuntimeError("Kernel died before replying to kernel_info")

    monkeypatch.setattr(executed.NotebookClient, "async_execute", start)
    *_, trouble = execute(path)
    assert len(tried) == 2 and (trouble is None) == (times == 1)
    assert trouble is None or trouble.startswith(f"{path}, twice: Kernel died")
