"""The recurrent state-space model (Hafner et al. 2019, Sec. 3): a deterministic path h and a stochastic path s.

::

    prior                                       posterior
    s_{t-1} ──┐                                 o_t ── embed ──┐
    a_{t-1} ──┴─ x ─┐                                          ├─ stats ─ s_t
    h_{t-1} ────────┴─ cell ─ h_t ─ stats ─ s_t        h_t ────┘

The observation enters only through the sample s_t, never directly into h_t; prior and posterior of one step
share the same h_t. Heads read ``feat`` = [s_t, h_t].

Built from objects, so that the constructors tell its history: ``RSSM(..., latent=Gaussian(30), cell=GRUCell)``
is PlaNet's and Dreamer V1's.

Whatever does not depend on the recurrence is computed for all of time at once: the embedding's half of the
posterior, the action's share of x, and the whole prior head.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Generator, Tensor, nn

from reverie.dists import Normal
from reverie.nets import Linear


class State(NamedTuple):
    """What is known of the present: of one step ("N ...") or of sequences ("B T ...")."""

    deter: Tensor  # h, "... D"
    stoch: Tensor  # s, "... S", a sample
    stats: Tensor  # what the sample was drawn from; ``latent.dist(stats)``

    def detach(self) -> "State":
        return State(*(part.detach() for part in self))

    def flatten(self) -> "State":
        """Merge the leading dimensions: "B T ..." to "B*T ..."."""
        return State(*(part.flatten(0, -2) for part in self))

    def take(self, index: Any) -> "State":
        """The same rows of every part."""
        return State(self.deter[index], self.stoch[index], self.stats[index])

    def put(self, index: Tensor, part: "State") -> "State":
        """A copy in which the rows ``index`` are those of ``part``."""
        return State(*(old.index_put((index,), new) for old, new in zip(self, part, strict=True)))


class Gaussian:
    """Diagonal Gaussian latent of ``size`` dimensions, std = softplus(rho) + ``min_std``.

    ``stochastic=False`` passes the mean on instead of a sample: PlaNet's purely deterministic ablation.
    """

    def __init__(self, size: int, min_std: float = 0.1, stochastic: bool = True):
        self.size, self.stats_size = size, 2 * size
        self.min_std, self.stochastic = min_std, stochastic

    def dist(self, stats: Float[Tensor, "*B stats"]) -> Normal:
        mean, rho = stats.chunk(2, -1)
        return Normal(mean, self.std(rho))

    def std(self, rho: Float[Tensor, "*B S"]) -> Float[Tensor, "*B S"]:
        # A copy first: softplus on half of every row is ten times slower on a CPU.
        return F.softplus(rho.contiguous()) + self.min_std

    def noise(self, shape: tuple[int, ...], like: Tensor, generator: Generator | None) -> Tensor:
        if not self.stochastic:
            return torch.zeros(*shape, self.size, device=like.device)
        return torch.randn(*shape, self.size, device=like.device, generator=generator)

    def sample(
        self, stats: Float[Tensor, "*B stats"], noise: Float[Tensor, "*B S"], temperature: float = 1.0
    ) -> Float[Tensor, "*B S"]:
        """``temperature`` multiplies the variance, as in a mixture of one component (Ha & Schmidhuber 2018)."""
        mean, rho = stats.chunk(2, -1)
        if not self.stochastic:
            return mean
        std = self.std(rho)
        return torch.addcmul(mean, std if temperature == 1.0 else math.sqrt(temperature) * std, noise)


class Memoryless(nn.Module):
    """A cell that forgets: h_t is its input. PlaNet's purely stochastic ablation (no deterministic path)."""

    def forward(self, x: Tensor, deter: Tensor) -> Tensor:
        return x


class Imagined(NamedTuple):
    """H steps of imagination from N starts; the start itself is not among them."""

    feat: Tensor  # "H N F", features of z_1 .. z_H
    action: Tensor  # "H N A", a_0 .. a_{H-1}; action[k] led to feat[k]
    last: State  # z_H, "N ..."


