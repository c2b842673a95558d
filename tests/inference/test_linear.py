"""The exact smoothers against dense Gaussian conditioning, each other, and what a posterior must
satisfy.
"""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import block_diag
from scipy.stats import multivariate_normal

from fractal_lib.data import bursts, double_well, ornstein_uhlenbeck
from fractal_lib.inference import grid_smoother, kalman_smoother
from fractal_lib.inference.extended import gaussian_smoother

RATE, SPREAD, NOISE, DT = 2.0, 0.8, 0.4, 0.1
KEPT = math.exp(-RATE * DT)


def ou_model():
    one = np.eye(1)
    return dict(
        transition=KEPT * one,
        process_noise=SPREAD**2 * (1 - KEPT**2) * one,
        emission=one,
        noise=NOISE**2 * one,
        mean=np.zeros(1),
        cov=SPREAD**2 * one,
    )


def random_model(generator, size, channels):
    def spd(k, rank):
        root = generator.standard_normal((k, rank))
        return root @ root.T

    return dict(
        transition=generator.standard_normal((size, size)) / math.sqrt(size),
        process_noise=spd(size, generator.integers(1, size + 1)),  # of any rank
        emission=generator.standard_normal((channels, size)),
        noise=spd(channels, channels) + 0.1 * np.eye(channels),
        mean=generator.standard_normal(size),
        cov=spd(size, size),
    )


def conditioned(values, observed, transition, process_noise, emission, noise, mean, cov):
    """Mean (n, Z), cov (n, Z, Z) and log likelihood of one series, from the joint Gaussian of all
    of its rows.
    """
    n, size = len(values), len(mean)
    # from z_0 to all rows
    first = np.vstack([np.linalg.matrix_power(transition, j) for j in range(n)])
    sources = [np.zeros((n * size, size)) for _ in range(1, n)]
    for k, block in enumerate(sources, start=1):  # from the shock of row k
        block[k * size :] = first[: (n - k) * size]
    spread = np.hstack([first, *sources])
    joint = spread @ block_diag(cov, *[process_noise] * (n - 1)) @ spread.T
    seen = block_diag(*[emission] * n)[np.repeat(observed, len(emission))]
    prior, error = first @ mean, block_diag(*[noise] * observed.sum())
    after, likelihood = joint, 0.0
    if observed.any():
        total = seen @ joint @ seen.T + error
        gain, found = np.linalg.solve(total, seen @ joint).T, values[observed].ravel()
        likelihood = multivariate_normal(seen @ prior, total).logpdf(found)
        prior, after = prior + gain @ (found - seen @ prior), joint - gain @ seen @ joint
    rows = after.reshape(n, size, n, size)[np.arange(n), :, np.arange(n)]
    return prior.reshape(n, size), rows, likelihood


@settings(max_examples=30)
@given(
    st.integers(0, 10**6), st.integers(1, 3), st.integers(1, 2), st.integers(1, 6), st.booleans()
)
def test_kalman_is_dense_conditioning(seed, size, channels, n, alike):
    generator = np.random.default_rng(seed)
    model = random_model(generator, size, channels)
    values = generator.standard_normal((3, n, channels))
    observed = generator.random(n if alike else (3, n)) < 0.6
    masks = np.broadcast_to(observed, (3, n))
    got = kalman_smoother(np.where(masks[..., None], values, np.nan), observed, **model)
    for b in range(3):
        mean, cov, likelihood = conditioned(values[b], masks[b], **model)
        # R is at least .1 and the joint of order 10^3, a condition of 10^4 or so: 10^-12 of the
        # size of the figures
        size_of_all = 1 + np.abs(mean).max() + np.abs(cov).max() ** 0.5
        assert got.mean[b] == pytest.approx(mean, abs=1e-9 * size_of_all)
        assert got.cov[b] == pytest.approx(cov, abs=1e-9 * size_of_all**2)
        assert got.log_likelihood[b] == pytest.approx(likelihood, rel=1e-9, abs=1e-9)
    assert got.std**2 == pytest.approx(
        np.maximum(np.diagonal(got.cov, axis1=2, axis2=3), 0), rel=1e-12
    )


def test_kalman_without_an_observation_is_the_prior():
    got = kalman_smoother(np.full((2, 9, 1), np.nan), np.zeros(9, bool), **ou_model())
    assert (
        (got.mean == 0).all()
        and got.std == pytest.approx(SPREAD, rel=1e-14)
        and (got.log_likelihood == 0).all()
    )


