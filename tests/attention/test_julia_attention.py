"""The dust of offsets, and the sample_weight of dense attention, against loops over Python's own
numbers.
"""

import math

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from fractal_lib import (
    RBF,
    DenseAttention,
    JuliaAttention,
    Matern12,
    RationalQuadratic,
    julia_set_attention,
)
from fractal_lib.curves.julia import julia_dimension
from fractal_lib.reference import bspline_weight, julia_distances, julia_weights

SIZES = [1, 2, 3, 63, 64, 65, 100, 2000]
DIAL = [-2.01, -2.5, -6.0, -20.0]


def power(a):
    return lambda o: (1 + o * o) ** (-a / 2)


@pytest.mark.parametrize("c", DIAL)
@pytest.mark.parametrize("n", SIZES)
def test_offsets_are_the_dust(c, n):
    one_side = julia_distances(c, n)
    assert JuliaAttention(c).offsets(n).tolist() == [-o for o in reversed(one_side[1:])] + one_side
    assert one_side[0] == 0  # the query's own place is always read


def test_the_dial():
    """The reads grow as n^D, and c turns D from 1 to 0."""
    sizes = [2**k for k in range(8, 21)]
    for c in (-2.1, -2.5, -6.0, -20.0):
        log_count = torch.tensor([len(JuliaAttention(c).offsets(n)) for n in sizes]).double().log2()
        k = torch.arange(8.0, 21).double()
        slope = ((k - k.mean()) * (log_count - log_count.mean())).sum() / (
            k - k.mean()
        ).square().sum()
        # counts go up in steps, log-periodic with a factor of at most 2 either way over 12 octaves
        assert abs(slope - julia_dimension(c)) < 0.05
    assert len(JuliaAttention(-2.00001).offsets(1024)) == 2 * 1024 - 1  # every row: dense
    assert JuliaAttention(-1e300).offsets(1024).tolist() == [-1023, 0, 1023]


@pytest.mark.parametrize(("c", "constant"), [(-2.1, 3.5), (-6.0, 8.6), (-20.0, 10.0)])
def test_reads_are_as_many_as_stated(c, constant):
    for k in (10, 14, 17, 20):
        reads = JuliaAttention(c).reads(torch.tensor([[0.3]]), 2**k).indices.shape[-1]
        assert abs(reads / 2 ** (k * julia_dimension(c)) / constant - 1) < 0.1  # waves


@pytest.mark.parametrize("c", DIAL)
@pytest.mark.parametrize("n", SIZES)
def test_values_are_the_specification(c, n):
    attention = JuliaAttention(c)
    values = torch.randn(1, n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(n))
    x = torch.tensor([0, 0.25, 0.5, 0.81, 1]).double() * (n - 1)
    if n > 2:
        x[1:3] = x[1:3].round()  # at a row, too
    expected = torch.stack([julia_weights(v, n, c, power(1.0)) for v in x.tolist()])
    reads = attention.reads((x / max(n - 1, 1))[None], n)
    got = torch.zeros(len(x), n).double().scatter_add(1, reads.indices[0], reads.weights[0])
    # x / (n - 1) * (n - 1) is rounded, to n eps at most; float32 holds the parameter 1, to 1e-7 of
    # the logarithm's 1
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-7 + n * 1e-15)
    attention.double()
    with torch.no_grad():
        attention.raw_exponent.fill_(math.log(math.e - 1))
    out = attention(values, (x / max(n - 1, 1))[None])
    torch.testing.assert_close(out[0], expected @ values[0], rtol=0, atol=1e-12)  # 5 n eps


