"""Pictures that ship inside installed packages: a slice of a head, a landscape, written digits."""

import numpy as np

from fractal_lib.checks import optional

__all__ = ["digits", "elevation", "mri"]


def mri() -> np.ndarray:
    """One slice of a magnetic resonance image of a human head.

    Returns:
        (256, 256) float64, the signal as the scanner stored it, whole numbers from 0 to 215; row 0
        is the top.

    Raises:
        ImportError: if matplotlib, which carries the data, is not installed.

    Source: ``s1045.ima.gz`` of matplotlib's sample data. Complexity: O(1).

    >>> mri().shape, float(mri().max())
    ((256, 256), 215.0)
    """
    with _sample("mri", "s1045.ima.gz") as file:
        return np.frombuffer(file.read(), dtype=">u2").reshape(256, 256).astype(np.float64)


def elevation() -> np.ndarray:
    """Heights of the land around Jacksboro, Tennessee, on a grid of 3 seconds of arc: not a power
    of two.

    Returns:
        (344, 403) float64, metres above sea level, whole numbers from 236 to 1076; row 0 is the
        northern edge.

    Raises:
        ImportError: if matplotlib, which carries the data, is not installed.

    Source: ``jacksboro_fault_dem.npz`` of matplotlib's sample data, a digital elevation model with
    cells of 1/1200 degree, between 84.41 and 84.08 degrees west, 36.45 and 36.73 north. Complexity:
    O(1).

    >>> elevation().shape, float(elevation().min())
    ((344, 403), 236.0)
    """
    with _sample("elevation", "jacksboro_fault_dem.npz") as file:
        return file["elevation"].astype(np.float64)


def digits() -> tuple[np.ndarray, np.ndarray]:
    """Handwritten digits, 8 x 8 cells each.

    Returns:
        images: (1797, 8, 8) float64, ink from 0 to 16.
        labels: (1797,) int64, 0 to 9.

    Raises:
        ImportError: if scikit-learn, which carries the data, is not installed.

    Source: E. Alpaydin and C. Kaynak (1998), Optical Recognition of Handwritten Digits, UCI Machine
    Learning Repository, https://doi.org/10.24432/C50P49; the test part, as kept by
    ``sklearn.datasets.load_digits``. Complexity: O(1).

    >>> images, labels = digits()
    >>> images.shape, labels[:3]
    ((1797, 8, 8), array([0, 1, 2]))
    """
    source = optional("sklearn.datasets", "digits()").load_digits()
    return source.images.astype(np.float64), source.target.astype(np.int64)


def _sample(name: str, file: str):
    return optional("matplotlib.cbook", f"{name}()").get_sample_data(file)
