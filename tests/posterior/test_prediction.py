"""Filter, forecast, hidden rows and calibration: where the answer is known."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from fractal_lib.posterior import (
    Hiding,
    KnownPrior,
    LadderPosterior,
    LatentSDE,
    LinearGaussianLikelihood,
    Marginals,
    Observations,
    Posterior,
    PriorSDE,
    TrainingPlan,
    calibrate,
    fit,
)
from fractal_lib.posterior.prediction import scaled

RATE, STD, NOISE = 2.0, 1.0, 0.5


def identity_likelihood(noise=NOISE, channels=1):
    likelihood = LinearGaussianLikelihood(channels, channels, noise)
    nn.init.eye_(likelihood.net.weight)
    nn.init.zeros_(likelihood.net.bias)
    return likelihood.double()


def ornstein_uhlenbeck():
    g = STD * (2 * RATE) ** 0.5
    return KnownPrior(lambda z, t: -RATE * z, lambda z, t: g, [0.0], [STD]).double()


class Told(Posterior):
    """Mean and std as functions of the number of observations that are read."""

    def __init__(self, mean=0.0, std=1.0, causal=False):
        super().__init__()
        self.mean, self.std, self.causal = mean, std, causal

    def prepare(self, data):
        return data

    def forward(self, prepared, series, t):
        # the last value that is there
        last = prepared.rows.long().cumsum(1).argmax(1)[series]
        value = prepared.values[series, last].unsqueeze(1).expand(-1, t.shape[1], -1)
        one = torch.ones_like(value)
        return Marginals(self.mean + value, self.std * one, 0 * one, 0 * one)


def test_a_forecast_of_a_linear_process_is_the_exact_one():
    """An Ornstein-Uhlenbeck path, known at its end up to a std of .3: mean and spread decay."""
    data = Observations(torch.tensor([[[1.0], [2.0]], [[0.0], [-1.0]]], dtype=torch.float64))
    model = LatentSDE(ornstein_uhlenbeck(), identity_likelihood(), Told(std=0.3))
    generator = torch.Generator().manual_seed(0)
    found = model.forecast(data, [0, 1], 0.5, 20_000, steps=200, generator=generator)
    assert found.latent.shape == (2, 20_000, 201, 1) and found.values.shape == found.latent.shape
    assert found.times[-1] == 0.5
    decay = math.exp(-RATE * 0.5)
    variance = 0.3**2 * decay**2 + STD**2 * (1 - decay**2)
    # 20,000 paths; Euler-Maruyama's error is of the order of the step, RATE / 400
    error = 4 * (variance / 20_000) ** 0.5 + 0.01
    for series, last in enumerate([2.0, -1.0]):
        assert abs(found.latent[series, :, -1].mean() - last * decay) < error
        assert abs(found.latent[series, :, -1].var() - variance) < 0.02
        assert abs(found.values[series, :, -1].var() - variance - NOISE**2) < 0.03


def test_a_forecast_does_not_read_what_comes_after_its_start():
    values = torch.arange(10.0).view(1, 10, 1).double()
    model = LatentSDE(ornstein_uhlenbeck(), identity_likelihood(), Told(std=1e-6))
    for start, last in ((0.5, 4.0), (1.0, 9.0), (0.0, 0.0), (1 / 3, 3.0)):
        found = model.forecast(Observations(values), [0], 1.0, 3, start=start)
        assert abs(found.latent[0, :, 0] - last).max() < 1e-4
    late = Observations(values, observed=torch.arange(10) > 5)
    with pytest.raises(ValueError, match="no observed row left"):
        model.forecast(late, [0], 1.0, start=0.5)
    with pytest.raises(TypeError, match="start must be a tensor or an array of numbers"):
        model.forecast(Observations(values), [0], 1.0, start="now")
    with pytest.raises(ValueError, match="start from 0 to 1 of the duration, got 2"):
        model.forecast(Observations(values), [0], 1.0, start=2)


def test_a_filter_needs_a_causal_posterior():
    data = Observations(torch.randn(1, 10, 1).double())
    model = LatentSDE(ornstein_uhlenbeck(), identity_likelihood(), Told())
    with pytest.raises(ValueError, match="reads the past alone"):
        model.filter(data, [0], torch.rand(1, 3))
    model.posterior.causal = True
    mean, std = model.filter(data, [0], torch.rand(1, 3).double())
    assert mean.shape == (1, 3, 1) and bool((std > NOISE).all())


def test_a_trained_filter_does_not_know_the_future():
    torch.manual_seed(0)
    data = Observations(torch.randn(2, 30, 1))
    likelihood = LinearGaussianLikelihood(1, 1, NOISE)
    causal = LadderPosterior.of(data, 1, 8, causal=True)
    model = LatentSDE(PriorSDE(1, 8), likelihood, causal)
    fit(model, data, TrainingPlan(steps=3))
    other = data.values.clone()
    other[:, 20:] += 5
    t = torch.linspace(0, 19 / 29, 40).expand(2, -1).double()
    one, two = (model.filter(d, [0, 1], t)[0] for d in (data, Observations(other)))
    assert torch.equal(one, two)


def test_hidden_rows_are_scored_by_what_is_predicted():
    """Seen rows by the expected log density, hidden ones by the log density of the prediction."""
    values = torch.tensor([[[0.0], [1.5]]], dtype=torch.float64)
    data, s = Observations(values), 0.7
    view = data.hide(torch.tensor([False, True]))
    model = LatentSDE(ornstein_uhlenbeck(), identity_likelihood(), Told(std=s))
    generator = torch.Generator().manual_seed(0)
    terms = [model(data, view, [0] * 4000, 2, generator).nll.mean() for _ in range(5)]
    # the posterior is N(0, s^2) throughout: the only row it sees is 0
    seen = 0.5 * (math.log(2 * math.pi * NOISE**2) + s**2 / NOISE**2)
    variance = s**2 + NOISE**2
    hidden = 0.5 * (math.log(2 * math.pi * variance) + 1.5**2 / variance)
    assert abs(sum(terms) / 5 - (seen + hidden)) < 0.05
    twice = model(data, view, [0] * 4000, 2, generator, hidden_weight=2.0).nll.mean()
    assert abs(twice - (seen + 2 * hidden)) < 0.08
    with pytest.raises(ValueError, match="made from other observations"):
        model(view, data, [0])


@pytest.mark.parametrize("n", [1, 2, 50])
def test_views_hide_the_share_that_was_asked_and_leave_a_row(n):
    data = Observations(torch.randn(200, n, 1))
    generator = torch.Generator().manual_seed(0)
    view = Hiding(longest=10, stretches=0.3, scattered=0.2).view(data, generator)
    assert view.whole is data and view.counts.min() >= 1
    if n == 50:
        hidden = 1 - view.counts.double().mean() / n
        assert abs(hidden - (1 - 0.7 * 0.8)) < 0.04  # 200 series, shares uniform in 0 .. twice
        longest = max(len(run) for row in view.rows for run in _runs(~row))
        assert longest >= 10  # stretches touch one another
    assert Hiding(longest=2, stretches=np.float32(0.25)).stretches == 0.25
    assert Hiding(longest=1, stretches=0.0, scattered=0.0).view(data, generator).complete


def _runs(flags):
    return "".join("x" if flag else " " for flag in flags.tolist()).split() or [""]


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (dict(longest=0), "longest of at least 1, got 0"),
        (dict(longest=5, views=0), "views of at least 1"),
        (dict(longest=5, stretches=0.5), "below 1/2, got 0.5"),
        (dict(longest=5, scattered="a"), "below 1/2, got 'a'"),
        (dict(longest=5, weight=-1.0), "weight as a positive"),
    ],
)
def test_bad_hiding_is_refused(bad, words):
    with pytest.raises((TypeError, ValueError), match=words):
        Hiding(**bad)


def test_a_run_with_hidden_rows_resumes_where_it_was(tmp_path):
    data = Observations(torch.randn(3, 30, 1))
    hiding = Hiding(longest=5, views=3)

    def train(steps, file=None):
        torch.manual_seed(0)
        likelihood = LinearGaussianLikelihood(1, 1, NOISE)
        model = LatentSDE(PriorSDE(1, 8), likelihood, LadderPosterior.of(data, 1, 8, gaps=True))
        plan = TrainingPlan(steps=steps, hiding=hiding)
        return fit(model, data, plan, file)["nll"]

    train(4, tmp_path / "run.pt")
    assert train(7, tmp_path / "run.pt") == train(7)


def test_calibration_finds_the_factor_that_a_spread_is_wrong_by():
    """The path's own std is told three times too small; the noise's is right."""
    torch.manual_seed(0)
    n = 4000
    path = 0.6 * torch.randn(1, n, 1, dtype=torch.float64)
    data = Observations(path + NOISE * torch.randn(1, n, 1, dtype=torch.float64))

    class Narrow(LadderPosterior):
        def forward(self, prepared, series, t):
            q = super().forward(prepared, series, t)
            return Marginals(0 * q.mean, 0 * q.std + 0.2, 0 * q.mean_dt, 0 * q.std_dt)

    narrow = Narrow.of(data, 1, 8, gaps=True).double()
    model = LatentSDE(ornstein_uhlenbeck(), identity_likelihood(), narrow)
    hiding = Hiding(longest=20)
    before = model.predict(data, [0], torch.rand(1, 5).double())[1]
    calibrate(model, data, hiding)
    after = model.predict(data, [0], torch.rand(1, 5).double())[1]
    expected = (0.6**2 + NOISE**2) ** 0.5
    assert bool((before < expected - 0.05).all())
    # 20,000 rows, of which many twice: their variance is known to 2 %, the std to 1 %
    np.testing.assert_allclose(after, expected, rtol=0.05)
    with pytest.raises(ValueError, match="calibrate needs a posterior that knows gaps"):
        calibrate(LatentSDE(ornstein_uhlenbeck(), identity_likelihood(), Told()), data, hiding)
    with pytest.raises(ValueError, match="got none"):
        calibrate(model, data, Hiding(longest=1, stretches=0.0, scattered=0.0))
    with pytest.raises(TypeError, match="a LatentSDE and a Hiding, got LatentSDE and int"):
        calibrate(model, data, 5)
    with pytest.raises(TypeError, match="seed as a whole number"):
        calibrate(model, data, hiding, seed=1.5)
    with pytest.raises(TypeError, match="expected data as Observations, got Tensor"):
        hiding.view(data.values, torch.Generator())
    with pytest.raises(ValueError, match="9 finite numbers"):
        model.set_calibration([1.0, 2.0])


def test_calibration_knows_holes_of_one_length_from_those_of_another():
    """Of a random walk with std 1 a row, told as std 1: h is the variance in a hole."""
    torch.manual_seed(0)
    data = Observations(torch.randn(8, 4000, 1, dtype=torch.float64).cumsum(1))

    class Linear(LadderPosterior):
        """By interpolation, with a std of 1 wherever it is."""

        def prepare(self, data):
            self.view = data
            return super().prepare(data)

        def forward(self, prepared, series, t):
            mean, view = torch.zeros(*t.shape, 1).double(), self.view
            for b, s in enumerate(series.tolist()):
                there = view.rows[s]
                known = view.times[s, there], view.values[s, there, 0]
                mean[b, :, 0] = torch.from_numpy(np.interp(t[b], *known))
            return Marginals(mean, 0 * mean + 1, 0 * mean, 0 * mean)

    linear = Linear.of(data, 1, 8, gaps=True).double()
    model = LatentSDE(ornstein_uhlenbeck(), identity_likelihood(1e-3), linear)
    calibrate(model, data, Hiding(longest=100), rows=2000)
    h = torch.tensor([1.0, 3, 7, 15]).double()
    variance, _ = scaled(model.calibration, torch.log1p(h), torch.ones(4), torch.zeros(4))
    # in holes of one row as many are known to 2 %; in those of sixty to about 20 %
    np.testing.assert_allclose(variance, h, rtol=0.3)


def test_posterior_paths_hold_for_a_std_far_below_the_step():
    """By Euler-Maruyama the pull g^2 / (2 std^2), here 2e4 a unit of time, would need 1e5 steps."""
    data = Observations(torch.ones(1, 2, 1).double())
    model = LatentSDE(ornstein_uhlenbeck(), identity_likelihood(), Told(std=0.01))
    generator = torch.Generator().manual_seed(0)
    paths = model.sample_posterior(data, [0] * 4000, 20, generator) - 1
    # 4000 paths: a std is known to 1.1 %
    np.testing.assert_allclose(paths.std(0).flatten(), 0.01, rtol=0.06)
    assert abs((paths[:, 3] * paths[:, 4]).mean()) < 1e-5  # a step is far beyond their correlation
