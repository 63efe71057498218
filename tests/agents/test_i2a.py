"""I2A: the numbers of its losses, whom each moves, what others got wrong, and that futures are laid out right."""

import math

import numpy as np
import pytest
import torch

from reverie import presets
from reverie.agents.i2a import (
    I2A,
    Augmented,
    Config,
    EnvModel,
    Imagined,
    Rewards,
    RolloutEncoder,
    Search,
    check_rewards,
    distillation_loss,
    entropy_loss,
    model_loss,
    policy_loss,
)
from reverie.data.replay import Replay
from reverie.dists import Bernoulli, OneHot
from reverie.envs import make_env
from reverie.nets import LSTM
from reverie.types import ActionSpace, Batch, ReverieError, Space, Step

LOGITS, ROLLOUT = [0.2, -0.1, 0.4, 0.0, -0.3], [0.1, 0.3, -0.2, 0.0, 0.5]
PLANES = {"image": Space((5, 6, 4), "uint8")}
FIVE = ActionSpace(5, (5,))
SMALL = dict(
    pixels=False,
    image_size=0,
    frames="cells",
    model_tile=1,
    channels=(4, 3),
    kernels=(3, 3),
    strides=(1, 2),
    model_updates=0,
    random_steps=0,
    same=True,
)


def small_agent(seed=0, **overrides):
    return I2A(PLANES, FIVE, presets.resolve("i2a", ["debug"], SMALL | overrides), seed)


def cells(*shape, seed=0):
    """Random planes of which one is set in each cell, uint8 0 or 255."""
    picks = np.random.default_rng(seed).integers(0, 4, (*shape, 5, 6))
    return (255 * np.eye(4, dtype=np.uint8))[picks]


def a_batch(size=3, time=5, seed=0):
    rng = np.random.default_rng(seed)
    action = torch.from_numpy(FIVE.sample(rng, size * time).reshape(size, time, 5))
    none = torch.zeros(size, time, dtype=torch.bool)
    reward = torch.from_numpy(rng.normal(size=(size, time)).astype(np.float32))
    obs = {"image": torch.from_numpy(cells(size, time, seed=seed))}
    return Batch(obs, action, action, reward, none, none.clone(), none.clone())


# The sheet's numbers


def test_policy_gradient_and_entropy_by_hand():
    logits, one = torch.tensor([LOGITS], requires_grad=True), torch.ones(1, dtype=torch.bool)
    dist = OneHot(logits)
    loss = policy_loss(dist.log_prob(torch.eye(5)[2][None]), torch.tensor([1.5]), one)
    loss = loss + 0.01 * entropy_loss(dist.entropy(), one)
    (slope,) = torch.autograd.grad(loss, logits)
    assert slope[0].tolist() == pytest.approx([0.342113, 0.252937, -1.081586, 0.279725, 0.206811], abs=1e-6)


def test_distillation_by_hand():
    logits, rollout = torch.tensor([LOGITS], requires_grad=True), torch.tensor([ROLLOUT], requires_grad=True)
    probs = torch.softmax(logits, -1)
    loss = distillation_loss(probs.detach(), rollout)
    assert loss.item() == pytest.approx(1.691865, abs=1e-6)
    (slope,) = torch.autograd.grad(loss, rollout)
    assert slope[0].tolist() == pytest.approx([-0.041315, 0.059073, -0.140142, -0.017758, 0.140142], abs=1e-6)
    kl = lambda r: (probs * (probs.log() - torch.log_softmax(r, -1))).sum().item()
    assert kl(rollout) == pytest.approx(0.111690, abs=1e-6)
    assert kl(rollout - 0.5 * slope) < kl(rollout) < kl(rollout + 0.5 * slope)  # the printed sign pushes away


def test_bernoulli_frames_by_hand():
    target, probs = torch.tensor([1.0, 0.0, 1.0]), torch.tensor([0.9, 0.2, 0.4])
    assert Bernoulli(torch.logit(probs)).loss(target).sum().item() == pytest.approx(1.244795, abs=1e-6)
    told = lambda frame, action: (torch.logit(probs).view(1, 1, 3, 1), torch.zeros(1, 1))
    losses = model_loss(
        told, torch.zeros(1, 1, 3, 1), torch.zeros(1, 5), target.view(1, 1, 3, 1), torch.zeros(1), False
    )
    assert losses["frame"].item() == pytest.approx(1.244795, abs=1e-6)


