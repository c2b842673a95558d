"""A chapter opened in Colab: alone, in an empty folder, with only what Colab ships.

Such an environment is made from the running one, without network: Colab's packages, what these
need, and nothing else. The setup cell runs as it stands; git is told
to find the project's address in a repository made from this working tree, and pip to fetch nothing,
so a dependency that Colab lacks, or a pin that would replace one it has, fails here.
"""

import ast
import functools
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import address
import nbformat
import notebooks
import pytest
from environments import ROOT, Environment, working_tree
from IPython.core.inputtransformer2 import TransformerManager
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpecManager
from nbclient import NotebookClient

CHAPTERS = sorted(
    p for p in (ROOT / "book").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts
)
# run from top to bottom; of the others, the imports
WHOLE = ROOT / "book" / "gallery" / "cantor.ipynb"
PUBLIC = "https://github.com/somebody/fractal-attention"  # as it is once it is set
SHIPPED = [
    "torch",
    "numpy",
    "matplotlib",
    "ipywidgets",
    "scipy",
    "pandas",
    "statsmodels",
    "scikit-learn",
    "pillow",
    "tqdm",
]
TOOLS = ["ipykernel", "pip", "setuptools", "wheel"]


class Colab(Environment):
    """Colab's packages, a kernel that has google.colab imported before the first cell, and git."""

    def __init__(self, folder):
        super().__init__(folder, SHIPPED + TOOLS)
        (self.site / "google" / "colab").mkdir(parents=True)
        (self.site / "google" / "colab" / "__init__.py").touch()
        (self.site / "google_colab.pth").write_text("import google.colab\n")
        argv = [str(self.python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        self.kernels = folder / "kernels"
        (self.kernels / "python3").mkdir(parents=True)
        spec = {"argv": argv, "display_name": "Python 3", "language": "python"}
        (self.kernels / "python3" / "kernel.json").write_text(json.dumps(spec))
        (folder / "gitconfig").write_text(
            f'[url "file://{_repository(folder)}"]\n  insteadOf = {PUBLIC}\n'
        )
        self.env["GIT_CONFIG_GLOBAL"] = str(folder / "gitconfig")

    def notebook(self, nb, folder):
        """Execute a notebook here, in place."""
        specs = KernelSpecManager(kernel_dirs=[str(self.kernels)], ensure_native_kernel=False)
        manager = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=specs)
        client = NotebookClient(
            nb, km=manager, timeout=900, resources={"metadata": {"path": str(folder)}}
        )
        client.execute(env=self.env)


def _repository(folder):
    """A git repository of the working tree as it stands."""
    repository = working_tree(folder / "repository")
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@localhost"]
    for command in (
        ["init", "-q", "-b", "main"],
        ["add", "-A"],
        ["commit", "-q", "-m", "The working tree"],
    ):
        subprocess.run([*git, *command], cwd=repository, check=True)
    return repository


@pytest.fixture(scope="module")
def colab(tmp_path_factory):
    return Colab(tmp_path_factory.mktemp("colab"))


WHERE = "import importlib.util as u; s = u.find_spec({!r}); print(s and s.origin)"


def test_a_chapter_runs_alone(colab, tmp_path):
    shutil.copy2(WHOLE, tmp_path)
    before, torch = (
        colab.files(),
        colab.run("import torch; print(torch.__version__, torch.__file__)", tmp_path),
    )
    assert Path(torch.split()[1]).is_relative_to(colab.site)
    assert colab.run(WHERE.format("fractal_lib"), tmp_path) == "None"
    assert colab.run(WHERE.format("sphinx"), tmp_path) == "None"  # nothing else of ours is in there

    nb = nbformat.read(tmp_path / WHOLE.name, as_version=4)
    setup = next(cell for cell in nb.cells if cell.cell_type == "code")
    assert setup.source == address.setup_cell(address.current())
    setup.source = address.setup_cell(PUBLIC)
    colab.notebook(nb, tmp_path)

    assert Path(colab.run(WHERE.format("fractal_lib"), tmp_path)).is_relative_to(colab.site)
    assert colab.run("import torch; print(torch.__version__, torch.__file__)", tmp_path) == torch
    after = colab.files()
    # torch and all others: not a byte touched
    assert {path: after.get(path) for path in before} == before
    assert {path.parts[0].partition("-")[0] for path in after.keys() - before.keys()} == {
        "fractal_lib"
    }

    modules = (
        "import importlib, pkgutil, fractal_lib\n"
        "for m in pkgutil.walk_packages(fractal_lib.__path__, 'fractal_lib.'):\n"
        "    if not m.name.endswith('__main__'): importlib.import_module(m.name); print(m.name)"
    )
    assert "fractal_lib.curves.cantor" in colab.run(modules, tmp_path).split()


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_a_chapter_imports_only_what_colab_ships(colab, tmp_path, path):
    cells = nbformat.read(path, as_version=4).cells
    code = "\n".join(
        TransformerManager().transform_cell(c.source) for c in cells if c.cell_type == "code"
    )
    modules = {
        node.module for node in ast.walk(ast.parse(code)) if isinstance(node, ast.ImportFrom)
    }
    modules |= {
        a.name
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Import)
        for a in node.names
    }
    roots = sorted({name.split(".")[0] for name in modules} - {"fractal_lib"})
    program = (
        "import importlib.util as u\nprint([name for name in {!r} if u.find_spec(name) is None])"
    )
    assert roots
    assert colab.run(program.format(roots), tmp_path) == "[]"
    # it would be told
    assert colab.run(program.format([*roots, "nbclient"]), tmp_path) == "['nbclient']"


