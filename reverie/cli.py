"""The command line: ``reverie train | robot | evaluate | imagine | plot | reproduce | play | doctor | list``.

Flags are made from the dataclasses they set, so a field's comment is its help text. Presets are laid over the
paper's values first and single flags over those.
"""

import argparse
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from reverie import __version__, presets
from reverie.logger import plural
from reverie.types import ReverieError

USAGE = """reverie: reinforcement learning in imagination

  reverie train AGENT --env ENV [--preset P ...] [--run DIR] [--seed N] [--any-setting V]
                                           train; the same command goes on where it stopped
  reverie robot AGENT --robot NAME [--preset P ...] [--run DIR] [--any-setting V]
                                           learn on a robot, or its twin, that does not wait
  reverie evaluate RUN [--episodes N]      return of a trained agent beside the random policy's, and a video
  reverie imagine RUN [--context N]        open-loop video: truth, prediction, error
  reverie plot RUN [RUN ...] [--out FILE]  learning curves
  reverie reproduce NAME [--budget B]      a paper's claim, as an experiment; --list shows them
  reverie play [sokoban | mini_pacman]     a world of ours with the arrow keys, in the terminal
  reverie doctor [AGENT] [--env ENV]       what works on this machine, and how long a run will take
  reverie list                             agents, presets, environments

Add --help to a command for its settings."""

Flat = tyro.conf.arg(name="")  # the fields of a nested dataclass as flags of their own


@dataclass
class Evaluate:
    """Play whole episodes with a trained agent, without noise and without learning."""

    run: Annotated[Path, tyro.conf.Positional]  # a run's folder
    episodes: int = 10  # as many by the random policy
    best: bool = False  # the agent of the best evaluation, from other starts; else the newest
    video: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    """GIF of the first episode; videos/episode.gif in the run if not given"""


@dataclass
class Imagine:
    """Let a trained agent watch a few steps and predict the rest: truth, prediction and error side by side."""

    run: Annotated[Path, tyro.conf.Positional]  # a run's folder
    context: int = 5  # rows it sees
    length: int = 50  # rows in all
    seed: int = 0  # which sequences


@dataclass
class Plot:
    """Learning curves of one or more runs; runs of the same agent on the same task are seeds of one curve."""

    runs: Annotated[list[Path], tyro.conf.Positional, tyro.conf.arg(metavar="RUN [RUN ...]")]
    """folders of runs"""
    out: Path = Path("curves.png")  # .png or .svg
    metric: str = "eval/return"  # a name in metrics.jsonl


@dataclass
class Reproduce:
    """Run the experiment behind a paper's claim: curves, figure and verdict under results/NAME/BUDGET."""

    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")] = ""
    """a claim; --list shows them"""
    budget: str = "laptop"  # laptop, gpu, paper, or debug
    seeds: int = 0  # 0 for the claim's own number
    runs: Path = Path("runs/reproduce")  # where the runs are kept; finished ones are not run again
    results: Path = Path("results")  # where the verdicts are written, and what is kept of finished runs
    jobs: int = 1  # runs at a time, each with its share of the cores
    list: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False  # show every claim


@dataclass
class Play:
    """Play Sokoban or MiniPacman yourself: arrows move, space waits, n begins anew, q leaves."""

    world: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="WORLD")] = "sokoban"
    """sokoban or mini_pacman"""
    size: int = 10  # Sokoban's rows and columns, walls included
    boxes: int = 4
    levels: Path | None = None  # a Boxoban file or folder to play instead of new levels
    task: str = "regular"  # MiniPacman's: regular, avoid, hunt, ambush, rush
    seed: int | None = None  # the same game again


@dataclass
class Doctor:
    """Check the install, rendering, threads and device; with an agent and an environment, time their training."""

    agent: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="AGENT")] = ""
    """an agent, to time its training on --env"""
    env: str = ""  # an environment to try: dmc/cartpole_swingup, Pendulum-v1, ...
    preset: Annotated[tuple[str, ...], tyro.conf.arg(metavar="P [P ...]")] = ("laptop",)
    """settings of the agent"""
    pixels: bool = True  # pictures, as agents see them by default