def test_reward_bins_by_hand():
    model = EnvModel((2, 2, 3), 5, presets.resolve("i2a", [], SMALL | dict(model_channels=2)))
    logits = torch.tensor([[2.0, 0.0, -1.0, 0.0]])
    assert model.bins.tolist() == pytest.approx([-1.1, -0.1, 0.9, 10.9])
    assert model.expected(logits).item() == pytest.approx(0.307794, abs=1e-6)

    class Told:
        bins = model.bins

        def __call__(self, frame, action):
            return torch.zeros(1, 2, 2, 3), logits

    frame = torch.nn.functional.one_hot(torch.tensor([[[0, 1], [2, 0]]]), 3).float()
    losses = model_loss(Told(), frame, torch.zeros(1, 5), frame, torch.tensor([-0.1]), True)
    assert losses["reward"].item() == pytest.approx(2.277978, abs=1e-6)
    assert losses["frame"].item() == pytest.approx(4 * math.log(3), abs=1e-5)  # four cells, undecided


def test_search_prefers_the_best_future():
    worth = torch.tensor([[1.0, 0.2, -0.5, 0.7, 0.0]])
    search = Search((5, 6, 4), 5, small_agent().config)
    with torch.no_grad():
        search.log_delta.fill_(math.log(0.5))
        for p in search.critic.parameters():
            p.zero_()
    frame = torch.zeros(1, 5, 6, 4)
    logits, _ = search(frame, torch.zeros(1, 5, 1, 5, 6, 4), worth[..., None])
    expected = [0.516574, 0.104295, 0.025719, 0.283502, 0.069911]
    assert torch.softmax(logits, -1)[0].tolist() == pytest.approx(expected, abs=1e-6)


def test_search_discounts_rewards_and_the_last_value():
    search = Search((5, 6, 4), 5, small_agent().config)
    with torch.no_grad():
        for p in search.critic.parameters():
            p.zero_()
        search.critic.out.bias.fill_(2.0)
    reward = torch.tensor([-0.1, 0.9, -0.1]).expand(1, 5, 3)
    logits, value = search(torch.zeros(1, 5, 6, 4), torch.zeros(1, 5, 3, 5, 6, 4), reward)
    assert logits[0].tolist() == pytest.approx([2.633588] * 5, abs=1e-5)
    assert value.item() == 2.0


def test_the_encoder_reads_the_last_step_first():
    encoder = RolloutEncoder(
        (1, 1, 1), Config(**{**SMALL, "channels": (1,), "kernels": (1,), "strides": (1,)})
    )
    encoder.lstm = LSTM(2, 1, forget=0.0)
    with torch.no_grad():
        encoder.convs.convs[0].weight.fill_(1.0)
        encoder.lstm.kernel.copy_(torch.tensor([[0.5, 0.0]] * 4))  # reads the frame, not the reward
        encoder.lstm.recurrent.fill_(0.25)
    frames = torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1, 1)
    assert encoder(frames, torch.zeros(1, 3)).item() == pytest.approx(0.538376, abs=1e-6)
    assert encoder(frames.flip(1), torch.zeros(1, 3)).item() == pytest.approx(0.744755, abs=1e-6)


PACMAN = dict(channels=(16, 16), kernels=(3, 3), strides=(1, 2), units=256, units_lstm=256)


@pytest.mark.parametrize(
    ("shape", "net", "same", "count"),
    [
        ((15, 19, 3), PACMAN, False, 1_630_374),
        ((15, 19, 3), PACMAN, True, 2_318_502),
        ((80, 80, 3), {}, False, 8_488_774),
        ((80, 80, 3), {}, True, 19_105_606),
    ],
)
def test_the_parameters_of_the_paper(shape, net, same, count):
    """App. B.1, without the model and the rollout policy."""
    made = Augmented(shape, 5, Config(**net, same=same))
    assert sum(p.numel() for p in made.parameters()) == count


# Layout: what public re-implementations got wrong


