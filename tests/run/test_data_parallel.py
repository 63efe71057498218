"""Several processes make one run: their update is that of one with all of their rows, and nothing is lost with them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import reverie
from reverie import checkpoint, parallel
from reverie.parallel import averaged, everyone, of_all
from reverie.types import ReverieError

HERE = Path(__file__).resolve()
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(HERE.parents[2]), "OMP_NUM_THREADS": "1"}

UPDATES = """
import sys
import torch
from reverie import dists, parallel, presets
from reverie.data.replay import Batch
from reverie.models import rssm
from reverie.types import ActionSpace, Space

def pattern(*shape):  # noise that every row has alike, so that it can be divided
    return torch.rand(shape, generator=torch.Generator().manual_seed(5)).clamp(1e-3, 1 - 1e-3)

for latent in (rssm.Categorical, rssm.Gaussian):
    noise = latent.noise
    def same(self, lead, like, generator=None, noise=noise):
        one = noise(self, (1,) * len(lead), like, torch.Generator().manual_seed(5))
        return one.expand(*lead, *one.shape[len(lead):]).contiguous()
    latent.noise = same
dists.noise_like = lambda x, generator=None: pattern(x.shape[-1]).expand_as(x)

agent, out = sys.argv[1:]
ranks = parallel.asked()
rows, T = 8, 6
generator = torch.Generator().manual_seed(1)
draw = lambda *shape: torch.rand(shape, generator=generator)
first = draw(rows, T) < 0.1
first[:, 0] = True
action = 2 * draw(rows, T, 2) - 1
keep = (~first)[..., None]
last = draw(rows, T) < 0.1
batch = dict(obs={"vector": draw(rows, T, 3)}, action=action, prev_action=action.roll(1, 1) * keep)
batch |= dict(reward=draw(rows, T) * keep[..., 0], is_first=first, is_last=last)
batch |= dict(is_terminal=last & (draw(rows, T) < 0.5))
mine = slice(rows * ranks.rank // ranks.size, rows * (ranks.rank + 1) // ranks.size)
batch = Batch(**{k: {n: v[mine] for n, v in x.items()} if k == "obs" else x[mine] for k, x in batch.items()})
spaces = {"vector": Space((3,))}, ActionSpace(2)
faster = dict(lr=1e-3, standardize=True) if agent == "dreamer_v3" else {}
config = presets.resolve(agent, ("debug",), dict(pixels=False, **faster))
with parallel.joined(ranks):
    made = presets.agent_class(agent)(*spaces, config)
    for _ in range(4):
        made.update(batch)
torch.save({k: v.double() for k, v in made.modules.state_dict().items()}, f"{out}-{ranks.size}-{ranks.rank}.pt")
"""


def torchrun(count: int, *command: Any, **how: Any) -> subprocess.Popen:
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    return subprocess.Popen([*start, *map(str, command)], env=ENVIRONMENT, start_new_session=True, **how)


def test_alone_nothing_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    x = torch.arange(6.0).reshape(3, 2)
    assert of_all(x) is x and averaged([x])[0] is x and everyone(3, 4) == [[3, 4]]
    assert parallel.asked() == parallel.ALONE == parallel.ranks()
    for name, value in dict(RANK=1, WORLD_SIZE=4, LOCAL_RANK=1, LOCAL_WORLD_SIZE=2).items():
        monkeypatch.setenv(name, str(value))
    assert parallel.asked() == (1, 4, 1, 2)


@pytest.mark.parametrize("agent", ["dreamer_v1", "dreamer_v3"])
def test_two_processes_learn_what_one_does_from_twice_the_rows(agent: str, tmp_path: Path) -> None:
    import torch

    script = tmp_path / "updates.py"
    script.write_text(UPDATES)
    for count in (1, 2):
        assert torchrun(count, script, agent, tmp_path / "weights").wait(240) == 0
    one, two, other = (torch.load(tmp_path / f"weights-{name}.pt") for name in ("1-0", "2-0", "2-1"))
    moved = 0
    for name, value in one.items():
        assert torch.equal(two[name], other[name]), "the ranks are one agent"
        torch.testing.assert_close(two[name], value, rtol=0, atol=1e-5)
        moved += int((value != 0).any())
    assert moved > 10


def test_what_can_not_be_shared_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ReverieError, match="torchrun --nproc-per-node 2"):
        reverie.train("sac", "Pendulum-v1", "debug", tmp_path / "a", processes=2)
    for words, why in (
        (["a2c", "--env", "CartPole-v1"], "a loop of its own"),
        (["sac", "--env", "Pendulum-v1", "--batch-size", "5"], "--batch-size 5"),
        (["sac", "--env", "Pendulum-v1", "--batch-size", "4", "--collector"], "--collector"),
    ):
        command = ["-m", "--", "reverie", "train", *words, "--preset", "debug", "--run", tmp_path / "b"]
        found = torchrun(2, *command, stderr=subprocess.PIPE, text=True)
        assert why in found.communicate(timeout=240)[1] and found.returncode != 0


def lines(run: Path) -> list[dict[str, Any]]:
    clocks = ("seconds", "fps", "time")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith(clocks)} for row in rows]


def state(run: Path) -> dict[str, Any]:
    return checkpoint.load(run / "checkpoints")[1]


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_run_that_was_stopped_is_the_run_that_was_not(how: signal.Signals, tmp_path: Path) -> None:
    import torch

    def start(name: str, **more: Any) -> subprocess.Popen:
        what = ["reverie", "train", "dreamer_v3", "--env", "Pendulum-v1", "--preset", "debug", "--no-pixels"]
        settings = dict(
            steps=900, checkpoint_every=0, eval_episodes=1, eval_every=300, log_every=50, batch_size=4, envs=2
        )
        flags = [word for name, value in settings.items() for word in ("--" + name.replace("_", "-"), value)]
        return torchrun(2, "-m", "--", *what, *flags, "--run", tmp_path / name, **more)

    assert start("whole").wait(300) == 0
    cut = start("cut")
    until = time.monotonic() + 120
    while len(checkpoint.paths(tmp_path / "cut" / "checkpoints")) < 2 and time.monotonic() < until:
        time.sleep(0.01)
    os.killpg(cut.pid, how)
    cut.wait(120)
    assert not (tmp_path / "cut" / "report.html").exists(), "it was stopped in the middle"
    assert start("cut").wait(300) == 0
    for rank in ("", "ranks/001"):
        one, two = tmp_path / "whole" / rank, tmp_path / "cut" / rank
        ended, went_on = state(one), state(two)
        assert ended["updates"] == went_on["updates"] > 10
        for name, value in ended["agent"]["modules"].items():
            assert torch.equal(value, went_on["agent"]["modules"][name])
        assert lines(one) == lines(two)
    weights = [state(tmp_path / "cut" / rank)["agent"]["modules"] for rank in ("", "ranks/001")]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert start("whole", stdout=subprocess.DEVNULL).wait(120) == 0, "it is finished, which all of them see"
