"""Z-order against its definition bit by bit; pictures survive being written out along any order."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fractal_lib.curves.grid import (
    flatten,
    grid_cells,
    inverse_permutation,
    morton_decode,
    morton_encode,
    morton_permutation,
    raster_permutation,
    unflatten,
)

GRIDS = [(1, 1), (1, 9), (9, 1), (2, 3), (3, 3), (5, 7), (8, 8), (13, 21), (28, 28), (63, 65)]


def by_bits(x, y):
    return sum((x >> k & 1) << 2 * k | (y >> k & 1) << 2 * k + 1 for k in range(31))


@given(x=st.integers(0, 2**31 - 1), y=st.integers(0, 2**31 - 1))
def test_morton_takes_the_bits_in_turns_and_gives_them_back(x, y):
    d = morton_encode(torch.tensor(x), torch.tensor(y))
    assert d.item() == by_bits(x, y)
    assert [v.item() for v in morton_decode(d)] == [x, y]


@pytest.mark.parametrize("order", range(1, 9))
def test_morton_is_a_bijection(order):
    x, y = morton_decode(np.arange(4**order))
    assert sorted(zip(x.tolist(), y.tolist(), strict=True)) == [
        (i, j) for i in range(2**order) for j in range(2**order)
    ]
    assert (morton_encode(x, y) == np.arange(4**order)).all()


@pytest.mark.parametrize(("height", "width"), GRIDS)
def test_orders_of_a_grid(height, width):
    assert raster_permutation(height, width).tolist() == list(range(height * width))
    order = morton_permutation(height, width)
    cells = [divmod(k, width) for k in range(height * width)]
    assert order.tolist() == [
        y * width + x for y, x in sorted(cells, key=lambda cell: by_bits(cell[1], cell[0]))
    ]
    assert inverse_permutation(order)[order].tolist() == list(range(height * width))
    x, y = grid_cells(height, width)
    assert list(zip(y.tolist(), x.tolist(), strict=True)) == cells


@pytest.mark.parametrize("kind", [torch.as_tensor, np.asarray])
def test_pictures_survive(kind):
    generator = np.random.default_rng(0)
    image, order = generator.random((2, 5, 4, 7)), torch.from_numpy(generator.permutation(28))
    line = flatten(kind(image), order)
    assert type(line) is type(kind(image))
    assert line.shape == (2, 5, 28)
    for k in (0, 13, 27):
        row, column = divmod(order[k].item(), 7)
        assert (np.asarray(line[..., k]) == image[..., row, column]).all()
    assert (np.asarray(unflatten(line, order, 4, 7)) == image).all()


def test_kinds_are_kept_and_shapes_broadcast():
    x, y = np.arange(3)[:, None], np.broadcast_to(np.arange(4), (2, 1, 4))
    d = morton_encode(x, y)
    assert type(d) is np.ndarray and d.dtype == np.int64 and d.shape == (2, 3, 4)
    assert (torch.from_numpy(d) == morton_encode(torch.tensor(x), torch.tensor(y))).all()
    assert type(morton_decode(d)[0]) is np.ndarray


def test_bad_arguments():
    cell = torch.tensor([1])
    with pytest.raises(TypeError, match="x must be whole numbers, got torch.float32"):
        morton_encode(cell.float(), cell)
    with pytest.raises(ValueError, match="a number twice"):
        inverse_permutation([0, 2, 0])
    with pytest.raises(TypeError, match="of one kind"):
        morton_encode(cell, cell.numpy())
    with pytest.raises(ValueError, match="expected y from 0 to 2147483647, got -1 to 1"):
        morton_encode(cell, torch.tensor([1, -1]))
    with pytest.raises(ValueError, match="height from 1"):
        morton_permutation(0, 3)
    with pytest.raises(ValueError, match="of 4 cells, got shape"):
        flatten(torch.zeros(2, 3), torch.arange(4))
    with pytest.raises(ValueError, match="expected 4 values, got 3 and a permutation of 4"):
        unflatten(torch.zeros(3), torch.arange(4), 2, 2)