@pytest.mark.parametrize("n", [1, 3, 5, 80])
def test_each_future_is_of_its_own_state_and_first_action(n):
    """A model that writes the state's mark and the action into the frame; B = 80 is where states and actions laid out
    in different orders gave all five futures of a state the same first action."""
    agent, h, w = small_agent(frames="pixels", horizon=1), 5, 6
    marks = torch.arange(n).float()
    frame = marks.view(n, 1, 1, 1).expand(n, h, w, 4)

    def predict(x, action, temperature=1.0):
        first = action.argmax(-1).float()
        assert action.sum(-1).eq(1).all()
        written = x.clone()
        written[..., 1] = first.view(-1, 1, 1)
        return written, written, 100 * x[:, 0, 0, 0] + first

    agent.predict = predict
    futures = agent.imagine(frame, agent.generators["learn"])
    assert futures.frame.shape == (n, 5, 1, h, w, 4) and futures.reward.shape == (n, 5, 1)
    for b in range(n):
        for a in range(5):
            assert (futures.frame[b, a, 0, ..., 0] == b).all() and (futures.frame[b, a, 0, ..., 1] == a).all()
            assert futures.reward[b, a, 0] == 100 * b + a


def test_embeddings_lie_in_the_actions_order_and_do_not_mix_states():
    agent = small_agent()
    net, n = agent.net, 3
    frame = torch.from_numpy(cells(n)).float() / 255
    future = torch.from_numpy(cells(n, 5, 2, seed=1)).float() / 255
    reward = torch.randn(n, 5, 2)
    logits, value = net(frame, future, reward)
    for b in range(n):
        one, alone = net(frame[b : b + 1], future[b : b + 1], reward[b : b + 1])
        torch.testing.assert_close(one[0], logits[b], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(alone[0], value[b], atol=1e-6, rtol=1e-5)
    swapped = [1, 0, 2, 3, 4]
    u = agent.config.units_lstm
    with torch.no_grad():  # swapping two actions' futures is swapping the columns that read them
        weight = net.hidden.weight
        weight[:, : 5 * u] = weight[:, : 5 * u].unflatten(1, (5, u))[:, swapped].flatten(1)
    torch.testing.assert_close(net(frame, future[:, swapped], reward[:, swapped])[0], logits)


def test_futures_go_on_from_imagined_frames_by_the_rollout_policy():
    agent = small_agent(horizon=4)
    seen = []
    policy = agent.rollout_policy.forward
    agent.rollout_policy.forward = lambda x: seen.append(x) or policy(x)
    frame = agent.see(cells(2))
    futures = agent.imagine(frame, agent.generators["learn"])
    assert len(seen) == 3  # the first action is given
    for k, x in enumerate(seen):
        expected = agent.show(futures.frame)[:, :, k].flatten(0, 1)
        assert torch.equal(x, expected)
    assert futures.frame.dtype == torch.uint8 and futures.frame.max() < 4


def test_the_copy_model_repeats_the_frame_without_reward():
    agent = small_agent(model="copy", horizon=3)
    frame = agent.see(cells(2))
    futures = agent.imagine(frame, agent.generators["learn"])
    assert torch.equal(agent.show(futures.frame), frame[:, None, None].expand(2, 5, 3, 5, 6, 4))
    assert not futures.reward.any()


def sokoban_agent(**overrides):
    """An agent that plays by Sokoban's rules, and what it sees of twelve levels."""
    env = make_env("reverie/SokobanSmall-v0", image_size=None)
    config = presets.resolve("i2a", ["debug", "simulator"], SMALL | overrides)
    agent = I2A(env.obs_space, env.act_space, config)
    agent.rules = env.rules
    return agent, np.stack([env.reset(seed).obs["image"] for seed in range(12)])


def test_the_simulator_imagines_what_would_happen():
    agent, image = sokoban_agent(horizon=3)
    frame, taken = agent.see(image), []
    choose = agent.rollout_action
    agent.rollout_action = lambda x, g: taken.append(choose(x, g)) or taken[-1]
    futures = agent.imagine(frame, agent.generators["learn"])
    for b in range(12):
        for a in range(5):
            env = make_env("reverie/SokobanSmall-v0", image_size=None)
            env.reset(b)
            for k in range(3):
                row = env.step(np.eye(5, dtype=np.float32)[a] if k == 0 else taken[k - 1][5 * b + a].numpy())
                assert futures.reward[b, a, k] == row.reward
                assert np.array_equal(futures.frame[b, a, k], row.obs["image"].argmax(-1))
                if row.is_last:
                    break


def test_a_search_by_the_rules_expects_nothing_after_the_end():
    agent, image = sokoban_agent(search=True, horizon=2)
    with torch.no_grad():
        for p in agent.net.critic.parameters():
            p.zero_()
        agent.net.critic.out.bias.fill_(2.0)
    solved = agent.see(image).clone()
    box, target = 4, 2
    solved[..., 3] = solved[..., target]  # every target has its box, and no other cell one
    solved[..., 1] += solved[..., box]
    solved[..., [box, target]] = 0.0
    futures = agent.imagine(torch.cat([solved, agent.see(image)]), agent.generators["learn"])
    logits, _ = agent.read(torch.cat([solved, agent.see(image)]), futures)
    assert not logits[:12].any() and not futures.reward[:12].any()
    gamma = agent.config.discount
    worth = (futures.reward * torch.tensor([1.0, gamma])).sum(-1) + 2.0 * gamma**2
    assert torch.allclose(logits[12:], worth[12:])


def test_without_the_rules_there_is_no_simulator():
    agent = small_agent(model="simulator")
    with pytest.raises(ReverieError, match="set the agent's `rules`"):
        agent.imagine(agent.see(cells(1)), agent.generators["learn"])


def test_an_encoder_without_rewards_does_not_see_them():
    agent = small_agent(rewards=False)
    frame = agent.see(cells(2))
    futures = agent.imagine(frame, agent.generators["learn"])
    a = agent.net(frame, agent.show(futures.frame), futures.reward)
    b = agent.net(frame, agent.show(futures.frame), futures.reward + 100)
    assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])