def test_kalman_agrees_with_the_smoother_of_diffusions():
    sample, observed = (
        ornstein_uhlenbeck(1, 60, 59 * DT, RATE, SPREAD, NOISE),
        bursts(60, 0.3, 3.0).numpy(),
    )
    exact = kalman_smoother(sample.observed, observed, **ou_model())
    # one Euler step of these is the exact transition
    pull, process_noise = (KEPT - 1) / DT, SPREAD**2 * (1 - KEPT**2) / DT
    mean, cov = gaussian_smoother(
        lambda m, p: (pull * m, np.full((1, 1), pull), np.full((1, 1), process_noise)),
        sample.observed[0].numpy(),
        observed,
        np.array([NOISE]),
        DT,
        1,
        np.zeros(1),
        SPREAD**2 * np.eye(1),
    )
    assert exact.mean[0] == pytest.approx(mean, abs=1e-12)
    assert exact.std[0, :, 0] ** 2 == pytest.approx(cov[:, 0, 0], abs=1e-12)


def test_kalman_on_a_long_series():
    """Rows far away say nothing, the spread settles, and it is as large as the errors."""
    sample, observed = (
        ornstein_uhlenbeck(2, 4000, 3999 * DT, RATE, SPREAD, NOISE, seed=3),
        np.ones(4000, bool),
    )
    whole = kalman_smoother(sample.observed, observed, **ou_model())
    half = kalman_smoother(sample.observed[:, :2000], observed[:2000], **ou_model())
    # KEPT^100 is 2e-9, the gains less
    assert whole.mean[:, :1900] == pytest.approx(half.mean[:, :1900], abs=1e-9)
    assert np.ptp(whole.std[0, 100:3900]) < 1e-12
    # calibrated: squared errors are on average what the spread says; neighbours within 1 / RATE
    # are correlated
    error = (whole.mean - sample.latent.numpy()) / whole.std
    assert np.mean(error**2) == pytest.approx(1, abs=4 * math.sqrt(2 / (error.size * DT * RATE)))


def ou_grid(points, half=4.0, observed=None, batch=3, n=30):
    sample = ornstein_uhlenbeck(batch, n, (n - 1) * DT, RATE, SPREAD, NOISE, seed=1)
    observed = bursts(n, 0.3, 3.0, seed=2) if observed is None else observed
    grid = np.linspace(-half, half, points)
    g = SPREAD * math.sqrt(2 * RATE)
    got = grid_smoother(lambda z: -RATE * z, g, sample.observed, observed, NOISE, DT, grid)
    return got, kalman_smoother(sample.observed, observed, **ou_model())


def test_the_grid_ends_at_kalman_in_the_second_order():
    differences = []
    for points in (101, 201, 401):  # spacings .08, .04, .02
        got, exact = ou_grid(points)
        differences.append([np.abs(a - b).max() for a, b in zip(got[:3], exact[:3], strict=True)])
        # a share (f h / g^2)^2 of the spread at three sd, |f| = RATE 3 SPREAD; of a likelihood, one
        # per observed row
        share = (RATE * 3 * SPREAD * 8 / (points - 1) / (2 * RATE * SPREAD**2)) ** 2
        assert max(differences[-1][:2]) < share * SPREAD and differences[-1][2] < share * 30
        assert got.weights.sum(2) == pytest.approx(1, abs=1e-12) and (got.weights >= 0).all()
    ratios = np.array(differences[:-1]) / np.array(differences[1:])
    assert ((ratios > 3.5) & (ratios < 4.5)).all(), ratios


def test_a_mask_of_each_path():
    masks = np.random.default_rng(0).random((3, 30)) < 0.5
    together, exact = ou_grid(201, observed=masks)
    assert together.mean == pytest.approx(exact.mean, abs=5e-3)
    alone, _ = ou_grid(201, observed=masks[2])
    assert together.mean[2] == pytest.approx(alone.mean[2], abs=1e-12)
    assert together.log_likelihood[2] == pytest.approx(alone.log_likelihood[2], abs=1e-9)


WELL, GRID = (4.0, 1.0), np.linspace(-2.5, 2.5, 251)


def pull_to_wells(z):
    return WELL[0] * z * (1 - z**2)


def well_weights(points):
    """Two wells at the grid's points -1 and 1, where the simulator begins."""
    start = np.zeros(len(points))
    start[[np.abs(points + 1).argmin(), np.abs(points - 1).argmin()]] = 0.5
    return start


def test_left_alone_the_double_well_keeps_its_density():
    got = grid_smoother(
        pull_to_wells, WELL[1], np.zeros((1, 4, 1)), np.zeros(4, bool), 0.5, 1.3, GRID
    )
    density = np.exp(2 * WELL[0] * (GRID**2 / 2 - GRID**4 / 4) / WELL[1] ** 2)
    # energies are sums by the midpoint rule, h^2 / 24 (f'(end) - f'(start)) 2 / g^2 off: 1e-3 where
    # |z| < 2
    assert got.weights[0] == pytest.approx(
        np.tile(density / density.sum(), (4, 1)), rel=2e-3, abs=1e-9
    )
    assert got.log_likelihood[0] == pytest.approx(0, abs=1e-9)


