"""``reverie doctor``: what works on this machine, and how long a run will take on it.

Nothing here may fail: every check is a row, and a check that breaks says so in its row. Times are measured, not
looked up: the matrix products an update is made of, the steps of the environment, decisions, and one real update.
"""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from reverie import presets
from reverie.logger import duration, plural
from reverie.machine import CORES, describe, prepare
from reverie.types import Batch, Remembers, ReverieError

GOOD, NOTE, BAD = "ok", "note", "no"
COLOURS = {GOOD: "green", NOTE: "yellow", BAD: "red"}
NEEDED = ("torch", "numpy", "gymnasium", "safetensors", "tyro", "tensorboard", "matplotlib", "imageio-ffmpeg")
EXTRAS = {  # name: (module, what it is for)
    "dmc": ("dm_control", "the DeepMind Control Suite, dmc/..."),
    "mujoco": ("mujoco", "Gymnasium's MuJoCo worlds, HalfCheetah-v5, ..."),
    "box2d": ("Box2D", "reverie/CarRacing-v0, LunarLander-v3, ..."),
    "doom": ("vizdoom", "doom/take_cover"),
    "worlds": ("numba", "Sokoban and MiniPacman at full speed"),
    "atari": ("ale_py", "Atari games, ALE/Pong-v5, ..."),
    "minari": ("minari", "data sets of others"),
    "cluster": ("ray", "populations on many machines, --cluster"),
    "wandb": ("wandb", "logging to Weights & Biases, --wandb"),
}


@dataclass
class Row:
    """One line of the table: how it stands, what was looked at, what was found."""

    state: str
    name: str
    found: str


Check = Callable[[], Iterator[Row]]


def examine(
    agent: str = "",
    env: str = "",
    preset: Sequence[str] = ("laptop",),
    pixels: bool = True,
    console: Console | None = None,
) -> int:
    """Print the table; 0 if nothing that was asked for is broken, else 2."""
    console = console or Console()
    if agent:
        presets.resolve(agent, tuple(preset))  # an unknown name is a sentence, not a row
    if agent and not env:
        raise ReverieError(
            f"doctor {agent} needs --env: how long training takes depends on what is trained on"
        )
    checks: list[tuple[str, Check]] = [
        ("install", install),
        ("extras", extras),
        ("pictures", rendering),
        ("threads", threads),
        ("disk", disk),
    ]
    if agent:
        checks.append(
            (f"{agent} ({' '.join(preset)}) on {env}", lambda: training(agent, env, tuple(preset), pixels))
        )
    elif env:
        checks.append((env, lambda: environment(env, pixels)))
    rows: list[Row] = []
    for title, check in checks:
        table = Table(title=title, title_justify="left", title_style="bold", box=None, show_header=False)
        table.add_column(width=4)
        table.add_column(min_width=18)
        table.add_column(overflow="fold")
        found = list(carefully(title, check))
        for row in found:
            table.add_row(f"[{COLOURS[row.state]}]{row.state}[/]", row.name, row.found)
        console.print(table, highlight=False)
        rows += found
    broken = [row.name for row in rows if row.state == BAD]
    if broken:
        console.print(f"\n{plural(len(broken), 'thing')} to mend: {', '.join(broken)}", highlight=False)
    return 2 if broken else 0


def carefully(title: str, check: Check) -> Iterator[Row]:
    """A check's rows; what breaks in it becomes the last one."""
    try:
        yield from check()
    except ReverieError as error:
        yield Row(BAD, title, str(error))
    except Exception as error:
        yield Row(BAD, title, f"could not be checked ({type(error).__name__}: {first_line(error)})")


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no more is known"])[0]


