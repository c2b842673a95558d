"""How the book's notebooks are stored.

    python tools/notebooks.py store [FILE ...]     rewrite notebooks in their stored form
    python tools/notebooks.py tidy  [FILE ...]     the same without running them
    python tools/notebooks.py check [FILE ...]     say which are not, and why

A stored notebook is its sources and nothing that a run leaves behind, so that a change reads as a
change. The exception is a cell tagged `nbval-check-output`: its output is part of the text, it is
kept together with its count (without a count nbval would run the cell and compare nothing), and the
tests run it again and compare. `store` therefore executes the notebooks that have such a cell.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

BOOK = Path(__file__).resolve().parent.parent / "book"
CHECKED = "nbval-check-output"
CELL_METADATA = ("tags", "mystnb")
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    # what `jupyter nbconvert --to script` needs to write a .py file with the prose as comments
    "language_info": {
        "file_extension": ".py",
        "mimetype": "text/x-python",
        "name": "python",
        "nbconvert_exporter": "python",
        "pygments_lexer": "ipython3",
    },
}


def pages() -> list[Path]:
    """Every notebook of the book."""
    return [p for p in sorted(BOOK.rglob("*.ipynb")) if ".ipynb_checkpoints" not in p.parts]


def is_checked(cell) -> bool:
    """Whether the tests compare this cell's output."""
    return cell.cell_type == "code" and CHECKED in cell.metadata.get("tags", [])


def execute(nb, folder: Path) -> None:
    """Run every cell in place, in `folder`, as the tests and the book do."""
    NotebookClient(
        nb, timeout=180, coalesce_streams=True, resources={"metadata": {"path": str(folder)}}
    ).execute()


def stored(notebook) -> str:
    """The text under which a notebook is stored; twice stored is once stored."""
    nb: Any = nbformat.from_dict(notebook)
    nb.metadata = nbformat.from_dict(METADATA)
    nb.nbformat, nb.nbformat_minor = 4, 5
    for cell in nb.cells:
        cell.metadata = {k: cell.metadata[k] for k in CELL_METADATA if k in cell.metadata}
        cell.source = cell.source.strip("\n")
        cell.pop("attachments", None)
        if cell.cell_type == "code":
            keep = is_checked(cell)
            cell.execution_count = cell.execution_count if keep else None
            cell.outputs = [_text_only(out) for out in cell.outputs] if keep else []
    nbformat.validate(nb)
    return nbformat.writes(nb).rstrip("\n") + "\n"


def _text_only(output):
    # nbval never compares a picture, and a picture is what makes a notebook heavy
    if "data" in output:
        output.metadata = {}
        output.data = {k: v for k, v in output.data.items() if not k.startswith("image/")}
    return output


def noise(path: Path) -> list[str]:
    """What keeps the file from being in its stored form, one sentence each."""
    text = path.read_text(encoding="utf-8")
    nb = nbformat.reads(text, as_version=4)
    found = []
    for cell in nb.cells:
        if cell.cell_type != "code":
            continue
        if is_checked(cell):
            if cell.execution_count is None or not cell.outputs:
                found.append(f"cell {cell.id}: checked, but stored without count or output")
        elif cell.outputs or cell.execution_count is not None:
            found.append(f"cell {cell.id}: output or count of a cell that nothing compares")
    if text != stored(nb):
        found.append("not in stored form: run `make notebooks`")
    if len(text.encode()) > 300_000:
        found.append(f"{len(text.encode())} bytes: more than 300 kB")
    return found


def store(path: Path, run: bool = True) -> bool:
    """Rewrite one notebook in its stored form; whether that changed it.

    With `run` its checked outputs are made anew, else they are kept as they are.
    """
    text = path.read_text(encoding="utf-8")
    nb = nbformat.reads(text, as_version=4)
    if run and any(map(is_checked, nb.cells)):
        execute(nb, path.parent)
    path.write_text(new := stored(nb), encoding="utf-8")
    return new != text


def _main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("command", choices=["store", "tidy", "check"])
    parser.add_argument("files", nargs="*", type=Path, help="default: every notebook of the book")
    args = parser.parse_args()
    failed = 0
    for path in args.files or pages():
        if args.command != "check":
            print(path, "stored" if store(path, args.command == "store") else "unchanged")
        else:
            findings = noise(path)
            failed += bool(findings)
            print(path, *(findings or ["fine"]), sep="\n  ")
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(_main())
