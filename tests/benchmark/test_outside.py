"""Rivals by packages that no other extra brings: each does what it is said to do, or its row says
why it is not there.
"""

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention as full

from fractal_lib.benchmark import CASES, celerite_rivals
from fractal_lib.benchmark.harness import benchmark_attention_methods, draw
from fractal_lib.benchmark.hierarchy_rival import hierarchical
from fractal_lib.benchmark.keops import keops
from fractal_lib.benchmark.methods import dense_bmm
from fractal_lib.benchmark.record import add_to
from fractal_lib.benchmark.self_attention import PASSES, Shape, benchmark_self_attention
from fractal_lib.benchmark.self_attention import draw as draw_heads

SETTINGS = {
    "co2-rivals": {"seeds": [0], "years": [1999], "weeks": 200},
    "glucose-rivals": {"seeds": [0], "readings": 800},
}
TINY = dict(heads=2, width=8, near=8, cells=4, seconds=0.003, memory=False, progress=False)


@pytest.fixture
def without(monkeypatch):
    """None of the packages can be imported."""
    for name in ("celerite2", "pykeops", "h_transformer_1d", "local_attention"):
        monkeypatch.setitem(__import__("sys").modules, name, None)


# ---- celerite2 -----------------------------------------------------------------------------------


def test_the_process_is_the_dense_one_at_the_parameters_that_it_finds():
    celerite2 = pytest.importorskip("celerite2")
    generator = np.random.default_rng(0)
    t = np.sort(generator.uniform(0, 60, 80))
    y = 5 + np.sin(t / 4) + 0.2 * generator.standard_normal(80)
    asked = np.linspace(-2, 62, 33)

    def kernel(terms, p):
        return terms.SHOTerm(sigma=p[0], rho=p[1], Q=0.7)

    mean, std, more = celerite_rivals.celerite_process(t, y, asked, kernel, [1.0, 10.0, 0.5], 0.01)
    sigma, rho, noise = more["parameters"]
    assert more["converged"] and 0.1 < noise < 0.3
    # by the definition, with matrices
    value = celerite2.terms.SHOTerm(sigma=sigma, rho=rho, Q=0.7).get_value
    cov = value(np.abs(t[:, None] - t)) + (noise**2 + 1e-4) * np.eye(80)
    cross = value(np.abs(asked[:, None] - t))
    exact = y.mean() + cross @ np.linalg.solve(cov, y - y.mean())
    variance = sigma**2 - np.sum(cross * np.linalg.solve(cov, cross.T).T, 1) + noise**2 + 1e-4
    np.testing.assert_allclose(mean, exact, rtol=1e-4)
    np.testing.assert_allclose(std, variance**0.5, rtol=1e-3)
    # and no parameter is better than what the search found
    likelihood = -more["nll_a_row"] * 80
    for scale in (0.8, 1.25):
        for changed in ((scale, 1, 1), (1, scale, 1), (1, 1, scale)):
            s, r, e = np.array(changed) * (sigma, rho, noise)
            gp = celerite2.GaussianProcess(kernel(celerite2.terms, (s, r)), mean=y.mean())
            gp.compute(t, diag=np.full(80, e**2 + 1e-4))
            assert gp.log_likelihood(y) < likelihood


@pytest.mark.parametrize("name", SETTINGS)
def test_celerite_is_judged_like_the_others(name, monkeypatch, capsys):
    pytest.importorskip("celerite2")
    monkeypatch.setattr(celerite_rivals, "ENTRIES", 20_000)  # in several parts
    only = ["linear interpolation", "celerite2"]
    payload = CASES[name].run(only=only, progress=False, **SETTINGS[name])
    line, process = payload["runs"]
    assert line["report"].keys() == process["report"].keys()
    for part, scored in process["report"].items():
        assert scored["rmse"] < 1.3 * line["report"][part]["rmse"], part
        assert scored["coverage"] > 0.6
    assert payload["versions"].keys() == {"celerite2"}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_rival_that_is_missing_says_so(name, without, capsys):
    only = ["linear interpolation", "celerite2"]
    payload = CASES[name].run(only=only, progress=False, **SETTINGS[name])
    line, process = payload["runs"]
    assert "report" in line and "report" not in process
    assert process["note"] == "this rival needs celerite2: pip install celerite2"
    assert process["note"] in capsys.readouterr().out
    assert payload["versions"] == {}
    # and what was once recorded of it stays
    old = {"date": "then", "device": "CPU", "runs": [process | {"note": "", "cpu_s": 3.0}]}
    kept = {run["rival"]: run for run in add_to(old, payload)["runs"]}
    assert kept["celerite2"]["cpu_s"] == 3.0 and "report" in kept["linear interpolation"]


