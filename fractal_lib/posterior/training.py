"""Training that can be killed: steps, checkpoints, and what to do when it diverges."""

import math
import os
import pickle
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch.optim.lr_scheduler import LambdaLR

from fractal_lib.checks import as_int, as_positive
from fractal_lib.posterior.elbo import ElboTerms, LatentSDE
from fractal_lib.posterior.observations import Observations, as_observations
from fractal_lib.progress import progress_bar

__all__ = ["Diverged", "TrainingPlan", "evaluate", "fit"]

SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda fraction: 1.0,
    "cosine": lambda fraction: 0.5 * (1 + math.cos(math.pi * fraction)),
}


class Diverged(RuntimeError):
    """The loss is not finite, or is far above what it was."""


@dataclass(frozen=True)
class TrainingPlan:
    """How to train.

    Attributes:
        steps: of Adam.
        batch_size: series drawn for each, with replacement only if there are fewer.
        num_times: times drawn a series and step.
        lr: learning rate.
        schedule: "constant", or "cosine": the rate falls to 0 along half a cosine.
        grad_clip: largest norm of the gradient, or None.
        seed: of everything random in training (not of the parameters at the start).
        checkpoint_every: steps between checkpoints, and at most what a killed run loses.

    Raises:
        TypeError: for what is not a number, or not a whole number where one is due.
        ValueError: for numbers that are not positive, or another schedule.

    >>> TrainingPlan(steps=100).lr
    0.001
    """

    steps: int
    batch_size: int = 256
    num_times: int = 1
    lr: float = 1e-3
    schedule: str = "constant"
    grad_clip: float | None = None
    seed: int = 0
    checkpoint_every: int = 250

    def __post_init__(self):
        for name in ("steps", "batch_size", "num_times", "checkpoint_every"):
            self._set(name, as_int(getattr(self, name), name, least=1))
        self._set("seed", as_int(self.seed, "seed"))
        self._set("lr", as_positive(self.lr, "lr"))
        if self.grad_clip is not None:
            self._set("grad_clip", as_positive(self.grad_clip, "grad_clip"))
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule must be one of {[*SCHEDULES]}, got {self.schedule!r}")

    def _set(self, name: str, value: float) -> None:
        """Plain numbers alone: a checkpoint holds nothing else."""
        object.__setattr__(self, name, value)


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
        after: called with the number of steps done, after each.

    Returns:
        the loss of each step, and the mean of each of its terms: lists of ``plan.steps`` numbers
        under "negative_elbo", "kl_initial", "kl_path" and "nll", and "seconds" spent in training,
        all resumed parts together.

    Raises:
        Diverged: if the loss is not finite, or for 20 steps exceeds the first steps' by a factor of
            1000.
        TypeError: for data that are not `Observations`.
        ValueError: if the checkpoint belongs to another plan, to other data or to another model, or
            the file is no checkpoint.
        OSError: before training, if the checkpoint cannot be written.

    Complexity: that of ``plan.steps`` calls of the model; the posterior prepares the data once.

    >>> from fractal_lib.posterior import LadderPosterior, LinearGaussianLikelihood, PriorSDE
    >>> data = Observations(torch.randn(5, 41, 2))
    >>> likelihood = LinearGaussianLikelihood(3, 2, noise=0.5)
    >>> model = LatentSDE(PriorSDE(3, 16), likelihood, LadderPosterior.of(data, 3, 16))
    >>> len(fit(model, data, TrainingPlan(steps=3, batch_size=4))["negative_elbo"])
    3
    """
    generator = torch.Generator(as_observations(data).values.device).manual_seed(plan.seed)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=plan.lr)
    schedule = LambdaLR(optimizer, lambda step: SCHEDULES[plan.schedule](step / plan.steps))
    state = {"model": model, "optimizer": optimizer, "schedule": schedule}
    history: dict[str, list[float]] = {name: [] for name in ("negative_elbo", *ElboTerms._fields)}
    history["seconds"] = [0.0]
    saved = None if checkpoint is None else _Checkpoint(Path(checkpoint), plan, data)
    if saved is not None:
        saved.resume(state, generator, history)
    prepared = model.posterior.prepare(data)
    done, begun = len(history["negative_elbo"]), time.perf_counter()
    spent = history["seconds"][0]
    with progress_bar(plan.steps, "training", progress, done) as tick:
        for step in range(done + 1, plan.steps + 1):
            series = _draw_series(len(data), plan.batch_size, generator, data.values.device)
            terms = model(data, prepared, series, plan.num_times, generator)
            loss = terms.negative_elbo.mean()
            optimizer.zero_grad()
            loss.backward()
            if plan.grad_clip is not None:
                torch.nn.utils.clip_grad_norm_(parameters, plan.grad_clip)
            optimizer.step()
            schedule.step()
            for name, value in zip(history, (loss, *terms), strict=False):
                history[name].append(value.mean().item())
            _refuse_divergence(history["negative_elbo"], step, checkpoint)
            history["seconds"][0] = spent + time.perf_counter() - begun
            if saved is not None and (step % plan.checkpoint_every == 0 or step == plan.steps):
                saved.write(state, generator, history)
            tick(f"loss {history['negative_elbo'][-1]:.1f}")
            if after is not None:
                after(step)
    return history


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


def _draw_series(
    size: int, batch_size: int, generator: torch.Generator, device: torch.device
) -> torch.Tensor:
    if batch_size >= size:
        return torch.arange(size, device=device)
    return torch.randperm(size, generator=generator, device=device)[:batch_size]


def _refuse_divergence(losses: list[float], step: int, checkpoint) -> None:
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


def _refuse_other_model(file: Path, saved: dict, now: dict) -> None:
    """Before anything is loaded: names and shapes must be those of this model."""
    one, other = ({name: tuple(part.shape) for name, part in d.items()} for d in (saved, now))
    if one != other:
        name = next(k for k in [*one, *other] if one.get(k) != other.get(k))
        raise ValueError(
            f"{file} was written for another model: {name} {one.get(name)}, not {other.get(name)}"
        )


class _Checkpoint:
    """A file from which training goes on; it knows its plan and its data."""

    def __init__(self, file: Path, plan: TrainingPlan, data: Observations):
        self.file, self.plan, self.data = file, plan, data.fingerprint()
        file.parent.mkdir(parents=True, exist_ok=True)
        self.part = file.with_name(file.name + ".part")
        self.part.touch()  # an error here comes before the work, not after it

    def write(self, state: dict, generator: torch.Generator, history: dict) -> None:
        """Whole or not at all."""
        saved = {name: thing.state_dict() for name, thing in state.items()}
        saved |= {"plan": asdict(self.plan), "data": self.data, "history": history}
        torch.save(saved | {"generator": generator.get_state()}, self.part)
        self.part.replace(self.file)

    def resume(self, state: dict, generator: torch.Generator, history: dict) -> None:
        """Go on from the file, if there is one."""
        if not self.file.exists():
            return
        try:
            saved = torch.load(self.file, map_location="cpu", weights_only=True)
            saved["plan"], saved["data"], saved["history"], saved["generator"]
        except (pickle.UnpicklingError, RuntimeError, KeyError, TypeError, EOFError) as error:
            raise ValueError(f"expected {self.file} as a checkpoint of fit, got {error}") from error
        free = {"steps", "checkpoint_every"}  # these may change
        now = asdict(self.plan)
        differ = [name for name in now if name not in free and saved["plan"].get(name) != now[name]]
        if differ:
            were = ", ".join(
                f"{name} {saved['plan'].get(name)!r}, not {now[name]!r}" for name in differ
            )
            raise ValueError(f"{self.file} was written under another plan: {were}")
        if saved["data"] != self.data:
            raise ValueError(f"{self.file} was written for other data: choose another file")
        done = len(saved["history"]["negative_elbo"])
        if done > self.plan.steps:
            raise ValueError(
                f"{self.file} holds {done} steps, more than the {self.plan.steps} asked"
            )
        _refuse_other_model(self.file, saved["model"], state["model"].state_dict())
        for name, thing in state.items():
            thing.load_state_dict(saved[name])
        generator.set_state(saved["generator"])
        history.update(saved["history"])
