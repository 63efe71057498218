"""Networks against torch's own layers, the papers' parameter counts, and numbers worked by hand."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from reverie.nets import (
    LSTM,
    MLP,
    BlockGRU,
    BlockLinear,
    Conv,
    Deconv,
    Dense,
    Ensemble,
    GRUCell,
    ImageDecoder,
    ImageEncoder,
    NormGRUCell,
    RMSNorm,
    doubled,
    glorot_,
    halved,
    rounded,
    truncated_,
)
from reverie.types import ReverieError


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def close(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float = 1e-4) -> None:
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max().clamp(min=1e-12)


def scatter_biases(module: nn.Module) -> None:
    for parameter in module.parameters():
        if parameter.ndim == 1:
            nn.init.uniform_(parameter, -0.3, 0.3)


def stock_encoder(encoder: ImageEncoder, image: torch.Tensor) -> torch.Tensor:
    x = image.permute(0, 3, 1, 2).contiguous()
    for conv in encoder.convs:
        x = F.relu(F.conv2d(x, conv.weight.permute(0, 3, 1, 2), conv.bias, stride=2))
    return x.permute(0, 2, 3, 1).flatten(1)


def stock_decoder(decoder: ImageDecoder, feat: torch.Tensor) -> torch.Tensor:
    x = decoder.dense(feat)[:, :, None, None]
    for i, deconv in enumerate([decoder.first, *decoder.deconvs]):
        x = F.relu(x) if i else x
        x = F.conv_transpose2d(x, deconv.weight.permute(0, 3, 1, 2), deconv.bias, stride=2)
    return x.permute(0, 2, 3, 1)


def test_counts_are_those_of_the_papers_code():
    assert count(ImageEncoder((64, 64, 3))) == 690_144
    assert count(ImageDecoder(230, (64, 64, 3))) == 3_795_555
    assert count(GRUCell(200, 200)) == 241_200
    assert count(MLP(230, 400, 4, 12)) == 578_412
    assert count(MLP(230, 400, 3, 1)) == 413_601
    assert count(MLP(230, 400, 2, 1)) == 253_201


@pytest.mark.parametrize(
    ("depth", "channels", "n"), [(32, 3, 2), (8, 1, 5), (16, 3, 1), (4, 4, 3), (3, 3, 2)]
)
def test_encoder_equals_stock_convolutions(depth, channels, n):
    encoder = ImageEncoder((64, 64, channels), depth)
    scatter_biases(encoder)
    image = (torch.rand(n, 64, 64, channels) - 0.5).requires_grad_()
    ours, theirs = encoder(image), stock_encoder(encoder, image)
    close(ours, theirs)
    assert ours.shape == (n, 32 * depth) == (n, encoder.embed)
    weight = torch.randn_like(ours)
    wanted = [image, *encoder.parameters()]
    for a, b in zip(
        torch.autograd.grad((ours * weight).sum(), wanted),
        torch.autograd.grad((theirs * weight).sum(), wanted),
        strict=True,
    ):
        close(a, b)


@pytest.mark.parametrize(
    ("depth", "channels", "n", "feat"),
    [(32, 3, 2, 230), (8, 1, 5, 40), (16, 3, 1, 30), (4, 4, 3, 9), (8, 3, 300, 40), (3, 3, 2, 7)],
)
def test_decoder_equals_stock_transposed_convolutions(depth, channels, n, feat):
    decoder = ImageDecoder(feat, (64, 64, channels), depth)
    scatter_biases(decoder)
    x = torch.randn(n, feat, requires_grad=True)
    ours, theirs = decoder(x), stock_decoder(decoder, x)
    close(ours, theirs)
    assert ours.shape == (n, 64, 64, channels)
    weight = torch.randn_like(ours)
    wanted = [x, *decoder.parameters()]
    for a, b in zip(
        torch.autograd.grad((ours * weight).sum(), wanted),
        torch.autograd.grad((theirs * weight).sum(), wanted),
        strict=True,
    ):
        close(a, b)


def test_other_precisions_take_the_plain_way_to_the_same_numbers():
    encoder, decoder = ImageEncoder((64, 64, 3), 4), ImageDecoder(10, (64, 64, 3), 4)
    image, feat = torch.rand(2, 64, 64, 3), torch.randn(2, 10)
    embed, mean = encoder(image), decoder(feat)
    close(embed, encoder.double()(image.double()).float())
    close(mean, decoder.double()(feat.double()).float())
    with torch.autocast("cpu", torch.bfloat16):
        close(decoder.float()(feat).float(), mean, 0.05)


def test_leading_dimensions_pass_through():
    image = torch.rand(2, 3, 64, 64, 3)
    encoder, decoder = ImageEncoder((64, 64, 3), 4), ImageDecoder(10, (64, 64, 3), 4)
    assert torch.allclose(encoder(image)[1, 2], encoder(image[1, 2]), atol=1e-5)
    feat = torch.randn(2, 3, 10)
    assert torch.allclose(decoder(feat)[1, 2], decoder(feat[1, 2]), atol=1e-5)
    assert decoder(feat).is_contiguous()


@pytest.mark.parametrize("shape", [(32, 64, 3), (84, 84, 3), (64, 64)])
def test_other_sizes_are_refused(shape):
    with pytest.raises(ReverieError, match="Resize"):
        ImageEncoder(shape)
    with pytest.raises(ReverieError, match="Resize"):
        ImageDecoder(8, shape)


def test_gru_of_zeros_halves_the_state():
    cell = GRUCell(3, 4)
    for parameter in cell.parameters():
        nn.init.zeros_(parameter)
    h = torch.randn(2, 4)
    assert torch.allclose(cell(torch.randn(2, 3), h), 0.5 * h)


def test_gru_worked_example():
    cell = GRUCell(2, 2)
    with torch.no_grad():
        cell.kernel.copy_(torch.tensor([[0.1, 0.2], [0.3, 0.4]]).repeat(3, 1))
        cell.recurrent.copy_(torch.tensor([[0.5, -0.3], [0.2, 0.1]]).repeat(3, 1))
    h = cell(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5, -0.5]]))
    assert torch.allclose(h, torch.tensor([[0.544864515, -0.184061970]]), atol=1e-7)


@pytest.mark.parametrize("lead", [(5,), (2, 3), ()])
def test_gru_equals_torchs_own(lead):
    ours, theirs = GRUCell(6, 4), nn.GRUCell(6, 4)
    scatter_biases(ours)
    with torch.no_grad():
        theirs.weight_ih.copy_(ours.kernel)
        theirs.weight_hh.copy_(ours.recurrent)
        theirs.bias_ih.copy_(ours.bias)
        theirs.bias_hh.copy_(ours.bias_recurrent)
    x, h = torch.randn(*lead, 6, requires_grad=True), torch.randn(*lead, 4, requires_grad=True)
    a = ours(x, h)
    b = theirs(x.reshape(-1, 6), h.reshape(-1, 4)).reshape(a.shape)
    close(a, b)
    weight = torch.randn_like(a)
    ours_grad = torch.autograd.grad(
        (a * weight).sum(), [x, h, ours.kernel, ours.recurrent, ours.bias, ours.bias_recurrent]
    )
    theirs_grad = torch.autograd.grad(
        (b * weight).sum(), [x, h, theirs.weight_ih, theirs.weight_hh, theirs.bias_ih, theirs.bias_hh]
    )
    for p, q in zip(ours_grad, theirs_grad, strict=True):
        close(p, q)


def test_glorot_bounds_and_zeros():
    for layer, bound in [
        (nn.Linear(30, 50), (6 / 80) ** 0.5),
        (nn.Conv2d(3, 32, 4), (6 / (16 * 35)) ** 0.5),
        (nn.ConvTranspose2d(64, 32, 6), (6 / (36 * 96)) ** 0.5),
    ]:
        glorot_(layer)
        assert 0.95 * bound < layer.weight.abs().max() <= bound
        assert (layer.bias == 0).all()


@pytest.mark.parametrize("layer", [Conv(5, 8, 4), Deconv(8, 5, 4)])
def test_our_kernels_have_the_fans_of_a_convolution(layer):
    bound = (6 / (16 * 13)) ** 0.5
    assert 0.95 * bound < layer.weight.abs().max() <= bound


def test_recurrent_kernels_are_orthogonal():
    recurrent = GRUCell(5, 6).recurrent
    assert torch.allclose(recurrent.T @ recurrent, torch.eye(6), atol=1e-5)


def test_same_generator_same_weights():
    one = glorot_(MLP(3, 8, 2, 2), torch.Generator().manual_seed(7))
    two = glorot_(MLP(3, 8, 2, 2), torch.Generator().manual_seed(7))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


@pytest.mark.parametrize("act", [F.elu, nn.ELU])
def test_mlp_is_linear_act_linear(act):
    mlp = MLP(3, 5, 2, 2, act)
    x = torch.randn(4, 2, 3)
    y = x
    for layer in mlp.hidden:
        y = F.elu(layer(y))
    close(mlp(x), mlp.out(y))
    assert MLP(3, 5, 2, None, act)(x).shape == (4, 2, 5)
    assert MLP(3, 5, 0, 2, act)(x).shape == (4, 2, 2)


def test_lstm_is_its_step_in_a_loop_and_so_is_its_gradient():
    """Resets in the middle, the last cell read too; in double precision."""
    torch.manual_seed(0)
    lstm = LSTM(3, 5).double()
    x, w = (
        torch.randn(7, 4, 3, dtype=torch.double, requires_grad=True),
        torch.randn(7, 4, 5, dtype=torch.double),
    )
    h, c = (torch.randn(4, 5, dtype=torch.double, requires_grad=True) for _ in range(2))
    keep = (torch.rand(7, 4) > 0.3).double()

    def in_a_loop():
        out, now = [], (h, c)
        for t in range(7):
            now = lstm.step(x[t], *(part * keep[t][:, None] for part in now))
            out.append(now[0])
        return torch.stack(out), now

    found = []
    for hidden, (last_h, last_c) in (lstm(x, h, c, keep), in_a_loop()):
        loss = (hidden * w).sum() + last_c.square().sum() + last_h.sum()
        found.append([hidden, *torch.autograd.grad(loss, [x, h, c, *lstm.parameters()])])
    for ours, slow in zip(*found, strict=True):
        torch.testing.assert_close(ours, slow, rtol=1e-12, atol=1e-12)


def test_gru_without_gradient_is_the_same_cell():
    torch.manual_seed(0)
    cell, x, h = GRUCell(7, 12), 3 * torch.randn(100, 7), torch.randn(100, 12)
    with torch.no_grad():
        fast = cell(x, h)
    torch.testing.assert_close(fast, cell(x, h), rtol=1e-5, atol=2e-6)


@given(
    members=st.integers(1, 3),
    units=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    own=st.booleans(),
    seed=st.integers(0, 99),
)
def test_an_ensemble_is_its_members_side_by_side(members, units, own, seed):
    """Values and all gradients, in double precision, beside plain layers; and ``through``, with the input's alone."""
    torch.manual_seed(seed)
    net = Ensemble(3, units, 2, members).double()
    x = torch.randn(*([members] if own else []), 4, 3, dtype=torch.float64, requires_grad=True)
    parameters = list(net.parameters())

    def plain(m):
        h = x[m] if own else x
        for i, (weight, bias) in enumerate(zip(net.weights, net.biases, strict=True)):
            h = F.linear(h, weight[m], bias[m])
            h = h if i == len(units) else F.relu(h)
        return h

    expected, out, through = torch.stack([plain(m) for m in range(members)]), net(x), net.through(x)
    assert out.shape == (members, 4, 2)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(through, expected)
    torch.testing.assert_close(net.through(x, 1), expected[:1])
    weight = torch.randn_like(out)
    theirs = torch.autograd.grad(expected, [x, *parameters], weight)
    for a, b in zip(torch.autograd.grad(out, [x, *parameters], weight), theirs, strict=True):
        torch.testing.assert_close(a, b)
    alone = torch.autograd.grad(through, [x, *parameters], weight, allow_unused=True)
    torch.testing.assert_close(alone[0], theirs[0])
    assert all(g is None for g in alone[1:])


