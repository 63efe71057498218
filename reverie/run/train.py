"""From a plan to a trained agent: build the parts, go on where the folder's last checkpoint stopped, learn."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from reverie import checkpoint, parallel, presets
from reverie.envs.pixels import preset as renderer
from reverie.logger import duration, plural
from reverie.machine import prepare
from reverie.run.data_parallel import DataParallel, folder_of
from reverie.run.folder import Plan, check_folder, read_json, read_plan
from reverie.run.loop import Loop, RunConfig, at_least
from reverie.run.online import Online
from reverie.run.parts import Parts, device
from reverie.types import LoopName, ReverieError

# Sees a line of metrics.jsonl; an answer that is true stops the run.
Watch = Callable[[Mapping[str, int | float]], object]


def train(
    agent: str,
    env: str,
    preset: str | tuple[str, ...] = "paper",
    run: str | Path | None = None,
    settings: RunConfig | None = None,
    watch: Watch | None = None,
    **overrides: Any,
) -> Path:
    """Train ``agent`` on ``env`` and return the run's folder; called again with the same, it goes on.

    ``preset`` is one name or several ("laptop", "cartpole_swingup"). ``overrides`` are fields of the agent's
    Config (``horizon=10``) or of ``RunConfig`` (``seed=1``). ``watch`` is shown every line of metrics.jsonl when it is
    written; if its answer is true, or it breaks down, the run is saved and stops. Raises ``ReverieError`` with one
    sentence for whatever can not be used.
    """
    names = tuple(preset.split()) if isinstance(preset, str) else tuple(preset)
    fields = RunConfig.__dataclass_fields__
    given = {name: value for name, value in overrides.items() if name in fields}
    settings = dataclasses.replace(settings or RunConfig(), **given)
    config = presets.resolve(agent, names, {k: v for k, v in overrides.items() if k not in fields})
    plan = Plan(agent, env, names, config, settings)
    folder = default_folder(plan) if run is None else Path(run)
    carry_out(plan, folder, watch)
    return folder


def default_folder(plan: Plan) -> Path:
    return Path("runs") / f"{plan.agent}-{plan.env.replace('/', '_').replace(':', '_')}-{plan.run.seed}"


def carry_out(plan: Plan, folder: Path, watch: Watch | None = None) -> bool:
    """Do what the plan says in ``folder``; True when it is finished, False when interrupted. Started by ``torchrun``,
    it is done together with the other processes."""
    ranks = parallel.asked()
    if ranks.size == 1:
        return do(plan, folder, watch)
    plan = dataclasses.replace(plan, run=dataclasses.replace(plan.run, processes=ranks.size))
    with parallel.joined(ranks):
        return do(plan, folder_of(ranks.rank, folder), watch)


def do(plan: Plan, folder: Path, watch: Watch | None = None) -> bool:
    """The part of this process, in its own folder."""
    from reverie.report import write_report

    check(plan)
    check_folder(folder, plan)
    first = parallel.ranks().rank == 0
    if parallel.everyone(is_finished(plan, folder))[0][0]:
        if first and not (folder / "report.html").exists():
            write_report(folder)
        if first:
            print(finished(folder))
        return True
    prepare(plan.run.threads)
    with Parts() as parts:
        loop = loop_of(plan.agent, plan.run.processes).make(plan, folder, parts)
        say = loop.progress.say
        say(about(plan, loop, folder))
        go_on(loop)
        with watched(loop, watch):
            at_end = loop.loop()
        if not at_end:
            say(f"Saved at {loop.about()}. The same command goes on from there.")
            return False
    if first:
        write_report(folder)
        say(finished(folder))
    return True


@contextlib.contextmanager
def watched(loop: Loop, watch: Watch | None) -> Iterator[None]:
    """Show ``watch`` what ``loop`` logs. What it raises is raised when the loop has saved and stopped."""
    broken: list[Exception] = []

    def told(line: Mapping[str, int | float]) -> None:
        try:
            enough = watch is not None and not broken and bool(watch(line))
        except Exception as error:
            broken.append(error)
            enough = True
        if enough:
            loop.stop()

    loop.logger.watch = told
    yield
    if broken:
        raise broken[0]


def loop_name(agent: str) -> LoopName:
    """The name of the loop that an agent learns in."""
    return getattr(presets.agent_class(agent), "loop", "online")


def loop_of(agent: str, processes: int = 1) -> type[Loop]:
    """The loop that an agent learns in; those that need more are imported when they are needed."""
    if processes > 1:
        return DataParallel
    match loop_name(agent):
        case "on_policy":
            from reverie.run.on_policy import OnPolicy

            return OnPolicy
        case "staged":
            from reverie.run.staged import Staged

            return Staged
    return Online


def check(plan: Plan) -> None:
    """Refuse what the loop could not carry out, before anything is made."""
    renderer(plan.run.renderer)
    at_least(plan.config, "action_repeat", 1)
    if hasattr(plan.config, "image_size"):  # agents that read vectors alone have none
        at_least(plan.config, "image_size", 0)
    loop, processes = loop_of(plan.agent), plan.run.processes
    if processes != parallel.ranks().size:
        raise ReverieError(
            f"--processes is said by whoever starts them: torchrun --nproc-per-node {processes} -m -- reverie train ..."
        )
    if processes > 1 and loop is not Online:
        raise ReverieError(
            f"several processes train agents that learn from a replay while they act; {plan.agent} has a loop of its "
            f"own: start it without torchrun"
        )
    if plan.run.graph and loop is not Online:
        raise ReverieError(
            f"--graph works in one process, with agents that learn from a replay while they act: leave it out for "
            f"{plan.agent}" + (f" in {processes} processes" if processes > 1 else "")
        )
    if plan.run.collector and loop is not Online:
        raise ReverieError(
            f"--collector works with agents that learn from a replay while they act; {plan.agent} has a loop of its "
            f"own: leave it out"
        )
    loop_of(plan.agent, processes).check(plan.config, plan.run)


def is_finished(plan: Plan, folder: Path) -> bool:
    """Whether the newest checkpoint is the end of the run, evaluated there. One of the same env steps may be from
    before the last updates, or from before the evaluation was recorded."""
    evaluation = read_json(folder / "evaluation.json")
    saved = checkpoint.paths(folder / "checkpoints")
    if not saved or not loop_of(plan.agent).reached(plan.config, evaluation):
        return False
    here = saved[-1].name.split(".")[0] == f"{evaluation.get('place', -1):09d}"
    return here and checkpoint.says(saved[-1], "done") is True


def finished(folder: Path) -> str:
    """What came of a finished run, in three lines."""
    found = read_json(folder / "evaluation.json")
    return (
        f"Finished: {found['env_steps']:,} env steps, {found['updates']:,} updates, {duration(found['seconds'])}; "
        f"return {found['mean']:.1f} ± {found['std']:.1f} over {plural(len(found['returns']), 'episode')}, "
        f"random policy {found['random']['mean']:.1f} ± {found['random']['std']:.1f}.\n"
        f"Report: {(folder / 'report.html').resolve()}\n"
        f"The same command with more {loop_of(read_plan(folder).agent).more} goes on from here."
    )


def go_on(loop: Loop) -> None:
    """Take the last good checkpoint, if there is one; what the replay knows beyond it is fed in again."""
    say, replay = loop.progress.say, loop.replay
    recorded = sum(replay.counts)
    found = loop.newest_state()
    if found is not None:
        loop.load_state_dict(found)
        beyond = recorded - sum(replay.counts)
        say(
            f"Going on from {loop.about()}, after {duration(loop.seconds)}"
            + (f"; {plural(beyond, 'row')} recorded since are taken in again." if beyond > 0 else ".")
        )
        return
    loop.begin_again()
    if recorded:
        say(f"No checkpoint yet: the {plural(recorded, 'row')} recorded so far are taken in again.")


def about(plan: Plan, loop: Loop, folder: Path) -> str:
    """Said before the start: what learns what from what, and what it will take."""
    place = "on disk" if plan.run.replay_on_disk else "in memory"
    size = loop.replay.bytes
    sized = f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
    beside = " and a collector" if plan.run.collector else ""
    return (
        f"{plan.agent} ({', '.join(plan.presets)}) on {plan.env}: {spaces(loop.eval_envs)}.\n"
        f"{loop.asked()} on {device(plan.run.device)} with {plural(torch.get_num_threads(), 'thread')}{beside}; "
        f"replay {place}, up to {sized}; run folder {folder}"
    )


def spaces(envs: Any) -> str:
    """What an agent sees and does, in words."""
    sees = ", ".join(f"{key} {'x'.join(map(str, space.shape))}" for key, space in envs.obs_space.items())
    act = envs.act_space
    acts = " x ".join(map(str, act.groups)) + " choices" if act.discrete else plural(act.size, "number")
    return f"sees {sees}; acts by {acts}"
