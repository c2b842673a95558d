"""Training that can be stopped: steps, checkpoints, and what to do when it diverges."""

import math
import os
from collections.abc import Callable
from pathlib import Path

import torch

from fractal_lib.checks import as_int
from fractal_lib.posterior.elbo import ElboTerms, LatentSDE
from fractal_lib.posterior.observations import Observations, as_observations
from fractal_lib.posterior.plan import TrainingPlan
from fractal_lib.posterior.run import Checkpoint, Run, deferred_interrupt
from fractal_lib.progress import progress_bar

__all__ = ["Diverged", "TrainingPlan", "evaluate", "fit"]


class Diverged(RuntimeError):
    """The loss is not finite, or is far above what it was."""


def fit(
    model: LatentSDE,
    data: Observations,
    plan: TrainingPlan,
    checkpoint: str | os.PathLike | None = None,
    *,
    progress: bool = False,
    after: Callable[[int], None] | None = None,
) -> dict[str, list[float]]:
    """Train a model in place; go on from the checkpoint if there is one.

    Args:
        model: `LatentSDE`, changed in place.
        data: `Observations`, in any precision.
        plan: `TrainingPlan`.
        checkpoint: file that is written every ``plan.checkpoint_every`` steps and at the end, whole
            or not at all. Its folder is made. If the file is there, training goes on from it, and
            ends exactly where an uninterrupted run ends. The plan may then ask for more steps.
        progress: whether to show a bar, where tqdm is installed.
        after: called with the number of steps done, after each; the model then has the weights of
            that step, averaged or not.

    Ctrl-C waits for the end of the step, writes the checkpoint, and is raised again with a sentence
    that says so. A second one strikes at once; the last checkpoint then stands. However training
    ends, a model with ``plan.ema`` has the averaged weights.

    Returns:
        the loss of each step, and the mean of each of its terms: lists of ``plan.steps`` numbers
        under "negative_elbo", "kl_initial", "kl_path" and "nll", and "seconds" spent in training,
        all resumed parts together.

    Raises:
        Diverged: if the loss is not finite, or for 20 steps exceeds the first steps' by a factor of
            1000.
        TypeError: for data that are not `Observations`.
        ValueError: if the checkpoint belongs to another plan, to other data or to another model, or
            the file is no checkpoint; nothing has been changed then.
        OSError: before training, if the checkpoint cannot be written; or when it no longer can, as
            on a full disk, and then the one before is kept.
        KeyboardInterrupt: for Ctrl-C.

    Complexity: that of ``plan.steps`` calls of the model; the posterior prepares the data once.

    >>> from fractal_lib.posterior import LadderPosterior, LinearGaussianLikelihood, PriorSDE
    >>> data = Observations(torch.randn(5, 41, 2))
    >>> likelihood = LinearGaussianLikelihood(3, 2, noise=0.5)
    >>> model = LatentSDE(PriorSDE(3, 16), likelihood, LadderPosterior.of(data, 3, 16))
    >>> len(fit(model, data, TrainingPlan(steps=3, batch_size=4))["negative_elbo"])
    3
    """
    run = Run(model, as_observations(data), plan)
    saved = None if checkpoint is None else Checkpoint(Path(checkpoint), plan, data)
    if saved is not None:
        saved.resume(run)
    try:
        run.prepare()
        with (
            deferred_interrupt() as interrupted,
            progress_bar(plan.steps, "training", progress, run.done) as tick,
        ):
            for step in range(run.done + 1, plan.steps + 1):
                run.step()
                _refuse_divergence(run.history["negative_elbo"], checkpoint)
                if saved is not None and (step % plan.checkpoint_every == 0 or step == plan.steps):
                    saved.write(run)
                tick(f"loss {run.history['negative_elbo'][-1]:.1f}")
                if after is not None:
                    after(step)
                if interrupted():
                    raise KeyboardInterrupt
    except KeyboardInterrupt:
        if saved is not None and run.whole:
            saved.write(run)
        raise KeyboardInterrupt(_stopped(run, checkpoint)) from None
    finally:
        if run.average is not None:
            run.average.store()
    return run.history


@torch.no_grad()
def evaluate(
    model: LatentSDE,
    data: Observations,
    *,
    draws: int = 60,
    num_times: int = 1,
    batch_size: int = 256,
    seed: int = 0,
) -> dict[str, float]:
    """The negative ELBO and its terms on given series: the mean of ``draws`` independent estimates.

    Args:
        model, data: as in `fit`.
        draws: estimates, of all series each.
        num_times: times drawn a series and estimate.
        batch_size: series evaluated at once.
        seed: of everything random.

    Returns:
        "negative_elbo", "kl_initial", "kl_path", "nll": means over series, in nats a series; and
        "standard_error", that of "negative_elbo" from the draws, NaN for one.

    Raises:
        TypeError, ValueError: for data that are not `Observations`, or sizes below 1.

    Complexity: that of ``draws`` calls of the model on all series.

    >>> from fractal_lib.posterior import LadderPosterior, LinearGaussianLikelihood, PriorSDE
    >>> data = Observations(torch.randn(5, 41, 2))
    >>> likelihood = LinearGaussianLikelihood(3, 2, noise=0.5)
    >>> model = LatentSDE(PriorSDE(3, 16), likelihood, LadderPosterior.of(data, 3, 16))
    >>> sorted(evaluate(model, data, draws=2))
    ['kl_initial', 'kl_path', 'negative_elbo', 'nll', 'standard_error']
    """
    draws, batch_size = as_int(draws, "draws", least=1), as_int(batch_size, "batch_size", least=1)
    device = as_observations(data).values.device
    generator = torch.Generator(device).manual_seed(as_int(seed, "seed"))
    prepared = model.posterior.prepare(data)
    sums = []
    for _ in range(draws):
        parts = torch.arange(len(data), device=data.values.device).split(batch_size)
        estimates = [model(data, prepared, part, num_times, generator) for part in parts]
        terms = [torch.stack(estimate).double().sum(1) for estimate in estimates]
        sums.append(torch.stack(terms).sum(0) / len(data))
    each = torch.stack(sums)  # (draws, 3)
    total = each.sum(1)
    error = total.std().item() / draws**0.5 if draws > 1 else float("nan")
    terms = dict(zip(ElboTerms._fields, each.mean(0).tolist(), strict=True))
    return {"negative_elbo": total.mean().item(), **terms, "standard_error": error}


def _stopped(run: Run, checkpoint: str | os.PathLike | None) -> str:
    """Where Ctrl-C struck, and what is left."""
    done = f"stopped after {run.done} of {run.plan.steps} steps; "
    if checkpoint is None:
        return done + "there is no checkpoint to go on from"
    if run.whole:
        return done + f"{checkpoint} holds them, and the same call goes on from there"
    return done + f"{checkpoint} holds the checkpoint before, if there was one"


def _refuse_divergence(losses: list[float], checkpoint: str | os.PathLike | None) -> None:
    step = len(losses)
    start = max(abs(value) for value in losses[:20])
    last = losses[-20:]
    if math.isfinite(losses[-1]) and not (step > 40 and min(last) > 1000 * (start + 1)):
        return
    kept = ""
    if checkpoint is not None:
        kept = f"; {checkpoint} holds the last good checkpoint, if there was one"
    raise Diverged(
        f"the loss is {losses[-1]:.4g} after {step} steps, and began at {losses[0]:.4g}: "
        f"try a smaller lr, or clip the gradient{kept}"
    )
