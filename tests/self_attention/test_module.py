"""The module: torch's own where all keys are near, in torch's layers, and what it refuses."""

import copy

import numpy as np
import pytest
import torch

from fractal_lib import FractalSelfAttention, fractal_self_attention


def draw(*shape, seed=0, dtype=torch.float64, width=8):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(*shape, width, generator=generator, dtype=dtype) for _ in range(3))


X = torch.zeros(3, 10, 4)
BAD = {
    "heads do not divide": (
        lambda: FractalSelfAttention(10, 3),
        ValueError,
        "embed_dim=10, num_heads=3",
    ),
    "geometry": (lambda: FractalSelfAttention(8, 2, near=3), ValueError, "near=3, cells=8"),
    "order": (
        lambda: FractalSelfAttention(8, 2, order="z"),
        ValueError,
        "order must be one of time, tree, hilbert, got 'z'",
    ),
    "a width that is not whole": (lambda: FractalSelfAttention(8.0, 2), TypeError, "embed_dim"),
    "dropout above 1": (lambda: FractalSelfAttention(8, 2, 64), ValueError, "dropout.*64"),
    "width": (
        lambda: FractalSelfAttention(8, 2)(X),
        ValueError,
        r"query must .* \(B, N, 8\)",
    ),
    "width, batch second": (
        lambda: FractalSelfAttention(8, 2, batch_first=False)(X),
        ValueError,
        r"query must .* \(N, B, 8\)",
    ),
    "keys of another length": (
        lambda: FractalSelfAttention(4, 2)(X, X[:, :3]),
        ValueError,
        "key must have",
    ),
    "weights asked for": (
        lambda: FractalSelfAttention(4, 2)(X, need_weights=True),
        ValueError,
        "no matrix",
    ),
    "a mask of all pairs": (
        lambda: FractalSelfAttention(4, 2)(X, attn_mask=torch.zeros(10, 10)),
        ValueError,
        "quadratic",
    ),
    "a causal mask that is not": (
        lambda: FractalSelfAttention(4, 2)(X, attn_mask=torch.zeros(10, 10), is_causal=True),
        ValueError,
        "must be the causal mask",
    ),
    "a soft mask": (
        lambda: FractalSelfAttention(4, 2)(X, key_padding_mask=X[:, :, 0] - 1),
        ValueError,
        "-inf",
    ),
    "a mask of whole numbers": (
        lambda: FractalSelfAttention(4, 2)(X, key_padding_mask=X[:, :, 0].long()),
        TypeError,
        "int64",
    ),
    "dropout in training": (
        lambda: FractalSelfAttention(4, 2, dropout=0.1)(X),
        ValueError,
        r"expected dropout=0 \(or eval\(\)\), got 0.1",
    ),
    "keys of another width": (
        lambda: FractalSelfAttention.from_torch(torch.nn.MultiheadAttention(4, 2, kdim=3)),
        ValueError,
        "query's width",
    ),
    "biases among the keys": (
        lambda: FractalSelfAttention.from_torch(
            torch.nn.MultiheadAttention(4, 2, add_bias_kv=True)
        ),
        ValueError,
        "add_bias_kv",
    ),
    "a key of zeros": (
        lambda: FractalSelfAttention.from_torch(
            torch.nn.MultiheadAttention(4, 2, add_zero_attn=True)
        ),
        ValueError,
        "add_zero_attn",
    ),
}


@pytest.mark.parametrize(("call", "error", "words"), BAD.values(), ids=BAD)
def test_bad_arguments_are_a_clear_error(call, error, words):
    with pytest.raises(error, match=words):
        call()