@pytest.mark.parametrize(
    "kernel",
    [RBF(5.0), Matern12(20.0, "time"), RationalQuadratic(2.0 / 1.5**0.5, alpha=0.75)],
    ids=repr,
)
@pytest.mark.parametrize("n", [2, 65, 100])
def test_a_given_kernel_weighs_the_offsets(kernel, n):
    def k(o):
        return float(kernel(torch.tensor(float(o)).double(), n))

    eye = torch.eye(n, dtype=torch.float64)[None]
    for x in (0.0, 0.37 * (n - 1), n - 1.0):
        out = JuliaAttention(-3, kernel)(eye, torch.tensor([[x / (n - 1)]], dtype=torch.float64))
        torch.testing.assert_close(out[0, 0], julia_weights(x, n, -3, k), rtol=0, atol=1e-13)
    assert list(JuliaAttention(-3, kernel).parameters()) == []


@pytest.mark.parametrize("n", [3, 64, 100])
def test_gaps(n):
    observed = torch.rand(n, generator=torch.Generator().manual_seed(n)) < 0.5
    observed[0] = True
    values = torch.where(observed[:, None], torch.eye(n, dtype=torch.float64), torch.nan)[None]
    for x in (0.0, 0.37 * (n - 1), 0.5 * (n - 1)):
        expected = julia_weights(x, n, -2.5, power(1.0), observed.tolist())
        out = JuliaAttention(-2.5, RationalQuadratic(1.0, alpha=0.5))(
            values, torch.tensor([[x / (n - 1)]], dtype=torch.float64), observed=observed
        )
        torch.testing.assert_close(out[0, 0], expected, rtol=0, atol=1e-13)


def test_a_gap_that_swallows_every_offset_is_an_error():
    observed = torch.zeros(64, dtype=torch.bool)
    observed[30] = True  # 5 to 8 away from the query: c = -6 reads 0, 2, 10, ...
    with pytest.raises(ValueError, match="no observed row"):
        JuliaAttention(-6)(torch.randn(1, 64, 1), torch.tensor([[24 / 63]]), observed=observed)


