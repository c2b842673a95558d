"""Burgers' equation against the exact solution by Cole and Hopf, and its order of accuracy."""

import math

import pytest
import torch

from fractal_lib.data.burgers import burgers, random_start


def cole_hopf(x, time, nu):
    """u = -2 nu (log phi)_x, of which phi solves the heat equation; phi(0) = 2 + cos(2 pi x)."""
    wave = 2 * math.pi
    left = math.exp(-nu * wave**2 * time)
    return 2 * nu * wave * left * (wave * x).sin() / (2 + left * (wave * x).cos())


def test_it_is_the_exact_solution():
    x = torch.arange(128, dtype=torch.float64) / 128
    for time in (0.3, 1.0):
        found = burgers(cole_hopf(x, 0, 0.05), time, 0.05, steps=200)
        torch.testing.assert_close(found, cole_hopf(x, time, 0.05), rtol=0, atol=1e-9)


def test_its_order_is_four():
    start = 3 * cole_hopf(torch.arange(64, dtype=torch.float64) / 64, 0, 0.05)
    fine = burgers(start, 1.0, 0.05, steps=400)
    coarse, half = ((burgers(start, 1.0, 0.05, steps) - fine).norm() for steps in (20, 40))
    assert 12 < coarse / half < 20


def test_the_mean_stays_and_energy_falls():
    start = random_start(5, 128, torch.Generator().manual_seed(1)) + 0.3
    end = burgers(start, 1.0, 0.01)
    torch.testing.assert_close(end.mean(-1), start.mean(-1), rtol=0, atol=1e-12)
    assert (end.square().mean(-1) < start.square().mean(-1)).all()


def test_starts_have_the_covariance_that_they_are_said_to_have():
    start = random_start(20_000, 16, torch.Generator().manual_seed(0))
    wave = 2 * math.pi * torch.arange(1, 8, dtype=torch.float64)
    # of a normal field, sum over both signs of the wave: 2 * 625 / (w^2 + 25)^2
    variance = (2 * 625 / (wave.square() + 25).square()).sum()
    assert start.var().item() == pytest.approx(variance.item(), rel=0.05)


def test_an_odd_number_of_points_is_refused():
    with pytest.raises(ValueError, match="must be even and at least 4, got 7"):
        burgers(torch.zeros(7))