def test_an_ensembles_fast_path_is_the_same_sums():
    """64 rows of float32 and more go through another library."""
    net = Ensemble(5, (32, 32), 1, 2)
    x = torch.randn(128, 5)
    out = net(x)
    expected = torch.cat([net(part) for part in x.split(32)], 1)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-4)
    weight = torch.randn_like(out)
    a = torch.autograd.grad(out, list(net.parameters()), weight)
    b = torch.autograd.grad(expected, list(net.parameters()), weight)
    for x_grad, y_grad in zip(a, b, strict=True):
        torch.testing.assert_close(x_grad, y_grad, atol=1e-4, rtol=1e-3)


def test_an_ensemble_starts_fan_in_uniform():
    net = Ensemble(16, (64, 64), 8, 2, last=0.01)
    for weight, bias, bound in zip(net.weights, net.biases, (0.25, 0.125, 0.01), strict=True):
        assert 0.9 * bound < float(weight.detach().abs().max()) <= bound
        assert float(bias.detach().abs().max()) <= bound
    assert not torch.equal(net.weights[0][0], net.weights[0][1])


def test_rounded_matrices_predict_nearly_the_same_and_leave_the_net_alone():
    net = MLP(6, 32, 2, 3)
    x, before = torch.randn(70, 6), [p.clone() for p in net.parameters()]
    coarse = rounded(net)
    with torch.no_grad():
        exact, told = net(x), coarse(x)
    assert told.dtype == torch.float32 and not torch.equal(exact, told)
    torch.testing.assert_close(told, exact, atol=0.05, rtol=0.05)
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    assert not any(p.requires_grad for p in coarse.parameters())


