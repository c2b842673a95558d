"""The recorded runs of the book: ``python -m fractal_lib.benchmark.train --task lorenz --posterior
ladder-posterior --seed 0``.
"""

import argparse
import json
import resource
import time
from pathlib import Path

import torch

from fractal_lib.benchmark.machine import describe, load_average
from fractal_lib.benchmark.tasks import POSTERIORS, TASKS
from fractal_lib.posterior.training import Diverged, fit


def train(
    task: str,
    posterior: str,
    seed: int = 0,
    levels: int | None = None,
    device: str = "cpu",
    checkpoint: Path | None = None,
    progress: bool = False,
    steps: int | None = None,
    batch_size: int | None = None,
    checkpoint_every: int | None = None,
    **settings,
) -> dict:
    """Train one model on one task, and say all there is to say of it.

    Args:
        task, posterior: names in `TASKS` and `POSTERIORS`.
        seed: of the parameters at the start, of the training, and for ``co2`` of the split.
        levels: of the ladder; default all.
        device: "cpu" or "cuda".
        checkpoint: file to go on from, and to write.
        progress: whether to show a bar.
        steps, batch_size, checkpoint_every: instead of the task's own plan.
        settings: of the task: ``n`` and ``noise`` of lorenz, ``n`` of long.

    Returns:
        what is written as JSON: the settings and plan, the machine, seconds by the wall and of the
        CPU, peak memory in MB, the loss of each step (means of 50), and the task's report on data
        that were held out.

    Raises:
        ValueError: for names or settings that do not exist. Diverged: if training does.

    >>> result = train("ou", "ladder-posterior", steps=2)
    >>> result["plan"]["steps"], sorted(result["report"])
    (2, ['kl_initial', 'kl_path', 'negative_elbo', 'nll', 'standard_error'])
    """
    if task not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}, got {task!r}")
    if task == "co2":
        settings["seed"] = seed
    chosen = TASKS[task](**settings).with_plan(
        steps=steps, batch_size=batch_size, checkpoint_every=checkpoint_every, seed=seed
    )
    machine = describe(device, torch.get_num_threads())
    model, data = chosen.build(posterior, seed, levels).to(device), chosen.train.to(device)
    wall, cpu = time.perf_counter(), time.process_time()
    history = fit(model, data, chosen.plan, checkpoint, progress=progress)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    plan = {name: getattr(chosen.plan, name) for name in chosen.plan.__dataclass_fields__}
    return machine | {
        "task": task,
        "posterior": posterior,
        "seed": seed,
        "levels": levels,
        "settings": settings,
        "plan": plan,
        "scaled": chosen.scaled,
        "latent_size": chosen.latent_size,
        "hidden_size": chosen.hidden_size,
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "wall_s": round(wall, 2),
        "cpu_s": round(cpu, 2),
        "load_average_after": load_average(),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "loss": [round(sum(part) / len(part), 3) for part in _parts(history["negative_elbo"], 50)],
        "report": chosen.report(model.cpu()),
    }


def _parts(numbers: list[float], size: int) -> list[list[float]]:
    return [numbers[i : i + size] for i in range(0, len(numbers), size)]


def main(arguments: list[str] | None = None) -> None:
    """Read the arguments, train, print the report, and write the record if asked to.

    >>> main("--task ou --posterior ladder-posterior --steps 2 --quiet".split())
    ou, ladder-posterior, seed 0: 2 steps in ...
    """
    parser = argparse.ArgumentParser(
        prog="python -m fractal_lib.benchmark.train",
        description="Train a latent SDE by SDE Matching on one of the book's tasks.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--task", choices=TASKS, required=True)
    parser.add_argument(
        "--posterior",
        choices=POSTERIORS,
        default="ladder-posterior",
        help="the ladder posterior has no recurrence, the others a GRU",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="instead of the task's own")
    parser.add_argument("--batch-size", type=int, help="series a step, instead of the task's own")
    parser.add_argument(
        "--checkpoint-every", type=int, help="steps between checkpoints, instead of the task's own"
    )
    parser.add_argument("--n", type=int, help="rows of a series (lorenz, long)")
    parser.add_argument("--noise", type=float, help="of the observations (lorenz)")
    parser.add_argument("--levels", type=int, help="of the ladder, instead of all")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=1, help="threads of the CPU")
    parser.add_argument(
        "--checkpoint", type=Path, metavar="FILE", help="go on from there, and write there"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the run there")
    given = {
        name: value
        for name, value in vars(parser.parse_args(arguments)).items()
        if value is not None
    }
    file, given["progress"] = given.pop("json", None), not given.pop("quiet")
    torch.set_num_threads(given.pop("threads"))
    try:
        result = train(**given)
    except TypeError as error:
        parser.exit(2, f"{parser.prog}: this task has no such setting: {error}\n")
    except (ValueError, Diverged) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    print(
        f"{result['task']}, {result['posterior']}, seed {result['seed']}: {result['plan']['steps']} steps in "
        f"{result['cpu_s']} CPU seconds, {result['wall_s']} s of wall"
    )
    print(json.dumps(result["report"], indent=1))
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(result, indent=1) + "\n")
        print(f"written to {file}")


if __name__ == "__main__":
    main()
