"""Say where this project lives, for a fork: one command, every place.

    python tools/address.py https://github.com/OWNER/NAME

`_config.yml` holds the address (`repository.url`). This command changes it there and wherever it
is quoted: the setup cell of every notebook, the README's Colab links, CITATION.cff, pyproject.toml.
It needs nothing but Python.
"""

import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GITHUB = re.compile(r"https://github\.com/([\w.-]+/[\w.-]+?)(?:\.git)?/?")


def current(root: Path = ROOT) -> str:
    """The address that `_config.yml` holds."""
    return re.search(r"^repository:\n  url: (\S+)$", (root / "_config.yml").read_text(), re.M)[1]


def setup_cell(url: str) -> str:
    """The source of the first code cell of every chapter."""
    return (
        "# In Colab this cell installs fractal_lib; anywhere else it does nothing.\n"
        "import sys\n"
        'if "google.colab" in sys.modules:\n'
        f"    %pip install -q git+{url}"
    )


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
    """Put `url` in the place of the current address, and return the files that changed."""
    new, old = slug(url), slug(current(root))
    changed = quoting(root, old) if new != old else []
    for path in changed:
        path.write_bytes(_whole(old).sub(new.encode(), path.read_bytes()))
    return changed


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
