"""Checkpoints: what goes in comes out, and the last good one survives anything."""

import json
import os
import shutil
import signal
import subprocess
import sys
import warnings
from collections import OrderedDict, namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from reverie import checkpoint
from reverie.types import ReverieError

REPO = Path(__file__).parents[1]


def same(a, b) -> bool:
    """Equal in value, type, dtype and shape, all the way down; nan equals nan."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.contiguous(), b)
    if isinstance(a, np.ndarray | np.generic):
        return a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b or (a != a and b != b)


def round_trip(folder, state):
    checkpoint.save(folder, 7, state)
    step, back = checkpoint.load(folder)
    assert step == 7
    return back


base = torch.arange(24.0).reshape(4, 6)
KINDS = {
    **{f"t {dtype}": torch.ones(3, 2).to(dtype) for dtype in checkpoint.DTYPES},
    **{
        f"a {kind}": np.array([[1, 0, 1]], kind)
        for kind in ("f8", "f4", "f2", "i8", "i1", "u1", "u2", "u4", "u8", "?")
    },
    "big endian": np.arange(3.0).astype("<f4"),
    "0-d": torch.tensor(3),
    "0-d array": np.array(2.5),
    "numpy scalar": np.float32(0.1),
    "numpy bool": np.bool_(True),
    "empty": torch.zeros(0, 4, dtype=torch.int64),
    "empty array": np.zeros((3, 0), np.uint8),
    "transposed": base.t(),
    "strided": base[1:, ::2],
    "shared": [base, base[0], base.view(-1)],
    "array view": np.arange(9).reshape(3, 3)[::-1, ::2],
    "expanded": torch.ones(1).expand(5),
    "nan tensor": torch.tensor([float("inf"), 1.0]),
    "torch rng": torch.get_rng_state(),
    "numpy rng": np.random.default_rng(3).bit_generator.state,
    "old numpy rng": np.random.MT19937(3).state,
    "numbers": [0, -1, 2**127, -(2**200), True, False, None, 0.1, 1e308, 5e-324, -0.0],
    "not finite": [float("inf"), -float("inf"), float("nan")],
    "text": ["", "ä\n\u2028\0", "$tensor"],
    "tuples": ((), (1, (2, [3, (4,)])), {"x": ()}),
    "empties": [{}, [], ()],
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_goes_in_comes_out(tmp_path, kind):
    assert same(round_trip(tmp_path, {"x": KINDS[kind]}), {"x": KINDS[kind]})


def test_all_at_once(tmp_path):
    assert same(round_trip(tmp_path, KINDS), KINDS)


def test_keys(tmp_path):
    state = {
        "": torch.ones(1),
        "a/b": torch.zeros(1),
        "a": {"b": torch.ones(2), "": {"": torch.ones(3)}},
        "__metadata__": torch.full((2,), 3.0),
        "__metadata__#1": torch.full((2,), 4.0),
        "../../../etc/passwd": torch.full((1,), 5.0),
        "/": torch.full((1,), 6.0),
        "$tensor": {"$tensor": "a/b"},
        "numbers": {0: "zero", "0": "text", 1.5: "float", (1, "x"): "tuple", None: "none", True: "true"},
    }
    state["numbers"].pop(True)  # equal to 1, which is another key in JSON only
    assert same(round_trip(tmp_path / "in", state), state)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.just(torch.ones(2)),
    st.just(np.ones(1)),
)
TREES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(
            st.one_of(st.text(max_size=5), st.integers(), st.just("$x"), st.just("a/b")), inner, max_size=3
        )
    ),
    max_leaves=15,
)


@given(state=st.dictionaries(st.text(max_size=5), TREES, max_size=4))
def test_any_tree(tmp_path_factory, state):
    folder = tmp_path_factory.mktemp("tree")
    assert same(round_trip(folder, state), state)
    shutil.rmtree(folder)


def test_an_optimiser_goes_on_bit_for_bit(tmp_path):
    def make():
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 1))
        return model, torch.optim.AdamW(model.parameters(), 1e-2, fused=True)

    def train(model, optimizer, seed):
        data = torch.randn(16, 4, generator=torch.Generator().manual_seed(seed))
        optimizer.zero_grad()
        model(data).square().mean().backward()
        optimizer.step()

    model, optimizer = make()
    train(model, optimizer, 1)
    checkpoint.save(tmp_path, 1, {"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    train(model, optimizer, 2)
    other, other_optimizer = make()
    _, state = checkpoint.load(tmp_path)
    other.load_state_dict(state["model"])
    other_optimizer.load_state_dict(state["optimizer"])
    train(other, other_optimizer, 2)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_named_tuples_and_mappings_become_plain(tmp_path):
    point = namedtuple("point", "x y")
    back = round_trip(tmp_path, {"p": point(1, torch.ones(1)), "o": OrderedDict(b=1, a=2)})
    assert type(back["p"]) is tuple and back["p"][0] == 1 and back["o"] == {"b": 1, "a": 2}


def test_loaded_tensors_have_memory_of_their_own(tmp_path):
    path = checkpoint.save(tmp_path, 1, {"a": base, "b": base, "c": np.ones(3), "s": np.float32(1)})
    _, state = checkpoint.load(tmp_path)
    state["a"] += 1
    state["c"] += 1
    assert torch.equal(state["b"], base)
    assert same(checkpoint.load_path(path)[1]["c"], np.ones(3))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({1, 2}, "'a/b' is a set"),
        (object(), "'a/b' is a object"),
        (b"bytes", "'a/b' is a bytes"),
        (np.array([object()]), "'a/b' is an array of object"),
        (np.array(["text"]), "'a/b' is an array of <U4"),
        (torch.ones(2).to_sparse(), "'a/b' is a torch.sparse_coo tensor"),
        (torch.ones(2, dtype=torch.complex64), "'a/b' is a torch.strided tensor of torch.complex64"),
        ({torch.ones(1): 1}, "'a/b' has a tensor for a key"),
    ],
)
def test_refuses_by_name(tmp_path, value, message):
    with pytest.raises(ReverieError, match=message):
        checkpoint.save(tmp_path, 1, {"a": {"b": value}})
    assert list(tmp_path.iterdir()) == []


def test_on_disk(tmp_path):
    """Anybody can read it: safetensors, with names that say where, and JSON."""
    path = checkpoint.save(tmp_path, 12345, {"agent": {"w": base, "steps": 3}, "s": np.float32(2)})
    assert path == tmp_path / "000012345"
    assert sorted(p.name for p in path.iterdir()) == ["state.json", "tensors.safetensors"]
    with safe_open(path / "tensors.safetensors", "pt") as file:
        assert set(file.keys()) == {"agent/w", "s"} and torch.equal(file.get_tensor("agent/w"), base)
    about = json.loads((path / "state.json").read_text())
    assert about["format"] == 1 and about["step"] == 12345
    assert about["tree"] == {"agent": {"w": {"$tensor": "agent/w"}, "steps": 3}, "s": {"$scalar": "s"}}


def test_keeps_the_newest(tmp_path):
    for step in (5, 100, 20, 3_000_000_000):
        checkpoint.save(tmp_path, step, {"x": step}, keep=2)
    # When 20 was saved the run had gone back behind 100.
    assert [path.name for path in checkpoint.paths(tmp_path)] == ["000000020", "3000000000"]
    assert checkpoint.load(tmp_path) == (3_000_000_000, {"x": 3_000_000_000})
    checkpoint.save(tmp_path, 3_000_000_000, {"x": "again"}, keep=2)
    assert [path.name for path in checkpoint.paths(tmp_path)] == ["3000000000", "3000000000.1"]
    assert checkpoint.load(tmp_path)[1] == {"x": "again"}
    checkpoint.save(tmp_path, 7, {"x": "back"}, keep=1)
    assert [path.name for path in checkpoint.paths(tmp_path)] == ["000000007"]


def damage_cut(path):
    file = path / "tensors.safetensors"
    file.write_bytes(file.read_bytes()[:-3])


def damage_flip(path):
    file = path / "tensors.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def damage_tree(path):
    file = path / "state.json"
    file.write_text(file.read_text().replace('"number": 2', '"number": 3'))


def damage_json(path):
    file = path / "state.json"
    file.write_text(file.read_text()[:-20])


def damage_gone(path):
    (path / "tensors.safetensors").unlink()


def damage_empty(path):
    (path / "state.json").write_text("[]")


def damage_reference(path):
    tree = {"w": {"$tensor": "elsewhere"}}
    file = path / "state.json"
    about = json.loads(file.read_text())
    file.write_text(json.dumps({**about, "tree": tree, "tree_sha256": checkpoint._digest(2, tree)}))


DAMAGES = [damage_cut, damage_flip, damage_tree, damage_json, damage_gone, damage_empty, damage_reference]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_noticed_and_passed_over(tmp_path, damage):
    for step in (1, 2):
        checkpoint.save(tmp_path, step, {"w": base * step, "number": step})
    damage(tmp_path / "000000002")
    with pytest.warns(UserWarning, match=r"000000002 .*; trying the checkpoint before it") as caught:
        step, state = checkpoint.load(tmp_path)
    assert len(caught) == 1 and step == 1 and torch.equal(state["w"], base)
    damage_gone(tmp_path / "000000001")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ReverieError, match=r"none of the 2 checkpoints .* can be read; .*000000001"):
            checkpoint.load(tmp_path)


def test_newer_format_and_nothing_there(tmp_path):
    path = checkpoint.save(tmp_path, 2, {"x": 1})
    about = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps({**about, "format": 2}))
    with pytest.raises(ReverieError, match="has format 2, this version reads 1; update reverie"):
        checkpoint.load_path(path)
    for empty in (tmp_path / "nowhere", path / "state.json"):
        with pytest.raises(ReverieError, match="there is no checkpoint"):
            checkpoint.load(empty)
    for bad in ({"step": -1}, {"keep": 0}):
        with pytest.raises(ReverieError, match="needs step >= 0 and keep >= 1"):
            checkpoint.save(tmp_path, **{"step": 1, "state": {}, **bad})


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("where", ["fsync", "rename", "mkdir"])
def test_a_failed_save_leaves_the_last_one(tmp_path, monkeypatch, where):
    checkpoint.save(tmp_path, 1, {"x": base})

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(
        *{"fsync": (os, "fsync"), "rename": (Path, "rename"), "mkdir": (Path, "mkdir")}[where], full
    )
    with pytest.raises(ReverieError, match=r"step 2 could not be written .*disk full.* needs 96 bytes"):
        checkpoint.save(tmp_path, 2, {"x": base})
    monkeypatch.undo()
    assert names(tmp_path) == ["000000001"] and checkpoint.load(tmp_path)[0] == 1


LIMITED = """
import resource, signal, sys
import torch
from pathlib import Path
sys.path.insert(0, {repo!r})
from reverie import checkpoint
from reverie.types import ReverieError
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
try:
    checkpoint.save(Path({folder!r}), 2, {{"x": torch.zeros(10**6)}})
