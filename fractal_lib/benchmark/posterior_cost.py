"""What a training step of a latent SDE costs as its series grow: with a GRU, and without."""

from collections.abc import Callable, Sequence

import torch

from fractal_lib.benchmark.harness import milliseconds
from fractal_lib.benchmark.machine import free_memory, positive
from fractal_lib.benchmark.registry import case
from fractal_lib.benchmark.tasks import HEADS
from fractal_lib.benchmark.timer import Clock, Turns
from fractal_lib.posterior import (
    LadderPosterior,
    LatentSDE,
    LinearGaussianLikelihood,
    Observations,
    PriorSDE,
    RecurrentPosterior,
)

__all__ = ["posterior_cost"]

LATENT, CHANNELS = 4, 3
LADDERS = ("ladder", "ladder, a fifth missing")
POSTERIORS = [*LADDERS, *(name for name in HEADS if name != "ladder")]


@case(
    "posterior-cost",
    records="posterior-cost",
    choices={"names": POSTERIORS},
    speed={"sizes": (100, 1_000, 10_000), "names": LADDERS, "seconds": 2.0},
)
def posterior_cost(
    sizes: Sequence[int] = (100, 1_000, 10_000, 100_000),
    names: Sequence[str] = (*LADDERS, "dense", "ultimate"),
    batch: int = 64,
    hidden: int = 128,
    seconds: float = 5.0,
    progress: bool = True,
) -> dict:
    """Time a training step of a latent SDE as its series grow, with a GRU and without.

    A step is loss, gradient and Adam, for one time of each series. The pyramid of the data is built
    beforehand; what that takes, once for a data set, is recorded beside it.

    Args:
        sizes: numbers of rows n.
        names: the ladder posterior, with and without missing rows, and heads behind a GRU.
        batch, hidden: series in a step, and width of the networks.
        seconds: measuring time of each, in three turns; a step is never cut short.
        progress: show a bar on stderr (with tqdm if it is installed).

    Returns:
        ``rows``, one for each size and posterior: ``seconds`` (median) and ``quartiles`` of a step,
        ``steps``, the blocks of steps that were measured, and ``prepared_s``; None where memory
        would not suffice.

    Source: chapter ``posterior/latent_sde``.
    """
    positive(sizes=sizes, batch=batch, hidden=hidden, seconds=seconds)
    found = []
    for n in sizes:
        turns, prepared = Turns[str](), {}
        for name in names:
            # a GRU keeps some 12 H numbers a row for its gradient
            if name in LADDERS or 48 * batch * n * hidden < 0.8 * free_memory("cpu"):
                step, prepared[name] = _step(name, n, batch, hidden)
                turns.add(name, step)
        took = turns.measure(seconds, f"n = {n}", progress)
        for name in names:
            row = {"posterior": name, "n": n, "seconds": None}
            if name in took:
                one = took[name]
                row |= {"seconds": one.median, "quartiles": list(one.quartiles)}
                row |= {"steps": one.blocks, "prepared_s": prepared[name]}
            found.append(row)
            words = milliseconds(row["seconds"]) if name in took else "no memory"
            print(f"n = {n:7}, {name:24} {words}", flush=True)
    return {"batch": batch, "latent_size": LATENT, "hidden_size": hidden, "rows": found}


def _step(name: str, n: int, batch: int, hidden: int) -> tuple[Callable[[], object], float]:
    """A step of training, ready to be called, and the seconds that the data's preparation took."""
    torch.manual_seed(0)
    observed = torch.rand(batch, n) > 0.2 if name == "ladder, a fifth missing" else None
    data = Observations(torch.randn(batch, n, CHANNELS), observed=observed)
    model = LatentSDE(
        PriorSDE(LATENT, hidden),
        LinearGaussianLikelihood(LATENT, CHANNELS, 0.1),
        _posterior(name, data, hidden),
    )
    with Clock() as clock:
        context = model.posterior.prepare(data)
    optimizer, series = torch.optim.Adam(model.parameters()), torch.arange(batch)

    def step() -> None:
        optimizer.zero_grad()
        model(data, context, series).negative_elbo.mean().backward()
        optimizer.step()

    return step, clock.wall


def _posterior(name: str, data: Observations, hidden: int) -> LadderPosterior | RecurrentPosterior:
    if name in LADDERS:
        return LadderPosterior.of(data, LATENT, hidden)
    return RecurrentPosterior(HEADS[name](LATENT, hidden), CHANNELS)
