"""The visual language: what the palette promises is measured, and each drawing shows the numbers it
was given.
"""

import importlib.util
import io
from itertools import combinations
from pathlib import Path
from xml.etree import ElementTree

import hypothesis.strategies as st
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from hypothesis import given
from PIL import Image

from fractal_lib import plots
from fractal_lib.plots import DATA, DENSE, LADDER, LINEAR, OTHER, QUERY, WINDOW

mpl.use("agg")
ROLES = {
    "dense": DENSE,
    "window": WINDOW,
    "ladder": LADDER,
    "linear": LINEAR,
    "other": OTHER,
    "data": DATA,
}
ROLES_AND_QUERY = ROLES | {"query": QUERY}


@pytest.fixture(autouse=True)
def _style():
    with mpl.rc_context():
        plots.use_style()
        yield
    plt.close("all")


# ---- the palette ---------------------------------------------------------------------------------


def linear(color):
    """An sRGB colour as linear light."""
    c = np.array(mpl.colors.to_rgb(color))
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def contrast(one, two):
    """The ratio of WCAG 2."""
    dark, light = sorted(linear(c) @ [0.2126, 0.7152, 0.0722] for c in (one, two))
    return (light + 0.05) / (dark + 0.05)


def turned_over(color):
    """What ``invert(1) hue-rotate(180deg)`` of _static/figures.css makes of a colour."""
    half_turn = 2 * np.outer(np.ones(3), [0.213, 0.715, 0.072]) - np.eye(3)
    return np.clip(half_turn @ (1 - np.array(mpl.colors.to_rgb(color))), 0, 1)


def lab(light):
    xyz = (
        np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
        @ light
    )
    f = np.cbrt(np.clip(xyz / [0.9505, 1, 1.089], 1e-4, None))
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


# Machado, Oliveira and Fernandes (2009), severity 1
EYES = {
    "all three cones": np.eye(3),
    "no long": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "no medium": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.01182, 0.04294, 0.968881],
    ],
    "no short": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.3039],
    ],
}


@pytest.mark.parametrize("name", ROLES_AND_QUERY)
def test_a_colour_can_be_read_as_text_on_light_and_on_dark(name):
    color = ROLES_AND_QUERY[name].color
    assert contrast(color, "white") >= 4.5
    assert contrast(turned_over(color), "#121212") >= 4.5


@pytest.mark.parametrize("eyes", EYES)
def test_any_two_colours_differ_to_every_eye(eyes):
    seen = {
        name: lab(np.clip(EYES[eyes] @ linear(role.color), 0, 1))
        for name, role in ROLES_AND_QUERY.items()
    }
    assert min(np.linalg.norm(seen[a] - seen[b]) for a, b in combinations(seen, 2)) > 10


def test_roles_differ_without_colour():
    assert len({(role.linestyle, role.marker) for role in ROLES_AND_QUERY.values()}) == len(
        ROLES_AND_QUERY
    )


def test_a_figure_is_opaque_white():
    plt.plot([0, 1])
    png = io.BytesIO()
    plt.savefig(png)
    with Image.open(png) as image:
        assert image.size == (720, 320)
        assert image.convert("RGBA").getpixel((2, 2)) == (255, 255, 255, 255)


# ---- labels --------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_labels_do_not_overlap_and_lie_in_the_figure(scale):
    figure, ax = plt.subplots()
    x = np.linspace(1, 2, 50)
    for k, (name, role) in enumerate(ROLES.items()):
        ax.plot(x, (1 + 0.001 * k) * x, **role.line, label=name)
    ax.plot(x[:20], 30 - x[:20], label="ends early")
    ax.plot(x, x + 9)  # without a label, left alone
    ax.set_yscale(scale)
    notes = plots.label_lines(ax)
    figure.draw_without_rendering()
    assert [note.get_text() for note in notes] == [*ROLES, "ends early"]
    boxes = [mpl.text.Text.get_window_extent(note) for note in notes]  # without the leader
    assert not any(mpl.transforms.Bbox.intersection(a, b) for a, b in combinations(boxes, 2))
    assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 for box in boxes)
    # in the order of the curves
    assert [box.y0 for box in boxes] == sorted(box.y0 for box in boxes)


def test_labels_of_nothing_are_refused():
    with pytest.raises(ValueError, match="no line with a label"):
        plots.label_lines(plt.gca())


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=12), st.floats(0.1, 20))
def test_spread_keeps_distance_order_and_balance(wanted, gap):
    wanted = np.array(wanted)
    placed = plots._apart(wanted, gap)
    order = np.argsort(wanted, kind="stable")
    assert (np.diff(placed[order]) >= gap - 1e-9).all()
    assert placed.sum() == pytest.approx(wanted.sum(), abs=1e-8)  # pushed as far up as down
    assert plots._apart(placed, gap) == pytest.approx(placed)  # nothing to do the second time


# ---- drawings ------------------------------------------------------------------------------------


def test_stems_add_up_a_row_that_is_read_twice():
    _, ax = plt.subplots()
    plots.weights_stem(ax, [[4, 2, 4]], [[0.5, -0.25, 0.75]], query=3.0)
    (heads,) = [line for line in ax.lines if line.get_marker() == LADDER.marker]
    assert heads.get_xydata().tolist() == [[2, -0.25], [4, 1.25]]


