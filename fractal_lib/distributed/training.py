"""Training on series of which each process holds a stretch (chapter
``scale/beyond_one_machine``).
"""

import json
import math
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.nn.parallel import DistributedDataParallel

from fractal_lib.distributed.exchange import note
from fractal_lib.distributed.stretch import Stretch, prepare
from fractal_lib.posterior import LatentSDE, TrainingPlan
from fractal_lib.posterior.run import Run
from fractal_lib.posterior.training import Diverged
from fractal_lib.progress import progress_bar

__all__ = ["RankLost", "fit"]

TERMS = ("negative_elbo", "kl_initial", "kl_path", "nll")


class RankLost(ConnectionError):
    """Another process ended, or did not answer in time."""


class _Run(Run):
    """A `Run` whose steps are shared: each rank draws in its own stretch, gradients are added."""

    data: Stretch

    def __init__(self, model: LatentSDE, data: Stretch, plan: TrainingPlan):
        if plan.ema is not None:
            raise ValueError(
                f"an average of the weights is not kept here: ema=None, got {plan.ema}"
            )
        super().__init__(model, data, plan)
        self.ranks, self.summed = data.shards.size, 0  # steps whose history is that of all ranks
        if self.ranks > 1:
            group = data.shards.group
            # buffers are constants here
            call = DistributedDataParallel(model, process_group=group, forward_sync_buffers=False)
            call.register_comm_hook(group, _counted_mean)
            self.call = call

    def prepare(self) -> None:
        """As `Run.prepare`, of the stretch; what is hidden differs from rank to rank."""
        hiding, posterior = self.plan.hiding, self.model.posterior
        views: list[Any] = [self.data]
        if hiding is not None:
            generator = torch.Generator(self.data.values.device)
            generator.manual_seed(self._seed(-1))
            views = [hiding.view(self.data, generator) for _ in range(hiding.views)]
        self.prepared = [prepare(posterior, view) for view in views]

    def step(self) -> None:
        """One step. Its random numbers depend on seed, step, rank and the number of ranks alone."""
        self.generator.manual_seed(self._seed(self.done))
        super().step()
        if not math.isfinite(self.history["negative_elbo"][-1]):
            raise Diverged(f"the loss is not finite after {self.done} steps: try a smaller lr")

    def _seed(self, step: int) -> int:
        # mixed, for torch's generator of a CPU takes 32 bits of a seed and drops the others
        mixed = np.random.SeedSequence((self.plan.seed, step + 1, self.data.shards.rank))
        return int(mixed.generate_state(1)[0])

    def sum_history(self) -> None:
        """Terms of the steps since the last time, summed over ranks."""
        if self.ranks > 1:
            terms = [self.history[name][self.summed :] for name in TERMS]
            total = torch.tensor(terms, dtype=torch.float64, device=self.data.values.device)
            dist.all_reduce(total, group=self.data.shards.group)
            note(_ring(total.nbytes, self.ranks))
            for name, some in zip(TERMS, total.tolist(), strict=True):
                self.history[name][self.summed :] = some
        self.summed = self.done


def _counted_mean(
    group: Any,
    bucket: dist.GradBucket,  # pyright: ignore[reportPrivateImportUsage]
) -> torch.futures.Future[torch.Tensor]:
    """The mean of a bucket of gradients over ranks, as without a hook, entered in `counted`."""
    flat, ranks = bucket.buffer(), dist.get_world_size(group)
    note(_ring(flat.nbytes, ranks))
    work = dist.all_reduce(flat.div_(ranks), group=group, async_op=True)
    assert work is not None
    return work.get_future().then(lambda done: done.value()[0])


def _ring(size: int, ranks: int) -> int:
    """Bytes that a rank sends in a ring that sums tensors of ``size`` bytes."""
    return 2 * size * (ranks - 1) // ranks


