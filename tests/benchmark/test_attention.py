"""The benchmark tells errors and refusals rightly. What it says of time is not tested: that is for
people to read.
"""

import sys
from functools import partial

import pytest
import torch

from fractal_lib import DenseAttention
from fractal_lib.benchmark import benchmark_attention_methods, benchmark_heads
from fractal_lib.benchmark.harness import draw, run
from fractal_lib.benchmark.heads import PASSES, heads
from fractal_lib.benchmark.methods import (
    COPY,
    GATHER,
    Method,
    as_it_is,
    methods,
    reference,
    with_slope,
)
from fractal_lib.benchmark.products import dense_bmm, sdpa_with_bias, sketch, sketch_fixed
from fractal_lib.benchmark.pyramid_cost import break_even, pyramid_cost
from fractal_lib.progress import progress_bar


def tiny(*sizes, **settings):
    return benchmark_attention_methods(
        sizes, batch=3, hidden=4, seconds=0.003, queries=2, progress=False, **settings
    )


def by_name(records, n, form="eager"):
    return {r["method"]: r for r in records if (r["n"], r["form"]) == (n, form)}


def test_errors_are_those_of_a_float64_reference(capsys):
    sizes = (1, 2, 3, 63, 100, 257)
    records = tiny(*sizes)
    for n in sizes:
        rows, (t, _) = draw(n, 3, 4, "cpu", 2)
        exact = DenseAttention()(rows.double(), t)[:, 0]
        found = by_name(records, n)
        assert found["dense bmm"]["error"] == (dense_bmm(rows, t) - exact).abs().max().item()
        assert (
            found["sketch, shapes fixed"]["error"]
            == (sketch_fixed(rows, t) - exact).abs().max().item()
        )
        for name in ("window", "ladder, given kernel"):
            assert found[name]["error"] <= found[name]["bound"] < 1e-3, (n, name)
    # these two have other kernels, and the column says so
    assert by_name(records, 257)["sketch, shapes fixed"]["error"] > 0.1
    assert by_name(records, 257)["ladder, fitted scales"]["error"] > 0.01
    printed = capsys.readouterr().out
    assert all(r["method"] in printed for r in records)


def test_the_sketch_is_kept_as_it_was_written_and_its_shape_is_told():
    rows, (t, _) = draw(10, 3, 4, "cpu", 2)
    assert sketch(rows, t).shape == (3, 10, 4)  # the sum ran over the batch
    weights = torch.softmax(-((torch.linspace(0, 1, 10) - t) ** 2) * 10, dim=-1)  # (B, n)
    torch.testing.assert_close(sketch(rows, t), weights.unsqueeze(-1) * rows.sum(0))
    torch.testing.assert_close(sketch_fixed(rows, t), torch.einsum("bn,bnh->bh", weights, rows))
    record = by_name(tiny(10), 10)["sketch, as written"]
    assert record["error"] is None
    assert record["note"] == "returns (3, 10, 4)"


def test_reference_is_dense_attention_in_float64():
    rows, (t, _) = draw(50, 3, 4, "cpu", 2)
    torch.testing.assert_close(
        reference(rows, t), DenseAttention()(rows.double(), t)[:, 0], rtol=0, atol=1e-15
    )


def test_the_bare_gather_copies_the_rows_that_the_ladder_reads():
    rows, queries = draw(100, 3, 4, "cpu", 2)
    rivals = {m.name: m for m in methods(rows, queries)}
    ladder, gather = rivals["ladder, fitted scales"], rivals["bare gather of its rows"]
    picked = gather.call(gather.build(rows), gather.queries[1]).view(3, ladder.reads, 4)
    assert ladder.reads == gather.reads == 4 * 7  # strides 1 to 64
    for b in range(3):
        assert all((rows[b] == row).all(-1).any() for row in picked[b])


@pytest.mark.filterwarnings("default")  # the compiler's own deprecations are not ours
def test_compiled_forms_stand_beside_the_eager_ones(monkeypatch):
    # the graphs, not the code made of them: that is minutes, and other tests have it
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    records = tiny(64, compile=True)
    eager, compiled = by_name(records, 64), by_name(records, 64, "compiled")
    assert eager.keys() - {COPY} == compiled.keys()
    assert eager["dense bmm"]["speedup"] == 1
    assert (
        compiled["window"]["speedup"]
        == eager["dense bmm"]["seconds"] / compiled["window"]["seconds"]
    )
    assert compiled["window"]["error"] < 2e-6


@pytest.mark.filterwarnings("default")  # the compiler's own deprecations are not ours
def test_as_many_methods_as_there_are_can_be_compiled(monkeypatch, capsys):
    """The compiler keeps eight variants of one code, and these are closures of one."""
    settings = (1, 2, "cpu", True, 1, 1e-3, 1, False)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))  # for time

    def make(rows, queries):
        for i in range(12):
            module = torch.nn.Linear(1, 1, bias=i > 0)
            call = lambda rows, t, module=module, i=i: module(t) + i + 0 * rows[:, 0]  # noqa: E731
            yield Method(f"{i}", 0, 0, 0, as_it_is, closure(call), queries, base="0")

    def closure(call):
        return lambda rows, t: call(rows, t)

    records = run(make, [3], *settings)
    assert [r["form"] for r in records] == ["eager", "compiled"] * 12
    assert all(r["seconds"] for r in records)


