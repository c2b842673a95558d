"""The pictures are the ones the book describes, the right way up and in the right byte order."""

import sys

import numpy as np
import pytest

from fractal_lib.data import digits, elevation, mri


def roughness(image):
    return np.abs(np.diff(image, axis=-1)).mean() / image.std()


def test_the_slice_of_a_head():
    image = mri()
    assert image.shape == (256, 256) and image.dtype == np.float64
    # read in the wrong byte order it would be 256 times as much
    assert image.min() == 0 and image.max() == 215
    assert (image == image.round()).all()
    # air in the corner, a head in the middle
    assert image[:8, :8].max() < 40 < image[100:150, 100:150].mean()
    assert roughness(image) < 0.2


def test_the_landscape():
    heights = elevation()
    assert heights.shape == (344, 403) and heights.dtype == np.float64
    assert (heights.min(), heights.max()) == (236, 1076)
    assert roughness(heights) < 0.1


def test_digits_are_digits():
    images, labels = digits()
    assert images.shape == (1797, 8, 8) and images.dtype == np.float64
    assert labels.shape == (1797,) and labels.dtype == np.int64
    assert images.min() == 0 and images.max() == 16
    assert set(labels) == set(range(10))
    zero, one = (images[labels == k].mean(0) for k in (0, 1))
    # a hole in the middle of 0, ink in that of 1
    assert zero[3:5, 3:5].mean() < 2 < 10 < one[3:5, 3:5].mean()


@pytest.mark.parametrize(
    ("load", "module", "package"),
    [
        (mri, "matplotlib.cbook", "matplotlib"),
        (elevation, "matplotlib.cbook", "matplotlib"),
        (digits, "sklearn.datasets", "scikit-learn"),
    ],
)
def test_without_its_package_it_says_what_to_install(load, module, package, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=f"needs {package}: pip install"):
        load()
