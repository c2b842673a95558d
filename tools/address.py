"""Say where this project lives, for a fork: one command, every place.

    python tools/address.py https://github.com/OWNER/NAME

`_config.yml` holds the address (`repository.url`). This command changes it there and wherever it
is quoted: the README's Colab links, CITATION.cff, pyproject.toml. Every notebook's first code cell
is written anew. It needs nothing but Python.
"""

import json
import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = "fractal-lib[all] @ git+"
GITHUB = re.compile(r"https://github\.com/([\w.-]+/[\w.-]+?)(?:\.git)?/?")


def current(root: Path = ROOT) -> str:
    """The address that `_config.yml` holds."""
    return re.findall(r"^repository:\n  url: (\S+)$", (root / "_config.yml").read_text(), re.M)[0]


def setup_cell(url: str) -> str:
    """The source of the first code cell of every chapter."""
    return f"""\
# Colab and Kaggle: install fractal_lib, torch stays as it is; else say how.
import os
import sys
from importlib.util import find_spec
if find_spec("fractal_lib") is None:
    if not ("google.colab" in sys.modules or "KAGGLE_KERNEL_RUN_TYPE" in os.environ):
        raise ImportError('fractal_lib is missing: %pip install "{SOURCE}{url}", or run `make lab`')
    %pip install -q --no-deps "{SOURCE}{url}\""""


def slug(url: str) -> str:
    """`OWNER/NAME` of a GitHub address; Colab opens notebooks from nowhere else."""
    match = GITHUB.fullmatch(url)
    if match is None:
        raise ValueError(f"expected https://github.com/OWNER/NAME, got {url!r}")
    return match[1]


def quoting(root: Path, text: str) -> list[Path]:
    """The project's files that contain OWNER/NAME as a whole (nothing hidden, nothing built)."""
    whole, found = _whole(text), []
    for folder, folders, names in os.walk(root):
        folders[:] = [f for f in folders if f[0] not in "._" and not f.endswith(".egg-info")]
        paths = [Path(folder, name) for name in names if not name.startswith(".")]
        found += [p for p in paths if whole.search(p.read_bytes())]
    return sorted(found)


def rewrite(url: str, root: Path = ROOT) -> list[Path]:
    """Put `url` in the place of the current address, and return the files that changed.

    Every notebook gets the setup cell of that address, whatever it had before.
    """
    new, old = slug(url), slug(current(root))
    changed = set(quoting(root, old) if new != old else [])
    for path in changed:
        path.write_bytes(_whole(old).sub(new.encode(), path.read_bytes()))
    for path in sorted((root / "book").rglob("*.ipynb")):
        if ".ipynb_checkpoints" not in path.parts and _set_up(path, setup_cell(url)):
            changed.add(path)
    return sorted(changed)


def _set_up(path: Path, source: str) -> bool:
    """Write the first code cell, if it is hidden as a setup cell is; whether that changed it."""
    text = path.read_text(encoding="utf-8")
    notebook = json.loads(text)
    first = next((c for c in notebook["cells"] if c["cell_type"] == "code"), None)
    if first is None or "hide-input" not in first["metadata"].get("tags", []):
        return False
    first["source"] = source.splitlines(keepends=True)
    # as nbformat writes it
    new = json.dumps(notebook, ensure_ascii=False, indent=1, sort_keys=True) + "\n"
    if new != text:
        path.write_text(new, encoding="utf-8")
    return new != text


def _whole(text: str) -> re.Pattern[bytes]:
    # not inside a longer name: a/b is neither in xa/b nor in a/b-two
    return re.compile(rb"(?<![\w-])" + re.escape(text).encode() + rb"(?![\w-])")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    try:
        changed = rewrite(sys.argv[1])
    except ValueError as error:
        sys.exit(str(error))
    print("\n".join(str(path.relative_to(ROOT)) for path in changed) or "nothing to change")
