"""Stretches are hidden where the series is whole, as many as asked, apart from one another."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fractal_lib.data import co2, holdout_stretches

T = np.arange(100.0)


def runs(mask):
    """Starts and ends (the row behind the last) of the runs of a mask."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(int)))
    return edges.reshape(-1, 2)


@given(st.integers(0, 10**6), st.integers(0, 3))
def test_they_lie_in_observed_parts_apart(seed, margin):
    generator = np.random.default_rng(seed)
    times = np.cumsum(
        generator.choice([1.0, 1.0, 1.0, 0.5, 20.0], 400, p=[0.3, 0.3, 0.3, 0.09, 0.01])
    )
    observed = generator.random(400) < 0.98
    hidden = holdout_stretches(
        times, {8: 2, 3: 4}, seed, observed=observed, largest_step=4, margin=margin
    )
    assert not (hidden[8] & hidden[3]).any()
    every = hidden[8] | hidden[3]
    assert not (every & ~observed).any()
    rows = np.flatnonzero(observed)
    t, kept = times[rows], ~every[rows]
    for length, count in ((8, 2), (3, 4)):
        found = runs(hidden[length][rows])
        assert len(found) == count
        for start, end in found:
            inside = (t >= t[start]) & (t < t[start] + length)
            assert (hidden[length][rows][inside]).all()  # whole
            around = (t >= t[start] - margin) & (t <= t[start] + length + margin)
            assert kept[around & ~inside].all() and kept[start - 1] and kept[end]
            gaps = np.diff(t[start - 1 : end + 1])
            assert gaps.max() <= 4


def test_the_seed_decides_alone():
    first, again, other = (holdout_stretches(T, {5: 3}, seed)[5] for seed in (1, 1, 2))
    assert (first == again).all() and (first != other).any() and first.sum() == 15


def test_every_place_is_as_likely():
    starts = [int(np.flatnonzero(holdout_stretches(T[:12], {4: 1}, s)[4])[0]) for s in range(700)]
    counts = np.bincount(starts, minlength=12)
    assert counts[0] == 0 and counts[8:].sum() == 0  # a row stays at either end
    assert (counts[1:8] > 65).all()  # of 100 each in the mean


def test_a_full_series_is_filled_and_no_more_asked():
    hidden = holdout_stretches(np.arange(5.0), {3: 1}, 0)[3]
    assert hidden.tolist() == [False, True, True, True, False]
    with pytest.raises(ValueError, match="expected room for 2 stretches of length 3, got 1"):
        holdout_stretches(np.arange(5.0), {3: 2}, 0)


def test_readings_of_one_time_are_hidden_together():
    times = np.repeat(np.arange(20.0), 2)
    for seed in range(10):
        hidden = holdout_stretches(times, {3: 2}, seed, largest_step=1)[3].reshape(-1, 2)
        assert (hidden[:, 0] == hidden[:, 1]).all() and hidden.sum() == 12


def test_years_of_carbon_dioxide():
    series = co2()
    years = series.t * (len(series.t) - 1) / (365.25 / 7)
    hidden = holdout_stretches(years, {1.0: 4}, 0, observed=series.observed, largest_step=0.1)
    assert 4 * 48 <= hidden[1.0].sum() <= 4 * 53 and not (hidden[1.0] & ~series.observed).any()


@pytest.mark.parametrize("kind", [list, torch.from_numpy, pd.Series])
def test_arrays_of_any_kind(kind):
    got = holdout_stretches(kind(T), {5: 3}, np.int64(1), observed=kind(T >= 0))
    assert (got[5] == holdout_stretches(T, {5: 3}, 1)[5]).all()


REFUSED = {
    "unsorted": lambda: holdout_stretches(T[::-1].copy(), {5: 1}, 0),
    "NaN": lambda: holdout_stretches(np.where(T == 3, np.nan, T), {5: 1}, 0),
    "a matrix": lambda: holdout_stretches(T[None], {5: 1}, 0),
    "a mask of another length": lambda: holdout_stretches(T, {5: 1}, 0, observed=T[1:] > 0),
    "a mask of numbers": lambda: holdout_stretches(T, {5: 1}, 0, observed=T),
    "no length": lambda: holdout_stretches(T, {0: 1}, 0),
    "half a stretch": lambda: holdout_stretches(T, {5: 0.5}, 0),
    "none of a length": lambda: holdout_stretches(T, {5: 0}, 0),
    "a negative margin": lambda: holdout_stretches(T, {5: 1}, 0, margin=-1),
    "no step": lambda: holdout_stretches(T, {5: 1}, 0, largest_step=0),
    "an empty series": lambda: holdout_stretches([], {5: 1}, 0),
    "one row": lambda: holdout_stretches([1.0], {5: 1}, 0),
}


@pytest.mark.parametrize("call", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_meant_is_refused_in_one_sentence(call):
    with pytest.raises((TypeError, ValueError), match=r"expected|must") as error:
        call()
    assert "\n" not in str(error.value)