except ReverieError as error:
    print(error)
"""


def test_no_room_for_the_file(tmp_path):
    checkpoint.save(tmp_path, 1, {"x": base})
    script = LIMITED.format(repo=str(REPO), limit=10**6, folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "could not be written" in done.stdout and "disk full" in done.stdout
    assert names(tmp_path) == ["000000001"] and checkpoint.load(tmp_path)[0] == 1


def test_full_tmpfs(tmp_path):
    mounted = tmp_path / "small"
    mounted.mkdir()
    mount = shutil.which("mount")
    tmpfs = ["-t", "tmpfs", "-o", "size=512k", "none", str(mounted)]
    if not mount or subprocess.run([mount, *tmpfs], capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    try:
        checkpoint.save(mounted, 1, {"x": torch.ones(60_000)})
        with pytest.raises(ReverieError, match="disk full"):
            checkpoint.save(mounted, 2, {"x": torch.zeros(120_000)})
        assert names(mounted) == ["000000001"]
        checkpoint.save(mounted, 3, {"x": torch.ones(60_000)}, keep=1)
        assert names(mounted) == ["000000003"]
    finally:
        subprocess.run(["umount", "-l", str(mounted)], check=True)


KILLED = """
import sys
import torch
from pathlib import Path
sys.path.insert(0, {repo!r})
from reverie import checkpoint
print("going", flush=True)
for step in range(1, 10**6):
    checkpoint.save(Path({folder!r}), step, {{"x": torch.full((10**5,), float(step)), "step": step}})
    print(step, flush=True)
