"""The readers that fill holes: what is asked, what they may see, and how they are scored."""

import numpy as np
import pytest
import torch

from fractal_lib.attention import RBF
from fractal_lib.benchmark import fill_holes as module
from fractal_lib.benchmark.fill_holes import METHODS, NOISE, YEARS, problem
from fractal_lib.data import co2


def test_seen_hidden_and_missing_rows_are_three_things():
    for seed in (0, 3):
        given, record = problem("co2", seed, 3.0), co2()
        scattered, year = given.hidden["scattered"], given.hidden["stretch"]
        assert not (given.seen & scattered | given.seen & year | scattered & year).any()
        there = (given.seen | scattered | year).numpy()
        assert np.array_equal(there, record.observed)
        asked = record.dates[year.numpy()].astype("datetime64[Y]").astype(int) + 1970
        assert set(asked) == {YEARS[seed]}
        added = (given.values - given.truth)[0, :, 0][torch.from_numpy(there)]
        assert abs(added.std().item() - 3.0) < 0.15


def test_a_path_of_its_own_for_each_seed_and_no_noise_in_the_truth():
    one, other = problem("lorenz", 0, 0.3, n=450), problem("lorenz", 1, 0.3, n=450)
    assert not torch.equal(one.truth, other.truth)
    assert torch.equal(problem("lorenz", 0, 0.0, n=450).values, one.truth)
    runs = np.diff(np.flatnonzero(np.diff(one.hidden["stretch"].int().numpy())))[::2]
    assert set(runs) == {20} and len(runs) == 8


@pytest.mark.parametrize("method", METHODS)
def test_what_is_hidden_is_not_read(method):
    given = problem("lorenz", 0, 0.1, n=450)
    told = given.values.clone()
    told[0, ~given.seen] = 1e6
    scores = [module._scores(g, method, 2) for g in (given, given._replace(values=told))]
    assert scores[0] == scores[1]
    assert 0 < scores[0]["scattered"] < 2


def test_the_window_is_scored_where_it_answers():
    given = problem("co2", 0, 0.0)
    n, year = len(given.seen), given.hidden["stretch"]
    window = module.LocalWindow(RBF(3.0), module.REACH)
    assert window.reads(torch.zeros(1, 1), n).indices.shape[-1] == 2 * module.REACH + 1
    guess = module._answers(window, given, year)
    known = np.flatnonzero(given.seen)
    away = np.abs(np.flatnonzero(year)[:, None] - known).min(1)
    assert np.array_equal(guess.isnan().numpy(), away > module.REACH)
    assert guess.isnan().any() and not guess.isnan().all()


def test_learning_lowers_the_loss_of_rows_that_were_hidden():
    given = problem("lorenz", 0, NOISE["lorenz"][1], n=450)
    trial = (torch.arange(450) % 10 == 0) & given.seen
    before, after = (
        module._loss(module._fitted(given, "ladder, pooled", steps), given, trial).item()
        for steps in (1, 60)
    )
    assert after < 0.9 * before
