"""The Hilbert window against its specification."""

import math
import subprocess
import sys

import pytest
import torch
from hilbertcurve.hilbertcurve import HilbertCurve
from torch.autograd import forward_ad

from fractal_lib import HilbertCurveAttention, Pyramid, Tree
from fractal_lib.curves.grid import flatten
from fractal_lib.curves.hilbert import touching_permutation
from fractal_lib.reference import bspline_weight, hilbert_weights

SIZES = [1, 2, 3, 63, 64, 65, 100, 2000]
GRIDS = [(1, 1), (1, 9), (2, 3), (5, 7), (8, 8), (13, 6), (31, 33)]


def all_cells(n, grid):
    """(x, y) of every row, by an independent package, or by the order the grid's picture was
    written out in.
    """
    if grid is not None:
        return [(int(k) % grid[1], int(k) // grid[1]) for k in touching_permutation(*grid)]
    order = next(p for p in range(1, 32) if 4**p >= n)
    return HilbertCurve(order, 2).points_from_distances(list(range(n)))


def stated(window_size, raw_lengthscale, raw_exponent):
    """Width and exponent, as the class promises them."""
    width = 0.5 + (window_size / 4 - 0.5) / (1 + math.exp(-raw_lengthscale))
    return width, None if raw_exponent is None else math.log1p(math.exp(raw_exponent))


def scattered(attention, t, n):
    """The weight of every row, (B, Q, N), as `reads` tells it."""
    reads = attention.reads(t, n)
    n = n.n if isinstance(n, Tree) else n
    return (
        torch.zeros(*t.shape, n, dtype=torch.float64)
        .scatter_add(-1, reads.indices, reads.weights)
        .detach()
    )


def queries(n, count=9):
    """Both ends, rows near them and in the middle, and some in between: (1, Q)."""
    x = [0, 0.5, 1, 2, n - 1, n - 1.5, n - 2, n - 3, n // 2, n // 2 + 0.5]
    some = torch.tensor(x, dtype=torch.float64).clamp(0, n - 1) / max(n - 1, 1)
    return torch.cat(
        [some, torch.rand(count, generator=torch.Generator().manual_seed(n), dtype=torch.float64)]
    )[None]


def make(window_size=5, grid=None, decay=False, raw_lengthscale=None, raw_exponent=None):
    attention = HilbertCurveAttention(window_size, grid=grid, decay=decay).double()
    for parameter, value in (
        (attention.raw_lengthscale, raw_lengthscale),
        (attention.raw_exponent, raw_exponent),
    ):
        if value is not None:
            torch.nn.init.constant_(parameter, value)
    return attention


@pytest.mark.parametrize(
    ("n", "grid"), [(n, None) for n in SIZES] + [(h * w, (h, w)) for h, w in GRIDS]
)
@pytest.mark.parametrize(
    ("window_size", "raw_lengthscale", "raw_exponent"),
    [(5, math.log(2), None), (5, 40.0, None), (3, -40.0, 0.2), (7, -1.0, 2.0), (9, 40.0, -1.0)],
)
def test_weights_are_their_specification(n, grid, window_size, raw_lengthscale, raw_exponent):
    attention = make(window_size, grid, raw_exponent is not None, raw_lengthscale, raw_exponent)
    width, exponent = stated(window_size, raw_lengthscale, raw_exponent)
    t, cells = queries(n), all_cells(n, grid)
    expected = torch.stack(
        [hilbert_weights(float(s) * (n - 1), cells, width, exponent) for s in t[0]]
    )
    # The same x in both; a place rounds by 1e-14, slopes are below 2 per cell, and the sum is at
    # least that of the nearest cell, (beta(1.05) beta(1/3))^2 > 0.006.
    torch.testing.assert_close(scattered(attention, t, n)[0], expected, rtol=1e-11, atol=1e-11)
    assert attention.reads(t, n).indices.shape[-1] == window_size**2
    values = torch.randn(1, n, 3, dtype=torch.float64)
    torch.testing.assert_close(attention(values, t)[0], expected @ values[0], rtol=0, atol=1e-9)


def test_defaults_and_limits_of_width_and_exponent():
    assert torch.isclose(make().lengthscale, torch.ones(1).double()).all()
    assert torch.isclose(make(decay=True).exponent, torch.ones(1).double(), atol=1e-7).all()
    assert make().exponent is None
    for window_size in (3, 5, 11):
        low, high = (make(window_size, raw_lengthscale=s).lengthscale.item() for s in (-1e4, 1e4))
        assert (low, high) == (0.5, window_size / 4)


@pytest.mark.parametrize(("n", "grid"), [(64, None), (100, None), (35, (5, 7)), (64, (8, 8))])
@pytest.mark.parametrize(("window_size", "raw_lengthscale"), [(3, -50.0), (5, None), (5, 50.0)])
def test_the_nearest_rows_always_count_and_nothing_weighs_less_than_zero(
    n, grid, window_size, raw_lengthscale
):
    attention = make(window_size, grid, raw_lengthscale=raw_lengthscale)
    t = torch.linspace(0, 1, 20 * n + 1, dtype=torch.float64)[None]
    weight = scattered(attention, t, n)
    assert (weight >= 0).all()
    # sums of 25 terms, each rounded
    torch.testing.assert_close(weight.sum(-1), torch.ones_like(t), rtol=0, atol=1e-14)
    nearest = (t * (n - 1)).round().long().unsqueeze(-1)
    assert (weight.gather(-1, nearest) > 0).all()
    assert (weight.amax((0, 1)) > 0).all()  # every row is reached


@pytest.mark.parametrize("n", [10**6, 4**15 + 1])
def test_reads_of_very_many_rows(n):
    t = torch.rand(1, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    reads = HilbertCurveAttention().reads(t, n)
    assert reads.indices.shape == (1, 8, 25)
    order = next(p for p in range(1, 32) if 4**p >= n)
    curve = HilbertCurve(order, 2)
    for x, values, weights in zip(
        (t * (n - 1))[0].tolist(), reads.indices[0], reads.weights[0], strict=True
    ):
        first = math.floor(x) - 1
        near = curve.points_from_distances(list(range(first, first + 4)))
        px, py = (
            sum(bspline_weight(x - first - k) * cell[axis] for k, cell in enumerate(near))
            for axis in (0, 1)
        )
        block = [(round(px) + i, round(py) + j) for i in range(-2, 3) for j in range(-2, 3)]
        inside = [0 <= i < 2**order and 0 <= j < 2**order for i, j in block]
        expected = [
            curve.distances_from_points([c])[0] if ok else n
            for c, ok in zip(block, inside, strict=True)
        ]
        raw = [
            bspline_weight(px - i) * bspline_weight(py - j) * (row < n)
            for (i, j), row in zip(block, expected, strict=True)
        ]
        assert [r for r, row in zip(values.tolist(), expected, strict=True) if row < n] == [
            r for r in expected if r < n
        ]
        # x itself is exact to 1e-7 at 1e9 rows, the path's slope at most 1
        torch.testing.assert_close(
            weights.detach(), torch.tensor(raw).double() / sum(raw), rtol=0, atol=1e-6
        )


# ---- derivatives ---------------------------------------------------------------------------------


def jets(attention, values, x):
    """Value, slope and curvature per row at positions x, (Q, H) each."""
    n = values.shape[1]

    def at(x):
        return attention(values, (x / (n - 1)).unsqueeze(0))[0]

    def along(f):
        return lambda x: torch.func.jvp(f, (x,), (torch.ones_like(x),))[1]

    return [f(x).detach() for f in (at, along(at), along(along(at)))]


@pytest.mark.parametrize("grid", [None, (10, 10)])
@pytest.mark.parametrize(("decay", "raw_lengthscale"), [(False, 50.0), (True, 0.3)])
def test_no_jump_where_the_window_moves(grid, decay, raw_lengthscale):
    n = 100
    attention = make(5, grid, decay, raw_lengthscale)
    values = torch.randn(1, n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def middle(x):
        return attention.path((x / (n - 1)).unsqueeze(0), n)[0].round()

    x = torch.linspace(0, n - 1, 5001, dtype=torch.float64)
    moves = (middle(x[:-1]) != middle(x[1:])).any(-1)
    low, high = x[:-1][moves], x[1:][moves]
    assert len(low) > 80
    for _ in range(45):  # the place of each move, by bisection
        half = (low + high) / 2
        left = (middle(half) == middle(low)).all(-1)
        low, high = torch.where(left, half, low), torch.where(left, high, half)
    assert (middle(low) != middle(high)).any(-1).all()
    for before, after in zip(
        jets(attention, values, low), jets(attention, values, high), strict=True
    ):
        # what enters weighs (2 - u)^3 / 6, whose curvature is 2 - u < 1e-13 at a distance of 1e-13
        torch.testing.assert_close(before, after, rtol=0, atol=1e-9)


@pytest.mark.parametrize("grid", [None, (10, 10)])
def test_slope_and_curvature_are_those_of_differences_even_on_a_cell(grid):
    n, h = 100, 1e-4
    attention = make(5, grid, True)
    values = torch.randn(1, n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    # whole positions among them: on a straight run the query is exactly on a cell, where |u| has a
    # kink
    x = torch.arange(1, 2 * (n - 1), dtype=torch.float64) / 2
    whole = attention.path((x / (n - 1)).unsqueeze(0), n)
    assert (whole == whole.round()).any(-1).sum() > 20
    value, slope, curvature = jets(attention, values, x)
    more, less = jets(attention, values, x + h), jets(attention, values, x - h)
    # h^2 / 6 times a third derivative below 100, and 1e-15 / h
    torch.testing.assert_close(slope, (more[0] - less[0]) / (2 * h), rtol=0, atol=1e-6)
    # the third derivative jumps at the cells: an error of h times the jump, below 30
    torch.testing.assert_close(curvature, (more[1] - less[1]) / (2 * h), rtol=0, atol=3e-3)


@pytest.mark.parametrize(("n", "grid"), [(7, None), (20, None), (12, (3, 4))])
@pytest.mark.parametrize("decay", [False, True])
def test_gradients_of_everything(n, grid, decay):
    attention = make(5, grid, decay)
    names = [name for name, _ in attention.named_parameters()]
    values = torch.randn(2, n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(n))
    t = torch.tensor([[0.0, 0.31], [0.77, 1.0]], dtype=torch.float64) * 0.97 + 0.004

    def call(values, t, *parameters):
        return torch.func.functional_call(
            attention, dict(zip(names, parameters, strict=True)), (values, t)
        )

    inputs = [v.detach().clone().requires_grad_() for v in (values, t, *attention.parameters())]
    assert torch.autograd.gradcheck(call, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(call, inputs)


# ---- grids ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", GRIDS)
def test_the_order_of_a_grid_is_the_touching_order(grid):
    attention = HilbertCurveAttention(grid=grid)
    assert torch.equal(attention.permutation, touching_permutation(*grid))
    assert set(attention.state_dict()) == {"raw_lengthscale"}  # the tables follow from the grid
    assert HilbertCurveAttention(decay=True).state_dict().keys() == {
        "raw_lengthscale",
        "raw_exponent",
    }


def test_a_square_grid_is_the_series():
    """On a square of side 2**p the touching order is the Hilbert curve's."""
    t = torch.rand(2, 50, dtype=torch.float64)
    series, grid = (
        HilbertCurveAttention().reads(t, 256),
        HilbertCurveAttention(grid=(16, 16)).reads(t, 256),
    )
    assert torch.equal(series.weights, grid.weights)
    assert torch.equal(series.indices[series.weights > 0], grid.indices[grid.weights > 0])


def test_a_picture_that_is_linear_in_the_plane_is_read_as_it_is():
    """Away from the edges: the window is even around the query and reproduces x and y, wherever the
    curve leads.
    """
    height, width = 40, 33
    attention = make(grid=(height, width))
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    values = flatten(torch.stack([x, y]).double(), attention.permutation).mT[None]  # (1, n, 2)
    t = torch.rand(1, 500, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    place = attention.path(t, height * width)
    inside = ((place > 2) & (place < torch.tensor([width - 3, height - 3]))).all(-1)
    assert inside.sum() > 300
    torch.testing.assert_close(attention(values, t)[inside], place[inside], rtol=0, atol=1e-12)


def test_a_grid_takes_as_many_rows_as_it_has_cells():
    attention = HilbertCurveAttention(grid=(3, 5))
    with pytest.raises(ValueError, match="grid of 3 x 5 has 15 rows, got 16"):
        attention(torch.randn(1, 16, 1), torch.tensor([[0.5]]))
    assert attention(torch.randn(1, 15, 1), torch.tensor([[0.5]])).shape == (1, 1, 1)


# ---- the rest of the contract --------------------------------------------------------------------


@pytest.mark.parametrize(("n", "grid"), [(100, None), (117, (13, 9))])
@pytest.mark.parametrize("decay", [False, True])
def test_missing_rows(n, grid, decay):
    attention, cells = make(5, grid, decay), all_cells(n, grid)
    observed = torch.rand(2, n, generator=torch.Generator().manual_seed(1)) < 0.7
    t = queries(n).expand(2, -1)
    values = torch.randn(2, n, 3, dtype=torch.float64).masked_fill(
        ~observed.unsqueeze(-1), torch.nan
    )
    out = attention(values, t, observed=observed)
    for b in range(2):
        expected = torch.stack(
            [
                hilbert_weights(float(s) * (n - 1), cells, 1.0, 1.0 if decay else None, observed[b])
                for s in t[b]
            ]
        )
        # exponent: float32
        torch.testing.assert_close(out[b], expected @ values[b].nan_to_num(), rtol=0, atol=1e-6)


def test_a_hole_larger_than_the_window_is_an_error():
    attention = HilbertCurveAttention(grid=(16, 16))
    picture = torch.ones(16, 16, dtype=torch.bool)
    picture[4:11, 4:11] = False
    observed = flatten(picture, attention.permutation)
    middle = float((attention.permutation == 7 * 16 + 7).nonzero()) / 255
    with pytest.raises(ValueError, match="no observed row lies within reach"):
        attention(torch.randn(1, 256, 1), torch.tensor([[middle]]), observed=observed)
    assert attention(torch.ones(1, 256, 1), torch.tensor([[0.0]]), observed=observed).isfinite()


def test_binned_times():
    """A prepared context of binned rows has mean times; weights in the plane do not ask for them,
    decay does.
    """
    times = torch.tensor([0.0, 0.2, 0.21, 0.5, 0.9, 1.0], dtype=torch.float64)
    values = torch.randn(1, 6, 2, dtype=torch.float64)
    context = Pyramid(values, times=times, bins=8, levels=1)
    t = torch.tensor([[0.15, 0.95]], dtype=torch.float64)
    for decay in (False, True):
        out = make(decay=decay)(context, t)
        assert out.shape == (1, 2, 2)
        assert out.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("grid", [None, (13, 9)])
def test_lower_precision_is_float64_rounded(dtype, grid):
    attention = HilbertCurveAttention(grid=grid, decay=True)
    values, t = torch.randn(2, 117, 3).to(dtype), torch.rand(2, 5)
    low, exact = attention(values, t), attention(values.double(), t)
    assert low.dtype == dtype
    # values below 5, summed in float32 or better and rounded once
    torch.testing.assert_close(low.double(), exact, rtol=0, atol=10 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("window_size", [-1, 0, 1, 2, 4])
def test_bad_windows(window_size):
    with pytest.raises(
        ValueError, match=f"window_size must be odd and at least 3, got {window_size}"
    ):
        HilbertCurveAttention(window_size)


def test_bad_grids():
    with pytest.raises(ValueError, match="height of at least 1, got 0"):
        HilbertCurveAttention(grid=(0, 3))


def test_to_meta_and_back_types():
    attention = HilbertCurveAttention(grid=(4, 5)).to("meta")
    assert (
        attention(torch.randn(1, 20, 2).to("meta"), torch.rand(1, 2).to("meta")).device.type
        == "meta"
    )
    half = HilbertCurveAttention(grid=(4, 5)).to(torch.bfloat16)
    assert half.permutation.dtype == torch.int64
    assert half.lengthscale.dtype == torch.float64


def test_forward_mode_reaches_the_parameters():
    attention = make(decay=True)
    values, t = torch.randn(1, 30, 1).double(), torch.tensor([[0.4]]).double()
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(attention.raw_lengthscale.detach(), torch.ones(1).double())
        out = torch.func.functional_call(attention, {"raw_lengthscale": dual}, (values, t))
        tangent = forward_ad.unpack_dual(out).tangent
    (slope,) = torch.autograd.grad(attention(values, t).sum(), attention.raw_lengthscale)
    torch.testing.assert_close(tangent.flatten(), slope)


COLD = """
import torch
from fractal_lib import HilbertCurveAttention
torch.set_num_threads(1)
rows, t = torch.randn(2, 70, 3), torch.rand(2, 1)
for attention in (HilbertCurveAttention(decay=True), HilbertCurveAttention(grid=(7, 10))):
    def slope(rows, t):
        return torch.func.jvp(lambda s: attention(rows, s), (t,), (torch.ones_like(t),))[1]
    # nothing has run before
    first = torch.compile(slope, fullgraph=True, backend="aot_eager")(rows, t)
    torch.testing.assert_close(first, slope(rows, t), rtol=1e-4, atol=1e-4)
    for strict in (True, False):
        program = torch.export.export(attention, (rows, t), strict=strict)
        torch.testing.assert_close(program.module()(rows, t), attention(rows, t))
"""


def test_cold_compile_of_a_jvp_and_export():
    """In a process of its own, so that no table is there already from an eager call."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", COLD], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_one_graph_serves_many_lengths():
    torch.compiler.reset()
    attention, graphs = HilbertCurveAttention(), []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(attention, fullgraph=True, backend=backend)
    t = torch.rand(2, 3, dtype=torch.float64)
    for n in range(65, 257, 19):  # all of them on the curve of order 4
        values = torch.randn(2, n, 2, dtype=torch.float64)
        torch.testing.assert_close(compiled(values, t), attention(values, t), rtol=0, atol=1e-13)
    assert len(graphs) <= 2  # one for the first length, one for any other
