"""Verdicts follow from numbers; the five claims are consistent with the agents' settings."""

import dataclasses
import json

import numpy as np
import pytest

from reverie import presets
from reverie.reproduce import claims, get_claim, list_claims, table
from reverie.reproduce.claims import Arm, Budget, Claim, Comparison, Of, Outcome
from reverie.reproduce.runs import FINAL_RETURN, RANDOM_RETURN, Run
from reverie.reproduce.statistics import Interval
from reverie.run.asynchronous import RobotConfig
from reverie.run.loop import RunConfig
from reverie.types import ReverieError

NAMES = [
    "dyna-planning",
    "mpc-samples",
    "naf-imagination",
    "mve-horizon",
    "i2a-beats-model-free",
    "i2a-depth",
    "i2a-bad-model",
    "i2a-distillation",
    "i2a-simulator",
    "i2a-residual",
    "i2a-efficiency",
    "i2a-boxes",
    "distral",
    "distral-transfer",
    "her-sparse",
    "tdm-samples",
    "tdm-hard-model",
    "tdm-horizon",
    "dreamer-lineage",
    "wm-hidden-state",
    "wm-dream-transfer",
    "wm-temperature",
    "dreamer-v3-one-setting",
    "dreamer-beats-planet",
    "planet-data-efficiency",
    "planet-one-agent",
    "dreamer-discrete",
    "open-loop-video",
    "daydreamer-walk",
    "daydreamer-pick-place",
]
OF_THE_RUN = {field.name for config in (RunConfig, RobotConfig) for field in dataclasses.fields(config)}


def runs(tmp_path, arm, returns, env="task", random=0.0):
    """One run per number, seeds 0, 1, ...; None is a seed that is missing."""
    found = []
    for seed, value in enumerate(returns):
        if value is None:
            continue
        folder = tmp_path / arm / env / str(seed)
        folder.mkdir(parents=True)
        (folder / "metrics.jsonl").write_text(json.dumps({"env_steps": 1, "eval/return": value}))
        (folder / "evaluation.json").write_text(json.dumps({"random": {"mean": random}}))
        found.append(Run(arm, env, seed, folder))
    return found


def judge(found, **options):
    comparison = Comparison("a - b", Of("a", FINAL_RETURN), Of("b", FINAL_RETURN), **options)
    return claims.outcomes(comparison, found)


@pytest.mark.parametrize(
    ("a", "b", "verdict"),
    [
        ([9, 10, 11], [1, 2, 3], "holds"),
        ([1, 2, 3], [9, 10, 11], "fails"),
        ([1, 5, 9], [2, 5, 8], "open"),
        ([9, 10], [1, 2], "open"),  # two runs settle nothing
        ([9, 10, 11], [1, 2, None], "open"),  # nor does a third on one side
        ([9, 10, 11], [], "open"),
    ],
)
def test_the_verdict_follows_from_the_runs(tmp_path, a, b, verdict):
    (outcome,) = judge(runs(tmp_path, "a", a) + runs(tmp_path, "b", b))
    assert outcome.verdict == verdict


def test_seeds_of_one_side_only_are_left_out(tmp_path):
    (outcome,) = judge(runs(tmp_path, "a", [None, 10, 100]) + runs(tmp_path, "b", [5, 6, None]))
    assert outcome.interval.estimate == 4 and outcome.runs == 1


def test_a_factor_stands_before_the_right_side(tmp_path):
    found = runs(tmp_path, "a", [10, 10, 10]) + runs(tmp_path, "b", [4, 4, 4])
    assert judge(found, factor=2)[0].interval == (2, 2, 2)
    assert judge(found, factor=3)[0].verdict == "fails"


def test_paired_differences_are_of_the_same_run(tmp_path):
    found = [
        run
        for i, v in enumerate((12, 24, 36))
        for run in runs(tmp_path / str(i), "a", [None] * i + [v], random=v - 2)
    ]
    comparison = Comparison("a - chance", Of("a", FINAL_RETURN), Of("a", RANDOM_RETURN), paired=True)
    (outcome,) = claims.outcomes(comparison, found)
    assert outcome.interval == (2, 2, 2) and outcome.runs == 3


def test_tasks_are_pooled_or_asked_one_by_one(tmp_path):
    found = runs(tmp_path, "a", [5, 6, 7], "suite/x") + runs(tmp_path, "a", [1, 1, 2], "suite/y")
    found += runs(tmp_path, "b", [1, 2, 3], "suite/x") + runs(tmp_path, "b", [5, 6, 7], "suite/y")
    (pooled,) = judge(found)
    assert pooled.runs == 6
    one, two = judge(found, each_task=True)
    assert (one.name, one.verdict, two.name, two.verdict) == ("a - b, x", "holds", "a - b, y", "fails")


def outcome(low, high, counts=True, n=3):
    return Outcome("x", "return", counts, Interval(0.0, float(low), float(high)), n)


def test_all_that_counts_must_hold_and_one_may_fail_it():
    good, bad, unclear = outcome(1, 2), outcome(-2, -1), outcome(-1, 1)
    assert claims.verdict([good, good]) == "holds"
    assert claims.verdict([good, unclear]) == "open"
    assert claims.verdict([good, unclear, bad]) == "fails"
    assert claims.verdict([good, outcome(-2, -1, counts=False)]) == "holds"
    assert claims.verdict([]) == "open"
    assert outcome(np.nan, np.nan, n=9).verdict == "open"


