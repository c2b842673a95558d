"""Training a latent SDE on one of the book's tasks: the runs of the posterior's chapters."""

import inspect
from dataclasses import asdict
from pathlib import Path

import torch

from fractal_lib.benchmark.machine import threads_of
from fractal_lib.benchmark.peak import high_water_mb
from fractal_lib.benchmark.real_tasks import TASKS
from fractal_lib.benchmark.registry import case
from fractal_lib.benchmark.tasks import POSTERIORS
from fractal_lib.benchmark.timer import Clock
from fractal_lib.checks import as_int
from fractal_lib.posterior import LadderPosterior, LatentSDE, Observations, calibrate
from fractal_lib.posterior.training import fit

__all__ = ["train"]


@case("latent-sde", records="latent-sde/*", choices={"task": list(TASKS), "posterior": POSTERIORS})
def train(
    task: str,
    posterior: str = "ladder-posterior",
    seed: int = 0,
    steps: int | None = None,
    batch_size: int | None = None,
    checkpoint_every: int | None = None,
    n: int | None = None,
    noise: float | None = None,
    year: int | None = None,
    binned: bool | None = None,
    part: str | None = None,
    lr: float | None = None,
    weight_decay: float | None = None,
    levels: int | None = None,
    sampled: int = 0,
    device: str = "cpu",
    threads: int = 1,
    checkpoint: Path | None = None,
    progress: bool = True,
) -> dict:
    """Train a latent SDE by SDE Matching on one of the book's tasks, and judge it on held-out data.

    Args:
        task: name of the data, in `TASKS`.
        posterior: name in `POSTERIORS`: the ladder posterior has no recurrence, the others a GRU.
        seed: of the parameters at the start, of the training, and of the split (co2, glucose).
        steps: of training, instead of the task's own.
        batch_size: series a step, instead of the task's own.
        checkpoint_every: steps between checkpoints, instead of the task's own.
        n: rows of a series (lorenz, long).
        noise: standard deviation of the observation noise (lorenz, irregular).
        year: that is held out (co2).
        binned: whether times are rounded to an even grid (irregular).
        part: what it is judged by, "test" or "validation" (lorenz).
        lr, weight_decay: instead of the task's own.
        levels: of the ladder, instead of all.
        sampled: so many paths of the learned prior are recorded too, and so many of the posterior
            of the first series.
        device: of torch, "cpu" or "cuda".
        threads: of the CPU.
        checkpoint: file to go on from, and to write.
        progress: show a bar on stderr (with tqdm if it is installed).

    Returns:
        what is recorded: settings and plan, seconds by the wall and CPU seconds, peak memory in MB,
        the loss of each step (means of 50), and the task's report on data that were held out; with
        hidden rows in the plan after `calibrate`, and before. With ``sampled`` the ``paths``,
        (sampled, 101, X) at even times from 0 to the end, as they would be observed without noise.

    Raises:
        ValueError: for names or settings that do not exist. Diverged: if training does.

    >>> result = train("ou", "ladder-posterior", steps=2, progress=False)
    ou, ladder-posterior, seed 0: 2 steps in ...
    >>> result["plan"]["steps"], sorted(result["report"])
    (2, ['kl_initial', 'kl_path', 'negative_elbo', 'nll', 'standard_error'])
    """
    sampled = as_int(sampled, "sampled", least=0)
    if task not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}, got {task!r}")
    settings = _of_task(task, seed, n=n, noise=noise, year=year, binned=binned, part=part)
    chosen = TASKS[task](**settings).with_plan(
        steps=steps,
        batch_size=batch_size,
        checkpoint_every=checkpoint_every,
        lr=lr,
        weight_decay=weight_decay,
        seed=seed,
    )
    with threads_of(threads):
        ladder = {} if levels is None else {"levels": levels}
        model = chosen.build(posterior, seed, **ladder).to(device)
        data = chosen.train.to(device)
        with Clock() as clock:
            history = fit(model, data, chosen.plan, checkpoint, progress=progress)
        report = chosen.report(model.cpu())
        calibrated = {"calibration": None, "before_calibration": None}
        if chosen.plan.hiding is not None and isinstance(model.posterior, LadderPosterior):
            numbers = calibrate(model, chosen.train, chosen.plan.hiding)
            calibrated = {"calibration": numbers, "before_calibration": report}
            report = chosen.report(model)
        drawn = {}
        if sampled:
            drawn = {"sampled": sampled, "paths": _paths(model, chosen.train, sampled, seed)}
    plan = asdict(chosen.plan)
    result = {
        "task": task,
        "posterior": posterior,
        "seed": seed,
        "levels": levels,
        "settings": settings,
        "plan": plan,
        "scaled": chosen.scaled,
        "latent_size": chosen.latent_size,
        "hidden_size": chosen.hidden_size,
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        **clock.taken(),
        "peak_memory_mb": high_water_mb(),
        "loss": [round(sum(part) / len(part), 3) for part in _parts(history["negative_elbo"], 50)],
        "report": report,
        **calibrated,
        **drawn,
    }
    print(
        f"{task}, {posterior}, seed {seed}: {plan['steps']} steps in {result['cpu_s']} CPU "
        f"seconds, {result['wall_s']} s of wall"
    )
    for name, value in result["report"].items():
        print(f"    {name}: {value}")
    return result


def _paths(model: LatentSDE, data: Observations, count: int, seed: int) -> dict[str, list]:
    """Of the posterior of the first series and of the prior, rounded for a record."""
    generator = torch.Generator().manual_seed(seed)
    drawn = {
        "posterior": model.sample_posterior(data, [0] * count, 400, generator),
        "prior": model.sample_prior(count, 400, data.duration, generator),
    }
    with torch.no_grad():
        seen = {name: model.likelihood.predict(z, 0 * z)[0] for name, z in drawn.items()}
    return {name: x[:, ::4].double().numpy().round(3).tolist() for name, x in seen.items()}


def _of_task(task: str, seed: int, **given: float | str | None) -> dict:
    """The settings of a task that are not its own defaults."""
    takes = inspect.signature(TASKS[task]).parameters
    settings = {name: value for name, value in given.items() if value is not None}
    for name in settings:
        if name not in takes:
            raise ValueError(f"the task {task!r} has no setting {name!r}")
    return settings | ({"seed": seed} if "seed" in takes else {})


def _parts(numbers: list[float], size: int) -> list[list[float]]:
    return [numbers[i : i + size] for i in range(0, len(numbers), size)]
