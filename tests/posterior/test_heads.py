"""The heads: equal to the original, true derivatives, and any of them trains as the dense one."""

import subprocess
import sys
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fractal_lib import (
    PATTERNS,
    DenseAttention,
    DragonCurveAttention,
    FractalAttention,
    HilbertCurveAttention,
    MixtureAttention,
    MultilevelAttention,
    OriginalKernel,
    PosteriorAffine,
    UltimateFractalPosteriorAffine,
    WindowAttention,
    read,
)
from fractal_lib.curves.splines import bspline

Z, H = 2, 4
ATTENTIONS = {
    f"{name}, {example}" if example else name: partial(attention.make, example)
    for name, attention in PATTERNS.items()
    for example in attention.examples
    if example in ("", "pyramid", "signed")  # the others differ in what test_every.py looks at
}
HEADS = {name: lambda make=make: PosteriorAffine(Z, H, make()) for name, make in ATTENTIONS.items()}
HEADS["combined"] = lambda: UltimateFractalPosteriorAffine(Z, H)
SIZES = [1, 2, 3, 63, 64, 65, 100, 2000]


def make_head(name, seed=0):
    """A head whose every parameter is random, in float64."""
    torch.manual_seed(seed)
    head = HEADS[name]().double()
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.5)
    return head


