"""Smoothers to compare with: Kalman's, on a grid, with the equations known; and scores."""

from fractal_lib.inference.autoregression import (
    Autoregression,
    fit_autoregression,
    smooth_autoregression,
)
from fractal_lib.inference.extended import gaussian_smoother, lorenz_moments
from fractal_lib.inference.grid import grid_smoother
from fractal_lib.inference.linear import Smoothed, kalman_smoother
from fractal_lib.inference.metrics import crps_samples, sample_scores, scores

__all__ = [
    "Autoregression",
    "Smoothed",
    "crps_samples",
    "fit_autoregression",
    "gaussian_smoother",
    "grid_smoother",
    "kalman_smoother",
    "lorenz_moments",
    "sample_scores",
    "scores",
    "smooth_autoregression",
]
