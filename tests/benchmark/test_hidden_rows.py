"""The task of hidden rows asks what it says it asks, and hides what it says it hides."""

import math

import pytest
import torch

from fractal_lib import RBF, DenseAttention, FractalAttention
from fractal_lib.benchmark.hidden_rows import LocalWindow, best, hidden_error, hide_some, learn

N = 200
SEEN = torch.arange(N) % 7 != 3


def walk(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, N, 2, generator=generator, dtype=torch.float64).cumsum(1)


def test_a_window_weighs_the_rows_that_are_there():
    values, t = walk(), torch.tensor([[0.0, 0.31, 1.0]], dtype=torch.float64)
    got = LocalWindow(RBF(3.0), 4)(values, t, observed=SEEN)
    for q, x in enumerate((t[0] * (N - 1)).tolist()):
        weights = {
            row: math.exp(-(((x - row) / 3) ** 2) / 2)
            for row in range(N)
            if abs(row - round(x)) <= 4 and SEEN[row]
        }
        expected = sum(w * values[0, row] for row, w in weights.items()) / sum(weights.values())
        torch.testing.assert_close(got[0, q], expected)


def test_a_wide_window_is_dense_attention_and_a_gap_beyond_reach_is_refused():
    values, t = walk(), torch.rand(1, 9, dtype=torch.float64)
    dense = DenseAttention(RBF(2.0))(values, t, observed=SEEN)
    torch.testing.assert_close(LocalWindow(RBF(2.0), N)(values, t, observed=SEEN), dense)
    hole = torch.ones(N, dtype=torch.bool)
    hole[50:70] = False
    with pytest.raises(ValueError, match="no observed row lies within reach"):
        LocalWindow(RBF(2.0), 4)(values, torch.tensor([[60 / (N - 1)]]), observed=hole)


def test_what_is_hidden_was_seen_and_is_not_read():
    values = walk()
    hide = hide_some(SEEN, 1, seed=3)[0]
    assert 5 < hide.sum() < 40
    assert not (hide & ~SEEN).any()
    reader = DenseAttention(RBF(2.0))
    error = hidden_error(reader, values, SEEN, hide)
    poisoned = values.clone()
    poisoned[0, ~SEEN] = torch.nan
    torch.testing.assert_close(hidden_error(reader, poisoned, SEEN, hide), error)
    at = (torch.arange(N, dtype=torch.float64) / (N - 1))[None, hide]
    guess = reader(values, at, observed=SEEN & ~hide)
    torch.testing.assert_close(error, (guess - values[:, hide]).square().mean())


def test_learning_and_search_lower_the_error():
    values = walk() + 3 * torch.randn(1, N, 2, generator=torch.Generator().manual_seed(1)).double()
    hidden = hide_some(SEEN, 8, seed=9)

    def total(reader):
        with torch.no_grad():
            return sum(float(hidden_error(reader, values, SEEN, h)) for h in hidden)

    before = total(FractalAttention())
    assert total(learn(FractalAttention(), values, SEEN, steps=40)) < before
    candidates = [LocalWindow(RBF(s), 20) for s in (0.3, 3.0, 30.0)]
    assert best(candidates, values, SEEN) is candidates[1]
