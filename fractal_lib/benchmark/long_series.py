"""The long Lorenz series on one process or several: ``torchrun --nproc-per-node 2 -m
fractal_lib.benchmark run long --distributed``.

Each process maps the file and copies its own stretch; no process holds all rows. Held out are eight
rows of every 160: no process reads them, and none trains on them.
"""

import contextlib
import math
import signal
import sys
import tempfile
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from fractal_lib.benchmark.machine import positive
from fractal_lib.benchmark.peak import high_water_mb
from fractal_lib.benchmark.registry import case
from fractal_lib.benchmark.timer import Clock
from fractal_lib.data.simulate import bursts, lorenz
from fractal_lib.posterior import (
    Hiding,
    LadderPosterior,
    LatentSDE,
    LinearGaussianLikelihood,
    PriorSDE,
    TrainingPlan,
)

__all__ = ["held_out", "long_series", "write_series"]

NOISE, RATE = 0.3, 40  # of the observations; rows in a unit of time
LOST_AFTER = 60  # seconds until a process that does not answer counts as lost
LATENT, HIDDEN = 4, 128


def write_series(file: Path, n: int, paths: int = 1, seed: int = 0) -> None:
    """Write noisy rows of the Lorenz system, a fifth missing (NaN), to a .npy file (n, 3) float32.

    Args:
        file: what stands there is replaced.
        n: rows.
        paths: that many paths end to end, simulated at once: n / paths rows each, and a jump
            between two. One path of 10^7 rows takes minutes.
        seed: of everything random.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_series(Path(folder) / "rows.npy", 80)
    ...     np.load(Path(folder) / "rows.npy").shape
    (80, 3)
    """
    positive(n=n, paths=paths)
    each = max(2, math.ceil(n / paths))
    begin = lorenz(paths, 41, seed=seed, noise=0)
    start = begin.latent[:, -1] * begin.std + begin.mean
    series = lorenz(paths, each, (each - 1) / RATE, NOISE, seed, inner=25, start=start)
    rows = series.observed.reshape(-1, 3)[:n].float().numpy()
    rows[~bursts(n, 0.2, 8.0, seed).numpy()] = np.nan
    np.save(file, rows)


def held_out(rows: torch.Tensor) -> torch.Tensor:
    """Which rows, by their numbers in the whole series, are kept from training.

    >>> held_out(torch.arange(160)).sum()
    tensor(8)
    """
    return rows // 8 % 20 == 7


@case("long", records="long-distributed-*")
def long_series(
    rows: int = 100_000,
    distributed: bool = False,
    file: Path | None = None,
    steps: int = 1000,
    num_times: int = 512,
    views: int = 4,
    checkpoint: Path | None = None,
    checkpoint_every: int = 250,
    seed: int = 0,
    threads: int = 1,
    progress: bool = True,
) -> Iterator[dict]:
    """Train on one long series of which every process holds a stretch, and find held-out rows.

    Args:
        rows: of the series that is simulated; with a file its own number counts.
        distributed: share the rows among the processes that torchrun started.
        file: .npy of rows (n, X), NaN where missing, seen by every process; default simulated.
        steps: of training.
        num_times: times drawn a step, over all processes.
        views: of the series, with other rows hidden.
        checkpoint: folder to go on from, and to write.
        checkpoint_every: steps between checkpoints.
        seed: of the series, the parameters and the training.
        threads: of the CPU, a process.
        progress: show a bar on stderr (with tqdm if it is installed).

    Yields:
        from the first process alone: for each process its rows, bytes sent in preparing and a step,
        seconds, peak memory in MB; the loss over all processes (means of 50 steps); and the root
        mean square error at held-out rows (noise included), beside that of a straight line between
        observed rows.

    Raises:
        ValueError: for numbers that are not positive, or without the variables of torchrun.

    Source: chapter ``scale/beyond_one_machine``.
    """
    positive(rows=rows, steps=steps, num_times=num_times, views=views)
    if distributed:
        dist.init_process_group("gloo", timeout=timedelta(seconds=LOST_AFTER))
        signal.signal(signal.SIGTERM, _ended)
    try:
        with contextlib.ExitStack() as stack:
            if file is None:
                file = _simulated(rows, seed, stack)
            plan = TrainingPlan(
                steps=steps,
                num_times=math.ceil(num_times / _ranks()),
                lr=3e-3,
                schedule="cosine",
                hiding=Hiding(longest=32, stretches=0.15, scattered=0.05, views=views),
                checkpoint_every=checkpoint_every,
                seed=seed,
            )
            found = _run(file, plan, checkpoint, progress)
        if found is not None:
            yield found
    finally:
        if dist.is_initialized() and sys.exc_info()[0] is None:
            dist.destroy_process_group()


