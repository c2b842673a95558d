"""What each part of `LadderPosterior` is worth: levels of splines, means instead, the phase between
rows.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from fractal_lib.benchmark.registry import case
from fractal_lib.benchmark.tasks import Task, lorenz_task
from fractal_lib.benchmark.timer import Clock
from fractal_lib.posterior import TimeEmbedding, fit
from fractal_lib.progress import progress_bar

__all__ = ["ladder_ablation", "variants"]


def variants(n: int) -> dict[str, dict[str, Any]]:
    """Settings of `LadderPosterior` by name: splines on more and more levels, means on all of them,
    and what knows where between two rows it is.

    >>> list(variants(41))[-2:]
    ['means on all levels', 'with the phase between rows']
    """
    named: dict[str, dict[str, Any]] = {
        f"splines on {k} level{'s' * (k > 1)}": {"levels": k} for k in (1, 2, 3, 4, 6)
    }
    named["means on all levels"] = {"features": "means", "levels": None}
    phase = TimeEmbedding([1 / (n - 1)])
    return named | {"with the phase between rows": {"levels": 3, "time_embedding": phase}}


@case("ladder-ablation", records="ladder-ablation", choices={"only": list(variants(41))})
def ladder_ablation(
    sizes: Sequence[int] = (41, 1000),
    seeds: Sequence[int] = (0, 1, 2),
    steps: int = 1000,
    only: Sequence[str] | None = None,
    progress: bool = True,
) -> Iterator[dict]:
    """Train the ladder posterior with other features, and judge it by its held-out bound.

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
    todo = [(n, *one) for n in sizes for one in variants(n).items() if not only or one[0] in only]
    runs, tasks = [], {}
    with progress_bar(len(todo), "ladder-ablation", progress) as step:
        for n, name, settings in todo:
            noise = 0.01 if n == 41 else 0.3
            tasks[n] = tasks[n] if n in tasks else lorenz_task(n, noise)
            with Clock() as clock:
                found = [_train(tasks[n], seed, steps, settings) for seed in seeds]
            cpu = round(clock.cpu / len(found), 1)
            print(f"n = {n}, noise {noise}: {name:28} {found} {cpu} CPU seconds each", flush=True)
            run = {"n": n, "noise": noise, "variant": name, "negative_elbo": found, "cpu_s": cpu}
            runs.append(run)
            step(name)
            yield {"steps": steps, "seeds": list(seeds), "runs": runs}


def _train(task: Task, seed: int, steps: int, settings: dict[str, Any]) -> float:
    """Held-out negative ELBO of one variant."""
    run = task.with_plan(seed=seed, steps=steps)
    model = run.build("ladder-posterior", seed, **settings)
    fit(model, run.train, run.plan)
    return round(run.report(model)["negative_elbo"], 2)
