"""The choice of a reader: its reads are that reader's, its bound holds, none is cheaper."""

import pytest
import torch

from fractal_lib.attention import (
    RBF,
    DenseAttention,
    Matern12,
    OriginalKernel,
    RationalQuadratic,
    choose_reader,
)

CASES = [
    (OriginalKernel(), {}),
    (OriginalKernel(), {"derivative": True, "gap": 5}),
    (RBF(30.0), {"queries": 1000}),
    (Matern12(3.0), {"tolerance": 0.001}),
    (RationalQuadratic(10.0), {"queries": 10_000}),
    (RationalQuadratic(1.0, alpha=0.5), {"queries": 10_000, "tolerance": 0.1}),
    (None, {}),
    (None, {"noisy": True}),
    (RBF(3.0), {"causal": True}),
]


@pytest.mark.parametrize(("kernel", "asked"), CASES)
def test_the_reads_are_those_of_the_reader_that_it_makes(kernel, asked):
    choice = choose_reader(kernel, 3000, **asked)
    made = choice.make()
    assert made.reads(torch.full((1, 1), 0.4), 3000).indices.shape[-1] == choice.reads
    assert choice.num_bytes(hidden=10) == 40 * choice.reads
    assert made.causal == asked.get("causal", False)


@pytest.mark.parametrize(("kernel", "asked"), CASES[:6])
def test_the_bound_is_what_was_asked_and_holds(kernel, asked):
    choice = choose_reader(kernel, 3000, **asked)
    assert choice.bound <= asked.get("tolerance", 0.01)
    values = torch.randn(1, 3000, 5).double()
    t = torch.rand(1, 50).double()
    off = choice.make()(values, t) - DenseAttention(kernel)(values, t)
    assert off.abs().max() <= choice.bound * values.abs().max() + 1e-12


def test_each_kernel_has_its_reader():
    named = {
        "window": choose_reader(OriginalKernel(), 3000),
        "multilevel": choose_reader(RationalQuadratic(10.0), 3000, queries=10_000),
        "dense": choose_reader(RationalQuadratic(1.0, alpha=0.5), 3000),
        "ladder": choose_reader(None, 3000),
    }
    assert {name: choice.name for name, choice in named.items()} == {n: n for n in named}


def test_preparation_pays_from_some_number_of_queries_on():
    kernel, n = RationalQuadratic(10.0), 3000
    few, many = (choose_reader(kernel, n, queries=q) for q in (1, 10_000))
    assert (few.name, many.name) == ("dense", "multilevel")
    even = many.prepared / (few.reads - many.reads)
    assert choose_reader(kernel, n, queries=int(even)).name == "dense"
    assert choose_reader(kernel, n, queries=int(even) + 1).name == "multilevel"


def test_what_is_asked_changes_the_answer():
    kernel = RBF(3.0)
    plain = choose_reader(kernel, 3000)
    smooth, gappy = (choose_reader(kernel, 3000, **a) for a in ({"derivative": True}, {"gap": 20}))
    assert plain.name == smooth.name == gappy.name == "window"
    assert plain.reads < smooth.reads and plain.reads < gappy.reads
    assert smooth.options["tail"] == 1e-9 and gappy.options["gap"] == 20
    uneven = choose_reader(kernel, 3000, queries=1000, irregular=True)
    assert uneven.name == "multilevel" and uneven.bound is None and uneven.make().takes_times
    assert choose_reader(None, 3000, gap=1).options == {"source": "pyramid"}
    assert choose_reader(None, 3000, irregular=True).make().takes_times


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        ({"n": 0}, ValueError),
        ({"queries": 0}, ValueError),
        ({"tolerance": 0}, ValueError),
        ({"gap": -1}, ValueError),
        ({"kernel": 3.0}, TypeError),
    ],
)
def test_what_is_not_as_said_is_refused(asked, error):
    with pytest.raises(error):
        choose_reader(**{"kernel": RBF(1.0), "n": 100} | asked)


def test_a_series_too_long_for_its_bounds_is_refused_and_the_ladder_takes_it():
    with pytest.raises(ValueError, match="n of at most 10000000"):
        choose_reader(RBF(3.0), 10**9)
    assert choose_reader(None, 10**9).reads == 4 * 30
