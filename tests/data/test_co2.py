"""The carbon dioxide series is the one the book describes, and what is held out is held out."""

import sys

import numpy as np
import pytest

from fractal_lib.data import co2, co2_split, holdout
from fractal_lib.data.co2 import HIDDEN_YEARS


@pytest.fixture(scope="module")
def series():
    return co2()


def test_it_is_weekly_with_59_gaps(series):
    assert (
        series.values.shape
        == series.observed.shape
        == series.dates.shape
        == series.t.shape
        == (2284,)
    )
    assert (series.values.dtype, series.observed.dtype, series.t.dtype) == (float, bool, float)
    assert series.dates.dtype == "datetime64[D]"
    assert (np.diff(series.dates) == np.timedelta64(7, "D")).all()
    assert (~series.observed).sum() == 59
    assert (np.isfinite(series.values) == series.observed).all()
    assert 310 < np.nanmin(series.values) < np.nanmax(series.values) < 380


def test_t_is_where_the_rows_of_an_attention_sit(series):
    assert series.t == pytest.approx(np.arange(2284) / 2283, abs=1e-15)
    days = (series.dates - series.dates[0]).astype(float)
    assert series.t == pytest.approx(days / days[-1])


def test_without_statsmodels_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "statsmodels.datasets.co2", None)
    with pytest.raises(ImportError, match=r"co2\(\) needs statsmodels: pip install"):
        co2()


def test_held_out_rows_are_observed_apart_and_as_many_as_asked(series):
    year = series.dates.astype("datetime64[Y]") == np.datetime64("1985")
    scattered, stretch = holdout(series.observed, 0.1, seed=3, gap=year)
    assert not (scattered & stretch).any()
    assert not ((scattered | stretch) & ~series.observed).any()
    assert (stretch == (series.observed & year)).all()
    assert scattered.sum() == round(0.1 * (series.observed & ~year).sum())


def test_holdout_depends_on_its_seed_alone(series):
    first, none = holdout(series.observed, 0.1, seed=0)
    assert not none.any()
    assert (first == holdout(series.observed, 0.1, seed=0)[0]).all()
    assert (first != holdout(series.observed, 0.1, seed=1)[0]).any()


@pytest.mark.parametrize("year", HIDDEN_YEARS)
def test_a_split_hides_one_year_and_shares_no_week(series, year):
    _, train, scattered, stretch = co2_split(2, year)
    together = train.astype(int) + scattered + stretch
    assert (together == series.observed).all()
    hidden = series.dates[stretch].astype("datetime64[Y]")
    assert (hidden == np.datetime64(str(year))).all() and stretch.sum() >= 48
    assert scattered.sum() == round(0.3 * (series.observed.sum() - stretch.sum()))
    assert (co2_split(3, year)[2] != scattered).any()


def test_a_year_without_record_is_refused():
    with pytest.raises(ValueError, match="expected year from 1958 to 2001, got 2002"):
        co2_split(year=2002)


def test_a_slice_is_a_gap_too():
    scattered, stretch = holdout(np.ones(10, dtype=bool), 0.5, seed=0, gap=slice(2, 5))
    assert np.flatnonzero(stretch).tolist() == [2, 3, 4]
    assert scattered.sum() == round(0.5 * 7)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"fraction in \[0, 1\), got 1"):
        holdout(np.ones(3, dtype=bool), 1, seed=0)
    with pytest.raises(TypeError, match="bool, got torch.float64"):
        holdout(np.ones(3), 0.1, seed=0)
