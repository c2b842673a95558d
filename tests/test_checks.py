"""The doors' own promises: what passes, what is refused, and what is kept for whoever asks next."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fractal_lib.checks import as_float, as_int, as_integers, as_mask, as_tensor, kept, require


def test_require_passes_other_errors_on():
    """It skips what has no value yet, and nothing else."""
    with pytest.raises(RuntimeError, match="size of tensor"):
        require(lambda: (torch.ones(2) == torch.ones(3)).all(), "never")
    require(lambda: torch.zeros(1, device="meta").all(), "never")
    torch.func.vmap(lambda x: require(lambda: (x > 9).all(), "never") or x)(torch.zeros(3))
    with pytest.raises(ValueError, match="no: 3"):
        require(lambda: torch.tensor(False), "no: {}", lambda: 3)


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", ">f8", "<i2", ">i8", "|u1", "|b1", "g"])
def test_arrays_of_every_dtype(dtype):
    array = np.array([0, 1, 1]).astype(dtype)
    tensor = as_tensor(array, "x")
    assert tensor.tolist() == array.tolist()
    assert as_tensor(array[::-1], "x").tolist() == array[::-1].tolist()


def test_floats_ints_and_masks():
    assert as_float(1, "x").dtype == torch.get_default_dtype()
    assert as_float(pd.Series([1.0, 2.0]), "x").dtype == torch.float64
    assert as_mask(pd.Series([True, False])).tolist() == [True, False]
    assert as_int(np.uint8(7), "n", 7, 7) == 7
    assert as_integers(np.uint8(7), "n").dtype == torch.int64
    for call, error, words in (
        (lambda: as_float(np.arange(3), "x"), TypeError, "x must be floating point, got torch.int"),
        (lambda: as_mask([0, 1]), TypeError, "observed must be bool, got torch.int64"),
        (lambda: as_int(2.0, "n"), TypeError, "n as a whole number, got float 2.0"),
        (lambda: as_int(9, "n", 1, 8), ValueError, "n from 1 to 8, got 9"),
        (lambda: as_int(0, "n", 1), ValueError, "n of at least 1, got 0"),
        (lambda: as_int(9, "n", most=8), ValueError, "n of at most 8, got 9"),
        (lambda: as_integers([3, 9], "n", 1, 8), ValueError, "n from 1 to 8, got 3 to 9"),
        (lambda: as_integers([True], "n"), TypeError, "n must be whole numbers, got torch.bool"),
        (lambda: as_tensor(object(), "x"), TypeError, "x must be a tensor or an array of numbers"),
    ):
        with pytest.raises(error, match=words):
            call()


def test_what_is_kept_serves_whoever_asks_next():
    calls = []

    @kept(maxsize=4)
    def table(n):
        calls.append(n)
        return torch.arange(n).double()

    with FakeTensorMode(), torch.inference_mode(), torch.device("meta"):
        table(3)
    assert type(table(3)) is torch.Tensor
    assert table(3).tolist() == [0, 1, 2]
    assert not table(3).is_inference()
    (table(3) * torch.ones(3, dtype=torch.float64, requires_grad=True)).sum().backward()
    assert calls == [3]
