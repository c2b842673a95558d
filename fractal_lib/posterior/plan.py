"""How to train: plain numbers, so that a checkpoint can hold them."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fractal_lib.checks import as_int, as_positive
from fractal_lib.posterior.views import Hiding

__all__ = ["SCHEDULES", "TrainingPlan"]

SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda fraction: 1.0,
    "cosine": lambda fraction: 0.5 * (1 + math.cos(math.pi * fraction)),
}


@dataclass(frozen=True)
class TrainingPlan:
    """How to train.

    Attributes:
        steps: of Adam.
        batch_size: series drawn for each, with replacement only if there are fewer.
        num_times: times drawn a series and step.
        lr: learning rate.
        schedule: "constant", or "cosine": the rate falls to 0 along half a cosine.
        weight_decay: of AdamW, on matrices; biases, a noise, the logits of levels or of a mixture
            do not decay. 0 is Adam.
        grad_clip: largest norm of the gradient, or None.
        ema: decay of an exponential moving average of the weights, 0.999 say, with which the model
            ends; None for the weights of the last step.
        hiding: how rows are hidden from the posterior while it learns, or None.
        seed: of everything random in training (not of the parameters at the start).
        checkpoint_every: steps between checkpoints, and at most what a killed run loses.

    Raises:
        TypeError: for what is not a number, or not a whole number where one is due.
        ValueError: for numbers out of bounds, or another schedule.

    Source: Loshchilov and Hutter (2019) for the decay; Kingma and Ba (2015), section 7.2, for the
    average, in which the start has no weight.

    >>> TrainingPlan(steps=100).lr
    0.001
    """

    steps: int
    batch_size: int = 256
    num_times: int = 1
    lr: float = 1e-3
    schedule: str = "constant"
    weight_decay: float = 0.0
    grad_clip: float | None = None
    ema: float | None = None
    hiding: Hiding | None = None
    seed: int = 0
    checkpoint_every: int = 250

    def __post_init__(self):
        for name in ("steps", "batch_size", "num_times", "checkpoint_every"):
            self._set(name, as_int(getattr(self, name), name, least=1))
        self._set("seed", as_int(self.seed, "seed"))
        self._set("lr", as_positive(self.lr, "lr"))
        # 0 is allowed; what is not a number is refused
        decay = self.weight_decay
        self._set("weight_decay", 0.0 if decay == 0 else as_positive(decay, "weight_decay"))
        for name in ("grad_clip", "ema"):
            if getattr(self, name) is not None:
                self._set(name, as_positive(getattr(self, name), name))
        if self.ema is not None and self.ema >= 1:
            raise ValueError(f"expected ema in (0, 1), got {self.ema}")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule must be one of {[*SCHEDULES]}, got {self.schedule!r}")

        if isinstance(self.hiding, dict):  # out of a file
            self._set("hiding", Hiding(**self.hiding))
        if self.hiding is not None and not isinstance(self.hiding, Hiding):
            raise TypeError(f"expected hiding as a Hiding, got {type(self.hiding).__name__}")

    def _set(self, name: str, value: Any) -> None:
        """Plain numbers alone: a checkpoint holds nothing else."""
        object.__setattr__(self, name, value)
