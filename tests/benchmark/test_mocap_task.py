"""The cycle that motion capture is forecast with, on walks whose phase and speed are known, in a
file of the form of mocap35.mat; and its record.
"""

import numpy as np
import pytest
from scipy.io import savemat

from fractal_lib.benchmark import mocap_rivals, mocap_task
from fractal_lib.benchmark.mocap_cycle import fit_cycle, fourier
from fractal_lib.benchmark.record import load
from fractal_lib.benchmark.registry import CASES

FRAMES, CHANNELS, NOISE = 300, 50, 0.1


def walks(speeds, seed=0, centred=True):
    """A cycle of three harmonics, with noise, each walk centred as those of the file are."""
    rng, cycle = np.random.default_rng(seed), np.random.default_rng(9).normal(size=(6, CHANNELS))
    cycle[0:2] *= 4  # the first harmonic is the largest
    phase = rng.uniform(0, 2 * np.pi, len(speeds))
    angle = phase[:, None] + np.asarray(speeds)[:, None] * np.arange(FRAMES)
    values = fourier(angle)[..., 1:7] @ cycle
    if centred:
        values = values - values.mean(1, keepdims=True)
    return values + NOISE * rng.normal(size=values.shape)


@pytest.fixture(scope="module")
def parts():
    rng = np.random.default_rng(1)
    speeds = 2 * np.pi / rng.normal(136, 2, 23)
    whole = walks(speeds)
    return speeds, {"Xtr": whole[:16], "Xval": whole[16:19], "Xtest": whole[19:]}


def test_the_fit_finds_every_speed(parts):
    speeds, arrays = parts
    cycle = fit_cycle(walks(speeds[:16], centred=False))
    # a walk tells its speed to NOISE / (slope FRAMES^(3/2) / 12^(1/2)), here 2e-5 of it
    np.testing.assert_allclose(np.abs(cycle.speeds), speeds[:16], rtol=2e-4)
    known = np.log(speeds[:16])
    np.testing.assert_allclose(cycle.log_speed, (known.mean(), known.std(ddof=1)), atol=2e-4)
    angle = cycle.phases[:, None] + cycle.speeds[:, None] * np.arange(FRAMES)
    rest = walks(speeds[:16], centred=False) - cycle.at(angle)
    assert abs(rest.std() / NOISE - 1) < 0.02
    # a walk is centred over two cycles and a bit, which moves it
    centred = fit_cycle(arrays["Xtr"])
    np.testing.assert_allclose(np.abs(centred.speeds), speeds[:16], rtol=0.01)


def test_slopes_of_the_series_are_its_derivatives():
    angle = np.linspace(0, 7, 20)
    by_difference = (fourier(angle + 1e-6) - fourier(angle - 1e-6)) / 2e-6
    np.testing.assert_allclose(fourier(angle, slope=True), by_difference, atol=1e-7)


def test_a_posterior_knows_the_phase_and_hardly_the_speed(parts):
    _, arrays = parts
    cycle = fit_cycle(arrays["Xtr"])
    for walk in arrays["Xval"]:
        phases, log_speeds, weight = cycle.posterior(walk[:3])
        assert weight.shape == (len(phases), len(log_speeds)) and abs(weight.sum() - 1) < 1e-12
        best = phases[weight.sum(1).argmax()]
        # the step of the grid is .035
        known = ((walk[0] - cycle.at(np.linspace(0, 2 * np.pi, 2000))) ** 2).mean(1)
        apart = abs(np.exp(1j * best) - np.exp(2j * np.pi * known.argmin() / 1999))
        assert apart < 0.1
        speed = weight.sum(0)
        assert (speed * (log_speeds - speed @ log_speeds) ** 2).sum() ** 0.5 > 0.005


def test_the_case_forecasts_and_reads_three_frames_of_a_test_sequence(parts, tmp_path):
    _, arrays = parts
    savemat(tmp_path / "walk.mat", arrays)
    tiny = {"seeds": [0, 3], "samples": 8, "progress": False}
    one = CASES["mocap"].run(path=tmp_path / "walk.mat", **tiny)
    assert [run["seed"] for run in one["runs"]] == [0, 3] * 2
    variance = arrays["Xtest"].var()
    for run in one["runs"]:
        assert run["mse"] == pytest.approx(np.mean(run["mse_by_sequence"]))
        assert NOISE**2 < run["mse"] < 0.2 * variance and run["mse"] < run["path_mse"]
    for row in one["summary"]:
        each = [run["mse"] for run in one["runs"] if run["rival"] == row["rival"]]
        assert row["mse"] == pytest.approx(np.mean(each))
        assert row["interval"] == pytest.approx(12.706 * np.std(each, ddof=1) / 2**0.5)
        assert max(row["left_out"].values()) < 0.2 * variance
    # what comes after the third frame of a test sequence is not read
    data = mocap_rivals.mocap(tmp_path / "walk.mat")
    other = data.test.copy()
    other[:, 3:] += 5
    cycle = fit_cycle(data.train)
    for walk, changed in zip(data.test, other, strict=True):
        paths = (cycle.paths(w[:3], FRAMES, 4, 0) for w in (walk, changed))
        assert np.array_equal(*paths)
    savemat(tmp_path / "other.mat", arrays | {"Xtest": other})
    two = CASES["mocap"].run(path=tmp_path / "other.mat", **tiny)
    assert one["summary"][0]["left_out"] == two["summary"][0]["left_out"]
    assert one["summary"][0]["frames_a_cycle"] == two["summary"][0]["frames_a_cycle"]
    assert all(run["mse"] > variance for run in two["runs"])  # and what is scored, is


def test_the_models_are_fitted_to_what_they_say(parts):
    _, arrays = parts
    data = mocap_rivals.Mocap(*arrays.values())
    assert [len(fitted(data)) for fitted in mocap_task.MODELS.values()] == [16, 19]


def test_the_record_has_ten_seeds_and_its_own_means():
    record = load("mocap")
    for row in record["summary"]:
        each = [run["mse"] for run in record["runs"] if run["rival"] == row["rival"]]
        assert len(each) == 10 and row["mse"] == pytest.approx(np.mean(each))
        assert row["interval"] == pytest.approx(2.262 * np.std(each, ddof=1) / 10**0.5)
