"""The tasks themselves: what is hidden stays hidden, and what is judged is what it is called."""

import inspect

import pytest
import torch

from fractal_lib.benchmark.real_tasks import TASKS
from fractal_lib.benchmark.train import train
from fractal_lib.posterior import Marginals, Posterior

SMALL = {"long": dict(n=400)}
MANY = ["lorenz", "ou"]  # judged by other series
HOLES = ["co2", "long"]  # judged by hidden rows of the same


def make(name, **settings):
    return TASKS[name](**SMALL.get(name, {}), **settings)


def rows_there(data):
    """(S, N) bool: rows with anything observed."""
    if data.observed is None:
        return torch.ones(data.values.shape[:2], dtype=torch.bool)
    return data.observed.reshape(*data.values.shape[:2], -1).any(-1)


class Oracle(Posterior):
    """Mean 0 everywhere; a std of its own on the rows that are trained on. It keeps what it was
    asked to read.
    """

    def __init__(self, data, latent_size, std_there=1.0, std_elsewhere=1.0):
        super().__init__()
        self.latent_size = latent_size
        there = rows_there(data)[0]
        self.std = torch.where(there, std_there, std_elsewhere)
        self.read = []

    def prepare(self, data):
        self.read.append(data)
        return data

    def forward(self, prepared, series, t):
        row = (t * (len(self.std) - 1)).round().long()
        std = self.std[row].unsqueeze(-1).expand(*t.shape, self.latent_size).float()
        zero = torch.zeros_like(std)
        return Marginals(zero, std, zero, zero)


def judged(task, *stds):
    """A report on an oracle, whose latent is what is observed, and what it read."""
    torch.manual_seed(0)
    model = task.build("ladder-posterior")
    model.posterior = oracle = Oracle(task.train, task.latent_size, *stds)
    torch.nn.init.zeros_(model.likelihood.net.bias)
    torch.nn.init.ones_(model.likelihood.net.weight)
    torch.nn.init.constant_(model.likelihood.log_noise, -16.0)
    return task.report(model), oracle.read


@pytest.mark.parametrize("name", MANY)
def test_no_series_is_both_learnt_and_judged(name):
    task = make(name)
    torch.manual_seed(0)
    model, read = task.build("ladder-posterior"), []
    prepare = model.posterior.prepare
    model.posterior.prepare = lambda data: read.append(data) or prepare(data)
    task.report(model)
    learnt = {series.numpy().tobytes() for series in task.train.values}
    assert len(learnt) == len(task.train) and read
    for data in read:
        assert not learnt & {series.numpy().tobytes() for series in data.values}
        assert data.values.shape[1:] == task.train.values.shape[1:]


@pytest.mark.parametrize("name", HOLES)
def test_what_is_judged_is_not_read(name):
    task = make(name)
    _, read = judged(task)
    hidden = ~rows_there(task.train)
    assert hidden.any() and read
    for data in (task.train, *read):
        assert not rows_there(data)[hidden].any() and not data.values[hidden].any()


@pytest.mark.parametrize("name", HOLES)
def test_the_report_calls_learnt_what_was_learnt_and_hidden_what_was_hidden(name):
    """A band so wide that it holds everything on some rows, and next to nothing on the others."""
    task = make(name)
    for stds, covered in (((1e6, 1e-6), True), ((1e-6, 1e6), False)):
        report, _ = judged(task, *stds)
        coverage = {part: s["coverage"] for part, s in report.items() if isinstance(s, dict)}
        learnt = coverage.keys() & {"learnt", "observed"}
        assert len(learnt) == 1 and len(coverage) > 1
        for part, share in coverage.items():
            if (part in learnt) == covered:
                assert share == 1, (part, coverage)
            else:
                assert share < 0.1, (part, coverage)


def test_the_trend_of_carbon_dioxide_does_not_know_the_hidden_weeks(monkeypatch):
    """Nor does the scale: with other values there, what is trained on is the same."""
    source = pytest.importorskip("statsmodels.datasets.co2")
    before, found = TASKS["co2"](), source.load_pandas()
    hidden = ~rows_there(before.train)[0].numpy()
    found.data = found.data.copy()
    found.data.loc[hidden, "co2"] += 1000.0  # what is missing stays NaN
    monkeypatch.setattr(source, "load_pandas", lambda: found)
    after = TASKS["co2"]()
    assert torch.equal(rows_there(before.train), rows_there(after.train))
    assert torch.equal(before.train.values, after.train.values)


@pytest.mark.parametrize("name", TASKS)
def test_the_seed_of_a_task_decides_its_model(name):
    task = make(name)
    first, same, other = (
        torch.cat([p.flatten() for p in task.build("ladder-posterior", seed).parameters()])
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, same) and not torch.equal(first, other)


@pytest.mark.parametrize(
    "name", [name for name, task in TASKS.items() if "seed" in inspect.signature(task).parameters]
)
def test_the_seed_of_a_task_decides_what_is_hidden(name):
    first, same, other = (rows_there(make(name, seed=seed).train) for seed in (1, 1, 2))
    assert torch.equal(first, same) and not torch.equal(first, other)


def test_paths_are_recorded_when_they_are_asked_for():
    plain = train("ou", steps=2, progress=False)
    found = train("ou", steps=2, sampled=3, progress=False)
    assert "paths" not in plain and found["report"] == plain["report"]
    channels = TASKS["ou"]().train.channels
    for drawn in found["paths"].values():
        assert torch.tensor(drawn).shape == (3, 101, channels)
    with pytest.raises(ValueError, match="expected sampled of at least 0, got -1"):
        train("ou", steps=2, sampled=-1)
    again = train("ou", steps=2, sampled=3, progress=False)
    assert again["paths"] == found["paths"]
