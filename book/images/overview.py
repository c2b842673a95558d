"""Draws overview.svg, the picture of the page before the chapters: `python
book/images/overview.py`.
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from ladder import save_card
from matplotlib.figure import Figure

from fractal_lib import RBF, DenseAttention
from fractal_lib.curves.splines import bspline_weights
from fractal_lib.data import ornstein_uhlenbeck
from fractal_lib.plots import DATA, FAINT, LADDER, OTHER, QUERY, use_style

STEPS = [
    ("1  a series", "noisy, with holes"),
    ("2  an encoder", "mixes each row with its neighbours"),
    ("3  values", "one row of numbers for each time"),
    ("4  attention at t", "a weighted mean of the rows near t"),
    ("5  a network", "mean and std of the hidden state at t"),
    ("6  the loss", "true to the prior, true to the series"),
]
N, DURATION, NOISE, T_QUERY = 33, 4.0, 0.25, 0.62


def draw_overview() -> Figure:
    """From a series to the loss, six steps one below the other: what attention at t is for."""
    path = ornstein_uhlenbeck(1, N, DURATION, 1.0, 1.0, noise=NOISE, seed=3)
    seen = path.observed[0, :, 0]
    there = torch.ones(N, dtype=torch.bool)
    there[12:16] = False
    time = torch.linspace(0, 1, N, dtype=torch.float64)
    every = torch.linspace(0, 1, 401, dtype=torch.float64)
    figure, axes = plt.subplots(
        6, 1, figsize=(4.3, 6.6), sharex=True, height_ratios=[1, 0.75, 0.75, 1, 1, 0.35]
    )
    for ax, (name, what) in zip(axes, STEPS, strict=True):
        ax.set_axis_off()
        ax.set_title(name, loc="left", fontsize=11, pad=5)
        ax.set_title(what, loc="right", fontsize=9, fontweight="normal", pad=5)
        if name[0] in "345":
            ax.axvline(T_QUERY, **QUERY.line, linewidth=1.4)
    axes[0].plot(time[there], seen[there], color=DATA.color, marker="o", markersize=4, linestyle="")
    weights = bspline_weights(torch.zeros(1, dtype=torch.float64))[0, :3]
    for row in range(N):  # an encoder with a reach of one row
        for reach in (-1, 0, 1):
            if 0 <= row + reach < N:
                width = 4 * float(weights[reach + 1])
                axes[1].plot(
                    time[[row + reach, row]], [1, 0], color=FAINT, linewidth=width, zorder=1
                )
    kernel = RBF(1.5)
    reader = DenseAttention(kernel)
    values = torch.stack([torch.where(there, seen, 0), seen.cos()], -1)
    values = reader(values[None], time[None], observed=there)[0]
    axes[2].imshow(
        values.T,
        extent=(-0.5 / (N - 1), 1 + 0.5 / (N - 1), 0, 1),
        aspect="auto",
        cmap="Blues",
        vmin=-2,
        vmax=2,
    )
    axes[2].vlines((torch.arange(N + 1) - 0.5) / (N - 1), 0, 1, color="white", linewidth=1)
    reads = reader.reads(torch.tensor([[T_QUERY]], dtype=torch.float64), N).weights[0, 0]
    axes[3].vlines(time, 0, reads, color=LADDER.color, linewidth=3)
    axes[3].axhline(0, color=FAINT, linewidth=1)
    # what a trained network would say: the exact mean and std, known for this process
    cov = torch.exp(-DURATION * (time[there, None] - time[there]).abs())
    cross = torch.exp(-DURATION * (every[:, None] - time[there]).abs())
    gain = cross @ torch.linalg.inv(cov + NOISE**2 * torch.eye(len(cov), dtype=cov.dtype))
    mean, std = gain @ seen[there], (1 - (gain * cross).sum(1)).sqrt()
    axes[4].fill_between(every, mean - std, mean + std, color=LADDER.color, alpha=0.25, linewidth=0)
    axes[4].plot(every, mean, **LADDER.line)
    axes[5].text(0, 0.3, "$-$ELBO  =  initial KL + path KL + nll", fontsize=11, color=OTHER.color)
    axes[5].set(ylim=(0, 1))
    return figure


if __name__ == "__main__":
    plt.switch_backend("agg")
    use_style()
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_suffix(".svg")
    save_card(draw_overview(), path, "From a series to a loss")
