"""Forecasts know nothing of what comes after their origin; the baselines do what they say."""

import numpy as np
import pytest

from fractal_lib.benchmark import forecast_rivals, forecast_sde, glucose_rivals, mocap_rivals
from fractal_lib.benchmark.record import load
from fractal_lib.data.co2 import co2
from fractal_lib.data.glucose import glucose_split
from fractal_lib.data.mocap import Mocap

ForecastTask = forecast_rivals.ForecastTask
# of a season that does not drift at all; the records say what converged
pytestmark = pytest.mark.filterwarnings("ignore:Maximum Likelihood optimization failed")


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(forecast_sde, "STEPS", 20)


@pytest.fixture(scope="module")
def task():
    """Two seasons of a wave that grows, with noise and a gap."""
    generator = np.random.default_rng(0)
    t = np.arange(400)
    values = 0.02 * t + np.sin(2 * np.pi * t / 40) + 0.1 * generator.standard_normal(400)
    values[50:53] = np.nan
    origins = np.array([240, 300, 350])
    return ForecastTask(values, origins, 12, {"1": 1, "12": 12}, 40.0, True, "m")


@pytest.mark.parametrize("name", forecast_rivals.RIVALS)
def test_no_forecast_knows_what_comes_after_its_origin(name, task):
    forecast = forecast_rivals.RIVALS[name]
    mean, std, _ = forecast(task)
    assert mean.shape == std.shape == task.truth.shape and (std > 0).all()
    for which, origin in enumerate(task.origins):
        other = task.values.copy()
        other[origin + 1 :] = 1e3  # known to later origins alone
        changed = ForecastTask(other, task.origins, *list(vars(task).values())[2:])
        again, spread, _ = forecast(changed)
        np.testing.assert_allclose(again[: which + 1], mean[: which + 1], rtol=1e-9)
        np.testing.assert_allclose(spread[: which + 1], std[: which + 1], rtol=1e-9)


def test_those_that_know_the_season_are_better(task):
    error = {
        name: np.sqrt(np.mean((forecast(task)[0] - task.truth) ** 2))
        for name, forecast in forecast_rivals.RIVALS.items()
        if name != "latent SDE"  # in 20 steps it learns nothing
    }
    best = error.pop("last value")
    assert max(error.values()) < 0.5 * best
    assert min(error["autoregression"], error["structural model"]) < 0.2


def test_the_spread_of_the_last_value_grows(task):
    mean, std, _ = forecast_rivals.last_value(task)
    assert (np.diff(std[0]) > 0).all()
    assert (mean == task.values[task.origins][:, None]).all()


def test_the_state_space_forecast_is_statsmodels(task):
    """Of one origin, the library's own forecast; its parameters are those of the rows before."""
    one = ForecastTask(task.values, task.origins[:1], *list(vars(task).values())[2:])
    mean, std, more = forecast_rivals.structural(one)
    season = [{"period": 40.0, "harmonics": 4}]
    model = forecast_rivals.structural_model(
        task.values[: task.origins[0] + 1], "local linear trend", freq_seasonal=season
    )
    found = model.filter(list(more["estimates"].values())).get_forecast(12)
    np.testing.assert_allclose(mean[0], found.predicted_mean, rtol=1e-8)
    np.testing.assert_allclose(std[0], np.sqrt(np.asarray(found.var_pred_mean)), rtol=1e-8)


def test_the_tasks_judge_observed_rows_after_the_origins():
    for make in forecast_rivals.TASKS.values():
        task = make(5)
        assert np.isfinite(task.values[task.origins]).all() and len(task.origins) == 5
        assert (np.diff(task.origins) > 0).all()
        parts = task.parts()
        assert set(parts) == {*task.horizons, "all"}
        assert (parts["all"] == np.isfinite(task.truth)).all()
        for name, rows in task.horizons.items():
            assert not parts[name][:, : rows - 1].any() and parts[name][:, rows - 1].any()
    series, task = co2(), forecast_rivals.co2_forecasts()
    assert series.dates[task.origins[0]] <= np.datetime64("1988-01-02")
    assert task.origins[-1] + task.horizon < len(series.values)


