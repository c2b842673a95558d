"""Training over several processes: gradients of one, bytes counted, a rank lost, a run resumed."""

import json
import os
import signal
import time

import pytest
import torch
from processes import run, stretches

from fractal_lib.distributed import Stretch, counted, prepare
from fractal_lib.distributed.training import RankLost, _Run, fit
from fractal_lib.posterior import (
    Hiding,
    LadderPosterior,
    LatentSDE,
    LinearGaussianLikelihood,
    Observations,
    PriorSDE,
    TrainingPlan,
)

N = 103


def series(gaps, n=N):
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(2, n, 2, generator=generator, dtype=torch.float64).cumsum(1) / 3
    shape = {"rows": (2, n), "channels": (2, n, 2)}.get(gaps)
    return values, None if shape is None else torch.rand(shape, generator=generator) < 0.8


def built(data, **settings):
    torch.manual_seed(0)
    posterior = LadderPosterior.of(data, 2, 8, features="means", **settings)
    likelihood = LinearGaussianLikelihood(2, 2, noise=0.5, learn_noise=True)
    return LatentSDE(PriorSDE(2, 8), likelihood, posterior).double()


def stretch(rank, size, gaps="rows", n=N):
    values, observed = series(gaps, n)
    mine = stretches(n, size)[rank]
    return Stretch(values[:, mine], None if observed is None else observed[:, mine], duration=3.0)


def gradients(model):
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def read(posterior, prepared, t):
    """A number of all that the posterior says at t, and gradients."""
    q = posterior(prepared, [0, 1], t.expand(2, -1))
    (q.mean.sin() + q.std + q.mean_dt.sin() + q.std_dt.sin()).sum().backward()
    return q.mean.detach(), gradients(posterior)


TIMES = torch.linspace(0, 1, 4 * N - 3, dtype=torch.float64)
POSTERIORS = [(None, False), ("rows", False), ("rows", True), ("channels", False)]


def posteriors(rank, size):
    found = []
    for gaps, causal in POSTERIORS:
        data = stretch(rank, size, gaps)
        posterior = built(data, causal=causal).posterior
        begin, end = data.shards.stretch
        row = (TIMES * (N - 1)).floor()
        here = TIMES[(row >= begin) & (row < end)]
        found.append(read(posterior, prepare(posterior, data), here))
    return found


@pytest.mark.parametrize("size", [2, 3])
def test_a_posterior_says_what_one_process_says(tmp_path, size):
    found = run(size, tmp_path, posteriors)
    for place, (gaps, causal) in enumerate(POSTERIORS):
        values, observed = series(gaps)
        data = Observations(values, observed=observed, duration=3.0)
        posterior = built(data, causal=causal).posterior
        mean, grads = read(posterior, posterior.prepare(data), TIMES)
        parts = [rank[place] for rank in found]
        close = dict(rtol=0, atol=1e-12 * max(1.0, max(g.abs().max().item() for g in grads)))
        torch.testing.assert_close(torch.cat([p[0] for p in parts], 1), mean, **close)
        for whole, *some in zip(grads, *(p[1] for p in parts), strict=True):
            torch.testing.assert_close(sum(some), whole, **close)


def estimates(data, prepared, model, seed, draws=200):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        terms = [model(data, prepared, [0, 1], 64, generator) for _ in range(draws)]
    return torch.stack([torch.stack([term.sum() for term in one]) for one in terms])  # (draws, 3)


def estimated(rank, size):
    data = stretch(rank, size)
    model = built(data)
    return estimates(data, prepare(model.posterior, data), model, rank)


def test_terms_of_all_ranks_add_up_to_those_of_one_process(tmp_path):
    values, observed = series("rows")
    data = Observations(values, observed=observed, duration=3.0)
    model = built(data)
    one = estimates(data, model.posterior.prepare(data), model, 7)
    parts = run(3, tmp_path, estimated)
    assert parts[1][:, 0].eq(0).all() and parts[2][:, 0].eq(0).all()  # the first has the start
    several = sum(parts)
    error = (one.var(0) + several.var(0)).div(len(one)).sqrt()
    assert ((one.mean(0) - several.mean(0)).abs() <= 4 * error + 1e-9).all()


def one_step(rank, size, lengths):
    found = []
    for n in lengths:
        data = stretch(rank, size, n=n)
        model = built(data)
        shared = _Run(model, data, TrainingPlan(steps=2, num_times=4))
        shared.prepare()
        shared.generator.manual_seed(shared._seed(0))
        terms = model(data, shared.prepared[0], [0, 1], 4, shared.generator)
        terms.negative_elbo.mean().backward()
        alone = gradients(model)
        with counted() as traffic:
            shared.step()
        size_of_all = sum(g.nbytes for g in alone)
        found.append((alone, gradients(model), traffic.sent, size_of_all))
    return found


