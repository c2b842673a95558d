"""The bar moves by one a step, shows where it is told to, and is never missed."""

import sys

import pytest

from fractal_lib.progress import progress_bar


def test_it_counts_from_where_a_run_goes_on(capsys):
    with progress_bar(5, "training", done=3) as step:
        step("loss 1.0")
        step()
    shown = capsys.readouterr().err
    assert "training" in shown and "3/5" in shown


@pytest.mark.parametrize("show", [False, True])
def test_without_tqdm_or_unasked_nothing_is_shown(show, capsys, monkeypatch):
    if show:
        monkeypatch.setitem(sys.modules, "tqdm", None)
    with progress_bar(2, "quiet", show=show) as step:
        assert step("words") is None and step() is None
    assert capsys.readouterr() == ("", "")


def test_an_error_inside_is_passed_on():
    def fail():
        with progress_bar(2, "failing") as step:
            step()
            raise KeyError("inside")

    with pytest.raises(KeyError, match="inside"):
        fail()
