"""The recurrent state-space model (Hafner et al. 2019, Sec. 3): a deterministic path h and a stochastic path s.

::

    prior                                       posterior
    s_{t-1} ──┐                                 o_t ── embed ──┐
    a_{t-1} ──┴─ x ─┐                                          ├─ stats ─ s_t
    h_{t-1} ────────┴─ cell ─ h_t ─ stats ─ s_t        h_t ────┘

The observation enters only through the sample s_t, never directly into h_t; prior and posterior of one step
share the same h_t. Heads read ``feat`` = [s_t, h_t].

Built from objects, so that the constructors tell its history: ``RSSM(..., Gaussian(30), GRUCell)`` is PlaNet's and
Dreamer V1's, ``RSSM(..., Categorical(32, 32), NormGRUCell)`` V2's, ``StartedRSSM(..., Categorical(32, 32, 0.01))``
DayDreamer's and the first V3's, whose layers have norms and whose start is learned, and
``BlockRSSM(..., Categorical(32, K, 0.01))`` V3's, whose memory lies in blocks.

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
from torch.autograd.function import once_differentiable

from reverie.dists import FEW, Categoricals, Normal, draw_few, draw_one_hot, unimixed
from reverie.nets import (
    Affine,
    BlockGRU,
    Dense,
    Layer,
    LayerGRU,
    LayerMLP,
    Linear,
    NormMLP,
    inverse_rms,
    norm_silu_back,
)


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


class Categorical:
    """``groups`` one-hot choices among ``classes`` each, laid side by side; samples are straight-through.

    A share ``unimix`` of every group's probability is spread evenly, so that no KL is infinite.
    """

    def __init__(self, groups: int, classes: int, unimix: float = 0.0):
        self.groups, self.classes, self.unimix = groups, classes, unimix
        self.size = self.stats_size = groups * classes

    def dist(self, stats: Float[Tensor, "*B stats"]) -> Categoricals:
        return Categoricals(stats, self.classes, self.unimix)

    def noise(self, shape: tuple[int, ...], like: Tensor, generator: Generator | None) -> Tensor:
        """One uniform number for each group."""
        return torch.rand(*shape, self.groups, device=like.device, dtype=like.dtype, generator=generator)

    def sample(
        self, stats: Float[Tensor, "*B stats"], noise: Float[Tensor, "*B S"], temperature: float = 1.0
    ) -> Float[Tensor, "*B SK"]:
        """One-hot in value, the gradient of the probabilities; ``temperature`` divides the logits."""
        logits = stats.unflatten(-1, (self.groups, self.classes))
        logits = logits if temperature == 1.0 else logits / temperature
        if not (torch.is_grad_enabled() and logits.requires_grad):
            if self.classes <= FEW:
                return draw_few(logits, noise, self.unimix).flatten(-2)
            return draw_one_hot(self.weights(logits), noise).flatten(-2)
        probs = unimixed(logits, self.unimix)
        hot = draw_one_hot(probs.detach(), noise)
        return (hot + (probs - probs.detach())).flatten(-2)

    def weights(self, logits: Float[Tensor, "*B S K"]) -> Float[Tensor, "*B S K"]:
        """Proportional to the probabilities: a softmax over so few classes is several times slower."""
        weights = (logits - logits.amax(-1, keepdim=True)).exp_()
        if self.unimix:
            even = weights.sum(-1, keepdim=True).mul_(self.unimix / self.classes)
            weights.mul_(1.0 - self.unimix).add_(even)
        return weights


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
        latent: "Gaussian | Categorical",
        cell: nn.Module,
        hidden: int = 200,
        act: Callable[[Tensor], Tensor] = F.elu,
    ):
        super().__init__()
        self.latent: Any = latent
        self.cell, self.act = cell, act
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


class StartedRSSM(RSSM):
    """The same model with a layer norm after every layer, a prior of ``prior_layers``, and a start that is learned
    (Wu et al. 2022; Hafner et al. 2023, first version)::

        h_0 = tanh(w)       s_0 = the likeliest under the prior of h_0

    ``embed`` E, ``actions`` A and ``deter`` D sizes; ``hidden`` is the width of every hidden layer.
    """

    img_in: Any
    img_stats: Any
    obs_stats: Any

    def __init__(
        self,
        embed: int,
        actions: int,
        latent: Categorical,
        deter: int,
        hidden: int,
        act: Callable[[Tensor], Tensor],
        prior_layers: int = 1,
    ):
        nn.Module.__init__(self)
        self.latent, self.deter = latent, deter
        self.features = latent.size + deter
        self.img_in = Layer(latent.size + actions, hidden, act)
        self.cell = LayerGRU(hidden, deter)
        self.img_stats = LayerMLP(deter, hidden, prior_layers, act, latent.size)
        self.obs_stats = LayerMLP(deter + embed, hidden, 1, act, latent.size)
        self.start = nn.Parameter(torch.zeros(deter))

    def initial(self, n: int) -> State:
        deter = torch.tanh(self.start).expand(n, -1)
        stats = self.prior(deter)
        return State(deter, self.latent.dist(stats).mode, stats)

    def prior(self, deter: Float[Tensor, "*B D"]) -> Float[Tensor, "*B stats"]:
        """Stats of p(s_t | h_t)."""
        return self.img_stats(deter)

    def img_step(
        self,
        state: State,
        action: Float[Tensor, "N A"],
        generator: Generator | None = None,
        temperature: float = 1.0,
    ) -> State:
        """One step of the prior: what comes after ``action``, without looking."""
        deter = self.cell(self.img_in(torch.cat([state.stoch, action], -1)), state.deter)
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
        """One step of the posterior; where ``is_first``, from the learned start and without an action."""
        first = is_first[:, None]
        start = self.initial(len(embed))
        deter = torch.where(first, start.deter, state.deter)
        stoch = torch.where(first, start.stoch, state.stoch)
        action = torch.where(first, torch.zeros_like(prev_action), prev_action)
        deter = self.cell(self.img_in(torch.cat([stoch, action], -1)), deter)
        stats = self.obs_stats(torch.cat([deter, embed], -1))
        noise = self.latent.noise(deter.shape[:-1], deter, generator)
        return State(deter, self.latent.sample(stats, noise), stats)

    def observe(
        self,
        embed: Float[Tensor, "B T E"],
        prev_action: Float[Tensor, "B T A"],
        is_first: Bool[Tensor, "B T"],
        generator: Generator | None = None,
    ) -> tuple[State, Float[Tensor, "B T stats"]]:
        """Filter along data from the learned start; posterior states and the prior's stats, "B T ...". The posterior
        of h_t, s_{t-1} and a_{t-1} is ``obs_step``'s; the embedding's and the action's shares are computed at once."""
        size, layer, head = self.latent.size, self.img_in, self.obs_stats.hidden[0]
        keep = (~is_first)[..., None].to(embed.dtype)
        from_action = F.linear(prev_action * keep, layer.weight[:, size:]).unbind(1)
        from_embed = F.linear(embed, head.weight[:, self.deter :]).unbind(1)
        w_stoch, w_deter = layer.weight[:, :size].t(), head.weight[:, : self.deter].t()
        noises = self.latent.noise((embed.shape[1], len(embed)), embed, generator)
        start = self.initial(len(embed))
        deter, stoch = start.deter, start.stoch
        deters, stochs, statss = [], [], []
        for t, first in enumerate(is_first[..., None].unbind(1)):
            deter, stoch = torch.where(first, start.deter, deter), torch.where(first, start.stoch, stoch)
            x = layer.act(layer.norm(torch.addmm(from_action[t], stoch, w_stoch)))
            deter = self.cell(x, deter)
            y = head.act(head.norm(torch.addmm(from_embed[t], deter, w_deter)))
            stats = self.obs_stats.out(y)
            stoch = self.latent.sample(stats, noises[t])
            deters.append(deter)
            stochs.append(stoch)
            statss.append(stats)
        post = State(torch.stack(deters, 1), torch.stack(stochs, 1), torch.stack(statss, 1))
        return post, self.prior(post.deter)


