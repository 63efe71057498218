"""Learning on a robot that does not wait (DayDreamer, Wu et al. 2022): an actor and a learner, two processes.

::

    actor, owns the clock                                     learner, owns the gradient
    rate times a second, on the beat:                         as often as it can:
        sense -> policy -> guard -> spool -> send    rows         take in rows, one agent.update
        newer weights? swap them in                 ------>   every sync_every seconds:
        never waits, never catches up               <------       publish the policy's weights as a new version
                                                   weights

Both know only files (``spool.py``, ``checkpoint.py``): either may be killed, or be out of reach of the other for
minutes, and nothing that happened is lost. The robot goes on with its last policy until that is ``stale_after``
seconds old, or until the spool is full; then it is stopped, says why, and goes on by itself when that has passed.

With a virtual clock (``virtual_update`` > 0) both take turns in one process, every decision takes a period, every
update the stated milliseconds, and the same seed gives the same run: for tests, and for machines that cannot hold
both at real time.

Each side is a file, ``actor.py`` and ``learner.py``, and so is what passes between them: ``spool.py`` (rows),
``weights.py`` (policies). ``keeper.py`` runs the learner in a process, ``remote.py`` on another machine, with
``link.py`` to carry. ``safety.py`` and ``person.py`` stand beside the robot. Here both sides are put together.
"""

import contextlib
import dataclasses
import gc
import math
import signal
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from reverie.logger import duration, plural
from reverie.machine import prepare
from reverie.robots.base import Robot, Twin, make_robot
from reverie.run.asynchronous.actor import Actor, make_actor
from reverie.run.asynchronous.clock import Clock, RealClock, VirtualClock
from reverie.run.asynchronous.keeper import Keeper
from reverie.run.asynchronous.learner import Learner, make_learner
from reverie.run.asynchronous.person import Person
from reverie.run.asynchronous.settings import LINK, LOOK, RobotConfig
from reverie.run.asynchronous.weights import Policies
from reverie.run.folder import Plan, check_folder, write_plan
from reverie.run.loop import RunConfig
from reverie.run.parts import Parts, new_agent
from reverie.run.train import loop_name
from reverie.types import ReverieError

__all__ = ["RobotConfig", "carry_out", "learn_on"]

AS_ENV = {
    "a1": "reverie/A1-v0",
    "a1_pushed": "reverie/A1-v0",  # a run may go on with it
    "pick_place": "reverie/PickPlace-v0",
    "ball": "reverie/Ball-v0",
}


def learn_on(
    agent: str,
    robot: str,
    names: tuple[str, ...],
    config: Any,
    settings: RobotConfig,
    folder: Path | None = None,
) -> bool:
    """``reverie robot``: make or find the run's folder, connect the robot, learn; True when all decisions are made.

    Raises ``ReverieError`` with one sentence for whatever can not be used.
    """
    run = RunConfig(seed=settings.seed, device=settings.device, replay_size=settings.replay_size)
    plan = Plan(agent, AS_ENV.get(robot, robot), names, config, run)
    if folder is None:
        folder = Path("runs") / f"{agent}-{Path(robot.replace(':', '_')).name}-{settings.seed}"
    check_folder(folder, plan)
    made = make_robot(robot, settings.rate, settings.seed)
    try:
        write_plan(folder, plan, robot={"name": robot, **dataclasses.asdict(settings)})
        finished = carry_out(plan, settings, folder, made)
        if finished and settings.video and isinstance(made, Twin):
            film(plan, settings, folder, made, robot)
        return finished
    finally:
        made.close()


