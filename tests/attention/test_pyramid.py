"""The pyramid against its specification."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from fractal_lib import FractalAttention, MultilevelAttention, Pyramid, RationalQuadratic, Tree
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


def assert_same(grown, whole):
    """Node by node: the grown one has slots to spare."""
    assert (grown.tree.n, grown.tree.levels) == (whole.tree.n, whole.tree.levels)
    assert (grown.tree.places, grown.tree.most) == (whole.tree.places, whole.tree.most)
    assert torch.equal(
        *torch.broadcast_tensors(*(torch.as_tensor(p.tree.first) for p in (grown, whole)))
    )
    assert (grown.tree.counts is None) == (whole.tree.counts is None)
    assert grown.values.shape[1] == sum(grown.tree.slots)
    for level, size in enumerate(whole.tree.sizes):
        node = torch.arange(-1, size + 1).expand(whole.values.shape[0], -1)
        (ours, count), (theirs, expected) = (p.tree.lookup(level, node) for p in (grown, whole))
        assert torch.equal(count, expected)
        assert torch.equal(grown.tree.centroid(level, node), whole.tree.centroid(level, node))
        assert torch.equal(grown.tree.span(ours)[0], whole.tree.span(theirs)[0])
        assert torch.equal(grown.tree.span(ours)[1], whole.tree.span(theirs)[1])
        for p, q in ((grown.values, whole.values), (grown.sums, whole.sums)):
            p, q = p[torch.arange(len(p))[:, None], ours], q[torch.arange(len(q))[:, None], theirs]
            torch.testing.assert_close(p, q, rtol=0, atol=1e-12)
    assert int(grown.counts[0].sum()) == int(whole.counts[0].sum())


MASKS = {
    "all": lambda observed: None,
    "shared": lambda observed: observed[0],
    "each": lambda observed: observed,
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("levels", [None, 1, 3, 9])
@pytest.mark.parametrize("step", [1, 2, 7, 40])
def test_grown_is_the_pyramid_of_all_rows(mask, levels, step):
    values = torch.randn(2, 70, 3, dtype=torch.float64)
    observed = torch.rand(2, 70, generator=torch.Generator().manual_seed(step)) < 0.6
    observed[:, 0] = True
    if mask == "each":  # of one sample the first rows are missing
        observed[1, 0], observed[1, min(1, step - 1)] = step == 1, True
    part = MASKS[mask](observed)

    def cut(start, end):
        return None if part is None else part[..., start:end]

    values = values if part is None else torch.where(observed[:, :, None], values, torch.nan)
    if mask == "shared":
        values = torch.where(part[:, None], torch.nan_to_num(values), torch.nan)
    grown = Pyramid(values[:, :step], cut(0, step), levels=levels)
    for n in range(step, 70, step):
        end = min(n + step, 70)
        grown.append(values[:, n:end], cut(n, end))
        assert_same(grown, Pyramid(values[:, :end], cut(0, end), levels=levels))


def test_masks_may_come_and_go():
    values = torch.randn(2, 40, 3, dtype=torch.float64)
    observed = torch.ones(2, 40, dtype=torch.bool)
    observed[:, 12], observed[1, 22] = False, False
    grown = Pyramid(values[:, :10])
    grown.append(values[:, 10:20], observed[0, 10:20])  # from complete to a shared mask
    grown.append(values[:, 20:30], observed[:, 20:30])  # and to one each
    grown.append(values[:, 30:])
    assert_same(grown, Pyramid(values, observed))


class Work(TorchDispatchMode):
    """Counts the numbers that every operation makes or writes, views aside."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and not func.is_view:
            self.total += out.numel()
        return out


@pytest.mark.parametrize("gaps", [False, True])
def test_a_row_is_appended_with_the_work_of_log_n(gaps):
    generator = torch.Generator().manual_seed(0)

    def work(n):
        mask = torch.ones(n, dtype=torch.bool) if gaps else None
        pyramid = Pyramid(torch.randn(1, n, 1, generator=generator), mask)
        row = torch.randn(1, 1, 1, generator=generator)
        pyramid.append(row, mask[:1] if gaps else None)  # the copy to a packing with room
        with Work() as one:
            pyramid.append(row, mask[:1] if gaps else None)
        before = pyramid.values.clone()
        pyramid.append(row + 1)
        changed = int((pyramid.values != before).sum())
        assert changed == pyramid.tree.levels  # one node a level
        return one.total

    few, many = work(2**10 + 1), work(2**16 + 1)
    # a fixed number for each level, and one for the row: from 12 levels to 18
    assert many <= few * 18 / 12
    assert many < 60 * 18


