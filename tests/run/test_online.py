"""The loop: a run that was interrupted anywhere is, bit for bit, the run that was not."""

from functools import partial
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest

from reverie.agents import dreamer_v1
from reverie.envs import SerialEnvs, make_env
from reverie.envs.base import Env, after, first
from reverie.run.evaluate import Evaluation, evaluate
from reverie.types import ActionSpace, Space


def whole(toys, folder, **options):
    sitting = toys.Sitting(folder, **options).go_on()
    assert sitting.online.loop()
    result = toys.everything(sitting)
    sitting.close()
    return result


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("disk", [True, False], ids=["disk", "memory"])
def test_stopped_and_resumed_after_every_move(toys, tmp_path, n, disk):
    expected = whole(toys, tmp_path / "whole", n=n, disk=disk)
    k, finished = 0, False
    while not finished:
        folder = tmp_path / f"stopped-{k}"
        first = toys.Sitting(folder, n=n, disk=disk).go_on().moves(k)
        first.online.save()
        finished = first.online.done
        first.close()
        second = toys.Sitting(folder, n=n, disk=disk).go_on()
        assert second.online.loop()
        assert toys.everything(second) == expected, f"stopped after {k} moves"
        second.close()
        k += 1
    assert k > 15


@pytest.mark.parametrize("n", [1, 3])
def test_killed_after_every_move_with_a_checkpoint_some_moves_before(toys, tmp_path, n):
    """From no checkpoint at all to one that is 12 moves old: the journal closes the gap."""
    expected = whole(toys, tmp_path / "whole", n=n)
    k, finished = 0, False
    while not finished:
        folder = tmp_path / f"killed-{k}"
        first = toys.Sitting(folder, n=n).go_on().moves(k)
        if k % 3:
            first.online.save()
        finished = first.online.done
        recorded = sum(first.moves(4 * (k % 4)).replay.counts)
        first.die()
        second = toys.Sitting(folder, n=n).go_on()
        assert second.online.loop()
        assert sum(second.replay.counts) >= recorded
        assert toys.everything(second) == expected, f"killed {4 * (k % 4)} moves after {k}"
        second.close()
        k += 1


def test_workers_are_killed_and_resumed_like_streams_in_this_process(toys, tmp_path):
    factory = partial(make_env, "Pendulum-v1", time_limit=6)
    expected = whole(toys, tmp_path / "whole", n=3, factory=factory)
    first = toys.Sitting(tmp_path / "run", n=3, factory=factory, workers=2).go_on().moves(5)
    first.online.save()
    first.moves(4).die()
    second = toys.Sitting(tmp_path / "run", n=3, factory=factory, workers=2).go_on()
    assert second.online.loop()
    assert toys.everything(second) == expected
    second.close()


def test_updates_evaluations_and_lines_fall_due_by_counts(toys, tmp_path):
    config = toys.Config(steps=40, prefill=12, pretrain=4, train_every=10, train_updates=3)
    sitting = toys.Sitting(tmp_path, config=config, eval_every=20, log_every=10).go_on()
    online, seen = sitting.online, []
    while not online.done:
        before = online.updates
        online.move()
        seen.append((online.env_steps, online.updates - before))
    updates = {step: sum(n for s, n in seen if s == step) for step in range(41)}
    assert {step: n for step, n in updates.items() if n} == {12: 7, 22: 3, 32: 3}
    lines = toys.metrics(tmp_path)
    assert [line["env_steps"] for line in lines if "eval/return" in line] == [20, 40]
    assert [line["env_steps"] for line in lines if "eval/return" not in line] == [10, 20, 30, 40]
    assert all({"env_steps", "updates", "episodes"} <= set(line) for line in lines)
    assert lines[-1]["updates"] == 13 and "loss/toy" not in lines[-1]
    sitting.close()


class LongRows(Env):
    """Five hundred env steps a row, so that a million of them pass in seconds."""

    obs_space, act_space = {"vector": Space((1,))}, ActionSpace(1)
    t = 0

    def reset(self, seed):
        self.t = 0
        return first({"vector": np.zeros(1, np.float32)})

    def step(self, action):
        self.t += 1
        row = after({"vector": np.zeros(1, np.float32)}, 0.0, False, self.t == 10)
        row.env_steps = np.array(500)
        return row

    def render(self):
        return np.zeros((8, 8, 3), np.uint8)


def test_dreamers_schedule_makes_99600_updates_by_a_million_env_steps(toys, tmp_path):
    """Of its paper's Config: 100 updates at 5,000 env steps, and at every 1,000 after."""

    class Idle(toys.Toy):
        """Draws nothing, learns nothing."""

        def act(self, obs, carry, mode):
            return np.zeros((len(obs["is_first"]), 1), np.float32), carry

        def sample(self, replay, rng):
            return SimpleNamespace(rows=None)

        def update(self, batch):
            return {}

    config = dreamer_v1.Config(steps=1_000_000)
    options = dict(factory=LongRows, agent=Idle(), disk=False, eval_every=0, log_every=10**6)
    online = toys.Sitting(tmp_path, config=config, **options).go_on().online
    bursts: dict[int, int] = {}  # env steps: updates
    while not online.done:
        before = online.updates
        online.move()
        if online.updates > before:
            bursts[online.env_steps] = bursts.get(online.env_steps, 0) + 1
    assert online.env_steps == 1_000_000 and online.updates == 99_600
    assert min(bursts) == 5_000 and {b - a for a, b in pairwise(bursts)} == {1_000}
    assert set(bursts.values()) == {100}


