"""What each part of `LadderPosterior` is worth: levels, slopes, a header, the dragon's contrast,
the Hilbert curve.

    python benchmarks/ladder_ablation.py --json benchmarks/results/ladder-ablation.json

Every variant is trained from three seeds, on 41 clean rows and on 1000 noisy ones, and judged by
its held-out loss.
"""

import argparse
import json
import time
from pathlib import Path

import torch

from fractal_lib import DragonCurveAttention, HilbertCurveAttention, read
from fractal_lib.benchmark.machine import describe, load_average
from fractal_lib.benchmark.tasks import lorenz_task
from fractal_lib.posterior import DataPyramid, LadderPosterior, TimeEmbedding, fit
from fractal_lib.posterior.heads import affine_net
from fractal_lib.posterior.ladder import Features


class Variant(LadderPosterior):
    """A ladder posterior with some of its features left out, or with more of them."""

    def __init__(
        self, data, latent_size, hidden_size, levels=None, without=(), also=(), time_embedding=None
    ):
        super().__init__(
            data, latent_size, hidden_size, levels=levels, time_embedding=time_embedding
        )
        self.without, self.also, self.values = without, also, data.values
        sample = self.widen(
            DataPyramid(data, levels), torch.zeros(1).long(), torch.zeros(1, 1).double()
        )
        self.net = affine_net(
            sample.value.shape[-1] + self.time_embedding.out_features,
            hidden_size,
            latent_size,
            -0.5,
        )

    def prepare(self, data):
        self.values = data.values
        pyramid = super().prepare(data)
        plain = pyramid.read
        pyramid.read = lambda series, t: self.widen(pyramid, series, t, plain)
        return pyramid

    def widen(self, pyramid, series, t, plain=None):
        features = (plain or pyramid.read)(series, t)
        channels = self.values.shape[2]
        per_level = [part.unflatten(-1, (-1, 2 * channels)) for part in features]
        if "slopes" in self.without:
            per_level = [part[..., :channels] for part in per_level]
        if "values" in self.without:
            per_level = [part[..., channels:] for part in per_level]
        parts = [part.flatten(-2) for part in per_level]
        for attention in self.also:
            if attention == "header":  # the mean of the whole series, the same at every t
                top = (
                    pyramid.values[(series + 1) * pyramid.packed - 1]
                    .unsqueeze(1)
                    .expand(-1, t.shape[1], -1)
                )
                more = top, torch.zeros_like(top)
            else:
                rows = self.values[series]
                more = torch.func.jvp(
                    lambda t, attention=attention, rows=rows: read(
                        rows, attention.reads(t, rows.shape[1])
                    ),
                    (t,),
                    (torch.ones_like(t),),
                )
            parts = [torch.cat(pair, -1) for pair in zip(parts, more, strict=True)]
        return Features(*parts)


def variants(n):
    """Name to arguments of `Variant`: levels first, then what is left out or added with all levels."""
    counts = [1, 2, 3, 4, 5, None] if n == 41 else [1, 2, 4, 8, None]
    for levels in counts:
        yield f"{levels or 'all'} levels", dict(levels=levels)
    yield "no slopes", dict(without=("slopes",))
    yield "no values", dict(without=("values",))
    yield "with the phase between rows", dict(time_embedding=TimeEmbedding([1 / (n - 1)]))
    yield "with a header", dict(also=("header",))
    yield "with the dragon's contrast", dict(also=(DragonCurveAttention(signed=True),))
    yield "with a Hilbert window", dict(also=(HilbertCurveAttention(),))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[41, 1000], help="41 clean rows, 1000 noisy ones"
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these variants alone")
    parser.add_argument(
        "--json", type=Path, help="write there; what is there already is kept and added to"
    )
    settings = parser.parse_args()
    torch.set_num_threads(1)
    record = describe("cpu", 1) | {"steps": settings.steps, "seeds": settings.seeds, "runs": []}
    if settings.json and settings.json.exists():
        record["runs"] = json.loads(settings.json.read_text())["runs"]
    for n, noise in ((n, 0.01 if n == 41 else 0.3) for n in settings.sizes):
        task = lorenz_task(n, noise)
        for name, arguments in variants(n):
            if settings.only and name not in settings.only:
                continue
            found, begun = [], time.process_time()
            for seed in settings.seeds:
                run = task.with_plan(seed=seed, steps=settings.steps)
                model = run.build("ladder-posterior", seed)
                torch.manual_seed(seed)
                model.posterior = Variant(run.train, run.latent_size, run.hidden_size, **arguments)
                fit(model, run.train, run.plan)
                found.append(round(run.report(model)["negative_elbo"], 2))
            seconds = round((time.process_time() - begun) / len(found), 1)
            print(f"n = {n}, noise {noise}: {name:28} {found} {seconds} s each", flush=True)
            record["runs"].append(
                dict(n=n, noise=noise, variant=name, negative_elbo=found, cpu_s=seconds)
            )
            if settings.json:
                settings.json.write_text(
                    json.dumps(record | {"load_average_after": load_average()}, indent=1) + "\n"
                )


if __name__ == "__main__":
    main()