def inputs(n, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    ctx = torch.randn(batch, 1 + n, H, generator=generator, dtype=torch.float64)
    return ctx, torch.rand(batch, 1, generator=generator, dtype=torch.float64) * 0.99 + 0.005


def original(net, ctx, t):
    """The head of the paper's notebook, from the formula: softmax of -(l (ts - t))^2."""
    values = ctx[:, 1:]
    l = values.shape[1]
    c = torch.softmax(-((l * (torch.linspace(0, 1, l, dtype=ctx.dtype) - t)) ** 2), -1)
    m, log_s = net(torch.cat([ctx[:, 0] + (c[:, :, None] * values).sum(1), t], 1)).chunk(2, 1)
    return m, log_s.exp()


@pytest.mark.parametrize("n", SIZES)
def test_the_default_is_the_original_head_to_rounding(n):
    head, (ctx, t) = make_head("dense"), inputs(n)
    # the original rounds ts and scales it by l: l eps in the distance, of slope at most 6 where the
    # weight counts
    torch.testing.assert_close(
        head(ctx, t), original(head.net, ctx, t), rtol=0, atol=1e-15 * (100 + 60 * n)
    )


def test_a_state_of_the_original_head_loads():
    theirs = nn.Module()
    theirs.net = make_head("dense").net
    head = PosteriorAffine(Z, H).double()
    head.load_state_dict(theirs.state_dict())
    ctx, t = inputs(41)
    torch.testing.assert_close(head(ctx, t), original(theirs.net, ctx, t), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("value", [-0.5, 0.0, -3.0])
def test_init_logstd_is_the_initial_log_of_s(name, value):
    arguments = {"init_logstd": value}
    head = (
        UltimateFractalPosteriorAffine(Z, H, **arguments)
        if name == "combined"
        else PosteriorAffine(Z, H, ATTENTIONS[name](), **arguments)
    )
    ctx, t = inputs(50, batch=5)
    m, s = head(ctx.float(), t.float())
    torch.testing.assert_close(s, torch.full((5, Z), value).exp())
    assert m.std() > 0


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("n", SIZES)
def test_any_n_and_a_sample_alone_or_in_a_batch(name, n):
    head, (ctx, t) = make_head(name), inputs(n, batch=3)
    together = head(ctx, t, return_t_dir=True)
    for b in range(3):
        alone = head(ctx[b : b + 1], t[b : b + 1], return_t_dir=True)
        for pair, one in zip(together, alone, strict=True):
            for value, single in zip(pair, one, strict=True):
                torch.testing.assert_close(value[b : b + 1], single, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", HEADS)
def test_the_header_is_added_to_what_is_read(name):
    head, (ctx, t) = make_head(name), inputs(70)
    ctx.requires_grad_()
    theirs = head.net(torch.cat([ctx[:, 0] + head.attention(ctx[:, 1:], t)[:, 0], t], 1))[:, :Z]
    ours = head(ctx, t)[0]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-13)
    grads = [torch.autograd.grad(m.square().sum(), ctx)[0] for m in (ours, theirs)]
    torch.testing.assert_close(*grads, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", HEADS)
def test_jvp_is_double_backward_is_central_difference(name):
    head, (ctx, t) = make_head(name), inputs(100, batch=8)
    (m, s), (dm, ds) = head(ctx, t, return_t_dir=True)
    time = t.clone().requires_grad_()
    for k, (value, slope) in enumerate(((m, dm), (s, ds))):
        out = head(ctx, time)[k]
        probe = torch.zeros_like(out, requires_grad=True)
        (pulled,) = torch.autograd.grad(out, time, probe, create_graph=True)
        # the double-backward trick gives the slope of sum_z probe_z out_z, differentiated by probe
        (twice,) = torch.autograd.grad(pulled.sum(), probe)
        torch.testing.assert_close(twice, slope, rtol=1e-9, atol=1e-9)
        h = 1e-6 / 99 * 50
        central = (head(ctx, t + h)[k] - head(ctx, t - h)[k]) / (2 * h)
        # h^2 / 6 of the third derivative, 1e-16 / h of rounding; the window's jump of its tail over
        # h
        atol = 1e-6 if head.attention.smooth else 2e-3
        torch.testing.assert_close(
            central / slope.abs().max(), slope / slope.abs().max(), rtol=0, atol=atol
        )
        assert value.shape == slope.shape == (8, Z)


@pytest.mark.parametrize("name", HEADS)
def test_gradcheck_of_value_and_slope(name):
    head, (ctx, t) = make_head(name), inputs(9, batch=1)
    ctx.requires_grad_(), t.requires_grad_()

    def both(ctx, t):
        (m, s), (dm, ds) = head(ctx, t, return_t_dir=True)
        return m, s, dm / 10, ds / 10

    assert torch.autograd.gradcheck(both, (ctx, t))  # the loss's gradient: reverse over forward
    assert torch.autograd.gradgradcheck(head.get_coeffs, (ctx, t), check_fwd_over_rev=True)


@pytest.mark.parametrize("name", ["dense", "combined"])  # the ladder is in the second
def test_fullgraph_compile_of_all_that_training_asks(name):
    torch.compiler.reset()
    head = make_head(name)

    def loss(ctx, t):
        (m, s), (dm, ds) = head(ctx, t, return_t_dir=True)
        return m.square().sum() + s.sum() + dm.square().sum() / 100 + ds.square().sum() / 100

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    parameters = list(head.parameters())
    for n in (5, 70):
        ctx, t = inputs(n)
        ctx.requires_grad_()
        for ours, theirs in zip(
            torch.autograd.grad(compiled(ctx, t), [ctx, *parameters], allow_unused=True),
            torch.autograd.grad(loss(ctx, t), [ctx, *parameters], allow_unused=True),
            strict=True,
        ):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


INDUCTOR = """
import torch
from fractal_lib import UltimateFractalPosteriorAffine
torch.manual_seed(0)
ctx, t = torch.randn(4, 51, 8, requires_grad=True), torch.rand(4, 1)
head = UltimateFractalPosteriorAffine(2, 8)
def loss(ctx):
    (m, s), (dm, ds) = head(ctx, t, return_t_dir=True)
    return m.square().sum() + s.sum() + dm.square().sum() / 100 + ds.square().sum() / 100
inputs = [ctx, *head.parameters()]
eager = torch.autograd.grad(loss(ctx), inputs, allow_unused=True)
compiled = torch.autograd.grad(torch.compile(loss, fullgraph=True)(ctx), inputs, allow_unused=True)
for a, b in zip(eager, compiled):
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
"""


def test_inductor_in_a_process_of_its_own():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", INDUCTOR],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_combined_head_uses_all_three_patterns_by_one_gather(monkeypatch):
    head, (ctx, t) = make_head("combined"), inputs(300)
    parts = head.attention.attentions
    assert [type(part) for part in parts] == [
        FractalAttention,
        HilbertCurveAttention,
        DragonCurveAttention,
    ]
    share = head.fractal_weights.softmax(0)
    expected = sum(a * part(ctx[:, 1:], t) for a, part in zip(share, parts, strict=True))
    torch.testing.assert_close(head.attention(ctx[:, 1:], t), expected, rtol=0, atol=1e-13)
    gathers = []
    monkeypatch.setattr(
        MixtureAttention, "read", lambda self, *a: gathers.append(a[1].indices.shape) or read(*a)
    )
    head(ctx, t)
    # and the header, which is one more read
    assert gathers == [(2, 1, 1 + sum(part.reads(t, 300).indices.shape[-1] for part in parts))]
    for k in range(3):  # each share moves the result
        (grad,) = torch.autograd.grad(head(ctx, t)[0].square().sum(), head.fractal_weights)
        assert grad[k] != 0


def kernel_error(ladder, n):
    """Largest error of sum_k a_k 2^-k beta(d / 2^k) against the original kernel, up to a factor."""
    d = torch.arange(0, min(n - 1, 40) + 0.25, 0.25, dtype=torch.float64).unsqueeze(1)
    levels = ladder.levels(n)
    stride = 2.0 ** torch.arange(levels)
    share = ladder.level_logits[:levels].double().softmax(0)
    found, kernel = (bspline(d / stride) / stride * share).sum(1), OriginalKernel()(d[:, 0], n)
    return (found * (found @ kernel) / (found @ found) - kernel).abs().max().item()


@pytest.mark.parametrize("n", [41, 100, 1000, 100_000])
def test_the_combined_head_starts_as_near_to_the_dense_kernel_as_a_fit_comes(n):
    """Without scipy, which the fit needs."""
    start, fitted = UltimateFractalPosteriorAffine(Z, H).attention.attentions[0], FractalAttention()
    fitted.fit(OriginalKernel(), n)
    assert kernel_error(start, n) < kernel_error(fitted, n) + 0.02 < 0.08
    if n >= 1000:
        shares = (part.level_logits[:10].softmax(0) for part in (start, fitted))
        torch.testing.assert_close(*shares, rtol=0, atol=0.01)
    assert kernel_error(FractalAttention(), n) > 0.2  # equal shares


def test_the_combined_head_reads_about_what_the_dense_head_reads():
    (ctx, t), dense = inputs(100, batch=64), PosteriorAffine(Z, H)
    ctx[:, 1:] = torch.linspace(0, 20, 100)[:, None].sin()  # rows that vary slowly, as states do
    exact = dense.attention(ctx[:, 1:], t)
    narrow, broad = (
        (UltimateFractalPosteriorAffine(Z, H, narrow=n).attention(ctx[:, 1:], t) - exact).std()
        for n in (True, False)
    )
    assert narrow < 0.03 * exact.std() and broad > 0.2 * exact.std()


@pytest.mark.parametrize("narrow", [True, False])
def test_reset_parameters_of_the_combined_head_returns_to_its_start(narrow):
    torch.manual_seed(0)
    head = UltimateFractalPosteriorAffine(Z, H, narrow=narrow)
    start = [p.detach().clone() for p in head.parameters()]
    for p in head.parameters():
        nn.init.normal_(p)
    torch.manual_seed(0)
    head.reset_parameters()
    assert all(torch.equal(p, q) for p, q in zip(start, head.parameters(), strict=True))
    assert head.fractal_weights.tolist() == ([4, 0, 0] if narrow else [0, 0, 0])


def test_a_mixture_starts_where_it_is_told():
    mixture = MixtureAttention(DenseAttention(), WindowAttention(), logits=[0.5, -1])
    nn.init.ones_(mixture.logits)
    mixture.reset_parameters()
    assert mixture.logits.tolist() == [0.5, -1]
    for wrong in ([1.0], [0.0, torch.inf], [[0.0, 0.0]]):
        with pytest.raises(ValueError, match="logits as 2 finite numbers, one for each attention"):
            MixtureAttention(DenseAttention(), WindowAttention(), logits=wrong)


@pytest.mark.parametrize("seed", range(3))
@given(n=st.integers(1, 400), t=st.floats(0, 1))
def test_the_combined_reads_are_an_average(seed, n, t):
    weight = make_head("combined", seed).attention.reads(torch.tensor([[t]]).double(), n).weights
    assert (weight > -1e-15).all()
    torch.testing.assert_close(weight.sum(), torch.ones(()).double(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("n", [2, 64, 100])
def test_the_combined_head_is_twice_continuously_differentiable(n):
    head, (ctx, _) = make_head("combined"), inputs(n, batch=1)
    # where a row of any pattern enters or leaves
    x = torch.arange(1, 2 * (n - 1), dtype=torch.float64) / 2
    ctx = ctx.expand(len(x), -1, -1)

    def derivatives(x):
        t = (x / (n - 1)).unsqueeze(1).requires_grad_()
        out = [head(ctx, t)[0].sum(-1, keepdim=True)]
        for _ in range(2):
            out.append(torch.autograd.grad(out[-1].sum(), t, create_graph=True)[0] / (n - 1))
        return torch.cat(out, 1)

    # a step of 2e-12 samples times slopes of some tens, and rounding
    torch.testing.assert_close(derivatives(x - 1e-12), derivatives(x + 1e-12), rtol=0, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision(dtype):
    head, (ctx, t) = make_head("combined").to(dtype), inputs(333)
    ctx, t = ctx.to(dtype), t.float()
    m, s = head(ctx, t)
    exact = head.double()(ctx.double(), t)
    assert m.dtype == s.dtype == dtype
    # three layers of rounded weights and sums on values of order 10
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close((m.double(), s.double()), exact, rtol=20 * eps, atol=40 * eps)


BAD = {
    "no header": (lambda c, t: (c[:, :1], t), ValueError, "n >= 1"),
    "another size": (lambda c, t: (c[..., 1:], t), ValueError, r"\(B, 1 \+ n, 4\)"),
    "t without its axis": (lambda c, t: (c, t[:, 0]), ValueError, "one time per context"),
    "two times": (lambda c, t: (c, t.expand(-1, 2)), ValueError, "one time per context"),
    "t outside": (lambda c, t: (c, t + 1), ValueError, r"\[0, 1\]"),
    "NaN": (lambda c, t: (c * torch.nan, t), ValueError, "NaN"),
    "integer": (lambda c, t: (c.long(), t), TypeError, "floating"),
}


@pytest.mark.parametrize("name", ["dense", "ladder", "combined"])
@pytest.mark.parametrize(("spoil", "error", "words"), BAD.values(), ids=BAD)
def test_bad_input_is_a_clear_error(name, spoil, error, words):
    with pytest.raises(error, match=words):
        make_head(name)(*spoil(*inputs(9)))


def test_bad_arguments():
    with pytest.raises(ValueError, match="at least 1"):
        PosteriorAffine(0, 4)
    with pytest.raises(TypeError, match="ContextAttention"):
        PosteriorAffine(2, 4, attention="dense")
    with pytest.raises(TypeError, match="one or more"):
        MixtureAttention()
    with pytest.raises(ValueError, match="expansion=0"):
        MixtureAttention(
            MultilevelAttention(WindowAttention().kernel, expansion=1), WindowAttention()
        )


def test_a_mixture_of_pooled_and_plain_reads_shares_one_pyramid():
    mixture = MixtureAttention(
        FractalAttention(source="pyramid"), WindowAttention(), DenseAttention()
    ).double()
    (ctx, t), part = inputs(57), mixture.attentions
    expected = sum(a(ctx, t) for a in part) / 3
    torch.testing.assert_close(mixture(ctx, t), expected, rtol=0, atol=1e-13)


class Matching(nn.Module):
    """The training loop of the public SDE Matching notebook, as it calls a head; the model around
    it is tiny.
    """

    def __init__(self, head):
        super().__init__()
        self.prior_init = nn.Parameter(torch.zeros(2, Z))
        self.drift = nn.Sequential(nn.Linear(Z, 16), nn.SiLU(), nn.Linear(16, Z))
        self.observe = nn.Linear(Z, 1)
        self.encoder = nn.GRU(1, H, batch_first=True)
        self.q_affine = head

    def forward(self, xs, ts):
        normal = torch.distributions.Normal
        values, last = self.encoder(xs)
        ctx = torch.cat([last[0, :, None], values], 1)
        m, s = self.q_affine(ctx, torch.zeros(len(xs), 1))
        start = normal(self.prior_init[0], self.prior_init[1].exp())
        loss = torch.distributions.kl_divergence(normal(m, s), start).sum(1)
        t = torch.rand(len(xs), 1)
        (m, s), (dm, ds) = self.q_affine(ctx, t, return_t_dir=True)
        eps = torch.randn_like(m)
        z, g2 = m + s * eps, 0.1  # constant diffusion
        q_drift = dm + ds * eps - 0.5 * g2 * eps / s
        loss = loss + 0.5 * ((q_drift - self.drift(z)) ** 2 / g2).sum(1)
        pick = torch.randint(xs.shape[1], (len(xs),))
        m, s = self.q_affine(ctx, ts[torch.arange(len(xs)), pick])
        x = xs[torch.arange(len(xs)), pick]
        return (
            loss - normal(self.observe(m + s * torch.randn_like(m)), 0.1).log_prob(x).sum(1)
        ).mean()


@pytest.mark.parametrize("name", HEADS)
def test_any_head_takes_the_dense_heads_place_in_training(name):
    torch.manual_seed(0)
    model = Matching(HEADS[name]())
    ts = torch.linspace(0, 1, 41)[None, :, None].expand(32, -1, -1)
    xs = torch.sin(6 * ts + torch.rand(32, 1, 1)) + 0.1 * torch.randn(32, 41, 1)
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)

    def evaluate():
        torch.manual_seed(1)  # the same draws before and after
        with torch.no_grad():
            return sum(model(xs, ts).item() for _ in range(20)) / 20

    before = evaluate()
    for _ in range(100):
        loss = model(xs, ts)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert evaluate() < 0.5 * before  # it learns