def fit(
    model: LatentSDE,
    data: Stretch,
    plan: TrainingPlan,
    checkpoint: str | os.PathLike | None = None,
    *,
    progress: bool = False,
) -> dict[str, list[float]]:
    """Train a model in place on series of which each rank holds a stretch; on all ranks together.

    Each rank draws ``plan.num_times`` times and rows in its own stretch; a step moves the gradients
    of the parameters and nothing else, whatever the length of the series.

    Args:
        model: `LatentSDE` with a `LadderPosterior` of means, the same on every rank.
        data: this rank's `Stretch`.
        plan: `TrainingPlan`, without ``ema``; ``num_times`` is each rank's.
        checkpoint: folder that all ranks see. It is written every ``plan.checkpoint_every`` steps
            and at the end by `torch.distributed.checkpoint`, and training goes on from it, on any
            number of ranks: with as many as before it ends where an uninterrupted run ends.
        progress: whether the first rank shows a bar, where tqdm is installed.

    Returns:
        as `fractal_lib.posterior.fit`: terms of each step, summed over ranks, and this rank's
        seconds.

    Raises:
        RankLost: if another rank ended, or did not answer within the group's timeout; the sentence
            says what is left.
        Diverged: if the loss is not finite.
        TypeError, ValueError: as `prepare` and `LatentSDE`; for a checkpoint of another plan or
            other sizes.

    Complexity: a step sends 2 (p - 1) / p times the gradients' bytes a rank. Source: chapter
    ``scale/beyond_one_machine``.

    >>> from fractal_lib.posterior import LadderPosterior, LinearGaussianLikelihood, PriorSDE
    >>> data = Stretch(torch.randn(1, 50, 2))
    >>> posterior = LadderPosterior.of(data, 3, 16, features="means")
    >>> model = LatentSDE(PriorSDE(3, 16), LinearGaussianLikelihood(3, 2, noise=0.5), posterior)
    >>> len(fit(model, data, TrainingPlan(steps=3))["nll"])
    3
    """
    run = saved = None
    try:
        run = _Run(model, data, plan)
        saved = None if checkpoint is None else _Folder(Path(checkpoint), run)
        if saved is not None:
            saved.resume()
        run.prepare()
        progress &= data.shards.rank == 0
        with progress_bar(plan.steps, "training", progress, run.done) as tick:
            for step in range(run.done + 1, plan.steps + 1):
                run.step()
                if saved is not None and (step % plan.checkpoint_every == 0 or step == plan.steps):
                    saved.write()
                tick("")
        run.sum_history()
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error).lower():
            raise
        done = 0 if run is None else run.done
        kept = "there is no checkpoint"
        if saved is not None and saved.steps:
            kept = f"{checkpoint} holds {saved.steps}, and any number of ranks can go on from there"
        raise RankLost(f"another rank was lost after {done} steps; {kept}") from error
    return run.history


class _Folder:
    """Checkpoints of a run: one folder each, and a file that names the last whole one.

    Attributes:
        steps: of the last whole one, 0 if there is none.
    """

    def __init__(self, folder: Path, run: _Run):
        self.folder, self.run, self.steps = folder, run, 0
        self.latest = folder / "latest.json"
        data = run.data
        self.about = {"plan": asdict(run.plan), "n": data.n, "channels": data.channels}
        folder.mkdir(parents=True, exist_ok=True)

    def write(self) -> None:
        """Whole or not at all; the one before is then removed."""
        run, shards = self.run, self.run.data.shards
        run.sum_history()
        model, optimizer = get_state_dict(run.model, run.optimizer)
        where = self.folder / f"step-{run.done}"
        state = {"model": model, "optimizer": optimizer}
        alone = not dist.is_initialized()
        save(state, checkpoint_id=where, process_group=shards.group, no_dist=alone)
        if shards.rank == 0:
            told = self.about | {"steps": run.done, "history": run.history}
            told["schedule"] = run.schedule.state_dict()
            part = self.latest.with_suffix(".part")
            part.write_text(json.dumps(told))
            os.replace(part, self.latest)
            if self.steps:
                shutil.rmtree(self.folder / f"step-{self.steps}", ignore_errors=True)
        self.steps = run.done

    def resume(self) -> None:
        """Go on from the last one, if there is one."""
        if not self.latest.exists():
            return
        run, told = self.run, json.loads(self.latest.read_text())
        now = json.loads(json.dumps(self.about))
        for plan in (now["plan"], told["plan"]):  # these may change
            del plan["steps"], plan["checkpoint_every"], plan["num_times"]
        differ = [name for name in now if now[name] != told[name]]
        if differ or told["steps"] > run.plan.steps:
            was = {name: told[name] for name in differ or ("steps",)}
            raise ValueError(f"{self.folder} was written by another run: {was}")
        model, optimizer = get_state_dict(run.model, run.optimizer)
        state: dict[str, Any] = {"model": model, "optimizer": optimizer}
        where = self.folder / f"step-{told['steps']}"
        alone, group = not dist.is_initialized(), run.data.shards.group
        load(state, checkpoint_id=where, process_group=group, no_dist=alone)
        set_state_dict(
            run.model,
            run.optimizer,
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
        )
        run.schedule.load_state_dict(told["schedule"])
        run.history.update(told["history"])
        run.summed = self.steps = run.done