def test_likelihoods_of_the_double_well_are_densities():
    x = np.linspace(-4, 4, 81)
    first, second = (part.ravel() for part in np.meshgrid(x, x))
    values = np.stack([first, second], 1)[..., None]
    got = grid_smoother(
        pull_to_wells, WELL[1], values, np.ones(2, bool), 0.5, 0.3, GRID, well_weights(GRID)
    )
    # noise beyond 4 of 2.5 is rarer
    assert np.exp(got.log_likelihood).sum() * 0.1**2 == pytest.approx(1, abs=1e-6)


def test_the_posterior_of_the_double_well_is_calibrated():
    """Paths of the simulator, which knows nothing of the grid: errors are as large as the spread
    says, and where.
    """
    sample = double_well(1000, 21, 4.0, *WELL, noise=0.8, seed=5)
    observed = np.arange(21) % 4 == 0
    got = grid_smoother(
        pull_to_wells, WELL[1], sample.observed, observed, 0.8, 0.2, GRID, well_weights(GRID)
    )
    truth = sample.latent.numpy()
    excess = ((truth - got.mean) ** 2 - got.std**2).mean((1, 2))  # (B,), independent, of mean 0
    # the simulator's Euler steps, 1 / 200, make a well's variance, 1 / 16, wider by 8 / 200 / 2,
    # its rate being 8
    assert abs(excess.mean()) < 4 * excess.std() / math.sqrt(1000) + 2e-3
    # (B, n)
    right = got.weights[..., GRID > 0].sum(2) + got.weights[..., np.abs(GRID) < 1e-9].sum(2) / 2
    surprise = ((truth[..., 0] > 0) - right).mean(1)
    assert abs(surprise.mean()) < 4 * surprise.std() / math.sqrt(1000)
    doubtful, sure = (right > 0.2) & (right < 0.8), np.abs(right - 0.5) > 0.499
    assert doubtful.mean() > 0.02 and sure.mean() > 0.02
    # over both wells, or within one
    assert got.std[..., 0][doubtful].min() > 0.5 > got.std[..., 0][sure].max()


def test_tensors_and_arrays_are_alike():
    sample = ornstein_uhlenbeck(2, 9, 8 * DT, RATE, SPREAD, NOISE)
    observed = torch.arange(9) % 2 == 0
    tensors = kalman_smoother(sample.observed, observed, **ou_model())
    arrays = kalman_smoother(sample.observed.numpy(), observed.numpy(), **ou_model())
    assert (tensors.mean == arrays.mean).all() and tensors.mean.dtype == np.float64


GOOD = dict(values=np.zeros((2, 5, 1)), observed=np.ones(5, bool))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (dict(values=np.zeros((5, 1))), r"expected values \(B, n, X\)"),
        (
            dict(values=np.zeros((2, 0, 1)), observed=np.ones(0, bool)),
            r"expected values \(B, n, X\)",
        ),
        (dict(observed=np.ones(5)), "must be bool, got torch.float64"),
        (dict(observed=np.ones(4, bool)), r"bool of shape \(4,\)"),
        (dict(observed=np.ones((3, 5), bool)), r"bool of shape \(3, 5\)"),
        (dict(values=np.full((2, 5, 1), np.nan)), "finite values"),
        (dict(values=np.zeros((2, 5, 2))), "with X = 2"),
        (dict(transition=np.eye(2)), r"expected A \(Z, Z\)"),
        (dict(mean=np.zeros((1, 1))), r"mean \(Z,\)"),
        (dict(noise=np.zeros((1, 1))), "positive definite"),
    ],
)
def test_kalman_names_bad_arguments(change, said):
    with pytest.raises((TypeError, ValueError), match=said):
        kalman_smoother(**(ou_model() | GOOD | change))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (dict(values=np.zeros((2, 5, 2))), "2 channels"),
        (dict(observed=np.ones(4, bool)), r"bool of shape \(4,\)"),
        (dict(diffusion=0.0), "diffusion as a positive"),
        (dict(noise=-1.0), "noise as a positive"),
        (dict(dt=0.0), "dt as a positive"),
        (dict(grid=np.linspace(-2, 2, 41) ** 3), "an even, rising grid"),
        (dict(grid=np.linspace(2, -2, 41)), "an even, rising grid"),
        (dict(grid=np.linspace(-2, 2, 5)), "too coarse"),
        (dict(grid=np.linspace(-0.5, 0.5, 41)), "too narrow"),
        (dict(start=np.ones(41)), "41.0"),
        (dict(start=np.ones(3) / 3), r"expected start as \(41,\)"),
        (dict(drift=lambda z: z[:3]), "finite numbers from the drift"),
        (dict(drift=lambda z: z + np.inf), "finite numbers from the drift"),
    ],
)
def test_the_grid_names_bad_arguments(change, said):
    good = dict(drift=pull_to_wells, diffusion=1.0, noise=0.5, dt=0.1, grid=np.linspace(-2, 2, 41))
    with pytest.raises(ValueError, match=said):
        grid_smoother(**(good | GOOD | change))
