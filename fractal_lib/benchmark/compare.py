"""Two records side by side: what moved by more than its spread."""

import json
import math
from pathlib import Path

from fractal_lib.benchmark.record import identity, rows

__all__ = ["compare", "read_record"]

DERIVED = {"speedup", "blocks", "steps", "curve", "loss"}  # they follow from others, or do not move
SPREADS = {"iqr", "quartiles", "standard_error"}
RANGE_OF = {"seconds", "encode", "decode"}  # what an `iqr` or `quartiles` beside it belongs to


def read_record(file: str) -> dict:
    """A record from a file.

    Raises:
        ValueError: if it cannot be read, or is no record.
    """
    try:
        run = json.loads(Path(file).read_text())
    except OSError as error:
        raise ValueError(f"cannot read {file}: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    if not isinstance(run, dict) or "versions" not in run:
        raise ValueError(f"{file} is not a record of this benchmark: it names no versions")
    return run


def compare(old: dict, new: dict) -> list[str]:
    """What differs between two records, a line each.

    Rows are paired by `identity`, all that was not measured. A number has moved if it changed by
    more than the larger of the two spreads: interquartile ranges of times, standard errors of
    losses and of means over seeds. A number whose spread no record has is named apart if it changed
    at all: nothing is claimed of it.

    >>> a = {"rows": [{"n": 1, "seconds": 1.0, "iqr": 0.1, "error": 0.5}]}
    >>> b = {"rows": [{"n": 1, "seconds": 1.5, "iqr": 0.2, "error": 0.6}]}
    >>> print("\\n".join(compare(a, b)))
    1 row in both records
    moved by more than the spread (1 of 1):
      n = 1: seconds 1 -> 1.5 (+50.0 %, spread 0.2)
    changed, and no spread is recorded to judge by (1 of 1):
      n = 1: error 0.5 -> 0.6 (+20.0 %)
    """
    before, after = (_by_identity(run) for run in (old, new))
    both = [key for key in before if key in after]
    lines = [f"{len(both)} row{'s' * (len(both) != 1)} in both records"]
    for which, here, there in (("old", before, after), ("new", after, before)):
        lines += [f"only in the {which} record: {key}" for key in here if key not in there]
    moved, unjudged, judged, without = [], [], 0, 0
    for key in both:
        a, b = _measured(before[key]), _measured(after[key])
        for name in [name for name in a if name in b]:
            (x, x_spread), (y, y_spread) = a[name], b[name]
            spreads = [s for s in (x_spread, y_spread) if s is not None]
            line = f"  {key}: {name} {_show(x)} -> {_show(y)}"
            line += f" ({100 * (y - x) / abs(x):+.1f} %" if x else " ("
            judged, without = judged + bool(spreads), without + (not spreads)
            if spreads and abs(y - x) > max(spreads):
                moved.append(f"{line}, spread {_show(max(spreads))})")
            if not spreads and x != y:
                unjudged.append(f"{line})".replace(" ()", ""))
    lines.append(_heading("moved by more than the spread", moved, judged))
    lines += moved
    if without:
        title = "changed, and no spread is recorded to judge by"
        lines += [_heading(title, unjudged, without), *unjudged]
    return lines


def _heading(title: str, lines: list[str], of: int) -> str:
    return f"{title} ({len(lines)} of {of}){':' * bool(lines)}"


def _by_identity(run: dict) -> dict[str, dict]:
    named = {}
    for row in rows(run):
        name = ", ".join(f"{k} = {v}" for k, v in identity(row).items()) or "the run"
        if name in named:
            raise ValueError(f"two rows of one record are {name}: they cannot be distinguished")
        named[name] = row
    return named


def _measured(row: dict, prefix: str = "") -> dict[str, tuple[float, float | None]]:
    """Every measured number of a row, and its spread where the row has one."""
    found: dict[str, tuple[float, float | None]] = {}
    known = identity(row) if not prefix else {}
    for key, value in row.items():
        if key in known or key in DERIVED | SPREADS or key.endswith("_iqr"):
            continue
        if key in ("versions", "settings", "plan", "load_average", "load_average_after"):
            continue
        if isinstance(value, dict):
            found |= _measured(value, f"{prefix}{key}.")
        elif isinstance(value, list):
            found |= _of_list(f"{prefix}{key}", value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[prefix + key] = float(value), _spread(row, key)
    return found


def _spread(row: dict, key: str) -> float | None:
    if f"{key}_iqr" in row:
        return row[f"{key}_iqr"]
    if key in RANGE_OF and row.get("iqr") is not None:
        return row["iqr"]
    if key in RANGE_OF and row.get("quartiles"):
        return row["quartiles"][1] - row["quartiles"][0]
    return row.get("standard_error") if key == "negative_elbo" else None


def _of_list(name: str, values: list) -> dict[str, tuple[float, float | None]]:
    """A list with a number for each seed: their mean, and its standard error."""
    if len(values) < 2 or not all(isinstance(v, int | float) for v in values):
        return {}
    mean = math.fsum(values) / len(values)
    variance = math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1)
    return {f"mean {name}": (mean, math.sqrt(variance / len(values)))}


def _show(number: float) -> str:
    return f"{number:.4g}"
