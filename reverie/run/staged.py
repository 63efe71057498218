"""The loop of World Models: collect, then V, then M, then C, one run that can be stopped in any of them.

::

    collect     episodes of the agent's random policy, into the replay, until there are ``rollouts`` of them
    V           updates on single pictures
    encode      every picture once, to mean and log-variance of its z, into latents/
    M           updates on the stream of encoded episodes
    C           generations: ask, what do they earn (in the environment, or in the dream), tell

A stage that is finished is not done again. With ``world``, V and M are another run's, and C alone is learned.
All that is random follows from the run's seed and a count (update, epoch, generation), so little has to be
remembered to go on.
"""

import time
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from reverie import checkpoint
from reverie.agents.world_models import VM, Evolution, Memory, WorldModels
from reverie.data import episodes
from reverie.data.replay import Replay
from reverie.dream import rollouts
from reverie.logger import Logger, Progress, duration, plural
from reverie.machine import CORES
from reverie.run.driver import Driver
from reverie.run.evaluate import Interrupted
from reverie.run.folder import Plan, write_plan
from reverie.run.loop import Loop, RunConfig, Show, at_least, nothing
from reverie.run.parts import Parts, env_factory, make_agent, make_envs, make_replay, other_run, replay_size
from reverie.run.population import Cluster, Job, Journal, Population, Processes, Recipe, Result
from reverie.run.rows import Rows
from reverie.run.show import show
from reverie.types import Metrics, ReverieError

STAGES = ("collect", "V", "encode", "M", "C")
AT_LEAST_1 = (
    *("rollouts", "v_updates", "v_batch", "m_updates", "m_batch", "population", "trials"),
    *("starts", "dream_steps", "quick_episodes", "final_episodes"),
)
ENCODE = 500  # pictures encoded in one move
LONGEST = 10_000  # decisions of an episode, when nobody knows


