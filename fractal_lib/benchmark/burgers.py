"""The operator of Burgers' equation, learned with every attention: from u at 0 to u at 1."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from fractal_lib.benchmark.attentions import FAR, WINDOWS, trained
from fractal_lib.benchmark.machine import positive
from fractal_lib.benchmark.registry import case
from fractal_lib.benchmark.timer import Clock
from fractal_lib.benchmark.transformer import Transformer, fit
from fractal_lib.data.burgers import burgers, random_start
from fractal_lib.progress import progress_bar

__all__ = ["ATTENTIONS", "burgers_operator", "pairs", "relative", "ridge"]

ATTENTIONS = ("full", *WINDOWS, *FAR)


def pairs(count: int, n: int, nu: float, seed: int) -> tuple[Tensor, Tensor]:
    """u at 0 and at 1, (count, n) float64 twice; what is solved for has 1024 points or more, of
    which these are n; in time it is right to 1e-7.

    >>> start, end = pairs(2, 64, 0.01, seed=0)
    >>> start.shape, bool(end.norm() < start.norm())
    (torch.Size([2, 64]), True)
    """
    every = max(1, 1024 // n)
    start = random_start(count, n * every, torch.Generator().manual_seed(seed))
    return start[:, ::every], burgers(start, 1.0, nu, steps=250)[:, ::every]


def relative(found: Tensor, end: Tensor) -> float:
    """Mean over the functions of the relative L2 error."""
    return ((found - end).norm(dim=-1) / end.norm(dim=-1)).mean().item()


def ridge(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> float:
    """Relative error of linear ridge regression of all points on all points, with the penalty that
    does best on a fifth of what it is trained on.
    """
    (x, y), cut = train, len(train[0]) * 4 // 5

    def solve(x: Tensor, y: Tensor, penalty: float) -> Tensor:
        return torch.linalg.solve(x.T @ x + penalty * torch.eye(x.shape[1]).to(x), x.T @ y)

    scores = {
        float(p): relative(x[cut:] @ solve(x[:cut], y[:cut], float(p)), y[cut:])
        for p in 10.0 ** np.arange(-6, 5)
    }
    return relative(test[0] @ solve(x, y, min(scores, key=scores.__getitem__)), test[1])


class Entrance(nn.Module):
    """u at every point, and where it is on the circle: (B, N) to (B, N, width)."""

    def __init__(self, width: int):
        super().__init__()
        self.mix = nn.Linear(3, width)

    def forward(self, u: Tensor) -> Tensor:
        """u, sine and cosine, mixed."""
        angle = 2 * torch.pi * torch.arange(u.shape[1], device=u.device) / u.shape[1]
        place = torch.stack([angle.sin(), angle.cos()], -1).expand(*u.shape, 2)
        return self.mix(torch.cat([u[..., None], place], -1))


def answer(model: nn.Module, u: Tensor) -> Tensor:
    """u at 1: what was there at the start, and what the model adds, (B, N)."""
    return u + model(u).squeeze(-1)


@case("burgers", records="burgers", choices={"only": ATTENTIONS})
def burgers_operator(
    n: int = 256,
    nu: float = 0.01,
    train: int = 512,
    test: int = 128,
    width: int = 64,
    heads: int = 2,
    layers: int = 3,
    near: int = 16,
    cells: int = 4,
    steps: int = 300,
    batch: int = 16,
    seeds: Sequence[int] = (0, 1),
    only: Sequence[str] | None = None,
    progress: bool = True,
) -> Iterator[dict]:
    """Learn where Burgers' equation leads, from solved examples, with every kind of attention.

    Args:
        n: points on the circle, the rows.
        nu: viscosity of the equation.
        train, test: functions that are trained on, and that are held out.
        width, heads, layers: of the model.
        near, cells: of `fractal_self_attention`; the window reads as many points.
        steps, batch: of training, for every attention the same.
        seeds: of the start and of the batches; the functions are the same.
        only: these attentions alone.
        progress: show a bar on stderr (with tqdm if it is installed).

    Yields:
        ``runs``, one for each attention and seed, with the mean relative L2 ``error`` on held-out
        functions, seconds by the wall and CPU seconds; and the same error of ``baselines``: what
        was there at the start, and linear ridge regression.

    Source: Li et al., Fourier Neural Operator (2021), section 5.1, with a viscosity ten times
    lower; chapter ``self_attention/near_in_content``.
    """
    positive(n=n, train=train, test=test, steps=steps, batch=batch)
    known, asked = pairs(train, n, nu, seed=0), pairs(test, n, nu, seed=1)
    baselines = {"identity": relative(*asked), "linear ridge": ridge(known, asked)}
    print(baselines, flush=True)
    runs, todo = [], [(seed, name) for seed in seeds for name in only or ATTENTIONS]
    with progress_bar(len(todo) * steps, "burgers", progress) as step:
        for seed, name in todo:
            torch.manual_seed(seed)
            attend = trained(near, cells, is_causal=False)[name]
            model = Transformer(attend, Entrance(width), 1, width, heads, layers)
            generator = torch.Generator().manual_seed(seed)
            loss = partial(_loss, model, known, batch, generator)
            clock = fit(model, loss, steps, 2e-3, partial(_tick, step, name))
            with torch.no_grad():
                error = relative(answer(model, asked[0].float()).double(), asked[1])
            runs.append({"attention": name, "seed": seed, "error": error} | clock.taken(1))
            print(runs[-1], flush=True)
            yield {"baselines": baselines, "runs": runs}


def _loss(
    model: nn.Module,
    known: tuple[Tensor, Tensor],
    batch: int,
    generator: torch.Generator,
    step: int,
) -> Tensor:
    """Mean relative L2 error of a few functions."""
    rows = torch.randint(len(known[0]), (batch,), generator=generator)
    x, y = (part[rows].float() for part in known)
    return ((answer(model, x) - y).norm(dim=-1) / y.norm(dim=-1)).mean()


def _tick(step: Callable[[str], object], name: str, done: int, clock: Clock) -> None:
    step(name)
