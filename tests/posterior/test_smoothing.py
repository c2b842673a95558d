"""Smoothing splines: against scipy's, against a dense solution, and their derivatives."""

import numpy as np
import pytest
import torch
from scipy.interpolate import make_smoothing_spline

from fractal_lib.posterior import smoothing
from fractal_lib.posterior.smoothing import (
    BASE,
    BEND,
    SHORTEST,
    TAUT,
    SplineLadder,
    hermite,
    solve_block_tridiagonal,
    typical_gap,
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


def ladder(values, place, n, levels=3, observed=None):
    values, place = (torch.as_tensor(part, dtype=torch.float64) for part in (values, place))
    observed = None if observed is None else torch.as_tensor(observed)[None]
    return SplineLadder(values[None, :, None], observed, place[None], n, levels)


def curves(splines, x):
    """The curves themselves, (Q, L): the base is told, and the others' differences from it."""
    levels = len(splines.width)
    told, _ = splines.read(torch.tensor([0]), x.unsqueeze(0))
    told = told[0, :, :levels]
    base, at = told[:, :1], min(BASE, levels - 1)
    return torch.cat([told[:, 1 : at + 1] + base, base, told[:, at + 1 :] + base], 1)


@pytest.mark.parametrize("gaps", [False, True])
def test_level_0_on_an_even_grid_is_scipys(gaps, monkeypatch):
    """Without tension, with a knot at every observation the minimum is the same; other knots change
    nothing.
    """
    monkeypatch.setattr(smoothing, "TAUT", 1e4)
    generator = np.random.default_rng(0)
    rows = np.arange(30)
    there = generator.random(30) > 0.3 if gaps else np.ones(30, bool)
    there[[0, 1, -1]] = True
    y = generator.standard_normal(30)
    x = torch.linspace(0, 29, 101, dtype=torch.float64)
    got = curves(ladder(y, rows, 30, observed=there), x)
    known = torch.from_numpy(rows[there]).double()[None]
    gap = float(typical_gap(known, torch.ones_like(known))[0])
    curve = make_smoothing_spline(rows[there], y[there], lam=(SHORTEST * gap) ** 4 / gap)
    expected = curve(x)
    # the tension of 1e-8
    np.testing.assert_allclose(got[:, 0], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("n", [2, 9, 20])
def test_every_level_is_its_definition(n):
    """Cubic elements on cells of width 2^k, by dense least squares from the observations."""
    generator = np.random.default_rng(n)
    place, y = generator.uniform(0, n - 1, 15), generator.standard_normal(15)
    splines = ladder(y, place, n)
    x = np.linspace(0, n - 1, 50)
    got = curves(splines, torch.from_numpy(x))
    gap = float(typical_gap(torch.from_numpy(place)[None], torch.ones(1, 15))[0])
    for k in range(3):
        width = 2**k
        cells = -(-max(n - 1, 1) // width)

        def weights(at, width=width, cells=cells):
            cell = np.clip(np.floor(at / width).astype(int), 0, cells - 1)
            rows = np.zeros((len(at), 2 * cells + 2))
            four = hermite(torch.from_numpy(at / width - cell)).numpy()
            for row, (c, w) in enumerate(zip(cell, four, strict=True)):
                rows[row, 2 * c : 2 * c + 4] = w
            return rows

        system = weights(place).T @ weights(place)
        strength = (SHORTEST * gap * width) ** 4 / gap / width**3
        # the Gram matrices of the second and of the first derivatives of the four cubics
        nodes, weight = np.polynomial.legendre.leggauss(4)
        second, first = (hermite(torch.from_numpy(nodes + 1) / 2, n).numpy() for n in (2, 1))
        tension = 1 / (TAUT * SHORTEST * gap) ** 2
        rough = (second.T * weight / 2) @ second + tension * (first.T * weight / 2) @ first
        for c in range(cells):
            system[2 * c : 2 * c + 4, 2 * c : 2 * c + 4] += strength * rough
        nodes = np.linalg.solve(system, weights(place).T @ y)
        # two ways to a solution of condition 1e8 at most
        np.testing.assert_allclose(got[:, k], weights(x) @ nodes, rtol=0, atol=1e-6)


def test_bends_are_punished_as_they_are_defined():
    bend = smoothing.penalty(torch.tensor([torch.inf], dtype=torch.float64))
    assert bend.tolist() == [BEND]


def test_a_line_is_kept_where_it_was_seen():
    """All but within a smoothing length of the ends, where the tension pulls the slope to 0."""
    place = torch.arange(0, 60.1, 0.5, dtype=torch.float64)
    x = torch.linspace(10, 50, 61, dtype=torch.float64)
    got = curves(ladder(2 * place - 5, place, 61, levels=4), x)
    torch.testing.assert_close(got, (2 * x - 5)[:, None].expand(-1, 4), rtol=0, atol=0.01)


def test_a_long_hole_is_crossed_straight():
    """Steep on both sides of 1990 rows: without tension the curve goes off by hundreds."""
    place = torch.cat([torch.arange(0.0, 11), torch.arange(2000.0, 2011)]).double()
    y = torch.cat([torch.arange(0.0, 11), torch.arange(-10.0, 1)]).double()
    x = torch.linspace(0, 2010, 4001, dtype=torch.float64)
    got = curves(ladder(y, place, 2011, levels=6), x)
    beyond = 4 * 2.0 ** torch.arange(6)  # a slope of 1 over eight half gaps
    assert (got.amax(0) < 10 + beyond).all() and (got.amin(0) > -10 - beyond).all()


def test_a_typical_gap_takes_no_account_of_holes():
    place = torch.tensor([[0.0, 1, 2, 3, 50, 51, 52, 52]], dtype=torch.float64)
    assert typical_gap(place, torch.ones(1, 8)).tolist() == [1.0]
    assert typical_gap(place[:, :1], torch.ones(1, 1)).tolist() == [1.0]


def test_one_observation_is_a_constant():
    x = torch.linspace(0, 9, 19, dtype=torch.float64)
    got = curves(ladder([3.0], [4.5], 10), x)
    torch.testing.assert_close(got, torch.full((19, 3), 3.0, dtype=torch.float64))


def test_hermite_derivatives_are_autograds():
    u = torch.rand(20, dtype=torch.float64, requires_grad=True)
    for n in (0, 1):
        weights = hermite(u, n)
        for column in range(4):
            (slope,) = torch.autograd.grad(weights[:, column].sum(), u, retain_graph=True)
            torch.testing.assert_close(slope, hermite(u, n + 1)[:, column], rtol=0, atol=1e-13)
