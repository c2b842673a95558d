"""Training that can be killed: steps, checkpoints, and what to do when it diverges."""

import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from fractal_lib.posterior.context import Observations
from fractal_lib.posterior.sde_matching import LatentSDE, Terms


class Diverged(RuntimeError):
    """The loss is no number, or is far above what it was."""


@dataclass(frozen=True)
class Plan:
    """How to train.

    Attributes:
        steps: of Adam.
        batch: series drawn for each, with replacement only if there are fewer.
        queries: times drawn a series and step.
        rate: learning rate.
        anneal: whether the rate falls to 0 along half a cosine; else it is constant.
        clip: largest norm of the gradient, or None.
        seed: of everything random in training (not of the parameters at the start).
        interval: steps between checkpoints, and at most what a killed run loses.

    >>> Plan(steps=100).rate
    0.001
    """

    steps: int
    batch: int = 256
    queries: int = 1
    rate: float = 1e-3
    anneal: bool = False
    clip: float | None = None
    seed: int = 0
    interval: int = 250

    def __post_init__(self):
        if min(self.steps, self.batch, self.queries, self.interval) < 1 or not self.rate > 0:
            raise ValueError(f"steps, batch, queries and interval must be at least 1 and the rate positive, got {self}")


def fit(
    model: LatentSDE,
    data: Observations,
    plan: Plan,
    checkpoint: str | os.PathLike | None = None,
    progress: bool = False,
    after: Callable[[int], None] | None = None,
) -> dict[str, list[float]]:
    """Train a model in place; go on from the checkpoint if there is one.

    Args:
        model: `LatentSDE`, changed in place.
        data: `Observations`.
        plan: `Plan`.
        checkpoint: file that is written every ``plan.interval`` steps and at the end, whole or not at all. If it is
            there, training goes on from it, and ends exactly where an uninterrupted run ends.
        progress: whether to show a bar (tqdm).
        after: called with the number of steps done, after each.

    Returns:
        the loss of each step, and the mean of each of its terms: lists of ``plan.steps`` numbers under "bound",
        "prior", "diffusion" and "reconstruction", and "seconds" spent in training, all resumed parts together.

    Raises:
        Diverged: if the loss is no number, or for 20 steps exceeds the first steps' by a factor of 1000.
        ValueError: if the checkpoint belongs to another plan.

    Complexity: that of ``plan.steps`` calls of the model; the posterior prepares the data once.

    >>> from fractal_lib.posterior import LadderPosterior, LinearObservation, PriorSDE
    >>> data = Observations(torch.randn(5, 41, 2))
    >>> model = LatentSDE(PriorSDE(3, 16), LinearObservation(3, 2, noise=0.5), LadderPosterior(data, 3, 16))
    >>> len(fit(model, data, Plan(steps=3, batch=4))["bound"])
    3
    """
    generator = torch.Generator(data.values.device).manual_seed(plan.seed)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=plan.rate)
    annealed = (torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, plan.steps),) if plan.anneal else ()
    state = {"model": model, "optimizer": optimizer, **{f"schedule {i}": s for i, s in enumerate(annealed)}}
    history: dict[str, list[float]] = {name: [] for name in ("bound", *Terms._fields)}
    history["seconds"] = [0.0]
    if checkpoint is not None and Path(checkpoint).exists():
        _resume(Path(checkpoint), plan, state, generator, history)
    context = model.posterior.prepare(data)
    done, begun = len(history["bound"]), time.perf_counter()
    spent = history["seconds"][0]
    with _bar(plan.steps, done, progress) as tick:
        for step in range(done + 1, plan.steps + 1):
            series = _draw_series(data.size, plan.batch, generator, data.values.device)
            terms = model(data, context, series, plan.queries, generator)
            loss = terms.bound.mean()
            optimizer.zero_grad()
            loss.backward()
            if plan.clip is not None:
                torch.nn.utils.clip_grad_norm_(parameters, plan.clip)
            optimizer.step()
            for schedule in annealed:
                schedule.step()
            for name, value in zip(history, (loss, *terms), strict=False):
                history[name].append(value.mean().item())
            _refuse_divergence(history["bound"], step, checkpoint)
            history["seconds"][0] = spent + time.perf_counter() - begun
            if checkpoint is not None and (step % plan.interval == 0 or step == plan.steps):
                _save(Path(checkpoint), plan, state, generator, history)
            tick(history["bound"][-1])
            if after is not None:
                after(step)
    return history