def test_a_finished_run_has_nothing_to_do_and_more_steps_go_on(toys, tmp_path):
    expected = whole(toys, tmp_path / "whole", config=toys.Config(steps=60))
    sitting = toys.Sitting(tmp_path / "run", config=toys.Config(steps=40)).go_on()
    assert sitting.online.loop()
    sitting.close()
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    again = toys.Sitting(tmp_path / "run", config=toys.Config(steps=40)).go_on()
    assert again.online.done and again.online.loop()
    assert again.online.last_eval.returns == sitting.online.last_eval.returns
    again.close()
    after = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert after == before
    longer = toys.Sitting(tmp_path / "run", config=toys.Config(steps=60)).go_on()
    assert longer.online.loop()
    assert toys.everything(longer) == expected
    longer.close()


def test_an_evaluation_that_is_left_was_never_begun(toys, tmp_path):
    expected = whole(toys, tmp_path / "whole")
    sitting = toys.Sitting(tmp_path / "run").go_on()
    online = sitting.online
    while not online.evaluation_due():
        online.move()
    act, calls = sitting.agent.act, []

    def stopped(*args):
        calls.append(1)
        if len(calls) == 2:
            online.stopping = True
        return act(*args)

    sitting.agent.act = stopped
    assert not online.loop()
    assert len(calls) == 2 and online.evaluation_due()
    sitting.close()
    again = toys.Sitting(tmp_path / "run").go_on()
    assert again.online.loop()
    assert toys.everything(again) == expected
    again.close()


def test_time_left_is_what_is_left_of_each_kind_of_move(toys, tmp_path):
    config = toys.Config(steps=100, prefill=20, pretrain=5, train_every=10, train_updates=2)
    sitting = toys.Sitting(tmp_path, config=config, eval_every=50)
    online = sitting.online
    assert online.left() is None
    online.spent, online.counted = (
        {"act": 1.0, "update": 0.0, "evaluate": 0.0},
        {"act": 10, "update": 0, "evaluate": 0},
    )
    assert online.left() is None  # nobody knows yet what an update costs
    online.spent = {"act": 1.0, "update": 6.0, "evaluate": 4.0}
    online.counted = {"act": 10, "update": 2, "evaluate": 1}
    # 100 env steps at 0.1, 5 + 9 bursts of 2 updates at 3, evaluations at 50, 100 and the end at 4
    assert online.left() == pytest.approx(10 + 23 * 3 + 3 * 4)
    sitting.close()


def test_a_checkpoint_is_due_by_the_clock_or_when_the_slack_is_half_used(toys, tmp_path):
    sitting = toys.Sitting(tmp_path, checkpoint_every=1e9)
    online = sitting.online
    online.saved_rows = -100
    assert not online.checkpoint_due()
    online.saved_rows = -101  # of a slack of 200
    assert online.checkpoint_due()
    online.saved_rows, online.saved_at = 0, -2e9
    assert online.checkpoint_due()
    online.save_took = 1e9  # never more than a twentieth of the time
    assert not online.checkpoint_due()
    sitting.close()


def test_evaluations_meet_the_same_starts_and_chance_is_seeded(toys):
    envs = SerialEnvs(toys.Walk, 2, 9)
    agent = toys.Toy()
    first = evaluate(agent, envs, 5)
    agent.load_state_dict(toys.Toy().state_dict())
    again = evaluate(agent, envs, 5)
    assert first.returns == again.returns and first.lengths == again.lengths and len(first.returns) == 5
    by_chance = [evaluate(None, envs, 5, np.random.default_rng(1)) for _ in range(2)]
    assert by_chance[0].returns == by_chance[1].returns != first.returns
    assert by_chance[0].lengths == first.lengths  # Walk's seed alone decides how long it is
    # the same starts one after another in one stream as the first episodes of it
    alone = evaluate(None, SerialEnvs(toys.Walk, 1, 9), 1, np.random.default_rng(1))
    assert alone.lengths[0] == first.lengths[0]


def test_tasks_learned_together_are_told_apart():
    result = Evaluation(returns=[1.0, 2.0, 3.0], lengths=[5, 5, 7], seeds=[4, 7, 6])
    apart = result.by_task("dmc/a+dmc/b")  # even seeds are of the first, odd ones of the second
    assert {task: part.returns for task, part in apart.items()} == {"a": [1.0, 3.0], "b": [2.0]}
    assert result.by_task("dmc/a") == {}


def test_an_evaluation_of_goals_tells_how_far_from_them_it_ended():
    """Of the last rows alone, each episode's own, in order."""
    with SerialEnvs(partial(make_env, "reverie/PointMassDense-v0", time_limit=4), 2, 7) as envs:
        result = evaluate(None, envs, 3)
        assert len(result.distances) == len(result.last_rewards) == 3
        assert result.distances == pytest.approx([-r for r in result.last_rewards], abs=1e-5)
        assert len(set(result.distances)) == 3
    with SerialEnvs(partial(make_env, "Pendulum-v1", time_limit=4), 2, 7) as envs:
        assert evaluate(None, envs, 2).distances == []