# Layers with norms


def test_root_mean_square_norm():
    norm = RMSNorm(2).double()
    assert norm(torch.tensor([3.0, 4.0], dtype=torch.float64)).tolist() == pytest.approx(
        [0.84852474, 1.13136632], abs=1e-8
    )
    assert [name for name, _ in norm.named_parameters()] == ["scale"]


def test_truncated_weights_have_the_wished_variance_and_end_at_two_deviations():
    weight = truncated_(torch.empty(400, 500), 25, generator=torch.Generator().manual_seed(0))
    assert weight.std().item() == pytest.approx(0.2, rel=0.01)
    assert weight.abs().max().item() == pytest.approx(2 * 1.1368 * 0.2, rel=0.01)
    assert (truncated_(torch.ones(3, 3), 3, 0.0) == 0).all()


def test_dense_is_linear_norm_silu_and_so_is_its_gradient():
    layer = Dense(5, 7).double()
    nn.init.uniform_(layer.norm.scale, 0.5, 1.5)
    scatter_biases(layer.linear)
    x = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    plain = F.silu(layer.norm(F.linear(x, layer.linear.weight, layer.linear.bias)))
    torch.testing.assert_close(layer(x), plain)
    leaves, direction = [x, *layer.parameters()], torch.randn_like(plain)
    ours = torch.autograd.grad((layer(x) * direction).sum(), leaves)
    theirs = torch.autograd.grad((plain * direction).sum(), leaves)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), plain)


