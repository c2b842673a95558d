"""Irregular times: rows of the simulated path, of each path its own, padded as is said."""

import pytest
import torch

from fractal_lib.data import irregular, irregular_lorenz, lorenz


@pytest.fixture(scope="module")
def simulation():
    return lorenz(30, 201, noise=0.05, inner=2)


def test_what_is_observed_is_the_path_at_its_time(simulation):
    sample = irregular(simulation, 5, 15, even=41, seed=3)
    counts = sample.observed.sum(1)
    assert counts.min() >= 5 and counts.max() <= 15 and len(set(counts.tolist())) > 3
    assert sample.times.shape == sample.observed.shape == sample.values.shape[:2]
    assert sample.times.shape[1] == counts.max()
    for series, count in enumerate(counts):
        times = sample.times[series]
        assert (times[:count].diff() > 0).all() and (times[count:] == times[count - 1]).all()
        rows = (times[:count] * 200).round().long()
        assert torch.equal(sample.values[series, :count], simulation.observed[series, rows])
        assert sample.values[series, count:].isnan().all()
        assert sample.observed[series, :count].all()
    assert torch.equal(sample.latent, simulation.latent[:, ::5])
    assert torch.equal(sample.grid, simulation.times[::5])


def test_times_are_uniform_and_their_numbers_too(simulation):
    sample = irregular(simulation, 100, 100, even=2)
    times = sample.times[sample.observed]
    assert times.mean() == pytest.approx(0.5, abs=0.03)
    quarters = (times * 4).long().clamp(max=3).bincount() / len(times)
    assert (quarters - 0.25).abs().max() < 0.03
    assert not torch.equal(sample.times[0], sample.times[1])


def test_the_seed_decides(simulation):
    first, again, other = (irregular(simulation, 5, 9, even=11, seed=s) for s in (1, 1, 2))
    assert torch.equal(first.times, again.times) and torch.equal(first.observed, again.observed)
    assert first.times.shape != other.times.shape or not torch.equal(first.times, other.times)


def test_the_lorenz_system_has_its_noise():
    sample = irregular_lorenz(40, noise=0.2, end=0.5)
    assert sample.latent.shape == (40, 101, 3) and sample.grid[-1] == 0.5
    assert sample.observed.sum(1).min() >= 50 and sample.observed.sum(1).max() <= 150
    # exactly at the even grid's rows a time may fall: there the noise is the difference
    hits = ((sample.times.unsqueeze(2) - sample.grid).abs() < 1e-9) & sample.observed.unsqueeze(2)
    series, row, even = hits.nonzero(as_tuple=True)
    errors = sample.values[series, row] - sample.latent[series, even]
    assert len(errors) > 100 and errors.std() == pytest.approx(0.2, rel=0.1)


@pytest.mark.parametrize(
    "wrong",
    [
        dict(least=0),
        dict(least=9, most=8),
        dict(most=202),
        dict(even=1),
        dict(even=12),
        dict(least=2.5),
        dict(seed=-1),
    ],
    ids=str,
)
def test_what_cannot_be_meant_is_refused(simulation, wrong):
    given = dict(least=5, most=10, even=11) | wrong
    with pytest.raises((TypeError, ValueError), match="expected"):
        irregular(simulation, **given)
