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
    LinearGaussianLikelihood,
    Observations,
    PosteriorAffine,
    PriorSDE,
    RecurrentPosterior,
    TrainingPlan,
    evaluate,
    fit,
)


def make(kind="ladder", seed=0):
    torch.manual_seed(seed)
    data = Observations(torch.randn(10, 20, 2))
    posterior = (
        LadderPosterior.of(data, 2, 8)
        if kind == "ladder"
        else RecurrentPosterior(PosteriorAffine(2, 8), channels=2)
    )
    return LatentSDE(PriorSDE(2, 8), LinearGaussianLikelihood(2, 2, 0.5), posterior), data


class Killed(Exception):
    pass


def kill_at(moment):
    def after(step):
        if step == moment:
            raise Killed

    return after


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
@pytest.mark.parametrize("kind", ["ladder", "recurrent"])
def test_a_killed_run_ends_where_an_uninterrupted_one_does(kind, schedule, tmp_path):
    plan = TrainingPlan(steps=30, batch_size=4, checkpoint_every=7, schedule=schedule)
    whole, data = make(kind)
    expected = fit(whole, data, plan)
    moment = random.Random().randint(1, 29)
    file = tmp_path / "run.pt"
    with pytest.raises(Killed):
        fit(make(kind)[0], data, plan, file, after=kill_at(moment))
    assert file.exists() == (moment >= 7), moment
    # what it starts from does not matter
    again = make(kind, seed=99)[0] if file.exists() else make(kind)[0]
    steps = []
    history = fit(again, data, plan, file, after=steps.append)
    assert len(steps) <= 30 - moment + 7, moment  # at most one interval was lost
    assert history["negative_elbo"] == expected["negative_elbo"], moment
    assert evaluate(again, data, draws=2) == evaluate(whole, data, draws=2)
    # nothing left to do
    assert (
        fit(again, data, plan, file, after=steps.append)["negative_elbo"]
        == expected["negative_elbo"]
    )


def test_a_checkpoint_of_another_plan_is_refused(tmp_path):
    model, data = make()
    fit(model, data, TrainingPlan(steps=2), tmp_path / "run.pt")
    with pytest.raises(ValueError, match="another plan: lr 0.001, not 0.002"):
        fit(model, data, TrainingPlan(steps=2, lr=2e-3), tmp_path / "run.pt")
    with pytest.raises(ValueError, match="holds 2 steps, more than the 1 asked"):
        fit(model, data, TrainingPlan(steps=1), tmp_path / "run.pt")


def test_a_checkpoint_of_other_data_is_refused(tmp_path):
    model, data = make()
    fit(model, data, TrainingPlan(steps=2), tmp_path / "run.pt")
    moved = Observations(data.values + 1e-3)
    with pytest.raises(ValueError, match="other data"):
        fit(model, moved, TrainingPlan(steps=2), tmp_path / "run.pt")
    again = Observations(data.values.clone())
    assert len(fit(model, again, TrainingPlan(steps=2), tmp_path / "run.pt")["nll"]) == 2


def test_a_finished_run_is_trained_for_longer(tmp_path):
    plan = dict(batch_size=4, checkpoint_every=7)
    whole, data = make()
    expected = fit(whole, data, TrainingPlan(steps=30, **plan))["negative_elbo"]
    part, _ = make()
    fit(part, data, TrainingPlan(steps=20, **plan), tmp_path / "run.pt")
    longer = fit(part, data, TrainingPlan(steps=30, **plan), tmp_path / "run.pt")
    assert longer["negative_elbo"] == expected


def test_a_checkpoint_that_cannot_be_written_is_told_before_the_work(tmp_path):
    model, data = make()
    (tmp_path / "file").touch()
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(OSError, match="file"):
        fit(model, data, TrainingPlan(steps=2), tmp_path / "file" / "run.pt")
    assert all(torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True))
    fit(model, data, TrainingPlan(steps=1), tmp_path / "made" / "of" / "itself" / "run.pt")


def test_series_in_float64_train_a_model_in_float32():
    model, data = make()
    wide = Observations(data.values.double().numpy())
    assert len(fit(model, wide, TrainingPlan(steps=2))["nll"]) == 2
    assert evaluate(model, wide, draws=2).keys() == evaluate(model, data, draws=2).keys()
    recurrent, _ = make("recurrent")
    assert len(fit(recurrent, wide, TrainingPlan(steps=2))["nll"]) == 2