class BlockRSSM(nn.Module):
    """The same model with a block-diagonal cell and a norm after every layer (Hafner et al. 2023, App. B).

    ``embed`` E, ``actions`` A and ``deter`` D sizes; ``hidden`` is the width of every hidden layer. Features are
    [h_t, s_t]. Actions beyond [-1, 1] are taken as if cut off there.
    """

    def __init__(
        self,
        embed: int,
        actions: int,
        latent: Categorical,
        deter: int,
        hidden: int,
        blocks: int = 8,
        prior_layers: int = 2,
    ):
        super().__init__()
        self.latent, self.deter = latent, deter
        self.features = deter + latent.size
        self.cell = BlockGRU(latent.size, actions, deter, hidden, blocks)
        self.img_stats = NormMLP(deter, hidden, prior_layers, latent.stats_size)
        self.obs_hidden = Dense(deter + embed, hidden)
        self.obs_stats = Affine(hidden, latent.stats_size)

    def initial(self, n: int) -> State:
        """Zeros. The zero stats are a placeholder: no density is evaluated on them."""
        zeros = self.obs_stats.weight.new_zeros
        return State(zeros(n, self.deter), zeros(n, self.latent.size), zeros(n, self.latent.stats_size))

    def feat(self, state: State) -> Float[Tensor, "*B F"]:
        return torch.cat([state.deter, state.stoch], -1)

    def img_step(
        self,
        state: State,
        action: Float[Tensor, "N A"],
        generator: Generator | None = None,
        temperature: float = 1.0,
    ) -> State:
        """One step of the prior: what comes after ``action``, without looking."""
        deter = self.cell(state.stoch, action.clamp(-1.0, 1.0), state.deter)
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
        action = (prev_action * keep).clamp(-1.0, 1.0)
        deter = self.cell(state.stoch * keep, action, state.deter * keep)
        stats = self.obs_stats(self.obs_hidden(torch.cat([deter, embed], -1)))
        noise = self.latent.noise(deter.shape[:-1], deter, generator)
        return State(deter, self.latent.sample(stats, noise), stats)

    def prior(self, deter: Float[Tensor, "*B D"]) -> Float[Tensor, "*B stats"]:
        """Stats of p(s_t | h_t)."""
        return self.img_stats(deter)

    def observe(
        self,
        embed: Float[Tensor, "B T E"],
        prev_action: Float[Tensor, "B T A"],
        is_first: Bool[Tensor, "B T"],
        generator: Generator | None = None,
        start: State | None = None,
    ) -> tuple[State, Float[Tensor, "B T stats"]]:
        """Filter along data from ``start``, or from zeros. Returns the posterior states and the prior's stats.

        ::

            row          0          1          2
            consumes   a_-1, o0    a0, o1     a1, o2      a_-1: the action before the first row; zero at a reset
            predicts   s0 | h0     s1 | h1    s2 | h2     start: what was known before the first row
        """
        batch, time = embed.shape[:2]
        cell, hidden, latent = self.cell, self.obs_hidden, self.latent
        own, shared = cell.split()
        keep = (~is_first).to(embed.dtype).t()[..., None]
        w_deter, w_embed = hidden.linear.weight.split([self.deter, embed.shape[-1]], 1)
        action = (prev_action.transpose(0, 1) * keep).clamp(-1.0, 1.0)
        from_action = F.linear(cell.from_action(action), shared[2 * cell.hidden :].t(), cell.mix.bias)
        from_embed = F.linear(embed.transpose(0, 1), w_embed, hidden.linear.bias)
        start = self.initial(batch) if start is None else start
        noise = latent.noise((time, batch), embed, generator)
        parts = _Filter.apply(
            (start.deter, start.stoch, keep, noise, latent.classes, latent.unimix),
            from_action,
            from_embed,
            *(cell.from_deter.linear.weight, cell.from_deter.linear.bias),
            *(cell.from_stoch.linear.weight, cell.from_stoch.linear.bias),
            torch.stack([cell.from_deter.norm.scale, cell.from_stoch.norm.scale]),
            *(shared[: 2 * cell.hidden], own, cell.norm.scale),
            *(cell.gates.weight, cell.gates.bias),
            *(w_deter, hidden.norm.scale, self.obs_stats.weight, self.obs_stats.bias),
        )
        post = State(*(part.transpose(0, 1) for part in parts))
        return post, self.prior(post.deter)

    def imagine(
        self,
        start: State,
        policy: Callable[[Float[Tensor, "N F"]], Float[Tensor, "N A"]],
        horizon: int,
        generator: Generator | None = None,
        with_start: bool = False,
    ) -> Imagined:
        """Roll the prior ``horizon`` steps from N starts under ``policy``, which maps features to actions; without
        a gradient. With ``with_start`` the start's features come first, "H+1 N F"."""
        state, n = start, len(start.deter)
        feats, actions = start.deter.new_empty(horizon + 1, n, self.features), []
        with torch.no_grad():
            torch.cat([state.deter, state.stoch], -1, out=feats[0])
            for t in range(horizon):
                actions.append(policy(feats[t]))
                state = self.img_step(state, actions[-1], generator)
                torch.cat([state.deter, state.stoch], -1, out=feats[t + 1])
        return Imagined(feats if with_start else feats[1:], torch.stack(actions), state)


