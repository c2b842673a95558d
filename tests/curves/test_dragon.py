"""The dragon against paper folded literally, OEIS, and brute force over its vertices and edges."""

import math
from collections import Counter, defaultdict

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fractal_lib.curves.dragon import (
    dragon_boundary,
    dragon_cells,
    dragon_curve,
    dragon_points,
    fold_levels,
    turn_signs,
    twin_points,
    unfolded_signs,
)

# The terms that OEIS lists for A014577, whose offset is 0: crease i is term i - 1.
A014577 = (
    "110110011100100111011000110010011101100111001000110"
    "110001100100111011001110010011101100011001000110"
)
# A227036: length of the boundary of the curve of 2**k steps.
A227036 = [2, 4, 8, 16, 28, 48, 84, 144, 244, 416, 708, 1200, 2036]


def fold(order):
    """Fold a strip of 2**order segments: [(turn, level)] of its creases, read off a stack of
    layers.

    A layer is its segments from left to right, and +1 or -1: which face of the paper looks up.
    """
    stack = [(list(range(2**order)), 1)]
    crease = {}
    for level in reversed(range(order)):
        left, right = [], []
        for segments, face in stack:
            half = len(segments) // 2
            # crease i is between segments i - 1 and i
            middle = max(segments[half - 1], segments[half])
            # the right half comes up: a left turn, seen from the face that looks up
            crease[middle] = (face, level)
            left.append((segments[:half], face))
            right.append((segments[half:][::-1], -face))
        stack = left + right[::-1]  # the right half is turned over, and lies on top
    return [crease[i] for i in range(1, 2**order)]


def toeplitz(terms):
    """A014577 as Toeplitz would write it: 1 and 0 in turn in every other place, and itself in the
    gaps.
    """
    sequence = np.full(terms, -1)
    gaps = np.arange(terms)
    while len(gaps):
        sequence[gaps[::4]], sequence[gaps[2::4]] = 1, 0
        gaps = gaps[1::2]
    return sequence.tolist()


def l_system(rounds):
    """A014577 by rewriting L -> L1R, R -> L0R."""
    word = "L"
    for _ in range(rounds):
        word = word.translate({ord("L"): "L1R", ord("R"): "L0R"})
    return [int(letter) for letter in word if letter in "01"]


def walk(signs):
    """The vertices of a walk that turns by these signs, step by step."""
    x, y, dx, dy = 0, 0, 1, 0
    points = [(0, 0), (1, 0)]
    x = 1
    for sign in signs:
        dx, dy = (-dy, dx) if sign > 0 else (dy, -dx)
        x, y = x + dx, y + dy
        points.append((x, y))
    return points


def edges(points):
    return [frozenset((tuple(p), tuple(q))) for p, q in zip(points[:-1], points[1:], strict=True)]


@pytest.mark.parametrize("order", range(13))
def test_folded_paper_has_these_creases(order):
    i = torch.arange(1, 2**order)
    assert list(zip(turn_signs(i).tolist(), fold_levels(i).tolist(), strict=True)) == fold(order)


