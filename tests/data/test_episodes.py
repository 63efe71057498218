"""Episodes out of a replay, to files and back."""

import numpy as np
import pytest

from reverie.data import episodes as ep
from reverie.data.replay import Replay
from reverie.types import ActionSpace, ReverieError, Space

OBS = {"image": Space((4, 4, 3), "uint8"), "arm/pos": Space((2,))}
ACT = ActionSpace(3)


def episode(rows: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    made = {
        "obs/image": rng.integers(256, size=(rows, 4, 4, 3), dtype=np.uint8),
        "obs/arm/pos": rng.normal(size=(rows, 2)).astype(np.float32),
        "action": rng.normal(size=(rows, 3)).astype(np.float32),
        "reward": rng.normal(size=rows).astype(np.float32),
        "env_steps": np.full(rows, 2, np.int32),
        "is_first": np.arange(rows) == 0,
        "is_last": np.arange(rows) == rows - 1,
        "is_terminal": np.arange(rows) == (rows - 1 if seed % 2 else rows),
    }
    made["action"][-1] = 0
    made["reward"][0] = made["env_steps"][0] = 0
    return made


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and np.array_equal(a[k], b[k]) for k in a)


def test_into_a_replay_and_out():
    replay = Replay(OBS, ACT, 100, streams=2)
    given = [episode(rows, seed) for seed, rows in enumerate([9, 4, 2, 5])]
    assert ep.fill(replay, given) == 20
    assert replay.counts == [9, 11] and replay.episodes == 4
    assert all(same(a, given[i]) for a, i in zip(ep.episodes(replay), [0, 1, 2, 3], strict=True))


def test_files(tmp_path):
    given = [episode(3 + seed, seed) for seed in range(3)]
    paths = [ep.save(tmp_path, one) for one in given]
    assert [path.name for path in paths] == ["000000-2.npz", "000001-3.npz", "000002-4.npz"]
    assert sorted(tmp_path.iterdir()) == paths
    assert all(same(a, b) for a, b in zip(ep.load_all(tmp_path), given, strict=True))


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(ReverieError, match="could not be written: No space left"):
        ep.save(tmp_path, episode(3))
    assert list(tmp_path.iterdir()) == []


def test_never_pickle(tmp_path):
    path = tmp_path / "000000-2.npz"
    np.savez(path, **{**episode(3), "obs/image": np.array([{}, {}, {}], dtype=object)})
    with pytest.raises(ReverieError, match=r"not an episode that can be read.*allow_pickle"):
        ep.load(path)


def test_damaged_files(tmp_path):
    path = ep.save(tmp_path, episode(5))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ReverieError, match="not an episode that can be read"):
        list(ep.load_all(tmp_path))
    with pytest.raises(ReverieError, match="there are no episodes"):
        ep.load_all(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: e.pop("reward"), "has no reward"),
        (lambda e: e.update({"obs/image": e["obs/image"][1:]}), r"same number of rows.*obs/image"),
        (lambda e: e["is_first"].__setitem__(2, True), r"is first at \[0, 2\]"),
        (lambda e: e["is_last"].__setitem__(4, False), r"last at \[\]; cut it there"),
    ],
)
def test_refuses_what_is_no_episode(change, message):
    one = episode(5)
    change(one)
    with pytest.raises(ReverieError, match=message):
        ep.fill(Replay(OBS, ACT, 100), [one])