@pytest.mark.parametrize("name", ["last value", "last season"])
def test_recorded_forecasts_are_made_again(name, capsys):
    *_, payload = forecast_rivals.forecast_rivals(only=[name], progress=False)
    recorded = [run for run in load("forecast-rivals")["runs"] if run["rival"] == name]
    for run, old in zip(payload["runs"], recorded, strict=True):
        for part, scored in old["report"].items():
            assert run["report"][part] == pytest.approx(scored, rel=1e-9)


def test_the_line_through_glucose_is_the_recorded_one(capsys):
    line = "linear interpolation"
    *_, payload = glucose_rivals.glucose_rivals(seeds=[0], only=[line], progress=False)
    old = next(run for run in load("glucose-rivals")["runs"] if run["rival"] == line)
    for part, scored in old["report"].items():
        assert payload["runs"][0]["report"][part] == pytest.approx(scored, rel=1e-9)


def test_the_grid_of_glucose_is_the_same_whatever_is_held_out():
    record, train, _ = glucose_split()
    every = glucose_rivals.on_grid(record, np.ones(len(train), bool))
    some = glucose_rivals.on_grid(record, train)
    assert every.shape == some.shape == (57770,)
    both = np.isfinite(some)
    assert np.isfinite(every[both]).all() and both.sum() < np.isfinite(every).sum()


WALKS = np.random.default_rng(0).standard_normal((9, 30, 4)).cumsum(1)


def test_a_neighbour_that_is_there_is_followed_to_its_end():
    data = Mocap(WALKS[:4], WALKS[4:6], WALKS[6:])
    for start in (0, 5):
        given = WALKS[2:3, start : start + 3]
        forecast, _ = mocap_rivals.nearest(data, given)
        assert forecast.shape == (1, 27, 4)
        np.testing.assert_array_equal(forecast[0, : 27 - start], WALKS[2, start + 3 :])
        assert np.isfinite(forecast).all()


def test_an_autoregression_is_found_and_rolled_out():
    generator = np.random.default_rng(1)
    turn = np.array([[0.8, -0.6], [0.6, 0.8]])
    walks = [generator.standard_normal((9, 2))]
    for _ in range(29):
        walks.append(walks[-1] @ turn.T)
    walks = np.stack(walks, 1)
    walks = walks - walks[:4].mean((0, 1))
    data = Mocap(walks[:4], walks[4:6], walks[6:])
    forecast, more = mocap_rivals.ridge_autoregression(data, data.test[:, :3])
    assert more["ridge"] == min(mocap_rivals.RIDGES)
    assert mocap_rivals.error(forecast, data.test).max() < 1e-3
    assert (
        mocap_rivals.error(mocap_rivals.mean_frame(data, data.test[:, :3])[0], data.test).min()
        > 0.01
    )


def test_the_ridge_is_chosen_where_it_is_said():
    data = Mocap(WALKS[:4], WALKS[4:6], WALKS[6:])
    given = data.test[:, :3]
    for name, chosen_on in (
        ("ridge autoregression", data.validation),
        ("ridge autoregression, chosen on the test set", data.test),
    ):
        _, more = mocap_rivals.RIVALS[name](data, given)
        errors = [
            ((mocap_rivals._rollout(data, chosen_on[:, :3], r) - chosen_on[:, 3:]) ** 2).mean()
            for r in mocap_rivals.RIDGES
        ]
        assert more["ridge"] == mocap_rivals.RIDGES[int(np.argmin(errors))]


def test_published_figures_are_in_the_record_as_they_are_in_the_table():
    recorded = {row["name"]: row["mse"] for row in load("mocap-rivals")["published"]}
    assert recorded == {name: mse for name, (mse, _, _) in mocap_rivals.PUBLISHED.items()}
    assert (recorded["SDE Matching"], recorded["latent SDE"]) == (4.50, 4.03)
