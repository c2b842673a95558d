"""Hidden rows of a series, scattered and in stretches, filled by every reader of this book."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fractal_lib.attention import (
    RBF,
    ContextAttention,
    DenseAttention,
    DragonCurveAttention,
    FractalAttention,
    HilbertCurveAttention,
    JuliaAttention,
)
from fractal_lib.benchmark.hidden_rows import LocalWindow
from fractal_lib.benchmark.machine import positive
from fractal_lib.benchmark.registry import case
from fractal_lib.data import co2, holdout
from fractal_lib.data.simulate import long_lorenz
from fractal_lib.data.stretches import holdout_stretches
from fractal_lib.posterior import UltimateFractalPosteriorAffine
from fractal_lib.progress import progress_bar

__all__ = ["LEARNED", "METHODS", "NOISE", "Problem", "fill_holes", "problem"]

REACH = 24  # rows on each side of the window: about as many reads as a ladder makes
SCALES = (0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0)  # of the Gaussian, in rows
YEARS = (1965, 1968, 1976, 1980, 1985, 1992, 1996, 1999)
NOISE = {"co2": (0.0, 3.0), "lorenz": (0.0, 0.3)}
"""Of what the readers see: in ppm, and in standard deviations of the path. The truth has none."""

LEARNED: dict[str, Callable[[], ContextAttention]] = {
    "ladder, sampled": FractalAttention,
    "ladder, pooled": lambda: FractalAttention(source="pyramid"),
    "Hilbert": lambda: HilbertCurveAttention(decay=True),
    "dragon": DragonCurveAttention,
    "Julia": JuliaAttention,
    "combined": lambda: UltimateFractalPosteriorAffine(1, 1).attention,
}
"""Readers whose parameters are learned, by name: all from rows hidden from what they may see."""

GAUSSIAN = ("window", "dense, Gaussian")
LINE = "straight line"
METHODS = (LINE, *GAUSSIAN, *LEARNED)


class Problem(NamedTuple):
    """A series with rows to be found.

    Attributes:
        truth: (1, n, 1) float64, what the answers are judged by.
        values: (1, n, 1) float64, what is seen: the truth with noise.
        seen: (n,) bool, rows that may be read.
        hidden: by name, (n,) bool, rows that are asked for.
    """

    truth: Tensor
    values: Tensor
    seen: Tensor
    hidden: dict[str, Tensor]


def problem(series: str, seed: int, noise: float, n: int | None = None) -> Problem:
    """One of the two series: a row in ten hidden at random, and whole stretches.

    Args:
        series: "co2", weekly carbon dioxide, of which the seed names one of eight years to hide; or
            "lorenz", x(t) of a path of its own for each seed, with eight holes of 20 rows.
        seed: of the split, of the path and of the noise.
        noise: standard deviation of the noise.
        n: rows of the path, or the first rows of carbon dioxide; default 1000, or all.

    >>> one = problem("lorenz", 0, 0.3, n=400)
    >>> one.values.shape, {name: int(rows.sum()) for name, rows in one.hidden.items()}
    (torch.Size([1, 400, 1]), {'scattered': 24, 'stretch': 160})
    """
    if series == "co2":
        data = co2()
        observed, truth = data.observed[:n], data.values[:n]
        year = data.dates[:n].astype("datetime64[Y]").astype(int) + 1970
        scattered, stretch = holdout(observed, 0.1, seed, year == YEARS[seed % len(YEARS)])
    else:
        path, _ = long_lorenz(n or 1000, noise=0.0, missing=0.0, seed=seed)
        truth = path.latent[0, :, 0].numpy()
        observed = np.ones(len(truth), bool)
        stretch = holdout_stretches(np.arange(float(len(truth))), {20: 8}, seed)[20]
        scattered, _ = holdout(observed & ~stretch, 0.1, seed)
    where = torch.from_numpy(np.array(truth, float))[None, :, None]
    generator = torch.Generator().manual_seed(seed)
    shaken = where + noise * torch.randn(where.shape, generator=generator, dtype=torch.float64)
    hidden = {"scattered": torch.from_numpy(scattered), "stretch": torch.from_numpy(stretch)}
    return Problem(where, shaken, torch.from_numpy(observed & ~scattered & ~stretch), hidden)


@case("fill-holes", records="fill-holes", choices={"series": list(NOISE), "only": METHODS})
def fill_holes(
    series: Sequence[str] = tuple(NOISE),
    seeds: Sequence[int] = tuple(range(len(YEARS))),
    steps: int = 150,
    n: int | None = None,
    only: Sequence[str] | None = None,
    progress: bool = True,
) -> Iterator[dict]:
    """Fill hidden rows of carbon dioxide and of Lorenz's x(t) by every reader, fitted to the rest.

    Args:
        series: "co2" and "lorenz".
        seeds: each with a split, a noise and a hidden year, or a path, of its own.
        steps: of learning.
        n: rows of a path, or the first rows of carbon dioxide.
        only: these readers alone.
        progress: show a bar on stderr (with tqdm if it is installed).

    All but the line learn from rows hidden from the rest, with one loss: the mean square error. The
    window and dense attention have one Gaussian, whose length scale is searched.

    Yields:
        ``rows`` so far, one for each series, noise, seed and reader: root mean square errors by
        kind of hidden row, over those that were answered, ``unanswered`` of the stretches, and
        ``reads`` of a query.

    Source: chapters ``start/ladder`` and ``measure/claims``.
    """
    positive(steps=steps)
    todo = [(s, noise, seed) for s in series for noise in NOISE[s] for seed in seeds]
    found, methods = [], [name for name in METHODS if not only or name in only]
    with progress_bar(len(todo) * len(methods), "fill-holes", progress) as step:
        for name, noise, seed in todo:
            given = problem(name, seed, noise, n)
            for method in methods:
                row = {"name": name, "noise": noise, "seed": seed, "method": method}
                found.append(row | _scores(given, method, steps))
                step(method)
            yield {"rows": list(found)}
    for name, noise in dict.fromkeys((s, noise) for s, noise, _ in todo):
        for method in methods:
            some = [
                r for r in found if (r["name"], r["noise"], r["method"]) == (name, noise, method)
            ]
            means = (np.mean([r[part] for r in some]) for part in ("scattered", "stretch"))
            words = "  ".join(f"{mean:8.3f}" for mean in means)
            print(f"{name:8} noise {noise:4}  {method:20} {words}", flush=True)


def _scores(given: Problem, method: str, steps: int) -> dict:
    reader = None if method == LINE else _fitted(given, method, steps)
    found = {}
    for part, rows in given.hidden.items():
        guess = _line(given, rows) if reader is None else _answers(reader, given, rows)
        error = guess - given.truth[0, rows, 0]
        found[part] = error[error.isfinite()].square().mean().sqrt().item()
        found["unanswered"] = int((~error.isfinite()).sum())
    n = len(given.seen)
    middle = torch.full((1, 1), 0.5)
    reads = 2 if reader is None else reader.reads(middle, n).indices.shape[-1]
    return found | {"reads": reads}


def _line(given: Problem, rows: Tensor) -> Tensor:
    """The straight line between the nearest rows that are seen, at some rows."""
    place, known = np.arange(len(given.seen)), given.seen.numpy()
    values = given.values[0, :, 0].numpy()
    return torch.from_numpy(np.interp(place[rows.numpy()], place[known], values[known]))


def _loss(reader: ContextAttention, given: Problem, hide: Tensor) -> Tensor:
    at = _times(len(hide), hide)
    guess = reader(given.values, at, observed=given.seen & ~hide)
    return (guess[0] - given.values[0, hide]).square().mean()


def _times(n: int, rows: Tensor) -> Tensor:
    return torch.linspace(0, 1, n, dtype=torch.float64)[None, rows]


def _fitted(given: Problem, method: str, steps: int) -> ContextAttention:
    generator = torch.Generator().manual_seed(0)

    def hide() -> Tensor:
        return (torch.rand(len(given.seen), generator=generator) < 0.1) & given.seen

    if method in GAUSSIAN:
        trials = [hide() for _ in range(10)]
        with torch.no_grad():
            scale = min(
                SCALES,
                key=lambda s: sum(
                    _loss(DenseAttention(RBF(s)), given, trial).item() for trial in trials
                ),
            )
        kernel = RBF(scale)
        return LocalWindow(kernel, REACH) if method == "window" else DenseAttention(kernel)
    torch.manual_seed(0)
    reader = LEARNED[method]()
    optimizer = torch.optim.Adam(reader.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        # a row drawn from the edge of a stretch may have nothing left within reach: another draw
        with contextlib.suppress(ValueError):
            _loss(reader, given, hide()).backward()
            optimizer.step()
    return reader.requires_grad_(False)


@torch.no_grad()
def _answers(reader: ContextAttention, given: Problem, rows: Tensor) -> Tensor:
    """What a reader says of some rows, (M,); NaN where nothing is within its reach."""
    context = reader.prepare(given.values, given.seen)
    at = _times(len(rows), rows)

    def ask(t: Tensor) -> Tensor:
        try:
            return reader(context, t)[0, :, 0]
        except ValueError:
            return torch.full((1,), torch.nan, dtype=torch.float64)

    found = ask(at)
    return found if len(found) == at.shape[1] else torch.cat([ask(t) for t in at.T[:, None]])
