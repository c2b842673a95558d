"""The recorded runs: every task and head, what is written of them, and a run that is killed for
good.
"""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from fractal_lib.benchmark.__main__ import main
from fractal_lib.benchmark.real_tasks import TASKS
from fractal_lib.benchmark.tasks import POSTERIORS, lorenz_task
from fractal_lib.benchmark.train import train
from fractal_lib.data.co2 import co2_split

SETTINGS = {
    "lorenz": dict(batch_size=4),
    "lorenz-notebook": dict(batch_size=4),
    "irregular": dict(batch_size=4),
    "long": dict(n=500),
}
ELBO = {"negative_elbo", "standard_error", "kl_initial", "kl_path", "nll"}
REPORTS = {
    "lorenz": ELBO,
    "lorenz-notebook": ELBO,
    "irregular": {"all", "between observations"} | ELBO,
    "ou": ELBO,
    "co2": {"learnt", "scattered", "year", "noise"} | ELBO,
    "glucose": {"learnt", "scattered", "1 h", "3 h", "12 h", "noise"} | ELBO,
    "long": {"missing", "short holes", "long holes", "observed", "noise"},
}


@pytest.mark.parametrize(
    ("task", "posterior"),
    [(task, POSTERIORS[0]) for task in TASKS] + [("ou", name) for name in POSTERIORS[1:]],
)
def test_every_task_and_posterior_is_recorded(task, posterior):
    result = train(task, posterior, seed=1, steps=2, progress=False, **SETTINGS.get(task, {}))
    again = json.loads(json.dumps(result))
    assert set(again["report"]) == REPORTS[task]
    assert again["plan"]["steps"] == 2 and again["plan"]["seed"] == 1 and len(again["loss"]) == 1
    assert again["wall_s"] >= 0 and again["cpu_s"] >= 0 and again["peak_memory_mb"] > 0


def test_the_seed_decides_and_nothing_else():
    one, two, other = (
        train("ou", "ladder-posterior", seed=seed, steps=3, progress=False)["report"][
            "negative_elbo"
        ]
        for seed in (1, 1, 2)
    )
    assert one == two != other


def test_levels_reach_the_ladder():
    few, all_of_them = (
        train("ou", "ladder-posterior", levels=levels, steps=1, progress=False)["parameters"]
        for levels in (1, None)
    )
    assert few < all_of_them


def test_the_split_of_co2_hides_what_it_says():
    series, train_weeks, scattered, year = co2_split(3)
    assert (
        not (train_weeks & scattered).any()
        and not (train_weeks & year).any()
        and not (scattered & year).any()
    )
    assert np.array_equal(train_weeks | scattered | year, series.observed)
    assert set(series.dates[year].astype("datetime64[Y]").astype(str)) == {"1985"}
    assert abs(scattered.sum() / (scattered | train_weeks).sum() - 0.3) < 0.001


def test_lorenz_grows_noisier_and_longer():
    task = lorenz_task(n=100, noise=0.3)
    assert task.train.n == 100 and task.noise == 0.3 and task.scaled and lorenz_task().scaled
    assert not TASKS["lorenz-notebook"]().scaled  # its loss bounds nothing, the judge's does


def test_a_process_that_is_killed_goes_on_to_the_same_end(tmp_path):
    """SIGKILL at no particular moment; the same command again ends where a whole run does."""

    def command(name):
        given = "run latent-sde --task ou --steps 150 --checkpoint-every 30 --quiet"
        files = ["--checkpoint", tmp_path / f"{name}.pt", "--json", tmp_path / f"{name}.json"]
        return [*given.split(), *map(str, files)]

    module = [sys.executable, "-m", "fractal_lib.benchmark"]
    process = subprocess.Popen([*module, *command("killed")], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 600
    while (
        not (tmp_path / "killed.pt").exists()
        and process.poll() is None
        and time.monotonic() < deadline
    ):
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it ended before it could be killed"
    assert (tmp_path / "killed.pt").exists() and not (tmp_path / "killed.json").exists()
    for name in ("killed", "whole"):
        main(command(name))
    killed, whole = (
        json.loads((tmp_path / f"{name}.json").read_text()) for name in ("killed", "whole")
    )
    assert killed["loss"] == whole["loss"] and killed["report"] == whole["report"]
