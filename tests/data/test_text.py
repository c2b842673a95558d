"""Python's own text: always the same, and drawn fairly."""

import pytest
import torch

from fractal_lib.data.text import byte_batch, docstrings


def test_it_is_documentation():
    text = docstrings()
    assert text == docstrings() and text.decode().isprintable() is False  # it has lines
    assert text.count(b"\n\n") > 1000 and b"def " not in text[:100]


def test_every_place_is_drawn_and_no_other():
    text = bytes(range(20))
    rows = byte_batch(text, 4000, 5, torch.Generator().manual_seed(0))
    assert rows.dtype == torch.int64 and set(rows[:, 0].tolist()) == set(range(16))
    assert (rows.diff(dim=1) == 1).all()
    expected = 4000 / 16
    counts = torch.bincount(rows[:, 0], minlength=16)
    assert ((counts - expected).abs() < 5 * expected**0.5).all()  # five standard errors


@pytest.mark.parametrize(("batch", "length"), [(0, 3), (1, 0), (1, 21)])
def test_what_cannot_be_drawn_is_refused(batch, length):
    with pytest.raises(ValueError, match=r"expected (batch|length) (of at least|from) 1"):
        byte_batch(bytes(20), batch, length, torch.Generator())
