"""Simulators against what is known of their processes."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from fractal_lib.data import bursts, double_well, long_lorenz, lorenz, ornstein_uhlenbeck, simulate


def test_ornstein_uhlenbeck_has_its_moments():
    rate, spread, end, n, batch = 1.5, 0.7, 4.0, 41, 4000
    latent = ornstein_uhlenbeck(batch, n, end, rate, spread, 0.2, seed=1).latent[..., 0]
    error = 4 / math.sqrt(batch)  # standard errors of means and correlations of unit variables
    assert (latent.mean(0) / spread).abs().max() < error + 0.01
    assert (latent.var(0) / spread**2 - 1).abs().max() < error * math.sqrt(2) + 0.01
    for lag in (1, 10, 40):
        correlation = (latent[:, 0] * latent[:, lag]).mean() / spread**2
        assert abs(correlation - math.exp(-rate * end * lag / (n - 1))) < error * math.sqrt(2)


def test_observations_carry_the_noise_asked_for():
    for simulation in (
        ornstein_uhlenbeck(100, 200, 9.0, noise=0.3),
        lorenz(100, noise=0.3),
        lorenz(1, 300, noise=0.3),
    ):
        error = simulation.observed - simulation.latent
        assert abs(error.std().item() / 0.3 - 1) < 4 / math.sqrt(2 * error.numel())


@pytest.mark.parametrize("name", ["lorenz", "one lorenz", "ornstein_uhlenbeck", "double_well"])
def test_the_noise_of_observations_is_independent_in_every_axis(name):
    """Along an axis that the noise was repeated over, its mean would vary as much as itself."""
    simulation = {
        "lorenz": lambda: lorenz(40, 50, noise=0.3, inner=1),
        "one lorenz": lambda: lorenz(1, 2000, 5.0, noise=0.3, inner=1),
        "ornstein_uhlenbeck": lambda: ornstein_uhlenbeck(40, 50, 9.0, noise=0.3),
        "double_well": lambda: double_well(40, 50, 1.0, noise=0.3),
    }[name]()
    error = (simulation.observed - simulation.latent) / 0.3  # (B, n, Z), standard normal
    for axis, length in enumerate(error.shape):
        if length > 1:
            means = error.mean(axis) * length**0.5  # standard normal too
            assert abs(means.square().mean() - 1) < 5 * (2 / means.numel()) ** 0.5, axis
            ahead, behind = error.narrow(axis, 1, length - 1), error.narrow(axis, 0, length - 1)
            assert abs((ahead * behind).mean()) < 5 / ahead.numel() ** 0.5, axis


def test_the_noise_in_a_lorenz_path_is_independent_in_every_axis():
    """One step of Euler-Maruyama between rows gives the noise back: (path, row, coordinate)."""
    batch, n, dt = 300, 30, 1e-4
    got = lorenz(batch, n, dt * (n - 1), noise=0, inner=1, start=torch.tensor([5.0, -6.0, 20.0]))
    path = got.latent * got.std + got.mean
    x, y, w = path[:, :-1].unbind(-1)
    drift = torch.stack([10 * (y - x), 28 * x - y - x * w, x * y - 8 / 3 * w], -1)
    increments = (path[:, 1:] - path[:, :-1] - drift * dt) / (0.15 * path[:, :-1]) / dt**0.5
    assert abs(increments.square().mean() - 1) < 5 * (2 / increments.numel()) ** 0.5
    for axis, length in enumerate(increments.shape):
        means = increments.mean(axis) * length**0.5
        assert abs(means.square().mean() - 1) < 5 * (2 / means.numel()) ** 0.5, axis
        ahead = increments.narrow(axis, 1, length - 1)
        behind = increments.narrow(axis, 0, length - 1)
        assert abs((ahead * behind).mean()) < 5 / ahead.numel() ** 0.5, axis


@pytest.mark.parametrize("batch", [1, 3])
def test_lorenz_without_noise_in_the_path_follows_the_equations(batch, monkeypatch):
    class Still:
        def standard_normal(self, shape):
            return np.zeros(shape)

    monkeypatch.setattr(np.random, "default_rng", lambda seed: Still())
    start = torch.tensor([1.0, 2.0, 20.0])
    got = lorenz(batch, 11, 0.5, noise=0, inner=4000, start=start)
    path = got.latent[-1] * got.std + got.mean
    exact = solve_ivp(
        lambda t, z: (
            10 * (z[1] - z[0]),
            28 * z[0] - z[1] - z[0] * z[2],
            z[0] * z[1] - 8 / 3 * z[2],
        ),
        (0, 0.5),
        start.tolist(),
        t_eval=np.linspace(0, 0.5, 11),
        rtol=1e-10,
        atol=1e-10,
    ).y.T
    # Euler's error is proportional to its step: 1.25e-5 here; the path is of size 50 and bends at a
    # rate of some 10^2
    np.testing.assert_allclose(path.numpy(), exact, atol=0.1)


def test_one_path_is_stepped_as_many_are():
    """The same noise through plain numbers and through arrays gives the same path."""
    begin, steps = np.array([[1.0], [2.0], [3.0]]), []

    def step(z, dw, dt):
        steps.append(type(z[0]))
        return tuple(a + a * dt + b for a, b in zip(z, dw, strict=True))

    single = simulate._euler_maruyama(step, begin, 5, 1.0, 3, np.random.default_rng(0))
    pair = simulate._euler_maruyama(step, np.repeat(begin, 2, 1), 5, 1.0, 3, Twice())
    assert steps[0] is float and steps[-1] is np.ndarray
    torch.testing.assert_close(single[0], pair[1], rtol=1e-14, atol=0)


class Twice:
    """A generator that gives every path the numbers that one path gets."""

    def __init__(self):
        self.inner = np.random.default_rng(0)

    def standard_normal(self, shape):
        return np.repeat(self.inner.standard_normal((*shape[:2], 1)), 2, axis=2)


def test_standardised_over_all_paths():
    for simulation in (lorenz(64), lorenz(1, 500, 12.0)):
        torch.testing.assert_close(
            simulation.latent.mean((0, 1)), torch.zeros(3).double(), rtol=0, atol=1e-10
        )
        torch.testing.assert_close(simulation.latent.std((0, 1)), torch.ones(3).double())


def test_the_double_well_has_its_density():
    latent = double_well(2000, 3, 20.0, steepness=2.0, diffusion=1.2, seed=2).latent[:, -1, 0]
    z = torch.linspace(-4, 4, 4001, dtype=torch.float64)
    density = torch.exp(2 * 2.0 * (z**2 / 2 - z**4 / 4) / 1.2**2)
    density = density / density.sum()
    # 4 standard errors, and the step's own bias, of the order of a hundredth
    second = (density * z**2).sum()
    assert abs((latent**2).mean() - second) < 4 * (latent**2).std() / math.sqrt(2000) + 0.02
    assert abs((latent > 0).double().mean() - 0.5) < 4 * 0.5 / math.sqrt(2000)


def test_seeds_decide():
    for make in (
        lambda s: lorenz(2, seed=s),
        lambda s: ornstein_uhlenbeck(2, 9, 1.0, seed=s),
        lambda s: double_well(2, 9, 1.0, seed=s),
    ):
        assert torch.equal(make(3).observed, make(3).observed) and not torch.equal(
            make(3).latent, make(4).latent
        )
        assert make(3).latent.dtype == torch.float64 and make(3).times[-1] > 0


def test_bursts():
    observed = bursts(200_000, 0.2, 8.0)
    missing = ~observed
    begins = (missing[1:] & ~missing[:-1]).sum().item()
    assert abs(missing.double().mean() - 0.2) < 0.01  # 5000 bursts
    assert abs(missing.sum().item() / begins - 8) < 4 * 8 / math.sqrt(begins)
    assert observed[0] and observed[-1] and bursts(5, 0.0, 1.0).all() and bursts(1, 0.9, 3.0).all()


def test_the_long_series_is_on_the_attractor():
    simulation, observed = long_lorenz(n=4000)
    assert simulation.times[1] == pytest.approx(1 / 40) and observed.shape == (4000,)
    path = simulation.latent[0] * simulation.std + simulation.mean
    # known: z is positive, about 23.5 in the mean
    assert path[:, 2].min() > 0 and 20 < simulation.mean[2] < 28


@pytest.mark.parametrize("wrong", [dict(batch=0), dict(n=1), dict(end=0.0), dict(noise=-1.0)])
def test_bad_sizes_are_refused(wrong):
    for make in (lorenz, ornstein_uhlenbeck, double_well):
        with pytest.raises(ValueError, match=r"expected (batch|n|end|noise) "):
            make(**{"batch": 1, "n": 5, "end": 1.0} | wrong)


def test_bad_rates_are_refused():
    with pytest.raises(ValueError, match="rate"):
        ornstein_uhlenbeck(1, 5, 1.0, rate=0.0)
    with pytest.raises(ValueError, match="missing"):
        bursts(5, 1.0, 2.0)
