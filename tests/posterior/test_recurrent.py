"""The recurrent posterior: what its states know, in one direction and in two."""

import pytest
import torch

from fractal_lib.posterior import Observations, PosteriorAffine, RecurrentPosterior


def make(hidden=8, **options):
    torch.manual_seed(0)
    return RecurrentPosterior(PosteriorAffine(2, hidden), channels=2, **options)


def context(posterior, values):
    with torch.no_grad():
        return posterior.encode(Observations(values), [0])[0]  # (1 + N, H)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_one_direction_knows_the_past_and_two_know_all(bidirectional):
    """Which states change with row 5 of 12."""
    posterior, values = make(bidirectional=bidirectional), torch.randn(1, 12, 2)
    moved = values.clone()
    moved[0, 5] += 1
    changed = context(posterior, values) != context(posterior, moved)
    forward, backward = changed[1:].chunk(2, -1) if bidirectional else (changed[1:], None)
    assert not forward[:5].any() and forward[5:].all()
    assert changed[0].all()  # the header
    if bidirectional:
        assert backward[:6].all() and not backward[6:].any()


def test_the_header_of_two_directions_is_the_last_state_of_each():
    found = context(make(bidirectional=True), torch.randn(1, 12, 2))
    header, states = found[0], found[1:]
    assert found.shape == (13, 8)
    assert torch.equal(header, torch.cat([states[-1, :4], states[0, 4:]]))


def test_two_directions_are_of_the_same_scale_as_one():
    """Equal width: a row of the context is as wide, and the parameters are at most as many."""
    one, two = make(64), make(64, bidirectional=True)
    count = [sum(p.numel() for p in posterior.parameters()) for posterior in (one, two)]
    assert count[0] / 2 < count[1] <= count[0]
    spread = [context(posterior, torch.randn(1, 50, 2)).std() for posterior in (one, two)]
    assert 0.5 < spread[0] / spread[1] < 2
    with pytest.raises(ValueError, match="an even hidden_size of the head, .* got 7"):
        make(7, bidirectional=True)


def test_one_direction_keeps_its_names_and_sizes():
    shapes = {name: tuple(p.shape) for name, p in make().gru.state_dict().items()}
    assert shapes == {
        "weight_ih_l0": (24, 2),
        "weight_hh_l0": (24, 8),
        "bias_ih_l0": (24,),
        "bias_hh_l0": (24,),
    }


@pytest.mark.parametrize("bidirectional", [False, True])
def test_marginals_and_their_derivatives(bidirectional):
    posterior = make(bidirectional=bidirectional).double()
    torch.nn.init.normal_(posterior.head.net[-1].weight)
    data = Observations(torch.randn(3, 20, 2, dtype=torch.float64))
    t, h = torch.rand(2, 5, dtype=torch.float64) * 0.9 + 0.05, 1e-6
    q, after, before = (posterior(data, [2, 0], t + step) for step in (0, h, -h))
    for k in (0, 1):
        torch.testing.assert_close(q[k + 2], (after[k] - before[k]) / (2 * h), rtol=1e-6, atol=1e-6)
    assert "bidirectional=True" in str(posterior) or not bidirectional


def test_a_mask_is_read_as_the_fraction_of_a_row_that_is_there():
    posterior, seen = make(gaps=True, bidirectional=True), []
    posterior.gru.register_forward_hook(lambda gru, args, out: seen.append(args[0]))
    data = Observations(torch.randn(4, 9, 2), observed=torch.arange(9) % 3 > 0)
    posterior.encode(data, [1])
    assert seen[0][0, :, 2].tolist() == [0, 1, 1] * 3
    data.observed = torch.stack([data.observed, torch.ones_like(data.observed)], -1)
    posterior.encode(data, [1])
    assert seen[1][0, :, 2].tolist() == [0.5, 1, 1] * 3


def test_times_of_their_own_are_refused():
    data = Observations(torch.randn(4, 9, 2))
    data.t = torch.rand(4, 9, dtype=torch.float64)
    with pytest.raises(ValueError, match="expected rows on an even grid"):
        make().prepare(data)
