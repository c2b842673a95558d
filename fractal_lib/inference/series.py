"""The doors of this room: what users bring as arrays of float64, or one sentence."""

from typing import Any

import numpy as np
from torch import Tensor

from fractal_lib.checks import as_mask

__all__ = ["as_array", "as_covariance", "as_flags", "as_series"]


def as_array(value: Any, name: str) -> np.ndarray:
    """Float64 from arrays, tensors of any kind and device, lists, pandas and numbers.

    Raises:
        TypeError: for what is not made of real numbers.

    >>> as_array([1, 0.1], "noise").tolist()
    [1.0, 0.1]
    """
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        value = (value.double() if value.is_floating_point() else value).numpy()
    try:
        array = np.asarray(value)
    except ValueError:
        raise TypeError(f"expected {name} as an array of numbers, got a ragged list") from None
    if array.dtype.kind not in "biuf":
        raise TypeError(
            f"expected {name} as an array of numbers, got {type(value).__name__} of {array.dtype}"
        )
    return array.astype(np.float64)


def as_flags(value: Any, name: str = "observed") -> np.ndarray:
    """Bool from arrays, tensors, lists and pandas. Raises: TypeError for another dtype.

    >>> as_flags([True, False]).tolist()
    [True, False]
    """
    return as_mask(value, name).cpu().numpy()


def as_covariance(value: Any, name: str, size: int) -> np.ndarray:
    """(size, size) float64, symmetric without negative eigenvalues, up to rounding.

    Raises:
        ValueError: for another shape, or what is no covariance.

    >>> as_covariance([[1.0, 2.0], [2.0, 1.0]], "Q", 2)
    Traceback (most recent call last):
    ...
    ValueError: expected Q as a covariance, got [[1.0, 2.0], [2.0, 1.0]]
    """
    array = as_array(value, name)
    if array.shape != (size, size):
        raise ValueError(f"expected {name} of shape {(size, size)}, got {array.shape}")
    if np.isfinite(array).all() and np.allclose(array, array.T):
        eigenvalues = np.linalg.eigvalsh(array)
        # a sum of products of float32 may be this much off
        if eigenvalues[0] >= -1e-6 * max(eigenvalues[-1], 0):
            return array
    raise ValueError(f"expected {name} as a covariance, got {array.tolist()}")


def as_series(values: Any, observed: Any) -> tuple[np.ndarray, np.ndarray]:
    """The values (B, n, X) with zeros where nothing is observed, and the mask (G, n), G = 1 if all
    share it.

    Raises:
        TypeError: for a mask that is not bool. ValueError: for shapes that do not fit, or an
            observed row that is not finite.

    >>> as_series(np.full((1, 2, 1), np.nan), [False, False])[0].tolist()
    [[[0.0], [0.0]]]
    """
    values, observed = as_array(values, "values"), as_flags(observed)
    shapes = values.shape[1:2], values.shape[:2]
    if values.ndim != 3 or not values.size or observed.shape not in shapes:
        raise ValueError(
            "expected values (B, n, X) and observed (n,) or (B, n) bool; got "
            f"{values.shape} and {observed.dtype} of shape {observed.shape}"
        )
    observed = np.atleast_2d(observed)
    values = np.where(observed[..., None], values, 0.0)
    if not np.isfinite(values).all():
        raise ValueError("expected finite values in every observed row, got NaN or infinity")
    return values, observed