class RSSM(nn.Module):
    """``embed`` E, ``actions`` A sizes; ``hidden`` is the width of every hidden layer and D of the state."""

    def __init__(
        self,
        embed: int,
        actions: int,
        latent: Gaussian,
        cell: nn.Module,
        hidden: int = 200,
        act: Callable[[Tensor], Tensor] = F.elu,
    ):
        super().__init__()
        self.latent, self.cell, self.act = latent, cell, act
        self.deter = hidden
        self.features = latent.size + hidden
        self.img_in = Linear(latent.size + actions, hidden)  # W1
        self.img_hidden = Linear(hidden, hidden)  # W2
        self.img_stats = Linear(hidden, latent.stats_size)  # W3
        self.obs_hidden = Linear(hidden + embed, hidden)  # W4
        self.obs_stats = Linear(hidden, latent.stats_size)  # W5

    def initial(self, n: int) -> State:
        """Zeros. The zero stats are a placeholder: no density is evaluated on them."""
        zeros = self.img_in.weight.new_zeros
        return State(zeros(n, self.deter), zeros(n, self.latent.size), zeros(n, self.latent.stats_size))

    def feat(self, state: State) -> Float[Tensor, "*B F"]:
        return torch.cat([state.stoch, state.deter], -1)

    def img_step(
        self,
        state: State,
        action: Float[Tensor, "N A"],
        generator: Generator | None = None,
        temperature: float = 1.0,
    ) -> State:
        """One step of the prior: what comes after ``action``, without looking."""
        x = self.img_in(torch.cat([state.stoch, action], -1), self.act)
        deter = self.cell(x, state.deter)
        stats = self.prior(deter)
        noise = self.latent.noise(deter.shape[:-1], deter, generator)
        return State(deter, self.latent.sample(stats, noise, temperature), stats)

    def obs_step(
        self,
        state: State,
        prev_action: Float[Tensor, "N A"],
        embed: Float[Tensor, "N E"],
        is_first: Bool[Tensor, "N"],
        generator: Generator | None = None,
    ) -> State:
        """One step of the posterior; where ``is_first``, state and action are zeroed before it."""
        keep = (~is_first)[:, None].to(embed.dtype)
        x = self.act(self.img_in(torch.cat([state.stoch, prev_action], -1) * keep))
        deter = self.cell(x, state.deter * keep)
        stats = self.obs_stats(self.act(self.obs_hidden(torch.cat([deter, embed], -1))))
        noise = self.latent.noise(deter.shape[:-1], deter, generator)
        return State(deter, self.latent.sample(stats, noise), stats)

    def prior(self, deter: Float[Tensor, "*B D"]) -> Float[Tensor, "*B stats"]:
        """Stats of p(s_t | h_t)."""
        return self.img_stats(self.img_hidden(deter, self.act))

    def observe(
        self,
        embed: Float[Tensor, "B T E"],
        prev_action: Float[Tensor, "B T A"],
        is_first: Bool[Tensor, "B T"],
        generator: Generator | None = None,
    ) -> tuple[State, Float[Tensor, "B T stats"]]:
        """Filter along data from the zero state. Returns the posterior states and the prior's stats, "B T ...".

        ::

            row          0          1          2
            consumes   a_-1, o0    a0, o1     a1, o2      a_-1: the action before the first row; zero at a reset
            predicts   s0 | h0     s1 | h1    s2 | h2
        """
        batch, time = embed.shape[:2]
        keep = (~is_first).to(embed.dtype)[..., None]
        w_stoch, w_action = self.img_in.weight.split([self.latent.size, prev_action.shape[-1]], 1)
        w_deter, w_embed = self.obs_hidden.weight.split([self.deter, embed.shape[-1]], 1)
        from_action = F.linear(prev_action * keep, w_action, self.img_in.bias).unbind(1)
        from_embed = F.linear(embed, w_embed, self.obs_hidden.bias).unbind(1)
        noises = self.latent.noise((time, batch), embed, generator)
        keeps = keep.unbind(1)

        deter, stoch, _ = self.initial(batch)
        deters, stochs, statss = [], [], []
        for t in range(time):
            x = self.act(torch.addmm(from_action[t], stoch * keeps[t], w_stoch.t()))
            deter = self.cell(x, deter * keeps[t])
            y = self.act(torch.addmm(from_embed[t], deter, w_deter.t()))
            stats = self.obs_stats(y)
            stoch = self.latent.sample(stats, noises[t])
            deters.append(deter)
            stochs.append(stoch)
            statss.append(stats)
        post = State(torch.stack(deters, 1), torch.stack(stochs, 1), torch.stack(statss, 1))
        return post, self.prior(post.deter)

    def imagine(
        self,
        start: State,
        policy: Callable[[Float[Tensor, "N F"]], Float[Tensor, "N A"]],
        horizon: int,
        generator: Generator | None = None,
    ) -> Imagined:
        """Roll the prior ``horizon`` steps from N starts under ``policy``, which maps features to actions."""
        state, feat = start, self.feat(start)
        feats, actions = [], []
        for _ in range(horizon):
            action = policy(feat)
            state = self.img_step(state, action, generator)
            feat = self.feat(state)
            feats.append(feat)
            actions.append(action)
        return Imagined(torch.stack(feats), torch.stack(actions), state)
