"""Motion capture: a person walks, fifty numbers a frame; from a file of the user's."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from fractal_lib.checks import optional

__all__ = ["GIVEN", "Mocap", "mocap"]

GIVEN = 3
"""Frames of a sequence that a forecast is given; the other 297 are its task."""
KEYS = {"Xtr": (16, 300, 50), "Xval": (3, 300, 50), "Xtest": (4, 300, 50)}


class Mocap(NamedTuple):
    """Walks of one person, (sequences, frames, channels) float64, as the file has them.

    Attributes:
        train: (16, 300, 50).
        validation: (3, 300, 50).
        test: (4, 300, 50).
    """

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def mocap(path: str | Path) -> Mocap:
    """Walks of subject 35 of the CMU motion capture data base: 23 sequences of 300 frames.

    The protocol of the papers: of a test sequence the first `GIVEN` frames are given, and the other
    297 are forecast. The figure is the mean square error over these frames, all channels and the
    four sequences, averaged over sampled paths. Whatever is chosen, is chosen on the validation
    sequences.

    Args:
        path: the file ``mocap35.mat``, in MATLAB's format, with arrays Xtr, Xval and Xtest. It is
            not a part of this library. Its numbers are angles of joints and the like, preprocessed
            and centred by those who made it.

    Returns:
        `Mocap`, in the file's own unit: 16 sequences to train on, 3 to choose by, 4 to be judged
        by.

    Raises:
        ImportError: if scipy is not installed.
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a MATLAB file, or holds other arrays, shapes or kinds of numbers.

    Complexity: O(1), the file has 2.8 MB. Source: the CMU Graphics Lab Motion Capture Database,
    mocap.cs.cmu.edu; chosen and preprocessed by Wang, Fleet and Hertzmann (2008), Gaussian process
    dynamical models for human motion; in this form and with this split by Yildiz, Heinonen and
    Lahdesmaki (2019), ODE2VAE, whose public code carries the file.

    >>> mocap("no/mocap35.mat")
    Traceback (most recent call last):
    ...
    FileNotFoundError: expected a file mocap35.mat with Xtr, Xval, Xtest, got no file at no/...
    """
    path = Path(path)
    names = ", ".join(KEYS)
    if not path.is_file():
        raise FileNotFoundError(f"expected a file mocap35.mat with {names}, got no file at {path}")
    loadmat = optional("scipy.io", "mocap()").loadmat
    try:
        found = loadmat(path, variable_names=list(KEYS))
    except Exception as error:  # of many kinds, as a file may be broken in many ways
        raise ValueError(
            f"expected a MATLAB file with {names}, got {path}, which scipy cannot read "
            f"({type(error).__name__})"
        ) from error
    return Mocap(*(_checked(found.get(name), name, path) for name in KEYS))


def _checked(array: object, name: str, path: Path) -> np.ndarray:
    """One of the file's arrays, in the machine's own order of bytes."""
    expected = f"expected {name} of shape {KEYS[name]} in {path}"
    if array is None:
        raise ValueError(f"{expected}, got no {name}")
    array = np.asarray(array)
    if array.shape != KEYS[name] or array.dtype.kind not in "iuf":
        raise ValueError(f"{expected}, got {array.dtype} of shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{expected}, all finite, got NaN or infinity")
    return np.ascontiguousarray(array, dtype=np.float64)