def test_tiles_are_cells_and_back():
    model = EnvModel((16, 24, 3), 5, Config(model_channels=2))
    frame = torch.arange(2 * 16 * 24 * 3).float().view(2, 16, 24, 3)
    inside = model.cells(frame)
    assert inside.shape == (2, 2, 3, 192)
    assert torch.equal(inside[1, 1, 2].view(8, 8, 3), frame[1, 8:16, 16:24])
    assert torch.equal(model.pixels(inside, frame.shape), frame)


# Who is moved by what


def parts(state):
    groups: dict = {}
    for name, x in state["modules"].items():
        groups.setdefault(name.split(".")[0], []).append(x.clone())
    return groups


def moved(before, after):
    return {
        name
        for name in before
        if any(not torch.equal(a, b) for a, b in zip(before[name], after[name], strict=True))
    }


def test_the_actor_critic_moves_what_reads_and_the_distillation_the_rollout_policy():
    agent = small_agent()
    before = parts(agent.state_dict())
    agent.update(a_batch())
    assert moved(before, parts(agent.state_dict())) == {"net", "rollout_policy"}


def test_gradient_arrows():
    agent, batch = small_agent(), a_batch()
    frame = agent.see(batch.obs["image"].flatten(0, 1))
    futures = agent.imagine(frame, agent.generators["learn"])
    assert not futures.reward.requires_grad and not futures.frame.requires_grad
    logits, value = agent.net(frame, agent.show(futures.frame), futures.reward)
    dist = OneHot(logits)
    groups = {name: list(module.parameters()) for name, module in agent.modules.items()}
    everyone = [p for group in groups.values() for p in group]

    def reached(loss):
        slopes = iter(torch.autograd.grad(loss, everyone, retain_graph=True, allow_unused=True))
        return {name for name, group in groups.items() if any([next(slopes) is not None for _ in group])}

    counts = torch.ones(len(frame), dtype=torch.bool)
    log_prob = dist.log_prob(batch.action.flatten(0, 1))
    assert reached(policy_loss(log_prob, torch.ones(len(frame)), counts)) == {"net"}
    assert reached(value.square().mean()) == {"net"}
    assert reached(distillation_loss(dist.probs.detach(), agent.rollout_policy(frame))) == {"rollout_policy"}
    losses = model_loss(agent.model, frame, batch.action.flatten(0, 1), frame, torch.zeros(len(frame)), True)
    assert reached(losses["frame"]) == reached(losses["reward"]) == {"model"}


def test_every_optimiser_owns_its_module_and_no_other():
    agent = small_agent()
    owned = {
        name: {id(p) for p in getattr(agent, name).parameters}
        for name in ("net_opt", "distil_opt", "guide_opt")
    }
    owned["model_opt"] = {id(p) for p in agent.model_opt.parameters}
    for one in owned:
        for other in owned:
            assert one == other or not owned[one] & owned[other]
    assert sum(map(len, owned.values())) == len(list(agent.modules.parameters()))


def test_one_update_brings_the_rollout_policy_closer():
    agent, batch = small_agent(lr=0.0, distil_lr=1e-2), a_batch()
    kl = [float(agent.update(batch)["distil/kl"]) for _ in range(30)]
    assert kl[-1] < 0.5 * kl[0] or kl[-1] < 1e-5