def test_a_step_moves_the_gradients_and_nothing_else(tmp_path):
    short, long = zip(*run(2, tmp_path, one_step, [64, 999]), strict=True)
    for (alone, added, sent, size), (other, _, _, _) in (short, short[::-1]):
        for mine, theirs, both in zip(alone, other, added, strict=True):
            torch.testing.assert_close(mine + theirs, both, rtol=1e-12, atol=1e-12)
        assert sent == size  # 2 (p - 1) / p times the parameters, for p = 2
    # a longer series has more levels, so a wider first layer: not more rows' worth
    wider = 8 * 8 * (long[0][3] // 8 - short[0][3] // 8) // 8
    assert long[0][2] - short[0][2] == wider


SEEDS, STEPS, CURVE = 8, 45, 120


def curves(rank, size):
    """The loss of each step, for every seed: (SEEDS, STEPS)."""
    data = stretch(rank, size, n=CURVE)
    losses = []
    for seed in range(SEEDS):
        plan = TrainingPlan(steps=STEPS, num_times=12 // size, lr=1e-2, seed=seed)
        losses.append(fit(built(data), data, plan)["negative_elbo"])
    return torch.tensor(losses, dtype=torch.float64)


def test_the_loss_of_two_processes_falls_as_that_of_one_within_the_noise_of_the_draws(tmp_path):
    alone, (together, _) = curves(0, 1), run(2, tmp_path, curves)
    one, two = (losses.unfold(1, 15, 15).mean(-1) for losses in (alone, together))  # (SEEDS, 3)
    apart = one - two
    noise = apart.std(0) / SEEDS**0.5
    # Student's t with 7 degrees of freedom exceeds 5 once in 640 times
    assert (apart.mean(0).abs() < 5 * noise).all()
    assert (one[:, 0] - one[:, -1]).mean() > 10 * noise.max()  # which is little beside its fall
    assert len(alone[:, 0].unique()) == SEEDS  # the draws are the seed's


def trained(rank, size, folder, steps, kill=None):
    data = stretch(rank, size)
    model = built(data)
    hiding = Hiding(longest=8, views=2)
    plan = TrainingPlan(steps=steps, num_times=4, checkpoint_every=2, hiding=hiding)
    if kill is not None and rank == 1:
        step = _Run.step

        def dying(self):
            if self.done == kill:
                os.kill(os.getpid(), signal.SIGKILL)
            step(self)

        _Run.step = dying
    begun = time.monotonic()
    try:
        history = fit(model, data, plan, folder)
    except RankLost as error:
        return str(error), time.monotonic() - begun
    return history["negative_elbo"], [p.detach() for p in model.parameters()]


def test_a_resumed_run_ends_as_one_that_was_not_interrupted(tmp_path):
    whole = run(2, tmp_path, trained, None, 6)
    run(2, tmp_path, trained, tmp_path / "checkpoint", 4)
    resumed = run(2, tmp_path, trained, tmp_path / "checkpoint", 6)
    assert whole[0][0] == whole[1][0] == resumed[0][0]
    for parts in zip(whole[0][1], whole[1][1], resumed[0][1], strict=True):
        assert all(part.equal(parts[0]) for part in parts)


def test_a_lost_rank_ends_the_others_and_fewer_go_on(tmp_path):
    folder = tmp_path / "checkpoint"
    (message, seconds), nothing = run(2, tmp_path, trained, folder, 8, 5, lost=[1])
    assert nothing is None and seconds < 60
    assert message.startswith("another rank was lost after 5 steps; ")
    assert message.endswith("checkpoint holds 4, and any number of ranks can go on from there")
    before = json.loads((folder / "latest.json").read_text())["history"]["negative_elbo"]
    for size in (1, 3):
        ((losses, _), *_) = run(size, tmp_path, trained, folder, 6 + size)
        assert losses[:4] == before and len(losses) == 6 + size
    with pytest.raises(ValueError, match="written by another run"):
        trained(0, 1, folder, 5)  # fewer steps than are done


def test_what_cannot_be_had_is_refused():
    data = stretch(0, 1)
    splines = LadderPosterior.of(data, 2, 8)
    with pytest.raises(ValueError, match="solved for the whole series at once"):
        prepare(splines, data)
    with pytest.raises(TypeError, match="expected a LadderPosterior and a Stretch, got"):
        prepare(splines, Observations(torch.zeros(1, 5, 2)))
    with pytest.raises(ValueError, match="ema=None"):
        fit(built(data), data, TrainingPlan(steps=1, ema=0.9))