def test_rows_are_copied_only_when_their_number_passes_a_power_of_two():
    pyramid, copies = Pyramid(torch.randn(1, 1, 2)), []
    for n in range(2, 200):
        storage = pyramid.values.data_ptr()
        pyramid.append(torch.randn(1, 1, 2))
        if pyramid.values.data_ptr() != storage:
            copies.append(n)
    assert copies == [2, 3, 5, 9, 17, 33, 65, 129]
    assert pyramid.tree.capacity == 256
    assert "capacity=256" in repr(pyramid)


def test_attentions_read_a_grown_pyramid():
    values = torch.randn(2, 101, 3, dtype=torch.float64)
    observed = torch.arange(101) % 5 != 3
    t = torch.rand(2, 9, dtype=torch.float64)
    for mask in (None, observed):
        grown = Pyramid(values[:, :60], None if mask is None else mask[:60])
        grown.append(values[:, 60:], None if mask is None else mask[60:])
        for attention in (
            FractalAttention(source="pyramid"),
            FractalAttention(source="pyramid", causal=True),
            FractalAttention(),
            MultilevelAttention(RationalQuadratic(2.0, alpha=0.5)),
        ):
            expected = attention(values, t, mask)
            torch.testing.assert_close(attention(grown, t), expected, rtol=0, atol=1e-12)


def test_what_is_appended_shows_in_no_other():
    values = torch.randn(1, 9, 2, dtype=torch.float64)
    rows, new = values.clone(), torch.randn(1, 1, 2, dtype=torch.float64)
    for levels in (None, 1):
        for mask in (None, torch.ones(9, dtype=torch.bool)):
            pyramid = Pyramid(rows, mask, levels=levels)
            pyramid.append(new)
            other, low = pyramid.to(torch.float64), pyramid.to(torch.float32)
            pyramid.append(new + 1)
            assert torch.equal(rows, values)  # the user's own
            low.append(new)
            other.append(new + 2)
            for one, last in ((pyramid, new + 1), (other, new + 2)):
                assert_same(
                    one, Pyramid(torch.cat([rows, new, last], 1), mask_of(mask), levels=levels)
                )


def mask_of(mask):
    return None if mask is None else torch.ones(11, dtype=torch.bool)


def test_other_kinds_of_rows_are_taken_and_inference_mode_is_left():
    with torch.inference_mode():
        pyramid = Pyramid(torch.zeros(1, 5, 1))
        pyramid.append(torch.zeros(1, 1, 1))
    pyramid.append([[[1.0]]], [True])
    pyramid.append(torch.ones(1, 1, 1, dtype=torch.float64))
    assert pyramid.values.dtype == torch.float32
    assert pyramid.values[0, pyramid.tree.offsets[-1], 0] == 0.25  # the mean of all eight


@pytest.mark.parametrize(
    ("bad", "error", "words"),
    [
        (dict(values=torch.randn(2, 3)), ValueError, r"\(B, N, H\)"),
        (dict(values=torch.randn(2, 0, 3)), ValueError, "N >= 1"),
        (dict(values=torch.randn(1, 1, 3)), ValueError, r"\(2, M, 3\), got \(1, 1, 3\)"),
        (dict(values=torch.randn(2, 1, 4)), ValueError, r"\(2, M, 3\), got \(2, 1, 4\)"),
        (dict(values=torch.ones(2, 1, 3).int()), TypeError, "floating"),
        (dict(values=torch.full((2, 1, 3), torch.nan)), ValueError, "NaN or infinite"),
        (dict(values=torch.ones(2, 1, 3), observed=torch.ones(2)), TypeError, "bool"),
        (dict(values=torch.ones(2, 1, 3), observed=torch.ones(2) > 0), ValueError, r"\(N,\) or"),
        (dict(values=torch.ones(2, 1, 3).requires_grad_()), ValueError, "detach"),
    ],
)
def test_rows_that_cannot_be_appended_leave_the_pyramid_as_it_was(bad, error, words):
    rows = torch.randn(2, 5, 3)
    pyramid = Pyramid(rows)
    with pytest.raises(error, match=words):
        pyramid.append(**bad)
    assert_same(pyramid, Pyramid(rows))


def test_pyramids_that_cannot_grow_say_so():
    values = torch.randn(1, 6, 2)
    for pyramid, words in (
        (Pyramid(values, expansion=1), "expansion=1"),
        (Pyramid(values, times=torch.rand(6)), "irregular times"),
        (Pyramid(values, times=torch.rand(6), levels=1), "irregular times"),
        (Pyramid(values.clone().requires_grad_()), "detach"),
    ):
        with pytest.raises(ValueError, match=words):
            pyramid.append(values)
    one = Pyramid(values[:, :1] * torch.nan)  # one row is not looked at before it is pooled
    with pytest.raises(ValueError, match="NaN or infinite"):
        one.append(values)
