"""The rivals of the posterior: what they share, and that recorded figures are made again."""

import numpy as np
import pytest
import torch

from fractal_lib.benchmark.co2_rivals import co2_rivals
from fractal_lib.benchmark.long_rivals import long_rivals
from fractal_lib.benchmark.record import load
from fractal_lib.benchmark.rivals import distances, judge, left_out_mse
from fractal_lib.benchmark.tasks import long_task
from fractal_lib.data.co2 import HIDDEN_YEARS
from fractal_lib.data.simulate import bursts, long_lorenz


def test_the_line_that_leaves_out_what_is_nearer():
    """Against the definition, row by row."""
    generator = np.random.default_rng(0)
    values, known = generator.standard_normal((60, 2)), np.flatnonzero(generator.random(60) < 0.7)
    for distance in (1, 2, 7):
        errors = []
        for row in known:
            left, right = known[known <= row - distance], known[known >= row + distance]
            if len(left) and len(right):
                ends = [left[-1], right[0]]
                errors.append([np.interp(row, ends, c[ends]) - c[row] for c in values.T])
        expected = np.square(errors).mean(0)
        np.testing.assert_allclose(left_out_mse(values, known, distance), expected, rtol=1e-12)


def test_distances_are_to_the_nearest_on_either_side():
    known = np.array([2, 3, 9])
    expected = [min(abs(row - k) for k in known) for row in range(12)]
    assert distances(known, 12).tolist() == expected


def test_judging_scores_parts_that_have_rows_and_keeps_warnings():
    def predict():
        np.float64(1) / np.float64(0)
        return np.zeros(4), np.ones(4), {"more": 1}

    parts = {"some": np.array([True, True, False, False]), "none": np.zeros(4, bool)}
    run = judge(predict, np.array([3.0, 4.0, 0.0, 0.0]), parts)
    assert run["report"].keys() == {"some"} and run["more"] == 1
    assert run["report"]["some"]["rmse"] == pytest.approx(12.5**0.5)
    assert len(run["warnings"]) == 1 and run["warnings"][0].startswith("RuntimeWarning: divide")


def test_the_line_through_carbon_dioxide_is_the_recorded_one(capsys):
    *_, payload = co2_rivals(only=["linear interpolation"], progress=False)
    years = {run["year"] for run in payload["runs"]}
    assert years == set(HIDDEN_YEARS) and len(payload["runs"]) == 24
    recorded = [r for r in load("co2-rivals")["runs"] if r["rival"] == "linear interpolation"]
    for run, old in zip(payload["runs"], recorded, strict=True):
        assert (run["year"], run["seed"]) == (old["year"], old["seed"])
        assert run["spread_by_distance_ppm"] == old["spread_by_distance_ppm"]
        for part, scored in old["report"].items():
            assert run["report"][part] == pytest.approx(scored, rel=1e-9)


def test_the_line_through_the_long_series_is_the_recorded_one_in_a_process_of_its_own(capsys):
    """The simulation too: 100 000 rows of it, and which of them are missing."""
    *_, payload = long_rivals(only=["linear interpolation"], progress=False)
    (run,), (old, *_) = payload["runs"], load("long-rivals")["runs"]
    assert run["rival"] == old["rival"] and run["spread_by_distance"] == old["spread_by_distance"]
    for part, scored in old["report"].items():
        assert run["report"][part] == pytest.approx(scored, rel=1e-9)
    assert run["peak_memory_mb"] is None or run["peak_memory_mb"] >= run["memory_before_mb"] > 0


def test_the_seed_decides_which_rows_are_missing():
    for make in (lambda s: bursts(3000, 0.2, 8.0, s), lambda s: long_lorenz(3000, seed=s)[1]):
        assert torch.equal(make(1), make(1))
        # two masks of a fifth missing differ in 2 * .2 * .8 = 32 % of the rows
        assert 0.2 < (make(1) != make(2)).double().mean() < 0.45
    simulation, observed = long_lorenz(500)
    task = long_task(500)
    assert torch.equal(task.train.observed[0], observed)
    assert torch.equal(task.train.values[0][observed], simulation.observed[0].float()[observed])
