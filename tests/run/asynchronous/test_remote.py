"""A learner on the second node of a local Ray cluster, with the link cut in the middle."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reverie import checkpoint, presets
from reverie.data.replay import Replay
from reverie.robots import make_robot
from reverie.run.asynchronous import remote
from reverie.run.asynchronous.actor import make_actor
from reverie.run.asynchronous.clock import RealClock
from reverie.run.asynchronous.link import Courier, Mailbox
from reverie.run.asynchronous.settings import LINK, RobotConfig
from reverie.run.asynchronous.spool import Spool
from reverie.run.folder import Plan
from reverie.run.loop import RunConfig
from reverie.run.parts import Parts
from reverie.types import ActionSpace, Space, Step

OBS, ACT = {"vector": Space((2,))}, ActionSpace(1)


def rows(spool: Spool, n: int) -> None:
    for i in range(spool.number, spool.number + n):
        flags = dict(
            is_first=np.array(i % 10 == 0), is_last=np.array(i % 10 == 9), is_terminal=np.array(False)
        )
        obs = {"vector": np.full(2, i, np.float32)}
        spool.add(
            Step(obs, np.array(1.0, np.float32), **flags, env_steps=np.array(1, np.int64)),
            np.zeros(1, np.float32),
        )


def test_the_courier_says_that_the_link_is_cut_and_mends_it(tmp_path: Path) -> None:
    near, far, said = tmp_path / "near", tmp_path / "far", []
    spool = Spool(near, OBS, ACT, 20.0, 10**6)

    class Cut(Mailbox):
        cut = True

        def sizes(self) -> dict[int, int]:
            if self.cut:
                raise ConnectionError("no route")
            return super().sizes()

    mailbox = Cut(far)
    courier = Courier(near, mailbox, every=0.02)
    courier.start(said.append)
    rows(spool, 30)
    assert until(lambda: courier.cuts > 3)
    rows(spool, 30)
    mailbox.cut = False
    assert until(lambda: len(said) == 2)
    rows(spool, 5)
    courier.close()
    assert "can not be reached (no route)" in said[0] and "there again" in said[1]
    sent = b"".join(path.read_bytes() for path in sorted(near.glob("rows-*")))
    assert sent == b"".join(path.read_bytes() for path in sorted(far.glob("rows-*")))


def until(what: Callable[[], bool], seconds: float = 60.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end and not what():
        time.sleep(0.05)
    return what()


@pytest.fixture
def nodes() -> Iterator[Any]:
    """The robot's machine, which has no CPU for a learner, and another."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster as Nodes

    memory = 80 * 2**20
    head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": memory}
    made = Nodes(initialize_head=True, head_node_args=head)
    made.add_node(num_cpus=1, object_store_memory=memory)
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="stops a process")
def test_a_learner_on_another_node_with_the_link_cut_for_thirty_seconds(tmp_path, nodes, monkeypatch) -> None:
    """Nobody answers for thirty seconds: the robot decides on, and every row is there in the end."""
    monkeypatch.setattr(remote, "PATIENCE", 3.0)
    config = presets.resolve("dreamer_v1", ["debug"], {"prefill": 60, "batch_length": 6, "steps": 100_000})
    plan = Plan("dreamer_v1", "Pendulum-v1", ("debug",), config, RunConfig())
    settings = RobotConfig(sync_every=1.0, log_every=100, threads=1, video=False)
    folder, said = tmp_path / "run", []
    with Parts() as parts:
        actor = make_actor(
            plan, settings, folder, make_robot("Pendulum-v1", 20.0), RealClock(), parts, shown=False
        )
        keeper = remote.Keeper(nodes.address, folder, plan, settings, said.append)
        ray = remote.import_ray()
        learner = ray.get(keeper.remote._actor.__ray_call__.remote(lambda self: os.getpid()))

        def act(done: Callable[[], bool], seconds: float) -> bool:
            end = time.monotonic() + seconds
            while time.monotonic() < end and not done():
                actor.tick()
            return done()

        assert act(lambda: actor.policies.updates > 0, 120), said
        os.kill(learner, signal.SIGSTOP)
        try:
            before, version = actor.decisions, actor.policies.version
            act(lambda: False, 30.0)
            assert actor.decisions - before > 300 and not actor.held  # of 600: this machine is not alone
            assert actor.policies.version <= version + 1
            assert any("can not be reached" in line for line in said)
        finally:
            os.kill(learner, signal.SIGCONT)
        assert act(lambda: actor.policies.version > version + 1, 60), said
        assert any("there again" in line for line in said)
        actor.spool.close()
        keeper.close()
        written = actor.spool.number
    there = tmp_path / "run-learner"
    replay = Replay.open(there / "replay")
    assert replay.counts[0] == written and checkpoint.paths(there / "checkpoints")
    found = replay.read(0, 0, written)
    assert int((~found["is_last"]).sum()) == actor.decisions
    assert (there / LINK).exists()
