"""What each part of `LadderPosterior` is worth: levels, slopes, a header, the dragon's contrast,
the Hilbert curve.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from fractal_lib.attention import DragonCurveAttention, HilbertCurveAttention, read
from fractal_lib.benchmark.registry import case
from fractal_lib.benchmark.tasks import Task, lorenz_task
from fractal_lib.benchmark.timer import Clock
from fractal_lib.posterior import (
    DataPyramid,
    LadderPosterior,
    Observations,
    TimeEmbedding,
    fit,
)
from fractal_lib.posterior.heads import affine_net
from fractal_lib.posterior.reader import Features
from fractal_lib.progress import progress_bar

__all__ = ["Variant", "ladder_ablation", "variants"]


class Variant(LadderPosterior):
    """A ladder posterior with some of its features left out, or with more of them.

    Args:
        without: "slopes", "values".
        also: attentions over the series that are read beside the pyramid, or "header", the mean of
            the whole series, the same at every t.

    The others are those of `LadderPosterior`.
    """

    def __init__(
        self,
        data: Observations,
        latent_size: int,
        hidden_size: int,
        levels: int | None = None,
        without: Sequence[str] = (),
        also: Sequence[Any] = (),
        time_embedding: TimeEmbedding | None = None,
    ):
        super().__init__(
            latent_size,
            hidden_size,
            data.channels,
            data.n,
            duration=data.duration,
            levels=levels,
            time_embedding=time_embedding,
        )
        self.without, self.also, self.values = without, also, data.values
        series, t = torch.zeros(1).long(), torch.zeros(1, 1).double()
        pyramid = DataPyramid(data, levels)
        width = self.widen(pyramid, pyramid.read(series, t), series, t).value.shape[-1]
        in_features = width + self.time_embedding.out_features
        self.net = affine_net(in_features, hidden_size, latent_size, -0.5)

    def prepare(self, data: Observations) -> DataPyramid:
        """The pyramid, whose features are those of the variant."""
        self.values = data.values
        pyramid = super().prepare(data)
        plain = pyramid.read
        pyramid.read = lambda series, t: self.widen(pyramid, plain(series, t), series, t)
        return pyramid

    def widen(
        self, pyramid: DataPyramid, features: Features, series: Tensor, t: Tensor
    ) -> Features:
        """The features of a complete series (B, Q, K), narrower or wider."""
        channels = self.values.shape[2]
        per_level = [part.unflatten(-1, (-1, 2 * channels)) for part in features]
        if "slopes" in self.without:
            per_level = [part[..., :channels] for part in per_level]
        if "values" in self.without:
            per_level = [part[..., channels:] for part in per_level]
        parts = [part.flatten(-2) for part in per_level]
        for attention in self.also:
            if attention == "header":
                top = pyramid.values[(series + 1) * pyramid.packed - 1].unsqueeze(1)
                top = top.expand(-1, t.shape[1], -1)
                more = top, torch.zeros_like(top)
            else:
                more = _with_slope(attention, self.values[series], t)
            parts = [torch.cat(pair, -1) for pair in zip(parts, more, strict=True)]
        return Features(*parts)


def _with_slope(attention: Any, values: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """What an attention reads at t (B, Q), and its derivative in t: (B, Q, X) both."""

    def at(t: Tensor) -> Tensor:
        return read(values, attention.reads(t, values.shape[1]))

    value, slope, *_ = torch.func.jvp(at, (t,), (torch.ones_like(t),))
    return value, slope


def variants(n: int) -> Iterator[tuple[str, dict]]:
    """Name and arguments of `Variant`: levels first, then what is left out or added with all of
    them.
    """
    counts = [1, 2, 3, 4, 5, None] if n == 41 else [1, 2, 4, 8, None]
    for levels in counts:
        yield f"{levels or 'all'} levels", dict(levels=levels)
    yield "no slopes", dict(without=("slopes",))
    yield "no values", dict(without=("values",))
    yield "with the phase between rows", dict(time_embedding=TimeEmbedding([1 / (n - 1)]))
    yield "with a header", dict(also=("header",))
    yield "with the dragon's contrast", dict(also=(DragonCurveAttention(signed=True),))
    yield "with a Hilbert window", dict(also=(HilbertCurveAttention(),))


NAMES = list(dict.fromkeys(name for n in (41, 1000) for name, _ in variants(n)))


@case("ladder-ablation", records="ladder-ablation", choices={"only": NAMES})
def ladder_ablation(
    sizes: Sequence[int] = (41, 1000),
    seeds: Sequence[int] = (0, 1, 2),
    steps: int = 2500,
    only: Sequence[str] | None = None,
    progress: bool = True,
) -> Iterator[dict]:
    """Train the ladder posterior with parts left out or added, and judge it by its held-out loss.

    Args:
        sizes: numbers of rows: 41 clean ones, or more that are noisy.
        seeds: of the start and of the training; every variant is trained from each.
        steps: of training.
        only: these variants alone.
        progress: show a bar on stderr (with tqdm if it is installed).

    Yields:
        ``runs`` so far: ``negative_elbo`` for each seed, and CPU seconds of a training.

    Source: chapter ``posterior/latent_sde``.
    """
    todo = [(n, *one) for n in sizes for one in variants(n) if not only or one[0] in only]
    runs, tasks = [], {}
    with progress_bar(len(todo), "ladder-ablation", progress) as step:
        for n, name, arguments in todo:
            noise = 0.01 if n == 41 else 0.3
            tasks[n] = tasks[n] if n in tasks else lorenz_task(n, noise)
            with Clock() as clock:
                found = [_train(tasks[n], seed, steps, arguments) for seed in seeds]
            cpu = round(clock.cpu / len(found), 1)
            print(f"n = {n}, noise {noise}: {name:28} {found} {cpu} CPU seconds each", flush=True)
            run = {"n": n, "noise": noise, "variant": name, "negative_elbo": found, "cpu_s": cpu}
            runs.append(run)
            step(name)
            yield {"steps": steps, "seeds": list(seeds), "runs": runs}


def _train(task: Task, seed: int, steps: int, arguments: dict) -> float:
    """Held-out negative ELBO of one variant."""
    run = task.with_plan(seed=seed, steps=steps)
    model = run.build("ladder-posterior", seed)
    torch.manual_seed(seed)
    model.posterior = Variant(run.train, run.latent_size, run.hidden_size, **arguments)
    fit(model, run.train, run.plan)
    return round(run.report(model)["negative_elbo"], 2)
