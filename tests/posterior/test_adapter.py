"""The ladder posterior in a loop of the public notebook's shape."""

import copy

import pytest
import torch
from torch import nn

from fractal_lib.posterior import LadderAffine, LadderPosterior, Observations, PosteriorAffine


class PublicLoop(nn.Module):
    """As the public notebook writes it: encoder, head, three terms, one time each."""

    def __init__(self, q_enc, q_affine, latent_size, data_size):
        super().__init__()
        self.q_enc, self.q_affine = q_enc, q_affine
        self.drift = nn.Sequential(nn.Linear(latent_size, 16), nn.Softplus(), nn.Linear(16, 4))
        self.vol = nn.Parameter(torch.zeros(latent_size))
        self.observe = nn.Linear(latent_size, data_size)

    def forward(self, xs, ts):
        ctx, batch = self.q_enc(xs), len(xs)
        m0, s0 = self.q_affine(ctx, torch.zeros(batch, 1))
        normal = torch.distributions.Normal
        prior = torch.distributions.kl_divergence(normal(m0, s0), normal(0.0, 1.0)).sum(1)
        t = torch.rand(batch, 1)
        (m, s), (dm, ds) = self.q_affine(ctx, t, return_t_dir=True)
        eps = torch.randn_like(m)
        g2 = torch.sigmoid(self.vol) ** 2
        drift = dm + ds * eps - 0.5 * g2 * eps / s
        diffusion = (0.5 * (drift - self.drift(m + s * eps)) ** 2 / g2).sum(1)
        row = torch.randint(xs.shape[1], [batch])
        every = torch.arange(batch)
        m, s = self.q_affine(ctx, ts[every, row])
        fit = normal(self.observe(m + s * torch.randn_like(m)), 0.1)
        return prior + diffusion - fit.log_prob(xs[every, row]).sum(1)


def test_the_public_loop_takes_it_in_three_lines():
    torch.manual_seed(0)
    xs = torch.randn(32, 41, 3).cumsum(1) / 6
    ts = torch.linspace(0, 1, 41)[None, :, None].repeat(32, 1, 1)
    latent_size, hidden_size, data_size, n = 4, 16, 3, 41

    posterior = LadderPosterior(latent_size, hidden_size, data_size, n)
    q_enc = nn.Identity()
    q_affine = LadderAffine(posterior)

    model = PublicLoop(q_enc, q_affine, latent_size, data_size)
    optim, losses = torch.optim.Adam(model.parameters(), lr=3e-3), []
    for _ in range(150):
        loss = model(xs, ts).mean()
        optim.zero_grad()
        loss.backward()
        optim.step()
        losses.append(loss.item())
    assert all(p.grad is not None for p in model.parameters())
    assert sum(losses[-20:]) < 0.5 * sum(losses[:20])


def test_the_pyramid_is_built_once(monkeypatch):
    posterior, built = LadderPosterior(2, 8, channels=1, n=10), []
    prepare = posterior.prepare
    monkeypatch.setattr(posterior, "prepare", lambda data: built.append(1) or prepare(data))
    head, xs = LadderAffine(posterior), torch.randn(3, 10, 1)
    t = torch.rand(3, 1)
    first = head(xs, t)[0]
    head.get_coeffs(xs, t)
    assert len(built) == 1
    xs += 1  # in place: the same tensor is not the same data
    assert not torch.equal(head(xs, t)[0], first) and len(built) == 2
    head(xs.clone(), t)
    assert len(built) == 3


def test_it_is_the_posterior_itself():
    posterior = LadderPosterior(2, 8, channels=3, n=20)
    xs, t = torch.randn(4, 20, 3), torch.rand(4, 5)
    expected = posterior(posterior.prepare(Observations(xs)), torch.arange(4), t)
    for a, b in zip(LadderAffine(posterior).get_marginals(xs, t), expected, strict=True):
        assert torch.equal(a, b)


def test_it_is_copied_and_saved_without_the_data(tmp_path):
    head, xs, t = (
        LadderAffine(LadderPosterior(2, 8, 1, 10)),
        torch.randn(3, 10, 1),
        torch.rand(3, 1),
    )
    expected = head(xs, t)[0]
    again = copy.deepcopy(head)
    assert again._last is None and torch.equal(again(xs, t)[0], expected)
    assert set(head.state_dict()) == {f"posterior.{k}" for k in head.posterior.state_dict()}
    with torch.inference_mode():
        assert torch.equal(head(xs.clone(), t)[0], expected)


def test_bad_input_is_refused():
    head = LadderAffine(LadderPosterior(2, 8, channels=1, n=10))
    with pytest.raises(TypeError, match="expected a LadderPosterior, got PosteriorAffine"):
        LadderAffine(PosteriorAffine(2, 8))
    with pytest.raises(ValueError, match="series of n = 10, the data have n = 11"):
        head(torch.randn(3, 11, 1), torch.rand(3, 1))
    with pytest.raises(ValueError, match=r"t \(B, 1\), one time a series"):
        head(torch.randn(3, 10, 1), torch.rand(3, 2))
    with pytest.raises(ValueError, match="NaN or infinite"):
        head(torch.full((3, 10, 1), float("nan")), torch.rand(3, 1))
