"""What the rivals of the posterior share: the straight line's errors, and how a run is judged."""

import warnings
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from typing import Any

import numpy as np

from fractal_lib.benchmark.timer import Clock
from fractal_lib.checks import optional
from fractal_lib.inference.metrics import scores

__all__ = [
    "OUTSIDE",
    "SHORT",
    "distances",
    "hole_lengths",
    "judge",
    "left_out_mse",
    "missing",
    "outside_versions",
    "print_run",
    "structural_model",
]

OUTSIDE = {"celerite2": "celerite2"}
"""Rivals that no other extra brings: by name, the module; `pip install fractal-lib[rivals]`."""

SHORT = 16  # rows in a hole at most that is called short: of the long series twice the mean

Predicted = tuple[np.ndarray, np.ndarray, dict]


def structural_model(values: np.ndarray, level: str, **components: Any) -> Any:
    """Of statsmodels, whose own annotations know neither names of levels nor what a fit returns.

    Raises:
        ImportError: if it is not installed.
    """
    name = "statsmodels.tsa.statespace.structural"
    return optional(name, "this rival").UnobservedComponents(values, level, **components)


def missing(rival: str) -> str:
    """Why a rival of `OUTSIDE` cannot run here, in one sentence; "" if it can, or is none of them.

    >>> missing("linear interpolation")
    ''
    """
    try:
        if rival in OUTSIDE:
            optional(OUTSIDE[rival], "this rival")
    except ImportError as error:
        return str(error)
    return ""


def outside_versions(rivals: Iterable[str]) -> dict[str, str]:
    """Versions of the packages that those of `OUTSIDE` among these rivals are.

    >>> outside_versions(["linear interpolation"])
    {}
    """
    return {name: version(name) for name in rivals if name in OUTSIDE and not missing(name)}


def distances(known: np.ndarray, n: int) -> np.ndarray:
    """(n,) rows to the nearest of the rows ``known`` (M,), sorted.

    >>> distances(np.array([1, 4]), 6).tolist()
    [1, 0, 1, 1, 0, 1]
    """
    every = np.arange(n)
    after = np.searchsorted(known, every)
    around = [known[np.clip(after - 1, 0, None)], known[np.clip(after, None, len(known) - 1)]]
    return np.abs(np.stack(around) - every).min(0)


def hole_lengths(observed: np.ndarray) -> np.ndarray:
    """(n,) rows in the hole that a row is in; 0 where it is observed.

    >>> hole_lengths(np.array([True, False, False, True])).tolist()
    [0, 2, 2, 0]
    """
    starts = np.flatnonzero(np.diff(observed, prepend=~observed[0]))
    lengths = np.diff(starts, append=len(observed))
    return np.where(observed, 0, np.repeat(lengths, lengths))


def left_out_mse(values: np.ndarray, known: np.ndarray, distance: int) -> np.ndarray:
    """Mean square error of a straight line at the known rows when those nearer than ``distance``
    rows are not used: what the line errs by, as far from what it knows.

    Args:
        values: (n, C), read at the known rows alone.
        known: (M,) int, sorted.
        distance: in rows, at least 1.

    Returns:
        (C,).

    >>> left_out_mse(np.arange(9.0)[:, None] ** 2, np.arange(9), 1)  # off by 1 in the middle of 2
    array([1.])
    """
    left = np.searchsorted(known, known - distance, "right") - 1
    right = np.searchsorted(known, known + distance)
    inside = (left >= 0) & (right < len(known))
    here, a, b = known[inside], known[left[inside]], known[right[inside]]
    line = values[a] + (values[b] - values[a]) * ((here - a) / (b - a))[:, None]
    return ((values[here] - line) ** 2).mean(0)


def judge(
    predict: Callable[[], Predicted], truth: np.ndarray, parts: Mapping[str, np.ndarray]
) -> dict:
    """Run a rival, and score it.

    Args:
        predict: returns mean and standard deviation, of the shape of ``truth``, and what more there
            is to record.
        truth: what it is judged by.
        parts: by name, (n,) bool; each with a row is scored for itself.

    Returns:
        ``wall_s``, ``cpu_s``, ``report`` with the `scores` of every part, ``warnings`` that were
        raised, and the rest of what ``predict`` says.
    """
    with warnings.catch_warnings(record=True) as caught, Clock() as clock:
        warnings.simplefilter("always")
        mean, std, more = predict()
    report = {
        name: scores(mean[part], std[part], truth[part])
        for name, part in parts.items()
        if part.any()
    }
    raised = sorted({f"{one.category.__name__}: {one.message}" for one in caught})
    return clock.taken() | {"report": report, "warnings": raised} | more


def print_run(title: str, run: dict) -> None:
    """A run, a line for each part that was scored; or why there is none."""
    if "note" in run:
        print(f"{title}: left out: {run['note']}", flush=True)
        return
    print(f"{title}: {run['cpu_s']} CPU seconds; {'; '.join(run['warnings']) or 'no warnings'}")
    for part, result in run["report"].items():
        words = "  ".join(f"{key} {value:.4g}" for key, value in result.items())
        print(f"    {part:12} {words}", flush=True)
