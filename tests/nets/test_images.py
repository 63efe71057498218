"""Convolutions against torch's own layers, and the papers' parameter counts."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from reverie.nets import (
    MLP,
    Conv,
    Deconv,
    GRUCell,
    ImageDecoder,
    ImageEncoder,
    doubled,
    halved,
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


@pytest.mark.parametrize("layer", [Conv(5, 8, 4), Deconv(8, 5, 4)])
def test_our_kernels_have_the_fans_of_a_convolution(layer):
    bound = (6 / (16 * 13)) ** 0.5
    assert 0.95 * bound < layer.weight.abs().max() <= bound


def test_pictures_are_halved_and_doubled():
    x = torch.randn(2, 8, 6, 3)
    assert halved(x).shape == (2, 4, 3, 3) and doubled(x).shape == (2, 16, 12, 3)
    assert torch.equal(halved(doubled(x)), x)
    assert torch.equal(halved(x)[0, 0, 0], x[0, :2, :2].amax((0, 1)))
