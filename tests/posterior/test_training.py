"""Training: killed and resumed, diverged, and ending where the exact smoother ends."""

import errno
import math
import random
import signal

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


EXTRAS = {
    "constant": {},
    "cosine": dict(schedule="cosine"),
    "decayed and averaged": dict(weight_decay=0.1, ema=0.9, grad_clip=1.0),
}


@pytest.mark.parametrize("extra", EXTRAS.values(), ids=EXTRAS)
@pytest.mark.parametrize("kind", ["ladder", "recurrent"])
def test_a_killed_run_ends_where_an_uninterrupted_one_does(kind, extra, tmp_path):
    plan = TrainingPlan(steps=30, batch_size=4, checkpoint_every=7, **extra)
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
    for other in (dict(weight_decay=0.1), dict(ema=0.9)):
        with pytest.raises(ValueError, match=rf"another plan: {next(iter(other))}"):
            fit(model, data, TrainingPlan(steps=2, **other), tmp_path / "run.pt")


def test_a_checkpoint_of_a_plan_that_knew_fewer_settings_is_gone_on_from(tmp_path):
    model, data = make()
    fit(model, data, TrainingPlan(steps=2), file := tmp_path / "run.pt")
    saved = torch.load(file, weights_only=True)
    del saved["plan"]["weight_decay"], saved["plan"]["ema"]
    torch.save(saved, file)
    assert len(fit(model, data, TrainingPlan(steps=3), file)["nll"]) == 3


def test_a_checkpoint_that_is_damaged_or_none_is_refused_and_nothing_changes(tmp_path):
    model, data = make()
    fit(model, data, TrainingPlan(steps=2), file := tmp_path / "run.pt")
    whole, before = file.read_bytes(), [p.clone() for p in model.parameters()]
    cut = [whole[: int(len(whole) * share)] for share in (0, 0.001, 0.3, 0.7, 0.999)]
    for damaged in (*cut, b"words", b"PK", bytes(range(256)) * 9):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"run.pt as a checkpoint of fit, got a file") as told:
            fit(model, data, TrainingPlan(steps=4), file)
        assert "\n" not in str(told.value) and len(str(told.value)) < 300
    for other in (torch.zeros(3), {"plan": {}}, [1]):
        torch.save(other, file)
        with pytest.raises(ValueError, match=r"run.pt as a checkpoint of fit, got a file of ano"):
            fit(model, data, TrainingPlan(steps=4), file)
    assert all(torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True))


FULL = {
    "the system": OSError(errno.ENOSPC, "No space left on device"),
    "torch": RuntimeError("PytorchStreamWriter failed writing file data/7: file write failed"),
}


@pytest.mark.parametrize("error", FULL.values(), ids=FULL)
def test_a_full_disk_leaves_the_checkpoint_before(error, tmp_path, monkeypatch):
    model, data = make()
    plan, file = dict(batch_size=4, checkpoint_every=5), tmp_path / "run.pt"
    fit(model, data, TrainingPlan(steps=10, **plan), file)
    before, save = file.read_bytes(), torch.save

    def fill(payload, to):
        with open(to, "wb") as half:
            half.write(b"half")
        raise error

    monkeypatch.setattr(torch, "save", fill)
    with pytest.raises(OSError, match=r"cannot write .*run.pt: .*; what was there is kept") as told:
        fit(model, data, TrainingPlan(steps=20, **plan), file)
    assert "\n" not in str(told.value)
    assert file.read_bytes() == before and [f.name for f in tmp_path.iterdir()] == ["run.pt"]
    monkeypatch.setattr(torch, "save", save)
    whole, _ = make()
    expected = fit(whole, data, TrainingPlan(steps=20, **plan))
    again = fit(model, data, TrainingPlan(steps=20, **plan), file)
    assert again["negative_elbo"] == expected["negative_elbo"]


def ctrl_c_at(moment):
    def after(step):
        if step == moment:
            signal.raise_signal(signal.SIGINT)

    return after


def ctrl_c_within(model, moment, times=1):
    """Press it while the prior's drift is computed, in step ``moment``."""
    calls = []

    def press(*_):
        calls.append(1)
        if len(calls) == moment:
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)

    model.prior.drift_net.register_forward_hook(press)


