"""The RSSM with a memory in blocks: its hand-written gradient, the drawing of time, resets, sizes."""

import pytest
import torch

from reverie.models.rssm import RSSM, BlockRSSM, Categorical, State
from reverie.nets import NormGRUCell

GROUPS, CLASSES, D, A, E, HIDDEN, BLOCKS = 3, 4, 8, 2, 5, 6, 2
S = GROUPS * CLASSES


class Scripted(Categorical):
    """A latent whose noise is prepared: "T B groups" at once, or one "B groups" after the other."""

    def __init__(self, unimix=0.01):
        super().__init__(GROUPS, CLASSES, unimix)
        self.script = []

    def noise(self, shape, like, generator):
        noise = self.script.pop(0)
        assert noise.shape == (*shape, self.groups)
        return noise


def build(unimix=0.01):
    torch.manual_seed(1)
    rssm = BlockRSSM(E, A, Scripted(unimix), D, HIDDEN, BLOCKS).double()
    for parameter in rssm.parameters():  # zero biases and unit scales would hide their mistakes
        if parameter.ndim == 1:
            torch.nn.init.uniform_(parameter, 0.3, 1.3)
    return rssm


def data(batch=3, time=6, resets=()):
    generator = torch.Generator().manual_seed(7)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)
    is_first = torch.zeros(batch, time, dtype=torch.bool)
    for b, t in resets:
        is_first[b, t] = True
    noise = torch.rand(time, batch, GROUPS, generator=generator, dtype=torch.float64)
    start = State(torch.tanh(draw(batch, D)), draw(batch, S).abs(), draw(batch, S))
    return draw(batch, time, E), draw(batch, time, A), is_first, noise, start


def observe(rssm, embed, prev_action, is_first, noise, start=None):
    rssm.latent.script = [noise]
    return rssm.observe(embed, prev_action, is_first, None, start)


def steps(rssm, embed, prev_action, is_first, noise, start=None):
    """The same, one ``obs_step`` after the other."""
    rssm.latent.script = list(noise)
    state, states = rssm.initial(len(embed)) if start is None else start, []
    for t in range(embed.shape[1]):
        state = rssm.obs_step(state, prev_action[:, t], embed[:, t], is_first[:, t])
        states.append(state)
    post = State(*(torch.stack(part, 1) for part in zip(*states, strict=True)))
    return post, rssm.prior(post.deter)


@pytest.mark.parametrize("resets", [(), ((0, 0), (1, 3), (2, 5), (2, 2))], ids=["none", "some"])
@pytest.mark.parametrize("from_start", [False, True])
@pytest.mark.parametrize("unimix", [0.01, 0.0])
def test_observe_is_obs_step_in_a_loop_and_so_is_its_gradient(resets, from_start, unimix):
    rssm = build(unimix)
    embed, prev_action, is_first, noise, start = data(resets=resets)
    embed, start = embed.requires_grad_(), start if from_start else None
    leaves = [embed, *rssm.parameters()]
    found = []
    for way in (observe, steps):
        post, prior = way(rssm, embed, prev_action, is_first, noise, start)
        parts = (*post, prior)
        weights = torch.Generator().manual_seed(3)
        value = sum((p * torch.randn(p.shape, generator=weights, dtype=p.dtype)).sum() for p in parts)
        found.append((parts, torch.autograd.grad(value, leaves)))
    for a, b in zip(found[0][0], found[1][0], strict=True):
        torch.testing.assert_close(a, b)
    names = ["embed", *(name for name, _ in rssm.named_parameters())]
    for name, a, b in zip(names, found[0][1], found[1][1], strict=True):
        assert b.abs().sum() > 0, name
        torch.testing.assert_close(a, b, msg=name)


def test_without_a_gradient_the_cell_is_the_same():
    rssm = build()
    stoch, action, deter = (torch.randn(70, n, dtype=torch.float64) for n in (S, A, D))
    with torch.no_grad():
        inferred = rssm.cell(stoch, action, deter)
    torch.testing.assert_close(inferred, rssm.cell(stoch, action, deter))