def main(argv: list[str] | None = None) -> int:
    """Run one command; the exit code is 0, 1 for an interrupted run, 2 for something a user can mend."""
    argv = sys.argv[1:] if argv is None else argv
    with warnings.catch_warnings():
        warnings.showwarning = warn  # type: ignore[assignment]
        try:
            return command(argv)
        except ReverieError as error:
            print(f"reverie: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("reverie: left at once; what was saved before is kept", file=sys.stderr)
            return 1


def warn(message: Warning | str, *_: Any) -> None:
    """A warning is a sentence for a person, not a line of our source."""
    print(f"reverie: {message}", file=sys.stderr)


def command(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    name, rest = argv[0], argv[1:]
    if name == "train":
        return train(rest)
    if name == "robot":
        return robot(rest)
    if name == "list":
        if rest:
            raise ReverieError(f"list takes no settings, got {' '.join(rest)}")
        return show_list()
    if name == "--version":
        print(f"reverie {__version__}")
        return 0
    commands = {
        "evaluate": Evaluate,
        "imagine": Imagine,
        "plot": Plot,
        "reproduce": Reproduce,
        "play": Play,
        "doctor": Doctor,
    }
    presets.known(name, [*commands, "train", "robot", "list"], "command")
    return ACTIONS[name](tyro.cli(commands[name], args=rest, prog=f"reverie {name}"))


def train(argv: list[str]) -> int:
    from reverie.run.folder import Plan
    from reverie.run.loop import RunConfig
    from reverie.run.train import carry_out, default_folder

    if not argv or argv[0].startswith("-"):
        return no_agent("train", "--env ENV", argv)
    # Their values are the defaults of the flags.
    (agent, argv, names, resolved), usual = chosen(argv), RunConfig()

    @dataclass
    class Train:
        env: str  # dmc/DOMAIN_TASK, or any Gymnasium id (Pendulum-v1, module:Name-v0)
        preset: Annotated[tuple[str, ...], tyro.conf.arg(metavar="P [P ...]")] = names
        """named settings, later ones over earlier ones"""
        run: Annotated[
            Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="(default: runs/AGENT-ENV-SEED)")
        ] = None
        """the run's folder; a run that is there is gone on with"""
        settings: Annotated[RunConfig, Flat] = usual
        config: Annotated[type(resolved), Flat] = resolved

    about = f"{summary(agent)}\n\nPresets: {', '.join(presets.PRESETS[agent])}. Here: {' '.join(names)}."
    args: Any = tyro.cli(Train, args=argv, prog=f"reverie train {agent}", description=about)
    plan = Plan(agent, args.env, names, args.config, args.settings)
    return 0 if carry_out(plan, args.run or default_folder(plan)) else 1


def robot(argv: list[str]) -> int:
    from reverie.robots import ROBOTS
    from reverie.run.asynchronous import RobotConfig, learn_on

    if not argv or argv[0].startswith("-"):
        return no_agent("robot", "--robot NAME", argv)
    (agent, argv, names, resolved), usual = chosen(argv), RobotConfig()

    @dataclass
    class OnRobot:
        robot: str
        """a twin (a1, a1_pushed, pick_place, ball), your own (module:Class, file.py:Class), or any environment"""
        preset: Annotated[tuple[str, ...], tyro.conf.arg(metavar="P [P ...]")] = names
        """named settings, later ones over earlier ones"""
        run: Annotated[
            Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="(default: runs/AGENT-ROBOT-SEED)")
        ] = None
        """the run's folder; a run that is there is gone on with"""
        settings: Annotated[RobotConfig, Flat] = usual
        config: Annotated[type(resolved), Flat] = resolved

    about = (
        f"{summary(agent)}\n\nTwins: {', '.join(ROBOTS)}. Presets: {', '.join(presets.PRESETS[agent])}. "
        f"Here: {' '.join(names)}."
    )
    args: Any = tyro.cli(OnRobot, args=argv, prog=f"reverie robot {agent}", description=about)
    return 0 if learn_on(agent, args.robot, names, args.config, args.settings, args.run) else 1


