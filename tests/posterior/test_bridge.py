"""What lies on both sides of t: from the definition, by plain loops."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fractal_lib.posterior import DataPyramid, Observations
from fractal_lib.posterior.bridge import RIDGE, WIDTHS


def spline(u):
    u = abs(u)
    return 2 / 3 - u**2 + u**3 / 2 if u < 1 else max(2 - u, 0) ** 3 / 6


def line(place, values, count, where, level, n):
    """Value and slope of a line around a place: rows by their node's mean place and mean value."""
    width, sums = 2**level, np.zeros(3)
    products = np.zeros((2, values.shape[-1]))
    for j in range(-(-n // width)):
        inside = [i for i in range(n) if j * width <= i < (j + 1) * width and count[i]]
        if not inside:
            continue
        rows = sum(count[i] for i in inside)
        lag = (sum(count[i] * place[i] for i in inside) / rows - where) / width
        mean = sum(count[i] * values[i] for i in inside) / rows
        weight = spline((where + 0.5) / width - 0.5 - j) * rows / width
        sums += weight * lag ** np.arange(3)
        products += weight * np.outer([1, lag], mean)
    s0, s1, s2 = sums + [0, 0, RIDGE * sums[0]]
    return np.linalg.solve([[s0, s1], [s1, s2]], products)


def slowly(data, series, x, n, levels):
    """The features at position x of one series."""
    rows = data.rows[series].numpy()
    places = (data.times[series] / data.duration * (n - 1)).numpy()[rows]
    values = data.values[series].numpy()[rows]
    count, mean, place = np.zeros(n), np.zeros((n, data.channels)), np.zeros(n)
    for p, v in zip(places, values, strict=True):
        i = min(int(p + 0.5), n - 1)
        count[i], mean[i], place[i] = count[i] + 1, mean[i] + v, place[i] + p
    mean, place = (part / np.maximum(c, 1) for part, c in ((mean, count[:, None]), (place, count)))
    cells = np.floor(places * 8)
    known = [(places[cells == c].mean(), values[cells == c].mean(0)) for c in np.unique(cells)]
    left = [k for k in known if k[0] <= x] or known[:1]
    right = [k for k in known if k[0] > x] or known[-1:]
    (a, va), (b, vb) = left[-1], right[0]

    def end(place_of, value):
        lines = [line(place, mean, count, place_of, k, n) for k in range(levels)]
        return np.concatenate([value, *(np.concatenate(pair) for pair in lines)])

    u = (x - a) / (b - a) if b > a else 0.0
    spread = u * (1 - u) * (b - a) if b > a and a <= x <= b else abs(x - a)
    between = end(a, va) + (end(b, vb) - end(a, va)) * u
    return np.concatenate([between, np.log1p(spread / np.array(WIDTHS))])


@pytest.mark.parametrize("own_times", [False, True])
@pytest.mark.parametrize("n", [1, 3, 20])
def test_features_are_those_of_the_definition(n, own_times):
    generator = torch.Generator().manual_seed(n)
    rows = n if not own_times else 15
    values = torch.randn(2, rows, 2, generator=generator, dtype=torch.float64)
    times = torch.rand(2, rows, generator=generator, dtype=torch.float64) if own_times else None
    observed = torch.rand(2, rows, generator=generator) > 0.4
    observed[:, 0] = True
    data = Observations(values, times, observed)
    pyramid = DataPyramid(data, n=n, bridge=True)
    levels, width = len(pyramid.pyramids.stride), pyramid.bridge.out_features
    t = torch.tensor([[0.0, 0.33, 0.71, 1.0]], dtype=torch.float64).expand(2, -1)
    got = pyramid.read(torch.arange(2), t).value[..., -width:].numpy()
    for s in range(2):
        for q in range(4):
            expected = slowly(data, s, float(t[s, q]) * (n - 1), n, levels)
            # sums of at most 15 numbers, divided by a determinant of at least RIDGE
            np.testing.assert_allclose(got[s, q], expected, rtol=0, atol=1e-10)


KINDS = ["complete", "rows", "channels", "own times"]


def some(kind, seed=0, n=30):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(3, n, 2, generator=generator, dtype=torch.float64)
    times = torch.rand(3, n, generator=generator, dtype=torch.float64)
    rows = torch.rand(3, n, 2, generator=generator) > 0.5
    rows[:, 0] = True
    masks = {"rows": rows[..., 0], "channels": rows}
    return Observations(values, times if kind == "own times" else None, masks.get(kind))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_slopes_are_the_derivatives(kind, causal):
    pyramid = DataPyramid(some(kind), causal=causal, bridge=not causal)
    series, step = torch.arange(3), 1e-7
    t = torch.rand(3, 40, dtype=torch.float64) * 0.98 + 0.01
    value, slope = pyramid.read(series, t)
    assert value.shape[-1] == pyramid.out_features
    above, below = (pyramid.read(series, t + h).value for h in (step, -step))
    numeric = (above - below) / (2 * step)
    # a kink may lie within the step, at 1e-7 of 1, in none of 120 times here
    torch.testing.assert_close(slope, numeric, rtol=0, atol=1e-6 * (1 + slope.abs().max().item()))


@given(kind=st.sampled_from(KINDS), seed=st.integers(0, 20), causal=st.booleans())
def test_nothing_jumps(kind, seed, causal):
    data = some(kind, seed)
    pyramid = DataPyramid(data, causal=causal, bridge=not causal)
    t = torch.cat([data.times / data.duration, torch.rand(3, 20, dtype=torch.float64)], 1)
    t = t.clamp(1e-9, 1 - 1e-9)
    before, after = (pyramid.read(torch.arange(3), t + h) for h in (-1e-9, 1e-9))
    steepest = 1 + before.slope.abs().max().item() + after.slope.abs().max().item()
    assert (before.value - after.value).abs().max() < 4e-9 * steepest


@given(kind=st.sampled_from(KINDS), seed=st.integers(0, 20), cut=st.floats(0.05, 0.95))
def test_a_causal_reader_reads_the_past_alone(kind, seed, cut):
    data = some(kind, seed)
    later = (data.times / data.duration) > cut
    other = torch.where(later.unsqueeze(-1), data.values + 100, data.values)
    times = None if data.t is None else data.times
    again = Observations(other, times, data.observed)
    t = torch.linspace(0, cut, 20, dtype=torch.float64).expand(3, -1)
    one, two = (DataPyramid(d, causal=True).read(torch.arange(3), t) for d in (data, again))
    assert torch.equal(one.value, two.value) and torch.equal(one.slope, two.slope)


def test_a_bridge_is_not_causal():
    with pytest.raises(ValueError, match="the far side of a bridge is not past"):
        DataPyramid(some("complete"), causal=True, bridge=True)