@torch.no_grad()
def evaluate(
    model: LatentSDE, data: Observations, draws: int = 60, queries: int = 1, batch: int = 256, seed: int = 0
) -> dict[str, float]:
    """The bound and its terms on given series: the mean of ``draws`` independent estimates for each.

    Returns:
        "bound", "prior", "diffusion", "reconstruction": means over series, in nats a series; and "spread", the
        standard error of "bound" from the draws.

    >>> from fractal_lib.posterior import LadderPosterior, LinearObservation, PriorSDE
    >>> data = Observations(torch.randn(5, 41, 2))
    >>> model = LatentSDE(PriorSDE(3, 16), LinearObservation(3, 2, noise=0.5), LadderPosterior(data, 3, 16))
    >>> sorted(evaluate(model, data, draws=2))
    ['bound', 'diffusion', 'prior', 'reconstruction', 'spread']
    """
    generator = torch.Generator(data.values.device).manual_seed(seed)
    context = model.posterior.prepare(data)
    sums = []
    for _ in range(draws):
        parts = torch.arange(data.size, device=data.values.device).split(batch)
        terms = [torch.stack(model(data, context, part, queries, generator)).double().sum(1) for part in parts]
        sums.append(torch.stack(terms).sum(0) / data.size)
    each = torch.stack(sums)  # (draws, 3)
    bound = each.sum(1)
    spread = bound.std().item() / draws**0.5 if draws > 1 else float("nan")
    terms = dict(zip(Terms._fields, each.mean(0).tolist(), strict=True))
    return {"bound": bound.mean().item(), **terms, "spread": spread}


def _draw_series(size: int, batch: int, generator: torch.Generator, device: torch.device) -> torch.Tensor:
    if batch >= size:
        return torch.arange(size, device=device)
    return torch.randperm(size, generator=generator, device=device)[:batch]


def _refuse_divergence(bound: list[float], step: int, checkpoint) -> None:
    start = max(abs(value) for value in bound[:20])
    last = bound[-20:]
    if bound[-1] == bound[-1] and not (step > 40 and min(last) > 1000 * (start + 1)) and abs(bound[-1]) != float("inf"):
        return
    kept = f"; {checkpoint} holds the last good checkpoint, if there was one" if checkpoint is not None else ""
    raise Diverged(
        f"the loss is {bound[-1]:.4g} after {step} steps, and began at {bound[0]:.4g}: "
        f"try a smaller rate, or clip the gradient{kept}"
    )


def _save(file: Path, plan: Plan, state: dict, generator: torch.Generator, history: dict) -> None:
    part = file.with_name(file.name + ".part")
    saved = {name: thing.state_dict() for name, thing in state.items()}
    torch.save({"plan": asdict(plan), "generator": generator.get_state(), "history": history, **saved}, part)
    part.replace(file)  # whole or not at all


def _resume(file: Path, plan: Plan, state: dict, generator: torch.Generator, history: dict) -> None:
    saved = torch.load(file, map_location="cpu", weights_only=True)
    if saved["plan"] != asdict(plan):
        raise ValueError(f"{file} was written under another plan: {saved['plan']}, not {asdict(plan)}")
    for name, thing in state.items():
        thing.load_state_dict(saved[name])
    generator.set_state(saved["generator"])
    history.update(saved["history"])


class _bar:
    """A bar of steps with the loss beside it, or nothing."""

    def __init__(self, steps: int, done: int, show: bool):
        if show:
            from tqdm import tqdm  # an optional dependency

            self.bar = tqdm(total=steps, initial=done, unit="step")
        else:
            self.bar = None

    def __enter__(self):
        return self._tick

    def _tick(self, loss: float) -> None:
        if self.bar is not None:
            self.bar.set_postfix_str(f"loss {loss:.1f}", refresh=False)
            self.bar.update()

    def __exit__(self, *error):
        if self.bar is not None:
            self.bar.close()