@pytest.mark.parametrize(
    ("values", "expected", "verdict"),
    [
        ([9, 10, 11], 10, "holds"),
        ([9, 10, 11], 12, "fails"),
        ([9, 10, 11], 8, "fails"),
        ([9, 11], 10, "open"),
    ],
)
def test_an_expected_number_lies_within_the_interval_of_the_mean(tmp_path, values, expected, verdict):
    found = runs(tmp_path, "a", values)
    outcome = claims.meets(claims.Expected("a", Of("a", FINAL_RETURN), expected, "by hand"), found)
    assert outcome.verdict == verdict
    assert outcome.interval.estimate == np.mean(values) - expected
    assert claims.verdict([outcome]) == verdict
    nobody = claims.Expected("b", Of("b", FINAL_RETURN), 1, "by hand")
    assert claims.meets(nobody, found).verdict == "open"


def test_the_list_holds_the_claims():
    assert [claim.name for claim in list_claims()] == NAMES
    assert all(name in table() for name in NAMES)
    for claim in list_claims():
        assert list(claim.budgets) == ["laptop", "gpu", "paper", "debug"]


@pytest.mark.parametrize("name", NAMES)
def test_every_arm_can_be_resolved(name):
    """A misspelt setting would otherwise be found after an hour."""
    claim = get_claim(name)
    for budget in claim.budgets.values():
        planned = [
            (arm.name, env) for arm in budget.arms for env in arm.envs
        ]  # an arm may have a part for each task
        assert len(set(planned)) == len(planned)
        for arm in budget.arms:
            for env in arm.envs:
                asked = {**arm.overrides, **arm.for_env.get(env, {})}
                overrides = {k: v for k, v in asked.items() if k not in OF_THE_RUN}
                if claim.train is not None:  # it knows its own clock
                    presets.resolve(arm.agent, budget.preset.split(), overrides)
                    continue
                overrides[arm.clock.setting] = arm.length
                config = presets.resolve(arm.agent, budget.preset.split(), overrides)
                assert getattr(config, arm.clock.setting) == arm.length
                assert arm.length > getattr(config, "prefill", 0) or budget.preset == "paper"
                assert hasattr(config, arm.clock.every) or arm.clock.every == "eval_every"
            before = {other.name for other in budget.arms[: budget.arms.index(arm)]}
            assert not arm.world or arm.world in before


def test_published_numbers_are_for_arms_and_tasks_that_the_paper_budget_runs():
    for claim in list_claims():
        arms = {arm.name: arm for arm in claim.budget("paper").arms}
        for number in claim.published:
            assert number.env in arms[number.arm].envs and number.length == arms[number.arm].length
    mean = np.mean([p.value for p in get_claim("dreamer-beats-planet").published if p.arm == "Dreamer"])
    assert mean == pytest.approx(823.39, abs=0.01)  # the average that the table prints below its column


def test_unknown_names_are_answered_with_the_known_ones():
    with pytest.raises(ReverieError, match="open-loop-video"):
        get_claim("nonsense")
    with pytest.raises(ReverieError, match="laptop, gpu, paper"):
        get_claim("open-loop-video").budget("desktop")


def test_a_claim_must_name_arms_that_exist_and_a_name_of_its_own():
    arm = Arm("a", "dreamer_v1", ("task",), 1)
    comparison = Comparison("a - b", Of("a", FINAL_RETURN), Of("b", FINAL_RETURN))
    claim = Claim("x", "s", "s", {"laptop": Budget("laptop", 3, (arm,), "")}, (comparison,))
    with pytest.raises(ReverieError, match=r"compares \['b'\]"):
        claims.register(claim)
    with pytest.raises(ReverieError, match="rename"):
        claims.register(dataclasses.replace(claim, name=NAMES[0], comparisons=()))


def test_steps_to_a_level_and_ends_near_goals(tmp_path):
    """Until the first evaluation that is near enough; the whole run if none is; however the goal is paid."""
    from reverie.reproduce.goals import DISTANCE, SUCCESS, steps_to

    def made(env, distances, paid):
        folder = tmp_path / env / "0"
        folder.mkdir(parents=True)
        lines = [
            {"env_steps": 100 * (k + 1), "eval/distance": d, "eval/last_reward": r}
            for k, (d, r) in enumerate(zip(distances, paid, strict=True))
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return Run("a", env, 0, folder)

    soon = steps_to({"x-v0": 0.5})
    quick, never = (
        made("xDense-v0", [0.9, 0.5, 0.7], [-1, -0.5, -0.25]),
        made("x-v0", [0.9, 0.8, 0.7], [-1, -1, 0]),
    )
    assert soon.of(quick) == {"x-v0": [200.0]}
    assert soon.of(never) == {"x-v0": [300.0]}
    assert DISTANCE.of(quick) == {"x-v0": [pytest.approx(0.7)]}
    assert SUCCESS.of(quick) == {"x-v0": [0.75]} and SUCCESS.of(never) == {"x-v0": [1.0]}


def test_solved_is_asked_of_every_task_by_itself(tmp_path):
    from reverie.reproduce.one_setting import SOLVED, V3

    claim = get_claim("dreamer-v3-one-setting")
    assert all(budget.arms[0].envs == tuple(SOLVED) for budget in claim.budgets.values())
    found = [
        run
        for env, least in SOLVED.items()
        for run in runs(tmp_path, V3, [least + 0.1 if env != "Pendulum-v1" else least - 9] * 3, env)
    ]
    judged = {one.name: one.verdict for one in claims.outcomes(claim.comparisons[0], found)}
    assert len(judged) == 6 and sorted(judged.values()) == ["fails"] + ["holds"] * 5