@pytest.mark.parametrize("x", [7.3, 40.0, 62.999])
def test_slopes_by_differences_of_the_specification(x):
    n, c, h = 64, -6.0, 1e-5
    values = torch.randn(n, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    attention = JuliaAttention(c).double()
    with torch.no_grad():
        attention.raw_exponent.fill_(0.3)
    a = math.log1p(math.exp(0.3))

    def out(x, a):
        return float(julia_weights(x, n, c, power(a)) @ values.detach()[:, 0])

    t = torch.tensor([[x / (n - 1)]], dtype=torch.float64, requires_grad=True)
    value = attention(values.requires_grad_()[None], t)
    dt, dfall, drows = torch.autograd.grad(value.sum(), (t, attention.raw_exponent, values))
    # h^2 / 6 of a third derivative of order 10, and 1e-16 / h of rounding
    assert math.isclose(
        dt.item() / (n - 1), (out(x + h, a) - out(x - h, a)) / (2 * h), abs_tol=1e-8
    )
    sigmoid = 1 / (1 + math.exp(-0.3))
    assert math.isclose(
        dfall.item(), sigmoid * (out(x, a + h) - out(x, a - h)) / (2 * h), abs_tol=1e-8
    )
    torch.testing.assert_close(drows[:, 0], julia_weights(x, n, c, power(a)), rtol=0, atol=1e-13)


@pytest.mark.parametrize("c", DIAL)
@pytest.mark.parametrize("n", [5, 100, 2000])
def test_each_row_is_read_once(c, n):
    attention = JuliaAttention(c)
    reads = attention.reads(torch.linspace(0, 1, 7).double()[None], n)
    assert reads.indices.shape[-1] <= 4 * len(attention.offsets(n))
    for index, weight in zip(reads.indices[0], reads.weights[0], strict=True):
        used = index[weight > 0]
        assert len(used) == len(used.unique())


@pytest.mark.parametrize("kernel", [RBF(1e-3), Matern12(1e-3)], ids=repr)
def test_a_needle_of_a_kernel_does_not_underflow(kernel):
    n, x = 100, 41.3
    eye, t = torch.eye(n, dtype=torch.float64)[None], torch.tensor([[x / 99]], dtype=torch.float64)
    expected = torch.tensor([bspline_weight(x - j) for j in range(n)], dtype=torch.float64)
    torch.testing.assert_close(
        JuliaAttention(-6, kernel)(eye, t)[0, 0], expected, rtol=0, atol=1e-14
    )
    # of the offsets 0, 1, 3, 4, 5, 20, ... the nearest that is left is -20
    observed = torch.arange(n) < 33
    expected = torch.tensor([bspline_weight(x - 20 - j) for j in range(33)], dtype=torch.float64)
    out = JuliaAttention(-6, kernel)(eye, t, observed=observed)[0, 0, :33]
    torch.testing.assert_close(out, expected / expected.sum(), rtol=0, atol=1e-13)


def test_a_graph_serves_every_n_up_to_the_next_power_of_two():
    torch.compiler.reset()
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(JuliaAttention(), fullgraph=True, backend=counter)
    t = torch.rand(2, 3, dtype=torch.float64)
    for n in (65, 100, 127, 128):  # a graph for the first n, one for any n, and no third
        values = torch.randn(2, n, 4, dtype=torch.float64)
        torch.testing.assert_close(
            compiled(values, t), JuliaAttention()(values, t), rtol=0, atol=1e-13
        )
    assert counter.frame_count == 2


def test_what_is_kept_from_inference_serves_training():
    values, t = torch.randn(1, 37, 2), torch.rand(1, 3)
    with torch.inference_mode():
        JuliaAttention(-7.125)(values, t)
    attention = JuliaAttention(-7.125)
    attention(values, t).sum().backward()
    assert attention.raw_exponent.grad is not None


def test_a_default_device_does_not_matter():
    with torch.device("meta"):
        offsets = JuliaAttention(-8.25).offsets(50)
    assert offsets.device.type == "cpu"
    assert offsets.tolist() == [
        s * o
        for s, side in ((-1, julia_distances(-8.25, 50)[:0:-1]), (1, julia_distances(-8.25, 50)))
        for o in side
    ]


def test_inductor_agrees():
    torch.compiler.reset()
    attention, values = JuliaAttention(), torch.randn(2, 70, 3, requires_grad=True)
    t = torch.tensor([[0.0, 0.61]] * 2, requires_grad=True)

    def loss(values, t):
        value, slope = torch.func.jvp(lambda s: attention(values, s), (t,), (torch.ones_like(t),))
        return value.square().sum() + 1e-3 * slope.square().sum()

    inputs = [values, t, *attention.parameters()]
    eager = torch.autograd.grad(loss(values, t), inputs)
    compiled = torch.autograd.grad(torch.compile(loss, fullgraph=True)(values, t), inputs)
    for ours, theirs in zip(compiled, eager, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))


@pytest.mark.parametrize("c", [-2, -1.9, 0, -3 + 1j, math.nan, -math.inf, math.inf])
def test_c_must_be_real_and_below_minus_two(c):
    with pytest.raises(ValueError, match="below -2"):
        JuliaAttention(c)


# Dense attention with a sample_weight.


@pytest.mark.parametrize("n", [n for n in SIZES if n > 1])
def test_sample_weight_multiplies_the_kernel(n):
    generator = torch.Generator().manual_seed(n)
    sample_weight = torch.rand(n, generator=generator) * (torch.rand(n, generator=generator) < 0.6)
    sample_weight[-1] = 1
    values = torch.randn(1, n, 2, dtype=torch.float64, generator=generator)
    for t in (0.0, 0.3, 1.0):
        factor = [
            float(p) / math.sqrt(1 + (t * (n - 1) - j) ** 2) for j, p in enumerate(sample_weight)
        ]
        expected = torch.tensor(factor, dtype=torch.float64) @ values[0] / sum(factor)
        out = DenseAttention(RationalQuadratic(1.0, alpha=0.5), sample_weight=sample_weight)(
            values, torch.tensor([[t]], dtype=torch.float64)
        )
        torch.testing.assert_close(out[0, 0], expected, rtol=0, atol=1e-13)