def pair(**settings):
    """The module and torch's, of the same parameters."""
    theirs = torch.nn.MultiheadAttention(
        24, 3, batch_first=settings.get("batch_first", True), bias=settings.get("bias", True)
    ).double()
    ours = FractalSelfAttention(24, 3, dtype=torch.float64, **settings)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_the_module_is_torchs_while_all_keys_are_near(bias, batch_first):
    ours, theirs = pair(bias=bias, batch_first=batch_first)
    x, y, z = draw(*((2, 100) if batch_first else (100, 2)), width=24)
    padding = torch.arange(100) >= torch.tensor([[100], [70]])
    soft = torch.zeros(2, 100, dtype=x.dtype).masked_fill(padding, -torch.inf)
    for mask in (None, padding, soft):
        for inputs in ((x, x, x), (x, y, z)):
            out, weights = ours(*inputs, key_padding_mask=mask)
            expected, _ = theirs(*inputs, key_padding_mask=mask, need_weights=False)
            torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
            assert weights is None
    triangle = torch.ones(100, 100, dtype=torch.bool).triu(1)
    expected, _ = theirs(x, x, x, attn_mask=triangle, need_weights=False)
    torch.testing.assert_close(
        ours(x, attn_mask=triangle, is_causal=True)[0], expected, rtol=0, atol=1e-12
    )
    assert torch.equal(
        ours(x, is_causal=True)[0], pair_like(ours, causal=True, batch_first=batch_first)(x)[0]
    )


def pair_like(module, **settings):
    other = FractalSelfAttention(
        24, 3, dtype=torch.float64, bias=module.in_proj_bias is not None, **settings
    )
    other.load_state_dict(module.state_dict())
    return other


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_it_takes_its_place_in_torchs_encoder_layer(training, batch_first):
    """Also when torch would take a short cut around `forward`: 200 rows are more than are near."""
    layer = torch.nn.TransformerEncoderLayer(24, 4, 32, dropout=0, batch_first=batch_first)
    layer.train(training)
    x, *_ = draw(2, 200, dtype=torch.float32, width=24)
    padding = torch.arange(200) >= torch.tensor([[200], [150]])
    ours = FractalSelfAttention.from_torch(layer.self_attn, near=16, cells=4)
    if not batch_first:
        x = x.transpose(0, 1)
    with torch.no_grad():
        before = layer(x, src_key_padding_mask=padding)
        layer.self_attn = ours
        after = layer(x, src_key_padding_mask=padding)
        normed = layer.norm1(x + ours(x, key_padding_mask=padding)[0])
        expected = layer.norm2(normed + layer.linear2(layer.linear1(normed).relu()))
    torch.testing.assert_close(after, expected)
    assert (after - before).select(0 if batch_first else 1, 0).abs().max() > 1e-3


def test_autocast_keeps_the_softmax_in_float32():
    ours = FractalSelfAttention(32, 2, near=16, cells=4)
    x = draw(1, 200, dtype=torch.float32, width=32)[0].requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, _ = ours(x)
        out.sum().backward()
    exact, _ = ours(x)
    assert out.dtype == torch.bfloat16
    # three products of bfloat16 numbers, each with an error of 2^-8 of the largest
    assert (out - exact).abs().max() < 3 * 2**-8 * x.detach().abs().max()
    assert x.grad.isfinite().all()


def test_a_layer_of_the_other_axis_is_an_error_where_a_mask_shows_it():
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0)
    layer.self_attn = FractalSelfAttention(8, 2)  # the layer's is (N, B, embed_dim)
    x = torch.zeros(20, 3, 8)
    with pytest.raises(ValueError, match="batch_first that of the surrounding layer"):
        layer(x, src_key_padding_mask=torch.zeros(3, 20, dtype=torch.bool))
    causal = torch.nn.Transformer.generate_square_subsequent_mask(20)
    with pytest.raises(ValueError, match="as batch_first=True says"):
        layer(x, src_mask=causal, is_causal=True)
    layer.self_attn = FractalSelfAttention(8, 2, batch_first=False)
    assert layer(x, src_mask=causal, is_causal=True).shape == x.shape


@pytest.mark.parametrize("batch_first", [True, False])
def test_batch_first_is_the_axis_and_nothing_else(batch_first):
    ours, _ = pair(batch_first=batch_first, near=8, cells=2, causal=True)
    other = pair_like(ours, near=8, cells=2, causal=True, batch_first=not batch_first)
    x, *_ = draw(3, 60, width=24)
    x = x if batch_first else x.transpose(0, 1)
    padding = torch.arange(60) >= torch.tensor([[60], [50], [9]])
    out, again = ours(x, None, None, padding)[0], other(x.transpose(0, 1), None, None, padding)[0]
    torch.testing.assert_close(out, again.transpose(0, 1), rtol=0, atol=1e-13)