def _ended(*_: object) -> None:
    """What torchrun does to the other processes when one is lost."""
    sys.exit("ended from outside, as when another process was lost; the checkpoint goes on")


def _ranks() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def _simulated(n: int, seed: int, stack: contextlib.ExitStack) -> Path:
    """A file of the first process, which all are told of."""
    name: list = [None]
    if not dist.is_initialized() or dist.get_rank() == 0:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        write_series(Path(folder) / "series.npy", n, seed=seed)
        name = [folder]
    if dist.is_initialized():
        dist.broadcast_object_list(name)
    return Path(name[0]) / "series.npy"


def _run(file: Path, plan: TrainingPlan, checkpoint: Path | None, progress: bool) -> dict | None:
    """What is recorded, on the first process."""
    # torch's checkpoints take seconds to import
    from fractal_lib.distributed import Stretch, counted, prepare
    from fractal_lib.distributed.training import fit

    rank = dist.get_rank() if dist.is_initialized() else 0
    rows = np.load(file, mmap_mode="r")
    n, channels = rows.shape
    begin, end = (n * r // _ranks() for r in (rank, rank + 1))
    values = torch.from_numpy(np.array(rows[begin:end], dtype=np.float32))
    there = ~values.isnan().any(-1)
    asked = held_out(torch.arange(begin, end)) & there
    duration = (n - 1) / RATE
    data = Stretch(values.nan_to_num()[None], (there & ~asked)[None], duration)
    torch.manual_seed(plan.seed)
    posterior = LadderPosterior.of(data, LATENT, HIDDEN, features="means", init_logstd=-1.5)
    likelihood = LinearGaussianLikelihood(LATENT, channels, 0.5, learn_noise=True)
    model = LatentSDE(PriorSDE(LATENT, HIDDEN), likelihood, posterior)
    with Clock() as clock, counted() as traffic:
        history = fit(model, data, plan, checkpoint, progress=progress)
    with torch.no_grad():
        sums = _errors(model, prepare(posterior, data), values, there & ~asked, asked, begin)
    told = {"rank": rank, "rows": end - begin, "sent_bytes": traffic.sent}
    told |= clock.taken() | {"peak_memory_mb": high_water_mb()}
    every: list = [told]
    if dist.is_initialized():
        dist.all_reduce(sums)
        every = [None] * _ranks()
        dist.all_gather_object(every, told)
    if rank:
        return None
    squares, line, count = sums.tolist()
    loss = history["negative_elbo"]
    found = {
        "n": n,
        "ranks": _ranks(),
        "times_a_rank": plan.num_times,
        "parameters": sum(p.numel() for p in model.parameters()),
        "runs": every,
        "loss": [round(float(np.mean(loss[i : i + 50])) / n, 5) for i in range(0, len(loss), 50)],
        "held_out": int(count),
        "rmse": round((squares / count) ** 0.5, 5),
        "line_rmse": round((line / count) ** 0.5, 5),
    }
    print(f"{n} rows, {_ranks()} processes: {plan.steps} steps, loss a row {found['loss'][-1]}")
    print(f"    held-out rows: rmse {found['rmse']}, a straight line {found['line_rmse']}")
    for one in every:
        print(f"    {one}")
    return found


def _errors(model, prepared, values, known, asked, begin) -> torch.Tensor:
    """Squared errors at held-out rows: the model's, a straight line's, and numbers compared."""
    rows, (places,) = values[asked].double(), torch.nonzero(asked, as_tuple=True)
    if not len(places):
        return torch.zeros(3, dtype=torch.float64)
    last = max(prepared.n - 1, 1)
    found = []
    for some in (places + begin).double().split(8192):
        q = model.posterior(prepared, [0], (some / last).unsqueeze(0))
        found.append(model.likelihood.predict(q.mean, q.std)[0][0].double())
    at = torch.nonzero(known)[:, 0].numpy()
    columns = (np.interp(places.numpy(), at, column[at]) for column in values.T.numpy())
    line = torch.from_numpy(np.stack(list(columns), -1))
    errors = [(torch.cat(found) - rows).square().sum(), (line - rows).square().sum()]
    return torch.stack([*errors, torch.tensor(float(rows.numel()), dtype=torch.float64)])