def test_a_sample_weight_of_a_julia_mask():
    z = torch.complex(torch.linspace(-2, 2, 300), torch.full((300,), 0.05))
    mask = julia_set_attention(z, -1)
    values, t = torch.randn(2, 300, 3, dtype=torch.float64), torch.rand(2, 4, dtype=torch.float64)
    dense = DenseAttention(RBF(9.0), sample_weight=mask)
    weight = DenseAttention(RBF(9.0)).reads(t, 300).weights * mask
    expected = weight / weight.sum(-1, keepdim=True) @ values
    torch.testing.assert_close(dense(values, t), expected, rtol=0, atol=1e-13)
    assert torch.autograd.gradcheck(dense, (values[:1].requires_grad_(), t[:1].requires_grad_()))


def test_sample_weight_with_gaps_and_times():
    generator = torch.Generator().manual_seed(2)
    values, sample_weight = (
        torch.randn(1, 50, 2, generator=generator).double(),
        torch.rand(50, generator=generator),
    )
    observed, times = (
        torch.rand(50, generator=generator) < 0.7,
        torch.rand(50, generator=generator).double(),
    )
    t = torch.tensor([[0.2, 0.9]], dtype=torch.float64)
    both = DenseAttention(RationalQuadratic(1.0, alpha=0.5), sample_weight=sample_weight)(
        values, t, observed=observed, times=times
    )
    left = DenseAttention(
        RationalQuadratic(1.0, alpha=0.5), sample_weight=sample_weight * observed
    )(values, t, times=times)
    torch.testing.assert_close(both, left, rtol=0, atol=1e-13)


def test_a_constant_prior_changes_nothing():
    values, t = torch.randn(2, 40, 3), torch.rand(2, 5)
    torch.testing.assert_close(
        DenseAttention(sample_weight=torch.full((40,), 7.0))(values, t), DenseAttention()(values, t)
    )


def test_sample_weight_is_a_buffer_and_compiles():
    torch.compiler.reset()
    dense = DenseAttention(sample_weight=torch.rand(30))
    assert [name for name, _ in dense.named_buffers()] == ["sample_weight"]
    assert list(dense.state_dict()) == ["sample_weight"]
    assert not DenseAttention().state_dict()  # the original head's own loads
    assert dense.to("meta").sample_weight.device.type == "meta"
    dense, values, t = (
        DenseAttention(sample_weight=torch.rand(30)),
        torch.randn(2, 30, 3),
        torch.rand(2, 1),
    )
    torch.testing.assert_close(torch.compile(dense, fullgraph=True)(values, t), dense(values, t))


@pytest.mark.parametrize(
    ("sample_weight", "error", "words"),
    [
        (["a", "b"], TypeError, "array of numbers"),
        (torch.ones(5, dtype=torch.int64), TypeError, "int64"),
        (torch.ones(5, dtype=torch.complex64), TypeError, "complex64"),
        (torch.ones(1, 5), ValueError, r"\(n,\)"),
        (torch.ones(0), ValueError, r"\(n,\)"),
        (torch.zeros(5), ValueError, "not all 0"),
        (torch.tensor([1.0, -1.0]), ValueError, "not negative"),
        (torch.tensor([1.0, torch.nan]), ValueError, "finite"),
        (torch.tensor([1.0, torch.inf]), ValueError, "finite"),
    ],
)
def test_bad_sample_weights(sample_weight, error, words):
    with pytest.raises(error, match=words):
        DenseAttention(sample_weight=sample_weight)


def test_a_sample_weight_of_another_length():
    with pytest.raises(ValueError, match="5 rows, got 6"):
        DenseAttention(sample_weight=torch.ones(5))(torch.randn(1, 6, 1), torch.rand(1, 1))
