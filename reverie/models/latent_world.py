"""A latent world: encoder, RSSM and heads together, as the ``World`` that a dream can be made of.

The agent owns the parts and trains them; this only shows them in the protocol's words.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Generator, Tensor

from reverie.models.rssm import RSSM, BlockRSSM, State


class LatentWorld:
    """``scale`` turns raw observations into what the encoder reads, ``unscale`` what the decoder says back.

    ``reward`` and ``cont`` are functions of features "*B F"; without ``cont`` an episode never ends.
    ``temperature`` may be set at any time; it bears on what is imagined, not on what is observed.
    """

    def __init__(
        self,
        rssm: RSSM | BlockRSSM,
        encoder: Callable[[Mapping[str, Tensor]], Tensor],
        decoder: Callable[[Tensor], Mapping],
        reward: Callable[[Tensor], Tensor],
        cont: Callable[[Tensor], Tensor] | None,
        scale: Callable[[Mapping[str, Tensor]], dict[str, Tensor]],
        unscale: Callable[[dict[str, Tensor]], dict[str, Tensor]],
        generator: Generator | None = None,
        temperature: float = 1.0,
    ):
        self.rssm, self.encoder, self.decoder = rssm, encoder, decoder
        self.reward_head, self.cont_head = reward, cont
        self.scale, self.unscale, self.generator = scale, unscale, generator
        self.temperature = temperature

    def initial(self, n: int) -> State:
        return self.rssm.initial(n)

    @torch.no_grad()
    def observe(
        self, obs: Mapping[str, Tensor], prev_action: Tensor, is_first: Tensor, carry: State
    ) -> State:
        embed = self.encoder(self.scale(obs))
        return self.rssm.obs_step(carry, prev_action, embed, is_first, self.generator)

    @torch.no_grad()
    def imagine(self, carry: State, action: Tensor) -> State:
        return self.rssm.img_step(carry, action, self.generator, self.temperature)

    @torch.no_grad()
    def features(self, carry: State) -> Tensor:
        return self.rssm.feat(carry)

    @torch.no_grad()
    def decode(self, carry: State) -> dict[str, Tensor]:
        heads = self.decoder(self.rssm.feat(carry))
        return self.unscale({key: dist.mode for key, dist in heads.items()})

    @torch.no_grad()
    def reward(self, carry: State) -> Tensor:
        return self.reward_head(self.rssm.feat(carry))

    @torch.no_grad()
    def cont(self, carry: State) -> Tensor:
        feat = self.rssm.feat(carry)
        return feat.new_ones(feat.shape[:-1]) if self.cont_head is None else self.cont_head(feat)

    def take(self, carry: State, index: Tensor) -> State:
        return carry.take(index)

    def put(self, carry: State, index: Tensor, part: State) -> State:
        return carry.put(index, part)
