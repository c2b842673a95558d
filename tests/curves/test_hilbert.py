"""The Hilbert curve against an independent package, against its own recursion, and on grids of any
size.
"""

import numpy as np
import pytest
import torch
from hilbertcurve.hilbertcurve import HilbertCurve
from hypothesis import given
from hypothesis import strategies as st

from fractal_lib.curves.grid import flatten, inverse_permutation, unflatten
from fractal_lib.curves.hilbert import (
    hilbert_decode,
    hilbert_encode,
    hilbert_path,
    hilbert_permutation,
    touching_permutation,
)

ODD_GRIDS = [
    (1, 1),
    (1, 2),
    (2, 1),
    (1, 17),
    (17, 1),
    (2, 3),
    (3, 2),
    (3, 3),
    (3, 5),
    (4, 6),
    (5, 4),
    (5, 7),
    (7, 5),
    (10, 3),
    (11, 20),
    (13, 21),
    (28, 28),
    (31, 33),
    (63, 64),
    (64, 63),
    (65, 65),
    (100, 7),
    (97, 101),
    (3, 99),
]


def steps(order, width):
    """|dx| + |dy| from each cell of an order to the next."""
    return (order % width).diff().abs() + (order // width).diff().abs()


@pytest.mark.parametrize("order", range(1, 7))
def test_every_cell_is_where_the_package_has_it(order):
    d = torch.arange(4**order)
    expected = torch.tensor(HilbertCurve(order, 2).points_from_distances(d.tolist()))
    x, y = hilbert_decode(d, order)
    assert torch.equal(torch.stack([x, y], -1), expected)
    assert torch.equal(hilbert_encode(x, y, order), d)


@pytest.mark.parametrize("order", [16, 31])
def test_random_cells_are_where_the_package_has_them(order):
    generator = np.random.default_rng(order)
    cells = generator.integers(0, 2**order, (2000, 2))
    expected = HilbertCurve(order, 2).distances_from_points(cells.tolist())
    d = hilbert_encode(cells[:, 0].copy(), cells[:, 1], order)
    assert d.tolist() == expected
    assert (np.stack(hilbert_decode(d, order), -1) == cells).all()


@pytest.mark.parametrize("order", range(1, 9))
def test_bijection_and_adjacency_on_squares(order):
    side = 2**order
    d = hilbert_permutation(side, side)
    assert torch.equal(d.sort().values, torch.arange(side**2))
    assert (steps(d, side) == 1).all()
    assert torch.equal(d, touching_permutation(side, side))
    x, y = hilbert_decode(torch.arange(4**order), order)
    assert torch.equal(y * side + x, d)


@given(data=st.data(), order=st.integers(1, 31))
def test_there_and_back(data, order):
    x, y = (data.draw(st.integers(0, 2**order - 1)) for _ in "xy")
    d = hilbert_encode(torch.tensor(x), torch.tensor(y), order)
    assert [v.item() for v in hilbert_decode(d, order)] == [x, y]
    # one order more: the same curve is the first quarter, swapped
    if order < 31:
        assert hilbert_encode(torch.tensor(y), torch.tensor(x), order + 1) == d


@pytest.mark.parametrize("order", range(1, 8))
def test_the_four_quarters_are_copies(order):
    side, small = 2**order, torch.arange(4**order)
    x, y = hilbert_decode(small, order)
    quarters = (y, x), (x, y + side), (x + side, y + side), (2 * side - 1 - y, side - 1 - x)
    for k, expected in enumerate(quarters):
        got = hilbert_decode(k * 4**order + small, order + 1)
        assert torch.equal(torch.stack(got), torch.stack(expected))


@pytest.mark.parametrize(("height", "width"), ODD_GRIDS)
def test_any_grid_is_ranked_by_the_enclosing_square(height, width):
    order = hilbert_permutation(height, width)
    assert torch.equal(order.sort().values, torch.arange(height * width))
    p = next(p for p in range(1, 32) if 2**p >= max(height, width))
    walk = HilbertCurve(p, 2).points_from_distances(list(range(4**p)))
    assert order.tolist() == [y * width + x for x, y in walk if x < width and y < height]
    place = inverse_permutation(order)
    assert torch.equal(order[place], torch.arange(height * width))
    picture = torch.rand(2, height, width)
    assert torch.equal(unflatten(flatten(picture, order), order, height, width), picture)


@pytest.mark.parametrize(("height", "width"), ODD_GRIDS)
def test_the_touching_order_touches(height, width):
    order = touching_permutation(height, width)
    assert torch.equal(order.sort().values, torch.arange(height * width))
    assert (steps(order, width) == 1).all()
    assert order[0] == 0
    assert order[-1] in (width - 1, (height - 1) * width)


def test_the_touching_order_touches_on_every_small_grid():
    for height in range(1, 33):
        for width in range(1, 33):
            order = touching_permutation(height, width)
            assert torch.equal(order.sort().values, torch.arange(height * width)), (height, width)
            assert (steps(order, width) == 1).all(), (height, width)


def test_ranks_jump_on_some_grids_and_never_less_than_a_cell():
    jumps = {
        (h, w): int((steps(hilbert_permutation(h, w), w) > 1).sum())
        for h, w in [(2, 3), (5, 7), (64, 64), (344, 403)]
    }
    assert jumps == {(2, 3): 1, (5, 7): 1, (64, 64): 0, (344, 403): 104}


def test_shapes_kinds_and_devices():
    devices = ["cpu"] + ["cuda"] * torch.cuda.is_available()
    x, y = torch.arange(8)[:, None], torch.arange(8).expand(3, 1, 8)
    expected = hilbert_encode(x, y, 3)
    assert expected.shape == (3, 8, 8) and expected.dtype == torch.int64
    for device in devices:
        d = hilbert_encode(x.to(device), y.to(device), 3)
        assert d.device.type == device and torch.equal(d.cpu(), expected)
        assert torch.equal(
            torch.stack(hilbert_decode(d, 3)).cpu(), torch.stack(torch.broadcast_tensors(x, y))
        )
    arrays = hilbert_encode(x.numpy(), y.numpy(), 3)
    assert type(arrays) is np.ndarray and (arrays == expected.numpy()).all()
    assert all(type(v) is np.ndarray for v in hilbert_decode(arrays.T, 3))
    assert (hilbert_decode(arrays.T, 3)[0] == hilbert_decode(expected, 3)[0].numpy().T).all()
    assert hilbert_encode(x[:0], y[:, :, :0], 3).shape == (3, 0, 0)
    frozen = np.arange(16)
    frozen.flags.writeable = False
    before = frozen.copy()
    hilbert_decode(frozen, 2)
    assert (frozen == before).all()


def test_one_graph_and_vmap():
    d = torch.arange(64)
    expected = hilbert_decode(d, 3)
    compiled = torch.compile(hilbert_decode, fullgraph=True, backend="eager")(d, 3)
    mapped = torch.func.vmap(lambda d: hilbert_decode(d, 3))(d)
    assert all(
        torch.equal(a, b) for got in (compiled, mapped) for a, b in zip(got, expected, strict=True)
    )


# ---- the smooth path -----------------------------------------------------------------------------


def derivatives(position, order, rows=None):
    """The path with its first and second derivative, (..., 2) each."""

    def along(f):
        return lambda u: torch.func.jvp(f, (u,), (torch.ones_like(u),))[1]

    path = [lambda u: hilbert_path(u, order, rows)]
    path += [along(path[0]), along(along(path[0]))]
    return [f(position) for f in path]


def test_the_path_is_twice_continuously_differentiable():
    knots = torch.arange(1, 255, dtype=torch.float64)
    left = torch.nextafter(knots, knots - 1)
    for before, after in zip(derivatives(left, 4), derivatives(knots, 4), strict=True):
        torch.testing.assert_close(before, after, rtol=0, atol=1e-10)
    h, u = (
        1e-5,
        torch.rand(500, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 250 + 2,
    )
    for k in (0, 1):  # what autograd says is what differences say
        by_difference = (derivatives(u + h, 4)[k] - derivatives(u - h, 4)[k]) / (2 * h)
        torch.testing.assert_close(derivatives(u, 4)[k + 1], by_difference, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("order", "rows"), [(1, None), (4, None), (4, 200), (3, 1), (3, 2), (3, 3), (31, None)]
)
def test_the_path_stays_near_its_cells(order, rows):
    last = (4**order if rows is None else rows) - 1
    index = torch.arange(min(last, 255) + 1)
    cell = torch.stack(hilbert_decode(index, order), -1).double()
    path = hilbert_path(index.double(), order, rows)
    assert (path - cell).norm(dim=-1).max() <= 2**0.5 / 6 + 1e-12
    assert torch.equal(path[0], cell[0])
    if last <= 255:
        torch.testing.assert_close(path[-1], cell[-1], rtol=0, atol=1e-12)
    between = torch.linspace(0, min(last, 255), 1001, dtype=torch.float64)
    inside = hilbert_path(between, order, rows)
    assert (inside >= 0).all() and (inside <= 2**order - 1).all()


def test_the_path_is_the_spline_of_four_cells():
    u = torch.tensor([20.25], dtype=torch.float64)
    weight = (
        torch.tensor(
            [0.75**3, 4 - 6 * 0.25**2 + 3 * 0.25**3, 4 - 6 * 0.75**2 + 3 * 0.75**3, 0.25**3]
        ).double()
        / 6
    )
    cells = torch.stack(hilbert_decode(torch.arange(19, 23), 3), -1).double()
    torch.testing.assert_close(hilbert_path(u, 3)[0], weight @ cells)


def test_bad_arguments():
    cell = torch.tensor([1])
    for order in (0, 32):
        with pytest.raises(ValueError, match=f"expected order from 1 to 31, got {order}"):
            hilbert_decode(cell, order)
    with pytest.raises(TypeError, match="order as a whole number, got float 2.0"):
        hilbert_decode(cell, 2.0)
    assert hilbert_decode(cell, np.int64(1)) == hilbert_decode(cell, 1)
    with pytest.raises(ValueError, match="expected x from 0 to 1, got 2 to 2"):
        hilbert_encode(cell + 1, cell, 1)
    with pytest.raises(ValueError, match="expected d from 0 to 3, got -1 to -1"):
        hilbert_decode(cell - 2, 1)
    with pytest.raises(TypeError, match="whole numbers, got torch.float64"):
        hilbert_encode(np.zeros(2), np.zeros(2), 3)
    with pytest.raises(TypeError, match="of one kind"):
        hilbert_encode(cell, cell.numpy(), 3)
    with pytest.raises(ValueError, match="width from 1"):
        hilbert_permutation(3, 0)
    with pytest.raises(ValueError, match="height of at least 1, got 0"):
        touching_permutation(0, 3)
    with pytest.raises(ValueError, match="expected rows from 1 to 16, got 17"):
        hilbert_path(torch.tensor([0.0]), 2, rows=17)
    with pytest.raises(ValueError, match=r"expected position in \[0, 15\], got 15.5 to 15.5"):
        hilbert_path(torch.tensor([15.5]), 2)
    with pytest.raises(ValueError, match="expected position"):
        hilbert_path(torch.tensor([torch.nan]), 2)
    with pytest.raises(TypeError, match="floating point, got torch.int64"):
        hilbert_path(cell, 2)
