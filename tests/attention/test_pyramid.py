"""The pyramid against its specification."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fractal_lib import Pyramid, Tree
from fractal_lib.reference import pool


def check(pyramid, values, positions, observed, n):
    levels = pyramid.tree.levels
    for b in range(values.shape[0]):
        mean, moment, count, centroid = pool(values[b], positions[b], observed[b], n, levels)
        size = len(mean)
        torch.testing.assert_close(pyramid.values[b, :size], mean, rtol=0, atol=1e-12)
        if pyramid.values.shape[1] > size:
            torch.testing.assert_close(pyramid.values[b, size:], moment, rtol=0, atol=1e-12)
        counts = pyramid.counts.expand(values.shape[0], -1)
        assert counts[b].tolist() == count.tolist()
        torch.testing.assert_close(pyramid.sums[b], mean * count[:, None], rtol=0, atol=1e-10)
        at, start = [], 0
        for k, cells in enumerate(pyramid.tree.sizes):
            cell = torch.arange(cells).expand(values.shape[0], -1)
            index, seen = pyramid.tree.lookup(k, cell)
            assert index[b].tolist() == list(range(start, start + cells))
            assert seen[b].tolist() == count[start : start + cells].tolist()
            at.append(pyramid.tree.centroid(k, cell)[b])
            start += cells
        torch.testing.assert_close(
            torch.cat(at)[count > 0], centroid[count > 0], rtol=0, atol=1e-10
        )


@given(
    n=st.integers(1, 70),
    expansion=st.sampled_from([0, 1]),
    grad=st.booleans(),
    seed=st.integers(0, 9),
)
def test_all_rows_there(n, expansion, grad, seed):
    values = (
        torch.randn(2, n, 3, generator=torch.Generator().manual_seed(seed))
        .double()
        .requires_grad_(grad)
    )
    pyramid = Pyramid(values, expansion=expansion)
    check(
        pyramid,
        values,
        torch.arange(n).double().expand(2, -1),
        torch.ones(2, n, dtype=torch.bool),
        n,
    )


@given(
    n=st.integers(1, 70),
    expansion=st.sampled_from([0, 1]),
    shared=st.booleans(),
    seed=st.integers(0, 9),
)
def test_gaps(n, expansion, shared, seed):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(2, n, 3, generator=generator).double()
    observed = torch.rand(2, n, generator=generator) < 0.5
    observed[:, seed % n] = True
    mask = observed[0] if shared else observed
    observed = mask.expand(2, -1)
    values = torch.where(observed.unsqueeze(-1), values, torch.nan)
    check(
        Pyramid(values, mask, expansion=expansion),
        values,
        torch.arange(n).double().expand(2, -1),
        observed,
        n,
    )


@given(n=st.integers(1, 50), bins=st.integers(1, 80), shared=st.booleans(), seed=st.integers(0, 9))
def test_irregular_times(n, bins, shared, seed):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(2, n, 3, generator=generator).double()
    times = torch.rand(2, n, generator=generator).double()
    times[:, 0] = float(seed % 2)  # an end
    times = times[0] if shared else times
    observed = torch.rand(2, n, generator=generator) < 0.8
    observed[:, -1] = True
    pyramid = Pyramid(values, observed, times, bins=bins, expansion=1)
    check(pyramid, values, times.expand(2, -1) * (bins - 1), observed, bins)


def test_one_level_is_the_rows_themselves():
    values = torch.randn(2, 9, 3)
    assert Pyramid(values, levels=1).values is values


@pytest.mark.parametrize("expansion", [0, 1])
def test_gradients(expansion):
    values = torch.randn(2, 13, 2, dtype=torch.float64, requires_grad=True)
    observed = torch.arange(13) % 4 > 0
    for mask in (None, observed):
        assert torch.autograd.gradcheck(
            lambda r, m=mask: Pyramid(r, m, expansion=expansion).values,
            values,
            check_forward_ad=True,
        )


def test_half_precision_does_not_overflow():
    assert (
        Pyramid(torch.full((1, 70_000, 1), 60_000.0, dtype=torch.float16)).values.isfinite().all()
    )


def test_bad_arguments():
    values = torch.randn(1, 8, 1)
    with pytest.raises(ValueError, match="times must lie"):
        Pyramid(values, times=torch.linspace(0, 2, 8))
    with pytest.raises(ValueError, match="bins"):
        Pyramid(values, bins=4)
    with pytest.raises(ValueError, match="expansion"):
        Pyramid(values, expansion=2)
    with pytest.raises(ValueError, match="NaN"):
        Pyramid(values.index_fill(1, torch.tensor([3]), torch.nan))
    with pytest.raises(ValueError, match="n >= 1"):
        Tree(0, 1)
