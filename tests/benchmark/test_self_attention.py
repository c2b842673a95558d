"""The benchmark of self-attention tells errors, memory and refusals rightly; what it says of time
is not tested.
"""

import sys
from functools import partial

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention as full

from fractal_lib import fractal_self_attention
from fractal_lib.benchmark import self_attention
from fractal_lib.benchmark.masks import benchmark_masks, masks
from fractal_lib.benchmark.peak import peak_memory
from fractal_lib.benchmark.self_attention import (
    KEYS,
    PASSES,
    Shape,
    benchmark_self_attention,
    draw,
    relative_error,
    rivals,
    slopes,
)
from fractal_lib.benchmark.window_rivals import flex_window, local_window

SHAPE = Shape(batch=1, heads=2, width=8, near=8, cells=4)
TINY = dict(heads=2, width=8, near=8, cells=4, seconds=0.003, memory=False, progress=False)


@pytest.mark.parametrize("keys", KEYS)
@pytest.mark.parametrize("causal", [False, True])
def test_errors_are_those_of_a_float64_reference(keys, causal):
    q, k, v = draw(60, SHAPE, keys)  # 60 rows: all of them are looked at
    call = partial(fractal_self_attention, near=8, cells=4, is_causal=causal)
    exact = full(q.double(), k.double(), v.double(), is_causal=causal)
    expected = (call(q, k, v) - exact).norm() / exact.norm()
    assert relative_error(call, (q, k, v), causal) == pytest.approx(expected.item(), rel=1e-6)
    assert expected > 1e-4
    assert relative_error(partial(full, is_causal=causal), (q, k, v), causal) < 1e-6


def test_records_are_complete_and_full_attention_stops_where_it_is_told(capsys):
    records = benchmark_self_attention([20, 100], full_to=50, **TINY)["rows"]
    assert [(r["n"], r["method"], r["pass"]) for r in records] == [
        (n, name, kind) for n in (20, 100) for name in rivals(SHAPE) for kind in PASSES
    ]
    for r in records:
        left_out = r["n"] == 100 and r["method"].startswith("full")
        assert (r["seconds"] is None) == (r["error"] is None) == bool(r["note"]) == left_out
        assert (r["speedup"] is None) == (r["n"] == 100)
        assert r["peak"] is None
    small = {r["method"]: r["error"]["random"] for r in records if r["n"] == 20}
    assert small["full"] < small["fractal"] < small["window"]
    printed = capsys.readouterr().out
    assert printed.count("left out above n = 50") == 4
    assert all(name in printed for name in rivals(SHAPE))


def test_the_backward_pass_is_that_of_all_three_inputs():
    inputs = draw(30, SHAPE)
    grads = self_attention._pass(full, "forward + backward")(*inputs)
    leaves = [x.clone().requires_grad_() for x in inputs]
    (full(*leaves) * inputs[2]).sum().backward()
    for grad, leaf in zip(grads, leaves, strict=True):
        torch.testing.assert_close(grad, leaf.grad)
    assert not self_attention._pass(full, "forward")(*leaves).requires_grad


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_the_window_of_flex_attention_is_ours():
    q, k, v = draw(200, SHAPE)
    ours = fractal_self_attention(q, k, v, near=24, cells=0, is_causal=True)
    torch.testing.assert_close(flex_window(24, compiled=False)(q, k, v), ours)


def test_the_window_of_local_attention_is_ours():
    pytest.importorskip("local_attention")
    q, k, v = draw(200, SHAPE)
    ours = fractal_self_attention(q, k, v, near=24, cells=0, is_causal=True)
    torch.testing.assert_close(local_window(24)(q, k, v), ours)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_peak_memory_sees_a_matrix_that_is_not_kept():
    """2048 x 2048 float32 numbers stand for a while, and the result is 16 kB."""
    peak = peak_memory(partial(partial, _row_sums, torch.ones(2048, 2)))
    assert 2048**2 * 4 <= peak < 2048**2 * 4 + 2**22


def _row_sums(x):
    return (x @ x.mT).sum(-1)


def test_slopes_are_fitted_from_the_least_size_on():
    records = [
        {
            "n": n,
            "method": "m",
            "pass": "p",
            "seconds": None if n == 9000 else 1.0 if n < 4096 else n**1.5,
        }
        for n in (100, 5000, 9000, 20_000)
    ]
    assert slopes(records) == {"m: p": pytest.approx(1.5)}
    assert slopes(records, least=10_000) == {}


def test_masks_are_those_of_the_curves_at_any_size():
    for n in (1, 100, 4096):
        zero, last = torch.tensor(0), torch.tensor(n - 1)
        for name, mask_mod in masks(n).items():
            assert mask_mod(zero, zero, last, last), name


@pytest.mark.parametrize(
    "bad", [{"sizes": [0]}, {"sizes": [9], "threads": 0}, {"sizes": [9], "seconds": 0.0}]
)
def test_bad_numbers_are_refused(bad):
    for benchmark in (benchmark_self_attention, benchmark_masks):
        with pytest.raises(ValueError, match="must be positive"):
            benchmark(**bad)


def test_threads_are_given_back():
    before = torch.get_num_threads()
    # and nothing is worked out while there are two: they would wait for a core
    torch.set_num_threads(before + 1)
    try:
        benchmark_self_attention([5], threads=before, **TINY)
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)