def no_agent(command: str, where: str, argv: list[str]) -> int:
    """What is said to a command without an agent: the help, or one sentence."""
    text = f"reverie {command} AGENT {where}, with AGENT one of: {', '.join(presets.AGENTS)}"
    if argv[:1] in (["-h"], ["--help"]):
        print(f"{text}\nreverie {command} AGENT --help shows the settings of an agent.")
        return 0
    raise ReverieError(f"{command} needs an agent first: {text}")


def chosen(argv: list[str]) -> tuple[str, list[str], tuple[str, ...], Any]:
    """The agent, the other arguments, the presets among them and the Config they make."""
    agent, argv = argv[0], argv[1:]
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    parser.add_argument("--preset", nargs="+", default=["paper"])
    try:
        names = tuple(parser.parse_known_args(argv)[0].preset)
    except argparse.ArgumentError:
        raise ReverieError(f"--preset needs a name: {', '.join(presets.PRESETS[agent])}") from None
    return agent, argv, names, presets.resolve(agent, names)


def evaluate(args: Evaluate) -> int:
    from reverie.run.trained import evaluate_run

    result, by_chance, path = evaluate_run(args.run, args.episodes, args.video, args.best)
    print(f"return         {result.mean:.1f} ± {result.std:.1f} over {plural(args.episodes, 'episode')}")
    print(f"random policy  {by_chance.mean:.1f} ± {by_chance.std:.1f}")
    if path is not None:
        print(f"video          {path}")
    return 0


def imagine(args: Imagine) -> int:
    from reverie.run.trained import imagine_run

    for path in imagine_run(args.run, args.context, args.length, args.seed):
        print(path)
    return 0


def plot(args: Plot) -> int:
    from reverie.plot import plot_runs

    print(plot_runs(args.runs, args.out, args.metric))
    return 0


def reproduce(args: Reproduce) -> int:
    from reverie import reproduce

    if args.list or not args.name:
        print(reproduce.table())
        return 0
    reproduce.reproduce(args.name, args.budget, args.seeds or None, args.runs, args.results, jobs=args.jobs)
    return 0


def play(args: Play) -> int:
    from reverie.play import play_world

    if args.world == "sokoban":
        levels = 0 if args.levels is None else args.levels
        play_world(args.world, args.seed, size=args.size, boxes=args.boxes, levels=levels)
    else:
        play_world(args.world, args.seed, task=args.task)
    return 0


def doctor(args: Doctor) -> int:
    from reverie.doctor import examine

    return examine(args.agent, args.env, args.preset, args.pixels)


def summary(agent: str) -> str:
    """The first sentence of an agent's file: its paper."""
    return (presets.agent_module(agent).__doc__ or "").strip().split("\n\n")[0].replace("\n", " ")


def show_list() -> int:
    print("agents")
    for name in presets.AGENTS:
        print(f"  {name:12} {summary(name)}\n  {'':12} presets: {', '.join(presets.PRESETS[name])}")
    print("environments")
    print("  dmc/DOMAIN_TASK         the DeepMind Control Suite: dmc/cartpole_swingup, dmc/walker_walk, ...")
    print("  any Gymnasium id        Pendulum-v1, CartPole-v1, ... or module:Name-v0")
    print("  doom/take_cover         ViZDoom: dodge fireballs")
    print("  reverie/A1-v0           a robot's twin; also reverie/PickPlace-v0 and reverie/Ball-v0")
    print(
        "  reverie/NAME            worlds of our own: reverie/Catch-v0; reverie/CarRacing-v0, with fast pictures;\n"
        "                          reverie/Sokoban-v0, also Small and Tiny; reverie/MiniPacman-v0 and its tasks;\n"
        "                          with goals: reverie/BitFlip-v0, reverie/PointMass-v0, reverie/GoalReacher-v0, ...;\n"
        "                          FetchReach-v4, PointMaze_UMaze-v3 of Gymnasium-Robotics"
    )
    return 0


ACTIONS: dict[str, Any] = {
    "evaluate": evaluate,
    "imagine": imagine,
    "plot": plot,
    "reproduce": reproduce,
    "play": play,
    "doctor": doctor,
}

if __name__ == "__main__":
    sys.exit(main())
