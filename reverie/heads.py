"""What stands between an observation space and a latent: encoder, decoder, and scalar heads.

Built from the spaces alone: every image goes through convolutions, all vectors together through one MLP, and
the embedding is their concatenation. A world of one image has exactly the parameters of the papers; vectors
are our addition, so that any observation can be used.
"""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from reverie.dists import UnitNormal
from reverie.nets import MLP, ImageDecoder, ImageEncoder
from reverie.types import ObsSpace, ReverieError, Space


def split_space(space: ObsSpace) -> tuple[dict[str, Space], dict[str, Space]]:
    """Images and vectors of an observation space, in the order of their names."""
    images = {key: space[key] for key in sorted(space) if space[key].is_image}
    vectors = {key: space[key] for key in sorted(space) if not space[key].is_image}
    if not images and not vectors:
        raise ReverieError("the observation space is empty: an agent needs at least one image or vector")
    return images, vectors


class Encoder(nn.Module):
    """Observations (images already scaled, "*B h w c"; vectors "*B n") to an embedding "*B E"."""

    def __init__(
        self,
        space: ObsSpace,
        depth: int,
        units: int,
        layers: int = 2,
        act: Callable[[Tensor], Tensor] = F.relu,
        image_act: Callable[[Tensor], Tensor] = F.relu,
    ):
        super().__init__()
        images, vectors = split_space(space)
        self.images = nn.ModuleDict(
            {key: ImageEncoder(s.shape, depth, image_act) for key, s in images.items()}
        )
        self.vector_keys = list(vectors)
        width = sum(s.shape[0] for s in vectors.values())
        self.vectors = MLP(width, units, layers, act=act) if vectors else None
        self.embed = sum(32 * depth for _ in images) + (units if vectors else 0)

    def forward(self, obs: Mapping[str, Tensor]) -> Float[Tensor, "*B E"]:
        parts = [encoder(obs[key]) for key, encoder in self.images.items()]
        if self.vectors is not None:
            parts.append(self.vectors(torch.cat([obs[key] for key in self.vector_keys], -1)))
        return torch.cat(parts, -1) if len(parts) > 1 else parts[0]


class Decoder(nn.Module):
    """Features "*B F" to the mean of every observation, as unit-variance Gaussians."""

    def __init__(
        self,
        features: int,
        space: ObsSpace,
        depth: int,
        units: int,
        layers: int = 2,
        act: Callable[[Tensor], Tensor] = F.relu,
        image_act: Callable[[Tensor], Tensor] = F.relu,
    ):
        super().__init__()
        images, vectors = split_space(space)
        self.images = nn.ModuleDict(
            {key: ImageDecoder(features, s.shape, depth, image_act) for key, s in images.items()}
        )
        self.sizes = {key: s.shape[0] for key, s in vectors.items()}
        width = sum(self.sizes.values())
        self.vectors = MLP(features, units, layers, width, act) if vectors else None

    def forward(self, feat: Float[Tensor, "*B F"]) -> dict[str, UnitNormal]:
        means = {key: UnitNormal(decoder(feat), event=3) for key, decoder in self.images.items()}
        if self.vectors is not None:
            parts = self.vectors(feat).split(list(self.sizes.values()), -1)
            means |= {key: UnitNormal(part, event=1) for key, part in zip(self.sizes, parts, strict=True)}
        return means


class Scalar(nn.Module):
    """Features "*B F" to one number each, "*B"."""

    def __init__(self, features: int, units: int, layers: int, act: Callable[[Tensor], Tensor] = F.elu):
        super().__init__()
        self.mlp = MLP(features, units, layers, 1, act)

    def forward(self, feat: Float[Tensor, "*B F"]) -> Float[Tensor, "*B"]:
        return self.mlp(feat).squeeze(-1)