class Staged(Loop):
    """One run. ``envs`` collect into ``replay``; ``eval_envs`` are the task itself; ``population`` plays a
    generation in the environment, and is called for the first time when one has to. ``given`` puts something in the
    place of what would be collected or learned, when the run begins."""

    more = "--generations"
    agent: WorldModels

    def __init__(
        self,
        agent: WorldModels,
        envs: Any,
        eval_envs: Any,
        replay: Replay,
        config: Any,
        run: RunConfig,
        folder: Path,
        logger: Logger,
        population: Callable[[], Population],
        show: Show = nothing,
        given: Callable[["Staged"], None] | None = None,
    ):
        super().__init__(agent, envs, eval_envs, replay, config, run, folder, logger, Progress(0), show)
        self.make_population = population
        self.population: Population | None = None
        self.journal = Journal(folder / "generation.jsonl")
        self.driver = Driver(agent, envs, replay, 0, run.seed)
        self.given = given
        self.stage = "collect"
        self.order = (-1, np.zeros(0, np.int64))  # epoch, and the order V meets the pictures in
        self.used = 0  # episodes that count
        self.encoded = 0  # rows
        self.memory = agent.blank(0)
        self.starts = torch.zeros(0, 2, config.latents)  # mean and log-variance of first pictures
        self.evolution: Evolution | None = None
        self.returns: list[np.ndarray] = []  # of each generation
        self.played = 0  # env steps that C's rollouts took
        self.evaluated = -1  # the generation whose mean was last evaluated
        self.moves = 0
        self.rows: Rows | None = None  # of the used episodes, once all are collected
        # Clocks. Nothing that is learned depends on them.
        self.spent: dict[str, float] = dict.fromkeys((*STAGES, "evaluate"), 0.0)
        self.counted: dict[str, int] = dict.fromkeys((*STAGES, "evaluate"), 0)

    @staticmethod
    def make(plan: Plan, folder: Path, parts: Parts) -> "Staged":
        c, run = plan.config, plan.run
        fresh = not checkpoint.paths(folder / "checkpoints")
        if c.world and fresh:
            read_world(Path(c.world), plan)  # refused, if it has to be, before anything is made
        envs = parts.add(make_envs(plan, run.envs, name=c.collect_env))
        eval_envs = parts.add(make_envs(plan, min(run.eval_episodes, c.quick_episodes), evaluation=True))
        agent = make_agent(plan, eval_envs)
        # How long episodes will be is not known: all that --replay-size holds. A world that is given needs none.
        needed = 2 if c.world else LONGEST * c.rollouts // envs.n
        replay_size(plan, envs, needed, 2)
        write_plan(folder, plan)
        logger = parts.add(Logger(folder, run.wandb, plan.as_dict()))
        replay = parts.add(make_replay(plan, envs, folder, needed, 2))
        recipe = Recipe(plan.agent, c, env_factory(plan), run.seed)
        workers = run.workers or CORES

        def population() -> Population:
            if not run.cluster:
                return Processes(recipe, workers)
            return Cluster(recipe, workers, None if run.cluster == "local" else run.cluster)

        def given(loop: Staged) -> None:
            if c.world:
                loop.take_world(read_world(Path(c.world), plan))
            else:
                loop.take_episodes(Path(c.episodes))

        assert isinstance(agent, WorldModels)
        shown = partial(show, plan)
        instead = given if c.world or c.episodes else None
        made = Staged(agent, envs, eval_envs, replay, c, run, folder, logger, population, shown, instead)
        return parts.add(made)

    # Where it is

    @property
    def env_steps(self) -> int:
        """Of the real environment."""
        return self.driver.env_steps + self.played

    @property
    def updates(self) -> int:
        return sum(self.agent.counts.values())

    @property
    def generation(self) -> int:
        return len(self.returns)

    @property
    def place(self) -> int:
        """Moves made."""
        return self.moves

    @property
    def done(self) -> bool:
        return self.stage == "C" and self.generation >= self.config.generations and not self.evaluation_due()

    @property
    def at_end(self) -> bool:
        return self.generation >= self.config.generations

    @staticmethod
    def reached(config: Any, evaluation: Mapping[str, Any]) -> bool:
        return evaluation.get("generations", -1) >= config.generations

    @staticmethod
    def check(config: Any, run: RunConfig) -> None:
        for name in AT_LEAST_1:
            at_least(config, name, 1)
        for name in ("generations", "eval_generations"):
            at_least(config, name, 0)
        at_least(config, "m_length", 2)
        if config.temperature <= 0:
            raise ReverieError(f"--temperature must be above 0, got {config.temperature}")

    def counts(self) -> dict[str, int]:
        return {"env_steps": self.env_steps, "updates": self.updates, "generations": self.generation}

    def amount(self, stage: str) -> tuple[int, int, str]:
        """What is done of a stage, what it is in all, and in which unit."""
        c = self.config
        return {
            "collect": (self.used, c.rollouts, "episodes"),
            "V": (self.agent.counts["v"], c.v_updates, "updates"),
            "encode": (self.encoded, 0 if self.rows is None else len(self.rows), "pictures"),
            "M": (self.agent.counts["m"], c.m_updates, "updates"),
            "C": (self.generation, c.generations, "generations"),
        }[stage]

    # Moving

    def move(self) -> None:
        begin, kind = time.perf_counter(), self.stage
        self.moves += 1
        if kind != "collect" and self.rows is None and self.replay.episodes:
            self.rows = Rows(
                self.replay, self.config.shortest, self.config.rollouts, self.folder, self.config.latents
            )
        if kind == "C" and self.evaluation_due():
            kind, n = "evaluate", self.evaluate()
        else:
            moves = {"collect": self.collect, "V": self.v, "encode": self.encode, "M": self.m, "C": self.c}
            n = moves[kind]()
        self.spent[kind] += time.perf_counter() - begin
        self.counted[kind] += n
        self.next_stage()

    def next_stage(self) -> None:
        """Go on to the next stage when this one has all it needs."""
        done, total, unit = self.amount(self.stage)
        if self.stage == "C" or done < total or (self.stage == "encode" and self.rows is None):
            return
        self.log()
        self.progress.say(f"{self.stage}: {done:,} {unit}, {duration(self.spent[self.stage])}")
        self.stage = STAGES[STAGES.index(self.stage) + 1]

    def collect(self) -> int:
        """One row in every environment; the episodes that ended with it and count."""
        finished = self.driver()
        used = 0
        if max(self.replay.counts) > self.replay.size:
            raise ReverieError(
                f"{self.used:,} of {self.config.rollouts:,} rollouts fill --replay-size {self.run.replay_size}; "
                f"raise it, or lower --rollouts"
            )
        for episode in finished:
            self.logger.add({"collect/return": episode.score, "collect/length": episode.length})
            used += episode.length > self.config.shortest
        self.used += used
        return used

    def v(self) -> int:
        rows = self.rows
        assert rows is not None
        self.add(self.agent.update_v(rows.pictures(self.batch(len(rows)))), self.agent.counts["v"])
        return 1

    def batch(self, rows: int) -> np.ndarray:
        """The rows of V's next update: each epoch goes through all of them in a new order."""
        size, update = min(self.config.v_batch, rows), self.agent.counts["v"]
        epoch, part = divmod(update, rows // size)
        if self.order[0] != epoch:
            self.order = (epoch, np.random.default_rng([self.run.seed, 4, epoch]).permutation(rows))
        return self.order[1][part * size : (part + 1) * size]

    def encode(self) -> int:
        rows = self.rows
        assert rows is not None
        numbers = np.arange(self.encoded, min(self.encoded + ENCODE, len(rows)))
        rows.stats[numbers] = self.agent.encode(rows.pictures(numbers)).cpu().numpy()
        self.encoded += len(numbers)
        if self.encoded == len(rows):
            firsts = rows.firsts[: self.config.starts]
            self.starts = torch.from_numpy(np.array(rows.stats[firsts], np.float32))
        return len(numbers)

    def m(self) -> int:
        """One chunk of the stream. At the start of an epoch M remembers nothing."""
        rows = self.rows
        assert rows is not None
        chunk, fresh = rows.chunk(
            self.agent.counts["m"], self.config.m_batch, self.config.m_length, self.run.seed
        )
        memory = self.agent.blank(chunk.shape[1]) if fresh else self.memory
        metrics, self.memory = self.agent.update_m(rows.latents(chunk, self.agent.device), memory)
        self.add(metrics, self.agent.counts["m"])
        return 1

    def add(self, metrics: Metrics, updates: int) -> None:
        self.logger.add(metrics)
        if updates % 100 == 0:
            self.log()

    # C

    def c(self) -> int:
        """One generation."""
        if self.evolution is None:
            self.evolution = self.evolve_again()
        thetas = self.evolution.ask()
        returns, told = self.in_dream(thetas) if self.config.evolve_in == "dream" else self.in_env(thetas)
        if returns is None:
            return 0
        self.evolution.tell(returns)
        self.returns.append(returns)
        # Rounded as the released code keeps it: what is evaluated is what is kept.
        self.agent.theta = torch.from_numpy(self.evolution.mean.round(4)).to(self.agent.device)
        self.logger.add(
            {
                "c/mean": returns.mean(),
                "c/best": returns.max(),
                "c/worst": returns.min(),
                "c/std": returns.std(),
                "c/sigma": self.evolution.sigma,
                **told,
            }
        )
        self.log()
        return 1

    def evolve_again(self) -> Evolution:
        """The evolution as its history made it."""
        c = self.config
        evolution = Evolution(self.agent.controller.size, c.population, c.sigma, self.run.seed)
        for returns in self.returns:
            evolution.tell(returns)
        return evolution

    def in_dream(self, thetas: np.ndarray) -> tuple[np.ndarray, Metrics]:
        """What each individual earns in ``trials`` dreams: all of them in one batch."""
        c, agent = self.config, self.agent
        generator = Generator(agent.device).manual_seed(derived(self.run.seed, 7, self.generation))
        if not len(self.starts):
            raise ReverieError("there is no first picture to begin a dream with: collect episodes first")
        pick = torch.randint(
            len(self.starts), (c.population * c.trials,), generator=generator, device=agent.device
        )
        carry = agent.begin(self.starts.to(agent.device)[pick], generator)
        policy = Individuals(agent, torch.from_numpy(thetas).to(agent.device), c.trials)
        world = VM(agent, generator, c.temperature)
        returns, lengths = rollouts(world, carry, policy, c.dream_steps)
        return self.mean(returns), {"dream/steps": float(lengths.float().mean())}

    def dreamt(self, n: int) -> Metrics:
        """What the mean earns in ``n`` dreams, beside what it earned awake."""
        agent, c = self.agent, self.config
        generator = Generator(agent.device).manual_seed(derived(self.run.seed, 9, self.generation))
        pick = torch.randint(len(self.starts), (n,), generator=generator, device=agent.device)
        carry = agent.begin(self.starts.to(agent.device)[pick], generator)
        policy = Individuals(agent, agent.theta[None], n)
        returns, _ = rollouts(VM(agent, generator, c.temperature), carry, policy, c.dream_steps)
        return {"dream/return": float(returns.mean()), "dream/std": float(returns.std(correction=0))}

    def mean(self, returns: Tensor) -> np.ndarray:
        return returns.view(self.config.population, self.config.trials).double().mean(1).cpu().numpy()

    def in_env(self, thetas: np.ndarray) -> tuple[np.ndarray | None, Metrics]:
        """What each individual earns in ``trials`` real episodes; None when told to stop before all have ended.

        Individuals i and i + half of the population meet the same episodes, as in the released code.
        """
        c = self.config
        if self.population is None:
            self.population = self.make_population()
            self.population.set_world(self.agent.state_dict()["modules"])
        known = {(r.individual, r.trial): r for r in self.journal.read(self.generation)}
        pair = max(c.population // 2, 1)
        jobs = [
            Job(i, t, derived(self.run.seed, 8, self.generation, i % pair, t))
            for i in range(c.population)
            for t in range(c.trials)
            if (i, t) not in known
        ]
        todo = len(known)

        def arrived(result: Result) -> None:
            nonlocal todo
            self.journal.add(self.generation, result)
            todo += 1
            self.progress.stage(self.line(f"rollout {todo:,} of {c.population * c.trials:,}"))

        try:
            results = self.population.evaluate(thetas, jobs, arrived, lambda: self.stopping)
        except Interrupted:
            return None, {}
        for result in results:
            known[result.individual, result.trial] = result
        self.played += sum(result.env_steps for result in known.values())
        scores = np.zeros((c.population, c.trials))
        for (i, t), result in known.items():
            scores[i, t] = result.score
        lengths = [result.length for result in known.values()]
        return scores.mean(1), {"c/steps": float(np.mean(lengths)), "c/best_episode": scores.max()}

    # Evaluation

    def evaluation_due(self) -> bool:
        every, g = self.config.eval_generations, self.generation
        due = bool(every) and g // every > max(self.evaluated, 0) // every
        return self.evaluated < g and (due or self.at_end)

    def evaluate(self) -> int:
        """Real episodes of the mean; 1 if they were finished. Left in the middle, it was never begun."""
        c = self.config
        episodes = c.final_episodes if self.at_end else c.quick_episodes
        result = self.evaluation(episodes)
        if result is None:
            return 0
        self.evaluated = self.generation
        dreamt = self.dreamt(episodes) if c.evolve_in == "dream" else {}
        told = {"eval/return": result.mean, "eval/std": result.std, "eval/length": np.mean(result.lengths)}
        self.log(**told, **dreamt)
        self.progress.say(
            f"generation {self.generation:,}  {duration(self.elapsed):>8}   evaluation of the mean "
            f"{result.mean:.1f} ± {result.std:.1f} over {plural(len(result.returns), 'episode')}"
            + (f", in dreams {dreamt['dream/return']:.1f} ± {dreamt['dream/std']:.1f}" if dreamt else "")
        )
        return 1

    # Telling

    def tell(self) -> None:
        self.progress.stage(self.line())

    def line(self, note: str = "") -> Callable[[], tuple[float, list[str]]]:
        """How far the stage is, made when it is time to show it."""

        def made() -> tuple[float, list[str]]:
            done, total, unit = self.amount(self.stage)
            left, n, took = self.left(), self.counted[self.stage], self.spent[self.stage]
            rate = "" if not n else f" ({n / took:.1f}/s)" if n > took > 0 else f" ({took / n:.0f} s each)"
            parts = [
                f"{self.stage} ({STAGES.index(self.stage) + 1} of {len(STAGES)})",
                f"ETA {'–' if left is None else duration(left)}",
                f"{done:,}/{total:,} {unit}{rate}",
            ]
            if self.stage == "C" and self.returns:
                parts.append(f"mean {self.returns[-1].mean():.1f}  best {self.returns[-1].max():.1f}")
            return done / max(total, 1), [*parts, note] if note else parts

        return made

    def left(self) -> float | None:
        """Seconds to the end of the stage."""
        done, total, _ = self.amount(self.stage)
        n = self.counted[self.stage]
        return (total - done) * self.spent[self.stage] / n if n else None

    def asked(self) -> str:
        c = self.config
        where = f"dreams at temperature {c.temperature:g}" if c.evolve_in == "dream" else "the environment"
        model = (
            f"V and M of {c.world}"
            if c.world
            else (
                f"{c.episodes or plural(c.rollouts, 'rollout')}; V {c.v_updates:,} and M {c.m_updates:,} updates"
            )
        )
        return f"{model}; C {c.generations:,} generations of {c.population} x {c.trials} rollouts in {where}"

    def about(self) -> str:
        done, total, unit = self.amount(self.stage)
        return f"{done:,} of {total:,} {unit} of stage {self.stage}"

    def log(self, **now: Any) -> None:
        self.logger.write(
            self.env_steps,
            self.place,
            updates=self.updates,
            seconds=round(self.elapsed, 3),
            generation=self.generation,
            **{name: float(value) for name, value in now.items()},
        )

    # Stopping and going on

    def flush(self) -> None:
        self.replay.flush()
        if self.rows is not None:
            self.rows.stats.flush()

    def state_dict(self) -> dict[str, Any]:
        return {
            "agent": self.agent.state_dict(),
            "driver": self.driver.state_dict(),
            "replay": self.replay.state_dict(),
            "logger": self.logger.state_dict(),
            "memory": self.memory,
            "starts": self.starts,
            "returns": np.array(self.returns).reshape(len(self.returns), self.config.population),
            **{name: getattr(self, name) for name in COUNTS},
            "clock": {"seconds": self.elapsed, "spent": self.spent, "counted": self.counted},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.agent.load_state_dict(state["agent"])
        self.replay.load_state_dict(state["replay"])
        self.driver.load_state_dict(state["driver"])
        self.logger.load_state_dict(state["logger"])
        self.memory = Memory(*(part.to(self.agent.device) for part in state["memory"]))
        self.starts, self.returns = state["starts"], list(state["returns"])
        for name in COUNTS:
            setattr(self, name, state[name])
        clock = state["clock"]
        self.seconds, self.sat_down = clock["seconds"], time.monotonic()
        self.spent, self.counted = dict(clock["spent"]), dict(clock["counted"])

    def save(self) -> None:
        super().save()
        self.journal.forget(self.generation)  # not before a checkpoint has what they earned

    def begin_again(self) -> None:
        if self.given is not None:
            self.given(self)
        else:
            self.replay.rewind([0] * self.replay.streams)
            self.driver.go_on()
        self.logger.begin()

    def take_world(self, state: Mapping[str, Any]) -> None:
        """V and M, and where dreams begin, from the state of another run."""
        self.agent.modules.load_state_dict(state["agent"]["modules"])
        self.starts, self.stage = state["starts"], "C"

    def take_episodes(self, folder: Path) -> None:
        """Recorded episodes in place of collected ones; files that can not be read are named, left out, counted."""
        self.replay.rewind([0] * self.replay.streams)  # what is there already is not written again
        bad = 0
        for path in episodes.files(folder):
            try:
                episodes.fill(self.replay, [episodes.load(path)])
            except ReverieError as error:
                bad += 1
                warnings.warn(f"{error}", stacklevel=2)
        self.stage, self.used = "V", self.replay.episodes
        self.progress.say(
            f"{plural(self.used, 'episode')} from {folder}"
            + (f"; {plural(bad, 'file')} left out" if bad else "")
        )

    def close(self) -> None:
        self.journal.close()
        if self.population is not None:
            self.population.close()


COUNTS = ("stage", "used", "encoded", "played", "evaluated", "moves")


class Individuals:
    """A population as the policy of a batch of dreams: row r is played by individual r // trials."""

    def __init__(self, agent: WorldModels, thetas: Tensor, trials: int):
        self.agent, self.thetas, self.trials = agent, thetas, trials
        self.rows: Tensor | None = None

    @torch.no_grad()
    def __call__(self, features: Tensor, rows: Tensor) -> Tensor:
        if self.rows is not rows:  # some have left
            self.rows, self.theta = rows, self.thetas[rows // self.trials]
        return self.agent.action(self.agent.controller(features, self.theta))


def derived(*numbers: int) -> int:
    """A seed in [0, 2^31) from several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0] >> 1)


def read_world(folder: Path, plan: Plan) -> dict[str, Any]:
    """The state of the run whose V and M are to be used."""
    same = ("image_size", "depth", "latents", "units", "components", "restart", "rewards")
    _, state = other_run(folder, plan, same)
    if state["stage"] != "C":
        raise ReverieError(
            f"--world {folder} is at stage {state['stage']} and has no M yet; let it go on first"
        )
    return state