@pytest.mark.parametrize("url", [PUBLIC, f"https://github.com/{address.NOBODY}/a-book"])
@pytest.mark.parametrize(
    "wheel", [None, "fractal_lib-1-py3-none-any.whl", "../../fractal_lib-1.whl"]
)
@pytest.mark.parametrize("where", ["colab", "kaggle", "elsewhere"])
@pytest.mark.parametrize("missing", [True, False])
def test_the_setup_cell_installs_or_says_how(monkeypatch, tmp_path, url, wheel, where, missing):
    asked = []

    class Shell:
        run_line_magic = staticmethod(lambda *args, **kwargs: asked.append(args))

    (tmp_path / "book" / "start").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "book" / "start")
    if wheel:
        Path(wheel).touch()
    monkeypatch.delitem(sys.modules, "google.colab", raising=False)
    monkeypatch.delenv("KAGGLE_KERNEL_RUN_TYPE", raising=False)
    if where == "colab":
        monkeypatch.setitem(sys.modules, "google.colab", object())
    if where == "kaggle":
        monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: None if missing and name == "fractal_lib" else found(name),
    )
    source = address.setup_cell(url)
    package = f"fractal-lib[all] @ git+{url}"
    assert len(source.split("\n")) <= 14
    names = {"get_ipython": lambda: Shell}
    run = functools.partial(exec, TransformerManager().transform_cell(source), names)
    hosted = where != "elsewhere" and url == PUBLIC
    if missing and not (wheel or hosted):
        with pytest.raises(ImportError, match=r"^fractal_lib is missing: [^\n]+$") as told:
            run()
        assert (package if url == PUBLIC else "notebooks.zip") in str(told.value)
        assert asked == []
    else:
        run()
        assert asked == ([("pip", 'install -q --no-deps "{source}"')] if missing else [])
        assert not missing or names["source"] == (wheel or package)


def test_a_new_address_is_written_everywhere(tmp_path):
    working_tree(tmp_path)
    (page,) = (tmp_path / "book").rglob(WHOLE.name)
    # an older setup cell is replaced too, and what is no setup cell is left
    text = page.read_text().replace('find_spec(\\"fractal_lib\\")', "True")
    page.write_text(text)
    others = {p: p.read_bytes() for p in tmp_path.rglob("*.py")}
    url = "https://github.com/somebody/a-fork"
    address.rewrite(url, tmp_path)
    assert address.current(tmp_path) == url
    assert address.quoting(tmp_path, address.slug(address.current())) == []
    for path in (tmp_path / "book").rglob("*.ipynb"):
        before = nbformat.read(ROOT / path.relative_to(tmp_path), as_version=4).cells
        after = nbformat.read(path, as_version=4).cells
        k = next(k for k, cell in enumerate(after) if cell.cell_type == "code")
        assert after[k].source == address.setup_cell(url)
        assert notebooks.stored(nbformat.read(path, as_version=4)) == path.read_text()
        for old, new in zip(before[:k] + before[k + 1 :], after[:k] + after[k + 1 :], strict=True):
            assert new.source == old.source
    assert {p: p.read_bytes() for p in others} == others
    assert address.rewrite(url, tmp_path) == []