def test_divergence_is_refused_with_advice(tmp_path):
    model, data = make()
    with pytest.raises(Diverged, match="smaller lr"):
        fit(model, data, TrainingPlan(steps=200, lr=1e4), tmp_path / "run.pt")
    model, data = make()
    with torch.no_grad():
        model.likelihood.net.bias.fill_(torch.inf)
    with pytest.raises(Diverged, match="after 1 steps"):
        fit(model, data, TrainingPlan(steps=3))


def test_the_bar_shows_and_changes_nothing(capsys):
    quiet, data = make()
    shown, _ = make()
    expected = fit(quiet, data, TrainingPlan(steps=3))["negative_elbo"]
    assert fit(shown, data, TrainingPlan(steps=3), progress=True)["negative_elbo"] == expected
    assert "/3 " in capsys.readouterr().err


@pytest.mark.parametrize(
    "wrong",
    [
        dict(steps=0),
        dict(batch_size=0),
        dict(num_times=0),
        dict(checkpoint_every=0),
        dict(lr=0.0),
        dict(schedule="linear"),
        dict(grad_clip=0.0),
    ],
)
def test_a_plan_that_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match=r"at least 1|lr|schedule|grad_clip"):
        TrainingPlan(**{"steps": 1} | wrong)


def test_clipping_bounds_the_step():
    model, data = make()
    fit(model, data, TrainingPlan(steps=1, grad_clip=1e-3))
    assert (
        math.sqrt(sum(p.grad.norm() ** 2 for p in model.parameters() if p.requires_grad))
        <= 1.001e-3
    )


def exact_smoother(x, times, rate, sd, noise):
    """Mean (B, n), std (n,) and log likelihood (B,), by conditioning one joint Gaussian."""
    cov = sd**2 * torch.exp(-rate * (times[:, None] - times[None, :]).abs())
    total = cov + noise**2 * torch.eye(len(times), dtype=torch.float64)
    gain = torch.linalg.solve(total, cov).mT
    likelihood = torch.distributions.MultivariateNormal(torch.zeros_like(times), total)
    return x @ gain.mT, (cov - gain @ cov).diagonal().sqrt(), likelihood.log_prob(x)


def test_training_reaches_the_exact_smoother():
    """Ornstein-Uhlenbeck with Gaussian noise: the family that is trained holds the posterior."""
    rate, sd, noise, n, duration = 2.0, 1.0, 0.5, 41, 2.0
    sample = ornstein_uhlenbeck(48, n, duration, rate, sd, noise, seed=0)
    mean, std, log_likelihood = exact_smoother(
        sample.observed[..., 0], sample.times, rate, sd, noise
    )
    g = sd * math.sqrt(2 * rate)
    prior = KnownPrior(
        lambda z, t: -rate * z,
        lambda z, t: torch.full_like(z, g),
        torch.zeros(1),
        torch.full((1,), sd),
    )
    likelihood = LinearGaussianLikelihood(1, 1, noise)
    torch.nn.init.ones_(likelihood.net.weight), torch.nn.init.zeros_(likelihood.net.bias)
    likelihood.requires_grad_(False)
    data = Observations(sample.observed.float(), duration=duration)
    torch.manual_seed(0)
    model = LatentSDE(prior, likelihood, LadderPosterior.of(data, 1, 64))
    exact = -log_likelihood.mean().item()
    before = evaluate(model, data, draws=8, num_times=8)
    fit(
        model, data, TrainingPlan(steps=800, batch_size=48, num_times=8, lr=3e-3, schedule="cosine")
    )
    after = evaluate(model, data, draws=20, num_times=41)
    # a bound, trained or not
    assert (
        after["negative_elbo"] > exact - 4 * after["standard_error"]
        and before["negative_elbo"] > exact
    )
    assert after["negative_elbo"] < exact + 2.5, (after, exact)
    t = (sample.times / duration).expand(48, -1)
    q = model.posterior(model.posterior.prepare(data), torch.arange(48), t)
    # stated: a mean within a quarter of the exact std (root mean square), a std within 10 % of it
    distance = ((q.mean[..., 0] - mean) / std).pow(2).mean().sqrt().item()
    ratio = (q.std[..., 0] / std).log().abs().mean().item()
    assert distance < 0.25 and ratio < 0.1, (distance, ratio)
