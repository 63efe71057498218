"""World Models' run: its stages, in order, each interrupted anywhere, and what it may be given instead of making."""

import json
import shutil
import warnings
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import reverie
from reverie import checkpoint, presets
from reverie.data import episodes
from reverie.run import staged
from reverie.run.folder import Plan, read_json, read_plan, write_plan
from reverie.run.loop import RunConfig
from reverie.run.parts import Parts
from reverie.run.population import Here, Journal
from reverie.run.rows import Rows
from reverie.run.staged import STAGES, Staged
from reverie.run.train import carry_out, go_on
from reverie.run.trained import evaluate_run, imagine_run
from reverie.types import ReverieError

ENV = "reverie/Catch-v0"  # nine decisions, then the end


@pytest.fixture(autouse=True)
def _here(monkeypatch):
    """Rollouts in this process: workers are the matter of population/test_population.py."""
    monkeypatch.setattr(staged, "Processes", lambda recipe, workers: Here(recipe))


def plan_of(seed=3, run=None, **config):
    config = {"restart": True, "evolve_in": "dream", "rewards": False, **config}
    settings = RunConfig(seed=seed, threads=1, **{"eval_episodes": 2, "replay_size": "50MB", **(run or {})})
    return Plan("world_models", ENV, ("debug",), presets.resolve("world_models", ["debug"], config), settings)


class Sitting(Parts):
    """A process's share of a run; leaving it without ``save`` is being killed."""

    def __init__(self, folder, **settings):
        super().__init__()
        self.plan = plan_of(**settings)
        self.loop = Staged.make(self.plan, folder, self)
        go_on(self.loop)

    def move(self, n=None):
        """n moves, or all there are."""
        while not self.loop.done and n != 0:
            self.loop.move()
            n = None if n is None else n - 1
        return self.loop


def outcome(loop):
    state = loop.state_dict()
    state.pop("clock"), state.pop("logger")
    return state


