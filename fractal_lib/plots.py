"""The book's one visual language: a style, a palette by role, and the drawings that several
chapters share.

Colours mean the same thing in every figure, and never speak alone: each role has its own line style
and marker. Every colour has a contrast of at least 4.5 on white, so that it may also colour text,
and every two of them differ for a reader who sees two primaries only (``tests/test_plots.py``
measures both).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from fractal_lib.checks import optional
from fractal_lib.curves.splines import bspline_weights, stencil

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "DATA",
    "DENSE",
    "FAINT",
    "LADDER",
    "LINEAR",
    "MISSING",
    "OTHER",
    "QUERY",
    "STYLE",
    "WINDOW",
    "Role",
    "label_lines",
    "ladder_nodes",
    "loglog_cost",
    "query_line",
    "shade",
    "use_style",
    "weights_stem",
]

plt: Any = optional("matplotlib.pyplot", "fractal_lib.plots")
dates: Any = optional("matplotlib.dates", "fractal_lib.plots")
units: Any = optional("matplotlib.units", "fractal_lib.plots")


class Role(NamedTuple):
    """How one thing looks in every figure.

    >>> WINDOW.line
    {'color': '#c8500a', 'linestyle': '--'}
    """

    color: str
    linestyle: Any  # a name, or matplotlib's (offset, (on, off, ...))
    marker: str

    @property
    def line(self) -> dict:
        """Keywords of ``ax.plot`` for a curve."""
        return {"color": self.color, "linestyle": self.linestyle}

    @property
    def dotted_line(self) -> dict:
        """Keywords of ``ax.plot`` for a curve through few points, each marked."""
        return self.line | {"marker": self.marker}

    @property
    def points(self) -> dict:
        """Keywords of ``ax.plot`` for points alone."""
        return {"color": self.color, "linestyle": "none", "marker": self.marker}


DENSE = Role("#1a1a1a", "-", "o")
WINDOW = Role("#c8500a", "--", "s")
LADDER = Role("#0868b0", "-", "D")
LINEAR = Role("#b0569a", "-.", "^")
OTHER = Role("#006650", (0, (5, 1, 1, 1, 1, 1)), "v")
DATA = Role("#72777f", "-", ".")
QUERY = Role("#d40f2f", ":", "v")
MISSING = "#f3dcae"  # background of what is missing or held out; never a line or a letter
FAINT = "#c9ccd1"  # rulers, grids, points that are there but not read

SMALLEST = 12.25  # points: at this size the text of a figure 7.2 inches wide is read on a telephone

STYLE = {
    "figure.figsize": (7.2, 3.2),
    "figure.dpi": 100,
    "figure.constrained_layout.use": True,
    "figure.facecolor": "white",  # opaque, so that a figure is readable on a dark page too
    "savefig.facecolor": "white",
    "axes.facecolor": "white",
    "axes.prop_cycle": plt.cycler(
        color=[r.color for r in (LADDER, WINDOW, OTHER, LINEAR, DENSE, DATA)]
    ),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#4a4f57",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": SMALLEST,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "grid.color": "#e6e8eb",
    "grid.linewidth": 0.7,
    "font.size": SMALLEST,
    "legend.frameon": False,
    "legend.fontsize": SMALLEST,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "xtick.labelsize": SMALLEST,
    "ytick.labelsize": SMALLEST,
    "xtick.color": "#4a4f57",
    "ytick.color": "#4a4f57",
    "svg.hashsalt": "fractal_lib",  # the same picture is the same file
}


def use_style() -> None:
    """Give every figure drawn from here on the book's look; each chapter calls it once, after its
    imports.

    In a notebook it also asks for pictures of double density, shown at the size of single ones.
    """
    plt.rcParams.update(STYLE)
    # dates as 1984, Jul, 1985: longer ones would overlap
    units.registry[np.datetime64] = dates.ConciseDateConverter(show_offset=False)
    try:
        from IPython import get_ipython
        from matplotlib_inline.config import InlineBackend
    except ImportError:
        return
    if shell := get_ipython():
        backend = InlineBackend.instance(parent=shell)
        backend.shell = shell
        backend.figure_formats = {"retina"}


def label_lines(ax: Axes) -> list:
    """Write each curve's name beside its right end, in its colour; names that would overlap move
    apart.

    Call it last, when the limits are settled. It labels the lines of ``ax`` that were given a
    label.

    Returns:
        The annotations, in the order of the lines.

    Raises:
        ValueError: if no line of ``ax`` was given a label.
    """
    lines = [line for line in ax.get_lines() if not str(line.get_label()).startswith("_")]
    if not lines:
        raise ValueError("label_lines found no line with a label; pass label= to ax.plot")
    figure: Any = ax.figure  # or a subfigure, as far as the stubs know
    figure.draw_without_rendering()
    height = 1.35 * plt.rcParams["legend.fontsize"] * figure.dpi / 72  # pixels a name takes
    ends = []
    for line in lines:
        xy = np.asarray(line.get_xydata())
        ends.append(xy[np.isfinite(xy).all(axis=1)][-1])
    to_axes = (ax.transData - ax.transAxes).transform
    # (lines, 2), in heights and widths of the axes
    wanted = np.array([to_axes(end) for end in ends])
    placed = _apart(wanted[:, 1], height / ax.bbox.height)
    # One that had to move, or whose curve ends early, is tied to its end; then all stand in one
    # column further out.
    tied = (wanted[:, 0] < 0.93) | (np.abs(placed - wanted[:, 1]) > 0.02)
    notes = []
    for line, end, at, lead in zip(lines, ends, placed, tied, strict=True):
        color = line.get_color()
        arrow = {
            "arrowstyle": "-",
            "color": color,
            "linewidth": 0.7,
            "shrinkA": 1,
            "shrinkB": 3,
            "alpha": 0.7,
        }
        notes.append(
            ax.annotate(
                str(line.get_label()),
                end,
                (1.05 if tied.any() else 1.015, at),
                textcoords="axes fraction",
                va="center",
                color=color,
                fontsize=plt.rcParams["legend.fontsize"],
                annotation_clip=False,
                arrowprops=arrow if lead else None,
            )
        )
    return notes


def _apart(wanted: np.ndarray, gap: float) -> np.ndarray:
    """Places at least ``gap`` apart, in the same order, as near to those wanted as may be (least
    squares).

    >>> _apart(np.array([0.0, 1.0, 10.0]), gap=3.0)
    array([-1.,  2., 10.])
    """
    order = np.argsort(wanted, kind="stable")
    offset = gap * np.arange(len(wanted))
    blocks: list[tuple[float, int]] = []  # pool adjacent violators on wanted - offset: (mean, size)
    for value in wanted[order] - offset:
        mean, size = float(value), 1
        while blocks and blocks[-1][0] > mean:
            other, count = blocks.pop()
            mean, size = (mean * size + other * count) / (size + count), size + count
        blocks.append((mean, size))
    placed = np.empty(len(wanted))
    placed[order] = np.repeat([b[0] for b in blocks], [b[1] for b in blocks]) + offset
    return placed


def query_line(ax: Axes, x: float, label: str = "") -> None:
    """Mark the query: a dotted line through ``ax``, with a triangle and a word at its top."""
    ax.axvline(x, **QUERY.line, linewidth=1.4, zorder=1.5)
    top = ax.get_xaxis_transform()
    ax.plot([x], [1], **QUERY.points, markersize=7, clip_on=False, transform=top, zorder=5)
    if label:
        ax.annotate(
            label,
            (x, 1),
            xycoords=top,
            xytext=(0, 6),
            textcoords="offset points",
            ha="center",
            color=QUERY.color,
        )


def shade(ax: Axes, x: Sequence, mask: Sequence[bool], label: str | None = None) -> None:
    """Shade every run of rows where ``mask`` is true, half a row to either side: gaps, or what was
    held out.

    Args:
        x: (n,) places of the rows, ascending: numbers or datetime64.
        mask: (n,) bool.
        label: a name for the legend, given once.
    """
    places = np.asarray(x)
    edges = np.flatnonzero(np.diff(np.asarray(mask, dtype=bool), prepend=False, append=False))
    middles = places[:-1] + (places[1:] - places[:-1]) / 2
    # (n + 1,); of type Any, since axvspan takes datetime64 too and its stubs say float
    bounds: Any = np.concatenate([places[:1], middles, places[-1:]])
    for start, stop in edges.reshape(-1, 2):
        ax.axvspan(bounds[start], bounds[stop], color=MISSING, linewidth=0, zorder=0.5, label=label)
        label = None


def weights_stem(
    ax: Axes, positions, weights, role: Role = LADDER, query: float | None = None
) -> None:
    """A reader's weights over the rows, one stem a row.

    Args:
        positions: (K,) rows; one that is read several times gets one stem, as high as the sum.
        weights: (K,) their weights, of either sign.
        role: whose they are.
        query: where the query stands, if it should be marked.
    """
    positions, weights = np.asarray(positions).ravel(), np.asarray(weights, dtype=float).ravel()
    rows, where = np.unique(positions, return_inverse=True)
    total = np.bincount(where, weights)
    ax.vlines(rows, 0, total, color=role.color, linewidth=1.6)
    ax.plot(rows, total, **role.points, markersize=4.5)
    ax.axhline(0, color="#4a4f57", linewidth=0.8)
    ax.set(xlabel="row", ylabel="weight")
    if query is not None:
        query_line(ax, query)


def ladder_nodes(ax: Axes, x: float, n: int, levels: int) -> None:
    """The ladder around a query: a line of grid points a level, the four that are read filled by
    weight.

    Args:
        x: the query's position, 0 <= x <= n - 1.
        n: number of rows.
        levels: how many levels, from stride 1 on.
    """
    for level in range(levels):
        stride = 2**level
        grid = np.arange(0, n, stride)
        ax.axhline(level, color=FAINT, linewidth=0.7, zorder=1)
        ax.plot(grid, np.full(len(grid), level), ".", color=FAINT, markersize=3, zorder=2)
        node, fraction = stencil(torch.tensor([x], dtype=torch.float64), stride)
        row, weight = node[0].numpy() * stride, bspline_weights(fraction)[0].numpy()
        inside = (row >= 0) & (row < n)
        ax.scatter(
            row[inside],
            np.full(inside.sum(), level),
            s=14 + 90 * weight[inside],
            color=LADDER.color,
            edgecolor="white",
            linewidth=0.8,
            zorder=3,
        )
    ax.set_yticks(range(levels), [str(2**level) for level in range(levels)])
    ax.set(xlim=(-0.02 * n, 1.02 * n - 1), ylim=(levels - 0.4, -0.6), xlabel="row", ylabel="stride")
    ax.grid(False)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)


Curves = Mapping[str, tuple[Role, Sequence[float], Sequence[float]]]


def loglog_cost(
    ax: Axes, measured: Curves, recorded: Curves | None = None, recorded_on: str = ""
) -> None:
    """Time per call against the number of rows: solid if measured in this run, dashed and hollow if
    recorded.

    Args:
        measured: name -> (role, sizes, seconds).
        recorded: the same for a run that was recorded elsewhere.
        recorded_on: its device and date, for instance ``"NVIDIA H200, 2026-02-03"``; it must be
            said.
    """
    if recorded and not recorded_on:
        raise ValueError("recorded times need recorded_on: the device and the date")
    for name, (role, sizes, seconds) in measured.items():
        ax.plot(sizes, np.asarray(seconds) * 1e3, color=role.color, marker=role.marker, label=name)
    for name, (role, sizes, seconds) in (recorded or {}).items():
        ax.plot(
            sizes,
            np.asarray(seconds) * 1e3,
            color=role.color,
            marker=role.marker,
            label=f"{name}, recorded",
            linestyle="--",
            linewidth=1.2,
            markerfacecolor="white",
        )
    ax.set(xscale="log", yscale="log", xlabel="rows n", ylabel="ms per call")
    if recorded:
        ax.set_title(f"dashed: recorded on {recorded_on}", fontweight="normal", color="#4a4f57")
    label_lines(ax)
