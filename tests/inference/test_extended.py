"""The smoother against dense Gaussian conditioning, and its moments against the simulator's
equations.
"""

import numpy as np
import pytest

from fractal_lib.data import long_lorenz
from fractal_lib.inference.extended import gaussian_smoother, lorenz_moments
from fractal_lib.inference.metrics import scores

PULL = np.array([[-1.0, 2.0], [-2.0, -0.5]])
SHOCKS = np.array([[0.5, 0.1], [0.1, 0.3]])


def spiral(mean, cov):
    return PULL @ mean, PULL, SHOCKS


@pytest.mark.parametrize("passes", [1, 2])
def test_a_linear_process_gets_its_posterior(passes):
    n, dt, inner, noise = 7, 0.2, 3, np.array([0.3, 0.5])
    generator = np.random.default_rng(0)
    values, observed = (
        generator.standard_normal((n, 2)),
        np.array([True, False, True, True, False, False, True]),
    )
    start, first = np.array([0.4, -0.2]), np.array([[1.0, 0.3], [0.3, 2.0]])
    # all rows at once: x_j = M x_(j-1) + shocks, M a product of Euler steps
    step = np.eye(2) + dt / inner * PULL
    powers = [np.linalg.matrix_power(step, k) for k in range(inner * n)]
    shocks = sum(powers[k] @ SHOCKS @ powers[k].T for k in range(inner)) * dt / inner
    means, joint = (
        np.concatenate([powers[inner * j] @ start for j in range(n)]),
        np.zeros((2 * n, 2 * n)),
    )
    cov = first
    for j in range(n):
        for k in range(j, n):
            block = powers[inner * (k - j)] @ cov
            joint[2 * k : 2 * k + 2, 2 * j : 2 * j + 2] = block
            joint[2 * j : 2 * j + 2, 2 * k : 2 * k + 2] = block.T
        cov = powers[inner] @ cov @ powers[inner].T + shocks
    seen = np.repeat(observed, 2)
    errors = np.diag(np.tile(noise**2, observed.sum()))
    gain = np.linalg.solve(joint[np.ix_(seen, seen)] + errors, joint[seen]).T
    expected = means + gain @ (values.ravel() - means)[seen]
    left = joint - gain @ joint[seen]

    values[~observed] = np.nan  # not read
    mean, cov = gaussian_smoother(spiral, values, observed, noise, dt, inner, start, first, passes)
    # the condition of the dense system is below 1e3, rounding 1e-16
    assert mean.ravel() == pytest.approx(expected, abs=1e-12)
    assert cov == pytest.approx(
        np.stack([left[2 * j : 2 * j + 2, 2 * j : 2 * j + 2] for j in range(n)]), abs=1e-12
    )


def test_lorenz_moments_are_those_of_many_draws():
    generator = np.random.default_rng(0)
    mean, root = np.array([3.0, -4.0, 20.0]), generator.standard_normal((3, 3))
    draws, count = mean + generator.standard_normal((400_000, 3)) @ root.T, 400_000
    x, y, z = draws.T
    drifts = np.stack([10 * (y - x), 28 * x - y - x * z, x * y - 8 / 3 * z])
    drift, slope, shocks = lorenz_moments(mean, root @ root.T)
    assert (np.abs(drifts.mean(1) - drift) < 5 * drifts.std(1) / count**0.5).all()
    squares = 0.15**2 * draws.T**2
    assert (np.abs(squares.mean(1) - np.diag(shocks)) < 5 * squares.std(1) / count**0.5).all()
    # Stein: the covariance of the drift with the state is E f' times the state's
    products = (drifts - drifts.mean(1, keepdims=True))[:, None] * (draws - draws.mean(0)).T[None]
    assert (
        np.abs(products.mean(2) - slope @ root @ root.T) < 5 * products.std(2) / count**0.5
    ).all()


@pytest.mark.parametrize("passes", [1, 3])
def test_it_finds_a_lorenz_path_below_its_noise_and_across_its_holes(passes):
    simulation, observed = long_lorenz(2000)
    centre, scale, there = simulation.mean.numpy(), simulation.std.numpy(), observed.numpy()
    values, truth = simulation.observed[0].numpy(), simulation.latent[0].numpy()
    start = centre, np.diag(scale**2)
    raw = values * scale + centre
    mean, cov = gaussian_smoother(
        lorenz_moments, raw, there, 0.3 * scale, 1 / 40, 25, *start, passes
    )
    mean, spread = (mean - centre) / scale, np.sqrt(np.diagonal(cov, axis1=1, axis2=2)) / scale
    rows = np.arange(2000)
    line = np.stack([np.interp(rows, rows[there], column) for column in values[there].T], 1)
    for part, bar in ((there, 0.3), (~there, np.sqrt(np.mean((line - truth)[~there] ** 2)))):
        found = scores(mean[part], spread[part], truth[part])
        assert found["rmse"] < bar / 2
        assert 0.75 < found["coverage"] < 0.95  # a Gaussian across a hole is somewhat too sure
    assert np.linalg.eigvalsh(cov).min() > 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (dict(values=np.zeros(3)), r"expected values \(n, Z\)"),
        (dict(values=np.zeros((0, 2)), observed=np.zeros(0, bool)), r"expected values \(n, Z\)"),
        (dict(observed=np.ones(3)), "must be bool, got torch.float64"),
        (dict(noise=np.ones(1)), r"noise \(Z,\)"),
        (dict(cov=np.eye(3)), r"cov of shape \(2, 2\)"),
        (dict(noise=np.zeros(2)), "noise positive"),
        (dict(dt=0.0), "dt as a positive"),
        (dict(inner=0), "inner of at least 1"),
        (dict(passes=0), "passes of at least 1"),
    ],
)
def test_bad_arguments_are_named(change, said):
    good = dict(
        values=np.zeros((3, 2)), observed=np.ones(3, bool), noise=np.ones(2), dt=0.1, inner=2
    )
    with pytest.raises((TypeError, ValueError), match=said):
        gaussian_smoother(spiral, **(good | dict(mean=np.zeros(2), cov=np.eye(2)) | change))