@pytest.mark.parametrize(("x", "n"), [(26.4, 65), (0.0, 5), (63.9, 65), (17.0, 33)])
def test_ladder_nodes_fill_the_four_points_nearest_the_query(x, n):
    _, ax = plt.subplots()
    plots.ladder_nodes(ax, x, n, levels=3)
    assert len(ax.collections) == 3
    for level, dots in enumerate(ax.collections):
        stride = 2**level
        cell = int(x // stride)
        grid = [p * stride for p in range(cell - 1, cell + 3) if 0 <= p * stride < n]
        assert dots.get_offsets().tolist() == [[row, level] for row in grid]
        nearest_first = np.argsort(np.abs(np.array(grid) - x), kind="stable")
        assert (np.diff(dots.get_sizes()[nearest_first]) <= 1e-9).all()  # the nearer, the larger


@pytest.mark.parametrize("dates", [False, True])
def test_shade_covers_the_rows_of_the_mask(dates):
    _, ax = plt.subplots()
    x = np.arange(8.0)
    if dates:
        x = np.datetime64("2000-01-01") + (10 * x).astype("timedelta64[D]")
    mask = np.array([1, 0, 0, 1, 1, 0, 0, 1], dtype=bool)
    plots.shade(ax, x, mask, label="missing")
    where = mpl.dates.date2num(x) if dates else x
    half = (where[1] - where[0]) / 2
    # a rectangle, before matplotlib 3.9 a polygon
    boxes = [p.get_path().get_extents(p.get_patch_transform()) for p in ax.patches]
    spans = [(box.x0, box.x1) for box in boxes]
    starts, ends = where[[0, 3, 7]] - [0, half, half], where[[0, 4, 7]] + [half, half, 0]
    assert np.array(spans) == pytest.approx(np.stack([starts, ends], axis=1))
    assert ax.get_legend_handles_labels()[1] == ["missing"]


def test_cost_tells_measured_from_recorded():
    _, ax = plt.subplots()
    sizes = [100, 1000, 10000]
    measured = {
        "dense": (DENSE, sizes, [1e-5, 1e-4, 1e-3]),
        "ladder": (LADDER, sizes, [1e-4, 1e-4, 1e-4]),
    }
    plots.loglog_cost(
        ax, measured, {"dense": (DENSE, sizes, [5e-5, 6e-5, 9e-5])}, "a GPU, 2026-01-02"
    )
    styles = {line.get_label(): line.get_linestyle() for line in ax.lines}
    assert styles == {"dense": "-", "ladder": "-", "dense, recorded": "--"}
    assert ax.lines[0].get_ydata().tolist() == pytest.approx([0.01, 0.1, 1])  # milliseconds
    assert "a GPU, 2026-01-02" in ax.get_title("left")
    with pytest.raises(ValueError, match="the device and the date"):
        plots.loglog_cost(ax, measured, measured)


def test_no_letter_of_the_style_is_smaller_than_the_smallest():
    sizes = {
        k: v for k, v in plots.STYLE.items() if k.endswith(("fontsize", "size")) and "font" in k
    }
    sizes |= {k: v for k, v in plots.STYLE.items() if k.endswith(("labelsize", "titlesize"))}
    assert len(sizes) >= 5
    assert min(sizes.values()) >= plots.SMALLEST


def test_dates_are_short():
    plots.use_style()
    fig, ax = plt.subplots()
    ax.plot(np.arange("1984-01", "1987-01", dtype="datetime64[M]"), range(36))
    fig.draw_without_rendering()
    labels = [label.get_text() for label in ax.get_xticklabels()]
    assert {"1984", "1985", "1986"} <= set(labels)
    assert max(map(len, labels)) <= 4


# ---- the picture of the README -------------------------------------------------------------------

IMAGES = Path(__file__).resolve().parent.parent / "book" / "images"


def test_the_ladder_picture_shows_a_kernel_of_sum_one(tmp_path):
    spec = importlib.util.spec_from_file_location("ladder_picture", IMAGES / "ladder.py")
    picture = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(picture)
    figure = picture.draw_ladder(n=129, x=60.3, levels=5)
    x, kernel = figure.axes[0].lines[0].get_data()
    assert kernel[x == np.round(x)].sum() == pytest.approx(1, abs=1e-12)
    assert x[kernel.argmax()] == pytest.approx(60.3, abs=0.25)
    picture.save_card(figure, tmp_path / "ladder.svg", "A ladder")
    root = ElementTree.parse(tmp_path / "ladder.svg").getroot()
    assert root.find("{*}title").text == "A ladder"
    assert (tmp_path / "ladder.svg").stat().st_size < 300_000


@pytest.mark.parametrize("name", ["ladder.svg", "raccoon.svg"])
def test_stored_pictures_stand_alone_and_have_a_title(name):
    text = (IMAGES / name).read_text()
    root = ElementTree.fromstring(text)
    assert root.find("{*}title").text.strip()
    assert "<script" not in text
    assert not [
        e
        for e in root.iter()
        if any("href" in k and not v.startswith("#") for k, v in e.attrib.items())
        and not e.tag.endswith("}type")
    ]  # nothing is fetched
