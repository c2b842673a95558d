"""notebooks.zip has every notebook, its pictures and a wheel that installs."""

import subprocess
import sys
import zipfile
from pathlib import Path

import bundle
import pytest

ROOT = Path(__file__).resolve().parent.parent
TOP = "fractal-attention/"


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    target = tmp_path_factory.mktemp("bundle") / "notebooks.zip"
    bundle.bundle(target)
    with zipfile.ZipFile(target) as opened:
        yield opened


def test_it_has_every_notebook_as_it_is_and_a_readme_of_three_lines(archive):
    books = {p for p in (ROOT / "book").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts}
    assert {n for n in archive.namelist() if n.endswith(".ipynb")} == {
        TOP + p.relative_to(ROOT).as_posix() for p in books
    }
    for path in books:
        assert archive.read(TOP + path.relative_to(ROOT).as_posix()) == path.read_bytes()
    assert archive.read(f"{TOP}README.txt").decode().count("\n") == 3
    for picture in ("ladder.svg", "overview.svg"):
        assert f"{TOP}book/images/{picture}" in archive.namelist()


def test_its_wheel_lies_where_a_notebook_looks_and_has_the_library_with_its_records(
    archive, tmp_path
):
    archive.extractall(tmp_path)
    (wheel,) = (tmp_path / TOP / "book/start").glob("../../fractal_lib-*.whl")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--target", tmp_path / "site", wheel], check=True)
    program = (
        "import fractal_lib; from fractal_lib.benchmark.record import load;"
        "load('needle'); print(fractal_lib.__file__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": str(tmp_path / "site"), "PATH": ""},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith(str(tmp_path / "site"))


def test_nothing_is_left_in_the_working_tree(archive):
    assert not (ROOT / "build").exists()
