"""Smoothers to compare with: Kalman's, on a grid, with the equations known; and scores."""

from fractal_lib.inference.extended import gaussian_smoother, lorenz_moments
from fractal_lib.inference.grid import grid_smoother
from fractal_lib.inference.linear import Smoothed, kalman_smoother
from fractal_lib.inference.metrics import scores

__all__ = [
    "Smoothed",
    "gaussian_smoother",
    "grid_smoother",
    "kalman_smoother",
    "lorenz_moments",
    "scores",
]
