"""The glucose record is the one that is described; its grid and its split lose and leak nothing."""

import numpy as np
import pytest

from fractal_lib.data import IrregularSeries, glucose, glucose_split, motorcycle, resample


@pytest.fixture(scope="module")
def record():
    return glucose()


def test_the_times_are_exact(record):
    assert record.values.shape == record.times.shape == record.dates.shape == (52281,)
    assert record.values.dtype == record.times.dtype == np.float64
    assert str(record.dates[0]) == "2010-03-24T09:51:00" and record.times[0] == 0
    minutes = (record.dates - record.dates[0]).astype("timedelta64[m]").astype(int)
    np.testing.assert_allclose(record.times * 60, minutes, rtol=1e-14)
    steps = np.diff(minutes)
    assert (steps >= 0).all() and (steps == 5).sum() == 51697
    assert (steps == 0).sum() == 3 and (steps == 1).sum() == 194 and (steps > 15).sum() == 175
    assert (record.values.min(), record.values.max()) == (40, 400)
    assert record.time_unit == "hours"


def test_the_grid_keeps_every_reading(record):
    grid = resample(record, 1 / 12)
    assert grid.values.shape == grid.observed.shape == grid.dates.shape == grid.t.shape == (57770,)
    assert (np.isfinite(grid.values) == grid.observed).all() and grid.observed.sum() == 52083
    assert set(np.diff(grid.dates).astype(int)) == {300}
    rows = np.round(record.times * 12).astype(int)
    counts = np.bincount(rows, minlength=57770)
    assert counts.sum() == 52281 and counts.max() == 2
    weighted = np.nansum(grid.values * counts)
    assert weighted == pytest.approx(record.values.sum(), rel=1e-12)
    apart = np.abs(grid.dates[rows] - record.dates).astype(int)
    assert apart.max() <= 150  # half a step


def test_a_grid_by_hand():
    dates = np.array(["2020-01-01T00:00:00", "2020-01-01T04:00:00"], dtype="datetime64[s]")
    two = IrregularSeries(np.array([1.0, 5.0]), np.array([0.0, 4.0]), dates, "m", "hours")
    grid = resample(two, 2.0)
    np.testing.assert_array_equal(grid.values, [1, np.nan, 5])
    assert grid.dates.tolist() == [dates[0].item(), grid.dates[1].item(), dates[1].item()]
    later = resample(two, 2.0, origin=2.0)
    np.testing.assert_array_equal(later.values, [np.nan, 5])
    assert str(later.dates[0]) == "2020-01-01T02:00:00"
    coarse = resample(two._replace(dates=None), 100.0)
    assert coarse.values.tolist() == [3] and np.isnat(coarse.dates).all()


@pytest.mark.parametrize("step", [0, -1.0, np.nan, "hour"])
def test_a_step_that_is_none_is_refused(step, record):
    with pytest.raises((TypeError, ValueError), match="expected step as"):
        resample(record, step)


def test_an_origin_behind_the_end_is_refused(record):
    with pytest.raises(ValueError, match="expected an origin before the last reading, got 9000"):
        resample(record, 1.0, origin=9000.0)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_split_shares_no_reading_and_hides_what_it_says(record, seed):
    _, train, parts = glucose_split(seed)
    assert list(parts) == ["scattered", "1 h", "3 h", "12 h"]
    together = train.astype(int) + sum(part.astype(int) for part in parts.values())
    assert (together == 1).all()
    for name, hours, count in (("1 h", 1, 80), ("3 h", 3, 40), ("12 h", 12, 16)):
        starts = np.flatnonzero(parts[name] & ~np.roll(parts[name], 1))
        assert len(starts) == count
        assert parts[name].sum() >= 11 * hours * count
    again = glucose_split(seed)[1]
    assert (again == train).all() and (glucose_split(seed + 1)[1] != train).any()


def test_the_motorcycle_has_repeated_times():
    record = motorcycle()
    steps = np.diff(record.times)
    assert len(record.values) == 133 and (steps >= 0).all() and (steps == 0).sum() == 39
    assert record.values.min() == -134 and record.values.max() == 75 and record.dates is None
    grid = resample(record, 2.0)
    assert grid.values.shape == (29,) and np.isnat(grid.dates).all()