class _Filter(torch.autograd.Function):
    """The recurrence of ``BlockRSSM.observe``, time first, with its gradient written out.

    What it saves against a graph of small operations: their bookkeeping, and the gradient of every weight summed
    step by step; here it is one product over all of time. Names: ``n_`` is a layer's output after its norm and
    before scale and SiLU, ``i_`` the inverse root mean square it was multiplied by, ``o_`` the layer's result.
    """

    @staticmethod
    def forward(
        ctx: Any, given: tuple, from_action: Tensor, from_embed: Tensor,
        w_h: Tensor, b_h: Tensor, w_s: Tensor, b_s: Tensor, g_x: Tensor,
        shared: Tensor, own: Tensor, g_m: Tensor, w_g: Tensor, b_g: Tensor,
        w_p: Tensor, g_p: Tensor, w_l: Tensor, b_l: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        h, s, keep, noise, classes, unimix = given
        (time, batch, hidden), blocks, new = from_embed.shape, len(own), from_embed.new_empty
        blocked = lambda x: x.view(batch, blocks, -1).transpose(0, 1)
        b_g = b_g.view(blocks, 1, -1).clone()
        b_g[..., 2 * own.shape[2] :] -= 1.0  # the update gate's
        h_in, s_in = new(time, *h.shape), new(time, *s.shape)
        n_x, i_x, o_x = new(time, batch, 2, hidden), new(time, batch, 2, 1), new(time, batch, 2, hidden)
        n_m, i_m, o_m = new(time, *h.shape), new(time, batch, 1), new(time, *h.shape)
        gates, cand = new(time, *b_g.expand(-1, batch, -1).shape), new(time, *blocked(h).shape)
        n_p, i_p, o_p = new(time, batch, hidden), new(time, batch, 1), new(time, batch, hidden)
        deter, stoch, logits = new(time, *h.shape), new(time, *s.shape), new(time, *s.shape)
        soft = new(time, batch, s.shape[1] // classes, classes)
        for t in range(time):
            h, s = torch.mul(h, keep[t], out=h_in[t]), torch.mul(s, keep[t], out=s_in[t])
            torch.addmm(b_h, h, w_h.t(), out=n_x[t, :, 0])
            torch.addmm(b_s, s, w_s.t(), out=n_x[t, :, 1])
            _bend(n_x[t], i_x[t], o_x[t], g_x)
            torch.addmm(from_action[t], o_x[t].view(batch, -1), shared, out=n_m[t])
            blocked(n_m[t]).baddbmm_(blocked(h), own)
            _bend(n_m[t], i_m[t], o_m[t], g_m)
            torch.baddbmm(b_g, blocked(o_m[t]), w_g, out=gates[t])
            r, c, u = gates[t].chunk(3, -1)
            r.sigmoid_(), u.sigmoid_()
            torch.mul(r, c, out=cand[t]).tanh_()
            h = deter[t]
            blocked(h).copy_(torch.lerp(blocked(h_in[t]), cand[t], u))
            torch.addmm(from_embed[t], h, w_p.t(), out=n_p[t])
            _bend(n_p[t], i_p[t], o_p[t], g_p)
            torch.addmm(b_l, o_p[t], w_l.t(), out=logits[t])
            torch.softmax(logits[t].view_as(soft[t]), -1, out=soft[t])
            probs = soft[t] * (1.0 - unimix) + unimix / classes if unimix else soft[t]
            s = stoch[t].copy_(draw_one_hot(probs, noise[t]).flatten(-2))
        ctx.unimix = unimix
        ctx.save_for_backward(
            keep, w_h, w_s, g_x, shared, own, g_m, w_g, w_p, g_p, w_l,
            h_in, s_in, n_x, i_x, o_x, n_m, i_m, o_m, gates, cand, n_p, i_p, o_p, deter, soft,
        )  # fmt: skip
        return deter, stoch, logits

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, to_deter: Tensor, to_stoch: Tensor, to_logits: Tensor
    ) -> tuple[Tensor | None, ...]:
        (
            keep, w_h, w_s, g_x, shared, own, g_m, w_g, w_p, g_p, w_l,
            h_in, s_in, n_x, i_x, o_x, n_m, i_m, o_m, gates, cand, n_p, i_p, o_p, deter, soft,
        ) = ctx.saved_tensors  # fmt: skip
        time, batch, blocks = len(h_in), h_in.shape[1], len(own)
        blocked = lambda x: x.view(batch, blocks, -1).transpose(0, 1)
        like = torch.empty_like
        d_x, y_x, d_m, y_m, d_p, y_p = like(n_x), like(n_x), like(n_m), like(n_m), like(n_p), like(n_p)
        d_gates, d_logits = like(gates), torch.empty(time, *s_in.shape[1:]).to(s_in)
        own_t, w_g_t, shared_t = own.transpose(1, 2), w_g.transpose(1, 2), shared.t()
        d_h, d_s = torch.zeros_like(h_in[0]), torch.zeros_like(s_in[0])
        for t in reversed(range(time)):
            d_h, d_s = d_h + to_deter[t], d_s + to_stoch[t]
            to_soft = d_s.view_as(soft[t]) * (1.0 - ctx.unimix)
            through = torch._softmax_backward_data(to_soft, soft[t], -1, soft.dtype).flatten(-2)
            torch.add(through, to_logits[t], out=d_logits[t])
            _unbend(d_logits[t] @ w_l, n_p[t], i_p[t], g_p, d_p[t], y_p[t])
            d_h = torch.addmm(d_h, y_p[t], w_p)
            d, h = blocked(d_h), blocked(h_in[t])
            r, c, u = gates[t].chunk(3, -1)
            d_r, d_c, d_u = d_gates[t].chunk(3, -1)
            inner = d * u * (1 - cand[t] * cand[t])
            torch.mul(inner, r, out=d_c)
            torch.mul(inner * c, r * (1 - r), out=d_r)
            torch.mul(d * (cand[t] - h), u * (1 - u), out=d_u)
            d_h = d * (1 - u)
            to_o = torch.bmm(d_gates[t], w_g_t).transpose(0, 1).reshape(batch, -1)
            _unbend(to_o, n_m[t], i_m[t], g_m, d_m[t], y_m[t])
            d_h = d_h.baddbmm_(blocked(y_m[t]), own_t).transpose(0, 1).reshape(batch, -1)
            _unbend((y_m[t] @ shared_t).view_as(n_x[t]), n_x[t], i_x[t], g_x, d_x[t], y_x[t])
            d_h = torch.addmm(d_h, y_x[t, :, 0], w_h).mul_(keep[t])
            d_s = (y_x[t, :, 1] @ w_s).mul_(keep[t])

        rows = lambda x: x.flatten(0, 1)
        split = lambda x: x.view(time * batch, blocks, -1).permute(1, 2, 0)  # "g d rows"
        y_h, y_s = y_x.unbind(2)
        flat_gates = d_gates.transpose(0, 1).reshape(blocks, time * batch, -1)
        return (
            None, y_m, y_p,
            rows(y_h).t() @ rows(h_in), rows(y_h).sum(0), rows(y_s).t() @ rows(s_in), rows(y_s).sum(0),
            rows(d_x * n_x).sum(0),
            o_x.view(time * batch, -1).t() @ rows(y_m), torch.bmm(split(h_in), split(y_m).transpose(1, 2)),
            rows(d_m * n_m).sum(0), torch.bmm(split(o_m), flat_gates), flat_gates.sum(1).flatten(),
            rows(y_p).t() @ rows(deter), rows(d_p * n_p).sum(0),
            rows(d_logits).t() @ rows(o_p), rows(d_logits).sum(0),
        )  # fmt: skip


def _bend(y: Tensor, inverse: Tensor, out: Tensor, scale: Tensor) -> None:
    """``out`` = SiLU(RMSNorm(y)); y becomes normed, and ``inverse`` what it was multiplied by."""
    y.mul_(inverse.copy_(inverse_rms(y)))
    torch.mul(y, scale, out=out)
    F.silu(out, inplace=True)


def _unbend(
    grad: Tensor, normed: Tensor, inverse: Tensor, scale: Tensor, to_scaled: Tensor, to_y: Tensor
) -> None:
    """The gradient of ``_bend``: to what SiLU was given, and to y."""
    y, bent = norm_silu_back(grad, normed, inverse, scale)
    to_scaled.copy_(bent)
    to_y.copy_(y)
