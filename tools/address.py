"""Say where this project lives, for a fork: one command, every place.

    python tools/address.py https://github.com/OWNER/NAME

`_config.yml` holds the address (`repository.url`). This command changes it there and wherever it
is quoted: CITATION.cff, pyproject.toml. Every notebook's first code cell and the README's list of
chapters, which follows `_toc.yml`, are written anew. It needs nothing but Python.
"""

import json
import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = "fractal-lib[all] @ git+"
COLAB = "https://colab.research.google.com/github"
NOBODY = "your_account"  # whose address stands in for one that is not known yet
UNSET = """\
They open in Colab once there is a public address: `python tools/address.py https://github.com/OWNER/NAME`."""
WHEEL = "keep fractal_lib-*.whl, which is in the notebooks.zip of the book, beside this notebook"
LIST = "<!-- chapters, by tools/address.py -->", "<!-- end -->"
GITHUB = re.compile(r"https://github\.com/([\w.-]+/[\w.-]+?)(?:\.git)?/?")


def current(root: Path = ROOT) -> str:
    """The address that `_config.yml` holds."""
    return re.findall(r"^repository:\n  url: (\S+)$", (root / "_config.yml").read_text(), re.M)[0]


def is_public(url: str) -> bool:
    """Whether the address is one that somebody set, and not the one that stands in for it."""
    return not slug(url).startswith(f"{NOBODY}/")


def setup_cell(url: str) -> str:
    """The source of the first code cell of every chapter.

    It installs the wheel that lies beside the notebook or the book, or in Colab and Kaggle from the
    public address, if there is one; else it says in a sentence how to get the library.
    """
    public = is_public(url)
    how = f'%pip install "{SOURCE}{url}"' if public else WHEEL
    lines = [
        "# Where fractal_lib is missing: install it, torch stays as it is; or say how.",
        *["import os", "import sys"] * public,
        "from glob import glob",
        "from importlib.util import find_spec",
        'if find_spec("fractal_lib") is None:',
        '    found = glob("fractal_lib-*.whl") or glob("../../fractal_lib-*.whl")',
        '    source = found[0] if found else ""',
    ]
    if public:
        lines += [
            '    if "google.colab" in sys.modules or "KAGGLE_KERNEL_RUN_TYPE" in os.environ:',
            f'        source = source or "{SOURCE}{url}"',
        ]
    lines += [
        "    if not source:",
        f"        raise ImportError('fractal_lib is missing: {how}, or run `make lab`')",
        '    %pip install -q --no-deps "{source}"',
    ]
    return "\n".join(lines)


def chapters(url: str, root: Path = ROOT) -> str:
    """The README's list: for each part of `_toc.yml`, its notebooks as they open in Colab.

    Without a public address there is nothing that Colab could open: the notebooks themselves.
    """
    public = is_public(url)
    place = f"{COLAB}/{slug(url)}/blob/main/" if public else ""
    lines = [] if public else [f"{UNSET}\n"]
    for line in (root / "_toc.yml").read_text().split("\n"):
        if part := re.fullmatch(r"\s*- caption: (.+)", line):
            lines.append(f"- {part[1]}:")
        elif (page := re.fullmatch(r"\s*- file: (.+)", line)) and (
            root / f"{page[1]}.ipynb"
        ).exists():
            name = page[1].rpartition("/")[2].replace("_", " ")
            lines.append(f"  [{name}]({place}{page[1]}.ipynb) ·")
    after = [*lines[1:], "-"]  # a part without notebooks is not listed
    lines = [a for a, b in zip(lines, after, strict=True) if not a[0] == b[0] == "-"]
    text = re.sub(r" ·(?=\n-|$)", "", "\n".join(lines))
    return f"{LIST[0]}\n{text}\n{LIST[1]}"


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
    readme = root / "README.md"
    before = readme.read_text(encoding="utf-8") if readme.exists() else ""
    if LIST[0] in before:
        start, end = before.index(LIST[0]), before.index(LIST[1]) + len(LIST[1])
        after = before[:start] + chapters(url, root) + before[end:]
        if after != before:
            readme.write_text(after, encoding="utf-8")
            changed.add(readme)
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