def test_blocks_meet_only_through_the_input():
    """With the dense layers from h silenced, a block of h' depends on its own block of h alone (and on the norm)."""
    cell = build().cell
    with torch.no_grad():
        cell.from_deter.norm.scale.zero_()
    deter = torch.randn(1, D, dtype=torch.float64, requires_grad=True)
    v = torch.bmm(deter.view(1, BLOCKS, -1).transpose(0, 1), cell.split()[0])
    (grad,) = torch.autograd.grad(v[0].sum(), deter)
    assert (grad[:, : D // BLOCKS] != 0).all() and (grad[:, D // BLOCKS :] == 0).all()


def test_gates_by_hand():
    """(reset, cand, update, h): (0, 0, 0, 1) -> .73105858 and (.5, 1, 2, .3) -> .48483944."""
    cell = build().cell
    for gates, h, expected in (((0, 0, 0), 1.0, 0.73105858), ((0.5, 1, 2), 0.3, 0.48483944)):
        with torch.no_grad():
            cell.gates.weight.zero_()
            bias = torch.tensor(gates, dtype=torch.float64).repeat_interleave(D // BLOCKS)
            cell.gates.bias.copy_(bias.repeat(BLOCKS))
        zeros = torch.zeros(1, S, dtype=torch.float64), torch.zeros(1, A, dtype=torch.float64)
        deter = torch.full((1, D), h, dtype=torch.float64)
        assert cell(*zeros, deter)[0].tolist() == pytest.approx([expected] * D, abs=1e-7)


def test_a_reset_inside_a_batch_is_a_fresh_start():
    rssm = build()
    embed, prev_action, is_first, noise, start = data(2, 6, resets=((0, 3), (1, 3)))
    whole, _ = observe(rssm, embed, prev_action, is_first, noise, start)
    tail = is_first[:, 3:], noise[3:]
    fresh, _ = observe(
        rssm, embed[:, 3:], torch.zeros_like(prev_action[:, 3:]).copy_(prev_action[:, 3:]), *tail
    )
    for a, b in zip(whole, fresh, strict=True):
        torch.testing.assert_close(a[:, 3:], b)


def test_a_sequence_cut_in_two_goes_on_from_what_was_known():
    """The context of a replayed sequence: state in, the same states out."""
    rssm = build()
    embed, prev_action, is_first, noise, _ = data(2, 6, resets=((0, 0), (1, 4)))
    whole, _ = observe(rssm, embed, prev_action, is_first, noise)
    before = State(*(part[:, 2] for part in whole))
    rest, _ = observe(rssm, embed[:, 3:], prev_action[:, 3:], is_first[:, 3:], noise[3:], before)
    for a, b in zip(whole, rest, strict=True):
        torch.testing.assert_close(a[:, 3:], b)


def test_actions_are_taken_as_if_cut_off_at_one():
    rssm = build()
    state = rssm.initial(1)
    step = lambda a: rssm.cell(
        state.stoch, torch.tensor([[a, -a]], dtype=torch.float64).clamp(-1, 1), state.deter
    )
    for way in (3.0, 1.0):
        rssm.latent.script = [torch.full((1, GROUPS), 0.5, dtype=torch.float64)]
        action = torch.tensor([[way, -way]], dtype=torch.float64)
        assert torch.equal(rssm.img_step(state, action).deter, step(1.0))


def test_features_are_the_memory_and_then_the_sample():
    rssm = build()
    state = State(torch.ones(2, D), torch.zeros(2, S), torch.zeros(2, S))
    assert torch.equal(rssm.feat(state), torch.cat([torch.ones(2, D), torch.zeros(2, S)], -1))


def test_imagination_leaves_the_start_out():
    rssm = build()
    start = State(*(part.double() for part in rssm.initial(4)))
    rssm.latent.script = [torch.rand(4, GROUPS, dtype=torch.float64) for _ in range(3)]
    dream = rssm.imagine(start, lambda feat: torch.zeros(4, A, dtype=torch.float64), 3)
    assert dream.feat.shape == (3, 4, D + S) and dream.action.shape == (3, 4, A)
    torch.testing.assert_close(dream.feat[-1], rssm.feat(dream.last))


# The latent


def test_samples_are_one_hot_with_the_gradient_of_the_probabilities():
    latent = Categorical(GROUPS, CLASSES, 0.01)
    stats = torch.randn(5, S, dtype=torch.float64, requires_grad=True)
    noise = latent.noise((5,), stats, torch.Generator().manual_seed(0))
    sample = latent.sample(stats, noise)
    hot = sample.detach().unflatten(-1, (GROUPS, CLASSES)).round(decimals=9)
    assert torch.equal(hot.sum(-1), torch.ones(5, GROUPS, dtype=torch.float64))
    assert torch.equal(hot.amax(-1), torch.ones(5, GROUPS, dtype=torch.float64))
    direction = torch.randn(5, S, dtype=torch.float64)
    (grad,) = torch.autograd.grad((sample * direction).sum(), stats)
    probs = latent.dist(stats).probs.flatten(-2)
    torch.testing.assert_close(grad, torch.autograd.grad((probs * direction).sum(), stats)[0])


def test_samples_are_as_frequent_as_they_are_probable():
    latent = Categorical(1, 4, 0.01)
    stats = torch.tensor([[2.0, 0.0, -1.0, -30.0]]).expand(50_000, 4)
    sample = latent.sample(stats, latent.noise((50_000,), stats, torch.Generator().manual_seed(0)))
    assert sample.mean(0).tolist() == pytest.approx(latent.dist(stats[:1]).probs[0, 0].tolist(), abs=0.006)


def test_heat_evens_the_odds():
    latent = Categorical(1, 2)
    stats = torch.tensor([[2.0, 0.0]]).expand(50_000, 2)
    noise = latent.noise((50_000,), stats, torch.Generator().manual_seed(0))
    for heat in (0.5, 1.0, 4.0):
        share = latent.sample(stats, noise, heat)[:, 0].mean().item()
        assert share == pytest.approx(torch.sigmoid(torch.tensor(2.0 / heat)).item(), abs=0.01)


def test_the_plain_model_takes_categorical_latents_too():
    """RSSM(..., Categorical, NormGRUCell): observe is obs_step in a loop there as well."""
    rssm = RSSM(E, A, Scripted(0.0), NormGRUCell(D, D), D).double()
    embed, prev_action, is_first, noise, _ = data(2, 5, resets=((0, 0), (1, 2)))
    for a, b in zip(
        observe(rssm_without_start(rssm), embed, prev_action, is_first, noise)[0],
        steps(rssm, embed, prev_action, is_first, noise)[0],
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def rssm_without_start(rssm):
    observe_ = rssm.observe

    class Plain:
        latent = rssm.latent

        def observe(self, embed, prev_action, is_first, generator, start):
            return observe_(embed, prev_action, is_first, generator)

    return Plain()
