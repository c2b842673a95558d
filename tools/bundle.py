"""notebooks.zip: all notebooks of the book with the library, for who has nothing but the pages.

    python tools/bundle.py [FILE]      default: _build/html/notebooks.zip, beside the pages

It holds the notebooks and their pictures as they lie in `book/`, the wheel of `fractal_lib`, from
which a notebook's first cell installs, and a README of three lines.
"""

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = """\
The notebooks of the book "Fractal attention", and the library that they use.
Install Jupyter, PyTorch and what fractal_lib[all] names; open book/start/before_you_begin.ipynb.
The first cell of each notebook installs fractal_lib from the wheel that lies beside this file.
"""
PACKAGE = ["fractal_lib", "pyproject.toml", "README.md", "LICENSE"]


def wheel(folder: Path, root: Path = ROOT) -> Path:
    """Build the library's wheel into a folder, without a network and without a trace in `root`."""
    source = folder / "source"
    source.mkdir()
    for name in PACKAGE:
        copy = shutil.copytree if (root / name).is_dir() else shutil.copy2
        copy(root / name, source / name)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "--wheel-dir", str(folder), str(source)], check=True)
    return next(folder.glob("*.whl"))


def bundle(target: Path, root: Path = ROOT) -> list[str]:
    """Write the zip, and return the names in it."""
    files = sorted((root / "book").rglob("*.ipynb")) + sorted((root / "book").rglob("*.svg"))
    contents = {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in files
        if ".ipynb_checkpoints" not in path.parts
    }
    with tempfile.TemporaryDirectory() as folder:
        built = wheel(Path(folder), root)
        contents |= {"README.txt": README.encode(), built.name: built.read_bytes()}
    target.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in sorted(contents.items()):
            archive.writestr(f"fractal-attention/{name}", data)
        return archive.namelist()


if __name__ == "__main__":
    place = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "_build" / "html" / "notebooks.zip"
    names = bundle(place)
    print(f"{place}: {len(names)} files, {place.stat().st_size / 1e6:.1f} MB")