@pytest.mark.parametrize("extra", EXTRAS.values(), ids=EXTRAS)
@pytest.mark.parametrize("where", ["between steps", "within a step"])
def test_ctrl_c_saves_says_so_and_loses_nothing(where, extra, tmp_path):
    plan, file = TrainingPlan(steps=20, batch_size=4, **extra), tmp_path / "run.pt"
    whole, data = make()
    expected = fit(whole, data, plan)
    model, _ = make()
    after = ctrl_c_at(8) if where == "between steps" else ctrl_c_within(model, 8)
    with pytest.raises(KeyboardInterrupt, match=r"after 8 of 20 steps; .*run.pt holds them, and"):
        fit(model, data, plan, file, after=after)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert [f.name for f in tmp_path.iterdir()] == ["run.pt"]
    again = fit(make(seed=99)[0], data, plan, file)
    assert again["negative_elbo"] == expected["negative_elbo"]


def test_a_second_ctrl_c_within_a_step_leaves_the_checkpoint_before(tmp_path):
    model, data = make()
    ctrl_c_within(model, 8, times=2)
    plan = TrainingPlan(steps=20, batch_size=4, checkpoint_every=3)
    with pytest.raises(KeyboardInterrupt, match=r"7 of 20 steps; .*run.pt holds the checkpoint be"):
        fit(model, data, plan, tmp_path / "run.pt")
    saved = torch.load(tmp_path / "run.pt", weights_only=True)
    assert len(saved["history"]["nll"]) == 6


def test_ctrl_c_without_a_checkpoint_and_by_a_callback(tmp_path):
    model, data = make()
    with pytest.raises(KeyboardInterrupt, match="after 2 of 5 steps; there is no checkpoint"):
        fit(model, data, TrainingPlan(steps=5), after=ctrl_c_at(2))

    def stop(step):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match=r"after 1 of 5 steps; .*holds them"):
        fit(model, data, TrainingPlan(steps=5), tmp_path / "run.pt", after=stop)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # a handler of the user's is theirs
    try:
        assert len(fit(model, data, TrainingPlan(steps=3), after=ctrl_c_at(2))["nll"]) == 3
    finally:
        signal.signal(signal.SIGINT, before)


def test_the_model_ends_with_the_average_of_its_weights():
    """Against the definition: weights decay^(k - i), over their sum."""
    plan = dict(steps=6, batch_size=4, lr=0.1)
    model, data = make()
    visited = []

    def keep(step):
        visited.append([p.detach().clone() for p in model.parameters()])

    fit(model, data, TrainingPlan(**plan, ema=0.7), after=keep)
    plain, _ = make()
    fit(plain, data, TrainingPlan(**plan))
    weights = torch.tensor([0.7 ** (5 - i) for i in range(6)])
    for end, last, *along in zip(model.parameters(), plain.parameters(), *visited, strict=True):
        assert torch.equal(along[-1], last)  # training itself does not depend on it
        expected = torch.tensordot(weights / weights.sum(), torch.stack(along), 1)
        torch.testing.assert_close(end.detach(), expected, rtol=1e-5, atol=1e-6)


def test_weight_decay_is_that_of_adamw_on_matrices_alone():
    (model, data), (plain, _) = make(), make()
    start = [p.detach().clone() for p in plain.parameters()]
    fit(model, data, TrainingPlan(steps=1, weight_decay=0.5, lr=0.1))
    fit(plain, data, TrainingPlan(steps=1, lr=0.1))
    for p, q, was in zip(model.parameters(), plain.parameters(), start, strict=True):
        decay = 0.1 * 0.5 * was if p.dim() > 1 else 0 * was
        torch.testing.assert_close(p, q - decay, rtol=0, atol=1e-6)


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
    for place in (tmp_path / "file" / "run.pt", tmp_path):
        with pytest.raises(OSError, match=r"cannot write .*: \w+"):
            fit(model, data, TrainingPlan(steps=2), place)
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
        dict(weight_decay=-0.1),
        dict(ema=0.0),
        dict(ema=1.0),
    ],
)
def test_a_plan_that_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match=r"at least 1|lr|schedule|grad_clip|decay|ema"):
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
