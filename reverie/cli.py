"""The command line: ``reverie train | evaluate | imagine | plot | reproduce | doctor | list``.

Flags are made from the dataclasses they set, so a field's comment is its help text. Presets are laid over the
paper's values first and single flags over those.
"""

import argparse
import dataclasses
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from reverie import presets
from reverie.types import ReverieError

USAGE = """reverie: reinforcement learning in imagination

  reverie train AGENT --env ENV [--preset P ...] [--run DIR] [--seed N] [--any-setting V]
  reverie evaluate RUN [--episodes N]      mean return of a trained agent, and a video
  reverie imagine RUN [--context N]        open-loop video: truth, prediction, error
  reverie plot RUN [RUN ...] [--out FILE]  learning curves
  reverie reproduce NAME [--budget B]      a paper's claim, as an experiment; --list shows them
  reverie doctor [AGENT] [--env ENV]       what works on this machine, and how long a run will take
  reverie list                             agents, presets, environments

Add --help to a command for its settings."""

Flat = tyro.conf.arg(name="")  # the fields of a nested dataclass as flags of their own


@dataclass
class Evaluate:
    """Play whole episodes with a trained agent, without noise and without learning."""

    run: Annotated[Path, tyro.conf.Positional]  # a run's folder
    episodes: int = 10
    video: Path | None = None  # GIF of the first episode; by default in the run's videos/


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

    runs: Annotated[list[Path], tyro.conf.Positional]
    out: Path = Path("curves.png")  # .png or .svg
    metric: str = "eval/return"


@dataclass
class Reproduce:
    """Run the experiment behind a paper's claim: curves, figure and verdict under results/NAME/BUDGET."""

    name: Annotated[str, tyro.conf.Positional] = ""
    budget: str = "laptop"  # laptop, gpu, paper, or debug
    seeds: int = 0  # 0 for the claim's own number
    runs: Path = Path("runs/reproduce")  # where the runs are kept; finished ones are not run again
    results: Path = Path("results")
    list: bool = False  # show every claim


@dataclass
class Doctor:
    """Check the install, rendering, threads and device; with an agent and an environment, time their training."""

    agent: Annotated[str, tyro.conf.Positional] = ""
    env: str = ""
    preset: tuple[str, ...] = ("laptop",)


def main(argv: list[str] | None = None) -> int:
    """Run one command; the exit code is 0, 1 for an interrupted run, 2 for something a user can mend."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        return command(argv)
    except ReverieError as error:
        print(f"reverie: {error}", file=sys.stderr)
        return 2


def command(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    name, rest = argv[0], argv[1:]
    if name == "train":
        return train(rest)
    if name == "list":
        return show_list()
    commands = {"evaluate": Evaluate, "imagine": Imagine, "plot": Plot, "reproduce": Reproduce, "doctor": Doctor}
    presets.known(name, [*commands, "train", "list"], "command")
    return ACTIONS[name](tyro.cli(commands[name], args=rest, prog=f"reverie {name}"))


def train(argv: list[str]) -> int:
    from reverie.run.folder import Plan
    from reverie.run.online import RunConfig
    from reverie.run.train import carry_out

    if not argv or argv[0].startswith("-"):
        raise ReverieError(f"train needs an agent: {', '.join(presets.AGENTS)} (reverie train AGENT --env ENV)")
    agent, argv = argv[0], argv[1:]
    chosen = argparse.ArgumentParser(add_help=False)
    chosen.add_argument("--preset", nargs="+", default=["paper"])
    names = tuple(chosen.parse_known_args(argv)[0].preset)
    config = presets.resolve(agent, names)

    def flags(cls, default):  # a dataclass type as a variable is beyond static types
        return Annotated[cls, Flat], field(default=default)

    Train = dataclasses.make_dataclass(
        "Train",
        [
            ("env", str),
            ("preset", tuple[str, ...], field(default=names)),
            ("run", Path | None, field(default=None)),
            ("settings", *flags(RunConfig, RunConfig())),
            ("config", *flags(type(config), config)),
        ],
    )
    args: Any = tyro.cli(Train, args=argv, prog=f"reverie train {agent}", description=f"Train {agent}.")
    folder = args.run or Path("runs") / f"{agent}-{args.env.replace('/', '_')}-{args.settings.seed}"
    return 0 if carry_out(Plan(agent, args.env, names, args.config, args.settings), folder) else 1


def evaluate(args: Evaluate) -> int:
    from reverie.run.train import evaluate_run

    result, path = evaluate_run(args.run, args.episodes, args.video)
    print(f"return {result.mean:.1f} ± {result.std:.1f} over {len(result.returns)} episodes")
    if path is not None:
        print(f"video {path}")
    return 0


def imagine(args: Imagine) -> int:
    from reverie.run.train import imagine_run

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
    print(reproduce.reproduce(args.name, args.budget, args.seeds or None, args.runs, args.results))
    return 0


def doctor(args: Doctor) -> int:
    from reverie.doctor import examine

    return examine(args.agent, args.env, args.preset)


def show_list() -> int:
    print("agents")
    for name in presets.AGENTS:
        first = presets.agent_module(name).__doc__.strip().splitlines()[0]
        print(f"  {name:12} {first}\n  {'':12} presets: {', '.join(presets.PRESETS[name])}")
    print("environments\n  dmc/DOMAIN_TASK, any Gymnasium id (Pendulum-v1, module:Name-v0), reverie/NAME")
    return 0


ACTIONS: dict[str, Any] = {
    "evaluate": evaluate,
    "imagine": imagine,
    "plot": plot,
    "reproduce": reproduce,
    "doctor": doctor,
}

if __name__ == "__main__":
    sys.exit(main())
