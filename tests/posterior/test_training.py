"""Training: killed and resumed, diverged, and ending where the exact smoother ends."""

import math
import random

import pytest
import torch

from fractal_lib.data import ornstein_uhlenbeck
from fractal_lib.posterior import (
    Diverged,
    KnownPrior,
    LadderPosterior,
    LatentSDE,
    LinearObservation,
    Observations,
    Plan,
    PosteriorAffine,
    PriorSDE,
    RecurrentPosterior,
    evaluate,
    fit,
)


def make(kind="ladder", seed=0):
    torch.manual_seed(seed)
    data = Observations(torch.randn(10, 20, 2))
    posterior = (
        LadderPosterior(data, 2, 8) if kind == "ladder" else RecurrentPosterior(PosteriorAffine(2, 8), channels=2)
    )
    return LatentSDE(PriorSDE(2, 8), LinearObservation(2, 2, 0.5), posterior), data


class Killed(Exception):
    pass


def kill_at(moment):
    def after(step):
        if step == moment:
            raise Killed

    return after


@pytest.mark.parametrize("anneal", [False, True])
@pytest.mark.parametrize("kind", ["ladder", "recurrent"])
def test_a_killed_run_ends_where_an_uninterrupted_one_does(kind, anneal, tmp_path):
    plan = Plan(steps=30, batch=4, interval=7, anneal=anneal)
    whole, data = make(kind)
    expected = fit(whole, data, plan)
    moment = random.Random().randint(1, 29)
    file = tmp_path / "run.pt"
    with pytest.raises(Killed):
        fit(make(kind)[0], data, plan, file, after=kill_at(moment))
    assert file.exists() == (moment >= 7), moment
    again = make(kind, seed=99)[0] if file.exists() else make(kind)[0]  # what it starts from does not matter
    steps = []
    history = fit(again, data, plan, file, after=steps.append)
    assert len(steps) <= 30 - moment + 7, moment  # at most one interval was lost
    assert history["bound"] == expected["bound"], moment
    assert evaluate(again, data, draws=2) == evaluate(whole, data, draws=2)
    assert fit(again, data, plan, file, after=steps.append)["bound"] == expected["bound"]  # nothing left to do


def test_a_checkpoint_of_another_plan_is_refused(tmp_path):
    model, data = make()
    fit(model, data, Plan(steps=2), tmp_path / "run.pt")
    with pytest.raises(ValueError, match="another plan"):
        fit(model, data, Plan(steps=3), tmp_path / "run.pt")


def test_divergence_is_refused_with_advice(tmp_path):
    model, data = make()
    with pytest.raises(Diverged, match="smaller rate"):
        fit(model, data, Plan(steps=200, rate=1e4), tmp_path / "run.pt")
    model, data = make()
    with torch.no_grad():
        model.observation.net.bias.fill_(torch.inf)
    with pytest.raises(Diverged, match="after 1 steps"):
        fit(model, data, Plan(steps=3))


def test_the_bar_shows_and_changes_nothing(capsys):
    quiet, data = make()
    shown, _ = make()
    expected = fit(quiet, data, Plan(steps=3))["bound"]
    assert fit(shown, data, Plan(steps=3), progress=True)["bound"] == expected
    assert "3/3" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [dict(steps=0), dict(batch=0), dict(queries=0), dict(interval=0), dict(rate=0.0)])
def test_a_plan_that_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match="at least 1"):
        Plan(**{"steps": 1} | wrong)


def test_clipping_bounds_the_step():
    model, data = make()
    fit(model, data, Plan(steps=1, clip=1e-3))
    assert math.sqrt(sum(p.grad.norm() ** 2 for p in model.parameters() if p.requires_grad)) <= 1.001e-3


def exact_smoother(x, times, rate, sd, noise):
    """Mean (B, n), spread (n,) and log likelihood (B,), by conditioning one joint Gaussian."""
    cov = sd**2 * torch.exp(-rate * (times[:, None] - times[None, :]).abs())
    total = cov + noise**2 * torch.eye(len(times), dtype=torch.float64)
    gain = torch.linalg.solve(total, cov).mT
    likelihood = torch.distributions.MultivariateNormal(torch.zeros_like(times), total)
    return x @ gain.mT, (cov - gain @ cov).diagonal().sqrt(), likelihood.log_prob(x)


def test_training_reaches_the_exact_smoother():
    """Ornstein-Uhlenbeck with Gaussian noise: the exact posterior is of the family that is trained."""
    rate, sd, noise, n, duration = 2.0, 1.0, 0.5, 41, 2.0
    sample = ornstein_uhlenbeck(48, n, duration, rate, sd, noise, seed=0)
    mean, spread, log_likelihood = exact_smoother(sample.observed[..., 0], sample.times, rate, sd, noise)
    g = sd * math.sqrt(2 * rate)
    prior = KnownPrior(lambda z, t: -rate * z, lambda z, t: torch.full_like(z, g), torch.zeros(1), torch.full((1,), sd))
    observation = LinearObservation(1, 1, noise)
    torch.nn.init.ones_(observation.net.weight), torch.nn.init.zeros_(observation.net.bias)
    observation.requires_grad_(False)
    data = Observations(sample.observed.float(), duration=duration)
    torch.manual_seed(0)
    model = LatentSDE(prior, observation, LadderPosterior(data, 1, 64))
    exact = -log_likelihood.mean().item()
    before = evaluate(model, data, draws=8, queries=8)
    fit(model, data, Plan(steps=800, batch=48, queries=8, rate=3e-3, anneal=True))
    after = evaluate(model, data, draws=20, queries=41)
    assert after["bound"] > exact - 4 * after["spread"] and before["bound"] > exact  # a bound, trained or not
    assert after["bound"] < exact + 2.5, (after, exact)
    t = (sample.times / duration).expand(48, -1)
    paths = model.posterior(model.posterior.prepare(data), torch.arange(48), t)
    # stated: a mean within a quarter of the exact spread (root mean square), a spread within 10 % of it
    distance = ((paths.m[..., 0] - mean) / spread).pow(2).mean().sqrt().item()
    ratio = (paths.s[..., 0] / spread).log().abs().mean().item()
    assert distance < 0.25 and ratio < 0.1, (distance, ratio)
