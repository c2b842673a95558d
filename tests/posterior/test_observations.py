"""Observations: at any times, of any length, with anything missing; nothing observed is lost."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fractal_lib.posterior import Observations, observations_from_frame


def shuffled(seed=0, series=3, n=20, channels=2, duration=5.0, mask="channels"):
    """Unsorted, repeated times; single channels missing; NaN where nothing was observed."""
    generator = np.random.default_rng(seed)
    values = generator.standard_normal((series, n, channels))
    times = generator.uniform(0, duration, (series, n))
    times[:, 1] = times[:, 0]
    shape = values.shape if mask == "channels" else values.shape[:2]
    observed = generator.random(shape) > 0.4
    observed[:, 0] = True
    hidden = ~observed if mask == "channels" else ~observed[..., None] & np.ones(channels, bool)
    values[hidden] = np.nan
    return values, times, observed


def everything(data, series):
    """What the likelihood of a series counts: every observed number with its time, sorted."""
    count = int(data.counts[series])
    fraction = (torch.arange(count) + 0.5) / count
    t, _, values, observed = data.sample([series], fraction.unsqueeze(0))
    there = torch.ones_like(values, dtype=torch.bool) if observed is None else observed
    channel = torch.arange(data.channels).expand_as(values)
    t = (t * data.duration).unsqueeze(-1).expand_as(values)
    return sorted(
        zip(t[there].tolist(), channel[there].tolist(), values[there].tolist(), strict=True)
    )


@given(seed=st.integers(0, 99), mask=st.sampled_from(["rows", "channels"]))
def test_nothing_that_was_observed_leaves_the_likelihood(seed, mask):
    values, times, observed = shuffled(seed, mask=mask)
    data = Observations(values, times, observed, 5.0)
    there = observed if mask == "channels" else np.repeat(observed[..., None], 2, -1)
    for s in range(3):
        rows, channel = np.nonzero(there[s])
        expected = sorted(zip(times[s][rows], channel, values[s][rows, channel], strict=True))
        np.testing.assert_allclose(everything(data, s), expected, rtol=1e-12, atol=1e-12)


def test_an_even_grid_is_one_among_times():
    values = torch.randn(2, 11, 3, dtype=torch.float64)
    grid = torch.linspace(0, 4, 11, dtype=torch.float64)
    even, own = Observations(values, duration=4.0), Observations(values, grid, duration=4.0)
    assert even.t is None and own.complete and own.observed is None
    torch.testing.assert_close(even.times, own.times)
    np.testing.assert_allclose(everything(even, 1), everything(own, 1), rtol=1e-12)


def test_series_of_different_length_are_padded_by_nothing():
    lengths = [4, 9, 1]
    values = [torch.randn(k, 2) for k in lengths]
    times = [torch.rand(k).double() for k in lengths]
    data = Observations(values, times)
    assert len(data) == 3 and data.n == 9 and data.counts.tolist() == lengths
    order = times[1].argsort()
    torch.testing.assert_close(data.values[1], values[1][order])
    some = Observations(values, times, [torch.arange(k) % 2 == 0 for k in lengths])
    assert some.counts.tolist() == [2, 5, 1] and some.n == 5
    part = data[[2, 0]]
    assert part.counts.tolist() == [1, 4] and part.n == 4  # no longer than its longest


def test_hidden_rows_are_not_read_and_stay_in_the_whole():
    values, times, observed = shuffled()
    data = Observations(values, times, observed, 5.0)
    view = data.hide(data.times > 3)
    assert view.whole is data and view.counts.sum() < data.counts.sum()
    assert float((view.times * (view.observed.any(-1))).max()) <= 3
    assert view.hide(view.times > 2).whole is data
    assert torch.equal(view.times, data.times)  # rows keep their places
    with pytest.raises(ValueError, match="no observed row"):
        data.hide(torch.ones(data.n, dtype=torch.bool))


def test_equal_fingerprints_mean_equal_observations():
    values, times, observed = shuffled()
    data = Observations(values, times, observed, 5.0)
    assert data.fingerprint() == Observations(values, times, observed, 5.0).fingerprint()
    later = times.copy()
    later[0, 0] += 1e-3 if later[0, 0] < 4 else -1e-3
    assert data.fingerprint() != Observations(values, later, observed, 5.0).fingerprint()
    back = data.to(torch.float32).to("cpu")
    assert back.values.dtype == torch.float32 and torch.equal(back.observed, data.observed)


def test_a_frame_becomes_observations():
    days = pd.to_datetime(["2020-01-03", "2020-01-01", "2020-01-02", "2020-02-01", "2020-02-03"])
    frame = pd.DataFrame(
        {
            "who": ["a", "a", "a", "b", "b"],
            "x": [3.0, 1, 2, 5, np.nan],
            "y": [1.0, np.nan, 1, 1, 1],
        },
        index=days,
    )
    data = observations_from_frame(frame, by="who")
    assert data.duration == 2 and data.counts.tolist() == [3, 2]
    assert data.values[0, :, 0].tolist() == [1, 2, 3] and data.times[1].tolist()[:2] == [0, 2]
    hours = observations_from_frame(frame["x"], unit="h", duration=1000.0)
    assert hours.channels == 1 and hours.times.max() == 31 * 24
    numbers = observations_from_frame(frame[["x"]].set_axis([5.0, 1.0, 2.0, 3.0, 9.0]))
    assert numbers.times[0].tolist() == [0, 1, 2, 4]
    zone = frame[["x"]].tz_localize("Europe/Paris")
    assert observations_from_frame(zone).times[0].tolist()[:4] == [0, 1, 2, 31]
    assert observations_from_frame(frame.iloc[:1][["x"]]).duration == 1


VALUES, TIMES = np.zeros((2, 3, 1)), np.array([[0.0, 1.0, 2.0]] * 2)
NAN, INF = float("nan"), float("inf")
FRAME = pd.DataFrame({"x": [1.0, 2.0]}, index=[0, 1])
REFUSED = {
    "after the end": (
        lambda: Observations(VALUES, TIMES),
        "from 0 to the duration, got 0.0 to 2.0",
    ),
    "before the start": (lambda: Observations(VALUES, TIMES - 1, duration=2.0), "got -1.0 to 1.0"),
    "no time": (lambda: Observations(VALUES, TIMES * NAN, duration=2.0), "got nan to nan"),
    "a mask for times": (lambda: Observations(VALUES, TIMES > 0), "times must be floating point"),
    "times of another length": (lambda: Observations(VALUES, TIMES[:, :2]), "times .S, N."),
    "NaN among the observed": (lambda: Observations(VALUES * NAN), "mark what is missing"),
    "infinity": (lambda: Observations(VALUES + INF, TIMES, duration=2.0), "NaN or infinite"),
    "a series without one": (
        lambda: Observations(VALUES, observed=np.array([[True] * 3, [False] * 3])),
        "a series has no observed row",
    ),
    "a series of nothing": (
        lambda: Observations([np.zeros((3, 1)), np.zeros((0, 1))], [np.zeros(3), np.zeros(0)]),
        "a series has no observed row",
    ),
    "no series": (lambda: Observations([]), "none of them 0"),
    "no rows": (lambda: Observations(np.zeros((2, 0, 1))), "none of them 0"),
    "lengths without times": (
        lambda: Observations([np.zeros((3, 1)), np.zeros((2, 1))]),
        "different length need times",
    ),
    "channels that differ": (
        lambda: Observations([np.zeros((3, 1)), np.zeros((2, 2))], [np.zeros(3), np.zeros(2)]),
        "of one X",
    ),
    "times for one of two": (
        lambda: Observations([np.zeros((3, 1)), np.zeros((2, 1))], [np.zeros(3)]),
        "a list of 2, like the values, got 1 of them",
    ),
    "times of another series": (
        lambda: Observations([np.zeros((3, 1)), np.zeros((2, 1))], [np.zeros(2), np.zeros(3)]),
        r"as many rows as the values, \[3, 2\], got \[2, 3\]",
    ),
    "to hide what is not there": (
        lambda: Observations(VALUES).hide(np.ones(4, bool)),
        r"expected hidden \(2, 3\) or \(3,\), got \(4,\)",
    ),
    "no frame": (lambda: observations_from_frame([1.0]), "expected a pandas frame, got list"),
    "no such column": (lambda: observations_from_frame(FRAME, by="z"), r"columns \['x'\], got 'z'"),
    "words": (lambda: observations_from_frame(FRAME.assign(y="a")), "columns of numbers"),
    "words for times": (lambda: observations_from_frame(FRAME.set_axis(["a", "b"])), "an index of"),
    "no such unit": (
        lambda: observations_from_frame(FRAME.set_axis(pd.to_datetime(["2020", "2021"])), unit="y"),
        "unit as one of",
    ),
    "a time that is missing": (
        lambda: observations_from_frame(FRAME.set_axis(pd.to_datetime(["2020", None]))),
        "a time for every row",
    ),
    "an empty frame": (lambda: observations_from_frame(FRAME.iloc[:0]), "an empty frame"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_refused_in_a_sentence(name):
    make, words = REFUSED[name]
    with pytest.raises((TypeError, ValueError), match=words):
        make()