def carry_out(plan: Plan, settings: RobotConfig, folder: Path, robot: Robot) -> bool:
    """Learn on ``robot`` in ``folder``, going on where it stopped; True when all decisions are made."""
    if loop_name(plan.agent) != "online":
        raise ReverieError(
            f"{plan.agent} has a loop of its own and can not learn beside a robot; agents that learn from a "
            "replay can"
        )
    virtual = settings.virtual_update > 0
    prepare(settings.threads if virtual else 1)
    clock: Clock = VirtualClock() if virtual else RealClock()
    with Parts() as parts:
        actor = make_actor(plan, settings, folder, robot, clock, parts, shown=True)
        say = actor.progress.say if actor.progress is not None else print
        say(about(plan, settings, robot, folder))
        person = parts.add(actor.person)
        if settings.port >= 0:
            port, _ = person.listen(folder, settings.port)
            say(f"Asks and wishes: http://127.0.0.1:{port}; the token is in {folder / 'control.json'}")
        if person.read_keys():
            say("Keys: p pause, c continue, r reset, q quit")
        with leaving(person):
            if virtual:
                learner = make_learner(plan, settings, folder, clock, parts)
                take_turns(actor, learner, settings.virtual_update / 1e3)
            else:
                keeper = parts.add(make_keeper(folder, plan, settings, say))
                gc.freeze()  # what is there now is not looked through again
                actor.loop()
                say("Stopped. The learner takes in the rest and saves.")
                keeper.close()
        if actor.progress is not None:
            actor.progress.clear()
        say(
            f"{plural(actor.decisions, 'decision')}, {plural(actor.missed, 'missed deadline')}, "
            f"{plural(actor.guard.refused, 'refused action')}; return of the last "
            f"{plural(len(actor.scores), 'episode')} {np.mean(actor.scores or [0.0]):.1f}. Run folder {folder}"
        )
        return actor.decisions >= plan.config.steps


def make_keeper(folder: Path, plan: Plan, settings: RobotConfig, say: Callable[[str], None]) -> Any:
    """The learner in a process of this machine, or on a Ray cluster."""
    if settings.cluster:
        from reverie.run.asynchronous import remote

        return remote.Keeper(settings.cluster, folder, plan, settings, say)
    return Keeper(folder, plan, settings, say)


def take_turns(actor: Actor, learner: Learner, cost: float) -> None:
    """A virtual clock: each decision takes its period, and each update ``cost`` seconds beside it."""
    learner.publish()
    credit, before = 0.0, actor.clock.now()

    def between() -> None:
        nonlocal credit, before
        credit, before = credit + actor.clock.now() - before, actor.clock.now()
        n = math.floor(credit / cost + 1e-9)
        if learner.settings.max_ratio and not learner.allowed():
            n = 0
        done = learner.turn(n)
        credit = credit - done * cost if done else min(credit, cost)  # time that was not used is gone

    actor.loop(between)
    learner.end()


@contextlib.contextmanager
def leaving(person: Person) -> Any:
    """Ctrl-C and SIGTERM as the wish to quit; a second Ctrl-C leaves at once."""
    asked = False

    def ask(*_: Any) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        person.say("quit")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def about(plan: Plan, settings: RobotConfig, robot: Robot, folder: Path) -> str:
    """Said before the start."""
    length = plan.config.steps / robot.rate
    if settings.virtual_update:
        clock = f"on a virtual clock, an update taking {settings.virtual_update:g} ms"
    else:
        clock = f"in real time, {duration(length)}"
    return (
        f"{plan.agent} ({', '.join(plan.presets)}) on {plan.env}: {plural(plan.config.steps, 'decision')} at "
        f"{robot.rate:g} Hz {clock}; run folder {folder}"
    )


def film(
    plan: Plan, settings: RobotConfig, folder: Path, robot: Twin, name: str, decisions: int = 250
) -> Path | None:
    """``videos/NAME.mp4``, a twin under the newest policy; None if there is nothing to see."""
    from reverie import media

    clock = VirtualClock()
    agent, spare = (new_agent(plan, robot.obs_space, robot.act_space, 0, "cpu") for _ in range(2))
    policies = Policies(folder / LINK / "weights", agent, spare, clock, aside=False)
    clock.wait(LOOK)
    policies.look()
    robot.rng = np.random.default_rng(settings.seed)
    robot.reset()
    carry, frames = policies.agent.initial(1), []
    for t in range(decisions):
        picture, reading = robot.render(), robot.sense()
        if picture is None:
            return None
        frames.append(picture)
        seen = {key: np.asarray(value)[None] for key, value in reading.obs.items()}
        action, carry = policies.agent.act({**seen, "is_first": np.array([t == 0])}, carry, "eval")
        if reading.over:
            break
        robot.send(np.clip(np.asarray(action[0]), -1, 1))
    try:
        return media.save_mp4(
            folder / "videos" / f"{Path(name.replace(':', '_')).name}.mp4",
            np.stack(frames),
            fps=max(1, round(robot.rate)),
        )
    except (ReverieError, OSError, ValueError) as error:
        warnings.warn(f"the video could not be made: {error}", stacklevel=2)
        return None
