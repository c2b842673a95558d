"""The scores are what their definitions say, integrated or taken from another library."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import norm

from fractal_lib.inference.metrics import crps_samples, sample_scores, scores

one = st.floats(-5, 5)
spread = st.floats(0.05, 20)


def score(mean, sd, truth):
    return scores(np.array([mean]), np.array([sd]), np.array([truth]))


@given(one, spread, one)
def test_crps_is_the_integral_of_the_squared_difference_of_distributions(mean, sd, truth):
    # beyond it the integrand is below 1e-60
    low, high = min(mean - 12 * sd, truth), max(mean + 12 * sd, truth)
    below = quad(
        lambda x: norm.cdf(x, mean, sd) ** 2,
        low,
        truth,
        limit=200,
        points=[max(low, min(mean, truth))],
    )
    above = quad(
        lambda x: norm.sf(x, mean, sd) ** 2,
        truth,
        high,
        limit=200,
        points=[min(high, max(mean, truth))],
    )
    assert score(mean, sd, truth)["crps"] == pytest.approx(
        below[0] + above[0], abs=1e-9 + below[1] + above[1]
    )


@given(one, spread, one)
def test_nll_is_scipys(mean, sd, truth):
    expected = -norm.logpdf(truth, mean, sd)
    assert score(mean, sd, truth)["nll"] == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_rmse_is_a_norm():
    generator = np.random.default_rng(0)
    mean, truth = generator.standard_normal((2, 7, 3))
    expected = np.linalg.norm(mean - truth) / math.sqrt(21)
    assert scores(mean, np.ones((7, 3)), truth)["rmse"] == pytest.approx(expected, rel=1e-14)


def test_coverage_counts_the_middle_nine_tenths():
    quantiles = (np.arange(1000) + 0.5) / 1000
    sd, mean = np.full(1000, 2.5), np.full(1000, -3.0)
    assert scores(mean, sd, norm.ppf(quantiles, -3.0, 2.5))["coverage"] == 0.9
    assert scores(mean, sd / 1e6, norm.ppf(quantiles, -3.0, 2.5))["coverage"] == 0
    assert scores(mean, sd * 1e6, norm.ppf(quantiles, -3.0, 2.5))["coverage"] == 1


@given(one, spread, one, st.floats(0.1, 10), one)
def test_another_unit_scales_the_scores(mean, sd, truth, scale, shift):
    first, second = (
        score(mean, sd, truth),
        score(scale * mean + shift, scale * sd, scale * truth + shift),
    )
    # an error of 1e-14 in z is all that moving by `shift` leaves: of order 1e-16 * 55 / (scale *
    # sd)
    assert second["rmse"] == pytest.approx(scale * first["rmse"], rel=1e-9, abs=1e-12)
    assert second["crps"] == pytest.approx(scale * first["crps"], rel=1e-9, abs=1e-12)
    assert second["nll"] == pytest.approx(first["nll"] + math.log(scale), rel=1e-9, abs=1e-9)


def test_the_true_distribution_is_best_in_the_mean():
    generator = np.random.default_rng(1)
    truth = generator.standard_normal(20_000)
    names = "nll", "crps"
    best = scores(np.zeros(20_000), np.ones(20_000), truth)
    for mean, sd in ((0.2, 1.0), (0.0, 1.3), (0.0, 0.7)):
        other = scores(np.full(20_000, mean), np.full(20_000, sd), truth)
        assert all(best[name] < other[name] for name in names)


@pytest.mark.parametrize(
    ("mean", "sd", "truth"),
    [
        (np.zeros(3), np.ones(3), np.zeros(2)),
        (np.zeros(3), np.ones(1), np.zeros(3)),
        (np.zeros(0), np.ones(0), np.zeros(0)),
        (np.zeros(3), np.array([1.0, 0.0, 1.0]), np.zeros(3)),
        (np.zeros(3), np.array([1.0, np.nan, 1.0]), np.zeros(3)),
    ],
)
def test_bad_arguments_are_named(mean, sd, truth):
    with pytest.raises(ValueError, match="three arrays of one shape, std > 0; got"):
        scores(mean, sd, truth)


def test_plain_numbers_are_taken_as_arrays_of_one_are():
    assert scores(0.0, 1.0, 0.3) == scores(*(np.array([part]) for part in (0.0, 1.0, 0.3)))


@given(st.integers(2, 40), st.integers(0, 10**6))
def test_crps_of_an_ensemble_is_its_definition(members, seed):
    generator = np.random.default_rng(seed)
    samples, truth = generator.standard_normal((members, 3, 2)), generator.standard_normal((3, 2))
    samples[0] = samples[-1]  # a tie
    pairs = np.abs(samples[:, None] - samples[None]).sum((0, 1)) / (members * (members - 1))
    expected = np.abs(samples - truth).mean(0) - pairs / 2
    np.testing.assert_allclose(crps_samples(samples, truth), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("members", [2, 5, 200])
def test_crps_of_few_members_is_fair(members):
    """In the mean the Gaussian's, whatever their number: within four standard errors."""
    generator = np.random.default_rng(0)
    truth = generator.standard_normal(40_000)
    found = crps_samples(0.3 + 1.5 * generator.standard_normal((members, len(truth))), truth)
    expected = scores(np.full(len(truth), 0.3), np.full(len(truth), 1.5), truth)["crps"]
    assert abs(found.mean() - expected) < 4 * found.std() / len(truth) ** 0.5


def test_scores_of_a_large_ensemble_are_the_gaussians():
    generator = np.random.default_rng(1)
    truth = generator.standard_normal(300)
    mean, sd = generator.standard_normal(300) / 2, 0.5 + generator.random(300)
    found = sample_scores(mean + sd * generator.standard_normal((20_000, 300)), truth)
    expected = scores(mean, sd, truth)
    assert found.keys() == expected.keys() - {"nll"}
    for name, value in found.items():
        assert value == pytest.approx(expected[name], rel=0.01)


@pytest.mark.parametrize("members", [19, 20, 50])
def test_coverage_of_a_small_ensemble_is_right(members):
    draws = np.random.default_rng(2).standard_normal((members + 1, 20_000))
    assert sample_scores(draws[1:], draws[0])["coverage"] == pytest.approx(0.9, abs=0.01)


@pytest.mark.parametrize(
    ("call", "samples", "truth"),
    [
        (crps_samples, np.zeros((1, 3)), np.zeros(3)),
        (crps_samples, np.zeros((5, 3)), np.zeros(2)),
        (crps_samples, 3.0, 3.0),
        (crps_samples, np.full((5, 3), np.nan), np.zeros(3)),
        (crps_samples, np.zeros((5, 3)), np.full(3, np.inf)),
        (sample_scores, np.zeros((18, 3)), np.zeros(3)),
        (sample_scores, np.zeros((19, 0)), np.zeros(0)),
    ],
)
def test_what_is_no_ensemble_is_refused(call, samples, truth):
    with pytest.raises(ValueError, match=r"expected .*got"):
        call(samples, truth)
