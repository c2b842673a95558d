"""What posteriors read of any data: continuous, with true slopes; the past alone, if asked."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fractal_lib.posterior import DataPyramid, DataSplines, LadderPosterior, Observations
from fractal_lib.posterior.gaps import WIDTHS, Gaps

KINDS = ["complete", "rows", "channels", "own times", "own times and channels"]
READERS = {
    "splines": DataSplines,
    "means": DataPyramid,
    "the past": lambda data: DataPyramid(data, causal=True),
}


def some(kind, seed=0, n=30):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(3, n, 2, generator=generator, dtype=torch.float64)
    times = torch.rand(3, n, generator=generator, dtype=torch.float64)
    times[:, 1] = times[:, 0]
    rows = torch.rand(3, n, 2, generator=generator) > 0.5
    rows[:, 0] = True
    observed = rows if "channels" in kind else rows[..., 0] if kind == "rows" else None
    return Observations(values, times if "own" in kind else None, observed)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", KINDS)
def test_slopes_are_the_derivatives(kind, reader):
    reader = READERS[reader](some(kind))
    series, step = torch.arange(3), 1e-7
    t = torch.rand(3, 40, dtype=torch.float64) * 0.98 + 0.01
    value, slope = reader.read(series, t)
    assert value.shape[-1] == slope.shape[-1] == reader.out_features
    above, below = (reader.read(series, t + h).value for h in (step, -step))
    numeric = (above - below) / (2 * step)
    # a kink may lie within the step, at 1e-7 of 1, in none of 120 times here
    torch.testing.assert_close(slope, numeric, rtol=0, atol=1e-6 * (1 + slope.abs().max().item()))


@given(kind=st.sampled_from(KINDS), seed=st.integers(0, 20), reader=st.sampled_from([*READERS]))
def test_nothing_jumps(kind, seed, reader):
    """Neither at observations nor at rows, where nodes come in and leave."""
    data = some(kind, seed)
    reader = READERS[reader](data)
    t = torch.cat([data.times, torch.arange(58).expand(3, -1).double() / 58], 1)
    t = t.clamp(1e-9, 1 - 1e-9)
    before, after = (reader.read(torch.arange(3), t + h) for h in (-1e-9, 1e-9))
    steepest = 1 + before.slope.abs().max().item() + after.slope.abs().max().item()
    assert (before.value - after.value).abs().max() < 4e-9 * steepest


@given(kind=st.sampled_from(KINDS), seed=st.integers(0, 20), cut=st.floats(0.05, 0.95))
def test_the_past_does_not_know_the_future(kind, seed, cut):
    data = some(kind, seed)
    later = data.times > cut
    other = torch.where(later.unsqueeze(-1), data.values + 100, data.values)
    again = Observations(other, None if data.t is None else data.times, data.observed)
    t = torch.linspace(0, cut, 20, dtype=torch.float64).expand(3, -1)
    one, two = (DataPyramid(d, causal=True).read(torch.arange(3), t) for d in (data, again))
    assert torch.equal(one.value, two.value) and torch.equal(one.slope, two.slope)


@given(kind=st.sampled_from(KINDS), reader=st.sampled_from([*READERS]))
def test_a_series_does_not_depend_on_its_batch(kind, reader):
    data = some(kind)
    reader = READERS[reader]
    part = torch.tensor([2, 0])
    t = torch.rand(2, 7, dtype=torch.float64)
    alone = Observations(
        data.values[part],
        None if data.t is None else data.times[part],
        None if data.observed is None else data.observed[part],
    )
    together, apart = reader(data).read(part, t), reader(alone).read([0, 1], t)
    torch.testing.assert_close(together.value, apart.value, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("reader", ["splines", "means"])
def test_channels_by_themselves_are_series_of_one_channel(reader):
    """Each with its own mask; the features stand channel after channel."""
    data, series = some("channels"), torch.arange(3)
    t = torch.rand(3, 7, dtype=torch.float64)
    both = READERS[reader](data).read(series, t).value.unflatten(-1, (2, -1))
    for c in range(2):
        alone = Observations(data.values[..., c : c + 1], observed=data.observed[..., c])
        torch.testing.assert_close(both[:, :, c], READERS[reader](alone).read(series, t).value)


def test_distances_are_those_of_the_definition():
    place = torch.tensor([[0.5, 2.0, 7.0], [3.0, 3.0, 9.0]], dtype=torch.float64)
    observed = torch.tensor([[True, True, True], [True, True, False]])
    x = torch.tensor([[0.0, 0.5, 1.0, 4.0, 8.5]], dtype=torch.float64)
    expected = [[0.5, 0, 0.5 * 1 / 1.5, 2 * 3 / 5, 1.5], [3, 2.5, 2, 1, 5.5]]
    gaps = Gaps(place, observed)
    for s in range(2):
        h, _ = gaps.spread(torch.tensor([s]), x)
        np.testing.assert_allclose(h.flatten(), expected[s], atol=1e-12)
        told, _ = gaps.read(torch.tensor([s]), x)
        by_hand = np.log1p(np.array(expected[s])[:, None] / np.array(WIDTHS))
        np.testing.assert_allclose(told[0], by_hand, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("causal", [False, True])
def test_a_posterior_of_each_kind_has_true_derivatives(kind, causal):
    data, series, step = some(kind), torch.arange(3), 1e-6
    torch.manual_seed(0)
    posterior = LadderPosterior.of(data, 2, 8, causal=causal).double()
    prepared = posterior.prepare(data)
    assert prepared.out_features == posterior.in_features
    t = torch.rand(3, 30, dtype=torch.float64) * 0.98 + 0.01
    q, above, below = (posterior(prepared, series, t + h) for h in (0, step, -step))
    for name in ("mean", "std"):
        numeric = (getattr(above, name) - getattr(below, name)) / (2 * step)
        slope = getattr(q, f"{name}_dt")
        atol = 1e-4 * (1 + slope.abs().max().item())
        torch.testing.assert_close(slope, numeric, rtol=0, atol=atol)


def test_splines_are_not_causal():
    with pytest.raises(ValueError, match='"means", and means if causal'):
        LadderPosterior(2, 8, channels=1, n=10, causal=True, features="splines")
    with pytest.raises(ValueError, match="single channels are missing"):
        DataSplines(some("channels"), per_channel=False)
    with pytest.raises(ValueError, match="expected n = 30, the rows of an even grid, got 31"):
        DataSplines(some("rows"), n=31)
