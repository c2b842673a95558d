"""Recorded runs: the one place that writes them, and the one that reads them."""

import json
import os
from fnmatch import fnmatch
from importlib.resources import files
from pathlib import Path

from fractal_lib.benchmark.machine import describe, load_average

__all__ = [
    "IDENTITY",
    "add_to",
    "check_same_settings",
    "check_writable",
    "identity",
    "load",
    "names",
    "record",
    "rows",
]

RESULTS = files("fractal_lib.benchmark") / "results"

IDENTITY = (
    *("task", "posterior", "attention", "method", "head", "mask", "rival", "name", "variant"),
    *("pass", "form", "n", "noise", "levels", "year", "horizon", "seed", "rank"),
)
"""What says which row of a record a row is; everything else in it was measured."""


def record(payload: dict, file: Path | None = None, machine: dict | None = None) -> dict:
    """A run's payload, and all that it must say of the machine; written to a file if one is given.

    Args:
        payload: what `fractal_lib.benchmark.Case.run` returns.
        file: where to; what stands there is replaced in one step, never left half written.
        machine: what `describe` said before the run, if not now.

    >>> sorted(record({"rows": []}))[:3]
    ['cores', 'date', 'device']
    """
    machine = describe("cpu", 1) if machine is None else machine
    versions = {"versions": machine["versions"] | payload.get("versions", {})}
    # this run's own threads are in the load afterwards
    run = machine | payload | versions | {"load_average_after": load_average()}
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name(f".{file.name}.part")
        try:
            part.write_text(json.dumps(run, indent=1) + "\n")
            os.replace(part, file)
        except BaseException as error:
            part.unlink(missing_ok=True)
            if not isinstance(error, OSError):
                raise
            raise OSError(f"cannot write to {file}: {error.strerror}") from error
    return run


def check_writable(file: Path) -> None:
    """Raise ValueError if a record could not be written there; to be asked before a long run."""
    try:
        if file.is_dir():
            raise IsADirectoryError(0, "it is a folder")
        file.parent.mkdir(parents=True, exist_ok=True)
        trial = file.with_name(f".{file.name}.part")
        trial.touch()
        trial.unlink()
    except OSError as error:
        raise ValueError(f"cannot write to {file}: {error.strerror}") from error


def rows(run: dict) -> list[dict]:
    """The rows or runs of a record; of the record of a single run, that run.

    >>> len(rows(load("hilbert-cpu"))), rows(load("latent-sde/lorenz-dense-0"))[0]["posterior"]
    (3, 'dense')
    """
    return run.get("rows", run.get("runs", [run]))


def identity(row: dict) -> dict:
    """The part of a row that says which one it is.

    >>> identity({"n": 100, "method": "window", "seconds": 1e-4})
    {'method': 'window', 'n': 100}
    """
    return {key: row[key] for key in IDENTITY if key in row}


WHICH = {"sizes", "only", "others", "names"}
"""Settings that say which rows are made, and not how."""


def check_same_settings(old: dict, settings: dict) -> None:
    """Raise ValueError if rows of a run with these settings do not belong with those of a record;
    to be asked before the run.

    >>> check_same_settings({"n": 10, "runs": []}, {"n": 20})
    Traceback (most recent call last):
    ...
    ValueError: the record to add to was made with n = 10, this run has n = 20
    """
    if "rows" not in old and "runs" not in old:
        raise ValueError("the record to add to has neither rows nor runs")
    known = old | old.get("settings", {})
    for name in settings.keys() & known.keys() - WHICH:
        was, now = (list(v) if isinstance(v, tuple) else v for v in (known[name], settings[name]))
        if was != now:
            raise ValueError(
                f"the record to add to was made with {name} = {was}, this run has {name} = {now}"
            )


def add_to(old: dict, payload: dict) -> dict:
    """The payload, with the rows of an older record that it did not make anew; each of those says
    when and where it was made.

    >>> old = {"date": "then", "device": "CPU", "rows": [{"n": 1, "s": 1}, {"n": 2, "s": 1}]}
    >>> add_to(old, {"rows": [{"n": 2, "s": 5}]})["rows"]
    [{'date': 'then', 'device': 'CPU', 'n': 1, 's': 1}, {'n': 2, 's': 5}]

    A row that says only why it was not made replaces none that was; fitted slopes are kept too.

    >>> add_to(old, {"rows": [{"n": 2, "note": "needs a package"}]})["rows"][1]["s"]
    1
    """
    made = {key: old[key] for key in ("date", "device")}
    merged = {json.dumps(identity(row)): made | row for row in rows(old)}
    for row in rows(payload):
        name, left_out = json.dumps(identity(row)), row.get("note") and row.get("seconds") is None
        if name not in merged or not left_out:
            merged[name] = row
    slopes = old.get("slopes", {}) | payload.get("slopes", {})
    found = {"rows" if "rows" in payload else "runs": list(merged.values())}
    return payload | found | ({"slopes": slopes} if slopes else {})


def names(pattern: str = "*") -> list[str]:
    """The recorded runs that come with the library, as `load` takes them.

    >>> names("heads-*")
    ['heads-cpu']
    """
    found = [f.name for f in RESULTS.iterdir() if f.name.endswith(".json")]
    for folder in (f for f in RESULTS.iterdir() if f.is_dir()):
        found += [f"{folder.name}/{f.name}" for f in folder.iterdir() if f.name.endswith(".json")]
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
