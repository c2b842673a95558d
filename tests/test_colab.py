"""A chapter opened in Colab: alone, in an empty folder, with only what Colab ships.

Such an environment is made from the running one, without network: a virtual environment that holds
Colab's packages, what these need, and nothing else. The setup cell runs as it stands; git is told
to find the project's address in a repository made from this working tree, and pip to fetch nothing,
so a dependency that Colab lacks, or a pin that would replace one it has, fails here.
"""

import ast
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import address
import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpecManager
from nbclient import NotebookClient
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
CHAPTERS = sorted(
    p for p in (ROOT / "book").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts
)
# run from top to bottom; of the others, the imports
WHOLE = ROOT / "book" / "curves" / "cantor.ipynb"
SHIPPED = [
    "torch",
    "numpy",
    "matplotlib",
    "ipywidgets",
    "scipy",
    "pandas",
    "statsmodels",
    "scikit-learn",
]
TOOLS = ["ipykernel", "pip", "setuptools", "wheel"]


def closure(names):
    """The installed distributions of these names and all that they require here."""
    found, queue = {}, list(names)
    while queue:
        name = queue.pop().lower().replace("_", "-")
        if name in found:
            continue
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:
            continue  # an optional companion, as the CUDA packages are
        needs = [Requirement(text) for text in found[name].requires or []]
        queue += [
            need.name
            for need in needs
            if need.marker is None or need.marker.evaluate({"extra": ""})
        ]
    return found


class Colab:
    """The environment: its folder, its Python, and its environment variables."""

    def __init__(self, folder):
        venv.create(folder / "env", with_pip=False, symlinks=True)
        self.python = folder / "env" / "bin" / "python"
        self.site = Path(sysconfig.get_path("purelib", vars={"base": str(folder / "env")}))
        self.kernels = folder / "kernels"
        for package in closure(SHIPPED + TOOLS).values():
            self._link(package)
        # What makes Colab Colab: the kernel has google.colab imported before the first cell.
        (self.site / "google" / "colab").mkdir(parents=True)
        (self.site / "google" / "colab" / "__init__.py").touch()
        (self.site / "google_colab.pth").write_text("import google.colab\n")
        self._kernel()
        url = address.current()
        (folder / "gitconfig").write_text(
            f'[url "file://{_repository(folder)}"]\n  insteadOf = {url}\n'
        )
        (folder / "home").mkdir()
        self.env = {
            "PATH": f"{self.python.parent}:{os.environ['PATH']}",
            "HOME": str(folder / "home"),
            "GIT_CONFIG_GLOBAL": str(folder / "gitconfig"),
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_NO_INDEX": "1",
            "PIP_NO_BUILD_ISOLATION": "0",  # pip reads 0 as "no isolation": setuptools from here
            "PIP_NO_CACHE_DIR": "1",
        }

    def _link(self, package):
        for file in package.files or []:
            if ".." in file.parts or file.suffix == ".pyc":
                continue
            source, target = Path(package.locate_file(file)), self.site / file
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.exists() and not target.exists():
                try:
                    # no second copy of torch, and nothing here can delete the first
                    os.link(source, target)
                except OSError:
                    shutil.copy2(source, target)

    def _kernel(self):
        argv = [str(self.python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        (self.kernels / "python3").mkdir(parents=True)
        spec = {"argv": argv, "display_name": "Python 3", "language": "python"}
        (self.kernels / "python3" / "kernel.json").write_text(json.dumps(spec))

    def run(self, code, folder):
        """What a Python program prints here."""
        command = [self.python, "-c", code]
        done = subprocess.run(
            command, cwd=folder, env=self.env, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def notebook(self, nb, folder):
        """Execute a notebook here, in place."""
        specs = KernelSpecManager(kernel_dirs=[str(self.kernels)], ensure_native_kernel=False)
        manager = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=specs)
        client = NotebookClient(
            nb, km=manager, timeout=300, resources={"metadata": {"path": str(folder)}}
        )
        client.execute(env=self.env)

    def files(self):
        """Every installed file's size and time of change."""
        files = [p for p in self.site.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
        return {p.relative_to(self.site): (p.stat().st_size, p.stat().st_mtime_ns) for p in files}


def _repository(folder):
    """A git repository of the working tree as it stands, committed or not."""
    listed = subprocess.run(
        ["git", "ls-files", "-coz", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    ).stdout
    repository = folder / "repository"
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (repository / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, repository / name)
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
    assert next(cell for cell in nb.cells if cell.cell_type == "code").source == address.setup_cell(
        address.current()
    )
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


@pytest.mark.parametrize("in_colab", [True, False])
def test_elsewhere_the_setup_cell_does_nothing(monkeypatch, in_colab):
    asked = []

    class Shell:
        run_line_magic = staticmethod(lambda *args, **kwargs: asked.append(args))

    monkeypatch.delitem(sys.modules, "google.colab", raising=False)
    if in_colab:
        monkeypatch.setitem(sys.modules, "google.colab", object())
    cell = TransformerManager().transform_cell(address.setup_cell(address.current()))
    exec(cell, {"get_ipython": lambda: Shell})
    assert asked == ([("pip", f"install -q git+{address.current()}")] if in_colab else [])
