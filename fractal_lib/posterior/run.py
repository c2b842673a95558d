"""A run of training: all that changes from step to step, and the file from which it goes on."""

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from fractal_lib.posterior.elbo import ElboTerms, LatentSDE
from fractal_lib.posterior.files import (
    check_writable,
    first_difference,
    read_payload,
    write_payload,
)
from fractal_lib.posterior.observations import Observations
from fractal_lib.posterior.plan import SCHEDULES, TrainingPlan

__all__ = ["Average", "Checkpoint", "Run", "deferred_interrupt"]


class Average:
    """Exponential moving average of parameters, in which their start has no weight.

    After k steps it is the sum of decay^(k - i) p_i over i = 1 ... k, over the sum of the weights.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float):
        self.parameters, self.decay, self.steps = parameters, decay, 0
        self.values = [p.detach().clone() for p in parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Take the parameters in as they are now."""
        self.steps += 1
        share = (1 - self.decay) / (1 - self.decay**self.steps)
        for value, parameter in zip(self.values, self.parameters, strict=True):
            value.lerp_(parameter, share)

    @torch.no_grad()
    def store(self) -> None:
        """Give the parameters its values, if it has taken in any."""
        for value, parameter in zip(self.values, self.parameters, strict=True):
            if self.steps:
                parameter.copy_(value)

    def state_dict(self) -> dict[str, Any]:
        """Its values, and how many steps they stand for."""
        return {"steps": self.steps, "values": self.values}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """As it was."""
        self.steps = saved["steps"]
        for value, was in zip(self.values, saved["values"], strict=True):
            value.copy_(was)


class Run:
    """What training changes, and one step of it.

    Attributes:
        history: as `fit` returns it.
        whole: False within a step, when parts of the state are a step ahead of others.
    """

    def __init__(self, model: LatentSDE, data: Observations, plan: TrainingPlan):
        self.model, self.data, self.plan, self.whole = model, data, plan, True
        # what a step calls, and how many processes share a step: a subclass has others
        self.call: nn.Module = model
        self.ranks = 1
        self.generator = torch.Generator(data.values.device).manual_seed(plan.seed)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = _optimizer(self.parameters, plan)
        schedule = LambdaLR(optimizer, lambda step: SCHEDULES[plan.schedule](step / plan.steps))
        self.optimizer, self.schedule = optimizer, schedule
        self.average = None if plan.ema is None else Average(self.parameters, plan.ema)
        self.history: dict[str, list[float]] = {
            name: [] for name in ("negative_elbo", *ElboTerms._fields)
        }
        self.history["seconds"] = [0.0]
        self.prepared: list[Any] = []

    def prepare(self) -> None:
        """What the posterior reads: the data, or as many views of them as the plan has."""
        posterior, hiding = self.model.posterior, self.plan.hiding
        if hiding is None:
            self.prepared = [posterior.prepare(self.data)]
            return
        generator = torch.Generator(self.data.values.device).manual_seed(self.plan.seed)
        views = (hiding.view(self.data, generator) for _ in range(hiding.views))
        self.prepared = [posterior.prepare(view) for view in views]

    @property
    def done(self) -> int:
        """Steps."""
        return len(self.history["negative_elbo"])

    @property
    def parts(self) -> dict[str, Any]:
        """What has a ``state_dict``, by name."""
        parts = {"model": self.model, "optimizer": self.optimizer, "schedule": self.schedule}
        return parts if self.average is None else parts | {"average": self.average}

    def step(self) -> None:
        """One step."""
        begun, self.whole = time.perf_counter(), False
        data, plan = self.data, self.plan
        series = _draw_series(len(data), plan.batch_size, self.generator, data.values.device)
        prepared = self.prepared[len(self.history["nll"]) % len(self.prepared)]
        weight = () if plan.hiding is None else (plan.hiding.weight,)
        terms = self.call(data, prepared, series, plan.num_times, self.generator, *weight)
        loss = terms.negative_elbo.mean()
        self.optimizer.zero_grad()
        (self.ranks * loss).backward()
        if plan.grad_clip is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters, plan.grad_clip)
        self.optimizer.step()
        self.schedule.step()
        if self.average is not None:
            self.average.update()
        for name, value in zip(self.history, (loss, *terms), strict=False):
            self.history[name].append(value.mean().item())
        self.history["seconds"][0] += time.perf_counter() - begun
        self.whole = True


def _optimizer(parameters: list[nn.Parameter], plan: TrainingPlan) -> torch.optim.Optimizer:
    if not plan.weight_decay:
        return torch.optim.Adam(parameters, lr=plan.lr)
    matrices = [p for p in parameters if p.dim() > 1]
    others = [p for p in parameters if p.dim() < 2]
    groups = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=plan.lr, weight_decay=plan.weight_decay)


def _draw_series(
    size: int, batch_size: int, generator: torch.Generator, device: torch.device
) -> torch.Tensor:
    if batch_size >= size:
        return torch.arange(size, device=device)
    return torch.randperm(size, generator=generator, device=device)[:batch_size]


class Checkpoint:
    """A file from which training goes on; it knows its plan and its data.

    Raises:
        OSError: at once, if the file could not be written.
    """

    def __init__(self, file: Path, plan: TrainingPlan, data: Observations):
        self.file, self.plan, self.data = file, plan, data.fingerprint()
        check_writable(file)

    def write(self, run: Run) -> None:
        """Whole or not at all."""
        saved = {name: part.state_dict() for name, part in run.parts.items()}
        saved |= {"plan": asdict(self.plan), "data": self.data, "history": run.history}
        write_payload(saved | {"generator": run.generator.get_state()}, self.file)

    def resume(self, run: Run) -> None:
        """Go on from the file, if there is one.

        Raises:
            ValueError: before anything is loaded, if it is not one of this plan, data and model.
        """
        if not self.file.exists():
            return
        keys = {"model", "optimizer", "schedule", "plan", "data", "history", "generator"}
        saved = read_payload(self.file, "a checkpoint of fit", keys)
        free = {"steps", "checkpoint_every"}  # these may change
        # what an older plan did not have was as it is by default
        now, were = asdict(self.plan), asdict(TrainingPlan(1)) | saved["plan"]
        differ = [name for name in now if name not in free and were[name] != now[name]]
        if differ:
            words = ", ".join(f"{name} {were[name]!r}, not {now[name]!r}" for name in differ)
            raise ValueError(f"{self.file} was written under another plan: {words}")
        if saved["data"] != self.data:
            raise ValueError(f"{self.file} was written for other data: choose another file")
        done = len(saved["history"]["negative_elbo"])
        if done > self.plan.steps:
            raise ValueError(
                f"{self.file} holds {done} steps, more than the {self.plan.steps} asked"
            )
        difference = first_difference(saved["model"], run.model.state_dict())
        if difference:
            raise ValueError(f"{self.file} was written for another model: {difference}")
        for name, part in run.parts.items():
            part.load_state_dict(saved[name])
        run.generator.set_state(saved["generator"])
        run.history.update(saved["history"])


@contextmanager
def deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """Ctrl-C is kept until it is asked for, or the block ends; a second one strikes at once.

    What it yields says whether there was one. It keeps Python's own handler alone, and in the main
    thread, to which signals come.

    >>> with deferred_interrupt() as interrupted:
    ...     interrupted()
    False
    """
    pressed = False

    def keep(number, frame):
        nonlocal pressed
        pressed = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    main = threading.current_thread() is threading.main_thread()
    ours = main and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if ours:
        signal.signal(signal.SIGINT, keep)
    try:
        yield lambda: pressed
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
    if pressed:
        raise KeyboardInterrupt