def test_a_block_layer_is_a_block_diagonal_matrix():
    layer = BlockLinear(6, 4, 2)
    scatter_biases(layer)
    x = torch.randn(3, 5, 6)
    whole = torch.block_diag(*layer.weight)
    torch.testing.assert_close(layer(x), x @ whole + layer.bias)
    with pytest.raises(ReverieError, match="widths that 4 divides"):
        BlockLinear(6, 4, 4)


def test_block_layers_begin_as_small_as_full_ones():
    layer = BlockLinear(512, 512, 8)
    assert layer.weight.std().item() == pytest.approx(512**-0.5, rel=0.02)


def test_block_gru_counts():
    """Size 1m with six actions, as the sheet of the release splits it."""
    cell = BlockGRU(128, 6, 512, 64, 8)
    assert count(cell.from_deter) == 32_896 and count(cell.from_stoch) == 8_320
    assert count(cell.mix) + count(cell.norm) == 132_096 and count(cell.gates) == 99_840


def test_a_gru_with_a_norm():
    """The gates are normed together; with no kernel sig(-1) of the state is forgotten."""
    cell = NormGRUCell(3, 4).double()
    nn.init.zeros_(cell.kernel.weight)
    h = torch.ones(1, 4, dtype=torch.float64)
    assert cell(torch.zeros(1, 3, dtype=torch.float64), h)[0].tolist() == pytest.approx([0.73105858] * 4)
    norm = nn.LayerNorm(2, 1e-3).double()
    assert norm(torch.tensor([3.0, 4.0], dtype=torch.float64)).tolist() == pytest.approx(
        [-0.998006, 0.998006], abs=1e-6
    )


def test_pictures_are_halved_and_doubled():
    x = torch.randn(2, 8, 6, 3)
    assert halved(x).shape == (2, 4, 3, 3) and doubled(x).shape == (2, 16, 12, 3)
    assert torch.equal(halved(doubled(x)), x)
    assert torch.equal(halved(x)[0, 0, 0], x[0, :2, :2].amax((0, 1)))
