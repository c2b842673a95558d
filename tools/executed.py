"""The book's notebooks, each executed once: for the book, and for nbval's checks of it.

    python tools/executed.py [FILE ...]         execute what the cache does not hold, two at a time
    PYTHONPATH=tools pytest -p executed book    nbval's checks of what was executed

The cache is Jupyter Book's own, so the book is made of the same outputs. The second command is
nbval in its lax mode, its rules and its reports, with a kernel that replays what the first one ran.
`pytest --nbval-lax book` needs neither: it runs everything itself.
"""

import argparse
import asyncio
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError
from nbval.plugin import IPyNbFile
from notebooks import BOOK, pages

CACHE = BOOK.parent / "_build" / ".jupyter_cache"
WORKERS = 2


def execute(path: Path):
    """Run one notebook: it, the seconds it took, and what went wrong, if anything did."""
    threads = max(1, (os.cpu_count() or 1) // WORKERS)
    kernel = {"env": os.environ | {"OMP_NUM_THREADS": str(threads)}, "stderr": subprocess.DEVNULL}
    settings = {
        "timeout": 600,
        "record_timing": False,  # the cache would not know the notebook again
        "resources": {"metadata": {"path": str(path.parent)}},
    }
    begun, trouble = time.monotonic(), None
    for _ in range(2):
        nb, cells = nbformat.read(path, as_version=4), []
        count = lambda cell, cell_index, cells=cells: cells.append(cell_index)  # noqa: E731
        try:
            client = NotebookClient(nb, on_cell_execute=count, **settings)
            asyncio.run(client.async_execute(**kernel))
            return nb, time.monotonic() - begun, None
        except (CellExecutionError, CellTimeoutError) as error:
            trouble = f"{path}::Cell {len(cells) - 1}\n{error}"  # of code, from 0, as nbval counts
            break
        except RuntimeError as error:  # no kernel: two that start at once may choose one port
            trouble = f"{path}, twice: {error}"
    return nb, time.monotonic() - begun, trouble


def fill(paths: list[Path], folder: Path = CACHE) -> list[str]:
    """Execute what is missing in the cache; a report for each notebook that failed."""
    cache, missing, failed = get_cache(folder), [], []
    for path in paths:
        try:
            cache.match_cache_notebook(nbformat.read(path, as_version=4))
        except KeyError:
            missing.append(path)
    missing.sort(key=lambda path: -path.stat().st_size)  # long ones first: the workers end together
    try:
        done = ThreadPoolExecutor(WORKERS).map(execute, missing)
        for path, (nb, seconds, trouble) in zip(missing, done, strict=True):
            print(f"{path}: {seconds:.0f} s{', failed' if trouble else ''}", flush=True)
            if trouble:
                failed.append(trouble)
                continue
            bundle = CacheBundleIn(nb, str(path.resolve()), data={"execution_seconds": seconds})
            cache.cache_notebook_bundle(bundle, check_validity=False, overwrite=True)
    except KeyboardInterrupt:
        os._exit(130)  # the kernels end with this process
    return failed


class _Replay:
    """What nbval takes for a running kernel: it answers with what each cell put out."""

    def __init__(self, cells):
        self.cells, self.messages = iter(cells), iter(())

    def execute_cell_input(self, source, allow_stdin):
        cell = next(cell for cell in self.cells if cell.source == source)
        said = [(output.output_type, output) for output in cell.outputs]
        said.append(("status", {"execution_state": "idle"}))
        head = {"parent_header": {"msg_id": source}}
        self.messages = iter([head | {"msg_type": kind, "content": c} for kind, c in said])
        return source

    def get_message(self, stream, timeout):
        return next(self.messages)

    def await_reply(self, msg_id, timeout): ...

    await_idle = await_reply

    def is_alive(self):
        return True

    def stop(self): ...


class _Executed(IPyNbFile):
    """A notebook as nbval collects it, but executed already."""

    def collect(self):
        self.compare_outputs = False  # of marked cells only
        nb = nbformat.read(self.path, as_version=4)
        try:
            _, self.done = get_cache(self.config.option.executed).merge_match_into_notebook(nb)
        except KeyError:
            raise self.CollectError(f"{self.path} was not executed: run `make book`") from None
        return super().collect()

    def setup(self):
        self.kernel = _Replay(self.done.cells)


def pytest_addoption(parser):
    """Where the executed notebooks are."""
    parser.addoption("--executed", default=CACHE, help="folder of the cache of notebooks")


def pytest_collect_file(file_path, parent):
    """Take notebooks, as nbval does under --nbval and --nbval-lax."""
    return _Executed.from_parent(parent, path=file_path) if file_path.suffix == ".ipynb" else None


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path, help="default: every notebook of the book")
    sys.exit("\n\n".join(fill(parser.parse_args().files or pages())) or 0)
