"""Every pattern under torch's transforms, on empty inputs, under autocast, and away from home."""

import copy
import subprocess
import sys
from functools import partial

import pytest
import torch

from fractal_lib import PATTERNS, HilbertCurveAttention, MixtureAttention
from fractal_lib.attention.tree import constant_result

MAKE = {
    f"{name}, {example}" if example else name: partial(attention.make, example)
    for name, attention in PATTERNS.items()
    for example in attention.examples
}
MAKE["mixture"] = lambda: MixtureAttention(PATTERNS["hilbert"](), PATTERNS["ladder"]())
makers = pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
POOLED = [name for name, make in MAKE.items() if make().tree(100).levels > 1]


def data(n=50, dtype=torch.float32):
    generator = torch.Generator().manual_seed(n)
    values = torch.randn(3, n, 2, generator=generator, dtype=dtype)
    return values, torch.rand(3, 4, generator=generator, dtype=dtype)


@makers
def test_gradients_and_per_sample_gradients_by_func(make):
    attention = make().double()
    values, t = data(dtype=torch.float64)
    parameters = {name: p.detach() for name, p in attention.named_parameters()}

    def loss(parameters, values, t):
        out = torch.func.functional_call(attention, parameters, (values[None], t[None]))
        return out.square().sum()

    each = torch.func.vmap(torch.func.grad(loss, argnums=(0, 1, 2)), in_dims=(None, 0, 0))
    of_parameters, of_values, of_t = each(parameters, values, t)
    for b in range(3):
        leaves = [values[b].clone().requires_grad_(), t[b].clone().requires_grad_()]
        named = {name: p.clone().requires_grad_() for name, p in parameters.items()}
        expected = torch.autograd.grad(loss(named, *leaves), [*leaves, *named.values()])
        ours = [of_values[b], of_t[b], *(of_parameters[name][b] for name in named)]
        for got, want in zip(ours, expected, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", MAKE)
def test_a_compiled_graph_of_any_size(name):
    """Twice within one number of levels, and with others; few, since a graph has all of them."""
    torch.compiler.reset()
    attention = MAKE[name]()
    compiled = torch.compile(attention, fullgraph=True, dynamic=True, backend="eager")
    for n in (5, 7, 3) if name in POOLED else (70, 100, 50, 3):
        values, t = data(n)
        torch.testing.assert_close(compiled(values, t), attention(values, t))


@pytest.mark.parametrize(
    ("name", "strict"), [*((name, False) for name in MAKE), ("window", True), ("julia", True)]
)
def test_export(name, strict):
    """With a free number of rows, or a given one where rows are pooled; and it leaves no trace."""
    attention, (values, t) = MAKE[name](), data(101)
    free = name not in POOLED
    shapes = ({1: torch.export.Dim("n", min=65, max=127)}, None) if free else None
    program = torch.export.export(attention, (values, t), dynamic_shapes=shapes, strict=strict)
    for n in (77, 101) if free else (101,):
        values, t = data(n)
        torch.testing.assert_close(program.module()(values, t), MAKE[name]()(values, t))


@makers
@pytest.mark.parametrize("shape", [(0, 50, 4, 2), (3, 50, 0, 2), (3, 50, 4, 0), (0, 1, 0, 0)])
def test_empty_inputs_give_empty_results(make, shape):
    batch, n, queries, hidden = shape
    values = torch.randn(batch, n, hidden, requires_grad=True)
    out = make()(values, torch.rand(batch, queries))
    assert out.shape == (batch, queries, hidden)
    assert torch.autograd.grad(out.sum(), values)[0].shape == values.shape


@makers
def test_inference_first_and_training_after(make):
    values, t = data(53)
    with torch.inference_mode():
        attention = make()
        attention(values, t)
    attention = make()
    attention(values.requires_grad_(), t.requires_grad_()).sum().backward()
    assert values.grad.isfinite().all()


@makers
def test_what_a_missing_row_holds_reaches_neither_result_nor_gradient(make):
    attention, n = make(), 50
    observed = torch.ones(n, dtype=torch.bool)
    observed[[7, 20, 33]] = False
    t = torch.linspace(0, 1, 40).expand(3, -1).clone().requires_grad_()
    results = []
    for filler in (torch.nan, torch.inf, 0.0):
        values = data(n)[0].masked_fill(~observed[:, None], filler).requires_grad_()
        out = attention(values, t, observed)
        gradients = torch.autograd.grad(out.square().sum(), [values, t, *attention.parameters()])
        assert (gradients[0][:, ~observed] == 0).all()
        results.append([out, *gradients])
    for other in results[:2]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[2], strict=True))


