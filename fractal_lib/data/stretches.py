"""Whole stretches of a series held out: what a model says of them is its interpolation's test."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from fractal_lib.checks import as_int, as_positive
from fractal_lib.inference.series import as_array, as_flags

__all__ = ["holdout_stretches"]


def holdout_stretches(
    times: Any,
    counts: Mapping[float, int],
    seed: int,
    *,
    observed: Any = None,
    largest_step: float | None = None,
    margin: float = 0.0,
) -> dict[float, np.ndarray]:
    """Hold out random stretches of given lengths, as if the sensor had failed: where it did not.

    A stretch lies where the series is without a gap, from ``margin`` before it to ``margin`` after,
    with an observed row at either end that stays; two never overlap or touch. The longest are drawn
    first. Within these limits every observed row is as likely as another to be a stretch's first.

    Args:
        times: (n,), sorted, repeats allowed; of any unit.
        counts: length of a stretch, in that unit, to how many of them: ``{1: 80, 12: 16}``.
        seed: of numpy's generator.
        observed: (n,) bool, True where a row has a value; all, if left out.
        largest_step: between two observed rows; where it is more, there is a gap. Three times the
            median step, if left out.
        margin: time around a stretch that has no gap and no other stretch.

    Returns:
        for each length (n,) bool, the rows held out: observed rows alone. What is left to learn
        from is ``observed`` and none of them.

    Raises:
        TypeError: for what is not made of numbers, or a mask that is not bool.
        ValueError: for times that are not sorted and finite, a length or count that is not
            positive, or more stretches than there is room for.

    Complexity: O(n log n + n m) for m stretches.

    >>> hidden = holdout_stretches(np.arange(100.0), {10: 2, 3: 4}, seed=0)
    >>> {length: int(rows.sum()) for length, rows in hidden.items()}
    {10: 20, 3: 12}
    """
    times, seed = as_array(times, "times"), as_int(seed, "seed", least=0)
    if times.ndim != 1 or not np.isfinite(times).all() or (np.diff(times) < 0).any():
        raise ValueError(f"expected times as (n,), sorted and finite, got shape {times.shape}")
    there = np.ones(len(times), bool) if observed is None else as_flags(observed)
    if there.shape != times.shape:
        raise ValueError(f"expected observed as {times.shape} bool, got shape {there.shape}")
    margin = float(as_array(margin, "margin"))
    if not 0 <= margin < np.inf:
        raise ValueError(f"expected margin as a finite number of at least 0, got {margin}")
    sizes = {as_positive(length, "length"): length for length in counts}
    wanted = {size: as_int(counts[key], "count", least=1) for size, key in sizes.items()}
    rows = np.flatnonzero(there)
    t, generator = times[rows], np.random.default_rng(seed)
    step = _largest_step(t) if largest_step is None else as_positive(largest_step, "largest_step")
    run = np.cumsum(np.diff(t, prepend=t[:1]) > step)  # (M,), the same between two gaps
    free = np.ones(len(t), bool)
    hidden = {key: np.zeros(len(times), bool) for key in counts}
    for size in sorted(wanted, reverse=True):
        ends = np.searchsorted(t, t + size)  # a stretch from row i has the rows i to ends[i] - 1
        # and around it these, a row at the least, stay as they are
        first = np.minimum(np.searchsorted(t, t - margin), np.arange(len(t)) - 1)
        last = np.maximum(np.searchsorted(t, t + size + margin, "right") - 1, ends)
        inside = (first >= 0) & (last < len(t))
        first, last = np.clip(first, 0, None), np.clip(last, None, len(t) - 1)
        # rows of one time are held out together
        inside &= (run[first] == run[last]) & (np.diff(t, prepend=-np.inf) > 0)
        for drawn in range(wanted[size]):
            taken = np.concatenate([[0], np.cumsum(~free)])
            starts = np.flatnonzero(inside & (taken[last + 1] == taken[first]))
            if not len(starts):
                raise ValueError(
                    f"expected room for {wanted[size]} stretches of length {size:g}, got {drawn}"
                )
            i = generator.choice(starts)
            free[first[i] : last[i] + 1] = False
            hidden[sizes[size]][rows[i : ends[i]]] = True
    return hidden


def _largest_step(t: np.ndarray) -> float:
    """Three median steps; of fewer than two rows there is none."""
    return 3 * float(np.median(np.diff(t))) if len(t) > 1 else 0.0