def test_a_copy_of_torchs_module():
    theirs = torch.nn.MultiheadAttention(8, 2, dropout=0.2, bias=False, dtype=torch.float64).eval()
    ours = FractalSelfAttention.from_torch(theirs, near=4, cells=2, order="hilbert", causal=True)
    assert not ours.training
    assert (ours.dropout, ours.batch_first, ours.in_proj_bias) == (0.2, False, None)
    assert (ours.near, ours.cells, ours.order, ours.causal) == (4, 2, "hilbert", True)
    assert ours.in_proj_weight.dtype == torch.float64
    assert torch.equal(ours.in_proj_weight, theirs.in_proj_weight)
    assert ours.in_proj_weight is not theirs.in_proj_weight
    assert FractalSelfAttention.from_torch(theirs, dropout=0.0).train()(X.double().repeat(1, 1, 2))


def test_dropout_is_no_matter_in_evaluation():
    x, *_ = draw(1, 20, width=8, dtype=torch.float32)
    ours = FractalSelfAttention(8, 2, 0.5).eval()
    plain = FractalSelfAttention(8, 2)
    plain.load_state_dict(ours.state_dict())
    assert torch.equal(ours(x)[0], plain(x)[0])


def test_what_is_not_finite_in_padded_places_reaches_no_parameter():
    ours = FractalSelfAttention(8, 2, near=4, cells=2)
    x, *_ = draw(2, 30, dtype=torch.float32)
    padding = torch.arange(30) >= torch.tensor([[30], [17]])
    grads = []
    for bad in (0.0, torch.nan):
        y = x.masked_fill(padding[..., None], bad).requires_grad_()
        out = ours(y, key_padding_mask=padding.tolist())[0].masked_fill(padding[..., None], 0)
        grads.append(torch.autograd.grad(out.square().sum(), (y, *ours.parameters())))
    for a, b in zip(*grads, strict=True):
        assert torch.equal(a, b)
    assert grads[1][0][padding].eq(0).all()


def test_parameters_begin_as_torchs():
    torch.manual_seed(3)
    ours = FractalSelfAttention(16, 2)
    torch.manual_seed(3)
    theirs = torch.nn.MultiheadAttention(16, 2)
    for name, parameter in theirs.named_parameters():
        assert torch.equal(ours.get_parameter(name), parameter)
    torch.manual_seed(3)
    ours.reset_parameters()
    assert torch.equal(ours.in_proj_weight, theirs.in_proj_weight)
    with torch.device("meta"):
        empty = FractalSelfAttention(16, 2)
    empty = empty.to_empty(device="cpu")
    empty.reset_parameters()
    bound = (6 / (16 + 48)) ** 0.5  # Xavier's for 48 x 16
    assert 0.9 * bound < empty.in_proj_weight.abs().max() <= bound
    assert empty.in_proj_bias.eq(0).all()
    assert empty.out_proj.bias.eq(0).all()


def test_print_shows_what_it_is():
    shown = str(FractalSelfAttention(np.int64(16), 2, 0.1, False, batch_first=False, near=32))
    for part in ("embed_dim=16", "num_heads=2", "near=32", "cells=8", "causal=False"):
        assert part in shown
    for part in ("dropout=0.1", "bias=False", "batch_first=False"):
        assert part in shown
        assert part not in str(FractalSelfAttention(16, 2))


def test_a_deep_copy_is_one_of_its_own():
    ours = FractalSelfAttention(8, 2, near=4, cells=2)
    x, *_ = draw(1, 30, dtype=torch.float32)
    other = copy.deepcopy(ours)
    assert torch.equal(ours(x)[0], other(x)[0])
    torch.nn.init.zeros_(other.in_proj_weight)
    assert not torch.equal(ours(x)[0], other(x)[0])


def test_an_array_is_refused_in_one_sentence():
    array = np.ones((1, 4, 8), dtype=np.float32)
    with pytest.raises(TypeError, match="query must be a tensor, got ndarray"):
        FractalSelfAttention(8, 2)(array)
    with pytest.raises(TypeError, match="got ndarray for query"):
        fractal_self_attention(array, array, array)
