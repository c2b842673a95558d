"""Recorded runs: the one place that writes them, and the one that reads them."""

import json
from fnmatch import fnmatch
from importlib.resources import files
from pathlib import Path

from fractal_lib.benchmark.machine import describe, load_average

__all__ = ["load", "names", "record"]

RESULTS = files("fractal_lib.benchmark") / "results"


def record(payload: dict, file: Path | None = None, device: str = "cpu", threads: int = 1) -> dict:
    """A run's payload, and all that it must say of the machine; written to a file if one is given.

    >>> sorted(record({"rows": []}))[:3]
    ['cores', 'date', 'device']
    """
    run = describe(device, threads) | payload | {"load_average_after": load_average()}
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(run, indent=1) + "\n")
    return run


def names(pattern: str = "*") -> list[str]:
    """The recorded runs that come with the library, as `load` takes them.

    >>> names("heads-*")
    ['heads-cpu']
    """
    found = [f.name for f in RESULTS.iterdir() if f.name.endswith(".json")]
    for folder in (f for f in RESULTS.iterdir() if f.is_dir()):
        found += [f"{folder.name}/{f.name}" for f in folder.iterdir()]
    return sorted(n for n in (f.removesuffix(".json") for f in found) if fnmatch(n, pattern))


def load(name: str) -> dict:
    """A recorded run by its name: what `record` wrote.

    >>> load("heads-cpu")["settings"]["batch"]
    32
    """
    file = RESULTS / f"{name}.json"
    if not file.is_file():
        raise ValueError(f"there is no recorded run {name!r}; there are {', '.join(names())}")
    return json.loads(file.read_text())
