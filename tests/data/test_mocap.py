"""The loader of motion capture takes the file's form, and says what is wrong with another."""

import numpy as np
import pytest
from scipy.io import savemat

from fractal_lib.data import mocap

SHAPES = {"Xtr": (16, 300, 50), "Xval": (3, 300, 50), "Xtest": (4, 300, 50)}


@pytest.fixture(scope="module")
def arrays():
    generator = np.random.default_rng(0)
    return {name: generator.standard_normal(shape) for name, shape in SHAPES.items()}


def test_it_returns_what_the_file_holds(arrays, tmp_path):
    savemat(tmp_path / "walk.mat", arrays | {"u": np.eye(50)})
    found = mocap(str(tmp_path / "walk.mat"))
    for part, expected in zip(found, arrays.values(), strict=True):
        assert part.dtype == np.float64 and part.flags.c_contiguous
        np.testing.assert_array_equal(part, expected)
    assert (found.train.shape[0], found.validation.shape[0], found.test.shape[0]) == (16, 3, 4)


def test_other_numbers_become_float64(arrays, tmp_path):
    other = {"Xtr": arrays["Xtr"].astype(np.float32), "Xval": arrays["Xval"].astype(">f8")}
    savemat(tmp_path / "walk.mat", arrays | other)
    found = mocap(tmp_path / "walk.mat")
    assert {part.dtype for part in found} == {np.dtype(np.float64)}
    np.testing.assert_array_equal(found.train, other["Xtr"])


WRONG = {
    "no training set": ({"Xtr": None}, r"expected Xtr of shape \(16, 300, 50\) in .*, got no Xtr"),
    "fewer frames": ({"Xval": np.zeros((3, 299, 50))}, r"Xval .* of shape \(3, 299, 50\)"),
    "words": ({"Xtest": "walk"}, r"expected Xtest .*, got <U4"),
    "complex": ({"Xtest": np.zeros((4, 300, 50)) + 1j}, "complex128"),
    "NaN": ({"Xval": np.full((3, 300, 50), np.nan)}, "all finite, got NaN or infinity"),
}


@pytest.mark.parametrize(("change", "said"), WRONG.values(), ids=WRONG)
def test_another_form_is_refused_in_one_sentence(change, said, arrays, tmp_path):
    changed = {k: v for k, v in (arrays | change).items() if v is not None}
    savemat(tmp_path / "walk.mat", changed)
    with pytest.raises(ValueError, match=said) as error:
        mocap(tmp_path / "walk.mat")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"no MATLAB file", b"MATLAB 7.3 MAT-file" + b" " * 500])
def test_another_file_is_refused_in_one_sentence(content, tmp_path):
    (tmp_path / "walk.mat").write_bytes(content)
    with pytest.raises(ValueError, match="expected a MATLAB file with Xtr, Xval, Xtest, got") as e:
        mocap(tmp_path / "walk.mat")
    assert "\n" not in str(e.value)


def test_a_truncated_file_is_refused_in_one_sentence(arrays, tmp_path):
    savemat(tmp_path / "walk.mat", arrays)
    whole = (tmp_path / "walk.mat").read_bytes()
    (tmp_path / "walk.mat").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"expected (a MATLAB file|Xval)") as error:
        mocap(tmp_path / "walk.mat")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("place", ["nothing.mat", "."])
def test_no_file_is_told(place, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected a file mocap35.mat .* got no file at"):
        mocap(tmp_path / place)