def test_what_does_not_fit_is_refused_or_left_out(monkeypatch, capsys):
    with pytest.raises(
        MemoryError, match="1000000000000 rows .* GiB are free: leave this size out"
    ):
        tiny(10**12)
    # enough for the 4800 bytes of the rows, not for a second copy and weights, nor for a pyramid
    free = 9_000
    monkeypatch.setattr("fractal_lib.benchmark.harness.free_memory", lambda device: free)
    found = by_name(tiny(100), 100)
    for name in ("sketch, as written", "sketch, shapes fixed", "ladder, given kernel"):
        assert found[name]["seconds"] is found[name]["error"] is None
        assert found[name]["note"].startswith("needs")
    assert found["window"]["seconds"] > 0
    assert found["window"]["note"] == "no memory for the float64 reference"


def test_heads_are_measured_against_themselves_in_float64(capsys):
    settings = {"batch": 2, "hidden": 4, "seconds": 0.003, "queries": 2, "progress": False}
    records = benchmark_heads([1, 70], **settings)
    assert {(r["head"], r["pass"]) for r in records} == {(h, p) for h in heads(4) for p in PASSES}
    for r in records:
        assert r["seconds"] > 0
        # sums of some ten float32 roundings of numbers up to the largest, and of slopes n times as
        # large, scaled down
        assert r["error"] < 1e-4, r
    assert {r["reads"] for r in records if (r["head"], r["n"]) == ("combined", 70)} == {
        4 * 7 + 25 + 4 * 7
    }


@pytest.mark.parametrize(
    "bad", [{"sizes": [0]}, {"sizes": [4], "batch": 0}, {"sizes": [4], "seconds": 0.0}]
)
def test_bad_numbers_are_refused(bad):
    with pytest.raises(ValueError, match="must be positive"):
        benchmark_attention_methods(progress=False, **bad)


@pytest.mark.parametrize("installed", [True, False], ids=["tqdm", "without tqdm"])
def test_progress_is_shown_on_stderr(installed, monkeypatch, capsys):
    if not installed:
        monkeypatch.setitem(sys.modules, "tqdm", None)
    with progress_bar(2, "n = 7", show=True) as step:
        step("")
        step("")
    shown = capsys.readouterr()
    assert ("n = 7" in shown.err and "/2" in shown.err) == installed
    assert shown.out == ""


def test_the_bias_of_sdpa_is_the_original_kernel():
    rows, (t, _) = draw(50, 3, 4, "cpu", 2)
    torch.testing.assert_close(sdpa_with_bias(rows, t), dense_bmm(rows, t))


def test_a_slope_is_that_of_central_differences():
    rows, (t, _) = draw(50, 3, 4, "cpu", 2)
    rows, t, step = rows.double(), t.double(), 1e-6
    rivals = {m.name: m for m in methods(rows, [t], ["window", "combined"], slope=True)}
    assert list(rivals) == ["window", "combined"]  # those that were asked for
    plain = {m.name: m for m in methods(rows, [t])}
    for name, method in rivals.items():
        call, context = plain[name].call, method.build(rows)
        central = (call(context, t + step) - call(context, t - step)) / (2 * step)
        both = method.call(context, t)
        torch.testing.assert_close(both[:, :4], call(context, t))
        torch.testing.assert_close(both[:, 4:], central / 50, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(  # the reference too, whose errors it tells
        method.exact(rows, t), with_slope(lambda r, s: DenseAttention()(r, s)[:, 0])(rows, t)
    )


def test_rows_in_half_precision_err_by_what_is_promised(capsys):
    found = by_name(tiny(200, dtype="bfloat16"), 200)
    for name in ("window", "ladder, given kernel", "ladder, given kernel, 4 cells"):
        assert 1e-4 < found[name]["error"] <= found[name]["bound"], name
    assert by_name(tiny(200, only=["window"]), 200).keys() == {"window"}


def test_a_pyramid_pays_from_as_many_queries_on_as_its_building_takes():
    rows = pyramid_cost([40], batch=2, hidden=3, seconds=0.003, progress=False)
    took = {row["method"]: row["seconds"] for row in rows}
    (build,) = [row for row in rows if "break_even" in row]
    pays = took["dense"] > took["query"]
    assert build["method"] == "build" and (build["break_even"] is None) == (not pays)
    assert break_even(took["build"], 1.0, 2.0) == took["build"]


def test_distinct_rows_are_those_whose_weights_move_the_result():
    rows, queries = draw(500, 3, 500, "cpu", 1)
    rows = torch.eye(500).expand(3, 500, 500)  # so that a result is its rows' weights
    for method in methods(rows, queries):
        if method.distinct is None:
            continue
        context = method.build(rows)
        if method.name in ("window", "ladder, fitted scales", "Julia, c = -6"):
            read = (method.call(context, queries[0]) != 0).sum(-1).double().mean().item()
            assert read <= method.distinct <= method.reads
            assert method.distinct - read < 4  # a weight may round to 0


def test_any_few_methods_can_be_timed_alone(capsys):
    found = tiny(40, only=["window", GATHER])
    assert {r["method"] for r in found} == {"window", GATHER}
    assert found[0]["error"] < 1e-6 and found[-1]["note"].startswith("returns")
    assert all(r["error"] is None for r in tiny(40, only=[GATHER]))
