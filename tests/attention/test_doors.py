"""What users bring to every public function and class of attention and curves: taken, or refused in
one sentence that says expected and got.
"""

import numpy as np
import pandas as pd
import pytest
import torch

import fractal_lib.attention as attention_room
from fractal_lib import PATTERNS, RBF, JuliaAttention, MixtureAttention, Pyramid, WindowAttention
from fractal_lib.curves import cantor, dimension, dragon, grid, hilbert, julia, splines

N = 40
VALUES = np.sin(np.arange(2 * N * 3).reshape(2, N, 3))
TIMES = np.array([[0.1, 0.5], [0.25, 0.75]])
OBSERVED = np.arange(N) % 7 > 0

WAYS = {
    "numpy": lambda x: x,
    "list": lambda x: x.tolist(),
    "float64": torch.tensor,
    "reversed": lambda x: x[::-1][::-1],
    "big endian": lambda x: x.astype(x.dtype.newbyteorder(">")),
}
every = pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)


@every
@pytest.mark.parametrize("way", WAYS)
def test_every_attention_takes_arrays_lists_and_masks(pattern, way):
    bring, attention = WAYS[way], pattern()
    expected = attention(*(torch.tensor(x) for x in (VALUES, TIMES, OBSERVED)))
    got = attention(bring(VALUES), bring(TIMES), bring(OBSERVED))
    tolerance = 1e-5 if way == "list" else 0  # Python's floats become torch's default dtype
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=tolerance)
    assert attention.reads(bring(TIMES), np.int64(N)).indices.shape[:2] == (2, 2)


@every
def test_pandas_and_plain_numbers(pattern):
    attention, frame = pattern(), pd.DataFrame(VALUES[0])
    series = pd.Series(OBSERVED)
    expected = attention(torch.tensor(VALUES[:1]), torch.tensor([[0.5]]), torch.tensor(OBSERVED))
    for t in (0.5, np.float64(0.5), np.array(0.5), torch.tensor(0.5)):
        got = attention(frame.to_numpy()[None], t, series)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-15)


def test_times_of_every_kind():
    times = np.linspace(0, 1, N) ** 2
    for name in ("dense", "multilevel"):
        attention = PATTERNS[name]()
        expected = attention(torch.tensor(VALUES), torch.tensor(TIMES), times=torch.tensor(times))
        for bring in (lambda x: x, pd.Series):
            assert torch.equal(attention(VALUES, TIMES, times=bring(times)), expected)


@every
def test_t_an_ulp_outside_is_rounding_and_more_is_an_error(pattern):
    attention, values = pattern(), torch.tensor(VALUES)
    for outside, end in ((1 + 2.0**-23, 1.0), (-(2.0**-24), 0.0)):
        out = attention(values, torch.full((2, 1), outside))
        torch.testing.assert_close(out, attention(values, torch.full((2, 1), end)))
    for t in (1.01, -0.01, np.inf, -np.inf, np.nan):
        with pytest.raises(ValueError, match="divide by the duration"):
            attention(values, torch.full((2, 1), t))


@every
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_a_value_that_is_not_finite_is_refused_unless_missing(pattern, bad):
    attention, values = pattern(), VALUES.copy()
    values[:, 20] = bad
    with pytest.raises(ValueError, match=r"NaN or infinite.*`observed`"):
        attention(values, np.full((2, 1), 20 / (N - 1)))
    observed = np.arange(N) != 20
    assert attention(values, np.full((2, 1), 20.3 / (N - 1)), observed).isfinite().all()


@every
def test_one_row_and_wrong_shapes(pattern):
    attention = pattern()
    if attention.kind != "contrast":
        one = attention(VALUES[:, :1], TIMES)
        torch.testing.assert_close(one, torch.tensor(VALUES[:, :1]).expand(-1, 2, -1))
    for values, t, error, words in (
        (VALUES[0], TIMES, ValueError, r"\(B, N, H\).*got \(40, 3\)"),
        (VALUES, TIMES[0], ValueError, r"\(B, Q\), got \(2,\)"),
        (VALUES, TIMES[:1], ValueError, "batch 2"),
        (VALUES[:, :0], TIMES, ValueError, "N >= 1"),
        ([[1.0], [2.0, 3.0]], TIMES, TypeError, "ragged"),
        ([["a"]], TIMES, TypeError, "array of numbers, got list"),
        (None, TIMES, TypeError, "got NoneType"),
        (VALUES.astype(int), TIMES, TypeError, "floating point, got torch.int64"),
        (VALUES.astype(complex), TIMES, TypeError, "complex"),
    ):
        with pytest.raises(error, match=words):
            attention(values, t)
    for observed, words in ((OBSERVED.astype(int), "bool, got torch.int64"), ("x", "observed")):
        with pytest.raises(TypeError, match=words):
            attention(VALUES, TIMES, observed)
    with pytest.raises(ValueError, match="n of at least 1, got 0"):
        attention.reads(TIMES, 0)


