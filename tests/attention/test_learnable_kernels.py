"""Kernels that learn: every pattern that takes one follows it, after every step of an optimiser."""

import copy
import inspect

import pytest
import torch

from fractal_lib import (
    PATTERNS,
    RBF,
    DenseAttention,
    Matern12,
    MultilevelAttention,
    RationalQuadratic,
    WindowAttention,
)

TAKERS = {
    name: pattern
    for name, pattern in PATTERNS.items()
    if "kernel" in inspect.signature(pattern.__init__).parameters
}
takers = pytest.mark.parametrize("pattern", TAKERS.values(), ids=TAKERS)
KERNELS = {
    "rbf": lambda **k: RBF(1.5, **k),
    "rbf in time": lambda **k: RBF(0.02, "time", **k),
    "rational quadratic": lambda **k: RationalQuadratic(0.3, 2.5, **k),
    "matern": lambda **k: Matern12(0.8, **k),
}
kernels = pytest.mark.parametrize("make", KERNELS.values(), ids=KERNELS)


def data(n=90):
    generator = torch.Generator().manual_seed(n)
    values = torch.randn(2, n, 3, generator=generator, dtype=torch.float64)
    return values, torch.rand(2, 5, generator=generator, dtype=torch.float64)


def frozen(kernel):
    """A kernel of the same values that does not learn."""
    numbers = [kernel._kept(name).item() for name in kernel._names()]
    return type(kernel)(*numbers, unit=kernel.unit)


def trained(pattern, make, steps=3):
    attention, (values, t) = pattern(kernel=make(learnable=True)), data()
    before = attention(values, t).detach()
    optimiser = torch.optim.SGD(attention.parameters(), lr=1.0)
    for _ in range(steps):
        optimiser.zero_grad()
        attention(values, t).square().sum().backward()
        with torch.no_grad():  # a step that is large, whatever the loss is
            for parameter in attention.kernel.parameters():
                assert parameter.grad != 0
                parameter.grad.copy_(-0.3 * parameter.grad.sign().abs())
        optimiser.step()
    assert (attention(values, t) - before).abs().max() > 1e-3
    return attention


def test_the_patterns_that_take_a_kernel():
    assert {"dense", "window", "multilevel", "julia"} <= set(TAKERS)


@takers
@kernels
def test_attention_follows_the_kernel_as_it_is_now(pattern, make):
    attention, (values, t) = trained(pattern, make), data()
    fixed = pattern(kernel=frozen(attention.kernel))
    torch.testing.assert_close(attention(values, t), fixed(values, t), rtol=0, atol=1e-12)
    assert "learnable=True" in repr(attention)


@takers
@kernels
def test_state_dict_deepcopy_and_to(pattern, make):
    attention, (values, t) = trained(pattern, make), data()
    expected = attention(values, t)
    loaded = pattern(kernel=make(learnable=True))
    loaded.load_state_dict(attention.state_dict())
    for other in (loaded, copy.deepcopy(attention), copy.deepcopy(attention).double()):
        assert torch.equal(other(values, t), expected)
    # bfloat16 keeps eight bits of the raw parameters: another kernel, near by, which is followed
    half = copy.deepcopy(attention).to(torch.bfloat16)
    fixed = pattern(kernel=frozen(half.kernel))
    torch.testing.assert_close(half(values, t), fixed(values, t), rtol=0, atol=1e-12)
    for parameter in loaded.kernel.parameters():
        torch.nn.init.constant_(parameter, 9.0)
    assert not torch.equal(loaded(values, t), expected)
    loaded.kernel.reset_parameters()
    untrained = pattern(kernel=make(learnable=True))
    assert torch.equal(loaded(values, t), untrained(values, t))


@takers
@kernels
def test_gradients_against_differences(pattern, make):
    attention, (values, t) = pattern(kernel=make(learnable=True)).double(), data()

    def loss():
        return attention(values, t).sin().sum()

    parameters = list(attention.kernel.parameters())
    gradients = torch.autograd.grad(loss(), parameters)
    h = 1e-4
    for parameter, gradient in zip(parameters, gradients, strict=True):
        start, sides = parameter.detach().clone(), []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.copy_(start + sign * h)
                sides.append(loss())
        with torch.no_grad():
            parameter.copy_(start)
        # h^2 / 6 of a third derivative of 30 numbers below 10 each; a window's jump, 1e-9 / h
        assert abs((sides[0] - sides[1]) / (2 * h) - gradient) < 1e-5 * max(1, abs(gradient)) + 3e-5


@kernels
def test_the_window_s_radius_and_bound_follow(make):
    attention = WindowAttention(make(learnable=True), tail=1e-4)
    for raw in (-2.0, 0.0, 1.0, 3.0):
        with torch.no_grad():
            attention.kernel.raw_lengthscale.fill_(raw)
        fixed = WindowAttention(frozen(attention.kernel), tail=1e-4)
        assert attention.radius(2000) == fixed.radius(2000)
        values = torch.eye(200, dtype=torch.float64)[None]
        t = torch.linspace(0, 1, 41, dtype=torch.float64)[None]
        error = attention(values, t) - DenseAttention(attention.kernel)(values, t)
        assert error.abs().sum(-1).max() <= 2e-4


@kernels
def test_the_bound_of_multilevel_attention_follows(make):
    attention = MultilevelAttention(make(learnable=True), cells=16)
    with torch.no_grad():
        attention.kernel.raw_lengthscale.fill_(30.0)
    fixed = MultilevelAttention(frozen(attention.kernel), cells=16)
    for gaps in (False, True):
        assert attention.error_bound(500, gaps) == pytest.approx(fixed.error_bound(500, gaps))


def test_a_compiled_window_with_a_kernel_that_learns_says_so():
    torch.compiler.reset()
    compiled = torch.compile(
        WindowAttention(RBF(1.0, learnable=True)), fullgraph=True, backend="eager"
    )
    with pytest.raises(Exception, match="whose kernel is learnable cannot be compiled"):
        compiled(*data())


@takers
def test_a_compiled_attention_sees_the_kernel_as_it_is(pattern):
    if pattern is WindowAttention:
        return  # above
    torch.compiler.reset()
    attention, (values, t) = pattern(kernel=RBF(1.0, learnable=True)), data()
    compiled = torch.compile(attention, fullgraph=True, backend="eager")
    for raw in (0.3, 2.0):
        with torch.no_grad():
            attention.kernel.raw_lengthscale.fill_(raw)
        torch.testing.assert_close(compiled(values, t), attention(values, t))
