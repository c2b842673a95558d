"""Every key comes twice, its value once, and what is asked for is that value."""

import pytest
import torch

from fractal_lib.data.recall import IGNORE, recall


def test_what_is_asked_for_is_the_value_that_stood_behind_the_key():
    rows, targets = recall(50, 40, 6, 30, torch.Generator().manual_seed(0))
    for row, target in zip(rows.tolist(), targets.tolist(), strict=True):
        value = dict(zip(row[:12:2], row[1:12:2], strict=True))
        assert len(value) == len(set(value.values())) == 6
        assert all(1 <= k < 15 <= v < 30 for k, v in value.items())
        later = {i: x for i, x in enumerate(row) if i >= 12 and x}
        assert sorted(later.values()) == sorted(value)
        assert all(i % 2 == 0 and target[i] == value[x] for i, x in later.items())
        assert sum(t != IGNORE for t in target) == 6


def test_keys_mostly_come_again_soon():
    rows, targets = recall(4000, 64, 1, 8, torch.Generator().manual_seed(0))
    place = (targets != IGNORE).int().argmax(1) // 2  # 1 to 31
    share = torch.bincount(place, minlength=32)[1:] / 4000
    weight = torch.arange(1, 32.0) ** -0.99
    torch.testing.assert_close(share, weight / weight.sum(), rtol=0, atol=0.03)


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ((1, 8, 3, 20), "pairs .* got 3"),
        ((1, 40, 4, 8), "pairs .* got 4"),
        ((1, 9, 2, 20), "length must be even, got 9"),
        ((0, 8, 2, 20), "batch of at least 1, got 0"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes, said):
    with pytest.raises(ValueError, match=said):
        recall(*sizes, torch.Generator())