def test_arguments_of_the_classes():
    two, three = np.int64(2), np.int16(3)
    assert len(PATTERNS["ladder"](three).level_logits) == 3
    assert len(PATTERNS["dragon"](three).level_logits) == 3
    assert PATTERNS["hilbert"](three, grid=[two, three]).grid == (2, 3)
    assert PATTERNS["multilevel"](cells=np.int64(8)).cells == 8
    assert JuliaAttention(np.float32(-6)).c == -6.0
    assert RBF(np.float64(2.0), learnable=True).lengthscale.item() == pytest.approx(2.0, rel=1e-7)
    for make, error, words in (
        (lambda: PATTERNS["ladder"](1.5), TypeError, "depth as a whole number, got float 1.5"),
        (lambda: PATTERNS["hilbert"]("5"), TypeError, "window_size as a whole number"),
        (lambda: PATTERNS["hilbert"](grid=7), ValueError, r"grid must be \(height, width\), got 7"),
        (lambda: JuliaAttention("c"), TypeError, "c must be a number, got str"),
        (lambda: JuliaAttention(-6, kernel=2.0), TypeError, "must be a Kernel.*got float"),
        (lambda: PATTERNS["dense"](RBF), TypeError, "must be a Kernel.*got RBF itself"),
        (lambda: PATTERNS["multilevel"]("rbf"), TypeError, "must be a Kernel.*got str"),
        (lambda: WindowAttention(tail=2), ValueError, "tail must lie in"),
        (lambda: MixtureAttention(RBF()), TypeError, "ContextAttention, got"),
        (lambda: Pyramid(VALUES, times=np.linspace(0, 1, N), bins=0), ValueError, "bins of at"),
        (lambda: Pyramid(VALUES, times=np.linspace(0, 9, N)), ValueError, "divide by the dur"),
    ):
        with pytest.raises(error, match=words):
            make()


WHOLE = {  # functions of whole numbers, with what to bring
    "fold_levels": (dragon.fold_levels, [1, 2, 3]),
    "turn_signs": (dragon.turn_signs, [1, 2, 3]),
    "dragon_points": (dragon.dragon_points, [0, 1, 2]),
    "cantor_levels": (lambda x: cantor.cantor_levels(x, np.int64(2)), [0, 4, 8]),
    "morton_decode": (lambda d: grid.morton_decode(d)[1], [0, 1, 2]),
    "morton_encode": (lambda x: grid.morton_encode(x, x), [0, 1, 2]),
    "hilbert_decode": (lambda d: hilbert.hilbert_decode(d, np.int64(3))[0], [0, 1, 63]),
    "hilbert_encode": (lambda x: hilbert.hilbert_encode(x, x, 3), [0, 1, 7]),
    "inverse_permutation": (grid.inverse_permutation, [2, 0, 1]),
}


@pytest.mark.parametrize("name", WHOLE)
def test_whole_numbers_of_every_kind(name):
    function, numbers = WHOLE[name]
    expected = function(torch.tensor(numbers))
    array = np.array(numbers)
    for brought in (
        numbers,
        array,
        array.astype(np.int32),
        array.astype(">i8"),
        pd.Series(numbers),
    ):
        assert np.asarray(function(brought)).tolist() == expected.tolist()
    if name != "inverse_permutation":
        assert function(numbers[1]).tolist() == expected[1].tolist()
    for bad, error in (
        ([0.5], TypeError),
        ([True], TypeError),
        ("a", TypeError),
        ([-1], ValueError),
    ):
        with pytest.raises(error, match=r"whole numbers|array of numbers|got -1"):
            function(bad)


def test_the_rest_of_the_curves():
    assert cantor.cantor_indices(np.int64(2)).tolist() == [0, 2, 6, 8]
    assert len(dragon.dragon_curve(np.int32(3))) == 9
    path = hilbert.hilbert_path(np.array([0.5]), 1, rows=np.int64(4))
    torch.testing.assert_close(path, hilbert.hilbert_path(torch.tensor([0.5]).double(), 1))
    z = [0j, 1.5 + 0j]
    expected = julia.escape_time(torch.tensor(z), -1)
    for brought in (z, np.array(z), pd.Series(z)):
        assert np.asarray(julia.escape_time(brought, np.float64(-1))).tolist() == expected.tolist()
    for call in (julia.julia_points, julia.julia_dimension):
        with pytest.raises(TypeError, match="levels as a whole number, got float 2.5"):
            call(-3, 2.5)
    line = grid.flatten([[10, 20], [30, 40]], [0, 2, 3, 1])
    assert line.tolist() == [10, 30, 40, 20]
    assert grid.unflatten(line, [0, 2, 3, 1], 2, 2).tolist() == [[10, 20], [30, 40]]
    node, fraction = splines.stencil(torch.tensor([5.5]), np.int64(2))
    assert node.tolist() == [[1, 2, 3, 4]]
    assert fraction.tolist() == [0.75]


def test_an_image_is_no_cloud_of_points():
    image = np.zeros((64, 64), dtype=np.uint8)
    image[tuple(dragon.dragon_points(np.arange(500)).numpy().T % 64)] = 255
    points = np.argwhere(image)
    expected = dimension.count_boxes(points, 4)
    assert dimension.count_boxes(image > 0, 4) == expected
    assert dimension.count_boxes(torch.tensor(image > 0), 4) == expected
    full = dimension.box_counting_dimension(np.ones((64, 64), dtype=bool), [2, 4, 8], offsets=1)
    assert full.dimension == pytest.approx(2)
    for wrong in (image, image // 255, image[:, :9], image.astype(float), points.T, points.T * 0.5):
        for call in (dimension.box_counting_dimension, lambda p: dimension.count_boxes(p, 4)):
            with pytest.raises(ValueError, match=r"pass np.argwhere\(image\).*transpose"):
                call(wrong)


def test_every_public_name_of_attention_is_known_here():
    """A new one is to be added to this file's tables."""
    known = {a.__name__ for a in PATTERNS.values()} | {
        *("MixtureAttention", "Pyramid", "Tree", "ContextAttention", "Reads", "PATTERNS"),
        *("RBF", "Kernel", "Matern12", "OriginalKernel", "RationalQuadratic"),
        *("pattern", "position", "read"),
        *("Choice", "choose_reader"),  # its doors: test_choose.py
    }
    assert set(attention_room.__all__) == known
