"""The networks every learned world is built from: layers, the image encoder and decoder, recurrent cells."""

from reverie.nets.images import Conv, Convs, Deconv, GridConv, ImageDecoder, ImageEncoder, doubled, halved
from reverie.nets.layer_norm import NORM_EPS, Layer, LayerGRU, LayerMLP
from reverie.nets.linear import MLP, Ensemble, Linear, glorot_, lower, product, rounded
from reverie.nets.normalizer import Normalizer
from reverie.nets.normed import (
    Affine,
    BlockGRU,
    BlockLinear,
    Dense,
    NormMLP,
    RMSNorm,
    inverse_rms,
    norm_silu_,
    norm_silu_back,
    truncated_,
)
from reverie.nets.recurrent import LSTM, GRUCell, NormGRUCell

__all__ = [
    "LSTM",
    "MLP",
    "NORM_EPS",
    "Affine",
    "BlockGRU",
    "BlockLinear",
    "Conv",
    "Convs",
    "Deconv",
    "Dense",
    "Ensemble",
    "GRUCell",
    "GridConv",
    "ImageDecoder",
    "ImageEncoder",
    "Layer",
    "LayerGRU",
    "LayerMLP",
    "Linear",
    "NormGRUCell",
    "NormMLP",
    "Normalizer",
    "RMSNorm",
    "doubled",
    "glorot_",
    "halved",
    "inverse_rms",
    "lower",
    "norm_silu_",
    "norm_silu_back",
    "product",
    "rounded",
    "truncated_",
]