def same(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    return np.array_equal(a, b)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nobody interrupted, evolved in the dream."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert carry_out(plan_of(), folder)
    return folder


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_stages_follow_one_another(tmp_path, whole):
    with Sitting(tmp_path / "run") as sitting:
        seen = []
        while not sitting.loop.done:
            if sitting.loop.stage not in seen:
                seen.append(sitting.loop.stage)
            sitting.move(1)
    assert tuple(seen) == STAGES
    c = sitting.plan.config
    loop = sitting.loop
    assert loop.used == c.rollouts
    assert (loop.agent.counts["v"], loop.agent.counts["m"]) == (c.v_updates, c.m_updates)
    assert loop.generation == c.generations == len(loop.returns)
    assert len(loop.starts) == c.rollouts  # a first picture of each episode


def test_the_folder_tells_what_came_of_it(whole):
    found = read_json(whole / "evaluation.json")
    assert found["generations"] == 2 and len(found["returns"]) == 3  # final_episodes
    assert {"c/mean", "c/best", "c/sigma", "dream/steps", "eval/return", "loss/z", "loss/reconstruction"} <= {
        name for line in lines(whole) for name in line
    }
    assert (whole / "report.html").exists() and (whole / "videos" / "open_loop_image.gif").exists()
    generations = [line["generation"] for line in lines(whole) if "c/mean" in line]
    assert generations == [1, 2]


def test_a_finished_run_is_not_begun_again_and_more_generations_go_on(whole, tmp_path, capsys):
    before = checkpoint.paths(whole / "checkpoints")
    assert carry_out(plan_of(), whole)
    assert "more --generations" in capsys.readouterr().out
    assert checkpoint.paths(whole / "checkpoints") == before
    copied = shutil.copytree(whole, tmp_path / "copy")
    assert carry_out(plan_of(generations=3), copied)
    assert read_json(copied / "evaluation.json")["generations"] == 3
    assert [line["generation"] for line in lines(copied) if "c/mean" in line] == [1, 2, 3]


def test_the_agent_it_made_acts_evaluates_and_imagines(whole):
    player = reverie.load(whole)
    action = player.act(np.zeros((64, 64, 3), np.uint8))
    assert action.shape == (3,) and action.sum() == 1
    result, chance, _ = evaluate_run(whole, 2)
    assert len(result.returns) == len(chance.returns) == 2
    assert all(path.exists() for path in imagine_run(whole, 2, 6, 0))


@pytest.mark.parametrize("stop", [3, 17, 38, 41, 45, 49])
def test_stopped_anywhere_it_is_the_run_that_was_not(tmp_path, stop):
    with Sitting(tmp_path / "whole") as sitting:
        expected = outcome(sitting.move())
    with Sitting(tmp_path / "parts") as sitting:
        sitting.move(stop).save()
    with Sitting(tmp_path / "parts") as sitting:
        assert same(outcome(sitting.move()), expected)


@pytest.mark.parametrize("stop", [2, 24, 40, 46, 51])
def test_killed_anywhere_it_is_the_run_that_was_not(tmp_path, stop):
    """The last checkpoint is some moves old, or there is none."""
    with Sitting(tmp_path / "whole") as sitting:
        expected = outcome(sitting.move())
    with Sitting(tmp_path / "parts") as sitting:
        if stop > 5:
            sitting.move(stop - 5).save()
        sitting.move(5)
    with Sitting(tmp_path / "parts") as sitting:
        found = outcome(sitting.move())
    found.pop("moves"), expected.pop("moves")
    assert same(found, expected)


def test_evolved_in_the_environment(tmp_path):
    with Sitting(tmp_path / "a", evolve_in="env") as sitting:
        loop = sitting.move()
        collected = loop.driver.env_steps
        assert loop.played == 2 * 4 * 2 * 9  # generations, individuals, trials, decisions
        assert loop.env_steps == collected + loop.played
        expected = outcome(loop)
    with Sitting(tmp_path / "b", evolve_in="env") as sitting:
        while sitting.loop.generation == 0:
            sitting.move(1)
        sitting.loop.save()
    with Sitting(tmp_path / "b", evolve_in="env") as sitting:
        assert same(outcome(sitting.move()), expected)


def test_a_generation_that_is_left_keeps_the_rollouts_it_had(tmp_path, monkeypatch):
    """32 rollouts, 16 at a time: told to stop after the third result, the second half is not begun."""
    played, again, add = [], [], Journal.add
    with Sitting(tmp_path / "run", evolve_in="env", trials=8) as sitting:
        loop = sitting.loop
        while loop.stage != "C":
            sitting.move(1)
        loop.save()

        def add_three(journal, generation, result):
            add(journal, generation, result)
            played.append(result[:2])
            loop.stopping = len(played) >= 3

        monkeypatch.setattr(Journal, "add", add_three)
        sitting.move(1)
        assert loop.generation == 0 and len(played) == 16
    monkeypatch.setattr(Journal, "add", lambda j, g, r: (add(j, g, r), again.append(r[:2])))
    with Sitting(tmp_path / "run", evolve_in="env", trials=8) as sitting:
        while sitting.loop.generation == 0:
            sitting.move(1)
        assert sorted(played + again) == [(i, t) for i in range(4) for t in range(8)]
        assert (tmp_path / "run" / "generation.jsonl").exists()  # no checkpoint has it yet
        sitting.loop.save()
        assert not (tmp_path / "run" / "generation.jsonl").exists()


def test_generations_that_no_checkpoint_has_are_not_played_again(tmp_path, monkeypatch):
    with Sitting(tmp_path / "run", evolve_in="env", generations=3) as sitting:
        while sitting.loop.stage != "C":
            sitting.move(1)
        sitting.loop.save()
        while sitting.loop.generation < 2:
            sitting.move(1)
        expected = outcome(sitting.loop)
    monkeypatch.setattr(Here, "_play", lambda *_: pytest.fail("a rollout was played again"))
    with Sitting(tmp_path / "run", evolve_in="env", generations=3) as sitting:
        assert sitting.loop.generation == 0
        while sitting.loop.generation < 2:
            sitting.move(1)
        assert same(outcome(sitting.loop), expected)


def test_pairs_meet_the_same_episodes_and_generations_others(tmp_path, monkeypatch):
    asked, evaluate = [], Here.evaluate

    def listening(population, thetas, jobs, *rest):
        asked.append({(job.individual, job.trial): job.seed for job in jobs})
        return evaluate(population, thetas, jobs, *rest)

    monkeypatch.setattr(Here, "evaluate", listening)
    with Sitting(tmp_path / "run", evolve_in="env") as sitting:
        sitting.move()
    assert [len(jobs) for jobs in asked] == [8, 8]
    for jobs in asked:
        assert all(jobs[i, t] == jobs[i + 2, t] for i in range(2) for t in range(2))
        assert len(set(jobs.values())) == 4
    assert not set(asked[0].values()) & set(asked[1].values())


# What it may be given


def test_v_and_m_of_another_run(tmp_path, whole):
    with Sitting(tmp_path / "c", world=str(whole), reads="z", generations=1) as sitting:
        assert sitting.loop.stage == "C"
        loop = sitting.move()
    theirs = checkpoint.load(whole / "checkpoints")[1]["agent"]["modules"]
    assert same(dict(loop.agent.modules.state_dict()), theirs)
    assert loop.generation == 1 and len(loop.agent.theta) == (4 + 1) * 3


def test_a_world_of_other_sizes_or_without_m_is_refused(tmp_path, whole):
    with pytest.raises(ReverieError, match="has latents 4, and this run has 5"):
        carry_out(plan_of(world=str(whole), latents=5), tmp_path / "a")
    with Sitting(tmp_path / "young") as sitting:
        sitting.move(3).save()
    with pytest.raises(ReverieError, match="has no M yet"):
        carry_out(plan_of(world=str(tmp_path / "young")), tmp_path / "b")
    with pytest.raises(ReverieError, match="is not a run"):
        carry_out(plan_of(world=str(tmp_path / "nowhere")), tmp_path / "c")


def test_recorded_episodes_in_place_of_collected_ones(tmp_path):
    with Sitting(tmp_path / "first") as sitting:
        while sitting.loop.stage == "collect":
            sitting.move(1)
        for episode in episodes.episodes(sitting.loop.replay):
            episodes.save(tmp_path / "episodes", episode)
    bad = tmp_path / "episodes" / "000001-9.npz"
    bad.write_bytes(bad.read_bytes()[:100])
    (tmp_path / "episodes" / "000009-9.npz").write_bytes(b"")
    given = {"episodes": str(tmp_path / "episodes")}
    with warnings.catch_warnings(record=True) as warned, Sitting(tmp_path / "second", **given) as sitting:
        warnings.simplefilter("always")
        loop = sitting.loop
        assert loop.stage == "V" and loop.used == 3
        sitting.move(1)
        assert len(loop.rows) == 27
        expected = outcome(sitting.move())
    said = [
        str(warning.message)
        for warning in warned
        if "not an episode that can be read" in str(warning.message)
    ]
    assert len(said) == 2 and "000001-9.npz" in said[0]
    with pytest.warns(UserWarning, match="not an episode"):
        sitting = Sitting(tmp_path / "second", **given)
    with sitting:
        assert same(outcome(sitting.move()), expected)  # killed without a checkpoint


def test_refusals_in_a_sentence(tmp_path):
    with pytest.raises(ReverieError, match="--temperature must be above 0"):
        carry_out(plan_of(temperature=0.0), tmp_path / "b")
    with pytest.raises(ReverieError, match="--m-length must be at least 2"):
        carry_out(plan_of(m_length=1), tmp_path / "c")
    with pytest.raises(ReverieError, match="streams need at least two rows"):
        carry_out(plan_of(m_batch=30), tmp_path / "d")
    with pytest.raises(ReverieError, match="fill --replay-size"):
        carry_out(plan_of(run={"replay_size": "1MB"}, rollouts=40), tmp_path / "e")
    assert not (tmp_path / "b").exists()


# M's stream


def rows_of(lengths):
    rows = Rows.__new__(Rows)
    rows.lengths = np.array(lengths)
    rows.firsts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    rows.at = np.arange(sum(lengths))
    rows.order = (-1, None)
    return rows


def test_an_epoch_walks_once_through_all_streams():
    rows = rows_of([5, 9, 7, 11, 8])  # 40 rows, 4 streams of 10, chunks of 4: 3 of them, each after the other
    chunks = [rows.chunk(update, 4, 4, seed=0) for update in range(3)]
    assert [fresh for _, fresh in chunks] == [True, False, False]
    assert all(chunk.shape == (4, 4) for chunk, _ in chunks)
    for (a, _), (b, _) in pairwise(chunks):
        assert np.array_equal(a[-1], b[0])
    seen = np.concatenate([chunks[0][0], chunks[1][0][1:], chunks[2][0][1:]])
    assert len(np.unique(seen)) == seen.size == 40
    inside = seen[1:] == seen[:-1] + 1  # but where one episode follows another
    assert inside.mean() > 0.8
    later, fresh = rows.chunk(3, 4, 4, seed=0)
    assert fresh and not np.array_equal(later, chunks[0][0])
    assert np.array_equal(rows_of([5, 9, 7, 11, 8]).chunk(3, 4, 4, seed=0)[0], later)


def test_every_episode_begins_once_an_epoch(tmp_path):
    with Sitting(tmp_path / "run") as sitting:
        while sitting.loop.stage != "M":
            sitting.move(1)
        rows = sitting.loop.rows
        assert rows is not None
        assert rows.is_first.sum() == 4 and len(rows) == 36
        latents = rows.latents(np.arange(36)[:, None], torch.device("cpu"))
        assert latents.stats.shape == (36, 1, 2, 4) and latents.stats.abs().sum() > 0
        assert latents.action.sum(-1).eq(1).all()  # one-hot: nothing was done in a last row, and none is here
        picture = rows.pictures(np.array([0, 35]))
        assert picture.shape == (2, 64, 64, 3) and picture.dtype == torch.uint8


def test_v_goes_through_all_pictures_in_an_epoch(tmp_path):
    loop = SimpleNamespace(
        config=SimpleNamespace(v_batch=5),
        agent=SimpleNamespace(counts={"v": 0}),
        run=SimpleNamespace(seed=1),
        order=(-1, None),
    )
    seen = []
    for update in range(8):
        loop.agent.counts["v"] = update
        seen.append(Staged.batch(loop, 20))
    assert sorted(np.concatenate(seen[:4])) == sorted(np.concatenate(seen[4:])) == list(range(20))
    assert not np.array_equal(seen[0], seen[4])


def test_a_plan_of_stages_survives_its_folder(tmp_path):
    write_plan(tmp_path / "run", plan_of())
    assert read_plan(tmp_path / "run") == plan_of()
