"""What a training step of a latent SDE costs as its series grow: with a GRU, and without.

    python benchmarks/posterior_cost.py --json benchmarks/results/posterior-cost.json

A step is loss, gradient and Adam, for 64 series and one time each. The pyramid of the data is built
beforehand; what that takes, once for a data set, is recorded beside it.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from torch.utils.benchmark import Timer

from fractal_lib.benchmark.machine import describe, free_memory, load_average
from fractal_lib.benchmark.tasks import HEADS
from fractal_lib.posterior import (
    LadderPosterior,
    LatentSDE,
    LinearGaussianLikelihood,
    Observations,
    PriorSDE,
    RecurrentPosterior,
)

BATCH, CHANNELS, LATENT, HIDDEN = 64, 3, 4, 128


def posterior(name, data):
    if name.startswith("ladder"):
        return LadderPosterior(data, LATENT, HIDDEN)
    return RecurrentPosterior(HEADS[name](LATENT, HIDDEN), CHANNELS)


def measure(name, n, seconds):
    """Median and quartiles of a step's time, and of the preparation of the data."""
    torch.manual_seed(0)
    observed = torch.rand(BATCH, n) > 0.2 if name == "ladder, a fifth missing" else None
    data = Observations(torch.randn(BATCH, n, CHANNELS), observed)
    model = LatentSDE(
        PriorSDE(LATENT, HIDDEN),
        LinearGaussianLikelihood(LATENT, CHANNELS, 0.1),
        posterior(name, data),
    )
    begun = time.perf_counter()
    context = model.posterior.prepare(data)
    prepared = time.perf_counter() - begun
    optimizer = torch.optim.Adam(model.parameters())
    series = torch.arange(BATCH)

    def step():
        optimizer.zero_grad()
        model(data, context, series).negative_elbo.mean().backward()
        optimizer.step()

    if n <= 1000 or name.startswith("ladder"):
        for _ in range(3):
            step()
    took = Timer("step()", globals={"step": step}).blocked_autorange(min_run_time=seconds)
    quartiles = (
        torch.tensor(took.times, dtype=torch.float64)
        .quantile(torch.tensor([0.25, 0.75]).double())
        .tolist()
    )
    steps = len(took.times)
    return dict(
        posterior=name,
        n=n,
        seconds=took.median,
        quartiles=quartiles,
        steps=steps,
        prepared_s=prepared,
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 1_000, 10_000, 100_000])
    parser.add_argument(
        "--names", nargs="+", default=["ladder", "ladder, a fifth missing", "dense", "ultimate"]
    )
    parser.add_argument("--seconds", type=float, default=5.0, help="measuring time of each")
    parser.add_argument("--json", type=Path)
    settings = parser.parse_args()
    torch.set_num_threads(1)
    record = describe("cpu", 1) | {
        "batch": BATCH,
        "latent_size": LATENT,
        "hidden_size": HIDDEN,
        "rows": [],
    }
    for n in settings.sizes:
        for name in settings.names:
            row = dict(posterior=name, n=n, seconds=None)
            # a GRU keeps some 12 H numbers a row for its gradient
            if name.startswith("ladder") or 48 * BATCH * n * HIDDEN < 0.8 * free_memory("cpu"):
                row = measure(name, n, settings.seconds)
            record["rows"].append(row)
            said = "no memory" if row["seconds"] is None else f"{1e3 * row['seconds']:.1f} ms"
            print(f"n = {n:7}, {name:24} {said}", flush=True)
    if settings.json:
        settings.json.write_text(
            json.dumps(record | {"load_average_after": load_average()}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