def test_a_thousand_terms_of_a014577():
    ours = ((turn_signs(torch.arange(1, 1001)) + 1) // 2).tolist()
    assert "".join(map(str, ours[: len(A014577)])) == A014577
    assert len(A014577) == 99
    assert ours == toeplitz(1000)
    assert ours == l_system(10)[:1000]


@pytest.mark.parametrize("order", range(15))
def test_reverse_and_negate_is_the_closed_form(order):
    assert torch.equal(unfolded_signs(order), turn_signs(torch.arange(1, 2**order)))


@given(i=st.integers(1, 2**63 - 1))
def test_levels_and_signs_by_definition_for_any_int64(i):
    odd, level = i, 0
    while odd % 2 == 0:
        odd, level = odd // 2, level + 1
    assert fold_levels(torch.tensor(i)).item() == level
    assert turn_signs(torch.tensor(i)).item() == (1 if odd % 4 == 1 else -1)


@given(i=st.integers(1, 2**61), k=st.integers(0, 61))
def test_symmetries(i, k):
    a = torch.tensor(i)
    assert turn_signs(2 * a) == turn_signs(a)  # a coarser strip is the same strip
    assert fold_levels(2 * a) == fold_levels(a) + 1
    if 0 < i < 2**k:  # reverse and negate
        assert turn_signs(2 ** (k + 1) - a) == -turn_signs(a)
        assert fold_levels(2 ** (k + 1) - a) == fold_levels(a)


@pytest.mark.parametrize("n", [1, 2, 3, 100, 1023, 1024])
def test_levels_partition_the_creases(n):
    level = fold_levels(torch.arange(1, n + 1))
    creases = [list(range(2**k, n + 1, 2 ** (k + 1))) for k in range(n.bit_length())]
    assert [
        (level == k).nonzero().flatten().add(1).tolist() for k in range(n.bit_length())
    ] == creases
    assert sorted(sum(creases, [])) == list(range(1, n + 1))


@pytest.mark.parametrize("order", range(13))
def test_the_curve_walks_by_the_signs(order):
    points = walk(unfolded_signs(order).tolist())
    assert list(map(tuple, dragon_curve(order).tolist())) == points
    assert list(map(tuple, dragon_points(torch.arange(2**order + 1)).tolist())) == points


@pytest.mark.parametrize("order", [*range(12), 16])
def test_no_edge_is_walked_twice_and_no_vertex_met_three_times(order):
    points = dragon_curve(order).tolist()
    walked = edges(points)
    assert len(set(walked)) == 2**order
    assert all(math.dist(*edge) == 1 for edge in set(walked))
    assert max(Counter(map(tuple, points)).values()) <= 2


@given(x=st.integers(0, 2**62 - 1))
def test_points_anywhere_on_the_curve(x):
    here, there, twice, more = (
        dragon_points(torch.tensor(s)).tolist() for s in (x, x + 1, 2 * x, 2 * x + 1)
    )
    assert math.dist(here, there) == 1
    assert twice == [here[0] - here[1], here[0] + here[1]]  # P(2x) = (1 + i) P(x)
    assert math.dist(twice, more) == 1
    if x:
        before = dragon_points(torch.tensor(x - 1)).tolist()
        a, b = np.subtract(here, before), np.subtract(there, here)
        assert a[0] * b[1] - a[1] * b[0] == turn_signs(torch.tensor(x)).item()
        assert a @ b == 0


@pytest.mark.parametrize("order", range(13))
def test_twins_by_brute_force(order):
    times = defaultdict(list)
    for time, point in enumerate(dragon_curve(order).tolist()):
        times[tuple(point)].append(time)
    assert twin_points(order).tolist() == sorted(pair for pair in times.values() if len(pair) == 2)
    assert twin_points(order).shape[1] == 2


def test_four_dragons_walk_every_edge_near_the_origin_once():
    x, y = dragon_curve(12).unbind(1)
    four = [torch.stack(p, 1).tolist() for p in ((x, y), (-y, x), (-x, -y), (y, -x))]
    count = Counter(edge for points in four for edge in edges(points))
    assert set(count.values()) == {1}
    near = range(-15, 16)
    assert all(
        frozenset(((a, b), (a + da, b + db))) in count
        for a in near
        for b in near
        for da, db in ((1, 0), (0, 1))
    )


@pytest.mark.parametrize("order", range(12))
def test_cells_and_boundary_by_brute_force(order):
    points = dragon_curve(order).numpy() @ (1, 1j)
    middle = ((points[1:] + points[:-1]) * (1 - 1j) - (1 + 1j)) / 2
    cells = [(int(m.real), int(m.imag)) for m in middle]
    assert list(map(tuple, dragon_cells(order).tolist())) == cells
    tile = set(cells)
    assert len(tile) == 2**order
    rim = [(u, v) for u, v in tile if not {(u - 1, v), (u + 1, v), (u, v - 1), (u, v + 1)} <= tile]
    assert list(map(tuple, dragon_boundary(order).tolist())) == sorted(rim)


def test_the_boundary_has_the_length_that_oeis_lists():
    """Every edge has two sides; those that face a square with all four edges walked are inside."""
    for order, length in enumerate(A227036):
        walked = set(edges(dragon_curve(order).tolist()))
        corners = {min(edge) for edge in walked}
        enclosed = sum(
            {
                frozenset(((x, y), (x + 1, y))),
                frozenset(((x, y), (x, y + 1))),
                frozenset(((x + 1, y), (x + 1, y + 1))),
                frozenset(((x, y + 1), (x + 1, y + 1))),
            }
            <= walked
            for x, y in corners
        )
        assert 2 * 2**order - 4 * enclosed == length


def test_the_boundary_grows_with_its_dimension():
    growth = max(np.roots([1, -1, 0, -2]), key=lambda z: -abs(z.imag)).real
    exact = 2 * math.log2(growth)
    assert exact == pytest.approx(1.523627086)
    counts = [len(dragon_boundary(order)) for order in (16, 19)]
    assert 2 * math.log2(counts[1] / counts[0]) / 3 == pytest.approx(exact, abs=0.003)


@pytest.mark.parametrize("shape", [(), (0,), (7,), (2, 3, 5)])
def test_any_shape(shape):
    i = torch.arange(1, 1 + math.prod(shape)).reshape(shape)
    flat = i.flatten()
    for function in (fold_levels, turn_signs, dragon_points):
        out = function(i)
        assert out.dtype == torch.int64
        assert out.shape[: len(shape)] == shape
        assert torch.equal(out.reshape(function(flat).shape), function(flat))


@pytest.mark.parametrize("function", [fold_levels, turn_signs, dragon_points])
def test_bad_positions(function):
    with pytest.raises(TypeError, match=r"whole numbers, got torch\.float32"):
        function(torch.tensor([1.0]))
    with pytest.raises(ValueError, match="of at least [01], got -1 to 5"):
        function(torch.tensor([5, -1]))


@pytest.mark.parametrize("function", [fold_levels, turn_signs])
def test_crease_zero_is_no_crease(function):
    with pytest.raises(ValueError, match="at least 1, got 0"):
        function(torch.arange(3))


@pytest.mark.parametrize(
    "function",
    [unfolded_signs, dragon_curve, twin_points, dragon_cells, dragon_boundary],
    ids=lambda f: f.__name__,
)
@pytest.mark.parametrize("order", [-1, 31])
def test_bad_orders(function, order):
    with pytest.raises(ValueError, match=rf"expected order from 0 to 30, got {order}"):
        function(order)
