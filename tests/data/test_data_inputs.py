"""What users bring to simulators, masks and splits."""

import numpy as np
import pandas as pd
import pytest
import torch

from fractal_lib.data import bursts, double_well, holdout, long_lorenz, lorenz, ornstein_uhlenbeck
from fractal_lib.data.text import byte_batch

MASK = np.arange(20) % 3 > 0
GAP = np.arange(20) < 5


def test_numbers_of_numpy_and_starts_of_any_kind():
    i, f = np.int64, np.float32
    expected = lorenz(2, 5, 1.0, 0.5, start=torch.tensor([1.0, 2.0, 3.0]))
    for start in ([1, 2, 3], np.array([1.0, 2.0, 3.0]), [[1.0, 2.0, 3.0]] * 2, (i(1), f(2), 3)):
        got = lorenz(i(2), i(5), f(1), f(0.5), seed=i(0), inner=np.uint8(100), start=start)
        assert torch.equal(got.observed, expected.observed)
    assert torch.equal(bursts(i(9), f(0.5), 2).long(), bursts(9, 0.5, 2.0).long())
    assert double_well(i(2), i(5), 1).latent.shape == (2, 5, 1)
    assert ornstein_uhlenbeck(i(2), i(5), 1, rate=i(1), std=f(1)).latent.shape == (2, 5, 1)
    assert long_lorenz(i(40))[1].shape == (40,)


@pytest.mark.parametrize("kind", [list, torch.from_numpy, pd.Series, np.asarray])
def test_holdout_of_any_kind(kind):
    expected = holdout(MASK, 0.5, 0, GAP)
    for got in (holdout(kind(MASK), 0.5, np.int64(0), kind(GAP)), holdout(MASK, 0.5, 0, slice(5))):
        assert all(np.array_equal(a, b) for a, b in zip(got, expected, strict=True))


SIMULATORS = lorenz, ornstein_uhlenbeck, double_well
REFUSED = {
    f"{make.__name__}, {name}": lambda make=make, wrong=wrong: make(
        **{"batch": 1, "n": 5, "end": 1.0} | wrong
    )
    for make in SIMULATORS
    for name, wrong in {
        "an infinite end": dict(end=np.inf),
        "no end": dict(end=np.nan),
        "an infinite noise": dict(noise=np.inf),
        "half a path": dict(batch=0.5),
        "half a row": dict(n=5.5),
        "a negative seed": dict(seed=-1),
        "words": dict(end="1"),
    }.items()
} | {
    "start (2,)": lambda: lorenz(1, start=[1.0, 2.0]),
    "start with NaN": lambda: lorenz(1, start=[1.0, 2.0, np.nan]),
    "no inner steps": lambda: lorenz(1, inner=0),
    "a long path of one row": lambda: long_lorenz(1),
    "a negative steepness": lambda: double_well(1, 5, 1.0, steepness=-1),
    "an infinite rate": lambda: ornstein_uhlenbeck(1, 5, 1.0, rate=np.inf),
    "bursts shorter than a row": lambda: bursts(5, 0.5, 0.5),
    "bursts without end": lambda: bursts(5, 0.5, np.inf),
    "a gap of another length": lambda: holdout(MASK, 0.5, 0, GAP[:7]),
    "a gap of positions": lambda: holdout(MASK, 0.5, 0, [3, 4]),
    "a mask (n, 1)": lambda: holdout(MASK[:, None], 0.5, 0),
    "a fraction in words": lambda: holdout(MASK, "0.5", 0),
    "text": lambda: byte_batch("abc", 1, 2, torch.Generator()),
}


@pytest.mark.parametrize("call", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_meant_is_refused_in_one_sentence(call):
    with pytest.raises((TypeError, ValueError), match=r"expected|must") as e:
        call()
    assert "\n" not in str(e.value)