# ---- h-transformer-1d ----------------------------------------------------------------------------


def test_the_hierarchy_reads_what_it_is_given():
    pytest.importorskip("h_transformer_1d")
    q, k, v = draw_heads(64, Shape(2, 3, 8, 8, 4))
    found = hierarchical(8, causal=True)(q, k, v)
    assert found.shape == v.shape
    exact = full(q, k, v, is_causal=True)
    torch.testing.assert_close(found[:, :, :8], exact[:, :, :8])  # all of it in one block
    assert not torch.allclose(found[:, :, 8:], exact[:, :, 8:], atol=0.01)
    later = torch.arange(64) >= 40
    changed = torch.where(later[:, None], 9.0, k), torch.where(later[:, None], 9.0, v)
    torch.testing.assert_close(hierarchical(8, causal=True)(q, *changed)[:, :, :40],
                               found[:, :, :40])  # fmt: skip


def test_the_hierarchy_counts_a_block_as_one_key():
    """What hierarchical() says of version 0.1.9; where this fails, it was put right."""
    pytest.importorskip("h_transformer_1d")
    q, k, _ = draw_heads(64, Shape(1, 1, 8, 8, 4))
    for causal in (False, True):
        found = hierarchical(8, causal)(q, 0 * k, torch.ones_like(k))
        assert found.max() > 1.2
        torch.testing.assert_close(full(q, 0 * k, torch.ones_like(k)), torch.ones_like(k))


def test_the_hierarchy_takes_any_number_of_rows_and_has_a_gradient():
    pytest.importorskip("h_transformer_1d")
    names = ["h-transformer-1d", "h-transformer-1d, causal"]
    payload = benchmark_self_attention([20, 100], others=names, only=names, **TINY)
    assert [(r["n"], r["method"], r["pass"]) for r in payload["rows"]] == [
        (n, name, kind) for n in (20, 100) for name in names for kind in PASSES
    ]
    for row in payload["rows"]:
        assert row["seconds"] > 0 and row["note"] == ""
        assert all(1e-3 < error < 3 for error in row["error"].values())


def test_packages_of_self_attention_that_are_missing_say_so(without, capsys):
    names = ["local-attention, causal", "h-transformer-1d"]
    rows = benchmark_self_attention([30], others=names, only=["window"], **TINY)["rows"]
    notes = {(r["method"], r["pass"]): r["note"] for r in rows}
    assert notes == {("window", kind): "" for kind in PASSES} | {
        (name, kind): f"{asked} needs {package}: pip install {package}"
        for kind in PASSES
        for name, asked, package in (
            (names[0], "local_window()", "local_attention"),
            (names[1], "this rival", "h_transformer_1d"),
        )
    }
    assert "needs h_transformer_1d" in capsys.readouterr().out


# ---- KeOps ---------------------------------------------------------------------------------------


def test_keops_is_the_dense_reader(capsys):
    pytest.importorskip("pykeops")
    rows, (t,) = draw(300, 3, 4, "cpu", 1)
    torch.testing.assert_close(keops(rows, t), dense_bmm(rows, t), rtol=1e-4, atol=1e-5)
    settings = dict(batch=3, hidden=4, seconds=0.003, queries=2, progress=False)
    (row,) = benchmark_attention_methods([300], only=["KeOps"], others=["KeOps"], **settings)
    assert row["method"] == "KeOps" and row["seconds"] > 0 and row["error"] < 1e-3


@pytest.mark.parametrize(
    ("dtype", "note"),
    [
        ("float32", "KeOps needs pykeops: pip install pykeops"),
        ("bfloat16", "KeOps has no bfloat16"),
    ],
)
def test_keops_says_why_it_is_missing(dtype, note, without, capsys):
    settings = dict(batch=3, hidden=4, seconds=0.003, queries=2, progress=False, dtype=dtype)
    records = benchmark_attention_methods([9], only=["window"], others=["KeOps"], **settings)
    window, row = records
    assert (window["note"], row["note"]) == ("", note)
    assert row["seconds"] is row["error"] is None
    assert note in capsys.readouterr().out
    with_slope = benchmark_attention_methods(
        [9], only=["window"], others=["KeOps"], slope=True, **settings
    )
    assert [r["method"] for r in with_slope] == ["window"]