def test_search_learns_value_temperature_and_rollout_policy():
    agent = small_agent(search=True)
    before = agent.state_dict()["modules"]
    before = {name: x.clone() for name, x in before.items()}
    agent.update(a_batch())
    after = agent.state_dict()["modules"]
    changed = {name.rsplit(".", 1)[0] for name in after if not torch.equal(before[name], after[name])}
    assert "net" in changed and any(name.startswith("net.critic") for name in changed)  # net.log_delta
    assert any(name.startswith("rollout_policy") for name in changed)
    assert not any(name.startswith(("model", "guide")) for name in changed)


# Futures are used again


def test_what_was_imagined_while_acting_is_used_again():
    """With the futures of all rows given back, nothing but the last row is imagined, and the update is the same
    whatever the model would say now."""
    a, b, batch = small_agent(), small_agent(), a_batch()
    image = batch.obs["image"].numpy()
    left = []
    for t in range(4):
        _, carry = a.act({"image": image[:, t], "is_first": np.zeros(3, bool)}, a.initial(3), "train")
        left.append(carry)
    imagined = []
    for agent in (a, b):
        imagine = agent.imagine
        agent.imagine = lambda frame, g, imagine=imagine: imagined.append(len(frame)) or imagine(frame, g)
    a.update(batch, left)
    assert imagined == [3]
    b.load_state_dict(small_agent().state_dict())
    with torch.no_grad():
        for p in b.model.parameters():
            p.add_(torch.randn_like(p))
    last = small_agent().imagine(a.see(image[:, -1]), small_agent().generators["learn"])
    futures = b.futures(a.see(image.reshape(15, 5, 6, 4)).unflatten(0, (3, 5)), left)
    for t in range(4):
        assert torch.equal(futures.frame.view(3, 5, 5, 2, 5, 6)[:, t], left[t].frame)
        assert torch.equal(futures.reward.view(3, 5, 5, 2)[:, t], left[t].reward)
    assert last.frame.shape == left[0].frame.shape


def test_the_carry_has_the_shape_of_what_act_leaves():
    for frames in ("cells", "pixels"):
        agent = small_agent(frames=frames)
        blank = agent.initial(2)
        _, left = agent.act({"image": cells(2), "is_first": np.ones(2, bool)}, blank, "train")
        assert isinstance(left, Imagined)
        for a, b in zip(blank, left, strict=True):
            assert a.shape == b.shape and a.dtype == b.dtype


# The model's data, and the stages


def recorded(rewards, ends=()):
    """A replay of one stream; the reward says which row it is of."""
    replay = Replay(PLANES, FIVE, 200)
    for t, reward in enumerate(rewards):
        flags = [np.array(t == 0 or t - 1 in ends), np.array(t in ends), np.array(False)]
        row = Step({"image": cells(seed=t)}, np.array(reward, np.float32), *flags, np.array(1))
        replay.add(row, np.eye(5, dtype=np.float32)[t % 5])
    return replay


def test_rare_rewards_are_drawn_more_often_and_nothing_across_an_end():
    rewards = [0.0] + [-0.1] * 150
    rewards[20], rewards[40], rewards[41], rewards[42] = 10.9, 0.9, 0.9, 0.9
    found = Rewards(recorded(rewards, ends=(60, 100)))
    assert len(found.rows) == 150 - 2
    assert not {60, 100} & set(found.rows.tolist())
    _, rows = found.draw(np.random.default_rng(0), 4_000, 0.25)
    share = np.bincount(rows, minlength=151) / 4_000
    assert share[19] == pytest.approx(0.125, abs=0.03)  # each rare reward as often as the other
    assert share[39:42].sum() == pytest.approx(0.125, abs=0.04)
    again = found.draw(np.random.default_rng(0), 4_000, 0.25)
    assert again[1] == rows


def test_the_model_learns_its_transitions_and_then_stays():
    agent = small_agent(model_updates=120, model_steps=100, model_batch=32, model_lr=1e-2, model_channels=16)
    replay = recorded([0.0] + [-0.1, 0.9] * 30)
    assert not agent.learned
    before = parts(agent.state_dict())
    losses = [float(agent.update_model(replay, 0, k)["model/frame"]) for k in range(120)]
    assert losses[-1] < 0.6 * losses[0] and agent.learned
    assert moved(before, parts(agent.state_dict())) == {"model"}
    before = parts(agent.state_dict())
    agent.update(a_batch())
    assert moved(before, parts(agent.state_dict())) == {"net", "rollout_policy"}