"""


def test_kill_9(tmp_path):
    """What was saved before the kill is there; half a checkpoint never is; the next save cleans up."""
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED.format(repo=str(REPO), folder=str(tmp_path))],
        stdout=subprocess.PIPE,
        text=True,
    )
    line = "0"
    while line in ("0", "going\n") or int(line) < 5:
        line = process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    rest = process.stdout.read().split()
    saved = int(rest[-1]) if rest else int(line)
    process.wait()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step, state = checkpoint.load(tmp_path)
    assert step in (saved, saved + 1) and state["step"] == step
    assert torch.equal(state["x"], torch.full((10**5,), float(step)))
    checkpoint.save(tmp_path, step + 1, {})
    assert not [name for name in names(tmp_path) if name.startswith(".")]


def test_older_ones_go_only_after_the_new_one_is_there(tmp_path, monkeypatch):
    for step in (1, 2):
        checkpoint.save(tmp_path, step, {"x": step})
    seen = []
    rmtree = shutil.rmtree
    monkeypatch.setattr(
        shutil, "rmtree", lambda path, **kw: (seen.append(names(tmp_path)), rmtree(path, **kw))
    )
    checkpoint.save(tmp_path, 3, {"x": 3}, keep=2)
    assert seen and all("000000003" in before for before in seen)
    assert names(tmp_path) == ["000000002", "000000003"]


def test_what_a_checkpoint_says_at_its_top_without_its_tensors(tmp_path):
    path = checkpoint.save(tmp_path, 3, {"done": True, "n": 4, "weight": torch.zeros(2)})
    assert checkpoint.says(path, "done") is True and checkpoint.says(path, "n") == 4
    assert checkpoint.says(path, "missing") is None
    (path / "tensors.safetensors").unlink()
    assert checkpoint.says(path, "n") == 4
    (path / "state.json").write_text("{")
    assert checkpoint.says(path, "n") is None
    assert checkpoint.says(tmp_path / "nowhere", "n") is None