@makers
def test_autocast_changes_nothing(make):
    attention, (values, t) = make(), data()
    values = values * 345.67

    def value_and_slope():
        return torch.func.jvp(lambda s: attention(values, s), (t,), (torch.ones_like(t),))

    plain = value_and_slope()
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype):
            under = value_and_slope()
        assert all(torch.equal(a, b) for a, b in zip(under, plain, strict=True))


@makers
def test_positions_do_not_depend_on_the_dtype_of_t(make):
    attention, n = make(), 100_001 if make().name != "dense" else 1001
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        t = torch.linspace(0, 1, 23).to(dtype)[None]
        reads, exact = attention.reads(t, n), attention.reads(t.double(), n)
        assert torch.equal(reads.indices, exact.indices)
        assert torch.equal(reads.weights, exact.weights)


@makers
def test_from_the_meta_device(make):
    """What is not in the state dict comes back by itself, what is in it by loading or resetting."""
    here, (values, t) = make(), data()
    with torch.device("meta"):
        there = make()
    for attention in (there, make().to("meta")):
        attention.to_empty(device="cpu")
        attention.load_state_dict(here.state_dict())
        assert torch.equal(attention(values, t), here(values, t))
    empty = make().to("meta").to_empty(device="cpu")
    with torch.no_grad():
        for parameter in empty.parameters():
            parameter.fill_(torch.nan)
    for module in empty.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    assert torch.equal(empty(values, t), make()(values, t))


def test_the_tables_of_a_grid_come_back():
    attention = HilbertCurveAttention(grid=(5, 10))
    fresh = copy.deepcopy(attention).to("meta").to_empty(device="cpu")
    fresh.load_state_dict(attention.state_dict())
    assert torch.equal(fresh.permutation, attention.permutation)
    assert torch.equal(fresh(*data()), attention(*data()))


def test_a_sample_weight_is_in_the_state_dict():
    weight = torch.rand(50)
    dense = PATTERNS["dense"]
    loaded = dense(sample_weight=torch.ones(50)).to("meta").to_empty(device="cpu")
    loaded.load_state_dict(dense(sample_weight=weight).state_dict())
    assert torch.equal(loaded.sample_weight, weight)


@makers
@pytest.mark.parametrize("n", [1, 2, 37, 64])
def test_the_mask_is_the_rows_that_change_the_result(make, n):
    attention = make()
    eye = torch.eye(n, dtype=torch.float64)[None]
    at_rows = torch.linspace(0, 1, n, dtype=torch.float64)[None]
    seen = attention(eye, at_rows)[0].detach()
    mask = attention.mask(n)
    # moments may cancel, a kernel may underflow: never a row without its pair in the mask
    assert (mask | (seen.abs() < 1e-30)).all()
    if attention.kind != "moments":
        assert torch.equal(mask, seen.abs() > 1e-30)
    mask_mod, row = attention.mask_mod(n), torch.arange(n)
    assert torch.equal(mask_mod(0, 0, row[:, None], row), mask)


MARK = """
import sys
import torch
import fractal_lib
assert "torch._dynamo" not in sys.modules
from fractal_lib.attention.tree import constant_result
ours = constant_result(lambda: 1)
theirs = torch.compiler.assume_constant_result(lambda: 1)
assert vars(ours) == vars(theirs), (vars(ours), vars(theirs))
"""


def test_constant_result_is_torch_s_own_mark_without_its_import():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", MARK], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert vars(constant_result(lambda: 1)) == {"_dynamo_marked_constant": True}
