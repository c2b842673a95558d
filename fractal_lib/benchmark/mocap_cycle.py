"""A walk as one closed cycle that is run through at one speed: what the record ``mocap`` forecasts
with.

Three frames tell the phase and nearly nothing of the speed: a forecast is a mean over both.
"""

from typing import NamedTuple

import numpy as np

__all__ = ["Cycle", "fit_cycle"]

HARMONICS = 6
PHASES, SPEEDS, REACH = 180, 41, 2.5  # points of the grid, and its half width in std of log speed


class Cycle(NamedTuple):
    """x_t = c(phase + t speed) + noise, c a Fourier series; log speed ~ N(mean, std^2).

    Attributes:
        coefficients: (2 HARMONICS + 1, X), of 1, cos, sin, cos 2, sin 2 and so on.
        noise: (X,) std, of no channel less than the mean of all.
        log_speed: mean and std, in radians a frame.
        phases, speeds: (S,), of the sequences that it was fitted to.
    """

    coefficients: np.ndarray
    noise: np.ndarray
    log_speed: tuple[float, float]
    phases: np.ndarray
    speeds: np.ndarray

    def at(self, angle: np.ndarray) -> np.ndarray:
        """c (..., X) at angles (...)."""
        return fourier(angle) @ self.coefficients

    def posterior(self, given: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Phases (P,), log speeds (W,) and the probability (P, W) of each pair given some frames
        (GIVEN, X).

        What the cycle leaves of neighbouring frames is nearly the same, so that all of them count
        as one.
        """
        phases = np.linspace(0, 2 * np.pi, PHASES, endpoint=False)
        grid = np.linspace(-REACH, REACH, SPEEDS)
        log_speeds = self.log_speed[0] + self.log_speed[1] * grid
        angle = phases[:, None, None] + np.exp(log_speeds)[:, None] * np.arange(len(given))
        square = ((given - self.at(angle)) / self.noise) ** 2  # (P, W, GIVEN, X)
        score = -square.mean(2).sum(-1) / 2 - grid**2 / 2
        weight = np.exp(score - score.max())
        return phases, log_speeds, weight / weight.sum()

    def paths(
        self, given: np.ndarray, frames: int, samples: int, seed: int | list[int]
    ) -> np.ndarray:
        """Paths (samples, frames, X) that begin with the frames given (GIVEN, X).

        Each is centred over its frames, as every sequence of the file is.
        """
        phases, log_speeds, weight = self.posterior(given)
        rng = np.random.default_rng(seed)
        at = np.unravel_index(rng.choice(weight.size, samples, p=weight.ravel()), weight.shape)
        # within the cells of the grid
        phase = phases[at[0]] + (rng.random(samples) - 0.5) * 2 * np.pi / PHASES
        width = self.log_speed[1] * 2 * REACH / (SPEEDS - 1)
        speed = np.exp(log_speeds[at[1]] + (rng.random(samples) - 0.5) * width)
        path = self.at(phase[:, None] + speed[:, None] * np.arange(frames))
        return path - path.mean(1, keepdims=True)


def fit_cycle(walks: np.ndarray, steps: int = 40) -> Cycle:
    """By least squares, walks (S, N, X): the series, and phase and speed of every walk, in turn.

    It begins with the angle in the plane of the first two principal components, whose speed is near
    that of the walk if this is a cycle. Complexity: O(steps S N X HARMONICS).
    """
    time, flat = np.arange(walks.shape[1]), walks.reshape(-1, walks.shape[2])
    plane = np.linalg.svd(flat - flat.mean(0), full_matrices=False)[2][:2]
    angle = np.unwrap(np.arctan2(*(walks @ plane.T).transpose(2, 0, 1)[::-1]), axis=1)  # (S, N)
    angle *= np.sign((angle[:, -1] - angle[:, 0]).sum())
    phases, speeds = np.stack([np.polyfit(time, each, 1)[::-1] for each in angle]).T
    for _ in range(steps):
        angle = phases[:, None] + speeds[:, None] * time
        features = fourier(angle).reshape(len(flat), -1)
        coefficients = np.linalg.lstsq(features, flat, rcond=None)[0]
        rest = walks - fourier(angle) @ coefficients
        slope = fourier(angle, slope=True) @ coefficients  # (S, N, X)
        # of Gauss and Newton: two unknowns a walk, by (slope, slope t)
        square, along = (slope**2).sum(2), (slope * rest).sum(2)  # (S, N)
        moments = np.stack([(square * time**k).sum(1) for k in range(3)], 1)
        matrix = moments[:, [[0, 1], [1, 2]]]  # (S, 2, 2)
        target = np.stack([along.sum(1), (along * time).sum(1)], 1)
        step = np.linalg.solve(matrix, target[..., None])[..., 0]
        phases, speeds = phases + step[:, 0], speeds + step[:, 1]
    log_speed = np.log(np.abs(speeds))
    spread = float(log_speed.mean()), float(log_speed.std(ddof=1))
    noise = rest.std((0, 1))
    # four channels do not move in training: where they do later, that tells nothing of the phase
    noise = np.maximum(noise, noise.mean())
    return Cycle(coefficients, noise, spread, phases, speeds)


def fourier(angle: np.ndarray, slope: bool = False) -> np.ndarray:
    """1, cos, sin, cos 2, ... (..., 2 HARMONICS + 1) of angles (...), or their derivatives."""
    angle = angle[..., None] * np.arange(1, HARMONICS + 1)
    order = np.arange(1, HARMONICS + 1)
    cos, sin = np.cos(angle), np.sin(angle)
    waves = np.stack([-order * sin, order * cos] if slope else [cos, sin], -1)
    constant = np.zeros_like if slope else np.ones_like
    flat = waves.reshape(*waves.shape[:-2], -1)
    return np.concatenate([constant(flat[..., :1]), flat], -1)
