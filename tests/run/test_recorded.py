"""What a recorded update repeats. The CUDA graph itself needs a GPU; here the recording repeats the operations."""

import pytest
import torch

from reverie import presets
from reverie.agents.dreamer_v3 import DreamerV3
from reverie.cli import main
from reverie.run.recorded import WARM, Recorded, tensors
from reverie.types import ActionSpace, Batch, Recordable, Space

OBS, ACT = {"vector": Space((3,), "float32")}, ActionSpace(1)


def batch(seed: int, length: int = 8) -> Batch:
    random = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(2, length, *shape, generator=random)
    is_first = torch.zeros(2, length, dtype=torch.bool)
    is_first[:, 0] = True
    none = torch.zeros_like(is_first)
    return Batch({"vector": draw(3)}, draw(1), draw(1), draw(), is_first, none, none)


def agent() -> DreamerV3:
    return DreamerV3(OBS, ACT, presets.resolve("dreamer_v3", ("debug",), {"pixels": False}))


class Again:
    """Records by repeating, and remembers what it was asked for."""

    def __init__(self):
        self.recorded, self.replayed = 0, 0

    def __call__(self, learn, generator):
        self.recorded += 1

        def replay():
            self.replayed += 1
            return learn()

        return replay


def states(value, place=""):
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from states(inner, f"{place}/{key}")
    else:
        yield place, value


def test_a_recording_makes_the_same_updates():
    plain, recorded, again = agent(), agent(), Again()
    learn = Recorded(recorded, again)
    for i in range(WARM + 3):
        told, said = plain.update(batch(i)), learn(batch(i))
        assert told.keys() == said.keys()
        assert all(torch.equal(torch.as_tensor(told[name]), torch.as_tensor(said[name])) for name in told)
        assert all(torch.equal(plain.reread[name], recorded.reread[name]) for name in plain.reread)
    assert (again.recorded, again.replayed) == (1, 3)
    assert plain.updates == recorded.updates == WARM + 3
    for (place, a), (_, b) in zip(states(plain.state_dict()), states(recorded.state_dict()), strict=True):
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, place


def test_what_is_recorded_reads_one_place_and_changes_things_where_they_are():
    """A graph knows addresses, not names: whatever an update reads or leaves behind must stay where it is."""
    one = agent()
    learn = Recorded(one, Again())
    learn(batch(0))
    lasting = lambda: {
        **{name: value.data_ptr() for name, value in one.modules.state_dict().items()},
        "range": one.range.data_ptr(),
        "steps": one.opt.steps.data_ptr(),
        "mean": one.opt.mean.data_ptr(),
        "square": one.opt.square.data_ptr(),
        **{f"batch {i}": value.data_ptr() for i, value in enumerate(tensors(learn.batch))},
    }
    before, kept = lasting(), one.state_dict()
    for i in range(1, WARM + 2):
        learn(batch(i))
    one.load_state_dict(kept)
    assert lasting() == before


def test_a_batch_of_another_form_is_recorded_anew():
    again = Again()
    learn = Recorded(agent(), again)
    for i in range(WARM + 1):
        learn(batch(i))
    for i in range(WARM):
        learn(batch(i, length=6))
    assert (again.recorded, again.replayed) == (1, 1)
    learn(batch(9, length=6))
    assert (again.recorded, again.replayed) == (2, 2)


def test_which_agents_can_be_recorded():
    assert isinstance(agent(), Recordable)
    v1 = presets.agent_class("dreamer_v1")
    assert not isinstance(
        v1(OBS, ACT, presets.resolve("dreamer_v1", ("debug",), {"pixels": False})), Recordable
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("dreamer_v3 --preset debug --no-pixels --device cpu", "this run learns on cpu"),
        ("dreamer_v1 --preset debug --no-pixels", "those of dreamer_v1 are not written so"),
        ("a2c --preset debug", "leave it out for a2c"),
    ],
)
def test_what_can_not_be_recorded_is_refused(tmp_path, capfd, words, said):
    run = tmp_path / "run"
    assert main(["train", *words.split(), "--env", "Pendulum-v1", "--graph", "--run", str(run)]) == 2
    err = capfd.readouterr().err
    assert err.startswith("reverie: ") and said in err and err.count("\n") == 1, err
    assert not (run / "plan.json").exists()