def install() -> Iterator[Row]:
    old = sys.version_info < (3, 11)
    yield Row(
        BAD if old else GOOD, "python", platform.python_version() + (" (3.11 is needed)" if old else "")
    )
    for name in NEEDED:
        try:
            yield Row(GOOD, name, importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            yield Row(BAD, name, f"missing: pip install {name}")
    yield Row(GOOD, "machine", describe())


def extras() -> Iterator[Row]:
    """Optional packages, and the command that brings each."""
    for name, (module, purpose) in EXTRAS.items():
        try:
            there = importlib.util.find_spec(module) is not None
        except (ImportError, ValueError):
            there = False
        found = purpose if there else f"not installed ({purpose}): pip install 'reverie\\[{name}]'"
        yield Row(GOOD if there else NOTE, name, found)


def rendering() -> Iterator[Row]:
    """Which OpenGL draws a MuJoCo picture, and how fast."""
    from reverie.envs.pixels import MuJoCoCamera, choose_gl

    gl = choose_gl()
    try:
        import mujoco
    except ImportError:
        yield Row(NOTE, "MuJoCo", "not installed: pip install 'reverie\\[dmc]' for pictures of its worlds")
        return
    scene = "<mujoco><worldbody><light pos='0 0 3'/><geom type='sphere' size='1'/></worldbody></mujoco>"
    model = mujoco.MjModel.from_xml_string(scene)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    try:
        camera = MuJoCoCamera(model, data, 64, "near", -1)
        try:
            picture = np.asarray(camera())
            each = seconds_each(camera, 0.2)
        finally:
            camera.close()
    except Exception as error:
        yield Row(BAD, f"MuJoCo with {gl or 'its own GL'}", f"draws nothing: {first_line(error)}")
        return
    drawn = bool(picture.any())
    said = f"draws a 64x64 picture in {1e3 * each:.1f} ms" if drawn else "draws black pictures"
    yield Row(GOOD if drawn else BAD, f"MuJoCo with {gl or 'its own GL'}", said)


def threads() -> Iterator[Row]:
    """Matrix products per second, on one thread and on all; and the accelerator."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = product_rate("cpu")
        torch.set_num_threads(CORES)
        every = product_rate("cpu")
    finally:
        torch.set_num_threads(before)
    yield Row(GOOD, "1 thread", f"{one / 1e9:.0f} GFLOP/s in matrix products")
    if CORES > 1:
        slow = every < 1.2 * one
        said = f"{every / 1e9:.0f} GFLOP/s" + (
            "; hardly more than one: the machine is busy, --threads 1 may be faster now" if slow else ""
        )
        yield Row(NOTE if slow else GOOD, plural(CORES, "thread"), said)
    if hasattr(os, "getloadavg") and os.getloadavg()[0] > 0.7 * CORES:
        yield Row(
            NOTE,
            "load",
            f"{os.getloadavg()[0]:.1f} processes want the {CORES} cores: times below are too long",
        )
    if torch.cuda.is_available():
        yield Row(GOOD, "cuda", f"{torch.cuda.get_device_name()}, {product_rate('cuda') / 1e12:.1f} TFLOP/s")
    else:
        yield Row(GOOD, "device", "cpu; there is no CUDA device that this PyTorch can use")


def product_rate(device: str, size: int = 768) -> float:
    """Floating-point operations per second of float32 matrix products."""
    a, b = torch.rand(size, size, device=device), torch.rand(size, size, device=device)

    def product() -> None:
        torch.mm(a, b)
        if device == "cuda":
            torch.cuda.synchronize()

    return 2 * size**3 / seconds_each(product, 0.4)


def disk() -> Iterator[Row]:
    free = shutil.disk_usage(Path.cwd()).free
    low = free < 5e9
    yield Row(
        NOTE if low else GOOD,
        "free here",
        f"{free / 1e9:.0f} GB" + ("; a replay may take 4 GB" if low else ""),
    )


def environment(name: str, pixels: bool, **options: Any) -> Iterator[Row]:
    """What it shows, and how many steps a second it takes."""
    from reverie.envs import make_env
    from reverie.run.train import spaces

    env = make_env(name, pixels=pixels, **options)
    try:
        yield Row(GOOD, "spaces", spaces(env))
        each = step_seconds(env)
        yield Row(GOOD, "steps", f"{1 / each:,.0f} a second" + (" with pictures" if pixels else ""))
    finally:
        env.close()


def step_seconds(env: Any, budget: int | float = 1.0) -> float:
    """Seconds of one env step under random actions."""
    rng, row, seed, steps = np.random.default_rng(0), env.reset(0), 0, 0
    env.step(env.act_space.sample(rng, 1)[0])  # the first is slower
    row, begin = env.reset(0), time.perf_counter()
    while time.perf_counter() - begin < budget or steps == 0:
        if row.is_last:
            seed += 1
            row = env.reset(seed)
        row = env.step(env.act_space.sample(rng, 1)[0])
        steps += int(row.env_steps)
    return (time.perf_counter() - begin) / steps


def training(agent: str, env_name: str, names: tuple[str, ...], pixels: bool) -> Iterator[Row]:
    """What will be trained on what, and how long it will take."""
    from reverie.run.folder import Plan
    from reverie.run.loop import RunConfig
    from reverie.run.online import length, rows_needed
    from reverie.run.parts import env_factory, make_agent, make_replay
    from reverie.run.train import loop_name, spaces

    fields = presets.config_class(agent).__dataclass_fields__
    config = presets.resolve(agent, names, {"pixels": pixels} if "pixels" in fields else {})
    pixels = getattr(config, "pixels", False)  # agents that read vectors alone have no such setting
    plan = Plan(agent, env_name, names, config, RunConfig(replay_on_disk=False))
    before = torch.get_num_threads()
    env = env_factory(plan)()
    try:
        prepare()
        yield Row(GOOD, "spaces", spaces(env))
        step = step_seconds(env)
        yield Row(GOOD, "env steps", f"{1 / step:,.0f} a second" + (" with pictures" if pixels else ""))
        learner = make_agent(plan, One(env))
        sizes = [p.numel() for p in learner.modules.parameters()] if hasattr(learner, "modules") else []
        if sizes:
            yield Row(GOOD, "parameters", f"{sum(sizes):,}")
        decision = decision_seconds(learner, env)
        yield Row(GOOD, "decision", f"{1e3 * decision:.1f} ms")
        if loop_name(agent) != "online":
            staged = loop_name(agent) == "staged"
            yield from (forecast_stages if staged else forecast_rollouts)(plan, step, learner, env)
            return
        batch = random_batch(env, config.batch_size, length(config))
        update = seconds_each(lambda: learner.update(batch), 5.0)
        size = f"{config.batch_size} sequences of {length(config)}"
        yield Row(GOOD, "update", f"{duration_fine(update)}, {size}")
        yield from forecast(plan, step, decision, update)
        context = learner.context if isinstance(learner, Remembers) else None
        replay = make_replay(plan, One(env), Path(), *rows_needed(plan, 1), context)
        yield Row(GOOD, "replay", f"up to {replay.bytes / 1e9:.2f} GB, {replay.capacity:,} rows")
    finally:
        torch.set_num_threads(before)
        env.close()


class One:
    """An environment's spaces, as those of one stream."""

    def __init__(self, env: Any):
        self.obs_space, self.act_space, self.n = env.obs_space, env.act_space, 1


def forecast(plan: Any, step: int | float, decision: int | float, update: int | float) -> Iterator[Row]:
    """The whole run, from its parts."""
    c, run = plan.config, plan.run
    bursts = max((c.steps - c.prefill) // c.train_every + 1, 0)
    updates = bursts * c.train_updates + getattr(c, "pretrain", 0)
    decisions = c.steps / c.action_repeat
    parts = {"env steps": c.steps * step, "decisions": decisions * decision, "updates": updates * update}
    total = sum(parts.values())
    most = max(parts, key=lambda name: parts[name])
    share = f"{parts[most] / total:.0%} of it {most}"
    evaluations = 1 + (c.steps - 1) // run.eval_every if run.eval_every else 1
    yield Row(
        GOOD,
        "the whole run",
        f"about {duration(total)} for {c.steps:,} env steps and {updates:,} updates ({share}), "
        f"and {plural(evaluations, 'evaluation')} of {plural(run.eval_episodes, 'episode')}",
    )


def forecast_stages(plan: Any, step: int | float, learner: Any, env: Any) -> Iterator[Row]:
    """What each stage will take; how long episodes are is guessed from random ones."""
    from reverie.agents.world_models import Latents

    c = plan.config
    pictures = random_batch(env, c.v_batch, 1).obs[learner.key][:, 0]
    v = seconds_each(lambda: learner.update_v(pictures), 3.0)
    length = min(c.m_length, 50)  # time grows with it in proportion
    chunk = Latents(
        torch.randn(length, c.m_batch, 2, c.latents),
        torch.zeros(length, c.m_batch, env.act_space.size),
        torch.zeros(length, c.m_batch),
        torch.zeros(length, c.m_batch),
    )
    m = seconds_each(lambda: learner.update_m(chunk, learner.blank(c.m_batch)), 3.0) * c.m_length / length
    row, frames = env.reset(0), 0
    rng = np.random.default_rng(0)
    while not row.is_last and frames < 3_000:
        row = env.step(env.act_space.sample(rng, 1)[0])
        frames += 1
    parts = {"collect": c.rollouts * frames * step, "V": c.v_updates * v, "M": c.m_updates * m}
    for name, seconds in parts.items():
        yield Row(GOOD, name, f"about {duration(seconds)}")
    rollouts = f"{c.generations:,} generations of {c.population} x {c.trials} rollouts"
    yield Row(NOTE, "C", f"{rollouts} in the {c.evolve_in}: depends on how long they live")


def forecast_rollouts(plan: Any, step: int | float, learner: Any, env: Any) -> Iterator[Row]:
    """Rollouts of all environments together, each with its update."""
    c = plan.config
    row = env.reset(0)
    obs = {key: np.stack([value] * c.actors) for key, value in row.obs.items()}
    obs["is_first"] = np.zeros(c.actors, bool)
    act = seconds_each(lambda: learner.act(obs, learner.initial(c.actors), "train"), 2.0)
    batch = random_batch(env, c.actors, c.length + 1)
    update = seconds_each(lambda: learner.update(batch), 5.0)
    size = f"{c.actors} sequences of {c.length}"
    yield Row(GOOD, "update", f"{duration_fine(update)}, {size}")
    decisions = c.steps / c.action_repeat
    total = c.steps * step + decisions / c.actors * (act + update / c.length)
    yield Row(
        GOOD, "the whole run", f"about {duration(total)} for {c.steps:,} env steps, without evaluations"
    )


def decision_seconds(agent: Any, env: Any) -> float:
    row = env.reset(0)
    obs = {key: value[None] for key, value in row.obs.items()} | {"is_first": np.array([False])}
    carry = [agent.initial(1)]

    def decide() -> None:
        _, carry[0] = agent.act(obs, carry[0], "train")

    return seconds_each(decide, 1.0)


def random_batch(env: Any, size: int, length: int) -> Batch:
    """A batch of the right shapes that nobody has experienced."""
    rng = np.random.default_rng(0)
    obs = {}
    for key, space in env.obs_space.items():
        shape = (size, length, *space.shape)
        values = rng.integers(0, 256, shape, np.uint8) if space.is_image else rng.normal(size=shape)
        obs[key] = torch.from_numpy(values.astype(space.dtype))
    action = torch.from_numpy(env.act_space.sample(rng, size * length).reshape(size, length, -1))
    reward = torch.from_numpy(rng.normal(size=(size, length)).astype(np.float32))
    none = torch.zeros(size, length, dtype=torch.bool)
    return Batch(obs, action, action.clone(), reward, none, none, none)


def seconds_each(act: Callable[[], Any], budget: int | float) -> float:
    """Median seconds of one call, after a first that is not counted; at least one, then up to ``budget`` seconds."""
    act()
    times: list[float] = []
    begin = time.perf_counter()
    while not times or time.perf_counter() - begin < budget:
        start = time.perf_counter()
        act()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def duration_fine(seconds: float) -> str:
    return f"{1e3 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
