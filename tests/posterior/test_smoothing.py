"""Smoothing splines: against scipy's, against a dense solution, and their derivatives."""

import numpy as np
import pytest
import torch
from scipy.interpolate import make_smoothing_spline

from fractal_lib.posterior.smoothing import (
    STRENGTHS,
    SmoothingSplines,
    hermite,
    solve_block_tridiagonal,
)


@pytest.mark.parametrize("n", [1, 2, 3, 7, 8, 9, 33])
def test_cyclic_reduction_solves_the_system(n):
    generator = torch.Generator().manual_seed(n)
    half = torch.randn(2, n, 2, 2, generator=generator, dtype=torch.float64)
    upper = torch.randn(2, n - 1, 2, 2, generator=generator, dtype=torch.float64)
    diagonal = half @ half.mT + 6 * torch.eye(2, dtype=torch.float64)  # dominant
    right = torch.randn(2, n, 2, 3, generator=generator, dtype=torch.float64)
    dense = torch.zeros(2, 2 * n, 2 * n, dtype=torch.float64)
    for j in range(n):
        dense[:, 2 * j : 2 * j + 2, 2 * j : 2 * j + 2] = diagonal[:, j]
        if j < n - 1:
            dense[:, 2 * j : 2 * j + 2, 2 * j + 2 : 2 * j + 4] = upper[:, j]
            dense[:, 2 * j + 2 : 2 * j + 4, 2 * j : 2 * j + 2] = upper[:, j].mT
    expected = torch.linalg.solve(dense, right.flatten(1, 2))
    got = solve_block_tridiagonal(diagonal, upper, right).flatten(1, 2)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)


def values_of(splines, x):
    """The curves themselves, (Q, K, X): the base is told, and the others' differences from it."""
    kinds = len(STRENGTHS)
    told, _ = splines.read(torch.tensor([0]), x.unsqueeze(0))
    told = told[0].unflatten(-1, (2 * kinds, -1))
    base = told[:, :1]
    return torch.cat([told[:, 1:2] + base, base, told[:, 2:kinds] + base], 1)


@pytest.mark.parametrize("gaps", [False, True])
def test_on_an_even_grid_they_are_those_of_scipy(gaps):
    """Knots at the observations make the minimum the same; where a row is missing none is lost."""
    generator = np.random.default_rng(0)
    rows = np.arange(30)
    there = generator.random(30) > 0.3 if gaps else np.ones(30, bool)
    there[[0, 1, -1]] = True
    y = generator.standard_normal(30)
    place, observed = torch.arange(30.0).double()[None], torch.from_numpy(there)[None]
    splines = SmoothingSplines(torch.from_numpy(y)[None, :, None], observed, place, 30)
    x = torch.linspace(0, 29, 101, dtype=torch.float64)
    got = values_of(splines, x)[..., 0]
    for k, strength in enumerate(STRENGTHS):  # the typical gap is 1
        curve = make_smoothing_spline(rows[there], y[there], lam=strength**4)
        # the ridge of 1e-6 against 20 rows or more of weight 1, and slopes at the ends
        np.testing.assert_allclose(got[:, k], curve(x), rtol=0, atol=1e-4)


def test_a_line_is_kept_wherever_it_was_seen():
    """Bending alone is penalised: a line stays a line at every strength, before and after too."""
    place = torch.tensor([[3.3, 3.3, 7.9, 12.25, 20.0]], dtype=torch.float64)
    splines = SmoothingSplines(2 * place.unsqueeze(-1) - 5, None, place, 31)
    x = torch.linspace(0, 30, 61, dtype=torch.float64)
    expected = (2 * x - 5)[:, None, None].expand(-1, len(STRENGTHS), 1)
    # the ridge pulls every slope towards 0 by 1e-6
    torch.testing.assert_close(values_of(splines, x), expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("n", [1, 2, 30])
def test_slopes_are_the_derivatives(n):
    generator = torch.Generator().manual_seed(n)
    place = torch.rand(2, 20, generator=generator, dtype=torch.float64) * max(n - 1, 1e-3)
    values = torch.randn(2, 20, 2, generator=generator, dtype=torch.float64)
    splines = SmoothingSplines(values, None, place, n)
    x = torch.rand(2, 50, generator=generator, dtype=torch.float64) * (n - 1) * 0.98
    series, step = torch.arange(2), 1e-6
    value, slope = splines.read(series, x)
    above, below = (splines.read(series, x + h)[0] for h in (step, -step))
    inside = (x.ceil() - x > step) & (x - x.floor() > step)  # the second derivative jumps at rows
    numeric = (above - below) / (2 * step)
    torch.testing.assert_close(slope[inside], numeric[inside], rtol=1e-5, atol=1e-4)
    assert value.isfinite().all()


def test_one_observation_is_a_constant():
    place = torch.tensor([[4.5]], dtype=torch.float64)
    splines = SmoothingSplines(torch.full((1, 1, 1), 3.0).double(), None, place, 10)
    x = torch.linspace(0, 9, 19, dtype=torch.float64)
    constant = torch.full((19, len(STRENGTHS), 1), 3.0, dtype=torch.float64)
    # the ridge pulls the mean to 0 by 1e-6 a row, and rounding is 1e-16 times the bending over it
    torch.testing.assert_close(values_of(splines, x), constant, rtol=0, atol=1e-3)


def test_hermite_derivatives_are_autograds():
    u = torch.rand(20, dtype=torch.float64, requires_grad=True)
    for n in (0, 1):
        weights = hermite(u, n)
        for column in range(4):
            (slope,) = torch.autograd.grad(weights[:, column].sum(), u, retain_graph=True)
            torch.testing.assert_close(slope, hermite(u, n + 1)[:, column], rtol=0, atol=1e-13)
