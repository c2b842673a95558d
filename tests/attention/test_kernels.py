"""Kernels and windows against autograd and against their definitions."""

import math

import pytest
import torch

from fractal_lib import RBF, FractalAttention, Matern12, OriginalKernel, RationalQuadratic
from fractal_lib.attention.kernels import smooth_step, smooth_step_slope

KERNELS = [
    RBF(2.5),
    RBF(0.1, unit="time"),
    OriginalKernel(),
    RationalQuadratic(2.0 / 0.7**0.5, alpha=0.35),
    RationalQuadratic(4.0 / 2**0.5),
    Matern12(3.0),
    Matern12(0.2, unit="time"),
]


@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
def test_a_kernel_falls_from_one_and_knows_its_slope(kernel):
    d = torch.linspace(0, 50, 401, dtype=torch.float64)
    k = kernel(d, 100)
    assert k[0] == 1
    assert (k.diff() <= 0).all()
    assert torch.equal(kernel(-d, 100), k)
    d = d[1:].requires_grad_()
    (slope,) = torch.autograd.grad(kernel.log(d, 100).sum(), d)
    torch.testing.assert_close(kernel.dlog(d.detach(), 100), slope)


@pytest.mark.parametrize("n", [1, 2, 41, 10_000])
def test_original_kernel_is_the_original_s_softmax(n):
    ts, t = torch.linspace(0, 1, n, dtype=torch.float64), 0.37
    ours = OriginalKernel().log(t * (n - 1) - torch.arange(n).double(), n)
    if n > 1:
        torch.testing.assert_close(ours, -((n * (ts - t)) ** 2), rtol=1e-9, atol=1e-9)


def test_time_unit_is_a_share_of_the_whole():
    d = torch.arange(11.0)
    torch.testing.assert_close(RBF(0.3, unit="time")(d, 11), RBF(3.0)(d, 11))


@pytest.mark.parametrize(
    "bad",
    [dict(lengthscale=0.0), dict(lengthscale=-1.0), dict(lengthscale=math.nan), dict(unit="rows")],
)
def test_bad_kernels(bad):
    with pytest.raises(ValueError, match=r"lengthscale|unit"):
        RBF(**bad)


def test_smooth_step_has_three_continuous_derivatives():
    u = torch.tensor([-1.0, -0.5, 0.5, 1.0], dtype=torch.float64)
    sides = []
    for eps in (-1e-7, 1e-7):
        v = (u + eps).requires_grad_()
        out = [smooth_step(v)]
        for _ in range(3):
            out.append(torch.autograd.grad(out[-1].sum(), v, create_graph=True)[0])
        torch.testing.assert_close(out[1], smooth_step_slope(v))
        sides.append(torch.stack(out))
    # the fourth derivative is at most 35 * 24 * 2^4 = 13440, so eps of it is at most 3e-3
    torch.testing.assert_close(sides[0], sides[1], rtol=0, atol=3e-3)
    assert smooth_step(torch.tensor(0.5)) == 1
    assert smooth_step(torch.tensor(1.0)) == 0


def test_what_is_no_number_is_refused():
    with pytest.raises(TypeError, match="lengthscale as one number, got str"):
        RBF("2")
    with pytest.raises(ValueError, match="n of at least 1"):
        FractalAttention().fit(RBF(), 0)