def test_data_is_gathered_by_chance_and_then_by_a_learning_agent():
    agent = small_agent(model_updates=1, model_steps=48, random_steps=24, actors=4, length=6)
    obs = {"image": cells(500), "is_first": np.zeros(500, bool)}
    with torch.no_grad():
        agent.guide.out.bias[3] = 50.0
    action, _ = agent.act(obs, agent.initial(500), "train")
    assert (action.sum(0) > 60).all()  # by chance
    before = parts(agent.state_dict())
    assert agent.update(a_batch()) == {}
    assert moved(before, parts(agent.state_dict())) == set()
    action, _ = agent.act(obs, agent.initial(500), "train")
    assert action[:, 3].all()  # by the guide
    agent.update(a_batch())
    assert moved(before, parts(agent.state_dict())) == {"guide"}


def test_a_model_can_be_anothers():
    giver, taker = small_agent(1, model_updates=1), small_agent(2, model_updates=1)
    taker.take_model(giver.state_dict())
    assert taker.learned
    a, b = parts(giver.state_dict()), parts(taker.state_dict())
    assert moved({"model": a["model"]}, {"model": b["model"]}) == set()
    assert "net" in moved(a, b)


def test_the_state_of_one_cell_depends_on_two_around_it():
    """Two 3x3 convolutions see 5x5 cells: enough for a pushed box, no more."""
    model = EnvModel((9, 9, 4), 5, presets.resolve("i2a", [], SMALL | dict(model_channels=8, model_stay=0.0)))
    frame = torch.zeros(1, 9, 9, 4, requires_grad=True)
    with torch.no_grad():
        model.action.bias.fill_(1.0)
    logits, _ = model(frame, torch.eye(5)[:1])
    (slope,) = torch.autograd.grad(logits[0, 4, 4].sum(), frame)
    seen = slope[0].abs().sum(-1) > 0
    assert seen[2:7, 2:7].any() and seen.sum() == seen[2:7, 2:7].sum() and seen[2, 2] and seen[6, 6]


def test_a_strip_shows_what_is_imagined_beside_what_happened(tmp_path):
    from reverie import media

    agent, batch = small_agent(horizon=3), a_batch(size=1, time=6)
    strip = agent.strip(batch)
    assert strip.truth.shape == (4, 5, 6, 4) and strip.imagined.shape == (5, 3, 5, 6, 4)
    t = 1  # of the three moments that three rows follow, the middle one
    assert np.array_equal(strip.truth, batch.obs["image"][0, t : t + 4].numpy())
    assert strip.earned.tolist() == batch.reward[0, t + 1 : t + 4].tolist()
    assert strip.taken.tolist() == batch.action[0, t : t + 3].argmax(-1).tolist()
    assert strip.imagined.max() == 255 and (strip.imagined.sum(-1) == 255).all()
    path = media.save_futures(
        tmp_path / "x.png",
        *strip._replace(truth=np.repeat(strip.truth, 2, -1), imagined=np.repeat(strip.imagined, 2, -1)),
    )
    assert path.stat().st_size > 500
    ended = batch._replace(is_last=torch.tensor([[False, True, False, False, True, False]]))
    assert agent.strip(ended) is None and agent.strip(a_batch(size=1, time=3)) is None
    with pytest.raises(ReverieError, match="one frame more of truth"):
        media.save_futures(tmp_path / "y.png", strip.truth[:-1], *strip[1:])


# Bad input


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda: I2A({"vector": Space((3,))}, FIVE),
            "imagines one picture, and this environment shows vector",
        ),
        (lambda: I2A({**PLANES, "speed": Space((1,))}, FIVE), "shows image, speed"),
        (lambda: I2A(PLANES, ActionSpace(2)), "needs one choice among several"),
        (lambda: I2A(PLANES, FIVE), "--model-tile 8 does not divide pictures of 5x6"),
        (lambda: small_agent().see(np.zeros((1, 5, 6, 4), np.uint8)), "one is set in each cell"),
        (
            lambda: check_rewards(torch.tensor([-0.1, 3.0]), torch.tensor([-0.1, 0.9])),
            "reward of 3 is not among --reward-bins -0.1 0.9",
        ),
        (lambda: Rewards(recorded([0.0])), "no transition to learn from"),
    ],
)
def test_what_cannot_be_used_is_refused_in_a_sentence(make, sentence):
    with pytest.raises(ReverieError, match=sentence):
        make()
